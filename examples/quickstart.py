"""Eight schools: from a Pyro model to exact draws, an ArviZ summary, a netCDF file and a picture.

::

    python examples/quickstart.py

trains a flow on the posterior, corrects its draws by independent Metropolis–Hastings, prints them
beside posteriordb's reference and the time beside that of Pyro's NUTS.
"""

import time

START = time.perf_counter()

import argparse  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import arviz as az  # noqa: E402
import matplotlib  # noqa: E402
import pyro  # noqa: E402
from pyro.infer import MCMC, NUTS  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent / "benchmarks"))
from problems.models import load  # noqa: E402

from pyro_flowsamp import IMH, AutoFlow, FitOptions, VectorizedMCMC, to_arviz  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

#: Means and standard deviations of posteriordb's eight_schools-eight_schools_noncentered
REFERENCE = {
    "mu": (4.4105, 3.3093),
    "tau": (3.6021, 3.1985),
    "theta[0]": (6.1505, 5.6159),
    "theta[1]": (4.9396, 4.6456),
    "theta[2]": (3.9059, 5.2807),
    "theta[3]": (4.7960, 4.7709),
    "theta[4]": (3.6144, 4.6147),
    "theta[5]": (4.0512, 4.7964),
    "theta[6]": (6.3172, 5.0029),
    "theta[7]": (4.8840, 5.3177),
}


def sample(seed: int, chains: int, draws: int, smoke: bool):
    """Draws by a trained flow; returns the run and its ArviZ data, with theta added."""
    pyro.set_rng_seed(seed)
    model, data = load("eight_schools")
    guide = AutoFlow(model, options=FitOptions(max_steps=100) if smoke else None)
    mcmc = VectorizedMCMC(
        IMH(model, guide=guide), num_samples=draws, warmup_steps=100, num_chains=chains
    )
    mcmc.run(*data)
    idata = to_arviz(mcmc, dims={"z": ["school"]})
    posterior = idata["posterior"]
    posterior["theta"] = posterior["mu"] + posterior["tau"] * posterior["z"]
    return mcmc, idata


def summarize(idata):
    """ArviZ's summary of mu, tau and theta with the reference in two more columns."""
    table = az.summary(idata, var_names=["mu", "tau", "theta"])
    table["reference mean"], table["reference sd"] = zip(*REFERENCE.values())
    return table


def nuts_seconds(seed: int, draws: int) -> tuple[float, float]:
    """Seconds of Pyro's NUTS and the least bulk ESS it reached."""
    pyro.set_rng_seed(seed)
    model, data = load("eight_schools")
    mcmc = MCMC(NUTS(model), num_samples=draws, warmup_steps=draws)
    start = time.perf_counter()
    mcmc.run(*data)
    return time.perf_counter() - start, smallest_ess(mcmc.get_samples(group_by_chain=True))


def smallest_ess(samples) -> float:
    """The least bulk ESS of any latent scalar."""
    arrays = {name: value.numpy() for name, value in samples.items()}
    return min(float(ess.min()) for ess in az.ess(arrays, method="bulk").values())


def picture(idata, path: Path) -> None:
    """School effects against the reference, and the funnel of mu and tau."""
    posterior = idata["posterior"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    theta = posterior["theta"].values.reshape(-1, 8)
    for school in range(8):
        mean, sd = REFERENCE[f"theta[{school}]"]
        left.plot([mean - sd, mean + sd], [school - 0.15] * 2, color="tab:orange", lw=5, alpha=0.5)
        centre, spread = theta[:, school].mean(), theta[:, school].std()
        left.plot([centre - spread, centre + spread], [school + 0.15] * 2, color="tab:blue", lw=5)
        left.plot([centre, mean], [school + 0.15, school - 0.15], "k.", ms=5)
    left.plot([], [], color="tab:blue", lw=5, label="flow + IMH")
    left.plot([], [], color="tab:orange", lw=5, alpha=0.5, label="posteriordb reference")
    left.set(xlabel="effect of coaching (mean ± sd)", ylabel="school", title="School effects")
    left.set_ylim(-0.6, 8.6)
    left.legend(loc="upper center", ncols=2, frameon=False)
    mu, tau = (posterior[name].values.reshape(-1)[:20_000] for name in ("mu", "tau"))
    right.scatter(mu, tau, s=1, alpha=0.15, color="tab:blue", rasterized=True)
    right.set(yscale="log", ylim=(1e-2, 60), xlabel="mu", ylabel="tau", title="20 000 exact draws")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chains", type=int, default=100)
    parser.add_argument("--draws", type=int, default=500, help="per chain")
    parser.add_argument("--nuts-draws", type=int, default=300, help="0 to leave NUTS out")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for files")
    parser.add_argument("--smoke", action="store_true", help="seconds, for the tests")
    args = parser.parse_args()
    if args.smoke:
        args.chains, args.draws, args.nuts_draws = 10, 100, 0
    args.out.mkdir(parents=True, exist_ok=True)

    mcmc, idata = sample(args.seed, args.chains, args.draws, args.smoke)
    table = summarize(idata)
    seconds = time.perf_counter() - START
    ess = smallest_ess(mcmc.get_samples(group_by_chain=True))
    print(table.to_string())
    history = mcmc.kernel.guide.history
    accepted = float(mcmc.statistics["accepted"].double().mean())
    print(f"\nacceptance rate {accepted:.3f}   Pareto k {history.pareto_k:.2f}   ", end="")
    print(f"importance ESS {history.final_ess:.2f} (Gaussian alone {history.gaussian_ess:.2f})")
    print(
        f"import to summary: {seconds:.1f} s, of which training {history.seconds:.1f} s;", end=" "
    )
    print(f"least ESS {ess:.0f} → {1e4 * seconds / ess:.1f} s per 10 000 effective draws")
    if args.nuts_draws:
        nuts, nuts_ess = nuts_seconds(args.seed, args.nuts_draws)
        rate = 1e4 * nuts / nuts_ess
        print(f"Pyro's NUTS: {nuts:.1f} s, least ESS {nuts_ess:.0f} → {rate:.0f} s per 10 000")

    idata.to_netcdf(args.out / "eight_schools.nc")
    picture(idata, args.out / "eight_schools.png")
    print(f"wrote {args.out / 'eight_schools.nc'} and {args.out / 'eight_schools.png'}")


if __name__ == "__main__":
    main()
