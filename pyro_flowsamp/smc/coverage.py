"""A check of annealed particles: whether there is mass outside of the base that they started from.

Particles that end outside of their base show that the base was too narrow, and that there may be
more mass where none of them has come. Mass that is so far away that no particle has come there is
looked for by quasi-Newton paths from points on many scales. Draws of their Gaussians are weighted
by the density, so that they are where the mass is.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..options import ModeSearchOptions
from ..target.density import Target
from .coordinates import WhitenedTarget
from .exploration import explore
from .starts import PriorStart, StudentStart, TemperedStart

__all__ = ["Start", "coverage_problem"]

Start = TemperedStart | StudentStart | PriorStart


def coverage_problem(
    target: Target | WhitenedTarget,
    base: Start,
    x: Tensor,
    options: ModeSearchOptions = ModeSearchOptions(),
) -> str:
    """A sentence about mass outside of a base; empty where none has been seen.

    Arguments:
        target: The target.
        base: The distribution from which particles started.
        x: Where they have ended, ``(N, d)``.
        options: The paths, and the share of points that may be outside.

    Example:
        >>> import torch
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> base = StudentStart(torch.zeros(1), torch.eye(1), torch.tensor([False]))
        >>> coverage_problem(target, base, torch.full((8, 1), 20.0))[:52]
        '100.00% of the annealed particles end outside of the'
    """
    advice = "give tempered_smc a wider base, such as StudentStart.covering(points, target.angles)"
    outside = float(base.outside(x).double().mean())
    if outside > options.max_outside:
        return (
            f"{outside:.2%} of the annealed particles end outside of the distribution that they "
            f"started from, where there may be mass that none has found: {advice}"
        )
    if not isinstance(target, Target) or target.contexts is not None:
        return ""
    try:
        found = explore(target, options)
    except ValueError as error:
        return f"the base of annealed particles could not be checked: {error}"
    points: Any = found.coordinates.to_x(found.points).to(base.loc.dtype)
    outside = float(base.outside(points).double().mean())
    if outside <= options.max_outside:
        return ""
    return (
        f"quasi-Newton paths have found mass outside of the distribution that annealed particles "
        f"started from: {outside:.2%} of their weighted draws are there. Modes may be missing: "
        f"{advice}"
    )
