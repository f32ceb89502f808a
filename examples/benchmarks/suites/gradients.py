r"""The gradients that ``sample()`` takes, beside the leapfrog steps of NumPyro's NUTS.

::

    python examples/benchmarks/suites/gradients.py                  # what is missing, the table
    python examples/benchmarks/suites/gradients.py --problems garch radon --samplers sample
    python examples/benchmarks/suites/gradients.py --nuts-python /path/to/python
    python examples/benchmarks/suites/gradients.py --table          # the table of stored runs
    python examples/benchmarks/suites/gradients.py --table --write  # and docs/gradients.md

A run of ``sample(model, *args, ess=goal, seed=seed)`` has default arguments else. Its cost is

.. math:: \text{gradients} + \tfrac13\,\text{densities without gradient},

of everything: the search for modes, the training of flows, pilot runs, burn-in and draws, those
beyond the goal too. A density counts as one with gradient where the gradient could be asked for, so
that the cost is an upper bound. One of the two searches for modes begins at the model's prior; the
densities of the prior alone do not count. The cost of NUTS is in ``baselines/leapfrogs.py``.

Both sample the same density: before each run of NUTS the two log densities are compared at a few
points, where they may differ by a constant only. Each run is in a process of its own, and is stored
in ``results/gradients.jsonl`` when it ends; a rerun does what is missing. NumPyro may be installed
in another environment: give its interpreter as ``--nuts-python``.

A run takes two or three minutes on average. The table has, for each posterior, both costs, their
ratio and the effective draws.
"""

import argparse
import json
import statistics
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from baselines.leapfrogs import NUTSOptions, Problem, means_with_errors, worst_ess_and_r_hat, write
from problems.known import PROBLEMS
from stored_runs import (
    DOCS,
    add_options,
    append,
    has_package,
    load,
    markdown,
    measured,
    missing,
)

STUDY = "gradients.jsonl"  #: the file of its stored runs
LEAPFROGS = Path(__file__).resolve().parents[1] / "baselines" / "leapfrogs.py"
LIMIT = 900.0  #: seconds, imports included, after which a run of ``sample()`` is stopped
POINTS = 5  #: points at which the two log densities are compared
TOLERANCE = 1e-8  #: their largest difference, relative to the size of the log densities
DENSITY = 1 / 3  #: cost of a density without gradient, in gradients
GOALS = (1000, 10_000)  #: effective draws of the bulk, of the worst parameter
NAMES = (
    "eight_schools",
    "centred_eight_schools",
    "german_credit",
    "radon",
    "garch",
    "gaussian_process",
    "random_walk",
    "horseshoe",
    "item_response",
    "stochastic_volatility",
    "logistic_20000_50",
)  #: posteriors of ``problems/known``
SAMPLERS = ("sample", "nuts")
PHASES = ("start", "training", "pilot", "sampling")  #: of ``sample()``
SMOKE = ("eight_schools",)
SMOKE_GOALS = (200,)
SMOKE_NUTS = ("--warmup", "100", "--block", "50", "--max-seconds", "20")


@dataclass(frozen=True)
class Claim:
    """A claim about the cost of ``sample()``.

    Attributes:
        times: It is at most so many times that of NUTS.
        enough: Or, where the goal is at most ``small``, at most this.
        small: A small goal.
    """

    times: float = 3.0
    enough: float = 1e5
    small: int = 1000

    def bound(self, goal: int, nuts: float) -> float:
        """The largest cost for a goal, given that of NUTS."""
        return max(self.times * nuts, self.enough if goal <= self.small else 0.0)


# ---- the cost of sample() ------------------------------------------------------------------------


