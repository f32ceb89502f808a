"""Line searches of many paths side by side: brackets of steps that are too short and too long.

References:
    Adrian S. Lewis and Michael L. Overton, *Nonsmooth optimization via quasi-Newton methods*, 2013,
    https://doi.org/10.1007/s10107-012-0514-2, Algorithm 2.6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..validation import check_at_least_one

__all__ = ["AscentOptions", "Differentiable", "Evaluated", "LineSearch", "evaluated"]


#: No coordinate goes beyond the square root of the largest floating-point number, so that squares
#: of coordinates are finite.
REACH_POWER = 0.5


class Differentiable(Protocol):
    """The attributes and methods of a target that are used here.

    Example:
        >>> class Normal:
        ...     dim, dtype = 1, torch.float32
        ...     def log_prob_and_grad(self, x):
        ...         return -0.5 * x.square().sum(-1), -x
        >>> at = evaluated(Normal(), torch.tensor([[2.0]]))
        >>> float(at.log_prob), float(at.grad)
        (-2.0, -2.0)
    """

    dim: int
    dtype: torch.dtype

    def log_prob_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class AscentOptions:
    """Options of the ascents of :func:`~pyro_flowsamp.flows.pathfinder.pathfinder`.

    Attributes:
        memory: Pairs of steps and gradient changes in an inverse Hessian.
        tolerance: A path has converged when two steps in a row gain less log density than this,
            beyond rounding errors.
        patience: The number of such steps if they had to grow beyond the full quasi-Newton step.
        first_step: Length of the first trial step, relative to the largest coordinate.
        sufficient_gain: The gain of a step over that of a linear log density, at least.
        max_slope: The slope at the end of a step over that at its start, at most.
        expansion: Factor by which a step grows at most from one trial to the next.
        min_shrink: The part of a bracket, on either side, that no trial enters.
        max_trials: Trial points of one search.

    Raises:
        ValueError: An option is out of range, or of another type.

    Example:
        >>> from pyro_flowsamp import Target
        >>> from pyro_flowsamp.flows.pathfinder import PathfinderOptions, pathfinder
        >>> target = Target.from_energy(lambda x: 0.5 * (x - 3).square().sum(-1), 1)
        >>> options = PathfinderOptions(ascent=AscentOptions(tolerance=1e-2, memory=5))
        >>> pathfinder(target, torch.zeros(1, 1), options).end.round(decimals=1)
        tensor([[3.]], dtype=torch.float64)
    """

    memory: int = 20
    tolerance: float = 1e-6
    patience: int = 8
    first_step: float = 0.1
    sufficient_gain: float = 1e-4
    max_slope: float = 0.5
    expansion: float = 10.0
    min_shrink: float = 0.1
    max_trials: int = 20

    def __post_init__(self) -> None:
        check_at_least_one(self)


class Evaluated(NamedTuple):
    """Points ``(P, d)`` with log densities ``(P,)`` and gradients ``(P, d)``, in float64.

    Example:
        >>> one = Evaluated(torch.tensor([[1.0]]), torch.tensor([-0.5]), torch.tensor([[-1.0]]))
        >>> two = Evaluated(torch.tensor([[2.0]]), torch.tensor([-2.0]), torch.tensor([[-2.0]]))
        >>> two.where(torch.tensor([False]), one).log_prob
        tensor([-0.5000])
    """

    x: Tensor
    log_prob: Tensor
    grad: Tensor

    def where(self, mask: Tensor, other: Evaluated) -> Evaluated:
        """These points where the mask ``(P,)`` holds, and the others elsewhere."""
        return Evaluated(
            torch.where(mask[:, None], self.x, other.x),
            torch.where(mask, self.log_prob, other.log_prob),
            torch.where(mask[:, None], self.grad, other.grad),
        )


def evaluated(target: Differentiable, x: Tensor) -> Evaluated:
    """Points rounded to the precision of the target, with their densities.

    Arguments:
        target: The density.
        x: The points, ``(P, d)``.

    Example:
        >>> from pyro_flowsamp import Target
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> evaluated(target, torch.tensor([[2.0]])).grad
        tensor([[-2.]], dtype=torch.float64)
    """
    reach = torch.finfo(target.dtype).max ** REACH_POWER
    x = x.clamp(-reach, reach).to(target.dtype)
    log_prob, grad = target.log_prob_and_grad(x)
    return Evaluated(x.double(), log_prob.double(), grad.double())


class LineSearch(NamedTuple):
    """The line searches of P paths, at their next trial.

    Attributes:
        direction: The directions, uphill, ``(P, d)``.
        slope: The slopes at the starts, ``(P,)``.
        low, high: The brackets: steps that gain enough but are too short, and steps that are too
            long (infinite where none is known).
        at_low: The points of the steps ``low``.
        high_log_prob: The log densities at ``high``.
        step: The trial steps.
        trials: The number of trials so far.

    Example:
        >>> from pyro_flowsamp import Target
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> at = evaluated(target, torch.tensor([[2.0]]))
        >>> search = LineSearch.along(at.grad, at, torch.ones(1, dtype=torch.double))
        >>> search.slope, search.direction  # at 2 the density rises by 2 for each unit
        (tensor([4.], dtype=torch.float64), tensor([[-2.]], dtype=torch.float64))
    """

    direction: Tensor
    slope: Tensor
    low: Tensor
    high: Tensor
    at_low: Evaluated
    high_log_prob: Tensor
    step: Tensor
    trials: Tensor

    @classmethod
    def along(cls, direction: Tensor, at: Evaluated, step: Tensor) -> LineSearch:
        """New searches."""
        slope, zero = (direction * at.grad).sum(-1), torch.zeros_like(step)
        infinite = torch.full_like(step, torch.inf)
        return cls(direction, slope, zero, infinite, at, -infinite, step, zero)

    def where(self, mask: Tensor, other: LineSearch) -> LineSearch:
        """These searches where the mask ``(P,)`` holds, and the others elsewhere."""
        return LineSearch(
            torch.where(mask[:, None], self.direction, other.direction),
            torch.where(mask, self.slope, other.slope),
            torch.where(mask, self.low, other.low),
            torch.where(mask, self.high, other.high),
            self.at_low.where(mask, other.at_low),
            torch.where(mask, self.high_log_prob, other.high_log_prob),
            torch.where(mask, self.step, other.step),
            torch.where(mask, self.trials, other.trials),
        )

    def continued(self, trial: Evaluated, enough: Tensor, options: AscentOptions) -> LineSearch:
        """Takes the trial into the bracket, and chooses the next one.

        Inside a bracket the next trial is the top of the parabola through its low end, in value
        and slope, and its high end, in value. Without a high end it is the zero of the line
        through the last two slopes. Both are kept within bounds. Where the high end has no density,
        the bracket is divided without regard to values.

        Arguments:
            trial: The points of the trials.
            enough: Which of them gain enough: these are too short, the others too long.
        """
        before, trials = self, self.trials + 1
        high_log_prob = torch.where(enough, self.high_log_prob, trial.log_prob)
        low = torch.where(enough, self.step, self.low)
        high = torch.where(enough, self.high, self.step)
        at_low = trial.where(enough, self.at_low)
        slope = (self.direction * at_low.grad).sum(-1)
        # expansion
        before_slope = (self.direction * before.at_low.grad).sum(-1)
        secant = low + (low - before.low) * slope / (before_slope - slope)
        secant = torch.where(before_slope > slope, secant, torch.inf)
        longer = secant.clamp(2 * low, options.expansion * low)
        # contraction
        width = torch.where(torch.isfinite(high), high - low, 1.0)
        loss = at_low.log_prob + slope * width - high_log_prob
        part = (0.5 * slope * width / loss).nan_to_num(nan=0.5)
        part = part.clamp(options.min_shrink, 1 - options.min_shrink)
        inside = low + part * width
        # before an edge: by ever larger factors until a step is short enough, then in the middle,
        # which is that of the logarithms while the bracket is long
        far = torch.where(low > 0, (low * width).sqrt(), width * options.min_shrink**trials)
        middle = torch.where(options.min_shrink * width > low, far, low + 0.5 * width)
        inside = torch.where(torch.isfinite(high_log_prob), inside, middle)
        step = torch.where(torch.isfinite(high), inside, longer)
        return LineSearch(
            self.direction, self.slope, low, high, at_low, high_log_prob, step, trials
        )

    def exhausted(self, start: Evaluated, least: Tensor, options: AscentOptions) -> Tensor:
        """Whether a bracket has little left to gain, ``(P,)``.

        Where the log density is concave, the rest of the bracket gains at most the slope at its low
        end times its width. This is little if it is at most ``least``, or, before the edge of
        the support, than a small part (``min_shrink``) of what the low end has gained.
        """
        rest = (self.direction * self.at_low.grad).sum(-1) * (self.high - self.low)
        gained = options.min_shrink * (self.at_low.log_prob - start.log_prob)
        edge = torch.isfinite(self.high) & ~torch.isfinite(self.high_log_prob)
        return (rest <= least) | (edge & (rest <= gained))
