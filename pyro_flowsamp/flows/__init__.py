"""Normalising flows made with zuko, with an affine layer next to the data, and their first fits."""

from .affine import Affine
from .coupling_layers import Coupling
from .gaussian_fit import GaussianFitOptions
from .latent import LatentBase
from .mixture_fit import MixtureFitOptions
from .pathfinder import PathfinderOptions
from .proposal import DiagnosticOptions, FlowDistribution, Proposal
from .recipes import RECIPES, LayeredFlow, circular, coupling, gaussian, spline

__all__ = [
    "Affine",
    "Coupling",
    "DiagnosticOptions",
    "FlowDistribution",
    "GaussianFitOptions",
    "LatentBase",
    "LayeredFlow",
    "MixtureFitOptions",
    "PathfinderOptions",
    "Proposal",
    "RECIPES",
    "circular",
    "coupling",
    "gaussian",
    "spline",
]
