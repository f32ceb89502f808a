"""Kernels: exact Markov chains on a target, with the help of a flow."""

from .base import FlowKernel
from .imh import IMH
from .latent import LatentHMC, LatentMALA
from .local_global import LocalGlobalHMC

__all__ = ["FlowKernel", "IMH", "LocalGlobalHMC", "LatentHMC", "LatentMALA"]
