r"""What a kernel is worth: a short run of it, and what that tells.

A run of :data:`TRIAL` steps, doubled while a chain has made fewer than :data:`FEWEST` effective
draws in it. Let s be its seconds a step and e the effective draws that a draw is worth. Draws are
worth having at :math:`e \ge` :data:`WORTH`, so that each chain must make :math:`t = \mathrm{WORTH}
/ e` steps for one to keep.
"""

from __future__ import annotations

import warnings
from math import ceil, inf
from typing import NamedTuple

import torch
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from .kernels.base import FlowKernel
from .kernels.imh import IMH
from .target.density import Target
from .vectorized import VectorizedMCMC

__all__ = [
    "Candidate",
    "MIN_PILOT_STEPS",
    "PILOT_CHAINS",
    "iqr",
    "r_hat",
    "never_accepted_fraction",
    "run_pilot",
    "ess_per_draw",
]


PILOT_CHAINS = 256  #: chains
WARMUP, PILOT_STEPS, MAX_PILOT_STEPS = 50, 32, 128  #: steps
MIN_PILOT_STEPS = WARMUP + PILOT_STEPS  #: steps that a kernel takes in any case
MIN_ESS_PER_CHAIN = 5  #: effective draws of a chain by which a trial can be relied on
MIN_ESS_OF_INDEPENDENCE_SAMPLER = (
    0.2  #: effective draws that a draw must be worth where there are jumps alone
)
MAX_NEVER_ACCEPTED = 0.01  #: of the chains with local moves that may never have jumped
TARGET_ESS_PER_DRAW = 0.5  #: effective draws that a draw should be worth
MAX_THIN = 20  #: draws for one that is kept
MAX_NUMBERS = 10_000_000  #: that are looked at
AXES = 8  #: directions in which chains must mix, beside the coordinates


class Candidate(NamedTuple):
    """A kernel that has been tried.

    Attributes:
        name: Of the method.
        run: Chains that can go on.
        length: Steps of the trial.
        worth: Effective draws that a draw is worth.
        seconds: A step takes.
        stuck: The share of its chains that never moved, see :func:`stuck`.
    """

    name: str
    run: VectorizedMCMC
    length: int
    ess_per_draw: float
    seconds: float
    never_accepted_fraction: float

    @property
    def thin(self) -> int:
        """Steps for each draw to keep."""
        return min(MAX_THIN, ceil(TARGET_ESS_PER_DRAW / self.ess_per_draw))

    @property
    def is_independence_sampler(self) -> bool:
        """Whether it makes jumps alone."""
        return isinstance(self.run.kernel, IMH)

    @property
    def enough_ess(self) -> bool:
        """Few effective draws tell only that there are few."""
        return self.ess_per_draw * self.length >= MIN_ESS_PER_CHAIN

    @property
    def reliable(self) -> bool:
        """Jumps alone never show what their flow does not reach: it must be a good one.

        Chains that never jump are where it hardly draws: in a tail, which local moves would leave
        for it, or in a mode that its draws have hardly any of.
        """
        if self.is_independence_sampler and (
            self.ess_per_draw < MIN_ESS_OF_INDEPENDENCE_SAMPLER or self.never_accepted_fraction
        ):
            return False
        return self.enough_ess and self.never_accepted_fraction <= MAX_NEVER_ACCEPTED

    def cost_to_finish(self, num_samples: int) -> float:
        """Seconds that so many draws a chain take, if they are known."""
        return self.at_least(num_samples) if self.reliable else inf

    def at_least(self, num_samples: int) -> float:
        """Seconds that so many draws a chain take, if nothing is slower than the trial shows."""
        return self.seconds * max(1.0, TARGET_ESS_PER_DRAW / self.ess_per_draw) * num_samples

    @property
    def sort_key(self) -> tuple[bool, bool, float]:
        """The best has the least; of those that are not reliable, one with local moves."""
        return (
            not self.reliable,
            not self.reliable and self.is_independence_sampler,
            self.at_least(1),
        )


