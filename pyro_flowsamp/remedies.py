"""Remedies for problems that ``sample()`` has told, by the words of the problems."""

from __future__ import annotations

import re

__all__ = ["remedy_for"]

#: a pattern of words of a problem, and what to do about it; the first that fits counts
REMEDIES = (
    (
        r"two searches|both searches|in which searches|quasi-Newton|paths to modes|"
        r"annealed particles",
        "A region of the posterior may be missing. Run sample() again with another seed, and give "
        "points of regions that you know by initial_params=. Write hierarchical models in their "
        "non-centred form. More particles: search=SearchOptions(modes=ModeSearchOptions(...)).",
    ),
    (
        r"R-hat|disagree|depend on where",
        "Draw more (a larger ess= or num_samples=), and look at the ranks and traces of the worst "
        "parameters. If chains sit in different places for long, reparametrise the model, or use "
        "LocalGlobalHMC with a flow that knows all modes.",
    ),
    (
        r"Ctrl-C ended the draws",
        "Make the same call again; with checkpoint= it goes on where Ctrl-C ended it.",
    ),
    (
        r"fit into memory",
        "Ask for fewer effective draws (ess=), or hold them in files: "
        "checkpoint=CheckpointOptions(folder, stream=True).",
    ),
    (
        r"effective sample size|effective draws",
        "Draw more, or accept that the standard errors in the summary are as large as they are. "
        "Reparametrise the parameters with the fewest effective draws.",
    ),
    (
        r"diverg",
        "The density is too steep somewhere for the step size, or zero behind an edge. Write "
        "hierarchical models in their non-centred form, and give scales a prior that keeps them "
        "away from zero. Where bounds depend on other sites, write the distance from the bound as "
        "a site of its own.",
    ),
    (
        r"never moved|never jumped|hardly ever|single draws|one point|importance ESS|Pareto k|"
        r"local moves|by weighted draws|log evidence is|the flow has no density|does not move",
        "The flow does not reach where these chains are. Train it longer, take another flow "
        "(flow='spline', or an ensemble), or use a kernel with local moves, as LocalGlobalHMC.",
    ),
    (r"max_seconds", "Give more seconds, or ask for fewer effective draws (ess=)."),
    (
        r"no kernel",
        "Give the model more informative priors, reparametrise it, or standardise its data.",
    ),
    (
        r"particles end outside|improper",
        "The posterior may have no finite integral: give every site a proper prior.",
    ),
    (
        r"round|float32|precision",
        "Evaluate the model in float64: torch.set_default_dtype(torch.float64), and data in it.",
    ),
    (
        r"finite|NaN",
        "Look at the model at these draws: a division by zero or an overflow is likely.",
    ),
)


def remedy_for(problem: str) -> str:
    """A remedy for a problem in words; empty where nothing particular is known.

    Arguments:
        problem: A clause of ``attrs["problems"]``.

    Example::

        >>> remedy_for("max_seconds are over")
        'Give more seconds, or ask for fewer effective draws (ess=).'
        >>> remedy_for("something new")
        ''
    """
    return next((text for words, text in REMEDIES if re.search(words, problem)), "")
