"""Samplers from outside the package that the studies compare with."""
