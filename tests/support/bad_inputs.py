"""Inputs that the package must refuse: a name, a call, and what its message has to say."""

import random
from collections.abc import Callable, Iterator
from math import inf, nan
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoNormal

from pyro_flowsamp import (
    IMH,
    AdvNFOptions,
    AdvNFWeights,
    AnnealingOptions,
    AutoAdvNF,
    AutoAnnealingFlow,
    AutoDeformationFlow,
    AutoFlow,
    DeformationOptions,
    FitOptions,
    ForwardKL,
    ImportanceOptions,
    LatentHMC,
    LatentMALA,
    LocalGlobalHMC,
    ModeSearchOptions,
    SearchOptions,
    Target,
    VectorizedMCMC,
    WeightedSum,
    ess_fraction,
    importance_flow,
    lattice_flow,
    pareto_k,
    sample,
    tempered_smc,
)
from pyro_flowsamp.flows.gaussian_fit import GaussianFitOptions
from pyro_flowsamp.flows.line_search import AscentOptions
from pyro_flowsamp.flows.mixture_fit import MixtureFitOptions
from pyro_flowsamp.flows.pathfinder import PathfinderOptions
from pyro_flowsamp.flows.proposal import DiagnosticOptions
from pyro_flowsamp.guides.auto_flow import InitialFitOptions
from pyro_flowsamp.guides.base import GuideOptions
from pyro_flowsamp.kernels.inversion import InversionOptions
from pyro_flowsamp.kernels.local_global import LocalStepsOptions
from pyro_flowsamp.transitions.trajectory_length import TrajectoryOptions
from pyro_flowsamp.weights import log_mean_weight

__all__ = ["BAD_INPUTS", "BadInput", "normal", "quadratic"]


class BadInput(NamedTuple):
    """A call that must be refused."""

    name: str
    call: Callable[[], Any]
    text: str


def quadratic(x):
    return 0.5 * x.square().sum(-1)


def normal(y=None):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=torch.zeros(()) if y is None else y)


TARGET = Target.from_energy(quadratic, 2)
NO_COUNTS = [0, -3, 2.5, True, "4", None, nan]
NO_NUMBERS = [nan, True, "1", None, [1.0]]


# ---- options -------------------------------------------------------------------------------------

#: option class -> fields that are counts of at least one, and fields that are numbers
OPTIONS = {
    FitOptions: ("max_steps batch_size eval_every patience", "learning_rate lr_decay tolerance"),
    SearchOptions: ("pilot_chains max_thin", "min_share patience"),
    ModeSearchOptions: ("paths particles", "slack ridge"),
    ImportanceOptions: ("pilot_draws groups", "sharpness floor"),
    AnnealingOptions: ("hidden_features max_blocks", "transport_cost good_ess"),
    DeformationOptions: ("hidden_features points_per_time", "defensive_weight"),
    AdvNFOptions: ("balance_every ascent_starts", "learning_rate held_out"),
    InversionOptions: ("every", "max_distance relative"),
    LocalStepsOptions: ("first most", "memory"),
    TrajectoryOptions: ("max_steps", "learning_rate decay"),
    MixtureFitOptions: ("steps", "ridge"),
    GaussianFitOptions: ("iterations", "distance"),
    PathfinderOptions: ("draws", ""),
    AscentOptions: ("memory", "first_step"),
    DiagnosticOptions: ("num_draws", "quantile"),
    InitialFitOptions: ("num_starts", "max_pareto_k"),
    GuideOptions: ("num_summary", "max_log_q_error"),
}


