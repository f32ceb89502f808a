"""Targets: batched, differentiable log densities made from models, potentials or energies."""

from .density import Target, as_target
from .inspection import ModelStructureError
from .site import Site, Values

__all__ = ["ModelStructureError", "Site", "Target", "Values", "as_target"]
