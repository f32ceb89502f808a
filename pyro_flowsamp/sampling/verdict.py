"""The verdict on a run of ``sample()``: a diagnosis of its draws, with what the search knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..diagnostics.checks import Check, Diagnosis
from ..diagnostics.diagnosis import diagnose
from ..diagnostics.options import DiagnosisOptions
from ..remedies import remedy_for
from ..smc.found_modes import FoundModes
from ..trust import FlowDraws
from .pilot import Candidate

__all__ = ["advice", "judged", "thresholds", "with_problem"]

GENERAL_ADVICE = (
    "Look at effective sample sizes, R-hat and trace plots, and run again with another seed; "
    "reparametrise the model, or give it more informative priors."
)


def judged(
    best: Candidate, modes: FoundModes, flow_draws: FlowDraws, reported: Sequence[str] = ()
) -> Diagnosis:
    """The diagnosis of the draws; where Ctrl-C ends it, it has what was known before.

    Arguments:
        best: The kernel that has made them.
        modes: The result of the search for modes.
        flow_draws: Draws of its flow.
        reported: What has been seen to be wrong on the way, in words.
    """
    told = list(reported)
    if not best.reliable:
        told.insert(0, f"no kernel has been seen to mix: for {best.name}, {best.problem}")
    try:
        return diagnose(
            best.run, modes=modes, reported=told, flow_draws=flow_draws, options=thresholds(best)
        )
    except KeyboardInterrupt:
        found = Diagnosis(())
        for text in [*told, "Ctrl-C ended the checks of the draws"]:
            found = with_problem(found, text)
        return found


def with_problem(found: Diagnosis, text: str) -> Diagnosis:
    """A diagnosis with one more problem.

    Arguments:
        found: The diagnosis.
        text: The problem, in words.

    Example:
        >>> with_problem(Diagnosis(()), "too few draws").problems
        ('too few draws',)
    """
    return replace(found, checks=(*found.checks, Check("reported", 1, 0, False, text)))


def thresholds(best: Candidate) -> DiagnosisOptions:
    """The thresholds of the diagnosis, which suit the goal.

    Where effective draws are wanted, the final run compares them and nested R-hat with what is
    wanted, so that nested R-hat is not judged twice. Where a number of draws is wanted, the caller
    knows how few they are: chains must have the share ``min_ess_per_draw`` of their draws as
    effective draws, if this is less than would be needed else. The pilot run has moved particles
    and states already.

    Arguments:
        best: The kernel that has made the draws, with its goal.
    """
    options, goal, run, usual = best.options, best.goal, best.run, DiagnosisOptions()
    each = options.min_ess_per_draw * run.num_samples
    nested, least = usual.max_nested_r_hat, each * run.num_chains
    if goal.ess is not None:
        nested, least = float("inf"), goal.ess
        each = usual.min_ess_per_chain
    least = min(usual.min_ess, max(1, int(least)))
    return DiagnosisOptions(
        max_nested_r_hat=nested,
        start_groups=options.start_groups,
        min_ess=least,
        min_ess_per_chain=min(usual.min_ess_per_chain, each),
        max_share_error=max(usual.max_share_error, 0.5 / least**0.5),
        max_diverging=options.max_diverging,
        max_stay=options.max_stay,
        min_region_particles=options.min_region,
        min_share=options.min_share,
        max_unseen=options.modes.max_unseen,
        moves=False,
        search=options,
    )


def advice(problems: Sequence[str]) -> str:
    """The text of a warning of these problems, with what to do about each kind of them.

    Arguments:
        problems: The problems, in words.

    Example:
        >>> advice(["max_seconds are over"])[:80]
        'the draws may be wrong: max_seconds are over. What to do: Give more seconds, or '
    """
    known = dict.fromkeys(filter(None, map(remedy_for, problems)))
    return (
        f"the draws may be wrong: {'; '.join(problems)}. What to do: "
        f"{' '.join(known) or GENERAL_ADVICE} "
        f"pyro_flowsamp.report(data, 'report.html') shows what has been seen."
    )
