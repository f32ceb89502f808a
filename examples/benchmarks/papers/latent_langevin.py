"""NF-MALA: flows trained on data alone, sampled naively and by Langevin in their latent space.

    python examples/benchmarks/papers/latent_langevin.py moons|ring|corners|digits

runs what is not stored yet under ``examples/benchmarks/results/latent_langevin.jsonl`` and prints
the tables; ``all`` prints every table and writes them to ``docs/latent_langevin.md``, ``picture``
draws that page's picture.

Normalizing flow sampling with Langevin dynamics in the latent space: Coeurdoux, Dobigeon &
Chainais, 2023, https://arxiv.org/abs/2305.12149.

The stored runs took an hour on one core; printing them takes seconds (``all --table``).
"""

import argparse
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from math import log, pi
from pathlib import Path
from typing import Any

import matplotlib
import torch
from pyro.ops.stats import effective_sample_size
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from metrics import mmd, wasserstein2
from stored_runs import DOCS, RESULTS, collect, load, markdown, spread

from pyro_flowsamp import FitOptions, ForwardKL, LatentMALA, VectorizedMCMC, ess_fraction
from pyro_flowsamp.flows.mixture_fit import Mixture
from pyro_flowsamp.flows.proposal import Proposal
from pyro_flowsamp.flows.recipes import LayeredFlow, coupling, spline
from pyro_flowsamp.training.train import fit

matplotlib.use("Agg")
STUDY = "latent_langevin.jsonl"  #: the file of its stored runs

Result = dict[str, Any]


class Size:
    """Amounts of work: everything, or a little for the tests."""

    def __init__(self, smoke: bool) -> None:
        self.smoke = smoke
        self.seen, self.points = (500, 100) if smoke else (10_000, 1000)
        self.rounds = 1 if smoke else 8
        self.warmup, self.samples = (5, 5) if smoke else (300, 100)


