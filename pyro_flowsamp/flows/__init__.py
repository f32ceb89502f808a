"""Normalising flows made with zuko, with an affine layer next to the data, and their first fits."""

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
