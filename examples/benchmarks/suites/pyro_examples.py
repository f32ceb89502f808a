"""Models of Pyro's examples that have a potential, with small data in the place of downloads."""

import importlib.util
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock
from unittest.mock import MagicMock

import numpy as np
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import init_to_uniform, init_to_value
from torch import Tensor


@dataclass(frozen=True)
class ExampleModel:
    """A model with its arguments.

    Attributes:
        model: The model.
        args, kwargs: Its arguments.
        max_plate_nesting: The number of plate dimensions, where it must be told to Pyro.
        init_strategy: How Pyro finds a first point.
    """

    model: Callable
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    max_plate_nesting: int | None = None
    init_strategy: Callable = init_to_uniform


#: Packages for plots and downloads, which the models do not need.
OPTIONAL = ("seaborn", "wget", "torchvision", "torchvision.datasets")

#: A function of the folder of examples that makes a model.
Make = Callable[[Path], ExampleModel]

EXAMPLES: dict[str, Make] = {}  #: makers of models, by name of the example


def example(name: str) -> Callable[[Make], Make]:
    """Enters a function into :data:`EXAMPLES`."""

    def enter(make: Make) -> Make:
        EXAMPLES[name] = make
        return make

    return enter


def load(folder: Path, path: str) -> Any:
    """Imports a file of the examples, with its folder on the path, and keeps the default dtype."""
    file = folder / path
    dtype, before = torch.get_default_dtype(), list(sys.path)
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(f"_example_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.pop("data", None)  # of the eight schools
    absent = {
        name: MagicMock(name=name) for name in OPTIONAL if find_spec(name.split(".")[0]) is None
    }
    try:
        with mock.patch.dict(sys.modules, absent):
            spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
        torch.set_default_dtype(dtype)
    return module


def double(value: Tensor) -> Tensor:
    return value.double()


# ---- eight schools, baseball, and other small models ---------------------------------------------


@example("eight_schools/mcmc.py")
def _(folder: Path) -> ExampleModel:
    module = load(folder, "eight_schools/mcmc.py")
    args = (module.model, double(module.data.sigma), double(module.data.y))
    return ExampleModel(module.conditioned_model, args)


@example("eight_schools/svi.py")
def _(folder: Path) -> ExampleModel:
    module = load(folder, "eight_schools/svi.py")
    return ExampleModel(module.model, (double(module.data),))


def _baseball(model: str) -> Make:
    def make(folder: Path) -> ExampleModel:
        module = load(folder, "baseball.py")
        at_bats = torch.full((6,), 45.0)
        hits = torch.tensor([18.0, 17.0, 16.0, 15.0, 11.0, 8.0])
        return ExampleModel(getattr(module, model), (at_bats, hits))

    return make


for _model in ("fully_pooled", "not_pooled", "partially_pooled", "partially_pooled_with_logit"):
    EXAMPLES[f"baseball.py, {_model}"] = _baseball(_model)


@example("lkj.py")
def _(folder: Path) -> ExampleModel:
    return ExampleModel(load(folder, "lkj.py").model, (torch.randn(20, 3),))


@example("neutra.py")
def _(folder: Path) -> ExampleModel:
    return ExampleModel(load(folder, "neutra.py").model, (1.15, 1.0))


@example("sparse_regression.py")
def _(folder: Path) -> ExampleModel:
    hypers = {"expected_sparsity": 2.0, "alpha1": 3.0, "beta1": 1.0, "alpha2": 3.0, "beta2": 1.0}
    hypers |= {"alpha3": 1.0, "c": 1.0}
    data = (torch.randn(10, 4), torch.randn(10), {k: torch.tensor(v) for k, v in hypers.items()})
    return ExampleModel(load(folder, "sparse_regression.py").model, data)


@example("sparse_gamma_def.py")
def _(folder: Path) -> ExampleModel:
    made = load(folder, "sparse_gamma_def.py").SparseGammaDEF()
    made.top_width, made.mid_width, made.bottom_width, made.image_size = 3, 3, 2, 4
    for name in ("alpha_z", "beta_z", "alpha_w", "beta_w"):
        setattr(made, name, double(getattr(made, name)))
    return ExampleModel(made.model, (dist.Poisson(torch.full((2, 4), 3.0)).sample(),))


@example("toy_mixture_model_discrete_enumeration.py")
def _(folder: Path) -> ExampleModel:
    module = load(folder, "toy_mixture_model_discrete_enumeration.py")
    prior, _, data = module.generate_data(8)
    return ExampleModel(module.model, (prior, {**data, "B": None}, 8), max_plate_nesting=1)


@example("lda.py")
def _(folder: Path) -> ExampleModel:
    module = load(folder, "lda.py")
    sizes = Namespace(num_topics=2, num_words=4, num_docs=3, num_words_per_doc=5)
    words = torch.randint(4, (5, 3))
    return ExampleModel(module.model, (words,), {"args": sizes}, max_plate_nesting=2)


@example("svi_torch.py")
def _(folder: Path) -> ExampleModel:
    model = load(folder, "svi_torch.py").Model(8).double()
    return ExampleModel(model, (torch.randn(8, 1), torch.randn(8)))


@example("contrib/autoname/tree_data.py")
def _(folder: Path) -> ExampleModel:
    one, two, three = torch.tensor([1.0, 2.0, 3.0])
    return ExampleModel(
        load(folder, "contrib/autoname/tree_data.py").model, ([one, [two], [three]],)
    )


@example("contrib/forecast/bart.py")
def _(folder: Path) -> ExampleModel:
    model = load(folder, "contrib/forecast/bart.py").Model()
    return ExampleModel(model, (torch.randn(6, 2), torch.zeros(6, 0)))


@example("inclined_plane.py")
def _(folder: Path) -> ExampleModel:
    module = load(folder, "inclined_plane.py")
    return ExampleModel(module.model, (module.observed_data[:3],))


# ---- models with discrete variables that are summed out ------------------------------------------


def _capture(model: str) -> Make:
    def make(folder: Path) -> ExampleModel:
        file = folder / "capture_recapture/dipper_capture_history.csv"
        module = load(folder, "capture_recapture/cjs.py")
        history = torch.tensor(np.genfromtxt(file, delimiter=",")[:6, 1:6])
        sex = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0])
        return ExampleModel(getattr(module, model), (history, sex), max_plate_nesting=1)

    return make


