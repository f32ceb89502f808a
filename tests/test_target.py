"""Targets: the right batching, the right density, and the same answer whichever way it is asked."""

import subprocess
import sys

import models
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model
from torch.testing import assert_close

from pyro_flowsamp import Target


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
