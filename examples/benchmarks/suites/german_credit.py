"""Logistic regression on the German credit data, d = 25: when the Gaussian is enough.

::

    python examples/benchmarks/suites/german_credit.py

prints how good the Gaussian alone and the trained flow are as proposals, then draws by IMH and by
LatentMALA; both must tell the same posterior.

It takes a quarter of a minute of one core.
"""

import argparse
import sys
import time
from pathlib import Path

import arviz as az
import pyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from problems.models import load

from pyro_flowsamp import IMH, AutoFlow, FitOptions, LatentMALA, VectorizedMCMC, to_arviz


def train(seed: int, smoke: bool, may_stop: bool) -> AutoFlow:
    """Trains a guide that may stop at the Gaussian, or one that always trains couplings too."""
    pyro.set_rng_seed(seed)
    model, data = load("german_credit")
    enough = FitOptions().stop_at_ess if may_stop else 0.999
    steps = 50 if smoke else 400
    guide = AutoFlow(model, options=FitOptions(max_steps=steps, stop_at_ess=enough))
    guide.fit(*data)
    return guide


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chains", type=int, default=200)
    parser.add_argument("--draws", type=int, default=200, help="per chain")
    parser.add_argument("--smoke", action="store_true", help="seconds, for the tests")
    args = parser.parse_args()
    if args.smoke:
        args.chains, args.draws = 20, 100
    model, data = load("german_credit")

    for may_stop in (True, False):
        history = train(args.seed, args.smoke, may_stop).history
        name = "default" if may_stop else "couplings forced"
        print(f"{name}: Gaussian ESS {history.gaussian_ess:.3f}, final ESS", end=" ")
        print(f"{history.final_ess:.3f}, stopped: {history.stopped}, {history.seconds:.1f} s")

    guide = train(args.seed, args.smoke, may_stop=True)
    means = {}
    for kernel in (IMH(model, guide=guide), LatentMALA(model, guide=guide)):
        mcmc = VectorizedMCMC(kernel, args.draws, warmup_steps=100, num_chains=args.chains)
        start = time.perf_counter()
        mcmc.run(*data)
        seconds = time.perf_counter() - start
        table = az.summary(to_arviz(mcmc, log_likelihood=False), round_to=4)
        name = type(kernel).__name__
        means[name] = table["mean"]
        accepted = float(mcmc.statistics["accepted"].double().mean())
        print(f"{name}: acceptance {accepted:.3f}, least bulk ESS", end=" ")
        print(f"{table['ess_bulk'].min():.0f} in {seconds:.1f} s")
    print(table.to_string())
    difference = (means["IMH"] - means["LatentMALA"]).abs() / table["sd"]
    print(f"largest difference of means between the kernels: {difference.max():.4f} sd")


if __name__ == "__main__":
    main()
