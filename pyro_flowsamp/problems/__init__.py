"""Test problems with known answers: exact draws, evidences, modes and entropies."""

from .bayes import accuracy, log_predictive, logistic_regression
from .mixtures import exp_gauss, exp_gauss_unequal, gmm, mog4, mog8, rings4, unequal_pair
from .problem import Problem
from .shapes import banana, funnel, truncated_normal

__all__ = [
    "Problem",
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