def options() -> Iterator[BadInput]:
    """One bad value, chosen at random, of each kind for each field."""
    chosen = random.Random(0)
    for kind, (counts, numbers) in OPTIONS.items():
        for names, values in ((counts, NO_COUNTS), (numbers, NO_NUMBERS)):
            for name in names.split():
                for value in chosen.sample(values, 2):
                    yield BadInput(
                        f"{kind.__name__}({name}={value!r})",
                        lambda kind=kind, name=name, value=value: kind(**{name: value}),
                        rf"{name} must (be|lie)|one local move at least",
                    )
    for name in ("progress", "cosine_schedule"):
        for value in (1, "no", None):
            yield BadInput(
                f"FitOptions({name}={value!r})",
                lambda name=name, value=value: FitOptions(**{name: value}),
                f"{name} must be True or False",
            )
    yield BadInput(
        "nested", lambda: SearchOptions(modes={}), r"modes must be ModeSearchOptions\(\.\.\.\)"
    )
    yield BadInput(
        "names", lambda: SearchOptions(candidates="IMH"), r"must be a tuple of names, got 'IMH'"
    )


# ---- sample() ------------------------------------------------------------------------------------


def of_sample() -> Iterator[BadInput]:
    """Options of sample() that are out of range or of the wrong type."""
    for name in ("ess", "num_samples", "num_chains"):
        for value in (0, -1, 2.5, True, "100", nan):
            yield BadInput(
                f"sample({name}={value!r})",
                lambda name=name, value=value: sample(TARGET, **{name: value}),
                f"{name} must be",
            )
    for seed in (-1, 2**64, 1.5, True, "0", nan, np.float64(1.0), torch.tensor(1)):
        yield BadInput(
            f"sample(seed={seed!r})",
            lambda seed=seed: sample(TARGET, seed=seed),
            r"seed must be a whole number from 0 to 2\*\*64 - 1",
        )
    for value in (0, -1.0, nan, True, "10"):
        yield BadInput(
            f"sample(max_seconds={value!r})",
            lambda value=value: sample(TARGET, max_seconds=value),
            "max_seconds must be (positive|a number)",
        )
    for name in ("progress", "log_likelihood"):
        for value in (0, "yes", None):
            yield BadInput(
                f"sample({name}={value!r})",
                lambda name=name, value=value: sample(TARGET, **{name: value}),
                f"{name} must be True or False",
            )
    calls = {
        "search": (lambda: sample(TARGET, search={"max_thin": 3}), r"search must be SearchOptions"),
        "candidates": (lambda: sample(TARGET, candidates="HMC"), r"list of names, such as \['HMC"),
        "unknown": (lambda: sample(TARGET, candidates=["NUTS"]), r"'NUTS'.*choose from"),
        "exclude": (lambda: sample(TARGET, exclude=[1]), r"exclude must be a list of names"),
        "both": (lambda: sample(TARGET, ess=100, num_samples=10), "not both"),
        "params": (lambda: sample(TARGET, initial_params=[0.0]), "must be a dict of unconstrained"),
        "sites": (lambda: sample(TARGET, initial_params={"y": torch.zeros(2)}), "are not sites"),
        "start": (lambda: sample(TARGET, start=3), "start must be a result of sample"),
        "guide": (lambda: sample(TARGET, guide=3), "guide must be a trained flow guide"),
        "untrained": (lambda: sample(TARGET, guide=AutoFlow(TARGET)), "guide is not trained"),
        "no guide": (lambda: sample(TARGET, candidates=["guide"]), "there is none: give guide="),
        "arguments": (lambda: sample(TARGET, 1.0), "takes no model arguments"),
    }
    for name, (call, text) in calls.items():
        yield BadInput(f"sample: {name}", call, text)


def shared(**given):
    """A call of sample() with a model that has arguments of the same names."""
    name = next(iter(given))
    scope: dict = {"normal": normal}
    exec(f"def model(y, {name}):\n    normal(y)", scope)
    return lambda: sample(scope["model"], torch.zeros(()), **given)


def shared_names() -> Iterator[BadInput]:
    """Arguments of a model that have the names of options."""
    values = {"seed": 1, "ess": 10, "num_chains": 4, "start": 0.0, "num_samples": 5}
    values |= {"progress": False, "max_seconds": 9.0, "candidates": ["HMC"], "exclude": ["HMC"]}
    for name, value in values.items():
        yield BadInput(
            f"model(y, {name})",
            shared(**{name: value}),
            rf"functools.partial\(model, {name}=\.\.\.",
        )