def _markov(model: str) -> Make:
    def make(folder: Path) -> ExampleModel:
        module = load(folder, "hmm.py")
        sequences = torch.randint(2, (2, 3, 3)).to(torch.get_default_dtype())
        settings = Namespace(hidden_dim=4, nn_dim=5, nn_channels=2, jit=False)
        settings.raftery_parameterization = False
        kwargs = {"args": settings, "include_prior": True}
        args = (sequences, torch.tensor([3, 2]))
        nesting = 1 if model == "model_0" else 2
        return ExampleModel(getattr(module, model), args, kwargs, max_plate_nesting=nesting)

    return make


for _number in range(1, 6):
    EXAMPLES[f"capture_recapture/cjs.py, model_{_number}"] = _capture(f"model_{_number}")
for _number in (0, 1, 2, 3, 4, 5, 7):
    EXAMPLES[f"hmm.py, model_{_number}"] = _markov(f"model_{_number}")


def _seals(group: str, individual: str) -> Make:
    def make(folder: Path) -> ExampleModel:
        module = load(folder, "mixed_hmm/model.py")
        shape = (3, 2, 4)  # individuals, groups, times
        step, angle, omega = torch.rand(shape) + 0.5, torch.randn(shape), torch.rand(shape)
        sizes = {"state": 2, "random": 2, "group": 2, "individual": 3, "timesteps": 4}
        config = {
            "MISSING": 1e-6,
            "sizes": sizes,
            "group": {"random": group, "fixed": None},
            "individual": {"random": individual, "mask": torch.ones(3, 2).bool()},
            "timestep": {"mask": torch.ones(shape).bool()},
            "observations": {"step": step, "angle": angle, "omega": omega},
        }
        return ExampleModel(module.model_generic, (config,), max_plate_nesting=2)

    return make


EXAMPLES["mixed_hmm/model.py, individuals"] = _seals("none", "continuous")
EXAMPLES["mixed_hmm/model.py, groups"] = _seals("continuous", "discrete")


def _epidemic(model: str) -> Make:
    def make(folder: Path) -> ExampleModel:
        module = load(folder, "sir_hmc.py")
        small = model == "reparameterized_discrete_model"
        args = Namespace(population=3 if small else 20, recovery_time=7.0)
        module.args = args  # which the example reads as a global
        data = torch.tensor([1.0, 0.0] if small else [1.0, 2.0, 1.0, 0.0])
        first = {}
        if not small:
            first = module.heuristic_init(args, data.clone())
        init = init_to_value(values=first) if first else init_to_uniform
        return ExampleModel(getattr(module, model), (args, data), {}, 0, init)

    return make


for _model in ("reparameterized_discrete_model", "continuous_model", "vectorized_model"):
    EXAMPLES[f"sir_hmc.py, {_model}"] = _epidemic(_model)


#: Examples that are not compared, and why.
LEFT_OUT = {
    "air, cvae, scanvi, vae, dmm.py, contrib/cevae": "Their latent variables belong to "
    "minibatches, and their networks are trained: no potential.",
    "contrib/gp/sv-dkl.py, contrib/oed, contrib/timeseries": "They fit parameters: no model whose "
    "latent variables have a potential.",
    "contrib/mue": "Its models subsample their data.",
    "contrib/autoname/mixture.py, scoping_mixture.py, hmm.py model_6": "Every latent variable is "
    "discrete.",
    "contrib/epidemiology": "Its models choose their coordinates themselves, in `fit_mcmc`.",
    "contrib/funsor": "It needs the package funsor.",
    "rsa, einsum.py, minipyro.py, smcfilter.py": "No potential: search over programs, algebra, "
    "a small copy of Pyro, a model of steps.",
    "svi_horovod.py, svi_lightning.py": "The model of svi_torch.py, run by other packages.",
}
