"""Flow samplers for Pyro: trained proposals, exact draws."""

from .deformation import diffusion
from .discriminators import lattice_discriminator
from .expectation import ImportanceEstimate, importance_flow
from .export import to_arviz
from .guides import (
    AutoAdvNF,
    AutoAnnealingFlow,
    AutoDeformationFlow,
    AutoFlow,
    FlowGuide,
)
from .importance import ess_fraction, log_evidence, pareto_k
from .kernels import IMH, FlowKernel, JumpHMC, LatentHMC, LatentMALA
from .ladder import sample
from .lattice_flow import lattice_flow
from .mcmc import VectorizedMCMC
from .objectives import ForwardKL, PathGradient, ReverseKL, WeightedSum
from .target import Target
from .train import FitOptions, History
from .transitions.tempering import tempered, tempered_ensemble, tempered_ensembles

__version__ = "0.1.0"

__all__ = [
    "IMH",
    "AutoAdvNF",
    "AutoAnnealingFlow",
    "AutoDeformationFlow",
    "AutoFlow",
    "FitOptions",
    "FlowGuide",
    "FlowKernel",
    "ForwardKL",
    "History",
    "ImportanceEstimate",
    "JumpHMC",
    "LatentHMC",
    "LatentMALA",
    "PathGradient",
    "ReverseKL",
    "Target",
    "VectorizedMCMC",
    "WeightedSum",
    "diffusion",
    "ess_fraction",
    "importance_flow",
    "lattice_discriminator",
    "lattice_flow",
    "log_evidence",
    "pareto_k",
    "sample",
    "tempered",
    "tempered_ensemble",
    "tempered_ensembles",
    "to_arviz",
]

FlowKernel.default_guide = AutoFlow  # kernels take any guide and know none
