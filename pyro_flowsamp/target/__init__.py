"""Targets: batched, differentiable log densities made from models, potentials or energies."""

from .density import Target, as_target
from .inspection import ModelStructureError
from .options import TracingOptions
from .site import Site, Values
from .work import WorkCounter

__all__ = [
    "ModelStructureError",
    "Site",
    "Target",
    "TracingOptions",
    "Values",
    "WorkCounter",
    "as_target",
]
