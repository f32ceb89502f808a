r"""Traced and compiled densities beside the density itself: seconds of a value with gradient.

::

    python examples/benchmarks/suites/traced.py                        # what is missing, the table
    python examples/benchmarks/suites/traced.py --problems garch --sizes 1 1000
    python examples/benchmarks/suites/traced.py --steps                # of kernels, and their table
    python examples/benchmarks/suites/traced.py --table --write        # and docs/traced.md
    python examples/benchmarks/suites/traced.py --smoke                # one posterior, no compiler

A run evaluates the log density with its gradient at N points in three ways: through Pyro, ``vmap``
and autograd ("eager"); by the recorded graph of ATen operations ("traced"); and by that graph
compiled with TorchInductor ("compiled"). The seconds are those of the process on one thread, and
not of the clock, so that other processes on the machine disturb them less. They are the least of
several repetitions. What it takes to record and to compile is measured too.

"The same numbers" tells whether values and gradients of the traced graph are those of the eager
density to the last bit, at points that it was not recorded with. The difference of the compiled
graph is the largest one, in units of the rounding error of the largest entry of a row.

With ``--steps`` a run makes whole steps of a kernel in these three ways, the flow included, with
1000 chains and a flow of four affine couplings that has hardly been trained. The three ways take
turns, several times, and the ratios are those of one turn, so that what else the machine does
disturbs them less. It is a rough guide all the same.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from stored_runs import DOCS, add_options, collect_measured, load, markdown, measured

STUDY = "traced.jsonl"  #: the file of its stored runs
NAMES = {
    "eight_schools": "eight schools",
    "student_hierarchy": "hierarchical Student-t",
    "german_credit": "logistic, 1000 × 24",
    "garch": "GARCH, 200 returns",
    "stochastic_volatility": "stochastic volatility, 500",
    "random_walk": "random walk, 450",
    "gaussian_process": "GP regression",
    "hidden_markov": "hidden Markov model, 40 times",
    "garch_200_scan": "GARCH, 200 returns, scan",
    "garch_1000_loop": "GARCH, 1000 returns",
    "garch_1000_scan": "GARCH, 1000 returns, scan",
    "autoregression_200_loop": "latent AR(1), 200",
    "autoregression_200_scan": "latent AR(1), 200, scan",
    "autoregression_1000_loop": "latent AR(1), 1000",
    "autoregression_1000_scan": "latent AR(1), 1000, scan",
}
SIZES = (1, 1000)  #: points of a batch
SMOKE, SMOKE_SIZES = ("eight_schools",), (8,)
STEPS = ("eight_schools", "german_credit")  #: posteriors of steps of kernels
KERNELS = ("IMH", "LatentMALA", "LatentHMC", "LocalGlobalHMC")
CHAINS, SMOKE_CHAINS = 1000, 20
TURNS = 5  #: in which eager, traced and compiled steps are timed one after the other
MIN_STEPS, TURN_SECONDS = 8, 1.0  #: of one way in one turn
SECONDS = 2.0  #: of the process that the repetitions of one way take at least
LEAST, MOST = 3, 200  #: repetitions
LIMIT = 900.0  #: seconds after which a run is stopped


def student_hierarchy(y: Any) -> None:
    """Groups of Student-t observations with a common scale and degrees of freedom."""
    import pyro
    import pyro.distributions as dist

    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(2.0))
    nu = pyro.sample("nu", dist.Gamma(2.0, 0.1))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
    with pyro.plate("groups", y.shape[1]):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        with pyro.plate("observations", y.shape[0]):
            pyro.sample("y", dist.StudentT(nu, theta, sigma), obs=y)


def target_of(name: str) -> Any:
    """The target of a posterior, in the dtype in which it is sampled."""
    import torch

    from pyro_flowsamp.target import as_target

    if name == "student_hierarchy":
        generator = torch.Generator().manual_seed(0)
        return as_target(student_hierarchy, torch.randn(20, 21, generator=generator))
    from problems.known import PROBLEMS
    from problems.recurrences import RECURRENCES

    if name in RECURRENCES:
        model, data = RECURRENCES[name]()
        return as_target(model, *data)
    torch.set_default_dtype(torch.float64 if PROBLEMS[name].double else torch.float32)
    model, data = PROBLEMS[name].make()
    return as_target(model, *data)


def seconds_of(function: Callable[[], Any]) -> float:
    """The least seconds of the process that a call takes, of several."""
    function()
    found, begin = [], process_time()
    while len(found) < LEAST or (process_time() - begin < SECONDS and len(found) < MOST):
        start = process_time()
        function()
        found.append(process_time() - start)
    return min(found)


def measure(name: str, num: int, with_compiler: bool = True) -> dict[str, Any]:
    """One run, in this process."""
    import torch

    from pyro_flowsamp.target.batching import value_and_grad
    from pyro_flowsamp.target.compiling import CompiledGraph
    from pyro_flowsamp.target.graphs import UntraceableError, record
    from pyro_flowsamp.target.held_values import HeldValues
    from pyro_flowsamp.target.options import TracingOptions

    torch.set_num_threads(1)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = target_of(name)
    density = target.density.density.density
    x, fresh = (0.3 * torch.randn(num, target.dim, dtype=target.dtype) for _ in range(2))
    result: dict[str, Any] = {"d": target.dim, "dtype": str(target.dtype), "num": num}
    result["eager"] = seconds_of(lambda: value_and_grad(density, x, None))
    held = HeldValues(density)
    record(lambda x, c: -x.square().sum(-1), x, None, {})  # imports what recording needs
    start = process_time()
    try:
        graph = record(density, x, None, held.tensors)
    except UntraceableError as error:
        return {**result, "reason": str(error)}
    result |= {"recording": process_time() - start, "operations": graph.operations}
    own, other = value_and_grad(density, fresh, None), graph.value_and_grad(fresh, None)
    result["same"] = all(torch.equal(a, b) for a, b in zip(own, other))
    result["traced"] = seconds_of(lambda: graph.value_and_grad(x, None))
    if not with_compiler:
        return result
    if graph.operations > TracingOptions().max_operations:
        most = TracingOptions().max_operations
        return {**result, "not_compiled": f"more than {most} operations, so that it is not used"}
    start = process_time()
    try:
        compiled = CompiledGraph(graph, x, None, gradient=True)
    except UntraceableError as error:
        return {**result, "not_compiled": str(error)}
    result["compiling"] = process_time() - start
    result["difference"] = largest_difference(compiled(fresh, None), other)
    result["compiled"] = seconds_of(lambda: compiled(x, None))
    return result


def steps_of(kernel: Any, chains: int, way: str) -> Callable[[int], Any]:
    """A function that makes so many steps of a kernel in one way, after those that prepare it."""
    import pyro

    from pyro_flowsamp import TracingOptions

    kernel.compile_mode = way != "eager"
    kernel.setup(0)
    kernel.target.tracing = TracingOptions(compiler=way == "compiled")
    kernel.prepare(0)
    pyro.set_rng_seed(0)
    state = kernel.start(chains)

    def make(count: int) -> Any:
        nonlocal state
        for _ in range(count):
            state, _ = kernel.step(state)
        return state.x

    return make


def measure_steps(name: str, kernel_name: str, chains: int, with_compiler: bool) -> dict[str, Any]:
    """One run of steps, in this process."""
    import pyro
    import torch

    import pyro_flowsamp
    from pyro_flowsamp import AutoFlow, FitOptions

    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    options = FitOptions(max_steps=2, progress=False)
    makers: dict[str, Callable[[int], Any]] = {}
    found: dict[str, Any] = {}
    result: dict[str, Any] = {"chains": chains}
    for way in ("eager", "traced", *(["compiled"] if with_compiler else [])):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pyro.set_rng_seed(0)
            target = target_of(name)
            guide = AutoFlow(target, flow="coupling", options=options)
            guide.fit()
        kernel = getattr(pyro_flowsamp, kernel_name)(guide=guide)
        makers[way] = steps_of(kernel, chains, way)
        start = process_time()
        makers[way](1)
        result[f"first_{way}"] = process_time() - start
        found[way] = makers[way](9)
        result[f"difference_{way}"] = float((found[way] - found["eager"]).abs().max())
        if kernel.step_graphs.reasons:
            result["reasons"] = kernel.step_graphs.reasons
    start = process_time()
    makers["eager"](MIN_STEPS)
    each = (process_time() - start) / MIN_STEPS
    count = max(MIN_STEPS, int(TURN_SECONDS / each))
    turns: list[dict[str, float]] = []
    for _ in range(TURNS):
        turns.append({})
        for way, make in makers.items():
            start = process_time()
            make(count)
            turns[-1][way] = count / (process_time() - start)
    return {**result, "d": target.dim, "steps": count, "rates": turns}


def largest_difference(found: Sequence[Any], other: Sequence[Any]) -> float:
    """The largest difference in units of rounding errors of the largest entry of its row."""
    import torch

    worst = 0.0
    for a, b in zip(found, other):
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        size = 1 + b.nan_to_num(posinf=0.0, neginf=0.0).abs().amax(-1, keepdim=True)
        gap = ((a - b).abs() / (torch.finfo(b.dtype).eps * size)).nan_to_num(nan=0.0)
        worst = max(worst, float(gap.max()))
    return worst


def run_steps(
    name: str, kernel: str, chains: int, with_compiler: bool, seed: int
) -> dict[str, Any]:
    """One run of steps in a new process."""
    arguments = ["--one", name, "--kernel", kernel, "--chains", str(chains)]
    arguments += [] if with_compiler else ["--no-compiler"]
    return measured(Path(__file__).resolve(), arguments, LIMIT)


def run(name: str, num: int, with_compiler: bool, seed: int) -> dict[str, Any]:
    """One run in a new process, because what a compiler leaves in memory must not help the next."""
    arguments = ["--one", name, "--sizes", str(num)]
    arguments += [] if with_compiler else ["--no-compiler"]
    return measured(Path(__file__).resolve(), arguments, LIMIT)


# ---- the page ------------------------------------------------------------------------------------

HEADER = [
    "posterior",
    "d",
    "points",
    "operations",
    "eager, ms",
    "traced, ms",
    "compiled, ms",
    "eager / traced",
    "eager / compiled",
    "recording, s",
    "compiling, s",
    "the same numbers",
    "difference of compiled",
]


def milliseconds(seconds: float | None) -> str:
    """Seconds in milliseconds, with three digits."""
    return "–" if seconds is None else f"{1000 * seconds:.3g}"


def cells(name: str, result: dict[str, Any]) -> list[object]:
    """The line of the table of one run."""
    if "d" not in result:
        return [NAMES[name], "–", "–", f"stopped after {LIMIT:.0f} s", *["–"] * (len(HEADER) - 4)]
    traced, compiled = result.get("traced"), result.get("compiled")
    ratios = [f"{result['eager'] / s:.1f}" if s else "–" for s in (traced, compiled)]
    costs = [f"{result[k]:.2g}" if k in result else "–" for k in ("recording", "compiling")]
    return [
        NAMES[name],
        result["d"],
        result["num"],
        result.get("operations", "–"),
        milliseconds(result["eager"]),
        milliseconds(traced),
        milliseconds(compiled),
        *ratios,
        *costs,
        {True: "yes", False: "no", None: "–"}[result.get("same")],
        f"{result['difference']:.2g} eps" if "difference" in result else "–",
    ]


def table(store: Path, names: Sequence[str], sizes: Sequence[int]) -> str:
    """A line for each posterior and number of points that is stored, and what went wrong."""
    lines, remarks = [], []
    for name in names:
        for num in sizes:
            for result in load(store, f"{name}-{num}")[:1]:
                lines.append(cells(name, result))
                for key, words in (("reason", "not traced"), ("not_compiled", "not compiled")):
                    if key in result:
                        remarks.append(f"- {NAMES[name]}, {num} points: {words}, {result[key]}.")
    return "\n".join([markdown(HEADER, lines), "", *remarks]).rstrip()


STEPS_HEADER = [
    "posterior",
    "d",
    "kernel",
    "eager, steps/s",
    "traced, steps/s",
    "compiled, steps/s",
    "traced / eager",
    "compiled / eager",
    "first step compiled, s",
    "largest difference after ten: traced, compiled",
]


def ratio(turns: Sequence[dict[str, float]], way: str) -> str:
    """The median of the ratios to eager steps, and the least and the largest."""
    if way not in turns[0]:
        return "–"
    ratios = sorted(turn[way] / turn["eager"] for turn in turns)
    return f"{ratios[len(ratios) // 2]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def rate(turns: Sequence[dict[str, float]], way: str) -> str:
    """The median of steps per second."""
    return f"{sorted(turn[way] for turn in turns)[len(turns) // 2]:.3g}" if way in turns[0] else "–"


def steps_table(store: Path, names: Sequence[str], kernels: Sequence[str]) -> str:
    """A line for each posterior and kernel that is stored, and what went wrong."""
    lines, remarks = [], []
    for name in names:
        for kernel in kernels:
            for result in load(store, f"{name}-steps-{kernel}")[:1]:
                if "rates" not in result:
                    lines.append([NAMES[name], "–", kernel, "stopped", *["–"] * 6])
                    continue
                turns = result["rates"]
                gaps = [result.get(f"difference_{way}") for way in ("traced", "compiled")]
                lines.append(
                    [
                        NAMES[name],
                        result["d"],
                        kernel,
                        *(rate(turns, way) for way in ("eager", "traced", "compiled")),
                        *(ratio(turns, way) for way in ("traced", "compiled")),
                        f"{result.get('first_compiled', float('nan')):.2g}",
                        ", ".join("–" if gap is None else f"{gap:.2g}" for gap in gaps),
                    ]
                )
                for part, reason in result.get("reasons", {}).items():
                    remarks.append(f"- {NAMES[name]}, {kernel}, part {part!r}: {reason}.")
    return "\n".join([markdown(STEPS_HEADER, lines), "", *remarks]).rstrip()


STEPS_PREFACE = f"""
## Steps of kernels

