r"""Are the posteriors of ``sample()`` calibrated? Ranks of the truth among its draws.

::

    python examples/benchmarks/suites/sbc.py                   # what is missing, the table
    python examples/benchmarks/suites/sbc.py --models square   # only this model
    python examples/benchmarks/suites/sbc.py --table --write   # and docs/sbc.md, of stored runs

Simulation-based calibration (Talts et al., 2018): parameters are drawn from the prior, data from
the model with these parameters, and draws from the posterior of these data. Then the parameters and
the draws have the same distribution, given the data. So the rank of a quantity of the parameters
among L independent draws is uniform on 0, …, L, over repetitions of all three. This needs no known
posterior, and it averages over data.

Draws are thinned to their effective number, the least of all quantities, and L of them are taken at
random. With a uniform random number u, :math:`(\mathrm{rank} + u) / (L + 1)` is uniform on [0, 1]
where L differs between runs, too. It is compared with that by the test of Kolmogorov and Smirnov,
and by a chi-squared test of ten bins. A p-value is multiplied by the number of all tests
(Bonferroni). Runs that ``sample()`` calls unreliable count like all others.

Each run is stored when it ends, and stored runs are not made again. So 100 runs can be made in
parts, as ``--seeds 10`` and then ``--seeds 20``, or be stopped at any time. A run takes 1 to 15
seconds on one core (``square`` least, ``centred`` most).

The log density at the parameters is a quantity as well: it depends on the data, which shows errors
that no parameter alone shows (Modrák et al., 2023).

References:
    Sean Talts, Michael Betancourt, Daniel Simpson, Aki Vehtari and Andrew Gelman, *Validating
    Bayesian Inference Algorithms with Simulation-Based Calibration*, 2018,
    https://arxiv.org/abs/1804.06788

    Martin Modrák et al., *Simulation-Based Calibration Checking for Bayesian Computation: The
    Choice of Test Quantities Shapes Sensitivity*, 2023, https://doi.org/10.1214/23-BA1404
"""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from scipy.stats import chisquare, kstest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from stored_runs import DOCS, collect, load, markdown, options

from pyro_flowsamp import sample
from pyro_flowsamp.target.density import as_target
from pyro_flowsamp.target.nodes import is_random

STUDY = "sbc.jsonl"
RANKED = 99  #: draws among which the truth is ranked, at most
ESS = 1000  #: effective draws that are asked for
BINS = 10  #: of the chi-squared test
LEAST_RUNS = 50  #: runs of a model below which nothing is said about it
LEAST_P = 1e-3  #: p-value after Bonferroni below which a model is called not calibrated

Ranks = Mapping[str, Sequence[int]]


# ---- models --------------------------------------------------------------------------------------


def variances(y: Any = None) -> None:
    """Four groups of ten data, whose scales have an unknown scale themselves."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("groups", 4):
        deviation = pyro.sample("deviation", dist.LogNormal(scale.log(), 0.5))
        with pyro.plate("data", 10):
            pyro.sample("y", dist.Normal(0.0, deviation), obs=y)


def square(y: Any = None) -> None:
    """A number of which the square is seen: two modes, of which one may have hardly any mass."""
    x = pyro.sample("x", dist.Normal(0.2, 1.0))
    pyro.sample("y", dist.Normal(x.square(), 0.3), obs=y)


def centred(y: Any = None) -> None:
    """Eight groups in their centred form: a funnel where their deviation is small."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    deviation = pyro.sample("deviation", dist.LogNormal(-0.5, 0.7))
    with pyro.plate("groups", 8):
        effect = pyro.sample("effect", dist.Normal(mean, deviation))
        pyro.sample("y", dist.Normal(effect, 1.0), obs=y)


MODELS: dict[str, Callable] = {model.__name__: model for model in (variances, square, centred)}


# ---- one run -------------------------------------------------------------------------------------


