r"""Quasi-Newton ascents of many paths side by side, one evaluation of each at a time.

Each path has its own line search and its own inverse Hessian. At each call of the target a path
either makes a step or goes on with its line search, and no path waits for another.

References:
    William W. Hager and Hongchao Zhang, *A new conjugate gradient method with guaranteed descent
    and an efficient line search*, 2005, https://doi.org/10.1137/030601880.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .lbfgs import InverseHessians
from .line_search import AscentOptions, Evaluated, LineSearch

__all__ = ["Paths"]


#: Rounding errors of a log density and of its gradient, in units of the last place of the largest
#: number that enters: smaller changes mean nothing.
ROUNDING_UNITS = 8.0
#: Units of the last place of a coordinate by which a step is long enough to show a curvature.
RESOLVED = 100.0


class Paths(NamedTuple):
    """The state of P ascents.

    Attributes:
        at: The current points.
        hessians: Their inverse Hessians.
        search: Their line searches.
        plain: Which searches go along the diagonal times the gradient, without the pairs.
        level: The part that has passed of the steps in a row without gain that end a path.
        steps: How many steps have been made.
        ended: Which paths have ended.

    Example:
        >>> from pyro_flowsamp import Target
        >>> from pyro_flowsamp.flows.line_search import evaluated
        >>> target = Target.from_energy(lambda x: 0.5 * (x - 3).square().sum(-1), 1)
        >>> options = AscentOptions()
        >>> paths = Paths.starting(evaluated(target, torch.zeros(1, 1)), options)
        >>> while not bool(paths.ended.all()):
        ...     paths = paths.advanced(evaluated(target, paths.trial()), 1e-7, options)
        >>> paths.at.x.round(decimals=2)
        tensor([[3.]], dtype=torch.float64)
    """

    at: Evaluated
    hessians: InverseHessians
    search: LineSearch
    plain: Tensor
    level: Tensor
    steps: Tensor
    ended: Tensor

    @classmethod
    def starting(cls, at: Evaluated, options: AscentOptions) -> Paths:
        """Paths at their starts, with searches along the gradients."""
        length = options.first_step * at.x.abs().amax(-1)
        length = torch.where(length > 0, length, 1.0)
        steepest = at.grad.abs().amax(-1)
        variance = torch.where(steepest > 0, length / steepest, length.square())
        diagonal = variance[:, None].expand_as(at.x).contiguous()
        hessians = InverseHessians.scaled(diagonal, options.memory)
        plain, zero = torch.isfinite(length), torch.zeros_like(length)
        search, plain = _uphill(at, hessians, plain, 0.0)
        ended = ~torch.isfinite(at.log_prob) | ~(search.slope > 0)
        return cls(at, hessians, search, plain, zero, zero, ended)

    def trial(self) -> Tensor:
        """The next points to evaluate, ``(P, d)``; the current ones of paths that have ended."""
        x = self.at.x + self.search.step[:, None] * self.search.direction
        return torch.where(self.ended[:, None] | torch.isnan(x), self.at.x, x)

    def advanced(self, trial: Evaluated, eps: float, options: AscentOptions) -> Paths:
        r"""Lets each path accept its trial point, or go on with its line search.

        A trial at step t gains enough where :math:`f(t) \ge f(0) + c_1 t f'(0)`, or where
        :math:`f(t)` and :math:`f(0)` differ by rounding only and
        :math:`f'(t) \ge (2 c_1 - 1) f'(0)`, as in the approximate conditions of Hager and Zhang. It
        is accepted if moreover :math:`f'(t) \le c_2 f'(0)`.

        A search that is out of trials or of precision, or has little left to gain, takes its
        longest step that gained enough. Where there is none it is repeated without the pairs, and
        then the path ends.

        Arguments:
            trial: The points of the trials.
            eps: The precision of the target.
            options: The constants above.
        """
        at, search = self.at, self.search
        slope = (search.direction * trial.grad).sum(-1)
        noise = ROUNDING_UNITS * eps * at.log_prob.abs()
        least = options.sufficient_gain * search.step * search.slope
        overshot = slope < (2 * options.sufficient_gain - 1) * search.slope
        gains = (trial.log_prob >= at.log_prob + least) | (
            (trial.log_prob >= at.log_prob - noise) & ~overshot
        )
        still = (trial.x == at.x).all(-1)  # a step too small for the precision
        enough = torch.isfinite(trial.log_prob)
        enough = enough & torch.where(still, search.high.isinf(), gains)
        accepted = enough & (slope <= options.max_slope * search.slope)
        continued = search.continued(trial, enough, options)
        # after a step that gained nothing there is a curvature from close by, and this is the top
        least = torch.where(self.level > 0, options.tolerance, 0.0)
        over = (continued.trials >= options.max_trials) | (still & continued.high.isfinite())
        over = (over | continued.exhausted(at, least, options)) & ~accepted
        away = (continued.at_low.x != at.x).any(-1)
        moved = ~self.ended & (accepted | (over & away))
        failed = ~self.ended & over & ~moved
        new = trial.where(accepted, continued.at_low).where(moved, at)
        taken = torch.where(accepted, search.step, continued.low)
        hessians = _with_pair(self.hessians, at, new, moved, taken, eps)
        gained = new.log_prob - at.log_prob > options.tolerance + noise
        # a step that has to grow shows that H is too small yet, and its gain with it
        grown = (taken > 1) & (continued.trials > 1)
        level = self.level + torch.where(grown, 1.0 / options.patience, 0.5)
        level = torch.where(moved, torch.where(gained, 0.0, level), self.level)
        again = moved | (failed & ~self.plain)
        new_search, plain = _uphill(new, hessians, failed, eps)
        ended = self.ended | (failed & self.plain) | (level >= 1)
        ended = ended | (again & ~(new_search.slope > 0))
        return Paths(
            new,
            hessians,
            new_search.where(again, continued),
            torch.where(again, plain, self.plain),
            level,
            self.steps + moved,
            ended,
        )


def _with_pair(
    hessians: InverseHessians,
    old: Evaluated,
    new: Evaluated,
    moved: Tensor,
    taken: Tensor,
    eps: float,
) -> InverseHessians:
    """Appends the pairs of positive curvature, beyond what rounding explains.

    A path without any takes the length of its last step for the scale of its diagonal.
    """
    step, change = new.x - old.x, old.grad - new.grad
    rounding = ROUNDING_UNITS * eps * (step.abs() * (old.grad.abs() + new.grad.abs())).sum(-1)
    resolved = (step.abs() > RESOLVED * eps * new.x.abs()).any(-1)
    curved = moved & resolved & ((step * change).sum(-1) > rounding)
    straight = moved & ~curved & ~hessians.has_pairs()
    diagonal = torch.where(straight[:, None], taken[:, None] * hessians.diagonal, hessians.diagonal)
    return hessians._replace(diagonal=diagonal).updated(step, change, curved)


def _uphill(
    at: Evaluated, hessians: InverseHessians, plain: Tensor, eps: float
) -> tuple[LineSearch, Tensor]:
    """Searches along H ∇ log p, or the diagonal times it where asked for or where H fails.

    The first trial is the full step, or the shortest one that changes a coordinate at all.
    """
    direction = hessians.times(at.grad)
    slope = (direction * at.grad).sum(-1)
    plain = plain | ~((slope > 0) & torch.isfinite(direction).all(-1))
    direction = torch.where(plain[:, None], hessians.diagonal * at.grad, direction)
    moves = direction != 0
    resolved = torch.where(moves, eps * at.x.abs() / direction.abs(), torch.inf).amin(-1)
    step = torch.where(torch.isfinite(resolved), resolved, 1.0).clamp(min=1.0)
    return LineSearch.along(direction, at, step), plain
