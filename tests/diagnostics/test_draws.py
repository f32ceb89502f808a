"""Draws of runs and of ArviZ objects, read for their diagnosis."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from support.results import dataset, result
from torch.testing import assert_close

from pyro_flowsamp import IMH, AutoFlow, FitOptions, LatentHMC, Target, VectorizedMCMC, to_arviz
from pyro_flowsamp.diagnostics.draws import read_draws

QUIET = FitOptions(progress=False)


def model(y):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(mean, scale).to_event(1), obs=y)


DATA = torch.tensor([0.5, -0.5])


@pytest.fixture(scope="module")
def guide():
    pyro.set_rng_seed(0)
    made = AutoFlow(model, flow="gaussian", options=QUIET)
    made.fit(DATA)
    return made


@pytest.fixture(scope="module")
def run(guide):
    pyro.set_rng_seed(1)
    made = VectorizedMCMC(IMH(model, guide=guide), 20, 5, 10, disable_progbar=True)
    made.min_acceptance = 0.0
    made.run(DATA)
    return made


def test_a_run(run):
    found = read_draws(run)
    assert found.columns.shape == (10, 20, 3) and found.columns.dtype == torch.double
    assert sorted(found.names) == ["mean[0]", "mean[1]", "scale"]
    assert_close(found.x, run.unconstrained)
    assert found.target is run.target and found.proposal is run.kernel.proposal
    assert found.kernel is run.kernel and found.groups is None and len(found.starts) == 10
    assert found.jumps_only and not found.of_a_guide


def test_local_moves_have_a_step_size(guide):
    made = VectorizedMCMC(LatentHMC(model, guide=guide), 4, 4, 10, disable_progbar=True)
    made.run(DATA)
    assert not read_draws(made).jumps_only


def test_a_kernel_that_was_used_again_is_not_known(run, guide):
    kernel = IMH(model, guide=guide)
    first, second = (VectorizedMCMC(kernel, 4, 4, 10, disable_progbar=True) for _ in range(2))
    first.min_acceptance = second.min_acceptance = 0.0
    first.run(DATA)
    second.run(DATA + 1)
    assert read_draws(first).kernel is None and read_draws(second).kernel is kernel


def test_an_arviz_object(run, guide):
    data = to_arviz(run, log_likelihood=False)
    data.attrs["reliable"] = 0
    found = read_draws(data)
    assert found.columns.shape == (10, 20, 3) and found.x is None and found.target is None
    assert found.attributes["reliable"] == 0 and found.jumps_only
    target = Target.from_model(model, DATA)
    found = read_draws(data, guide, target)
    assert found.target is target and found.proposal is not None and found.kernel is None
    assert_close(found.x, run.unconstrained, atol=1e-5, rtol=1e-4)


def test_superchains_and_integers():
    posterior = {"n": np.arange(24).reshape(4, 6), "x": np.zeros((4, 6, 2, 2))}
    data = result(posterior)
    data["posterior"].coords["superchain"] = ("chain", ["b", "b", "a", "a"])
    found = read_draws(data)
    assert found.groups.tolist() == [1, 1, 0, 0] and found.columns.shape == (4, 6, 5)


def test_draws_of_a_guide(guide):
    assert read_draws(to_arviz(guide, DATA, num_samples=50)).of_a_guide


def test_pyros_own_run():
    pyro.set_rng_seed(0)
    made = MCMC(NUTS(model), 20, 20, disable_progbar=True)
    made.run(DATA)
    found = read_draws(made, target=Target.from_model(model, DATA))
    assert found.columns.shape == (1, 20, 3) and found.x.shape == (1, 20, 3)
    assert "diverging" in found.statistics and not found.jumps_only


def test_some_sites_only(guide):
    made = VectorizedMCMC(
        IMH(model, guide=guide), 4, 4, 10, save_params=["mean"], disable_progbar=True
    )
    made.min_acceptance = 0.0
    made.run(DATA)
    found = read_draws(made)
    assert found.columns.shape == (10, 4, 2) and found.x is None and found.kernel is None


def test_bad_sources(run, guide):
    with pytest.raises(ValueError, match="type int has no draws: give a run, or an ArviZ object"):
        read_draws(3)
    with pytest.raises(ValueError, match="the guide is untrained"):
        read_draws(run, AutoFlow(model))
    with pytest.raises(ValueError, match="arguments of the guide's model are not known: give"):
        read_draws(to_arviz(run, log_likelihood=False), guide)
    with pytest.raises(ValueError, match="no draws in the group 'posterior'"):
        read_draws({"posterior": dataset({"x": np.zeros((4, 0))})})


def test_several_contexts_are_refused():
    def at(scale):
        pyro.sample("x", dist.Normal(0.0, scale))

    target = Target.from_model(at, torch.tensor(1.0)).conditional_on("scale")
    several = target.at_contexts(torch.tensor([[1.0], [2.0]]))
    data = result({"x": np.zeros((4, 10))})
    with pytest.raises(ValueError, match="looks at draws at one context"):
        read_draws(data, target=several)
