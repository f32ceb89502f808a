"""LatentMALA: Langevin steps in the latent space of a flow."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

import torch
from pyro.ops.dual_averaging import DualAveraging
from torch import Tensor

from ..target import Values
from ..transitions import langevin
from .base import FlowKernel, Guide

__all__ = ["LatentMALA"]


class LatentMALA(FlowKernel):
    r"""Metropolis-adjusted Langevin on the pullback of the target through a flow.

    With :math:`x = f(z)`, the chain in :math:`z` has the target

    .. math:: \pi(z) = \tilde p(f(z))\, |\det f'(z)|,

    whose push-forward is :math:`p` exactly, whatever the flow; a good flow makes :math:`\pi` nearly
    standard normal. The metric is the identity. During warm-up the step size follows dual averaging
    towards ``target_accept_prob``, over all chains together; then it is fixed. The acceptance ratio
    is derived in :mod:`pyro_flowsamp.transitions.langevin`.

    Arguments:
        model, potential_fn, guide: See :class:`~pyro_flowsamp.kernels.base.FlowKernel`.
        step_size: At the start of warm-up; by default :math:`1.65\,d^{-1/6}`.
        target_accept_prob: What the step size is adapted to; 0.574 is optimal for MALA.

    Example::

        mcmc = MCMC(LatentMALA(model), num_samples=10_000, warmup_steps=300)
        mcmc.run(data)
    """

    def __init__(
        self,
        model: Callable | None = None,
        potential_fn: Callable[[Values], Tensor] | None = None,
        guide: Guide | None = None,
        *,
        step_size: float | None = None,
        target_accept_prob: float = 0.574,
    ) -> None:
        if not 0 < target_accept_prob < 1:
            raise ValueError(f"target_accept_prob must lie in (0, 1), got {target_accept_prob}")
        if step_size is not None and step_size <= 0:
            raise ValueError(f"step_size must be positive, got {step_size}")
        self.initial_step_size, self.target_accept_prob = step_size, target_accept_prob
        super().__init__(model, potential_fn, guide)

    def reset(self) -> None:
        step = self.initial_step_size or langevin.optimal_step_size(self.target.dim)
        self.step_size = torch.tensor(step, dtype=self.target.dtype, device=self.target.device)
        self._averaging = DualAveraging(prox_center=log(10 * step))
        self._adapted = False

    def density(self, z: Tensor) -> langevin.State:
        """Everything a state carries, by one pass through flow and target."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            x, ladj = self.proposal.push(z)
            log_p = self.log_prob(x)
            log_pi = log_p.double() + ladj.double()
            (grad,) = torch.autograd.grad(log_pi.sum(), z)
        z, x, log_p, log_pi = z.detach(), x.detach(), log_p.detach().double(), log_pi.detach()
        log_q = self.proposal.base_log_prob(z).double() - ladj.detach().double()
        log_pi = torch.where(torch.isfinite(log_q), log_pi, -torch.inf)  # f lives on its base
        grad = torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)
        return langevin.State(z, log_pi, grad, x, log_p, log_q)

    def init(self, x: Tensor) -> langevin.State:
        return langevin.init(self.proposal.pull(x), self.density)

    def step(self, state: langevin.State) -> tuple[langevin.State, langevin.Info]:
        noise = torch.randn_like(state.z)
        log_u = torch.rand_like(state.log_pi).log()
        return langevin.mala(state, self.density, self.step_size, noise, log_u)

    def adapt(self, info: Any) -> None:
        self._averaging.step(self.target_accept_prob - info.accept_prob.mean())
        self._adapted = True
        log_step, _ = self._averaging.get_state()
        self.step_size = log_step.exp().to(self.step_size)

    def freeze(self) -> None:
        if self._adapted:  # not where there is no warm-up
            _, log_step = self._averaging.get_state()
            self.step_size = log_step.exp().to(self.step_size)

    def logging(self) -> Any:
        return {**super().logging(), "step size": f"{float(self.step_size):.2e}"}

    def diagnostics(self) -> dict[str, Any]:
        return {**super().diagnostics(), "step size": float(self.step_size)}
