"""The sections of a report, in the order of the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import figures
from .checks import Verdict
from .figures import Picture
from .source import ReportSource

__all__ = ["Section", "Table", "sections"]

EXPONENT_FROM = 1e7  #: numbers below this are written without an exponent


@dataclass(frozen=True)
class Table:
    """A table of a page; the first cell of a row is its heading.

    Attributes:
        columns: Headings of the columns.
        rows: The rows, texts.
        marked: Numbers of the rows that are marked as wrong.

    Example:
        >>> table = Table(["", "mean"], [["x", "0.1"], ["y", "9.9"]], frozenset([1]))
        >>> [row[0] for i, row in enumerate(table.rows) if i in table.marked]
        ['y']
    """

    columns: list[str]
    rows: list[list[str]]
    marked: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Section:
    """A section of a page.

    Attributes:
        anchor: Its name in links.
        title: Its heading.
        text: What it shows, what is good, and what to do otherwise.
        tables: Tables.
        pictures: Pictures.

    Example:
        >>> section = Section("weights", "Weights", ["There are none."])
        >>> section.tables, section.pictures
        ([], [])
    """

    anchor: str
    title: str
    text: list[str]
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


def sections(source: ReportSource, verdict: Verdict) -> Iterator[Section]:
    """The sections after the verdict; those without anything to show say what is missing.

    Example:
        >>> import numpy as np
        >>> import xarray as xr
        >>> from pyro_flowsamp.reporting.checks import judge
        >>> from pyro_flowsamp.reporting.source import read_source
        >>> values = np.random.default_rng(0).normal(size=(4, 100))
        >>> source = read_source({"posterior": xr.Dataset({"x": (("chain", "draw"), values)})})
        >>> next(sections(source, judge(source))).anchor
        'checks'
    """
    yield _checks(verdict)
    yield _summary(source)
    yield _convergence(source)
    yield _worst(source)
    yield _pairs(source)
    yield _weights(source)
    yield _acceptance(source)
    yield _training(source)
    yield _modes(source)
    yield _evidence(source, verdict)
    yield _candidates(source)
    yield _record(source)


def _number(value: float, digits: int = 3) -> str:
    if np.isfinite(value) and 10**digits - 0.5 <= abs(value) < EXPONENT_FROM:
        return _count(value)  # 26 988 dollars, and not 2.7e4
    return "–" if not np.isfinite(value) else f"{value:.{digits}g}"


def _count(value: float) -> str:
    return "–" if not np.isfinite(value) else f"{value:,.0f}".replace(",", "\u202f")


# ---- draws --------------------------------------------------------------------------------------
def _checks(verdict: Verdict) -> Section:
    rows = [[c.name, c.value, c.threshold, "yes" if c.ok else "no"] for c in verdict.checks]
    marked = frozenset(i for i, c in enumerate(verdict.checks) if not c.ok)
    text = ["What was looked at for the verdict, and what would be right."]
    text += [f"Not checked: {reason}" for reason in verdict.unchecked]
    text += [f"Note: {note}." for note in verdict.notes if "evidence" not in note]
    table = Table(["check", "found", "right", "passed"], rows, marked)
    return Section("checks", "Checks", text, [table] if rows else [])


def _summary(source: ReportSource) -> Section:
    summary, options = source.summary, source.options
    bound = options.r_hat_bound(source.num_draws)
    shown = summary.order[: options.max_rows]
    rows, marked = [], set()
    for i in shown:
        rows.append(
            [
                source.names[i],
                *(_number(column[i], 4) for column in (summary.mean, summary.error, summary.sd)),
                *(_number(column[i], 4) for column in (summary.low, summary.median, summary.high)),
                _count(summary.ess_bulk[i]),
                _count(summary.ess_tail[i]),
                _number(summary.r_hat[i], 4),
            ]
        )
        least = np.fmin(summary.ess_bulk[i], summary.ess_tail[i])
        if summary.r_hat[i] > bound or least < options.min_ess:
            marked.add(len(rows) - 1)
    columns = ["parameter", "mean", "± error", "sd", "5 %", "median", "95 %"]
    columns += ["ESS bulk", "ESS tails", "R-hat"]
    text = [
        "Each parameter, from the worst on. The mean is known up to the error beside it. ESS is "
        "the number of independent draws that would be as good.",
        f"Good: R-hat below {bound:.3f} and both ESS above {options.min_ess:.0f}. Otherwise draw "
        f"more, or see the verdict. A dash means that a number is not defined, as for constants.",
    ]
    if len(shown) < len(source.names):
        text.append(f"The {len(shown)} worst of {len(source.names)} parameters are listed.")
    if source.left_out:
        text.append(
            f"{source.left_out} more parameters are left out of the whole report: choose sites by "
            f"var_names=, or raise ReportOptions.max_parameters."
        )
    return Section("summary", "Summary", text, [Table(columns, rows, frozenset(marked))])


def _convergence(source: ReportSource) -> Section:
    pictures = list(figures.convergence(source))
    text = [
        "How well chains agree (R-hat), and how many independent draws they are worth (ESS).",
        "Good: everything on the right side of the dashed lines. Otherwise the worst parameters "
        "below show why.",
    ]
    if source.num_chains * source.num_draws > source.options.max_draws and pictures:
        text.append(f"R-hat is of about {_count(source.options.max_draws)} of the draws.")
    if not pictures:
        text = ["There are too few draws of a chain for R-hat and effective sample sizes."]
    return Section("convergence", "Convergence", text, pictures=pictures)


def _worst(source: ReportSource) -> Section:
    chosen = [int(i) for i in source.varying[: source.options.worst]]
    pictures = [draw(source, i) for i in chosen for draw in (figures.ranks, figures.traces)]
    whole = len(chosen) == len(source.varying)
    which = "" if whole else f" They are the {len(chosen)} worst of {len(source.varying)}."
    text = [
        f"Where the draws of different chains lie, and how chains move.{which}",
        "Good: flat ranks, level traces. Ranks that rise or fall, or traces that drift, mean that "
        "the chains have not forgotten where they began: draw more, or reparametrise.",
    ]
    return Section("worst", "Ranks and traces", text, pictures=pictures)


def _pairs(source: ReportSource) -> Section:
    chosen = [int(i) for i in source.varying[: source.options.pairs]]
    pictures = list(figures.pairs(source, chosen))
    text = [
        "The worst parameters in pairs: the exact draws, after the kernel's correction, and the "
        "flow's own draws before it.",
        "Good: both cover the same region. Where exact draws lie outside of the flow's, the flow "
        "hardly ever proposes them; flow's draws outside are only waste.",
    ]
    if source.proposals is None:
        text.append(
            "There are no draws of the flow in this result: give proposals=to_arviz(guide, ...), "
            "or make the report of the run itself."
        )
    return Section("pairs", "Pairs of parameters", text, pictures=pictures)


# ---- flow and kernel ----------------------------------------------------------------------------
def _weights(source: ReportSource) -> Section:
    picture = figures.tails(source)
    options = source.options
    text = [
        "How much more likely regions are under the posterior than under the flow.",
        f"Good: Pareto k below {options.max_pareto_k} for the flow's draws, and below "
        f"{options.max_pareto_k_states:g} for the states of the chains. Otherwise train the flow "
        f"longer, or use a kernel with local moves.",
    ]
    if picture is None:
        text = ["Not recorded: the result has no log_weight among its sample_stats."]
    return Section("weights", "Weights", text, pictures=[picture] if picture else [])


def _acceptance(source: ReportSource) -> Section:
    pictures = list(figures.acceptance(source))
    text = [
        "How often chains move.",
        "Good: a level line, no chain at zero. Above 10 % is enough for IMH, about 60 to 80 % is "
        "usual for moves of LatentHMC and LatentMALA.",
    ]
    if not pictures:
        text = ["Not recorded: the result has no acceptance among its sample_stats."]
    return Section("acceptance", "Acceptance", text, pictures=pictures)


def _training(source: ReportSource) -> Section:
    pictures, attrs = list(figures.training(source)), source.attrs
    if "training_stopped" not in attrs and "kernel" in attrs:
        text = [
            "There was no training by steps: the flow of this kernel is fitted to particles at "
            "once, or its training has no record."
        ]
        return Section("training", "Training of the flow", text)
    if "training_stopped" not in attrs:
        text = [
            "Not recorded in this result. Results of sample() have it; for a run of your own make "
            "the report of the run, not of to_arviz(run)."
        ]
        return Section("training", "Training of the flow", text)
    reasons = {
        "enough": "because the flow was good enough",
        "flat": "because it made no more progress",
        "max_steps": "because all its steps were done",
        "interrupted": "because it was interrupted",
        "gaussian": "before it began, because a Gaussian was good enough",
    }
    stopped = str(attrs["training_stopped"])
    text = [
        f"The training ended {reasons.get(stopped, stopped)}, after "
        f"{_count(attrs.get('training_steps', 0))} steps and "
        f"{_count(attrs.get('training_evaluations', 0))} evaluations of the density.",
        "Good: the loss is level at the end. If it still falls, or the ESS still rises, allow more "
        "steps (FitOptions.max_steps).",
    ]
    if skipped := int(attrs.get("training_skipped", 0)):
        text.append(f"{skipped} steps were skipped, because the loss was not finite.")
    if not pictures:
        text = text[:1]
    return Section("training", "Training of the flow", text, pictures=pictures)


# ---- sample() -----------------------------------------------------------------------------------
def _modes(source: ReportSource) -> Section:
    attrs, picture = source.attrs, figures.modes(source)
    if "modes" not in attrs:
        text = [
            "Not recorded: only sample() searches for modes. Without such a search, modes that no "
            "chain has visited do not show."
        ]
        return Section("modes", "Modes", text)
    number, unseen = int(attrs["modes"]), float(attrs.get("unseen_mass", np.nan))
    text = [f"The search has found {number} separate mode{'s' if number > 1 else ''}."]
    if np.isfinite(unseen):
        text.append(
            f"Regions that one of two independent searches has found alone have {unseen:.2%} of "
            f"the mass. Good: 0. About as much may be in regions that none has found."
        )
    else:
        text.append("There are too many dimensions for two searches that could be compared.")
    return Section("modes", "Modes", text, pictures=[picture] if picture else [])


def _evidence(source: ReportSource, verdict: Verdict) -> Section:
    attrs = source.attrs
    if not np.isfinite(float(attrs.get("log_evidence", np.nan))):
        text = ["Not recorded: sample() estimates it by its annealed particles."]
        return Section("evidence", "Evidence", text)
    value, error = float(attrs["log_evidence"]), float(attrs.get("log_evidence_error", np.nan))
    text = [
        "The logarithm of the probability of the data under the model, averaged over the prior. "
        "Differences of it compare models: 3 is strong, 1 is weak.",
        "Good: an error below about 0.5. It is only as right as the search for modes is complete.",
    ]
    text += [f"Note: {note}." for note in verdict.notes if "evidence" in note]
    table = Table(["", "estimate", "± error"], [["log evidence", f"{value:.3f}", _number(error)]])
    return Section("evidence", "Evidence", text, [table])


def _candidates(source: ReportSource) -> Section:
    attrs = source.attrs
    tried = [part for part in str(attrs.get("candidates", "")).split("; ") if part]
    if not tried:
        text = ["Not recorded: only sample() compares methods."]
        return Section("candidates", "Methods that were compared", text)
    rows = [[*part.partition(": ")[::2]] for part in tried]
    chosen = str(attrs.get("method", ""))
    rows = [[name, fate, "made the draws" if name == chosen else ""] for name, fate in rows]
    text = [
        "What sample() tried by short pilot runs, in this order, and with how much work each would "
        "make all draws (in operations), or what speaks against it. The method with the least work "
        "makes the draws. Methods that could not save work are not tried.",
    ]
    table = Table(["method", "result", ""], rows)
    return Section("candidates", "Methods that were compared", text, [table])


def _record(source: ReportSource) -> Section:
    attrs = source.attrs
    rows = [["chains × draws", f"{source.num_chains} × {source.num_draws}"]]
    labels = {
        "method": "method",
        "kernel": "kernel",
        "thin": "steps for each draw",
        "seed": "seed",
        "dtype": "type of numbers",
        "device": "device",
        "threads": "threads",
        "evaluations": "evaluations of the density",
        "evaluations_start": "of these in the search for modes",
        "seconds_start": "seconds of the search for modes",
        "seconds_training": "seconds of training",
        "seconds_pilot": "seconds of pilot runs",
        "seconds_sampling": "seconds of sampling",
        "created_at": "made at",
    }
    for key, label in labels.items():
        if key in attrs:
            rows.append([label, _plain(attrs[key])])
    for part in str(attrs.get("versions", "")).split("; "):
        if part:
            rows.append([*part.partition(" ")[::2]])
    missing = [labels[k] for k in ("seed", "evaluations") if k not in attrs]
    missing += [] if "versions" in attrs else ["versions"]
    text = ["What is needed to make this result again: the same seed gives the same draws."]
    if missing:
        text.append(
            f"Not recorded: {', '.join(missing)}. Results of sample(seed=...) have all of these."
        )
    return Section("record", "Record", text, [Table(["", "value"], rows)])


def _plain(value: Any) -> str:
    if isinstance(value, int | np.integer):
        return _count(int(value)) if abs(int(value)) >= 10_000 else str(value)
    return f"{value:.3g}" if isinstance(value, float | np.floating) else str(value)
