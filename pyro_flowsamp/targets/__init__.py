"""Distributions whose truth is known, to try samplers on."""

from .bayes import accuracy, log_predictive, logistic_regression
from .funnel import banana, funnel, truncated_normal
from .known import Known
from .lattice import lattice_symmetries
from .mixtures import exp_gauss, exp_gauss_unequal, gmm, mog4, mog8, rings4, unequal_pair
from .phi4 import (
    Phi4Observables,
    phi4,
    phi4_action,
    phi4_model,
    phi4_observables,
    phi4_symmetries,
)
from .phi4_circle import Phi4Truth, phi4_truth
from .xy import (
    XYObservables,
    vortex_density,
    xy,
    xy_energy,
    xy_magnetization,
    xy_model,
    xy_observables,
)
from .xy_exact import XYTruth, xy_chain_truth, xy_torus_truth

__all__ = [
    "Known",
    "Phi4Observables",
    "Phi4Truth",
    "XYObservables",
    "XYTruth",
    "accuracy",
    "banana",
    "exp_gauss",
    "exp_gauss_unequal",
    "funnel",
    "gmm",
    "lattice_symmetries",
    "log_predictive",
    "logistic_regression",
    "mog4",
    "mog8",
    "phi4",
    "phi4_action",
    "phi4_model",
    "phi4_observables",
    "phi4_symmetries",
    "phi4_truth",
    "rings4",
    "truncated_normal",
    "unequal_pair",
    "vortex_density",
    "xy",
    "xy_chain_truth",
    "xy_energy",
    "xy_magnetization",
    "xy_model",
    "xy_observables",
    "xy_torus_truth",
]
