"""The verdict on a run of ``sample()``: all that has been seen to be wrong, in words."""

from __future__ import annotations

from math import exp, log

import torch

from .convergence import r_hat
from .pilot import Candidate
from .smc.found_modes import NOT_COVERED, Agreement, FoundModes, unseen_problem
from .target.density import Target
from .trust import flow_evidence, weights_problem
from .weights import Estimate

__all__ = ["advice", "evidence_of_all", "problems_of_draws", "problems_of_search"]


MAX_COMPARED = 20_000  #: draws that are sorted into regions
LONGEST = 500.0  #: log steps of a stay, lest its exponential overflow


def problems_of_search(
    best: Candidate, modes: FoundModes, evidence: Estimate | None = None
) -> list[str]:
    """Problems that the search shows: no kernel that mixes, and searches for modes that disagree.

    Arguments:
        best: The kernel that makes the draws.
        modes: The result of the search for modes.
        evidence: That of :func:`evidence_of_all`.
    """
    problems = []
    if not best.reliable:
        problems.append(f"no kernel has been seen to mix: for {best.name}, {best.problem}")
    if not modes.covered:
        problems.append(NOT_COVERED)
    agreement = modes.agreement
    if agreement.missed > best.options.modes.max_missed:
        problems.append(
            f"both searches for modes have missed regions that quasi-Newton paths have found: they "
            f"have {agreement.missed:.2%} of the mass, and about as much may be in regions that "
            f"none has found"
        )
    if agreement.unseen > best.options.modes.max_unseen:
        problems.append(unseen_problem(agreement.unseen))
    elif not modes.settled and modes.covered and evidence is None:
        same = agreement.directions_agree(best.options.modes)
        if agreement.direction is not None and not same:
            problems.append(agreement.direction.problem)
        if same or not agreement.evidences_agree(best.options.modes):
            problems.append(_evidence_problem(agreement, best.options.modes.max_evidence_error))
    return problems


def evidence_of_all(best: Candidate, target: Target, agreement: Agreement) -> Estimate | None:
    """The log evidence by draws of the flow; None where it misses mass, or is not known.

    It must not be smaller than those of the searches. Annealed particles often miss mass in many
    dimensions, and rarely find too much: the estimate of the evidence is unbiased, so that it
    exceeds the truth c-fold with a probability of at most 1/c.

    Arguments:
        best: The kernel that makes the draws.
        target: Its target.
        agreement: The evidences of two searches.
    """
    own, options = flow_evidence(best.run.kernel, target, best.options), best.options.modes
    if own is None:
        return None
    more = agreement.log_evidence - own.value
    error = (agreement.error.square() + own.standard_error.square()).sqrt()
    bound = (options.max_gap * error).clamp(min=options.evidence_tolerance)
    return None if bool((more > bound).any()) else own


def _evidence_problem(agreement: Agreement, most: float) -> str:
    """The sentence for two evidences that differ, or that are not known well enough."""
    one, two = agreement.log_evidence.tolist()
    error = float(agreement.error.max())
    if error > most:
        return (
            f"two searches for modes cannot be compared: the log evidence of one has an error of "
            f"{error:.2g}, so that missed modes would not be seen"
        )
    return (
        f"two searches for modes disagree: their log evidences are {one:.2f} and {two:.2f}, "
        f"{agreement.evidence_gap:.1f} standard errors apart"
    )


def problems_of_draws(best: Candidate, target: Target, modes: FoundModes) -> list[str]:
    """Problems that the draws show: chains that disagree or diverge, regions without any draw.

    Arguments:
        best: The kernel that has made the draws.
        target: Its target.
        modes: The result of the search for modes.
    """
    x, problems = best.run.unconstrained, []
    if x.shape[1] > 3 and (found := r_hat(x)) > best.options.max_r_hat:
        problems.append(f"the chains disagree: R-hat is {found:.2f}")
    for lost in (_lost_regions(best, modes), _lost_modes(best, target, modes)):
        problems += [lost] if lost else []
    if best.is_independence_sampler and best.reliable and (wrong := _jumps_that_stay(best)):
        problems.append(wrong)
    diverging = float(best.run.statistics["diverging"].double().mean())
    if diverging > best.options.max_diverging:
        problems.append(f"{diverging:.2%} of the trajectories diverged")
    return problems


def _jumps_that_stay(best: Candidate) -> str:
    """Draws of heavy weights, at which an independence sampler stays too long for its chains.

    At a state of weight w, relative to the mean over proposals, it stays for about w steps.
    """
    log_w = best.run.statistics["log_weight"].double()
    log_w = log_w[log_w.isfinite()]
    if not len(log_w) or not (wrong := weights_problem(log_w, best.options)):
        return ""
    mean = log(len(log_w)) - float((-log_w).logsumexp(0))  # over proposals, by those of the draws
    longest = exp(min(float(log_w.max()) - mean, LONGEST))
    if longest <= best.options.max_stay * best.run.num_samples * best.thin:
        return ""
    return f"chains stay at single draws for up to {longest:.2g} steps: {wrong}"


def _lost_regions(best: Candidate, modes: FoundModes) -> str:
    """Regions in which both searches have particles, and the chains hardly any draws."""
    options, counts = best.options, modes.agreement.counts.double()
    x = best.run.unconstrained.flatten(0, 1)
    x = x[torch.randperm(len(x), device=x.device)[:MAX_COMPARED]]
    nearest = modes.component_of(x)
    share = nearest.bincount(minlength=counts.shape[1]).double() / len(x)
    expected = (counts / counts.sum(1, keepdim=True)).min(0).values
    lost = (counts.min(0).values >= options.min_region) & (share < options.min_share * expected)
    if not bool(lost.any()):
        return ""
    return (
        f"chains hardly ever visit {int(lost.sum())} regions in which two searches have found "
        f"{float(expected[lost].sum()):.2%} of the mass"
    )


def _lost_modes(best: Candidate, target: Target, modes: FoundModes) -> str:
    """Modes that paths have found, of which the draws have far fewer than expected."""
    options, alone = best.options, modes.alone
    if alone is None or not len(alone.loc):
        return ""
    x = best.run.unconstrained.flatten(0, 1)
    size = len(x) * min(1.0, best.ess_per_draw * best.thin)
    x = x[torch.randperm(len(x), device=x.device)[:MAX_COMPARED]]
    mass = modes.agreement.shares_of(alone)
    share = alone.near(x, target).double().mean(1)
    lost = (size * mass >= options.min_region) & (share < options.min_share * mass)
    if not bool(lost.any()):
        return ""
    return (
        f"chains hardly ever visit {int(lost.sum())} modes in which quasi-Newton paths have found "
        f"{float(mass[lost].sum()):.2%} of the mass"
    )


def advice(problems: list[str]) -> str:
    """The text of a warning of these problems, with advice."""
    text = "; ".join(problems)
    return (
        f"the draws may be wrong: {text}. Look at effective sample sizes, R-hat and trace plots; "
        f"reparametrise the model, or give it more informative priors."
    )
