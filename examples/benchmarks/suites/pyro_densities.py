r"""Are densities and gradients of ``Target`` those of Pyro's own potential?

::

    python examples/benchmarks/suites/pyro_densities.py --pyro PATH     # what is missing
    python examples/benchmarks/suites/pyro_densities.py                 # without Pyro's examples
    python examples/benchmarks/suites/pyro_densities.py --table --write # docs/pyro_densities.md

Each case is a model: one distribution of ``pyro.distributions`` as a latent variable or as an
observation (``pyro_distributions.py``), or an example of Pyro from a checkout
(``pyro_examples.py``). Pyro's potential :math:`U` is that of
:func:`pyro.infer.mcmc.util.initialize_model`.

A target may use another bijection than Pyro for the same constrained value. With the bijections
:math:`v = f(x)` of the target and :math:`v = g(u)` of Pyro, both densities of :math:`v` are equal
if

.. math:: \log \tilde p(x) = -U(u(x)) + \log \Big|\det \frac{\partial u}{\partial x}\Big|,
          \qquad u(x) = g^{-1}(f(x)).

The determinant is computed from the derivatives of the values, and not from what either bijection
says of it.

Both sides and their gradients in x are compared at random points, in float64. A difference is
:math:`|a - b| / (1 + |b|)`, the largest of all points. Gradients are compared where the density is
positive.

All cases together take about a minute. The tables count the verdicts, and list the models that
differ with the largest difference of each.
"""

import argparse
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

from pyro_flowsamp import Target

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from stored_runs import DOCS, add_options, append, load, markdown, missing
from suites.pyro_distributions import ENTRIES, Entry
from suites.pyro_examples import EXAMPLES, LEFT_OUT, ExampleModel

STUDY = "pyro_densities.jsonl"  #: the file of its stored runs
POINTS = 5  #: points at which a case is compared
TRIES = 200  #: points among which these are looked for, where the density vanishes at some
SPREAD = 0.7  #: standard deviation of the points, about zero
VALUES_AGREE = 1e-8  #: largest difference of two log densities that are called equal
GRADIENTS_AGREE = 1e-6  #: largest difference of two gradients that are called equal
SAME_POINT = 1e-6  #: distance of unconstrained values below which coordinates are called the same
LONGEST = 200  #: characters of an error that are stored
SMOKE = ["Gamma as a latent", "Poisson as an observation", "Bernoulli as a latent"]


# ---- the cases -----------------------------------------------------------------------------------


def latent_model(entry: Entry) -> Callable:
    """A model with the distribution as a latent variable that an observation depends on."""

    def model() -> None:
        z = torch.zeros(entry.size)
        if not entry.moving:
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([entry.size]).to_event(1))
        d = entry.make(z)
        x = pyro.sample("x", d)
        for _ in range(len(d.event_shape)):
            x = (x * torch.arange(1.0, 1.0 + x.shape[-1])).sum(-1)
        pyro.sample("y", dist.Normal(x.to(z), 1.0), obs=torch.tensor(0.3))

    return model


def observation_model(entry: Entry) -> Callable:
    """A model with a draw of the distribution as its observation."""
    with torch.no_grad(), pyro.validation_enabled(False):
        if entry.data is not None:
            data = torch.tensor(entry.data)
        else:
            data = entry.make(torch.linspace(-0.3, 0.4, entry.size)).sample()

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([entry.size]).to_event(1))
        pyro.sample("y", entry.make(z), obs=data)

    return model


def cases(checkout: Path | None) -> dict[str, Callable[[], ExampleModel]]:
    """Functions that make the model of each case, by name."""
    found: dict[str, Callable[[], ExampleModel]] = {}
    for name, entry in ENTRIES.items():
        if entry.latent and entry.kind != "discrete":
            found[f"{name} as a latent"] = lambda e=entry: ExampleModel(latent_model(e))
        if entry.observed:
            found[f"{name} as an observation"] = lambda e=entry: ExampleModel(observation_model(e))
    if checkout is not None:
        for name, make in EXAMPLES.items():
            found[f"{name} of the examples"] = lambda m=make: m(checkout / "examples")
    return found


# ---- the comparison ------------------------------------------------------------------------------


def potential_of_pyro(case: ExampleModel) -> tuple[Callable, dict]:
    """Pyro's potential of a model, and its transforms by site."""
    with pyro.validation_enabled(False):  # as Pyro's MCMC
        _, potential, transforms, _ = initialize_model(
            case.model,
            case.args,
            case.kwargs,
            max_plate_nesting=case.max_plate_nesting,
            init_strategy=case.init_strategy,
        )
    return potential, transforms


