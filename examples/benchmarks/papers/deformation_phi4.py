"""Table 2 of the deformation paper: phi^4 on a circle, against the exact solution.

    python examples/benchmarks/papers/deformation_phi4.py [--sites 32]
    python examples/benchmarks/papers/deformation_phi4.py --write  # docs/deformation_phi4.md
    python examples/benchmarks/papers/deformation_phi4.py --image docs/images/deformation_phi4.png

The first runs what is not stored yet under ``examples/benchmarks/results/deformation_phi4.jsonl``,
and all but the last print the table.

Learning Interpolations between Boltzmann Densities: Máté & Fleuret, 2023,
https://arxiv.org/abs/2301.07388.

The stored runs took 11.8 hours on one core; printing them takes seconds.
"""

import sys
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from deformation_runs import options, through_imh, train, train_by_reverse_kl
from metrics import ess_forward, ess_reverse, hausdorff, reverse_kl
from stored_runs import DOCS, collect, load, markdown, names, spread
from stored_runs import options as stored_options

from pyro_flowsamp import AutoDeformationFlow, DeformationOptions, log_evidence
from pyro_flowsamp.lattice import exact_phi4, lattice_symmetries, phi4
from pyro_flowsamp.problems import Problem

matplotlib.use("Agg")
STUDY = "deformation_phi4.jsonl"  #: the file of its stored runs
MASSES = (0.25, 0.5, 0.75, 1.0)
RATES = {4: 2e-2, 16: 2e-2, 32: 2e-2, 64: 1e-2}  #: the widest layers take smaller steps
EDGES = torch.linspace(-5, 5, 81)  #: of the histogram of the mean field

#: m: Hausdorff distance, reverse KL, reverse ESS: deformation, then reverse-KL training
PAPER = {
    0.25: ((1.15, -9.78, 0.99), (1.15, -9.78, 0.98)),
    0.5: ((0.98, -18.8, 0.99), (0.87, -18.7, 0.70)),
    0.75: ((0.84, -37.0, 0.99), (16.7, -36.4, 0.97)),
    1.0: ((0.77, -63.9, 0.99), (20.1, -63.1, 0.94)),
}

Result = dict[str, Any]


class Size:
    """Amounts of work: everything, or a little for the tests."""

    def __init__(self, smoke: bool) -> None:
        self.smoke = smoke
        self.draws = 2048 if smoke else 10_000
        self.steps, self.fewer, self.larger = (10,) * 3 if smoke else (12_000, 7000, 8000)
        self.reverse = 5 if smoke else 400
        self.chains, self.samples = (20, 20) if smoke else (100, 50)
        self.sites = 4 if smoke else 16

    def steps_at(self, mass: float, sites: int) -> int:
        """Deeper wells take longer; larger circles get what minutes allow."""
        if sites > 16:
            return self.larger
        return self.steps if mass > 0.5 else self.fewer


# ---- one run ------------------------------------------------------------------------------------


def average(log_w: Tensor, values: Tensor, truth: float) -> tuple[float, float]:
    """A weighted mean, and its distance from the truth in standard errors."""
    w = log_w.softmax(0)
    value = (w * values).sum()
    error = (w * (values - value)).square().sum().sqrt()
    return float(value), float((value - truth) / error)


