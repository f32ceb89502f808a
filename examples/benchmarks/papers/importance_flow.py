"""Importance flow: rare events of a normal, of a posterior, and of data alone, against truths.

    python examples/benchmarks/papers/importance_flow.py truncated|posterior|data

runs what is not stored yet under ``examples/benchmarks/results/importance_flow.jsonl`` and prints
the table; ``all`` prints every table and writes them to ``docs/importance_flow.md``.

Importance flow: Wu & Xie, 2025, https://arxiv.org/abs/2409.20547.

The stored runs took half an hour on one core; printing them takes seconds (``all --table``).
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from math import exp
from pathlib import Path
from statistics import mean
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from baselines import hmc
from problems.models import eight_schools, load_eight_schools
from stored_runs import DOCS, RESULTS, collect, load, markdown, spread

from pyro_flowsamp import (
    IMH,
    AutoFlow,
    FitOptions,
    ImportanceEstimate,
    Target,
    VectorizedMCMC,
    importance_flow,
)
from pyro_flowsamp.expectations import ImportanceOptions
from pyro_flowsamp.problems import banana, truncated_normal

STUDY = "importance_flow.jsonl"  #: the file of its stored runs
ESTIMATORS = ("particles", "density", "ratio")

Result = dict[str, Any]


class Size:
    """Amounts of work: everything, or a little for the tests."""

    def __init__(self, smoke: bool) -> None:
        steps, batch = (10, 64) if smoke else (100, 512)
        self.smoke = smoke
        self.bounds = (20,) if smoke else BOUNDS
        self.options: dict[str, Any] = {
            "target_ess": 0.5,
            "num_particles": 512 if smoke else 4096,
            "num_samples": 512 if smoke else 32768,
            "islands": 16,
            "options": FitOptions(
                steps, batch, 5e-3, cosine_schedule=True, stop_at_ess=0.999, progress=False
            ),
        }
        if smoke:
            brief = FitOptions(10, 64, progress=False)
            self.options["settings"] = ImportanceOptions(data_fit=brief, classifier_fit=brief)


def against(truth: float, found: ImportanceEstimate) -> Result:
    """Every estimator's value, and its errors in units of the truth."""
    estimates = {
        name: {
            "value": estimate.value,
            "error": estimate.value / truth - 1,
            "relative_standard_error": estimate.relative_error,
            "pareto_k": estimate.pareto_k,
        }
        for name, estimate in found.estimates.items()
    }
    return {"truth": truth, "evaluations": found.evaluations, "estimates": estimates}


def cells(runs: list[Result]) -> list[object]:
    """The truth, and each estimator's worst error, standard error and worst Pareto k."""
    row: list[object] = [f"{runs[0]['truth']:.4g}", len(runs)]
    for name in ESTIMATORS:
        found = [run["estimates"][name] for run in runs]
        row.append(f"{mean(f['error'] for f in found):+.1%}")
        row.append(f"{max(abs(f['error']) for f in found):.1%}")
        row.append(f"{mean(f['relative_standard_error'] for f in found):.1%}")
        row.append(f"{max(f['pareto_k'] for f in found):.2f}")
    return row


HEADER = ["truth", "seeds"] + [
    title
    for name in ESTIMATORS
    for title in (f"{name}: mean error", "worst error", "standard error", "worst k")
]


# ---- a normal outside a ball --------------------------------------------------------------------

BALLS = ((2, 4), (2, 6), (5, 6), (10, 6))


def truncated_run(dim: int, radius: int, size: Size) -> Result:
    p = dist.Normal(torch.zeros(dim), 1.0).to_event(1)
    found = importance_flow(
        p, event=lambda x: x.norm(dim=-1) - radius, estimators=ESTIMATORS, **size.options
    )
    return against(exp(truncated_normal(dim, radius).log_z), found)


def truncated_table(store: Path) -> str:
    rows = []
    for dim, radius in BALLS:
        runs = load(store, f"truncated-{dim}-{radius}")
        if runs:
            rows.append([f"{dim}, {radius}", *cells(runs), spread(r["seconds"] for r in runs)])
    return markdown(["d, c", *HEADER, "s"], rows)


# ---- a posterior --------------------------------------------------------------------------------

BOUNDS = (50, 60)
CAREFUL = {"target_ess": 0.8, "mcmc_steps": 20}  #: the posterior is a funnel


