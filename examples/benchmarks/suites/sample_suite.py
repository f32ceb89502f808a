"""``sample()`` on ten posteriors, beside batched MALA, Pyro's and NumPyro's NUTS, and flowMC.

::

    python examples/benchmarks/suites/sample_suite.py            # all measurements, then the table
    python examples/benchmarks/suites/sample_suite.py --table    # the table of what is stored
    python examples/benchmarks/suites/sample_suite.py --write    # and docs/sample.md

Every measurement runs in a process of its own, one at a time, and is stored in
``results/sample_suite.jsonl`` as it finishes; a rerun does what is missing. Training, warm-up and
compilation count, imports do not. Effective draws are ArviZ's bulk ESS, the least of all scalar
statistics of ``problems/suite.py``; z-scores are against their truths. NumPyro and flowMC are
needed for their rows only (the ``bench`` extra); NUTS takes the energies as they are, flowMC takes
energies only.

The stored runs took half an hour on one core. The table has the seconds, the effective draws, the
evaluations and the worst z-score of each sampler on each posterior.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import Any

import arviz as az
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from problems.suite import PROBLEMS, Draws, Problem
from stored_runs import DOCS, RESULTS, collect_measured, load, markdown, measured, spread

STUDY = "sample_suite.jsonl"  #: the file of its stored runs
OURS = ("sample", "mala")
SAMPLERS = (*OURS, "pyro", "numpyro", "flowmc")
LIMIT = 600.0  #: seconds, imports included, after which a measurement is stopped


# ---- samplers: draws by site, evaluations (None where unknown), and what else is worth a note ----

Measured = tuple[Draws, int | None, dict[str, Any]]


def by_sample(problem: Problem, seed: int, smoke: bool) -> Measured:
    import pyro_flowsamp

    model, data = problem.make()
    counts = {"num_samples": 10, "num_chains": 100} if smoke else {}
    result = pyro_flowsamp.sample(model, *data, seed=seed, progress=False, **counts)
    draws = {name: x.values for name, x in result["posterior"].items()}
    return draws, int(result.attrs["evaluations"]), dict(result.attrs)


def by_mala(problem: Problem, seed: int, smoke: bool) -> Measured:
    """Langevin on 1000 chains in the space that the same annealed particles whiten."""
    import pyro
    import torch

    from pyro_flowsamp import LatentMALA, VectorizedMCMC
    from pyro_flowsamp.sampling.candidates import better_gaussian, gaussian_guide
    from pyro_flowsamp.smc.mode_search import ModeSearch
    from pyro_flowsamp.target import as_target

    pyro.set_rng_seed(seed)
    model, data = problem.make()
    chains, kept = (100, 5) if smoke else (1000, 100)
    target = as_target(model, *data)
    modes = ModeSearch(target).run()
    starts = modes.x[torch.arange(chains) % len(modes.x)]
    whitening = modes.coordinates.loc, modes.coordinates.scale_tril
    affine = better_gaussian(modes.x.double(), *whitening)
    run = VectorizedMCMC(
        LatentMALA(guide=gaussian_guide(target, *affine)),
        num_samples=kept,
        warmup_steps=kept,
        num_chains=chains,
        thin=10,
        initial_params=target.unpack_unconstrained(starts),
        disable_progbar=True,
    )
    run.run()
    draws = {name: x.numpy() for name, x in run.get_samples(group_by_chain=True).items()}
    return draws, target.evaluations, {}


def by_pyro(problem: Problem, seed: int, smoke: bool) -> Measured:
    """One chain of Pyro's NUTS."""
    import pyro
    from pyro.infer import MCMC, NUTS

    pyro.set_rng_seed(seed)
    model, data = problem.make()
    warmup, steps = (5, 10) if smoke else (300, 1000)
    kernel = NUTS(model, jit_compile=not smoke, ignore_jit_warnings=True)
    mcmc = MCMC(kernel, steps, warmup, disable_progbar=True)
    mcmc.run(*data)
    draws = {name: x.numpy() for name, x in mcmc.get_samples(group_by_chain=True).items()}
    return draws, None, {}


