r"""LatentHMC and LatentMALA: local moves in the latent space of a flow.

Both are :func:`pyro_flowsamp.transitions.latent.step`, one integrator and one acceptance for every
number of steps, metric and target; that module derives them. Langevin is Hamiltonian of one step:
:class:`LatentMALA` only picks arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any, ClassVar, Literal

import torch
from pyro.ops.dual_averaging import DualAveraging
from torch import Tensor, nn

from ..target.site import Values
from ..transitions import langevin, latent
from ..transitions.step_size import jitter, optimal_step_size
from .base import FlowKernel, Guide
from .sharpened import Pretrained, check_metric

__all__ = ["LatentHMC", "LatentMALA"]


TINY = 1e-7  #: of the first step size; below it float32 does not move


class LatentHMC(FlowKernel):
    r"""Hamiltonian Monte Carlo in the latent space of a flow :math:`x = f(z)`.

    Two targets, with :math:`J = \partial f / \partial z`, never to be confused:

    - ``"pullback"``: :math:`\pi(z) = \tilde p(f(z))\,|\det J(z)|`, whose push-forward is the
      posterior :math:`p` exactly, whatever the flow; a good flow makes :math:`\pi` nearly standard
      normal (Hoffman et al., 2019, https://arxiv.org/abs/1903.03704).
    - ``"tempered"``: :math:`\pi(z) \propto q_X(f(z)) = q_Z(z) / |\det J(z)|`, for a flow trained on
      data by anyone, and no model (NF-MALA, https://arxiv.org/abs/2305.12149). Draws in z avoid the
      bridges between modes, where :math:`|\det J|` explodes. **It does not converge to p, nor to
      the flow's** :math:`q_X`, but to a sharpened flow, of density proportional to
      :math:`q_X(x)^2 / q_Z(f^{-1}(x))`.

    Two metrics: ``"identity"``, and ``"jacobian"``, the paper's :math:`G = J^\top J`, by products
    of J and its inverse with vectors, two forward-mode passes a step in any dimension. Its field is
    :math:`\nabla_x \log\tilde p`, or :math:`\nabla_x \log q_X`. For the pullback it undoes what
    the flow has straightened, to first order: identity is the default.

    Each chain, with probability ``global_prob``, proposes :math:`z' \sim q_Z` instead. With
    :math:`w = \log\tilde p - \log q_X` that is accepted with :math:`\min(1, e^{w(x') - w(x)})`, for
    the tempered target :math:`\min(1, |\det J(z)| / |\det J(z')|)`.

    In warm-up the step size follows dual averaging towards ``target_accept_prob``, over all chains
    together; then it is fixed, but for a factor drawn from (0.8, 1.2) for each trajectory against
    resonance. One gradient a leapfrog step; those of the state are kept.

    Arguments:
        model, potential_fn, guide: See :class:`~pyro_flowsamp.kernels.base.FlowKernel`.
        flow: For the tempered target, instead: any trained flow in zuko's convention. It is checked
            before a run, see :func:`~pyro_flowsamp.kernels.sharpened.check_flow`.
        target: "pullback" or "tempered".
        metric: "identity" or "jacobian".
        num_steps: Leapfrog steps a trajectory; few in the Jacobian metric.
        step_size: At the start of warm-up; by default :math:`d^{-1/4}`.
        target_accept_prob: What the step size is adapted to.
        global_prob: How often to jump, in [0, 1).

    Raises:
        ValueError: An argument is out of range, or flow and target do not go together; at the start
            of a run, the flow is not what it says.
        RuntimeError: At the end of warm-up, the step size has gone to zero.

    Example::

        kernel = LatentHMC(flow=zuko_flow, target="tempered", metric="jacobian", global_prob=0.1)
        mcmc = VectorizedMCMC(kernel, num_samples=100, warmup_steps=300, num_chains=1000)
        mcmc.run()
    """

    jittered: ClassVar[bool] = True

    def __init__(
        self,
        model: Callable | None = None,
        potential_fn: Callable[[Values], Tensor] | None = None,
        guide: Guide | None = None,
        *,
        flow: nn.Module | None = None,
        target: Literal["pullback", "tempered"] = "pullback",
        metric: Literal["identity", "jacobian"] = "identity",
        num_steps: int = 4,
        step_size: float | None = None,
        target_accept_prob: float = 0.8,
        global_prob: float = 0.0,
    ) -> None:
        if target not in ("pullback", "tempered"):
            raise ValueError(f"target must be 'pullback' or 'tempered', got {target!r}")
        if metric not in ("identity", "jacobian"):
            raise ValueError(f"metric must be 'identity' or 'jacobian', got {metric!r}")
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        if not 0 < target_accept_prob < 1:
            raise ValueError(f"target_accept_prob must lie in (0, 1), got {target_accept_prob}")
        if step_size is not None and step_size <= 0:
            raise ValueError(f"step_size must be positive, got {step_size}")
        if not 0 <= global_prob < 1:
            raise ValueError(f"global_prob must lie in [0, 1), got {global_prob}")
        self.tempered = target == "tempered"
        if self.tempered:
            guide = _alone(flow, (model, potential_fn, guide))
        elif flow is not None:
            raise ValueError(
                "a flow alone has no posterior: give target='tempered' to sample the flow itself, "
                "or a model with guide=AutoFlow(model, flow=flow)"
            )
        self.metric, self.num_steps, self.global_prob = metric, num_steps, global_prob
        self.initial_step_size, self.target_accept_prob = step_size, target_accept_prob
        super().__init__(model, potential_fn, guide)

    def first_step_size(self) -> float:
        """Where warm-up begins unless told: optimal for a standard normal, up to a factor."""
        return self.target.dim**-0.25

    def prepare(self, warmup_steps: int) -> None:
        fresh = self._proposal is None
        super().prepare(warmup_steps)
        if fresh and self.metric == "jacobian":
            check_metric(self.proposal)

    def reset(self) -> None:
        step = self.initial_step_size or self.first_step_size()
        self.step_size = torch.tensor(step, dtype=self.target.dtype, device=self.target.device)
        self._least = TINY * step
        self._averaging = DualAveraging(prox_center=log(10 * step))
        self._seen: list[Tensor] = []

    # ---- the density in z -----------------------------------------------------------------------

    def density(self, z: Tensor) -> langevin.HMCState:
        """Everything a state carries, by one pass through flow and target."""
        evaluate = self._in_z if self.metric == "identity" else self._in_x
        x, ladj, log_p, grad = evaluate(z.detach())
        x, ladj, log_p = x.detach(), ladj.detach().double(), log_p.detach().double()
        log_q = self.proposal.base_log_prob(z).double() - ladj
        log_pi = torch.where(torch.isfinite(log_q), log_p + ladj, -torch.inf)  # f lives on its base
        grad = torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)
        return langevin.HMCState(z.detach(), log_pi, grad, x, log_p, log_q)

    def _in_z(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            z = z.requires_grad_()
            x, ladj = self.proposal.push(z)
            log_p = self._log_p(z, x, ladj)
            (grad,) = torch.autograd.grad((log_p.double() + ladj.double()).sum(), z)
        return x, ladj, log_p, grad

    def _in_x(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with torch.no_grad():
            x, ladj = self.proposal.push(z)
        with torch.enable_grad():
            x = x.requires_grad_()
            log_p = (
                self.proposal.distribution(len(x)).log_prob(x)
                if self.tempered
                else self.log_prob(x)
            )
            (grad,) = torch.autograd.grad(log_p.sum(), x)
        return x, ladj, self._log_p(z, x, ladj) if self.tempered else log_p, grad

    def _log_p(self, z: Tensor, x: Tensor, ladj: Tensor) -> Tensor:
        """The target in x; the sharpened flow by the pass that has made x, not by the inverse."""
        if self.tempered:
            return self.proposal.base_log_prob(z) - 2 * ladj
        return self.log_prob(x)

    @property
    def _frame(self) -> latent.Frame:
        if self.metric == "identity":
            return latent.IDENTITY
        return latent.Frame(
            lambda state, r: self.proposal.pull_vector(state.x, r),
            lambda state, v: self.proposal.push_vector(state.z, v),
            lambda state: state.log_q.neg() + self.proposal.base_log_prob(state.z).double(),
        )

    # ---- steps ----------------------------------------------------------------------------------

    def init(self, x: Tensor) -> langevin.HMCState:
        return langevin.init(self.proposal.pull(x), self.density)

    def step(self, state: langevin.HMCState) -> tuple[langevin.HMCState, Any]:
        noise = torch.randn_like(state.z)
        log_u = torch.rand_like(state.log_pi).log()
        size = self.step_size
        if self.jittered:
            size = jitter(size.expand(len(log_u), 1).clone())
        jump = self._jump(log_u) if self.global_prob else None
        return latent.step(
            state, self.density, self._frame, size, self.num_steps, noise, log_u, jump
        )

    def _jump(self, like: Tensor) -> latent.Jump:
        return latent.Jump(
            torch.rand_like(like) < self.global_prob, self.proposal.sample_latent(len(like))
        )

    def adapt(self, info: Any) -> None:
        errors = (self.target_accept_prob - info.accept_prob) * ~info.jumped
        self._averaging.step(errors.mean())
        self._seen.append(torch.stack([info.accept_prob.mean(), info.diverging.double().mean()]))
        log_step, _ = self._averaging.get_state()
        self.step_size = log_step.exp().to(self.step_size)

    def freeze(self) -> None:
        if not self._seen:  # no warm-up
            return
        _, log_step = self._averaging.get_state()
        self.step_size = log_step.exp().to(self.step_size)
        if not float(self.step_size) > self._least:
            self._refuse()

    def _refuse(self) -> None:
        accepted, diverged = torch.stack(self._seen).mean(0).tolist()
        raise RuntimeError(
            f"warm-up drove the step size to {float(self.step_size):.1e}: {accepted:.1%} of its "
            f"moves were accepted, {diverged:.1%} met a density that was not finite or 1000 nats "
            f"lower; {int(self.target.nonfinite)} of the target's {self.target.evaluations} "
            f"densities were NaN or infinite. No step is small enough where a density is not "
            f"continuous, or random: look at it around the starting points, or use IMH."
        )

    def logging(self) -> Any:
        return {**super().logging(), "step size": f"{float(self.step_size):.2e}"}

    def diagnostics(self) -> dict[str, Any]:
        return {**super().diagnostics(), "step size": float(self.step_size)}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_seen": []}


class LatentMALA(LatentHMC):
    r"""Metropolis-adjusted Langevin in the latent space of a flow.

    :class:`LatentHMC` of one step: targets, metrics and jumps are described there. In the identity
    metric

    .. math:: z' = z + \tfrac{\epsilon^2}{2} \nabla\log\pi(z) + \epsilon\,\xi, \qquad
              \xi \sim \mathcal N(0, I),

    in the Jacobian metric :math:`z' = z + J^{-1}(\tfrac{\epsilon^2}{2} g + \epsilon\,\xi)`, with
    the drift :math:`\tfrac{\epsilon^2}{2} g` cut to a length of :math:`\epsilon\sqrt d` in both
    directions. The step size is not jittered.

    Arguments:
        model, potential_fn, guide, flow, target, metric, global_prob: See :class:`LatentHMC`.
        step_size: At the start of warm-up; by default :math:`1.65\,d^{-1/6}`.
        target_accept_prob: What the step size is adapted to; 0.574 is optimal for MALA.

    Example::

        mcmc = MCMC(LatentMALA(model), num_samples=10_000, warmup_steps=300)
        mcmc.run(data)
    """

    jittered = False

    def __init__(
        self,
        model: Callable | None = None,
        potential_fn: Callable[[Values], Tensor] | None = None,
        guide: Guide | None = None,
        *,
        flow: nn.Module | None = None,
        target: Literal["pullback", "tempered"] = "pullback",
        metric: Literal["identity", "jacobian"] = "identity",
        step_size: float | None = None,
        target_accept_prob: float = 0.574,
        global_prob: float = 0.0,
    ) -> None:
        super().__init__(
            model,
            potential_fn,
            guide,
            flow=flow,
            target=target,
            metric=metric,
            num_steps=1,
            step_size=step_size,
            target_accept_prob=target_accept_prob,
            global_prob=global_prob,
        )

    def first_step_size(self) -> float:
        return optimal_step_size(self.target.dim)


def _alone(flow: nn.Module | None, others: tuple) -> Pretrained:
    """The flow in a guide's place, if there is a flow and nothing else."""
    if any(other is not None for other in others):
        raise ValueError(
            "target='tempered' samples a sharpened flow and would never ask the model, potential "
            "or guide that is also given: for the flow give flow=... alone (flow=guide.flow of a "
            "guide), for the model's posterior leave target='pullback'."
        )
    if flow is None:
        raise ValueError("target='tempered' needs flow=..., a trained flow")
    return Pretrained(flow)