def school_tail(bound: float) -> float:
    r"""The exact :math:`P(\theta_1 > c \mid y)`, by quadrature over :math:`\log\tau`.

    Given :math:`\tau` all else is Gaussian.
    """
    y, sigma = (value.double() for value in load_eight_schools())
    tau = torch.linspace(-12, 9, 100_001, dtype=torch.float64).exp()[:, None]
    variance = sigma.square() + tau.square()
    precision = (1 / variance).sum(-1) + 1 / 25
    loc = (y / variance).sum(-1) / precision
    squares = (y.square() / variance).sum(-1) - precision * loc.square()
    log_w = -0.5 * (squares + variance.log().sum(-1) + precision.log())
    tau = tau[:, 0]
    log_w = log_w - torch.log1p((tau / 5).square()) + tau.log()
    own = 1 / (1 / sigma[0].square() + 1 / tau.square())
    centre = own * (y[0] / sigma[0].square() + loc / tau.square())
    total = own + (own / tau.square()).square() / precision
    return float((log_w.softmax(0) * torch.special.ndtr((centre - bound) / total.sqrt())).sum())


def first_school(sites: dict[str, Tensor]) -> Tensor:
    return sites["mu"] + sites["tau"] * sites["z"][..., 0]


def by_hmc(budget: int, bound: float, size: Size) -> float:
    """The share of an HMC run's draws that lie beyond the bound."""
    chains, leaps = (100, 3) if size.smoke else (1000, 10)
    target = Target.from_model(eight_schools, *load_eight_schools())
    steps = 20 if size.smoke else max(20, budget // (chains * leaps))
    x0 = target.initial_points(chains)
    draws = hmc.sample(target, x0, steps - steps // 4, steps // 4, leaps).x
    return float((first_school(target.unpack(draws)) > bound).double().mean())


def by_imh(budget: int, bound: float, size: Size) -> float:
    """The share of draws by IMH beyond the bound; training the flow is part of the budget."""
    chains, data = 100 if size.smoke else 1000, load_eight_schools()
    guide = AutoFlow(eight_schools, options=FitOptions(progress=False))
    left, shares = budget - guide.fit(*data).evaluations, []
    while left > 0:  # in parts, as draws take memory
        steps = max(20, min(left // chains, 1000) - 100)
        mcmc = VectorizedMCMC(IMH(guide=guide), steps, 100, num_chains=chains, disable_progbar=True)
        mcmc.run(*data)
        shares.append((first_school(mcmc.get_samples()) > bound).double().mean())
        left -= chains * (steps + 100)
    return float(torch.stack(shares).mean())


CHAINS = {"HMC": by_hmc, "IMH": by_imh}


def posterior_run(bound: int, size: Size) -> Result:
    data = load_eight_schools()
    guide = AutoFlow(eight_schools, options=FitOptions(progress=False))
    found = importance_flow(
        eight_schools,
        None,
        *data,
        event=lambda sites: first_school(sites) - bound,
        guide=guide,
        estimators=ESTIMATORS,
        **(size.options if size.smoke else {**size.options, **CAREFUL, "num_samples": 16384}),
    )
    chains = {name: run(found.evaluations, bound, size) for name, run in CHAINS.items()}
    return {**against(school_tail(bound), found), "chains": chains}


def posterior_table(bounds: Sequence[int], store: Path) -> str:
    rows = []
    for bound in bounds:
        runs = load(store, f"posterior-{bound}")
        if not runs:
            continue
        row = [f"θ₁ > {bound}", *cells(runs), f"{mean(r['evaluations'] for r in runs):.2g}"]
        for name in CHAINS:
            errors = [run["chains"][name] / run["truth"] - 1 for run in runs]
            row.append(f"{mean(e * e for e in errors) ** 0.5:.0%}")
        rows.append([*row, spread(r["seconds"] for r in runs)])
    names = [f"{name}: root mean square error" for name in CHAINS]
    return markdown(["event", *HEADER, "evaluations", *names, "s"], rows)


# ---- data alone ---------------------------------------------------------------------------------


def normal_case() -> tuple[Tensor, Callable[[Tensor], Tensor], float]:
    truth = exp(truncated_normal(2, 4).log_z)
    return torch.randn(NUM_DATA, 2), lambda x: x.norm(dim=-1) - 4, truth


def banana_case() -> tuple[Tensor, Callable[[Tensor], Tensor], float]:
    r"""Returns the banana with :math:`P(x_2 > 30)`, by quadrature over :math:`x_1`."""
    first = torch.linspace(-10, 10, 20_001, dtype=torch.float64)
    weights = (-0.5 * first.square()).softmax(0)
    beyond = torch.special.ndtr(3 * (first.square() - 1) - 30)
    return banana().sample(NUM_DATA), lambda x: x[:, 1] - 30, float((weights * beyond).sum())


NUM_DATA = 10_000
CASES = {"normal": normal_case, "banana": banana_case}
TITLES_OF_CASES = {"normal": "normal, \\|x\\| > 4", "banana": "banana, x₂ > 30"}


def data_run(name: str, size: Size) -> Result:
    data, event, truth = CASES[name]()
    found = importance_flow(data=data, event=event, estimators=ESTIMATORS, **size.options)
    return {**against(truth, found), "counted": float((event(data) > 0).double().mean())}


def data_table(store: Path) -> str:
    rows = []
    for name, title in TITLES_OF_CASES.items():
        runs = load(store, f"data-{name}")
        if runs:
            counted = [run["counted"] / run["truth"] - 1 for run in runs]
            error = f"{mean(e * e for e in counted) ** 0.5:.0%}"
            rows.append([title, *cells(runs), error, spread(r["seconds"] for r in runs)])
    return markdown(["data", *HEADER, "counting: root mean square error", "s"], rows)


# ---- the page in docs and the command line ------------------------------------------------------

PREFACE = """# Importance flow

Made by `python examples/benchmarks/papers/importance_flow.py all --table` from the stored runs in
`examples/benchmarks/results/importance_flow.jsonl`; without `--table` it runs what is missing.
Every run: 4096 particles in training, stages that keep an ESS of .5, 32 768 fresh draws for each
estimator. Errors are relative to the truth: the mean over seeds with its sign, the worst seed
without; the standard error is the one that comes with the answer, also relative. Float32 on one CPU
core shared with other work, so seconds are upper bounds.
"""
TEXTS = {
    "truncated": "## A normal outside a ball\n\nP(\\|x\\| > c) for x ~ N(0, I): the path "
    "starts at p. The truth is a tail of χ².",
    "posterior": "## A posterior: eight schools\n\nThe probability that coaching gains the first "
    "school more than c points; the truth is a quadrature. A ratio of two evidences. The posterior "
    "is a funnel, so stages keep an ESS of .8, with 20 moves after each, and 16 384 draws. HMC and "
    "IMH have the same number of target evaluations, warm-up and training included.",
    "data": "## Data alone\n\n10 000 draws of a known distribution, and nothing else: p is a flow "
    "fitted to them, and the answer is that flow's. The standard error does not know how well the "
    "flow fits; the error against the truth does. Beside it the share of the draws themselves, of "
    "which some nine lie beyond the banana's tip: there they say more than the flow.",
}


def studies(size: Size) -> dict[str, tuple[dict[str, Callable], Callable[[Path], str]]]:
    """Each study's runs and its table."""
    return {
        "truncated": (
            {f"truncated-{d}-{c}": partial(truncated_run, d, c, size) for d, c in BALLS},
            truncated_table,
        ),
        "posterior": (
            {f"posterior-{c}": partial(posterior_run, c, size) for c in size.bounds},
            partial(posterior_table, size.bounds),
        ),
        "data": ({f"data-{name}": partial(data_run, name, size) for name in CASES}, data_table),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=[*TEXTS, "all"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print what is stored")
    parser.add_argument("--smoke", action="store_true", help="seconds, for the tests")
    args = parser.parse_args()
    store = args.results / STUDY
    every = args.study == "all"
    warnings.simplefilter("ignore")  # blocks that did harm warn; the tables show the results
    tables = []
    for name, (runs, table) in studies(Size(args.smoke)).items():
        if not every and name != args.study:
            continue
        if args.smoke:
            runs = dict(list(runs.items())[:1])
        if not args.table:
            collect(store, runs, range(1 if args.smoke else args.seeds))
        tables.append(f"{TEXTS[name]}\n\n{table(store)}\n")
        print(f"\n{tables[-1]}", flush=True)
    if every and not args.smoke:
        (DOCS / "importance_flow.md").write_text("\n".join([PREFACE, *tables]))


if __name__ == "__main__":
    main()
