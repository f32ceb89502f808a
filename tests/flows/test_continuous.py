"""Continuous flows: integrators have the right order, log-dets are those of the discrete map."""

from functools import partial
from math import exp, log

import pytest
import torch
from support.devices import NoWaiting, default_device_elsewhere
from support.networks import rough
from torch.testing import assert_close

from pyro_flowsamp._zuko import zuko
from pyro_flowsamp.flows import continuous
from pyro_flowsamp.flows.continuous import (
    METHODS,
    ContinuousTransform,
    TransportFlow,
    integrate,
    refine,
)
from pyro_flowsamp.flows.proposal import Proposal
from pyro_flowsamp.flows.recipes import coupling, gaussian
from pyro_flowsamp.nn.mlp import VelocityMLP

ORDERS = {"euler": 1, "midpoint": 2, "rk4": 4, "dopri5": 5}


def block(features=2, size=0.5, steps=8, method="rk4", recompute=False, **options):
    velocity = rough(partial(VelocityMLP, features, 16, **options), size)
    return ContinuousTransform(velocity, steps, method, recompute)


class Linear(torch.nn.Module):
    """The velocity A x: any module with ``with_divergence`` will do."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def with_divergence(self, t, x):
        return x @ self.matrix.T, self.matrix.trace().expand(len(x))


def jacobian(transform, x):
    return torch.func.vmap(torch.func.jacrev(lambda row: transform(row[None])[0]))(x)


def log_det(transform, x):
    return torch.linalg.slogdet(jacobian(transform, x))[1]


# ---- integrators -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_tableaus_are_consistent(method):
    c, a, b = METHODS[method]
    assert sum(b) == pytest.approx(1)
    assert [sum(row) for row in a] == pytest.approx(list(c))
    assert [len(row) for row in a] == list(range(len(b)))


@pytest.mark.parametrize("method, order", ORDERS.items())
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.0)], ids=["forwards", "backwards"])
def test_orders_of_convergence(method, order, times, double):
    """y' = 4t y (1 − y), the logistic function of 2t² − 1/2."""

    def field(t, state):
        return (4 * t * state[0] * (1 - state[0]),)

    def solution(t):
        return torch.tensor(2 * t**2 - 0.5).sigmoid()

    def error(steps):
        (y,) = integrate(field, (solution(times[0]),), *times, steps, method)
        return float((y - solution(times[1])).abs())

    coarse, fine = error(32), error(64)
    assert log(coarse / fine, 2) == pytest.approx(order, abs=0.2)


def test_the_state_integrates_its_slopes(double):
    """A second tensor that follows the first: ∫ exp."""
    y, total = integrate(lambda t, s: (s[0], s[0]), (torch.ones(1), torch.zeros(1)), 0.0, 1.0, 50)
    assert float(y) == pytest.approx(exp(1), abs=1e-8)
    assert float(total) == pytest.approx(exp(1) - 1, abs=1e-8)


# ---- log-dets ----------------------------------------------------------------------------------

FIELDS = {
    "smooth": lambda: (block(size=0.5), torch.randn(300, 2)),
    "rough": lambda: (block(size=1.2), torch.randn(300, 2)),
    "kernels": lambda: (block(size=1.0, kernels=3), torch.randn(300, 2)),
    "tanh": lambda: (block(6, size=1.0, activation="tanh"), torch.randn(300, 6)),
    "growth": lambda: (ContinuousTransform(Linear(torch.eye(50))), torch.randn(300, 50)),
    "decay": lambda: (ContinuousTransform(Linear(-torch.eye(50))), torch.randn(300, 50)),
}


@pytest.mark.parametrize(
    "name, method", [*((name, "rk4") for name in FIELDS), ("tanh", "dopri5"), ("decay", "dopri5")]
)
def test_refined_log_dets_are_those_of_the_discrete_map(name, method, double):
    transform, z = FIELDS[name]()
    transform.method, transform.steps = method, 1
    base = torch.distributions.MultivariateNormal(torch.zeros(z.shape[-1]), torch.eye(z.shape[-1]))
    reached = refine(transform, z, log_prob=base.log_prob)
    some = z[:100]
    with torch.no_grad():
        x, ladj = transform().push(some)
        back, ladj_back = transform().pull(x)
        off = (ladj - log_det(transform(), some)).abs()
        scoring = (base.log_prob(back) + ladj_back - base.log_prob(some) + ladj).abs()
    assert reached < 1e-3 and transform.steps > 1
    assert off.quantile(0.99) < 1e-3 and scoring.quantile(0.99) < 1e-3


@pytest.mark.parametrize("name", FIELDS)
def test_push_and_pull(name, double):
    """The way back undoes the way there, and their log-dets cancel."""
    transform, z = FIELDS[name]()
    transform.steps, transform.method = 32, "dopri5"
    x, ladj = transform().push(z)
    back, ladj_back = transform().pull(x)
    assert_close(back, z, rtol=0, atol=1e-6)
    assert_close(ladj, -ladj_back, rtol=0, atol=1e-6)
    assert ladj.abs().max() > 0.1


