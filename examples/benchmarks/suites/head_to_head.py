r"""Seconds to 1000 and 10 000 effective draws of twelve posteriors: ``sample()`` and its rivals.

::

    python examples/benchmarks/suites/head_to_head.py --nuts-python /path/to/python
    python examples/benchmarks/suites/head_to_head.py --problems radon --samplers sample numpyro
    python examples/benchmarks/suites/head_to_head.py --table          # of stored runs
    python examples/benchmarks/suites/head_to_head.py --table --write  # and docs/head_to_head.md
    python examples/benchmarks/suites/head_to_head.py --smoke          # short runs, for the tests

A run is a process of its own, on one core (two for the samplers whose names end in ``-2``), and is
stored in ``results/head_to_head.jsonl`` when it ends; a rerun does what is missing. The seconds are
those of the clock, everything but imports included: training, compilation, warm-up. Stored
compilations of other runs are not used. So the machine must do nothing else meanwhile.

Both sizes are read off one run, in which draws are doubled until the worst unconstrained component
has 10 000 effective draws in the bulk and the largest R-hat is at most 1.01, or the limit of 300 s
is over. R-hat is not asked of ``sample()``, whose chains are many and short. It has a verdict of
its own, and seconds of runs that it calls doubtful have a question mark. With f the seconds before
the first draw, and t and e the seconds and the effective size at the first look with enough of
them, the time to the size g is :math:`f + (t - f) g / e`. ``sample()`` is asked for 10 000
effective draws, and has one look, at its end.

The seeds are 0 for all, and ``--seeds 0 1 2 3 4`` for those that one names. NumPyro may be
installed in another environment, as for ``suites/gradients.py``. A sampler that is not installed is
not run, and its column says so.

Means of up to 50 unconstrained components are compared with those of ``sample()``, in standard
errors of the difference; and where truths are known (``problems/known``), each sampler is compared
with them. A run of all takes hours.
"""

import argparse
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from baselines.leapfrogs import means_with_errors, worst_ess_and_r_hat, write
from baselines.looks import Moment, Stopwatch, look_until, summary, use_cores
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
from suites.gradients import TOLERANCE, in_float64, largest_difference

STUDY = "head_to_head.jsonl"  #: the file of its stored runs
NUMPYRO = Path(__file__).resolve().parents[1] / "baselines" / "numpyro_seconds.py"
NAMES = (
    "eight_schools",
    "centred_eight_schools",
    "german_credit",
    "radon",
    "item_response",
    "stochastic_volatility",
    "horseshoe",
    "logistic_20000_50",
    "garch",
    "gaussian_process",
    "lotka_volterra",
    "galaxies",
)  #: posteriors of ``problems/known``
SAMPLERS = (
    "sample",
    "sample-2",
    "imh",
    "pyro",
    "pyro-jit",
    "pyro-traced",
    "numpyro",
    "numpyro-parallel",
    "numpyro-2",
    "numpyro-parallel-2",
    "nutpie",
    "nutpie-2",
)
PACKAGES = {"numpyro": "numpyro", "nutpie": "nutpie"}  #: what samplers need, by the first word
GOALS = (1000, 10_000)  #: effective draws of the bulk, of the worst parameter
SMOKE, SMOKE_SAMPLERS = ("eight_schools",), ("sample", "imh", "pyro-traced")
MAX_Z = 4.0  #: standard errors by which means may differ


@dataclass(frozen=True)
class Settings:
    """Settings of a run.

    Attributes:
        limit: Seconds after which no more draws are made.
        grace: Seconds beyond the limit, imports included, after which the process is ended.
        goals: Effective sample sizes.
        chains: Chains of IMH.
        warmup: Warm-up steps of IMH, and of Pyro's NUTS.
        numpyro_warmup: Warm-up steps of NumPyro's NUTS.
        first: Draws of each chain at the first look.
        max_steps: Steps of the training of IMH's flow; None for those of the guide.
    """

    limit: float = 300.0
    grace: float = 120.0
    goals: tuple[int, ...] = GOALS
    chains: int = 100
    warmup: int = 300
    numpyro_warmup: int = 1000
    first: int = 250
    max_steps: int | None = None


