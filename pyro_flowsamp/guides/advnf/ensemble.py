"""Ensembles, from which a flow learns where modes are, and a search for modes that they miss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...flows.gaussian_fit import ascend
from ...smc.starts import stretched_points
from ...smc.tempering import tempered_smc
from ...target.density import Target
from ..auto_flow import EnsembleSource, ensemble_points
from .options import AdvNFOptions

__all__ = ["Ensemble", "gather", "missed_fraction"]


class Ensemble(NamedTuple):
    """Draws of the target, or nearly of it, in unconstrained space.

    Attributes:
        draws: Points, ``(M, d)``.
        contexts: The context of each point, ``(M, c)``, or None.

    Example::

        >>> held_out, rest = Ensemble(torch.zeros(10, 2)).split(0.2)
        >>> len(held_out.draws), len(rest.draws)
        (2, 8)
    """

    draws: Tensor
    contexts: Tensor | None = None

    def split(self, share: float) -> tuple[Ensemble, Ensemble]:
        """Returns a random part of the ensemble, and the rest; at least one draw each."""
        order = torch.randperm(len(self.draws), device=self.draws.device)
        num = min(max(1, round(share * len(order))), len(order) - 1)
        return self.at(order[:num]), self.at(order[num:])

    def at(self, index: Tensor) -> Ensemble:
        """Returns the draws of these indices or of this mask, with their contexts."""
        contexts = None if self.contexts is None else self.contexts[index]
        return Ensemble(self.draws[index], contexts)

    def pick(self, num: int) -> Ensemble:
        """Returns ``num`` random draws, with replacement."""
        return self.at(torch.randint(len(self.draws), (num,), device=self.draws.device))


def gather(given: EnsembleSource | None, target: Target, rows: Tensor | None) -> Ensemble:
    """Makes an ensemble of what the user gave, or by tempered particles where that is None.

    Arguments:
        given: See :meth:`~pyro_flowsamp.AutoAdvNF.fit`.
        target: The density.
        rows: The contexts, ``(K, c)``, or None.

    Example:
        >>> draws = {"x": torch.eye(2)}
        >>> gather(draws, Target.from_energy(lambda x: x.square().sum(-1), 2), None).draws
        tensor([[1., 0.],
                [0., 1.]])
    """
    here = target if rows is None else target.at_contexts(rows)
    if given is None:
        given = tempered_smc(here)
    points = ensemble_points(given, here)
    if rows is None:
        return Ensemble(points)
    contexts = rows[:, None].expand(-1, points.shape[1], -1)
    return Ensemble(points.flatten(0, 1), contexts.flatten(0, 1))


def missed_fraction(
    target: Target, rows: Tensor | None, ensemble: Ensemble, options: AdvNFOptions
) -> float:
    """Returns the fraction of distant points whose ascent ends at a mode without draws.

    The points ascend the density to a local maximum. Such a maximum has no draws where it is about
    as high as the ensemble's draws, and far from all of them. Where there are contexts, the search
    is at a middle one, because modes may differ between contexts.

    Arguments:
        target: The density.
        rows: The contexts, ``(K, c)``, or None.
        ensemble: Draws, at all contexts.
        options: ``ascent_starts``, ``far`` and ``slack`` are used.

    Example:
        >>> def energy(x):  # two modes, at -9 and 9
        ...     return 0.5 * (x.abs() - 9).square().sum(-1)
        >>> target, one = Target.from_energy(energy, 1), torch.randn(100, 1) + 9
        >>> options = AdvNFOptions(ascent_starts=64)
        >>> missed_fraction(target, None, Ensemble(torch.cat([one, -one])), options)
        0.0
        >>> 0.2 < missed_fraction(target, None, Ensemble(one), options) < 0.8  # about half
        True
    """
    draws, here = ensemble.draws, target
    if rows is not None:
        assert ensemble.contexts is not None
        row = rows[len(rows) // 2]
        draws, here = draws[(ensemble.contexts == row).all(-1)], target.at_contexts(row[None])
    num = options.ascent_starts
    ends = ascend(here, stretched_points(here, num), steps=300, rate=0.3)[-1]
    seen = draws[torch.randperm(len(draws), device=draws.device)[:2000]]
    with torch.no_grad():
        high = here.log_prob(ends) > here.log_prob(seen).median() - options.slack
    ends, seen = (_embedded(x, target.angles) for x in (ends, seen))
    spread = seen.std(0).clamp(min=1e-6)
    ends, seen = ends / spread, seen / spread
    near = torch.cdist(seen, seen).fill_diagonal_(torch.inf).amin(-1).median()
    apart = torch.cdist(ends, seen).amin(-1) > options.far * near + 1.0
    return float((high & apart).double().mean())


def _embedded(x: Tensor, angles: Tensor) -> Tensor:
    """Replaces angles by (cos, sin), so that distances respect the circle.

    The second part of other coordinates is zero.
    """
    first = torch.where(angles, x.cos(), x)
    return torch.cat([first, torch.where(angles, x.sin(), 0.0)], -1)
