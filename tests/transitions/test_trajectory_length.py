"""Adapted trajectory lengths: near the best from any start, bounded, and fixed after warm-up."""

from math import log

import pytest
import torch
from support.mutations import must_fail, mutation

from pyro_flowsamp.transitions import hamiltonian, trajectory_length
from pyro_flowsamp.transitions.chees import LastPoint
from pyro_flowsamp.transitions.sequences import (
    numbers_of_steps,
    step_size_factor,
    van_der_corput,
)
from pyro_flowsamp.transitions.step_size import StepSize, jitter
from pyro_flowsamp.transitions.trajectory_length import (
    LengthAscent,
    ObservedTrajectory,
    TrajectoryAdaptation,
    TrajectoryOptions,
)

NEAR = log(2.5)  #: what counts as near; ESS for a gradient changes little within
BEST = 1.12  #: tau at the maximum of F for a standard normal: half of 4.493 / 2, where tan(x) = x


def density_of(log_prob):
    """Make the density of a log probability as the steps take it."""

    def density(z):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            log_p = log_prob(z)
            (grad,) = torch.autograd.grad(log_p.sum(), z)
        z, log_p = z.detach(), log_p.detach().double()
        return hamiltonian.HMCState(z, log_p, grad.nan_to_num(0.0, 0.0, 0.0), z, log_p, 0 * log_p)

    return density


def normal(scale):
    return density_of(lambda z: -0.5 * (z / scale).square().sum(-1))


def move(state, density, step_size, num_steps, keep=None):
    noise, log_u = torch.randn_like(state.z), torch.rand(len(state.z)).log()
    return hamiltonian.step(state, density, step_size, num_steps, noise, log_u, keep=keep)


def warm_up(density, z, steps=50, first=None, num_steps=4, **options):
    """Adapt in a run from z; return the frozen adaptation, the state and the numbers of steps."""
    first = first or z.shape[-1] ** -0.25
    lengths = TrajectoryAdaptation(first, num_steps, 0.651, TrajectoryOptions(**options))
    lengths.begin(len(z))
    state, taken = density(z), []
    for _ in range(steps):
        last = LastPoint(hamiltonian.IDENTITY)
        size, num = lengths.next(lengths.value.float(), len(z))
        new, info = move(state, density, size, num, last.keep)
        lengths.observe(info, state.z, last, size)
        lengths.adapt()
        state = new
        taken.append(num)
    lengths.freeze()
    return lengths, state, taken


# ---- numbers of steps ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 0},
        {"period": 100},
        {"min_chains": 1},
        {"learning_rate": 0.0},
        {"decay": 1.0},
        {"averaging": 0.0},
        {"short_share": 1.5},
        {"short_octaves": -1.0},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        TrajectoryOptions(**options)


# ---- the length that is found -------------------------------------------------------------------


def _distance(scale=1.0, dim=10, chains=64, seed=0, width=1.0, **options):
    """The distance of the log of the mean length from that of the best."""
    torch.manual_seed(seed)
    scale = scale * torch.ones(dim)
    z = width * scale * torch.randn(chains, dim)
    lengths, _, _ = warm_up(normal(scale), z, **options)
    return abs(log(lengths.mean_steps * float(lengths.value) / float(scale.max() * BEST)))


@pytest.mark.parametrize(
    "start",
    [
        {},
        {"dim": 1},
        {"dim": 100},
        {"dim": 500, "chains": 400},
        {"scale": 0.1},  # the first step size is ten times too large
        {"scale": 10.0},  # or too small
        {"width": 0.1},
        {"width": 10.0},
        {"first_steps": 0.1},
        {"first_steps": 10.0},
        {"dim": 100, "first_steps": 20.0},
        {"scale": torch.logspace(0, 1, 10)},
        {"scale": torch.logspace(0, 1, 10), "first_steps": 70.0},
    ],
    ids=str,
)
def test_fifty_steps_are_enough_from_poor_starts(start):
    assert _distance(**start) < NEAR


@mutation(trajectory_length, "criterion_and_gradient")
def wrong_sign(criterion_and_gradient, *args):
    criterion, gradient = criterion_and_gradient(*args)
    return criterion, -gradient


@mutation(LengthAscent, "_halve")
def never_halved(halve, self, trajectory):
    pass


@pytest.mark.parametrize(
    ("mistake", "start"),
    [
        (wrong_sign, {"scale": torch.logspace(0, 1, 10)}),
        (never_halved, {"dim": 100, "first_steps": 20.0}),
    ],
)
def test_the_check_sees_mistakes(mistake, start):
    must_fail(mistake, score=lambda: _distance(**start), above=1.2 * NEAR)


def test_a_funnel_is_survived_and_the_numbers_of_steps_are_bounded():
    def funnel(z):
        v, rest = z[:, 0], z[:, 1:]
        return -0.5 * (v / 3).square() - 2 * v - 0.5 * rest.square().sum(-1) * (-v).exp()

    torch.manual_seed(0)
    lengths, state, taken = warm_up(density_of(funnel), torch.randn(64, 5), 60, max_steps=20)
    assert max(taken + lengths.steps) <= 20
    assert 0.01 < lengths.value < 2 and torch.isfinite(state.z).all()