def run_pilot(
    name: str,
    kernel: FlowKernel,
    target: Target,
    starts: Tensor,
    num_chains: int,
    num_samples: int,
    least: float,
) -> Candidate:
    """Tries a kernel until it is known well enough, or known to be too slow.

    Arguments:
        name: Of the method.
        kernel: To be tried.
        target: Its target.
        starts: Where :data:`TRIED` chains start, ``(TRIED, d)``.
        num_chains, num_samples: That are wanted in the end.
        least: Seconds in which another kernel makes them.

    Raises:
        KeyboardInterrupt: It was interrupted.
    """
    params = target.unpack_unconstrained(starts)
    run = VectorizedMCMC(
        kernel, PILOT_STEPS, WARMUP, len(starts), initial_params=params, disable_progbar=True
    )
    with warnings.catch_warnings():  # what fails is not chosen, and no guide of the user's
        warnings.filterwarnings("ignore", "only .* of the proposals were accepted")
        run.run()
    growth = max(1.0, num_chains / len(starts))  # of a step's cost: at most in proportion
    while not run.interrupted:
        pace = run.seconds["sampling"] / run.num_samples * growth
        left = never_accepted_fraction(run.statistics["accepted"])
        candidate = Candidate(
            name, run, run.num_samples, ess_per_draw(run.unconstrained), pace, left
        )
        slow = candidate.at_least(num_samples) >= least
        if candidate.enough_ess or slow or run.num_samples >= MAX_PILOT_STEPS:
            return candidate
        run.resume(2 * run.num_samples)
    raise KeyboardInterrupt


# ---- what draws tell -----------------------------------------------------------------------------
def ess_per_draw(x: Tensor) -> float:
    """Effective draws for a draw, the least of several functions of them ``(chains, draws, d)``.

    That are coordinates and their distances from the median, by rank (Vehtari et al., 2021,
    https://arxiv.org/abs/1903.08008), and the :data:`AXES` directions of most spread among the
    standardised ones, along which modes part that hardly do in any one coordinate.
    """
    x = x[: max(16, MAX_NUMBERS // x[0].numel())].double()
    flat = x.flatten(0, 1)
    flat = flat[:, flat.std(0) > 0]
    u = (flat - flat.mean(0)) / flat.std(0)
    if not u.numel() or not torch.isfinite(u).all():
        return 1 / x[..., 0].numel()
    _, axes = torch.linalg.eigh(u.mT @ u)
    folded = (u - u.median(0).values).abs()
    z = _normalised_ranks(torch.cat([u, folded, u @ axes[:, -AXES:]], -1)).unflatten(0, x.shape[:2])
    effective = effective_sample_size(z, chain_dim=0, sample_dim=1).nan_to_num(nan=1.0)
    return float(effective.min().clamp(min=1)) / len(flat)


def _normalised_ranks(x: Tensor) -> Tensor:
    """Normal quantiles of the ranks in each column; ties in random order."""
    shuffle = torch.randperm(len(x), device=x.device)
    ranks = torch.empty_like(x)
    ranks[shuffle] = x[shuffle].argsort(0).argsort(0).to(x)
    return torch.special.ndtri((ranks + 0.625) / (len(x) + 0.25))


def r_hat(x: Tensor) -> float:
    """The largest split R-hat of the coordinates of ``(chains, draws, d)``, over what is expected.

    Of n draws, each worth half an independent one, it is about :math:`\\sqrt{1 + 2/n}` when all is
    well; what exceeds four times that excess counts.
    """
    found = split_gelman_rubin(x.double(), chain_dim=0, sample_dim=1).nan_to_num(nan=1.0).max()
    return float(found) / (1 + 8 / x.shape[1]) ** 0.5


def never_accepted_fraction(accepted: Tensor) -> float:
    """The share of chains that never moved, if more than by chance, of ``(chains, draws)``.

    Were all as likely to move, at the mean rate r, a share :math:`(1 - r)^n` of them would not in n
    draws, up to three standard deviations.
    """
    chains, draws = accepted.shape
    never = float((~accepted).all(1).double().mean())
    rate = float(accepted.double().mean())
    chance = (1 - rate) ** draws if rate else 0.0
    return never if never > chance + 3 * (chance / chains) ** 0.5 else 0.0


def iqr(x: Tensor) -> Tensor:
    """Interquartile ranges of draws ``(N, d)``."""
    low, high = x.double().quantile(torch.tensor([0.25, 0.75]).to(x).double(), 0)
    return high - low
