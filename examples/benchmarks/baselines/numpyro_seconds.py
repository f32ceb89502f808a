"""Seconds of NumPyro's NUTS until the worst parameter has enough effective draws.

::

    python examples/benchmarks/baselines/numpyro_seconds.py --model radon --data radon.npz \
        --draws draws.npy --method vectorized --seed 0

prints one measurement as JSON, and writes the unconstrained draws. It needs NumPyro and ArviZ, and
no torch: the data come from a file that ``suites/head_to_head.py`` writes. Compilation and warm-up
count, imports do not.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from baselines.leapfrogs import log_densities, read
from baselines.looks import Stopwatch, look_until, summary, use_cores

CHAINS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True, help="file of suites/head_to_head.py")
    parser.add_argument("--draws", type=Path, help="file for the draws")
    parser.add_argument("--densities", action="store_true", help="only log densities, in float64")
    parser.add_argument("--method", choices=["vectorized", "parallel"], default="vectorized")
    parser.add_argument("--double", action="store_true", help="float64 and not float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--goals", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--warmup", type=int, default=1000)
    parser.add_argument("--block", type=int, default=50, help="draws of each chain in one call")
    parser.add_argument("--first", type=int, default=250, help="draws of each at the first look")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds")
    parser.add_argument("--cores", type=int, default=1)
    args = parser.parse_args()
    use_cores(args.cores)
    parallel = args.method == "parallel"
    if parallel:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={CHAINS}"
    import jax
    from numpyro.infer import NUTS

    from baselines.numpyro_models import MODELS

    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_enable_x64", args.double or args.densities)
    model, problem = MODELS[args.model], read(args.data)
    if args.densities:
        print(json.dumps({"log_densities": log_densities(model, problem).tolist()}))
        return
    kernel = NUTS(model)
    keys = jax.random.split(jax.random.PRNGKey(args.seed), CHAINS)
    watch, parts = Stopwatch(), []
    if parallel:
        states = [kernel.init(key, args.warmup, None, problem.data, {}) for key in keys]
        state = jax.tree.map(lambda *fields: jax.numpy.stack(fields), *states)
    else:
        state = kernel.init(keys, args.warmup, None, problem.data, {})

    def step(state, _):
        state = kernel.sample(state, problem.data, {})
        lead = () if parallel else (CHAINS,)
        flat = [state.z[name].reshape(*lead, -1) for name in problem.names]
        return state, jax.numpy.concatenate(flat, -1)

    def scan(state):
        return jax.lax.scan(step, state, length=args.block)

    run = jax.pmap(scan) if parallel else jax.jit(scan)

    def block() -> np.ndarray:
        nonlocal state
        state, x = run(state)
        x = np.asarray(x)
        return x if parallel else x.swapaxes(0, 1)

    for _ in range(-(-args.warmup // args.block)):
        block()
    fixed = watch.seconds

    def extend(more: int) -> None:
        for _ in range(-(-more // args.block)):
            parts.append(block())
            if watch.seconds >= args.limit:
                return

    looks = look_until(
        extend,
        lambda: np.concatenate(parts, 1),
        watch,
        args.first,
        goal=max(args.goals),
        limit=args.limit,
    )
    np.save(args.draws, np.concatenate(parts, 1))
    print(json.dumps(summary(fixed, looks, args.goals)))


if __name__ == "__main__":
    main()
