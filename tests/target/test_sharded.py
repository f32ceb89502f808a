"""Rows of data that are shared out: density, gradient and chains are those of all rows."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC
from support.mutations import broken, mutation
from support.workers import run_workers

import pyro_flowsamp
from pyro_flowsamp import AutoFlow, FitOptions, LatentMALA, Target, VectorizedMCMC, workers
from pyro_flowsamp.target.sharded import Shard, SummedDensity

X = torch.linspace(-1.0, 1.0, 23, dtype=torch.double)
Y = 1.0 + 0.5 * X + 0.1 * torch.sin(40 * X)


def regression(x, y, wide=1.0):
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(2), wide).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(x.new_zeros(()), 1.0))
    pyro.factor("outside", -0.1 * slope.square().sum())
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.StudentT(3.0, slope[0] + slope[1] * x, scale), obs=y)


def rows_of(group):
    return X[group.rank :: group.size], Y[group.rank :: group.size]


def evaluated(group, batching="vmap"):
    torch.set_default_dtype(torch.float64)
    target = Target.from_model(regression, *rows_of(group))
    points = torch.linspace(-2.0, 2.0, 15).view(5, 3)
    plain = target.log_prob(points)
    return (*target.log_prob_and_grad(points), plain, target.batching)


def whole():
    target = Target.from_model(regression, X, Y)
    return target.log_prob_and_grad(torch.linspace(-2.0, 2.0, 15).view(5, 3))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_density_and_gradient_are_those_of_all_rows(double, size):
    log_p, grad = (value.numpy() for value in whole())
    for found in run_workers(size, evaluated, shard="rows"):
        assert np.abs(found[0] - log_p).max() < 1e-10
        assert np.abs(found[1] - grad).max() < 1e-10
        assert np.array_equal(found[2], found[0])
        assert found[3] == "vmap"


def test_a_prior_that_is_counted_by_each_worker_is_seen(double):
    log_p, _ = (value.numpy() for value in whole())
    with broken(mutation(Shard, "weigh")(lambda right, self, trace: trace)):
        found = run_workers(2, evaluated, shard="rows")
    assert np.abs(found[0][0] - log_p).min() > 1e-3


def test_a_gradient_of_own_rows_alone_is_seen(double):
    _, grad = (value.numpy() for value in whole())

    @mutation(SummedDensity, "__call__")
    def own_gradient(right, self, x, c):
        own = self.density(x, c)
        return own + (self.group.add(own) - own).detach()

    with broken(own_gradient):
        found = run_workers(2, evaluated, shard="rows")
    assert np.abs(found[0][1] - grad).max() > 0.1


def sampled(group):
    torch.set_default_dtype(torch.float64)
    options = FitOptions(max_steps=20, stop_at_ess=1.0, progress=False)
    guide = AutoFlow(regression, flow="gaussian", options=options)
    kernel = LatentMALA(regression, guide=guide)
    run = VectorizedMCMC(kernel, 10, 20, 400, disable_progbar=True)
    run.run(*rows_of(group))
    return run.unconstrained, float(run.statistics["accepted"].double().mean())


@pytest.mark.slow
def test_chains_are_the_same_on_all_workers(double):
    (one,), two = (run_workers(size, sampled, shard="rows") for size in (1, 2))
    assert np.array_equal(two[0][0], two[1][0])
    assert one[0].shape == (400, 10, 3)
    assert two[0][1] > 0.3
    means = [found[0].mean(1) for found in (one, two[0])]
    error = np.sqrt(sum(m.var(0) for m in means) / 400)
    assert (np.abs(means[0].mean(0) - means[1].mean(0)) < 4 * error).all()


def chain_of_pyro(group):
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(4)
    target = Target.from_model(regression, *rows_of(group))
    guide = AutoFlow(target, flow="gaussian", options=FitOptions(4, progress=False))
    guide.target_for()
    guide.trained = True
    mcmc = MCMC(LatentMALA(guide=guide), 5, 5, disable_progbar=True)
    mcmc.run()
    return mcmc.get_samples()["slope"]


def test_a_chain_of_pyro_is_the_same_on_all_workers(double):
    (one,), two = (run_workers(size, chain_of_pyro, shard="rows") for size in (1, 2))
    assert np.array_equal(two[0], two[1]) and one.shape == (5, 2)
    assert np.abs(two[0] - one).max() < 1e-8  # sums round otherwise


# ---- bad input -----------------------------------------------------------------------------------


def made(group, model, *args):
    torch.set_default_dtype(torch.float64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Target.from_model(model, *args)
    return [str(one.message) for one in caught]


def test_the_same_rows_on_all_workers_are_told():
    for found in run_workers(2, made, regression, X, Y, shard="rows"):
        assert "all workers have the same log-likelihood of the plate 'rows'" in found[0]
        assert "these count 2 times" in found[0] and "y[group.rank :: group.size]" in found[0]


def other_prior(group):
    torch.set_default_dtype(torch.float64)
    Target.from_model(regression, *rows_of(group), 1.0 + group.rank)


def test_workers_that_differ_outside_of_the_plate_are_refused():
    for found in run_workers(2, other_prior, shard="rows"):
        assert "outside of the plate 'rows' differs between the workers" in str(found)


def with_latent_rows(y):
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def with_discrete_sites(y):
    pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(k, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "plate", "message"),
    [
        (regression, "row", "no data in a plate of the name 'row'"),
        (with_latent_rows, "rows", r"latent sites \['z'\] are inside of the plate 'rows'"),
        (with_discrete_sites, "rows", "a model with discrete sites"),
    ],
)
def test_other_models_are_refused(double, model, plate, message):
    args = (X, Y) if model is regression else (Y,)
    with workers(shard=plate), pytest.raises(ValueError, match=message):
        Target.from_model(model, *args)


def test_clocks_and_checkpoints_are_refused(double, tmp_path):
    with workers(shard="rows"):
        for wrong in ({"max_seconds": 10.0}, {"checkpoint": str(tmp_path)}):
            with pytest.raises(ValueError, match=r"cannot be used with workers\(shard="):
                pyro_flowsamp.sample(regression, X, Y, **wrong)


def sampled_by_choice(group):
    torch.set_default_dtype(torch.float64)
    data = pyro_flowsamp.sample(
        regression, *rows_of(group), seed=0, num_samples=20, num_chains=20, progress=False
    )
    return data["posterior"]["slope"].values, data.attrs["log_evidence"]


@pytest.mark.slow
def test_sample_is_that_of_all_rows(double):
    (one,), two = (run_workers(size, sampled_by_choice, shard="rows") for size in (1, 2))
    assert np.array_equal(two[0][0], two[1][0])
    assert two[0][1] == pytest.approx(one[1], abs=0.05)


def partial_outside(group, target):
    run = VectorizedMCMC(LatentMALA(target), 5, 5, 10, disable_progbar=True)
    run.run()


def test_targets_that_were_made_outside_are_compared(double):
    """A target of a part of the rows that was made before the context is no sum."""

    def function(group):
        return partial_outside(group, targets[group.rank])

    halves = [(X[::2], Y[::2]), (X[1::2], Y[1::2])]
    targets = [Target.from_model(regression, *half) for half in halves]
    for found in run_workers(2, function, shard="rows"):
        assert "the log density" in str(found) and "differs between the workers" in str(found)
