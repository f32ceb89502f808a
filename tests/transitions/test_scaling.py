"""Moves that scale points leave their density invariant, and cross scales."""

from typing import NamedTuple

import torch
from support.mutations import must_fail, mutation
from torch import Tensor

from pyro_flowsamp import Target, tempered_smc
from pyro_flowsamp.smc.starts import StudentStart
from pyro_flowsamp.transitions import scaling

REAL = torch.tensor([True, True, True])
CENTRE = torch.tensor([0.5, -1.0, 0.0], dtype=torch.double)


class Points(NamedTuple):
    x: Tensor
    log_pi: Tensor


def normal(x):
    return Points(x, -0.5 * x.square().sum(-1))


def moved(x, density=normal, steps=5, real=REAL):
    state = density(x)
    for _ in range(steps):
        s = scaling.log_factors(len(x), int(real.sum()), x)
        log_u = torch.rand(len(x)).log()
        state, info = scaling.scale_step(state, density, CENTRE[: x.shape[1]], real, s, log_u)
    return state.x, info


def largest_score():
    """Return the largest z-score of first and second moments after moves of exact draws."""
    torch.manual_seed(0)
    x, _ = moved(torch.randn(20_000, 3).double())
    functions = torch.cat([x, x.square() - 1, x[:, :1] * x[:, 1:]], -1)
    return float((functions.mean(0) / functions.std(0) * len(x) ** 0.5).abs().max())


def test_draws_stay_draws():
    assert largest_score() < 3.5


@mutation(scaling, "log_factors")
def shrinking(log_factors, *args):
    return log_factors(*args) - 0.1


def test_an_asymmetric_factor_is_seen():
    must_fail(shrinking, score=largest_score, above=5)


@mutation(scaling, "scale_step")
def half_of_the_jacobian(scale_step, state, density, centre, real, log_factor, log_u):
    return scale_step(state, density, centre, real, log_factor, log_u + 1.5 * log_factor)


def test_a_wrong_jacobian_is_seen():
    must_fail(half_of_the_jacobian, score=largest_score, above=5)


def test_angles_stay_where_they_are():
    x = torch.randn(100, 3).double()
    new, info = moved(x, steps=1, real=torch.tensor([True, False, True]))
    assert torch.equal(new[:, 1], x[:, 1]) and bool(info.accepted.any())
    assert not torch.equal(new[:, 0], x[:, 0])


def test_infinite_densities_are_rejected():
    x = torch.ones(100, 3).double()

    def inside(x):
        return Points(x, torch.where(x.norm(dim=-1) < 2, 0.0, -torch.inf).double())

    new, _ = moved(x, inside)
    assert bool((new.norm(dim=-1) < 2).all())


def test_particles_find_back_to_a_heavy_tailed_target():
    """From a base that is thirty times too wide; gradients alone leave them far out."""
    target = Target.from_energy(lambda x: 6 * (x.square().sum(-1) / 2).log1p(), 10)
    wide = 30 * torch.eye(10).double()
    base = StudentStart(torch.zeros(10).double(), wide, torch.zeros(10, dtype=torch.bool))
    torch.manual_seed(0)
    radii = [
        float(
            tempered_smc(target, 400, mcmc_steps=2, scale_moves=moves, base=base)
            .x.norm(dim=-1)
            .median()
        )
        for moves in (0, 2)
    ]
    assert radii[0] > 10 and radii[1] < 7  # the truth is 3.7
