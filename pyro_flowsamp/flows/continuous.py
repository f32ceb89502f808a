r"""Continuous flows: velocity fields integrated by steps of fixed size.

A velocity field :math:`v` moves points by :math:`\dot x = v(t, x)` and their log density by

.. math:: \frac{d}{dt} \log q(x(t)) = -\nabla\cdot v(t, x(t))

A Runge–Kutta method of fixed steps makes both deterministic and differentiable any number of times.
The log-det is that of the flow along the computed path, not of the map that the steps make. The
difference would be a bias in a Metropolis ratio, so :func:`refine` raises the number of steps until
it is below a thousandth of a nat.

References:
    Ricky Chen, Yulia Rubanova, Jesse Bettencourt and David Duvenaud, *Neural Ordinary Differential
    Equations*, 2018, https://arxiv.org/abs/1806.07366.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.utils.checkpoint import checkpoint

from .._zuko import zuko
from .transforms import Map

__all__ = [
    "ContinuousMap",
    "ContinuousTransform",
    "METHODS",
    "Tableau",
    "TransportFlow",
    "Velocity",
    "integrate",
    "refine",
]


MAX_STEPS = 256  #: steps of a block beyond which :func:`refine` gives up


class Tableau(NamedTuple):
    """An explicit Runge–Kutta method.

    Attributes:
        c: The nodes.
        a: The weights of earlier stages in each stage.
        b: The weights of the stages in the result.

    Example:
        >>> method = METHODS["rk4"]
        >>> [round(sum(row), 4) for row in method.a] == [round(c, 4) for c in method.c]
        True
        >>> round(sum(b * c**3 for b, c in zip(method.b, method.c)), 4)  # order four
        0.25
    """

    c: Sequence[float]
    a: Sequence[Sequence[float]]
    b: Sequence[float]


METHODS = {
    "euler": Tableau([0], [[]], [1]),
    "midpoint": Tableau([0, 1 / 2], [[], [1 / 2]], [0, 1]),
    "rk4": Tableau(
        [0, 1 / 2, 1 / 2, 1],
        [[], [1 / 2], [0, 1 / 2], [0, 0, 1]],
        [1 / 6, 1 / 3, 1 / 3, 1 / 6],
    ),
    "dopri5": Tableau(  # Dormand & Prince (1980), the solution of order five
        [0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1],
        [
            [],
            [1 / 5],
            [3 / 40, 9 / 40],
            [44 / 45, -56 / 15, 32 / 9],
            [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
            [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
        ],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
    ),
}
ODEState = tuple[Tensor, ...]
Field = Callable[[float, ODEState], ODEState]


class Velocity(Protocol):
    """The method of its network that a continuous flow calls.

    Example:
        >>> class Growth:  # dx/dt = x, whose divergence is the dimension
        ...     def with_divergence(self, t, x):
        ...         return x, torch.full((len(x),), float(x.shape[1]))
        >>> x, log_det = ContinuousMap(Growth(), 8, "rk4", False).push(torch.ones(1, 2))
        >>> x.round(decimals=3), log_det  # e, and 2
        (tensor([[2.7180, 2.7180]]), tensor([2.]))
    """

    def with_divergence(self, t: float, x: Tensor) -> tuple[Tensor, Tensor]: ...


def _combine(
    state: ODEState, slopes: Sequence[ODEState], weights: Sequence[float], h: float
) -> ODEState:
    terms = [(h * w, slope) for w, slope in zip(weights, slopes) if w]
    return tuple(
        torch.add(y, sum(w * slope[i] for w, slope in terms)) if terms else y
        for i, y in enumerate(state)
    )


def _step(field: Field, tableau: Tableau, t: float, h: float, state: ODEState) -> ODEState:
    slopes: list[ODEState] = []
    for c, row in zip(tableau.c, tableau.a):
        slopes.append(field(t + c * h, _combine(state, slopes, row, h)))
    return _combine(state, slopes, tableau.b, h)


def integrate(
    field: Field,
    state: ODEState,
    start: float,
    end: float,
    steps: int,
    method: str = "rk4",
    recompute: bool = False,
) -> ODEState:
    r"""Solves :math:`\dot y = f(t, y)` by equal steps and returns the state at time ``end``.

    Arguments:
        field: :math:`f`, of a time and a tuple of tensors.
        state: The tuple at time ``start``.
        start, end: The times; backwards where ``end < start``.
        steps: The number of steps.
        method: One of :data:`METHODS`.
        recompute: Whether gradients keep only the states between steps, and run each step again
            (checkpointing). This needs memory for one step only, and one more forward pass. It does
            not work under the reverse-mode transforms of ``torch.func``.

    Example:
        >>> (y,) = integrate(lambda t, state: (-state[0],), (torch.ones(()),), 0.0, 1.0, steps=10)
        >>> round(float(y), 4)  # exp(-1)
        0.3679
    """
    tableau, h = METHODS[method], (end - start) / steps
    for i in range(steps):
        t = start + i * h
        if recompute and torch.is_grad_enabled():
            state = checkpoint(
                _step, field, tableau, t, h, state, use_reentrant=False, preserve_rng_state=False
            )
        else:
            state = _step(field, tableau, t, h, state)
    return state


class ContinuousMap(Map):
    """The flow of a velocity field from one time to another, as a bijection.

    Arguments:
        velocity: The velocity field with its divergence.
        steps, method, recompute: See :func:`integrate`.
        start, end: The times of latent and data.

    Example:
        >>> from pyro_flowsamp.nn import VelocityMLP
        >>> velocity = VelocityMLP(2)
        >>> _ = [torch.nn.init.normal_(p, std=0.3) for p in velocity.parameters()]
        >>> map, z = ContinuousMap(velocity, 8, "rk4", False), torch.ones(1, 2)
        >>> torch.allclose(map.inv(map(z)), z, atol=1e-4)
        True
    """

    def __init__(
        self,
        velocity: Velocity,
        steps: int,
        method: str,
        recompute: bool,
        start: float = 0.0,
        end: float = 1.0,
    ) -> None:
        super().__init__()
        self.velocity, self.steps, self.method = velocity, steps, method
        self.recompute, self.start, self.end = recompute, start, end

    def _run(self, x: Tensor, start: float, end: float) -> tuple[Tensor, Tensor]:
        def field(t: float, state: ODEState) -> ODEState:
            return self.velocity.with_divergence(t, state[0])

        flat = x.reshape(-1, x.shape[-1])
        state = (flat, flat.new_zeros(len(flat)))
        y, log_det = integrate(field, state, start, end, self.steps, self.method, self.recompute)
        return y.reshape(x.shape), log_det.reshape(x.shape[:-1])

    def push(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(z, self.start, self.end)

    def pull(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(x, self.end, self.start)


class ContinuousTransform(zuko.lazy.LazyTransform):
    r"""A continuous block: z → x along a velocity field. Contexts are ignored.

    Arguments:
        velocity: A module with ``with_divergence(t, x)``, such as
            :class:`~pyro_flowsamp.nn.mlp.VelocityMLP`.
        steps: Integration steps; :func:`refine` raises them after training.
        method: One of :data:`METHODS`.
        recompute: Whether gradients need less memory and more time, see :func:`integrate`.

    Raises:
        ValueError: There is no such method, or no step.

    Example:
        >>> from pyro_flowsamp.nn import VelocityMLP
        >>> block, z = ContinuousTransform(VelocityMLP(2)), torch.ones(3, 2)
        >>> bool(torch.equal(block()(z), z))  # a new velocity is zero
        True
    """

    def __init__(
        self, velocity: nn.Module, steps: int = 2, method: str = "rk4", recompute: bool = False
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"method must be one of {sorted(METHODS)}, got '{method}'")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.velocity, self.steps, self.method = velocity, steps, method
        self.recompute = recompute

    def forward(self, c: Tensor | None = None) -> Map:
        """The map z → x."""
        return ContinuousMap(self.velocity, self.steps, self.method, self.recompute)  # type: ignore[arg-type]

    def get_extra_state(self) -> dict[str, int]:
        """The number of steps."""
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Takes the state of :meth:`get_extra_state`."""
        self.steps = state["steps"]


