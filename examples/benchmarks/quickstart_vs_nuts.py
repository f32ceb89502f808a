"""Effective draws per second of eight schools: a trained flow with IMH, and Pyro's NUTS.

    python examples/benchmarks/quickstart_vs_nuts.py

Both sample the same model in one process, one after the other, with the same three seeds. The
seconds of the flow include its training and the chains' warm-up, those of NUTS its compilation and
warm-up. Effective draws are ArviZ's bulk effective sample size, the least of all parameters. The
flow makes 50 000 draws and NUTS 400, so that both take seconds; with more draws the fixed costs of
both count for less.

It prints one line, the ratio of the two rates with its standard deviation over the seeds, and takes
half a minute on one core.
"""

import argparse
import statistics
from time import perf_counter

import arviz as az
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS

from pyro_flowsamp import IMH, AutoFlow, FitOptions, VectorizedMCMC

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def model(y: torch.Tensor, sigma: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)


def effective_per_second(mcmc: MCMC | VectorizedMCMC, seed: int) -> float:
    """Runs a sampler and returns its effective draws per second of wall-clock time."""
    pyro.set_rng_seed(seed)
    start = perf_counter()
    mcmc.run(Y, SIGMA)
    seconds = perf_counter() - start
    draws = {name: x.numpy() for name, x in mcmc.get_samples(group_by_chain=True).items()}
    return min(float(x.min()) for x in az.ess(draws, method="bulk").values()) / seconds


def flow(smoke: bool) -> VectorizedMCMC:
    chains, draws, steps = (10, 50, 50) if smoke else (100, 500, 2000)
    guide = AutoFlow(model, options=FitOptions(max_steps=steps, progress=False))
    kernel = IMH(model, guide=guide)
    return VectorizedMCMC(
        kernel, num_samples=draws, warmup_steps=100, num_chains=chains, disable_progbar=True
    )


def nuts(smoke: bool) -> MCMC:
    draws, warmup = (20, 10) if smoke else (400, 200)
    kernel = NUTS(model, jit_compile=True, ignore_jit_warnings=True)
    return MCMC(kernel, num_samples=draws, warmup_steps=warmup, disable_progbar=True)


def shown(values: list[float]) -> str:
    """Formats the mean ± the standard deviation of values over seeds."""
    spread = f" ± {statistics.stdev(values):.0f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.0f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="seconds, for the tests")
    smoke = parser.parse_args().smoke
    seeds = range(1 if smoke else 3)
    ours = [effective_per_second(flow(smoke), seed) for seed in seeds]
    theirs = [effective_per_second(nuts(smoke), seed) for seed in seeds]
    ratios = [a / b for a, b in zip(ours, theirs)]
    print(
        f"Eight schools, {'seed 0' if smoke else 'seeds 0, 1 and 2'}: {shown(ratios)} times as "
        f"many effective draws per second as Pyro's NUTS ({shown(ours)} by flow and IMH, training "
        f"and warm-up included; {shown(theirs)} by NUTS, compilation and warm-up included)"
    )


if __name__ == "__main__":
    main()