# ---- energies and potentials ---------------------------------------------------------------------


def far_noise(x):
    return 1e6 + quadratic(x) + torch.randn(len(x))


def energies() -> Iterator[BadInput]:
    """Functions that are no energies of independent points."""
    functions = {
        "noise on 1e6": (far_noise, "is random.*draw random numbers once"),
        "one noise a call": (lambda x: quadratic(x) + torch.randn(()), "is random"),
        "small noise": (lambda x: quadratic(x) + 0.01 * torch.randn(len(x)), "is random"),
        "NumPy's noise": (lambda x: quadratic(x) + np.random.randn(), "is random"),
        "dropout": (lambda x: torch.nn.functional.dropout(x).square().sum(-1), "is random"),
        "centred": (lambda x: quadratic(x - x.mean(0)), "other rows.*Reduce over the last"),
        "cumulative": (lambda x: quadratic(x).cumsum(0), "other rows"),
        "normalised": (lambda x: quadratic(x) / len(x), "other rows"),
        "centred, detached": (lambda x: quadratic(x - x.mean(0).detach()), "other rows"),
        "largest": (lambda x: quadratic(x) + 0.1 * x.max(), "other rows"),
        "one for all": (lambda x: quadratic(x).mean().expand(len(x)), "other rows"),
        "far rows": (lambda x: quadratic(x) + (x.abs().max() > 20) * 1.0, "other rows"),
        "squeezed": (lambda x: quadratic(x).squeeze(), r"shape \(\); it must be \(1,\)"),
        "detached": (lambda x: quadratic(x).detach(), "no gradient.*Write it with torch"),
        "item": (lambda x: torch.tensor([float(v) for v in quadratic(x)]), "no gradient"),
        "from NumPy": (lambda x: torch.as_tensor(x.detach().numpy()).sum(-1), "no gradient"),
        "constant": (lambda x: torch.zeros(len(x)), r"a constant one as 0 \* x.sum"),
        "integers": (lambda x: quadratic(x).long(), "dtype torch.int64.*dtype of the points"),
        "booleans": (lambda x: quadratic(x) > 1, "dtype torch.bool"),
        "complex": (lambda x: quadratic(x) * 1j, "dtype torch.complex64"),
        "vectors": (lambda x: 0.5 * x.square(), r"must be \(2,\), one energy per row.*sum\(-1\)"),
        "column": (lambda x: quadratic(x)[:, None], "one energy per row"),
        "one number": (lambda x: quadratic(x).sum(), "one energy per row"),
        "float": (lambda x: 1.0, "returns a float, not a tensor"),
        "array": (lambda x: quadratic(x).detach().numpy(), "returns a ndarray, not a tensor"),
        "nothing": (lambda x: None, "returns a NoneType, not a tensor"),
        "half infinite": (
            lambda x: torch.where(x[:, 0] > 0, quadratic(x), -torch.inf),
            r"\+inf at \d+ of 16 random points.*logarithm is -inf",
        ),
        "infinite": (lambda x: quadratic(x) - torch.inf, r"\+inf at 16 of 16"),
    }
    for name, (function, text) in functions.items():
        yield BadInput(
            f"energy: {name}", lambda function=function: Target.from_energy(function, 2), text
        )
    for dim in (0, -1, 2.0, True, "2", None):
        yield BadInput(
            f"dim={dim!r}", lambda dim=dim: Target.from_energy(quadratic, dim), "dim must be"
        )
    for dtype in (torch.long, torch.bool, torch.complex64, np.float32, "float32", float):
        yield BadInput(
            f"dtype={dtype!r}",
            lambda dtype=dtype: Target.from_energy(quadratic, 2, dtype=dtype),
            "dtype must be a floating type of torch, such as",
        )
    for angles in ([2], [True, False], 0, [0.0], torch.tensor([True, False]), "0"):
        yield BadInput(
            f"angles={angles!r}",
            lambda angles=angles: Target.from_energy(quadratic, 2, angles=angles),
            "angles are indices of 2 coordinates",
        )
    yield BadInput("no energy", lambda: Target.from_energy(None, 2), "must be a function")
    yield BadInput(
        "energy on meta",
        lambda: Target.from_energy(quadratic, 2, device="meta"),
        "'meta' holds no values: give device=",
    )
    yield BadInput("inference mode", in_inference_mode, r"inference_mode\(\) is on.*outside")