# ---- data ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Data to train flows on, data to compare draws with, and their components.

    Attributes:
        seen: The training data, ``(N, d)``.
        check: By which a training's best round is picked.
        reference: Held out: what draws are compared with.
        exact: Held out as well: how the best draws there could be would fare.
        distances: Of points ``(N, d)`` from each component, ``(N, K)``.
        ends: A point of each of two components, ``(2, d)``: a bridge's ends.
        between: Which points ``(N, d)`` lie between components.
        view: How draws are looked at, ``(N, d)``.
        steps: In a round of training.
        copies: How often ``seen`` repeats its points, a whole round at a time.
    """

    seen: Tensor
    check: Tensor
    reference: Tensor
    exact: Tensor
    distances: Callable[[Tensor], Tensor]
    ends: Tensor
    between: Callable[[Tensor], Tensor] | None = None
    view: Callable[[Tensor], Tensor] = lambda x: x
    steps: int = 250
    copies: int = 1


def drawn(sample: Callable[[int], Tensor], size: Size, **rest: Any) -> Data:
    sizes = [size.seen, size.points, size.points, size.points]
    return Data(*sample(sum(sizes)).split(sizes), **rest)


CENTRES = torch.tensor([[0.0, 0.0], [1.0, 0.5]])  #: of the moons' arcs, of radius one
SIDES = torch.tensor([1.0, -1.0])  #: above the first centre, below the second
NOISE = 0.05


def sample_moons(num: int) -> Tensor:
    which, angle = torch.randint(2, (num,)), pi * torch.rand(num)
    arc = torch.stack([angle.cos(), SIDES[which] * angle.sin()], -1)
    return CENTRES[which] + arc + NOISE * torch.randn(num, 2)


def from_arcs(x: Tensor) -> Tensor:
    """Distances from both half circles; from their tips where these are nearer."""
    x = x[:, None] - CENTRES
    radial = (x.norm(dim=-1) - 1).abs()
    tips = torch.stack([x[..., 0].abs() - 1, x[..., 1]], -1).norm(dim=-1)
    return torch.where(SIDES * x[..., 1] > 0, radial, tips)


def between_arcs(x: Tensor) -> Tensor:
    """Over 4 σ from both arcs, on or near a segment shorter than one that joins them."""
    far = from_arcs(x)
    return (far.amin(-1) > 4 * NOISE) & (far.sum(-1) < 1)


def moons(size: Size) -> Data:
    ends = CENTRES + torch.stack([0 * SIDES, SIDES], -1)  # the middles of the arcs
    return drawn(sample_moons, size, distances=from_arcs, ends=ends, between=between_arcs)


def mixture(weights: list[float], locs: Tensor, size: Size) -> Data:
    """Unit Gaussians."""
    dim = locs.shape[-1]
    exact = Mixture(torch.tensor(weights).log(), locs, torch.eye(dim).repeat(len(locs), 1, 1))
    return drawn(
        exact.sample,
        size,
        distances=lambda x: torch.cdist(x, locs),
        ends=locs[:2],
        between=lambda x: between_centres(x, locs),
    )


def between_centres(x: Tensor, locs: Tensor) -> Tensor:
    """Whether x is in the middle between two centres: three tenths, at most √d + 1 off the line."""
    near = locs[torch.cdist(x, locs).topk(2, largest=False).indices]
    line = near[:, 1] - near[:, 0]
    along = ((x - near[:, 0]) * line).sum(-1) / line.square().sum(-1)
    off = (x - near[:, 0] - along[:, None] * line).norm(dim=-1)
    return (along > 0.35) & (off < x.shape[-1] ** 0.5 + 1)


def ring(size: Size) -> Data:
    """Six in the plane, ten from each other, every other one thrice as heavy."""
    angles = torch.arange(6) * pi / 3
    locs = 10 * torch.stack([angles.cos(), angles.sin()], -1)
    return mixture([1 / 12, 1 / 4] * 3, locs, size)


def corners(size: Size) -> Data:
    """Four in eight dimensions, ten from each other, of masses .1, .2, .3, .4."""
    return mixture([0.1, 0.2, 0.3, 0.4], 10 / 2**0.5 * torch.eye(8)[:4], size)


NOISES = 20  #: dequantised copies of every image
MARGIN = 0.05  #: that greys keep from black and white, for their logits


def squeezed(greys: Tensor) -> Tensor:
    """Logits of greys from 0 to 17."""
    return (MARGIN + (1 - 2 * MARGIN) * greys / 17).logit()


def as_images(x: Tensor) -> Tensor:
    """Whole greys from 0 to 16, for any logits."""
    return (17 * (x.sigmoid() - MARGIN) / (1 - 2 * MARGIN)).floor().clamp(0, 16)


def digits(size: Size) -> Data:
    """Handwritten digits, 8 × 8 pixels of 17 greys: logits of them and uniform noise."""
    from sklearn.datasets import load_digits

    images, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(len(images))
    images, labels = images[order].float(), labels[order]
    held_out = 100 if size.smoke else 300
    sizes = [len(images) - 3 * held_out, *[held_out] * 3]
    parts = list(squeezed(images + torch.rand_like(images)).split(sizes))
    copies = images[: sizes[0]].repeat(NOISES, 1)
    parts[0] = squeezed(copies + torch.rand_like(copies))
    seen, labels = images[: sizes[0]], labels[: sizes[0]]
    means = torch.stack([seen[labels == k].mean(0) for k in range(10)])
    typical = torch.cdist(means[:2], seen).argmin(-1)  # a nought and a one
    return Data(
        *parts,
        distances=lambda x: torch.cdist(x, means),
        ends=squeezed(seen[typical] + 0.5),
        view=as_images,
        steps=30,  # few images are soon learnt by heart
        copies=NOISES,
    )


DATA: dict[str, Callable[[Size], Data]] = {
    make.__name__: make for make in (moons, ring, corners, digits)
}

# ---- flows --------------------------------------------------------------------------------------

FLOWS: dict[str, Callable[[int], LayeredFlow]] = {
    "affine": partial(coupling, transforms=8),
    "spline": spline,
    "mixture base": partial(spline, components=16),
}


def trained(data: Data, recipe: Callable[[int], LayeredFlow], size: Size) -> LayeredFlow:
    """Trains by maximum likelihood, in rounds; the one that predicts best is kept."""
    flow = recipe(data.seen.shape[-1])
    # One copy of each: a mixture is chosen by points that its components have not seen.
    flow.initialize_from(data.seen[: len(data.seen) // data.copies])
    objective = ForwardKL(data.seen)
    options = FitOptions(
        10 if size.smoke else data.steps, 256, 2e-3, cosine_schedule=True, progress=False
    )
    best, state = -torch.inf, flow.state_dict()
    for _ in range(size.rounds):
        fit(flow.parameters(), lambda: objective(flow, None, 256), ess_fraction, options)
        with torch.no_grad():
            predicted = float(flow(None).log_prob(data.check).mean())
        if predicted > best:
            best, state = predicted, deepcopy(flow.state_dict())
    flow.load_state_dict(state)
    return flow


def bridge(flow: LayeredFlow, data: Data, num: int = 101) -> tuple[Tensor, Tensor]:
    r"""Along a straight line in z between two components: :math:`\log|\det J|`, :math:`\|J\|_2`."""
    proposal = Proposal(flow)
    first, last = proposal.pull(data.ends)
    z = first + torch.linspace(0, 1, num)[:, None] * (last - first)
    eye = torch.eye(z.shape[-1])
    columns = proposal.push_vector(z.repeat_interleave(len(eye), 0), eye.repeat(num, 1))
    norms = torch.linalg.matrix_norm(columns.unflatten(0, (num, -1)), ord=2)
    return proposal.push(z)[1], norms


# ---- samplers -----------------------------------------------------------------------------------

JUMPS = 0.1
KERNELS: dict[str, dict[str, Any]] = {
    "MALA": {},
    "MALA, jumps": {"global_prob": JUMPS},
    "Jacobian MALA": {"metric": "jacobian"},
    "Jacobian MALA, jumps": {"metric": "jacobian", "global_prob": JUMPS},
}


def chains(flow: LayeredFlow, num: int, size: Size, **how: Any) -> tuple[Tensor, Result]:
    """The last draw of each chain of NF-MALA, begun at draws of the flow; how they fared."""
    kernel = LatentMALA(flow=flow, target="sharpened", **how)
    mcmc = VectorizedMCMC(kernel, size.samples, size.warmup, num, disable_progbar=True)
    mcmc.run()
    x = mcmc.get_samples(group_by_chain=True)["x"]
    effective = effective_sample_size(x.double(), chain_dim=0, sample_dim=1)
    # By the chains' own passes from z to x: far out x may not lead back to z in float32.
    log_p, log_w = (mcmc.statistics[name][:, -1] for name in ("lp", "log_weight"))
    log_base = log_p - 2 * log_w
    return x[:, -1], {
        "log_q": float((log_p - log_w).median()),
        "radius": float((-2 * log_base / x.shape[-1] - log(2 * pi)).median()),
        "acceptance": float(mcmc.statistics["accepted"].double().mean()),
        "effective": float(effective.min()) / x[..., 0].numel(),
        "step_size": float(kernel.step_size),
        "chain_seconds": mcmc.seconds["warmup"] + mcmc.seconds["sampling"],
    }


# ---- how good draws are -------------------------------------------------------------------------


def nearest(x: Tensor, seen: Tensor) -> Tensor:
    return torch.cat([torch.cdist(rows, seen).amin(-1) for rows in x.split(500)])


def classifier_accuracy(x: Tensor, y: Tensor) -> float:
    """Returns the accuracy of a small network that separates unseen points of ``x`` and ``y``."""
    from sklearn.model_selection import cross_val_score
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    points = torch.cat([x, y]).double().numpy()
    labels = [0] * len(x) + [1] * len(y)
    network = MLPClassifier((64, 64), learning_rate_init=3e-3, max_iter=100, random_state=0)
    classifier = make_pipeline(StandardScaler(), network)
    return float(cross_val_score(classifier, points, labels, cv=2).mean())


class Judge:
    """Everything that is said of draws, by the same held-out data for all of them."""

    def __init__(self, data: Data) -> None:
        self.data, self.seen = data, data.view(data.seen).unique(dim=0)
        self.reference = data.view(data.reference)
        self.edge = nearest(self.reference, self.seen).quantile(0.99)
        self.width = self._width(self.reference)
        self.shares = self._shares(self.seen)
        # A tenth of the median in the plane; in more dimensions nothing is as near as that.
        wide = 0.1 if self.seen.shape[-1] == 2 else 0.5
        self.bandwidth = wide * torch.pdist(self.reference[:1000]).median()

    def _width(self, x: Tensor) -> Tensor:
        return self.data.distances(x).amin(-1).median()

    def _shares(self, x: Tensor) -> Tensor:
        found = self.data.distances(x)
        return found.argmin(-1).bincount(minlength=found.shape[-1]) / len(x)

    def __call__(self, x: Tensor) -> Result:
        x = self.data.view(x)
        between = self.data.between
        return {
            "off": float((nearest(x, self.seen) > self.edge).double().mean()),
            "between": None if between is None else float(between(x).double().mean()),
            "width": float(self._width(x) / self.width),
            "shares": float((self._shares(x) - self.shares).abs().max()),
            "mmd": float(mmd(x, self.reference, self.bandwidth)),
            "w2": wasserstein2(x, self.reference, 1000),
            "told_apart": classifier_accuracy(x, self.reference),
        }


def by_flow(flow: LayeredFlow, x: Tensor) -> Result:
    r"""Medians of :math:`\log q_X` and :math:`\|z\|^2 / d`."""
    q = flow(None)
    with torch.no_grad():
        log_q, squares = q.log_prob(x), q.transform(x).square().mean(-1)
    return {"log_q": float(log_q.median()), "radius": float(squares.median())}


def flow_run(name: str, recipe: str, size: Size) -> Result:
    """One flow: how well it fits, its bridge, and its draws by every sampler."""
    data = DATA[name](size)
    flow = trained(data, FLOWS[recipe], size)
    judge, num = Judge(data), len(data.exact)
    log_det, norms = bridge(flow, data)
    with torch.no_grad():
        fits = {k: flow(None).log_prob(getattr(data, k)).mean() for k in ("seen", "reference")}
        naive = flow(None).sample((num,))
    result = {
        **{f"log_q_{key}": float(value) for key, value in fits.items()},
        "peak": float(log_det.max() - log_det[[0, -1]].max()),
        "norm_peak": float(norms.max() / norms[[0, -1]].max()),
        "exact": {**judge(data.exact), **by_flow(flow, data.exact)},
        "naive": {**judge(naive), **by_flow(flow, naive)},
    }
    for kernel, how in KERNELS.items() if flow.base.components == 1 else ():
        x, fared = chains(flow, num, size, **how)
        result[kernel] = {**judge(x), **fared}
    return result


# ---- tables -------------------------------------------------------------------------------------

MEASURES = ("off", "between", "width", "shares", "mmd", "w2", "told_apart")
OF_CHAINS = ("log_q", "radius", "acceptance", "effective")
HEADER = ["off the data", "between", "width", "share error", "MMD²", "W2", "classifier"]


def key(name: str, recipe: str) -> str:
    return f"{name}-{recipe.replace(' ', '_')}"


def cell(found: list[Result], measure: str) -> str:
    values = [f[measure] for f in found if f.get(measure) is not None]
    if measure in ("off", "between") and values:
        return spread((100 * v for v in values), 2) + " %"
    return spread(values, 2 if measure == "mmd" else 3)


def draws_table(store: Path, name: str) -> str:
    rows = []
    for recipe in FLOWS:
        runs = load(store, key(name, recipe))
        for sampler in ("naive", *KERNELS):
            found = [run[sampler] for run in runs if sampler in run]
            if not found:
                continue
            cells = [cell(found, measure) for measure in (*MEASURES, *OF_CHAINS)]
            rows.append([recipe, sampler, len(runs), *cells])
        if recipe == next(iter(FLOWS)) and runs:
            found = [run["exact"] for run in runs]
            rows.insert(0, ["–", "*held-out data*", len(runs), *(cell(found, m) for m in MEASURES)])
            rows[0] += [""] * len(OF_CHAINS)
    header = [*HEADER, "log q", "‖z‖² / d", "acceptance", "effective / draws"]
    return markdown(["flow", "draws", "seeds", *header], rows)


def flows_table(store: Path, name: str) -> str:
    rows = []
    for recipe in FLOWS:
        runs = load(store, key(name, recipe))
        if runs:
            keys = ("log_q_seen", "log_q_reference", "peak", "norm_peak", "seconds")
            rows.append([recipe, len(runs), *(spread(r[k] for r in runs) for k in keys)])
    header = ["flow", "seeds", "log q of training data", "of held-out data"]
    header += ["peak of log \\|det J\\| on the bridge", "‖J‖ there / at its ends", "s"]
    return markdown(header, rows)


# ---- picture ------------------------------------------------------------------------------------

SHOWN = ("naive", "MALA, jumps", "Jacobian MALA, jumps")


def picture(path: Path, size: Size) -> None:
    """Data, draws and the bridge of a flow of affine couplings, set by set."""
    import matplotlib.pyplot as plt

    names = ("moons", "ring", "digits")
    figure, axes = plt.subplots(len(names), len(SHOWN) + 2, figsize=(15, 9))
    for row, name in zip(axes, names):
        torch.manual_seed(0)
        data = DATA[name](size)
        flow = trained(data, FLOWS["affine"], size)
        draws = {"held-out data": data.exact, "naive": flow(None).sample((len(data.exact),))}
        for kernel in SHOWN[1:]:
            draws[kernel] = chains(flow, len(data.exact), size, **KERNELS[kernel])[0]
        for axis, (title, x) in zip(row, draws.items()):
            axis.set_title(title)
            show(axis, data.view(x), data.reference)
        along(row[-1], *bridge(flow, data))
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def show(axis: Any, x: Tensor, like: Tensor) -> None:
    """Points in the plane, or the first draws as images."""
    if x.shape[-1] == 2:
        axis.scatter(*x.T, s=2, alpha=0.4)
        low, high = like.amin(0), like.amax(0)
        margin = 0.15 * (high - low)
        axis.set_xlim(low[0] - margin[0], high[0] + margin[0])
        axis.set_ylim(low[1] - margin[1], high[1] + margin[1])
        return
    images = torch.nn.functional.pad(x[:40].reshape(5, 8, 8, 8), (1, 1, 1, 1))
    rows = images.transpose(1, 2).reshape(50, 80)
    axis.imshow(rows, cmap="gray_r", aspect="equal")
    axis.axis("off")


def along(axis: Any, log_det: Tensor, norms: Tensor) -> None:
    t = torch.linspace(0, 1, len(norms))
    axis.plot(t, log_det - log_det[0], label="log |det J|, from 0")
    axis.plot(t, norms.log() - norms[0].log(), label="log ‖J‖, from 0")
    axis.set_title("the bridge")
    axis.legend(fontsize="small")


# ---- the page in docs and the command line ------------------------------------------------------

PREFACE = """# NF-MALA: Langevin in the latent space of a flow trained on data

