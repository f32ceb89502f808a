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

__all__ = ["Rung", "SHORTEST", "TRIED", "iqr", "r_hat", "stuck", "trial", "worth"]


TRIED = 256  #: chains
WARMUP, TRIAL, LONGEST_TRIAL = 50, 32, 128  #: steps
SHORTEST = WARMUP + TRIAL  #: steps that a kernel takes in any case
FEWEST = 5  #: effective draws of a chain by which a trial can be relied on
LEAST_ALONE = 0.2  #: effective draws that a draw must be worth where there are jumps alone
STUCK = 0.01  #: of the chains with local moves that may never have jumped
WORTH = 0.5  #: effective draws that a draw should be worth
MOST_THINNED = 20  #: draws for one that is kept
MOST_NUMBERS = 10_000_000  #: that are looked at
AXES = 8  #: directions in which chains must mix, beside the coordinates


class Rung(NamedTuple):
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
    worth: float
    seconds: float
    stuck: float

    @property
    def thin(self) -> int:
        """Steps for each draw to keep."""
        return min(MOST_THINNED, ceil(WORTH / self.worth))

    @property
    def alone(self) -> bool:
        """Whether it makes jumps alone."""
        return isinstance(self.run.kernel, IMH)

    @property
    def many(self) -> bool:
        """Few effective draws tell only that there are few."""
        return self.worth * self.length >= FEWEST

    @property
    def reliable(self) -> bool:
        """Jumps alone never show what their flow does not reach: it must be a good one.

        Chains that never jump are where it hardly draws: in a tail, which local moves would leave
        for it, or in a mode that its draws have hardly any of.
        """
        if self.alone and (self.worth < LEAST_ALONE or self.stuck):
            return False
        return self.many and self.stuck <= STUCK

    def left(self, num_samples: int) -> float:
        """Seconds that so many draws a chain take, if they are known."""
        return self.at_least(num_samples) if self.reliable else inf

    def at_least(self, num_samples: int) -> float:
        """Seconds that so many draws a chain take, if nothing is slower than the trial shows."""
        return self.seconds * max(1.0, WORTH / self.worth) * num_samples

    @property
    def order(self) -> tuple[bool, bool, float]:
        """The best has the least; of those that are not reliable, one with local moves."""
        return not self.reliable, not self.reliable and self.alone, self.at_least(1)


def trial(
    name: str,
    kernel: FlowKernel,
    target: Target,
    starts: Tensor,
    num_chains: int,
    num_samples: int,
    least: float,
) -> Rung:
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
        kernel, TRIAL, WARMUP, len(starts), initial_params=params, disable_progbar=True
    )
    with warnings.catch_warnings():  # what fails is not chosen, and no guide of the user's
        warnings.filterwarnings("ignore", "only .* of the proposals were accepted")
        run.run()
    growth = max(1.0, num_chains / len(starts))  # of a step's cost: at most in proportion
    while not run.interrupted:
        pace = run.seconds["sampling"] / run.num_samples * growth
        left = stuck(run.statistics["accepted"])
        rung = Rung(name, run, run.num_samples, worth(run.unconstrained), pace, left)
        slow = rung.at_least(num_samples) >= least
        if rung.many or slow or run.num_samples >= LONGEST_TRIAL:
            return rung
        run.resume(2 * run.num_samples)
    raise KeyboardInterrupt


# ---- what draws tell -----------------------------------------------------------------------------
def worth(x: Tensor) -> float:
    """Effective draws for a draw, the least of several functions of them ``(chains, draws, d)``.

    That are coordinates and their distances from the median, by rank (Vehtari et al., 2021,
    https://arxiv.org/abs/1903.08008), and the :data:`AXES` directions of most spread among the
    standardised ones, along which modes part that hardly do in any one coordinate.
    """
    x = x[: max(16, MOST_NUMBERS // x[0].numel())].double()
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


def stuck(accepted: Tensor) -> float:
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
