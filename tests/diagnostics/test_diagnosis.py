"""A whole diagnosis: right draws pass, and collapsed flows are seen by what they do not share."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from support.diagnosed import draws_of_modes, found_modes, two_modes
from support.mutations import broken, mutation
from support.results import result

from pyro_flowsamp import (
    IMH,
    AutoFlow,
    DiagnosisOptions,
    FitOptions,
    LatentHMC,
    Target,
    VectorizedMCMC,
    diagnose,
    sample,
    to_arviz,
)
from pyro_flowsamp.diagnostics import diagnosis, missed_modes
from pyro_flowsamp.sampling.candidates import gaussian_guide
from pyro_flowsamp.smc.mode_search import ModeSearch


def arviz_of(x):
    return result({"x": x.numpy()})


def collapsed(num_chains=200, kernel=IMH):
    """A run whose flow, and whose chains, are in one of two modes."""
    target, modes = two_modes()
    guide = gaussian_guide(target, torch.tensor([10.0, 0.0]), 1.1 * torch.eye(2))
    run = VectorizedMCMC(kernel(guide=guide), 30, 10, num_chains, disable_progbar=True)
    run.run()
    return run, modes


def failed(found):
    return {check.name for check in found.failed}


def test_a_collapsed_flow_looks_perfect_without_a_search():
    run, modes = collapsed()
    alone = diagnose(run, search=False)
    assert alone.reliable and any("missed modes" in text for text in alone.unchecked)
    with_modes = diagnose(run, modes=modes)
    assert {"mass not visited", "particles far from draws", "evidences"} <= failed(with_modes)
    assert not with_modes.reliable and "mass" in " ".join(with_modes.problems)
    assert "FAILS" in str(with_modes)


def test_its_own_search_sees_it():
    pyro.set_rng_seed(0)
    run, _ = collapsed(kernel=LatentHMC)
    found = diagnose(run)
    assert {"mass not visited", "particles far from draws"} <= failed(found)


def test_a_right_run_passes_and_the_random_state_stays():
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    guide = gaussian_guide(target, torch.zeros(2), 1.2 * torch.eye(2))
    run = VectorizedMCMC(IMH(guide=guide), 30, 10, 200, disable_progbar=True)
    run.run()
    before = torch.get_rng_state()
    one, two = diagnose(run), diagnose(run)
    assert one.reliable, one.problems
    assert len(one.checks) >= 20 and one.unchecked == ()
    assert torch.equal(before, torch.get_rng_state())
    assert [(c.name, c.value) for c in one] == [(c.name, c.value) for c in two]


def test_a_model_with_arguments():
    """Local moves do not need the model's arguments."""

    def model(y):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    guide = AutoFlow(model, flow="gaussian", options=FitOptions(progress=False))
    run = VectorizedMCMC(IMH(model, guide=guide), 20, 10, 200, disable_progbar=True)
    run.run(torch.tensor([1.0, -1.0]))
    found = diagnose(run)
    assert found.reliable and "change by local moves" in found
    exported = to_arviz(run, log_likelihood=False)
    fewer = diagnose(exported, search=False)
    assert fewer.reliable and len(fewer.unchecked) == 2
    target = Target.from_model(model, torch.tensor([1.0, -1.0]))
    again = diagnose(exported, guide, target, search=False)
    assert again.reliable and "importance ESS of the flow" in again
    of_guide = diagnose(to_arviz(guide, torch.tensor([1.0, -1.0]), log_likelihood=False))
    assert "bulk ESS" not in of_guide and "independent draws" in of_guide.unchecked[0]


def test_pyros_own_run():
    def model():
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    run = MCMC(NUTS(model, jit_compile=False), 60, 30, disable_progbar=True)
    run.run()
    found = diagnose(run, target=Target.from_model(model), search=False)
    assert "divergences" in found and "bulk ESS" in found and "rank R-hat" not in found


@pytest.mark.slow
def test_sample_and_its_stored_problems():
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    data = sample(target, ess=1000, seed=0, progress=False)
    found = diagnose(data)
    assert found.reliable and found["unseen mass"].value == 0
    data.attrs.update(reliable=0, problems="one; another", unseen_mass=0.2)
    found = diagnose(data)
    assert found.problems[:2] == ("one", "another") and "unseen mass" in failed(found)
    data.attrs.update(reliable=0, problems="")
    assert "not reliable" in diagnose(data).problems[0]


