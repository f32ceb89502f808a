"""sample() is right whatever kernel it chooses, and it chooses a kernel that pays."""

import warnings
from time import perf_counter

import pyro
import pyro.distributions as dist
import pytest
import torch
from support import models
from support.models import CONJUGATE_TRUTH, conjugate, conjugate_data

import pyro_flowsamp as pf
from pyro_flowsamp import SearchOptions, Target, pilot, sampling, search
from pyro_flowsamp.flows.recipes import LayeredFlow

QUIET = {"progress": False, "seed": 0}


def values(data, site):
    return torch.as_tensor(data["posterior"][site].values)


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
    """Every Gaussian mixture is displaced by three of its own standard deviations."""
    fit_mixture_guide = search.fit_mixture_guide

    def displaced(target, particles, components):
        guide = fit_mixture_guide(target, particles, components)
        if components > 1:
            assert isinstance(guide.flow, LayeredFlow)
            guide.flow.affine.loc += 3 * guide.flow.affine.scale.diagonal()
        return guide

    monkeypatch.setattr(search, "fit_mixture_guide", displaced)


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(
        search.SamplerSearch, "train_candidate", lambda self, flow, from_draws, best: None
    )


@pytest.mark.slow
def test_draws_do_not_depend_on_the_clock(monkeypatch):
    """The burn-in is counted in evaluations: a machine that slows down has the same draws."""
    small = {"num_samples": 5, "num_chains": 20, **QUIET}
    first = pf.sample(conjugate, *conjugate_data(), **small)
    start = perf_counter()
    monkeypatch.setattr(search, "perf_counter", lambda: (perf_counter() - start) ** 3)
    again = pf.sample(conjugate, *conjugate_data(), **small)
    assert first.attrs["method"] == again.attrs["method"]
    for site in CONJUGATE_TRUTH:
        assert torch.equal(values(first, site), values(again, site))


def test_conjugate_model():
    data = pf.sample(conjugate, *conjugate_data(), num_samples=50, num_chains=400, **QUIET)
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


@pytest.mark.slow
@pytest.mark.parametrize("dim", [2, 10])
def test_two_distant_modes(dim):
    data = pf.sample(mixture(dim), num_samples=50, num_chains=1000, **QUIET)
    upper = values(data, "x").mean(-1) > 0
    assert abs(z_score(upper.double(), 1 / 3)) < 4
    assert data.attrs["method"] != "HMC"


@pytest.mark.slow
def test_a_flow_is_trained_where_nothing_else_mixes(bad_flows, monkeypatch):
    monkeypatch.setattr(search, "flow_candidates", lambda *args: iter([("coupling", False)]))
    data = pf.sample(banana(20), num_samples=50, num_chains=1000, **QUIET)
    x = values(data, "x")
    assert "(coupling)" in data.attrs["method"]
    assert abs(z_score(x[..., 0].square(), 100.0)) < 4
    assert abs(z_score(x[..., 1], 0.0)) < 4


@pytest.mark.slow
def test_bad_flows_do_no_harm(bad_flows, no_training):
    target = Target.from_energy(lambda x: 0.5 * (x - 1).square().sum(-1), 3)
    data = pf.sample(target, num_samples=50, num_chains=400, **QUIET)
    assert data.attrs["method"] in (
        "HMC",
        "LocalGlobalHMC (mixture)",
        "LocalGlobalHMC (Gaussian)",
    )  # exact by their local moves
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


# ---- what it says --------------------------------------------------------------------------------


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


@pytest.mark.slow
def test_an_improper_posterior():
    target = Target.from_energy(lambda x: 0 * x.sum(-1), 2)
    with pytest.warns(UserWarning, match="spread without bound"):
        pf.sample(target, num_samples=50, num_chains=200, **QUIET)


@pytest.mark.slow
def test_chains_that_disagree(bad_flows, no_training):
    options = SearchOptions(max_pilot_steps=1)
    with pytest.warns(UserWarning, match="the chains disagree"):
        pf.sample(mixture(2), num_samples=20, num_chains=200, search=options, **QUIET)


@pytest.mark.parametrize("name, value", [("pilot_chains", 0), ("patience", -1.0)])
def test_search_options_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"SearchOptions.{name} must be at least"):
        SearchOptions(**{name: value})


