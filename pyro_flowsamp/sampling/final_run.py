"""The final run of ``sample()``: its burn-in, and draws until they are enough."""

from __future__ import annotations

import logging
from functools import reduce
from math import ceil
from time import perf_counter

import torch
from torch import Tensor

from ..chains.draw_buffer import IN_FILES
from ..chains.streaming import joined_columns, some_draws
from ..chains.vectorized import VectorizedMCMC
from ..checkpoint.folder import CheckpointError
from ..convergence import bulk_and_tail_ess, group_by_start, nested_r_hat
from ..distributed import AttemptError, WorkersDifferError, attempt, have_ended, of_first
from ..free_memory import TooLittleMemoryError
from ..progress import corrected, stage
from ..smc.found_modes import FoundModes
from ..stays import ess_of_rare_states
from ..target.density import Target
from ..target.site import Values
from .pilot import Candidate

__all__ = ["burn_in", "chains_that_moved", "finish", "shortfall", "starting_points"]

log = logging.getLogger(__name__)
#: what is wrong with the draws where Ctrl-C has ended the burn-in
BURN_IN_ENDED = (
    "Ctrl-C ended the burn-in: these draws are of the burn-in or of the pilot run, and depend on "
    "where the chains began"
)
#: what is wrong with them where it has ended the draws
DRAWS_ENDED = "Ctrl-C ended the draws before they were enough"
#: what is wrong with the draws where a doubling of their number does not fit into memory
MEMORY_ENDED = "the draws end before they are enough, since more do not fit into memory"
#: what a caller can do there
FEWER_DRAWS = (
    f"ask for fewer draws by ess=... or num_samples=..., for fewer chains by num_chains=..., or "
    f"{IN_FILES}"
)
FEWEST_DRAWS = 8  #: draws of a chain from which on its two halves can be compared


def finish(
    best: Candidate, target: Target, modes: FoundModes, progress: bool, before: int = 0
) -> list[str]:
    """Makes the draws that were asked for, after a burn-in of chains that begin at particles.

    Arguments:
        best: The candidate; the draws replace those of its run.
        target: Its target.
        modes: The result of the search for modes.
        progress: Whether to show a progress bar.
        before: Evaluations of the target before the search began.

    Returns:
        What is wrong with the draws, in words.
    """
    run, goal = best.run, best.goal
    x, chains = starting_points(best, modes), best.num_chains
    planned = goal.num_samples or ceil(goal.steps(chains, best.ess_per_draw) / best.thin)
    if not best.reliable and goal.num_samples is None:
        planned = min(planned, best.options.unreliable_draws)
    try:
        starts, several = target.unpack_unconstrained(x), modes.num_modes > 1
        with stage(f"Burn-in of {best.name}", target, not progress):
            problems = burn_in(best, target, planned, starts, several, before)
    except KeyboardInterrupt:  # between two runs of chains
        return [BURN_IN_ENDED]
    except TooLittleMemoryError as error:
        raise TooLittleMemoryError(error.need, FEWER_DRAWS) from None
    if run.interrupted:
        return [*problems, BURN_IN_ENDED]
    last, each = run.unconstrained, best.ess_per_draw * best.thin * chains
    wanted = float(goal.ess or (goal.num_samples or 0) * each)
    try:
        with stage(f"Draws by {best.name}", target, not progress, wanted, each):
            if goal.num_samples is not None:
                _go_on(run, goal.num_samples, best.thin)
                wrong = _missing_draws(run, goal.num_samples)
            else:
                groups, fewest = group_by_start(x, best.options.start_groups), planned // 2
                wrong = _draw_until_enough(best, max(FEWEST_DRAWS, fewest), groups)
    except KeyboardInterrupt:  # between two runs of chains
        wrong = [DRAWS_ENDED]
    except Exception as error:
        wrong = [_end_of_draws(error, none_yet=run.unconstrained is last)]
    return [*problems, BURN_IN_ENDED] if run.unconstrained is last else problems + wrong


