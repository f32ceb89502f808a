r"""Pilot runs: a kernel's cost per effective draw, estimated from a short run of it.

A pilot run has :attr:`~pyro_flowsamp.SearchOptions.pilot_steps` steps, doubled while a chain has
made fewer than :attr:`~pyro_flowsamp.SearchOptions.min_ess_per_chain` effective draws in it. Let s
be the seconds of a step and e the effective draws per draw. A kept draw should have e of at least
:attr:`~pyro_flowsamp.SearchOptions.target_ess_per_draw`, so that each chain makes
:math:`\max(1, \mathtt{target\_ess\_per\_draw} / e)` steps for each of them, which take s seconds
each.
"""

from __future__ import annotations

from math import ceil, inf
from typing import NamedTuple

import torch
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from .kernels.base import FlowKernel
from .kernels.imh import IMH
from .options import SearchOptions
from .target.density import Target
from .vectorized import VectorizedMCMC

__all__ = ["Candidate", "ess_per_draw", "iqr", "never_accepted_fraction", "r_hat", "run_pilot"]


MAX_NUMBERS = 10_000_000  #: of draws that the effective sample size is computed from


class Candidate(NamedTuple):
    """A kernel with the results of its pilot run.

    Attributes:
        name: Name of the method.
        run: The pilot run, whose chains can continue.
        length: Steps of the pilot run.
        ess_per_draw: Effective draws per draw.
        seconds: Time of a step.
        never_accepted_fraction: Share of its chains that never moved, see
            :func:`never_accepted_fraction`.
        options: Bounds by which the pilot run is judged.
    """

    name: str
    run: VectorizedMCMC
    length: int
    ess_per_draw: float
    seconds: float
    never_accepted_fraction: float
    options: SearchOptions = SearchOptions()

    @property
    def thin(self) -> int:
        """Steps for each draw to keep."""
        steps = ceil(self.options.target_ess_per_draw / self.ess_per_draw)
        return min(self.options.max_thin, steps)

    @property
    def is_independence_sampler(self) -> bool:
        """Whether all its proposals are independent of the state."""
        return isinstance(self.run.kernel, IMH)

    @property
    def enough_ess(self) -> bool:
        """Whether the pilot run has enough effective draws for its estimates to be reliable."""
        return self.ess_per_draw * self.length >= self.options.min_ess_per_chain

    @property
    def reliable(self) -> bool:
        """Whether the chains have been seen to mix.

        An independence sampler never shows the regions that its flow does not reach, so that its
        flow must be good. Chains that never move are where the flow hardly ever draws: in a tail,
        which local moves would leave, or in a mode that hardly any of its draws are in.
        """
        if self.is_independence_sampler and (
            self.ess_per_draw < self.options.min_independence_ess or self.never_accepted_fraction
        ):
            return False
        return self.enough_ess and self.never_accepted_fraction <= self.options.max_never_accepted

    def cost_to_finish(self, num_samples: int) -> float:
        """Seconds for ``num_samples`` draws of each chain; infinite if it is not reliable."""
        return self.at_least(num_samples) if self.reliable else inf

    def at_least(self, num_samples: int) -> float:
        """Seconds for ``num_samples`` draws of each chain, if it mixes as in the pilot run."""
        steps = max(1.0, self.options.target_ess_per_draw / self.ess_per_draw)
        return self.seconds * steps * num_samples

    @property
    def sort_key(self) -> tuple[bool, bool, float]:
        """The key whose smallest value is the best candidate's.

        Among candidates that are not reliable, those with local moves come first.
        """
        unreliable = not self.reliable
        return unreliable, unreliable and self.is_independence_sampler, self.at_least(1)


def run_pilot(
    name: str,
    kernel: FlowKernel,
    target: Target,
    starts: Tensor,
    num_chains: int,
    num_samples: int,
    seconds: float,
    options: SearchOptions = SearchOptions(),
) -> Candidate:
    """Runs a kernel until its cost per effective draw is known, or known to be too high.

    Arguments:
        name: Name of the method.
        kernel: The kernel.
        target: Its target.
        starts: Starting points of the chains, ``(C, d)``.
        num_chains, num_samples: Chains, and draws of each, that are wanted in the end.
        seconds: Time in which another kernel would make them.
        options: Lengths of the run, and bounds by which it is judged.

    Returns:
        The kernel with its estimates.

    Raises:
        KeyboardInterrupt: It was interrupted.
        RuntimeError, ValueError: The kernel cannot run on this target.

    Example::

        >>> import pyro
        >>> from pyro_flowsamp import IMH, AutoFlow, FitOptions, Target
        >>> _ = pyro.set_rng_seed(0)
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> guide = AutoFlow(target, flow="gaussian", options=FitOptions(progress=False))
        >>> starts = torch.randn(64, 2)
        >>> found = run_pilot("IMH", IMH(guide=guide), target, starts, 64, 100, inf)
        >>> found.reliable, found.thin, found.ess_per_draw > 0.8
        (True, 1, True)
    """
    params = target.unpack_unconstrained(starts)
    run = VectorizedMCMC(
        kernel,
        options.pilot_steps,
        options.pilot_warmup,
        len(starts),
        initial_params=params,
        disable_progbar=True,
    )
    run.min_acceptance = 0.0  # no warning: a kernel that hardly moves will not be chosen
    run.run()
    growth = max(1.0, num_chains / len(starts))  # of the time of a step: at most in proportion
    while not run.interrupted:
        candidate = Candidate(
            name,
            run,
            run.num_samples,
            ess_per_draw(run.unconstrained, options.num_directions),
            run.seconds["sampling"] / run.num_samples * growth,
            never_accepted_fraction(run.statistics["accepted"]),
            options,
        )
        slow = candidate.at_least(num_samples) >= seconds
        if candidate.enough_ess or slow or run.num_samples >= options.max_pilot_steps:
            return candidate
        run.resume(2 * run.num_samples)
    raise KeyboardInterrupt


