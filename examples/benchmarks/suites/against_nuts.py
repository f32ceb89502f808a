"""Seconds to 10 000 effective draws: flow samplers, the Gaussian alone, Pyro's and NumPyro's NUTS.

::

    python examples/benchmarks/suites/against_nuts.py            # all measurements, then the table
    python examples/benchmarks/suites/against_nuts.py --table    # the table of what is stored

Every measurement runs in a process of its own, one at a time, and is stored in
``results/against_nuts.jsonl`` as it finishes; a rerun does what is missing. Training and
compilation count, imports do not. What "seconds to 10 000" means is in ``baselines/nuts.py``; for
the flow samplers the fixed part is training and warm-up.

A measurement takes seconds to a minute. ``--table`` prints at once: for each model and sampler the
seconds to 10 000 effective draws, and effective draws per draw.
"""

import argparse
import json
import os
import platform
import statistics
import sys
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from stored_runs import RESULTS, collect_measured, load, measured

STUDY = "against_nuts.jsonl"  #: the file of its stored runs
BENCHMARKS = Path(__file__).resolve().parents[1]

MODELS = ("eight_schools", "german_credit", "radon")
OURS = ("imh", "latent-mala", "gaussian-imh")
NUTS = ("numpyro", "numpyro-parallel", "pyro", "pyro-eager")


def measure(model_name: str, sampler: str, seed: int, smoke: bool) -> dict[str, Any]:
    """One measurement of ours, in this process."""
    import pyro
    from baselines.nuts import report
    from problems import models

    from pyro_flowsamp import IMH, AutoFlow, FitOptions, LatentMALA, VectorizedMCMC

    pyro.set_rng_seed(seed)
    model, data = models.load(model_name)
    options = FitOptions(progress=False, **({"max_steps": 50} if smoke else {}))
    flow = "gaussian" if sampler == "gaussian-imh" else None
    start = perf_counter()
    guide = AutoFlow(model, flow=flow, options=options)
    history = guide.fit(*data)
    kernel = (LatentMALA if sampler == "latent-mala" else IMH)(model, guide=guide)
    chains, draws = (20, 50) if smoke else (100, 500)
    mcmc = VectorizedMCMC(
        kernel, num_samples=draws, warmup_steps=100, num_chains=chains, disable_progbar=True
    )
    mcmc.run(*data)
    seconds = perf_counter() - start
    draws_by_chain = mcmc.get_samples(group_by_chain=True)
    return {
        **report(draws_by_chain, seconds, mcmc.seconds["sampling"]),
        "training_seconds": history.seconds,
        "stopped": history.stopped,
        "gaussian_ess": history.gaussian_ess,
        "importance_ess": history.final_ess,
        "pareto_k": history.pareto_k,
        "acceptance": float(mcmc.statistics["accepted"].double().mean()),
    }


def run(model: str, sampler: str, smoke: bool, seed: int) -> dict[str, Any]:
    """One measurement in a new process."""
    if sampler in OURS:
        script, arguments = "suites/against_nuts.py", ["--one", model, sampler]
        brief = ["--smoke"]
    else:
        script, arguments = "baselines/nuts.py", ["--model", model, "--sampler", sampler]
        brief = ["--num-samples", "20", "--warmup", "20"]
    return measured(
        BENCHMARKS / script, [*arguments, "--seed", str(seed), *(brief if smoke else [])]
    )


def table(store: Path) -> str:
    """Mean ± spread of what is stored, and ratios to the better of our kernels."""
    lines = [
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "",
        "| model | sampler | s to 10 000 effective | × better flow kernel | ESS per draw | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        rows = {}
        for sampler in (*OURS, *NUTS):
            if stored := load(store, f"{model}-{sampler}"):
                rows[sampler] = stored
        times = {s: [r["seconds_to_10000"] for r in rs] for s, rs in rows.items()}
        flows = [statistics.mean(times[s]) for s in ("imh", "latent-mala") if s in times]
        for sampler, values in times.items():
            mean = statistics.mean(values)
            spread = f"± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            efficiency = statistics.mean(r["min_bulk_ess"] / r["num_draws"] for r in rows[sampler])
            ratio = mean / min(flows) if flows else float("nan")
            lines.append(
                f"| {model} | {sampler} | {mean:.2f} {spread} | {ratio:.1f} "
                f"| {efficiency:.2f} | {len(values)} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "SAMPLER"), help="measure in-process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--samplers", nargs="+", default=[*OURS, *NUTS])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print what is stored")
    parser.add_argument("--smoke", action="store_true", help="seconds, ours only, for the tests")
    args = parser.parse_args()
    store = args.results / STUDY
    if args.one:
        print(json.dumps(measure(*args.one, args.seed, args.smoke)))
        return
    if args.smoke:
        args.models, args.samplers, args.seeds = ["eight_schools"], list(OURS), 1
    if not args.table:
        runs = {
            f"{model}-{sampler}": partial(run, model, sampler, args.smoke)
            for model in args.models
            for sampler in args.samplers
        }
        collect_measured(store, runs, range(args.seeds), "{seconds_to_10000:8.2f} s to 10 000")
    print(table(store))


if __name__ == "__main__":
    main()
