"""Table 1 of the deformation paper: four modes, and two of unequal weight, by three interpolations.

    python examples/benchmarks/papers/deformation_gmm.py

runs what is not stored yet under ``examples/benchmarks/results/deformation_gmm.jsonl`` and prints
the table; ``--table`` only prints it, and ``--write`` also writes ``docs/deformation_gmm.md`` and
its picture.

Learning Interpolations between Boltzmann Densities: Máté & Fleuret, 2023,
https://arxiv.org/abs/2301.07388.

The stored runs took 2.2 hours on one core; printing them takes seconds.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from deformation_runs import options, through_imh, train, train_by_reverse_kl
from metrics import ess_forward, ess_reverse, forward_kl, hausdorff, reverse_kl
from stored_runs import DOCS, collect, load, markdown, spread
from stored_runs import options as stored_options
from torch import Tensor
from variants import along_trajectories, polish

from pyro_flowsamp import (
    AutoDeformationFlow,
    DeformationOptions,
    FitOptions,
    diffusion,
    log_evidence,
)
from pyro_flowsamp.guides.deformation import CollocationLoss, at_smc_points
from pyro_flowsamp.problems import Problem, mog4, unequal_pair

matplotlib.use("Agg")
STUDY = "deformation_gmm.jsonl"  #: the file of its stored runs

Result = dict[str, Any]

#: target, standard deviation of the paper's base, by how much training's is wider
TARGETS: dict[str, tuple[Callable[[], Problem], float, float]] = {
    "four": (mog4, 1.0, 5.0),
    "pair": (unequal_pair, 2.0, 3.0),
}
TITLES = {
    "four": "Eq. (2), ¼ Σ N((±8, ±8), I)",
    "pair": "Eq. (11), ⅓ N((4, 4), I) + ⅔ N((−8, −8), I)",
}
#: Hausdorff distance, reverse KL, forward KL and forward ESS as the paper has them
PAPER = {
    ("four", "reverse KL"): (19.28, 1.387, 110.6, 0.254),
    ("four", "trainable"): (0.053, 0.000, 0.000, 0.999),
    ("four", "linear"): (0.060, None, None, 0.998),
    ("pair", "reverse KL"): (13.25, 1.099, 74.38, 0.332),
    ("pair", "trainable"): (0.045, 0.001, 0.000, 1.000),
    ("pair", "linear"): (2.329, None, None, 0.336),
}

SMC_TRAINING = 4e-2, 900  #: learning rate and points a step
HIDDEN = 64  #: units of both hidden layers, as in the paper


class Size:
    """Amounts of work: everything, or a little for the tests."""

    def __init__(self, smoke: bool) -> None:
        self.smoke = smoke
        self.draws = 512 if smoke else 10_000
        self.kernels = 1 if smoke else 4  # in time, of the networks; a given path needs but one
        self.steps = 20 if smoke else 8000
        self.fewer = 20 if smoke else 2500
        self.reverse = 5 if smoke else 500
        self.learnt_from = 1024 if smoke else 8192
        self.most = 10 if smoke else 10_000
        self.polish = 5 if smoke else 100
        self.chains, self.samples = (20, 20) if smoke else (200, 50)
        self.grid: dict[str, Any] = {"time_grid": 4} if smoke else {}


# ---- one run ------------------------------------------------------------------------------------


@torch.no_grad()
def measure(guide: Any, known: Problem, size: Size) -> Result:
    """The paper's figures, of the flow's own draws and of exact ones (Eqs. 14–18)."""
    x, log_q = guide.flow(None).rsample_and_log_prob((size.draws,))
    log_p = known.target.log_prob(x)
    exact = known.sample(size.draws)
    exact_p, exact_q = known.target.log_prob(exact), guide.flow(None).log_prob(exact)
    log_w = log_p.double() - log_q.double()
    log_z, error = log_evidence(log_w)
    return {
        "hausdorff": float(hausdorff(known.modes, x[:4096])),
        "reverse_kl": float(reverse_kl(log_q, log_p)),
        "forward_kl": float(forward_kl(exact_q, exact_p)),
        "ess_reverse": float(ess_reverse(log_w)),
        "ess_forward": float(ess_forward(exact_p.double() - exact_q.double())),
        "log_z": float(log_z),
        "log_z_error": float(error),
        "share": float(known.mode_fractions(x)[0]),
    }


def chains(guide: Any, known: Problem, size: Size) -> dict[str, float]:
    return through_imh(guide, known, size.chains, size.samples)


def made(
    known: Problem,
    scale: float,
    size: Size,
    time_kernels: int = 1,
    collocation: Callable[[CollocationLoss], Callable[[], Tensor]] | None = None,
    **how: Any,
) -> AutoDeformationFlow:
    settings = DeformationOptions(
        collocation, hidden_features=HIDDEN, time_kernels=time_kernels, **size.grid
    )
    return AutoDeformationFlow(known.target, base_scale=scale * 2**0.5, settings=settings, **how)


def trained(known: Problem, scale: float, size: Size, **how: Any) -> AutoDeformationFlow:
    guide = made(known, scale, size, **how)
    train(guide)
    return guide


def summary(guide: AutoDeformationFlow, known: Problem, size: Size) -> Result:
    assert guide.history is not None
    reached = next((p for p in guide.progress if p.ess >= 0.99), None)
    return {
        **measure(guide, known, size),
        **chains(guide, known, size),
        "fit_seconds": guide.history.seconds,
        "evaluations": guide.history.evaluations,
        "evaluations_to_99": reached and reached.evaluations,
        "seconds_to_99": reached and reached.seconds,
    }


def exact_diffusion(known: Problem, scale: float) -> Any:
    weights, means = known.weights.to(known.modes), known.modes
    return diffusion(weights, means, torch.ones_like(means), scale * 2**0.5)


def by_smc_points(name: str, size: Size, steps: int, polish_steps: int = 0, **how: Any) -> Result:
    make, scale, wider = TARGETS[name]
    known = make()
    how = {"exploration_scale": wider, "time_kernels": size.kernels, **how}
    how = {"options": options(steps, *SMC_TRAINING), **how}
    guide = trained(known, scale, size, **how)
    if polish_steps:
        first, more = guide.history, polish(guide, polish_steps)
        assert first is not None
        guide.history = first.updated(
            seconds=first.seconds + more.seconds, evaluations=first.evaluations + more.evaluations
        )
    return {**summary(guide, known, size), "steps": steps}


def by_diffusion(name: str, size: Size) -> Result:
    make, scale, _ = TARGETS[name]
    path = exact_diffusion(make(), scale)
    return by_smc_points(
        name, size, size.fewer, interpolation=path, exploration_scale=1.0, time_kernels=1
    )


def briefly(name: str, size: Size) -> Result:
    """The flows that are polished, before that."""
    return by_smc_points(name, size, size.fewer)


def polished(name: str, size: Size) -> Result:
    return by_smc_points(name, size, size.fewer, polish_steps=size.polish)


def distilled(name: str, size: Size) -> Result:
    """The diffusion's flow, and a spline flow that has learnt from its corrected draws."""
    make, scale, _ = TARGETS[name]
    known = make()
    path = exact_diffusion(known, scale)
    guide = trained(
        known, scale, size, interpolation=path, options=options(size.fewer, *SMC_TRAINING)
    )
    short = FitOptions(max_steps=size.reverse, progress=False)
    student = guide.distill(num=size.learnt_from, options=short)
    assert student.history is not None
    return {
        **measure(student, known, size),
        **chains(student, known, size),
        "fit_seconds": student.history.seconds,
        "evaluations": student.history.evaluations,
        "steps": student.history.steps,
    }


