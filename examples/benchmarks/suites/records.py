r"""The literature's targets: log evidence, modes and distances of this package's methods.

::

    python examples/benchmarks/suites/records.py                   # what is missing, the table
    python examples/benchmarks/suites/records.py --targets seeds --methods sample flow --seeds 0 1
    python examples/benchmarks/suites/records.py --table           # the table of stored runs
    python examples/benchmarks/suites/records.py --table --write   # and docs/records.md
    python examples/benchmarks/suites/records.py --truth seeds     # a true log evidence again
    python examples/benchmarks/suites/records.py --image docs/images/records.png

The targets are in ``problems/records``. The methods have default settings:

- *sample*: ``sample()``, and the log evidence that it states; beside it, in a line of its own,
  ``log_evidence()`` of its draws and the target, by bridge sampling from a mixture fitted to them;
- *annealing*: ``AutoAnnealingFlow`` and its particles;
- *flow*: ``AutoFlow``, ``IMH`` and bridge sampling between their draws; where the target has
  several modes, the flow starts from ``tempered_smc``;
- *deformation*: ``AutoDeformationFlow`` and its particles, in at most 61 dimensions;
- *adversarial*: ``AutoAdvNF`` from ``tempered_smc``, ``IMH`` and bridge sampling, on mixtures;
- *dynesty* and *pocoMC*: nested sampling in at most 35 dimensions, and preconditioned SMC in at
  most 61, of other packages (``baselines/evidence.py``), by the interpreter ``--rivals-python``.

A run ends where its cost, gradients and a third of the densities without gradient, reaches
:data:`CAP`, and never by the clock. Each run is in a process of its own, and is stored in
``results/records.jsonl`` when it ends; a rerun does what is missing.

With the estimate :math:`\hat\ell` of the truth :math:`\ell`, and their standard errors s and e, the
t-value is :math:`(\hat\ell - \ell) / \sqrt{s^2 + e^2}`. Where s comes of R independent islands, it
has Student's distribution of :math:`R - 1` degrees of freedom.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf, isfinite, sqrt
from pathlib import Path
from statistics import mean, median
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from scipy.stats import kstest
from scipy.stats import t as student
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from baselines.evidence import RIVALS, Reference
from metrics import wasserstein2
from problems.records import TARGETS, LiteratureTarget
from problems.records.evidence import TRUTHS
from stored_runs import (
    DOCS,
    add_options,
    append,
    has_package,
    load,
    markdown,
    measured,
    missing,
)
from suites.gradients import Cost, number

from pyro_flowsamp import (
    IMH,
    AutoAdvNF,
    AutoAnnealingFlow,
    AutoDeformationFlow,
    AutoFlow,
    DeformationOptions,
    FitOptions,
    Target,
    VectorizedMCMC,
    log_evidence,
    sample,
    tempered_smc,
)
from pyro_flowsamp.problems import Problem
from pyro_flowsamp.smc.particles import Particles
from pyro_flowsamp.target import as_target
from pyro_flowsamp.trust import draws_of_flow
from pyro_flowsamp.weights import Estimate, student_t_quantile

STUDY = "records.jsonl"  #: the file of its stored runs
CAP = {61: 1e7, 1600: 3e7}  #: the largest cost of a run, by the largest dimension
DEFORMATION_DIM = 61  #: the largest dimension of ``AutoDeformationFlow``
RIVAL_DIM = {"dynesty": 35, "pocoMC": 61}  #: the largest dimension of other packages' samplers
BATCHES, BATCH = 10, 2000  #: batches of draws whose log evidences are compared with the truth
ISLANDS = 16  #: of particles
SEARCH_ISLANDS = 4  #: of the search for modes of ``sample()``
SHARE_DRAWS = 1_000_000  #: exact draws that give the true share of each mode
EXACT_SETS = 20  #: sets of exact draws whose total variation is averaged
FLOOR_PAIRS = 8  #: pairs of sets of exact draws whose distance is averaged
FOUND = 0.25  #: of its share, from which a mode counts as found
CONFIDENCE = 0.999  #: of the bound of t-values
WITHIN = 0.05  #: a log evidence that is nearer to the truth is called right
LEAST_SHOWN = 1e-4  #: the least error in the picture
EXACT_SEED = 12345  #: of exact draws, which are the same for every run
SMOKE = ("gmm9_2",)
SMOKE_METHODS = ("annealing", "flow", "adversarial", "deformation")


@dataclass(frozen=True)
class Size:
    """Amounts of work: everything, or a little for the tests.

    Attributes:
        batch: Draws of each batch, a multiple of the number of islands.
        chains: Chains of independent Metropolis–Hastings.
        steps: Their draws, and as many before them.
        shares: Exact draws that give the true shares.
        training: Options of all trainings in place of the defaults.
        annealing: Arguments of ``AutoAnnealingFlow``.
        deformation: Arguments of ``AutoDeformationFlow``.
    """

    batch: int = BATCH
    chains: int = 200
    steps: int = 100
    shares: int = SHARE_DRAWS
    training: dict[str, Any] = field(default_factory=dict)
    annealing: dict[str, Any] = field(default_factory=dict)
    deformation: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, smoke: bool) -> "Size":
        if not smoke:
            return cls()
        brief = {"options": FitOptions(5, 64, 5e-3, progress=False)}
        path = {"num_particles": 512, "target_ess": 0.3, "mcmc_steps": 1}
        settings = {"settings": DeformationOptions(time_grid=4, hidden_features=16)}
        return cls(160, 20, 10, 10_000, brief, path, settings)


# ---- the cap -------------------------------------------------------------------------------------


class CapReached(BaseException):
    """Tells that a run has spent its gradients; no handler of ``Exception`` stops it."""


def cap(dim: int) -> float:
    """The largest cost of a run, in gradients."""
    return next(most for bound, most in CAP.items() if dim <= bound)


@contextmanager
def capped(cost: Cost, most: float) -> Iterator[None]:
    """Counts the cost meanwhile, and raises :class:`CapReached` where it exceeds ``most``."""
    with cost.counted():
        counting = Target.log_prob

        def checking(target: Any, x: Any, context: Any = None) -> Any:
            if cost.total > most:
                raise CapReached
            return counting(target, x, context)

        Target.log_prob = checking  # type: ignore[method-assign]
        try:
            yield
        finally:
            Target.log_prob = counting  # type: ignore[method-assign]


# ---- methods -------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """The result of a method.

    Attributes:
        evidence: The log evidence with its standard error.
        x: Equally weighted unconstrained draws, ``(BATCH, d)``.
        degrees: Degrees of freedom of the standard error.
        batches: Log evidences of batches of ``BATCH`` draws.
        elbo: The mean log weight of draws of the flow alone.
        more: Further fields of the stored line.
    """

    evidence: Estimate
    x: Tensor
    degrees: float = inf
    batches: list[float] = field(default_factory=list)
    elbo: float | None = None
    more: dict[str, Any] = field(default_factory=dict)


def by_sample(target: Target, seed: int) -> Outcome:
    """The draws of ``sample()``, and the log evidence that it states.

    The result does not say of what the standard error is. Without a flow that jumps it is that of
    the particles of the search for modes, on four islands.
    """
    found = sample(target, seed=seed, progress=False)
    draws = {s.name: torch.as_tensor(found["posterior"][s.name].values) for s in target.sites}
    x = target.pack({k: v.flatten(0, 1).to(target.dtype) for k, v in draws.items()})
    attrs = found.attrs
    evidence = Estimate(*(torch.tensor(attrs[k]) for k in ("log_evidence", "log_evidence_error")))
    jumps = "(" in attrs["method"]
    try:
        bridged: list[float] | None = [float(v) for v in log_evidence(found, target=target)]
    except ValueError:  # too few draws for a covariance
        bridged = None
    keys = ("method", "candidates", "dtype", "problems", "modes", "reliable", "thin")
    return Outcome(
        evidence,
        x[torch.randperm(len(x))[:BATCH]],
        inf if jumps else SEARCH_ISLANDS - 1,
        more={key: int(v) if hasattr(v := attrs[key], "__index__") else v for key in keys}
        | {"bridged": bridged},
    )


def by_annealing(target: Target, size: Size) -> Outcome:
    """The particles of ``AutoAnnealingFlow``."""
    guide = AutoAnnealingFlow(target, **size.training, **size.annealing)
    guide.fit()
    more = {"blocks": len(guide.reports)}
    return of_particles(
        guide, target, lambda num: guide.particles(num, islands=ISLANDS), size, more
    )


def by_deformation(target: Target, size: Size) -> Outcome:
    """The particles of ``AutoDeformationFlow``."""
    guide = AutoDeformationFlow(target, **size.training, **size.deformation)
    guide.fit()
    return of_particles(guide, target, lambda num: guide.particles(num, islands=ISLANDS), size, {})


def of_particles(
    guide: Any,
    target: Target,
    particles: Callable[[int], Particles],
    size: Size,
    more: dict[str, Any],
) -> Outcome:
    """The log evidence by particles, of all batches together and of each."""
    whole = particles(BATCHES * size.batch)
    batches = [float(particles(size.batch).evidence.value) for _ in range(BATCHES)]
    elbo, _ = fresh_weights(guide, target, size)
    return Outcome(whole.evidence, whole.draw(size.batch), ISLANDS - 1, batches, elbo, more)


def by_flow(target: Target, size: Size, several: bool) -> Outcome:
    """The draws of independent Metropolis–Hastings with ``AutoFlow``, and bridge sampling."""
    guide = AutoFlow(target, ensemble=tempered_smc if several else None, **size.training)
    guide.fit()
    return of_flow(guide, target, size)


def by_adversarial(target: Target, size: Size) -> Outcome:
    """The draws of independent Metropolis–Hastings with ``AutoAdvNF``, and bridge sampling."""
    guide = AutoAdvNF(target, **size.training)
    guide.fit(ensemble=tempered_smc)
    return of_flow(guide, target, size)


def of_flow(guide: Any, target: Target, size: Size) -> Outcome:
    """The draws of a flow, made exact by independent Metropolis–Hastings."""
    kernel = IMH(target, guide=guide)
    run = VectorizedMCMC(kernel, size.steps, size.steps, size.chains, disable_progbar=True)
    run.run()
    x = target.pack(run.get_samples())
    elbo, batches = fresh_weights(guide, target, size)
    more = {"acceptance": float(run.statistics["accepted"].double().mean())}
    draws = x[torch.randperm(len(x))[: size.batch]]
    return Outcome(log_evidence(run), draws, inf, batches, elbo, more)


@torch.no_grad()
def fresh_weights(guide: Any, target: Target, size: Size) -> tuple[float, list[float]]:
    """The mean log weight of draws of a flow, and the log evidences of batches of them."""
    proposals = (guide.proposal() for _ in range(BATCHES))
    found = torch.stack([draws_of_flow(p, target, size.batch).log_weights for p in proposals])
    return float(found.mean()), log_evidence(found.mT).value.tolist()


def by_rival(name: str, known: LiteratureTarget, target: Target, seed: int) -> Outcome:
    """The evidence and the draws of a sampler of another package."""
    assert known.reference is not None
    at = {"dtype": target.dtype, "device": target.device}

    @torch.no_grad()
    def log_density(x: np.ndarray) -> np.ndarray:
        return target.log_prob(torch.as_tensor(x, **at)).double().numpy()

    found = RIVALS[name][1](log_density, Reference(*known.reference), known.dim, seed)
    x = torch.as_tensor(found.x, **at)
    evidence = Estimate(*(torch.tensor(v).double() for v in (found.log_z, found.error)))
    return Outcome(evidence, x[torch.randperm(len(x))[:BATCH]])


def methods_of(known: LiteratureTarget) -> list[str]:
    """The methods that are tried on a target."""
    found = ["sample", "annealing", "flow"]
    found += ["deformation"] if known.dim <= DEFORMATION_DIM else []
    has_modes = known.problem is not None and known.problem().modes is not None
    found += ["adversarial"] if has_modes else []
    tried = known.reference is not None
    return found + [r for r, most in RIVAL_DIM.items() if tried and known.dim <= most]


def outcome(method: str, known: LiteratureTarget, target: Target, seed: int, size: Size) -> Outcome:
    """Runs a method."""
    if method == "sample":
        return by_sample(target, seed)
    if method in RIVALS:
        return by_rival(method, known, target, seed)
    if method == "flow":
        return by_flow(
            target, size, several=bool(known.wells) or "adversarial" in methods_of(known)
        )
    run = {
        "annealing": by_annealing,
        "deformation": by_deformation,
        "adversarial": by_adversarial,
    }[method]
    return run(target, size)


# ---- judging draws -------------------------------------------------------------------------------


def total_variation(shares: Tensor, truth: Tensor) -> float:
    r"""The total variation :math:`\frac12 \sum_k |s_k - t_k|` of two distributions over modes."""
    return float(0.5 * (shares.double() - truth.double()).abs().sum())


def modes_of(problem: Problem, x: Tensor, size: Size) -> dict[str, float]:
    """Modes that draws have found, and the total variation of their shares beside exact draws'.

    Arguments:
        problem: The target.
        x: Draws, ``(N, d)``.
        size: Number of exact draws that give the true shares.
    """
    assert problem.sample is not None
    truth = problem.mode_fractions(problem.sample(size.shares))
    shares = problem.mode_fractions(x)
    exact = [problem.mode_fractions(problem.sample(len(x))) for _ in range(EXACT_SETS)]
    return {
        "modes_found": int((shares >= FOUND * truth).sum()),
        "modes_all": len(truth),
        "total_variation": total_variation(shares, truth),
        "total_variation_exact": mean(total_variation(e, truth) for e in exact),
    }


def wells_of(known: LiteratureTarget, x: Tensor) -> dict[str, float]:
    r"""Largest scores of the shares of right wells, and of the correlations of signs.

    With n draws the standard error of a share s is :math:`\sqrt{s (1 - s) / n}`, and that of the
    correlation of two independent signs :math:`1 / \sqrt n`.
    """
    right = (x[:, list(known.wells)] > 0).double()
    share, n = known.well_share, len(x)
    shares = (right.mean(0) - share).abs() * sqrt(n / (share * (1 - share)))
    correlation = torch.corrcoef(right.T).nan_to_num(1.0).fill_diagonal_(0.0)
    return {
        "well_score": float(shares.max()),
        "sign_score": float(correlation.abs().max() * sqrt(n)),
    }


def distance_of(known: LiteratureTarget, problem: Problem, x: Tensor) -> dict[str, float]:
    """The squared Wasserstein distance from exact draws, and between two sets of exact draws."""
    assert problem.sample is not None
    bound = known.clip or inf

    def exact() -> Tensor:
        assert problem.sample is not None
        return problem.sample(len(x)).clamp(-bound, bound)

    floors = [wasserstein2(exact(), exact()) ** 2 for _ in range(FLOOR_PAIRS)]
    own = wasserstein2(x.clamp(-bound, bound), exact()) ** 2
    return {"w2_squared": own, "w2_floor": mean(floors)}


def judged(known: LiteratureTarget, x: Tensor, size: Size) -> dict[str, float]:
    """All that exact draws tell of draws ``(N, d)``."""
    if known.problem is None or not bool(x.isfinite().all()):
        return {}
    with torch.random.fork_rng():
        torch.manual_seed(EXACT_SEED)
        problem, x = known.problem(), x.cpu()
        found = distance_of(known, problem, x)
        if problem.modes is not None:
            found |= modes_of(problem, x, size)
        return found | (wells_of(known, x) if known.wells else {})


# ---- one run -------------------------------------------------------------------------------------


def measure(name: str, method: str, seed: int, size: Size = Size()) -> dict[str, Any]:
    """One run, in this process."""
    import pyro

    known = TARGETS[name]
    if method in RIVALS:
        torch.set_default_dtype(torch.float64)
    model, data = known.make()
    target = as_target(model, *data)
    pyro.set_rng_seed(seed)
    cost, start, processor = Cost(target), perf_counter(), process_time()
    ended: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        try:
            with capped(cost, cap(known.dim)):
                found = outcome(method, known, target, seed, size)
        except CapReached:
            ended = {"capped": True}
        except Exception as error:
            ended = {"failure": f"{type(error).__name__}: {error}"[:500]}
    spent = {"seconds": perf_counter() - start, "cpu_seconds": process_time() - processor}
    spent |= {"cost": cost.total, "threads": torch.get_num_threads()}
    spent |= {"gradients": cost.of("gradients"), "densities": cost.of("densities")}
    texts = sorted({str(w.message)[:500] for w in issued if w.category is UserWarning})
    if ended:
        return {**spent, **ended, "warnings": texts}
    value, error = map(float, found.evidence)
    return {
        **spent,
        "log_z": value,
        "log_z_error": error,
        "degrees": None if found.degrees == inf else found.degrees,
        "batches": found.batches,
        "elbo": found.elbo,
        **found.more,
        "warnings": texts,
        **judged(known, found.x, size),
    }


def run(name: str, method: str, seed: int, rivals_python: str) -> dict[str, Any]:
    """One run in a new process, with its failure."""
    arguments = ["--one", name, "--methods", method, "--seeds", str(seed)]
    python = rivals_python if method in RIVALS else sys.executable
    try:
        return measured(Path(__file__).resolve(), arguments, python=python)
    except RuntimeError as error:  # the process died
        return {"seconds": float("nan"), "failure": str(error)[-1500:]}


# ---- the page ------------------------------------------------------------------------------------

Runs = Sequence[Mapping[str, Any]]


def t_value(run: Mapping[str, Any], known: LiteratureTarget) -> float:
    """The t-value of a log evidence; infinite where it has no finite standard error."""
    assert known.log_z is not None
    error = sqrt(run["log_z_error"] ** 2 + known.log_z_error**2)
    t = (run["log_z"] - known.log_z) / error if error > 0 else inf
    return t if isfinite(t) else inf


def degrees(run: Mapping[str, Any]) -> float:
    """The degrees of freedom of a t-value."""
    return run["degrees"] or inf


def within_bound(run: Mapping[str, Any], known: LiteratureTarget) -> bool:
    """Whether the t-value is inside of its 99.9 % interval."""
    bound = student_t_quantile(0.5 + CONFIDENCE / 2, degrees(run))
    return abs(t_value(run, known)) <= bound


def probability(run: Mapping[str, Any], known: LiteratureTarget) -> float:
    """The probability of a smaller t-value: uniform over runs with honest errors."""
    if (freedom := degrees(run)) == inf:
        freedom = 1e9
    return float(student.cdf(t_value(run, known), freedom))


def text(values: Sequence[float], digits: int = 3) -> str:
    """The median, and the least and the largest of several."""
    if not values:
        return "–"
    shown = [f"{v:.{digits}g}" for v in (median(values), min(values), max(values))]
    return shown[0] if len(values) == 1 else f"{shown[0]} ({shown[1]} to {shown[2]})"


def column(runs: Runs, key: str) -> list[float]:
    """The values of a field that runs have."""
    return [r[key] for r in runs if r.get(key) is not None]


HEADER = [
    "target",
    "d",
    "method",
    "runs",
    "error of log Z",
    "stated error",
    "\\|t\\| in its bound",
    "mean error of batches",
    "ELBO − log Z",
    "modes",
    "TV, of exact draws",
    "W2² ÷ floor",
    "cost",
    "CPU seconds",
]


def cells(name: str, method: str, runs: Runs) -> list[object]:
    """The line of a target and a method."""
    known, done = TARGETS[name], [r for r in runs if "log_z" in r]
    ends = f"{len(done)} of {len(runs)}" if len(done) < len(runs) else str(len(runs))
    found: list[object] = [name, known.dim, method, ends]
    truth = known.log_z
    if truth is None:
        found += [f"log Z {text([r['log_z'] for r in done], 6)}"]
        found += [text(column(done, "log_z_error"), 2), "–", "–", "–"]
    else:
        errors = [r["log_z"] - truth for r in done]
        inside = sum(within_bound(r, known) for r in done)
        gaps = [r["elbo"] - truth for r in done if r.get("elbo") is not None]
        batches = [mean(abs(b - truth) for b in r["batches"]) for r in done if r["batches"]]
        found += [text(errors, 2), text(column(done, "log_z_error"), 2)]
        found += [f"{inside} of {len(done)}", text(batches, 2), text(gaps)]
    found += [modes_cell(done), tv_cell(done)]
    ratios = [r["w2_squared"] / r["w2_floor"] for r in done if "w2_floor" in r]
    costs = column(runs, "cost")
    found += [text(ratios), number(median(costs)) if costs else "–"]
    seconds = column(runs, "cpu_seconds")
    return [*found, f"{median(seconds):.0f}" if seconds else "–"]


def bridged(run: Mapping[str, Any]) -> dict[str, Any]:
    """The log evidence by bridge sampling of a run of ``sample()``, as a run of its own."""
    value, error = run["bridged"]
    found = {"log_z": value, "log_z_error": error, "degrees": None, "batches": [], "elbo": None}
    return found | {key: run[key] for key in ("cost", "cpu_seconds") if key in run}


def modes_cell(done: Runs) -> str:
    """Modes that were found, or the scores of wells."""
    found = column(done, "modes_found")
    if found:
        return f"{min(found)}–{max(found)} of {done[0]['modes_all']}"
    wells, signs = column(done, "well_score"), column(done, "sign_score")
    return f"scores {max(wells):.1f}, {max(signs):.1f}" if wells else "–"


def tv_cell(done: Runs) -> str:
    """The total variation of the shares of modes, beside that of exact draws."""
    own = column(done, "total_variation")
    return f"{text(own, 2)}, {median(column(done, 'total_variation_exact')):.2g}" if own else "–"


def table(store: Path, names: Sequence[str], methods: Sequence[str]) -> str:
    """A line for each target and method, the published figures, and what fell short."""
    lines, remarks, uniform = [], [], []
    for name in names:
        known = TARGETS[name]
        for method in methods_of(known):
            runs = load(store, f"{name}-{method}") if method in methods else []
            if not runs:
                continue
            lines.append(cells(name, method, runs))
            again = [bridged(r) for r in runs if r.get("bridged")]
            lines += [cells(name, "sample, bridged", again)] if again else []
            remarks += remarks_of(name, method, runs)
            if known.log_z is not None:
                uniform += [probability(r, known) for r in [*runs, *again] if "log_z" in r]
        if lines and lines[-1][0] == name:
            for who, what in known.published.items():
                lines.append([name, known.dim, f"*{who}, published*", "–", what, *["–"] * 9])
    found = markdown(HEADER, lines)
    if len(uniform) > 1:
        found += (
            f"\n\nOver {len(uniform)} runs the errors mapped through their t distribution have a "
            f"Kolmogorov–Smirnov p-value of {kstest(uniform, 'uniform').pvalue:.2g} against the "
            f"uniform distribution; {mean(uniform):.3f} is their mean."
        )
    return found + ("\n\n## What fell short\n\n" + "\n".join(remarks) if remarks else "")


def remarks_of(name: str, method: str, runs: Runs) -> list[str]:
    """Lines with the ends of runs without a result, wrong evidences, and problems reported."""
    known, lines = TARGETS[name], []
    for r in runs:
        label = f"- {name}, {method}"
        if r.get("capped"):
            lines.append(f"{label}: stopped at a cost of {number(r['cost'])}.")
        elif "failure" in r:
            lines.append(f"{label}, failed: {r['failure'].splitlines()[-1][:200]}")
        else:
            lines += [wrong_evidence(label, known, r)]
            again = [bridged(r)] if r.get("bridged") else []
            lines += [wrong_evidence(f"{label}, bridged", known, one) for one in again]
            if r.get("problems"):
                lines.append(f"{label}, flagged: {r['problems']}.")
    return [line for line in lines if line]


def wrong_evidence(label: str, known: LiteratureTarget, run: Mapping[str, Any]) -> str:
    """The line for a log evidence that is far from the truth, or farther than it states."""
    truth = known.log_z
    if truth is None or (abs(run["log_z"] - truth) <= WITHIN and within_bound(run, known)):
        return ""
    return (
        f"{label}: log Z {run['log_z']:.3f} ± {run['log_z_error']:.2g}, truth {truth:.3f}, "
        f"t {t_value(run, known):.1f}."
    )


PREFACE = """# The literature's targets

