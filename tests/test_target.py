"""Targets: the right batching, the right density, and the same answer whichever way it is asked."""

import subprocess
import sys

import models
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model
from torch.testing import assert_close

from pyro_flowsamp import Target
from pyro_flowsamp.target import ModelStructureError


def _named(cases):
    return [pytest.param(*case, id=case[0].__name__) for case in cases]


@pytest.mark.filterwarnings("ignore:the density is evaluated point by point")
@pytest.mark.parametrize("model, y, batching", _named(models.BATCHING))
def test_equals_pyros_potential(model, y, batching):
    target = Target.from_model(model, y)
    assert target.batching == batching
    x = target.initial_points(3)
    log_p, grad = target.log_prob_and_grad(x)
    _, potential, _, _ = initialize_model(model, (y,))
    for row, value, slope in zip(x, log_p, grad):
        row = row.detach().requires_grad_()
        energy = potential(target.unpack_unconstrained(row))
        assert_close(-energy, value, rtol=1e-4, atol=1e-4)
        assert_close(-torch.autograd.grad(energy, row)[0], slope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model, y, batching", _named(models.BATCHING[:4]))
def test_pack_undoes_unpack(model, y, batching):
    target = Target.from_model(model, y)
    x = target.initial_points(6).reshape(2, 3, -1)
    values = target.unpack(x)
    trace = pyro.poutine.trace(model).get_trace(y)
    for name, value in values.items():
        assert value.shape == (2, 3, *trace.nodes[name]["value"].shape)
        assert trace.nodes[name]["fn"].support.check(value).all()
    assert_close(target.pack(values), x, rtol=1e-4, atol=1e-4)
    assert_close(target.pack_unconstrained(target.unpack_unconstrained(x)), x)


def test_pack_names_what_is_wrong():
    target = Target.from_model(models.conjugate, *models.conjugate_data())
    good = target.unpack(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="no value for site 'rate'"):
        target.pack({"mean": good["mean"]})
    with pytest.raises(ValueError, match=r"'mean'.*float32, got torch.float64; convert with"):
        target.pack({**good, "mean": good["mean"].double()})
    with pytest.raises(ValueError, match=r"leading dimensions differ: .*\(4,\).*\(3,\)"):
        target.pack({**good, "mean": good["mean"][:3]})
    with pytest.raises(ValueError, match=r"shape \(N, 2\), got \(4, 3\)"):
        target.log_prob(torch.zeros(4, 3))


def test_from_potential():
    target = Target.from_potential(models.normal_potential, {"x": torch.zeros(2)})
    assert target.batching == "vmap"
    x = torch.randn(5, 2)
    assert_close(target.log_prob(x), -0.5 * (x - 1).square().sum(-1))


@pytest.mark.filterwarnings("ignore:the density is evaluated point by point")
def test_from_potential_that_reads_values():
    target = Target.from_potential(lambda u: u["x"] * u["x"].item(), {"x": torch.tensor(1.0)})
    assert target.batching == "loop"
    assert_close(target.log_prob(torch.tensor([[2.0], [3.0]])), torch.tensor([-4.0, -9.0]))


def test_from_energy():
    target = Target.from_energy(models.energy, 2, dtype=torch.float64)
    x = torch.randn(5, 2, dtype=torch.float64)
    log_p, grad = target.log_prob_and_grad(x)
    assert_close(log_p, -models.energy(x))
    a, b = x.T
    assert_close(grad, torch.stack([b - 2 * a, a - 2 * b], -1))
    assert target.evaluations == 5
    with pytest.raises(ValueError, match=r"it must be \(2,\), one energy per row"):
        Target.from_energy(lambda x: x.sum(), 2)


def test_amortize():
    ys = torch.randn(4, 2)
    target = Target.from_model(models.location, ys[0])
    conditional = target.amortize("y")
    x = torch.randn(4, 2)
    each = [Target.from_model(models.location, y).log_prob(row[None]) for y, row in zip(ys, x)]
    assert_close(conditional.log_prob(x, ys), torch.cat(each))
    assert_close(conditional.log_prob(x), target.log_prob(x))  # its own argument is the default
    with pytest.raises(ValueError, match="only a target made from a Pyro model"):
        Target.from_energy(models.energy, 2).amortize("y")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_dtype_is_the_models(default, dtype):
    torch.set_default_dtype(default)
    y, counts = (v.to(dtype) for v in models.conjugate_data())
    target = Target.from_model(models.conjugate, y, counts)
    x = target.initial_points(3)
    log_p, grad = target.log_prob_and_grad(x)
    values = target.unpack(x).values()
    assert {t.dtype for t in (x, log_p, grad, *values)} == {target.dtype} == {dtype}


def test_each_site_keeps_its_precision():
    """Data of a float32 site are float32: the model sees it so, though points are float64."""
    data = torch.randn(4, 3)

    def model():
        wide = pyro.sample("wide", dist.Normal(torch.zeros(2, dtype=torch.float64), 1).to_event(1))
        x = pyro.sample("x", dist.Normal(torch.zeros(3), 1).to_event(1))
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Normal(data @ x, 1.0), obs=wide.sum() + torch.zeros(4))

    target = Target.from_model(model)
    points = torch.randn(5, 5, dtype=torch.float64)
    wide, x = points.split([2, 3], -1)
    normal = torch.distributions.Normal(0.0, 1.0)
    likelihood = normal.log_prob(wide.sum(-1, keepdim=True) - x @ data.T.double()).sum(-1)
    assert (target.dtype, target.batching) == (torch.float64, "vmap")
    expected = normal.log_prob(points).sum(-1) + likelihood
    assert_close(target.log_prob(points), expected, rtol=1e-5, atol=1e-5)