def density_of_pyro(target: Target, potential: Callable, transforms: dict, x: Tensor) -> Tensor:
    """Pyro's log density at one point of the target's space, in the target's coordinates."""
    sizes = [site.size for site in target.sites]

    def pyro_point(x: Tensor) -> Tensor:
        values = target.unpack(x)
        return torch.cat([transforms[s.name](values[s.name]).reshape(-1) for s in target.sites])

    if same_coordinates(target, transforms, x):
        u, log_det = x, x.new_zeros(())
    else:
        u = pyro_point(x)
        jacobian = torch.autograd.functional.jacobian(pyro_point, x, create_graph=True)
        log_det = torch.linalg.slogdet(jacobian).logabsdet
    like = target.unpack_unconstrained(x.detach())
    parts = zip(target.sites, u.split(sizes), strict=True)
    return log_det - potential({s.name: part.reshape(like[s.name].shape) for s, part in parts})


def points(target: Target) -> Tensor:
    """Random points, those of positive density first where the support is small."""
    x = SPREAD * torch.randn(TRIES, target.dim, dtype=target.dtype)
    if torch.isfinite(target.log_prob(x[:POINTS])).all():
        return x[:POINTS]
    order = torch.isfinite(target.log_prob(x)).int().argsort(descending=True)
    return x[order[:POINTS]]


def same_coordinates(target: Target, transforms: dict, x: Tensor) -> bool:
    """Whether the target's bijections are Pyro's, at one point."""
    values, mine = target.unpack(x.detach()), target.unpack_unconstrained(x.detach())
    theirs = {name: transforms[name](value) for name, value in values.items()}
    return all(
        theirs[name].shape == u.shape and torch.allclose(theirs[name], u, atol=SAME_POINT)
        for name, u in mine.items()
    )


def difference(mine: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to one plus the size of the second."""
    equal = (mine == theirs) | (mine.isnan() & theirs.isnan())
    gap = ((mine - theirs).abs() / (1 + theirs.abs())).masked_fill(equal, 0.0)
    return float(gap.nan_to_num(float("inf")).max())


def measure(case: ExampleModel) -> dict[str, Any]:
    """Compares one model, and says what went wrong where it cannot be compared."""
    start = perf_counter()
    result: dict[str, Any] = {"verdict": "same", "error": ""}
    errors = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            target = Target.from_model(case.model, *case.args, **case.kwargs)
        except Exception as error:
            errors["Target fails"] = error
    try:
        potential, transforms = potential_of_pyro(case)
    except Exception as error:
        errors["Pyro has none"] = error
    if not errors:
        result |= compare(target, potential, transforms, errors)
    if errors:
        result["verdict"] = "neither" if len(errors) == 2 else next(iter(errors))
        error = errors.get("Target fails", next(iter(errors.values())))
        result["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:LONGEST]
    said = sorted({str(warning.message)[:LONGEST] for warning in caught})
    return result | {"warnings": said, "seconds": round(perf_counter() - start, 2)}


def compare(target: Target, potential: Callable, transforms: dict, errors: dict) -> dict[str, Any]:
    """The differences of values and gradients; adds to ``errors`` where one side cannot."""
    try:
        x = points(target)
        mine, grad = target.log_prob_and_grad(x)
    except Exception as error:
        errors["Target fails"] = error
        return {}
    leaf = x.clone().requires_grad_()
    try:
        with pyro.validation_enabled(False):
            rows = [density_of_pyro(target, potential, transforms, row) for row in leaf]
        theirs = torch.stack(rows)
        (their_grad,) = torch.autograd.grad(theirs.sum(), leaf)
    except Exception as error:
        errors["Pyro has none"] = error
        return {}
    finite = torch.isfinite(theirs)
    values = difference(mine.detach(), theirs.detach())
    grads = difference(grad[finite], their_grad[finite]) if finite.any() else float("nan")
    right = values < VALUES_AGREE and grads < GRADIENTS_AGREE
    return {
        "verdict": ("same" if right else "different") if finite.any() else "no finite point",
        "dim": target.dim,
        "batching": target.batching,
        "coordinates": "Pyro's" if same_coordinates(target, transforms, x[0]) else "its own",
        "value": values,
        "gradient": grads,
        "finite": int(finite.sum()),
    }


def run(make: Callable[[], ExampleModel]) -> dict[str, Any]:
    """Measures a case in float64 with a seed, and leaves Pyro as it was."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return measure(make())
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0]
        return {"verdict": "not built", "error": f"{type(error).__name__}: {text}"[:LONGEST]}
    finally:
        torch.set_default_dtype(dtype)
        pyro.clear_param_store()