Made by `python examples/benchmarks/suites/records.py --table --write` from the stored runs in
`examples/benchmarks/results/records.jsonl`; without options it runs what is missing.

Targets on which published samplers have been compared, by the public functions of this package at
default settings: `sample()`; the particles of `AutoAnnealingFlow` and of `AutoDeformationFlow` on
16 islands; independent Metropolis–Hastings with `AutoFlow` and with `AutoAdvNF`, and bridge
sampling. The two latter start from `tempered_smc` where the target has several modes.

- *sample, bridged*: `log_evidence(data, target=target)` of the result of `sample()`, by bridge
  sampling between its draws and a mixture of Gaussians that is fitted to half of them.
- *error of log Z*: the estimate less the truth; *stated error*: its standard error. *|t| in its
  bound*: runs whose error over its standard error is inside of the 99.9 % interval of its t
  distribution (15 degrees of freedom with 16 islands).
- *mean error of batches*: mean absolute error of log Z by ten batches of 2000 draws, as FAB and
  others state it: of the flow's weights, or of particles.
- *modes*: those which at least a quarter of their share of 2000 draws is in. *TV*: the total
  variation of the shares of modes of 2000 draws, and the mean one of as many exact draws. With
  wells: the largest scores of the shares of right wells, and of the correlations of their signs.