def test_search_options_are_used():
    options = SearchOptions(particles=128, pilot_chains=32, target_ess_per_draw=3.0)
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    data = pf.sample(target, num_samples=5, num_chains=50, search=options, **QUIET)
    assert data.attrs["thin"] >= 3
    steps = search.SamplerSearch(target, 5, 50, False, options)
    steps.run_smc()
    assert len(steps.particles) == 128
    pilot_run = steps.run_pilot("IMH", pf.IMH(guide=steps.fit_mixture_guide(1)), torch.inf)
    assert pilot_run.run.num_chains == 32


@pytest.mark.parametrize("counts", [{"num_samples": 0}, {"num_chains": 1}])
def test_counts(counts):
    with pytest.raises(ValueError, match="at least"):
        pf.sample(mixture(2), **counts)


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
        data = pf.sample(target, num_samples=5, num_chains=50, **QUIET)
        assert data.attrs["evaluations"] == count


def test_seconds_are_those_of_the_call():
    start = perf_counter()
    data = pf.sample(mixture(2), num_samples=20, **QUIET)
    spent = sum(v for k, v in data.attrs.items() if k.startswith("seconds_"))
    assert 0.5 * (perf_counter() - start) < spent < perf_counter() - start


def test_attributes_can_be_saved(tmp_path):
    pf.sample(mixture(2), num_samples=5, **QUIET).to_netcdf(tmp_path / "draws.nc")


# ---- where nothing works -------------------------------------------------------------------------


@pytest.fixture
def hopeless(monkeypatch, no_training):
    """No kernel is ever seen to mix."""
    monkeypatch.setattr(pilot, "ess_per_draw", lambda x, num_directions: 0.01)


@pytest.mark.slow
def test_the_user_is_told_where_no_kernel_mixes(hopeless):
    with pytest.warns(UserWarning, match="no kernel has been seen to mix"):
        data = pf.sample(mixture(2), num_samples=3, **QUIET)
    assert data.attrs["reliable"] == 0 and data.attrs["candidates"].count("inf s") == 3
    assert not data.attrs["method"].startswith("IMH")  # jumps alone hide what they miss
    assert data.attrs["thin"] == SearchOptions().max_thin


@pytest.mark.slow
def test_a_kernel_that_fails_is_left_out(monkeypatch, bad_flows, no_training):
    def refuse(self):
        raise RuntimeError("warm-up drove the step size to nothing")

    monkeypatch.setattr(pf.LocalGlobalHMC, "freeze", refuse)
    with pytest.warns(UserWarning, match=r"LocalGlobalHMC \(mixture\) is left out"):
        pf.sample(mixture(2), num_samples=3, **QUIET)
    monkeypatch.setattr(pf.FlowKernel, "start", lambda *args: refuse(None))
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="no kernel runs"):
        pf.sample(mixture(2), num_samples=3, **QUIET)


# ---- where chains start --------------------------------------------------------------------------


def test_particles_that_start_chains_are_no_siblings():
    steps = search.SamplerSearch(mixture(10), 5, 100, progress=False)
    steps.run_smc()
    upper = (steps.particles.mean(-1) > 0).double()
    u = upper - upper.mean()
    assert abs(float((u[1:] * u[:-1]).mean() / u.square().mean())) < 0.15


@pytest.mark.slow
def test_chains_go_on_from_where_they_were():
    """Not by way of constrained values, which a simplex rounds to its faces."""

    def sparse(counts):
        p = pyro.sample("p", dist.Dirichlet(0.1 * torch.ones(5)))
        pyro.sample("y", dist.Multinomial(total_count=21, probs=p), obs=counts)

    target = Target.from_model(sparse, torch.tensor([20.0, 1.0, 0.0, 0.0, 0.0]))
    steps = search.SamplerSearch(target, 1, 500, progress=False)
    pyro.set_rng_seed(0)
    steps.run_smc()
    candidate = steps.consider(None, "HMC", pf.LatentHMC(guide=steps.fit_mixture_guide(1)))
    before = candidate.run.unconstrained.flatten(0, 1)
    starts = []
    candidate.run.kernel.init = lambda x: (
        starts.append(x) or type(candidate.run.kernel).init(candidate.run.kernel, x)
    )
    sampling.finish(candidate, target, 1, 500, progress=False)
    distance = torch.cdist(starts[0].double(), before.double()).min(-1).values
    assert float(distance.max()) < 1e-4


