"""sample() is right whatever kernel it chooses, it says what is wrong, and it ends in time."""

import math
import random
import re
import sys
import time
import warnings
from copy import deepcopy
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from support import models
from support.diagnosed import found_modes
from support.models import (
    CONJUGATE_LOG_EVIDENCE,
    CONJUGATE_TRUTH,
    conjugate,
    conjugate_data,
    year_regression,
)
from support.modes import second_search_loses_a_mode, two_modes
from support.mutations import broken, must_fail, mutation

import pyro_flowsamp as pf
from pyro_flowsamp import (
    ModeSearchOptions,
    SearchOptions,
    Target,
)
from pyro_flowsamp.diagnostics import searches
from pyro_flowsamp.flows.recipes import LayeredFlow
from pyro_flowsamp.sampling import candidates, final_run, pilot, search
from pyro_flowsamp.sampling import precision as search_precision
from pyro_flowsamp.sampling import sample as sampling
from pyro_flowsamp.sampling.pilot import Goal
from pyro_flowsamp.sampling.verdict import judged
from pyro_flowsamp.smc.path_modes import PathModes
from pyro_flowsamp.trust import draws_of_flow

QUIET = {"progress": False, "seed": 0}
#: a search of little work
SMALL = SearchOptions(
    modes=ModeSearchOptions(particles_many_modes=512, max_evaluations=150_000, survey_points=4096)
)


def values(data, site):
    return torch.as_tensor(data["posterior"][site].values)


def standard(dim=2):
    return Target.from_energy(lambda x: 0.5 * x.square().sum(-1), dim)


def z_score(draws, truth):
    """Of a mean over independent chains ``(chains, draws)``."""
    means = draws.double().mean(1)
    return float((means.mean() - truth) / (means.std() / len(means) ** 0.5))


def mixture(dim):
    """A third at c, two thirds at -c, ten standard deviations apart."""
    c = 5 / dim**0.5

    def energy(x):
        near, far = ((x - s * c).square().sum(-1) for s in (1, -1))
        return -torch.logaddexp(-0.5 * near, torch.log(torch.tensor(2.0)) - 0.5 * far)

    return Target.from_energy(energy, dim)


def banana(dim):
    def energy(x):
        bent = x[:, 1] - 0.03 * (x[:, 0].square() - 100)
        return 0.5 * ((x[:, 0] / 10).square() + bent.square() + x[:, 2:].square().sum(-1))

    return Target.from_energy(energy, dim)


@pytest.fixture
def bad_flows(monkeypatch):
    """Every mixture is displaced by three of the posterior's standard deviations."""
    mixture_guide = search.mixture_guide

    def displaced(target, loc, scale_tril, found):
        guide = mixture_guide(target, loc, scale_tril, found)
        assert isinstance(guide.flow, LayeredFlow)
        guide.flow.affine.loc += 3 * guide.flow.affine.scale.diagonal()
        return guide

    monkeypatch.setattr(search, "mixture_guide", displaced)


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(
        search.SamplerSearch, "train_candidate", lambda self, flow, from_draws, best: None
    )


# ---- the same again ------------------------------------------------------------------------------


def set_clocks(monkeypatch, clock):
    """Let a function take the place of every clock."""
    for name in ("perf_counter", "time", "monotonic", "process_time"):
        monkeypatch.setattr(time, name, clock)
    for name, module in list(sys.modules.items()):
        if name.startswith("pyro_flowsamp") and hasattr(module, "perf_counter"):
            monkeypatch.setattr(module, "perf_counter", clock)