def _funnel(z):
    """The first coordinate has the sd 1.5, and is the log variance of the others."""
    v, rest = z[:, 0], z[:, 1:]
    square = rest.square().sum(-1) * (-v).exp()
    return -0.5 * (v / 1.5).square() - 0.5 * rest.shape[1] * v - 0.5 * square


def _stuck(**options):
    """Share of chains in the lower 5 % of the funnel that do not move in 20 steps."""
    torch.manual_seed(0)
    density, num = density_of(_funnel), 1000
    v = 1.5 * torch.randn(50 * num)
    rest = torch.randn(len(v), 4)
    z = torch.cat([v[:, None], (0.5 * v).exp()[:, None] * rest], -1)
    lengths, _, _ = warm_up(density, z[v > -1.0][:num], **options)
    start = state = density(z[v < 1.5 * -1.645][:num])
    for _ in range(20):
        size, steps = lengths.next(lengths.value.float(), num)
        state, _ = move(state, density, size, steps)
    return float((state.z == start.z).all(-1).double().mean())


def test_short_steps_leave_the_neck_of_a_funnel():
    assert _stuck() < 0.005
    assert _stuck(short_share=0.0) > 0.03


def test_factors_are_one_in_warm_up_and_differ_afterwards():
    lengths = TrajectoryAdaptation(0.5, 2, 0.651, TrajectoryOptions())
    one = torch.tensor(1.0)
    assert {float(lengths.next(one, 8)[0]) for _ in range(20)} == {1.0}
    lengths.freeze()
    after = [float(lengths.next(one, 8)[0]) for _ in range(20)]
    torch.testing.assert_close(after, [step_size_factor(t, 0.25, 3.0) for t in range(20)])


def test_observations_without_information_change_nothing():
    ascent, nan = LengthAscent(TrajectoryOptions()), float("nan")
    for criterion, gradient in ((0.0, 0.0), (nan, 1.0), (1.0, nan), (1.0, float("inf"))):
        ascent.update([ObservedTrajectory(1.0, 0.5, criterion, gradient)])
    ascent.update([])
    assert (ascent.mean, ascent.updates) == (1.0, 0)


def test_few_chains_take_a_given_mean():
    torch.manual_seed(0)
    lengths, _, taken = warm_up(normal(torch.ones(4)), torch.randn(1, 4), 200, num_steps=3)
    assert lengths.steps == numbers_of_steps(3, 256, van_der_corput(256))
    assert taken == lengths.steps[:200]
    assert 0.5 < lengths.value < 1.6


# ---- what it costs ------------------------------------------------------------------------------


def _effective(draws, scale, gradients):
    """Effective draws for a gradient of x and of its square, each the least of all coordinates."""
    z = (draws / scale).double()
    found = []
    for values, variance in ((z, 1.0), (z.square() - 1, 2.0)):
        found.append(float((variance / values.mean(0).square().mean(0)).min()) / gradients)
    return found


def _sampled(density, scale, draws, following):
    state, cost, kept = density(scale * torch.randn(400, len(scale))), 0, []
    for _ in range(draws):
        size, num = following()
        state, _ = move(state, density, size, num)
        cost += num
        kept.append(state.z)
    return _effective(torch.stack(kept), scale, cost)


def _of_fixed_length(density, scale, num_steps, draws):
    """With a step size adapted to an acceptance of 0.8, and jitter."""
    step_size, state = StepSize(torch.tensor(0.5), 0.8), density(scale * torch.randn(400, 10))
    for _ in range(50):
        state, info = move(state, density, jitter(step_size.value.expand(400, 1)), num_steps)
        step_size.adapt(info.accept_prob.mean())
    step_size.freeze()
    size = step_size.value.expand(400, 1)
    return _sampled(density, scale, draws, lambda: (jitter(size), num_steps))


@pytest.mark.parametrize(
    ("ratio", "grid"),
    [
        (1.0, [1, 2, 3, 4]),
        (10.0, [2, 4, 6, 8]),
        pytest.param(100.0, [24, 48, 96], marks=pytest.mark.slow),
    ],
)
def test_adapted_lengths_lose_to_no_fixed_one(ratio, grid):
    """The worse of x and its square counts: half a period draws x well, and its square badly."""
    torch.manual_seed(0)
    scale = torch.logspace(0, torch.tensor(ratio).log10(), 10)
    density = normal(scale)
    best = max(min(_of_fixed_length(density, scale, num, 32)) for num in grid)
    lengths, _, _ = warm_up(density, scale * torch.randn(128, 10))
    size = lengths.value.float()
    found = _sampled(density, scale, 32, lambda: lengths.next(size, 400))
    assert min(found) > 0.5 * best
