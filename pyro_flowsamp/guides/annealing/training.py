r"""Training of the blocks of an annealing flow, one after the other along the tempered path.

A block is trained on particles of the density where it starts. The particles are then carried by
it, weighted, resampled and moved, and the next block is trained on them. The losses are in
:mod:`pyro_flowsamp.guides.annealing.losses`, the weights of carried particles are derived in
:mod:`pyro_flowsamp.smc.particles`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from ...checkpoint.scope import active
from ...flows.continuous import refine
from ...flows.proposal import Proposal
from ...options import FitOptions
from ...smc import driver, particles, paths
from ...smc.particles import Particles
from ...target.density import Target
from ...training.history import History
from ...training.train import fit
from ...validation import check_count, check_number
from ...weights import ess_fraction
from .blocks import AnnealedFlow, BaseDensity, Block, BlockReport, Standardized
from .losses import Loss, TransportBatch
from .options import AnnealingOptions

__all__ = [
    "BlockTrainer",
    "check_settings",
    "choose_defensive_weight",
    "double_steps",
    "path_density",
    "store_path",
    "warn_of_uncovered",
    "with_map",
]

SHORTEST_STAGE = 1e-5  #: relative to the beta that it starts from, or to 1e-6 where that is more
NUM_REFINE = 1024  #: particles on which the integrator is checked
NUM_WEIGHED = 4096  #: particles on which the defensive weight is chosen
TIE = 1e-9  #: nats, between shares that differ by rounding: a block may move nothing
STEP_TOLERANCE = 2e-4  #: nats by which the integrator may be off in each block
FLOW_TOLERANCE = 5e-4  #: nats by which the flow's sampling and scoring may differ
DOUBLINGS = 3  #: times that the steps of all blocks may be doubled for that
MIN_RATIO = 10  #: number of particles over that of effective ones that must be left, at least


class AnnealingSettings(Protocol):
    """Settings of the guide that the training of a block uses, see AutoAnnealingFlow."""

    schedule: Sequence[float] | None
    target_ess: float
    num_particles: int
    mcmc_steps: int
    options: FitOptions
    settings: AnnealingOptions


class BlockTrainer:
    """Trainer of the blocks of one flow on one target.

    Arguments:
        flow: The flow, to which the trained blocks are appended.
        target: The density at the end of the path.
        guide: The guide, for its settings.
    """

    def __init__(self, flow: AnnealedFlow, target: Target, guide: AnnealingSettings) -> None:
        self.flow, self.target = flow, target
        self.guide, self.settings = guide, guide.settings
        self.base = BaseDensity(flow.start)

    def _next_beta(self, cloud: Particles, beta: float) -> float:
        if self.guide.schedule is not None:
            following = min(b for b in self.guide.schedule if b > beta)
        else:
            following = paths.next_beta(
                cloud.state.log_ratio, beta, self.guide.target_ess, shortest=0.0
            )
        stalled = following - beta < SHORTEST_STAGE * max(beta, 1e-6)
        if len(self.flow.annealing_blocks) >= self.settings.max_blocks or stalled:
            raise ValueError(
                f"the path does not get beyond beta = {beta:.4g}: the next stage would be "
                f"{following - beta:.1e} long. Either the target cannot be normalised (an improper "
                f"posterior, an energy without lower bound), or the start is far too narrow or too "
                f"wide for it: give reference=..., a standard deviation that covers the target."
            )
        return following

    def add_block(self, cloud: Particles, beta: float) -> tuple[float, Particles, BlockReport]:
        """Trains the block that starts at ``beta``, and carries the particles to its end.

        Arguments:
            cloud: Equally weighted particles at ``beta``.
            beta: The inverse temperature.

        Returns:
            The next inverse temperature, equally weighted particles there, and a report.

        Raises:
            ValueError: The path makes no progress, or too few particles keep any weight.
        """
        clock, following = time.perf_counter(), self._next_beta(cloud, beta)
        stage = self._unmoved(cloud, following)
        unmoved = driver.transport(cloud, stage)
        before = _ess(unmoved)
        block, history, rollbacks = self._trained(cloud, following, before, stage.scale)
        density = path_density(self.target, self.base, beta)
        gap = refine(block, _spread_out(cloud.x), STEP_TOLERANCE, density)
        block.defensive_weight = choose_defensive_weight(
            block, cloud, unmoved, density, self.settings.defensive_grid
        )
        stage = with_map(stage, block, beta)
        pushed = driver.transport(cloud, stage) if block.defensive_weight < 1 else unmoved
        ess = _ess(pushed)
        num = self.guide.num_particles
        if not ess * num >= self.settings.min_effective:
            raise ValueError(
                f"all but {max(1, round(ess * num))} of {num} "
                f"particles lost their weight at beta = {following:.4g}: use more stages (a larger "
                f"target_ess=, a finer schedule=), more particles, or a reference that covers the "
                f"target."
            )
        cloud = particles.resample(pushed, torch.inf)
        cloud, step_size = driver.move_and_tune(
            cloud, stage, self.guide.mcmc_steps, self.settings.target_accept_prob
        )
        block.beta = following
        block.scale.copy_(stage.scale)
        block.step_size.copy_(step_size)
        self.flow.blocks.append(block)
        report = _report(block, following, before, ess, rollbacks, history, gap, clock)
        return following, cloud, report

    def _unmoved(self, cloud: Particles, beta: float) -> driver.Stage:
        """The next stage without a map, its moves as wide as the density is there."""
        ones = torch.ones_like(cloud.x[0])
        at = ones.new_tensor(beta)
        here = particles.reweight(cloud, paths.at_beta(cloud.state, at, ones))
        here = particles.resample(here, torch.inf)
        scale = paths.local_scale(here.state.grad, here.x)
        blocks = self.flow.annealing_blocks
        step_size = blocks[-1].step_size if blocks else self.flow.new_block().step_size
        return driver.Stage(
            None, paths.density(self.target, self.base, at, scale), scale, step_size
        )

    def _trained(
        self, cloud: Particles, beta: float, before: float, scale: Tensor
    ) -> tuple[Block, History, int]:
        """A block that makes the weights more even; after too many tries, one that stays put."""
        density = path_density(self.target, self.base, beta)
        options = replace(self.guide.options, progress=False)
        tries = self.settings.retries + 1
        for rollbacks in range(tries if before < options.stop_at_ess else 0):
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
            block.method = self.settings.method
            x, ladj = _pushed(block, cloud.x)
            log_w = density(x).double() + ladj.double() - cloud.state.log_pi
            log_w = torch.where(log_w.isfinite(), log_w, -torch.inf)
            learnt = history.skipped < history.steps
            if learnt and float(ess_fraction(log_w)) >= before:
                return block, history, rollbacks
            options = replace(options, learning_rate=options.learning_rate / 3)
        block = self.flow.fresh_block()
        block.method = self.settings.method
        if before >= options.stop_at_ess:
            return block, History(), 0
        if before < self.settings.good_ess:
            warnings.warn(
                f"the block that ends at beta = {beta:.4g} made the weights worse, or was not "
                f"finite, in {tries} trainings, down to a rate of "
                f"{3 * options.learning_rate:.1e}: it is replaced by the identity. "
                f"Try a lower options.learning_rate, or more options.max_steps.",
                stacklevel=5,
            )
        return block, history, tries

    def _closure(
        self,
        block: Block,
        cloud: Particles,
        density: Callable[[Tensor], Tensor],
        beta: float,
    ) -> Callable[[], Loss]:
        batch_size = self.guide.options.batch_size

        def closure() -> Loss:
            index = torch.randint(len(cloud.x), (batch_size,), device=cloud.x.device)
            before = type(cloud.state)(*(value[index] for value in cloud.state))
            x, ladj = block(None).push(before.x)
            move = TransportBatch(before, x, ladj, lambda: density(x).double(), beta)
            loss, log_w = self.settings.objective(move)
            return loss + self.settings.transport_cost * move.cost(), log_w

        return closure

    def add_refinement(self) -> BlockReport:
        """Trains a block from the flow's own draws, whose density is known, to the target."""
        clock = time.perf_counter()
        with torch.no_grad():
            x, log_q = self.flow(None).rsample_and_log_prob((self.guide.num_particles,))
        log_p, grad = self.target.log_prob_and_grad(x)
        log_p, log_q = log_p.double(), log_q.double()
        state = paths.TemperedState(x, log_q, grad, x, log_p, log_q, grad, torch.zeros_like(grad))
        cloud = Particles(state, torch.zeros_like(log_q)[None], torch.zeros_like(log_q[:1]))
        before = float(ess_fraction(state.log_p - state.log_q))
        block, history, rollbacks = self._trained(cloud, 1.0, before, paths.local_scale(grad, x))
        block.refinement = True
        gap = refine(block, x[:NUM_REFINE], STEP_TOLERANCE, self.flow(None).log_prob)
        moved, ladj = _pushed(block, x)
        log_w = self.target.log_prob(moved).detach() + ladj - log_q
        self.flow.blocks.append(block)
        ess = float(ess_fraction(log_w))
        return _report(block, 1.0, before, ess, rollbacks, history, gap, clock)


