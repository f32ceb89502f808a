"""Normalising flows over zuko, with an affine layer at the bottom, and fits to start from."""

from .affine import Affine
from .coupling_layers import Coupling
from .latent import LatentBase
from .proposal import FlowDistribution, Proposal
from .recipes import RECIPES, LayeredFlow, circular, coupling, gaussian, spline

__all__ = [
    "Affine",
    "Coupling",
    "FlowDistribution",
    "LatentBase",
    "LayeredFlow",
    "Proposal",
    "RECIPES",
    "circular",
    "coupling",
    "gaussian",
    "spline",
]
