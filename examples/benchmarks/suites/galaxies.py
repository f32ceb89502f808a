"""82 galaxies, a three-component mixture without an order: six modes of weight 1/6 each.

::

    python examples/benchmarks/suites/galaxies.py

Tempered particles find the modes, a spline flow learns them (forward and reverse KL together), and
IMH makes its draws exact. Chains of NUTS stay in the mode they fall into. One picture shows both.

It prints the shares of the modes by both samplers, and takes minutes.
"""

import argparse
import sys
from itertools import permutations
from pathlib import Path

import matplotlib
import pyro
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from problems.models import load

from pyro_flowsamp import (
    IMH,
    AutoFlow,
    FitOptions,
    Target,
    VectorizedMCMC,
    tempered_smc,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

ORDERS = list(permutations(range(3)))


def occupancy(means: Tensor) -> Tensor:
    """Indicators of the six orders that the components of a draw can be in, ``(..., 6)``."""
    order = means.argsort(-1)
    return torch.stack([(order == torch.tensor(o)).all(-1) for o in ORDERS], -1).double()


def few_particles(target: Target) -> Tensor:
    """A tempered ensemble for the tests: too small to be right."""
    return tempered_smc(target, 200, mcmc_steps=1, target_ess=0.3).x


def sample_flow(seed: int, chains: int, draws: int, smoke: bool) -> VectorizedMCMC:
    """Tempered ensemble → spline flow → IMH."""
    pyro.set_rng_seed(seed)
    model, data = load("galaxies")
    options = FitOptions(max_steps=5 if smoke else 1000, learning_rate=1e-3)
    ensemble = few_particles if smoke else tempered_smc
    guide = AutoFlow(model, flow="spline", ensemble=ensemble, options=options)
    mcmc = VectorizedMCMC(
        IMH(model, guide=guide), num_samples=draws, warmup_steps=100, num_chains=chains
    )
    mcmc.run(*data)
    return mcmc


def sample_nuts(seed: int, chains: int, draws: int) -> Tensor:
    """Component means from chains of Pyro's NUTS, ``(chains, draws, 3)``."""
    model, data = load("galaxies")
    means = []
    for chain in range(chains):
        pyro.set_rng_seed(seed + chain)
        mcmc = MCMC(NUTS(model), num_samples=draws, warmup_steps=draws)
        mcmc.run(*data)
        means.append(mcmc.get_samples()["means"])
    return torch.stack(means)


def report(name: str, means: Tensor) -> Tensor:
    """Prints the weight of each mode with its standard error over chains; returns the weights."""
    per_chain = occupancy(means).mean(1)
    weights = per_chain.mean(0)
    error = per_chain.std(0) / len(per_chain) ** 0.5 if len(per_chain) > 1 else weights * 0
    cells = "  ".join(f"{w:.3f} ± {e:.3f}" for w, e in zip(weights, error))
    visited = (per_chain > 0).sum(-1).double().mean()
    print(f"{name:12s} {cells}   (modes visited by a chain: {visited:.1f})")
    return weights


def picture(flow: Tensor, nuts: Tensor, path: Path) -> None:
    """The six modes, as the flow and as NUTS sees them."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    some = flow.reshape(-1, 3)[torch.randperm(flow.shape[0] * flow.shape[1])[:8000]]
    left.scatter(some[:, 0], some[:, 1], s=2, alpha=0.25, color="0.6", label="flow + IMH")
    for chain, means in enumerate(nuts):
        left.scatter(means[:, 0], means[:, 1], s=6, label=f"NUTS, chain {chain}")
    left.set(xlim=(0, 42), ylim=(0, 42), xlabel="mean of component 0 (1000 km/s)")
    left.set(ylabel="mean of component 1 (1000 km/s)", title="Six modes")
    left.legend(markerscale=3, loc="upper right")
    position = torch.arange(6)
    right.bar(position - 0.2, occupancy(flow).mean((0, 1)), 0.4, color="0.6", label="flow + IMH")
    bottom = torch.zeros(6, dtype=torch.double)
    for chain, means in enumerate(nuts):
        share = occupancy(means).mean(0) / len(nuts)
        right.bar(position + 0.2, share, 0.4, bottom=bottom, label=f"NUTS, chain {chain}")
        bottom = bottom + share
    right.axhline(1 / 6, color="k", lw=1, ls="--")
    right.text(5.45, 1 / 6, "1/6", va="bottom", ha="right")
    right.set_xticks(position, ["".join(map(str, o)) for o in ORDERS])
    right.set(xlabel="order of the components", ylabel="weight", title="Weights of the modes")
    right.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chains", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=500, help="per chain")
    parser.add_argument("--nuts-chains", type=int, default=3)
    parser.add_argument("--nuts-draws", type=int, default=200, help="per chain, after as many")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    parser.add_argument("--smoke", action="store_true", help="seconds, for the tests")
    args = parser.parse_args()
    if args.smoke:
        args.chains, args.draws, args.nuts_chains, args.nuts_draws = 50, 20, 1, 5
    args.out.mkdir(parents=True, exist_ok=True)

    mcmc = sample_flow(args.seed, args.chains, args.draws, args.smoke)
    history = mcmc.kernel.guide.history
    print(
        f"training {mcmc.seconds['training']:.0f} s, importance ESS {history.final_ess:.2f},",
        end=" ",
    )
    print(f"Pareto k {history.pareto_k:.2f}, acceptance", end=" ")
    print(f"{float(mcmc.statistics['accepted'].double().mean()):.2f}")
    flow = mcmc.get_samples(group_by_chain=True)["means"]
    nuts = sample_nuts(args.seed, args.nuts_chains, args.nuts_draws)
    print("order        " + "  ".join(f"{''.join(map(str, o)):13s}" for o in ORDERS))
    report("flow + IMH", flow)
    for chain, means in enumerate(nuts):
        report(f"NUTS {chain}", means[None])
    picture(flow, nuts, args.out / "galaxies.png")
    print(f"wrote {args.out / 'galaxies.png'}")


if __name__ == "__main__":
    main()
