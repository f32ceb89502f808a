"""Kernels: exact Markov chains on a target, with a flow's help."""

from .base import FlowKernel
from .imh import IMH
from .jump import JumpHMC
from .latent import LatentHMC, LatentMALA

__all__ = ["IMH", "FlowKernel", "JumpHMC", "LatentHMC", "LatentMALA"]