def by_trajectories(name: str, size: Size, store: Path, seed: int) -> Result:
    """Runs the paper's trainer for as many seconds as the SMC points took with the same seed."""
    make, scale, wider = TARGETS[name]
    known = make()
    others = load(store, f"{name}-trainable")
    budget = others[seed]["fit_seconds"] if seed < len(others) else 1.0
    how: dict[str, Any] = {
        "collocation": along_trajectories,
        "exploration_scale": wider,
        "time_kernels": size.kernels,
    }
    short = trained(known, scale, size, options=options(10, 3e-3, 256), **how)
    steps = min(size.most, max(10, int(budget / short.progress[-1].seconds * 10)))
    guide = trained(known, scale, size, options=options(steps, 3e-3, 256), **how)
    return {**summary(guide, known, size), "steps": steps}


def by_reverse_kl(name: str, size: Size) -> Result:
    """Trains an equal network and base by reverse KL alone."""
    make, scale, _ = TARGETS[name]
    known = make()
    guide = made(known, scale, size)
    guide.target_for()
    history = train_by_reverse_kl(guide, known, size.reverse)
    evaluations = known.target.evaluations  # before the result is measured
    return {
        **measure(guide, known, size),
        **chains(guide, known, size),
        "fit_seconds": history.seconds,
        "evaluations": evaluations,
        "steps": history.steps,
    }


