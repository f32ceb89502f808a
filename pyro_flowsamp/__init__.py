"""Flow samplers for Pyro: trained proposals, exact draws."""

from .deformation import diffusion
from .expectation import ImportanceEstimate, importance_flow
from .export import to_arviz
from .guides import AutoAnnealingFlow, AutoDeformationFlow, AutoFlow, FlowGuide
from .importance import ess_fraction, log_evidence, pareto_k
from .kernels import IMH, FlowKernel, JumpHMC, LatentHMC, LatentMALA
from .ladder import sample
from .mcmc import VectorizedMCMC
from .objectives import ForwardKL, PathGradient, ReverseKL, WeightedSum
from .target import Target
from .train import FitOptions, History
from .transitions.tempering import tempered, tempered_ensemble

__version__ = "0.1.0"

__all__ = [
    "IMH",
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
    "log_evidence",
    "pareto_k",
    "sample",
    "tempered",
    "tempered_ensemble",
    "to_arviz",
]

FlowKernel.default_guide = AutoFlow  # kernels take any guide and know none
