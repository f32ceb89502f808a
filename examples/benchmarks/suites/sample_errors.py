r"""Are the standard errors of ``sample()`` and of its evidences honest?

::

    python examples/benchmarks/suites/sample_errors.py                  # what is missing, the table
    python examples/benchmarks/suites/sample_errors.py --runs heavy_tails --seeds 20
    python examples/benchmarks/suites/sample_errors.py --table --write  # and docs/sample_errors.md

A run has one seed. Its z-scores are differences from the truth in the standard errors that the run
itself gives. Over many runs they should have mean 0 and standard deviation 1.

- ``heavy_tails``: ``sample()`` of a Student-t distribution with three degrees of freedom; the tail
  probabilities :math:`P(|x| > 5)` and :math:`P(|x| > 10)`.
- ``stopped_early``: ``sample(ess=400, candidates=["HMC"])`` of eight schools, where a draw is a
  fifth of an effective one. If draws were ended at the moment at which they look good, they would
  look better than they are.
- ``evidence_t2_1`` and ``evidence_t2_10``: the log evidence that the search for modes gives for
  Student-t distributions with two degrees of freedom in 1 and 10 dimensions, where the search says
  that it has settled.

The stored runs took seven minutes on one core. The table has the mean, the standard deviation and
the largest of the z-scores of each statistic.
"""

import sys
from collections.abc import Callable
from functools import partial
from math import lgamma, log, pi
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from problems.known import PROBLEMS, Statistic
from problems.known.energies import student
from sample_right import scores
from stored_runs import DOCS, collect, load, markdown, options

STUDY = "sample_errors.jsonl"  #: the file of its stored runs
SEEDS = {"heavy_tails": 100, "stopped_early": 200, "evidence_t2_1": 100, "evidence_t2_10": 100}
LARGEST = {"heavy_tails": 1.2, "stopped_early": 1.15}  #: standard deviations of z that are allowed


def drawn(target: Any, statistics: list[Statistic], *data: Any, **arguments: Any) -> dict[str, Any]:
    """A run of ``sample()``, at the random state that there is."""
    import pyro_flowsamp

    found = pyro_flowsamp.sample(target, *data, progress=False, **arguments)
    draws = {key: x.values for key, x in found["posterior"].items()}
    return {
        "z": {s["name"]: s["z"] for s in scores(statistics, draws)},
        "method": found.attrs["method"],
        "settled": int(found.attrs["reliable"]),
        "evaluations": int(found.attrs["evaluations"]),
    }


def heavy_tails() -> dict[str, Any]:
    """The tails of a Student-t."""
    target, _ = student(3, 1)
    tails = [s for s in PROBLEMS["student_t3_1"].statistics() if s.name.startswith("P(|x| >")]
    return drawn(target, tails)


def stopped_early() -> dict[str, Any]:
    """Eight schools by HMC alone."""
    problem = PROBLEMS["eight_schools"]
    model, data = problem.make()
    return drawn(model, problem.statistics(), *data, ess=400, candidates=["HMC"])


def evidence(dim: int) -> dict[str, Any]:
    """The log evidence of a Student-t with two degrees of freedom."""
    from pyro_flowsamp.smc.mode_search import ModeSearch

    found = ModeSearch(student(2, dim)[0]).run()
    truth = lgamma(1.0) - lgamma(1.0 + dim / 2) + dim / 2 * log(2 * pi)
    value, error = found.agreement.best_evidence
    return {
        "z": {"log Z": float((value - truth) / error)},
        "difference": float(value - truth),
        "settled": int(found.settled),
        "evaluations": found.evaluations,
    }


RUNS: dict[str, Callable[[], dict[str, Any]]] = {
    "heavy_tails": heavy_tails,
    "stopped_early": stopped_early,
    "evidence_t2_1": partial(evidence, 1),
    "evidence_t2_10": partial(evidence, 10),
}


def rows(store: Path, name: str) -> list[list[object]]:
    """The lines of a run: one for each statistic."""
    runs = load(store, name)
    silent = [r for r in runs if r["settled"]]
    lines: list[list[object]] = []
    for statistic in runs[0]["z"] if runs else ():
        z = np.array([r["z"][statistic] for r in silent])
        bound = LARGEST.get(name, "–")
        label = statistic.replace("|", "\\|")
        spread = f"{z.std(ddof=1):.2f}" if len(z) > 1 else "–"
        largest = f"{np.abs(z).max():.1f}" if len(z) else "–"
        mean = f"{z.mean():.2f}" if len(z) else "–"
        lines.append([name, label, len(runs), len(silent), mean, spread, bound, largest])
    return lines


def table(store: Path) -> str:
    """The z-scores of all runs."""
    header = ["run", "statistic", "runs", "unflagged", "mean of z", "sd of z", "allowed", "largest"]
    return markdown(header, [line for name in RUNS for line in rows(store, name)])


PREFACE = """# Are its errors honest?

Made by `python examples/benchmarks/suites/sample_errors.py --table --write` from the stored runs in
`examples/benchmarks/results/sample_errors.jsonl`; without options it runs what is missing.

A z-score is the difference from the truth in standard errors of the run itself. The scores are of
the runs that were not flagged. `heavy_tails` is `sample()` of a Student-t with three degrees of
freedom. `stopped_early` asks for 400 effective draws of eight schools by HMC alone. The others are
log evidences of Student-t distributions with two degrees of freedom, by the search for modes. Their
errors come of four islands, so that z should have Student's t distribution with three degrees of
freedom, whose standard deviation is 1.73.

"""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.set_defaults(seeds=None)
    args = parser.parse_args()
    store = args.results / STUDY
    names = ["heavy_tails"] if args.smoke else args.runs
    for name in () if args.table else names:
        seeds = 2 if args.smoke else args.seeds or SEEDS[name]
        collect(store, {name: RUNS[name]}, range(seeds))
    print(table(store))
    if args.write:
        (DOCS / "sample_errors.md").write_text(PREFACE + table(store) + "\n")


if __name__ == "__main__":
    main()