def test_more_chains_than_draws_part(monkeypatch):
    """Some start at the same place, and go on unseen before the first draw that is kept."""
    asked, resume = [], pf.VectorizedMCMC.resume
    monkeypatch.setattr(
        pf.VectorizedMCMC, "resume", lambda run, *args: asked.append(args) or resume(run, *args)
    )
    data = pf.sample(mixture(2), num_samples=1, num_chains=20_000, **QUIET)
    (blocks, steps), (kept, _) = asked[-2:]
    assert blocks >= 1 and steps >= 10 and kept == 1
    x = values(data, "x").flatten(0, 1)
    assert len(x.unique(dim=0)) > 0.97 * len(x)


def test_tails_that_a_flow_lacks_give_it_away():
    """Jumps by a Gaussian, of a target with a heavy tail that some chains start in."""
    target = pf.Target.from_energy(lambda x: 4 * (1 + x.square().sum(-1) / 7).log(), 1)
    steps = search.SamplerSearch(target, 100, 256, progress=False)
    steps.run_smc()
    steps.particles[:20] = 40.0
    guide = steps.fit_mixture_guide(1)
    guide.flow.initialize_from(torch.randn(5000, 1))
    candidate = steps.run_pilot("IMH", pf.IMH(guide=guide), torch.inf)
    assert candidate.never_accepted_fraction > 0 and not candidate.reliable
    good = candidate._replace(ess_per_draw=0.9, length=100)
    assert (
        good._replace(never_accepted_fraction=0.0).reliable
        and not good._replace(never_accepted_fraction=1 / 256).reliable
    )
    local = good._replace(run=pf.VectorizedMCMC(pf.LocalGlobalHMC(target), 1))
    assert (
        local._replace(never_accepted_fraction=1 / 256).reliable
        and not local._replace(never_accepted_fraction=0.02).reliable
    )


def test_starts_are_forgotten():
    """Chains begin at particles of one mode only; jumps put the shares right before the draws."""
    target = mixture(2)
    steps = search.SamplerSearch(target, 4, 2000, progress=False)
    steps.run_smc()
    best = steps.run_pilot("IMH", pf.IMH(guide=steps.fit_mixture_guide(1)), torch.inf)
    x = best.run.unconstrained
    x[:] = x[x.sum(-1) > 0][:1]
    sampling.finish(best, target, 4, 2000, progress=False)
    upper = (best.run.unconstrained.sum(-1) > 0).double().mean(1)
    z = (upper.mean() - 1 / 3) / (upper.std() / len(upper) ** 0.5)
    assert abs(float(z)) < 4


# ---- Ctrl-C --------------------------------------------------------------------------------------


def interrupt_at(monkeypatch, kernel, call):
    """Ctrl-C in a kernel's step."""
    step, calls = kernel.step, iter(range(10**9))

    def interrupted(self, state):
        if next(calls) == call:
            raise KeyboardInterrupt
        return step(self, state)

    monkeypatch.setattr(kernel, "step", interrupted)


@pytest.mark.parametrize("call", [10, 60], ids=["warm-up", "pilot run"])
def test_interrupting_a_later_pilot_run_ends_the_search(monkeypatch, bad_flows, call):
    interrupt_at(monkeypatch, pf.LatentHMC, call)
    with pytest.warns(UserWarning, match=r"IMH \(mixture\) makes the draws"):
        data = pf.sample(mixture(2), num_samples=3, **QUIET)
    assert data.attrs["method"] == "IMH (mixture)"


@pytest.mark.parametrize("call", [10, 60], ids=["warm-up", "pilot run"])
def test_interrupting_the_first_pilot_run_ends_all(monkeypatch, call):
    interrupt_at(monkeypatch, pf.IMH, call)
    with pytest.raises(KeyboardInterrupt):
        pf.sample(mixture(2), num_samples=3, **QUIET)


@pytest.mark.parametrize("later, kept", [(0, SearchOptions().pilot_steps), (2, 2), (4, 4)])
def test_interrupting_the_draws_keeps_what_there_is(monkeypatch, later, kept):
    interrupt_at(monkeypatch, pf.IMH, SearchOptions().min_pilot_steps + later)
    with pytest.warns(UserWarning, match="interrupted"):
        data = pf.sample(mixture(2), num_samples=50, num_chains=300, **QUIET)
    assert dict(data["posterior"].sizes)["draw"] == kept
