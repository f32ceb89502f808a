r"""A comparison of two sets of particles along many directions.

Modes are regions that particles enter or not. Two searches may have entered all of them and still
disagree: of a banana one may lack an arm, of a funnel the neck. So their distributions along the
coordinates, the principal directions of both together and random directions are compared. Values
along a direction v are cut at the quantiles :math:`q_k` of both searches together, since indicators
have variances whatever the tails are. With the shares :math:`m_k = P(v^\top x \le q_k)` of each
search, its standard error from the islands (:meth:`~pyro_flowsamp.smc.particles.Particles.mean`),
and the pooled share :math:`p_k`, the difference is

.. math:: z_k = \frac{m^{(1)}_k - m^{(2)}_k}{\sqrt{\tau\, p_k (1 - p_k)\,(1/n_1 + 1/n_2)}},
   \qquad \tau = \max\Bigl(1, \tfrac12 \tau_v + \tfrac12 \tau_{\text{all}}\Bigr).

The design effect :math:`\tau` says by how much the variance exceeds that of as many independent
draws. A few islands give a poor estimate of a single variance. So :math:`\tau_v` is the mean over k
of the ratio of the islands' variance to :math:`p_k (1 - p_k) (1/n_1 + 1/n_2)`, and
:math:`\tau_{\text{all}}` is the mean of :math:`\tau_v` over all directions.

References:
    Leslie Kish, *Survey Sampling*, 1965 (the design effect),
    https://archive.org/details/surveysampling0000kish
"""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from ..options import ModeSearchOptions
from .particles import Particles

__all__ = ["DirectionGap", "compare_directions", "directions_to_compare"]

MOST_PROJECTIONS = 20_000_000  #: comparisons of particles with cuts, over all directions, at most


class DirectionGap(NamedTuple):
    """The direction along which two searches differ most.

    Attributes:
        name: What it is, such as "principal direction 2".
        difference: The largest difference of two distribution functions there.
        errors: That difference in standard errors.
        bound: Standard errors from which on two searches disagree.
        shares: The two values of the distribution functions.

    Example:
        >>> gap = DirectionGap("x[0]", 0.08, 5.1, 4.5, (0.5, 0.58))
        >>> gap.errors > gap.bound  # the searches disagree
        True
    """

    name: str
    difference: float
    errors: float
    bound: float
    shares: tuple[float, float]

    def agrees(self, options: ModeSearchOptions) -> bool:
        """Whether the difference is within its error, or small in any case."""
        return self.errors <= self.bound or self.difference <= options.direction_tolerance

    @property
    def problem(self) -> str:
        """The clause which says that two searches disagree along a direction."""
        one, two = self.shares
        return (
            f"two searches for modes disagree along {self.name}: below one value they have "
            f"{one:.0%} and {two:.0%} of the mass, {self.errors:.1f} standard errors apart"
        )


def directions_to_compare(u: Tensor, options: ModeSearchOptions) -> tuple[Tensor, list[str]]:
    """Unit vectors along which particles are compared, and what they are.

    Arguments:
        u: Particles ``(N, d)``; coordinates are scaled by their interquartile ranges first.
        options: The numbers of directions of each kind. Where there are more coordinates, those
            are compared that have the smallest indices.

    Returns:
        The directions, ``(K, d)``, and their names.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> u = torch.randn(50, 2).double()
        >>> v, names = directions_to_compare(u, ModeSearchOptions(random_directions=1))
        >>> names
        ['coordinate 1', 'coordinate 2', 'principal direction 1', 'principal direction 2', \
'random direction 1']
    """
    dim = u.shape[1]
    low, high = u.quantile(torch.tensor([0.25, 0.75]).to(u), 0)
    scale = (high - low).clamp(min=torch.finfo(u.dtype).tiny)
    coordinates = torch.eye(dim).to(u)[: options.coordinate_directions]
    standard = ((u - u.median(0).values) / scale).clamp(-options.clip, options.clip)
    centred = standard - standard.mean(0)
    _, vectors = torch.linalg.eigh(centred.mT @ centred)
    principal = vectors.mT.flip(0)[: options.principal_directions] / scale
    random = torch.randn(options.random_directions, dim).to(u) / scale
    kinds = {
        "coordinate": coordinates,
        "principal direction": principal,
        "random direction": random,
    }
    names = [f"{name} {i + 1}" for name, rows in kinds.items() for i in range(len(rows))]
    return torch.cat(list(kinds.values())), names


def compare_directions(
    first: Particles, second: Particles, options: ModeSearchOptions
) -> DirectionGap | None:
    r"""The direction along which two sets of particles differ most, in standard errors.

    The bound holds for all K directions and J cuts together: with the error probability
    :math:`\alpha` it is the larger of :attr:`~pyro_flowsamp.ModeSearchOptions.direction_errors` and
    the normal quantile at :math:`1 - \alpha / (2 K J)` (Bonferroni).

    Arguments:
        first, second: Particles of two searches in the same coordinates, on several islands each.
        options: Directions, cuts and bounds.

    Returns:
        The direction, or None where the islands give no error: with one island.
    """
    one, two = first.x.double(), second.x.double()
    n_one, n_two = len(one), len(two)
    v, names = directions_to_compare(torch.cat([one, two]), options)
    kept = max(1, MOST_PROJECTIONS // ((n_one + n_two) * len(options.direction_cuts)))
    v, names = v[:kept], names[:kept]
    t_one, t_two = one @ v.mT, two @ v.mT
    levels = torch.tensor(options.direction_cuts).to(one)
    cuts = torch.cat([t_one, t_two]).quantile(levels, 0)  # (J, K)
    m_one = first.mean((t_one[:, None] <= cuts).flatten(1))
    m_two = second.mean((t_two[:, None] <= cuts).flatten(1))
    variance = m_one.standard_error.square() + m_two.standard_error.square()
    share = 0.5 * (m_one.value + m_two.value)
    least = 1 / (n_one + n_two)  # of a share: none is known better
    alone = (share * (1 - share)).clamp(min=least) * (1 / n_one + 1 / n_two)
    of_each = (variance / alone).view_as(cuts).mean(0)
    if not bool(torch.isfinite(of_each).all()):
        return None
    effect = (0.5 * (of_each + of_each.mean())).clamp(min=1.0).expand_as(cuts)
    difference = (m_one.value - m_two.value).view_as(cuts)
    errors = difference.abs() / (effect * alone.view_as(cuts)).sqrt()
    tests = errors.numel()
    bound = NormalDist().inv_cdf(1 - options.direction_error_probability / (2 * tests))
    bound = max(options.direction_errors, bound)
    counts = torch.where(difference.abs() > options.direction_tolerance, errors, 0.0)
    place = int((counts if bool((counts > bound).any()) else errors).argmax())
    shares = float(m_one.value[place]), float(m_two.value[place])
    return DirectionGap(
        names[place % len(names)],
        float(difference.flatten()[place].abs()),
        float(errors.flatten()[place]),
        bound,
        shares,
    )
