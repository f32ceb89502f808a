"""The search for the sampler that makes the draws of one target with the least work."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import NoReturn

import torch
from torch import Tensor

from ..chains.short_runs import short_run
from ..checkpoint.folder import CheckpointError
from ..distributed import WorkersDifferError, attempt, have_ended
from ..free_memory import TooLittleMemoryError
from ..guides.auto_flow import AutoFlow
from ..kernels.base import FlowKernel
from ..kernels.imh import IMH
from ..kernels.latent import LatentHMC
from ..kernels.local_global import LocalGlobalHMC
from ..options import FitOptions, SearchOptions
from ..progress import stage
from ..smc.found_modes import FoundModes
from ..smc.mode_search import ModeSearch
from ..target.density import Target
from ..target.work import WorkCounter
from ..transitions.trajectory_length import TrajectoryOptions
from ..trust import growth_without_bound, immobile_problem, jumps_problem
from .candidates import (
    better_gaussian,
    flow_candidates,
    gaussian_guide,
    mixture_guide,
    mixture_name,
    train_guide,
)
from .interrupts import InterruptibleSearch, modes_problem, modes_so_far
from .phase_times import PhaseTimes
from .pilot import Candidate, Goal, evaluations_per_step, pilot_chains, run_pilot
from .storage import interruptible, stored_check, stored_modes

__all__ = ["SamplerSearch"]

log = logging.getLogger(__name__)


class SamplerSearch(InterruptibleSearch):
    """The search for the sampler of one target that takes the least work.

    Arguments:
        target: The target.
        goal: The draws that are wanted, and options of the search.
        progress: Whether to show progress bars.
        points: Points ``(N, d)`` that the search for modes looks at too, or None.
        before: Evaluations of the target before all began; by default those so far.
        guide: A trained guide of the target, whose flow is compared too, or None.

    Attributes:
        modes: What the search for modes has found; set by :meth:`find_modes`.
        particles: Its particles ``(N, d)``, in random order.
        evaluations_before: Evaluations of the target before the search began.
        timed: Times of the "start", the "training", the "pilot" runs and the "sampling".
        compared: The candidates so far, with their work and what is wrong with them.

    Example::

        >>> _ = torch.manual_seed(0)
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> goal = Goal(ess=1000, num_samples=None, num_chains=None)
        >>> search = SamplerSearch(target, goal, progress=False)
        >>> search.find_modes()
        >>> search.search().reliable
        True
    """

    def __init__(
        self,
        target: Target,
        goal: Goal,
        progress: bool,
        points: Tensor | None = None,
        before: int | None = None,
        guide: AutoFlow | None = None,
    ) -> None:
        super().__init__()
        self.target, self.goal, self.points, self.guide = target, goal, points, guide
        self.progress, self.options = progress, goal.options
        self.timed = PhaseTimes("start", "training", "pilot", "sampling")
        self.compared: list[str] = []
        self.evaluations_before = target.evaluations if before is None else before
        self._failure: Exception | None = None
        self._searched = 0.0  # work since the first reliable candidate

    @property
    def evaluations(self) -> int:
        """Evaluations of the target since the search began."""
        return self.target.evaluations - self.evaluations_before

    # ---- the search -----------------------------------------------------------------------------

    def find_modes(self) -> None:
        """Searches for all modes, and counts the work of an evaluation.

        Raises:
            KeyboardInterrupt: It was interrupted before it had found any point.
        """
        bar = stage("Search for modes", self.target, not self.progress)
        with self.timed("start"), bar:
            search = ModeSearch(self.target, self.options.modes, self.points)
            self.modes: FoundModes = stored_modes(self.target, lambda: modes_so_far(search))
        self.particles = _none_at_infinity(self.modes.x)
        if problem := modes_problem(self.modes):
            self.take_first(problem)
        few = self.particles[: self.options.pilot_chains]
        self._work_per_evaluation = self.in_any_case("work", partial(_work_of, self.target, few))
        log.info("modes: %d, after %d evaluations", self.modes.num_modes, self.modes.evaluations)

    def search(self) -> Candidate:
        """Returns the best kernel, once no other could save more work than it takes to find out.

        :meth:`find_modes` comes first.

        Raises:
            RuntimeError: No kernel runs on the target.
            ValueError: The draws of no pilot run fit into memory.
            KeyboardInterrupt: It was interrupted twice before the end of the first pilot run.
        """
        make = partial(_fitted, self.target, self.particles, self.modes)
        self._affine, mixture, gaussian = self.in_any_case("guides", make)
        name = mixture_name(self.target, self.modes.mixture)
        trajectory = TrajectoryOptions(max_steps=self.options.max_leapfrogs)
        best = None
        if self.guide is not None:
            best = self.consider(None, "IMH", "guide", IMH(guide=self.guide))
        best = self.consider(best, "IMH", name, IMH(guide=mixture))
        best = self.consider(best, "HMC", "", LatentHMC(guide=gaussian, trajectory=trajectory))
        for flow, guide in (("guide", self.guide), (name, mixture)):
            if guide is not None:
                both = LocalGlobalHMC(guide=guide, trajectory=trajectory)
                best = self.consider(best, "LocalGlobalHMC", flow, both)
        for flow, from_draws in flow_candidates(self.target, self.modes.num_modes > 1):
            if (from_draws and self.work_to_finish(best) < inf) or not self.options.wants(flow):
                continue
            failure = self._failure
            if (guide := self.train_candidate(flow, from_draws, best)) is None:
                if self._failure is not failure:
                    continue  # another flow may be trained
                break
            name = f"{flow}, from draws" if from_draws else flow
            best = self.consider(best, "IMH", name, IMH(guide=guide))
            both = LocalGlobalHMC(guide=guide, trajectory=trajectory)
            best = self.consider(best, "LocalGlobalHMC", name, both)
        best = best or self.cut_short
        if best is None:
            _raise_no_kernel(self._failure)
        return best

    def work_to_finish(self, best: Candidate | None) -> float:
        """Work with which the best candidate so far makes the draws; infinite if unknown."""
        return inf if best is None else best.work_to_finish

    def worth_trying(self, best: Candidate | None, evaluations: float, work: float) -> bool:
        """Whether a step of the search that takes so much work could save as much.

        The whole search must not take more than ``patience`` times the work for all draws, either,
        and no more evaluations than a share of all, beside those of random points, which have no
        gradients.
        """
        left, options = self.work_to_finish(best), self.options
        bound = float(options.max_evaluations)
        if left < inf:
            draws = left / self._work_per_evaluation
            bound = options.search_fraction / (1 - options.search_fraction) * draws
            bound = max(bound, options.min_evaluations)
        affordable = self.evaluations - self.modes.surveyed + evaluations <= bound
        patient = self._searched + work <= options.patience * left
        ended = self.stopped or (self.takes_first and left < inf)
        return not ended and affordable and work <= left and patient

    def consider(
        self, best: Candidate | None, method: str, flow: str, kernel: FlowKernel
    ) -> Candidate | None:
        """Returns the better of the best candidate so far and a kernel with a flow.

        The kernel is run only if that costs less than it may save.
        """
        wanted = self.options.wants(method, flow.removesuffix(", from draws"))
        if self.cut_short is not None or not wanted:
            return best
        name = f"{method} ({flow})" if flow else method
        steps = pilot_chains(kernel, self.options) * self.options.min_pilot_steps
        evaluations = steps * evaluations_per_step(kernel, self.options)
        work = self._work_per_evaluation * evaluations
        if best is not None and not self.worth_trying(best, evaluations, work):
            log.info("%s: not tried, since its pilot run takes more work than it could save", name)
            return best
        try:
            bar = stage(f"Pilot run of {name}", self.target, not self.progress)
            with self.timed("pilot"), _trial(self.target, "pilot", best), bar:
                candidate = self.run_pilot(name, kernel, self.work_to_finish(best))
        except KeyboardInterrupt:
            self.stop(best, name, kernel)
            return best
        except Exception as error:  # the target has been evaluated: the candidate is at fault
            self._leave_out(name, error)
            return best
        fate = candidate.problem or f"{candidate.at_least:.3g} of work"
        self.compared.append(f"{name}: {fate}")
        log.info("%s: %s; %.2g effective draws of a draw", name, fate, candidate.ess_per_draw)
        if self.work_to_finish(best) == inf:
            self._searched = 0.0
        self._searched += work
        return min(best or candidate, candidate, key=lambda found: found.sort_key)

    def _leave_out(self, name: str, error: Exception) -> None:
        """Goes on without a candidate that has failed, unless the search ends, and says so."""
        if isinstance(error, CheckpointError | WorkersDifferError) or have_ended():
            raise error
        self._failure = error
        text = _reason(error)
        self.compared.append(f"{name}: left out: {text}")
        warnings.warn(f"{name} is left out: {text}", stacklevel=5)

    def run_pilot(self, name: str, kernel: FlowKernel, work: float) -> Candidate:
        """Runs a kernel until it is known whether it makes the draws with less than ``work``.

        If its chains spread without bound, and the density allows that, the search ends with a
        warning.
        """
        starts = self.particles[: pilot_chains(kernel, self.options)]
        self.pilot = short_run(kernel, self.target, starts, self.options.pilot_warmup)
        candidate = run_pilot(name, kernel, self.target, starts, self.goal, work, self.pilot)
        check = partial(check_of_pilot, candidate, self.target, self.particles, self.options)
        problem, growth = stored_check(kernel, check)
        self._warn_if_improper(name, growth)
        return candidate._replace(distrust=problem)

    def _warn_if_improper(self, name: str, growth: float | None) -> None:
        if growth is not None:
            self.stopped = True
            warn_of_growth(name, growth)

    # ---- flows ----------------------------------------------------------------------------------

    def train_candidate(
        self, flow: str, from_draws: bool, best: Candidate | None
    ) -> AutoFlow | None:
        """Trains a flow with no more work than it could save; None if that is too little."""
        evaluations = FitOptions.batch_size * self.options.min_training_steps
        work = self._work_per_evaluation * evaluations
        if self.takes_first or not self.worth_trying(best, evaluations, work):
            log.info("%s: not trained, since this takes more work than it could save", flow)
            return None
        before = self.evaluations
        log.info("%s: training%s", flow, " on particles and draws" if from_draws else "")
        try:
            bar = stage(f"Training of {flow}", self.target, hidden=True)  # the name of its bar
            with self.timed("training"), _trial(self.target, "flow", best), bar:
                guide = train_guide(
                    self.target,
                    flow,
                    draws_to_train_on(self.particles, best) if from_draws else None,
                    self._affine,
                    self.work_to_finish(best),
                    partial(self.worth_trying, best),
                    self.options,
                    self.progress,
                )
        except KeyboardInterrupt:
            kernel = IMH(guide=gaussian_guide(self.target, *self._affine))
            self.stop(best, "IMH (Gaussian)", kernel)
            return None
        except Exception as error:
            self._leave_out(flow, error)
            guide = None
        self._searched += (self.evaluations - before) * self._work_per_evaluation
        return guide


def _reason(error: Exception) -> str:
    """The reason for which a candidate is left out, in words."""
    if isinstance(error, TooLittleMemoryError):
        return error.need  # its remedy is not one of sample()
    return str(error) or type(error).__name__


@contextmanager
def _trial(target: Target, kind: str, best: Candidate | None) -> Iterator[None]:
    """A context of a candidate, which all workers leave out where it fails on one of them."""
    go_on = best is not None
    with attempt(target, CheckpointError), interruptible(kind, lambda: go_on):
        yield


def _work_of(target: Target, x: Tensor) -> float:
    """The work of an evaluation of the density and its gradient, in a batch of points."""
    with WorkCounter() as counter:
        target.log_prob_and_grad(x)
    return counter.work / len(x)


def _fitted(
    target: Target, particles: Tensor, modes: FoundModes
) -> tuple[tuple[Tensor, Tensor], AutoFlow, AutoFlow]:
    """A Gaussian's mean and factor, and the guides of the mixture and of this Gaussian."""
    whitening = modes.coordinates.loc, modes.coordinates.scale_tril
    affine = better_gaussian(particles.double(), *whitening)
    mixture = mixture_guide(target, *whitening, modes.mixture)
    return affine, mixture, gaussian_guide(target, *affine)


