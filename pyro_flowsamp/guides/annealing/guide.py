r"""AutoAnnealingFlow: a continuous flow built block by block along a tempered path, and corrected.

Between a start :math:`b` that can be sampled and the target lie the densities

.. math:: \log\tilde f_k = (1 - \beta_k) \log b + \beta_k \log\tilde p, \qquad
          0 = \beta_0 < \dots < \beta_K = 1.

Block k is a velocity field whose flow :math:`T_k` carries :math:`f_{k-1}` to :math:`f_k` (Annealing
Flow: Wu & Xie, 2025, https://arxiv.org/abs/2409.20547). Three losses train it, on particles of
:math:`f_{k-1}`, with :math:`E_k = -\log\tilde f_k`:

- ``"kl"``, the paper's dynamic optimal transport (its Eq. 7, type I),
  :math:`\mathbb E[E_k(T_k x) - \log|\det T_k'| + \gamma\,\|T_k x - x\|^2]`: the KL divergence of
  the block's output from :math:`f_k`, and the Wasserstein term;
- ``"linear"``, its type II, with :math:`E_k(T_k x)` replaced by its linearisation
  :math:`E_k(x) + \nabla E_k(x)\cdot(T_k x - x)`, which asks no density of the target;
- ``"variance"``, :math:`\mathbb E\,h(\Delta\log w - c) + \gamma\,\mathbb E\|T_k x - x\|^2` of the
  block's log weights :math:`\Delta\log w = \log\tilde f_k(T_k x) - \log\tilde f_{k-1}(x) +
  \log|\det T_k'|`, with :math:`h(r) = 2\sqrt{1 + r^2} - 2`, a square that grows linearly far out,
  and :math:`c` the log of the mean weight (after the log-variance divergence: Nüsken & Richter,
  2021, https://arxiv.org/abs/2005.05409). It is zero where the block is perfect, and so is the
  noise of its gradient, while a KL divergence estimated on a finite number of particles can be
  driven below its infimum. It is the default.

No block mends the errors of the block before it, and no transport moves mass between modes, which
the tempered path does. So the particles are weighted, resampled and moved along the way, in
training and, by :meth:`AutoAnnealingFlow.particles`, afresh with everything frozen, for an unbiased
evidence and the right weight of every mode; see :mod:`pyro_flowsamp.smc.particles`. A share of
them, the defensive weight, is left behind at every block, so that a block which moves particles
away from an
edge or a steep slope does not leave it empty: a small share where the block is good, and all where
the block makes the weights worse.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...flows.continuous import refine
from ...flows.proposal import Proposal
from ...flows.recipes import gaussian
from ...options import FitOptions
from ...smc import driver, particles, paths
from ...smc.particles import Particles
from ...smc.starts import overdispersed_base
from ...target.density import Target
from ...train import History, fit
from ...weights import ess_fraction
from ..path_guide import PathGuide
from .blocks import AnnealedFlow, BaseDensity, Block, BlockReport, Standardized
from .losses import LOSSES, Loss, TransportBatch

__all__ = ["AutoAnnealingFlow"]


MAX_BLOCKS = 300  #: blocks after which a path counts as endless
RETRIES = 2  #: repeated trainings of a block that makes weights worse, each at a third of the rate
SHORTEST_STAGE = 1e-5  #: relative to the beta that it starts from, or to 1e-6 where that is more
GOOD_ESS = 0.9  #: ESS fraction of the weights without a block, from which no warning is given
MIN_PARTICLES_LEFT = 10  #: effective particles that must be left after a stage
MIN_PARTICLES = 10 * MIN_PARTICLES_LEFT  #: particles that blocks can be trained on
NUM_REFINE = 1024  #: particles on which the integrator is checked
NUM_WEIGHED = 4096  #: particles on which the defensive weight is chosen
DEFENSIVE_GRID = 1.0, 0.4, 0.2, 0.1, 0.05, 0.02  #: the defensive weights to choose from
TIE = 1e-9  #: nats, between shares that differ by rounding: a block may move nothing
STEP_TOLERANCE = 2e-4  #: nats by which the integrator may be off in each block
FLOW_TOLERANCE = 5e-4  #: nats by which the flow's sampling and scoring may differ
DOUBLINGS = 3  #: times that the steps of all blocks may be doubled for that
TARGET_ACCEPT_PROB = 0.574  #: acceptance that MALA's step size is tuned to


class AutoAnnealingFlow(PathGuide):
    r"""A guide for many and distant modes, of which nobody has samples.

    Example::

        guide = AutoAnnealingFlow(model)
        guide.fit(data)
        cloud = guide.particles(20_000, data)      # corrected: right weights of modes
        log_z, error = cloud.evidence

    Arguments:
        model: A Pyro model, or a :class:`~pyro_flowsamp.Target`, on :math:`\mathbb R^d`.
        reference: A zuko-style flow that can be sampled; a number s for :math:`N(0, s^2 I)`; by
            default a Gaussian twice as wide as many points that were moved uphill from far
            out.
        schedule: The :math:`\beta_k`, rising from 0 to 1; by default each next one is where the
            particles' weights keep the ESS fraction ``target_ess``, and blocks are added until 1.
        target_ess: See ``schedule``.
        refinement_blocks: Further blocks, trained on the flow's own draws at :math:`\beta = 1`:
            they improve the flow as a proposal; corrected particles have no need of them.
        objective: "variance", "kl" or "linear"; see the module's docstring.
        transport_cost: :math:`\gamma`; by default 0 for "variance", else ½ (a block of unit time).
        num_particles: Number of particles that the blocks are trained on.
        mcmc_steps: Langevin moves of every particle after each block.
        hidden_features: Width of the velocity networks.
        method: The integrator, see :data:`pyro_flowsamp.flows.continuous.METHODS`.
        options: How to train each block.
    """

    def __init__(
        self,
        model: Callable,
        *,
        reference: nn.Module | float | None = None,
        schedule: Sequence[float] | None = None,
        target_ess: float = 0.8,
        refinement_blocks: int = 0,
        objective: str = "variance",
        transport_cost: float | None = None,
        num_particles: int = 16384,
        mcmc_steps: int = 5,
        hidden_features: int = 64,
        method: str = "rk4",
        options: FitOptions | None = None,
    ) -> None:
        default = FitOptions(
            max_steps=100,
            batch_size=512,
            learning_rate=5e-3,
            cosine_schedule=True,
            stop_at_ess=0.999,
        )
        super().__init__(model, options=options or default)
        if objective not in LOSSES:
            raise ValueError(f"objective must be one of {sorted(LOSSES)}, got '{objective}'")
        if schedule is not None:
            schedule = [float(beta) for beta in schedule]
            _check_schedule(schedule)
        if not 0 < target_ess < 1:
            raise ValueError(f"target_ess must lie between 0 and 1, got {target_ess}")
        if isinstance(reference, int | float) and not 0 < reference < torch.inf:
            raise ValueError(f"reference must be a positive standard deviation, got {reference}")
        self._loss, gamma = LOSSES[objective]
        self.transport_cost = gamma if transport_cost is None else transport_cost
        if not self.transport_cost >= 0:
            raise ValueError(f"wasserstein must not be negative, got {transport_cost}")
        if num_particles < MIN_PARTICLES:
            raise ValueError(f"num_particles must be at least {MIN_PARTICLES}, got {num_particles}")
        if mcmc_steps < 0 or refinement_blocks < 0:
            raise ValueError(
                f"mcmc_steps and refinement_blocks must not be negative, got {mcmc_steps} and "
                f"{refinement_blocks}"
            )
        self._reference = (reference,)
        self.schedule, self.target_ess, self.refinement_blocks = (
            schedule,
            target_ess,
            refinement_blocks,
        )
        self.num_particles, self.mcmc_steps = num_particles, mcmc_steps
        self.hidden_features, self.method = hidden_features, method
        self.reports: list[BlockReport] = []
        self._led_to: Target | None = None

    # ---- building -----------------------------------------------------------------------------

    def build_flow(self, target: Target, context_size: int) -> nn.Module:
        self.check_target(target)
        (reference,) = self._reference
        start = deepcopy(reference) if isinstance(reference, nn.Module) else gaussian(target.dim)
        return AnnealedFlow(start, target.dim, self.hidden_features)

    def _initialize_start(self, target: Target) -> None:
        (reference,) = self._reference
        if isinstance(reference, nn.Module):
            return
        assert isinstance(self.flow, AnnealedFlow)
        if reference is None:
            base = overdispersed_base(target, 512)
            loc, scale = base.loc, base.scale
        else:
            scale = torch.full((target.dim,), float(reference), dtype=target.dtype)
            loc = torch.zeros_like(scale)
        self.flow.start.affine.initialize(loc, scale)  # type: ignore[union-attr, operator]

    # ---- training -----------------------------------------------------------------------------

    def train_flow(self, target: Target, contexts: Tensor | None) -> History:
        assert isinstance(self.flow, AnnealedFlow)
        target.initial_points(1)  # raises where the density is not finite anywhere
        self._drop_stale_blocks(target)
        if not self.flow.blocks:
            self._initialize_start(target)
        history, start = History(stopped="enough"), time.perf_counter()
        cloud, beta = self._resume(target)
        bar = tqdm(total=1.0, initial=beta, desc="Anneal", disable=not self.options.progress)
        try:
            while beta < 1:
                beta, cloud = self._add_block(target, cloud, beta)
                bar.update(beta - bar.n)
                bar.set_postfix(blocks=len(self.flow.blocks), ess=f"{self.reports[-1].ess:.3f}")
            self._warn_if_uncovered(target, cloud)
            for _ in range(self.refinement_blocks - self._count_refinements()):
                self._refine_once(target)
            self._double_steps()
        except KeyboardInterrupt:
            warnings.warn(
                f"interrupted at beta = {beta:.3f}: {len(self.flow.blocks)} finished blocks are "
                f"kept, and the next fit goes on from there",
                stacklevel=3,
            )
            history.stopped = "interrupted" if beta == 1 else "unfinished"
        finally:
            bar.close()
        return history.updated(
            ess=[report.ess for report in self.reports],
            steps=sum(report.steps for report in self.reports),
            skipped=sum(report.rollbacks for report in self.reports),
            seconds=time.perf_counter() - start,
        )

    def _drop_stale_blocks(self, target: Target) -> None:
        """Drops the blocks, where they lead to another density than this: other data."""
        assert isinstance(self.flow, AnnealedFlow)
        last, self._led_to = self._led_to or target, target
        if last is target:
            return
        x = BaseDensity(self.flow.start).sample(64)
        with torch.no_grad():
            if not torch.equal(last.log_prob(x), target.log_prob(x)):
                del self.flow.blocks[:]
                self.reports.clear()

    def _resume(self, target: Target) -> tuple[Particles, float]:
        """Equally weighted particles where the finished blocks end, and where that is."""
        with torch.no_grad():
            cloud = self._carried(target, self.num_particles, 1)
        return particles.resample(cloud, torch.inf), self._reached()

    def _reached(self) -> float:
        blocks = self._annealing_blocks()
        return blocks[-1].beta if blocks else 0.0

    def _annealing_blocks(self) -> list[Block]:
        assert isinstance(self.flow, AnnealedFlow)
        return [block for block in self.flow.blocks if not block.refinement]  # type: ignore[misc]

    def _count_refinements(self) -> int:
        assert isinstance(self.flow, AnnealedFlow)
        return len(self.flow.blocks) - len(self._annealing_blocks())

    def _next_beta(self, cloud: Particles, beta: float) -> float:
        if self.schedule is not None:
            following = min(b for b in self.schedule if b > beta)
        else:
            following = paths.next_beta(cloud.state.log_ratio, beta, self.target_ess, shortest=0.0)
        stalled = following - beta < SHORTEST_STAGE * max(beta, 1e-6)
        if len(self._annealing_blocks()) >= MAX_BLOCKS or stalled:
            raise ValueError(
                f"the path does not get beyond beta = {beta:.4g}: the next stage would be "
                f"{following - beta:.1e} long. Either the target cannot be normalised (an improper "
                f"posterior, an energy without lower bound), or the start is far too narrow or too "
                f"wide for it: give reference=..., a standard deviation that covers the target."
            )
        return following

    def _add_block(self, target: Target, cloud: Particles, beta: float) -> tuple[float, Particles]:
        assert isinstance(self.flow, AnnealedFlow)
        clock, following = time.perf_counter(), self._next_beta(cloud, beta)
        stage = self._unmoved(target, cloud, following)
        unmoved = driver.transport(cloud, stage)
        before = _ess(unmoved)
        block, history, rollbacks = self._trained(target, cloud, following, before, stage.scale)
        density = _path_density(target, BaseDensity(self.flow.start), beta)
        gap = refine(block, _spread_out(cloud.x), STEP_TOLERANCE, density)
        block.defensive_weight = _choose_defensive_weight(block, cloud, unmoved, density)
        stage = _with_map(stage, block, beta)
        pushed = driver.transport(cloud, stage) if block.defensive_weight < 1 else unmoved
        ess = _ess(pushed)
        if not ess * self.num_particles >= MIN_PARTICLES_LEFT:
            raise ValueError(
                f"all but {max(1, round(ess * self.num_particles))} of {self.num_particles} "
                f"particles lost their weight at beta = {following:.4g}: use more stages (a larger "
                f"target_ess=, a finer schedule=), more particles, or a reference that covers the "
                f"target."
            )
        cloud = particles.resample(pushed, torch.inf)
        cloud, step_size = driver.move_and_tune(cloud, stage, self.mcmc_steps, TARGET_ACCEPT_PROB)
        block.beta = following
        block.scale.copy_(stage.scale)
        block.step_size.copy_(step_size)
        self.flow.blocks.append(block)
        seconds = time.perf_counter() - clock
        self.reports.append(
            BlockReport(
                following,
                before,
                ess,
                rollbacks,
                history.steps,
                block.steps,
                gap,
                block.defensive_weight,
                seconds,
            )
        )
        return following, cloud

    def _unmoved(self, target: Target, cloud: Particles, beta: float) -> driver.Stage:
        """The next stage without a map, its moves as wide as the density is there."""
        assert isinstance(self.flow, AnnealedFlow)
        start, ones = BaseDensity(self.flow.start), torch.ones_like(cloud.x[0])
        at = ones.new_tensor(beta)
        here = particles.reweight(cloud, paths.at_beta(cloud.state, at, ones))
        here = particles.resample(here, torch.inf)
        scale = paths.local_scale(here.state.grad, here.x)
        blocks = self._annealing_blocks()
        step_size = blocks[-1].step_size if blocks else self.flow.new_block().step_size
        return driver.Stage(None, paths.density(target, start, at, scale), scale, step_size)

    def _trained(
        self, target: Target, cloud: Particles, beta: float, before: float, scale: Tensor
    ) -> tuple[Block, History, int]:
        """A block that makes the weights more even; after too many tries, one that stays put."""
        assert isinstance(self.flow, AnnealedFlow)
        density = _path_density(target, BaseDensity(self.flow.start), beta)
        options = replace(self.options, progress=False)
        for rollbacks in range(RETRIES + 1 if before < options.stop_at_ess else 0):
            block = self.flow.new_block()
            assert isinstance(block.velocity, Standardized)
            block.velocity.standardize(cloud.x.mean(0), scale)
            history = fit(
                block.parameters(),
                self._closure(block, cloud, density, beta),
                ess_fraction,
                options,
            )
            if history.stopped == "interrupted":
                raise KeyboardInterrupt
            block.method = self.method
            x, ladj = _pushed(block, cloud.x)
            log_w = density(x).double() + ladj.double() - cloud.state.log_pi
            log_w = torch.where(log_w.isfinite(), log_w, -torch.inf)
            learnt = history.skipped < history.steps
            if learnt and float(ess_fraction(log_w)) >= before:
                return block, history, rollbacks
            options = replace(options, learning_rate=options.learning_rate / 3)
        block = self.flow.fresh_block()
        block.method = self.method
        if before >= options.stop_at_ess:
            return block, History(), 0
        if before < GOOD_ESS:
            warnings.warn(
                f"the block that ends at beta = {beta:.4g} made the weights worse, or was not "
                f"finite, in {RETRIES + 1} trainings, down to a rate of "
                f"{3 * options.learning_rate:.1e}: it is replaced by the identity. "
                f"Try a lower options.learning_rate, or more options.max_steps.",
                stacklevel=5,
            )
        return block, history, RETRIES + 1

    def _closure(
        self,
        block: Block,
        cloud: Particles,
        density: Callable[[Tensor], Tensor],
        beta: float,
    ) -> Callable[[], Loss]:
        def closure() -> Loss:
            index = torch.randint(len(cloud.x), (self.options.batch_size,), device=cloud.x.device)
            before = type(cloud.state)(*(value[index] for value in cloud.state))
            x, ladj = block(None).push(before.x)
            move = TransportBatch(before, x, ladj, lambda: density(x).double(), beta)
            loss, log_w = self._loss(move)
            return loss + self.transport_cost * move.cost(), log_w

        return closure

    def _refine_once(self, target: Target) -> None:
        """A block from the flow's own draws, whose density is known, to the target."""
        assert isinstance(self.flow, AnnealedFlow)
        clock = time.perf_counter()
        with torch.no_grad():
            x, log_q = self.flow(None).rsample_and_log_prob((self.num_particles,))
        log_p, grad = target.log_prob_and_grad(x)
        log_p, log_q = log_p.double(), log_q.double()
        state = paths.TemperedState(x, log_q, grad, x, log_p, log_q, grad, torch.zeros_like(grad))
        cloud = Particles(state, torch.zeros_like(log_q)[None], torch.zeros_like(log_q[:1]))
        before = float(ess_fraction(state.log_p - state.log_q))
        block, history, rollbacks = self._trained(
            target, cloud, 1.0, before, paths.local_scale(grad, x)
        )
        block.refinement = True
        gap = refine(block, x[:NUM_REFINE], STEP_TOLERANCE, self.flow(None).log_prob)
        moved, ladj = _pushed(block, x)
        log_w = target.log_prob(moved).detach() + ladj - log_q
        self.flow.blocks.append(block)
        seconds = time.perf_counter() - clock
        ess = float(ess_fraction(log_w))
        self.reports.append(
            BlockReport(
                1.0,
                before,
                ess,
                rollbacks,
                history.steps,
                block.steps,
                gap,
                block.defensive_weight,
                seconds,
            )
        )

    def _double_steps(self) -> None:
        """More steps where the flow's own draws need them: blocks were refined on particles."""
        assert isinstance(self.flow, AnnealedFlow)
        for _ in range(DOUBLINGS):
            if Proposal(self.flow).log_q_error() <= FLOW_TOLERANCE:
                return
            for block in self.flow.blocks:
                assert isinstance(block, Block)
                block.steps *= 2

    def _warn_if_uncovered(self, target: Target, cloud: Particles) -> None:
        assert isinstance(self.flow, AnnealedFlow)
        start = BaseDensity(self.flow.start)
        least = start.log_prob(start.sample(1000)).min()
        outside = float((cloud.state.log_q < least.detach()).double().mean())
        if outside > 0.01:
            warnings.warn(
                f"{outside:.0%} of the particles ended where the reference has no draws: modes "
                f"there were found along the path, and other modes may have been missed. "
                f"A wider reference=... is safer, or compare two of them by their evidence.",
                stacklevel=4,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_led_to": None}

    # ---- corrected draws ----------------------------------------------------------------------

    @torch.no_grad()
    def particles(
        self,
        num_particles: int,
        *args: Any,
        islands: int = 16,
        target: Target | None = None,
        **kwargs: Any,
    ) -> Particles:
        r"""Fresh particles of the posterior, carried by the frozen blocks and corrected on the way.

        The evidence they estimate is unbiased; averages with their weights are consistent, whatever
        the blocks are worth.

        Arguments:
            num_particles: How many, over all islands.
            args, kwargs: The model's.
            islands: Independent groups, whose spread gives standard errors.
            target: In place of the model with its arguments.

        Raises:
            ValueError: ``num_particles`` is not a positive multiple of ``islands``, or the path has
                not been trained to its end.
        """
        self.check_islands(num_particles, islands)
        target = self.target_for(*args, **kwargs) if target is None else target
        if (beta := self._reached()) < 1:
            raise ValueError(
                f"the path ends at beta = {beta:.4g}, short of the target: call fit, which goes on "
                f"from there."
            )
        return self._carried(target, num_particles, islands)

    def _carried(self, target: Target, num_particles: int, islands: int) -> Particles:
        """Fresh particles where the finished blocks end."""
        return deque(self.intermediate_particles(target, num_particles, islands), maxlen=1).pop()

    @torch.no_grad()
    def intermediate_particles(
        self, target: Target, num_particles: int, islands: int
    ) -> Iterator[Particles]:
        """The particles on the way of :meth:`particles`: of the base, then after every block."""
        assert isinstance(self.flow, AnnealedFlow)
        start = BaseDensity(self.flow.start)
        x = start.sample(num_particles)
        ones = torch.ones_like(x[0])
        first = particles.init(x, paths.density(target, start, 0 * ones[0], ones), islands)
        yield from self.run_stages(first, self._stages(target), self.mcmc_steps)

    def _stages(self, target: Target) -> Iterator[driver.Stage]:
        beta = 0.0
        for block in self._annealing_blocks():
            yield self._stage(target, block, beta)
            beta = block.beta

    def _stage(self, target: Target, block: Block, beta: float) -> driver.Stage:
        """The stage that a finished block makes, from the inverse temperature ``beta``."""
        assert isinstance(self.flow, AnnealedFlow)
        at = block.scale.new_tensor(block.beta)
        density = paths.density(target, BaseDensity(self.flow.start), at, block.scale)
        stage = driver.Stage(None, density, block.scale, block.step_size)
        return _with_map(stage, block, beta)


def _check_schedule(schedule: Sequence[float]) -> None:
    rising = all(a < b for a, b in pairwise(schedule))
    if len(schedule) < 2 or schedule[0] != 0 or schedule[-1] != 1 or not rising:
        raise ValueError(f"a schedule rises from 0 to 1, got {list(schedule)}")


def _with_map(stage: driver.Stage, block: Block, beta: float) -> driver.Stage:
    """The stage by way of a block that begins at ``beta``."""
    before = partial(paths.log_path, beta=block.scale.new_tensor(beta))
    return stage._replace(
        map=block.map, defensive_weight=block.defensive_weight, previous_log_prob=before
    )


@torch.no_grad()
def _choose_defensive_weight(
    block: Block,
    cloud: Particles,
    unmoved: Particles,
    density: Callable[[Tensor], Tensor],
) -> float:
    r"""The share of particles to leave behind, of :data:`DEFENSIVE_GRID`, for the most even
    weights.

    With :math:`w = f_k / q_\epsilon` the weights by the mixture, that which has the least
    :math:`\mathbb E_{f_k} w^3`, a Rényi divergence of :math:`f_k` from :math:`q_\epsilon`. It is
    estimated on particles of :math:`f_{k-1}` weighted to :math:`f_k`: those that the block has
    moved do not know what it left behind.

    Arguments:
        block: Trained.
        cloud: Equally weighted particles where it starts.
        unmoved: The same at the next density, where they are.
        density: :math:`\log\tilde f_{k-1}`.
    """
    rows = slice(None, None, max(1, len(cloud.x) // NUM_WEIGHED))
    z, ladj = block(None).pull(cloud.x[rows])
    here, there = cloud.state.log_pi[rows], unmoved.state.log_pi[rows]
    carried = density(z).double() + ladj.double()
    mixture = driver.log_mixture(carried.new_tensor(DEFENSIVE_GRID)[:, None], here, carried)
    cubes = (there - here) + 3 * (there - mixture)
    moments = torch.where(cubes.isnan(), -torch.inf, cubes).logsumexp(-1)
    return DEFENSIVE_GRID[int((moments <= moments.min() + TIE).double().argmax())]


def _path_density(target: Target, start: BaseDensity, beta: float) -> Callable[[Tensor], Tensor]:
    r""":math:`\log\tilde f`, differentiable; the ends ask only the density they need."""
    if beta == 0:
        return start.log_prob
    if beta == 1:
        return target.log_prob
    return lambda x: (1 - beta) * start.log_prob(x) + beta * target.log_prob(x)


@torch.no_grad()
def _pushed(block: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    return block(None).push(x)


def _spread_out(x: Tensor) -> Tensor:
    """Some of the particles: neighbours come of one ancestor, and may share a mode."""
    return x[:: max(1, len(x) // NUM_REFINE)][:NUM_REFINE]


def _ess(cloud: Particles) -> float:
    return float(ess_fraction(cloud.log_w[0]))
