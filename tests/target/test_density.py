"""Densities of targets: value, gradient, precision, and packing of sites into coordinates."""

import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from support import models
from support.models import BATCHING, named
from torch.testing import assert_close

from pyro_flowsamp import Target


@pytest.mark.parametrize("model, y, batching", named(BATCHING[:4]))
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


@pytest.mark.slow
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


Y = torch.tensor([1.0, 2.0, 3.0])


def normal(name="x"):
    return pyro.sample(name, dist.Normal(0.0, 1.0))


# ---- bad matrices -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_a_matrix_that_is_not_positive_definite_everywhere(seed):
    pyro.set_rng_seed(seed)
    found = Target.from_model(models.not_always_positive_definite).log_prob(
        torch.tensor([[0.1], [-1.5], [0.5], [1.5]])
    )
    assert found.isfinite().tolist() == [True, False, True, False]


def test_a_matrix_that_is_never_positive_definite():
    def model():
        matrix = torch.stack([normal(), torch.tensor(2.0), torch.tensor(2.0), torch.tensor(0.0)])
        pyro.sample("y", dist.MultivariateNormal(Y[:2], matrix.reshape(2, 2)), obs=Y[:2])

    with pytest.raises(ValueError, match="cannot be factorised at any of some random points"):
        Target.from_model(model)


def test_bad_matrices_are_sought_by_halves():
    calls = []

    def energy(x):
        calls.append(len(x))
        return torch.linalg.cholesky(x[:, :, None] + 1)[:, 0, 0]

    target = Target.from_energy(energy, 1)
    calls.clear()
    x = torch.zeros(1024, 1)
    x[700] = -2
    found = target.log_prob(x)
    assert not found[700].isfinite() and int(found.isfinite().sum()) == 1023
    assert len(calls) == 1 + 2 * 10


# ---- what counts as data, and what is no site ---------------------------------------------------


def test_no_points_at_all():
    assert Target.from_model(normal).log_prob(torch.zeros(0, 1)).shape == (0,)
