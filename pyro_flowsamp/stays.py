r"""Stays of an independence sampler, and the effective number of draws of rare states.

From a state of weight w a proposal :math:`y \sim q` is accepted with the mean probability

.. math:: a(w) = \mathbb E_q \min\Bigl(1, \frac{w(y)}{w}\Bigr) .

Proposals are independent of the state, so that the stay (the holding time of the state) is
geometric with the mean 1 / a(w). Let A
be a set of a small probability p. Among chains in A the share
:math:`\mathbb E_A[(1 - a)^k]` has not moved in k steps, and those that have moved are in A again
with a probability of the order of p. So the indicator of A has the autocorrelation
:math:`\rho_k \approx \mathbb E_A[(1 - a)^k]`, and N draws have the effective number

.. math:: n_A \approx \frac{N}{1 + 2 \sum_k \rho_k} = \frac{N}{\mathbb E_A[2 / a - 1]} .

The least of these is that of the states with the longest stays: a tail in which the flow is thin.
The chains' own autocorrelations do not show it where they have hardly been there. The weights do,
at any point of the tail, and annealed particles have points there that no chain has led to.

The error of any mean is known, too (Liu, 1996). Let states of probabilities :math:`p_i` be in the
order of their weights, :math:`S_i = \sum_{j \le i} p_j`, and :math:`m_i` the mean of f over the
states before i. The eigenvalues of the chain are :math:`\lambda_i = 1 - a(w_i)`, and f has the part

.. math:: \nu_i = p_i \frac{S_{i-1}}{S_i} (f_i - m_i)^2, \qquad \sum_i \nu_i = \mathrm{Var}(f),

in the direction of the i-th eigenvector, which is constant before i and zero after it. So the mean
of f over n draws of each of C stationary chains has the variance

.. math:: \mathrm{Var}(\bar f) = \frac1{C n} \sum_i \nu_i \tau_i, \qquad
    \tau_i = 1 + 2 \sum_{k=1}^{n-1} \Bigl(1 - \frac kn\Bigr) \lambda_i^k
    = \frac{1 + \lambda_i}{1 - \lambda_i}
    - \frac{2 \lambda_i (1 - \lambda_i^n)}{n (1 - \lambda_i)^2} .

It needs no chain: points that are distributed as the target, and their weights, are enough.

Of a sampler with local moves the stays do not follow from the weights. There chains begin in A and
make K steps. If they begin there as the target is distributed in A, the share :math:`s_k` of them
that is in A after k steps estimates
:math:`P(X_k \in A \mid X_0 \in A) = p + (1 - p) \rho_k`, so that

.. math:: \rho_k = \frac{s_k - p}{1 - p}, \qquad
    n_A = \frac{C n}{1 + 2 \sum_{k=1}^{n-1} (1 - k / n) \rho_k} ,

which is :math:`p (1 - p)` over the variance of the share of A among the n steps of each of C
stationary chains: one chain's share has the variance
:math:`p (1 - p) n^{-2} \sum_{i,j} \rho_{|i - j|}`.

After more than K steps the correlations are not known, but they have a lower bound. With a
reversible kernel :math:`\rho_k = \int \lambda^k \nu(d\lambda)` for a distribution :math:`\nu` on
[-1, 1]. By Hölder's inequality its logarithm is convex in k over even k (over all k, if no
eigenvalue is negative), so that

.. math:: \rho_k \ge \rho_K \Bigl(\frac{\rho_K}{\rho_{K/2}}\Bigr)^{\frac{k - K}{K - K/2}},
    \qquad k > K .

References:
    Jun Liu, *Metropolized independent sampling with comparisons to rejection sampling and
    importance sampling*, 1996, https://doi.org/10.1007/BF00162521
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "ess_of_longest_stays",
    "ess_of_rare_states",
    "ess_of_visits",
    "expected_stays",
    "variances_by_stays",
]


SMALL = 1e-4  #: expected moves of a chain, below which its draws are one


def expected_stays(
    log_w: Tensor, proposals: Tensor | None = None, states: Tensor | None = None
) -> Tensor:
    r"""The expected number of steps that a chain stays at each of some states.

    By M draws :math:`y_i` of q it is estimated with

    .. math:: a(w) \approx \frac{\sum_i v_i \min(1, w(y_i) / w)}{\sum_i v_i}, \qquad v_i = 1 .

    States themselves have the density :math:`w q` up to a constant. So they can stand for draws of
    q with the importance weights :math:`v_i = 1 / w(y_i)`.

    Arguments:
        log_w: Log weights of the points at which a chain may be, ``(N,)``; infinite where q has no
            density, NaN where it is not known: there a chain stays forever.
        proposals: Log weights of draws of q, ``(M,)``; by default ``states`` stand for them.
        states: Log weights of states of chains, ``(M,)``; by default the points themselves.

    Returns:
        The numbers of steps, ``(N,)``, float64.

    Example:
        >>> proposals = torch.tensor([1.0, 1.0, 2.0, 4.0]).log()
        >>> stays = expected_stays(torch.tensor([1.0, 4.0, 20.0]).log(), proposals)
        >>> stays.round(decimals=6).tolist()
        [1.0, 2.0, 10.0]
    """
    log_w = log_w.double().nan_to_num(nan=torch.inf, posinf=torch.inf)
    if proposals is None:
        states = log_w if states is None else states.double()
        order = states[torch.isfinite(states)].sort().values
        log_v = -order
    else:
        order = proposals.double().nan_to_num(nan=-torch.inf).sort().values
        log_v = torch.zeros_like(order)
    none = order.new_full((1,), -torch.inf)
    below = torch.cat([none, (log_v + order).logcumsumexp(0)])  # of weights below each
    above = torch.cat([log_v.flip(0).logcumsumexp(0).flip(0), none])
    index = torch.searchsorted(order, log_w)
    accepted = torch.logaddexp(above[index], below[index] - log_w) - above[0]
    least = (index == 0) & (log_w < torch.inf)  # every proposal is accepted
    accepted = torch.where(least, 0.0, accepted)
    return (-accepted.nan_to_num(nan=-torch.inf)).exp().clamp(min=1.0)


def ess_of_longest_stays(
    stays: Tensor, number: int, share: float, weights: Tensor | None = None
) -> float:
    r"""The effective number of draws of the states with the longest stays.

    Arguments:
        stays: Expected stays at states, or at points that are distributed nearly so, ``(N,)``.
        number: The number of draws of all chains, thinning not counted.
        share: The probability of the states with the longest stays that are looked at.
        weights: Weights of the points, ``(N,)``; by default equal ones.

    Returns:
        :math:`n_A` for the set A of these states.

    Example:
        >>> stays = torch.ones(1000).double()
        >>> round(ess_of_longest_stays(stays, 8000, 0.01))
        8000
        >>> stays[:10] = 5.5  # a hundredth of the states
        >>> round(ess_of_longest_stays(stays, 8000, 0.01))
        800
    """
    weights = torch.ones_like(stays) if weights is None else weights.to(stays)
    order = stays.argsort(descending=True)
    mass = (weights / weights.sum())[order]
    before = mass.cumsum(0) - mass
    inside = torch.where(before < share, torch.minimum(mass, share - before), 0.0)
    mean = float((inside * stays[order])[inside > 0].sum() / inside.sum())
    return number / (2 * mean - 1)


def ess_of_rare_states(
    log_w: Tensor, thin: int, share: float, proposals: Tensor | None = None
) -> float:
    """The effective number of draws of the states at which the chains of a run stay longest.

    No stay counts for more than the steps of a chain.

    Arguments:
        log_w: Log weights of the draws, ``(chains, draws)``.
        thin: Steps of a chain for each draw.
        share: The probability of the states that are looked at.
        proposals: See :func:`expected_stays`.

    Example:
        >>> log_w = torch.zeros(100, 50)
        >>> log_w[:, 0] = 100.0  # two of a hundred states, where chains stay for ever
        >>> round(ess_of_rare_states(log_w, 1, 0.02, torch.zeros(9)))  # 5000 / (2 · 50 - 1)
        51
    """
    steps = log_w.shape[1] * thin
    stays = expected_stays(log_w.flatten(), proposals).clamp(max=steps)
    return ess_of_longest_stays(stays, len(log_w) * steps, share)


def variances_by_stays(
    values: Tensor, log_w: Tensor, stays: Tensor, steps: int, thin: int, weights: Tensor
) -> Tensor:
    r"""The parts of points in the variance of means over one chain of an independence sampler.

    Arguments:
        values: Values of m functions at points that are distributed as the target, ``(N, m)``.
        log_w: Log weights of the points, ``(N,)``.
        stays: Expected stays at them, ``(N,)``.
        steps: The number n of draws of the chain.
        thin: Its steps for each draw.
        weights: The probabilities of the points, of sum one, ``(N,)``.

    Returns:
        The terms :math:`\nu_i \tau_i / n`, ``(N, m)``, in the order of the weights. Their sum over
        points is the variance of the mean over a stationary chain.

    Example:
        >>> log_w = torch.tensor([0.0, 100.0])  # a chain never leaves the second state
        >>> stays, half = torch.tensor([1.0, 1e12]).double(), torch.tensor([0.5, 0.5]).double()
        >>> values = torch.tensor([[0.0], [1.0]])
        >>> float(variances_by_stays(values, log_w, stays, 100, 1, half).sum())  # one visit
        0.25
        >>> some = variances_by_stays(values, log_w, torch.ones(2).double(), 100, 1, half)
        >>> float(some.sum())  # a hundred independent draws
        0.0025
    """
    order = log_w.argsort()
    f, p = values.double()[order], weights.double()[order]
    total = p.cumsum(0)
    before = torch.cat([torch.zeros_like(total[:1]), total[:-1]])
    sums = torch.cat([torch.zeros_like(f[:1]), (p[:, None] * f).cumsum(0)[:-1]])
    mean = sums / before.clamp(min=torch.finfo(p.dtype).tiny)[:, None]
    share = p * before / total.clamp(min=torch.finfo(p.dtype).tiny)
    stay = stays.double()[order]
    leave = -torch.expm1(thin * torch.log1p(-1 / stay))  # in the steps to the next draw
    left = -torch.expm1(steps * torch.log1p(-leave))
    tau = (2 - leave) / leave - 2 * (1 - leave) * left / (steps * leave.square())
    tau = torch.where(steps * leave < SMALL, float(steps), tau)
    return (share * tau / steps)[:, None] * (f - mean).square()


def ess_of_visits(
    stay: Tensor, share: float, chains: int, steps: int, number: float = float("inf")
) -> float:
    r"""The effective number of draws of a set, by chains that have begun in it.

    The ratio of the last correlations decides how long the others are, and is of few chains. So the
    number of chains in the set that its denominator stands for counts one more, which makes it
    smaller: what is returned is rather too large.

    Arguments:
        stay: Shares of the chains that are in the set after 1, ..., K steps, ``(K,)``, K > 1.
        share: Its probability p.
        chains, steps: The number C of chains whose draws are asked for, and their steps n.
        number: The number of chains that the shares are of.

    Returns:
        :math:`n_A`; no correlation counts as less than zero, or more than an earlier one: those of
        a reversible kernel without negative eigenvalues fall, and few chains give them errors.

    Example:
        >>> stay = 0.5 ** torch.arange(1, 9)  # half of the chains leave in every step
        >>> round(ess_of_visits(stay.double(), 0.0, 100, 1000))  # 100 000 / 3
        33378
        >>> round(ess_of_visits(torch.ones(8).double(), 0.0, 100, 1000))  # one visit a chain
        100
    """
    rho = ((stay.double() - share) / (1 - share)).clamp(min=0.0).cummin(0).values
    last = len(rho)
    middle = last // 2
    k = torch.arange(1, steps, device=rho.device).double()
    end, half = float(rho[-1]), float(rho[middle - 1])
    ratio = end / (half + 1 / number) if end > 0 else 0.0
    beyond = end * min(1.0, ratio) ** ((k - last) / (last - middle))
    known = rho[(k.long() - 1).clamp(max=last - 1)]
    rho = torch.where(k <= last, known, beyond)
    return chains * steps / (1 + 2 * float(((1 - k / steps) * rho).sum()))