def in_inference_mode():
    with torch.inference_mode():
        Target.from_energy(quadratic, 2)


def potentials() -> Iterator[BadInput]:
    """Potentials and prototypes that do not go together."""

    def potential(values):
        return 0.5 * values["x"].square().sum()

    prototypes = {
        "none": (None, "must be a dict of one tensor for each"),
        "empty": ({}, "must be a dict"),
        "list": ([torch.zeros(2)], "must be a dict"),
        "integers": ({"x": torch.zeros(2, dtype=torch.long)}, r"'x'.*convert with .to\(torch.fl"),
        "booleans": ({"x": True}, "dtype torch.bool"),
        "words": ({"x": "zero"}, "expected a tensor of numbers.*convert with torch.as_tensor"),
        "no coordinate": ({"x": torch.zeros(0)}, "no coordinate: there is nothing to sample"),
        "meta": ({"x": torch.zeros(2, device="meta")}, "'meta' holds no values; give them"),
    }
    for name, (prototype, text) in prototypes.items():
        yield BadInput(
            f"prototype: {name}",
            lambda prototype=prototype: Target.from_potential(potential, prototype),
            text,
        )
    functions = {
        "float": (lambda v: 1.0, "returns a float, not a tensor.*torch functions"),
        "vector": (lambda v: v["x"].square(), r"shape \(2,\).*add its terms up by .sum"),
        "integer": (lambda v: v["x"].sum().long(), "torch.int64.*floating type"),
        "detached": (lambda v: v["x"].square().sum().detach(), "autograd cannot follow"),
        "random": (lambda v: 1e6 + potential(v) + torch.randn(()), "the density is random"),
        "none": (None, "must be a function"),
    }
    for name, (function, text) in functions.items():
        yield BadInput(
            f"potential: {name}",
            lambda function=function: Target.from_potential(function, {"x": torch.zeros(2)}),
            text,
        )


# ---- models --------------------------------------------------------------------------------------


def models() -> Iterator[BadInput]:
    """Models that cannot be run, or whose density is none."""

    def noisy(size):
        def model():
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            pyro.factor("noise", size + torch.randn(()) + 0 * x)

        return model

    def unbounded():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.where(x > 0, torch.inf, 0.0))

    def on(y):
        normal(y)

    calls: dict[str, tuple[Callable, str]] = {
        "none": (lambda: Target.from_model(None), "must be a function with pyro.sample"),
        "tensor": (lambda: sample(torch.zeros(2)), "must be a function with pyro.sample"),
        "class": (lambda: sample(torch.nn.Linear), r"give an instance, Linear\(\.\.\.\)"),
        "guide": (lambda: sample(AutoNormal(normal)), "is a guide, not a model"),
        "missing": (lambda: sample(on), r"on\(y\): missing a required argument: 'y'"),
        "too many": (lambda: sample(on, 1.0, 2.0), "too many positional arguments"),
        "unknown": (lambda: sample(on, torch.zeros(()), z=3), "unexpected keyword argument 'z'"),
        "unknown in fit": (lambda: AutoFlow(on).fit(z=3), r"do not fit the model on\(y\)"),
        "meta": (
            lambda: sample(on, torch.zeros((), device="meta")),
            "argument 0.*give it on",
        ),
        "noise": (lambda: Target.from_model(noisy(0.0)), "the density is random"),
        "noise on 1e5": (lambda: Target.from_model(noisy(1e5)), "the density is random"),
        "infinite": (lambda: Target.from_model(unbounded).initial_points(50), r"\+inf at \d+ of"),
        "context": (lambda: Target.from_model(normal).conditional_on(["y"]), "by names of arg"),
        "no context": (lambda: TARGET.conditional_on("y"), "made from a Pyro model"),
    }
    for name, (call, text) in calls.items():
        yield BadInput(f"model: {name}", call, text)
    for name, value in (
        ("array", np.zeros(3)),
        ("list", [0.0, 1.0]),
        ("flag", True),
        ("word", "a"),
    ):
        yield BadInput(
            f"observed: {name}",
            lambda value=value: sample(on, value),
            r"site 'y' is observed as .*give torch.as_tensor\(data",
        )


