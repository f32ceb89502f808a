r"""AutoDeformationFlow: a velocity trained on the deformation equation, from energies alone.

See :mod:`pyro_flowsamp.guides.deformation.energy_path` for the equation,
:mod:`pyro_flowsamp.guides.deformation.losses` for the loss,
:mod:`pyro_flowsamp.guides.deformation.collocation` for the points where it is enforced.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from ...flows.continuous import ContinuousMap, integrate
from ...nn.equivariant import SignedPermutation, group, tie
from ...nn.mlp import VelocityMLP
from ...options import FitOptions
from ...smc import driver, particles
from ...smc.particles import Particles
from ...smc.shared_islands import on_islands
from ...target.arguments import check_shared_names
from ...target.density import Target
from ...training.history import History
from ...validation import check_count, check_kind
from ...weights import Estimate, log_mean_weight
from ..auto_flow import AutoFlow
from ..path_guide import PathGuide
from ..source import Unregistered
from .checks import (
    check_base,
    check_gradient,
    log_weights,
    missed_mass,
    warn_of_missed_modes,
)
from .collocation import anneal_from_bases
from .energy_path import BoltzmannPath, Energy, EnergyMLP, PathState
from .losses import residual
from .options import DeformationOptions, ends_of_slices
from .training import Progress, VelocityTrainer, networks
from .velocity_flow import DeformationFlow, GeneralisedNormal

__all__ = ["AutoDeformationFlow"]


TRAINING = FitOptions(
    max_steps=4000,
    batch_size=300,
    learning_rate=2e-2,
    eval_every=200,
    cosine_schedule=True,
    warmup_fraction=0.1,
    stop_at_ess=1.0,
)


class AutoDeformationFlow(PathGuide):
    r"""A guide for energies without samples, with exact weights along the path.

    It learns a path of energies together with one velocity field along it. :meth:`weighted_samples`
    returns draws of the flow with their weights, and :meth:`particles` draws that are corrected on
    the way.

    Arguments:
        model: A Pyro model, or a :class:`~pyro_flowsamp.Target`, on :math:`\mathbb R^d`.
        interpolation: "linear"; "trainable", with a learned term that is added to the linear path
            early in training; or energies :math:`f_t(x)` of times ``(N,)`` and places ``(N, d)``,
            equal to those of the base at 0 and of the target at 1.
        base_power: :math:`p` of the base :math:`e^{-\sum_i |(x_i - \mu_i) / \sigma|^p}`.
        base_scale: :math:`\sigma`, with :math:`\mu = 0`; by default both cover many points that
            were moved uphill to their modes, and the path's speed is that of an annealing from
            there.
        exploration_scale: Factor by which the base from which training explores is wider.
        symmetry: Signed permutations of coordinates that leave base and target as they are, which
            the networks then respect, see :mod:`pyro_flowsamp.nn.equivariant`.
        options: Options of the training; ``batch_size`` points are spread over all times. By
            default 4000 steps whose rate rises for a tenth of them, and then falls.
        settings: Settings of the networks, and of the points at which they are trained.

    Attributes:
        time_grid: The ends of the slices of time, from 0 to 1; may be set for :meth:`particles`.
        progress: The state of the flow at the end of each window of training, a list of
            :class:`~pyro_flowsamp.guides.deformation.training.Progress`.
        evidences: Estimates of log Z with standard errors: of the "flow", and by annealing from
            the path's "base", one "twice as wide", and "over-dispersed" starts.
        missed_mass: Of the same annealed particles, the evidence that lies where the flow has next
            to no density, in units of the flow's own.

    Raises:
        ValueError: An argument is out of its range. :meth:`fit` raises it where a given
            interpolation does not lead from base to target, the energy has no gradient, or more
            than 1 % of the points on the way have no finite energy, and warns where annealing finds
            more evidence than the flow, or some of it where the flow has no density.

    References:
        Máté and Fleuret, *Learning Interpolations between Boltzmann Densities*, 2023,
        https://arxiv.org/abs/2301.07388

    Example::

        >>> import pyro
        >>> from math import log, pi
        >>> pyro.set_rng_seed(0)
        >>> target = Target.from_energy(lambda x: 0.5 * (x - 1).square().sum(-1), 2)
        >>> options = FitOptions(max_steps=50, eval_every=50, progress=False)
        >>> settings = DeformationOptions(time_grid=8, hidden_features=32)
        >>> guide = AutoDeformationFlow(
        ...     target, base_scale=2.0, options=options, settings=settings
        ... )
        >>> history = guide.fit()
        >>> log_z, error = guide.particles(4096).evidence
        >>> bool(abs(log_z - log(2 * pi)) < 4 * error < 0.2)
        True
    """

    training_results = ("progress", "evidences", "missed_mass")
    differentiates_density = False

    def __init__(
        self,
        model: Callable,
        *,
        interpolation: str | Energy = "trainable",
        base_power: float = 2.0,
        base_scale: float | None = None,
        exploration_scale: float = 1.0,
        symmetry: Sequence[SignedPermutation] = (),
        options: FitOptions | None = None,
        settings: DeformationOptions | None = None,
    ) -> None:
        super().__init__(model, options=options or TRAINING)
        check_base(interpolation, base_power, base_scale, exploration_scale)
        self._interpolation = Unregistered(interpolation)
        self.base_power, self.base_scale = base_power, base_scale
        self.exploration_scale, self.symmetry = exploration_scale, list(symmetry)
        check_kind("settings", settings, DeformationOptions)
        self.settings = settings or DeformationOptions()
        self.time_grid = ends_of_slices(self.settings.time_grid)
        self.progress: list[Progress] = []
        self.evidences: dict[str, Estimate] = {}
        self.missed_mass: dict[str, float] = {}

    # ---- building -----------------------------------------------------------------------------

    def build_flow(self, target: Target, context_size: int) -> nn.Module:
        self.check_target(target)
        interpolation, settings = self._interpolation.value, self.settings
        dim, hidden, kernels = target.dim, settings.hidden_features, settings.time_kernels
        velocity = VelocityMLP(dim, hidden, kernels, units=0)
        velocity.damping = 1.0
        learned_term = EnergyMLP(dim, hidden, kernels) if interpolation == "trainable" else None
        given = None if isinstance(interpolation, str) else interpolation
        path = BoltzmannPath(dim, self.base_power, learned_term, given)
        flow = DeformationFlow(path, velocity, len(self.time_grid), settings.integration_steps)
        if self.symmetry:
            elements = group(self.symmetry)
            for net in networks(flow):
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

    # ---- training -----------------------------------------------------------------------------

    def trained_parameters(self, target: Target) -> Iterable[nn.Parameter]:
        """Those of the velocity and of the path's learned term."""
        return [*self._flow.velocity.parameters(), *self._flow.path.parameters()]

    def trial_step(self, target: Target, num: int, context: Tensor | None) -> Any:
        """The velocity and its divergence, without the path's learned term, which joins later."""
        u = torch.zeros(num, target.dim, dtype=target.dtype, device=target.device)
        return self._flow.velocity.with_divergence(u[:, 0], u)

    def particle_bytes(self, target: Target) -> int:
        """The bytes of the points of three sources: four vectors and a number each."""
        settings = self.settings
        if settings.collocation is not None:
            return 0
        num = 3 * len(self.time_grid) * settings.points_per_time
        size = torch.empty(0, dtype=target.dtype).element_size()
        return num * (4 * target.dim * size + torch.double.itemsize)

    def train_flow(self, target: Target, contexts: Tensor | None) -> History:
        check_gradient(target)
        trainer = VelocityTrainer(self._flow, target, self)
        if self.base_scale is None and not self.trained:
            trainer.place_base()
        self.progress = trainer.progress
        times = torch.tensor(self.time_grid, dtype=torch.double).to(self._flow.path.loc)
        history = trainer.train(times)
        self._compare(target, times)
        return history

    # ---- what the weights tell ------------------------------------------------------------------

    @torch.no_grad()
    def _compare(self, target: Target, times: Tensor) -> None:
        """Compares the flow's evidence with that of particles that were annealed from elsewhere."""
        flow = self._flow
        found, step_sizes = anneal_from_bases(flow.path, target, self.get_base_dist(), times)
        flow.step_sizes.copy_(step_sizes)
        own = log_mean_weight(log_weights(flow, target, self.settings.evidence_draws))
        evidences = {name: population.evidence for name, population in found.items()}
        self.evidences = {"flow": own} | evidences
        self.missed_mass = {
            name: missed_mass(flow, population, own[0]) for name, population in found.items()
        }
        warn_of_missed_modes(self.evidences, self.missed_mass, flow.path.given is not None)

    def weighted_samples(self, num: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        r"""Draws ``(num, d)`` with :math:`\log(w Z_0)`, integrated along their trajectories.

        Their mean weight is an unbiased estimate of Z, see
        :func:`~pyro_flowsamp.weights.log_mean_weight`: up to the integrator's error they are the
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
            state = (u, torch.zeros_like(u[:, 0]))
            steps = max(self.settings.integration_steps, flow.block.steps)
            u, log_w = integrate(field, state, 0.0, 1.0, steps)
            return flow.path.loc + flow.path.scale * u, log_w.double() + self.get_base_dist().log_z

    @torch.no_grad()
    def particles(
        self, num: int, *args: Any, islands: int = 16, moves: int = 1, **kwargs: Any
    ) -> Particles:
        r"""Draws corrected on the way: weighted, resampled and moved after every slice of time.

        A slice from t to t' adds to the weight what it takes to get from :math:`e^{-f_t}` to
        :math:`e^{-f_{t'}}`, a share of the particles staying behind, see
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
        given = {"islands": islands, "moves": moves}
        check_shared_names(AutoDeformationFlow.particles, self._source.required, args, given)
        check_count("moves", moves, 0)
        self.check_islands(num, islands)
        target = self.target_for(*args, **kwargs)

        def carried(target: Target, num: int, islands: int) -> Particles:
            on_the_way = self.intermediate_particles(target, num, islands, moves)
            return deque(on_the_way, maxlen=1).pop()

        return on_islands(target, num, islands, carried, self._flow)

    def path_times(self) -> list[float]:
        """The ends of the slices of time, :attr:`time_grid`."""
        return [float(time) for time in self.time_grid]

    @torch.no_grad()
    def intermediate_particles(
        self, target: Target, num_particles: int, islands: int, moves: int = 1
    ) -> Iterator[Particles]:
        """The particles on the way of :meth:`particles`: of the base, then after every slice."""
        flow = self._flow
        path, times, ones = flow.path, self.time_grid, torch.ones_like(flow.path.loc)

        def density(t: float) -> Callable[[Tensor], PathState]:
            return lambda u: path.state_at(target, u.new_full(u.shape[:1], t), u)

        def stage(start: float, end: float, step_size: Tensor) -> driver.Stage:
            steps = ceil(flow.block.steps * (end - start) - 1e-9)  # no longer than refined ones
            segment = ContinuousMap(flow.velocity, steps, flow.block.method, False, start, end)
            before = partial(path.log_prob_at, start, t=end)
            share = self.settings.defensive_weight
            return driver.Stage(segment, density(end), ones, step_size, share, before)

        base = self.get_base_dist()
        first = particles.init(base.sample((num_particles,)), density(0.0), islands)
        stages = (stage(*ends, size) for ends, size in zip(pairwise(times), flow.step_sizes[1:]))
        for cloud in self.run_stages(first, stages, moves):
            state = cloud.state._replace(x=path.loc + path.scale * cloud.x)
            yield cloud._replace(state=state, log_z=cloud.log_z + base.log_z)

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