# ---- the table -----------------------------------------------------------------------------------

PREFACE = """# Densities and gradients against Pyro's own

Made by `python examples/benchmarks/suites/pyro_densities.py --table --write` from the stored runs
in `examples/benchmarks/results/pyro_densities.jsonl`; with `--pyro PATH`, a checkout of Pyro, it
runs what is missing.

Log densities of `Target` and their gradients, against the potential that Pyro's HMC uses
(`pyro.infer.mcmc.util.initialize_model`), at {points} random points in float64. Where the target
has coordinates of its own for a constrained value, the change of variables is taken into account.
A difference is relative to one plus the size of Pyro's number, the largest of all points. *Same*
means below {value:g} for values and below {gradient:g} for gradients, which are compared where the
density is positive. *Neither* has a density of the models that are called so.

"""


def table(store: Path) -> str:
    """The table of the stored results, in Markdown."""
    known = [*cases(Path("."))]
    rows = [(name, result) for name in known for result in load(store, name)]
    counts = Counter(result["verdict"] for _, result in rows)
    text = markdown(["verdict", "models"], counts.most_common())
    lines = [
        [
            name,
            result["verdict"],
            result.get("dim", ""),
            result.get("batching", ""),
            result.get("coordinates", ""),
            f"{result['value']:.1g}" if "value" in result else "",
            f"{result['gradient']:.1g}" if "gradient" in result else "",
        ]
        for name, result in rows
    ]
    header = ["model", "verdict", "d", "evaluated by", "coordinates", "value", "gradient"]
    text += "\n\n" + markdown(header, lines)
    told = [
        [name, result["error"].replace("|", "\\|"), REMARKS.get(name, "")]
        for name, result in rows
        if result["error"]
    ]
    if told:
        text += "\n\n## What was said\n\n" + markdown(["model", "error", "why"], told)
    left_out = [[name, why] for name, why in LEFT_OUT.items()]
    return text + "\n\n## Examples left out\n\n" + markdown(["example", "why"], left_out)


NO_BIJECTION = "PyTorch has no bijection onto this support (`biject_to`)."
#: Why a model has no density, or another one, by the name of the case.
REMARKS = {
    "CoalescentTimes as a latent": NO_BIJECTION,
    "GaussianScaleMixture as a latent": NO_BIJECTION,
    "GaussianScaleMixture as an observation": "Its own `log_prob` writes into a tensor that its "
    "gradient needs.",
    "GeneralizedPareto as a latent": "Its support names an infinite bound, which PyTorch maps to "
    "no finite number.",
    "LinearHMM as a latent": "Pyro gives it no density.",
    "LinearHMM as an observation": "Pyro gives it no density.",
    "MixtureSameFamily as a latent": f"{NO_BIJECTION} `Target` takes that of the components.",
    "ProjectedNormal as a latent": f"{NO_BIJECTION} Pyro's `ProjectedNormalReparam` gives one.",
    "VonMises3D as a latent": NO_BIJECTION,
    "Wishart as a latent": NO_BIJECTION,
    "inclined_plane.py of the examples": "The model calls `.numpy()` on its latent variable.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pyro", type=Path, help="a checkout of Pyro, for its examples")
    parser.add_argument("--cases", nargs="+", help="names of cases; by default all")
    add_options(parser, "three models, for the tests")
    args = parser.parse_args()
    store = args.results / STUDY
    if args.pyro is not None and not (args.pyro / "examples").is_dir():
        print(f"There is no checkout of Pyro in {args.pyro}: no folder examples.", file=sys.stderr)
        sys.exit(2)
    if not (args.table or args.write):
        known = cases(args.pyro)
        chosen = args.cases or (SMOKE if args.smoke else list(known))
        for name, seed in missing(store, chosen, [0]):
            result = run(known[name])
            append(store, name, seed, json.loads(json.dumps(result)))
            print(f"{name:48s}{result['verdict']}  {result['error']}", flush=True)
    text = table(store)
    print(text)
    if args.write:
        preface = PREFACE.format(points=POINTS, value=VALUES_AGREE, gradient=GRADIENTS_AGREE)
        (DOCS / "pyro_densities.md").write_text(f"{preface}{text}\n")


if __name__ == "__main__":
    main()
