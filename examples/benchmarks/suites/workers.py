"""Scaling over workers: the same work by one process and by two, with one thread each.

    python examples/benchmarks/suites/workers.py

- *credit*: chains of LatentMALA on the German credit data, 50 times over (50 000 rows, d = 25);
- *annealing*: annealed particles of ExpGauss in 100 dimensions, with islands of 256 particles;
- *sample*: sample() on a logistic regression with 4000 rows and 15 slopes;
- *rows*: the first, with the rows shared out in place of the chains, so that sums round otherwise.

It prints seconds without the start of the processes, seconds of the CPU of the busiest worker, the
efficiency by both, that is those of one worker over K times those of K, the messages and bytes of a
worker, and whether one and two workers gave the same draws. Then it prints a model of the cost on 8
nodes with 8 GPUs each, for work of as many units as workers: from the seconds of the CPU of one
worker, the messages, and the latency and bandwidth that are assumed. No such machine was used.

It takes a few minutes of two cores.
"""

import argparse
import hashlib
import json
import sys
from math import log2
from pathlib import Path
from time import perf_counter, process_time

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from stored_runs import measured

COPIES = 50
#: assumed of a network between nodes: seconds of a message, for each doubling of workers, and bytes
#: a second
LATENCY, BANDWIDTH = 20e-6, 10e9
TASKS = ("credit", "annealing", "sample", "rows")


def credit(group, steps: int, copies: int, shared_rows: bool):
    """Draws of the posterior of German credit data, the rows repeated."""
    import torch
    from problems.models import load

    from pyro_flowsamp import AutoFlow, FitOptions, LatentMALA, VectorizedMCMC

    model, (x, bad) = load("german_credit")
    x, bad = x.repeat(copies, 1), bad.repeat(copies)
    if shared_rows:
        x, bad = (rows[group.rank :: group.size] for rows in (x, bad))
    guide = AutoFlow(model, flow="gaussian", options=FitOptions(progress=False))
    target = guide.target_for(x, bad)
    with torch.no_grad():  # the scale of the posterior, without a training
        guide.flow.affine.initialize(torch.zeros(target.dim), torch.full((target.dim,), 0.02))
    guide.trained = True
    run = VectorizedMCMC(LatentMALA(model, guide=guide), steps, steps, 256, disable_progbar=True)
    start = perf_counter(), process_time()
    run.run(x, bad)
    seconds = perf_counter() - start[0], process_time() - start[1]
    every = run.gathered()
    return seconds, None if every is None else every.unconstrained


def annealing(islands: int, moves: int):
    """Particles of ExpGauss in 100 dimensions."""
    import torch

    from pyro_flowsamp import tempered_smc
    from pyro_flowsamp.problems import exp_gauss
    from pyro_flowsamp.smc.starts import TemperedStart

    target = exp_gauss(dim=100, active=10).target
    base = TemperedStart(torch.zeros(100), torch.full((100,), 4.0), target.angles)
    start = perf_counter(), process_time()
    found = tempered_smc(
        target, 256 * islands, islands=islands, mcmc_steps=moves, base=base, check_coverage=False
    )
    return (perf_counter() - start[0], process_time() - start[1]), found.x


def logistic(rows: int):
    """Draws of the slopes of a logistic regression, by the sampler that sample() chooses."""
    import pyro
    import pyro.distributions as dist
    import torch

    import pyro_flowsamp

    def model(x, y):
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(15), 1.0).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=x @ slopes), obs=y)

    generator = torch.Generator().manual_seed(0)
    x, slopes = (torch.randn(*size, generator=generator) for size in ((rows, 15), (15,)))
    y = (torch.rand(rows, generator=generator) < (x @ slopes / 2).sigmoid()).float()
    start = perf_counter(), process_time()
    data = pyro_flowsamp.sample(model, x, y, seed=0, progress=False)
    seconds = perf_counter() - start[0], process_time() - start[1]
    return seconds, torch.as_tensor(data["posterior"]["slopes"].values)


def work(task: str, smoke: bool) -> None:
    """One task by this process and the others, which rank 0 reports as JSON."""
    import pyro
    import torch

    from pyro_flowsamp import WorkersOptions, workers

    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    options = WorkersOptions(chains_per_block=32 if task == "sample" else 128)
    with workers(shard="applicants" if task == "rows" else None, options=options) as group:
        if task == "annealing":
            seconds, draws = annealing(2 if smoke else 8, 1 if smoke else 10)
        elif task == "sample":
            seconds, draws = logistic(100 if smoke else 4000)
        else:
            seconds, draws = credit(
                group, 3 if smoke else 25, 1 if smoke else COPIES, task == "rows"
            )
        wall, cpu = group.largest(torch.tensor(seconds)).tolist()
        told = {"seconds": wall, "cpu": cpu, "messages": group.messages, "bytes": group.sent_bytes}
    if group.rank == 0:
        digest = hashlib.sha256(draws.contiguous().numpy().tobytes()).hexdigest()
        print(json.dumps({**told, "digest": digest[:16]}))


def of_workers(task: str, size: int, smoke: bool) -> dict:
    """Runs a task by so many workers, and returns the report of rank 0."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    keep = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
    return measured(
        Path(__file__).resolve(),
        ["--task", task, *["--smoke"] * smoke],
        launcher=torchrun,
        environment={**keep, "OMP_NUM_THREADS": "1"},
    )


def predicted(one: dict, two: dict, size: int) -> tuple[float, float]:
    """A model of the seconds of so many workers, and of their efficiency.

    The work is divided by K. A message takes the latency times log2 K, and the bytes of a worker
    pass over its link for each of the others.
    """
    messages = two["messages"] * LATENCY * log2(size)
    traffic = two["bytes"] * 2 * (size - 1) / size / BANDWIDTH
    seconds = one["cpu"] / size + messages + traffic
    return seconds, one["cpu"] / (size * seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, help="in this process, which torchrun has started")
    parser.add_argument("--only", choices=TASKS, help="this task alone")
    parser.add_argument("--smoke", action="store_true", help="seconds, for the tests")
    args = parser.parse_args()
    if args.task:
        work(args.task, args.smoke)
        return
    chosen = [args.only] if args.only else TASKS[:1] if args.smoke else TASKS
    for task in chosen:
        one, two = (of_workers(task, size, args.smoke) for size in (1, 2))
        for kind, name in (("seconds", "s"), ("cpu", "s of the CPU")):
            efficiency = one[kind] / (2 * two[kind])
            print(f"{task}: {one[kind]:.1f} {name} by one worker, {two[kind]:.1f} by two", end="")
            print(f", efficiency {efficiency:.2f}")
        print(f"    {two['messages']} messages of", end=" ")
        print(f"{two['bytes'] / 2**20:.2f} MiB in all", end=", ")
        print("the same draws" if one["digest"] == two["digest"] else "other draws", flush=True)
        for size in () if task == "sample" else (8, 64):  # a part of which all workers make
            seconds, efficiency = predicted(one, two, size)
            print(f"    model of {size} workers: {seconds:.2f} s, efficiency {efficiency:.2f}")


if __name__ == "__main__":
    main()
