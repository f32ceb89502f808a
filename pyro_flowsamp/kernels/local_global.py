r"""LocalGlobalHMC: local moves in latent space and proposals by the flow, in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..target.site import Values
from ..transitions import hamiltonian, independence
from ..transitions.metropolis import metropolis, select
from ..validation import check_count, check_kind, check_options
from .base import Guide
from .inversion import InversionOptions, inverted, leads_back
from .latent import LatentHMC

__all__ = ["LocalGlobalHMC", "LocalStepsOptions"]


@dataclass(frozen=True)
class LocalStepsOptions:
    """Options of the search for the number of local moves in a cycle.

    Attributes:
        first: Local moves of a cycle in warm-up.
        most: Largest number of local moves.
        memory: Factor by which the weight of a warm-up step falls with each later step.

    Example::

        >>> from pyro_flowsamp import Target
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> LocalGlobalHMC(target, search=LocalStepsOptions(first=2, most=16)).search.first
        2
    """

    first: int = 4
    most: int = 32
    memory: float = 0.98

    def __post_init__(self) -> None:
        check_options(self)
        if min(self.first, self.most) < 1:
            raise ValueError(f"need one local move at least, got {self.first} and {self.most}")
        if not 0 < self.memory <= 1:
            raise ValueError(f"LocalStepsOptions.memory must lie in (0, 1], got {self.memory}")


class LocalGlobalInfo(NamedTuple):
    """The report of one cycle of C chains; its acceptance is that of the global move.

    Attributes:
        accepted, accept_prob, diverging: ``(C,)``; diverging if a local move was.
        local: The local moves' reports, ``(K C,)`` each.
        x: Positions after the local moves, ``(C, d)``.
        squared: Mean squared displacement of a local move, ``(C, d)``.

    Example:
        >>> from pyro_flowsamp import AutoFlow, Target
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> guide = AutoFlow(target, flow="gaussian")
        >>> _ = guide.target_for()
        >>> guide.trained = True  # a new Gaussian flow is standard normal, as the target is
        >>> kernel = LocalGlobalHMC(guide=guide, local_steps=3)
        >>> kernel.bind(), kernel.prepare(0), kernel.reset()
        (None, None, None)
        >>> state, info = kernel.step(kernel.init(torch.zeros(4, 1)))
        >>> round(float(info.accept_prob.min()), 4), info.local.accepted.shape
        (1.0, torch.Size([12]))
    """

    accepted: Tensor
    accept_prob: Tensor
    diverging: Tensor
    local: hamiltonian.HMCInfo
    x: Tensor
    squared: Tensor


class LocalGlobalHMC(LatentHMC):
    r"""K moves of :class:`LatentHMC`, then one global move to one of N draws of the flow.

    Each move leaves the target invariant, and so does the cycle of both. Local moves explore a
    mode; global moves go from mode to mode and keep the weights between them right (Gabrié et al.,
    2022; Samsonov et al., 2022). Let :math:`w_0` be :math:`\log\tilde p - \log q_X` of the state
    after the local moves, and :math:`w_1, \dots, w_N` those of N draws of the flow. A draw j is
    chosen with probability proportional to :math:`e^{w_j}` and accepted with probability
    :math:`\min(1, W / (W - e^{w_j} + e^{w_0}))`, :math:`W = \sum_{j \ge 1} e^{w_j}`. For N = 1 this
    is independent Metropolis–Hastings; see
    :func:`pyro_flowsamp.transitions.independence.choose`.

    **The number K of local moves.** A local move, of cost L gradients, leaves a coordinate with the
    lag-one correlation :math:`\rho = 1 - \mathbb E[\Delta x^2] / 2 \operatorname{Var} x`, with the
    variance within a context where there are several; let :math:`\rho` be the largest of the
    coordinates. A global move, of cost N + 1, makes the state independent with its acceptance
    probability :math:`\alpha`. The correlation between cycles is :math:`r = (1 - \alpha)\rho^K`. K
    minimises the evaluations for an effective draw, :math:`(K L + N + 1)\,\tfrac{1 + r}{1 - r}`.
    All three are averaged over warm-up, with more weight on its last steps; then K is fixed.
    :attr:`local_steps` is the K in use.

    **Where the flow cannot be inverted.** Both kinds of moves are refused if they end at a point at
    which the flow cannot be inverted, which is exact (:mod:`pyro_flowsamp.kernels.inversion`). So
    that chains get there all the same, and away, every few cycles each makes a move in x too,
    without the flow: a random walk whose steps are differences of two draws of the flow.

    A draw is the end of a whole cycle. ``accepted`` and ``acceptance_rate`` are those of the global
    move.

    Arguments:
        model, potential_fn, guide: See :class:`~pyro_flowsamp.FlowKernel`.
        local_steps: K, or None to find it in warm-up.
        num_proposals: N, draws of the flow for each global move.
        search: Options of the search for K, :class:`LocalStepsOptions`.
        inversion: Where the flow cannot be inverted, and how often chains move in x,
            :class:`~pyro_flowsamp.kernels.inversion.InversionOptions`. This costs 5 to 10 % of the
            work of a cycle for a model of little work. None leaves it out, for flows that are known
            to be one to one in floating point.
        options: Other arguments of :class:`LatentHMC`; ``num_steps=1`` makes the local moves
            Langevin.

    Raises:
        TypeError: ``search`` is no :class:`LocalStepsOptions`, or ``inversion`` no
            :class:`~pyro_flowsamp.kernels.inversion.InversionOptions`.
        ValueError: An argument is out of range.
        RuntimeError: See :class:`LatentHMC`.

    References:
        Gabrié, Rotskoff & Vanden-Eijnden, *Adaptive Monte Carlo augmented with normalizing flows*,
        2022, https://doi.org/10.1073/pnas.2109420119

        Samsonov et al., *Local-Global MCMC kernels: the best of both worlds*, 2022,
        https://arxiv.org/abs/2111.02702

    Example::

        >>> import pyro
        >>> from pyro_flowsamp import AutoFlow, FitOptions, LocalGlobalHMC, Target, VectorizedMCMC
        >>> _ = pyro.set_rng_seed(0)
        >>> target = Target.from_energy(lambda x: 0.5 * (x - 3).square().sum(-1), 2)
        >>> guide = AutoFlow(target, flow="gaussian", options=FitOptions(progress=False))
        >>> run = VectorizedMCMC(LocalGlobalHMC(guide=guide), 20, 20, 100, disable_progbar=True)
        >>> run.run()
        >>> abs(float(run.get_samples()["x"].mean()) - 3) < 0.05
        True
    """

    def __init__(
        self,
        model: Callable | None = None,
        potential_fn: Callable[[Values], Tensor] | None = None,
        guide: Guide | None = None,
        *,
        local_steps: int | None = None,
        num_proposals: int = 8,
        search: LocalStepsOptions = LocalStepsOptions(),
        inversion: InversionOptions | None = InversionOptions(),
        **options: Any,
    ) -> None:
        for name, value in (("local_steps", local_steps), ("num_proposals", num_proposals)):
            if value is not None:
                check_count(name, value)
        check_kind("search", search, LocalStepsOptions)
        self.initial_local_steps, self.num_proposals = local_steps, num_proposals
        check_kind("inversion", inversion, InversionOptions)
        self.search, self.inversion = search, inversion
        super().__init__(model, potential_fn, guide, **options)

    stays_where_not_inverted = True

    def reset(self) -> None:
        super().reset()
        self._cycles = 0
        self.local_steps = self.initial_local_steps or self.search.first
        self._sums = torch.zeros_like(self.step_size, dtype=torch.double)
        self._weight = 0.0

    def step(self, state: hamiltonian.HMCState) -> tuple[hamiltonian.HMCState, LocalGlobalInfo]:
        self._cycles += 1
        if self.inversion is not None and self._cycles % self.inversion.every == 0:
            state = self._move_in_x(state, self.inversion)
        infos, squared = [], torch.zeros_like(state.x)
        outside = torch.isinf(state.log_q)  # these stay, and their trajectories mean nothing
        for _ in range(self.local_steps):
            before = state.x
            state, info = super().step(state)
            infos.append(info._replace(diverging=info.diverging & ~outside))
            squared = squared + (state.x - before).square()
        local = hamiltonian.HMCInfo(*(torch.cat(part) for part in zip(*infos)))
        diverging = local.diverging.reshape(self.local_steps, -1).any(0)
        moved, squared = state.x, squared / self.local_steps
        state, accepted, accept_prob = self._global(state)
        return state, LocalGlobalInfo(accepted, accept_prob, diverging, local, moved, squared)

    # ---- where the flow cannot be inverted ------------------------------------------------------

    def init(self, x: Tensor) -> hamiltonian.HMCState:
        if self.inversion is None:
            return super().init(x)
        self.lengths.begin(len(x), self._num_contexts, self.proposal.angles)
        return self._at(x, self.log_prob(x).detach(), self.inversion)

    def _at(self, x: Tensor, log_p: Tensor, inversion: InversionOptions) -> hamiltonian.HMCState:
        """The state of chains at x, whose log weight is infinite where the flow is not inverted."""
        z, _, _, known = inverted(self.proposal, x, inversion)
        finite = torch.where(torch.isfinite(z), z, 0.0)
        state = self.density(finite)
        log_p = log_p.double()
        known = known & inversion.same(log_p, state.log_p, x.shape[-1])
        infinite = torch.full_like(log_p, torch.inf)
        grad = torch.zeros_like(state.grad)
        outside = hamiltonian.HMCState(finite, infinite, grad, x, log_p, -infinite)
        return select(known, state, outside)

    def allowed(self, end: hamiltonian.HMCState) -> Tensor:
        """Whether ends of trajectories may be taken: where the flow is inverted, ``(C,)``."""
        if self.inversion is None:
            return torch.ones_like(end.log_q, dtype=torch.bool)
        return leads_back(self.proposal, end.z, end.x, end.log_q, self.inversion)

    def _move_in_x(
        self, state: hamiltonian.HMCState, inversion: InversionOptions
    ) -> hamiltonian.HMCState:
        """Makes one step of a random walk in x, by differences of two draws of the flow."""

        def propose(x: Tensor, one: Tensor, other: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                jump = self.proposal.push(one)[0] - self.proposal.push(other)[0]
                x = self.target.wrap(x + length * jump)
                return x, self.log_prob(x).double()

        one, other = (self.proposal.sample_latent(len(state.x)) for _ in range(2))
        length = inversion.shortest ** torch.rand_like(state.x[:, :1])
        x, log_p = self.part("proposal in x", propose, state.x, one, other, length)
        accepted, _ = metropolis(log_p - state.log_p, torch.rand_like(state.log_p).log())
        landed = self.part("landing in x", partial(self._at, inversion=inversion), x, log_p)
        return select(accepted, landed, state)

    # ---- global moves ---------------------------------------------------------------------------

    def _global(self, state: hamiltonian.HMCState) -> tuple[hamiltonian.HMCState, Tensor, Tensor]:
        """Makes a global move and evaluates the state at its end."""
        shape = len(state.z), self.num_proposals
        z = self.proposal.sample_latent(shape[0] * shape[1])
        log_p, log_q = self.part("densities", self._log_densities, z)
        log_w = log_p - log_q
        uniform = torch.rand(shape, dtype=torch.double, device=z.device)
        log_u = torch.rand_like(state.log_pi).log()
        gumbel = -(-uniform.log()).log()
        weights = state.log_p - state.log_q, log_w.view(shape[::-1]).mT
        index, accepted, accept_prob = self.part(
            "choice", independence.choose, *weights, gumbel, log_u
        )
        # The chain is the last index of z: at several contexts each keeps its own.
        chain = torch.arange(shape[0], device=z.device)
        landed, known = self.part("landing", self._land, z[index * shape[0] + chain])
        accepted, accept_prob = accepted & known, torch.where(known, accept_prob, 0.0)
        return select(accepted, landed, state), accepted, accept_prob

    def _log_densities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log densities of target and flow at draws of it, by their latent points ``(N, d)``."""
        with torch.no_grad():
            x, ladj = self.proposal.push(z)
            log_q = self.proposal.base_log_prob(z) - ladj
            return self._log_p(z, x, ladj).double(), log_q.double()

    def _land(self, z: Tensor) -> tuple[hamiltonian.HMCState, Tensor]:
        """The state at latent points, and whether the flow is inverted there."""
        landed = self.density(z)
        return landed, self.allowed(landed)

    # ---- the number of local moves --------------------------------------------------------------

    def adapt(self, info: LocalGlobalInfo) -> None:
        super().adapt(info.local)
        shape = -1, self._num_contexts
        x, squared = (part.double().unflatten(0, shape) for part in (info.x, info.squared))
        alpha = info.accept_prob.mean().expand(x.shape[1:])
        moments = torch.stack([x.mean(0), x.square().mean(0), squared.mean(0), alpha])
        self._sums = self.search.memory * self._sums + moments
        self._weight = self.search.memory * self._weight + 1

    def freeze(self) -> None:
        super().freeze()
        if self._weight and self.initial_local_steps is None:
            self.local_steps = int(self._best_local_steps())

    def _best_local_steps(self) -> Tensor:
        mean, second, squared, alpha = self._sums / self._weight  # (contexts, d) each
        variance = (second - mean.square()).mean(0)
        rho = 1 - (squared.mean(0) / (2 * variance)).nan_to_num().clamp(0, 1).min()
        k = torch.arange(1, self.search.most + 1, device=rho.device)
        r = ((1 - alpha[0, 0]) * rho**k).clamp(max=1 - 1e-9)
        cost = (k * self.mean_leapfrog_steps + self.num_proposals + 1) * (1 + r) / (1 - r)
        return k[cost.argmin()]

    @property
    def mean_gradients(self) -> float:
        """The mean number of gradients of a cycle without a move in x, which takes one more."""
        return self.local_steps * self.mean_leapfrog_steps + 1

    def diagnostics(self) -> dict[str, Any]:
        return {**super().diagnostics(), "local steps": self.local_steps}
