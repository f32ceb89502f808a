"""Distributions whose truth is known, to try samplers on."""

from .bayes import accuracy, log_predictive, logistic_regression
from .funnel import banana, funnel, truncated_normal
from .known import Known
from .mixtures import exp_gauss, exp_gauss_unequal, gmm, mog4, mog8, rings4, unequal_pair

__all__ = [
    "Known",
    "accuracy",
    "banana",
    "exp_gauss",
    "exp_gauss_unequal",
    "funnel",
    "gmm",
    "log_predictive",
    "logistic_regression",
    "mog4",
    "mog8",
    "rings4",
    "truncated_normal",
    "unequal_pair",
]
