"""Deformation flows: one velocity field along a path of energies."""

from .energy_path import diffusion
from .guide import AutoDeformationFlow

__all__ = ["AutoDeformationFlow", "diffusion"]
