"""The verdict of a report: what is wrong with a result, and what to do about it, in words.

It comes from a diagnosis where there is one, and else from what ``sample()`` has recorded and from
checks of the numbers in the report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..remedies import remedy_for
from .source import ReportSource

__all__ = ["ReportCheck", "Verdict", "judge"]


OTHERWISE = "Look at the ranks and traces below, and run again with another seed."
GOOD = (
    "Nothing has been seen to be wrong. The draws can be used; quote the standard errors in the "
    "summary. No check can prove that no mode was missed: a second run with another seed costs "
    "little and is worth it for results that matter."
)
DOUBTS = (
    "sample() has seen nothing to be wrong. The checks of this report, which know less, have found:"
)
UNJUDGED = (
    "The checks of this report have found nothing, but the result has no verdict of sample() and "
    "no diagnosis. Modes that no chain has visited would not show here."
)


@dataclass(frozen=True)
class ReportCheck:
    """A check of a result.

    Attributes:
        name: What is looked at.
        value: What was found, as text.
        threshold: What would be right, as text.
        ok: Whether it is right.
        message: What is wrong, in a sentence; empty where nothing is.
        advice: What to do.

    Example:
        >>> check = ReportCheck("R-hat", "1.30", "below 1.01", False, "the chains disagree")
        >>> advice_for(check.message)[:10]
        'Draw more '
    """

    name: str
    value: str
    threshold: str
    ok: bool
    message: str = ""
    advice: str = ""


@dataclass(frozen=True)
class Verdict:
    """The verdict on a result.

    Attributes:
        reliable: Whether nothing has been seen to be wrong; for results of ``sample()`` that is its
            own verdict.
        title: The verdict in a few words.
        text: What to do next.
        problems: What is wrong with advice, ``[(problem, advice), ...]``.
        checks: The checks behind it.
        unchecked: What could not be checked, with what it would need.
        notes: What else should be known, and is not wrong.

    Example:
        >>> [Verdict(reliable, "", "", [("doubt", "look")], []).level for reliable in (True, False)]
        ['look', 'bad']
    """

    reliable: bool
    title: str
    text: str
    problems: list[tuple[str, str]]
    checks: list[ReportCheck]
    unchecked: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def level(self) -> str:
        """The class of the verdict in the page: "good", "look" (reliable, with doubts) or "bad"."""
        if not self.reliable:
            return "bad"
        return "look" if self.problems else "good"


def judge(source: ReportSource, diagnosis: Any = None) -> Verdict:
    """The verdict on a result.

    Arguments:
        source: The result.
        diagnosis: An object with a list ``checks`` of objects with ``name``, ``value``,
            ``threshold``, ``ok``, ``message`` and ``advice`` (and, where there are, ``at_least``),
            and maybe texts ``unchecked``; by default the checks are made here,
            and what ``sample()`` has found to be wrong is added.

    Example:
        >>> from types import SimpleNamespace
        >>> bad = ReportCheck("R-hat", "1.3", "1.01", False, "the chains disagree", "draw more")
        >>> found = judge(None, SimpleNamespace(checks=[bad]))
        >>> found.title, found.problems
        ('The draws may be wrong', [('the chains disagree', 'Draw more.')])
    """
    if diagnosis is not None:
        checks = [_as_check(check) for check in diagnosis.checks]
        recorded = []
        unchecked = tuple(map(str, getattr(diagnosis, "unchecked", ())))
        notes = tuple(map(str, getattr(diagnosis, "notes", ())))
    else:
        checks = _checks(source)
        recorded, unchecked = _recorded_problems(source.attrs), ()
        notes = tuple(filter(None, str(source.attrs.get("notes", "")).split("; ")))
    problems = [(text, advice_for(text)) for text in recorded]
    problems += [
        (c.message or f"{c.name} is {c.value}", c.advice or advice_for(c.message))
        for c in checks
        if not c.ok
    ]
    problems = list(dict(reversed(problems)).items())[::-1]  # each once, with its first advice
    if problems and diagnosis is None and not recorded and "reliable" in source.attrs:
        return Verdict(
            True, "The draws look reliable, but look at this", DOUBTS, problems, checks, (), notes
        )
    if problems:
        title = "The draws may be wrong"
        text = "Do not use them before you have looked into these points:"
        return Verdict(False, title, text, problems, checks, unchecked, notes)
    judged = diagnosis is not None or "reliable" in source.attrs
    title = "The draws look reliable" if judged else "No problem was seen"
    return Verdict(True, title, GOOD if judged else UNJUDGED, [], checks, unchecked, notes)


def advice_for(problem: str) -> str:
    """Advice for a problem in words.

    Example::

        >>> advice_for("max_seconds are over")
        'Give more seconds, or ask for fewer effective draws (ess=).'
    """
    return remedy_for(problem) or OTHERWISE


def _recorded_problems(attrs: dict[str, Any]) -> list[str]:
    text = str(attrs.get("problems", "") or "")
    found = [part.strip() for part in text.split("; ") if part.strip()]
    if not found and not int(attrs.get("reliable", 1)):
        found = ["sample() has found the result not to be reliable"]
    return found


def _as_check(check: Any) -> ReportCheck:
    """A check of a diagnosis as texts; a bound of NaN is none."""
    bound = _text(check.threshold)
    if isinstance(check.threshold, float) and np.isnan(check.threshold):
        bound = "no bound"
    elif hasattr(check, "at_least"):
        bound = f"{'at least' if check.at_least else 'at most'} {bound}"
    message, advice = (str(getattr(check, name, "") or "") for name in ("message", "advice"))
    value = _text(check.value)
    return ReportCheck(str(check.name), value, bound, bool(check.ok), message, _sentence(advice))


def _text(value: Any) -> str:
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."


# ---- checks of the numbers in the report --------------------------------------------------------
def _checks(source: ReportSource) -> list[ReportCheck]:
    found = [_finite(source), *_convergence(source)]
    found += [*_moves(source), *_weights(source)]
    return found


def _finite(source: ReportSource) -> ReportCheck:
    wrong = int((~np.isfinite(source.draws)).sum())
    message = f"{wrong} numbers among the draws are not finite" if wrong else ""
    return ReportCheck("draws that are not finite", str(wrong), "0", not wrong, message)


def _convergence(source: ReportSource) -> list[ReportCheck]:
    summary, options, found = source.summary, source.options, []
    r_hat = summary.r_hat
    if np.isfinite(r_hat).any():
        worst, bound = int(np.nanargmax(r_hat)), options.r_hat_bound(source.num_draws)
        ok = bool(r_hat[worst] <= bound)
        name = source.names[worst]
        message = "" if ok else f"the chains disagree: R-hat of {name} is {r_hat[worst]:.4g}"
        value, limit = f"{r_hat[worst]:.4g} ({name})", f"at most {bound:.3f}"
        found.append(ReportCheck("largest R-hat", value, limit, ok, message))
    for part, sizes in (("bulk", summary.ess_bulk), ("tails", summary.ess_tail)):
        if not np.isfinite(sizes).any():
            continue
        worst = int(np.nanargmin(sizes))
        ok, name = bool(sizes[worst] >= options.min_ess), source.names[worst]
        message = (
            ""
            if ok
            else (f"the {part} of {name} has an effective sample size of only {sizes[worst]:.0f}")
        )
        value, limit = f"{sizes[worst]:.0f} ({name})", f"at least {options.min_ess:.0f}"
        found.append(ReportCheck(f"least effective sample size, {part}", value, limit, ok, message))
    if not found:
        message = (
            f"chains of {source.num_draws} draws are too short for R-hat and effective sample sizes"
        )
        found = [
            ReportCheck("draws of a chain", str(source.num_draws), "at least 4", False, message)
        ]
    return found


def _moves(source: ReportSource) -> list[ReportCheck]:
    options, found = source.options, []
    if "diverging" in source.stats:
        share = float(source.stats["diverging"].astype(float).mean())
        ok = share <= options.max_diverging
        message = "" if ok else f"{share:.2%} of the trajectories diverged"
        limit = f"at most {options.max_diverging:.2%}"
        found.append(ReportCheck("divergences", f"{share:.2%}", limit, ok, message))
    if "accepted" in source.stats:
        accepted = source.stats["accepted"].astype(float)
        rate, never = float(accepted.mean()), int((accepted.sum(1) == 0).sum())
        ok = rate >= options.min_acceptance
        message = "" if ok else f"chains hardly ever move: {rate:.2%} of the proposals are accepted"
        limit = f"at least {options.min_acceptance:.0%}"
        found.append(ReportCheck("acceptance rate", f"{rate:.1%}", limit, ok, message))
        chance = len(accepted) * (1 - rate) ** source.num_draws  # of so many chains by chance
        ok = never <= chance + 3 * chance**0.5
        message = "" if ok else f"{never} of {len(accepted)} chains have never moved"
        limit = f"at most {chance + 3 * chance**0.5:.0f}"
        found.append(ReportCheck("chains that never moved", str(never), limit, ok, message))
    return found


def _weights(source: ReportSource) -> list[ReportCheck]:
    """Tails of weights; they matter for kernels whose every move is a proposal of the flow."""
    options, found = source.options, []
    jumps = source.attrs.get("kernel", "IMH") == "IMH"
    for name, k, bound in (
        ("Pareto k of the states' weights", source.pareto_k_states, options.max_pareto_k_states),
        ("Pareto k of the flow's draws", source.pareto_k_proposals, options.max_pareto_k),
    ):
        if k is None:
            continue
        ok = bool(k <= bound) or not jumps
        message = (
            ""
            if ok
            else (f"{name} is {k:.2f}: the flow hardly ever proposes some regions of the posterior")
        )
        limit = f"at most {bound:g}" if jumps else "does not matter: the kernel moves locally too"
        value = "no tail" if k == -np.inf else f"{k:.2f}"
        found.append(ReportCheck(name, value, limit, ok, message))
    return found