def nonsense(monkeypatch, seed=1):
    """Let every clock jump to and fro."""
    hours = random.Random(seed)
    set_clocks(monkeypatch, lambda: hours.uniform(-1e6, 1e6))


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still, but for what tests add to its ``time``."""
    made = SimpleNamespace(time=0.0)
    set_clocks(monkeypatch, lambda: made.time)
    return made


def assert_equal(one, other):
    for name in ("method", "candidates", "thin", "evaluations", "problems"):
        assert one.attrs[name] == other.attrs[name]
    for site in one["posterior"].data_vars:
        assert torch.equal(values(one, site), values(other, site))


@pytest.mark.parametrize("source", ["conjugate", "two modes"])
def test_draws_do_not_depend_on_the_clock(monkeypatch, source):
    """Work is counted: a machine that slows down has the same draws."""
    call = (conjugate, *conjugate_data()) if source == "conjugate" else (two_modes(),)
    count = {"num_samples": 5, "num_chains": 100} if source == "conjugate" else {"ess": 2000}
    first = pf.sample(*call, search=SMALL, **count, **QUIET)
    with monkeypatch.context() as patch:
        nonsense(patch)
        again = pf.sample(*call, search=SMALL, **count, **QUIET)
    assert_equal(first, again)


def test_training_does_not_depend_on_the_clock(monkeypatch):
    monkeypatch.setattr(pf.FitOptions, "max_steps", 20)

    def trained():
        pyro.set_rng_seed(0)
        steps = search.SamplerSearch(banana(3), Goal(400, None, None, SMALL), False)
        steps.find_modes()
        coordinates = steps.modes.coordinates
        steps._affine = coordinates.loc, coordinates.scale_tril
        guide = steps.train_candidate("coupling", False, None)
        return torch.cat([part.detach().flatten() for part in guide.flow.parameters()])

    first = trained()
    nonsense(monkeypatch)
    assert torch.equal(first, trained())


@mutation(final_run, "ceil")
def by_the_clock(ceil, x):
    return max(1, ceil(x) + int(1e3 * time.perf_counter()) % 7)


def test_a_clock_would_be_seen(monkeypatch):
    """Both clocks are made up: a real one agrees with them once in seven runs."""
    call = {"num_samples": 5, "num_chains": 50, "search": SMALL, **QUIET}
    draws = []
    for seed in (1, 2):
        with broken(by_the_clock), monkeypatch.context() as patch:
            nonsense(patch, seed)
            draws.append(values(pf.sample(standard(), **call), "x"))
    assert not torch.equal(*draws)


def test_one_target_twice():
    """Evaluations before the call count for nothing."""
    target = two_modes()
    call = {"num_samples": 5, "num_chains": 50, "search": SMALL, **QUIET}
    assert_equal(pf.sample(target, **call), pf.sample(target, **call))


def test_another_seed_has_other_draws():
    call = {"num_samples": 5, "num_chains": 50, "progress": False, "search": SMALL}
    runs = [values(pf.sample(standard(), seed=seed, **call), "x") for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def random_numbers():
    return float(torch.rand(())), random.random(), float(np.random.rand())


@pytest.mark.parametrize("fails", [False, True])
def test_the_global_random_state_is_left_as_it_was(monkeypatch, fails):
    """With a seed; even where the call ends by an error. Without, it goes on."""
    call = {"num_samples": 3, "num_chains": 50, "progress": False, "search": SMALL}
    if fails:
        monkeypatch.setattr(sampling, "finish", lambda *args: 1 / 0)

    def after(**options):
        pyro.set_rng_seed(7)
        try:
            pf.sample(standard(), **call, **options)
        except ZeroDivisionError:
            assert fails
        return random_numbers()

    pyro.set_rng_seed(7)
    truth = random_numbers()
    assert after(seed=0) == truth
    assert after()[0] != truth[0]


# ---- right draws ---------------------------------------------------------------------------------


def test_conjugate_model():
    data = pf.sample(conjugate, *conjugate_data(), num_samples=50, num_chains=400, **QUIET)
    assert data.attrs["problems"] == "" and data.attrs["unseen_mass"] == 0
    assert abs(data.attrs["log_evidence"] - CONJUGATE_LOG_EVIDENCE) < 0.2
    assert data.attrs["log_evidence_error"] < 0.2 and data.attrs["modes"] == 1
    assert dict(data["posterior"].sizes)["chain"] == 400
    assert data.attrs["reliable"] == 1
    for name, (mean, deviation) in CONJUGATE_TRUTH.items():
        x = values(data, name)
        assert abs(z_score(x, mean)) < 4
        assert abs(z_score((x - mean).square(), deviation**2)) < 4
    assert data.attrs["method"] in data.attrs["candidates"]
    assert data.attrs["evaluations"] > 0 and data.attrs["thin"] >= 1
    spent = {name for name in data.attrs if name.startswith("seconds_")}
    assert spent == {"seconds_start", "seconds_training", "seconds_pilot", "seconds_sampling"}
    assert {"lp", "accepted", "diverging"} <= set(data["sample_stats"])
    assert set(data["observed_data"])


@pytest.mark.parametrize("dim", [2, 10])
def test_two_distant_modes(dim):
    data = pf.sample(mixture(dim), num_samples=50, num_chains=1000, **QUIET)
    upper = values(data, "x").mean(-1) > 0
    assert abs(z_score(upper.double(), 1 / 3)) < 4
    assert data.attrs["method"] != "HMC" and data.attrs["modes"] == 2
    assert data.attrs["reliable"] == 1


@pytest.mark.slow
def test_a_flow_is_trained_where_nothing_else_mixes(bad_flows, monkeypatch):
    monkeypatch.setattr(search, "flow_candidates", lambda *args: iter([("coupling", False)]))
    monkeypatch.setattr(pf.FitOptions, "max_steps", 300)
    call = {"num_samples": 20, "num_chains": 400, "search": SMALL, **QUIET}
    data = pf.sample(banana(4), exclude=["HMC", "LocalGlobalHMC"], **call)
    x = values(data, "x")
    assert "(coupling)" in data.attrs["method"]
    assert abs(z_score(x[..., 0].square(), 100.0)) < 4
    assert abs(z_score(x[..., 1], 0.0)) < 4


@pytest.mark.slow
def test_bad_flows_do_no_harm(bad_flows, no_training):
    target = Target.from_energy(lambda x: 0.5 * (x - 1).square().sum(-1), 3)
    data = pf.sample(target, num_samples=50, num_chains=400, **QUIET)
    assert not data.attrs["method"].startswith("IMH")  # exact by their local moves
    x = values(data, "x")
    assert abs(z_score(x[..., 0], 1.0)) < 4
    assert abs(z_score((x[..., 0] - 1).square(), 1.0)) < 4


@pytest.mark.slow
def test_a_site_at_its_boundary():
    def model(count):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        pyro.sample("k", dist.Binomial(10, p), obs=count)

    data = pf.sample(model, torch.tensor(10.0), num_samples=50, num_chains=400, **QUIET)
    assert abs(z_score(values(data, "p"), 11 / 12)) < 4


@pytest.mark.slow
def test_angles():
    data = pf.sample(models.turned, torch.tensor(0.5), num_samples=20, num_chains=200, **QUIET)
    assert float(values(data, "direction").abs().max()) <= torch.pi + 1e-5


# ---- units ---------------------------------------------------------------------------------------


def test_a_regression_on_years():
    """Years from 1990 to 2019, not centred: a correlation of -.99999."""
    target, loc, tril = year_regression(torch.float64)
    data = pf.sample(target, **QUIET)
    assert data.attrs["reliable"] == 1
    x = torch.stack([values(data, "a"), values(data, "b")], -1)
    u = torch.linalg.solve_triangular(tril, (x - loc).flatten(0, 1).mT, upper=False)
    for each in u.view(2, *x.shape[:2]):
        assert abs(z_score(each, 0.0)) < 4 and abs(z_score(each.square(), 1.0)) < 4


@pytest.mark.parametrize("loc, scale", [(-61_000.0, 9500.0), (2e-6, 1e-6)])
def test_units(loc, scale):
    """A posterior that is far away, and one that is narrow, with a prior as wide as the data."""

    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1e5 * scale))
        pyro.sample("y", dist.Normal(x, scale), obs=y)

    data = pf.sample(model, torch.tensor(loc), search=SMALL, **QUIET)
    assert data.attrs["reliable"] == 1
    u = (values(data, "x").double() - loc) / scale
    assert abs(z_score(u, 0.0)) < 4 and abs(z_score(u.square(), 1.0)) < 4


def test_scales_that_differ():
    scale = torch.tensor([1e-6, 1.0, 1e6])
    target = Target.from_energy(lambda x: 0.5 * (x / scale).square().sum(-1), 3)
    data = pf.sample(target, search=SMALL, **QUIET)
    assert data.attrs["reliable"] == 1
    x = values(data, "x") / scale
    for i in range(3):
        assert abs(z_score(x[..., i], 0.0)) < 4 and abs(z_score(x[..., i].square(), 1.0)) < 4


@pytest.mark.parametrize("df", [2.0, 3.0])
def test_heavy_tails(df):
    target = Target.from_energy(lambda x: (df + 1) / 2 * (x.square().sum(-1) / df).log1p(), 1)
    data = pf.sample(target, num_samples=50, num_chains=400, **QUIET)
    assert data.attrs["reliable"] == 1 and "improper" not in data.attrs["problems"]
    x = values(data, "x")[..., 0]
    for k in (1.0, 5.0):
        truth = 2 * float(scipy.stats.t(df).sf(k))
        assert abs(z_score((x.abs() > k).double(), truth)) < 4


# ---- the effective sample size -------------------------------------------------------------------


def effective(data):
    """Return the least effective sample size of ArviZ, of bulk and tails."""
    sizes = [arviz.ess(data, method=method) for method in ("bulk", "tail")]
    return min(float(size[name].min()) for size in sizes for name in size.data_vars)


@pytest.mark.parametrize("ess", [400, 4000])
def test_the_effective_sample_size_is_met(ess):
    data = pf.sample(conjugate, *conjugate_data(), ess=ess, search=SMALL, **QUIET)
    assert data.attrs["reliable"] == 1
    assert ess <= 1.05 * effective(data)
    assert effective(data) < 6 * max(ess, 20 * data["posterior"].sizes["chain"])


@mutation(final_run, "shortfall")
def never_short(shortfall, *args):
    return []


@mutation(pilot.Goal, "steps")
def half_as_many(steps, self, chains, ess_per_draw):
    return 0.5 * steps(self, chains, ess_per_draw)


def shortfall():
    """Return what was wanted over what there is."""
    call = {"ess": 2000, "num_chains": 64, "search": SMALL, **QUIET}
    return 2000 / effective(pf.sample(conjugate, *conjugate_data(), **call))


def test_it_is_looked_at():
    with broken(half_as_many):
        assert shortfall() < 1.05
    must_fail(never_short, half_as_many, score=shortfall, above=1.3)


def stops(monkeypatch, size, **options):
    """Return the draws that each call of the sampler appends, and the result."""
    asked, resume = [], pf.VectorizedMCMC.resume

    def spy(run, num_samples, *args, append=False, **kwargs):
        if append:
            asked.append((run.num_samples, num_samples))
        return resume(run, num_samples, *args, append=append, **kwargs)

    monkeypatch.setattr(pf.VectorizedMCMC, "resume", spy)
    monkeypatch.setattr(
        final_run, "bulk_and_tail_ess", lambda x: (size(x) * torch.ones(2), size(x) * torch.ones(2))
    )
    search = SearchOptions(modes=SMALL.modes, **options)
    data = pf.sample(standard(), ess=10, num_chains=64, search=search, **QUIET)
    return asked, data


def test_draws_are_doubled(monkeypatch):
    """And not looked at more often."""
    wanted = int(SearchOptions().times_per_chain * 64)
    asked, _ = stops(monkeypatch, lambda x: wanted * (x.shape[1] > 70), max_doublings=6)
    assert asked and all(there == more for there, more in asked)
    assert asked[-1][0] <= 70 < 2 * asked[-1][0]


def test_draws_that_are_never_enough(monkeypatch):
    with pytest.warns(UserWarning, match="the bulk has an effective sample size of 3, not 1280"):
        asked, data = stops(monkeypatch, lambda x: 3.0, max_doublings=2)
    assert len(asked) == 2 and data.attrs["reliable"] == 0
    assert "the tail has" in data.attrs["problems"]


def test_chains_that_depend_on_their_starts(monkeypatch):
    wrong = mutation(final_run, "nested_r_hat")(lambda *args: 1.2)
    options = SearchOptions(modes=SMALL.modes, max_doublings=1)
    with broken(wrong), pytest.warns(UserWarning, match="depend on where they started"):
        data = pf.sample(standard(), ess=100, search=options, **QUIET)
    assert data.attrs["reliable"] == 0


# ---- what is wrong -------------------------------------------------------------------------------


def test_a_mode_that_one_search_misses():
    """Two searches that disagree are told of, however well the chains mix."""
    with broken(second_search_loses_a_mode()):
        with pytest.warns(UserWarning, match="two searches for modes disagree: one alone"):
            data = pf.sample(two_modes(0.7), num_samples=5, num_chains=50, search=SMALL, **QUIET)
    assert data.attrs["reliable"] == 0 and 0.05 < data.attrs["unseen_mass"] < 0.3


@mutation(search, "ModeSearch")
def seems_settled(ModeSearch, *args):
    class Settled(ModeSearch):
        def run(self):
            found = super().run()
            fine = found.agreement._replace(unseen=0.0)
            return found._replace(settled=True, agreement=fine)

    return Settled(*args)


def test_agreement_must_be_looked_at():
    with broken(second_search_loses_a_mode(), seems_settled), warnings.catch_warnings():
        warnings.simplefilter("error")
        data = pf.sample(two_modes(0.7), num_samples=5, num_chains=50, search=SMALL, **QUIET)
    assert data.attrs["reliable"] == 1


def test_particles_that_are_not_covered(monkeypatch):
    """However wide their base."""
    monkeypatch.setattr(
        "pyro_flowsamp.smc.mode_search.StudentStart.outside",
        lambda self, x: torch.ones(len(x), dtype=torch.bool),
    )
    with pytest.warns(UserWarning, match="outside of the distribution that they started from"):
        pf.sample(standard(), num_samples=5, num_chains=50, search=SMALL, **QUIET)


def found(target):
    """Return a search and its best candidate, with draws."""
    goal = Goal(None, 20, 200)
    steps = search.SamplerSearch(target, goal._replace(options=SMALL), progress=False)
    steps.find_modes()
    best = steps.search()
    final_run.finish(best, target, steps.modes, progress=False)
    return steps, best


def problems(steps, best, modes=None, reported=()):
    made = draws_of_flow(best.run.kernel.proposal, steps.target, 1000)
    return judged(best, modes or steps.modes, made, reported).problems


def test_regions_that_chains_lose():
    """All draws are in one of the two modes that both searches have found."""
    steps, best = found(two_modes())
    assert problems(steps, best) == ()
    best.run.unconstrained.copy_(best.run.unconstrained.abs())
    assert any("hardly ever visit" in problem for problem in problems(steps, best))


def test_trajectories_that_diverge():
    steps, best = found(standard())
    best.run.statistics["diverging"][0] = True
    assert "diverged" in problems(steps, best)[0]


def test_a_model_without_data():
    with pytest.warns(UserWarning, match="nothing is observed"):
        pf.sample(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), num_samples=5, **QUIET)


def test_factors_are_data():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("f", -x.square())

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pf.sample(model, num_samples=5, **QUIET)


IMPROPER = {
    "flat": lambda x: 0 * x.sum(-1),
    "heavy": lambda x: 0.5 * x.square().sum(-1).log1p(),
    "one direction": lambda x: 0.5 * x[:, 0].square(),
}


@pytest.mark.parametrize("name", IMPROPER)
def test_a_density_without_an_integral(name):
    with pytest.raises(ValueError, match="improper"):
        pf.sample(Target.from_energy(IMPROPER[name], 2), **QUIET)


@pytest.mark.parametrize("scale", [1e3, 1e6])
def test_a_wide_posterior_is_not_called_improper(scale):
    target = Target.from_energy(lambda x: 0.5 * (x / scale).square().sum(-1), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pf.sample(target, search=SMALL, **QUIET).attrs["reliable"] == 1


def test_chains_that_disagree():
    steps, best = found(standard())
    best.run.unconstrained.add_(torch.randn(len(best.run.unconstrained), 1, 1))
    assert "chains disagree" in problems(steps, best)[0]


@pytest.mark.parametrize("name, value", [("pilot_chains", 0), ("patience", -1.0)])
def test_search_options_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"SearchOptions.{name} must be at least"):
        SearchOptions(**{name: value})


def test_search_options_are_used():
    options = SearchOptions(modes=SMALL.modes, target_ess_per_draw=3.0)
    data = pf.sample(standard(), num_samples=5, num_chains=50, search=options, **QUIET)
    assert data.attrs["thin"] >= 3


@pytest.mark.parametrize("name, value", [("particles", 0), ("max_unseen", -1.0)])
def test_mode_search_options_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"ModeSearchOptions.{name} must be at least"):
        ModeSearchOptions(**{name: value})


@pytest.mark.parametrize("counts", [{"num_samples": 0}, {"num_chains": 1}, {"ess": 0}])
def test_counts(counts):
    with pytest.raises(ValueError, match="at least"):
        pf.sample(mixture(2), **counts)


def test_two_goals_at_once():
    with pytest.raises(ValueError, match="ess or num_samples, not both"):
        pf.sample(mixture(2), ess=100, num_samples=100)


def test_a_target_takes_no_arguments():
    with pytest.raises(ValueError, match="takes no model arguments"):
        pf.sample(mixture(2), torch.zeros(3))


def test_every_evaluation_counts_once():
    count = 0

    def energy(x):
        nonlocal count
        count += len(x)
        return 0.5 * x.square().sum(-1)

    target = Target.from_energy(energy, 2)
    for _ in range(2):  # of the same target, too
        count = 0
        data = pf.sample(target, num_samples=5, num_chains=50, search=SMALL, **QUIET)
        assert data.attrs["evaluations"] == count
        assert 0 < data.attrs["evaluations_start"] < count


def test_seconds_are_those_of_the_call(clock):
    """The stages take most of it."""
    target, _ = counted(clock)
    data = pf.sample(target, num_samples=20, num_chains=50, search=SMALL, **QUIET)
    spent = {k: v for k, v in data.attrs.items() if k.startswith("seconds_")}
    assert spent["seconds_start"] > spent["seconds_sampling"] > 0
    assert 0.5 * clock.time < sum(spent.values()) <= clock.time + 1e-6


def test_attributes_can_be_saved(tmp_path):
    pf.sample(mixture(2), num_samples=5, **QUIET).to_netcdf(tmp_path / "draws.nc")


# ---- where nothing works -------------------------------------------------------------------------


@pytest.fixture
def hopeless(monkeypatch, no_training):
    """No kernel is ever seen to mix."""
    monkeypatch.setattr(pilot, "ess_per_draw", lambda x, num_directions: 0.01)


@pytest.mark.parametrize("goal", [{"num_samples": 3, "num_chains": 100}, {"ess": 10**6}])
def test_the_user_is_told_where_no_kernel_mixes(hopeless, goal):
    few = replace(SMALL, max_thin=5, unreliable_draws=8)
    with pytest.warns(UserWarning, match="no kernel has been seen to mix"):
        data = pf.sample(mixture(2), search=few, **goal, **QUIET)
    assert data.attrs["reliable"] == 0
    assert data.attrs["candidates"].count("effective draws") == 3
    assert not data.attrs["method"].startswith("IMH")  # jumps alone hide what they miss
    assert data.attrs["thin"] == few.max_thin
    assert data["posterior"].sizes["draw"] <= few.unreliable_draws


def late_failure(monkeypatch, error):
    """Let the flow of jumps fail at the end of the pilot run."""
    look_ahead, calls = pf.IMH._look_ahead, iter(range(10**9))

    def failing(self, num_chains):
        if next(calls) == 5:  # 4096 / 256 steps a call: 50 of warm-up, 16 counted, 32 more
            raise error
        return look_ahead(self, num_chains)

    monkeypatch.setattr(pf.IMH, "_look_ahead", failing)


@pytest.mark.parametrize("error", [ZeroDivisionError("division by zero"), KeyError()])
def test_a_flow_that_fails_late_is_left_out(monkeypatch, no_training, error):
    """Whatever its error is, the others go on and are right."""
    late_failure(monkeypatch, error)
    call = {"num_samples": 20, "num_chains": 400, "search": SMALL, **QUIET}
    with pytest.warns(UserWarning, match=r"IMH \(.*\) is left out: (division|KeyError)"):
        data = pf.sample(standard(), **call)
    assert not data.attrs["method"].startswith("IMH")
    assert "left out: " in data.attrs["candidates"]
    x = values(data, "x")[..., 0]
    assert abs(z_score(x, 0.0)) < 4 and abs(z_score(x.square(), 1.0)) < 4


def test_a_training_that_fails_is_left_out(monkeypatch, bad_flows):
    """And the next flow is trained."""
    tried = []

    def failing(target, flow, *args):
        tried.append(flow)
        raise IndexError("out of range")

    monkeypatch.setattr(search, "train_guide", failing)
    monkeypatch.setattr(search.SamplerSearch, "worth_trying", lambda *args: True)
    with pytest.warns(UserWarning, match="coupling is left out: out of range"):
        data = pf.sample(standard(), num_samples=3, num_chains=50, search=SMALL, **QUIET)
    assert tried == ["coupling", "spline"] and data.attrs["method"]


def test_a_kernel_that_fails_is_left_out(monkeypatch, bad_flows, no_training):
    def refuse(self):
        raise RuntimeError("warm-up drove the step size to nothing")

    call = {"num_samples": 3, "num_chains": 100, "search": SMALL, **QUIET}
    monkeypatch.setattr(pf.LocalGlobalHMC, "freeze", refuse)
    with pytest.warns(UserWarning, match=r"LocalGlobalHMC \(mixture\) is left out"):
        pf.sample(mixture(2), **call)
    monkeypatch.setattr(pf.FlowKernel, "start", lambda *args: refuse(None))
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="no kernel runs"):
        pf.sample(mixture(2), **call)


# ---- where chains start --------------------------------------------------------------------------


def test_chains_begin_at_particles():
    """Not by way of constrained values, which a simplex rounds to its faces."""

    def sparse(counts):
        p = pyro.sample("p", dist.Dirichlet(0.1 * torch.ones(5)))
        pyro.sample("y", dist.Multinomial(total_count=21, probs=p), obs=counts)

    target = Target.from_model(sparse, torch.tensor([20.0, 1.0, 0.0, 0.0, 0.0]))
    steps = search.SamplerSearch(target, Goal(None, 1, 500, SMALL), progress=False)
    steps.find_modes()
    coordinates = steps.modes.coordinates
    guide = search.gaussian_guide(target, coordinates.loc, coordinates.scale_tril)
    candidate = steps.consider(None, "HMC", "", pf.LatentHMC(guide=guide))
    starts = []
    candidate.run.kernel.init = lambda x: (
        starts.append(x) or type(candidate.run.kernel).init(candidate.run.kernel, x)
    )
    final_run.finish(candidate, target, steps.modes, progress=False)
    distance = torch.cdist(starts[0].double(), steps.modes.x.double()).min(-1).values
    assert float(distance.max()) < 1e-4


def test_more_chains_than_draws_part(monkeypatch):
    """Some start at the same place, and go on unseen before the first draw that is kept."""
    asked, resume = [], pf.VectorizedMCMC.resume
    monkeypatch.setattr(
        pf.VectorizedMCMC,
        "resume",
        lambda run, *args, **kwargs: asked.append(args) or resume(run, *args, **kwargs),
    )
    data = pf.sample(mixture(2), num_samples=1, num_chains=20_000, search=SMALL, **QUIET)
    (blocks, steps), (kept, _) = asked[-2:]
    assert blocks >= 1 and steps >= SMALL.burn_in_block and kept == 1
    x = values(data, "x").flatten(0, 1)
    assert len(x.unique(dim=0)) > 0.97 * len(x)


def forgotten():
    """Return a z-score: chains begin at particles of one mode only, and jump."""
    target = mixture(2)
    goal = Goal(None, 1, 40_000)
    steps = search.SamplerSearch(target, goal._replace(options=SMALL), progress=False)
    steps.find_modes()
    best = steps.search()
    assert best.is_independence_sampler
    x = steps.modes.x
    modes = steps.modes._replace(x=x[x.sum(-1) > 0][:1].expand_as(x))
    final_run.finish(best, target, modes, progress=False)
    return z_score((best.run.unconstrained.sum(-1) > 0).double(), 1 / 3)


def test_starts_are_forgotten():
    """Jumps put the shares right before the first draw."""
    assert abs(forgotten()) < 4


@mutation(final_run, "burn_in")
def no_burn_in(burn_in, best, target, num_samples, starts, several, before):
    state = best.run.kernel.state_at(starts)
    best.run._state = state
    return []


def test_starts_need_a_burn_in():
    must_fail(no_burn_in, score=lambda: abs(forgotten()), above=5)


def test_chains_that_never_move():
    """They start in a mode that the flow lacks, and are told of."""
    target = mixture(2)
    c = 5 / 2**0.5
    flow = search.gaussian_guide(target, torch.full((2,), -c), torch.eye(2))
    starts = torch.randn(256, 2) - c
    starts[:3] += 2 * c
    goal = Goal(None, 6, 256)
    best = pilot.run_pilot("IMH", pf.IMH(guide=flow), target, starts, goal, torch.inf)
    modes = found_modes(num=256)._replace(x=starts)
    problems = final_run.finish(best, target, modes, progress=False)
    assert any("have never moved" in problem for problem in problems)


# ---- Ctrl-C --------------------------------------------------------------------------------------


def interrupt_at(monkeypatch, kernel, call):
    """Ctrl-C in a kernel's step."""
    step, calls = kernel.step, iter(range(10**9))

    def interrupted(self, state):
        if next(calls) == call:
            raise KeyboardInterrupt
        return step(self, state)

    monkeypatch.setattr(kernel, "step", interrupted)


