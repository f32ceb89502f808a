r"""The rule for proposals at which a flow cannot be inverted.

A kernel that proposes :math:`x' = f(z')`, :math:`z' \sim q_Z`, takes its density to be
:math:`q(x') = q_Z(z') / |\det J(z')|`. That is so only where f is one to one. In floating point, or
after a bad training, it may not be: several z lead to the same x, and the density of x is more than
that of the z that was drawn. Then averages are wrong, or a chain has a weight that is far too large
and never leaves.

*The rule.* Let A be the set of all z at which :math:`f^{-1}(f(z))` is z, and :math:`\log q(f(z))`
by the inverse pass is that of the pass that made x, to tolerances. A proposal :math:`z'` outside A
is refused, and so is every proposal to a chain at a z outside A. Whether z belongs to A depends on
z alone, not on where a chain is or comes from.

*Why it is exact.* On A the flow is one to one, to the tolerance: two points with the same image
lie next to the same :math:`f^{-1}(f(z))`. So a draw of :math:`q_Z` that falls into A is a point x
of density :math:`q(x)\,1_A(x)`. With :math:`1_A(x)\,1_A(x')` as a factor, the rate from x to x' of
independent Metropolis–Hastings is

.. math:: \tilde p(x)\,q(x')\,1_A(x)\,1_A(x') \min\Bigl(1, \frac{\tilde p(x')\,q(x)}
          {\tilde p(x)\,q(x')}\Bigr) = 1_A(x)\,1_A(x') \min\bigl(\tilde p(x)\,q(x'),
          \tilde p(x')\,q(x)\bigr) ,

symmetric in x and x': detailed balance with respect to p on the whole space, with nothing to
normalise, since a refused proposal leaves the chain where it is. The same factor leaves every
reversible move reversible: a trajectory in z, and one of N proposals
(:mod:`pyro_flowsamp.transitions.independence`), of which only the one chosen need be looked at. A
rule that asked only where the weight is large would not do: whether it is asked would depend on the
pair of states in another way on the way back.

*Chains outside of A* do not move by the flow. :class:`~pyro_flowsamp.LocalGlobalHMC` has moves in x
too, without the flow, by which they go on: :math:`x' = x + \gamma (a - b)` with two draws a and b
of the flow and a random length :math:`\gamma`. Since :math:`a - b` and :math:`b - a` are equally
probable, acceptance with probability :math:`\min(1, \tilde p(x') / \tilde p(x))` leaves p
invariant. Every chain makes these moves, whether it is in A or not: moves by chains outside alone
would lead into A and not back. :class:`~pyro_flowsamp.IMH` has none: its chain stays, and is
reported as one that never moves. In the state of such a chain the log density of the flow is
:math:`-\infty`, so that its log weight is :math:`+\infty` and no proposal is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..flows.proposal import Proposal
from ..flows.transforms import wrap
from ..validation import check_at_least_one

__all__ = ["InversionOptions", "inverted", "leads_back"]


@dataclass(frozen=True)
class InversionOptions:
    """Tolerances of the rule for proposals at which a flow cannot be inverted.

    Attributes:
        max_distance: Largest distance of a coordinate of z from that of the point that f(z) leads
            back to. Latent coordinates have a standard deviation of about 1.
        max_nats, max_nats_per_dimension: Largest difference of the log densities of the flow by
            both passes: this, and so much for each dimension.
        relative: Part of the absolute value of a coordinate of z, or of a log density, that is
            allowed beside. Far out in a tail rounding errors grow with them.
        every: Cycles of :class:`~pyro_flowsamp.LocalGlobalHMC` from one move in x to the next.
        shortest: Least length of such a move; the log of the length is uniform up to that of one.

    Raises:
        ValueError: An option is out of range.

    Example:
        >>> InversionOptions(max_nats=0.5).nats(dim=10)
        0.6
    """

    max_distance: float = 0.02
    max_nats: float = 0.1
    max_nats_per_dimension: float = 0.01
    relative: float = 1e-3
    every: int = 8
    shortest: float = 1e-3

    def __post_init__(self) -> None:
        check_at_least_one(self)

    def nats(self, dim: int) -> float:
        """The largest difference of log densities in so many dimensions."""
        return self.max_nats + self.max_nats_per_dimension * dim

    def same(self, one: Tensor, other: Tensor, dim: int) -> Tensor:
        """Whether log densities ``(N,)`` are the same but for rounding; NaN is not."""
        one, other = one.double(), other.double()
        return (one - other).abs() <= self.nats(dim) + self.relative * one.abs()


@torch.no_grad()
def leads_back(
    proposal: Proposal, z: Tensor, x: Tensor, log_q: Tensor, options: InversionOptions
) -> Tensor:
    """Whether each z belongs to the set on which the flow is inverted, ``(N,)``.

    It takes one inverse pass of the flow.

    Arguments:
        proposal: The flow.
        z: Latent points ``(N, d)``.
        x: Their images f(z).
        log_q: Log densities of the flow there by the pass that made x, ``(N,)``.
        options: Tolerances.

    Example:
        >>> from pyro_flowsamp.flows import gaussian
        >>> proposal = Proposal(gaussian(2))
        >>> z = torch.randn(5, 2)
        >>> x, ladj = proposal.push(z)
        >>> log_q = proposal.base_log_prob(z) - ladj
        >>> leads_back(proposal, z, x, log_q, InversionOptions()).all()
        tensor(True)
        >>> leads_back(proposal, z, x + 1.0, log_q, InversionOptions()).any()
        tensor(False)
    """
    back, log_q_back = proposal.pull_and_log_prob(x)
    off, allowed = back - z, options.max_distance + options.relative * z.abs()
    if proposal.angles is not None:
        off = torch.where(proposal.angles, wrap(off), off)
    # Comparisons with NaN are false: what is not a number is refused.
    near = (off.abs() <= allowed).all(-1)
    return near & options.same(log_q, log_q_back, z.shape[-1])


def inverted(
    proposal: Proposal, x: Tensor, options: InversionOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latent points of given points, and whether the flow is inverted there.

    Arguments:
        proposal: The flow.
        x: Points ``(N, d)``.
        options: Tolerances.

    Returns:
        The latent points z ``(N, d)``, their images f(z) ``(N, d)``, the log density of the flow
        there ``(N,)``, and whether z belongs to the set and the flow has the same density at x as
        at f(z), ``(N,)``. Whether f(z) is x, the density of the target at both must tell: a flow
        whose inverse is cut off far out leads points there to the same z.

    Example:
        >>> from pyro_flowsamp.flows import gaussian
        >>> proposal, options = Proposal(gaussian(2)), InversionOptions()
        >>> z, x, log_q, usable = inverted(proposal, torch.ones(3, 2), options)
        >>> torch.allclose(x, torch.ones(3, 2)), usable.tolist()
        (True, [True, True, True])
    """
    with torch.no_grad():
        z, log_q_x = proposal.pull_and_log_prob(x)
        image, ladj = proposal.push(z)
        log_q = proposal.base_log_prob(z) - ladj
        known = leads_back(proposal, z, image, log_q, options)
        return z, image, log_q, known & options.same(log_q, log_q_x, x.shape[-1])
