"""Ascents of many paths: line searches, edges, and independence of the paths."""

import pytest
import torch
from torch.testing import assert_close

from pyro_flowsamp import Target
from pyro_flowsamp.flows.ascents import Paths
from pyro_flowsamp.flows.line_search import AscentOptions, evaluated

OPTIONS = AscentOptions()


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)


def _ascents(target, starts, calls):
    """The states after each call."""
    paths = [Paths.starting(evaluated(target, starts), OPTIONS)]
    for _ in range(calls):
        trial = evaluated(target, paths[-1].trial())
        paths.append(paths[-1].advanced(trial, torch.finfo(target.dtype).eps, OPTIONS))
    return paths


def rosenbrock(x):
    return (1 - x[:, 0]).square() + 100 * (x[:, 1] - x[:, 0].square()).square()


def test_every_step_fulfils_the_weak_wolfe_conditions():
    target = Target.from_energy(rosenbrock, 2)
    states = _ascents(target, target.initial_points(16), 60)
    steps = 0
    for old, new in zip(states, states[1:]):
        moved = (new.steps > old.steps) & (old.at.log_prob < -1e-6)
        direction, step = old.search.direction[moved], (new.at.x - old.at.x)[moved]
        length = (step * direction).sum(-1) / direction.square().sum(-1)
        assert_close(step, length[:, None] * direction, rtol=1e-6, atol=1e-9)
        slope = old.search.slope[moved]
        gain = (new.at.log_prob - old.at.log_prob)[moved]
        assert (gain >= 0.999 * OPTIONS.sufficient_gain * length * slope).all()
        assert ((new.at.grad[moved] * direction).sum(-1) <= OPTIONS.max_slope * slope).all()
        steps += int(moved.sum())
    assert steps > 200
    assert_close(states[-1].at.x, torch.ones(16, 2), rtol=0, atol=1e-3)


def test_paths_do_not_know_of_each_other():
    target = Target.from_energy(rosenbrock, 2)
    starts = target.initial_points(4) * torch.tensor([1.0, 10.0, 1e-3, 100.0])[:, None]
    together = _ascents(target, starts, 40)[-1]
    for i in range(4):
        alone = _ascents(target, starts[i : i + 1], 40)[-1]
        assert_close(alone.at.x[0], together.at.x[i], rtol=1e-6, atol=1e-9)
        assert alone.steps[0] == together.steps[i] and alone.ended[0] == together.ended[i]


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e6, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0.0, 30.0])
def test_every_scale_is_reached(scale, dtype, level):
    """From a box of half width two, to a mode three standard deviations from zero."""

    def energy(x):
        return 0.5 * (x / scale - 3).square().sum(-1) + level

    target = Target.from_energy(energy, 3, dtype=dtype)
    last = _ascents(target, target.initial_points(8), 50)[-1]
    assert last.ended.all()
    assert_close(last.at.x / scale, torch.full((8, 3), 3.0), rtol=0, atol=0.01)
    factor = last.hessians.factor()[0].dense()
    assert_close((factor @ factor.mT) / scale**2, torch.eye(3).expand(8, 3, 3), rtol=0, atol=0.1)


def test_an_edge_is_a_step_too_long():
    def energy(x):
        return torch.where(x[:, 0] > 1, torch.inf, -x[:, 0] + 0.5 * x[:, 1].square())

    target = Target.from_energy(energy, 2)
    last = _ascents(target, torch.empty(20, 2).uniform_(-2, 0), 120)[-1]
    assert last.ended.all() and (last.at.x[:, 0] <= 1).all()
    assert (last.at.log_prob > 0.5).all()


def test_a_flat_density_ends_at_once():
    target = Target.from_energy(
        lambda x: torch.where((x.abs() < 1).all(-1), 0 * x.sum(-1), torch.inf), 2
    )
    first = Paths.starting(evaluated(target, target.initial_points(5)), OPTIONS)
    assert first.ended.all() and torch.equal(first.trial(), first.at.x)


def test_a_path_that_has_ended_stays():
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    states = _ascents(target, target.initial_points(3), 30)
    first = next(state for state in states if state.ended.all())
    assert torch.equal(first.at.x, states[-1].at.x)
    assert torch.equal(first.hessians.diagonal, states[-1].hessians.diagonal)


def test_positions_are_those_of_the_target():
    """A target in float32 is evaluated where the path is, not beside it."""
    target = Target.from_energy(lambda x: 0.5 * (x - 1e4).square().sum(-1), 2, dtype=torch.float32)
    last = _ascents(target, target.initial_points(4), 20)[-1]
    assert last.at.x.dtype == torch.float64
    assert torch.equal(last.at.x.float().double(), last.at.x)
