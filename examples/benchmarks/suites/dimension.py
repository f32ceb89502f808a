r"""Work of an effective draw as the dimension grows: flow samplers and HMC without a flow.

::

    python examples/benchmarks/suites/dimension.py                     # what is missing, the table
    python examples/benchmarks/suites/dimension.py --targets banana --dims 10 30 --samplers imh
    python examples/benchmarks/suites/dimension.py --table --write     # and docs/dimension.md
    python examples/benchmarks/suites/dimension.py --smoke             # one dimension, short

Three families of targets in 10 to 1000 dimensions: a Gaussian in a random basis whose covariance
has the condition number :math:`10^4`; a logistic regression with an effect of each group and a
fixed spread of the effects, so that there is no funnel; and the banana. Four samplers: IMH and
adapted LatentHMC with the flow that ``AutoFlow`` chooses, ``sample()``, and adapted LatentHMC with
a Gaussian alone, which only scales and turns the coordinates.

The cost is counted in gradients, a density without one as a third, as in ``suites/gradients.py``.
Training and warm-up make the *fixed* cost; the draws after them, divided by the effective sample
size of the worst coordinate or squared coordinate, that of an *effective draw*. Draws are doubled
until this size is 1000, or the limit is over. Each run is a process of its own, on one thread, and
is stored in ``results/dimension.jsonl`` when it ends.

The slope is that of a straight line through the logarithms of dimension and cost. A flow pays where
its fixed cost and 1000 effective draws are less than those of the Gaussian alone.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from baselines.looks import Stopwatch, look_until
from stored_runs import DOCS, add_options, collect_measured, load, markdown, measured
from suites.gradients import Cost, number

STUDY = "dimension.jsonl"  #: the file of its stored runs
TARGETS = ("gaussian", "hierarchy", "banana")
DIMS = (10, 30, 100, 300, 1000)
SAMPLERS = ("imh", "hmc", "sample", "gaussian-hmc")
BASELINE = "gaussian-hmc"  #: what a flow must beat
GOAL, SMOKE_GOAL = 1000, 100  #: effective draws
CONDITION = 1e4  #: of the Gaussian's covariance
OBSERVATIONS = 5  #: of each group of the hierarchy
SPREAD = 0.7  #: standard deviation of the effects of groups
COMPONENTS = 50  #: coordinates that are looked at, evenly spaced
CHAINS, WARMUP, FIRST = 64, 100, 100  #: chains, their steps of warm-up, draws at the first look
LIMIT = 600.0  #: seconds of the process after which no more draws are made
GRACE = 300.0  #: seconds of the clock beyond it after which the process is ended


# ---- targets -------------------------------------------------------------------------------------


def hierarchy(right: Any) -> None:
    """Answers of groups, logistic, with an effect of each group of fixed spread."""
    import pyro
    import pyro.distributions as dist

    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    groups = right.shape[-1]
    effect = pyro.sample("effect", dist.Normal(mean, SPREAD).expand([groups]).to_event(1))
    pyro.sample("right", dist.Bernoulli(logits=effect.expand(right.shape)).to_event(2), obs=right)


def target_of(name: str, dim: int) -> Any:
    """A target in so many dimensions, the same in each process."""
    import torch

    from pyro_flowsamp import Target, problems

    generator = torch.Generator().manual_seed(dim)
    if name == "banana":
        return problems.banana(dim).target
    if name == "hierarchy":
        effects = SPREAD * torch.randn(dim - 1, generator=generator)
        uniform = torch.rand(OBSERVATIONS, dim - 1, generator=generator)
        return Target.from_model(hierarchy, (uniform < effects.sigmoid()).float())
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator).double())[0].float()
    scales = torch.logspace(0, -np.log10(CONDITION) / 2, dim)
    return Target.from_energy(lambda x: 0.5 * ((x @ basis) / scales).square().sum(-1), dim)


# ---- one run -------------------------------------------------------------------------------------


def parts(x: np.ndarray) -> np.ndarray:
    """Some coordinates of ``(chains, draws, d)``, and their squares about the mean."""
    some = x[..., :: -(-x.shape[-1] // COMPONENTS)].astype(float)
    return np.concatenate([some, (some - some.mean((0, 1))) ** 2], -1)


def by_kernel(target: Any, sampler: str, seed: int, goal: float, cost: Cost) -> dict[str, Any]:
    """A run of a kernel with a flow that is trained first."""
    import pyro

    from pyro_flowsamp import IMH, AutoFlow, FitOptions, LatentHMC, VectorizedMCMC

    watch = Stopwatch(process_time)
    pyro.set_rng_seed(seed)
    flow = "gaussian" if sampler == BASELINE else None
    guide = AutoFlow(target, flow=flow, options=FitOptions(progress=False))
    kernel = IMH(guide=guide) if sampler == "imh" else LatentHMC(guide=guide, trajectory="adapted")
    run = VectorizedMCMC(kernel, 1, WARMUP, CHAINS, disable_progbar=True)
    run.run()
    fixed = {"fixed_seconds": watch.seconds, "fixed_cost": cost.total}

    def extend(more: int) -> None:
        run.resume(more, append=True)

    def looked_at() -> np.ndarray:
        return parts(run.unconstrained.numpy())

    looks = look_until(extend, looked_at, watch, FIRST, goal=goal, limit=LIMIT)
    return {
        **fixed,
        "seconds": watch.seconds - fixed["fixed_seconds"],
        "cost": cost.total - fixed["fixed_cost"],
        "ess": looks[-1].ess,
        "r_hat": looks[-1].r_hat,
        "draws": looks[-1].draws,
    }


def by_sample(target: Any, seed: int, goal: float, cost: Cost) -> dict[str, Any]:
    """A run of ``sample()``."""
    import torch
    from baselines.leapfrogs import worst_ess_and_r_hat

    import pyro_flowsamp

    watch = Stopwatch(process_time)
    found = pyro_flowsamp.sample(target, ess=goal, seed=seed, progress=False)
    seconds = watch.seconds
    posterior = found["posterior"]
    values = {s.name: torch.as_tensor(posterior[s.name].values) for s in target.sites}
    chains, draws = next(iter(values.values())).shape[:2]
    x = target.pack({k: v.flatten(0, 1).to(target.dtype) for k, v in values.items()})
    ess, r_hat = worst_ess_and_r_hat(parts(x.reshape(chains, draws, -1).numpy()))
    sampling = cost.in_phase("sampling")
    share = found.attrs["seconds_sampling"] / max(
        sum(found.attrs[f"seconds_{p}"] for p in ("start", "training", "pilot", "sampling")), 1e-9
    )
    return {
        "fixed_seconds": seconds * (1 - share),
        "fixed_cost": cost.total - sampling,
        "seconds": seconds * share,
        "cost": sampling,
        "ess": ess,
        "r_hat": r_hat,
        "draws": draws,
        "method": found.attrs["method"],
        "reliable": int(found.attrs["reliable"]),
    }


def measure(name: str, dim: int, sampler: str, seed: int, goal: float) -> dict[str, Any]:
    """One run, in this process."""
    import torch

    torch.set_num_threads(1)
    target = target_of(name, dim)
    cost = Cost(target)
    with warnings.catch_warnings(record=True) as issued, cost.counted():
        warnings.simplefilter("always")
        try:
            if sampler == "sample":
                found = by_sample(target, seed, goal, cost)
            else:
                found = by_kernel(target, sampler, seed, goal, cost)
        except (RuntimeError, ValueError) as error:
            return {"failure": f"{type(error).__name__}: {error}"[:500]}
    said = sorted({str(w.message)[:300] for w in issued if w.category is UserWarning})
    return {**found, "warnings": said}


def run(name: str, dim: int, sampler: str, goal: float, seed: int) -> dict[str, Any]:
    """One run in a new process."""
    arguments = ["--one", name, str(dim), sampler, "--seeds", str(seed), "--goal", str(goal)]
    try:
        return measured(Path(__file__).resolve(), arguments, LIMIT + GRACE)
    except RuntimeError as error:
        return {"failure": str(error)[-500:]}


# ---- the page ------------------------------------------------------------------------------------


def of_a_draw(result: Mapping[str, Any], name: str) -> float | None:
    """The cost or the seconds of an effective draw; None without draws."""
    return result[name] / result["ess"] if result.get("ess", 0) > 0 else None


def total(result: Mapping[str, Any], goal: float) -> float | None:
    """The cost of a number of effective draws, the fixed cost included."""
    each = of_a_draw(result, "cost")
    return None if each is None else result["fixed_cost"] + goal * each


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """The slope of the logarithms of points (dimension, cost); None for fewer than two."""
    if len(points) < 2:
        return None
    x, y = np.log(np.array(points)).T
    return float(np.polyfit(x, y, 1)[0])


HEADER = [
    "target",
    "d",
    "sampler",
    "fixed cost, gradients",
    "gradients of an effective draw",
    "fixed, s",
    "ms of an effective draw",
    "ESS",
    "largest R-hat",
]


def line(name: str, dim: int, sampler: str, result: Mapping[str, Any]) -> list[object]:
    """The line of the table of one run."""
    if "ess" not in result:
        word = "failed" if "failure" in result else "stopped"
        return [name, dim, sampler, word, *["–"] * (len(HEADER) - 4)]
    each, seconds = of_a_draw(result, "cost"), of_a_draw(result, "seconds")
    return [
        name,
        dim,
        sampler,
        number(result["fixed_cost"]),
        "–" if each is None else number(each),
        f"{result['fixed_seconds']:.3g}",
        "–" if seconds is None else f"{1000 * seconds:.3g}",
        f"{result['ess']:.0f}",
        f"{result['r_hat']:.3f}",
    ]


def table(store: Path, targets: Sequence[str], dims: Sequence[int], samplers: Sequence[str]) -> str:
    """A line for each stored run, slopes, and where flows pay."""
    lines, remarks = [], []
    for name in targets:
        found = {
            (dim, sampler): load(store, f"{name}-{dim}-{sampler}")[0]
            for dim in dims
            for sampler in samplers
            if load(store, f"{name}-{dim}-{sampler}")
        }
        lines += [line(name, *key, result) for key, result in found.items()]
        for sampler in samplers:
            costs = [(d, of_a_draw(r, "cost")) for (d, s), r in found.items() if s == sampler]
            known = slope([(d, c) for d, c in costs if c])
            if known is not None:
                remarks.append(f"- {name}, {sampler}: the slope is {known:.2f}.")
        remarks += where_flows_pay(name, found)
        remarks += [
            f"- {name}, d = {dim}, {sampler}: failed, {r['failure'].splitlines()[-1][:200]}"
            for (dim, sampler), r in found.items()
            if "failure" in r
        ]
    return "\n".join([markdown(HEADER, lines), "", *remarks]).rstrip()


def where_flows_pay(
    name: str, found: Mapping[tuple[int, str], Mapping[str, Any]], goal: float = GOAL
) -> list[str]:
    """A line on the dimensions in which a flow costs less than the Gaussian alone."""
    lines = []
    for sampler in sorted({s for _, s in found} - {BASELINE}):
        pays: dict[bool, list[int]] = {True: [], False: []}
        for dim in sorted({d for d, s in found if s == sampler}):
            own, other = (found.get((dim, s), {}) for s in (sampler, BASELINE))
            costs = [total(r, goal) if "ess" in r else None for r in (own, other)]
            if costs[1] is not None:
                pays[costs[0] is not None and costs[0] < costs[1]].append(dim)
        if pays[True] or pays[False]:
            yes, no = (", ".join(map(str, pays[key])) or "none" for key in (True, False))
            lines.append(
                f"- {name}, {sampler}: d in which {goal} effective draws cost less than by the "
                f"Gaussian alone: {yes}; and more: {no}."
            )
    return lines


PREFACE = """# Work as the dimension grows