METHODS = {
    "reverse KL": by_reverse_kl,
    "linear": lambda name, size: by_smc_points(name, size, size.fewer, interpolation="linear"),
    "trainable": lambda name, size: by_smc_points(name, size, size.steps),
    "diffusion": by_diffusion,
}
AFTERWARDS = {
    "trainable, briefly": briefly,
    "trainable, polished": polished,
    "diffusion, distilled": distilled,
}
TRAJECTORIES = "trainable, trajectories"


def key(name: str, method: str) -> str:
    return f"{name}-" + method.replace(", ", "-").replace(" ", "_")


def collect_all(store: Path, size: Size, seeds: int) -> None:
    """The table's main rows first, then the rest."""
    names = ["pair"] if size.smoke else list(TARGETS)
    for methods in (METHODS, AFTERWARDS):
        for seed in range(seeds):
            runs = {key(n, m): partial(run, n, size) for n in names for m, run in methods.items()}
            collect(store, runs, [seed])
    for seed in range(seeds):
        late = {key(n, TRAJECTORIES): partial(by_trajectories, n, size, store, seed) for n in names}
        collect(store, late, [seed])


# ---- what it costs ------------------------------------------------------------------------------


def cost_run(name: str, size: Size) -> Result:
    """Seconds of one step of 256 points, 32 Euler steps where trajectories are followed."""
    make, scale, wider = TARGETS[name]
    known, steps = make(), size.reverse // 5 or 1
    wide: dict[str, Any] = {
        "exploration_scale": wider,
        "options": options(steps, SMC_TRAINING[0], 256),
    }
    result = {}
    points = {"smc": at_smc_points, "trajectories": along_trajectories}
    for where, collocation in points.items():
        for interpolation in ("linear", "trainable"):
            guide = trained(
                known, scale, size, collocation=collocation, interpolation=interpolation, **wide
            )
            result[f"{interpolation}, {where}"] = guide.progress[-1].seconds / steps
    guide = made(known, scale, size)
    guide.target_for()
    guide.flow.block.method, guide.flow.block.steps = "euler", 32
    history = train_by_reverse_kl(guide, known, steps)
    return {**result, "reverse KL": history.seconds / steps}


def cost_table(store: Path) -> str:
    runs = load(store, "cost")
    paper = {"linear, trajectories": "1.6", "trainable, trajectories": "2.1"}
    rows = [
        [name, spread(r[name] / r["reverse KL"] for r in runs), paper.get(name, "")]
        for name in (runs[0] if runs else ())
        if name not in ("reverse KL", "seconds")
    ]
    return markdown(["a step of", "times one of reverse KL", "the paper"], rows)


# ---- tables -------------------------------------------------------------------------------------


def table(store: Path, name: str) -> str:
    rows = []
    for method in (*METHODS, *AFTERWARDS, TRAJECTORIES):
        runs = load(store, key(name, method))
        if not runs:
            continue
        keys = ("hausdorff", "reverse_kl", "forward_kl", "ess_forward", "ess_reverse")
        rows.append([method, len(runs), *(spread(r[k] for r in runs) for k in keys)])
        far, kl = (max(r[k] for r in runs) for k in ("hausdorff", "reverse_kl"))
        rows[-1] += [f"{far:.2g}; {kl:.2g}; {min(r['ess_forward'] for r in runs):.4f}"]
        more = ("log_z", "acceptance", "imh_ess", "imh_share", "fit_seconds")
        rows[-1] += [spread(r[k] for r in runs) for k in more]
        rows[-1] += [f"{mean(r['evaluations'] for r in runs) / 1e6:.2g}", reached(runs)]
    for (target, method), values in PAPER.items():
        if target == name:
            cells = ["–" if v is None else v for v in values]
            rows.append([f"*paper: {method}*", 3, *cells, *[""] * 9])
    header = ["method", "seeds", "Hausdorff", "reverse KL", "forward KL", "forward ESS"]
    header += ["reverse ESS", "worst Hausdorff; KL; forward ESS", "log Z (0)", "IMH acceptance"]
    header += ["IMH ESS / draws", "first mode's share after IMH", "s to fit", "10⁶ evaluations"]
    return markdown([*header, "10⁶ evaluations (s) to ESS .99"], rows)


