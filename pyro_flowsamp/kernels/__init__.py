"""Kernels: exact Markov chains on a target, with a flow's help."""

from .base import FlowKernel
from .imh import IMH
from .latent_mala import LatentMALA

__all__ = ["IMH", "FlowKernel", "LatentMALA"]
