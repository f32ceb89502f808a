r"""LatentHMC and LatentMALA: local moves in the latent space of a flow.

Both use :func:`pyro_flowsamp.transitions.hamiltonian.step`, one integrator and one acceptance
rule for every number of steps, metric and target; that module has the derivation. A Langevin step
is a Hamiltonian trajectory of one step, so that :class:`LatentMALA` only chooses arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..target.site import Values
from ..transitions import hamiltonian
from ..transitions.chees import LastPoint
from ..transitions.step_size import FixedTrajectory, optimal_step_size
from ..transitions.trajectory_length import TrajectoryAdaptation, TrajectoryOptions
from ..validation import check_count, check_number
from .base import FlowKernel, Guide
from .sharpened import SharpenedFlow, check_metric

__all__ = ["LatentHMC", "LatentMALA"]


TINY = 1e-7  #: times the first step size: float32 positions do not change below
FIXED_ACCEPTANCE = 0.8  #: default mean acceptance probability of trajectories of fixed length
ADAPTED_ACCEPTANCE = 0.651  #: and of adapted ones, as in Hoffman, Radul & Sountsov (2021)


class LatentHMC(FlowKernel):
    r"""Hamiltonian Monte Carlo in the latent space of a flow :math:`x = f(z)`.

    There are two targets, with :math:`J = \partial f / \partial z`:

    - ``"pullback"``: :math:`\pi(z) = \tilde p(f(z))\,|\det J(z)|`, whose push-forward is the
      posterior :math:`p` exactly, whatever the flow; a good flow makes :math:`\pi` nearly standard
      normal (Hoffman et al., 2019, https://arxiv.org/abs/1903.03704).
    - ``"sharpened"``: :math:`\pi(z) \propto q_X(f(z)) = q_Z(z) / |\det J(z)|`, for a flow that was
      trained on data, without a model (Coeurdoux et al., 2023). Draws in z avoid the low-density
      paths between modes, where :math:`|\det J|` is very large. **This target is neither p nor the
      flow's** :math:`q_X`. It is a sharpened flow, of density proportional to
      :math:`q_X(x)^2 / q_Z(f^{-1}(x))`.

    There are two metrics: ``"identity"``, and ``"jacobian"``, the paper's :math:`G = J^\top J`. The
    latter takes products of J and its inverse with vectors, two forward-mode passes a step in any
    dimension. Its force is :math:`\nabla_x \log\tilde p`, or :math:`\nabla_x \log q_X`. For the
    pullback it undoes, to first order, the change of coordinates that the flow has learnt; so
    identity is the default.

    Each chain, with probability ``global_prob``, proposes :math:`z' \sim q_Z` instead. With
    :math:`w = \log\tilde p - \log q_X` this is accepted with probability
    :math:`\min(1, e^{w(x') - w(x)})`, for the sharpened target with probability
    :math:`\min(1, |\det J(z)| / |\det J(z')|)`.

    In warm-up the step size is adapted by dual averaging towards ``target_accept_prob``, over all
    chains together. Then it is fixed, apart from a factor drawn from (0.8, 1.2) for each
    trajectory, which avoids resonance. A leapfrog step takes one gradient; the gradient at the
    state is kept.

    With ``trajectory="adapted"`` trajectories have quasi-random lengths, uniform on
    :math:`(0, 2\tau)` and the same in all chains, and no such factor. Warm-up finds the mean length
    :math:`\tau` by the ChEES criterion (Hoffman, Radul & Sountsov, 2021); 50 steps of 64 chains are
    enough. Where there are fewer than four chains of a context, as in Pyro's MCMC, there is no mean
    over chains to compare with: then :math:`\tau` is ``num_steps`` times the step size. See
    :mod:`pyro_flowsamp.transitions.trajectory_length` for the derivations, and why lengths that
    differ are exact.

    Arguments:
        model, potential_fn, guide: See :class:`~pyro_flowsamp.FlowKernel`.
        flow: Any trained flow in zuko's convention, for the sharpened target only, in place of
            model, potential and guide. It is checked before a run, see
            :func:`~pyro_flowsamp.kernels.sharpened.check_flow`.
        target: "pullback" or "sharpened".
        metric: "identity" or "jacobian".
        num_steps: Leapfrog steps of a trajectory; take few in the Jacobian metric.
        trajectory: "fixed" or "adapted", or for the latter with other settings
            :class:`~pyro_flowsamp.transitions.trajectory_length.TrajectoryOptions`.
        step_size: Step size at the start of warm-up; by default :math:`d^{-1/4}`.
        target_accept_prob: Acceptance probability that the step size is adapted to, by default
            0.8; for adapted trajectories the harmonic mean over chains, by default 0.651.
        global_prob: Probability of a proposal by the flow, in [0, 1).

    Raises:
        ValueError: An argument is out of range, or flow and target do not go together; at the start
            of a run, the flow is not invertible or its density is wrong.
        RuntimeError: At the end of warm-up, the step size has gone to zero.

    References:
        Hoffman, Radul & Sountsov, *An Adaptive-MCMC Scheme for Setting Trajectory Lengths in
        Hamiltonian Monte Carlo*, 2021, https://proceedings.mlr.press/v130/hoffman21a.html

        Hoffman et al., *NeuTra-lizing Bad Geometry in Hamiltonian Monte Carlo Using Neural
        Transport*, 2019, https://arxiv.org/abs/1903.03704

        Coeurdoux et al., *Normalizing flow sampling with Langevin dynamics in the latent space*,
        2023, https://arxiv.org/abs/2305.12149

    Example::

        >>> import pyro
        >>> from pyro_flowsamp import AutoFlow, FitOptions, LatentHMC, Target, VectorizedMCMC
        >>> _ = pyro.set_rng_seed(0)
        >>> target = Target.from_energy(lambda x: 0.5 * (x - 3).square().sum(-1), 2)
        >>> guide = AutoFlow(target, flow="gaussian", options=FitOptions(progress=False))
        >>> run = VectorizedMCMC(LatentHMC(guide=guide), 20, 50, 200, disable_progbar=True)
        >>> run.run()
        >>> abs(float(run.get_samples()["x"].mean()) - 3) < 0.05
        True

    A flow that was trained elsewhere, here just the guide's, sharpened::

        >>> kernel = LatentHMC(flow=guide.flow, target="sharpened")
        >>> run = VectorizedMCMC(kernel, 20, 50, 200, disable_progbar=True)
        >>> run.run()
        >>> run.get_samples()["x"].shape
        torch.Size([4000, 2])
    """

    jittered: ClassVar[bool] = True
    #: which ends of trajectories may be taken; by default all
    allowed: Callable[[hamiltonian.HMCState], Tensor] | None = None

    def __init__(
        self,
        model: Callable | None = None,
        potential_fn: Callable[[Values], Tensor] | None = None,
        guide: Guide | None = None,
        *,
        flow: nn.Module | None = None,
        target: Literal["pullback", "sharpened"] = "pullback",
        metric: Literal["identity", "jacobian"] = "identity",
        num_steps: int = 4,
        trajectory: Literal["fixed", "adapted"] | TrajectoryOptions = "fixed",
        step_size: float | None = None,
        target_accept_prob: float | None = None,
        global_prob: float = 0.0,
    ) -> None:
        self.trajectory = TrajectoryOptions() if trajectory == "adapted" else trajectory
        if target_accept_prob is None:
            target_accept_prob = FIXED_ACCEPTANCE if trajectory == "fixed" else ADAPTED_ACCEPTANCE
        if target not in ("pullback", "sharpened"):
            raise ValueError(f"target must be 'pullback' or 'sharpened', got {target!r}")
        if metric not in ("identity", "jacobian"):
            raise ValueError(f"metric must be 'identity' or 'jacobian', got {metric!r}")
        num_steps = check_count("num_steps", num_steps)
        if self.trajectory != "fixed" and not isinstance(self.trajectory, TrajectoryOptions):
            raise ValueError(f"trajectory must be 'fixed' or 'adapted', got {trajectory!r}")
        check_number(
            "target_accept_prob", target_accept_prob, 0, 1, open_least=True, open_most=True
        )
        if step_size is not None:
            check_number("step_size", step_size, 0, open_least=True, open_most=True)
        check_number("global_prob", global_prob, 0, 1, open_most=True)
        self.sharpened = target == "sharpened"
        if self.sharpened:
            guide = _sharpened_flow(flow, (model, potential_fn, guide))
        elif flow is not None:
            raise ValueError(
                "a flow alone has no posterior: give target='sharpened' to sample the flow, "
                "sharpened, or a model with guide=AutoFlow(model, flow=flow)"
            )
        self.metric, self.num_steps, self.global_prob = metric, num_steps, global_prob
        self.initial_step_size, self.target_accept_prob = step_size, target_accept_prob
        super().__init__(model, potential_fn, guide)

    def first_step_size(self) -> float:
        """The default of the step size: optimal for a standard normal, up to a factor."""
        return self.target.dim**-0.25

    def prepare(self, warmup_steps: int, progress: bool = True) -> None:
        fresh = self.binding.proposal is None
        super().prepare(warmup_steps, progress)
        if fresh and self.metric == "jacobian":
            check_metric(self.proposal)

    def reset(self) -> None:
        step = self.initial_step_size or self.first_step_size()
        self.step_size = torch.tensor(step, dtype=self.target.dtype, device=self.target.device)
        self._least = TINY * step
        self._seen: list[Tensor] = []
        options = self.trajectory
        self.lengths = (
            TrajectoryAdaptation(step, self.num_steps, self.target_accept_prob, options)
            if isinstance(options, TrajectoryOptions)
            else FixedTrajectory(step, self.num_steps, self.target_accept_prob, self.jittered)
        )

    # ---- the density in z -----------------------------------------------------------------------

    def density(self, z: Tensor) -> hamiltonian.HMCState:
        """Evaluates flow and target at z, in one pass, for the state of the chains there."""
        evaluate = self._in_z if self.metric == "identity" else self._in_x
        x, ladj, log_p, grad = evaluate(z.detach())
        x, ladj, log_p = x.detach(), ladj.detach().double(), log_p.detach().double()
        log_q = self.proposal.base_log_prob(z).double() - ladj
        # Where the base has no density the flow has no value.
        log_pi = torch.where(torch.isfinite(log_q), log_p + ladj, -torch.inf)
        grad = torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)
        return hamiltonian.HMCState(z.detach(), log_pi, grad, x, log_p, log_q)

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
                if self.sharpened
                else self.log_prob(x)
            )
            (grad,) = torch.autograd.grad(log_p.sum(), x)
        return x, ladj, self._log_p(z, x, ladj) if self.sharpened else log_p, grad

    def _log_p(self, z: Tensor, x: Tensor, ladj: Tensor) -> Tensor:
        """The target at x; a sharpened flow is evaluated by the pass that made x from z."""
        if self.sharpened:
            return self.proposal.base_log_prob(z) - 2 * ladj
        return self.log_prob(x)

    @property
    def latent_metric(self) -> hamiltonian.Metric:
        if self.metric == "identity":
            return hamiltonian.IDENTITY
        return hamiltonian.Metric(
            lambda state, r: self.proposal.pull_vector(state.x, r),
            lambda state, v: self.proposal.push_vector(state.z, v),
            lambda state: state.log_q.neg() + self.proposal.base_log_prob(state.z).double(),
        )

    # ---- steps ----------------------------------------------------------------------------------

    def init(self, x: Tensor) -> hamiltonian.HMCState:
        self.lengths.begin(len(x), self._num_contexts, self.proposal.angles)
        return self.density(self.proposal.pull(x))

    def step(self, state: hamiltonian.HMCState) -> tuple[hamiltonian.HMCState, Any]:
        noise = torch.randn_like(state.z)
        log_u = torch.rand_like(state.log_pi).log()
        size, num_steps = self.lengths.next(self.step_size, len(log_u))
        last = LastPoint(self.latent_metric)
        jump = self._jump(log_u) if self.global_prob else None
        also: Any = {"metric": self.latent_metric, "jump": jump, "allowed": self.allowed}
        also |= {"run": self.part, "keep": last.keep}
        new, info = hamiltonian.step(state, self.density, size, num_steps, noise, log_u, **also)
        self.lengths.observe(info, state.z, last, size)
        return new, info

    @property
    def _num_contexts(self) -> int:
        return 1 if self.target.contexts is None else len(self.target.contexts)

    @property
    def mean_leapfrog_steps(self) -> float:
        """The mean number of leapfrog steps of a trajectory, as it is now."""
        return self.lengths.mean_steps

    @property
    def mean_gradients(self) -> float:
        """The mean number of gradients that a chain takes for one step of the kernel."""
        return self.mean_leapfrog_steps

    def _jump(self, like: Tensor) -> hamiltonian.Jump:
        return hamiltonian.Jump(
            torch.rand_like(like) < self.global_prob, self.proposal.sample_latent(len(like))
        )

    def adapt(self, info: Any) -> None:
        self._seen.append(torch.stack([info.accept_prob.mean(), info.diverging.double().mean()]))
        self.lengths.adapt(info)
        self.step_size = self.lengths.value.to(self.step_size)

    def freeze(self) -> None:
        self.lengths.freeze()
        self.step_size = self.lengths.value.to(self.step_size)
        if self._seen and not float(self.step_size) > self._least:
            raise self._refusal()

    def _refusal(self) -> RuntimeError:
        accepted, diverged = torch.stack(self._seen).mean(0).tolist()
        return RuntimeError(
            f"warm-up drove the step size to {float(self.step_size):.1e}: {accepted:.1%} of its "
            f"moves were accepted, {diverged:.1%} met a density that was not finite or 1000 nats "
            f"lower; {int(self.target.nonfinite)} of the target's {self.target.evaluations} "
            f"densities were NaN or infinite. The density may be discontinuous or random, so that "
            f"no step is small enough: check it around the starting points, or use IMH."
        )

    def logging(self) -> Any:
        lengths = {name: f"{value:.3g}" for name, value in self.lengths.report().items()}
        return {**super().logging(), "step size": f"{float(self.step_size):.2e}", **lengths}

    def diagnostics(self) -> dict[str, Any]:
        found = super().diagnostics()
        return {**found, "step size": float(self.step_size), **self.lengths.report()}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_seen": []}


class LatentMALA(LatentHMC):
    r"""Metropolis-adjusted Langevin in the latent space of a flow.

    This is :class:`LatentHMC` with one step, which describes the targets, the metrics and the
    proposals by the flow. In the identity metric a move is

    .. math:: z' = z + \tfrac{\epsilon^2}{2} \nabla\log\pi(z) + \epsilon\,\xi, \qquad
              \xi \sim \mathcal N(0, I),

    and in the Jacobian metric :math:`z' = z + J^{-1}(\tfrac{\epsilon^2}{2} g + \epsilon\,\xi)`.
    The drift :math:`\tfrac{\epsilon^2}{2} g` is cut to a length of :math:`\epsilon\sqrt d`, for the
    move and for its reverse. The step size is not jittered.

    Arguments:
        model, potential_fn, guide, flow, target, metric, global_prob: See :class:`LatentHMC`.
        step_size: Step size at the start of warm-up; by default :math:`1.65\,d^{-1/6}`.
        target_accept_prob: Acceptance probability that the step size is adapted to; 0.574 is
            optimal for MALA in high dimensions.

    Raises:
        ValueError: See :class:`LatentHMC`.
        RuntimeError: See :class:`LatentHMC`.

    References:
        Roberts & Rosenthal, *Optimal Scaling of Discrete Approximations to Langevin Diffusions*,
        1998, https://doi.org/10.1111/1467-9868.00123

    Example::

        >>> import pyro
        >>> from pyro_flowsamp import AutoFlow, FitOptions, LatentMALA, Target, VectorizedMCMC
        >>> _ = pyro.set_rng_seed(0)
        >>> target = Target.from_energy(lambda x: 0.5 * (x - 3).square().sum(-1), 2)
        >>> guide = AutoFlow(target, flow="gaussian", options=FitOptions(progress=False))
        >>> run = VectorizedMCMC(LatentMALA(guide=guide), 20, 50, 200, disable_progbar=True)
        >>> run.run()
        >>> abs(float(run.get_samples()["x"].mean()) - 3) < 0.05
        True
    """

    jittered = False

    def __init__(
        self,
        model: Callable | None = None,
        potential_fn: Callable[[Values], Tensor] | None = None,
        guide: Guide | None = None,
        *,
        flow: nn.Module | None = None,
        target: Literal["pullback", "sharpened"] = "pullback",
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


def _sharpened_flow(flow: nn.Module | None, others: tuple) -> SharpenedFlow:
    """The flow as a guide; raises a ValueError unless there is a flow and nothing else."""
    if any(other is not None for other in others):
        raise ValueError(
            "target='sharpened' samples a sharpened flow and does not use the model, potential "
            "or guide that is also given: for the flow give flow=... alone (for a guide's flow, "
            "flow=guide.flow), for the model's posterior leave target='pullback'."
        )
    if flow is None:
        raise ValueError("target='sharpened' needs flow=..., a trained flow")
    return SharpenedFlow(flow)
