r"""Pilot runs: a kernel's work per effective draw, estimated from a short run of it.

A pilot run has :attr:`~pyro_flowsamp.SearchOptions.pilot_steps` steps, doubled while a chain has
made fewer than :attr:`~pyro_flowsamp.SearchOptions.min_ess_per_chain` effective draws in it. The
work of a step is counted in operations and elements, and not in seconds, so that a decision does
not depend on what else the machine does (:mod:`pyro_flowsamp.target.work`).
"""

from __future__ import annotations

from math import ceil, inf
from time import perf_counter
from typing import NamedTuple

from torch import Tensor

from ..chains.short_runs import short_run
from ..chains.vectorized import VectorizedMCMC
from ..checkpoint.scope import deactivated
from ..convergence import ess_per_draw, never_accepted_fraction
from ..distributed import check_alike, of_first
from ..kernels.base import FlowKernel
from ..kernels.imh import IMH
from ..options import SearchOptions
from ..seeding import kept_generators
from ..target.density import Target
from ..target.work import OVERHEAD, WorkCounter

__all__ = [
    "Candidate",
    "Goal",
    "StepWork",
    "check_time",
    "evaluations_per_step",
    "pilot_chains",
    "run_pilot",
]


class StepWork(NamedTuple):
    """The work of one step of all chains of a pilot run.

    Attributes:
        operations: Operations, the same for any number of chains.
        elements: Elements that they pass over, in proportion to the number of chains.
        chains: The number of chains for which they were counted.

    Example:
        >>> step = StepWork(operations=10.0, elements=500.0, chains=5)
        >>> step.of(50) - step.of(0)  # 100 elements for each chain
        5000.0
    """

    operations: float
    elements: float
    chains: int

    def of(self, chains: int) -> float:
        """The work of a step of so many chains, in elements."""
        return self.operations * OVERHEAD + self.elements * chains / self.chains

    @property
    def balanced_chains(self) -> float:
        """The chains for which operations cost as much as the elements that they pass over."""
        return self.operations * OVERHEAD * self.chains / max(self.elements, 1.0)


class Goal(NamedTuple):
    """The draws that are wanted in the end.

    Attributes:
        ess: Effective draws of every parameter; None where a number of draws is wanted.
        num_samples: Draws of each chain; None where effective draws are wanted.
        num_chains: Number of chains; None for a number that suits the kernel's work.
        options: Options of the search, with bounds for the number of chains.
        deadline: Time of :func:`time.perf_counter` after which draws are not doubled; or None.

    Example:
        >>> goal = Goal(ess=4000, num_samples=None, num_chains=100)
        >>> goal.steps(100, ess_per_draw=0.5)  # 40 effective draws of each chain
        80.0
    """

    ess: int | None
    num_samples: int | None
    num_chains: int | None
    options: SearchOptions = SearchOptions()
    deadline: float | None = None

    def chains(self, work: StepWork) -> int:
        """The number of chains of a kernel.

        As many as balance the cost of an operation with that of its elements, but no more than
        have :attr:`~pyro_flowsamp.SearchOptions.times_per_chain` effective draws each in the end.
        """
        if self.num_chains is not None:
            return self.num_chains
        least, most = self.options.min_chains, self.options.max_chains
        if self.ess is not None:
            most = min(most, int(self.ess / self.options.times_per_chain))
        return int(max(least, min(most, work.balanced_chains)))

    def steps(self, chains: int, ess_per_draw: float) -> float:
        """Steps of each chain that reach the goal, at so many effective draws in each draw."""
        if self.num_samples is not None:
            per_draw = max(1.0, self.options.target_ess_per_draw / ess_per_draw)
            return self.num_samples * per_draw
        assert self.ess is not None
        times = max(self.ess / chains, self.options.times_per_chain)
        return times / ess_per_draw