@pytest.mark.parametrize("call", [10, 55, 70], ids=["warm-up", "counted steps", "pilot run"])
def test_interrupting_a_later_pilot_run_ends_the_search(monkeypatch, bad_flows, call):
    interrupt_at(monkeypatch, pf.LatentHMC, call)
    with pytest.warns(UserWarning, match=r"IMH \(mixture\) makes the draws"):
        data = pf.sample(mixture(2), num_samples=3, num_chains=100, search=SMALL, **QUIET)
    assert data.attrs["method"] == "IMH (mixture)"


@pytest.mark.parametrize(
    ("call", "method", "draws", "problem"),
    [
        (10, "IMH (mixture), one step from particles", 1, "before the first draw of a chain"),
        (55, "IMH (mixture)", 4, "Ctrl-C ended the first pilot run"),
        (80, "IMH (mixture)", 13, "Ctrl-C ended the first pilot run"),
    ],
    ids=["warm-up", "counted steps", "pilot run"],
)
def test_interrupting_the_first_pilot_run_ends_all(monkeypatch, call, method, draws, problem):
    interrupt_at(monkeypatch, pf.IMH, call)
    with pytest.warns(UserWarning, match="the draws so far are returned"):
        data = pf.sample(mixture(2), num_samples=3, search=SMALL, **QUIET)
    assert data.attrs["method"] == method and problem in data.attrs["problems"]
    assert data["posterior"].sizes["draw"] == draws and data.attrs["reliable"] == 0