def nothing():
    pyro.sample("z", dist.Bernoulli(0.5))


def counting():
    pyro.sample("n", dist.Poisson(pyro.sample("rate", dist.Gamma(2.0, 1.0))))


def subsampling():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 10, subsample_size=3):
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.zeros(3))


def deep_errors() -> Iterator[BadInput]:
    """Errors that are raised far below the public function."""
    texts = {
        nothing: "no continuous latent site",
        counting: "marginalise it by hand, or observe it",
        subsampling: "Remove subsample_size",
    }
    ways: dict[str, Callable] = {
        "sample": sample,
        "fit": lambda model: AutoFlow(model).fit(),
        "target_for": lambda model: AutoFlow(model).target_for(),
        "importance_flow": lambda model: importance_flow(model, lambda values: values["x"]),
        "MCMC": lambda model: MCMC(LatentHMC(model), 3, disable_progbar=True).run(),
        "VectorizedMCMC": lambda model: VectorizedMCMC(IMH(model), 3, disable_progbar=True).run(),
    }
    for model, text in texts.items():
        for name, call in ways.items():
            yield BadInput(
                f"{name}({model.__name__})", lambda model=model, call=call: call(model), text
            )


def points() -> Iterator[BadInput]:
    """Points that are none of a target."""
    given = {
        "integers": torch.zeros(3, 2, dtype=torch.long),
        "booleans": np.zeros((3, 2), dtype=bool),
        "words": [["a", "b"]],
        "None": None,
        "one": torch.zeros(2),
        "too wide": np.zeros((3, 3)),
        "ragged": [[0.0], [1.0, 2.0]],
        "meta": torch.zeros(3, 2, device="meta"),
    }
    for name, x in given.items():
        for method in ("log_prob", "log_prob_and_grad", "unpack"):
            if (name, method) == ("one", "unpack"):
                continue
            yield BadInput(
                f"{method}: {name}",
                lambda x=x, method=method: getattr(TARGET, method)(x),
                r"expected points of shape|convert with|'meta'",
            )
    for num in (0, 2.5, True):
        yield BadInput(
            f"initial_points({num})", lambda num=num: TARGET.initial_points(num), "num must be"
        )
    rows = {"shape": torch.zeros(3), "number": 3.0, "wide": np.zeros((3, 2)), "words": ["a"]}
    for name, value in rows.items():
        yield BadInput(
            f"contexts: {name}",
            lambda value=value: conditional().at_contexts(value),
            r"expected \(K, c\), one row of|expected a tensor of numbers",
        )
        yield BadInput(
            f"context of points: {name}",
            lambda value=value: conditional().log_prob(torch.zeros(2, 1), value),
            r"expected \(2, c\), one row of|expected a tensor of numbers",
        )
    yield BadInput(
        "context of none",
        lambda: TARGET.log_prob(torch.zeros(2, 2), torch.zeros(2, 1)),
        "has no context: give points alone",
    )
    yield BadInput(
        "likelihood",
        lambda: Target.from_model(normal).pointwise_log_likelihood({}),
        "no value for site 'x'",
    )
    for device in ("cud", 3.5, "cuda:99"):
        yield BadInput(
            f"device={device!r}",
            lambda device=device: Target.from_energy(quadratic, 2, device=device),
            "cannot be used .*: give device='cpu'",
        )
    yield BadInput("pack", lambda: TARGET.pack(torch.zeros(2)), "a dict of a value for each site")