def test_the_error_of_a_log_density_is_measured(double):
    """In one dimension, where one probe is the whole trace, and against the map's own log-det."""
    coarse, z = block(1, size=1.5, steps=6), torch.randn(200, 1)
    log_prob = torch.distributions.Normal(0.0, 1.0).log_prob
    x, claimed = coarse(None).push(z)
    back, claimed_back = coarse(None).pull(x)
    sampled = claimed - log_det(lambda z: coarse(None).push(z)[0], z)
    scored = claimed + claimed_back + (log_prob(back) - log_prob(z)).sum(-1)
    truth = (sampled.abs() + scored.abs()).detach()
    measured = continuous._errors(coarse, z, lambda z: log_prob(z).sum(-1))
    assert sampled.abs().max() > 1e-5
    assert_close(measured, truth, rtol=0.1, atol=float(truth.max()) / 20)


def test_a_linear_field_is_a_matrix_exponential(double):
    matrix = torch.randn(3, 3)
    transform = ContinuousTransform(Linear(matrix), 32, "dopri5")()
    z = torch.randn(4, 5, 3)
    x, ladj = transform.push(z)
    assert_close(x, z @ torch.linalg.matrix_exp(matrix).T)
    assert_close(ladj, matrix.trace().expand(4, 5))
    assert_close(transform.inv.call_and_ladj(x)[0], z)
    assert transform.push(z[0, 0])[1].shape == ()


def test_steps_that_suffice_are_kept(double):
    transform = block(size=0.3, steps=12)
    assert refine(transform, torch.randn(200, 2)) < 1e-3
    assert transform.steps == 12


def test_a_field_too_rough_keeps_its_steps(double, monkeypatch):
    monkeypatch.setattr(continuous, "MAX_STEPS", 4)
    transform = block(size=5.0, steps=2)
    with pytest.raises(ValueError, match="more than 4 rk4 steps.*Wasserstein.*float64"):
        refine(transform, torch.randn(50, 2))
    assert transform.steps == 2


# ---- derivatives -------------------------------------------------------------------------------


def make_flow(recompute=False, method="rk4"):
    start = gaussian(2)
    start.affine.initialize(torch.randn(2), torch.tensor([[1.0, 0.0], [0.4, 0.7]]))
    return TransportFlow(start, [block(2, 0.5, 8, method, recompute) for _ in range(2)])


@pytest.mark.slow
def test_the_hessian_of_the_log_density(double):
    distribution = make_flow()()
    x, eps = torch.randn(2), 1e-4
    gradient = torch.func.grad(lambda x: distribution.log_prob(x))
    hessian = torch.func.jacrev(gradient)(x)
    shifts = eps * torch.eye(2)
    numeric = torch.stack([(gradient(x + s) - gradient(x - s)) / (2 * eps) for s in shifts])
    assert hessian.abs().min() > 1e-3
    assert_close(hessian, numeric, rtol=1e-6, atol=1e-6)
    assert torch.autograd.gradcheck(distribution.log_prob, x.requires_grad_())
    assert torch.autograd.gradgradcheck(distribution.log_prob, x)


@pytest.mark.parametrize("method", METHODS)
def test_recomputing_changes_no_gradient(method, double):
    flow, x = make_flow(method=method), torch.randn(20, 2, requires_grad=True)

    def gradients():
        score = torch.autograd.grad(flow().log_prob(x).sum(), x, create_graph=True)[0]
        return torch.autograd.grad(score.square().sum(), [x, *flow.blocks.parameters()])

    plain = gradients()
    for block in flow.blocks:
        block.recompute = True
    assert_close(gradients(), plain, rtol=1e-12, atol=1e-12)
    assert all(g.abs().max() > 0 for g in plain[:3])


def saved_for_backward(transform, z):
    """How many numbers the graph keeps."""
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = transform().push(z)
    del result
    return sum(kept.values())


def test_recomputing_saves_memory():
    plain, frugal = block(steps=16), block(steps=16, recompute=True)
    z = torch.randn(1000, 2)
    assert saved_for_backward(frugal, z) < 0.05 * saved_for_backward(plain, z)


def test_functional_transforms(double):
    transform, z = block()(), torch.randn(5, 2)
    x, ladj = transform.push(z)
    assert_close(torch.func.vmap(transform.push)(z), (x, ladj))
    tangent = torch.randn(5, 2)
    _, (moved, _) = torch.func.jvp(transform.push, (z,), (tangent,))
    assert_close(moved, (jacobian(transform, z) @ tangent[..., None])[..., 0])