SMOKE_SETTINGS = Settings(
    limit=60.0,
    goals=(100, 200),
    chains=20,
    warmup=20,
    numpyro_warmup=100,
    first=50,
    max_steps=20,
)


# ---- one run, in this process --------------------------------------------------------------------


def made(name: str) -> tuple[Any, Any, tuple]:
    """A posterior's target, its model and its data, in the dtype in which it is sampled."""
    import torch
    from problems.known import PROBLEMS

    from pyro_flowsamp.target import as_target

    torch.set_default_dtype(torch.float64 if PROBLEMS[name].double else torch.float32)
    model, data = PROBLEMS[name].make()
    return as_target(model, *data), model, data


def by_sample(name: str, seed: int, settings: Settings) -> tuple[dict[str, Any], np.ndarray]:
    """A run of ``sample()``, and its unconstrained draws ``(chains, draws, d)``."""
    import torch

    import pyro_flowsamp

    watch = Stopwatch()
    target, model, data = made(name)
    goals = {"ess": max(settings.goals), "max_seconds": settings.limit}
    found = pyro_flowsamp.sample(model, *data, **goals, seed=seed, progress=False)
    seconds = watch.seconds
    values = {s.name: torch.as_tensor(found["posterior"][s.name].values) for s in target.sites}
    chains, draws = next(iter(values.values())).shape[:2]
    flat = {k: v.flatten(0, 1).to(target.dtype) for k, v in values.items()}
    x = target.pack(flat).reshape(chains, draws, -1).double().numpy()
    ess, r_hat = worst_ess_and_r_hat(x)
    looks = [Moment(x.shape[1], seconds, ess, 0.0)]  # its many chains are too short for R-hat
    fixed = seconds - float(found.attrs["seconds_sampling"])
    attrs = {"reliable": int(found.attrs["reliable"]), "method": found.attrs["method"]}
    return {**summary(fixed, looks, settings.goals), **attrs, "r_hat": r_hat}, x


def by_imh(name: str, seed: int, settings: Settings) -> tuple[dict[str, Any], np.ndarray]:
    """A run of ``VectorizedMCMC(IMH(...))``."""
    import pyro

    from pyro_flowsamp import IMH, AutoFlow, FitOptions, VectorizedMCMC

    watch = Stopwatch()
    pyro.set_rng_seed(seed)
    _, model, data = made(name)
    steps = {} if settings.max_steps is None else {"max_steps": settings.max_steps}
    guide = AutoFlow(model, options=FitOptions(progress=False, **steps))
    run = VectorizedMCMC(
        IMH(model, guide=guide),
        settings.first,
        settings.warmup,
        settings.chains,
        disable_progbar=True,
    )

    fixed = 0.0

    def extend(more: int) -> None:
        nonlocal fixed
        if run.seconds:
            run.resume(more, append=True)
        else:
            run.run(*data)
            fixed = watch.seconds - run.seconds["sampling"]

    looks = look_until(
        extend,
        lambda: run.unconstrained.double().numpy(),
        watch,
        settings.first,
        goal=max(settings.goals),
        limit=settings.limit,
    )
    return summary(fixed, looks, settings.goals), run.unconstrained.double().numpy()


def by_pyro(
    name: str, seed: int, settings: Settings, kind: str
) -> tuple[dict[str, Any], np.ndarray]:
    """A run of Pyro's NUTS, one chain: on the model, compiled by it, or on the traced potential."""
    import pyro
    from pyro.infer import NUTS

    watch = Stopwatch()
    pyro.set_rng_seed(seed)
    target, model, data = made(name)
    if kind == "pyro-traced":
        transforms = {site.name: site.transform.inv for site in target.sites}
        kernel = NUTS(potential_fn=target.potential_fn, transforms=transforms)
        kernel.initial_params = target.unpack_unconstrained(target.initial_points(1)[0])
    else:
        kernel = NUTS(model, jit_compile=kind == "pyro-jit", ignore_jit_warnings=True)
    kernel.setup(settings.warmup, *data)
    params, found = kernel.initial_params, []

    def move() -> bool:
        nonlocal params
        params = kernel.sample(params)
        return watch.seconds < settings.limit

    for _ in range(settings.warmup):
        if not move():
            return {"stopped": True, "seconds": watch.seconds}, np.empty((1, 0, target.dim))
    fixed = watch.seconds

    def extend(more: int) -> None:
        for _ in range(more):
            in_time = move()
            found.append(target.pack_unconstrained(params).detach().double().numpy())
            if not in_time:
                return

    looks = look_until(
        extend,
        lambda: np.stack(found)[None],
        watch,
        settings.first,
        goal=max(settings.goals),
        limit=settings.limit,
    )
    return summary(fixed, looks, settings.goals), np.stack(found)[None]