- *W2² ÷ floor*: squared Wasserstein distance of 2000 draws from 2000 exact draws, over that of two
  sets of exact draws. A published distance below the floor says nothing. Draws of the funnel and of
  the Student-t mixture are clipped at ±30 first.
- *cost*: gradients and a third of the densities without gradient, of everything: search, training
  and draws. A run ends at {small:.0e} of them ({large:.0e} in more than 61 dimensions).
- *dynesty* (nested sampling) and *pocoMC* start from a box or a normal distribution that holds the
  target; they take no gradients.
- Rows in italics are figures that others have published; those of SCLD are estimates by sequential
  Monte Carlo and may exceed log Z, other log Z are lower bounds.

Of several seeds the median is shown, and in brackets the least and the largest. A target or a
method that is not in the table has not been run yet.

"""


def sources() -> str:
    """The true log evidences, and where they come from."""
    rows = [
        [
            name,
            k.dim,
            f"{k.log_z:.6g} ± {k.log_z_error:g}" if k.log_z is not None else "–",
            k.source,
        ]
        for name, k in TARGETS.items()
    ]
    rows = [
        [*row[:3], f"`{row[3]} {row[0]}`" if "--truth" in str(row[3]) else row[3]] for row in rows
    ]
    return "## Truths\n\n" + markdown(["target", "d", "log Z", "from"], rows)


def draw(store: Path, image: Path) -> None:
    """Draws the error of log Z against the cost, a point for each run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found: dict[str, list[tuple[float, float]]] = {}
    for name, known in TARGETS.items():
        for method in METHODS:
            runs = [r for r in load(store, f"{name}-{method}") if "log_z" in r]
            again = [bridged(r) for r in runs if r.get("bridged")]
            for label, some in ((method, runs), (f"{method}, bridged", again)):
                found.setdefault(label, []).extend(
                    (r["cost"], max(abs(r["log_z"] - known.log_z), LEAST_SHOWN))
                    for r in some
                    if known.log_z is not None
                )
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for label, points in found.items():
        if points:
            axes.loglog(*np.array(points).T, "o", markersize=4, label=label)
    axes.set_xlabel("gradients, and a third of the densities")
    axes.set_ylabel("absolute error of log Z")
    axes.legend()
    figure.tight_layout()
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=150)
    plt.close(figure)