@torch.no_grad()
def measure(guide: Any, known: Problem, mass: float, size: Size) -> Result:
    """The paper's figures, and what it did not check: averages of weighted draws."""
    x, log_q = guide.flow(None).rsample_and_log_prob((size.draws,))
    log_p = known.target.log_prob(x)
    log_w = log_p.double() - log_q.double()
    log_z, error = log_evidence(log_w)
    truth = exact_phi4(known.target.dim, mass)
    exact = known.sample(size.draws // 4)
    exact_w = known.target.log_prob(exact).double() - guide.flow(None).log_prob(exact).double()
    field, square = x.mean(-1).double(), x.double().square().mean(-1)
    positive, positive_z = average(log_w, (field > 0).double(), truth.positive)
    squares, squares_z = average(log_w, square, truth.mean_square)
    return {
        "hausdorff": float(hausdorff(known.modes, x[:4096])),
        "reverse_kl": float(reverse_kl(log_q, log_p)),
        "ess_reverse": float(ess_reverse(log_w)),
        "ess_forward": float(ess_forward(exact_w)),
        "log_z_gap": float(log_z) - truth.log_z,
        "log_z_error": float(error),
        "positive": positive,
        "positive_z": positive_z,
        "positive_raw": float((field > 0).double().mean()),
        "mean_square": squares,
        "mean_square_z": squares_z,
        "histogram": histogram(field, log_w.softmax(0)),
        "histogram_raw": histogram(field, torch.full_like(log_w, 1 / len(log_w))),
    }


def histogram(field: Tensor, weights: Tensor) -> list[float]:
    bins = torch.bucketize(field, EDGES.to(field)) - 1
    inside = (bins >= 0) & (bins < len(EDGES) - 1)
    mass = weights.new_zeros(len(EDGES) - 1)
    mass.index_add_(0, bins[inside], weights[inside])
    return [round(m, 6) for m in mass.tolist()]


def chains(guide: Any, known: Problem, size: Size) -> dict[str, float]:
    found = through_imh(guide, known, size.chains, size.samples)
    return {**found, "imh_positive": 1 - found["imh_share"]}


def make(known: Problem, **more: Any) -> AutoDeformationFlow:
    """The paper's base, exp(-(x/2)^4); shifts and reflections tied, which leaves four channels."""
    sites = known.target.dim
    return AutoDeformationFlow(
        known.target,
        base_power=4.0,
        base_scale=2.0,
        symmetry=lattice_symmetries(sites),
        settings=DeformationOptions(hidden_features=8 * sites, time_kernels=4),
        **more,
    )


def by_deformation(mass: float, sites: int, size: Size) -> Result:
    known = phi4(sites, mass)
    guide = make(known, options=options(size.steps_at(mass, sites), RATES[sites], 600))
    history = train(guide)
    reached = next((p for p in guide.progress if p.ess >= 0.99), None)
    return {
        **measure(guide, known, mass, size),
        **chains(guide, known, size),
        "fit_seconds": history.seconds,
        "evaluations": history.evaluations,
        "steps": history.steps,
        "evaluations_to_99": reached and reached.evaluations,
        "integration_steps": guide.flow.block.steps,
        "missed": max(guide.missed_mass.values()),
        "device": known.modes.device.type,
    }


def by_reverse_kl(mass: float, sites: int, size: Size) -> Result:
    """Trains an equal network and base by reverse KL alone."""
    known = phi4(sites, mass)
    guide = make(known)
    guide.target_for()
    history = train_by_reverse_kl(guide, known, size.reverse)
    evaluations = known.target.evaluations  # before the result is measured
    return {
        **measure(guide, known, mass, size),
        **chains(guide, known, size),
        "fit_seconds": history.seconds,
        "evaluations": evaluations,
        "steps": history.steps,
    }


# ---- tables -------------------------------------------------------------------------------------

METHODS = {"deformation": by_deformation, "reverse KL": by_reverse_kl}


def key(mass: float, sites: int, method: str) -> str:
    return f"N{sites}-m{mass}-{method.replace(' ', '_')}"


def runs_of(sites: int, size: Size) -> dict[str, Any]:
    masses = MASSES[1:2] if size.smoke else MASSES if sites == 16 else MASSES[1::2]
    return {
        key(m, sites, name): partial(run, m, sites, size)
        for m in masses
        for name, run in METHODS.items()
        if sites <= 16 or name == "deformation"
    }


def table(store: Path, sites: int) -> str:
    rows = []
    for mass in MASSES:
        for position, method in enumerate(METHODS):
            runs = load(store, key(mass, sites, method))
            if not runs:
                continue
            keys = ("hausdorff", "reverse_kl", "ess_reverse", "ess_forward", "log_z_gap")
            rows.append([mass, method, len(runs), *(spread(r[k] for r in runs) for k in keys)])
            worst = [max(abs(r[k]) for r in runs) for k in ("positive_z", "mean_square_z")]
            rows[-1] += [
                spread(r["positive"] for r in runs),
                f"{exact_phi4(sites, mass).positive:.4f}",
            ]
            rows[-1] += ["; ".join(f"{z:.1f}" if z < 100 else "> 99" for z in worst)]
            more = ("acceptance", "imh_ess", "imh_positive", "fit_seconds")
            rows[-1] += [spread(r[k] for r in runs) for k in more]
            rows[-1] += [f"{mean(r['evaluations'] for r in runs) / 1e6:.2g}", missed(runs)]
            if sites == 16:
                distance, kl, ess = PAPER[mass][position]
                rows.append([mass, f"*paper: {method}*", 3, distance, kl, ess, *[""] * 11])
    header = ["m", "method", "seeds", "Hausdorff", "reverse KL", "reverse ESS", "forward ESS"]
    header += ["log Z − exact", "P(φ̄ > 0)", "exact", "worst \\|z\\|: P, ⟨φ²⟩"]
    header += ["IMH acceptance", "IMH ESS / draws", "IMH P(φ̄ > 0)", "s to fit", "10⁶ evaluations"]
    return markdown([*header, "evidence missed"], rows)


def missed(runs: list[Result]) -> str:
    """The missed evidence of every seed, where `fit` has looked for it."""
    return ", ".join(f"{r['missed']:.1g}" for r in runs if "missed" in r) or "–"


def draw(store: Path, path: Path, sites: int) -> None:
    """The mean field's histogram, of the flow's draws and weighted, against its exact density."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(14, 3.4), sharey=True)
    middle, width = 0.5 * (EDGES[1:] + EDGES[:-1]), float(EDGES[1] - EDGES[0])
    for axis, mass in zip(axes, MASSES):
        runs = load(store, key(mass, sites, "deformation"))
        if not runs:
            continue
        for name, style in (("histogram_raw", "C1"), ("histogram", "C0")):
            heights = torch.tensor([r[name] for r in runs]).mean(0) / width
            label = "weighted" if name == "histogram" else "flow"
            axis.stairs(
                heights, EDGES, color=style, fill=name == "histogram_raw", alpha=0.6, label=label
            )
        axis.plot(middle, exact_phi4(sites, mass).density(middle), "k-", lw=1, label="exact")
        axis.set_title(f"m = {mass}")
        axis.set_xlabel("mean field")
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)


PREFACE = """# Deformation flows on φ⁴

Made by `python examples/benchmarks/papers/deformation_phi4.py --write` from the stored runs in
`examples/benchmarks/results/deformation_phi4.jsonl`; `--sites 16|32|64` runs what is missing. Mean
± sd over seeds, float32. Seconds are upper bounds: of one CPU core shared with other work (two runs
of N = 32, m = 1 had but a third of one). 10 000 draws, and 100 chains of 50 draws through IMH;
exact values by the transfer operator. P and ⟨φ²⟩ are of draws with importance weights, their
z-scores against the exact values. "Evidence missed" is what annealing finds where the flow has next
to no density, in units of the flow's own, for every seed; `fit` warns above .01.

"Reverse KL" is the same network and base, trained by reverse KL alone for 400 steps, two to four
minutes: too few for the reverse ESS of the paper's.

**N = 64** at m = .5: all three flows have both phases, two of them the smaller with two fifths and
a third of its mass, at a reverse ESS of .30 and .06, the third with nine tenths, at .89. The
weights put P, ⟨φ²⟩ and log Z right within 1.4 standard errors. At m = 1 the smaller phase has .0009
of the mass. Two flows have found it (forward ESS .82 and .36, P within 1.3 standard errors); the
other has not, with a reverse ESS of .76 and P = 1: nothing in its weights tells, and annealing does
not either ("evidence missed"). Only the forward ESS of exact draws does.

![Histograms of the mean field](images/deformation_phi4.png)
"""


def main() -> None:
    parser = stored_options(__doc__)
    parser.add_argument(
        "--sites", type=int, choices=sorted(RATES), help="of the circle; 16 is the paper's"
    )
    parser.add_argument("--device", default="cpu", help="cuda for a GPU")
    args = parser.parse_args()
    store = args.results / STUDY
    torch.set_default_device(args.device)
    size = Size(args.smoke)
    sites = args.sites or size.sites
    if args.image:
        draw(store, args.image, sites)
        return
    if not (args.table or args.write):
        collect(store, runs_of(sites, size), range(1 if args.smoke else args.seeds))
    shown = [sites]
    if args.write:
        stored = {name.split("-")[0] for name in names(store)}
        shown = [n for n in (16, 32, 64) if f"N{n}" in stored]
    parts = [f"## N = {n}\n\n{table(store, n)}\n" for n in shown]
    print("\n".join(parts))
    if args.write:
        (DOCS / "deformation_phi4.md").write_text("\n".join([PREFACE, *parts]))


if __name__ == "__main__":
    main()