def measure(name: str, sampler: str, seed: int, settings: Settings, file: Path) -> dict[str, Any]:
    """One run of a sampler that needs torch, in this process; its draws are written to a file."""
    import torch

    cores = cores_of(sampler)
    torch.set_num_threads(cores)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(file.parent / "inductor")
    ways: dict[str, Callable[..., tuple[dict[str, Any], np.ndarray]]] = {
        "sample": by_sample,
        "imh": by_imh,
    }
    kind = sampler.removesuffix("-2")
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        if kind in ways:
            result, x = ways[kind](name, seed, settings)
        else:
            result, x = by_pyro(name, seed, settings, kind)
    np.save(file, x)
    said = {str(w.message)[:300] for w in issued if w.category is UserWarning}
    return {**result, "warnings": sorted(said)}


def cores_of(sampler: str) -> int:
    """The number of cores of a sampler."""
    return 2 if sampler.endswith("-2") else 1


# ---- one run, in a new process -------------------------------------------------------------------


def run(name: str, sampler: str, seed: int, settings: Settings, python: str) -> dict[str, Any]:
    """One run in a new process, and its draws beside the truth."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "draws.npy"
        most = settings.limit + settings.grace
        try:
            if sampler.startswith("nutpie"):
                raise RuntimeError("the models have not been written in PyMC")
            if sampler.startswith("numpyro"):
                result = run_numpyro(name, sampler, seed, settings, python, file)
            else:
                arguments = ["--one", name, sampler, str(file), "--seeds", str(seed)]
                arguments += ["--settings", json.dumps(vars(settings))]
                result = measured(Path(__file__).resolve(), arguments, most)
        except RuntimeError as error:
            return {"failure": str(error)[-1500:], "seconds": float("nan")}
        if file.exists() and (x := np.load(file)).shape[1] > 3:
            result |= means_with_errors(x) | against_truth(name, x)
    return result


def run_numpyro(
    name: str, sampler: str, seed: int, settings: Settings, python: str, file: Path
) -> dict[str, Any]:
    """One run of NumPyro's NUTS by another interpreter.

    Raises:
        ValueError: The log densities of the two models differ by more than a constant.
    """
    from problems.known import PROBLEMS

    model, problem, log_p = in_float64(name)
    data = file.parent / "data.npz"
    write(data, problem)
    arguments = ["--model", model, "--data", str(data)]
    theirs = measured(NUMPYRO, [*arguments, "--densities"], python=python)["log_densities"]
    difference = largest_difference(log_p, np.array(theirs))
    if not difference <= TOLERANCE:
        raise ValueError(
            f"{name}: the log densities in Pyro and NumPyro differ by {difference:.2g} of their "
            f"size. Write the same model in baselines/numpyro_models.py."
        )
    arguments += ["--draws", str(file), "--seed", str(seed), "--limit", str(settings.limit)]
    arguments += ["--method", "parallel" if "parallel" in sampler else "vectorized"]
    arguments += ["--warmup", str(settings.numpyro_warmup), "--first", str(settings.first)]
    arguments += ["--goals", *map(str, settings.goals), "--cores", str(cores_of(sampler))]
    arguments += ["--double"] * PROBLEMS[name].double
    return measured(NUMPYRO, arguments, settings.limit + settings.grace, python)


def against_truth(name: str, x: np.ndarray) -> dict[str, Any]:
    """The largest z-score of statistics with a known truth, and which it is."""
    import arviz as az
    import torch
    from problems.known import PROBLEMS

    statistics = PROBLEMS[name].statistics()
    if not statistics:
        return {}
    target, _, _ = made(name)
    values = target.unpack(torch.as_tensor(x).to(target.dtype))
    draws = {site: value.detach().numpy() for site, value in values.items()}
    worst = 0.0, ""
    for statistic in statistics:
        found = np.asarray(statistic.function(draws), dtype=float)
        ess = max(1.0, float(az.ess(found, method="mean")))
        error = np.hypot(found.std() / ess**0.5, statistic.error)
        gap = abs(found.mean() - statistic.truth)
        z = float(gap / error) if error > 0 else (0.0 if gap == 0 else np.inf)
        worst = max(worst, (min(z, 1e6), statistic.name))
    return {"truth_z": worst[0], "truth_name": worst[1]}


# ---- the page ------------------------------------------------------------------------------------


def median(values: Sequence[float | None]) -> float | None:
    """The median of several runs; None where more than half have no number."""
    known = sorted(value if value is not None else np.inf for value in values)
    middle = known[len(known) // 2] if known else np.inf
    return None if middle == np.inf else middle


@dataclass
class Runs:
    """The stored runs of one posterior by one sampler."""

    name: str
    sampler: str
    results: list[Mapping[str, Any]]

    def seconds(self, goal: int) -> float | None:
        """The median seconds to a goal; None where it was not reached."""
        found = [r.get("seconds_to", {}).get(str(goal)) for r in self.results]
        return median(found) if found else None

    def cell(self, goals: Sequence[int], absent: Collection[str]) -> str:
        """The seconds to all goals, in words."""
        if not self.results:
            return "not installed" if self.sampler.split("-")[0] in absent else "–"
        if all("failure" in r for r in self.results):
            return "failed"
        limit = max(r.get("limit", Settings.limit) for r in self.results)
        parts = [self.seconds(goal) for goal in goals]
        doubt = "?" if any(r.get("reliable") == 0 for r in self.results) else ""
        return " / ".join(
            f"> {limit:.0f}" if part is None else f"{part:.3g}{doubt}" for part in parts
        )

    @property
    def first(self) -> Mapping[str, Any] | None:
        """The first run with draws."""
        return next((r for r in self.results if "means" in r), None)


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """The largest z-score of a difference of means."""
    gap = np.subtract(one["means"], other["means"])
    z = np.abs(gap) / np.hypot(one["errors"], other["errors"])
    return float(z[np.isfinite(z)].max(initial=0.0))


def disagreements(name: str, runs: Iterable[Runs]) -> list[str]:
    """Lines on means that differ, and on who is wrong where that is known."""
    firsts = {each.sampler: each.first for each in runs if each.first is not None}
    ours, lines = firsts.get("sample"), []
    for sampler, found in firsts.items():
        wrong = found.get("truth_z", 0.0) > MAX_Z
        z = 0.0 if ours is None or sampler == "sample" else difference(ours, found)
        if wrong:
            lines.append(
                f"- {name}, {sampler}: {found['truth_name']} is {found['truth_z']:.1f} standard "
                f"errors from the truth."
            )
        if z > MAX_Z:
            known = "truth_z" in found and ours is not None
            own = known and ours["truth_z"] > MAX_Z
            who = "both are" if wrong and own else f"{sampler} is" if wrong else "sample() is"
            said = f"; {who} wrong" if wrong or own else "; who is wrong is not known"
            lines.append(
                f"- {name}, {sampler}: means differ from those of sample(), |z| = {z:.1f}{said}."
            )
    for each in runs:
        for r in each.results:
            if "failure" in r:
                last = r["failure"].strip().splitlines()[-1][:200]
                lines.append(f"- {name}, {each.sampler}, failed: {last}")
    return lines


def geometric_mean(ratios: Sequence[float]) -> str:
    """The geometric mean and the least of some ratios, in words."""
    if not ratios:
        return "no posterior has both"
    mean = exp(sum(map(log, ratios)) / len(ratios))
    return f"{mean:.2g} over {len(ratios)} posteriors, the least {min(ratios):.2g}"


def table(
    store: Path,
    names: Sequence[str],
    samplers: Sequence[str],
    settings: Settings,
    absent: Collection[str] = (),
) -> str:
    """A line for each posterior, what is reached, and what differs."""
    lines, remarks, ratios = [], [], {goal: [] for goal in settings.goals}
    for name in names:
        runs = [Runs(name, sampler, load(store, f"{name}-{sampler}")) for sampler in samplers]
        if not any(each.results for each in runs):
            continue
        lines.append([name, *(each.cell(settings.goals, absent) for each in runs)])
        remarks += disagreements(name, runs)
        for goal in settings.goals:
            times = {each.sampler: each.seconds(goal) for each in runs}
            others = [t for s, t in times.items() if t and s in rivals(samplers)]
            if times.get("sample") and others:
                ratios[goal].append(min(others) / times["sample"])
    reached = [
        f"- ESS {goal}: seconds of the best other sampler with one core over those of sample(): "
        f"{geometric_mean(found)}."
        for goal, found in ratios.items()
    ]
    header = ["posterior", *samplers]
    return "\n".join([markdown(header, lines), "", *reached, "", *remarks]).rstrip()


def rivals(samplers: Sequence[str]) -> list[str]:
    """The samplers of others, with one core."""
    return [s for s in samplers if s.startswith(("pyro", "numpyro", "nutpie")) and s[-2:] != "-2"]


PREFACE = """# Seconds to effective draws, beside other samplers