def check_of_pilot(
    candidate: Candidate, target: Target, particles: Tensor, options: SearchOptions
) -> tuple[str, float | None]:
    """The problem of a candidate by particles and states, and the growth of chains without bound.

    The first is empty where there is none, the second None.
    """
    kernel, x, problem = candidate.run.kernel, candidate.run.unconstrained, candidate.distrust
    if candidate.reliable and candidate.is_independence_sampler:
        problem = jumps_problem(kernel, target, x, particles, options)
    elif candidate.reliable:
        problem = immobile_problem(kernel, target, particles, options)
    return problem, growth_without_bound(target, particles, x[:, -1], options)


def draws_to_train_on(particles: Tensor, best: Candidate | None) -> Tensor:
    """Particles, and as many draws of the best chains so far.

    Example:
        >>> draws_to_train_on(torch.zeros(5, 2), None).shape
        torch.Size([5, 2])
    """
    if best is None:
        return particles
    chains = best.run.unconstrained.flatten(0, 1)
    index = torch.randperm(len(chains), device=chains.device)[: len(particles)]
    return torch.cat([particles, chains[index]])


def _raise_no_kernel(failure: Exception | None) -> NoReturn:
    if isinstance(failure, TooLittleMemoryError):  # it says what to do
        raise failure
    raise RuntimeError(
        f"no kernel runs on this posterior. The last error was: {failure}. Mend the model, or "
        f"leave kernels and flows out with exclude=..."
    ) from failure


def warn_of_growth(name: str, growth: float) -> None:
    """Warns that the posterior may be improper, since chains spread without bound.

    Example:
        >>> with warnings.catch_warnings(record=True, action="always") as told:
        ...     warn_of_growth("MALA", 30.0)
        >>> str(told[0].message)[:42]
        'chains of MALA spread without bound: their'
    """
    warnings.warn(
        f"chains of {name} spread without bound: their interquartile range is {growth:.2g} "
        f"times that of the particles that they started at, and the density falls too slowly "
        f"there to have an integral. The posterior may be improper: give every site a proper "
        f"prior.",
        stacklevel=7,
    )


def _none_at_infinity(x: Tensor) -> Tensor:
    """The particles; raises a ValueError where some have gone to infinity."""
    lost = int((~torch.isfinite(x)).any(-1).sum())
    if lost:
        raise ValueError(
            f"{lost} of {len(x)} annealed particles have gone to infinity. The posterior seems to "
            f"be improper: give every site a proper prior."
        )
    return x