def test_angles_wrap():
    target = Target.from_model(models.turned, torch.tensor(1.0))
    assert target.circular and target.angles.tolist() == [False, True]
    x = torch.tensor([[4.0, 4.0], [-9.0, -9.0]])
    wrapped = target.wrap(x)
    assert_close(wrapped[:, 0], x[:, 0])
    assert (wrapped[:, 1].abs() <= torch.pi).all()
    assert_close(wrapped[:, 1].cos(), x[:, 1].cos())
    assert_close(target.unpack(x)["direction"], wrapped[:, 1])
    assert_close(target.log_prob(wrapped), target.log_prob(x))


def test_not_a_number_is_minus_infinity():
    target = Target.from_energy(lambda x: x[:, 0].log() + x.square().sum(-1), 2)
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])  # fine, NaN, infinite
    log_p, grad = target.log_prob_and_grad(x)
    assert log_p.tolist() == [-1.0, -torch.inf, -torch.inf]
    assert grad[1:].tolist() == [[0.0, 0.0], [0.0, 0.0]] and grad[0].tolist() == [-3.0, 0.0]
    assert int(target.nonfinite) == 2


def test_linalg_error_kills_only_its_row():
    def energy(x):
        return torch.linalg.cholesky(torch.diag_embed(1 + x)).sum((-2, -1))

    target = Target.from_energy(energy, 2)
    log_p, grad = target.log_prob_and_grad(torch.tensor([[3.0, 0.0], [-2.0, 0.0], [0.0, 8.0]]))
    assert log_p.tolist() == [-3.0, -torch.inf, -4.0]
    assert_close(grad, torch.tensor([[-0.25, -0.5], [0.0, 0.0], [-0.5, -1 / 6]]))
    assert int(target.nonfinite) == 1


@pytest.mark.filterwarnings("ignore:the density is evaluated point by point")
@pytest.mark.parametrize("model", [models.masked, models.schools, models.reading])
def test_pointwise_log_likelihood_and_data(model):
    y = torch.tensor([0.5, -1.0, 2.0])
    target = Target.from_model(model, y)
    x = target.initial_points(4)
    samples = target.unpack(x)
    found = target.pointwise_log_likelihood(samples)["y"]
    for i in range(4):
        values = {name: value[i] for name, value in samples.items()}
        trace = pyro.poutine.trace(pyro.condition(model, values)).get_trace(y)
        trace.compute_log_prob()
        assert_close(found[i], trace.nodes["y"]["log_prob"])
    assert_close(target.observed_data(), {"y": y})


def test_pointwise_log_likelihood_of_a_marginal():
    target = Target.from_model(models.enumerated, torch.zeros(3))
    with pytest.raises(ValueError, match="discrete sites, which were summed out.*by hand"):
        target.pointwise_log_likelihood(target.unpack(torch.zeros(2, target.dim)))