def interrupt_draws(monkeypatch, call):
    """Ctrl-C in a step after the search."""
    finish = sampling.finish

    def then(*args):
        interrupt_at(monkeypatch, pf.IMH, call)
        return finish(*args)

    monkeypatch.setattr(sampling, "finish", then)


@pytest.mark.parametrize("later, kept", [(0, SMALL.pilot_steps), (2, 2), (4, 4)])
def test_interrupting_the_burn_in_keeps_what_there_is(monkeypatch, later, kept):
    interrupt_draws(monkeypatch, later)
    with pytest.warns(UserWarning, match="interrupted"):
        data = pf.sample(mixture(2), num_samples=50, num_chains=300, search=SMALL, **QUIET)
    assert dict(data["posterior"].sizes)["draw"] == kept


def test_interrupting_the_draws_keeps_all_that_were_appended(monkeypatch):
    """In the middle of a doubling."""
    asked, resume = [], pf.VectorizedMCMC.resume

    def spy(run, num_samples, *args, append=False, **kwargs):
        if append:
            asked.append(run.num_samples)
            interrupt_at(monkeypatch, pf.IMH, 3)
        return resume(run, num_samples, *args, append=append, **kwargs)

    monkeypatch.setattr(pf.VectorizedMCMC, "resume", spy)
    with pytest.warns(UserWarning, match="interrupted: 3 of"):
        data = pf.sample(mixture(2), ess=2000, search=SMALL, **QUIET)
    assert dict(data["posterior"].sizes)["draw"] == asked[0] + 3
    assert "Ctrl-C ended the draws before they were enough" in data.attrs["problems"]


