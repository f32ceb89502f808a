"""Kernels: Markov chains that are exact for a target and use a flow to move."""

from .base import FlowKernel
from .imh import IMH
from .latent import LatentHMC, LatentMALA
from .local_global import LocalGlobalHMC

__all__ = ["FlowKernel", "IMH", "LocalGlobalHMC", "LatentHMC", "LatentMALA"]
