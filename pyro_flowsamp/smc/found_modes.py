"""The result of a search for modes, and the agreement of two searches."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, log
from typing import NamedTuple

import torch
from torch import Tensor

from ..flows.mixture_fit import Mixture
from ..options import ModeSearchOptions
from ..weights import Estimate
from .coordinates import WhitenedTarget
from .directions import DirectionGap
from .particles import systematic
from .path_modes import PathModes

__all__ = ["NOT_COVERED", "Agreement", "FoundModes", "particle_weights", "unseen_problem"]

#: the clause which says that particles are not covered
NOT_COVERED = (
    "particles end outside of the distribution that they started from, however wide that is"
)


def unseen_problem(share: float) -> str:
    """The clause which says that one search alone has found a share of the mass.

    Example:
        >>> unseen_problem(0.25).split(": ")[1].split(",")[0]
        'one alone has found regions that have 25.00% of the mass'
    """
    return (
        f"two searches for modes disagree: one alone has found regions that have {share:.2%} of "
        f"the mass, and about as much may be in regions that none has found"
    )


class Agreement(NamedTuple):
    """The agreement of two searches.

    Attributes:
        counts: Particles of each search in each component of the mixture, ``(2, K)``.
        modes: The mode of each component, ``(K,)``.
        unseen: Share of the mass in modes that one search alone has found; the share of the mass
            that neither has found is about as large, or smaller.
        log_evidence, error: Log evidence of each search and its standard error, ``(2,)``.
        missed: Share of the mass in modes that one path has found, and both searches have lost.
        lost: Share of the mass in modes that paths have found, and both searches have lost; the
            evidences are without it.
        direction: The direction along which the searches differ most; None where it is not known.

    Example:
        >>> import torch
        >>> agreement = Agreement(
        ...     counts=torch.tensor([[60, 40, 0], [55, 0, 45]]),
        ...     modes=torch.tensor([0, 1, 1]),  # the second and third component overlap
        ...     unseen=0.0,
        ...     log_evidence=torch.tensor([-10.0, -10.5]),
        ...     error=torch.tensor([0.3, 0.4]),
        ... )
        >>> agreement.num_modes, round(agreement.evidence_gap, 4)  # 0.5 by a joint error of 0.5
        (2, 1.0)
        >>> round(float(agreement.best_evidence.value), 3)  # of the mean of both
        -10.219
    """

    counts: Tensor
    modes: Tensor
    unseen: float
    log_evidence: Tensor
    error: Tensor
    missed: float = 0.0
    lost: float = 0.0
    direction: DirectionGap | None = None

    @property
    def num_modes(self) -> int:
        """The number of modes, of components that do not overlap."""
        return len(self.modes[self.counts.sum(0) > 0].unique())

    @property
    def search_weights(self) -> Tensor:
        """The weights of the searches, in proportion to their evidences, ``(2,)``."""
        return self.log_evidence.double().softmax(0)

    @property
    def best_evidence(self) -> Estimate:
        r"""The log of the mean evidence of both searches, with its standard error.

        The estimates :math:`Z_1, Z_2` are unbiased, and a search that has missed mass has too small
        a one. So their mean is :math:`Z = (Z_1 + Z_2) / 2`, and its error counts both what the
        islands of each search show, :math:`\sigma_1, \sigma_2`, and what these cannot show, the
        difference of the two:

        .. math:: \sigma^2 = \tfrac14 (\sigma_1^2 + \sigma_2^2) + \tfrac14 (Z_1 - Z_2)^2 .

        Its expectation is twice the variance of the mean where both searches are right. Of 100
        searches on a Student-t distribution with two degrees of freedom in ten dimensions, the
        search with the smaller error alone had z-scores with a standard deviation of 2, and this
        estimate 1.07.
        """
        share = (self.log_evidence - self.log_evidence.logsumexp(0)).exp()  # sum to one
        inside = (share * self.error).square().sum()
        between = (share[0] - share[1]).square()
        value = self.log_evidence.logsumexp(0) - log(2)
        return Estimate(value, (inside + between).sqrt())

    def second_has_missed(self, options: ModeSearchOptions) -> bool:
        """Whether the second search has missed mass that the first one has found.

        Then its evidence is smaller, or has a large error. From a prior that is much wider than the
        posterior a few moves at each temperature may not find the way. Another such search would
        tell no more.
        """
        less = self.log_evidence_difference
        unknown = float(self.error[1]) > options.max_evidence_error
        return less > options.evidence_tolerance and (unknown or self.evidences_apart(options))

    def shares_of(self, modes: PathModes) -> Tensor:
        r"""The share of the mass in each of K modes that both searches have lost, ``(K,)``.

        The evidence Z of the searches is without the masses :math:`M_k` of these modes, so that
        the shares are :math:`M_k / (Z + \sum_l M_l)`.
        """
        log_rest = self.best_evidence.value.reshape(1).to(modes.log_mass)
        return torch.cat([modes.log_mass, log_rest]).softmax(0)[:-1]

    def evidences_agree(self, options: ModeSearchOptions) -> bool:
        """Whether both log evidences are known, and differ by no more than their errors."""
        known = float(self.error.max()) <= options.max_evidence_error
        return known and not self.evidences_apart(options)

    def evidences_apart(self, options: ModeSearchOptions) -> bool:
        """Whether the log evidences differ by more than a tolerance, and than their errors."""
        more = abs(self.log_evidence_difference) > options.evidence_tolerance
        return more and self.evidence_gap > options.max_gap

    def directions_agree(self, options: ModeSearchOptions) -> bool:
        """Whether both searches have the same distributions along all directions."""
        return self.direction is None or self.direction.agrees(options)

    @property
    def log_evidence_difference(self) -> float:
        """The log evidence of the first search less that of the second."""
        return float(self.log_evidence[0] - self.log_evidence[1])

    @property
    def evidence_gap(self) -> float:
        """The difference of the log evidences, in combined standard errors."""
        return abs(self.log_evidence_difference) / float(
            self.error.square().sum().sqrt().clamp(min=1e-12)
        )


def particle_weights(agreement: Agreement, sizes: Sequence[int], alone: PathModes | None) -> Tensor:
    r"""The weights of the particles of two searches and of points of modes that these have lost.

    With the evidences :math:`Z_1, Z_2` a particle of search i has a weight in proportion to
    :math:`Z_i / (Z_1 + Z_2)` over their number, and a point of a mode of paths, of mass
    :math:`M_k`, to :math:`2 M_k / (Z_1 + Z_2)` over theirs.

    Arguments:
        agreement: The evidences.
        sizes: The numbers of particles of the searches.
        alone: Modes of paths, or None; their points come last.

    Returns:
        The weights, of sum one, ``(N,)``.

    Example:
        >>> one, zero = torch.ones(1, 1).double(), torch.zeros(2).double()
        >>> alone = PathModes(one, one[None], one[0].log(), one[None], one[0])  # of mass 1
        >>> agreement = Agreement(zero, zero, 0.0, log_evidence=zero, error=zero)
        >>> particle_weights(agreement, (2, 1), alone).tolist()
        [0.125, 0.125, 0.25, 0.5]
    """
    parts = [w.expand(n) / n for w, n in zip(agreement.search_weights, sizes)]
    if alone is not None:
        num, shares = alone.points.shape[1], agreement.shares_of(alone)
        parts = [(1 - shares.sum()) * part for part in parts]
        parts.append(shares.repeat_interleave(num) / max(num, 1))
    weights = torch.cat([part.to(agreement.log_evidence.device) for part in parts])
    return weights / weights.sum()


class FoundModes(NamedTuple):
    """The result of the search.

    Attributes:
        x: Particles of both searches, ``(N, d)``, in random order.
        second: Which of them do not come of the first search, ``(N,)``.
        weights: Their weights, of sum one: each search counts in proportion to its evidence, and
            points of a mode that it has lost in proportion to its mass, ``(N,)``.
        coordinates: Whitened coordinates.
        mixture: A mixture fitted to the particles, in these coordinates.
        agreement: How far the last two searches agree.
        covered: Whether all particles ended inside of the distribution they started from.
        settled: Whether the searches agree and are covered.
        alone: Modes that paths have found, and both searches have lost; their points are among
            ``x``. None where there are no particles.
        evaluations: Evaluations of the density.
        surveyed: Those of random points, which have no gradient.
        interrupted: Whether Ctrl-C ended the search, so that this is what it had by then.

    Example:
        >>> import torch
        >>> from pyro_flowsamp import Target
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> locs = torch.tensor([[-4.0], [4.0]]).double()
        >>> halves, eye = torch.tensor([0.5, 0.5]).double(), torch.eye(1).double().expand(2, 1, 1)
        >>> none = torch.zeros(2)
        >>> found = FoundModes(
        ...     x=locs,
        ...     second=torch.tensor([False, True]),
        ...     weights=torch.tensor([0.75, 0.25]),
        ...     coordinates=WhitenedTarget(target, torch.zeros(1), torch.eye(1)),
        ...     mixture=Mixture(halves.log(), locs, eye),
        ...     agreement=Agreement(torch.eye(2), torch.arange(2), 0.1, none, none, missed=0.2),
        ...     covered=True,
        ...     settled=False,
        ...     evaluations=100,
        ... )
        >>> found.component_of(found.x), round(found.unseen, 4)
        (tensor([0, 1]), 0.3)
        >>> found.draw(4).flatten().tolist()  # as many of each as its weight says
        [-4.0, -4.0, -4.0, 4.0]
    """

    x: Tensor
    second: Tensor
    weights: Tensor
    coordinates: WhitenedTarget
    mixture: Mixture
    agreement: Agreement
    covered: bool
    settled: bool
    evaluations: int
    alone: PathModes | None = None
    surveyed: int = 0
    interrupted: bool = False

    def component_of(self, x: Tensor) -> Tensor:
        """The component of the mixture that each of the points ``(N, d)`` belongs to, ``(N,)``."""
        return self.mixture.joint_log_prob(self.coordinates.to_u(x)).argmax(-1)

    @property
    def are_annealed(self) -> bool:
        """Whether the particles are annealed; else they are draws of the Gaussians of paths."""
        return not isnan(self.agreement.unseen)

    def draw(self, num: int) -> Tensor:
        """So many of the particles, by systematic resampling with their weights, ``(num, d)``."""
        return self.x[systematic(self.weights.log()[None], num)[0]]

    @property
    def num_modes(self) -> int:
        """The number of modes, with those that paths alone have found."""
        used = self.agreement.counts.sum(0) > 0
        if self.alone is not None:
            used[self.component_of(self.alone.loc)] = True
        return len(self.agreement.modes[used].unique())

    @property
    def unseen(self) -> float:
        """Share of the mass that one search alone, or one path alone, has found."""
        return self.agreement.unseen + self.agreement.missed
