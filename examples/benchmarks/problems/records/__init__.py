"""Targets on which published samplers have been compared, with their true log evidence."""

from . import energies, posteriors
from .target import LiteratureTarget

__all__ = ["TARGETS", "LiteratureTarget"]

TARGETS: dict[str, LiteratureTarget] = {**energies.TARGETS, **posteriors.TARGETS}
