"""Targets: batched, differentiable log densities made from models, potentials or energies."""

from .density import Target
from .inspection import ModelStructureError
from .site import Site, Values

__all__ = ["ModelStructureError", "Site", "Target", "Values"]