def conditional():
    return Target.from_model(normal, torch.tensor(1.0)).conditional_on("y")


# ---- kernels and runs ----------------------------------------------------------------------------


def runs() -> Iterator[BadInput]:
    """Kernels and counts that cannot be run."""
    kernels = {
        "class": (IMH, r"the class IMH: give an instance, IMH\(model\)"),
        "none": (None, "must be one of this package, such as IMH"),
        "NUTS": (NUTS(normal), "or run this one by pyro.infer.MCMC"),
        "NUTS class": (NUTS, "the class NUTS"),
        "model": (normal, "must be one of this package"),
        "guide": (AutoFlow(normal), "must be one of this package"),
        "name": ("IMH", "got 'IMH'"),
    }
    for name, (kernel, text) in kernels.items():
        yield BadInput(
            f"VectorizedMCMC: {name}", lambda kernel=kernel: VectorizedMCMC(kernel, 5), text
        )
    for name in ("num_samples", "num_chains", "thin"):
        for value in (0, -1, 2.5, True, "3", nan):
            given = {"num_samples": 5, name: value}
            yield BadInput(
                f"VectorizedMCMC({name}={value!r})",
                lambda given=given: VectorizedMCMC(IMH(normal), **given),
                f"{name} must be",
            )
    others = {
        "warmup_steps": ({"warmup_steps": True}, "warmup_steps must be a whole number"),
        "progress": ({"disable_progbar": "no"}, "disable_progbar must be True or False"),
        "names": ({"save_params": [1]}, "save_params must be a list of one site or more"),
    }
    for name, (given, text) in others.items():
        yield BadInput(
            f"VectorizedMCMC: {name}",
            lambda given=given: VectorizedMCMC(IMH(normal), 5, **given),
            text,
        )
    starts = {
        "list": ([torch.zeros(3)], "must be a dict of unconstrained values"),
        "empty": ({}, "must be a dict"),
        "words": ({"x": ["a"] * 3}, r"initial_params\['x'\].*expected a tensor of numbers"),
        "integers": ({"x": torch.zeros(3, dtype=torch.long)}, r"convert with .to\(torch.float32"),
        "other chains": ({"x": torch.zeros(4)}, "leading dimension must be num_chains=3"),
    }
    for name, (start, text) in starts.items():
        yield BadInput(
            f"initial_params: {name}",
            lambda start=start: VectorizedMCMC(
                IMH(normal), 5, 2, 3, initial_params=start, disable_progbar=True
            ).run(),
            text,
        )


def kernels() -> Iterator[BadInput]:
    """Arguments of kernels."""
    given: list[tuple[Any, dict, str]] = [
        (IMH, {"model": 3}, "must be a function with pyro.sample"),
        (IMH, {"model": torch.nn.Linear}, "give an instance"),
        (IMH, {"guide": AutoNormal(normal)}, "must be a flow guide of this package"),
        (IMH, {"guide": AutoFlow}, "got the class AutoFlow"),
        (IMH, {"potential_fn": 3.0}, "potential_fn must be a function"),
        *((IMH, {"lookahead": value}, "lookahead must be") for value in (0, 2.5, True, "8")),
        *((LatentHMC, {"num_steps": value}, "num_steps must be") for value in (0, 2.5, True)),
        *(
            (LatentMALA, {"step_size": value}, "step_size must be")
            for value in (0.0, -1.0, nan, inf, True, "1")
        ),
        *(
            (LatentHMC, {"target_accept_prob": value}, "target_accept_prob must")
            for value in (0.0, 1.0, nan, "0.8", True)
        ),
        *(
            (LatentHMC, {"global_prob": value}, "global_prob must")
            for value in (1.0, -0.1, nan, "0.5")
        ),
        (LatentHMC, {"trajectory": 3}, "trajectory must be 'fixed' or 'adapted'"),
        (LocalGlobalHMC, {"local_steps": 2.5}, "local_steps must be a whole number"),
        (LocalGlobalHMC, {"num_proposals": True}, "num_proposals must be a whole number"),
        (LocalGlobalHMC, {"search": 3}, r"search must be LocalStepsOptions\(\.\.\.\)"),
    ]
    for kernel, arguments, text in given:
        arguments = {"model": normal, **arguments}
        if "potential_fn" in arguments:
            del arguments["model"]
        yield BadInput(
            f"{kernel.__name__}({arguments})",
            lambda kernel=kernel, arguments=arguments: kernel(**arguments),
            text,
        )


