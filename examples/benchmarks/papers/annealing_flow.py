r"""Annealing Flow, corrected: the paper's targets, unequal weights, funnels, logistic regression.

    python examples/benchmarks/papers/annealing_flow.py \
        gmm|expgauss|unequal|funnel|logistic|schedule

runs what is not stored yet under ``examples/benchmarks/results/annealing_flow.jsonl`` and prints
the table; ``all`` prints every table and writes them to ``docs/annealing_flow.md``. Beside it stand
batched HMC, parallel tempering and reverse KL, each on the number of target evaluations that the
annealing flow has used, training and corrected draws together.

Annealing Flow: Wu & Xie, 2025, https://arxiv.org/abs/2409.20547.

The stored runs took 4.7 hours on one core; printing them takes seconds (``all --table``).
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.reparam import LocScaleReparam
from pyro.ops.stats import effective_sample_size
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from baselines import hmc
from baselines.parallel_tempering import parallel_tempering
from metrics import mmd, mode_chi2, wasserstein2
from problems.classification import load as load_classes
from stored_runs import DOCS, RESULTS, collect, load, markdown, spread
from variants import TRANSPORT_COST, kl_loss, linear_loss

from pyro_flowsamp import (
    AnnealingOptions,
    AutoAnnealingFlow,
    AutoFlow,
    FitOptions,
    ReverseKL,
    Target,
    ess_fraction,
)
from pyro_flowsamp.problems import (
    Problem,
    accuracy,
    exp_gauss,
    exp_gauss_unequal,
    funnel,
    gmm,
    log_predictive,
    logistic_regression,
    unequal_pair,
)

matplotlib.use("Agg")
STUDY = "annealing_flow.jsonl"  #: the file of its stored runs
ISLANDS = 16

Result = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """Amounts of work: everything, or a little for the tests."""

    smoke: bool
    draws: int
    points: int
    options: dict[str, Any]

    @classmethod
    def of(cls, smoke: bool) -> "Size":
        if not smoke:
            return cls(False, 20_000, 1000, {})
        brief = FitOptions(10, 64, 5e-3, cosine_schedule=True)
        brief_path = {"num_particles": 256, "target_ess": 0.3, "mcmc_steps": 1}
        return cls(True, 320, 100, {"options": brief, **brief_path})


# ---- samplers: what each reports of itself, and its draws ---------------------------------------


def anneal(known: Problem, size: Size, **options: Any) -> tuple[AutoAnnealingFlow, Any, Result]:
    """A trained guide, its corrected particles, and what it took."""
    guide = AutoAnnealingFlow(known.target, **{**options, **size.options})
    guide.options = FitOptions(**{**guide.options.__dict__, "progress": False})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # narrow starts are the paper's; the table shows the rest
        history = guide.fit()
    particles = guide.particles(size.draws, islands=ISLANDS)
    log_z, error = particles.evidence
    with torch.no_grad():
        alone, log_q = guide.flow(None).rsample_and_log_prob((size.draws,))
        log_w = known.target.log_prob(alone).double() - log_q.double()
    result = {
        "blocks": len(guide.reports),
        "fit_seconds": history.seconds,
        "evaluations": known.target.evaluations,
        "log_z": float(log_z),
        "log_z_error": float(error),
        "corrected_ess": float(ess_fraction(particles.log_weights)),
        "flow_ess": float(ess_fraction(log_w)),
        "log_q_gap": history.log_q_error,
        "rollbacks": history.skipped,
    }
    return guide, particles, result


def run_hmc(known: Problem, budget: int, size: Size) -> Tensor:
    """Batched HMC from the annealing flow's start, N(0, I): the last draws of every chain."""
    chains, leaps = (20, 3) if size.smoke else (1000, 10)
    steps = 20 if size.smoke else max(20, budget // (chains * leaps))
    x0 = torch.randn(chains, known.target.dim)
    draws = hmc.sample(known.target, x0, steps // 2, steps // 2, leaps).x
    return draws[:, -max(1, size.draws // chains) :].flatten(0, 1)


def run_tempering(known: Problem, budget: int, size: Size) -> Tensor:
    """Parallel tempering, ten replicas of five leapfrog steps."""
    chains = 4 if size.smoke else 100
    steps = 20 if size.smoke else max(20, budget // (chains * 10 * 5))
    draws = parallel_tempering(known.target, chains, steps // 2, steps // 2).x
    return draws[:, -max(1, size.draws // chains) :].flatten(0, 1)


def run_reverse_kl(known: Problem, budget: int, size: Size) -> Tensor:
    """A flow by plain reverse KL: splines in few dimensions, affine couplings in many."""
    steps = 10 if size.smoke else min(3000, budget // 256)
    options = FitOptions(max_steps=steps, learning_rate=1e-3, progress=False)
    flow = "spline" if known.target.dim < 20 else "coupling"
    guide = AutoFlow(known.target, flow=flow, objective=ReverseKL(), options=options)
    guide.fit()
    return guide.flow(None).sample((size.draws,))


BASELINES = {"HMC": run_hmc, "tempering": run_tempering, "reverse KL": run_reverse_kl}


def beside(
    known: Problem, budget: int, size: Size, measure: Callable[[Tensor], float]
) -> dict[str, float]:
    """One number of each baseline's draws."""
    return {name: measure(run(known, budget, size)) for name, run in BASELINES.items()}


def beside_cells(runs: list[Result], digits: int = 3) -> list[str]:
    return [spread((run["beside"][name] for run in runs), digits) for name in BASELINES]


# ---- Gaussian mixtures --------------------------------------------------------------------------


def modes_of(known: Problem, x: Tensor, effective: float, size: Size) -> Result:
    """Modes found, errors of their weights against the floor, distances to exact draws."""
    shares = known.mode_fractions(x)
    w = known.weights.to(shares)
    exact = known.sample(size.points).to(x)
    some = x[torch.randperm(len(x))[: size.points]]
    return {
        "modes": int((shares > 0.1 * w).sum()),
        "weight_mse": float((shares - w).square().mean()),
        "floor": float((w * (1 - w)).mean() / effective),
        "mmd": float(mmd(some, exact)),
        "w2": wasserstein2(some, exact),
    }


def gmm_run(components: int, size: Size) -> Result:
    known = gmm(components)
    guide, particles, result = anneal(known, size, reference=1.0, target_ess=0.6)
    budget, effective = known.target.evaluations, result["corrected_ess"] * size.draws
    shares = known.mode_fractions(particles.x, particles.log_weights)
    result["p_value"] = float(mode_chi2(shares * effective, known.weights, effective).p_value)
    exact = known.sample(size.draws)
    alone = guide.flow(None).sample((size.draws,))
    result["annealing"] = modes_of(known, particles.draw(size.draws), effective, size)
    result["flow alone"] = modes_of(known, alone, size.draws, size)
    result["exact"] = modes_of(known, exact, size.draws, size)
    for name, baseline in BASELINES.items():
        result[name] = modes_of(known, baseline(known, budget, size), size.draws, size)
    return result


def gmm_table(store: Path) -> str:
    rows = []
    for components in (6, 8, 10):
        runs = load(store, f"gmm-{components}")
        for name in ("annealing", "flow alone", *BASELINES, "exact"):
            found = [run[name] for run in runs]
            if not found:
                continue
            least = min((run["p_value"] for run in runs), default=float("nan"))
            rows.append(
                [
                    f"GMM-{components}",
                    name,
                    f"{min(f['modes'] for f in found)}–{max(f['modes'] for f in found)}",
                    f"{least:.2g}" if name == "annealing" else "",
                    spread(f["weight_mse"] for f in found),
                    f"{mean(f['floor'] for f in found):.1e}",
                    spread(f["mmd"] for f in found),
                    spread(f["w2"] for f in found),
                ]
            )
    header = ["target", "sampler", "modes", "least χ² p", "weight MSE", "floor", "MMD²", "W2"]
    return markdown(header, rows)


# ---- ExpGauss -----------------------------------------------------------------------------------


def expgauss_run(dim: int, size: Size) -> Result:
    known = exp_gauss(dim, *((2, 4.0) if size.smoke else ()))
    guide, particles, result = anneal(known, size, reference=1.0, target_ess=0.6)
    budget = known.target.evaluations
    draws = particles.draw(size.draws)
    alone = guide.flow(None).sample((size.draws,))
    return {
        **result,
        "beside": beside(known, budget, size, lambda x: len(known.assign(x).unique())),
        "log_z_true": known.log_z,
        "modes": len(known.assign(draws).unique()),
        "modes_alone": len(known.assign(alone).unique()),
        "modes_exact": len(known.assign(known.sample(size.draws)).unique()),
    }


def expgauss_table(store: Path) -> str:
    rows = []
    for dim in (50, 100, 200):
        runs = load(store, f"expgauss-{dim}")
        if runs:
            errors = [run["log_z"] - run["log_z_true"] for run in runs]
            counts = [
                f"{min(r[k] for r in runs)}–{max(r[k] for r in runs)}"
                for k in ("modes", "modes_alone", "modes_exact")
            ]
            rows.append(
                [
                    dim,
                    len(runs),
                    *counts,
                    f"{max(map(abs, errors)):.4f}",
                    f"{mean(r['log_z_error'] for r in runs):.4f}",
                    spread(r["flow_ess"] for r in runs),
                    spread(r["blocks"] for r in runs),
                    spread(r["evaluations"] / 1e6 for r in runs),
                    spread(r["fit_seconds"] for r in runs),
                    *beside_cells(runs),
                ]
            )
    header = ["d", "seeds", "modes", "flow alone", "exact draws", "worst log Z error"]
    header += ["its standard error", "flow's ESS", "blocks", "10⁶ evaluations"]
    tail = ["s to fit", *(f"modes, {name}" for name in BASELINES)]
    return markdown([*header, *tail], rows)


# ---- unequal weights ----------------------------------------------------------------------------


def first_shares(known: Problem, x: Tensor) -> Tensor:
    """Indicators whose means are the weights: of modes, or of each active coordinate's sign."""
    if len(known.weights) <= 10:
        return torch.nn.functional.one_hot(known.assign(x), len(known.weights)).double()
    return (x[:, :10] < 0).double()


def unequal_run(make: Callable[[], Problem], options: dict[str, Any], size: Size) -> Result:
    known = make()
    guide, particles, result = anneal(known, size, **options)
    budget = known.target.evaluations
    exact = first_shares(known, known.sample(400_000)).mean(0)
    corrected = particles.mean(first_shares(known, particles.x))
    alone = first_shares(known, guide.flow(None).sample((size.draws,)))
    z = (corrected.value - exact) / corrected.standard_error.clamp(min=1e-9)
    z_alone = (alone.mean(0) - exact) / (exact * (1 - exact) / len(alone)).sqrt()

    def error(x: Tensor) -> float:
        return float((first_shares(known, x).mean(0) - exact).abs().max())

    return {
        **result,
        "beside": beside(known, budget, size, error),
        "log_z_z": (result["log_z"] - known.log_z) / result["log_z_error"],
        "worst_z": float(z.abs().max()),
        "worst_z_alone": float(z_alone.abs().max()),
        "error": float((corrected.value - exact).abs().max()),
        "error_alone": float((alone.mean(0) - exact).abs().max()),
    }


UNEQUAL: dict[str, tuple[Callable[[], Problem], dict[str, Any]]] = {
    "pair": (unequal_pair, {"target_ess": 0.9, "mcmc_steps": 20}),
    "pair-N01": (unequal_pair, {"target_ess": 0.9, "mcmc_steps": 20, "reference": 1.0}),
    "expgauss": (exp_gauss_unequal, {"target_ess": 0.6, "reference": 1.0}),
}


def unequal_table(store: Path) -> str:
    titles = {
        "pair": "⅓ N((4,4), I) + ⅔ N((−8,−8), I), start found",
        "pair-N01": "the same, start N(0, I)",
        "expgauss": "ExpGauss-unequal, d = 50, start N(0, I)",
    }
    rows = []
    for name, title in titles.items():
        runs = load(store, f"unequal-{name}")
        if runs:
            keys = ("error_alone", "worst_z_alone", "error", "worst_z", "log_z", "log_z_z")
            rows.append([title, len(runs), *(spread(r[key] for r in runs) for key in keys)])
            rows[-1] += beside_cells(runs, 2)
    header = ["target", "seeds", "flow alone: weight error", "its worst \\|z\\|"]
    header += ["corrected: weight error", "its worst \\|z\\|", "log Z (true 0)", "its z"]
    return markdown([*header, *(f"weight error, {name}" for name in BASELINES)], rows)


# ---- funnel -------------------------------------------------------------------------------------


def funnel_run(dim: int, size: Size) -> Result:
    known = funnel(dim)
    _, particles, result = anneal(known, size, target_ess=0.9, mcmc_steps=20)
    budget = known.target.evaluations
    squares = particles.mean(particles.x.square())
    rest = particles.mean(particles.x[:, 1:].square().mean(-1))
    return {
        **result,
        "beside": beside(known, budget, size, lambda x: float(x[:, 0].square().mean())),
        "var_x1": float(squares.value[0]),
        "z_x1": float((squares.value[0] - 0.81) / squares.standard_error[0]),
        "xi_squared": float(rest.value),
        "z_xi": float((rest.value - 1.4993025) / rest.standard_error),
        "log_z_z": result["log_z"] / result["log_z_error"],
    }


def funnel_table(store: Path) -> str:
    rows = []
    for dim in (5, 10):
        runs = load(store, f"funnel-{dim}")
        if runs:
            keys = ("var_x1", "z_x1", "xi_squared", "z_xi", "log_z", "flow_ess", "fit_seconds")
            rows.append([dim, len(runs), *(spread(r[key] for r in runs) for key in keys)])
            rows[-1] += beside_cells(runs)
    header = ["d", "seeds", "Var x₁ (.81)", "z", "E xᵢ² (1.4993)", "z", "log Z (0)", "flow's ESS"]
    return markdown([*header, "s to fit", *(f"Var x₁, {name}" for name in BASELINES)], rows)


# ---- logistic regression ------------------------------------------------------------------------

#: data sets; Langevin moves a block, which wine's separable classes need most; particles, drawn too
CLASSES = {
    "iris": (10, 16_000),
    "wine": (50, 16_000),
    "breast_cancer": (10, 8000),
    "german_credit": (5, 4000),
    "digits": (5, 4000),
}


def nuts_run(name: str, size: Size) -> Result:
    """Posterior means by a long run of Pyro's NUTS, in unconstrained space, and its predictions."""
    (X, y), (X_test, y_test) = load_classes(name)
    target = Target.from_model(logistic_regression, X, y)
    warmup, draws = (10, 20) if size.smoke else (1000, 4000)
    kernel = NUTS(logistic_regression, jit_compile=True, ignore_jit_warnings=True)
    mcmc = MCMC(kernel, num_samples=draws, warmup_steps=warmup, disable_progbar=True)
    mcmc.run(X, y)
    samples = mcmc.get_samples()
    x = target.pack(samples).double()
    effective = effective_sample_size(x[None], chain_dim=0, sample_dim=1)
    return {
        "mean": x.mean(0).tolist(),
        "error": (x.std(0) / effective.sqrt()).tolist(),
        "least_effective": float(effective.min()),
        "accuracy": float(accuracy(samples["beta"], X_test, y_test)),
        "log_predictive": float(log_predictive(samples["beta"], X_test, y_test)),
    }


def logistic_run(name: str, store: Path, size: Size) -> Result:
    """Posterior means against NUTS, and held-out predictions; coefficients are non-centred."""
    (X, y), (X_test, y_test) = load_classes(name)
    model = poutine.reparam(logistic_regression, {"beta": LocScaleReparam(0.0)})
    target = Target.from_model(model, X, y)
    known = Problem(target, None, None, None, None, None)
    moves, particles = (1, 320) if size.smoke else CLASSES[name]
    size = replace(size, draws=particles)
    _, found, result = anneal(known, size, reference=3.0, mcmc_steps=moves, num_particles=particles)

    def original(x: Tensor) -> Tensor:
        log_alpha, beta = x[:, :1], x[:, 1:]
        return torch.cat([log_alpha, beta * (-0.5 * log_alpha).exp()], -1)

    beta = original(found.draw(min(5000, particles)))[:, 1:]
    nuts = load(store, f"nuts-{name}")[0]
    mine, error = found.mean(original(found.x)), torch.tensor(nuts["error"])
    gap = mine.value - torch.tensor(nuts["mean"])
    return {
        **result,
        "dim": target.dim,
        "mcmc_steps": moves,
        "log_alpha": float(mine.value[0]),
        "worst_z": float(
            (gap / (mine.standard_error.square() + error.square()).sqrt()).abs().max()
        ),
        "accuracy": float(accuracy(beta, X_test, y_test)),
        "log_predictive": float(log_predictive(beta, X_test, y_test)),
    }


def logistic_table(store: Path) -> str:
    rows = []
    for name in CLASSES:
        runs, nuts = load(store, f"logistic-{name}"), load(store, f"nuts-{name}")
        if runs:
            keys = ("worst_z", "accuracy", "log_predictive")
            tail = ("log_z", "log_z_error", "flow_ess", "fit_seconds")
            rows.append(
                [name, runs[0]["dim"], len(runs), *(spread(r[k] for r in runs) for k in keys)]
            )
            rows[-1] += [f"{nuts[0]['accuracy']:.3f}; {nuts[0]['log_predictive']:.4f}"]
            rows[-1] += [f"{nuts[0]['least_effective']:.0f}; {nuts[0]['seconds']:.0f}"]
            rows[-1] += [spread(r[k] for r in runs) for k in tail]
    header = ["data", "d", "seeds", "worst \\|z\\| of means against NUTS", "test accuracy"]
    header += ["log predictive", "the same of NUTS", "NUTS: least effective draws; s", "log Z"]
    return markdown([*header, "its standard error", "flow's ESS", "s to fit"], rows)


# ---- schedules ----------------------------------------------------------------------------------

PAPER_GMM8 = [k / 10 for k in range(11)]
TWO_REFINEMENTS = AnnealingOptions(refinement_blocks=2)
SCHEDULES: dict[str, dict[str, Any]] = {
    "adaptive, ess .6": {"target_ess": 0.6},
    "adaptive, ess .3": {"target_ess": 0.3},
    "adaptive, ess .8": {},
    "the paper's k/10": {"schedule": PAPER_GMM8},
    "the paper's, 2 refinements": {"schedule": PAPER_GMM8, "settings": TWO_REFINEMENTS},
    "adaptive, 2 refinements": {"settings": TWO_REFINEMENTS},
    "adaptive, midpoint": {"settings": AnnealingOptions(method="midpoint")},
    "adaptive, Dormand–Prince": {"settings": AnnealingOptions(method="dopri5")},
    "kl loss": {"settings": AnnealingOptions(kl_loss, TRANSPORT_COST)},
    "linear loss": {"settings": AnnealingOptions(linear_loss, TRANSPORT_COST)},
}


def schedule_run(options: dict[str, Any], size: Size) -> Result:
    known = gmm(8)
    guide, _, result = anneal(known, size, reference=1.0, **options)
    block_steps = sum(report.integration_steps for report in guide.reports)
    return {**result, "integration_steps": block_steps}


def schedule_name(title: str) -> str:
    return "schedule-" + "".join(c if c.isalnum() else "_" for c in title)


def schedule_table(store: Path) -> str:
    rows = []
    for title in SCHEDULES:
        runs = load(store, schedule_name(title))
        if runs:
            errors = [abs(r["log_z"]) for r in runs]
            keys = ("blocks", "integration_steps", "evaluations", "fit_seconds")
            cells = (spread(r[key] for r in runs) for key in keys)
            tail = (spread(r[key] for r in runs) for key in ("flow_ess", "corrected_ess"))
            rows.append([title, len(runs), *cells, spread(errors), *tail])
    header = ["GMM-8 by", "seeds", "blocks", "integration steps", "evaluations", "s to fit"]
    return markdown([*header, "\\|log Z error\\|", "flow's ESS", "corrected ESS"], rows)


# ---- pictures -----------------------------------------------------------------------------------


def picture(path: Path, size: Size) -> None:
    """The annealing of GMM-8: particles after every other block, and the target's exact draws."""
    import matplotlib.pyplot as plt

    known = gmm(8)
    guide, _, _ = anneal(known, size, reference=1.0, target_ess=0.6)
    x = guide.flow.start(None).sample((2000,))
    snapshots = [(0.0, x)]
    with torch.no_grad():
        for block in guide.flow.blocks:
            x = block(None).push(x)[0]
            snapshots.append((block.beta, x))
    every = max(1, len(snapshots) // 6)
    shown = snapshots[::every][:6] + [snapshots[-1], ("exact", known.sample(2000))]
    figure, axes = plt.subplots(2, 4, figsize=(12, 6.2), sharex=True, sharey=True)
    for axis, (beta, points) in zip(axes.flat, shown):
        axis.scatter(*points.T, s=2, alpha=0.4, color="tab:blue" if beta != "exact" else "tab:gray")
        axis.set_title(f"β = {beta:.2f}" if beta != "exact" else "exact draws")
        axis.set_aspect("equal")
    figure.suptitle("GMM-8: the flow's draws, block after block")
    figure.tight_layout()
    figure.savefig(path, dpi=80)


# ---- the page in docs -----------------------------------------------------------------------

TITLES = {
    "gmm": "Gaussian mixtures on a circle",
    "unequal": "Unequal weights",
    "funnel": "Funnels",
    "expgauss": "1024 modes in 50, 100 and 200 dimensions",
    "logistic": "Bayesian logistic regression",
    "schedule": "Schedules, losses and integrators",
}
PREFACE = """# Annealing Flow, corrected

Made by `python examples/benchmarks/papers/annealing_flow.py all --table` from the stored runs in
`examples/benchmarks/results/annealing_flow.jsonl`; without `--table` it runs what is missing. Mean
± sd over seeds; 20 000 draws; float32 on one CPU core shared with other work, so seconds are upper
bounds. HMC (1000 chains from N(0, I)), parallel tempering (100 ensembles of ten) and reverse KL
each have the number of target evaluations that the annealing flow has used in all.

"Annealing" are the corrected particles, "flow alone" the flow's own draws: no transport can move
mass between modes that are already apart, so those have the weights that the modes had when they
parted. In the last table Euler's method is missing: it does not get a block's log density right to
2e-4 nats in 256 steps, and `fit` says so. W2 and MMD² are between 1000 draws and 1000 exact ones;
the row "exact" is their noise.

The tables of 1024 modes and of schedules are of older runs, in which the optimiser scrambled the
gradients of the blocks' last layers, and all particles followed each block. Flows are better since.

The logistic regressions have their coefficients non-centred, start at N(0, 9 I), and take 10 moves
a block with 16 000 particles (iris), 50 with 16 000 (wine, whose classes a plane separates: its
posterior has a wide, thin part), 10 with 8000 (breast cancer), 5 with 4000 (German credit, digits).
Their means are held against one long run of NUTS, 1000 + 4000 steps, with both standard errors; the
worst of d components is shown. The split into training and held-out data is the same for all seeds.

![Draws of the flow, block after block](images/annealing_flow.png)
"""


#: seeds of the runs that take longer than twenty minutes, their baselines included
LONG = {"expgauss-100": 3, "expgauss-200": 3}
LONG |= {f"nuts-{name}": 1 for name in CLASSES}  # the data stay the same

# ---- command line -------------------------------------------------------------------------------


def studies(
    size: Size, store: Path
) -> dict[str, tuple[dict[str, Callable], int, Callable[[Path], str]]]:
    """Each study's runs, its number of seeds, and its table."""
    dims = (3,) if size.smoke else (50, 100, 200)
    return {
        "gmm": ({f"gmm-{k}": partial(gmm_run, k, size) for k in (6, 8, 10)}, 5, gmm_table),
        "unequal": (
            {f"unequal-{k}": partial(unequal_run, *v, size) for k, v in UNEQUAL.items()},
            5,
            unequal_table,
        ),
        "funnel": ({f"funnel-{d}": partial(funnel_run, d, size) for d in (5, 10)}, 5, funnel_table),
        "expgauss": (
            {f"expgauss-{d}": partial(expgauss_run, d, size) for d in dims},
            5,
            expgauss_table,
        ),
        "logistic": (
            {
                **{f"nuts-{n}": partial(nuts_run, n, size) for n in CLASSES},
                **{f"logistic-{n}": partial(logistic_run, n, store, size) for n in CLASSES},
            },
            5,
            logistic_table,
        ),
        "schedule": (
            {schedule_name(k): partial(schedule_run, v, size) for k, v in SCHEDULES.items()},
            5,
            schedule_table,
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choices = [*studies(Size.of(True), RESULTS / STUDY), "picture", "all"]
    parser.add_argument("study", choices=choices)
    parser.add_argument("--dim", type=int, help="of ExpGauss only")
    parser.add_argument("--seeds", type=int, help="fewer or more than the study's own")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--image", type=Path, default=DOCS / "images" / "annealing_flow.png")
    parser.add_argument("--table", action="store_true", help="only print what is stored")
    parser.add_argument("--smoke", action="store_true", help="seconds, for the tests")
    args = parser.parse_args()
    store = args.results / STUDY
    size = Size.of(args.smoke)
    if args.study == "picture":
        torch.manual_seed(0)
        picture(args.image, size)
        print(f"wrote {args.image}")
        return
    every = args.study == "all"
    every_study = studies(size, store)
    chosen = every_study if every else {args.study: every_study[args.study]}
    tables = []
    for name, (runs, seeds, table) in chosen.items():
        if args.dim is not None:
            runs = {k: v for k, v in runs.items() if k.endswith(f"-{args.dim}")}
        if args.smoke:
            runs = {k: v for k, v in runs.items() if k.endswith(next(iter(runs)).split("-")[-1])}
        for seed in range(0 if args.table else 1 if args.smoke else args.seeds or seeds):
            wanted = {k: v for k, v in runs.items() if seed < LONG.get(k, seed + 1)}
            collect(store, wanted, [seed])
        tables.append(f"## {TITLES[name]}\n\n{table(store)}\n")
        print(f"\n{tables[-1]}", flush=True)
    if every and not args.smoke:
        (DOCS / "annealing_flow.md").write_text("\n".join([PREFACE, *tables]))


if __name__ == "__main__":
    main()