Made by `python examples/benchmarks/suites/dimension.py --table --write` from the stored runs in
`examples/benchmarks/results/dimension.jsonl`; without `--table` it runs what is missing.

The fixed cost is that of training and warm-up, in gradients (a density without one is a third). An
effective draw is one of the worst coordinate or squared coordinate. Seconds are those of the
process on one thread, compilation included. `imh` and `hmc` are IMH and adapted LatentHMC with the
flow that `AutoFlow` chooses, `gaussian-hmc` is adapted LatentHMC with a Gaussian alone. A run that
is not in the table has not been made.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=3, metavar=("TARGET", "DIM", "SAMPLER"))
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--dims", type=int, nargs="+", default=list(DIMS))
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=SAMPLERS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--goal", type=float, default=GOAL, help="effective draws")
    add_options(parser)
    args = parser.parse_args()
    if args.one:
        name, dim, sampler = args.one
        print(json.dumps(measure(name, int(dim), sampler, args.seeds[0], args.goal)))
        return
    if args.smoke:
        args.targets, args.dims, args.samplers = ["gaussian"], [5], ["imh", BASELINE]
        args.goal = SMOKE_GOAL
    store = args.results / STUDY
    if not (args.table or args.write):
        runs: dict[str, Callable[[int], dict[str, Any]]] = {
            f"{name}-{dim}-{sampler}": partial(run, name, dim, sampler, args.goal)
            for dim in args.dims
            for name in args.targets
            for sampler in args.samplers
        }
        collect_measured(store, runs, args.seeds, "")
    text = table(store, args.targets, args.dims, args.samplers)
    print(text)
    if args.write:
        (DOCS / "dimension.md").write_text(f"{PREFACE}{text}\n")


if __name__ == "__main__":
    main()
