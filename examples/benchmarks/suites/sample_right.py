r"""Is ``sample()`` right, wrong with a warning, or wrong in silence?

::

    python examples/benchmarks/suites/sample_right.py                   # what is missing, the table
    python examples/benchmarks/suites/sample_right.py --problems funnel dollars --seeds 0 1
    python examples/benchmarks/suites/sample_right.py --table           # the table of stored runs
    python examples/benchmarks/suites/sample_right.py --table --write   # and docs/sample_right.md

Each run is ``sample(model, *args, seed=seed)`` with default arguments on one posterior of
``problems/known``, in a process of its own, stopped after 600 seconds of processor time, and stored
in ``results/sample_right.jsonl`` when it ends. A rerun does what is missing.

A statistic is a mean of a function of the draws. With the truth :math:`t` and its standard error
:math:`e` (zero where it is exact), and the effective sample size :math:`n` of the function's own
values, its score is

.. math:: z = \frac{\hat f - t}{\sqrt{s^2 + e^2}},\qquad s^2 = \begin{cases}
          t (1 - t) / n & \text{for a probability,} \\ \hat\sigma_f^2 / n & \text{else.} \end{cases}

Where fewer than a hundred effective events are expected, :math:`n` is the least of all statistics,
and z the normal score of the binomial tail probability.

A run is right if none of its :math:`m` scores is beyond :math:`\Phi^{-1}(1 - 0.01 / 2m)`: by
Bonferroni's inequality a right sampler passes in 99 % of the runs or more. It is flagged if its
attribute ``reliable`` is 0; its warnings are stored too.

A run takes seconds to minutes. The tables count the runs by verdict, and have the worst
z-score, the seconds of processor time and the least effective sample size of each posterior.
"""

import argparse
import json
import os
import platform
import resource
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import arviz as az
import numpy as np
from scipy.special import betainc, ndtri

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from problems.known import PROBLEMS, Statistic
from stored_runs import DOCS, add_options, append, load, markdown, measured, missing

STUDY = "sample_right.jsonl"  #: the file of its stored runs
LIMIT = 600  #: seconds of processor time, imports included, after which a run is stopped
FALSE_ALARMS = 0.01  #: share of the runs of a right sampler that may be called wrong
FEW = 100.0  #: variance of a count of events, below which these are called few
COMPONENTS = 50  #: scalar components, evenly spaced, whose R-hat and effective size are stored
SMOKE = ["student_t3_1"]  #: the problem of ``--smoke``
VERDICTS = (
    "right",
    "right but flagged",
    "wrong and flagged",
    "wrong and silent",
    "no truth",
    f"none in {LIMIT:.0f} s",
    "failed",
)

Draws = Mapping[str, np.ndarray]


# ---- scores --------------------------------------------------------------------------------------


def effective(values: np.ndarray) -> float:
    """The effective sample size of a mean; not a number where the values do not vary."""
    if not np.isfinite(values).all() or np.ptp(values) == 0:
        return float("nan")
    return float(az.ess(values, method="mean"))


def score(statistic: Statistic, values: np.ndarray, size: float) -> dict[str, Any]:
    """The z-score of a statistic, with what it is made of.

    Arguments:
        statistic: The statistic.
        values: The function's values, ``(chains, draws)``.
        size: Their effective number.
    """
    estimate, truth = float(values.mean()), statistic.truth
    variance = truth * (1 - truth) if statistic.share else float(values.var())
    error = (variance / size) ** 0.5
    total = (error**2 + statistic.error**2) ** 0.5
    z = (estimate - truth) / total if total > 0 else float("inf")
    if statistic.share and variance / total**2 * variance < FEW:
        z = binomial_score(estimate, truth, variance / total**2, z)
    return {
        "name": statistic.name,
        "estimate": estimate,
        "truth": float(truth),
        "truth_error": float(statistic.error),
        "ess": size,
        "error": error,
        "z": float(z) if np.isfinite(estimate) else float("inf"),
    }


def binomial_score(estimate: float, truth: float, number: float, otherwise: float) -> float:
    r"""The normal score of a share's tail probability, where few events are expected.

    With :math:`k = n \hat f` events among :math:`n` effective draws, the tail is that of the
    binomial distribution, with half of the probability of :math:`k` itself. Regularised incomplete
    beta functions extend it to :math:`n` and :math:`k` that are not whole.

    Arguments:
        estimate: The share :math:`\hat f`.
        truth: The true share.
        number: The effective number of draws :math:`n`.
        otherwise: The score where the tail is too small to compute.
    """
    k = min(max(estimate, 0.0), 1.0) * number
    at_least = betainc(k, number - k + 1, truth) if k > 0 else 1.0
    at_most = betainc(number - k, k + 1, 1 - truth) if k < number else 1.0
    twice = at_least + at_most - 1  # the probability of k itself
    upper, lower = at_least - twice / 2, at_most - twice / 2
    z = -ndtri(upper) if upper < lower else ndtri(lower)
    return float(z) if np.isfinite(z) else otherwise