def simulate(model: Callable) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Parameters of the prior, and data of the model with these parameters."""
    sites = poutine.trace(model).get_trace().nodes
    latent = {
        name: site["value"] for name, site in sites.items() if is_random(site) and name != "y"
    }
    return latent, sites["y"]["value"]


def quantities(
    draws: Mapping[str, np.ndarray], truth: Mapping[str, torch.Tensor]
) -> dict[str, tuple[np.ndarray, float]]:
    """The first component of each site: its draws ``(chains, draws)``, and the truth."""
    found = {}
    for name, value in truth.items():
        x = np.asarray(draws[name], dtype=float)
        found[name] = x.reshape(*x.shape[:2], -1)[..., 0], float(value.flatten()[0])
    return found


def ranks(
    found: Mapping[str, tuple[np.ndarray, float]], generator: np.random.Generator
) -> tuple[dict[str, int], int]:
    """The rank of each truth among thinned draws, and the number of these.

    Arguments:
        found: Draws ``(chains, draws)`` and the truth of each quantity.
        generator: It chooses the draws.
    """
    sizes = [az.ess(x, method="bulk") for x, _ in found.values() if np.ptp(x) > 0]
    shape = next(iter(found.values()))[0].shape
    effective = min([float(size) for size in sizes if np.isfinite(size)], default=shape[0])
    spacing = min(shape[1], max(1, int(np.ceil(shape[0] * shape[1] / effective))))
    number = shape[0] * len(range(0, shape[1], spacing))
    chosen = generator.permutation(number)[:RANKED]
    return {
        name: int((x[:, ::spacing].reshape(-1)[chosen] < truth).sum())
        for name, (x, truth) in found.items()
    }, len(chosen)


def one_run(name: str) -> dict[str, Any]:
    """Ranks of one set of parameters, with the attributes of the result.

    The global random numbers decide it, which :func:`stored_runs.collect` seeds.
    """
    model = MODELS[name]
    seed = int(torch.randint(2**31, ()))
    truth, y = simulate(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = sample(model, y, ess=ESS, seed=seed, progress=False)
    found = quantities({site: data["posterior"][site].values for site in truth}, truth)
    target = as_target(model, y)
    lp = float(target.log_prob(target.pack({k: v[None] for k, v in truth.items()})))
    found["log density"] = np.asarray(data["sample_stats"]["lp"].values, dtype=float), lp
    numbers, count = ranks(found, np.random.default_rng(seed))
    return {
        "ranks": numbers,
        "draws": count,
        "reliable": int(data.attrs["reliable"]),
        "problems": str(data.attrs["problems"]),
        "method": str(data.attrs["method"]),
    }


# ---- the page ------------------------------------------------------------------------------------


def uniform(runs: Sequence[Mapping[str, Any]], quantity: str) -> np.ndarray:
    """Numbers that are uniform on [0, 1] where draws are right, one of each run.

    Random numbers of a fixed seed are added to the ranks, so that a page can be made again.
    """
    u = np.random.default_rng(0).random(len(runs))
    rank = np.array([r["ranks"][quantity] for r in runs], dtype=float)
    return (rank + u) / (np.array([r["draws"] for r in runs]) + 1)


def p_values(runs: Sequence[Mapping[str, Any]], quantity: str) -> tuple[float, float]:
    """p-values of the test of Kolmogorov and Smirnov, and of the chi-squared test."""
    x = uniform(runs, quantity)
    counts = np.histogram(x, bins=BINS, range=(0.0, 1.0))[0]
    return float(kstest(x, "uniform").pvalue), float(chisquare(counts).pvalue)


def table(store: Path, names: Sequence[str]) -> str:
    """The p-values of all quantities, and how many runs were flagged."""
    found = {name: runs for name in names if (runs := load(store, name))}
    keys = [(name, q) for name, runs in found.items() for q in runs[0]["ranks"]]
    tests = 2 * len(keys)
    rows, least = [], {}
    for name, quantity in keys:
        runs = found[name]
        p = p_values(runs, quantity)
        adjusted = min(1.0, tests * min(p))
        least[name] = min(least.get(name, 1.0), adjusted)
        mean = float(uniform(runs, quantity).mean())
        cells = [name, quantity, len(runs), f"{mean:.3f}", *(f"{x:.3g}" for x in p)]
        rows.append([*cells, f"{adjusted:.3g}"])
    header = ["model", "quantity", "runs", "mean", "p (KS)", "p (chi²)", "least p, Bonferroni"]
    models = []
    for name, runs in found.items():
        flagged = sum(not r["reliable"] for r in runs)
        methods = ", ".join(sorted({r["method"].split(" ")[0] for r in runs}))
        seconds = float(np.median([r["seconds"] for r in runs]))
        verdict = "calibrated" if least[name] > LEAST_P else "NOT calibrated"
        verdict = f"fewer than {LEAST_RUNS} runs" if len(runs) < LEAST_RUNS else verdict
        models.append([name, len(runs), flagged, f"{seconds:.1f}", methods, verdict])
    head = ["model", "runs", "flagged", "seconds (median)", "methods", f"p > {LEAST_P:g}"]
    return f"{markdown(head, models)}\n\n{markdown(header, rows)}"


PREFACE = """# Is sample() calibrated?

Made by `python examples/benchmarks/suites/sbc.py --table --write` from the stored runs in
`examples/benchmarks/results/sbc.jsonl`; without options it runs what is missing.

Parameters are drawn from the prior, data from the model with them, and draws by `sample()` from the
posterior of these data. Over many repetitions the rank of the parameters among independent draws is
uniform if the draws are right (simulation-based calibration). *mean* is that of the ranks, scaled
to [0, 1]: 0.5 is right. Draws are thinned to their effective number. Runs that `sample()` has
flagged count like all others. The p-values are of the test of Kolmogorov and Smirnov and of a
chi-squared test of ten bins; the smaller one times the number of all tests is in the last column.

"""
SMOKE = "square"


def main() -> None:
    parser = options(__doc__)
    parser.set_defaults(seeds=100)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    args = parser.parse_args()
    seeds = range(args.seeds)
    if args.smoke:
        args.models, seeds = [SMOKE], range(1)
    store = args.results / STUDY
    if not (args.table or args.write):
        collect(store, {name: partial(one_run, name) for name in args.models}, seeds)
    text = table(store, args.models)
    print(text)
    if args.write:
        (DOCS / "sbc.md").write_text(f"{PREFACE}{text}\n")


if __name__ == "__main__":
    main()