class Candidate(NamedTuple):
    """A kernel with the results of its pilot run.

    Attributes:
        name: Name of the method.
        run: The pilot run, whose chains can continue.
        length: Steps of the pilot run.
        ess_per_draw: Effective draws per draw.
        work: Work of a step.
        never_accepted_fraction: Share of its chains that never moved.
        goal: The draws that are wanted.
        distrust: Why it cannot be trusted; empty where it can.

    Example:
        >>> from types import SimpleNamespace
        >>> goal = Goal(ess=4000, num_samples=None, num_chains=100)
        >>> run = SimpleNamespace(kernel=None)  # stands for a pilot run
        >>> slow = Candidate("HMC", run, 100, 0.01, StepWork(1.0, 1.0, 100), 0.0, goal)
        >>> slow.reliable, slow.problem
        (False, 'only 1 effective draws of a chain')
    """

    name: str
    run: VectorizedMCMC
    length: int
    ess_per_draw: float
    work: StepWork
    never_accepted_fraction: float
    goal: Goal
    distrust: str = ""

    @property
    def options(self) -> SearchOptions:
        """Bounds by which the pilot run is judged."""
        return self.goal.options

    @property
    def num_chains(self) -> int:
        """The number of chains that make the draws."""
        return self.goal.chains(self.work)

    @property
    def thin(self) -> int:
        """Steps for each draw to keep."""
        steps = ceil(self.options.target_ess_per_draw / self.ess_per_draw)
        return min(self.options.max_thin, steps)

    @property
    def is_independence_sampler(self) -> bool:
        """Whether all its proposals are independent of the state."""
        return isinstance(self.run.kernel, IMH)

    @property
    def enough_ess(self) -> bool:
        """Whether the pilot run has enough effective draws for its estimates to be reliable."""
        return self.ess_per_draw * self.length >= self.options.min_ess_per_chain

    @property
    def problem(self) -> str:
        """Why the chains have not been seen to mix; empty where they have.

        An independence sampler never shows the regions that its flow does not reach, so that its
        flow must be good. Chains that never move are where the flow hardly ever draws: in a tail,
        which local moves would leave, or in a mode that hardly any of its draws are in.
        """
        if self.is_independence_sampler:
            if self.ess_per_draw < self.options.min_independence_ess:
                return f"jumps have only {self.ess_per_draw:.2g} effective draws each"
            if self.never_accepted_fraction:
                return f"{self.never_accepted_fraction:.2%} of the chains never jumped"
        if self.distrust:
            return self.distrust
        if not self.enough_ess:
            return f"only {self.ess_per_draw * self.length:.2g} effective draws of a chain"
        if self.never_accepted_fraction > self.options.max_never_accepted:
            return f"{self.never_accepted_fraction:.2%} of the chains never moved"
        return ""

    @property
    def reliable(self) -> bool:
        """Whether the chains have been seen to mix."""
        return not self.problem

    @property
    def at_least(self) -> float:
        """Work for all draws, if it mixes as in the pilot run."""
        chains = self.num_chains
        return self.work.of(chains) * self.goal.steps(chains, self.ess_per_draw)

    @property
    def work_to_finish(self) -> float:
        """Work for all draws; infinite if it is not reliable."""
        return self.at_least if self.reliable else inf

    @property
    def sort_key(self) -> tuple[bool, bool, float]:
        """The key whose smallest value is the best candidate's.

        Among candidates that are not reliable, those with local moves come first, and of these the
        one whose chains have most effective draws: how much work it would take is not known.
        """
        if self.reliable:
            return False, False, self.at_least
        return True, self.is_independence_sampler, -self.ess_per_draw * self.length


def pilot_chains(kernel: FlowKernel, options: SearchOptions) -> int:
    """The number of chains of a pilot run.

    Example:
        >>> from pyro_flowsamp import LatentMALA
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 2)
        >>> options = SearchOptions(pilot_chains=200, local_pilot_chains=20)
        >>> pilot_chains(IMH(target), options), pilot_chains(LatentMALA(target), options)
        (200, 20)
    """
    return options.pilot_chains if isinstance(kernel, IMH) else options.local_pilot_chains


def evaluations_per_step(kernel: FlowKernel, options: SearchOptions) -> float:
    """Target gradients of a step in a pilot run, for each chain; a density counts as a third.

    Example:
        >>> kernel = IMH(Target.from_energy(lambda x: x.square().sum(-1), 2))
        >>> round(evaluations_per_step(kernel, SearchOptions()), 3)
        0.333
    """
    return 1 / 3 if isinstance(kernel, IMH) else options.expected_leapfrogs