@pytest.mark.parametrize(
    ("call", "draws", "problem"),
    [
        (0, None, "these draws are of the burn-in"),
        (5, 5, "Ctrl-C ended the draws before they were enough: each chain has 5, not 50"),
    ],
    ids=["before the first", "later"],
)
def test_interrupted_draws_are_said_to_be_so(monkeypatch, call, draws, problem):
    resume = pf.VectorizedMCMC.resume

    def spy(run, num_samples, *args, **kwargs):
        if num_samples == 50:  # the final run, after the burn-in
            interrupt_at(monkeypatch, pf.IMH, call)
        return resume(run, num_samples, *args, **kwargs)

    monkeypatch.setattr(pf.VectorizedMCMC, "resume", spy)
    with pytest.warns(UserWarning, match="Ctrl-C ended the"):
        data = pf.sample(mixture(2), num_samples=50, num_chains=300, search=SMALL, **QUIET)
    assert problem in data.attrs["problems"] and data.attrs["reliable"] == 0
    assert draws in (None, data["posterior"].sizes["draw"])


# ---- time ----------------------------------------------------------------------------------------


def counted(clock):
    """Return a target, and the list of the numbers of points that its density gets in 2 ms each."""
    calls = []

    def energy(x):
        calls.append(len(x))
        clock.time += 2e-3
        return 0.5 * x.square().sum(-1)

    return Target.from_energy(energy, 2), calls


