"""Bayesian classification: a Pyro model, and how well its draws predict held-out data."""

from __future__ import annotations

from math import log

import pyro
import pyro.distributions as dist
import torch.nn.functional as F
from torch import Tensor

__all__ = ["accuracy", "log_predictive", "logistic_regression"]


def logistic_regression(X: Tensor, y: Tensor) -> None:
    r"""Logistic regression with an unknown prior precision: :math:`d = p + 1`.

    .. math:: \alpha \sim \mathrm{Gamma}(1, 0.01),\quad \beta_i \mid \alpha \sim N(0, 1/\alpha),
              \quad y_n \sim \mathrm{Bernoulli}(\mathrm{logits} = X_n \cdot \beta)

    As in the experiments of Liu and Wang (Stein Variational Gradient Descent, 2016,
    https://arxiv.org/abs/1608.04471) and the annealing flow paper
    (https://arxiv.org/abs/2409.20547); 0.01 is the rate, so :math:`\alpha` has mean 100.

    Arguments:
        X: A column of ones and the standardised predictors, ``(N, p)``.
        y: The classes, 0 or 1, in the dtype of ``X``, ``(N,)``.
    """
    alpha = pyro.sample("alpha", dist.Gamma(X.new_ones(()), 0.01))
    with pyro.plate("predictors", X.shape[-1]):
        beta = pyro.sample("beta", dist.Normal(X.new_zeros(()), alpha.rsqrt()))
    with pyro.plate("data", y.shape[-1]):
        pyro.sample("y", dist.Bernoulli(logits=beta @ X.T), obs=y)


def log_predictive(beta: Tensor, X: Tensor, y: Tensor) -> Tensor:
    r"""Mean log predictive density of held-out data, a 0-d tensor.

    .. math:: \frac1N \sum_n \log \frac1S \sum_s p(y_n \mid X_n, \beta_s)

    Arguments:
        beta: Posterior draws, ``(S, p)``.
        X, y: Held-out predictors ``(N, p)`` and classes ``(N,)``.
    """
    signed = (2 * y - 1) * (beta @ X.T)
    return (F.logsigmoid(signed).logsumexp(0) - log(len(beta))).mean()


def accuracy(beta: Tensor, X: Tensor, y: Tensor) -> Tensor:
    """The fraction of held-out classes that the draws' mean probability gets right, 0-d.

    Arguments:
        beta: Posterior draws, ``(S, p)``.
        X, y: Held-out predictors ``(N, p)`` and classes ``(N,)``.
    """
    probability = (beta @ X.T).sigmoid().mean(0)
    return ((probability > 0.5) == (y > 0.5)).to(X.dtype).mean()
