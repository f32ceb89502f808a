"""Evaluation in chunks: the same densities and derivatives as at once, with less memory."""

import gc
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from support import models
from support.models import BATCHING, named
from support.mutations import broken, mutation
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from pyro_flowsamp import Target
from pyro_flowsamp.target import evaluation
from pyro_flowsamp.target.evaluation import ChunkedDensity, bytes_per_point

NUM = 23


@pytest.fixture
def small_chunks(monkeypatch):
    """Make a function that leaves a target memory for some points at once."""

    def points_at_once(target, num):
        monkeypatch.setattr(evaluation, "MEMORY_BUDGET", num * target.density.bytes_per_point)

    return points_at_once


def regression(features, outcome, scale=1.0):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(3), scale).to_event(1))
    with pyro.plate("data", len(outcome)):
        pyro.sample("y", dist.Bernoulli(logits=features @ beta), obs=outcome)


def data(num):
    features = torch.randn(num, 3)
    return features, (features.sum(-1) > 0).float()


def derivatives(target, x, context=None):
    """Value, gradient, and the gradient of the gradient's length, as autograd finds them."""
    x = x.clone().requires_grad_()
    value = target.log_prob(x, context)
    (grad,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), x)
    return value.detach(), grad.detach(), second


@pytest.mark.filterwarnings("ignore:the density is evaluated point by point")
@pytest.mark.parametrize("model, y, batching", named(BATCHING))
def test_values_and_derivatives(model, y, batching, small_chunks):
    target = Target.from_model(model, y)
    assert target.density.bytes_per_point > 0
    x = 0.1 * torch.randn(NUM, target.dim)
    whole, value_and_grad = derivatives(target, x), target.log_prob_and_grad(x)
    before = target.evaluations
    small_chunks(target, 4)
    assert [len(chunk.x) for chunk in target.density.split(x, None)] == [4] * 5 + [3]
    assert_close(target.log_prob_and_grad(x), value_and_grad, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert_close(target.log_prob(x), value_and_grad[0], rtol=1e-5, atol=1e-5)
    assert target.evaluations == before + 2 * NUM
    assert_close(derivatives(target, x), whole, rtol=1e-4, atol=1e-4)


def test_contexts_are_split_along(small_chunks):
    target = Target.from_model(regression, *data(20)).conditional_on("scale")
    x, rows = torch.randn(NUM, 3), torch.rand(NUM, 1) + 0.5
    several = target.at_contexts(rows[:5])
    whole = [derivatives(target, x, rows), derivatives(target, x), derivatives(several, x)]
    pairs = [t.log_prob_and_grad(x) for t in (target, several)]
    small_chunks(target, 4)
    chunks = [derivatives(target, x, rows), derivatives(target, x), derivatives(several, x)]
    assert_close(chunks, whole)
    assert_close([t.log_prob_and_grad(x) for t in (target, several)], pairs)
    assert target.evaluations == 10 * NUM


def test_bytes_are_counted():
    """Each datum keeps a few numbers for each point; the data themselves do not count."""
    few, many = (Target.from_model(regression, *data(num)) for num in (1000, 2000))
    per_datum = (many.density.bytes_per_point - few.density.bytes_per_point) / 1000
    assert 4 <= per_datum <= 40
    energy = Target.from_energy(lambda x: (x @ torch.ones(2, 7)).exp().sum(-1), 2)
    assert energy.density.bytes_per_point == 4 * 7
    constant = torch.ones(2, 100)
    assert bytes_per_point(lambda x, c: (x @ constant).sum(-1), torch.zeros(2, 2), None) == 0


def test_a_density_without_gradient_has_no_bytes():
    density = lambda x, c: torch.as_tensor(x.numpy()).sum(-1)  # noqa: E731
    assert bytes_per_point(density, torch.ones(3, 2), None) == 0


def most_bytes_kept(function):
    """Return the most bytes that autograd keeps at any time in a function."""
    kept, most = [0], [0]

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor.detach()
            kept[0] += tensor.nbytes
            most[0] = max(most[0], kept[0])

        def __del__(self):
            kept[0] -= self.tensor.nbytes

    with saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        function()
    return most[0]


def test_memory_is_saved(small_chunks):
    target = Target.from_model(regression, *data(200))
    x = torch.randn(100, 3, requires_grad=True)

    def autograd():
        torch.autograd.grad(target.log_prob(x).sum(), x)

    whole = most_bytes_kept(lambda: target.log_prob_and_grad(x))
    assert most_bytes_kept(autograd) == pytest.approx(whole, rel=0.05)
    small_chunks(target, 10)
    assert most_bytes_kept(lambda: target.log_prob_and_grad(x)) < 0.2 * whole
    assert most_bytes_kept(autograd) < 0.1 * whole  # the rest is kept where no hook sees it


def test_the_density_has_parameters(small_chunks):
    """Their gradients pass through chunks too."""
    scale = torch.tensor(2.0, requires_grad=True)
    target = Target.from_energy(lambda x: (scale * x.sin()).exp().sum(-1), 2)
    x = torch.randn(NUM, 2)
    (whole,) = torch.autograd.grad(target.log_prob(x).sum(), scale)
    small_chunks(target, 5)
    (chunks,) = torch.autograd.grad(target.log_prob(x).sum(), scale)
    assert_close(chunks, whole)


class Watch:
    """Lives as long as what it is kept with."""


def leftovers():
    """Return how many frames of failed evaluations live on, though nothing collects garbage."""
    seen = []

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        held = Watch()
        seen.append(weakref.ref(held))
        matrix = torch.eye(2) * x[..., None, None] if x.dim() else torch.eye(2) * x
        pyro.factor("f", torch.linalg.cholesky(matrix).sum((-2, -1)))

    target = Target.from_model(model)
    x = torch.tensor([[1.0], [-1.0], [2.0], [-2.0]])
    gc.collect()
    gc.disable()
    try:
        log_p, _ = target.log_prob_and_grad(x)
        alive = sum(ref() is not None for ref in seen)
    finally:
        gc.enable()
    assert log_p.isfinite().tolist() == [True, False, True, False] and len(seen) > 4
    return alive


@mutation(evaluation, "_clear_frames")
def frames_are_kept(_clear_frames, error):
    pass


def test_failed_evaluations_hold_no_memory():
    """Frames of Pyro hold the errors that hold them."""
    assert leftovers() == 0
    with broken(frames_are_kept):
        assert leftovers() > 0


def test_bad_matrices_in_chunks(small_chunks):
    def energy(x):
        return torch.linalg.cholesky(torch.diag_embed(1 + x)).sum((-2, -1))

    target = Target.from_energy(energy, 2)
    x = torch.zeros(NUM, 2)
    x[13, 0] = -2
    small_chunks(target, 5)
    log_p, grad = target.log_prob_and_grad(x)
    assert log_p.isneginf().nonzero().tolist() == [[13]] and int(target.nonfinite) == 1
    by_autograd = derivatives(target, x)
    assert_close(by_autograd[:2], (log_p, grad))
    assert not grad[13].any() and bool((grad[:13] == -0.5).all())


def test_a_chunk_has_a_point_at_least():
    density = ChunkedDensity(models.energy, 2 * evaluation.MEMORY_BUDGET)
    assert len(density.split(torch.zeros(3, 2), None)) == 3


def test_a_traced_function_with_a_matrix_that_cannot_be_factorised():
    start = {"cov": torch.eye(2)}
    potential = torch.jit.trace(lambda z: torch.linalg.cholesky(z["cov"]).sum(), start)
    target = Target.from_potential(potential, start)
    log_p = target.log_prob(torch.stack([torch.eye(2).flatten(), -torch.eye(2).flatten()]))
    assert log_p.tolist() == [-2.0, -torch.inf]