def test_a_search_that_cannot_fit_is_refused(clock):
    """After a few points, and with the time that it would take."""
    target, calls = counted(clock)
    with pytest.raises(
        ValueError, match=r"the search for modes takes about [\d.]+ s at least: 2.5e"
    ):
        pf.sample(target, max_seconds=0.01, **QUIET)
    assert sum(calls) < 1000


@mutation(pilot.StepWork, "of")
def per_point(of, self, chains):
    """The overhead of operations is shared by no points."""
    return of(self, self.chains) / self.chains * chains


def needed(target):
    """Return the seconds that a search is said to take at least."""
    with pytest.raises(ValueError, match="takes about") as caught:
        pilot.check_time(target, SearchOptions(), 1e-9)
    return float(re.search(r"takes about ([\d.e+-]+) s", str(caught.value))[1])


def test_the_time_of_a_search_is_about_right(clock):
    """Less than it takes, but not by far."""
    target, _ = counted(clock)
    search.SamplerSearch(target, Goal(400, None, None), False).find_modes()
    spent, least = clock.time, needed(target)
    pilot.check_time(target, SearchOptions(), spent)
    assert spent / 30 < least < spent
    with broken(per_point):  # points of a batch share the overhead of its operations
        assert needed(target) > 3 * least


def test_time_that_is_enough_changes_no_draw():
    call = {"num_samples": 5, "num_chains": 50, "search": SMALL, **QUIET}
    one, other = pf.sample(standard(), **call), pf.sample(standard(), max_seconds=1e6, **call)
    assert torch.equal(values(one, "x"), values(other, "x"))


