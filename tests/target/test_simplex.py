"""The bijection onto the simplex: torch's map, with small relative errors."""

import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.mutations import must_fail, mutation
from torch.distributions.transforms import StickBreakingTransform
from torch.testing import assert_close

from pyro_flowsamp import Target
from pyro_flowsamp.target.simplex import LogStickBreakingTransform, with_logarithms

RADII = 1.0, 10.0, 30.0


def points(radius, dim=9, num=500):
    """Return points in a box at which all values are above the smallest number of float32."""
    x = (2 * torch.rand(num, dim, dtype=torch.float64) - 1) * radius
    return x[LogStickBreakingTransform()(x).amin(-1).log() > -87]


def sparse(num, dtype=torch.float32):
    """A target whose only site is a sparse Dirichlet."""

    def model():
        pyro.sample("weights", dist.Dirichlet(torch.full((num,), 0.1, dtype=dtype)))

    return Target.from_model(model)


def test_is_torchs_map():
    torchs, ours, x = StickBreakingTransform(), LogStickBreakingTransform(), points(4.0)
    y = ours(x)
    assert_close(y, torchs(x))
    assert_close(ours.log_abs_det_jacobian(x, y), torchs.log_abs_det_jacobian(x, y))
    assert_close(ours.inv(y), x)
    assert ours.inverse_shape((3, 10)) == (3, 9) and ours.forward_shape((3, 9)) == (3, 10)
    assert ours == pickle.loads(pickle.dumps(ours)) and ours != torchs


@pytest.mark.parametrize("radius", RADII)
def test_values(radius):
    x = points(radius)
    assert len(x) > 250
    transform = LogStickBreakingTransform()
    exact, y = transform(x), transform(x.float())
    assert_close(y.log(), exact.log().float(), rtol=1e-5, atol=1e-5)
    assert float((y.sum(-1) - 1).abs().max()) < 3e-7 and dist.constraints.simplex.check(y).all()
    assert_close(transform.inv(y), x.float(), rtol=1e-5, atol=1e-5)


def error(radius=30.0, num=10):
    """Return the greatest error of a sparse Dirichlet's density and gradient in float32."""
    x = points(radius, num - 1)
    exact = sparse(num, torch.float64).log_prob_and_grad(x)
    found = sparse(num).log_prob_and_grad(x.float())
    return max(float((a - b).abs().max()) for a, b in zip(found, exact))


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("num", [2, 3, 10])
def test_densities_and_gradients(radius, num):
    assert error(radius, num) < 1e-4


@mutation(LogStickBreakingTransform, "_call")
def torchs_values(call, self, x):
    return StickBreakingTransform()._call(x)


def test_the_errors_see_torchs_map():
    must_fail(torchs_values, score=error, above=1.0)


def test_the_mass_is_one():
    """The integral of the density over the line, and over the plane, of which much is far out."""
    x = torch.arange(-85.0, 85.0, 0.25)
    one = sparse(2).log_prob(x[:, None]).double().exp().sum() * 0.25
    assert float(one) == pytest.approx(1.0, abs=1e-3)
    x = torch.arange(-85.0, 85.0, 0.5)
    two = sparse(3).log_prob(torch.cartesian_prod(x, x)).double().exp().sum() * 0.25
    assert float(two) == pytest.approx(1.0, abs=1e-3)


def test_beyond_the_smallest_number():
    """Values stay positive, and densities finite."""
    x = torch.tensor([[-300.0, 300.0], [300.0, -300.0], [1e4, 1e4], [-1e4, -1e4]])
    assert LogStickBreakingTransform()(x).min() > 0
    log_p, grad = sparse(3).log_prob_and_grad(x)
    assert log_p.isfinite().all() and grad.isfinite().all()


def test_replaces_torchs_within_other_transforms():
    simplexes = dist.Dirichlet(torch.ones(2, 4)).to_event(1).support
    transform = torch.distributions.biject_to(simplexes)
    x = torch.randn(5, 2, 3)
    ours = with_logarithms(transform)
    assert type(ours.base_transform) is LogStickBreakingTransform
    assert_close(ours(x), transform(x))
    assert_close(ours.log_abs_det_jacobian(x, ours(x)), transform.log_abs_det_jacobian(x, ours(x)))
    power = torch.distributions.ComposeTransform(
        [StickBreakingTransform(), torch.distributions.ExpTransform()]
    )
    assert type(with_logarithms(power).parts[0]) is LogStickBreakingTransform

    def model():
        with pyro.plate("rows", 2):
            pyro.sample("weights", dist.Dirichlet(torch.ones(4)))
        pyro.sample("both", dist.Dirichlet(torch.ones(2, 4)).to_event(1))

    found = [site.transform for site in Target.from_model(model).sites]
    assert type(found[0]) is type(found[1].base_transform) is LogStickBreakingTransform