# ---- guides --------------------------------------------------------------------------------------


def state_of_another():
    guide = AutoFlow(Target.from_energy(quadratic, 3), flow="gaussian")
    guide.target_for()
    return guide.state_dict()


def guides() -> Iterator[BadInput]:
    """Arguments of guides, and states."""
    given: list[tuple[Any, dict, str]] = [
        (AutoFlow, {"model": None}, "must be a function with pyro.sample"),
        (AutoFlow, {"flow": "nsf"}, "choose one of"),
        (AutoFlow, {"flow": 3}, "a recipe or a flow, got 3"),
        (AutoFlow, {"options": {"max_steps": 3}}, r"options must be FitOptions\(\.\.\.\)"),
        (AutoFlow, {"objective": "kl"}, r"objective must be a function, such as PathGradient\(\)"),
        (AutoFlow, {"initial": 3}, r"initial must be InitialFitOptions\(\.\.\.\)"),
        (AutoFlow, {"context": "y"}, r"context is a list of names: \['y'\]"),
        (AutoFlow, {"model": normal, "context": ["z"]}, "no such arguments of the model"),
        (AutoAdvNF, {"weights": 0.5}, r"weights must be AdvNFWeights\(\.\.\.\)"),
        (AutoAdvNF, {"settings": 3}, r"settings must be AdvNFOptions\(\.\.\.\)"),
        (AutoAdvNF, {"loss": "gan"}, "loss must be an AdversarialLoss, such as GAN"),
        (AutoAnnealingFlow, {"settings": {}}, r"settings must be AnnealingOptions\(\.\.\.\)"),
        *(
            (AutoAnnealingFlow, {"num_particles": value}, "num_particles must be")
            for value in (3, 2000.5, True, "9999")
        ),
        *(
            (AutoAnnealingFlow, {"target_ess": value}, "target_ess must")
            for value in (0.0, 1.0, nan, "0.5")
        ),
        (AutoAnnealingFlow, {"mcmc_steps": -1}, "mcmc_steps must be at least 0"),
        (AutoAnnealingFlow, {"reference": "wide"}, "reference must be a number"),
        (AutoAnnealingFlow, {"schedule": [0.5, 1.0]}, "a schedule rises from 0 to 1"),
        (AutoDeformationFlow, {"settings": 3}, r"settings must be DeformationOptions\(\.\.\.\)"),
        (AutoDeformationFlow, {"base_scale": nan}, "base_scale must be"),
        (AutoDeformationFlow, {"base_power": "2"}, "base_power must be a number"),
        (AutoDeformationFlow, {"interpolation": "cubic"}, "'trainable', 'linear' or a function"),
        (AdvNFWeights, {"model": None, "reverse": -1.0}, "reverse must not be negative"),
    ]
    for guide, arguments, text in given:
        arguments = {"model": TARGET, **arguments}
        if guide is AdvNFWeights:
            del arguments["model"]
        yield BadInput(
            f"{guide.__name__}({list(arguments)[-1]}={list(arguments.values())[-1]!r:.30})",
            lambda guide=guide, arguments=arguments: guide(**arguments),
            text,
        )
    states: dict[str, tuple[Any, str]] = {
        "path": ("guide.pt", "expected a state, as guide.state_dict"),
        "none": (None, "expected a state"),
        "empty": ({}, "this state holds no flow"),
        "extra": ({"flow.x": torch.zeros(2), "_extra_state": 3}, "'_extra_state' must be"),
        "another": (state_of_another(), "does not fit this guide.*Make the guide with the flow"),
    }
    for name, (state, text) in states.items():
        yield BadInput(f"state: {name}", lambda state=state: load(state), text)
    yield BadInput("no draws", lambda: fit_ensemble("draws"), r"must be draws \{site: \(M, \.\.\.")
    yield BadInput("one draw", lambda: fit_ensemble(torch.zeros(1, 2)), r"M > 1 draws")
    yield BadInput("same draws", lambda: fit_ensemble(torch.zeros(9, 2)), "are the same")
    yield BadInput("NaN", lambda: fit_ensemble(torch.full((9, 2), nan)), "leave them out")


