"""IMH: independent Metropolis–Hastings with a trained flow as the proposal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..target.site import Values
from ..transitions import independence
from ..transitions.metropolis import MetropolisInfo
from ..validation import check_count, check_kind
from .base import FlowKernel, Guide
from .inversion import InversionOptions, inverted, leads_back

__all__ = ["IMH"]


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

    def init(self, x: Tensor) -> independence.IMHState:
        """Returns the state at f(f⁻¹(x)), which in floating point is next to ``x``.

        Its log q is known by the pass that sampling uses, so that all densities in an acceptance
        ratio come from one formula. A chain at which the flow cannot be inverted is at ``x``
        itself, and stays there.
        """
        # Proposals that were drawn ahead may have been for another number of chains.
        self._ahead: list[tuple[independence.IMHState, Tensor]] = []
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
    def step(self, state: independence.IMHState) -> tuple[independence.IMHState, MetropolisInfo]:
        if not self._ahead:
            self._ahead = self._look_ahead(len(state.x))
        proposal, log_u = self._ahead.pop()
        return independence.step(state, proposal, log_u)

    def _look_ahead(self, num_chains: int) -> list[tuple[independence.IMHState, Tensor]]:
        steps = max(1, self.lookahead // num_chains)
        z = self.proposal.sample_latent(steps * num_chains)
        x, ladj = self.proposal.push(z)
        log_q = self.proposal.base_log_prob(z) - ladj
        log_p = self.log_prob(x)
        if self.inversion is not None:
            known = leads_back(self.proposal, z, x, log_q, self.inversion)
            log_p = log_p.where(known, -torch.inf)
        proposals = independence.init(x, log_p, log_q)
        log_u = torch.rand_like(proposals.log_p).log()
        blocks = [t.unflatten(0, (steps, num_chains)).unbind(0) for t in (*proposals, log_u)]
        return [(independence.IMHState(x, p, q), u) for x, p, q, u in zip(*blocks)]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_ahead": []}

    def state_dict(self) -> dict[str, Any]:
        """The attributes, with the proposals that were drawn ahead as one block."""
        state = super().state_dict()
        if ahead := state.get("_ahead"):
            proposals, log_u = zip(*ahead)
            state["_ahead"] = [torch.stack(field) for field in (*zip(*proposals), log_u)]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the state of :meth:`state_dict`."""
        super().load_state_dict(state)
        if ahead := state.get("_ahead"):
            fields = zip(*(block.unbind() for block in ahead))
            self._ahead = [(independence.IMHState(x, p, q), u) for x, p, q, u in fields]
