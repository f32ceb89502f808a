"""Objectives have the right gradient; the path gradient has no noise where the flow is right."""

import copy
from functools import partial
from math import sqrt

import pytest
import torch
from support.scenarios import THRESHOLD, shake
from torch.testing import assert_close

from pyro_flowsamp import ForwardKL, PathGradient, ReverseKL, Target, WeightedSum
from pyro_flowsamp.flows.recipes import circular, coupling, gaussian, spline
from pyro_flowsamp.target.site import SiteLayout, real_site

REPEATS = 100
SMALL = {"transforms": 2, "hidden_features": (16,)}
FLOWS = {
    "coupling": partial(coupling, 3, **SMALL),
    "coupling, mixture base": partial(coupling, 3, components=3, **SMALL),
    "coupling, context": partial(coupling, 3, 2, **SMALL),
    "spline": partial(spline, 3, **SMALL),
    "mixed": partial(circular, 3, angles=torch.tensor([True, False, True]), **SMALL),
}


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)


def _flow(name):
    return shake(FLOWS[name]())


def _target_of(flow, shift=0.0):
    """The density of a copy of the flow, as an unnormalised target, conditional like the flow."""
    frozen = copy.deepcopy(flow).requires_grad_(False)

    def density(x, context):
        return frozen(context).log_prob(x - shift) + 3.0

    site = real_site("x", torch.Size([flow.features]))
    layout = SiteLayout([site], torch.float64, torch.device("cpu"))
    return Target(density, layout, batching="native")


def _gradient(objective, flow, target, num, context=None):
    flow.zero_grad()
    objective(flow, target, num, context).loss.backward()
    return torch.cat([p.grad.reshape(-1) for p in flow.parameters() if p.grad is not None])


def _context(name, num):
    return torch.randn(num, 2) if "context" in name else None


@pytest.mark.parametrize("name", FLOWS)
def test_the_path_gradient_vanishes_at_the_target_and_the_other_does_not(name):
    flow = _flow(name)
    target, context = _target_of(flow), _context(name, 64)
    assert _gradient(PathGradient(), flow, target, 64, context).abs().max() < 1e-8
    assert _gradient(ReverseKL(), flow, target, 64, context).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coupling", "coupling, context", "spline", "mixed"])
def test_both_gradients_of_the_reverse_kl_have_the_same_mean(name):
    flow = _flow(name)
    target = _target_of(flow, shift=0.3)
    draws = [
        torch.stack([_gradient(o, flow, target, 64, _context(name, 64)) for _ in range(REPEATS)])
        for o in (PathGradient(), ReverseKL())
    ]
    directions = torch.randn(draws[0].shape[1], 20)
    path, full = (g @ directions for g in draws)
    error = (path.var(0) + full.var(0)).sqrt() / sqrt(REPEATS)
    assert ((path.mean(0) - full.mean(0)) / error).abs().max() < THRESHOLD
    assert (path.mean(0) / path.std(0) * sqrt(REPEATS)).abs().max() > 2 * THRESHOLD  # there is one


@pytest.mark.parametrize("objective", [ReverseKL(), PathGradient()])
def test_the_gradient_is_that_of_the_kl_divergence(objective):
    r"""KL(N(m, s²) ‖ N(0, 1)) = (s² + m² − 1)/2 − log s: gradient (m, s² − 1) in (m, log s)."""
    flow = gaussian(1)
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1, dtype=torch.float64)
    with torch.no_grad():
        flow.affine.shift.fill_(0.7)
        flow.affine.log_diagonal.fill_(0.4)
    result = objective(flow, target, 400_000)
    shift, log_scale, _ = torch.autograd.grad(
        result.loss, [flow.affine.shift, flow.affine.log_diagonal, flow.affine.lower]
    )
    scale = torch.tensor(0.8).exp()
    assert_close(shift, torch.tensor([0.7]), rtol=0, atol=0.02)
    assert_close(log_scale, (scale - 1)[None], rtol=0, atol=0.03)
    divergence = 0.5 * (scale + 0.49 - 1) - 0.4
    log_normalizer = 0.5 * torch.tensor(2 * torch.pi).log()
    assert_close(result.loss.detach(), divergence - log_normalizer, rtol=0, atol=0.02)


