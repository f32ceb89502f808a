"""Rounding errors of densities, and targets in float64."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from support import models
from support.models import BATCHING, named
from support.mutations import must_fail, mutation
from torch.testing import assert_close

from pyro_flowsamp import Target
from pyro_flowsamp.target import precision
from pyro_flowsamp.target.precision import (
    as_double,
    noise_along_lines,
    rounding_error,
)

HARMFUL = 0.05  #: nats of noise that a sampler should hear of


def line(x, y, offset):
    intercept = pyro.sample("intercept", dist.Normal(0.0, 100.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(intercept + slope * x + offset, 0.3), obs=y)


def posterior(x, y, num=100):
    """Return draws of intercept and slope, which are normal, given y without its offset."""
    features = torch.stack([torch.ones_like(x), x], -1).double()
    root = torch.linalg.cholesky(features.T @ features / 0.09 + torch.diag(torch.tensor([1e-4, 1])))
    mean = torch.cholesky_solve(features.T @ y.double()[:, None] / 0.09, root)
    noise = torch.randn(2, num, dtype=torch.float64)
    return (mean + torch.linalg.solve_triangular(root.T, noise, upper=True)).T.float()


# ---- noise --------------------------------------------------------------------------------------


def known_noise(size=1e-4, num=2000):
    """Return the root mean square of estimates, relative to the noise."""
    t = torch.linspace(0, 0.02, 9, dtype=torch.float64)
    smooth = torch.randn(num, 1, dtype=torch.float64) * (5 * t).exp() + t.sin()
    found = precision.difference_noise(smooth + size * torch.randn(num, 9, dtype=torch.float64))
    return float(found.square().mean().sqrt()) / size


@pytest.mark.parametrize("size", [1e-3, 1e-6])
def test_noise_of_known_size(size):
    """Differences of some lines agree by chance, so that the estimate is biased by some percent."""
    assert known_noise(size) == pytest.approx(1.0, abs=0.1)


@mutation(precision, "difference_noise")
def without_differences(noise, values):
    return values.std(-1)


@mutation(precision, "difference_noise")
def of_first_differences(noise, values):
    return (values.diff(dim=-1).square().mean(-1) / 2).sqrt()


@pytest.mark.parametrize("wrong", [without_differences, of_first_differences])
def test_the_size_sees_smooth_parts(wrong):
    must_fail(wrong, score=lambda: abs(known_noise() - 1), above=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constant", [1e3, 1e5])
def test_noise_is_half_a_unit_or_so(dtype, constant):
    """Adding a constant rounds to its last digit: uniformly, with a deviation of unit / √12."""
    target = Target.from_energy(lambda x: constant + x.cos().sum(-1), 3, dtype=dtype)
    unit = constant * torch.finfo(dtype).eps
    x = torch.randn(400, 3, dtype=dtype)
    step = precision.LONG_STEP if dtype == torch.float32 else precision.SHORT_STEP
    assert 0.1 * unit < noise_along_lines(target, x, step) < 0.6 * unit


@pytest.mark.parametrize("location", [0.0, 1e4])
def test_points_far_out_are_no_noise(location):
    """The density of x is not charged with the rounding of x."""
    target = Target.from_energy(lambda x: 0.5 * (x - location).square().sum(-1), 2)
    assert noise_along_lines(target, location + torch.randn(100, 2)) < 1e-6


# ---- float64 ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the density is evaluated point by point")
@pytest.mark.parametrize("model, y, batching", named(BATCHING))
def test_models_in_float64(model, y, batching):
    target = Target.from_model(model, y)
    state, double = torch.get_rng_state(), as_double(target)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32
    if model is models.with_param:  # its parameter stays in float32
        assert double is None
        return
    assert (double.dtype, double.batching, double.dim) == (torch.float64, batching, target.dim)
    x = target.initial_points(5)
    log_p = double.log_prob(x.double())
    assert log_p.dtype == torch.float64
    assert_close(target.log_prob(x), log_p.float(), rtol=1e-4, atol=1e-4)
    assert as_double(double) is double


def test_energies_and_potentials_in_float64():
    target = Target.from_energy(lambda x: x[:, 0].cos() + x[:, 1].square(), 2, angles=[0])
    double = as_double(target)
    assert double.dtype == torch.float64 and double.angles.tolist() == [True, False]
    potential = Target.from_potential(models.normal_potential, {"x": torch.zeros(2)})
    x = torch.randn(4, 2, dtype=torch.float64)
    assert_close(as_double(potential).log_prob(x), -0.5 * (x - 1).square().sum(-1))


def test_containers_and_contexts():
    def model(data, scale):
        x = pyro.sample("x", dist.Normal(0.0, scale))
        pyro.sample("y", dist.Normal(x, 1.0), obs=data["rows"][0])

    rows = torch.tensor([1.0]), torch.tensor([1, 2])
    target = Target.from_model(model, {"rows": rows}, scale=torch.tensor(1.0))
    conditional = target.conditional_on("scale").at_contexts(torch.tensor([[1.0], [3.0]]))
    for each in (target, conditional):
        x = torch.randn(6, 1)
        double = as_double(each)
        assert double.context_names == each.context_names
        assert_close(double.log_prob(x.double()).float(), each.log_prob(x))
        assert rounding_error(each, x) < 1e-5


MATRIX = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))


def matrix_in_a_closure(y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2).to(y), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(MATRIX @ beta, 1.0).to_event(1), obs=y)


@pytest.mark.parametrize(
    "target",
    [
        Target.from_model(matrix_in_a_closure, torch.zeros(20)),
        Target.from_energy(lambda x: (x @ MATRIX.T).square().sum(-1), 2),
        Target.from_energy(lambda x: x.float().square().sum(-1), 2),
        Target.from_energy(lambda x: x.float().square().sum(-1).double(), 2),
        Target.from_energy(lambda x: (2 if x.dtype == torch.float64 else 1) * x.sin().sum(-1), 2),
    ],
    ids=["model", "energy", "float32", "float32 within", "another density"],
)
def test_no_float64(target):
    assert as_double(target) is None
    assert rounding_error(target, torch.randn(50, 2)) < 1e-5


# ---- rounding errors ----------------------------------------------------------------------------


def test_uncentred_years_do_no_harm():
    """The numbers are large, but neither correlations nor their size make an error."""
    years = torch.arange(1990.0, 2021.0)
    y = 0.02 * (years - 2000) + 0.3 * torch.randn(31)
    target = Target.from_model(line, years, y, 0.0)
    assert 1e-7 < rounding_error(target, posterior(years, y)) < 1e-3


def test_offsets_of_a_million_do():
    x = torch.linspace(-1, 1, 31)
    y = x + 0.3 * torch.randn(31)
    target = Target.from_model(line, x, y + 1e6, 1e6)
    assert rounding_error(target, posterior(x, y)) > HARMFUL


def test_an_error_without_float64():
    """Noise along lines shows it, as long as it changes along them."""
    one = torch.eye(2)  # of float32, which no product with float64 takes
    target = Target.from_energy(lambda x: 0.5 * (x @ one + 1e6 - 1e6).square().sum(-1), 2)
    assert as_double(target) is None
    assert rounding_error(target, torch.randn(100, 2)) > 0.01


def test_kinks_are_no_noise():
    target = Target.from_energy(lambda x: x.abs().sum(-1), 10)
    assert rounding_error(target, dist.Laplace(0.0, 1.0).sample((100, 10))) < 1e-5


def test_no_density_anywhere():
    target = Target.from_energy(lambda x: x.sum(-1) * torch.nan, 2)
    assert rounding_error(target, torch.randn(10, 2)) == torch.inf