def _report(
    block: Block,
    beta: float,
    before: float,
    after: float,
    rollbacks: int,
    history: History,
    gap: float,
    start: float,
) -> BlockReport:
    """Returns the report of a block whose training began at the time ``start``."""
    seconds = time.perf_counter() - start
    steps, defensive_weight = history.steps, block.defensive_weight
    return BlockReport(
        beta, before, after, rollbacks, steps, block.steps, gap, defensive_weight, seconds
    )


def check_settings(reference: object, guide: AnnealingSettings) -> None:
    """Refuses settings out of range.

    Raises:
        ValueError: One is out of range.

    Example:
        >>> from pyro_flowsamp import AutoAnnealingFlow
        >>> AutoAnnealingFlow(lambda: None, schedule=[0.0, 0.5])
        Traceback (most recent call last):
        ValueError: a schedule rises from 0 to 1, got [0.0, 0.5]
    """
    if guide.schedule is not None:
        _check_schedule(guide.schedule)
    check_number("target_ess", guide.target_ess, 0, 1, open_least=True, open_most=True)
    check_count("num_particles", guide.num_particles)
    check_count("mcmc_steps", guide.mcmc_steps, 0)
    if reference is not None and not isinstance(reference, torch.nn.Module):
        check_number("reference", reference, 0, open_least=True, open_most=True)
    least = MIN_RATIO * guide.settings.min_effective
    if guide.num_particles < least:
        raise ValueError(f"num_particles must be at least {least:.0f}, got {guide.num_particles}")


