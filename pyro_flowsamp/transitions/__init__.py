"""Markov transitions on plain tensors, many chains at once; no Pyro here."""