class TransportFlow(zuko.lazy.Flow):
    """A flow followed by continuous blocks, data last: start → block 1 → … → block K → data.

    Arguments:
        start: Any zuko-style flow; its own base becomes the base of the whole.
        blocks: The blocks, in the order in which samples pass them.

    Example:
        >>> from pyro_flowsamp.flows import gaussian
        >>> from pyro_flowsamp.nn import VelocityMLP
        >>> flow = TransportFlow(gaussian(2), [ContinuousTransform(VelocityMLP(2))])
        >>> round(flow().log_prob(torch.zeros(2)).item(), 4)
        -1.8379
    """

    def __init__(self, start: nn.Module, blocks: Sequence[nn.Module] = ()) -> None:
        nn.Module.__init__(self)
        self.start = start
        self.blocks = nn.ModuleList(blocks)

    @property
    def base(self) -> nn.Module:
        """The latent distribution, that of the first flow."""
        return self.start.base  # type: ignore[return-value]

    @property
    def transform(self) -> zuko.lazy.LazyTransform:
        """The lazy transform from data to latent, as zuko has it."""
        towards_latent = [Inverse(block) for block in reversed(self.blocks)]
        return zuko.lazy.LazyComposedTransform(*towards_latent, self.start.transform)


class Inverse(zuko.lazy.LazyTransform):
    """The inverse of a block: zuko's transforms map data to latent, blocks map latent to data.

    Example:
        >>> from pyro_flowsamp.nn import VelocityMLP
        >>> velocity = VelocityMLP(2)
        >>> _ = [torch.nn.init.normal_(p, std=0.3) for p in velocity.parameters()]
        >>> block, z = ContinuousTransform(velocity, steps=8), torch.ones(1, 2)
        >>> torch.allclose(Inverse(block)()(block()(z)), z, atol=1e-4)
        True
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, c: Tensor | None = None) -> Map:
        return self.block(c).inv


def _errors(block: ContinuousTransform, z: Tensor, log_prob: Callable[[Tensor], Tensor]) -> Tensor:
    r"""The errors of log q at each point, of the discrete map and of the way back from it, summed.

    Let :math:`r = T^{-1} \circ T_n` be the discrete map and then the inverse of a finer one.
    Then :math:`\log\det DT_n = \log\det Dr + \log\det DT`, and as :math:`r` is nearly the identity,
    :math:`\log\det Dr \approx \mathrm{tr}(Dr - I)`. The trace is estimated by one product with a
    random sign vector, by differences. That is right to nine digits and takes half the time of
    forward-mode differentiation.
    """
    coarse, fine = block(), ContinuousMap(block.velocity, 2 * block.steps, "dopri5", False)  # type: ignore[arg-type]
    probe, nudge = torch.randn_like(z).sign(), 1e-6 * z.std(correction=0).clamp(min=1e-3)
    x, log_det = coarse.push(torch.cat([z, z + nudge * probe]))
    home, log_det_home = fine.pull(x)
    x, log_det, excess = x[: len(z)], log_det[: len(z)], (log_det + log_det_home)[: len(z)]
    turned = (home[len(z) :] - home[: len(z)]) / nudge
    sampled = excess - (probe * (turned - probe)).sum(-1)
    back, log_det_back = coarse.pull(x)
    scored = log_det + log_det_back + log_prob(back) - log_prob(z)
    return sampled.abs() + scored.abs()


@torch.no_grad()
def refine(
    block: ContinuousTransform,
    z: Tensor,
    tolerance: float = 1e-3,
    log_prob: Callable[[Tensor], Tensor] | None = None,
) -> float:
    r"""Doubles a block's steps until its log q is right to ``tolerance`` on 99.9 % of points.

    The error is that of the steps, measured in double precision. Right means equal to the density
    of the samples that the discrete map makes, both for a draw scored by the pass that made it and
    for one scored by the inverse pass. Errors of blocks in a row add up.

    Arguments:
        block: The block; its ``steps`` are changed.
        z: Points that enter the block, ``(N, d)``.
        tolerance: The greatest error, in nats.
        log_prob: The log density of these points, which weighs the errors of the inverse pass. By
            default a Gaussian of their moments, which is too tolerant where modes are narrow.

    Returns:
        The error that is left, in nats.

    Raises:
        ValueError: More than :data:`MAX_STEPS` steps would be needed.

    Example:
        >>> from pyro_flowsamp.nn import VelocityMLP
        >>> block = ContinuousTransform(VelocityMLP(2))
        >>> refine(block, torch.randn(100, 2)) < 1e-3, block.steps
        (True, 2)
    """
    if log_prob is None:
        spread = Normal(z.mean(0), z.std(0).clamp(min=1e-6), validate_args=False)
        log_prob = Independent(spread, 1, validate_args=False).log_prob
    score, dtype = log_prob, z.dtype
    twin = deepcopy(block).double()
    while twin.steps <= max(block.steps, MAX_STEPS):
        errors = _errors(twin, z.double(), lambda x: score(x.to(dtype)).double())
        gap = float(errors.quantile(0.999))
        if gap <= tolerance:
            block.steps = twin.steps
            return gap
        twin.steps *= 2
    raise ValueError(
        f"a velocity field needs more than {MAX_STEPS} {block.method} steps for a log density "
        f"right to {tolerance:.1g} nats ({gap:.2g} reached): use a method of higher order, more "
        f"Wasserstein regularisation, smaller stages, or train in torch.float64."
    )
