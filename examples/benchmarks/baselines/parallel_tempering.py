r"""Parallel tempering: chains at several temperatures, which exchange their states.

The replicas :math:`x_0, \dots, x_{R-1}` of an ensemble have the joint density
:math:`\prod_i \pi_{\beta_i}(x_i)` on the path of :mod:`pyro_flowsamp.smc.paths`,
:math:`1 = \beta_0 > \dots > \beta_{R-1} = 0`. Local moves (here HMC, and at :math:`\beta = 0`
independent draws of the base) leave each factor invariant. The exchange of :math:`x_i` and
:math:`x_j` is its own inverse and preserves volume; with :math:`\ell = \log\tilde p - \log b`

.. math:: \frac{\pi_{\beta_i}(x_j)\, \pi_{\beta_j}(x_i)}{\pi_{\beta_i}(x_i)\, \pi_{\beta_j}(x_j)}
          = e^{(\beta_i - \beta_j)(\ell(x_j) - \ell(x_i))},

so accepting it with the minimum of this and 1 is in detailed balance with the joint density. Pairs
:math:`(i, i+1)` of even i are disjoint, those of odd i too: either set is exchanged at once, and
each leaves the joint density invariant, hence so does taking them in turns. Together they are not
reversible, and a state travels on instead of diffusing: with the pairs' rejections :math:`r_i` the
rate of round trips is :math:`1 / (2 + 2\sum_i r_i / (1 - r_i))`, greatest where all rejections are
equal. They are where :math:`\Lambda(\beta)`, the sum of the rejections from 1 down to
:math:`\beta`, takes equal steps (Syed et al., 2021, https://arxiv.org/abs/1905.02939).

The stepping stones :math:`Z = \prod_i \mathbb E_{\beta_{i+1}} e^{(\beta_i - \beta_{i+1}) \ell}`
give the evidence. Ensembles are independent of each other, so its standard error is the delta
method's over their C contributions: draws of an ensemble may depend on each other, and do.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_flowsamp import Target
from pyro_flowsamp.smc import paths
from pyro_flowsamp.smc.paths import TemperedState
from pyro_flowsamp.smc.starts import TemperedStart, overdispersed_base
from pyro_flowsamp.transitions import hamiltonian
from pyro_flowsamp.transitions.metropolis import MetropolisInfo, metropolis
from pyro_flowsamp.transitions.step_size import StepSize, jitter
from pyro_flowsamp.weights import Estimate

from .hmc import spread

__all__ = ["TemperatureLadder", "TemperingDraws", "explore", "parallel_tempering", "swap"]


class TemperatureLadder(NamedTuple):
    """Temperatures and scales that warm-up tunes, in order of falling betas.

    Attributes:
        betas: Inverse temperatures, ``(R,)``, float64; from one to zero.
        scale: Of each one's coordinates, ``(R, d)``.
    """

    betas: Tensor
    scale: Tensor

    def rows(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """Returns the beta and the scale of each row of a state; the coldest come first."""
        each = num_rows // len(self.betas)
        scale = self.scale.unsqueeze(1).expand(-1, each, -1)
        return self.betas.unsqueeze(1).expand(-1, each).flatten(), scale.flatten(0, 1)


class TemperingDraws(NamedTuple):
    """Draws at the target itself.

    Attributes:
        x: Positions, ``(C, S, d)``.
        betas: Inverse temperatures, ``(R,)``.
        swap_rates: Mean acceptance of the exchanges of neighbours, ``(R - 1,)``.
        accept_prob: Mean acceptance of the local moves, ``(R - 1,)``.
        evidence: Log evidence and its standard error, which is NaN for a single ensemble.
    """

    x: Tensor
    betas: Tensor
    swap_rates: Tensor
    accept_prob: Tensor
    evidence: Estimate


def explore(
    state: TemperedState,
    ladder: TemperatureLadder,
    target: Target,
    base: TemperedStart,
    step_size: Tensor,
    num_steps: int,
) -> tuple[TemperedState, MetropolisInfo]:
    """A trajectory of each replica, step sizes ``(R - 1,)``; the hottest are drawn afresh.

    The Info is of all but the hottest.
    """
    num_rows = len(state.x)
    each = num_rows // len(ladder.betas)
    beta, scale = ladder.rows(num_rows)
    local = TemperedState(*(v[:-each] for v in state))
    density = paths.density(target, base, beta[:-each], scale[:-each])
    epsilon = jitter(step_size.unsqueeze(1).expand(-1, each).reshape(-1, 1))
    momentum, log_u = torch.randn_like(local.z), torch.rand_like(local.log_pi).log()
    local, info = hamiltonian.step(local, density, epsilon, num_steps, momentum, log_u, cut=False)
    hot = paths.density(target, base, beta[-each:], scale[-each:])(base.sample(each) / scale[-1])
    return TemperedState(*(torch.cat(pair) for pair in zip(local, hot))), info


def swap(
    state: TemperedState, ladder: TemperatureLadder, parity: int, log_u: Tensor
) -> tuple[TemperedState, Tensor]:
    """Exchanges neighbours ``(i, i + 1)``, i of one parity; evaluates nothing.

    Arguments:
        state: Where the replicas are.
        ladder: Their temperatures and scales.
        parity: Of i, 0 or 1.
        log_u: Logs of uniform variates, ``(R - 1, C)``.

    Returns:
        The state, and the acceptance probability of each pair of either parity, ``(R - 1, C)``.
    """
    ratio = state.log_ratio.reshape(len(ladder.betas), -1)
    log_alpha = (ladder.betas[:-1] - ladder.betas[1:]).unsqueeze(1) * (ratio[1:] - ratio[:-1])
    rank = torch.arange(len(ratio), device=ratio.device).unsqueeze(1)
    wanted, accept_prob = metropolis(log_alpha, log_u)
    accepted = (wanted & (rank[:-1] % 2 == parity)).long()
    none = torch.zeros_like(accepted[:1])
    source = rank + torch.cat([accepted, none]) - torch.cat([none, accepted])
    each = ratio.shape[1]
    rows = (source * each + torch.arange(each, device=ratio.device)).flatten()
    moved = paths.at_beta(TemperedState(*(v[rows] for v in state)), *ladder.rows(len(rows)))
    return moved, accept_prob


def _equalised(betas: Tensor, rejection: Tensor) -> Tensor:
    """Betas between which the sum of rejections, linear in between, takes equal steps."""
    barrier = torch.cat([rejection.new_zeros(1), rejection.clamp(min=1e-3).cumsum(0)])
    even = barrier[-1] * torch.arange(len(betas), device=betas.device) / (len(betas) - 1)
    even = even[1:-1]
    i = torch.searchsorted(barrier, even).clamp(1, len(betas) - 1)
    part = (even - barrier[i - 1]) / (barrier[i] - barrier[i - 1])
    inner = betas[i - 1] + part * (betas[i] - betas[i - 1])
    return torch.cat([betas[:1], inner, betas[-1:]])


def _evidence(log_sums: Tensor, num: int) -> Estimate:
    """Log evidence from the logs of sums of ``num`` weights, ``(R - 1, C)``."""
    log_means = log_sums - log(num)
    log_mean = log_means.logsumexp(1, keepdim=True) - log(log_means.shape[1])
    contributions = (log_means - log_mean).exp().sum(0)
    return Estimate(log_mean.sum(), contributions.std() / sqrt(len(contributions)))


def parallel_tempering(
    target: Target,
    num_chains: int,
    num_samples: int,
    warmup_steps: int,
    *,
    betas: Sequence[float] | None = None,
    num_replicas: int = 10,
    num_steps: int = 5,
    target_accept_prob: float = 0.8,
    base: TemperedStart | None = None,
) -> TemperingDraws:
    """Runs ``num_chains`` ensembles; all that is tuned is tuned over them in warm-up, then fixed.

    Arguments:
        target: What to draw from.
        num_chains: Ensembles C.
        num_samples, warmup_steps: Steps, kept and before: a local move and an exchange each.
        betas: Falling from one to zero; by default they are spaced for equal swap rates.
        num_replicas: Their number R, unless given.
        num_steps: Leapfrog steps of a local move.
        target_accept_prob: What each replica's step size is adapted to.
        base: The density at zero; by default a Gaussian wider than the modes that are found. Its
            mass off the target's support is lost to the last exchange, however small the last but
            one beta.

    Raises:
        ValueError: ``betas`` do not fall from one to zero.
    """
    base = base or overdispersed_base(target, 512)
    cubes = torch.linspace(1, 0, num_replicas, dtype=torch.double) ** 3
    given = cubes.tolist() if betas is None else list(betas)
    if not (given[0] == 1 and given[-1] == 0 and all(a > b for a, b in zip(given, given[1:]))):
        raise ValueError(f"betas must fall from 1 to 0, got {given}")
    beta = torch.tensor(given, dtype=torch.double, device=target.device)
    ladder = TemperatureLadder(beta, base.scale.expand(len(beta), -1))
    x = base.sample(num_chains * len(beta))
    with torch.no_grad():
        inside = torch.isfinite(target.log_prob(x)).unsqueeze(-1)
    x = torch.where(inside, x, target.initial_points(len(x)))
    rows, scale = ladder.rows(len(x))
    state = paths.density(target, base, rows, scale)(x / scale)
    first = torch.full_like(ladder.scale[1:, 0], target.dim**-0.25)
    step_size = StepSize(first, target_accept_prob)
    rounds = {-(warmup_steps * k // 16) for k in (15, 14, 12, 8, 4)}
    log_sums = state.log_p.new_full((len(beta) - 1, num_chains), -torch.inf)
    window, swaps, kept, moves = [], [], [], []
    for t in range(-warmup_steps, num_samples):
        state, info = explore(state, ladder, target, base, step_size.value, num_steps)
        accept_prob = info.accept_prob.reshape(-1, num_chains).mean(1)
        state = state._replace(x=target.wrap(state.x))
        state, rates = swap(state, ladder, t % 2, torch.rand_like(log_sums).log())
        swaps.append(rates.mean(1))
        if t >= 0:
            gaps = (ladder.betas[:-1] - ladder.betas[1:]).unsqueeze(1)
            stones = state.log_ratio.reshape(-1, num_chains)[1:]
            log_sums = torch.logaddexp(log_sums, gaps * stones)
            kept.append(state.x[:num_chains])
            moves.append(accept_prob)
            continue
        step_size.adapt(accept_prob)
        window.append(state.x.reshape(len(beta), num_chains, -1).transpose(0, 1))
        if t == -1:
            step_size.freeze()
            swaps = []
        elif t in rounds:
            rejection = 1 - torch.stack(swaps).mean(0)
            scale = spread(torch.cat(window))
            new = ladder.betas if betas is not None else _equalised(ladder.betas, rejection)
            ladder, window, swaps = TemperatureLadder(new, scale), [], []
            state = paths.at_beta(state, *ladder.rows(len(state.x)))
            step_size = StepSize(first, target_accept_prob)
    return TemperingDraws(
        torch.stack(kept, 1),
        ladder.betas,
        torch.stack(swaps).mean(0),
        torch.stack(moves).mean(0),
        _evidence(log_sums, num_samples),
    )
