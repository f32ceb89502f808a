"""Deformation flows: one velocity field along a path of energies."""

from .energy_path import diffusion
from .guide import AutoDeformationFlow
from .losses import CollocationLoss, at_smc_points, residual
from .options import DeformationOptions

__all__ = [
    "AutoDeformationFlow",
    "CollocationLoss",
    "DeformationOptions",
    "at_smc_points",
    "diffusion",
    "residual",
]
