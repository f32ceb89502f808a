"""IMH: independent Metropolis–Hastings with a trained flow as the proposal."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..target.site import Values
from ..transitions import independence
from ..transitions.metropolis import MetropolisInfo
from ..validation import check_count, check_kind
from .base import FlowKernel, Guide
from .inversion import InversionOptions, inverted, leads_back

__all__ = ["IMH", "LookaheadState"]


class LookaheadState(NamedTuple):
    """C chains of :class:`IMH`, with the proposals of the S steps that come next.

    A step takes the last of them. Their number is a shape, so that the host knows it.

    Attributes:
        x, log_p, log_q: The chains, see :class:`~pyro_flowsamp.transitions.independence.IMHState`.
        next_x: Proposals, ``(C, S, d)``.
        next_log_p, next_log_q: Their log densities, ``(C, S)``, float64.
        next_log_u: Logs of the uniform variates that decide, ``(C, S)``.

    Example:
        >>> zero = torch.zeros(2)
        >>> state = LookaheadState.at(independence.init(zero[:, None], zero, zero))
        >>> state.steps_ahead
        0
        >>> six = torch.zeros(6)
        >>> proposals = independence.init(torch.arange(6.0)[:, None], six, six)
        >>> state = state.ahead_of(proposals, six)
        >>> _, proposal, _, rest = state.next()
        >>> proposal.x[:, 0], rest[0].shape
        (tensor([4., 5.]), torch.Size([2, 2, 1]))
    """

    x: Tensor
    log_p: Tensor
    log_q: Tensor
    next_x: Tensor
    next_log_p: Tensor
    next_log_q: Tensor
    next_log_u: Tensor

    @classmethod
    def at(cls, chains: independence.IMHState) -> LookaheadState:
        """Chains without proposals."""
        none = chains.log_p.new_empty(len(chains.x), 0)
        return cls(*chains, chains.x.new_empty(len(chains.x), 0, chains.x.shape[-1]), *3 * (none,))

    @property
    def steps_ahead(self) -> int:
        """S, the number of steps for which there are proposals."""
        return self.next_log_u.shape[1]

    def ahead_of(self, proposals: independence.IMHState, log_u: Tensor) -> LookaheadState:
        """These chains with other proposals, ``(S C, ...)``, those of a step side by side."""
        blocks = (t.unflatten(0, (-1, len(self.x))).transpose(0, 1) for t in (*proposals, log_u))
        return LookaheadState(*self[:3], *blocks)

    def next(self) -> tuple[independence.IMHState, independence.IMHState, Tensor, list[Tensor]]:
        """The chains, the proposals of the next step, their variates, and what is left then."""
        *proposal, log_u = (block[:, -1] for block in self[3:])
        rest = [block[:, :-1] for block in self[3:]]
        return independence.IMHState(*self[:3]), independence.IMHState(*proposal), log_u, rest


class IMH(FlowKernel):
    r"""Independent Metropolis–Hastings: exact draws from a flow's proposals.

    Every step proposes :math:`x' \sim q` and accepts it with probability
    :math:`\min(1, e^{w(x') - w(x)})`, :math:`w = \log\tilde p - \log q`; the derivation is in
    :mod:`pyro_flowsamp.transitions.independence`. Draws by a good flow are nearly independent. For
    log-normal weights the acceptance rate is :math:`\operatorname{erfc}(\sqrt{\mathrm{KL}/2})`.
    Where it is below about 10 %, or where the Pareto k exceeds 0.7, use
    :class:`~pyro_flowsamp.LatentMALA`.

    Proposals are drawn and scored in large batches ahead of the steps that use them. Those at which
    the flow cannot be inverted are refused, which is exact
    (:mod:`pyro_flowsamp.kernels.inversion`). A chain that starts at such a point never moves; runs
    warn of it.

    Arguments:
        model, potential_fn, guide: See :class:`~pyro_flowsamp.FlowKernel`.
        lookahead: Proposals per batch, for all chains together.
        inversion: Tolerances of this rule,
            :class:`~pyro_flowsamp.kernels.inversion.InversionOptions`. The rule takes an inverse
            pass of the flow for each proposal, which costs 40 % (a Gaussian) to 110 % (a spline
            flow) of the work of a proposal for a model of little work, such as eight schools. None
            leaves it out, for flows that are known to be one to one in floating point.

    Raises:
        TypeError: ``inversion`` is no :class:`~pyro_flowsamp.kernels.inversion.InversionOptions`.
        ValueError: ``lookahead`` is below 1, or model, potential_fn and guide do not go together.

    References:
        Tierney, *Markov Chains for Exploring Posterior Distributions*, 1994,
        https://doi.org/10.1214/aos/1176325750

    Example::

        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_flowsamp import IMH, AutoFlow, FitOptions, VectorizedMCMC
        >>> _ = pyro.set_rng_seed(0)
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> guide = AutoFlow(model, flow="gaussian", options=FitOptions(progress=False))
        >>> run = VectorizedMCMC(IMH(model, guide=guide), 50, 10, 200, disable_progbar=True)
        >>> run.run(torch.tensor(1.0))  # the posterior is Normal(0.5, 0.71)
        >>> abs(float(run.get_samples()["mean"].mean()) - 0.5) < 0.05
        True
    """

    def __init__(
        self,
        model: Callable | None = None,
        potential_fn: Callable[[Values], Tensor] | None = None,
        guide: Guide | None = None,
        *,
        lookahead: int = 4096,
        inversion: InversionOptions | None = InversionOptions(),
    ) -> None:
        self.lookahead = check_count("lookahead", lookahead)
        check_kind("inversion", inversion, InversionOptions)
        self.inversion = inversion
        super().__init__(model, potential_fn, guide)

    stays_where_not_inverted = True

    def init(self, x: Tensor) -> LookaheadState:
        """Returns the state at f(f⁻¹(x)), which in floating point is next to ``x``.

        Its log q is known by the pass that sampling uses, so that all densities in an acceptance
        ratio come from one formula. A chain at which the flow cannot be inverted is at ``x``
        itself, and stays there.
        """
        return LookaheadState.at(self._at(x))

    def _at(self, x: Tensor) -> independence.IMHState:
        if self.inversion is None:
            with torch.no_grad():
                x, ladj = self.proposal.push(z := self.proposal.pull(x))
                log_q = self.proposal.base_log_prob(z) - ladj
                return independence.init(x, self.log_prob(x), log_q)
        _, image, log_q, known = inverted(self.proposal, x, self.inversion)
        with torch.no_grad():
            log_p, log_p_x = self.log_prob(image), self.log_prob(x)
            known = known & self.inversion.same(log_p_x, log_p, x.shape[-1])
            at = torch.where(known[:, None], image, x)
            log_q = log_q.where(known, -torch.inf)
            return independence.init(at, log_p.where(known, log_p_x), log_q)

    def usable(self, x: Tensor) -> Tensor:
        finite = super().usable(x)
        if self.inversion is None:
            return finite
        return finite & inverted(self.proposal, x, self.inversion)[-1]

    @torch.no_grad()
    def step(self, state: LookaheadState) -> tuple[LookaheadState, MetropolisInfo]:
        if not state.steps_ahead:
            state = state.ahead_of(*self._look_ahead(len(state.x)))
        chains, proposal, log_u, rest = state.next()
        moved, info = self.part("decision", independence.step, chains, proposal, log_u)
        return LookaheadState(*moved, *rest), info

    def _look_ahead(self, num_chains: int) -> tuple[independence.IMHState, Tensor]:
        """Proposals of several steps, and logs of uniform variates, ``(S C, ...)`` each."""
        steps = max(1, self.lookahead // num_chains)
        z = self.proposal.sample_latent(steps * num_chains)
        proposals = self.part("proposals", self._score, z)
        return proposals, torch.rand_like(proposals.log_p).log()

    def _score(self, z: Tensor) -> independence.IMHState:
        """The proposals of latent points ``(N, d)``, with their densities."""
        x, ladj = self.proposal.push(z)
        log_q = self.proposal.base_log_prob(z) - ladj
        log_p = self.log_prob(x)
        if self.inversion is not None:
            known = leads_back(self.proposal, z, x, log_q, self.inversion)
            log_p = log_p.where(known, -torch.inf)
        return independence.init(x, log_p, log_q)