def _check_schedule(schedule: Sequence[float]) -> None:
    rising = all(a < b for a, b in pairwise(schedule))
    if len(schedule) < 2 or schedule[0] != 0 or schedule[-1] != 1 or not rising:
        raise ValueError(f"a schedule rises from 0 to 1, got {list(schedule)}")


def double_steps(flow: AnnealedFlow) -> None:
    """Doubles the steps of all blocks until the flow's own draws are scored as they are sampled.

    Blocks were integrated by as many steps as particles of the path need.
    """
    for _ in range(DOUBLINGS):
        if Proposal(flow).log_q_error() <= FLOW_TOLERANCE:
            return
        for block in flow.blocks:
            assert isinstance(block, Block)
            block.steps *= 2


def store_path(
    flow: AnnealedFlow, reports: list[BlockReport], cloud: Particles, beta: float
) -> None:
    """Stores the blocks so far, and the particles that the next one is trained on."""
    scope = active()
    if scope.stores:
        path = {"flow": flow.state_dict(), "reports": reports, "cloud": cloud, "beta": beta}
        scope.write({"path": path}, f"path to beta = {beta:.3g}", drop="fit-")


def warn_of_uncovered(base: BaseDensity, cloud: Particles, most: float) -> None:
    """Warns where more than a share of particles ended in a region without draws of the reference.

    Arguments:
        base: The reference.
        cloud: The particles.
        most: The share.
    """
    least = base.log_prob(base.sample(1000)).min()
    outside = float((cloud.state.log_q < least.detach()).double().mean())
    if outside > most:
        warnings.warn(
            f"{outside:.0%} of the particles ended where the reference has no draws: modes there "
            f"were found along the path, and other modes may have been missed. A wider "
            f"reference=... is safer, or compare two of them by their evidence.",
            stacklevel=5,
        )


def with_map(stage: driver.Stage, block: Block, beta: float) -> driver.Stage:
    """The stage by way of a block that begins at ``beta``."""
    before = partial(paths.log_path, beta=block.scale.new_tensor(beta))
    return stage._replace(
        map=block.map, defensive_weight=block.defensive_weight, previous_log_prob=before
    )


@torch.no_grad()
def choose_defensive_weight(
    block: Block,
    cloud: Particles,
    unmoved: Particles,
    density: Callable[[Tensor], Tensor],
    grid: Sequence[float],
) -> float:
    r"""Chooses the share of particles to leave behind, for the most even weights.

    Let :math:`w = f_k / q_\epsilon` be the weights by the mixture. The chosen share, one of
    a grid, has the least :math:`\mathbb E_{f_k} w^3`, a Rényi divergence of
    :math:`f_k` from :math:`q_\epsilon`. It is estimated on particles of :math:`f_{k-1}` that are
    weighted to :math:`f_k`, because particles that the block has moved do not show the regions that
    it has left.

    Arguments:
        block: Trained.
        cloud: Equally weighted particles where it starts.
        unmoved: The same at the next density, where they are.
        density: :math:`\log\tilde f_{k-1}`.
        grid: The shares to choose from.
    """
    rows = slice(None, None, max(1, len(cloud.x) // NUM_WEIGHED))
    z, ladj = block(None).pull(cloud.x[rows])
    here, there = cloud.state.log_pi[rows], unmoved.state.log_pi[rows]
    carried = density(z).double() + ladj.double()
    mixture = driver.log_mixture(carried.new_tensor(grid)[:, None], here, carried)
    cubes = (there - here) + 3 * (there - mixture)
    moments = torch.where(cubes.isnan(), -torch.inf, cubes).logsumexp(-1)
    return grid[int((moments <= moments.min() + TIE).double().argmax())]


def path_density(target: Target, start: BaseDensity, beta: float) -> Callable[[Tensor], Tensor]:
    r""":math:`\log\tilde f`, differentiable; the ends ask only the density they need.

    Arguments:
        target, start: The densities at the ends.
        beta: The inverse temperature.

    Example:
        >>> from pyro_flowsamp.flows import gaussian
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 1)
        >>> path_density(target, BaseDensity(gaussian(1)), 1.0)(torch.tensor([[2.0]]))
        tensor([-4.])
    """
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