def _end_of_draws(error: Exception, none_yet: bool) -> str:
    """The clause which says what has ended the draws.

    Raises:
        Exception: There are no draws, or the error ends the work of all.
    """
    if none_yet and isinstance(error, TooLittleMemoryError):
        raise TooLittleMemoryError(error.need, FEWER_DRAWS) from None
    if none_yet or have_ended() or isinstance(error, CheckpointError | WorkersDifferError):
        raise error
    if isinstance(error, TooLittleMemoryError):
        return f"{MEMORY_ENDED}: {error.need}; {FEWER_DRAWS}"
    kind = error.kind if isinstance(error, AttemptError) else type(error).__name__
    if kind == TooLittleMemoryError.__name__:  # on another worker
        return f"{MEMORY_ENDED}: {error}"
    return f"the density raised {kind} ({error}), and the draws end there"


def _go_on(run: VectorizedMCMC, num_samples: int, thin: int, append: bool = False) -> None:
    """Makes more draws; where they fail on one of several workers, all have those of before."""
    with attempt(run.kernel.target, CheckpointError):
        run.resume(num_samples, thin, append=append)


def starting_points(best: Candidate, modes: FoundModes) -> Tensor:
    """The points at which the chains of the final run begin, ``(C, d)``.

    They are particles of both searches. The chains of a pilot run are few, and lack modes of small
    share: these would not come back, where no flow leads there. The states of the pilot run serve
    where there are no particles, in many dimensions. Points are taken several times where there are
    fewer of them than chains.

    Arguments:
        best: The candidate, after its pilot run.
        modes: The result of the search for modes.

    Example:
        >>> from types import SimpleNamespace
        >>> run = SimpleNamespace(unconstrained=torch.tensor([[[1.0]], [[2.0]]]))
        >>> best = SimpleNamespace(run=run, num_chains=3)
        >>> modes = SimpleNamespace(are_annealed=False)
        >>> starting_points(best, modes).shape  # the states of two chains, one of them twice
        torch.Size([3, 1])
    """
    if modes.are_annealed:
        return modes.draw(best.num_chains)
    x = some_draws(best.run.unconstrained, best.num_chains)
    return x[torch.arange(best.num_chains, device=x.device) % len(x)]


def _draw_until_enough(best: Candidate, draws: int, groups: Tensor) -> list[str]:
    """Draws, and doubles the draws until they are enough; returns what is wrong at the end.

    Chains are looked at when their number of draws has doubled, and not more often: a run that is
    stopped at the first moment at which it looks good looks better than it is.
    """
    run, options = best.run, best.options
    _go_on(run, draws, best.thin)
    for left in range(options.max_doublings, -1, -1):
        if run.interrupted and run.num_samples < FEWEST_DRAWS:
            return [DRAWS_ENDED]
        wrong = shortfall(run, best, groups)
        if not wrong or not best.reliable and run.num_samples >= options.unreliable_draws:
            return wrong
        if run.interrupted:
            return [*wrong, DRAWS_ENDED]
        deadline = best.goal.deadline
        if deadline is not None and of_first(perf_counter() - deadline) > 0:
            return [*wrong, "max_seconds are over"]
        if left:
            _go_on(run, run.num_samples, best.thin, append=True)
    return wrong


def _missing_draws(run: VectorizedMCMC, wanted: int) -> list[str]:
    """The problem, in words, where Ctrl-C has ended a run before it had as many draws."""
    if not run.interrupted or run.num_samples >= wanted:
        return []
    return [f"{DRAWS_ENDED}: each chain has {run.num_samples}, not {wanted}"]


def shortfall(run: VectorizedMCMC, best: Candidate, groups: Tensor) -> list[str]:
    """Effective draws that are missing so far, and chains that depend on their start, in words.

    Arguments:
        run: The run, with its draws so far.
        best: The candidate, with its goal.
        groups: The group of each chain by where it started, ``(C,)``.
    """
    goal, options = best.goal, best.options
    assert goal.ess is not None
    x = _columns(run)
    bulk, tail = (found[~found.isnan()] for found in bulk_and_tail_ess(x))
    wanted = max(goal.ess, int(options.times_per_chain * run.num_chains))
    wrong = []
    for name, found in (("bulk", bulk), ("tail", tail)):
        least = float(found.min()) if len(found) else float(wanted)
        if least < wanted:
            wrong.append(f"the {name} has an effective sample size of {least:.0f}, not {wanted}")
    if best.is_independence_sampler and (rare := _rare_ess(best)) < wanted:
        wrong.append(
            f"the {options.rare_states:.0%} of states at which chains stay longest have an "
            f"effective sample size of {rare:.0f}, not {wanted}"
        )
    nested = nested_r_hat(run.unconstrained, groups)
    least = min((float(found.min()) for found in (bulk, tail) if len(found)), default=wanted)
    log.info(
        "%d draws of each of %d chains: effective sample size %.0f of %d, nested R-hat %.3f",
        run.num_samples, run.num_chains, least, wanted, nested,
    )  # fmt: skip
    corrected(least, run.num_samples)
    if nested > options.max_nested_r_hat:
        wrong.append(f"chains depend on where they started: nested R-hat is {nested:.4g}")
    return wrong