Whole steps of {CHAINS} chains with a flow of four affine couplings, per second of the process on
one thread, made in the same three ways (`--steps`). A step runs graphs of its parts: a leapfrog
step with the flow and the density in it, the decision, the proposals of IMH for several steps at
once. The ways take turns; a ratio is the median of {TURNS} turns, with the least and the largest in
brackets. "First step compiled" is the time that recording and compiling take, less what the
compiler's cache on disk has of earlier runs. The difference is
that of the positions after ten steps, from the same seed. Other programs ran beside these runs, so
that they are a rough guide.

"""

PREFACE = """# Traced and compiled densities

Made by `python examples/benchmarks/suites/traced.py --table --write` from the stored runs in
`examples/benchmarks/results/traced.jsonl`; without options it runs what is missing.

The seconds of one log density with its gradient at a number of points: through Pyro, `vmap` and
autograd ("eager"), by the recorded graph of its operations ("traced"), and by that graph compiled
with TorchInductor ("compiled"). A target goes from one to the next by itself (`compile_mode`). The
seconds are those of the process on one thread, the least of several repetitions. The machine was
shared with other programs, so that single ratios may be off by a factor of 1.5.

"The same numbers": values and gradients of the traced graph are those of the eager density to the
last bit, at points that it was not recorded with. The difference of the compiled graph from the
traced one is the largest over points and coordinates, in rounding errors of the largest entry of a
gradient. "–" was not measured. The models with a scan are those of
`examples/benchmarks/problems/recurrences.py`, and so is the loop of 1000 returns.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", metavar="PROBLEM", help="run in this process, for one size")
    parser.add_argument("--problems", nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument(
        "--steps", action="store_true", help="steps of kernels, in place of densities"
    )
    parser.add_argument("--kernel", choices=KERNELS, help="of --one")
    parser.add_argument("--chains", type=int, default=CHAINS, help="of steps")
    parser.add_argument("--no-compiler", action="store_true", help="eager and traced only")
    add_options(parser)
    args = parser.parse_args()
    if args.one and args.kernel:
        print(json.dumps(measure_steps(args.one, args.kernel, args.chains, not args.no_compiler)))
        return
    if args.one:
        print(json.dumps(measure(args.one, args.sizes[0], not args.no_compiler)))
        return
    if args.smoke:
        args.problems, args.sizes, args.no_compiler = list(SMOKE), list(SMOKE_SIZES), True
        args.chains = SMOKE_CHAINS
    store = args.results / STUDY
    kernels = KERNELS[:1] if args.smoke else KERNELS
    posteriors = [name for name in STEPS if name in args.problems]
    if args.steps and not (args.table or args.write):
        runs = {
            f"{name}-steps-{kernel}": partial(
                run_steps, name, kernel, args.chains, not args.no_compiler
            )
            for name in posteriors
            for kernel in kernels
        }
        collect_measured(store, runs, [0], "")
    elif not (args.table or args.write):
        runs = {
            f"{name}-{num}": partial(run, name, num, not args.no_compiler)
            for name in args.problems
            for num in args.sizes
        }
        collect_measured(store, runs, [0], "")
    text = table(store, args.problems, args.sizes)
    text += f"\n{STEPS_PREFACE}{steps_table(store, posteriors, kernels)}"
    print(text)
    if args.write:
        (DOCS / "traced.md").write_text(f"{PREFACE}{text}\n")


if __name__ == "__main__":
    main()