@pytest.mark.parametrize("objective", [ReverseKL(), PathGradient()])
def test_log_weights_are_detached_and_right_up_to_a_constant(objective):
    flow = _flow("coupling")
    log_weights = objective(flow, _target_of(flow), 100).log_weights
    assert not log_weights.requires_grad
    assert_close(log_weights, torch.full((100,), 3.0))


@pytest.mark.parametrize("objective", [ReverseKL(), PathGradient()])
def test_draws_of_zero_density_are_left_out(objective):
    def energy(x):
        return torch.where(x[:, 0] < 0, torch.inf, 0.5 * x.square().sum(-1) - x[:, 0].sqrt())

    flow = _flow("coupling")
    result = objective(flow, Target.from_energy(energy, 3, dtype=torch.float64), 200)
    inside = torch.isfinite(result.log_weights)
    assert 0 < inside.sum() < 200
    assert_close(result.loss.detach(), -result.log_weights[inside].mean())
    result.loss.backward()
    assert all(p.grad.isfinite().all() for p in flow.parameters() if p.grad is not None)


def test_no_draw_of_positive_density_makes_the_loss_nan():
    nowhere = Target.from_energy(lambda x: x[:, 0].square() * torch.inf, 3, dtype=torch.float64)
    assert ReverseKL()(_flow("coupling"), nowhere, 10).loss.isnan()


def test_training_gradients_do_not_reach_the_scoring_copy():
    """The flow is left as it was: its own parameters, with gradients, and no stray buffers."""
    flow = _flow("spline")
    names = [name for name, _ in flow.named_parameters()]
    PathGradient()(flow, _target_of(flow, 0.3), 16).loss.backward()
    assert [name for name, _ in flow.named_parameters()] == names
    assert all(p.requires_grad for p in flow.parameters())


# ---- forward KL --------------------------------------------------------------------------------


def test_forward_kl_is_the_mean_negative_log_density():
    flow = _flow("coupling")
    point = torch.randn(1, 3)
    result = ForwardKL(point)(flow, _target_of(flow), 32)
    assert_close(result.loss, -flow().log_prob(point)[0])
    assert result.log_weights is None


def test_forward_kl_picks_draws_by_their_weights():
    draws = torch.tensor([[0.0], [1.0], [5.0]])
    log_weights = torch.tensor([0.0, torch.tensor(3.0).log(), -torch.inf]) + 100
    flow = gaussian(1)
    loss = ForwardKL(draws, log_weights=log_weights)(flow, None, 100_000).loss
    scores = -flow().log_prob(draws)
    assert_close(loss, 0.25 * scores[0] + 0.75 * scores[1], rtol=0, atol=0.01)


def test_forward_kl_keeps_contexts_with_their_draws():
    flow = _flow("coupling, context")
    draws, contexts = torch.randn(50, 3), torch.randn(50, 2)
    torch.manual_seed(1)
    loss = ForwardKL(draws, contexts)(flow, None, 20).loss
    torch.manual_seed(1)
    index = torch.randint(50, (20,))
    assert_close(loss, -flow(contexts[index]).log_prob(draws[index]).mean())


# ---- sums --------------------------------------------------------------------------------------


def test_a_weighted_sum_adds_losses_and_watches_the_last_weights():
    flow, point = _flow("coupling"), torch.randn(1, 3)
    target = _target_of(flow)
    total = WeightedSum([(2.0, ReverseKL()), (0.5, ForwardKL(point))])(flow, target, 8)
    expected = -3.0 * 2.0 - 0.5 * flow().log_prob(point)[0]
    assert_close(total.loss, expected)
    assert_close(total.log_weights, torch.full((8,), 3.0))
    with pytest.raises(ValueError, match="at least one term"):
        WeightedSum([])