def _rare_ess(best: Candidate) -> float:
    """The effective number of draws of the states at which chains stay longest."""
    log_w = best.run.statistics["log_weight"]
    return ess_of_rare_states(log_w, best.thin, best.options.rare_states)


def _columns(run: VectorizedMCMC) -> Tensor:
    """The constrained draws, ``(chains, draws, D)``."""
    values = list(run.get_samples(group_by_chain=True).values())
    dtype = reduce(torch.promote_types, [value.dtype for value in values])
    return joined_columns(values, dtype, run.memory_for_draws)


def burn_in(
    best: Candidate,
    target: Target,
    num_samples: int,
    starts: Values,
    several: bool,
    before: int = 0,
) -> list[str]:
    """Runs the chains until every one has moved, and then as long again.

    Particles give modes and tails the wrong weights, with an error that all chains share and that
    their spread does not show. At several modes only proposals of the flow put the weights of modes
    right, so that they must have moved every chain. At one mode local moves do as well.

    A tail that a flow draws too seldom from is entered as seldom as it is left. So where steps cost
    little it takes more of them, for ``burn_in_fraction`` of the evaluations so far, without those
    ``before`` the search began.

    Arguments:
        best: The candidate.
        target: Its target.
        num_samples: Draws of each chain that are planned; after as many it ends in any case.
        starts: Unconstrained values at which the chains begin.
        several: Whether there are several modes.
        before: Evaluations of the target before the search began.

    Returns:
        What is wrong, in words.
    """
    run, block, found = best.run, best.options.burn_in_block, target.evaluations
    run.resume(block * best.thin, 1, starts)
    first, blocks = run.unconstrained[:, :1], 1
    moved = chains_that_moved(run, first, several)
    while not (run.interrupted or bool(moved.all()) or blocks >= num_samples // block):
        run.resume(block * best.thin)
        moved, blocks = moved | chains_that_moved(run, first, several), blocks + 1
    if run.interrupted:
        return []
    spent = max(1, target.evaluations - found)
    more = best.options.burn_in_fraction * (found - before) / spent
    run.resume(ceil(blocks * max(1.0, more)), block * best.thin)
    if bool(moved.all()):
        return []
    return [
        f"{int((~moved).sum())} of {len(moved)} chains have never moved: {best.name} hardly ever "
        f"proposes points near where they started, so that the probability of that region is not "
        f"well known"
    ]


def chains_that_moved(run: VectorizedMCMC, first: Tensor, several: bool) -> Tensor:
    """Whether each chain has moved, at several modes by a proposal of the flow, ``(C,)``.

    Arguments:
        run: A run; ``accepted`` of a kernel with a flow's proposals is theirs.
        first: The first states, ``(C, 1, d)``.
        several: Whether there are several modes.

    Example:
        >>> from types import SimpleNamespace
        >>> x = torch.tensor([[[0.0], [1.0]], [[0.0], [0.0]]])  # the first chain moves locally
        >>> none = torch.zeros(2, 2, dtype=torch.bool)
        >>> run = SimpleNamespace(unconstrained=x, statistics={"accepted": none})
        >>> chains_that_moved(run, x[:, :1], several=True).tolist()
        [False, False]
        >>> chains_that_moved(run, x[:, :1], several=False).tolist()
        [True, False]
    """
    accepted = run.statistics["accepted"].any(1)
    return accepted if several else accepted | (run.unconstrained != first).any(-1).any(1)