class Cost:
    """Densities with and without a gradient, by the phase of ``sample()`` in which they were.

    Arguments:
        target: The posterior.

    Attributes:
        counts: Numbers by phase and kind, ``"gradients"`` or ``"densities"``.

    Example::

        target = as_target(model)
        cost = Cost(target)
        with cost.counted():
            pyro_flowsamp.sample(target)
        cost.total
    """

    def __init__(self, target: Any) -> None:
        self.target = target
        self.counts: Counter[tuple[str, str]] = Counter()
        self._phase = "start"

    def of(self, kind: str) -> int:
        """The number of one kind."""
        return sum(number for (_, found), number in self.counts.items() if found == kind)

    def in_phase(self, phase: str) -> float:
        """The cost of a phase, in gradients."""
        return self.counts[phase, "gradients"] + DENSITY * self.counts[phase, "densities"]

    @property
    def total(self) -> float:
        """The cost of all, in gradients."""
        return sum(map(self.in_phase, PHASES))

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts what the target, and the same one in float64, evaluate meanwhile."""
        import torch

        from pyro_flowsamp import Target
        from pyro_flowsamp.sampling.phase_times import PhaseTimes

        log_prob, both, timed = Target.log_prob, Target._value_and_grad, PhaseTimes.__call__
        inside = []  # whether a density is a part of an evaluation with gradient

        def counting(target: Any, x: Any, context: Any = None) -> Any:
            if target.counter is self.target.counter and not inside:
                kind = "gradients" if torch.is_grad_enabled() and x.requires_grad else "densities"
                self.counts[self._phase, kind] += len(x)
            return log_prob(target, x, context)

        def counting_both(target: Any, x: Any, context: Any) -> Any:
            if target.counter is self.target.counter:
                self.counts[self._phase, "gradients"] += len(x)
            inside.append(True)
            try:
                return both(target, x, context)
            finally:
                inside.pop()

        @contextmanager
        def in_phase(times: Any, phase: str) -> Iterator[None]:
            before, self._phase = self._phase, phase
            try:
                with timed(times, phase):
                    yield
            finally:
                self._phase = before

        # graphs of steps call neither
        self.target.tracing = replace(self.target.tracing, steps=False)
        Target.log_prob, Target._value_and_grad = counting, counting_both
        PhaseTimes.__call__ = in_phase
        try:
            yield
        finally:
            Target.log_prob, Target._value_and_grad = log_prob, both
            PhaseTimes.__call__ = timed


def measure(name: str, goal: int, seed: int) -> dict[str, Any]:
    """One run of ``sample()``, in this process."""
    import torch

    import pyro_flowsamp
    from pyro_flowsamp.target import as_target

    problem = PROBLEMS[name]
    torch.set_default_dtype(torch.float64 if problem.double else torch.float32)
    model, data = problem.make()
    target = as_target(model, *data)
    cost, start = Cost(target), perf_counter()
    with warnings.catch_warnings(record=True) as issued, cost.counted():
        warnings.simplefilter("always")
        try:
            found = pyro_flowsamp.sample(target, ess=goal, seed=seed, progress=False)
        except Exception as error:
            return {
                "seconds": perf_counter() - start,
                "failure": f"{type(error).__name__}: {error}"[:500],
            }
    seconds = perf_counter() - start
    draws = {s.name: torch.as_tensor(found["posterior"][s.name].values) for s in target.sites}
    chains, length = next(iter(draws.values())).shape[:2]
    flat = np.concatenate([v.reshape(chains, length, -1).numpy() for v in draws.values()], -1)
    ess, r_hat = worst_ess_and_r_hat(flat)
    doubles = {k: v.flatten(0, 1).to(target.dtype) for k, v in draws.items()}
    return {
        "seconds": seconds,
        "cost": cost.total,
        "gradients": cost.of("gradients"),
        "densities": cost.of("densities"),
        "phases": {phase: cost.in_phase(phase) for phase in PHASES},
        "chains": chains,
        "draws": length,
        "ess": ess,
        "r_hat": r_hat,
        **{key: found.attrs[key] for key in ("method", "dtype", "candidates", "problems")},
        **{key: int(found.attrs[key]) for key in ("reliable", "evaluations", "thin", "modes")},
        "warnings": sorted({str(w.message) for w in issued if w.category is UserWarning}),
        **means_with_errors(target.pack(doubles).reshape(chains, length, -1).double().numpy()),
    }


def run_sample(name: str, goal: int, seed: int) -> dict[str, Any]:
    """One run of ``sample()`` in a new process, with its failure or its end after ``LIMIT``."""
    arguments = ["--one", name, "--goals", str(goal), "--seeds", str(seed)]
    try:
        return measured(Path(__file__).resolve(), arguments, LIMIT)
    except RuntimeError as error:  # the process died
        return {"seconds": float("nan"), "failure": str(error)[-1500:]}


# ---- NUTS ----------------------------------------------------------------------------------------


def in_float64(name: str) -> tuple[str, Problem, np.ndarray]:
    """Returns the name of a posterior's model, its data, and log densities at a few points."""
    import torch

    from pyro_flowsamp.target import as_target

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model, data = PROBLEMS[name].make()
        target = as_target(model, *data)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            x = target.initial_points(POINTS)
        log_p = target.log_prob(x).numpy()
    finally:
        torch.set_default_dtype(before)
    points = {k: v.numpy() for k, v in target.unpack_unconstrained(x).items()}
    arrays = tuple(np.asarray(value) for value in data)
    return model.__name__, Problem(arrays, [s.name for s in target.sites], points), log_p


