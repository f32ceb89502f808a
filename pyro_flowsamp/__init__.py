"""Flow samplers for Pyro: trained proposals, exact draws."""

from importlib import metadata as _metadata

from .chains.stored_draws import StoredDraws
from .chains.vectorized import VectorizedMCMC
from .checkpoint import CheckpointOptions
from .diagnostics import (
    Check,
    Diagnosis,
    DiagnosisOptions,
    EvidenceOptions,
    diagnose,
    evidence_estimates,
    log_evidence,
)
from .distributed import WorkersOptions, workers
from .expectations import ImportanceEstimate, ImportanceOptions, importance_flow
from .export import to_arviz
from .guides import (
    AdversarialLoss,
    AdvNFOptions,
    AdvNFWeights,
    AnnealingOptions,
    AutoAdvNF,
    AutoAnnealingFlow,
    AutoDeformationFlow,
    AutoFlow,
    DeformationOptions,
    FlowGuide,
)
from .guides.deformation import diffusion
from .kernels import IMH, FlowKernel, LatentHMC, LatentMALA, LocalGlobalHMC
from .lattice import lattice_discriminator, lattice_flow
from .objectives import ForwardKL, PathGradient, ReverseKL, WeightedSum
from .options import FitOptions, ModeSearchOptions, SearchOptions
from .plots import PlotOptions, plot_modes, plot_path, plot_training
from .reporting import ReportOptions, report
from .sampling.sample import sample
from .smc import tempered_smc
from .target import Target, TracingOptions
from .training.history import History
from .weights import ess_fraction, pareto_k

try:
    __version__ = _metadata.version("pyro_flowsamp")
except _metadata.PackageNotFoundError:  # the folder is on the path, and not installed
    __version__ = "0+unknown"

__all__ = [
    "IMH",
    "AdvNFOptions",
    "AdvNFWeights",
    "AdversarialLoss",
    "AnnealingOptions",
    "AutoAdvNF",
    "AutoAnnealingFlow",
    "AutoDeformationFlow",
    "AutoFlow",
    "Check",
    "CheckpointOptions",
    "DeformationOptions",
    "Diagnosis",
    "DiagnosisOptions",
    "EvidenceOptions",
    "FitOptions",
    "FlowGuide",
    "FlowKernel",
    "ForwardKL",
    "History",
    "ImportanceEstimate",
    "ImportanceOptions",
    "LatentHMC",
    "LatentMALA",
    "LocalGlobalHMC",
    "ModeSearchOptions",
    "PathGradient",
    "PlotOptions",
    "ReportOptions",
    "ReverseKL",
    "SearchOptions",
    "StoredDraws",
    "Target",
    "TracingOptions",
    "VectorizedMCMC",
    "WeightedSum",
    "WorkersOptions",
    "diagnose",
    "diffusion",
    "ess_fraction",
    "evidence_estimates",
    "importance_flow",
    "lattice_discriminator",
    "lattice_flow",
    "log_evidence",
    "pareto_k",
    "plot_modes",
    "plot_path",
    "plot_training",
    "report",
    "sample",
    "tempered_smc",
    "to_arviz",
    "workers",
]