def test_is_a_pyro_model():
    target = Target.from_model(models.conjugate, *models.conjugate_data())
    x = torch.randn(1, 2)
    values = {k: v[0] for k, v in target.unpack_unconstrained(x).items()}
    conditioned = pyro.poutine.condition(target, values)
    trace = pyro.poutine.trace(conditioned).get_trace()
    assert_close(trace.log_prob_sum(), target.log_prob(x)[0])
    free = pyro.poutine.trace(target).get_trace()
    assert free.nodes["rate"]["fn"].support is dist.constraints.real


@pytest.mark.parametrize("flag", ["True", "False"])
def test_import_leaves_validation_alone(flag):
    code = f"""
from torch.distributions import Distribution
import pyro
Distribution.set_default_validate_args({flag})
import pyro_flowsamp
assert Distribution._validate_args is {flag}
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- what a model may hide ----------------------------------------------------------------------


def imputed(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        return pyro.sample("y", dist.Normal(mean, 1.0), obs=y, obs_mask=~y.isnan())


def test_missing_data():
    """What is observed has a density as if imputed too, of integral one; NaN give no gradient."""
    y = torch.tensor([1.0, torch.nan, 2.0])
    target = Target.from_model(imputed, y)
    normal = dist.Normal(0.0, 1.0)
    x = torch.randn(5, 4)
    mean, rest = x[:, :1], x[:, 1:]
    shown = normal.log_prob(y[[0, 2]] - mean).sum(-1)
    truth = normal.log_prob(mean[:, 0]) + shown + normal.log_prob(rest - mean).sum(-1)
    log_p, grad = target.log_prob_and_grad(x)
    assert_close(log_p, truth)
    slope = -mean[:, 0] + (y[[0, 2]] - mean).sum(-1) + (rest - mean).sum(-1)
    assert_close(grad, torch.cat([slope[:, None], mean - rest], -1))
    assert_close(target.observed_data()["y_observed"], y, equal_nan=True)
    assert target.batching == "vmap"


def test_missing_vectors():
    """Whole events are missing; the first may be."""
    y = torch.tensor([[torch.nan, torch.nan], [1.0, 2.0], [3.0, 4.0]])

    def model():
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", 3):
            mask = ~y.isnan().any(-1)
            pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y, obs_mask=mask)

    grad = Target.from_model(model).log_prob_and_grad(torch.zeros(1, 8))[1]
    assert_close(grad, torch.tensor([[4.0, 6.0] + [0.0] * 6]))


@pytest.mark.parametrize("all_missing", [False, True])
def test_missing_one_by_one(all_missing):
    """Each datum a site of its own, as in a time series; what is missing has no neighbour."""
    y = torch.tensor([1.0, torch.nan, 2.0])
    mask = torch.zeros(3, dtype=torch.bool) if all_missing else ~y.isnan()

    def model():
        scale = pyro.sample("scale", dist.Exponential(1.0))
        for t in range(3):
            pyro.sample(f"y_{t}", dist.Exponential(scale), obs=y[t], obs_mask=mask[t])

    x = torch.tensor([[0.3, 0.0, 0.0, 0.0]])
    grad = Target.from_model(model).log_prob_and_grad(x)[1]
    scale = x[0, 0].exp()  # u - e^u of the prior; u - e^u y of a datum, shown or imputed, then 1
    assert_close(grad[0, 0], (1 - scale * torch.cat([torch.ones(4), y[mask]])).sum())


def test_missing_data_in_a_scale_and_a_mask():
    """What is there counts twice, its imputed replicate once; what the outer mask hides, never."""
    y, mask = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, True, False])
    kept = torch.tensor([True, False, True])

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3), poutine.scale(scale=2.0), poutine.mask(mask=kept):
            value = pyro.sample("y", dist.Normal(x, 1.0), obs=y, obs_mask=mask)
        pyro.sample("w", dist.Normal(value.sum(), 1.0), obs=torch.tensor(0.5))

    normal = dist.Normal(0.0, 1.0)
    x = torch.randn(5, 4)
    mean, rest = x[:, 0], x[:, 1:]
    truth = normal.log_prob(mean) + 2 * normal.log_prob(y[0] - mean)
    truth = truth + normal.log_prob(rest[:, 0] - mean) + 2 * normal.log_prob(rest[:, 2] - mean)
    truth = truth + normal.log_prob(0.5 - (y[:2].sum() + rest[:, 2]))
    with pytest.warns(UserWarning, match="does not depend on 1 of 'y_unobserved'"):
        target = Target.from_model(model)
    assert_close(target.log_prob(x), truth)


def test_data_in_no_plate_beside_states():
    """Values outside a support at the first look are no error, nor is a masked NaN."""

    def model():
        theta = pyro.sample("theta", dist.Gamma(2.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("w", dist.Normal(z, 1.0), obs=torch.tensor(0.5))
        pyro.sample("y", dist.Uniform(torch.zeros(()), theta), obs=torch.tensor(1.0))
        with poutine.mask(mask=torch.tensor(False)):
            pyro.sample("v", dist.Normal(z, 1.0), obs=torch.tensor(torch.nan))

    for seed in range(10):
        torch.manual_seed(seed)
        Target.from_model(model)


def test_flat_coordinates_are_warned_of():
    def model():
        pyro.sample("level", dist.ImproperUniform(dist.constraints.real, (), (2,)))
        pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.warns(UserWarning, match="does not depend on 2 of 'level'"):
        Target.from_model(model)


def test_no_gradient_is_warned_of():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        hidden = torch.where(torch.tensor(True), x, x / torch.zeros(()))
        pyro.sample("y", dist.Normal(hidden, 1.0), obs=torch.zeros(()))

    with pytest.warns(UserWarning, match="its gradient is NaN"):
        Target.from_model(model)


def nothing():
    pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))


def noisy():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=torch.randn(()))


def sequential():
    z = pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "sequential"})
    pyro.sample("x", dist.Normal(z, 1.0))


def undeclared():
    z = pyro.sample("z", dist.Bernoulli(0.3))
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mean + z, 1.0), obs=torch.tensor([0.0, 3.0]))


@pytest.mark.parametrize(
    "model, error, words",
    [
        (nothing, ValueError, "does not depend on any latent site"),
        (noisy, ModelStructureError, "the density is random"),
        (sequential, ValueError, "'z' asks to be enumerated sequentially"),
        (undeclared, ValueError, "'y' has a density of shape .2,., whose dimension -1"),
    ],
)
def test_no_density_to_sample(model, error, words):
    with pytest.raises(error, match=words):
        Target.from_model(model)


def test_declared_states_and_data():
    """The same in a plate: each state of z is one of all the data."""

    def model():
        z = pyro.sample("z", dist.Bernoulli(0.3))
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 2):
            pyro.sample("y", dist.Normal(mean + z, 1.0), obs=torch.tensor([0.0, 3.0]))

    normal, y, mean = dist.Normal(0.0, 1.0), torch.tensor([0.0, 3.0]), torch.tensor(0.5)
    states = [
        weight.log() + normal.log_prob(y - mean - z).sum()
        for z, weight in enumerate(torch.tensor([0.7, 0.3]))
    ]
    truth = torch.stack(states).logsumexp(0) + normal.log_prob(mean)
    assert_close(Target.from_model(model).log_prob(mean.reshape(1, 1))[0], truth)


def test_a_site_outside_every_plate_is_no_batch():
    """Two values, and two points to choose the way of batching by."""

    def model():
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0))
        if (pyro.sample("s", dist.Normal(0.0, 1.0)) > 100).any():
            raise AssertionError
        pyro.sample("y", dist.Normal(b.sum(-1), 1.0), obs=torch.zeros(()))

    with pytest.warns(UserWarning, match="outside every plate"):
        target = Target.from_model(model)
    assert_close(target.log_prob(torch.zeros(5, 3)), torch.full((5,), -3.6758), atol=1e-4, rtol=0)


def test_names_that_no_argument_has():
    target = Target.from_model(models.location, torch.zeros(2))
    with pytest.raises(ValueError, match="'z'. are no arguments of the model, which has .'y'"):
        target.amortize("z")
    with pytest.raises(ValueError, match="takes no model arguments"):
        Target.of(target, 1.0)
