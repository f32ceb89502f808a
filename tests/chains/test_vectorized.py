"""VectorizedMCMC: memory, thinning, resuming, and the draws that are kept."""

import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC
from support.models import QUICK, conjugate, conjugate_data, conjugate_guide

from pyro_flowsamp import IMH, AutoFlow, LatentMALA, VectorizedMCMC

MILLION = """
import resource, sys, torch
sys.path.insert(0, "examples/benchmarks")
from problems.models import load
from pyro_flowsamp import IMH, AutoFlow, FitOptions, VectorizedMCMC

torch.set_num_threads(1)
model, data = load("eight_schools")
guide = AutoFlow(model, options=FitOptions(progress=False))
guide.fit(*data)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
mcmc = VectorizedMCMC(
    IMH(model, guide=guide), 1000, warmup_steps=50, num_chains=1000, disable_progbar=True
)
mcmc.run(*data)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert mcmc.get_samples()["z"].shape == (1_000_000, 8)
assert mcmc.statistics["accepted"].double().mean() > 0.7
print((after - before) / 1024)
"""


@pytest.mark.slow
def test_a_million_draws_in_bounded_memory():
    """10 float32 coordinates and 5 statistics are 66 MB; thrice that is room for all else."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", MILLION], capture_output=True, text=True, cwd=root, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 250


@pytest.fixture
def guide():
    return conjugate_guide()


def run(guide, kernel=IMH, **options):
    pyro.set_rng_seed(3)
    made = kernel(conjugate, guide=guide)
    mcmc = VectorizedMCMC(made, warmup_steps=5, num_chains=7, disable_progbar=True, **options)
    mcmc.run(*conjugate_data())
    return mcmc


@pytest.mark.parametrize("kernel", [IMH, LatentMALA])
def test_thinning_keeps_every_third_draw(guide, kernel):
    every = run(guide, kernel, num_samples=30).get_samples(group_by_chain=True)
    third = run(guide, kernel, num_samples=10, thin=3).get_samples(group_by_chain=True)
    for name, value in third.items():
        assert torch.equal(value, every[name][:, 2::3])


def test_resampling_and_grouping(guide):
    mcmc = run(guide, num_samples=10)
    name = next(iter(mcmc.get_samples()))
    assert mcmc.get_samples()[name].shape[0] == 70
    assert mcmc.get_samples(num_samples=5)[name].shape[0] == 5
    assert mcmc.get_samples(group_by_chain=True)[name].shape[:2] == (7, 10)


def test_seconds_of_each_phase(guide):
    assert set(run(guide, num_samples=3).seconds) == {"training", "warmup", "sampling"}


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [IMH, LatentMALA])
def test_resume_goes_on_as_one_longer_run(guide, kernel):
    """The same draws as if there had been no pause: nothing is adapted or started anew."""
    runs = []
    for pieces in ((40,), (15, 25)):
        pyro.set_rng_seed(0)
        mcmc = VectorizedMCMC(
            kernel(guide=guide), pieces[0], warmup_steps=5, num_chains=8, disable_progbar=True
        )
        mcmc.run(*conjugate_data())
        draws = [mcmc.get_samples(group_by_chain=True)["mean"]]
        for more in pieces[1:]:
            mcmc.resume(more)
            draws.append(mcmc.get_samples(group_by_chain=True)["mean"])
        runs.append(torch.cat(draws, 1))
    assert torch.equal(*runs)


@pytest.mark.parametrize("kernel", [IMH, LatentMALA])
def test_appended_draws_are_those_of_a_longer_run(guide, kernel):
    """With their statistics; so that effective sizes can be those of all draws."""
    runs = []
    for pieces in ((12,), (5, 7)):
        pyro.set_rng_seed(0)
        mcmc = VectorizedMCMC(
            kernel(guide=guide), pieces[0], warmup_steps=5, num_chains=8, disable_progbar=True
        )
        mcmc.run(*conjugate_data())
        for more in pieces[1:]:
            mcmc.resume(more, append=True)
        runs.append(mcmc)
    whole, appended = runs
    assert appended.num_samples == 12 and appended.unconstrained.shape[:2] == (8, 12)
    assert torch.equal(whole.unconstrained, appended.unconstrained)
    for name, values in whole.statistics.items():
        assert torch.equal(values, appended.statistics[name])
    for name, values in whole.get_samples(group_by_chain=True).items():
        assert torch.equal(values, appended.get_samples(group_by_chain=True)[name])
    starts = {"mean": torch.zeros(8), "rate": torch.zeros(8)}
    with pytest.raises(ValueError, match="give no initial_params"):
        appended.resume(3, initial_params=starts, append=True)


def test_an_interrupted_append_keeps_all(guide, monkeypatch):
    mcmc = VectorizedMCMC(IMH(guide=guide), 5, warmup_steps=5, num_chains=8, disable_progbar=True)
    mcmc.run(*conjugate_data())
    before, step, calls = mcmc.unconstrained.clone(), IMH.step, iter(range(100))

    def interrupted(self, state):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return step(self, state)

    monkeypatch.setattr(IMH, "step", interrupted)
    with pytest.warns(UserWarning, match="3 of 20 draws kept"):
        mcmc.resume(20, append=True)
    assert mcmc.interrupted and mcmc.num_samples == 8
    assert torch.equal(mcmc.unconstrained[:, :5], before)


def test_starts_are_those_of_the_draws_that_there_are(guide, monkeypatch):
    mcmc = VectorizedMCMC(IMH(guide=guide), 5, warmup_steps=5, num_chains=8, disable_progbar=True)
    mcmc.run(*conjugate_data())
    first = mcmc.starts.clone()
    assert first.shape == (8, 2) and len(first.unique(dim=0)) == 8
    mcmc.resume(3)
    assert torch.equal(mcmc.starts, first)

    def interrupted(self, state):
        raise KeyboardInterrupt

    params = {"mean": torch.zeros(4), "rate": torch.ones(4)}
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="0 of 3 draws kept"):
        patch.setattr(IMH, "step", interrupted)
        mcmc.resume(3, initial_params=params)
    assert torch.equal(mcmc.starts, first) and len(mcmc.unconstrained) == 8
    mcmc.resume(3, initial_params=params)
    assert mcmc.starts.tolist() == [[1.0, 0.0]] * 4  # in the model's order


def test_resume_with_other_chains(guide):
    mcmc = VectorizedMCMC(IMH(guide=guide), 5, warmup_steps=5, num_chains=8, disable_progbar=True)
    with pytest.raises(RuntimeError, match="no run to go on from"):
        mcmc.resume(5)
    mcmc.run(*conjugate_data())
    starts = {"mean": torch.linspace(0, 1, 30), "rate": torch.zeros(30)}
    mcmc.resume(7, thin=2, initial_params=starts)
    assert mcmc.get_samples(group_by_chain=True)["mean"].shape == (30, 7)
    assert mcmc.statistics["lp"].shape == (30, 7)
    with pytest.raises(ValueError, match="at least 1"):
        mcmc.resume(0)


# ---- one kernel, several runs --------------------------------------------------------------------


def brief(kernel, num_samples=5, num_chains=10):
    return VectorizedMCMC(kernel, num_samples, 5, num_chains, disable_progbar=True)


@pytest.mark.parametrize("kind", [IMH, LatentMALA])
def test_a_run_stays_with_its_own_target_and_flow(kind, guide):
    y, counts = conjugate_data()
    kernel = kind(conjugate, guide=guide)
    first, later = brief(kernel), brief(kernel)
    first.run(y, counts)
    before = first.diagnostics()["importance ess"]
    later.run(y + 5, counts)
    assert later.diagnostics()["importance ess"] < 0.1 < 0.5 < before
    assert first.diagnostics()["importance ess"] == pytest.approx(before, abs=0.05)
    with pytest.raises(RuntimeError, match="the kernel has made another run since"):
        first.resume(5)
    later.resume(5)


def test_a_run_that_fails_leaves_no_starts_behind(guide):
    """A start far away is refused for one chain; the next run is not to begin at another."""
    kernel = LatentMALA(guide=guide, step_size=1e-3)
    far = {"mean": torch.tensor([1e3, torch.nan]), "rate": torch.zeros(2)}
    bad = VectorizedMCMC(kernel, 5, 0, 2, initial_params=far, disable_progbar=True)
    with pytest.raises(ValueError, match=r"density is zero or NaN for chains \[1\]"):
        bad.run(*conjugate_data())
    plain = MCMC(kernel, 5, 0, disable_progbar=True)
    plain.run(*conjugate_data())
    assert plain.get_samples()["mean"].abs().max() < 100


def test_starts_of_other_sites_are_refused(guide):
    starts = {"mean": [0.0, 0.1], "rate": torch.zeros(2), "other": torch.zeros(2)}
    run = VectorizedMCMC(IMH(guide=guide), 5, 0, 2, initial_params=starts, disable_progbar=True)
    with pytest.raises(ValueError, match=r"initial_params: \['other'\] are not sites"):
        run.run(*conjugate_data())
    del starts["other"]
    run.run(*conjugate_data())
    assert run.num_samples == 5


@pytest.mark.parametrize("wrap", [VectorizedMCMC, MCMC])
def test_one_potential_at_several_layouts(wrap):
    kernel = LatentMALA(potential_fn=lambda q: q["u"].square().sum() / 2)
    for like in (torch.zeros(2), torch.zeros(3), torch.zeros(3).double(), torch.zeros(3).double()):
        before = kernel.guide
        many = {"num_chains": 6} if wrap is VectorizedMCMC else {}
        starts = {"u": like.expand(6, -1) if many else like}
        run = wrap(kernel, 4, 4, initial_params=starts, disable_progbar=True, **many)
        run.run()
        found = run.get_samples()["u"]
        assert found.shape[1:] == like.shape and found.dtype == like.dtype
    assert kernel.guide is before  # the same layout: no second training


def test_empty_sites_have_no_summary(capsys):
    def model():
        pyro.sample("none", dist.Normal(torch.zeros(0), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(0.0, 1.0))

    guide = AutoFlow(model, flow="gaussian", options=QUICK)
    mcmc = VectorizedMCMC(IMH(model, guide=guide), 5, 5, 10, disable_progbar=True)
    mcmc.run()
    assert mcmc.get_samples()["none"].shape == (50, 0)
    mcmc.summary()
    assert "x" in capsys.readouterr().out and "none" not in mcmc.diagnostics()


@pytest.mark.slow
def test_what_the_guide_has_learnt_since_is_used(guide):
    data = conjugate_data()
    kernel = IMH(conjugate, guide=guide)
    brief(kernel).run(*data)
    before = kernel.proposal
    guide.fit(*data)
    brief(kernel).run(*data)
    x = torch.zeros(1, 2)
    assert float(before.log_prob(x)) != float(kernel.proposal.log_prob(x))


def test_a_second_run_makes_what_was_asked_for(guide):
    run = brief(IMH(guide=guide), 6)
    run.run(*conjugate_data())
    run.resume(2, thin=3)
    assert (run.num_samples, run.thin) == (2, 3)
    run.run(*conjugate_data())
    assert (run.num_samples, run.thin) == (6, 1)
    assert run.unconstrained.shape == (10, 6, 2)


def test_a_flow_of_other_data_is_warned_of(guide):
    y, counts = conjugate_data()
    run = brief(IMH(conjugate, guide=guide), 2000)
    with pytest.warns(UserWarning, match="the flow does not fit this posterior"):
        run.run(y + 20, counts)
    silent = brief(IMH(conjugate, guide=guide), 2000)
    silent.min_acceptance = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silent.run(y + 20, counts)


def test_too_few_draws_for_diagnostics(guide):
    run = brief(IMH(guide=guide), 3)
    run.run(*conjugate_data())
    for look in (run.summary, run.diagnostics):
        with pytest.raises(ValueError, match="need 4 draws a chain, there are 3"):
            look()


def test_a_run_that_was_pickled(guide):
    run = brief(IMH(guide=guide))
    run.run(*conjugate_data())
    copied = pickle.loads(pickle.dumps(run))
    assert copied.get_samples()["mean"].equal(run.get_samples()["mean"])
    assert set(run.diagnostics()) - set(copied.diagnostics()) == {
        "importance ess",
        "pareto k",
        "log q error",
    }
    with pytest.raises(RuntimeError, match="no run to go on from"):
        copied.resume(5)