def test_what_is_reported_is_a_problem():
    data = arviz_of(draws_of_modes())
    assert diagnose(data).reliable
    found = diagnose(data, reported=["the burn-in was short"])
    assert found.problems == ("the burn-in was short",) and not found.reliable


def test_regions_without_a_search():
    """A mixture of the draws finds the modes between which chains never go."""
    assert "visits of regions" in failed(diagnose(arviz_of(draws_of_modes(cross=False))))
    assert diagnose(arviz_of(draws_of_modes()))["visits of regions"].ok
    heavy = torch.distributions.StudentT(2.0).sample((20, 200, 2)).double()
    assert diagnose(arviz_of(heavy)).reliable


def test_groups():
    x = draws_of_modes()
    shifted = x + 0.5 * (torch.arange(len(x)) % 4)[:, None, None]
    found = diagnose(arviz_of(shifted), groups=torch.arange(len(x)) % 4)
    assert "nested R-hat" in failed(found)
    with pytest.raises(ValueError, match=r"groups has shape \(3,\): give one number for each"):
        diagnose(arviz_of(x), groups=torch.arange(3))


def test_draws_that_are_not_finite_end_it():
    x = draws_of_modes()
    x[0, 0] = torch.nan
    found = diagnose(arviz_of(x))
    assert found.problems == ("1 draws are NaN or infinite",) and len(found.checks) == 1


def test_thresholds_are_options():
    data = arviz_of(draws_of_modes())
    assert "bulk ESS" in failed(diagnose(data, options=DiagnosisOptions(min_ess=100_000)))


# ---- broken checks -------------------------------------------------------------------------------


@mutation(diagnosis, "region_of")
def all_in_one_region(region_of, modes, x):
    return torch.zeros_like(region_of(modes, x))


@mutation(diagnosis, "particle_mixture")
def one_component(particle_mixture, u, options):
    mixture = particle_mixture(u, options)
    return mixture._replace(
        log_weights=torch.zeros(1).to(u), locs=0 * u[:1], scale_trils=torch.eye(2).to(u)[None]
    )


@mutation(diagnosis, "_stored_problems")
def none_are_stored(_stored_problems, draws):
    return []


@mutation(missed_modes, "share_far_away")
def of_the_first_coordinate(share_far_away, x, particles, options, weights):
    return share_far_away(x[..., 1:], particles[..., 1:], options, weights)


def test_regions_must_be_looked_at():
    x = draws_of_modes(cross=False)
    with broken(one_component):
        assert "visits of regions" not in diagnose(arviz_of(x))
    target, modes = two_modes()
    data = arviz_of(x.float())
    assert "visits of regions" in failed(diagnose(data, target=target, modes=modes))
    with broken(all_in_one_region):
        assert "visits of regions" not in diagnose(data, target=target, modes=modes)


def test_stored_problems_must_be_read():
    data = arviz_of(draws_of_modes())
    data.attrs.update(reliable=0, problems="one")
    with broken(none_are_stored):
        assert diagnose(data).reliable


def test_particles_must_be_compared_in_all_coordinates():
    run, _ = collapsed()
    with broken(of_the_first_coordinate):
        found = diagnose(run, modes=found_modes())
    assert found["particles far from draws"].ok


def with_a_search_that_has_missed_a_thin_mode():
    """Half of the mass is a tenth as wide as the rest, and seven of its deviations away."""

    def energy(x):
        wide, thin = 0.5 * x.square().sum(-1), 50 * (x - 5.0).square().sum(-1)
        return -torch.logaddexp(-wide, torch.tensor(100.0).log() - thin)

    pyro.set_rng_seed(0)
    alone = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    modes = ModeSearch(alone, DiagnosisOptions().search.modes).run()
    guide = gaussian_guide(Target.from_energy(energy, 2), torch.zeros(2), 1.2 * torch.eye(2))
    run = VectorizedMCMC(IMH(guide=guide), 30, 10, 200, disable_progbar=True)
    run.run()
    return failed(diagnose(run, modes=modes))


@mutation(diagnosis, "draws_of_paths")
def no_paths_from_around_the_draws(draws_of_paths, target, x, options):
    return draws_of_paths(target, None, options)


def test_what_a_given_search_has_missed_is_looked_for_around_the_draws():
    assert "mass of modes far from draws" in with_a_search_that_has_missed_a_thin_mode()
    with broken(no_paths_from_around_the_draws):
        assert "mass of modes far from draws" not in with_a_search_that_has_missed_a_thin_mode()