METHODS = ("sample", "annealing", "flow", "deformation", "adversarial", *RIVALS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", metavar="TARGET", help="run in this process, one method and seed")
    parser.add_argument("--truth", nargs="+", metavar="TARGET", choices=list(TRUTHS), default=[])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rivals-python", default=sys.executable, help="has dynesty and pocomc")
    parser.add_argument("--image", type=Path, help="only draw the picture, to this file")
    add_options(parser, "seconds, for the tests")
    args = parser.parse_args()
    store = args.results / STUDY
    if args.one:
        print(json.dumps(measure(args.one, args.methods[0], args.seeds[0])))
        return
    for name in args.truth:
        print(f"{name}: %.5f ± %.5f" % TRUTHS[name]())
    if args.image:
        draw(store, args.image)
    if args.truth or args.image:
        return
    if args.smoke:
        args.targets, args.methods, args.seeds = list(SMOKE), list(SMOKE_METHODS), [0]
    if not (args.table or args.write):
        run_missing(args, store)
    page = table(store, args.targets, args.methods)
    print(page)
    if args.write:
        preface = PREFACE.format(small=CAP[61], large=CAP[1600])
        image = "![error against cost](images/records.png)"
        (DOCS / "records.md").write_text(f"{preface}{image}\n\n{page}\n\n{sources()}\n")
        draw(store, DOCS / "images" / "records.png")


def run_missing(args: argparse.Namespace, store: Path) -> None:
    """Runs what is not stored yet, and tells what it costs."""
    methods = [m for m in args.methods if m not in RIVALS]
    for rival in (m for m in args.methods if m in RIVALS):
        if has_package(args.rivals_python, package := RIVALS[rival][0]):
            methods.append(rival)
        else:
            print(f"{rival} is left out: {args.rivals_python} has no {package}.")
    runs = {
        f"{name}-{method}": (name, method)
        for name in args.targets
        for method in methods_of(TARGETS[name])
        if method in methods
    }
    for key, seed in missing(store, runs, args.seeds):
        name, method = runs[key]
        result = (
            measure(name, method, seed, Size.of(True))
            if args.smoke
            else run(name, method, seed, args.rivals_python)
        )
        append(store, key, seed, result)
        cost = number(result.get("cost", float("nan")))
        print(f"{key:32s}seed {seed}  {cost:>9s}  {result['seconds']:8.1f} s", flush=True)


if __name__ == "__main__":
    main()