def load(state):
    guide = AutoFlow(TARGET, flow="gaussian")
    guide.load_state_dict(state)
    guide.target_for()


def fit_ensemble(draws):
    AutoFlow(TARGET, ensemble=draws, flow="gaussian", options=FitOptions(progress=False)).fit()


def built():
    guide = AutoFlow(TARGET, flow="gaussian")
    guide.target_for()
    return guide


def with_ensemble(ensemble, islands):
    normal(ensemble)


def others() -> Iterator[BadInput]:
    """Arguments of other functions."""
    p = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    calls: dict[str, tuple[Callable, str]] = {
        "no target": (lambda: tempered_smc(normal), r"such as Target.from_model\(model, data\)"),
        "one particle": (lambda: tempered_smc(TARGET, 1), "num_particles must be at least 2"),
        "half a particle": (lambda: tempered_smc(TARGET, 10.5), "must be a whole number"),
        "tempered ess": (lambda: tempered_smc(TARGET, target_ess=1.5), "target_ess must lie in"),
        "islands": (lambda: tempered_smc(TARGET, islands=0), "islands must be at least 1"),
        "estimator": (lambda: importance_flow(p, quadratic, estimators=["x"]), "must be some of"),
        "no weights": (lambda: ess_fraction(torch.empty(0)), "one draw or more"),
        "one weight": (lambda: pareto_k(3.0), "one draw or more"),
        "words": (lambda: log_mean_weight("w"), "convert with torch.as_tensor"),
        "draws": (lambda: ForwardKL(torch.zeros(3)), r"points \(M, d\), one or more"),
        "terms": (lambda: WeightedSum(ForwardKL), r"as \[\(1.0, ReverseKL\(\)\)\]"),
        "no pairs": (lambda: WeightedSum([1.0]), r"a pair .* as \(1.0, ReverseKL\(\)\)"),
        "quantiles": (lambda: built().quantiles([1.5]), r"quantiles must lie in \[0, 1\]"),
        "half a draw": (lambda: built().proposal().sample_and_log_prob(2.5), "a whole number"),
        "lattice": (lambda: lattice_flow((4, 2.5)), "along each axis, a whole number"),
        "lattice of words": (lambda: lattice_flow("44"), "along each axis, a whole number"),
        "reach": (lambda: lattice_flow((4, 4), reach=0), "reach must be at least 1"),
        "ensemble": (lambda: AutoAdvNF(with_ensemble).fit(ensemble=3), "option of fit.*partial"),
        "islands of": (
            lambda: AutoAnnealingFlow(with_ensemble).particles(8, islands=3),
            r"'islands' is an option of particles\(\)",
        ),
        "option": (lambda: importance_flow(p, quadratic, seed=3), "arguments of the model go in"),
    }
    for name, (call, text) in calls.items():
        yield BadInput(name, call, text)


BAD_INPUTS = [
    *options(),
    *of_sample(),
    *shared_names(),
    *energies(),
    *potentials(),
    *models(),
    *deep_errors(),
    *points(),
    *runs(),
    *kernels(),
    *guides(),
    *others(),
]
