"""The survey of random points: it finds narrow modes, and what it finds is weighed rightly."""

from dataclasses import replace
from math import log

import pyro
import pytest
import torch
from support.mutations import broken, mutation

from pyro_flowsamp import ModeSearchOptions, Target, sample
from pyro_flowsamp.problems import banana
from pyro_flowsamp.smc import mode_search
from pyro_flowsamp.smc.mode_search import ModeSearch

SHARE, SD = (
    0.35,
    0.15,
)  #: of a mode that is narrow in four dimensions, seven standard deviations away


def narrow_mode(dim=4, share=SHARE, sd=SD):
    def energy(x):
        wide = log(1 - share) - 0.5 * x.square().sum(-1)
        narrow = log(share) - dim * log(sd) - 0.5 * ((x - 3.5) / sd).square().sum(-1)
        return -torch.logaddexp(wide, narrow)

    return Target.from_energy(energy, dim)


def found(seed, **options):
    pyro.set_rng_seed(seed)
    return ModeSearch(narrow_mode(), replace(ModeSearchOptions(), **options)).run()


def has_it(modes):
    near = ((modes.x - 3.5).norm(dim=1) < 1).double()
    return abs(float(modes.weights @ near) - SHARE) < 0.1


@mutation(mode_search, "survey")
def no_survey(survey, *args):
    return None


def test_a_narrow_mode_is_found():
    """Without random points, both searches miss it and agree. Its share is right."""
    modes = [found(seed) for seed in range(3)]
    assert all(map(has_it, modes))
    assert all(m.num_modes == 2 and m.settled for m in modes)
    with broken(no_survey):
        lost = [found(seed) for seed in range(3)]
    assert not any(map(has_it, lost)) and all(m.settled for m in lost)


def test_sample_visits_it():
    data = sample(narrow_mode(), seed=0, progress=False)
    x = torch.tensor(data["posterior"]["x"].values).flatten(0, 1)
    near = (x - 3.5).norm(dim=1) < 1
    assert abs(float(near.double().mean()) - SHARE) < 0.03
    assert data.attrs["reliable"] == 1 and data.attrs["modes"] == 2
    true = 2 * log(2 * torch.pi)
    assert abs(data.attrs["log_evidence"] - true) < 0.02


def test_a_mode_that_was_found_once_is_missed_mass():
    """Few points find it once or never; then the search goes on, and is not settled."""
    modes = [found(seed, survey_points=8192, survey_rounds=1) for seed in range(4)]
    once = [m for m in modes if m.alone is not None and bool((m.alone.times == 1).any())]
    assert once and not any(m.settled for m in once)
    assert all(m.agreement.missed > 0.2 for m in once)


def test_more_points_follow_where_it_was_found_once():
    modes = [found(seed, survey_points=8192, survey_rounds=8) for seed in range(4)]
    assert any(m.surveyed > 10_000 for m in modes)
    assert all(m.agreement.missed == 0 for m in modes if m.agreement.lost)


@pytest.mark.parametrize("dim, surveyed", [(8, True), (9, False)])
def test_a_survey_is_for_few_dimensions(dim, surveyed):
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), dim)
    modes = ModeSearch(target).run()
    assert (modes.surveyed >= ModeSearchOptions().survey_points) == surveyed
    assert modes.evaluations == target.evaluations


def test_a_curved_target_has_no_further_mode():
    """Its tails are not covered by a mixture, and paths from there end where the particles are."""
    pyro.set_rng_seed(0)
    modes = ModeSearch(banana().target).run()
    assert modes.agreement.lost < 1e-2 and modes.settled
