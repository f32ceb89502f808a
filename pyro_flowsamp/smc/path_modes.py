r"""Modes that quasi-Newton paths have found, and their masses.

A narrow mode of little mass has few particles or none, and annealing loses these easily. A path
that ends there does not depend on its mass. With draws :math:`x_i` of the path's Gaussian
:math:`q_k`, the mean of :math:`\tilde p(x_i) / q_k(x_i)` estimates the mass that it covers.
"""

from __future__ import annotations

from math import log
from typing import NamedTuple

import torch
from torch import Tensor

from ..options import ModeSearchOptions
from ..target.density import Target
from ..weights import ess_fraction

__all__ = ["PathModes", "path_modes"]


class PathModes(NamedTuple):
    """Gaussians of K paths, with the masses that they cover.

    Attributes:
        loc: Their means, ``(K, d)``.
        scale_tril: Cholesky factors of their covariances, ``(K, d, d)``.
        log_mass: Logs of the masses that they cover, not normalised, ``(K,)``.
        points: Draws of the target around each, ``(K, n, d)``.
        times: How many paths have found each, ``(K,)``.

    Example:
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> eye = torch.eye(1).double().expand(2, 1, 1)
        >>> loc = torch.tensor([[0.0], [20.0]]).double()
        >>> mass, times = torch.tensor([0.5, 0.5]), torch.ones(2)
        >>> modes = PathModes(loc, eye, mass.log(), loc[:, None], times)
        >>> modes.near(torch.tensor([[0.1], [1.0]]), target, 6.0)
        tensor([[ True,  True],
                [False, False]])
        >>> points = torch.zeros(100, 1)  # none of them is near 20
        >>> modes.alone(points, target, 0.0, ModeSearchOptions()).loc
        tensor([[20.]], dtype=torch.float64)
    """

    loc: Tensor
    scale_tril: Tensor
    log_mass: Tensor
    points: Tensor
    times: Tensor

    def near(self, x: Tensor, target: Target, deviations: float) -> Tensor:
        r"""Whether points ``(N, d)`` are near the means, ``(K, N)``.

        The squared distance, in standard deviations of the Gaussian, is at most
        :math:`d + c \sqrt{2d}` with c of ``deviations``. Of a draw of the Gaussian it has the mean
        d and the standard deviation :math:`\sqrt{2d}`. A larger bound would not tell modes apart
        in many dimensions: in 50, points of a mode ten standard deviations away are at about 150.
        """
        dim = self.loc.shape[1]
        return self._square_distances(x, target) <= dim + deviations * (2 * dim) ** 0.5

    def _square_distances(self, x: Tensor, target: Target) -> Tensor:
        """Squared distances of points ``(N, d)`` in standard deviations, ``(K, N)``."""
        away = target.wrap(x.double() - self.loc[:, None]).mT
        return torch.linalg.solve_triangular(self.scale_tril, away, upper=False).square().sum(1)

    def some(self, index: Tensor) -> PathModes:
        """Those of a mask, or of indices."""
        return PathModes(*(value[index] for value in self))

    def alone(
        self, x: Tensor, target: Target, log_evidence: float, options: ModeSearchOptions
    ) -> PathModes:
        """Those that have lost most of their points, or all, each once, the largest first.

        Of N points there should be N times the share of the mass. There are far fewer, where this
        is enough to tell; or there is none.

        Arguments:
            x: Points ``(N, d)``.
            target: The target.
            log_evidence: Log of the whole mass.
            options: The share of it from which on a mode counts, and how many are far fewer.
        """
        share = (self.log_mass - log_evidence).exp()
        near = self.near(x, target, options.near_deviations).sum(1)
        expected = len(x) * share
        lost = (near == 0) | (
            (near < options.lost_share * expected) & (expected >= options.min_expected)
        )
        found = self.some((share >= options.least_mode) & lost)
        return found.distinct(target, options.near_deviations)

    def distinct(self, target: Target, deviations: float) -> PathModes:
        r"""Those that are near no other of larger mass, the largest first.

        Each has been found by the paths of those near it, too.

        Draws around a mean at the squared distance s have that of :math:`d + s` on average. So s is
        at most :math:`c \sqrt{2d}`, where such draws are near on average, see :meth:`near`.

        Arguments:
            target: The target.
            deviations: The number c.
        """
        ordered = self.some(self.log_mass.argsort(descending=True))
        most = deviations * (2 * self.loc.shape[1]) ** 0.5
        same = (ordered._square_distances(ordered.loc, target) <= most).triu()
        ordered = ordered._replace(times=same.to(ordered.times) @ ordered.times)
        return ordered.some(~same.triu(1).any(0))

    def joined(self, other: PathModes) -> PathModes:
        """These modes and others, with as many points as those that have fewer.

        Example:
            >>> one = torch.ones(1, 1).double()
            >>> modes = PathModes(one, one[None], one[0].log(), torch.zeros(1, 3, 1), one[0])
            >>> modes.joined(modes._replace(points=torch.ones(1, 2, 1))).points.flatten().tolist()
            [0.0, 0.0, 1.0, 1.0]
        """
        num = min(self.points.shape[1], other.points.shape[1])
        parts = (modes._replace(points=modes.points[:, :num]) for modes in (self, other))
        return PathModes(*map(torch.cat, zip(*parts)))


def path_modes(
    loc: Tensor,
    scale_tril: Tensor,
    points: Tensor,
    log_weights: Tensor,
    least_ess: float = ModeSearchOptions.min_path_ess,
) -> PathModes:
    """The modes of paths, by importance weights of draws of their Gaussians.

    A few draws with large weights do not show a mass, but that the Gaussian does not fit. Such
    paths are left out.

    Arguments:
        loc: Means, ``(K, d)``.
        scale_tril: Cholesky factors, ``(K, d, d)``.
        points: Draws of each Gaussian, ``(n, K, d)``.
        log_weights: Logs of their importance weights, ``(n, K)``.
        least_ess: Effective sample size of the weights, as a fraction, from which on a mass is
            known.

    Example:
        >>> points = torch.zeros(3, 1, 2).double()
        >>> log_w = torch.zeros(3, 1).double()
        >>> path_modes(points[0], torch.eye(2)[None].double(), points, log_w).log_mass
        tensor([0.], dtype=torch.float64)
    """
    log_mass = log_weights.logsumexp(0) - log(len(log_weights))
    fine = torch.isfinite(log_mass) & (ess_fraction(log_weights) >= least_ess)
    weights = torch.where(fine, (log_weights - log_weights.amax(0)).exp(), 1.0).mT
    index = torch.multinomial(weights, len(points), replacement=True)
    drawn = points.transpose(0, 1).gather(1, index[..., None].expand(-1, -1, points.shape[-1]))
    return PathModes(loc, scale_tril, log_mass, drawn, torch.ones_like(log_mass)).some(fine)