def largest_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference of log densities but for a constant, relative to their size."""
    difference = np.asarray(theirs) - ours
    return float(np.abs(difference - difference.mean()).max() / (1 + np.abs(ours).max()))


def run_nuts(
    name: str, goals: Sequence[int], seed: int, python: str, options: Sequence[str] = ()
) -> dict[str, Any]:
    """One run of NUTS in a new process of another interpreter.

    Raises:
        ValueError: The log densities of the two models differ by more than a constant.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.npz"
        model, problem, log_p = in_float64(name)
        write(file, problem)
        arguments = ["--model", model, "--data", str(file), "--seed", str(seed)]
        arguments += ["--goals", *map(str, goals), *options]
        try:
            found = measured(LEAPFROGS, arguments, python=python)
        except RuntimeError as error:
            return {"seconds": float("nan"), "failure": str(error)[-1500:]}
    difference = largest_difference(log_p, np.array(found.pop("log_densities")))
    if not difference <= TOLERANCE:
        raise ValueError(
            f"{name}: the log densities in Pyro and NumPyro differ by {difference:.2g} of their "
            f"size. Write the same model in baselines/numpyro_models.py."
        )
    return {**found, "difference": difference}


# ---- the page ------------------------------------------------------------------------------------


def number(value: float) -> str:
    """A count with three digits, in thousands or millions."""
    for unit, text in ((1e6, " M"), (1e3, " k")):
        if value >= 0.9995 * unit:
            return f"{value / unit:.3g}{text}"
    return f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """The median, and the least and the largest of several."""
    if not values:
        return "–"
    middle = number(statistics.median(values))
    return (
        f"{middle} ({number(min(values))} to {number(max(values))})" if len(values) > 1 else middle
    )


def share(runs: Sequence[Mapping[str, Any]], phase: str) -> float:
    """The median share of the cost that a phase takes."""
    return statistics.median(r["phases"][phase] / r["cost"] for r in runs)


def nuts_cost(run: Mapping[str, Any], goal: int) -> float:
    """Leapfrog steps until the goal; where it is not reached, those at the end, a lower bound."""
    reached = run["goals"].get(str(goal))
    return reached["leapfrogs"] if reached else run["leapfrogs"]