# ---- control -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_candidates_and_exclude():
    data = pf.sample(mixture(2), search=SMALL, num_samples=5, candidates=["IMH"], **QUIET)
    assert data.attrs["candidates"].startswith("IMH") and ";" not in data.attrs["candidates"]
    options = replace(SMALL, candidates=("IMH", "HMC"))
    data = pf.sample(mixture(2), search=options, num_samples=5, exclude=["IMH"], **QUIET)
    assert data.attrs["method"] == "HMC"
    with pytest.raises(ValueError, match="no kernels or flows"):
        pf.sample(mixture(2), candidates=["NUTS"])


@cache
def guide_of_conjugate():
    guide = pf.AutoFlow(conjugate, flow="gaussian", options=pf.FitOptions(progress=False))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        guide.fit(*conjugate_data())
    return guide


def trained_guide(shift=0.0):
    """Return a guide of the conjugate model, whose flow is displaced by some deviations."""
    guide = deepcopy(guide_of_conjugate())
    guide.flow.affine.loc += shift * guide.flow.affine.scale.diagonal()
    return guide


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_a_guide_of_the_caller(shift):
    """Its draws are right, however bad it is, and it stays as it was."""
    guide = trained_guide(shift)
    before = guide.flow.affine.loc.clone()
    call = {"candidates": ["guide"], "num_samples": 50, "num_chains": 200, "search": SMALL}
    data = pf.sample(conjugate, *conjugate_data(), guide=guide, **call, **QUIET)
    assert data.attrs["method"].endswith("(guide)")
    for name, (mean, deviation) in CONJUGATE_TRUTH.items():
        x = values(data, name)
        assert abs(z_score(x, mean)) < 4
        assert abs(z_score((x - mean).square(), deviation**2)) < 4
    assert torch.equal(guide.flow.affine.loc, before)


def test_a_guide_is_compared_with_others():
    data = pf.sample(
        conjugate, *conjugate_data(), guide=trained_guide(3.0), search=SMALL, num_samples=5, **QUIET
    )
    first, *others = data.attrs["candidates"].split("; ")
    assert first.startswith("IMH (guide): ") and others
    assert "guide" not in data.attrs["method"]


def test_a_guide_follows_its_target_to_float64():
    target = Target.from_model(conjugate, *conjugate_data())
    guide = candidates.given_guide(trained_guide(), conjugate, target, conjugate_data(), {})
    options = replace(SMALL, max_rounding_error=1e-12)
    steps = search.SamplerSearch(target, Goal(400, None, None, options), False, guide=guide)
    steps.find_modes()
    steps, problems = search_precision.precise_enough(steps)
    assert problems == [] and steps.target.dtype == torch.float64
    assert steps.search().run.unconstrained.dtype == torch.float64
    assert steps.guide.flow.flow.affine.loc.dtype == torch.float64


def test_an_amortised_guide():
    """At the context of the call."""

    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    options = pf.FitOptions(max_steps=200, progress=False)
    guide = pf.AutoFlow(model, context=["y"], options=options)
    guide.fit(torch.linspace(-2, 2, 32))
    call = {"guide": guide, "candidates": ["guide"], "num_samples": 20, **QUIET}
    data = pf.sample(model, torch.tensor(1.0), **call)
    assert abs(z_score(values(data, "x"), 0.5)) < 4
    with pytest.raises(ValueError, match="one context|several"):
        pf.sample(model, torch.tensor([1.0, 2.0]), **call)


def test_guides_that_do_not_fit():
    guide = pf.AutoFlow(standard(3), flow="gaussian", options=pf.FitOptions(progress=False))
    guide.fit()
    with pytest.raises(ValueError, match=r"guide: site 'x' has the shape \(3,\), in the model"):
        pf.sample(standard(2), guide=guide, **QUIET)
    with pytest.raises(ValueError, match="guide: it has no site '.*'; .*'x' is no site of the"):
        pf.sample(conjugate, *conjugate_data(), guide=guide, **QUIET)


@pytest.mark.slow
def test_initial_params_lead_to_a_density_that_is_zero_elsewhere():
    def energy(x):
        inside = (x - 3000).abs().amax(-1) < 5
        return torch.where(inside, 0.5 * (x - 3000).square().sum(-1), torch.inf)

    target = Target.from_energy(energy, 2)
    near = {"x": 3000 + torch.randn(8, 2).clamp(-2, 2)}
    data = pf.sample(target, search=SMALL, num_samples=5, initial_params=near, **QUIET)
    assert abs(float(values(data, "x").mean()) - 3000) < 0.2
    with pytest.raises(ValueError, match="zero or NaN at all points"):
        pf.sample(target, initial_params={"x": torch.zeros(2, 2)}, **QUIET)


