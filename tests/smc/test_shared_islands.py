"""Islands that are shared out: the same particles on every number of workers, exact evidences."""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from support.annealing import QUICK, normal_target
from support.mutations import broken, must_fail, mutation
from support.workers import run_workers

from pyro_flowsamp import AnnealingOptions, AutoAnnealingFlow, Target, tempered_smc, workers
from pyro_flowsamp.distributed import WorkerGroup
from pyro_flowsamp.smc import shared_islands
from pyro_flowsamp.smc.starts import PriorStart, TemperedStart

START = TemperedStart(torch.zeros(2), 3 * torch.ones(2), torch.zeros(2, dtype=torch.bool))
LOG_Z = math.log(2 * math.pi)
QUICKLY = {"mcmc_steps": 2, "base": START, "check_coverage": False}


def plain_target():
    return Target.from_energy(lambda x: 0.5 * (x - 1).square().sum(-1), 2)


def fields(found):
    return [*found.state, found.log_w, found.log_z, *([] if found.betas is None else [found.betas])]


def annealed(group, options):
    return fields(tempered_smc(plain_target(), 320, islands=5, **{"mcmc_steps": 2, **options}))


def all_same(found, one):
    return all(np.array_equal(a, b) for a, b in zip(found, one, strict=True))


GIVEN = {**QUICKLY, "scale_moves": 1}


@pytest.mark.parametrize(
    "options", [pytest.param({}, marks=pytest.mark.slow), GIVEN], ids=["default", "given"]
)
def test_particles_do_not_depend_on_the_number_of_workers(options):
    (one,), two, four = (run_workers(size, annealed, options) for size in (1, 2, 4))
    assert one[0].shape == (320, 2)
    assert one[-1].shape[1] == 5
    assert all(all_same(found, one) for found in (*two, *four))
    assert (one[-1] == one[-1][:, :1]).all()  # one path of inverse temperatures


def at_contexts(group):
    def model(scale):
        pyro.sample("x", dist.Normal(0.0, scale))

    target = Target.from_model(model, torch.tensor(1.0)).conditional_on("scale")
    rows = torch.tensor([[0.1], [1.0], [5.0]])
    base = TemperedStart(torch.zeros(1), 10 * torch.ones(1), target.angles)
    options = {**QUICKLY, "base": base}
    return fields(tempered_smc(target.at_contexts(rows), 100, **options))


def test_neither_do_those_at_contexts():
    (one,), two = (run_workers(size, at_contexts) for size in (1, 2))
    assert all(all_same(found, one) for found in two)
    spread = one[0].reshape(3, 100).std(1)
    betas = one[-1]
    assert (betas[-1] == 1).all() and len(np.unique(betas[1])) == 3  # a path for each
    assert spread.shape == (3,)


def quick_guide():
    guide = AutoAnnealingFlow(
        normal_target(0.5),
        reference=2.0,
        schedule=[0, 1],
        num_particles=512,
        options=QUICK,
        settings=AnnealingOptions(hidden_features=8),
    )
    guide.fit()
    return guide


def carried(group, guide):
    found = guide.particles(240, islands=6)
    return fields(found)


def test_neither_do_those_of_annealing_flows():
    guide = quick_guide()
    (one,), two, four = (run_workers(size, carried, guide) for size in (1, 2, 4))
    assert one[0].shape == (240, 2)
    assert all(all_same(found, one) for found in (*two, *four))


# ---- exactness -----------------------------------------------------------------------------------


def evidence_score(islands=48):
    """The z-score of the evidence of independent islands, and of products of neighbours' means."""
    pyro.set_rng_seed(2)
    with workers():
        found = tempered_smc(plain_target(), 24 * islands, islands=islands, **QUICKLY)
    ratios = (found.evidences - LOG_Z).exp()
    means = found.x.double().reshape(islands, 24, 2).mean(1) - 1
    halves = means[: islands // 2], means[islands // 2 :]
    scores = [
        (ratios.mean() - 1) / ratios.std() * islands**0.5,
        (means.mean(0) / means.std(0) * islands**0.5).abs().max(),
        (halves[0] * halves[1]).mean() / (halves[0] * halves[1]).std() * islands**0.5,
    ]
    return max(abs(float(score)) for score in scores)


def test_evidences_of_islands_are_exact():
    assert evidence_score() < 4


@pytest.mark.slow
def test_a_stream_that_two_islands_use_is_seen():
    @mutation(shared_islands, "Stream")
    def same_for_all(right, seed, phase, unit, device):
        return right(seed, phase, unit % 24, device)

    must_fail(same_for_all, score=evidence_score, above=4.5)


def test_temperatures_of_own_islands_alone_are_seen():
    """Where each worker looks at its own islands, the path depends on the number of workers."""

    @mutation(WorkerGroup, "join")
    def own_only(right, self, own, sizes, to_all=True):
        if own[0].dim() == 2 and own[0].shape[0] == 1 and own[0].shape[1] == 64 and self.size > 1:
            right(self, own, sizes, to_all)
            return torch.cat(list(own))
        return right(self, own, sizes, to_all)

    with broken(own_only):
        (one,), two = (run_workers(size, annealed, QUICKLY) for size in (1, 2))
    assert any(isinstance(found, Exception) or not all_same(found[:2], one[:2]) for found in two)


# ---- bad input -----------------------------------------------------------------------------------


def too_few(group):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tempered_smc(plain_target(), 64, islands=1, **QUICKLY)
    return [str(w.message) for w in caught]


def test_too_few_islands_are_told():
    found = run_workers(2, too_few)
    assert found[0] == ["1 islands of particles keep 1 of 2 workers busy: give islands=2 or more"]


def test_islands_start_at_draws_of_a_prior_that_no_other_has():
    density, draws = plain_target(), torch.arange(16.0).view(8, 2)
    parts = [PriorStart(density, draws).part(island, 3).sample(3) for island in range(3)]
    assert torch.equal(torch.cat(parts), torch.cat([draws, draws[:1]]))


def other_guides(group, guide):
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += group.rank
    guide.particles(12, islands=6)


def test_flows_that_differ_are_refused():
    for found in run_workers(2, other_guides, quick_guide()):
        assert isinstance(found, ValueError)
        assert "the flow differs between the workers" in str(found)
