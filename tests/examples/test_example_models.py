"""The models of the examples: they can be vmapped, and NumPyro agrees with their densities."""

import numpy as np
import pyro
import pytest
import torch
from baselines import nuts
from problems.models import MODELS, load
from pyro import poutine
from pyro.poutine.util import site_is_subsample


@pytest.fixture(autouse=True)
def float64(clean_slate):
    torch.set_default_dtype(torch.float64)


@pytest.fixture
def numpyro_models():
    pytest.importorskip("numpyro")
    return nuts.numpyro_models()


def latent_sites(model, data):
    trace = poutine.trace(model).get_trace(*data)
    nodes = trace.iter_stochastic_nodes()
    return {name: node["value"] for name, node in nodes if not site_is_subsample(node)}


def prior_draws(model, data, num):
    """``num`` draws of every latent site from the prior, stacked."""
    draws = [latent_sites(model, data) for _ in range(num)]
    return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}


def log_joint(model, data, values):
    with pyro.validation_enabled(False):
        return poutine.trace(poutine.condition(model, values)).get_trace(*data).log_prob_sum()


@pytest.mark.parametrize("name", MODELS)
def test_vmap_is_the_loop(name):
    model, data = load(name)
    values = prior_draws(model, data, num=5)
    loop = [log_joint(model, data, {k: v[i] for k, v in values.items()}) for i in range(5)]
    vmapped = torch.func.vmap(lambda v: log_joint(model, data, v))(values)
    torch.testing.assert_close(vmapped, torch.stack(loop))
    assert vmapped.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_dtype_is_the_default_of_the_call(name):
    torch.set_default_dtype(torch.float32)
    model, data = load(name)
    assert {v.dtype for v in latent_sites(model, data).values()} == {torch.float32}
    torch.set_default_dtype(torch.float64)
    model, data = load(name)
    assert {v.dtype for v in latent_sites(model, data).values()} == {torch.float64}


@pytest.mark.parametrize("name", ["eight_schools", "german_credit", "radon"])
def test_numpyro_has_the_same_density(name, numpyro_models):
    import jax
    from numpyro.infer.util import log_density

    model, data = load(name)
    values = prior_draws(model, data, num=3)
    twin = numpyro_models[name]
    arrays = tuple(x.numpy() for x in data)
    with jax.enable_x64(True):
        for i in range(3):
            ours = log_joint(model, data, {k: v[i] for k, v in values.items()})
            point = {k: v[i].numpy() for k, v in values.items()}
            theirs, trace = log_density(twin, arrays, {}, point)
            latent = {n for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}
            assert latent == set(values)
            np.testing.assert_allclose(float(theirs), float(ours), rtol=1e-10)