def agreement(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> float:
    """The largest z-score of a difference of means between the first runs of both."""
    a, b = ours[0], theirs[0]
    difference = np.subtract(a["means"], b["means"])
    z = np.abs(difference) / np.hypot(a["errors"], b["errors"])
    return float(z[np.isfinite(z)].max(initial=0.0))


def claim_holds(cost: float, goal: int, nuts: float, reached: bool) -> bool | None:
    """Whether the claim holds; None where NUTS has not reached the goal and this does not tell."""
    if cost <= Claim().bound(goal, nuts):
        return True
    return False if reached else None


@dataclass
class Row:
    """Stored runs of one posterior and one goal, of ``sample()`` and of NUTS."""

    name: str
    goal: int
    ours: list[Mapping[str, Any]]
    theirs: list[Mapping[str, Any]]

    @property
    def done(self) -> list[Mapping[str, Any]]:
        """Runs of ``sample()`` that have given draws."""
        return [r for r in self.ours if "cost" in r]

    @property
    def finished(self) -> list[Mapping[str, Any]]:
        """Runs of NUTS that have given draws."""
        return [r for r in self.theirs if "goals" in r]

    @property
    def reached(self) -> bool:
        """Whether all runs of NUTS have reached the goal."""
        return all(str(self.goal) in r["goals"] for r in self.finished)

    @property
    def verdict(self) -> str:
        """Whether the claim holds, in words."""
        if not self.ours or not self.finished:
            return "–"
        if not self.done:
            return "no draws"
        if any(r["ess"] < self.goal for r in self.done):
            return "goal not reached"
        held = claim_holds(self.cost, self.goal, self.nuts, self.reached)
        return {True: "yes", False: "no", None: "not known"}[held]

    @property
    def cost(self) -> float:
        """The median cost of ``sample()``."""
        return statistics.median(r["cost"] for r in self.done)

    @property
    def nuts(self) -> float:
        """The median cost of NUTS; a lower bound where it has not reached the goal."""
        return statistics.median(nuts_cost(r, self.goal) for r in self.finished)

    def cells(self) -> list[object]:
        """The line of the table."""
        left = [self.name, PROBLEMS[self.name].dim, f"{self.goal:,}".replace(",", " ")]
        return [*left, *self._cells_of_ours(), *self._cells_of_nuts(), self.verdict]

    def _cells_of_ours(self) -> list[object]:
        if not self.done:
            ends = {"stopped" if r.get("stopped") else "failed" for r in self.ours}
            words = {"stopped": f"none in {LIMIT:.0f} s", "failed": "failed"}
            return [", ".join(words[end] for end in sorted(ends)) or "–", "–", "–", "–"]
        shares = " / ".join(f"{100 * share(self.done, phase):.0f}" for phase in PHASES)
        flagged = sum(not r["reliable"] for r in self.done)
        without = len(self.ours) - len(self.done)
        method = ", ".join(sorted({r["method"] for r in self.done}))
        method += f"; {flagged} of {len(self.ours)} flagged" if flagged else ""
        method += f"; {without} of {len(self.ours)} without draws" if without else ""
        return [
            spread([r["cost"] for r in self.done]),
            shares,
            spread([r["ess"] for r in self.done]),
            method,
        ]

    def _cells_of_nuts(self) -> list[object]:
        if not self.finished:
            return ["failed" if self.theirs else "–", "–", "–", "–"]
        text = spread([nuts_cost(r, self.goal) for r in self.finished])
        if not self.reached:
            last = self.finished[0]
            end = f"{last['seconds']:.0f} s: ESS {last['ess']:.3g}, R-hat {last['r_hat']:.3f}"
            text = f"not reached by {text} in {end}"
        divergences = statistics.median(r["divergences"] for r in self.finished)
        if not self.done:
            return [text, f"{divergences:.0f}", "–", "–"]
        ratio = f"{'' if self.reached else 'under '}{self.cost / self.nuts:.2g}"
        return [text, f"{divergences:.0f}", ratio, f"{agreement(self.done, self.finished):.1f}"]


HEADER = [
    "posterior",
    "d",
    "goal",
    "cost of sample()",
    "start / training / pilot / draws, %",
    "its bulk ESS",
    "its method",
    "leapfrogs of NUTS",
    "divergences",
    "ratio",
    "largest \\|z\\|",
    "claim",
]


def rows(store: Path, names: Sequence[str], goals: Sequence[int]) -> list[Row]:
    """Stored runs, a row for each posterior and goal of which there are any."""
    found = []
    for name in names:
        theirs = load(store, f"{name}-nuts")
        for goal in goals:
            ours = load(store, f"{name}-sample-{goal}")
            if ours or theirs:
                found.append(Row(name, goal, ours, theirs))
    return found


def table(store: Path, names: Sequence[str], goals: Sequence[int]) -> str:
    """A line for each posterior and goal, and how often the claim holds."""
    found = rows(store, names, goals)
    lines = [markdown(HEADER, [row.cells() for row in found]), ""]
    for goal in goals:
        counts = Counter(row.verdict for row in found if row.goal == goal)
        total = sum(n for verdict, n in counts.items() if verdict != "–")
        if not total:
            continue
        others = ("not known", "goal not reached", "no draws")
        ends = "".join(f", {counts[v]} {v}" for v in others if counts[v])
        lines.append(
            f"- ESS {goal}: the claim holds for {counts['yes']} of {total} posteriors{ends}."
        )
    return "\n".join([*lines, "", *remarks(found)]).rstrip()


def lost(run: Mapping[str, Any], goal: int) -> str:
    """Says that chains of NUTS which had reached a goal did not look so after more draws."""
    reached = run["goals"].get(str(goal))
    if not reached or (run["ess"] >= goal and run["r_hat"] <= NUTSOptions.max_r_hat):
        return ""
    return (
        f"reached after {reached['draws']} draws of each chain, but after {run['draws']} the bulk "
        f"has an ESS of {run['ess']:.3g} and R-hat is {run['r_hat']:.3f}."
    )


def remarks(found: Sequence[Row]) -> list[str]:
    """Lines with the problems that ``sample()`` has reported, and with failures."""
    lines = []
    for row in found:
        for r in row.ours:
            label = f"- {row.name}, {row.goal}"
            if r.get("problems"):
                lines.append(f"{label}, flagged: {r['problems']}.")
            elif "failure" in r:
                lines.append(f"{label}, failed: {r['failure'].splitlines()[-1][:200]}")
        lines += [
            f"- {row.name}, {row.goal}, NUTS: {lost(r, row.goal)}"
            for r in row.finished
            if lost(r, row.goal)
        ]
        if row.goal == found[0].goal:
            failures = [r["failure"] for r in row.theirs if "failure" in r]
            lines += [f"- {row.name}, NUTS: {f.splitlines()[-1][:200]}" for f in failures]
    return lines


PREFACE = """# The gradients that sample() takes

Made by `python examples/benchmarks/suites/gradients.py --table --write` from the stored runs in
`examples/benchmarks/results/gradients.jsonl`; without options it runs what is missing.

The cost of `sample(model, ess=goal)` until the worst parameter has a bulk effective sample size of
the goal, beside NumPyro's NUTS. It is counted in gradients of the log density, and does not depend
on the machine. A density without gradient counts as a third. The whole of `sample()` counts: the
search for modes ("start"), the training of flows, pilot runs, and burn-in and draws, those beyond
the goal too, because `sample()` asks for as many effective draws of the tails as well. Densities of
the prior alone, from which one of the searches for modes starts, do not count.

NUTS has 4 chains, 1000 warm-up steps each, float64 and else default settings. Its leapfrog steps
count, with those of the warm-up, up to the draw at which the worst component has the goal's bulk
effective sample size and the largest rank-normalised R-hat is at most 1.01. Draws beyond the goal
do not count. It is stopped after 20 million leapfrogs or 300 s of the processor (less where the
table says so); its cost at the end is then a lower bound, and the ratio an upper bound.

The ratio is the cost of `sample()` over that of NUTS. The claim is: at an ESS of 10 000 it is at
most 3, and at 1000 either that or a cost of at most 100 000. "Largest |z|" is the largest
difference of the means of up to 50 unconstrained components between the two samplers, in standard
errors. Of several seeds the median is shown, and in brackets the least and the largest. A posterior
that is not in the table has not been run yet, and "–" is a sampler that has not.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", metavar="PROBLEM", help="run in this process, one goal and seed")
    parser.add_argument("--problems", nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=SAMPLERS)
    parser.add_argument("--goals", type=int, nargs="+", default=list(GOALS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--nuts-python", default=sys.executable, help="interpreter with NumPyro")
    parser.add_argument(
        "--nuts-seconds",
        type=float,
        default=NUTSOptions.max_seconds,
        help="seconds of the processor after which a run of NUTS draws no more",
    )
    add_options(parser)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.goals[0], args.seeds[0])))
        return
    if args.smoke:
        args.problems, args.goals, args.seeds = list(SMOKE), list(SMOKE_GOALS), [0]
    store = args.results / STUDY
    if not (args.table or args.write):
        run_missing(args, store)
    text = table(store, args.problems, args.goals)
    print(text)
    if args.write:
        (DOCS / "gradients.md").write_text(f"{PREFACE}{text}\n")


def run_missing(args: argparse.Namespace, store: Path) -> None:
    """Runs what is not stored yet, posterior by posterior, and tells what it costs."""
    runs: dict[str, Callable[[int], dict[str, Any]]] = {}
    samplers = list(args.samplers)
    if "nuts" in samplers and not has_package(args.nuts_python, "numpyro"):
        print(
            f"NUTS is left out: {args.nuts_python} cannot import NumPyro. Install it by `make "
            f"bench`, or give another interpreter by --nuts-python."
        )
        samplers.remove("nuts")
    options = SMOKE_NUTS if args.smoke else ("--max-seconds", str(args.nuts_seconds))
    for name in args.problems:
        if "nuts" in samplers:
            runs[f"{name}-nuts"] = lambda seed, name=name: run_nuts(
                name, args.goals, seed, args.nuts_python, options
            )
        for goal in args.goals if "sample" in samplers else ():
            runs[f"{name}-sample-{goal}"] = lambda seed, name=name, goal=goal: run_sample(
                name, goal, seed
            )
    for name, seed in missing(store, runs, args.seeds):
        result = runs[name](seed)
        append(store, name, seed, result)
        cost = result.get("cost", result.get("leapfrogs", float("nan")))
        print(f"{name:36s}seed {seed}  {number(cost):>9s}  {result['seconds']:8.1f} s", flush=True)


if __name__ == "__main__":
    main()