# ---- flows -------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("start", [gaussian, coupling])
def test_the_density_integrates_to_one(start, double):
    flow = TransportFlow(start(2), [block(size=0.7, steps=4) for _ in range(2)])
    axis = torch.linspace(-12, 12, 200)
    grid = torch.cartesian_prod(axis, axis)
    total = flow().log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert_close(total, torch.tensor(1.0), rtol=0, atol=1e-3)


def zuko_flow():
    return zuko.flows.NSF(2, transforms=2, hidden_features=(16,))


STARTS = {
    "gaussian": lambda: gaussian(2),
    "mixture": lambda: coupling(2, components=3),
    "zuko": zuko_flow,
    "transport": partial(make_flow, method="dopri5"),
}


@pytest.mark.parametrize("start", STARTS)
def test_sampling_and_scoring_agree(start, double):
    flow = TransportFlow(STARTS[start](), [block(size=0.3, method="dopri5") for _ in range(2)])
    x, log_q = flow().rsample_and_log_prob((100,))
    assert_close(flow().log_prob(x), log_q, rtol=0, atol=1e-6)
    assert torch.equal(flow().log_prob(x), flow().log_prob(x))
    z = flow().base.sample((50,))
    x, ladj = flow().transform.inv.call_and_ladj(z)
    assert_close(ladj, log_det(flow().transform.inv, z), rtol=0, atol=1e-6)


def test_blocks_follow_the_start_in_their_order(double):
    start, blocks = gaussian(2), [block(), block()]
    start.affine.initialize(torch.randn(2), torch.eye(2))
    z = torch.randn(10, 2)
    expected = blocks[1]()(blocks[0]()(start().transform.inv(z)))
    assert_close(TransportFlow(start, blocks)().transform.inv(z), expected)
    assert_close(TransportFlow(start)().log_prob(z), start().log_prob(z))


def test_inside_a_zuko_flow(double):
    """Between zuko's transforms, under zuko's base: towards the latent, as they go."""
    other = zuko_flow()
    layers = [other.transform.transforms[0], block(steps=64), other.transform.transforms[1]]
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(2), torch.ones(2), buffer=True
    )
    flow = zuko.lazy.Flow(layers, base)
    x, log_q = flow().rsample_and_log_prob((200,))
    assert_close(flow().log_prob(x), log_q, rtol=0, atol=1e-6)
    expected = base().log_prob(flow().transform(x)) + log_det(flow().transform, x)
    assert_close(log_q, expected, rtol=0, atol=1e-6)


def test_contexts_go_to_the_start(double):
    flow = TransportFlow(coupling(2, 1, hidden_features=(8,)), [block(steps=64)])
    x, log_q = flow(torch.randn(5, 1)).rsample_and_log_prob((3,))
    assert x.shape == (3, 5, 2) and log_q.shape == (3, 5)


@torch.no_grad()
@pytest.mark.parametrize("kernels", [1, 3])
def test_against_zuko(kernels, double):
    """zuko's adaptive solver and its trace by automatic differentiation, on the same network."""
    ours = block(3, size=0.7, steps=64, method="dopri5", kernels=kernels)
    theirs = zuko.transforms.FreeFormJacobianTransform(ours.velocity, atol=1e-10, rtol=1e-10)
    z = torch.randn(50, 3)
    for mine, other in [(ours(), theirs), (ours().inv, theirs.inv)]:
        x, ladj = mine.call_and_ladj(z)
        x_other, ladj_other = other.call_and_ladj(z)
        assert ladj.abs().max() > 0.1
        assert_close(x, x_other, rtol=0, atol=1e-6)
        assert_close(ladj, ladj_other, rtol=0, atol=1e-6)


# ---- use ---------------------------------------------------------------------------------------


def test_state_dicts_keep_the_steps():
    flow, other = make_flow(), make_flow()
    flow.blocks[1].steps = 32
    other.load_state_dict(flow.state_dict())
    x = torch.randn(10, 2)
    assert [continuous.steps for continuous in other.blocks] == [8, 32]
    assert torch.equal(other().log_prob(x), flow().log_prob(x))


def test_single_precision():
    flow = make_flow(method="dopri5")
    x, log_q = flow().rsample_and_log_prob((1000,))
    assert x.dtype == log_q.dtype == torch.float32
    assert 0 < Proposal(flow).log_q_error() < 1e-3


@pytest.mark.parametrize("context", [NoWaiting, default_device_elsewhere])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kernels", [1, 3])
def test_nothing_waits_for_the_device(kernels, recompute, context):
    transform, z = block(recompute=recompute, kernels=kernels)(), torch.randn(10, 2)
    with context():
        x, ladj = transform.push(z)
        back, _ = transform.pull(x)
        (ladj.sum() + back.sum()).backward()
    assert x.device.type == "cpu" and transform.velocity.in_weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "heun"}, "one of .*'dopri5', 'euler', 'midpoint', 'rk4'.*'heun'"),
        ({"steps": 0}, "at least 1, got 0"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        ContinuousTransform(VelocityMLP(2), **options)
