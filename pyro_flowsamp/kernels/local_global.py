r"""LocalGlobalHMC: local moves in latent space, and global ones by the flow, in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..target.site import Values
from ..transitions import hamiltonian, independence
from ..transitions.metropolis import select
from .base import Guide
from .latent import LatentHMC

__all__ = ["LocalGlobalHMC"]


MAX_LOCAL_STEPS = 32
START_LOCAL_STEPS = 4  #: in warm-up
MEMORY = 0.98  #: what a warm-up step's earnings weigh at the next


class LocalGlobalInfo(NamedTuple):
    """What happened in one cycle of C chains; acceptance is that of the global move.

    Attributes:
        accepted, accept_prob, diverging: ``(C,)``; diverging if a local move was.
        local: The local moves' reports, ``(K C,)`` each.
        x: Where the local moves led, ``(C, d)``.
        squared: Mean squared displacement of one of them, ``(C, d)``.
    """

    accepted: Tensor
    accept_prob: Tensor
    diverging: Tensor
    local: hamiltonian.HMCInfo
    x: Tensor
    squared: Tensor


class LocalGlobalHMC(LatentHMC):
    r"""K moves of :class:`LatentHMC`, then one jump to the best of N draws of the flow.

    Each move is exact for the target, hence their cycle is. Local moves explore a mode, jumps
    change modes and keep the weights between them right (Gabrié et al., 2022,
    https://doi.org/10.1073/pnas.2109420119; Samsonov et al., 2022,
    https://arxiv.org/abs/2111.02702). With :math:`w = \log\tilde p - \log q_X` of the state as the
    local moves have left it and of N draws of the flow, a draw j is taken in proportion to
    :math:`e^{w_j}` and accepted with :math:`\min(1, W / (W - e^{w_j} + e^{w_0}))`,
    :math:`W = \sum_{j \ge 1} e^{w_j}`: i-SIR, metropolised; for N = 1 independent
    Metropolis–Hastings. See :func:`pyro_flowsamp.transitions.independence.choose`.

    **K by itself.** A local move, of cost L gradients, leaves a coordinate the lag-one correlation
    :math:`\rho = 1 - \mathbb E[\Delta x^2] / 2 \operatorname{Var} x`, the variance within a context
    where there are several; let :math:`\rho` be the largest. A jump, of cost N + 1, forgets
    everything with its acceptance :math:`\alpha`. From cycle to cycle the correlation is
    :math:`r = (1 - \alpha)\rho^K`, and K is what makes the evaluations for an effective draw,
    :math:`(K L + N + 1)\,\tfrac{1 + r}{1 - r}`, fewest. All three are averaged over warm-up, lately
    more; then K is fixed. :attr:`local_steps` is the K in use.

    A draw is a whole cycle. ``accepted`` and ``acceptance_rate`` are those of the jump.

    Arguments:
        model, potential_fn, guide: See :class:`~pyro_flowsamp.kernels.base.FlowKernel`.
        local_steps: K, or None to find it in warm-up, between 1 and 32.
        num_proposals: N, draws of the flow for each jump.
        options: As for :class:`LatentHMC`; ``num_steps=1`` makes the local moves Langevin.

    Raises:
        ValueError: An argument is out of range.

    Example::

        mcmc = VectorizedMCMC(LocalGlobalHMC(model), num_samples=100, warmup_steps=200)
        mcmc.run(data)
    """

    def __init__(
        self,
        model: Callable | None = None,
        potential_fn: Callable[[Values], Tensor] | None = None,
        guide: Guide | None = None,
        *,
        local_steps: int | None = None,
        num_proposals: int = 8,
        **options: Any,
    ) -> None:
        for name, value in (("local_steps", local_steps), ("num_proposals", num_proposals)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.initial_local_steps, self.num_proposals = local_steps, num_proposals
        super().__init__(model, potential_fn, guide, **options)

    def reset(self) -> None:
        super().reset()
        self.local_steps = self.initial_local_steps or START_LOCAL_STEPS
        self._earned: Tensor | float = 0.0
        self._weight = 0.0

    def step(self, state: hamiltonian.HMCState) -> tuple[hamiltonian.HMCState, LocalGlobalInfo]:
        infos, squared = [], torch.zeros_like(state.x)
        for _ in range(self.local_steps):
            before = state.x
            state, info = super().step(state)
            infos.append(info)
            squared = squared + (state.x - before).square()
        local = hamiltonian.HMCInfo(*(torch.cat(part) for part in zip(*infos)))
        diverging = local.diverging.reshape(self.local_steps, -1).any(0)
        moved, squared = state.x, squared / self.local_steps
        state, accepted, accept_prob = self._global(state)
        return state, LocalGlobalInfo(accepted, accept_prob, diverging, local, moved, squared)

    def _global(self, state: hamiltonian.HMCState) -> tuple[hamiltonian.HMCState, Tensor, Tensor]:
        """A jump, and everything a state carries evaluated where it leads."""
        shape = len(state.z), self.num_proposals
        with torch.no_grad():
            z = self.proposal.sample_latent(shape[0] * shape[1])
            x, ladj = self.proposal.push(z)
            log_q = self.proposal.base_log_prob(z) - ladj
            log_w = self._log_p(z, x, ladj).double() - log_q.double()
        uniform = torch.rand(shape, dtype=torch.double, device=z.device)
        log_u = torch.rand_like(state.log_pi).log()
        index, accepted, accept_prob = independence.choose(
            state.log_p - state.log_q, log_w.view(shape[::-1]).mT, -(-uniform.log()).log(), log_u
        )
        chain = torch.arange(shape[0], device=z.device)  # fastest: at several contexts its own
        landed = self.density(z.index_select(0, index * shape[0] + chain))
        return select(accepted, landed, state), accepted, accept_prob

    # ---- K --------------------------------------------------------------------------------------

    def adapt(self, info: LocalGlobalInfo) -> None:
        super().adapt(info.local)
        contexts = 1 if self.target.contexts is None else len(self.target.contexts)
        x, squared = (part.double().unflatten(0, (-1, contexts)) for part in (info.x, info.squared))
        alpha = info.accept_prob.mean().expand(x.shape[1:])
        earned = torch.stack([x.mean(0), x.square().mean(0), squared.mean(0), alpha])
        self._earned = MEMORY * self._earned + earned
        self._weight = MEMORY * self._weight + 1

    def freeze(self) -> None:
        super().freeze()
        if self._weight and self.initial_local_steps is None:
            self.local_steps = int(self._best_local_steps())

    def _best_local_steps(self) -> Tensor:
        assert isinstance(self._earned, Tensor)
        mean, second, squared, alpha = self._earned / self._weight  # (contexts, d) each
        variance = (second - mean.square()).mean(0)
        rho = 1 - (squared.mean(0) / (2 * variance)).nan_to_num().clamp(0, 1).min()
        k = torch.arange(1, MAX_LOCAL_STEPS + 1, device=rho.device)
        r = ((1 - alpha[0, 0]) * rho**k).clamp(max=1 - 1e-9)
        cost = (k * self.num_steps + self.num_proposals + 1) * (1 + r) / (1 - r)
        return k[cost.argmin()]

    def diagnostics(self) -> dict[str, Any]:
        return {**super().diagnostics(), "local steps": self.local_steps}
