r"""Hamiltonian and Langevin steps in any space: one integrator and one acceptance.

Let :math:`\pi` be a density of :math:`z`, :math:`r \sim \mathcal N(0, I)` a momentum and
:math:`J(z)` an invertible matrix. A step of size :math:`\epsilon` is

.. math:: r_{1/2} = r + k(z), \qquad v = J(z)^{-1} r_{1/2}, \qquad z' = z + \epsilon\, v, \qquad
          r' = J(z')\, v + k(z'),

where the half kick :math:`k = \tfrac\epsilon2 g` is half a step along a field :math:`g`. In the
identity metric :math:`J = I` and :math:`g = \nabla_z \log\pi`, which is the leapfrog. In the space
of a flow :math:`x = f(z)` with :math:`J = \partial f / \partial z` the metric is
:math:`G = J^\top J`, and :math:`g` is a gradient in :math:`x`.

**Reversible.** From :math:`(z', -r')` the half kick leads to :math:`-J(z') v`, the velocity is
:math:`-v`, the position :math:`z` and the momentum :math:`-J(z) v + k(z) = -r`.

**Volume.** At fixed z, :math:`dz' = \epsilon^d\, |\det J(z)|^{-1} dr`, and at fixed z' likewise
:math:`dz = \epsilon^d\, |\det J(z')|^{-1} dr'`; so
:math:`dz'\,dr' = \tfrac{|\det J(z')|}{|\det J(z)|}\, dz\,dr`, which telescopes over L steps.

L steps followed by :math:`r \mapsto -r` are therefore an involution of known volume, whatever
vector field stands for the gradient. It is accepted with probability :math:`\min(1, e^a)`,

.. math:: a = \log\pi(z') - \log\pi(z) + \tfrac12\|r\|^2 - \tfrac12\|r'\|^2
              + \log|\det J(z')| - \log|\det J(z)|,

which moves as much mass from each pair to its image as back: detailed balance. The last two terms
are zero in the identity metric. The momentum is drawn afresh for the next trajectory, so that its
sign does not matter. A trajectory that meets a density which is not finite is rejected. That is a
property of the trajectory and not of its direction, so the balance stands. A step size may be drawn
for each trajectory, independently of the pair.

**Langevin.** For L = 1 the step is the Metropolis-adjusted Langevin algorithm (MALA),

.. math:: z' = \mu(z) + \epsilon\,\xi, \qquad \mu(z) = z + \epsilon J^{-1} k(z), \qquad
          \log g(z' | z) = -\frac{\|J(z) (z' - \mu(z))\|^2}{2 \epsilon^2} + \log|\det J(z)|,

as :math:`r'` is minus the noise that leads back. In the Jacobian metric this is NF-MALA, and J and
its inverse only ever multiply vectors.

**Cut kicks.** A half kick may be cut to a length of at most :math:`\sqrt d`, which for L = 1 cuts
the drift :math:`\mu(z) - z` to :math:`\epsilon\sqrt d` (MALTA). The cut is part of the field
:math:`k`, the same in both directions, so the acceptance stands. Without it a chain does not move
where the density is steep, because there is no way back from where it would be thrown.

**Jumps.** A chain may instead propose :math:`z' \sim q_Z`, whatever z is. By the derivation in
:mod:`pyro_flowsamp.transitions.independence`, :math:`a = w(x') - w(x)` with
:math:`w = \log\tilde p - \log q`. The choice between both moves does not depend on the state, so
the mixture of both leaves :math:`\pi` invariant.

The density is that which ``density`` returns. In the latent space of a flow it is the pullback
:math:`\pi(z) = \tilde p(f(z))\,|\det f'(z)|`, which makes :math:`x = f(z)` exact draws of :math:`p`
however badly the flow fits.

References:
    Duane, Kennedy, Pendleton and Roweth, *Hybrid Monte Carlo*, 1987,
    https://doi.org/10.1016/0370-2693(87)91197-X

    Green, *Reversible jump Markov chain Monte Carlo computation and Bayesian model determination*,
    1995, https://doi.org/10.1093/biomet/82.4.711

    Roberts and Tweedie, *Exponential convergence of Langevin distributions and their discrete
    approximations*, 1996, https://doi.org/10.2307/3318418

    Neal, *MCMC using Hamiltonian dynamics*, 2011, https://arxiv.org/abs/1206.1901

    Hoffman et al., *NeuTra-lizing bad geometry in Hamiltonian Monte Carlo using neural transport*,
    2019, https://arxiv.org/abs/1903.03704

    Coeurdoux, Dobigeon and Chainais, *Normalizing flow sampling with Langevin dynamics in the
    latent space*, 2023, https://arxiv.org/abs/2305.12149
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from .metropolis import metropolis, select

__all__ = [
    "IDENTITY",
    "Density",
    "HMCInfo",
    "HMCState",
    "Jump",
    "Metric",
    "half_kick",
    "plainly",
    "step",
    "trajectory",
]

MAX_ENERGY_ERROR = 1000.0  #: nats beyond which a trajectory counts as divergent (as in Stan)


class HMCState(NamedTuple):
    r"""C chains in z, with everything that is known of their positions.

    Attributes:
        z: Positions, ``(C, d)``.
        log_pi: Log density of z, ``(C,)``, float64.
        grad: The field g, by default the gradient of ``log_pi``, ``(C, d)``.
        x: The points :math:`f(z)` of the target's own space; z itself where there is no flow.
        log_p: Target log density of x, ``(C,)``, float64.
        log_q: Flow log density of x, ``(C,)``, float64; zero without a flow.

    Example:
        >>> z = torch.tensor([[3.0]])
        >>> log_pi = (-0.5 * z.square()).sum(-1).double()
        >>> state = HMCState(z, log_pi, -z, x=z, log_p=log_pi, log_q=torch.zeros_like(log_pi))
        >>> state.log_pi, state.grad
        (tensor([-4.5000], dtype=torch.float64), tensor([[-3.]]))
    """

    z: Tensor
    log_pi: Tensor
    grad: Tensor
    x: Tensor
    log_p: Tensor
    log_q: Tensor


class HMCInfo(NamedTuple):
    """Report of one step of C chains, ``(C,)`` each; ``jumped`` says what was proposed.

    Attributes:
        accepted: Whether the proposal was accepted.
        accept_prob: The probability of that.
        diverging: Whether a trajectory was not finite, or its energy off by more than 1000 nats.
        jumped: Whether a jump was proposed.

    Example:
        >>> no = torch.zeros(2, dtype=torch.bool)
        >>> info = HMCInfo(~no, torch.tensor([1.0, 0.8]), diverging=no, jumped=no)
        >>> round(float(info.accept_prob.mean()), 4), int(info.diverging.sum())
        (0.9, 0)
    """

    accepted: Tensor
    accept_prob: Tensor
    diverging: Tensor
    jumped: Tensor


class Point(Protocol):
    """Fields of a state that a trajectory uses; :class:`HMCState` has them.

    Example:
        >>> from typing import NamedTuple
        >>> class Normal(NamedTuple):  # a state of a chain with a standard normal density
        ...     z: Tensor
        ...     @property
        ...     def log_pi(self) -> Tensor:
        ...         return -0.5 * self.z.double().square().sum(-1)
        ...     @property
        ...     def grad(self) -> Tensor:
        ...         return -self.z
        >>> end, momentum, _ = trajectory(
        ...     Normal(torch.zeros(1, 1)), Normal, torch.tensor(0.5), 1, torch.ones(1, 1)
        ... )
        >>> end.z, momentum  # 0.5, and 1 - 0.25 * 0.5
        (tensor([[0.5000]]), tensor([[0.8750]]))
    """

    @property
    def z(self) -> Tensor: ...
    @property
    def log_pi(self) -> Tensor: ...
    @property
    def grad(self) -> Tensor: ...


P = TypeVar("P", bound=Point)
Density = Callable[[Tensor], Any]  #: z → a state with at least z, log_pi and grad
#: the name of a part of a step, a function of tensors and named tuples of them, its arguments → its
#: result
Run = Callable[..., Any]


def plainly(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """The result of a part of a step, by calling its function.

    Example:
        >>> plainly("sum", lambda x, y: x + y, torch.tensor(1), torch.tensor(2))
        tensor(3)
    """
    return function(*args)


class Metric(NamedTuple):
    r"""A metric :math:`G = J^\top J`, by the products of J with vectors ``(C, d)`` at a state.

    Attributes:
        solve: Maps a state and r to :math:`J^{-1} r`.
        apply: Maps a state and v to :math:`J v`.
        log_det: Maps a state to :math:`\log|\det J|`, ``(C,)``.

    Example:
        >>> log_2 = torch.tensor(2.0).log()
        >>> double = Metric(lambda _, r: r / 2, lambda _, v: 2 * v, lambda _: log_2)  # J = 2
        >>> def flat(z):
        ...     zero = torch.zeros(1).double()
        ...     return HMCState(z, zero, 0 * z, z, zero, zero)
        >>> start, one = flat(torch.zeros(1, 1)), torch.tensor(1.0)
        >>> trajectory(start, flat, one, 1, torch.ones(1, 1), metric=double)[0].z  # a step of 1 / J
        tensor([[0.5000]])
    """

    solve: Callable[[Any, Tensor], Tensor]
    apply: Callable[[Any, Tensor], Tensor]
    log_det: Callable[[Any], Tensor]


IDENTITY = Metric(lambda _, r: r, lambda _, v: v, lambda state: torch.zeros_like(state.log_pi))


class Jump(NamedTuple):
    """Chains that jump, ``(C,)``, and draws of the base distribution, ``(C, d)``.

    Example:
        >>> def flat(z):
        ...     zero = torch.zeros(len(z)).double()
        ...     return HMCState(z, zero, 0 * z, z, zero, zero)
        >>> start, one = flat(torch.zeros(2, 1)), torch.ones(2, 1)
        >>> jump, log_u = Jump(torch.tensor([False, True]), 7 * one), torch.tensor([-1.0, -1.0])
        >>> step(start, flat, torch.tensor(0.5), 1, one, log_u, jump=jump)[0].z
        tensor([[0.5000],
                [7.0000]])
    """

    mask: Tensor
    z: Tensor


def half_kick(grad: Tensor, step_size: Tensor, cut: bool = True) -> Tensor:
    r"""Half a step along a field, :math:`k = \tfrac\epsilon2 g`, ``(C, d)``.

    Arguments:
        grad: The field g, ``(C, d)``.
        step_size: :math:`\epsilon`, 0-d or ``(C, 1)``.
        cut: Whether to cut k to a length of at most :math:`\sqrt d`.

    Example:
        >>> steep = torch.tensor([[-100.0]])
        >>> half_kick(steep, torch.tensor(0.5)), half_kick(steep, torch.tensor(0.5), cut=False)
        (tensor([[-1.]]), tensor([[-25.]]))
    """
    half = 0.5 * step_size * grad
    if not cut:
        return half
    return half * (half.shape[-1] ** 0.5 / half.norm(dim=-1, keepdim=True)).clamp(max=1)


def trajectory(
    state: P,
    density: Callable[[Tensor], P],
    step_size: Tensor,
    num_steps: int,
    momentum: Tensor,
    *,
    metric: Metric = IDENTITY,
    cut: bool = True,
    run: Run = plainly,
    keep: Callable[[Any, Tensor], None] | None = None,
) -> tuple[P, Tensor, Tensor]:
    """Integrates ``num_steps`` steps, with one evaluation of ``density`` for each.

    Arguments:
        state, density, step_size, num_steps, momentum, metric, cut, run, keep: See :func:`step`.

    Returns:
        The last state, the last momentum ``(C, d)``, and whether all densities were finite
        ``(C,)``.

    Example:
        >>> def normal(z):
        ...     log_pi = -0.5 * z.double().square().sum(-1)
        ...     return HMCState(z, log_pi, -z, z, log_pi, torch.zeros_like(log_pi))
        >>> start, momentum = normal(torch.zeros(1, 1)), torch.ones(1, 1)
        >>> end, momentum, _ = trajectory(start, normal, torch.tensor(0.1), 10, momentum)
        >>> back, _, _ = trajectory(end, normal, torch.tensor(0.1), 10, -momentum)
        >>> round(float(end.z), 2), abs(float(back.z)) < 1e-6  # sin 1, and the way back
        (0.84, True)
    """

    def leapfrog(
        state: P, momentum: Tensor, finite: Tensor, step_size: Tensor
    ) -> tuple[P, Tensor, Tensor, Tensor]:
        velocity = metric.solve(state, momentum + half_kick(state.grad, step_size, cut))
        state = density(state.z + step_size * velocity)
        momentum = metric.apply(state, velocity) + half_kick(state.grad, step_size, cut)
        return state, velocity, momentum, finite & torch.isfinite(state.log_pi)

    finite = torch.ones_like(state.log_pi, dtype=torch.bool)
    for _ in range(num_steps):
        state, velocity, momentum, finite = run(
            "leapfrog", leapfrog, state, momentum, finite, step_size
        )
        if keep is not None:
            keep(state, velocity)
    return state, momentum, finite


def step(
    state: P,
    density: Callable[[Tensor], P],
    step_size: Tensor,
    num_steps: int,
    momentum: Tensor,
    log_u: Tensor,
    *,
    metric: Metric = IDENTITY,
    jump: Jump | None = None,
    allowed: Callable[[P], Tensor] | None = None,
    cut: bool = True,
    run: Run = plainly,
    keep: Callable[[Any, Tensor], None] | None = None,
) -> tuple[P, HMCInfo]:
    r"""Moves every chain by one trajectory, or by a jump, and accepts or rejects it.

    MALA is ``num_steps=1``. The evaluations of ``density`` are ``num_steps``.

    Arguments:
        state: The chains, a named tuple such as :class:`HMCState`.
        density: Maps positions ``(C, d)`` to states.
        step_size: :math:`\epsilon`, 0-d or ``(C, 1)``.
        num_steps: L.
        momentum: Standard normal variates, ``(C, d)``.
        log_u: Logs of uniform variates, ``(C,)``.
        metric: The metric of the momentum.
        jump: Chains that jump; theirs is a trajectory of no length from where they land.
        allowed: Maps ends of trajectories to whether they may be taken, ``(C,)``. This must depend
            on the end alone, and hold where the chains are, so that it is the same on the way back.
        cut: Whether half kicks are cut to a length of :math:`\sqrt d`.
        run: Calls the parts of the step, a leapfrog step and the decision. They are functions of
            tensors and of named tuples of tensors, and draw no random numbers.
        keep: Is called with each state of the trajectory and the velocity that has led there.

    Returns:
        The state and the report of the step.

    Example:
        >>> def normal(z):
        ...     log_pi = -0.5 * z.double().square().sum(-1)
        ...     return HMCState(z, log_pi, -z, z, log_pi, torch.zeros_like(log_pi))
        >>> start = normal(torch.zeros(2, 1))
        >>> momentum, log_u = torch.ones(2, 1), torch.tensor([0.0, -1.0]).double()
        >>> state, info = step(start, normal, torch.tensor(1.0), 1, momentum, log_u)
        >>> info.accept_prob[0].log()  # r' = 1/2 at z' = 1: -1/2 + 1/2 - 1/8
        tensor(-0.1250, dtype=torch.float64)
        >>> state.z.tolist()
        [[0.0], [1.0]]
    """
    start: Any = state
    if jump is not None:
        start = start._replace(z=torch.where(jump.mask[:, None], jump.z, state.z))
        step_size = torch.where(jump.mask[:, None], 0.0, step_size)
    end: Any
    end, last, finite = trajectory(
        start,
        density,
        step_size,
        num_steps,
        momentum,
        metric=metric,
        cut=cut,
        run=run,
        keep=keep,
    )

    def decide(
        old: Any,
        end: Any,
        momentum: Tensor,
        last: Tensor,
        finite: Tensor,
        log_u: Tensor,
        *mask: Any,
    ) -> tuple[Any, HMCInfo]:
        kinetic = 0.5 * (momentum.double().square() - last.double().square()).sum(-1)
        volume = metric.log_det(end) - metric.log_det(old)
        log_alpha = end.log_pi - old.log_pi + kinetic + volume
        jumped = torch.zeros_like(finite)
        if mask:
            jumped, gain = mask[0], (end.log_p - end.log_q) - (old.log_p - old.log_q)
            log_alpha = torch.where(jumped, gain, log_alpha)
        log_alpha = torch.where(finite, log_alpha, -torch.inf)
        diverging = ~jumped & ((log_alpha < -MAX_ENERGY_ERROR) | ~torch.isfinite(log_alpha))
        if allowed is not None:
            log_alpha = torch.where(allowed(end), log_alpha, -torch.inf)
        accepted, accept_prob = metropolis(log_alpha, log_u)
        return select(accepted, end, old), HMCInfo(accepted, accept_prob, diverging, jumped)

    mask = () if jump is None else (jump.mask,)
    return run("decision", decide, state, end, momentum, last, finite, log_u, *mask)