Made by `python examples/benchmarks/suites/head_to_head.py --table --write` from the stored runs in
`examples/benchmarks/results/head_to_head.jsonl`; without `--table` it runs what is missing.

Each cell has the seconds to 1000 and to 10 000 effective draws of the worst parameter, everything
but imports included, with one core (names that end in `-2`: two). "> 300" was not reached in that
time, a posterior that is not in the table has not been run, and "–" is a sampler that has not.
`sample` is `sample()`, with a question mark where it calls its draws doubtful, `imh` is
`VectorizedMCMC(IMH(...))` of 100 chains, `pyro`, `pyro-jit` and `pyro-traced` are one chain of
Pyro's NUTS on the model, with `jit_compile`, and on `Target.potential_fn`; `numpyro` is NumPyro's
NUTS of 4 chains, vectorised or in parallel.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=3, metavar=("PROBLEM", "SAMPLER", "FILE"))
    parser.add_argument("--settings", type=json.loads, default={}, help="fields of --one, as JSON")
    parser.add_argument("--problems", nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--limit", type=float, default=Settings.limit, help="seconds of a run")
    parser.add_argument("--nuts-python", default=sys.executable, help="interpreter with NumPyro")
    add_options(parser)
    args = parser.parse_args()
    if args.one:
        name, sampler, file = args.one
        use_cores(cores_of(sampler))
        settings = Settings(**args.settings)
        print(json.dumps(measure(name, sampler, args.seeds[0], settings, Path(file))))
        return
    settings = Settings(limit=args.limit)
    if args.smoke:
        settings, args.problems, args.samplers = SMOKE_SETTINGS, list(SMOKE), list(SMOKE_SAMPLERS)
    store = args.results / STUDY
    words = {sampler.split("-")[0] for sampler in args.samplers} & set(PACKAGES)
    absent = {word for word in words if not has_package(args.nuts_python, PACKAGES[word])}
    if not (args.table or args.write):
        run_missing(args, settings, store, absent)
    text = table(store, args.problems, args.samplers, settings, absent)
    print(text)
    if args.write:
        (DOCS / "head_to_head.md").write_text(f"{PREFACE}{text}\n")


def run_missing(
    args: argparse.Namespace, settings: Settings, store: Path, absent: Collection[str]
) -> None:
    """Runs what is not stored yet, seed by seed, of the samplers that are installed."""
    keys = {
        f"{name}-{sampler}": (name, sampler) for name in args.problems for sampler in args.samplers
    }
    for key, seed in missing(store, keys, args.seeds):
        name, sampler = keys[key]
        word = sampler.split("-")[0]
        if word in absent:
            continue  # it may be installed when the study goes on
        result = run(name, sampler, seed, settings, args.nuts_python)
        append(store, key, seed, {**result, "limit": settings.limit})
        print(f"{key:44s}seed {seed}  {result.get('seconds_to', result)}", flush=True)
    for word in sorted(absent):
        print(f"{word} is left out: {args.nuts_python} cannot import it.")


if __name__ == "__main__":
    main()