def run_pilot(
    name: str,
    kernel: FlowKernel,
    target: Target,
    starts: Tensor,
    goal: Goal,
    work: float,
    run: VectorizedMCMC | None = None,
) -> Candidate:
    """Runs a kernel until its work per effective draw is known, or known to be too high.

    Arguments:
        name: Name of the method.
        kernel: The kernel.
        target: Its target.
        starts: Starting points of the chains, ``(C, d)``.
        goal: The draws that are wanted in the end, and options of the run.
        work: Work with which another kernel would make them.
        run: The run, from :func:`~pyro_flowsamp.chains.short_runs.short_run`, where it is needed
            although it may be interrupted.

    Returns:
        The kernel with its estimates.

    Raises:
        KeyboardInterrupt: It was interrupted.
        RuntimeError, ValueError: The kernel cannot run on this target.

    Example::

        >>> import pyro, torch
        >>> from pyro_flowsamp import IMH, AutoFlow, FitOptions, Target
        >>> _ = pyro.set_rng_seed(0)
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> guide = AutoFlow(target, flow="gaussian", options=FitOptions(progress=False))
        >>> starts, goal = torch.randn(64, 2), Goal(ess=4000, num_samples=None, num_chains=None)
        >>> found = run_pilot("IMH", IMH(guide=guide), target, starts, goal, inf)
        >>> found.reliable, found.thin, found.ess_per_draw > 0.8
        (True, 1, True)
    """
    options = goal.options
    run = short_run(kernel, target, starts, options.pilot_warmup) if run is None else run
    before = target.evaluations
    run.run()
    step = _counted(run, options)
    while not run.interrupted:
        candidate = Candidate(
            name,
            run,
            run.num_samples,
            ess_per_draw(run.unconstrained, options.num_directions),
            step,
            never_accepted_fraction(run.statistics["accepted"]),
            goal,
        )
        slow = candidate.at_least >= work or run.num_samples >= options.max_pilot_steps
        costly = target.evaluations - before >= options.max_pilot_evaluations
        if candidate.enough_ess or slow or costly:
            known = run.unconstrained, step, candidate.ess_per_draw, target.evaluations
            check_alike(f"the pilot run of {name}", known)
            return candidate
        run.resume(2 * run.num_samples)
    raise KeyboardInterrupt


def check_time(target: Target, options: SearchOptions, seconds: float) -> None:
    """Checks that the least that a search for modes takes fits into a time, by a short trial.

    The evaluations of the search follow from its options. The work of one, in a batch of its size,
    is counted on a few points. The clock says only how long a unit of work takes there: it decides
    whether the search begins, and nothing in it. The random state is left as it was.

    Arguments:
        target: The target.
        options: Options of the search, and of this trial.
        seconds: The time that there is.

    Raises:
        ValueError: It takes longer; the message says how long. Or the density is finite nowhere.

    Example:
        >>> from pyro_flowsamp import Target
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> check_time(target, SearchOptions(), seconds=600.0)
    """
    modes, count = options.modes, options.timed_points
    with kept_generators(target.device):
        x = target.initial_points(count)
    with WorkCounter() as counter:
        target.log_prob_and_grad(x)
    work = StepWork(counter.operations, counter.elements, count)
    times = []
    for _ in range(options.timed_batches):
        start = perf_counter()
        float(target.log_prob_and_grad(x)[0][0])  # waits for the device
        times.append(perf_counter() - start)
    searches = 2 * options.least_share * modes.first_evaluations
    evaluations = options.least_per_path * modes.paths + searches
    each = work.of(modes.particles) / modes.particles
    needed = of_first(evaluations * each * min(times) / work.of(count))
    if needed > of_first(seconds):
        raise ValueError(
            f"max_seconds leaves {seconds:.3g} s, and the search for modes takes about "
            f"{needed:.2g} s at least: {evaluations:.2g} evaluations of the density and its "
            f"gradient. Give more seconds, or run one kernel, such as "
            f"VectorizedMCMC(LatentHMC(model), ...)"
        )


def _counted(run: VectorizedMCMC, options: SearchOptions) -> StepWork:
    """Counts the work of the first steps after warm-up, and makes the others of the pilot run."""
    if run.interrupted:
        raise KeyboardInterrupt
    steps = options.counted_steps
    if isinstance(run.kernel, IMH):  # its proposals are evaluated ahead, for many steps at once
        steps = max(steps, run.kernel.lookahead // run.chains_per_batch)
    with deactivated(), run.counting() as counter:  # a step that is read from a file is no work
        run.resume(steps)
    if run.interrupted:  # the next call would forget it
        raise KeyboardInterrupt
    run.resume(options.pilot_steps)
    return StepWork(counter.operations / steps, counter.elements / steps, run.num_chains)
