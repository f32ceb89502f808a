r"""AutoAnnealingFlow: a continuous flow built block by block along a tempered path, and corrected.

Between a start :math:`b` that can be sampled and the target lie the densities

.. math:: \log\tilde f_k = (1 - \beta_k) \log b + \beta_k \log\tilde p, \qquad
          0 = \beta_0 < \dots < \beta_K = 1.

Block k is a velocity field whose flow :math:`T_k` carries :math:`f_{k-1}` to :math:`f_k`. It is
trained on particles of :math:`f_{k-1}` by the loss

.. math:: \mathbb E\,h(\Delta\log w - c) + \gamma\,\mathbb E\|T_k x - x\|^2

of its log weights :math:`\Delta\log w = \log\tilde f_k(T_k x) - \log\tilde f_{k-1}(x) + \log|\det
T_k'|`, with :math:`h(r) = 2\sqrt{1 + r^2} - 2`, a square that grows linearly far out, and :math:`c`
the log of the mean weight. The first term, after the log-variance divergence, is zero where the
block is perfect, and so is the noise of its gradient. A KL divergence estimated on a finite number
of particles can be driven below its infimum. Other losses, among them those of the paper, can be
given (:class:`~pyro_flowsamp.guides.annealing.AnnealingOptions`).

No block mends the errors of the block before it, and no transport moves mass between modes, which
the tempered path does. So the particles are weighted, resampled and moved along the way, in
training and, by :meth:`AutoAnnealingFlow.particles`, afresh with everything frozen, for an unbiased
evidence and the right weight of every mode; see :mod:`pyro_flowsamp.smc.particles`. A share of
them, the defensive weight, is left behind at every block, so that a block which moves particles
away from an edge or a steep slope does not leave it empty: a small share where the block is good,
and all where the block makes the weights worse.

References:
    Wu and Xie, *Annealing Flow Generative Models Towards Sampling High-Dimensional and Multi-Modal
    Distributions*, 2025, https://arxiv.org/abs/2409.20547

    Nüsken and Richter, *Solving high-dimensional Hamilton–Jacobi–Bellman PDEs using neural
    networks: perspectives from the theory of controlled diffusions and measures on path space*,
    2021, https://arxiv.org/abs/2005.05409
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ... import progress
from ...checkpoint.scope import active
from ...flows.proposal import FlowDistribution
from ...flows.recipes import gaussian
from ...options import FitOptions
from ...smc import driver, particles, paths
from ...smc.particles import Particles
from ...smc.shared_islands import on_islands
from ...smc.starts import overdispersed_base
from ...target.arguments import check_shared_names
from ...target.density import Target
from ...training.history import History
from ...validation import check_kind
from ..path_guide import PathGuide
from ..source import Unregistered
from .blocks import AnnealedFlow, BaseDensity, Block, BlockReport, CountedBlocks
from .options import AnnealingOptions
from .training import (
    BlockTrainer,
    check_settings,
    double_steps,
    store_path,
    warn_of_uncovered,
    with_map,
)

__all__ = ["AutoAnnealingFlow"]


TRAINING = FitOptions(
    max_steps=100,
    batch_size=512,
    learning_rate=5e-3,
    cosine_schedule=True,
    stop_at_ess=0.999,
)


class AutoAnnealingFlow(CountedBlocks, PathGuide):
    r"""A guide for targets with many or distant modes.

    It builds a flow block by block along a path of tempered densities, without samples of the
    target. :meth:`particles` returns weighted draws, which correct the errors of the flow.

    Arguments:
        model: A Pyro model, or a :class:`~pyro_flowsamp.Target`, on :math:`\mathbb R^d`.
        reference: A zuko-style flow that can be sampled; a number s for :math:`N(0, s^2 I)`; by
            default a Gaussian twice as wide as many points that were moved uphill from far
            out.
        schedule: The :math:`\beta_k`, rising from 0 to 1; by default each next one is where the
            particles' weights keep the ESS fraction ``target_ess``, and blocks are added until 1.
        target_ess: ESS fraction of the weights that fixes the next :math:`\beta_k`.
        num_particles: Number of particles that the blocks are trained on.
        mcmc_steps: Number of MALA steps of every particle after each block.
        options: Options of the training of each block.
        settings: Settings of the blocks, and of their training.

    Attributes:
        reports: One :class:`~pyro_flowsamp.guides.annealing.blocks.BlockReport` for each block.
        warn_uncovered: Whether to warn where particles end in a region that the reference does not
            cover.

    Raises:
        ValueError: A number is out of range, or the schedule does not rise from 0 to 1.

    References:
        Wu and Xie, *Annealing Flow Generative Models Towards Sampling High-Dimensional and
        Multi-Modal Distributions*, 2025, https://arxiv.org/abs/2409.20547

    Example::

        >>> import pyro
        >>> from pyro_flowsamp.problems import unequal_pair
        >>> pyro.set_rng_seed(0)
        >>> problem = unequal_pair()  # its evidence is log Z = 0
        >>> options = FitOptions(max_steps=10, batch_size=128, progress=False)
        >>> guide = AutoAnnealingFlow(
        ...     problem.target, reference=8.0, target_ess=0.5, num_particles=512, options=options
        ... )
        >>> history = guide.fit()
        >>> log_z, error = guide.particles(2048).evidence
        >>> bool(abs(log_z) < 4 * error < 1)
        True
    """

    time_name = "inverse temperature β"

    def __init__(
        self,
        model: Callable,
        *,
        reference: nn.Module | float | None = None,
        schedule: Sequence[float] | None = None,
        target_ess: float = 0.8,
        num_particles: int = 16384,
        mcmc_steps: int = 5,
        options: FitOptions | None = None,
        settings: AnnealingOptions | None = None,
    ) -> None:
        super().__init__(model, options=options or TRAINING)
        self._reference = Unregistered(reference)
        self.schedule = None if schedule is None else [float(beta) for beta in schedule]
        self.target_ess = target_ess
        self.num_particles, self.mcmc_steps = num_particles, mcmc_steps
        check_kind("settings", settings, AnnealingOptions)
        self.settings = settings or AnnealingOptions()
        check_settings(reference, self)
        self.warn_uncovered = True
        self.reports: list[BlockReport] = []
        self._led_to: Target | None = None

    training_results = ("reports",)

    # ---- building -----------------------------------------------------------------------------

    def build_flow(self, target: Target, context_size: int) -> nn.Module:
        self.check_target(target)
        reference = self._reference.value
        start = deepcopy(reference) if isinstance(reference, nn.Module) else gaussian(target.dim)
        return AnnealedFlow(start, target.dim, self.settings.hidden_features)

    def _initialize_start(self, target: Target) -> None:
        reference = self._reference.value
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

    @property
    def _flow(self) -> AnnealedFlow:
        assert isinstance(self.flow, AnnealedFlow)
        return self.flow

    def get_posterior(self, *args: Any, **kwargs: Any) -> FlowDistribution:
        """The flow as a Pyro distribution; warns where it is only the reference as yet."""
        if not self._flow.blocks:
            warnings.warn(
                "this AutoAnnealingFlow is its reference as long as fit(...) has built no blocks, "
                "and SVI can train none of it: call fit first.",
                stacklevel=2,
            )
        return super().get_posterior(*args, **kwargs)

    # ---- training -----------------------------------------------------------------------------

    def train_flow(self, target: Target, contexts: Tensor | None) -> History:
        assert isinstance(self.flow, AnnealedFlow)
        target.initial_points(1)  # raises where the density is not finite anywhere
        self._drop_stale_blocks(target)
        if not self.flow.blocks:
            self._initialize_start(target)
        history, start = History(stopped="enough"), time.perf_counter()
        with active().restoring("path") as found:
            if found is not None:
                self.flow.load_state_dict(found["flow"])
                self.reports = found["reports"]
        at = self._resume(target) if found is None else (found["cloud"], found["beta"])
        (cloud, beta), trainer = at, BlockTrainer(self.flow, target, self)
        total = None if self.schedule is None else len(self.schedule) - 1
        bar = progress.bar("Anneal", total, "block", not self.options.progress)
        bar.update(len(self.flow.annealing_blocks))
        try:
            while beta < 1:
                beta, cloud, report = trainer.add_block(cloud, beta)
                self.reports.append(report)
                store_path(self._flow, self.reports, cloud, beta)
                bar.update()
                bar.set_postfix(beta=f"{beta:.3g}", ess=f"{self.reports[-1].ess:.3f}")
            if self.warn_uncovered:
                most = self.settings.max_uncovered
                warn_of_uncovered(BaseDensity(self._flow.start), cloud, most)
            for _ in range(self.settings.refinement_blocks - self.flow.count_refinements()):
                self.reports.append(trainer.add_refinement())
            double_steps(self._flow)
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
        blocks = self._flow.annealing_blocks
        return blocks[-1].beta if blocks else 0.0

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
        given = {"islands": islands, "target": target}
        check_shared_names(AutoAnnealingFlow.particles, self._source.required, args, given)
        self.check_islands(num_particles, islands)
        target = self.target_for(*args, **kwargs) if target is None else target
        if (beta := self._reached()) < 1:
            raise ValueError(
                f"the path ends at beta = {beta:.4g}, short of the target: call fit, which goes on "
                f"from there."
            )
        return on_islands(target, num_particles, islands, self._carried, self._flow)

    def _carried(self, target: Target, num_particles: int, islands: int) -> Particles:
        """Fresh particles where the finished blocks end."""
        return deque(self.intermediate_particles(target, num_particles, islands), maxlen=1).pop()

    @torch.no_grad()
    def intermediate_particles(
        self, target: Target, num_particles: int, islands: int
    ) -> Iterator[Particles]:
        """The particles on the way of :meth:`particles`: of the base, then after every block."""
        start = BaseDensity(self._flow.start)
        x = start.sample(num_particles)
        ones = torch.ones_like(x[0])
        first = particles.init(x, paths.density(target, start, 0 * ones[0], ones), islands)
        yield from self.run_stages(first, self._stages(target), self.mcmc_steps)

    def path_times(self) -> list[float]:
        """The inverse temperatures of the base and of the ends of the finished blocks."""
        return [0.0, *(block.beta for block in self._flow.annealing_blocks)]

    def _stages(self, target: Target) -> Iterator[driver.Stage]:
        beta = 0.0
        for block in self._flow.annealing_blocks:
            yield self._stage(target, block, beta)
            beta = block.beta

    def _stage(self, target: Target, block: Block, beta: float) -> driver.Stage:
        """The stage that a finished block makes, from the inverse temperature ``beta``."""
        at = block.scale.new_tensor(block.beta)
        density = paths.density(target, BaseDensity(self._flow.start), at, block.scale)
        stage = driver.Stage(None, density, block.scale, block.step_size)
        return with_map(stage, block, beta)
