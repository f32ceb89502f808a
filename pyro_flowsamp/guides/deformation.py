r"""AutoDeformationFlow: a velocity trained on the deformation equation, from energies alone.

See :mod:`pyro_flowsamp.deformation` for the equation, :mod:`pyro_flowsamp.guides.walkers` for the
points it is demanded at. :math:`C_t` need not be learnt: the points come in groups of one time, and
the mean of a group is the C that makes its squared error least. (A network would have to climb to
:math:`\log Z_1 - \log Z_0`, which for a lattice of 16 sites is 43.)
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count, pairwise
from math import gamma
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..deformation import (
    LOSSES,
    BoltzmannPath,
    DeformationFlow,
    Energy,
    EnergyMLP,
    GeneralisedNormal,
    Spot,
    residual,
)
from ..importance import Evidence, ess_fraction, log_evidence
from ..objectives import Objective, PathGradient
from ..paths import Velocity, integrate, refine
from ..symmetry import SignedPermutation, group, tie
from ..target import Target
from ..train import FitOptions, History, fit
from ..transitions import bridge, transport
from ..velocity import VelocityMLP
from .base import FlowGuide
from .flow import AutoFlow
from .walkers import Walkers, explore

__all__ = ["AutoDeformationFlow", "Progress"]

STEPS = 16  #: of the integrator while training
EVERY = 8  #: optimiser steps between two refreshes of the walkers
NUM_WATCH = 1024  #: draws with which training is watched
NUM_REFINE = 256  #: draws on which the integrator is checked
NUM_COMPARE = 4096  #: draws for the flow's own evidence
POLISH_RATE = 1e-4  #: learning rate of polishing
NUM_EXPLORE = 1024  #: particles annealed from other bases
SIGMAS, NATS = 4.0, 0.1  #: by how much evidences may differ
MOST_DROPPED = 0.01  #: share of trajectories that may become NaN


class Progress(NamedTuple):
    """The flow while it was trained: optimiser steps, densities asked, seconds, ESS fraction."""

    steps: int
    evaluations: int
    seconds: float
    ess: float


class _Segment:
    """The velocity's flow between two times, for particles."""

    def __init__(self, velocity: Velocity, start: float, end: float, steps: int) -> None:
        self.velocity, self.start, self.end, self.steps = velocity, start, end, steps

    def push(self, u: Tensor) -> tuple[Tensor, Tensor]:
        def field(t: float, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return self.velocity.with_divergence(t, state[0])

        zero = u.new_zeros(len(u))
        u, ladj = integrate(field, (u, zero), self.start, self.end, self.steps)
        return u, ladj


class AutoDeformationFlow(FlowGuide):
    r"""A guide for energies without samples, with exact weights along the path.

    Example::

        guide = AutoDeformationFlow(model)
        guide.fit(data)
        x, log_w = guide.path_weights(10_000, data)
        log_z, error = log_evidence(log_w)
        cloud = guide.particles(16_000, data)      # corrected on the way

    References:
        Máté & Fleuret: Learning Interpolations between Boltzmann Densities, 2023,
        https://arxiv.org/abs/2301.07388

    Arguments:
        model: A Pyro model, or a :class:`~pyro_flowsamp.Target`, on :math:`\mathbb R^d`.
        interpolation: "trainable"; "linear"; or energies :math:`f_t(x)` of times ``(N,)`` and
            places ``(N, d)``, equal to those of the base at 0 and of the target at 1.
        trainer: "walkers", on points kept near the path; or "trajectories", the paper's, along the
            flow's own, through which gradients go back.
        loss: L(E): "mixed", :math:`|E| + E^2`, "absolute", "square", or "log".
        power: :math:`p` of the base :math:`e^{-\sum_i |(x_i - \mu_i) / \sigma|^p}`.
        scale: :math:`\sigma`, with :math:`\mu = 0`; by default both cover many points that climbed
            to their modes from far out.
        train_scale: How much wider the base is from which training explores.
        times: How many slices of time, or the slices' ends, from 0 to 1.
        hidden_features, kernels: Of both networks, see :class:`~pyro_flowsamp.velocity.TimeMLP`.
        symmetry: Signed permutations of coordinates that leave base and target as they are, which
            the networks then respect, see :mod:`pyro_flowsamp.symmetry`.
        polish: Optimiser steps of ``objective`` afterwards, as for any other flow.
        objective: By default :class:`~pyro_flowsamp.objectives.PathGradient`.
        options: How to train; ``batch_size`` points are spread over all times, or carried along.

    Attributes:
        progress: How the flow fared in training, :class:`Progress` after :class:`Progress`.
        evidences: Estimates of log Z with standard errors: of the "flow", and by annealing from
            the base ("explorers"), a base "twice as wide", and "over-dispersed" starts.
    """

    def __init__(
        self,
        model: Callable,
        *,
        interpolation: str | Energy = "trainable",
        trainer: str = "walkers",
        loss: str = "mixed",
        power: float = 2.0,
        scale: float | None = None,
        train_scale: float = 1.0,
        times: int | Sequence[float] = 32,
        hidden_features: int = 128,
        kernels: int = 1,
        symmetry: Sequence[SignedPermutation] = (),
        polish: int = 0,
        objective: Objective | None = None,
        options: FitOptions | None = None,
    ) -> None:
        default = FitOptions(
            max_steps=4000,
            batch_size=300,
            learning_rate=2e-2,
            window=200,
            anneal=True,
            enough=1.0,
        )
        super().__init__(model, options=options or default)
        if isinstance(interpolation, str) and interpolation not in ("trainable", "linear"):
            raise ValueError(
                f"interpolation must be 'trainable', 'linear' or a function, got '{interpolation}'"
            )
        if trainer not in ("walkers", "trajectories"):
            raise ValueError(f"trainer must be 'walkers' or 'trajectories', got '{trainer}'")
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {sorted(LOSSES)}, got '{loss}'")
        for name, value in (("power", power), ("scale", scale), ("train_scale", train_scale)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if callable(interpolation) and train_scale != 1:
            raise ValueError("a given interpolation has a base of its own: leave train_scale at 1")
        self._interpolation = (interpolation,)
        self._loss, self.trainer = LOSSES[loss], trainer
        self.power, self.scale, self.train_scale = power, scale, train_scale
        self.times = _grid(times)
        self.hidden_features, self.kernels = hidden_features, kernels
        self.symmetry, self.polish = list(symmetry), polish
        self.objective = objective or PathGradient()
        self.progress: list[Progress] = []
        self.evidences: dict[str, Evidence] = {}

    # ---- building -----------------------------------------------------------------------------

    def build_flow(self, target: Target, context_size: int) -> nn.Module:
        if target.circular:
            raise ValueError(
                "AutoDeformationFlow lives on R^d and the target has angles: use "
                "AutoFlow(flow='circular', ensemble=tempered_ensemble)."
            )
        (interpolation,) = self._interpolation
        dim, hidden, kernels = target.dim, self.hidden_features, self.kernels
        velocity = VelocityMLP(dim, hidden, kernels, units=0)
        velocity.damping = 1.0
        detour = EnergyMLP(dim, hidden, kernels) if interpolation == "trainable" else None
        if self.symmetry:
            elements = group(self.symmetry)
            for net in (velocity, detour):
                if net is not None:
                    tie(net, elements)
        given = None if isinstance(interpolation, str) else interpolation
        path = BoltzmannPath(dim, self.power, detour, given)
        flow = DeformationFlow(path, velocity, len(self.times), STEPS)
        if self.scale is not None:
            flow.place(torch.zeros(dim), torch.full((dim,), float(self.scale)))
        return flow

    @property
    def _flow(self) -> DeformationFlow:
        assert isinstance(self.flow, DeformationFlow)
        return self.flow

    def _base(self) -> GeneralisedNormal:
        return self._flow.base(None)

    def get_base_dist(self) -> GeneralisedNormal:
        """The standard generalised normal that the flow transports."""
        return self._base()

    @torch.no_grad()
    def _place_base(self, target: Target) -> None:
        wide = bridge.overdispersed_base(target, 512)
        deviation = (gamma(3 / self.power) / gamma(1 / self.power)) ** 0.5
        self._flow.place(wide.loc, wide.scale / deviation)

    # ---- training -----------------------------------------------------------------------------

    def train_flow(self, target: Target, contexts: Tensor | None) -> History:
        _check_gradient(target)
        flow = self._flow
        if self.scale is None and not self.trained:
            self._place_base(target)
        self.progress, self._bad, self._seen = [], torch.zeros_like(flow.path.loc[0]), 0
        times = torch.tensor(self.times).to(flow.path.loc)
        flow.path.check(target, self._base().sample((16,)))
        flow.block.steps = STEPS
        make = self._walking if self.trainer == "walkers" else self._carrying
        closure = self._watched(make(target, times), target)
        parameters = [*flow.velocity.parameters(), *flow.path.parameters()]
        history = fit(parameters, closure, ess_fraction, self.options)
        if self.polish:
            self._polish(target)
        base = self._base()
        refine(flow.block, base.sample((NUM_REFINE,)), log_prob=base.log_prob)
        self._compare(target, times)
        return history

    def _deviations(self, errors: Tensor) -> Tensor:
        """Errors ``(S, m)`` less the mean of each time; those that are not finite are dropped."""
        finite = torch.isfinite(errors)
        self._bad = self._bad + (~finite).sum()
        self._seen += errors.numel()
        errors = torch.where(finite, errors, 0.0)
        mean = errors.sum(-1, keepdim=True) / finite.sum(-1, keepdim=True).clamp(min=1)
        return torch.where(finite, errors - mean, 0.0)

    def _walking(self, target: Target, times: Tensor) -> Callable[[], Tensor]:
        """The error at points that walk along the path by themselves."""
        path, velocity = self._flow.path, self._flow.velocity
        walkers = Walkers(path, velocity, target, self._base(), times, self.train_scale)
        num = max(1, self.options.batch_size // (3 * len(times)))
        calls = count()

        def closure() -> Tensor:
            if next(calls) % EVERY == 0:
                walkers.refresh()
            t, u, rate, slope = walkers.sample(num)
            errors, _ = residual(path, velocity, t, u, rate, slope)
            return self._loss(self._deviations(errors.view(len(times), -1))).mean()

        self.walkers = walkers
        return closure

    def _carrying(self, target: Target, times: Tensor) -> Callable[[], Tensor]:
        """The error along the flow's own trajectories, weighted, by Euler steps."""
        path, velocity, base = self._flow.path, self._flow.velocity, self._base()

        def closure() -> Tensor:
            u = self.train_scale * base.sample((self.options.batch_size,))
            log_w = path.base(u, self.train_scale)[0] - path.base(u)[0]
            loss = torch.zeros_like(log_w)
            for start, end in pairwise(times):
                t, h = start.expand(len(u)), end - start
                _, rate, slope, _ = path.fixed(target, t, u)
                errors, v = residual(path, velocity, t, u, rate, slope)
                loss = loss + h * self._loss(self._deviations(errors[None])[0])
                log_w = log_w - h * errors.detach()
                u = u + h * v
            return (log_w.nan_to_num(nan=-torch.inf).softmax(0) * loss).sum()

        return closure

    def _watched(
        self, closure: Callable[[], Tensor], target: Target
    ) -> Callable[[], tuple[Tensor, Tensor | None]]:
        """The closure, and the flow's own weights at the end of every window."""
        start, already, calls = time.perf_counter(), target.evaluations, count(1)

        def watched() -> tuple[Tensor, Tensor | None]:
            loss, steps = closure(), next(calls)
            if steps % self.options.window:
                return loss, None
            self._check_dropped()
            log_w = self._log_weights(target, NUM_WATCH)[1]
            clock, asked = time.perf_counter() - start, target.evaluations - already
            self.progress.append(Progress(steps, asked, clock, float(ess_fraction(log_w))))
            return loss, log_w

        return watched

    def _check_dropped(self) -> None:
        share = float(self._bad) / self._seen
        if share > MOST_DROPPED:
            raise ValueError(
                f"the energy is NaN or infinite at {share:.1%} of the points on the way: the base "
                f"reaches where the target has no density, or the learning rate is too high."
            )

    def _polish(self, target: Target) -> None:
        options = replace(self.options, max_steps=self.polish, learning_rate=POLISH_RATE)
        flow, num = self._flow, options.batch_size

        def closure() -> tuple[Tensor, Tensor | None]:
            return self.objective(flow, target, num, None)

        fit(flow.velocity.parameters(), closure, ess_fraction, options)

    # ---- what the weights tell ------------------------------------------------------------------

    @torch.no_grad()
    def _log_weights(self, target: Target, num: int) -> tuple[Tensor, Tensor]:
        x, log_q = self._flow(None).rsample_and_log_prob((num,))
        return x, target.log_prob(x).double() - log_q.double()

    def _compare(self, target: Target, times: Tensor) -> None:
        """Holds the flow's evidence against those of annealing from elsewhere.

        The mean weight is unbiased, but of the modes that are visited; so is that of annealed
        particles. The greatest estimate has seen the most.
        """
        self.evidences = self._estimates(target, times)
        own, error = self.evidences["flow"]
        for name, (log_z, other) in self.evidences.items():
            if log_z - own > SIGMAS * (error**2 + other**2) ** 0.5 + NATS:
                warnings.warn(
                    f"log Z is {own:.2f} ± {error:.2f} by the flow, but {log_z:.2f} ± {other:.2f} "
                    f"by annealed particles ({name}): the flow has missed modes, which its "
                    f"weights cannot show. Give a larger scale, or train_scale.",
                    stacklevel=4,
                )
                return

    @torch.no_grad()
    def _estimates(self, target: Target, times: Tensor) -> dict[str, Evidence]:
        path, base = self._flow.path, self._base()
        explored = partial(explore, target=target, times=times, moves=2, num=NUM_EXPLORE)
        wide = BoltzmannPath(target.dim, self.power, None, None).to(path.loc)
        wide.loc.copy_(path.loc)
        wide.scale.copy_(path.scale)
        far = BoltzmannPath(target.dim, 2.0, None, None).to(path.loc)
        start = bridge.overdispersed_base(target, 512)
        far.loc.copy_(start.loc)
        far.scale.copy_(start.scale * 2**0.5)
        annealed = explored(path, base=base)
        self._flow.step_sizes.copy_(annealed.step_sizes)
        return {
            "flow": log_evidence(self._log_weights(target, NUM_COMPARE)[1]),
            "over-dispersed": explored(far, base=GeneralisedNormal(path.loc, 2.0)).evidence,
            "twice as wide": explored(wide, base=base, width=2.0).evidence,
            "base": annealed.evidence,
        }

    def path_weights(self, num: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        r"""Draws ``(num, d)`` with :math:`\log(w Z_0)`, integrated along their trajectories.

        Their mean weight is an unbiased estimate of Z, see
        :func:`~pyro_flowsamp.importance.log_evidence`; where the integrator is exact they are the
        importance weights of the flow.
        """
        target, flow = self.bind(*args, **kwargs), self._flow

        def field(t: float, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            times = state[1].new_full(state[1].shape, t)
            _, rate, slope, _ = flow.path.fixed(target, times, state[0])
            errors, v = residual(flow.path, flow.velocity, times, state[0], rate, slope)
            return v, -errors

        with torch.no_grad():
            u = self._base().sample((num,))
            u, log_w = integrate(field, (u, torch.zeros_like(u[:, 0])), 0.0, 1.0, flow.block.steps)
            return flow.path.loc + flow.path.scale * u, log_w.double() + self._base().log_z

    def particles(
        self, num: int, *args: Any, islands: int = 16, moves: int = 1, **kwargs: Any
    ) -> transport.Cloud:
        """Draws corrected on the way: weighted, resampled and moved after every slice of time.

        Arguments:
            num: How many, a multiple of ``islands``.
            args, kwargs: The model's.
            islands: Independent crowds, whose spread is the error of the evidence.
            moves: Langevin moves after each slice.
        """
        target, flow = self.bind(*args, **kwargs), self._flow
        path, times = flow.path, self.times
        per_slice = -(-flow.block.steps // (len(times) - 1))

        def density(t: float) -> Callable[[Tensor], Spot]:
            return lambda u: path.spot(target, u.new_full(u.shape[:1], t), u)

        cloud = transport.init(self._base().sample((num,)), density(0.0), islands)
        for (start, end), size in zip(pairwise(times), flow.step_sizes[1:]):
            segment = _Segment(flow.velocity, start, end, per_slice)
            stage = transport.Stage(segment, density(end), torch.ones_like(path.loc), size)
            cloud = transport.advance(cloud, stage, moves)
        state = cloud.state._replace(x=path.loc + path.scale * cloud.x)
        return cloud._replace(state=state, log_z=cloud.log_z + self._base().log_z)

    def distill(
        self,
        *args: Any,
        flow: str = "spline",
        num: int = 8192,
        options: FitOptions | None = None,
        **kwargs: Any,
    ) -> AutoFlow:
        """A coupling flow fitted to corrected draws: one pass a draw, not an integration.

        Arguments:
            args, kwargs: The model's.
            flow: A recipe's name, see :class:`~pyro_flowsamp.AutoFlow`.
            num: Corrected draws to learn from, by forward KL beside the path gradient.
            options: How to train it.
        """
        target = self.bind(*args, **kwargs)
        draws = self.particles(num, *args, **kwargs).draw(num)
        (source,) = self._source
        student = AutoFlow(source, flow=flow, ensemble=target.unpack(draws), options=options)
        student.fit(*args, **kwargs)
        return student


def _grid(times: int | Sequence[float]) -> list[float]:
    if isinstance(times, int):
        if times < 1:
            raise ValueError(f"times must be at least 1, got {times}")
        return torch.linspace(0, 1, times + 1, dtype=torch.double).tolist()
    grid = [float(t) for t in times]
    if len(grid) < 2 or grid[0] != 0 or grid[-1] != 1 or any(b <= a for a, b in pairwise(grid)):
        raise ValueError(f"times must rise from 0 to 1, got {grid}")
    return grid


def _check_gradient(target: Target) -> None:
    x = target.initial_points(16)  # raises where the density is not finite anywhere
    try:
        grad = target.log_prob_and_grad(x)[1]
    except RuntimeError as error:
        raise ValueError(f"the energy has no gradient ({error}); the flow follows it.") from error
    if not grad.abs().sum() > 0:
        raise ValueError("the energy's gradient is zero everywhere; the flow follows it.")
