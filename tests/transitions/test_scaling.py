"""Moves that scale points leave their density invariant, and cross scales."""

from typing import NamedTuple

import pytest
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
        distance = ((state.x - CENTRE) * real).norm(dim=-1)
        proposals = scaling.scale_proposals(distance, int(real.sum()), islands=2)
        log_u = torch.rand(len(x)).log()
        state, info = scaling.scale_step(state, density, CENTRE, real, proposals, log_u)
    return state.x, info


def largest_score():
    """Return the largest z-score of first and second moments after moves of exact draws."""
    torch.manual_seed(0)
    x, _ = moved(torch.randn(20_000, 3).double())
    functions = torch.cat([x, x.square() - 1, x[:, :1] * x[:, 1:]], -1)
    return float((functions.mean(0) / functions.std(0) * len(x) ** 0.5).abs().max())


def test_draws_stay_draws():
    assert largest_score() < 3.5


@mutation(scaling, "scale_proposals")
def shrinking(scale_proposals, *args, **options):
    proposals = scale_proposals(*args, **options)
    return proposals._replace(log_factor=proposals.log_factor - 0.1)


@mutation(scaling, "scale_step")
def half_of_the_jacobian(scale_step, state, density, centre, real, proposals, log_u):
    return scale_step(state, density, centre, real, proposals, log_u + 1.5 * proposals.log_factor)


@mutation(scaling, "scale_proposals")
def not_corrected(scale_proposals, *args, **options):
    proposals = scale_proposals(*args, **options)
    return proposals._replace(log_correction=torch.zeros_like(proposals.log_correction))


@mutation(scaling, "scale_proposals")
def corrected_the_wrong_way(scale_proposals, *args, **options):
    proposals = scale_proposals(*args, **options)
    return proposals._replace(log_correction=-proposals.log_correction)


@pytest.mark.parametrize(
    "mistake", [shrinking, half_of_the_jacobian, not_corrected, corrected_the_wrong_way]
)
def test_a_wrong_ratio_is_seen(mistake):
    must_fail(mistake, score=largest_score, above=5)


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