def reached(runs: list[Result]) -> str:
    found = [r for r in runs if r.get("evaluations_to_99")]
    if not found:
        return "–"
    asked = mean(r["evaluations_to_99"] for r in found) / 1e6
    count = f" in {len(found)} of {len(runs)}" if len(found) < len(runs) else ""
    return f"{asked:.2g} ({mean(r['seconds_to_99'] for r in found):.0f}){count}"


def draw(path: Path, size: Size) -> None:
    """Trajectories of the unequal pair by each interpolation, and where they end."""
    import matplotlib.pyplot as plt

    make, scale, wider = TARGETS["pair"]
    known = make()
    choices: dict[str, Any] = {
        "linear": {
            "interpolation": "linear",
            "exploration_scale": wider,
            "time_kernels": size.kernels,
        },
        "trainable": {"exploration_scale": wider, "time_kernels": size.kernels},
        "diffusion": {"interpolation": exact_diffusion(known, scale)},
    }
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.8), sharex=True, sharey=True)
    for axis, (title, how) in zip(axes, choices.items()):
        guide = trained(known, scale, size, options=options(size.fewer, *SMC_TRAINING), **how)
        with torch.no_grad():
            u = [guide.get_base_dist().sample((2000,))]
            for k in range(20):
                t = torch.tensor(k / 20)
                middle = u[-1] + guide.flow.velocity(t, u[-1]) / 40
                u.append(u[-1] + guide.flow.velocity(t + 1 / 40, middle) / 20)
        lines = torch.stack([guide.flow.path.loc + guide.flow.path.scale * v for v in u])
        axis.plot(*lines[:, :60].unbind(-1), color="gray", lw=0.5, alpha=0.6)
        axis.scatter(*lines[-1].T, s=2, alpha=0.4)
        share = float(known.mode_fractions(lines[-1])[0])
        axis.set_title(f"{title}: {share:.3f} in the upper mode")
    axes[-1].scatter(*known.sample(2000).T, s=2, alpha=0.4, color="gray")
    axes[-1].set_title("exact draws: 0.333")
    for axis in axes:
        axis.set_aspect("equal")
    figure.tight_layout()
    figure.savefig(path, dpi=80)


PREFACE = """# Deformation flows on Gaussian mixtures

Made by `python examples/benchmarks/papers/deformation_gmm.py --write` from the stored runs in
`examples/benchmarks/results/deformation_gmm.jsonl`; without options it runs what is missing. Mean ±
sd over seeds, float32, hidden layers of 64 units as in the paper. Each run had one CPU core, shared
with other work, so seconds are upper bounds. 10 000 draws for each figure, 4096 for the Hausdorff
distance, whose 99 % quantile over exact draws is .109 for Eq. (2) and .083 for Eq. (11).

"Trainable" and "linear" are trained at points of sequential Monte Carlo along the path. The row
"trajectories" is the paper's trainer, for no fewer seconds than that training took. "Briefly" has
2500 steps in place of 8000. "Polished" continues from there with 100 steps of the path gradient of
the reverse KL, which bring nothing here; more steps at points of sequential Monte Carlo do.
"Distilled" is a spline flow fitted to corrected draws of the diffusion's flow (its seconds and
evaluations are its own). "Reverse KL" is the same network and base, trained for 500 steps.

![Trajectories by three interpolations](images/deformation_gmm.png)
"""


def main() -> None:
    parser = stored_options(__doc__)
    args = parser.parse_args()
    store = args.results / STUDY
    size = Size(args.smoke)
    if args.image:
        torch.manual_seed(0)
        draw(args.image, size)
        return
    if not (args.table or args.write):
        collect_all(store, size, 1 if args.smoke else args.seeds)
        collect(store, {"cost": partial(cost_run, "pair", size)}, range(1 if args.smoke else 3))
    parts = [f"## {title}\n\n{table(store, name)}\n" for name, title in TITLES.items()]
    parts.append(f"## Cost of a step\n\n{cost_table(store)}\n")
    print("\n".join(parts))
    if args.write:
        (DOCS / "deformation_gmm.md").write_text("\n".join([PREFACE, *parts]))


if __name__ == "__main__":
    main()
