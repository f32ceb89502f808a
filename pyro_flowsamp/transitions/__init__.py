"""Markov transitions on plain tensors, many chains at once, without Pyro."""