# ---- estimates from draws ------------------------------------------------------------------------
def ess_per_draw(x: Tensor, num_directions: int = 8) -> float:
    r"""Estimates effective draws per draw: the least of several functions of the draws.

    The functions are the coordinates and their distances from the median, by rank, and the
    ``num_directions`` principal directions of the standardised coordinates. Modes can be apart
    along such a direction and hardly differ in any one coordinate.

    Arguments:
        x: Draws ``(chains, draws, d)``.
        num_directions: Number of principal directions.

    Returns:
        A number between 1 / (chains · draws) and about 1.

    References:
        Vehtari et al., *Rank-Normalization, Folding, and Localization: An Improved* :math:`\hat R`
        *for Assessing Convergence of MCMC*, 2021, https://arxiv.org/abs/1903.08008

    Example::

        >>> _ = torch.manual_seed(0)
        >>> round(ess_per_draw(torch.randn(200, 50, 3)), 1)
        1.0
    """
    x = x[: max(16, MAX_NUMBERS // x[0].numel())].double()
    flat = x.flatten(0, 1)
    flat = flat[:, flat.std(0) > 0]
    u = (flat - flat.mean(0)) / flat.std(0)
    if not u.numel() or not torch.isfinite(u).all():
        return 1 / x[..., 0].numel()
    _, axes = torch.linalg.eigh(u.mT @ u)
    folded = (u - u.median(0).values).abs()
    functions = torch.cat([u, folded, u @ axes[:, -num_directions:]], -1)
    z = _normalised_ranks(functions).unflatten(0, x.shape[:2])
    effective = effective_sample_size(z, chain_dim=0, sample_dim=1).nan_to_num(nan=1.0)
    return float(effective.min().clamp(min=1)) / len(flat)


def _normalised_ranks(x: Tensor) -> Tensor:
    """Normal quantiles of the ranks in each column, with ties in random order."""
    shuffle = torch.randperm(len(x), device=x.device)
    ranks = torch.empty_like(x)
    ranks[shuffle] = x[shuffle].argsort(0).argsort(0).to(x)
    return torch.special.ndtri((ranks + 0.625) / (len(x) + 0.25))


def r_hat(x: Tensor) -> float:
    r"""The largest split R-hat of the coordinates, divided by its value for chains that have mixed.

    For n draws of a chain, each with half an effective draw, R-hat is about
    :math:`\sqrt{1 + 2/n}` when the chains have mixed. It is divided by :math:`\sqrt{1 + 8/n}`, so
    that only more than four times that excess gives a result above 1.

    Arguments:
        x: Draws ``(chains, draws, d)``.

    Example::

        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(50, 100, 2)
        >>> r_hat(x) < 1.05, r_hat(x + torch.arange(50.0)[:, None, None]) > 10
        (True, True)
    """
    found = split_gelman_rubin(x.double(), chain_dim=0, sample_dim=1).nan_to_num(nan=1.0).max()
    return float(found) / (1 + 8 / x.shape[1]) ** 0.5


def never_accepted_fraction(accepted: Tensor) -> float:
    r"""The share of chains that never moved, or 0 where chance explains it.

    If all chains moved with the same probability r, a share :math:`(1 - r)^n` of them would not
    move in n draws. Up to three standard deviations more count as chance.

    Arguments:
        accepted: Whether each chain moved, ``(chains, draws)``.

    Example::

        >>> _ = torch.manual_seed(0)
        >>> accepted = torch.rand(100, 50) < 0.5
        >>> accepted[:3] = False
        >>> never_accepted_fraction(accepted)
        0.03
    """
    chains, draws = accepted.shape
    never = float((~accepted).all(1).double().mean())
    rate = float(accepted.double().mean())
    chance = (1 - rate) ** draws if rate else 0.0
    return never if never > chance + 3 * (chance / chains) ** 0.5 else 0.0


def iqr(x: Tensor) -> Tensor:
    """The interquartile range of each coordinate of draws ``(N, d)``.

    Example::

        >>> iqr(torch.arange(5.0)[:, None])
        tensor([2.], dtype=torch.float64)
    """
    low, high = x.double().quantile(torch.tensor([0.25, 0.75]).to(x).double(), 0)
    return high - low