Made by `python examples/benchmarks/papers/latent_langevin.py all --table` from the stored runs in
`examples/benchmarks/results/latent_langevin.jsonl`; without `--table` it runs what is missing. Mean
± sd over seeds, each with data, flow and chains of its own; float32 on one CPU core shared with
other work.

**NF-MALA does not sample the data's density, nor the flow's.** Its target is the flow sharpened,
q_X(x)² / q_Z(f⁻¹(x)): fewer draws off the data, because |det J| is large on the bridges between
components, but also components narrower than they are, and of other masses. So both sides are
shown: what gets better (off the data, between), and what it costs (width, share error, and with
them MMD², W2 and the classifier, which judge the whole distribution).

- *Off the data*: draws farther from the training data than 99 % of the held-out data are: exact
  draws have 1 %.
- *Between*: draws between components, defined for each set below.
- *Width*: the median distance from the nearest component, over that of held-out data.
- *Share error*: the largest error of a component's share of the draws (nearest component),
  against the training data's.
- *MMD²*, *W2*: distances to held-out data. *Classifier*: the accuracy of a network (64, 64) that
  separates draws from held-out data, by two-fold cross-validation. It is .5 at chance.
- *log q*, *‖z‖² / d*: medians over the draws, by the flow. Sharpened draws have a higher log q
  than the data have, and need not lie where the latent normal does.
