r"""AutoDeformationFlow: a velocity trained on the deformation equation, from energies alone.

See :mod:`pyro_flowsamp.guides.deformation.energy_path` for the equation,
:mod:`pyro_flowsamp.guides.deformation.losses` for the loss,
:mod:`pyro_flowsamp.guides.deformation.collocation` for the points where it is enforced.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import count, pairwise
from math import ceil, gamma, inf, log
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...flows.continuous import ContinuousMap, integrate, refine
from ...nn.equivariant import SignedPermutation, group, tie, tied
from ...nn.mlp import TimeMLP, VelocityMLP
from ...objectives import Objective, PathGradient
from ...options import FitOptions
from ...smc import driver, particles
from ...smc.particles import Particles
from ...smc.starts import overdispersed_base
from ...smc.tempering import tempered_smc
from ...target.density import Target
from ...train import History, fit
from ...weights import Evidence, ess_fraction, log_evidence
from ..auto_flow import AutoFlow
from ..path_guide import PathGuide
from .collocation import TerminalParticles, anneal_from_bases
from .energy_path import BoltzmannPath, Energy, EnergyMLP, PathState
from .losses import COLLOCATION_LOSSES, LOSSES, CollocationLoss, residual
from .velocity_flow import DeformationFlow, GeneralisedNormal

__all__ = ["AutoDeformationFlow", "Progress"]


STEPS = 16  #: of the integrator while training, and at least for weights along the path
MIN_STEPS = 2  #: steps of the integrator of a trained flow, where they are enough
NUM_PACE = 512  #: particles annealed to find where the path changes most
NUM_WATCH = 1024  #: draws with which training is watched
NUM_REFINE = 256  #: draws on which the integrator is checked
NUM_COMPARE = 4096  #: draws for the flow's own evidence
POLISH_RATE = 1e-4  #: learning rate of polishing
SIGMAS, NATS = 4.0, 0.1  #: by how much evidences may differ
DEFENSIVE_WEIGHT = 0.1  #: share of particles left behind in each slice, so that no region empties
MAX_DENSITY_DEFICIT = 5.0  #: nats by which the flow's density may be too small at a particle
MAX_MISSED_MASS = 0.01  #: share of the evidence that may lie where the deficit is larger


class Progress(NamedTuple):
    """The flow while it was trained: optimiser steps, densities asked, seconds, ESS fraction."""

    steps: int
    evaluations: int
    seconds: float
    ess: float


class AutoDeformationFlow(PathGuide):
    r"""A guide for energies without samples, with exact weights along the path.

    Example::

        guide = AutoDeformationFlow(model)
        guide.fit(data)
        x, log_w = guide.weighted_samples(10_000, data)
        log_z, error = log_evidence(log_w)
        cloud = guide.particles(16_000, data)      # corrected on the way

    References:
        Máté & Fleuret: Learning Interpolations between Boltzmann Densities, 2023,
        https://arxiv.org/abs/2301.07388

    Arguments:
        model: A Pyro model, or a :class:`~pyro_flowsamp.Target`, on :math:`\mathbb R^d`.
        interpolation: "linear"; "trainable", with a learned term that is added to the linear path
            early in training; or energies :math:`f_t(x)` of times ``(N,)`` and places ``(N, d)``,
            equal to those of the base at 0 and of the target at 1.
        collocation: "smc", on points kept near the path; or "trajectories", the paper's, along the
            flow's own, through which gradients go back.
        loss: L(E): "mixed", :math:`|E| + E^2`, "absolute", "square", or "log".
        base_power: :math:`p` of the base :math:`e^{-\sum_i |(x_i - \mu_i) / \sigma|^p}`.
        base_scale: :math:`\sigma`, with :math:`\mu = 0`; by default both cover many points that
            were moved uphill to their modes, and the path's speed is that of an annealing from
            there.
        exploration_scale: How much wider the base is from which training explores.
        time_grid: How many slices of time, or the slices' ends, from 0 to 1.
        hidden_features, time_kernels: Of both networks, see :class:`~pyro_flowsamp.nn.mlp.TimeMLP`.
        symmetry: Signed permutations of coordinates that leave base and target as they are, which
            the networks then respect, see :mod:`pyro_flowsamp.nn.equivariant`.
        polish: Optimiser steps of ``objective`` afterwards, as for any other flow.
        objective: By default :class:`~pyro_flowsamp.objectives.PathGradient`.
        options: How to train; ``batch_size`` points are spread over all times, or carried along.
            By default 4000 steps whose rate rises for a tenth of them, and then falls.

    Attributes:
        progress: How the flow fared in training, :class:`Progress` after :class:`Progress`.
        evidences: Estimates of log Z with standard errors: of the "flow", and by annealing from
            the path's "base", one "twice as wide", and "over-dispersed" starts.
        missed_mass: Of the same annealed particles, the evidence that lies where the flow has next
            to no density, in units of the flow's own.

    Raises:
        ValueError: An argument is out of its range. :meth:`fit` raises it where a given
            interpolation does not lead from base to target, the energy has no gradient, or more
            than 1 % of the points on the way have no finite energy, and warns where annealing finds
            more evidence than the flow, or some of it where the flow has no density.
    """

    def __init__(
        self,
        model: Callable,
        *,
        interpolation: str | Energy = "trainable",
        collocation: str = "smc",
        loss: str = "mixed",
        base_power: float = 2.0,
        base_scale: float | None = None,
        exploration_scale: float = 1.0,
        time_grid: int | Sequence[float] = 32,
        hidden_features: int = 128,
        time_kernels: int = 1,
        symmetry: Sequence[SignedPermutation] = (),
        polish: int = 0,
        objective: Objective | None = None,
        options: FitOptions | None = None,
    ) -> None:
        default = FitOptions(
            max_steps=4000,
            batch_size=300,
            learning_rate=2e-2,
            eval_every=200,
            cosine_schedule=True,
            warmup_fraction=0.1,
            stop_at_ess=1.0,
        )
        super().__init__(model, options=options or default)
        if not callable(interpolation) and interpolation not in ("trainable", "linear"):
            raise ValueError(
                f"interpolation must be 'trainable', 'linear' or a function, got '{interpolation}'"
            )
        if collocation not in COLLOCATION_LOSSES:
            raise ValueError(
                f"collocation must be one of {sorted(COLLOCATION_LOSSES)}, got '{collocation}'"
            )
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {sorted(LOSSES)}, got '{loss}'")
        for name, value in (
            ("base_power", base_power),
            ("base_scale", base_scale),
            ("exploration_scale", exploration_scale),
        ):
            if value is not None and not 0 < value < inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if callable(interpolation) and (exploration_scale != 1 or base_scale is None):
            raise ValueError(
                "a given interpolation has a base of its own: give its base_scale, and leave "
                "exploration_scale at 1"
            )
        if polish < 0:
            raise ValueError(f"polish must not be negative, got {polish}")
        self._interpolation = (interpolation,)
        self.loss, self.collocation = loss, collocation
        self.base_power, self.base_scale = base_power, base_scale
        self.exploration_scale = exploration_scale
        self.time_grid = _grid(time_grid)
        self.hidden_features, self.time_kernels = hidden_features, time_kernels
        self.symmetry, self.polish = list(symmetry), polish
        self.objective = objective or PathGradient()
        self.progress: list[Progress] = []
        self.evidences: dict[str, Evidence] = {}
        self.missed_mass: dict[str, float] = {}

    # ---- building -----------------------------------------------------------------------------

    def build_flow(self, target: Target, context_size: int) -> nn.Module:
        self.check_target(target)
        (interpolation,) = self._interpolation
        dim, hidden, kernels = target.dim, self.hidden_features, self.time_kernels
        velocity = VelocityMLP(dim, hidden, kernels, units=0)
        velocity.damping = 1.0
        learned_term = EnergyMLP(dim, hidden, kernels) if interpolation == "trainable" else None
        given = None if isinstance(interpolation, str) else interpolation
        path = BoltzmannPath(dim, self.base_power, learned_term, given)
        flow = DeformationFlow(path, velocity, len(self.time_grid), STEPS)
        if self.symmetry:
            elements = group(self.symmetry)
            for net in _networks(flow):
                tie(net, elements)
        if self.base_scale is not None:
            flow.set_loc_scale(torch.zeros(dim), torch.full((dim,), float(self.base_scale)))
        return flow

    @property
    def _flow(self) -> DeformationFlow:
        assert isinstance(self.flow, DeformationFlow)
        return self.flow

    def get_base_dist(self) -> GeneralisedNormal:
        """The standard generalised normal that the flow transports."""
        return self._flow.base(None)

    @torch.no_grad()
    def _place_base(self, target: Target) -> None:
        wide = overdispersed_base(target, 512)
        loc, scale = wide.loc, wide.scale
        if self.symmetry:  # chance must not break it
            elements = group(self.symmetry)
            loc = elements.act(loc).mean(0)
            scale = elements.act(scale).square().mean(0).sqrt()
        deviation = (gamma(3 / self.base_power) / gamma(1 / self.base_power)) ** 0.5
        self._flow.set_loc_scale(loc, scale / deviation)
        betas = tempered_smc(target, NUM_PACE).betas
        assert betas is not None
        halfway = min(0.5, float(betas[len(betas) // 2]))
        self._flow.path.log_kappa.fill_(2 * log(1 / halfway - 1))

    # ---- training -----------------------------------------------------------------------------

    def train_flow(self, target: Target, contexts: Tensor | None) -> History:
        _check_gradient(target)
        flow = self._flow
        if self.base_scale is None and not self.trained:
            self._place_base(target)
        self.progress = []
        times = torch.tensor(self.time_grid, dtype=torch.double).to(flow.path.loc)
        flow.path.check(target, self.get_base_dist().sample((16,)))
        flow.block.steps = STEPS
        num = self.options.batch_size
        steps = self.options.max_steps
        collocation = CollocationLoss(
            flow, target, times, self.loss, num, self.exploration_scale, steps
        )
        closure = self._watched(
            COLLOCATION_LOSSES[self.collocation](collocation), collocation, target
        )
        parameters = [*flow.velocity.parameters(), *flow.path.parameters()]
        with self._tied():
            history = fit(parameters, closure, ess_fraction, self.options)
            collocation.check_dropped()
            if self.polish:
                self._polish(target)
        base = self.get_base_dist()
        flow.block.steps = MIN_STEPS
        refine(flow.block, base.sample((NUM_REFINE,)), log_prob=base.log_prob)
        self._compare(target, times)
        return history

    def _tied(self) -> AbstractContextManager[None]:
        return tied(_networks(self._flow), group(self.symmetry)) if self.symmetry else nullcontext()

    def _watched(
        self, closure: Callable[[], Tensor], collocation: CollocationLoss, target: Target
    ) -> Callable[[], tuple[Tensor, Tensor | None]]:
        """The closure, and the flow's own weights at the end of every window."""
        start, already, calls = time.perf_counter(), target.evaluations, count(1)

        def watched() -> tuple[Tensor, Tensor | None]:
            loss, steps = closure(), next(calls)
            if steps % self.options.eval_every:
                return loss, None
            collocation.check_dropped()
            log_w = self._log_weights(target, NUM_WATCH)
            clock, asked = time.perf_counter() - start, target.evaluations - already
            self.progress.append(Progress(steps, asked, clock, float(ess_fraction(log_w))))
            return loss, log_w

        return watched

    def _polish(self, target: Target) -> None:
        options = replace(self.options, max_steps=self.polish, learning_rate=POLISH_RATE)
        flow, num = self._flow, options.batch_size

        def closure() -> tuple[Tensor, Tensor | None]:
            return self.objective(flow, target, num, None)

        fit(flow.velocity.parameters(), closure, ess_fraction, options)

    # ---- what the weights tell ------------------------------------------------------------------

    @torch.no_grad()
    def _log_weights(self, target: Target, num: int) -> Tensor:
        x, log_q = self._flow(None).rsample_and_log_prob((num,))
        log_w = target.log_prob(x).double() - log_q.double()
        return torch.where(log_w.isnan(), -torch.inf, log_w)

    def _compare(self, target: Target, times: Tensor) -> None:
        """Holds the flow against particles that were annealed from elsewhere.

        A mean weight knows only the modes that were visited. Annealed particles know others: by the
        greater evidence where they get that far, else by the share of theirs that lies where the
        flow has next to no density. That one is meaningful however low their evidence: all but
        unbiased, it rarely is much larger than the mass there.
        """
        found, step_sizes = anneal_from_bases(self._flow.path, target, self.get_base_dist(), times)
        self._flow.step_sizes.copy_(step_sizes)
        own, error = log_evidence(self._log_weights(target, NUM_COMPARE))
        self.evidences = {"flow": Evidence(own, error)}
        self.evidences |= {name: population.evidence for name, population in found.items()}
        self.missed_mass = {
            name: self._missed_mass(population, own) for name, population in found.items()
        }
        remedy = "Train longer, or give a larger base_scale, or exploration_scale."
        if self._flow.path.given is not None:
            remedy = "Train longer, or give an interpolation from a wider base."
        for name, (log_z, other) in self.evidences.items():
            spread = (error**2 + other**2).nan_to_num().sqrt()  # NaN where no weight is left
            if log_z - own > SIGMAS * spread + NATS:
                warnings.warn(
                    f"log Z is {own:.2f} ± {error:.2f} by the flow, but {log_z:.2f} ± {other:.2f} "
                    f"by annealed particles ({name}): the flow has missed modes, which its "
                    f"weights cannot show. {remedy}",
                    stacklevel=4,
                )
                return
        name, missed = max(self.missed_mass.items(), key=lambda item: item[1])
        if missed > MAX_MISSED_MASS:
            warnings.warn(
                f"annealed particles ({name}) find {missed:.1%} of the flow's own evidence where "
                f"it has less than e^-{MAX_DENSITY_DEFICIT:.0f} of the density that it ought to "
                f"have: it has missed modes, which its weights cannot show, or is not trained "
                f"yet. {remedy}",
                stacklevel=4,
            )

    @torch.no_grad()
    def _missed_mass(self, population: TerminalParticles, own: Tensor) -> float:
        """Evidence where the flow has next to no density, in units of the flow's own."""
        if population.evidence.log_z == -inf:
            return 0.0
        log_q = self._flow(None).log_prob(population.x).double()
        # NaN, where the flow's inverse is not finite, counts as too small.
        sparse = ~(population.log_prob - log_q - own <= MAX_DENSITY_DEFICIT)
        share = (population.weights * sparse).sum().double().log()
        return float((share + population.evidence.log_z - own).exp())

    def weighted_samples(self, num: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        r"""Draws ``(num, d)`` with :math:`\log(w Z_0)`, integrated along their trajectories.

        Their mean weight is an unbiased estimate of Z, see
        :func:`~pyro_flowsamp.weights.log_evidence`: up to the integrator's error they are the
        importance weights of the flow. A trajectory that leaves the target's support has lost its
        weight for good.

        Arguments:
            num: How many.
            args, kwargs: The model's.

        Returns:
            The draws and their log weights ``(num,)``, float64.
        """
        target, flow = self.target_for(*args, **kwargs), self._flow

        def field(t: float, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            times = state[1].new_full(state[1].shape, t)
            _, denergy_dt, grad_energy, _ = flow.path.fixed_terms(target, times, state[0])
            errors, v = residual(flow.path, flow.velocity, times, state[0], denergy_dt, grad_energy)
            return v, -errors

        with torch.no_grad():
            u = self.get_base_dist().sample((num,))
            state, steps = (u, torch.zeros_like(u[:, 0])), max(STEPS, flow.block.steps)
            u, log_w = integrate(field, state, 0.0, 1.0, steps)
            return flow.path.loc + flow.path.scale * u, log_w.double() + self.get_base_dist().log_z

    @torch.no_grad()
    def particles(
        self, num: int, *args: Any, islands: int = 16, moves: int = 1, **kwargs: Any
    ) -> Particles:
        r"""Draws corrected on the way: weighted, resampled and moved after every slice of time.

        A slice from t to t' adds to the weight what it takes to get from :math:`e^{-f_t}` to
        :math:`e^{-f_{t'}}`, a tenth of the particles staying behind, see
        :mod:`pyro_flowsamp.smc.particles`; Langevin moves leave the latter as it is and add
        nothing. All step sizes date from :meth:`fit`, so that the mean weight is an unbiased
        estimate of Z, on slices of any number and length.

        Arguments:
            num: How many, a multiple of ``islands``.
            args, kwargs: The model's.
            islands: Independent groups, whose spread is the error of the evidence.
            moves: Langevin moves after each slice.

        Raises:
            ValueError: ``num`` is not a positive multiple of ``islands``.
        """
        self.check_islands(num, islands)
        target, flow = self.target_for(*args, **kwargs), self._flow
        path, times, ones = flow.path, self.time_grid, torch.ones_like(flow.path.loc)

        def density(t: float) -> Callable[[Tensor], PathState]:
            return lambda u: path.state_at(target, u.new_full(u.shape[:1], t), u)

        def stage(start: float, end: float, step_size: Tensor) -> driver.Stage:
            steps = ceil(flow.block.steps * (end - start) - 1e-9)  # no longer than refined ones
            segment = ContinuousMap(flow.velocity, steps, flow.block.method, False, start, end)
            before = partial(path.log_prob_at, start, t=end)
            return driver.Stage(segment, density(end), ones, step_size, DEFENSIVE_WEIGHT, before)

        first = particles.init(self.get_base_dist().sample((num,)), density(0.0), islands)
        stages = (stage(*ends, size) for ends, size in zip(pairwise(times), flow.step_sizes[1:]))
        (cloud,) = deque(self.run_stages(first, stages, moves), maxlen=1)
        state = cloud.state._replace(x=path.loc + path.scale * cloud.x)
        return cloud._replace(state=state, log_z=cloud.log_z + self.get_base_dist().log_z)

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
        target = self.target_for(*args, **kwargs)
        draws = self.particles(num, *args, **kwargs).draw(num)
        student = AutoFlow(
            self.model_source, flow=flow, ensemble=target.unpack(draws), options=options
        )
        student.fit(*args, **kwargs)
        return student


def _networks(flow: DeformationFlow) -> list[TimeMLP]:
    learned_term = flow.path.learned_term
    return [flow.velocity] if learned_term is None else [flow.velocity, learned_term]


def _grid(times: int | Sequence[float]) -> list[float]:
    if isinstance(times, int):
        if times < 1:
            raise ValueError(f"time_grid must be at least 1, got {times}")
        return torch.linspace(0, 1, times + 1, dtype=torch.double).tolist()
    grid = [float(t) for t in times]
    if grid[:1] != [0] or grid[-1:] != [1] or not all(a < b for a, b in pairwise(grid)):
        raise ValueError(f"time_grid must rise from 0 to 1, got {grid}")
    return grid


def _check_gradient(target: Target) -> None:
    x = target.initial_points(16)  # raises where the density is not finite anywhere
    try:
        grad = target.log_prob_and_grad(x)[1]
    except RuntimeError as error:
        raise ValueError(
            f"the energy has no gradient ({error}), but training needs one."
        ) from error
    if not grad.abs().sum() > 0:
        raise ValueError("the energy's gradient is zero everywhere, but training needs one.")