def scores(statistics: Sequence[Statistic], draws: Draws) -> list[dict[str, Any]]:
    """The scores of all statistics.

    The effective size of an event is not well known where few of the draws are of it, and not at
    all where none is: chains that have not found a region do not show how long they would stay.
    Such an event gets the least effective size of all statistics of the run.
    """
    values = [np.asarray(s.function(draws), dtype=float) for s in statistics]
    if not values:
        return []
    sizes = [effective(v) for v in values]
    least = min((n for n in sizes if np.isfinite(n)), default=float(len(values[0])))
    few = [
        not np.isfinite(n) or (s.share and n * s.truth * (1 - s.truth) < FEW)
        for s, n in zip(statistics, sizes)
    ]
    return [score(s, v, least if f else n) for s, v, n, f in zip(statistics, values, sizes, few)]


def components(draws: Draws) -> list[np.ndarray]:
    """At most ``COMPONENTS`` scalar components of all sites, each ``(chains, draws)``."""
    flat = [x.reshape(*x.shape[:2], -1) for x in draws.values()]
    places = [(i, j) for i, x in enumerate(flat) for j in range(x.shape[-1])]
    step = -(-len(places) // COMPONENTS)
    return [flat[i][..., j].astype(float) for i, j in places[::step]]


def limit(m: int) -> float:
    """The largest score that a run with m statistics may have."""
    return float(ndtri(1 - FALSE_ALARMS / (2 * m)))


def worst(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The statistic with the largest score."""
    return max(result["statistics"], key=lambda s: abs(s["z"]))


def verdict(result: Mapping[str, Any]) -> str:
    """One of ``VERDICTS``."""
    if result.get("stopped"):
        return VERDICTS[5]
    if "failure" in result:
        return "failed"
    if not result["statistics"]:
        return "no truth"
    right = abs(worst(result)["z"]) <= limit(len(result["statistics"]))
    if result["attributes"].get("reliable", 1):
        return "right" if right else "wrong and silent"
    return "right but flagged" if right else "wrong and flagged"


# ---- one run -------------------------------------------------------------------------------------


def memory() -> float:
    """The peak memory of this process so far, in MiB.

    Linux: the high-water mark of the process itself. ``ru_maxrss`` there begins with that of the
    process which started it.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024  # bytes or KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def measure(name: str, seed: int) -> dict[str, Any]:
    """One run, in this process."""
    import torch

    import pyro_flowsamp

    problem = PROBLEMS[name]
    torch.set_default_dtype(torch.float64 if problem.double else torch.float32)
    model, data = problem.make()
    before, start = memory(), process_time()
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        try:
            found = pyro_flowsamp.sample(model, *data, seed=seed, progress=False)
        except Exception as error:
            return {
                "seconds": process_time() - start,
                "failure": f"{type(error).__name__}: {error}"[:500],
                "where": traceback.format_exc(limit=-3)[-1500:],
            }
    seconds, peak = process_time() - start, memory()
    draws = {key: x.values for key, x in found["posterior"].items()}
    parts = components(draws)
    own = [w for w in issued if issubclass(w.category, UserWarning)]
    return {
        "seconds": seconds,
        "memory_before": before,
        "memory": peak,
        "chains": parts[0].shape[0],
        "draws": parts[0].shape[1],
        "least_ess": min(float(az.ess(x, method="bulk")) for x in parts),
        "least_tail_ess": min(float(az.ess(x, method="tail", prob=(0.05, 0.95))) for x in parts),
        "worst_r_hat": max(float(az.rhat(x)) for x in parts),
        "attributes": {
            key: value.item() if isinstance(value, np.generic) else value
            for key, value in found.attrs.items()
            if isinstance(value, int | float | str | np.number)
        },
        "warnings": sorted({str(w.message) for w in own}),
        "statistics": scores(problem.statistics(), draws),
    }


def run(name: str, seed: int) -> dict[str, Any]:
    """One run in a new process, with its failure, or its end after ``LIMIT``."""
    arguments = ["--one", name, "--seeds", str(seed)]
    try:
        return measured(Path(__file__).resolve(), arguments, processor_limit=LIMIT)
    except RuntimeError as error:  # the process died
        return {"seconds": float("nan"), "failure": str(error)[-1500:]}


# ---- the page ------------------------------------------------------------------------------------


def spread(values: Sequence[float], digits: int = 3) -> str:
    """The median, and the least and the largest of several."""
    values = sorted(v for v in values if np.isfinite(v))
    if not values:
        return "–"
    middle = f"{np.median(values):.{digits}g}"
    if len(values) == 1:
        return middle
    return f"{middle} ({values[0]:.{digits}g} to {values[-1]:.{digits}g})"


def row(name: str, runs: Sequence[Mapping[str, Any]]) -> list[object]:
    """The line of a problem."""
    counts = Counter(map(verdict, runs))
    verdicts = ", ".join(f"{n} {text}" for text in VERDICTS if (n := counts[text]))
    done = [r for r in runs if "attributes" in r]
    scored = [r for r in done if r["statistics"]]
    cells: list[object] = [name, PROBLEMS[name].dim, verdicts]
    if scored:
        most = max(scored, key=lambda r: abs(worst(r)["z"]))
        z, m = abs(worst(most)["z"]), len(most["statistics"])
        shown = f"{z:.1f}" if z < 100 else "over 100"
        label = worst(most)["name"].replace("|", "\\|")
        cells.append(f"{shown} of {limit(m):.1f} ({label})")
    else:
        cells.append("–")
    cells += [spread([r[key] for r in done]) for key in ("seconds", "memory", "least_ess")]
    cells.append(spread([r["worst_r_hat"] for r in done], 4))
    return [*cells, ", ".join(sorted({str(r["attributes"].get("method", "–")) for r in done}))]


def table(store: Path, names: Sequence[str]) -> str:
    """The verdicts, counted, and a line for each problem."""
    found = {name: load(store, name) for name in names}
    found = {name: runs for name, runs in found.items() if runs}
    counts = Counter(verdict(r) for runs in found.values() for r in runs)
    total = markdown(["verdict", "runs"], [[text, counts[text]] for text in VERDICTS])
    header = ["posterior", "d", "runs", "worst \\|z\\|", "seconds", "peak MiB", "least bulk ESS"]
    rows = [row(name, runs) for name, runs in found.items()]
    return f"{total}\n\n{markdown([*header, 'worst R-hat', 'method'], rows)}\n\n{wrong(found)}"


def wrong(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The statistics of the wrong runs, and the ends of those without a result."""
    lines = []
    for name, runs in found.items():
        for r in runs:
            end = verdict(r)
            if end.startswith("wrong"):
                far = [s for s in r["statistics"] if abs(s["z"]) > limit(len(r["statistics"]))]
                far.sort(key=lambda s: -abs(s["z"]))
                text = "; ".join(
                    f"{s['name']}: {s['estimate']:.4g}, truth {s['truth']:.4g}, z {s['z']:.1f}"
                    for s in far[:4]
                )
                warned = f". Warnings: {' '.join(r['warnings'])}" if r["warnings"] else ""
                lines.append(f"- {name}, {end}: {text}{warned}")
            elif end == "failed":
                lines.append(f"- {name}, failed: {r['failure'].splitlines()[-1][:200]}")
    return "\n".join(lines)


PREFACE = """# Is sample() right?

Made by `python examples/benchmarks/suites/sample_right.py --table --write` from the stored runs in
`examples/benchmarks/results/sample_right.jsonl`; without options it runs what is missing.
{machine}.

`sample()` runs with default arguments on posteriors whose answers are known: means, variances,
probabilities of tails, shares of modes. A statistic's z-score is its difference from the truth in
standard errors, which come from the effective sample size of the statistic's own values and from
the error of the truth, where it has one. A run is *right* if no score of its m statistics is beyond
the bound that a right sampler keeps in 99 % of runs (the second number of the column); it is
*flagged* if the attribute `reliable` is 0. Seconds are of processor time, and a run ends after
{limit}. Several numbers are the median, and in brackets the least and the largest.

"""


def sources() -> str:
    """The origin of each truth."""
    rows = [
        [name, p.dim, "float64" if p.double else "float32", p.source]
        for name, p in PROBLEMS.items()
    ]
    return "## Truths\n\n" + markdown(["posterior", "d", "sampled in", "the truth is from"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", metavar="PROBLEM", help="run in this process, one seed")
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add_options(parser, "one short run, for the tests")
    args = parser.parse_args()
    store = args.results / STUDY
    if args.one:
        print(json.dumps(measure(args.one, args.seeds[0])))
        return
    if args.smoke:
        args.problems, args.seeds = SMOKE, [0]
    if not (args.table or args.write):
        for name, seed in missing(store, args.problems, args.seeds):
            result = run(name, seed)
            append(store, name, seed, result)
            print(
                f"{name:32s}seed {seed}  {result['seconds']:8.1f} s  {verdict(result)}", flush=True
            )
    text = table(store, args.problems)
    print(text)
    if args.write:
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        preface = PREFACE.format(machine=machine, limit=LIMIT)
        (DOCS / "sample_right.md").write_text(f"{preface}{text}\n\n{sources()}\n")


if __name__ == "__main__":
    main()
