r"""Trajectory lengths of Hamiltonian Monte Carlo, adapted across chains.

**Lengths.** Step t of a run takes, in all chains, the number of leapfrog steps

.. math:: L_t = \min(M, \max(1, \lceil h_t \lambda \rceil)),

where :math:`h_t` is quasi-random and uniform on (0, 2), so that :math:`\lambda` is about the mean.
At a step size :math:`\epsilon` the length of a trajectory is then about :math:`h_t \tau` with
:math:`\tau = \lambda\epsilon`. As lengths differ, no period of the target brings all trajectories
back to where they began, or to the opposite point.

**Short steps.** After warm-up a share of the trajectories has a smaller step size,

.. math:: \epsilon_t = 2^{-s_t}\,\epsilon,

where :math:`s_t` is quasi-random and uniform between 0 and a number of octaves. A step size that
suits most of the target is too large for its narrow places, such as the neck of a funnel: chains
hardly leave them, and so hardly enter them. The short steps do both. They take the same number of
leapfrog steps.

**Exact.** For each number of steps and each step size a transition leaves the target invariant
(:mod:`pyro_flowsamp.transitions.hamiltonian`). After warm-up :math:`\epsilon` and :math:`\lambda`
are fixed, and :math:`L_t` and :math:`s_t` depend on t alone, not on the chains. A sequence of
transitions that is fixed in advance, each of which leaves the target invariant, leaves it invariant
too. In warm-up :math:`L_t` depends on the chains' past; those draws are not kept.

**Ascent.** In warm-up, dual averaging adapts :math:`\epsilon`, and Adam without momentum ascends
the log of the criterion F of :mod:`pyro_flowsamp.transitions.chees` in :math:`\log\lambda`; at a
fixed :math:`\epsilon` its derivative is that by :math:`\log\tau`. Gradients of F are divided by an
average of F over recent steps. It is :math:`\lambda` that is adapted and
not :math:`\tau`, so that a step size which is still far off does not make trajectories of thousands
of steps. Both end as averages of their iterates.

**Halving.** For a normal target F oscillates at lengths of several periods, so that the gradient
does not lead back from there. Trajectories with :math:`h < 1` are those of half the mean length;
where their criterion is nearly as large as that of all, :math:`\lambda` is halved.

References:
    Hoffman, Radul and Sountsov, *An Adaptive-MCMC Scheme for Setting Trajectory Lengths in
    Hamiltonian Monte Carlo*, 2021, https://proceedings.mlr.press/v130/hoffman21a.html

    Kingma and Ba, *Adam: A Method for Stochastic Optimization*, 2014,
    https://arxiv.org/abs/1412.6980
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, isfinite, log
from typing import NamedTuple

import torch
from torch import Tensor

from ..validation import check_options
from .chees import LastPoint, criterion_and_gradient
from .hamiltonian import HMCInfo
from .sequences import numbers_of_steps, step_size_factor, van_der_corput
from .step_size import StepSize

__all__ = [
    "LengthAscent",
    "ObservedTrajectory",
    "TrajectoryAdaptation",
    "TrajectoryOptions",
]


@dataclass(frozen=True)
class TrajectoryOptions:
    r"""Options of trajectory lengths that are adapted across chains.

    Attributes:
        first_steps: :math:`\lambda` at the start of warm-up.
        max_steps: M, the largest number of leapfrog steps of a trajectory.
        learning_rate: Adam's learning rate for :math:`\log\lambda`.
        decay: Adam's decay of the average of squared gradients.
        max_change: Largest change of :math:`\log\lambda` by a gradient.
        criterion_decay: Decay of the average of F that gradients are divided by.
        averaging: Iterate t enters the average of iterates with weight ``t**-averaging``.
        check_every: Steps of warm-up between two decisions whether to halve :math:`\lambda`.
        halving_ratio: It is halved where trajectories with :math:`h < 1` have more than this share
            of the criterion of all.
        halving_from: It is halved only above; short trajectories hardly differ in length.
        min_accept_prob: Lower acceptance probabilities count as this. Otherwise one chain that
            cannot move would take the harmonic mean to zero, and the step size with it.
        max_outside: Trajectories that end where there is no density do not count for the step size,
            as they are rejected at any size, unless they are more than this share of all.
        min_chains: Chains of a context from which on lengths are adapted: the mean over fewer says
            too little.
        period: Length of the quasi-random sequence, a power of 2, after which it repeats.
        short_share: Share of the trajectories after warm-up that have a smaller step size.
        short_octaves: Their step sizes are smaller by factors of up to 2 to this power.

    Raises:
        ValueError: A value is out of range.

    Example::

        >>> TrajectoryOptions(max_steps=64).max_steps
        64
    """

    first_steps: float = 1.0
    max_steps: int = 256
    learning_rate: float = 0.1
    decay: float = 0.95
    max_change: float = 0.35
    criterion_decay: float = 0.8
    averaging: float = 0.5
    check_every: int = 8
    halving_ratio: float = 0.9
    halving_from: float = 2.0
    min_accept_prob: float = 0.05
    max_outside: float = 0.5
    min_chains: int = 4
    period: int = 256
    short_share: float = 0.25
    short_octaves: float = 3.0

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("first_steps", "learning_rate", "max_change", "halving_from"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("decay", "criterion_decay", "max_outside"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        for name in ("averaging", "halving_ratio", "min_accept_prob"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in (0, 1], got {getattr(self, name)}")
        for name, least in (("max_steps", 1), ("min_chains", 2), ("check_every", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.short_share <= 1 or self.short_octaves < 0:
            raise ValueError(
                f"short_share must lie in [0, 1] and short_octaves must not be negative, got "
                f"{self.short_share} and {self.short_octaves}"
            )
        if self.period < 2 or self.period & (self.period - 1):
            raise ValueError(f"period must be a power of 2, got {self.period}")


class ObservedTrajectory(NamedTuple):
    r"""A trajectory of all chains, and its bearing on step size and length.

    Attributes:
        h: The factor of the mean length with which it was made.
        acceptance: Harmonic mean of the acceptance probabilities; NaN where all chains jumped.
        criterion: F, see :func:`~pyro_flowsamp.transitions.chees.criterion_and_gradient`.
        gradient: Its derivative by the log of the mean length.

    Example:
        >>> seen = ObservedTrajectory(h=1.0, acceptance=0.7, criterion=2.0, gradient=-0.3)
        >>> ascent = LengthAscent(TrajectoryOptions(first_steps=2.0, learning_rate=0.1))
        >>> ascent.update([seen])  # shorter trajectories would carry the chains further
        >>> round(ascent.mean / 2.0, 4)  # exp(-0.1)
        0.9048
    """

    h: float
    acceptance: float
    criterion: float
    gradient: float


# ---- adaptation ----------------------------------------------------------------------------------


class LengthAscent:
    r"""The ascent of the log of the criterion in :math:`\log\lambda`, by numbers on the host.

    Arguments:
        options: :class:`TrajectoryOptions`.

    Attributes:
        mean: :math:`\lambda`.
        updates: Gradients so far.

    Example::

        >>> ascent = LengthAscent(TrajectoryOptions())
        >>> ascent.update([ObservedTrajectory(0.5, 0.8, 1.0, 2.0)])
        >>> round(ascent.mean, 4)  # the first step is as long as the learning rate
        1.1052
    """

    def __init__(self, options: TrajectoryOptions) -> None:
        self.options, self.mean, self.updates = options, options.first_steps, 0
        self._criterion = self._square = self._average = 0.0
        self._recent: list[ObservedTrajectory] = []

    def update(self, seen: list[ObservedTrajectory]) -> None:
        """Makes one step of ascent, and halves the mean where that is due.

        Arguments:
            seen: Trajectories since the last step; those with a criterion that is not positive, or
                with a gradient that is not finite, are left out.
        """
        options = self.options
        seen = [one for one in seen if one.criterion > 0 and isfinite(one.criterion * one.gradient)]
        if not seen:
            return
        criterion = sum(one.criterion for one in seen) / len(seen)
        gradient = sum(one.gradient for one in seen) / len(seen)
        self.updates += 1
        decay, t = options.criterion_decay, self.updates
        self._criterion = decay * self._criterion + (1 - decay) * criterion
        slope = gradient / (self._criterion / (1 - decay**t))
        self._square = options.decay * self._square + (1 - options.decay) * slope**2
        rms = (self._square / (1 - options.decay**t)) ** 0.5
        change = options.learning_rate * slope / rms if rms > 0 else 0.0
        self._move(max(-options.max_change, min(options.max_change, change)))
        weight = t**-options.averaging
        self._average = (1 - weight) * self._average + weight * log(self.mean)
        for one in seen:
            self._halve(one)

    def _move(self, change: float) -> None:
        # Beyond these bounds the numbers of steps do not change any more.
        least, most = 0.5, max(0.5, self.options.max_steps / 2)
        self.mean = min(most, max(least, self.mean * exp(change)))

    def _halve(self, trajectory: ObservedTrajectory) -> None:
        self._recent.append(trajectory)
        if len(self._recent) < self.options.check_every:
            return
        every = [one.criterion for one in self._recent]
        short = [one.criterion for one in self._recent if one.h < 1]
        self._recent = []
        if self.mean <= self.options.halving_from or not short:
            return
        if sum(short) / len(short) > self.options.halving_ratio * sum(every) / len(every):
            self._move(-log(2))
            self._average -= log(2)

    def freeze(self) -> None:
        """The geometric mean of the iterates from now on, if there were any."""
        if self.updates:
            self.mean = exp(self._average)


class TrajectoryAdaptation:
    r"""The step size and the numbers of leapfrog steps of many chains, adapted in warm-up.

    Where there are fewer than ``options.min_chains`` chains of a context, or no warm-up,
    :math:`\lambda` is ``num_steps``. The numbers of steps differ all the same.

    Arguments:
        step_size: :math:`\epsilon` at the start.
        num_steps: :math:`\lambda` where it is not adapted.
        target_accept_prob: What the step size is adapted to: the harmonic mean of the acceptance
            probabilities of the chains.
        options: :class:`TrajectoryOptions`.

    Attributes:
        value: The step size :math:`\epsilon`, 0-d, float64, on the host.
        adapting: Whether warm-up goes on.
        steps: The numbers of steps that trajectories take in turn.

    Example::

        >>> lengths = TrajectoryAdaptation(0.5, 2, 0.651, TrajectoryOptions(period=4))
        >>> one = torch.tensor(1.0)
        >>> [lengths.next(one, 8)[1] for _ in range(6)], lengths.mean_steps
        ([1, 3, 2, 4, 1, 3], 2.5)
    """

    def __init__(
        self,
        step_size: float,
        num_steps: int,
        target_accept_prob: float,
        options: TrajectoryOptions,
    ) -> None:
        self.options, self.num_steps = options, num_steps
        # On the host, like all numbers here: they are needed there before each trajectory.
        start = torch.tensor(step_size, dtype=torch.double, device="cpu")
        self._step_size, self._adapted = StepSize(start, target_accept_prob), False
        self._points, self._taken = van_der_corput(options.period), 0
        self._ascent: LengthAscent | None = None
        self._space: tuple[int, Tensor | None] = 1, None
        self._seen: list[Tensor] = []
        self.adapting = True
        self._set_steps(num_steps)

    def _set_steps(self, mean: float) -> None:
        self._mean = mean
        self.steps = numbers_of_steps(mean, self.options.max_steps, self._points)

    @property
    def mean_steps(self) -> float:
        """The mean number of leapfrog steps of a trajectory."""
        return sum(self.steps) / len(self.steps)

    def begin(self, chains: int, contexts: int = 1, angles: Tensor | None = None) -> None:
        """Prepares the first step of a run.

        Arguments:
            chains: The number of chains.
            contexts: The number K of their contexts; chain i is at context i mod K.
            angles: Mask ``(d,)`` of periodic coordinates of z, or None.
        """
        self._space = contexts, angles
        enough = chains >= contexts * self.options.min_chains
        if self.adapting and enough and self._ascent is None:
            self._ascent = LengthAscent(self.options)
            self._set_steps(self._ascent.mean)

    @property
    def value(self) -> Tensor:
        """The step size, 0-d."""
        return self._step_size.value

    def next(self, step_size: Tensor, chains: int) -> tuple[Tensor, int]:
        """The step size of the next trajectory, the one given or less, and its number of steps."""
        t, options = self._taken, self.options
        self._taken += 1
        if not self.adapting:
            step_size = step_size * step_size_factor(t, options.short_share, options.short_octaves)
        return step_size, self.steps[t % len(self.steps)]

    def observe(self, info: HMCInfo, z: Tensor, last: LastPoint, step_size: Tensor) -> None:
        """Keeps what the last trajectory of warm-up says, on the device, for :meth:`adapt`.

        Arguments:
            info: The report of the step.
            z: Positions at its start, ``(C, d)``.
            last: The end of its trajectory.
            step_size: The step size, 0-d.
        """
        if not self.adapting:
            return
        h = 2 * self._points[(self._taken - 1) % len(self._points)]
        moving = (~info.jumped).double()
        weights, count = info.accept_prob.double() * moving, moving.sum()
        inside = moving * (last.log_pi > -torch.inf)
        few = inside.sum() < (1 - self.options.max_outside) * count
        counted = torch.where(few, moving, inside)
        inverse = info.accept_prob.double().clamp(min=self.options.min_accept_prob).reciprocal()
        harmonic = counted.sum() / (inverse * counted).sum()
        end, velocity = last.position_and_velocity(step_size)
        terms = torch.stack(criterion_and_gradient(z, end, velocity, weights, *self._space))
        usable = torch.isfinite(terms).all(0) & (weights > 0)
        criterion, slope = torch.where(usable, weights * terms, 0.0).sum(-1) / count
        gradient = h * self._mean * step_size * slope
        factor = torch.full_like(harmonic, h)
        self._seen.append(torch.stack([factor, harmonic, criterion, gradient]))

    def observed(self) -> Tensor:
        """The bearing of the trajectories since the last :meth:`adapt`, ``(n, 4)``, float64.

        They are the fields of :class:`ObservedTrajectory`, for each trajectory.
        """
        return torch.stack(self._seen) if self._seen else torch.empty(0, 4, dtype=torch.double)

    def set_observed(self, values: Tensor) -> None:
        """Takes numbers of :meth:`observed`, such as means over several batches of chains."""
        self._seen = list(values.unbind())

    def adapt(self, info: HMCInfo | None = None) -> None:
        """Adapts both to the trajectories since the last call; waits for the device, once.

        Arguments:
            info: Not used: :meth:`observe` has kept what is needed.
        """
        numbers, self._seen = torch.stack(self._seen).tolist(), []
        seen = [ObservedTrajectory(*four) for four in numbers]
        moved = [one.acceptance for one in seen if isfinite(one.acceptance)]
        if moved:
            mean = torch.tensor(sum(moved) / len(moved), dtype=torch.double, device="cpu")
            self._step_size.adapt(mean)
            self._adapted = True
        if self._ascent is not None:
            self._ascent.update(seen)
            self._set_steps(self._ascent.mean)

    def report(self) -> dict[str, float]:
        """The mean length and the mean number of leapfrog steps of a trajectory."""
        steps = self.mean_steps
        return {"trajectory length": steps * float(self.value), "leapfrog steps": steps}

    def freeze(self) -> None:
        """The averages of the iterates from now on; the sequence begins anew."""
        if self._adapted:
            self._step_size.freeze()
        mean: float = self.num_steps
        if self._ascent is not None and self._ascent.updates:
            self._ascent.freeze()
            mean = self._ascent.mean
        self.adapting, self._taken, self._seen = False, 0, []
        self._set_steps(mean)
