"""The verdict on a run of ``sample()``: all that has been seen to be wrong, in words."""

from __future__ import annotations

import torch

from .convergence import r_hat
from .pilot import Candidate
from .smc.mode_search import FoundModes

__all__ = ["advice", "problems_of_draws", "problems_of_search"]


MAX_COMPARED = 20_000  #: draws that are sorted into regions


def problems_of_search(best: Candidate, modes: FoundModes) -> list[str]:
    """Problems that the search shows: no kernel that mixes, and searches for modes that disagree.

    Arguments:
        best: The kernel that makes the draws.
        modes: The result of the search for modes.
    """
    problems = []
    if not best.reliable:
        problems.append(f"no kernel has been seen to mix: for {best.name}, {best.problem}")
    if not modes.covered:
        problems.append(
            "particles end outside of the distribution that they started from, however wide that is"
        )
    agreement = modes.agreement
    if agreement.unseen > best.options.modes.max_unseen:
        problems.append(
            f"two searches for modes disagree: one alone has found regions that have "
            f"{agreement.unseen:.2%} of the mass, and about as much may be in regions that none "
            f"has found"
        )
    elif not modes.settled and modes.covered:
        one, two = agreement.log_evidence.tolist()
        problems.append(
            f"two searches for modes disagree: their log evidences are {one:.2f} and {two:.2f}, "
            f"{agreement.evidence_gap:.1f} standard errors apart"
        )
    return problems


def problems_of_draws(best: Candidate, modes: FoundModes) -> list[str]:
    """Problems that the draws show: chains that disagree or diverge, regions without any draw.

    Arguments:
        best: The kernel that has made the draws.
        modes: The result of the search for modes.
    """
    x, problems = best.run.unconstrained, []
    if x.shape[1] > 3 and (found := r_hat(x)) > best.options.max_r_hat:
        problems.append(f"the chains disagree: R-hat is {found:.2f}")
    if lost := _lost_regions(best, modes):
        problems.append(lost)
    diverging = float(best.run.statistics["diverging"].double().mean())
    if diverging > best.options.max_diverging:
        problems.append(f"{diverging:.2%} of the trajectories diverged")
    return problems


def _lost_regions(best: Candidate, modes: FoundModes) -> str:
    """Regions in which both searches have particles, and the chains hardly any draws."""
    options, counts = best.options, modes.agreement.counts.double()
    x = best.run.unconstrained.flatten(0, 1)
    x = x[torch.randperm(len(x), device=x.device)[:MAX_COMPARED]]
    nearest = modes.mixture.joint_log_prob(modes.coordinates.to_u(x)).argmax(-1)
    share = nearest.bincount(minlength=counts.shape[1]).double() / len(x)
    expected = (counts / counts.sum(1, keepdim=True)).min(0).values
    lost = (counts.min(0).values >= options.min_region) & (share < options.min_share * expected)
    if not bool(lost.any()):
        return ""
    return (
        f"chains hardly ever visit {int(lost.sum())} regions in which two searches have found "
        f"{float(expected[lost].sum()):.2%} of the mass"
    )


def advice(problems: list[str]) -> str:
    """The text of a warning of these problems, with advice."""
    text = "; ".join(problems)
    return (
        f"the draws may be wrong: {text}. Look at effective sample sizes, R-hat and trace plots; "
        f"reparametrise the model, or give it more informative priors."
    )