- *Effective / draws*: of the slowest coordinate, over all draws of the chains after warm-up, 100 of
  each: at .01 or less the chains have not mixed, and show where they went, not their target. Chains
  without jumps hardly pass from component to component: their shares are the flow's, nearly.

The row of held-out data is the noise of all of these. Flows: eight affine couplings (Real NVP, as
in the paper); six spline couplings; these over a mixture of up to 16 Gaussians fitted to the
training data instead of one, which is the other cure for bridges, and needs no chains. All by
maximum likelihood on the training data, with the best of eight rounds kept by a part of its own.
Every chain starts at a draw of the flow, warms up for 300 steps and is judged by its last draw;
jumps are proposed with probability .1. The bridge is a straight line in z between two components;
its peak is over the higher of its ends.

![Data, draws, and the bridge](images/latent_langevin.png)

The picture's flows are the affine ones. Digits are drawn as they are judged, rounded to 17 greys.
"""
TEXTS = {
    "moons": "## Double moon\n\n10 000 points around two half circles of radius 1, σ = .05. "
    "Between: over 4 σ from both arcs, and the distances from them add up to less than 1.",
    "ring": "## Six Gaussians in the plane\n\n10 000 points of unit Gaussians on a circle, 10 from "
    "each other, every other one of mass 1/4, the others 1/12. Between: in the middle three tenths "
    "of the way between the two nearest centres, no more than √d + 1 off the line.",
    "corners": "## Four Gaussians in eight dimensions\n\n10 000 points of unit Gaussians, 10 from "
    "each other, of masses .1, .2, .3, .4. Between: as above.",
    "digits": "## Digits\n\nscikit-learn's 1797 images of 8 × 8 pixels: 897 to train on, with "
    "uniform noise that is drawn twenty times for each, as logits of .05 + .9 of the grey; 300 to "
    "pick the best round by; twice 300 held out. Draws are rounded to the 17 greys of the data "
    "before they are judged. Components are the classes' means; no band is between them. A "
    "high log q far out (‖z‖² / d well over 1) is the flow's own doing: where nothing was learnt, "
    "affine couplings may shrink volumes by hundreds of nats, and a sharpened flow prefers that.",
}


def tables(store: Path, name: str) -> str:
    return f"{TEXTS[name]}\n\n{draws_table(store, name)}\n\n{flows_table(store, name)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=[*DATA, "picture", "all"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--image", type=Path, default=DOCS / "images" / "latent_langevin.png")
    parser.add_argument("--table", action="store_true", help="only print what is stored")
    parser.add_argument("--smoke", action="store_true", help="seconds, for the tests")
    args = parser.parse_args()
    store = args.results / STUDY
    size = Size(args.smoke)
    if args.study == "picture":
        picture(args.image, size)
        print(f"wrote {args.image}")
        return
    chosen = list(DATA) if args.study == "all" else [args.study]
    flows = list(FLOWS)[:1] if args.smoke else list(FLOWS)
    for name in chosen:
        if not args.table:
            runs = {key(name, flow): partial(flow_run, name, flow, size) for flow in flows}
            collect(store, runs, range(1 if args.smoke else args.seeds))
        print(f"\n{tables(store, name)}", flush=True)
    if args.study == "all" and not args.smoke:
        pages = [tables(store, name) for name in DATA]
        (DOCS / "latent_langevin.md").write_text("\n".join([PREFACE, *pages]))


if __name__ == "__main__":
    main()