@pytest.mark.slow
def test_an_earlier_result_as_a_start():
    first = pf.sample(conjugate, *conjugate_data(), search=SMALL, num_samples=5, **QUIET)
    again = pf.sample(
        conjugate, *conjugate_data(), search=SMALL, num_samples=5, start=first, **QUIET
    )
    for name, (mean, _) in CONJUGATE_TRUTH.items():
        assert abs(z_score(values(again, name), mean)) < 4
    with pytest.raises(ValueError, match="no draws of the sites"):
        pf.sample(mixture(2), start=first, **QUIET)


@pytest.mark.parametrize("late", [False, True])
def test_time_ends_the_doubling(clock, monkeypatch, late):
    """The first half of the draws is never enough."""
    finish = sampling.finish

    def at_last(*args):
        clock.time += 100 * late
        return finish(*args)

    monkeypatch.setattr(sampling, "finish", at_last)
    with warnings.catch_warnings():
        warnings.filterwarnings("error" if not late else "ignore")
        data = pf.sample(standard(), search=SMALL, ess=2000, max_seconds=60, **QUIET)
    assert data.attrs["reliable"] == (not late)
    assert ("max_seconds are over" in data.attrs["problems"]) == late


def test_draws_at_which_chains_stay_too_long():
    """A hundredth of the states in places that the flow hardly ever proposes."""
    steps, best = found(standard())
    assert best.is_independence_sampler and problems(steps, best) == ()
    log_w = best.run.statistics["log_weight"]
    log_w += 0.3 * torch.randn_like(log_w)
    assert problems(steps, best) == ()
    log_w[: -(-len(log_w) // 50), : log_w.shape[1] // 2] += 12.0  # stays longer than the chains
    assert any("hardly leave" in problem for problem in problems(steps, best))


def test_searches_that_miss_mass_which_the_flow_has():
    """The evidence of the flow decides, and only if it is not smaller than that of a search."""
    steps, best = found(standard())
    less = steps.modes.agreement.log_evidence - torch.tensor([0.0, 3.0])
    agreement = steps.modes.agreement._replace(log_evidence=less)
    assert problems(steps, best, steps.modes._replace(agreement=agreement)) == ()
    more = steps.modes._replace(agreement=agreement._replace(log_evidence=less + 2))
    assert any("log evidences are" in problem for problem in problems(steps, best, more))


def test_modes_of_paths_that_chains_lose():
    """A mode of 5 % of the mass, of which there are no draws."""
    steps, best = found(standard())
    away = torch.full((1, 2), 9.0, dtype=torch.double)
    mass = torch.tensor([math.log(0.05 * 2 * math.pi)], dtype=torch.double)
    mode = PathModes(away, torch.eye(2)[None].double(), mass, away[None], torch.ones(1))
    assert problems(steps, best) == ()
    missed = steps.modes.agreement._replace(
        missed=float(steps.modes.agreement.shares_of(mode).sum())
    )
    lost = steps.modes._replace(alone=mode, agreement=missed)
    assert lost.unseen == pytest.approx(0.05, abs=0.01)
    told = problems(steps, best, lost)
    assert any("both searches for modes have missed" in problem for problem in told)
    assert any("modes in which quasi-Newton paths have found" in problem for problem in told)
    rare = mode._replace(log_mass=mass - 6)  # too little to be expected among the draws
    assert problems(steps, best, steps.modes._replace(alone=rare)) == ()


# ---- an uncertain evidence -----------------------------------------------------------------------


@mutation(search, "ModeSearch")
def evidence_of_the_second_is_unknown(ModeSearch, *args):
    class Unknown(ModeSearch):
        def run(self):
            found = super().run()
            error = found.agreement.error.new_tensor([0.1, 3.0])
            return found._replace(settled=False, agreement=found.agreement._replace(error=error))

    return Unknown(*args)


@mutation(searches, "evidence_of_draws")
def evidence_of_the_draws_is_unknown(evidence_of_draws, *args):
    return None


def of_an_unknown_evidence(target, *candidates):
    call = {"num_samples": 20, "num_chains": 100, "search": SMALL, "candidates": candidates}
    call |= QUIET
    unknown = evidence_of_the_second_is_unknown, evidence_of_the_draws_is_unknown
    with broken(*unknown), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pf.sample(target, **call).attrs


def test_an_unknown_evidence_of_one_mode_is_no_alarm():
    """The draws do not depend on it: chains from the starts of both searches agree."""
    attrs = of_an_unknown_evidence(standard(), "HMC")
    assert attrs["reliable"] == 1 and attrs["problems"] == ""
    assert "the log evidence is uncertain" in attrs["notes"]


def test_an_unknown_evidence_of_several_modes_is_an_alarm():
    attrs = of_an_unknown_evidence(mixture(2))
    assert attrs["reliable"] == 0 and "cannot be compared" in attrs["problems"]
    assert attrs["notes"] == ""


def test_the_flow_is_drawn_once():
    """The evidence, the verdict and the record share the draws."""
    target, counts = standard(), []
    sample_and_log_prob = pf.flows.proposal.Proposal.sample_and_log_prob
    spy = mutation(pf.flows.proposal.Proposal, "sample_and_log_prob")(
        lambda right, self, num: counts.append(num) or sample_and_log_prob(self, num)
    )
    with broken(spy):
        data = pf.sample(target, num_samples=20, num_chains=100, search=SMALL, **QUIET)
    assert counts.count(SMALL.evidence_draws) == 1 and 1000 not in counts[-3:]
    assert data["proposal"]["x"].shape == (1, 1000, 2)
