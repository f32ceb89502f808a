"""Bayesian classification: a Pyro model, and measures of its predictions of held-out data."""

from __future__ import annotations

from math import log

import pyro
import pyro.distributions as dist
import torch.nn.functional as F
from torch import Tensor

__all__ = ["accuracy", "log_predictive", "logistic_regression"]


def logistic_regression(X: Tensor, y: Tensor) -> None:
    r"""Bayesian logistic regression with an unknown prior precision, as a Pyro model.

    There are :math:`d = p + 1` unknowns.

    .. math:: \alpha \sim \mathrm{Gamma}(1, 0.01),\quad \beta_i \mid \alpha \sim N(0, 1/\alpha),
              \quad y_n \sim \mathrm{Bernoulli}(\mathrm{logits} = X_n \cdot \beta)

    The rate of the gamma distribution is 0.01, so :math:`\alpha` has mean 100.

    Arguments:
        X: A column of ones and the standardised predictors, ``(N, p)``.
        y: The classes, 0 or 1, in the dtype of ``X``, ``(N,)``.

    References:
        Liu and Wang, *Stein Variational Gradient Descent*, 2016, https://arxiv.org/abs/1608.04471

        Wu and Xie, *Annealing Flow Generative Models Towards Sampling High-Dimensional and
        Multi-Modal Distributions*, 2025, https://arxiv.org/abs/2409.20547

    Example::

        >>> import torch
        >>> from pyro_flowsamp import Target
        >>> X, y = torch.ones(4, 2), torch.tensor([0.0, 1.0, 1.0, 1.0])
        >>> Target.from_model(logistic_regression, X, y).dim
        3
    """
    alpha = pyro.sample("alpha", dist.Gamma(X.new_ones(()), 0.01))
    with pyro.plate("predictors", X.shape[-1]):
        beta = pyro.sample("beta", dist.Normal(X.new_zeros(()), alpha.rsqrt()))
    with pyro.plate("data", y.shape[-1]):
        pyro.sample("y", dist.Bernoulli(logits=beta @ X.T), obs=y)


def log_predictive(beta: Tensor, X: Tensor, y: Tensor) -> Tensor:
    r"""Computes the mean log predictive density of held-out data.

    .. math:: \frac1N \sum_n \log \frac1S \sum_s p(y_n \mid X_n, \beta_s)

    Arguments:
        beta: Posterior draws, ``(S, p)``.
        X, y: Held-out predictors ``(N, p)`` and classes ``(N,)``.

    Returns:
        The mean in nats, 0-d.

    Example::

        >>> import torch
        >>> X, y = torch.eye(2), torch.tensor([1.0, 0.0])
        >>> round(float(log_predictive(torch.zeros(5, 2), X, y)), 4)  # log 1/2
        -0.6931
    """
    signed = (2 * y - 1) * (beta @ X.T)
    return (F.logsigmoid(signed).logsumexp(0) - log(len(beta))).mean()


def accuracy(beta: Tensor, X: Tensor, y: Tensor) -> Tensor:
    """Computes the fraction of held-out classes that the draws' mean probability predicts.

    Arguments:
        beta: Posterior draws, ``(S, p)``.
        X, y: Held-out predictors ``(N, p)`` and classes ``(N,)``.

    Returns:
        The fraction, 0-d.

    Example::

        >>> import torch
        >>> X, y = torch.eye(2), torch.tensor([1.0, 0.0])
        >>> float(accuracy(torch.tensor([[2.0, 2.0]]), X, y))
        0.5
    """
    probability = (beta @ X.T).sigmoid().mean(0)
    return ((probability > 0.5) == (y > 0.5)).to(X.dtype).mean()