def by_numpyro(problem: Problem, seed: int, smoke: bool) -> Measured:
    """Four chains of NumPyro's NUTS, vectorised."""
    import jax
    from baselines.nuts import numpyro_models
    from numpyro.infer import MCMC, NUTS

    key, start = jax.random.split(jax.random.PRNGKey(seed))
    if problem.log_density is None:
        model, data = problem.make()
        kernel = NUTS(numpyro_models()[model.__name__])
        arguments, first = tuple(np.asarray(x) for x in data), None
    else:
        log_density = problem.log_density
        kernel = NUTS(potential_fn=lambda z: -log_density(z["x"]))
        first = {"x": jax.random.uniform(start, (4, problem.dim), minval=-2, maxval=2)}
        arguments = ()
    mcmc = MCMC(
        kernel,
        num_warmup=500,
        num_samples=2500,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(key, *arguments, init_params=first, extra_fields=("num_steps",))
    draws = {name: np.asarray(x) for name, x in mcmc.get_samples(group_by_chain=True).items()}
    sampled = int(mcmc.get_extra_fields()["num_steps"].sum())
    return draws, round(sampled * 1.2), {}  # warm-up's steps are not kept: as long as others


def by_flowmc(problem: Problem, seed: int, smoke: bool) -> Measured:
    """flowMC's bundle of splines and MALA as documented: 20 chains, 20 + 20 loops."""
    import jax
    from flowMC.resource_strategy_bundle.RQSpline_MALA import RQSpline_MALA_Bundle
    from flowMC.Sampler import Sampler

    log_density = problem.log_density
    assert log_density is not None
    key, start, bundle_key = jax.random.split(jax.random.PRNGKey(seed), 3)
    shape = {"n_chains": 20, "n_dims": problem.dim}
    bundle = RQSpline_MALA_Bundle(
        bundle_key,
        **shape,
        logpdf=lambda x, data: log_density(x),
        n_local_steps=100,
        n_global_steps=10,
        n_training_loops=20,
        n_production_loops=20,
        n_epochs=20,
    )
    sampler = Sampler(n_dim=problem.dim, n_chains=20, rng_key=key, resource_strategy_bundles=bundle)
    sampler.sample(2 * jax.random.normal(start, (20, problem.dim)), {})
    positions = np.asarray(sampler.resources["positions_production"].data)
    return {"x": positions}, 20 * 40 * 110, {}


RUN: dict[str, Callable[[Problem, int, bool], Measured]] = {
    "sample": by_sample,
    "mala": by_mala,
    "pyro": by_pyro,
    "numpyro": by_numpyro,
    "flowmc": by_flowmc,
}


# ---- one measurement -----------------------------------------------------------------------------


def measure(name: str, sampler: str, seed: int, smoke: bool) -> dict[str, Any]:
    """One measurement, in this process."""
    problem = PROBLEMS[name]
    truth = problem.truth()
    start = perf_counter()
    draws, evaluations, notes = RUN[sampler](problem, seed, smoke)
    seconds = perf_counter() - start
    found = {k: v for k, v in problem.statistics(draws).items() if k in truth}
    ess = {k: effective(v) for k, v in found.items()}
    z = {k: z_score(v, *truth[k]) for k, v in found.items()}
    worst = max(z, key=lambda k: abs(z[k]))
    return {
        "seconds": seconds,
        "least_ess": min(ess.values()),
        "ess_per_second": min(ess.values()) / seconds,
        "evaluations": evaluations,
        "worst_z": abs(z[worst]),
        "worst": worst,
        "means": {k: float(v.mean()) for k, v in list(found.items())[:8]},
        **{k: v for k, v in notes.items() if isinstance(v, int | float | str)},
    }


def effective(draws: np.ndarray) -> float:
    """The bulk ESS; none where nothing has moved, as an indicator of a mode that nobody found."""
    return float(az.ess(draws, method="bulk")) if draws.std() > 0 else 0.0


def z_score(draws: np.ndarray, truth: float, error: float) -> float:
    """The z-score of a mean; its error is ArviZ's, or over chains where there are many."""
    if len(draws) >= 100:
        own = float(draws.mean(1).std(ddof=1)) / len(draws) ** 0.5
    else:
        own = float(az.mcse(draws, method="mean"))
    return float((draws.mean() - truth) / max((own**2 + error**2) ** 0.5, 1e-12))


def z_shown(z: float) -> str:
    """A mode that no chain has left has no spread, and any z."""
    return f"{z:.1f}" if z < 100 else "over 100"


def run(name: str, sampler: str, smoke: bool, seed: int) -> dict[str, Any]:
    """One measurement in a new process."""
    arguments = ["--one", name, sampler, "--seed", str(seed)]
    return measured(Path(__file__).resolve(), [*arguments, *(["--smoke"] if smoke else [])], LIMIT)


def possible(name: str, sampler: str) -> bool:
    """flowMC knows no Pyro models; NumPyro has been given three of them."""
    if PROBLEMS[name].log_density is not None:
        return True
    return sampler in (*OURS, "pyro") or (
        sampler == "numpyro" and name in ("eight_schools", "german_credit", "radon")
    )


# ---- the table -----------------------------------------------------------------------------------


def table(store: Path) -> str:
    """Mean ± spread of what is stored, and ratios of effective draws a second to ``sample()``."""
    rows = []
    for name in PROBLEMS:
        ours = [r["ess_per_second"] for r in load(store, f"{name}-sample")]
        for sampler in SAMPLERS:
            runs = load(store, f"{name}-{sampler}")
            if stopped := [r for r in runs if r.get("stopped")]:
                rows.append([name, sampler, len(runs), f"over {stopped[0]['seconds']:.0f}"])
                rows[-1] += ["–"] * 6
                continue
            if not runs:
                continue
            keys = ("seconds", "least_ess", "ess_per_second")
            rows.append([name, sampler, len(runs), *(spread(r[k] for r in runs) for k in keys)])
            theirs = mean(r["ess_per_second"] for r in runs)
            ratio = mean(ours) / theirs if ours and theirs else float("inf")
            asked = [1e3 * r["least_ess"] / r["evaluations"] for r in runs if r["evaluations"]]
            worst = max(runs, key=lambda r: r["worst_z"])
            rows[-1] += [
                f"{ratio:.3g}",
                spread(asked),
                f"{z_shown(worst['worst_z'])} ({worst['worst']})",
            ]
            rows[-1] += [", ".join(sorted({r["method"] for r in runs if "method" in r}))]
    header = ["posterior", "sampler", "seeds", "s in all", "least ESS", "ESS a second"]
    header += ["sample() is faster by", "ESS in 1000 evaluations", "worst \\|z\\|", "method"]
    return markdown(header, rows)


PREFACE = """# sample() and others

Made by `python examples/benchmarks/suites/sample_suite.py --write` from the stored runs in
`examples/benchmarks/results/sample_suite.jsonl`; without options it runs what is missing.
{machine}. Seconds are those of a whole run, with training, warm-up and compilation. The least ESS
is the bulk ESS of the worst scalar statistic, the worst |z| that of the worst of all seeds against
the truth: where it is large the ESS means nothing. MALA: 1000 chains in the space that the same
annealed particles whiten. NUTS: Pyro's, one chain of 300 + 1000 steps; NumPyro's, four of 500 +
2500, vectorised. flowMC: its bundle of splines and MALA, 20 chains, 20 + 20 loops of 100 local and
10 global steps. Evaluations: NumPyro's count warm-up as a fifth of sampling, since its steps are
not kept; flowMC's are those steps. flowMC and Pyro's NUTS take long, and have fewer seeds, none on
the banana. A measurement of more than {limit:.0f} seconds, imports included, is stopped.

Truths: of both eight schools one integral, of the regressions long runs of NumPyro's NUTS, of
galaxies that the six orders of three components are equally likely, of the others exact.

What fails: every NUTS stays in the mode that it starts in; MALA has the shares of its starts, and
loses the funnel's neck; flowMC has lost a mode in fifty dimensions. `sample()` is slower than MALA
where that is all it takes, by what it takes to find out.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, metavar=("PROBLEM", "SAMPLER"), help="measure in-process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS))
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print what is stored")
    parser.add_argument("--write", action="store_true", help="print it, and write docs/sample.md")
    parser.add_argument("--smoke", action="store_true", help="seconds, ours only, for the tests")
    args = parser.parse_args()
    store = args.results / STUDY
    if args.one:
        print(json.dumps(measure(*args.one, args.seed, args.smoke)))
        return
    if args.smoke:
        args.problems, args.samplers, args.seeds = ["two_modes_2"], list(OURS), 1
    if not (args.table or args.write):
        runs = {
            f"{name}-{sampler}": partial(run, name, sampler, args.smoke)
            for name in args.problems
            for sampler in args.samplers
            if possible(name, sampler)
        }
        collect_measured(store, runs, range(args.seeds), "{seconds:8.1f} s")
    text = table(store)
    print(text)
    if args.write:
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        (DOCS / "sample.md").write_text(PREFACE.format(machine=machine, limit=LIMIT) + text + "\n")


if __name__ == "__main__":
    main()
