r"""NUTS on the benchmark models, with Pyro and with NumPyro: the times to beat.

::

    python examples/benchmarks/baselines/nuts.py --model eight_schools --sampler numpyro --seed 0

prints one measurement as JSON. Compilation counts, so take each measurement in a new process, as
here; imports do not count. With :math:`f` the seconds spent whatever the number of draws
(compilation and warm-up), :math:`s` those of sampling, and :math:`e` the least bulk effective
sample size of any scalar latent variable, the time to 10 000 effective draws is
:math:`f + s \cdot 10^4 / e`.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import arviz as az
import numpy as np
import pyro
import torch
from pyro.infer import MCMC, NUTS

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from problems.models import load


def numpyro_models() -> dict[str, Callable[..., None]]:
    """Returns the models of ``problems`` in NumPyro: same sites, arguments and density."""
    from baselines.numpyro_models import MODELS

    return MODELS


def numpyro_nuts(
    name: str,
    seed: int,
    num_samples: int = 2500,
    warmup: int = 500,
    chain_method: str = "vectorized",
) -> dict[str, Any]:
    """Measures NumPyro's NUTS: 4 chains of ``num_samples`` draws each, in float32.

    Arguments:
        name: Of the model.
        seed: Of the random numbers.
        num_samples, warmup: Draws and warm-up steps of each chain.
        chain_method: ``"vectorized"``, or ``"parallel"`` on 4 virtual CPU devices. The latter
            compiles faster, but JAX must not have been used before in this process.

    A second ``MCMC.run``, or one after ``MCMC.warmup``, compiles its loop again, so it does not
    tell what sampling takes. The kernel's own step does: compiled first, then timed on as many
    draws, from where the chains stopped.
    """
    import jax
    from numpyro import set_host_device_count
    from numpyro.infer import MCMC, NUTS

    parallel = chain_method == "parallel"
    if parallel:
        set_host_device_count(4)
    jax.config.update("jax_enable_compilation_cache", False)
    data = tuple(np.asarray(x) for x in load(name)[1])
    key = jax.random.PRNGKey(seed)
    kernel = NUTS(numpyro_models()[name])
    mcmc = MCMC(
        kernel,
        num_warmup=warmup,
        num_samples=num_samples,
        num_chains=4,
        chain_method=chain_method,
        progress_bar=False,
    )
    start = perf_counter()
    mcmc.run(key, *data)
    draws = jax.block_until_ready(mcmc.get_samples(group_by_chain=True))
    seconds = perf_counter() - start

    def step(state, _):
        state = kernel.sample(state, data, {})
        return state, state.z

    def sample(state):
        return jax.lax.scan(step, state, length=num_samples)[1]

    compiled = (jax.pmap if parallel else jax.jit)(sample).lower(mcmc.last_state).compile()
    start = perf_counter()
    jax.block_until_ready(compiled(mcmc.last_state))
    return report(draws, seconds, sampling=perf_counter() - start)


def pyro_nuts(
    name: str, seed: int, num_samples: int = 1000, warmup: int = 300, jit: bool = True
) -> dict[str, Any]:
    """Measures Pyro's NUTS: one chain, on one thread, in float32.

    Of its settings these were the fastest on a shared machine with 2 cores: without ``jit``
    (``jit_compile``) a step took up to twice as long, and a second thread did not help.
    """
    model, data = load(name)
    pyro.set_rng_seed(seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    warm = 0.0

    def hook(kernel: NUTS, params: dict, stage: str, i: int) -> None:
        nonlocal warm
        if stage == "Warmup":
            warm = perf_counter()

    kernel = NUTS(model, jit_compile=jit, ignore_jit_warnings=True)
    mcmc = MCMC(
        kernel, num_samples=num_samples, warmup_steps=warmup, hook_fn=hook, disable_progbar=True
    )
    start = perf_counter()
    mcmc.run(*data)
    end = perf_counter()
    torch.set_num_threads(threads)
    return report(mcmc.get_samples(group_by_chain=True), end - start, sampling=end - warm)


def report(draws: dict[str, Any], seconds: float, sampling: float) -> dict[str, Any]:
    """Returns the results to store for draws ``{site: (chains, draws, ...)}``."""
    arrays = {name: np.asarray(x) for name, x in draws.items()}
    ess = min(float(x.min()) for x in az.ess(arrays, method="bulk").values())
    return {
        "seconds": seconds,
        "sampling_seconds": sampling,
        "seconds_to_10000": seconds - sampling + sampling * 10_000 / ess,
        "min_bulk_ess": ess,
        "num_draws": int(np.prod(next(iter(arrays.values())).shape[:2])),
        "posterior_means": {name: x.mean((0, 1)).tolist() for name, x in arrays.items()},
    }


SAMPLERS: dict[str, Callable[..., dict[str, Any]]] = {
    "numpyro": numpyro_nuts,
    "numpyro-parallel": partial(numpyro_nuts, chain_method="parallel"),
    "pyro": pyro_nuts,
    "pyro-eager": partial(pyro_nuts, jit=False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="One measurement of NUTS, as JSON.")
    parser.add_argument(
        "--model", required=True, choices=["eight_schools", "german_credit", "radon"]
    )
    parser.add_argument("--sampler", required=True, choices=list(SAMPLERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-samples", type=int, help="draws per chain")
    parser.add_argument("--warmup", type=int, help="warm-up steps per chain")
    args = parser.parse_args()
    options = {"num_samples": args.num_samples, "warmup": args.warmup}
    options = {k: v for k, v in options.items() if v is not None}
    print(json.dumps(SAMPLERS[args.sampler](args.model, args.seed, **options)))


if __name__ == "__main__":
    main()
