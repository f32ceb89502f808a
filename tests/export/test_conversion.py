"""to_arviz exports every source and every group, with ArviZ 0.x and 1.x."""

import functools
import warnings

import arviz as az
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import HMC, MCMC, NUTS, Predictive
from pyro.infer.autoguide import AutoNormal
from pyro.infer.mcmc import StreamingMCMC
from support.models import (
    QUICK,
    conjugate,
    conjugate_data,
    conjugate_guide,
    data,
    enumerated,
    factored,
    location,
)
from support.models import normal_potential as potential

from pyro_flowsamp import IMH, AutoFlow, LatentMALA, Target, VectorizedMCMC, to_arviz
from pyro_flowsamp.export import groups as groups_module

ARVIZ_0 = az.__version__.startswith("0.")
CHAINS, DRAWS = 3, 40
PYROS = {"acceptance_rate", "diverging"}
OURS = PYROS | {"lp", "log_weight", "accepted"}


@functools.cache
def guide():
    return conjugate_guide()


def fitted(model, *args):
    made = AutoFlow(model, options=QUICK)
    made.fit(*args)
    return made


def vectorized(kernel=IMH, model=conjugate, args=None, **options):
    made = guide() if args is None else fitted(model, *args)
    options = {"num_chains": CHAINS, "warmup_steps": 10, "disable_progbar": True, **options}
    run = VectorizedMCMC(kernel(guide=made), DRAWS, **options)
    run.run(*(args or conjugate_data()))
    return run


def sequential(kernel, num_chains=1, args=None, **options):
    options = {"warmup_steps": 20, "disable_progbar": True, **options}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "num_chains")  # more chains than processors
        run = MCMC(kernel, DRAWS, num_chains=num_chains, **options)
    run.run(*(conjugate_data() if args is None else args))
    return run


def nuts():
    return NUTS(conjugate, step_size=0.3, adapt_step_size=False)  # no long warm-up


def hmc():
    return HMC(conjugate, step_size=0.3, adapt_step_size=False, trajectory_length=1.0)


SOURCES = {
    "vectorized IMH": (lambda: vectorized(IMH), CHAINS, OURS),
    "vectorized LatentMALA": (lambda: vectorized(LatentMALA), CHAINS, OURS | {"step_size"}),
    "MCMC IMH": (lambda: sequential(IMH(guide=guide())), 1, OURS),
    "MCMC LatentMALA": (lambda: sequential(LatentMALA(guide=guide())), 1, OURS | {"step_size"}),
    "MCMC NUTS": (lambda: sequential(nuts()), 1, PYROS),
    "MCMC HMC": (lambda: sequential(hmc()), 1, PYROS),
    "guide": (guide, 1, {"lp", "log_q", "log_weight"}),
}


def exported(source, **options):
    args = conjugate_data() if isinstance(source, AutoFlow) else ()
    return to_arviz(source, *args, num_samples=DRAWS, **options)


def groups(idata):
    return set(idata.groups()) if ARVIZ_0 else set(idata.children)


# ---- every source ------------------------------------------------------------------------------


@pytest.fixture(params=SOURCES)
def case(request):
    make, chains, names = SOURCES[request.param]
    return make(), chains, names


def test_every_group(case, tmp_path):
    source, chains, names = case
    y, counts = conjugate_data()
    idata = exported(source, dims={"y": ["person"]}, coords={"person": ["a", "b", "c"]})

    assert groups(idata) == {"posterior", "sample_stats", "log_likelihood", "observed_data"}
    assert set(idata.posterior.data_vars) == {"mean", "rate"}
    assert set(idata.sample_stats.data_vars) == names
    for group in (idata.posterior, idata.sample_stats):
        for value in group.data_vars.values():
            assert value.dims == ("chain", "draw") and value.shape == (chains, DRAWS)
            assert np.isfinite(value).all()
    assert (idata.posterior["rate"] > 0).all()
    for name in names & {"diverging", "accepted"}:
        assert idata.sample_stats[name].dtype == bool

    mean, rate = (torch.tensor(idata.posterior[k].values)[..., None] for k in ("mean", "rate"))
    by_hand = {"y": dist.Normal(mean, 1).log_prob(y), "counts": dist.Poisson(rate).log_prob(counts)}
    for name, expected in by_hand.items():
        np.testing.assert_allclose(idata.log_likelihood[name], expected, rtol=1e-5)
    assert idata.log_likelihood["y"].dims == ("chain", "draw", "person")
    assert list(idata.observed_data["y"].coords["person"]) == ["a", "b", "c"]
    np.testing.assert_array_equal(idata.observed_data["counts"], counts)

    assert {"mean", "rate"} <= set(az.summary(idata).index)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a Pareto k of forty draws
        loo = az.loo(idata, var_name="y")
    assert np.isfinite(loo.elpd_loo if ARVIZ_0 else loo.elpd)
    idata.to_netcdf(tmp_path / "draws.nc")
    again = az.from_netcdf(tmp_path / "draws.nc")
    assert groups(again) == groups(idata)
    for group in groups(idata):
        assert again[group].equals(idata[group])


def test_statistics_are_those_of_the_run():
    run = vectorized(LatentMALA)
    idata = to_arviz(run)
    for name, value in run.statistics.items():
        np.testing.assert_array_equal(idata.sample_stats[name], value)
    assert (idata.sample_stats["step_size"] == float(run.kernel.step_size)).all()
    for name, value in run.get_samples(group_by_chain=True).items():
        np.testing.assert_array_equal(idata.posterior[name], value)


def test_chains_of_mcmc_keep_their_order():
    run = sequential(LatentMALA(guide=guide()), num_chains=2)
    report = run.diagnostics()
    stats = to_arviz(run).sample_stats
    np.testing.assert_allclose(stats["step_size"][:, 0], list(report["step size"].values()))
    np.testing.assert_allclose(
        stats["accepted"].mean("draw"), list(report["acceptance rate"].values())
    )
    for name in OURS:
        for row, recorded in zip(stats[name], report["statistics"].values()):
            np.testing.assert_array_equal(row, recorded[name])


@pytest.mark.slow
def test_divergences_of_pyros_kernels_are_found_by_their_index():
    run = sequential(nuts(), num_chains=2)
    for chain, marks, rate in zip(run._diagnostics, ([], [0, DRAWS - 1]), (1.0, 0.75)):
        chain.update({"divergences": marks, "acceptance rate": rate})  # as if it had happened
    stats = to_arviz(run).sample_stats
    assert not stats["diverging"][0].any()
    assert np.flatnonzero(stats["diverging"][1]).tolist() == [0, DRAWS - 1]
    assert (stats["acceptance_rate"] == np.array([[1.0], [0.75]])).all()


def test_lp_and_weights_of_a_guide():
    made = guide()
    idata = to_arviz(made, *conjugate_data(), num_samples=DRAWS)
    target = Target.from_model(conjugate, *conjugate_data())
    values = {k: torch.tensor(v.values[0]) for k, v in idata.posterior.data_vars.items()}
    lp = target.log_prob(target.pack(values)).double()
    np.testing.assert_allclose(idata.sample_stats["lp"][0], lp, atol=1e-4)
    log_q = made.proposal(*conjugate_data()).log_prob(target.pack(values)).double()
    np.testing.assert_allclose(idata.sample_stats["log_q"][0], log_q, atol=1e-3)
    np.testing.assert_allclose(
        idata.sample_stats["log_weight"], idata.sample_stats["lp"] - idata.sample_stats["log_q"]
    )


def test_an_amortised_guide_is_exported_at_its_context():
    made = AutoFlow(location, options=QUICK, context=("y",))
    made.fit(torch.randn(20, 2))
    y = data(1.0, -1.0)
    idata = to_arviz(made, y=y, num_samples=DRAWS)
    np.testing.assert_array_equal(idata.observed_data["y"], y)
    x = torch.tensor(idata.posterior["x"].values)
    expected = dist.Normal(x, 1).log_prob(y).sum(-1)
    np.testing.assert_allclose(idata.log_likelihood["y"], expected, rtol=1e-5)


# ---- shapes and names --------------------------------------------------------------------------


def test_event_dimensions_take_names():
    """The likelihood of a vector-valued observation has no dimension for its elements."""
    run = vectorized(model=location, args=(data(1.0, -1.0),))
    idata = to_arviz(run, dims={"x": ("axis",), "y": ("axis",)}, coords={"axis": ["north", "east"]})
    assert idata.posterior["x"].dims == ("chain", "draw", "axis")
    assert idata.observed_data["y"].dims == ("axis",)
    assert idata.log_likelihood["y"].dims == ("chain", "draw")
    assert idata.posterior["x"].sel(axis="north").shape == (CHAINS, DRAWS)


def test_more_chains_than_draws_is_no_cause_for_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        idata = to_arviz(vectorized(num_chains=2 * DRAWS))
    assert idata.posterior["mean"].shape == (2 * DRAWS, DRAWS)


# ---- groups that are left out ------------------------------------------------------------------


def test_no_log_likelihood_on_request():
    idata = to_arviz(vectorized(), log_likelihood=False)
    assert groups(idata) == {"posterior", "sample_stats", "observed_data"}


@pytest.mark.parametrize(
    "run",
    [
        lambda: vectorized(save_params=["rate"]),
        lambda: sequential(IMH(guide=guide()), save_params=["rate"]),
        lambda: sequential(nuts(), save_params=["rate"]),
    ],
    ids=["vectorized", "IMH", "NUTS"],
)
def test_unsaved_sites(run):
    run = run()
    with pytest.warns(UserWarning, match=r"no log_likelihood.*\['mean'\] were not saved") as caught:
        idata = to_arviz(run)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert groups(idata) == {"posterior", "sample_stats", "observed_data"}
    assert set(idata.posterior.data_vars) == {"rate"}


def test_too_large_a_log_likelihood(monkeypatch):
    run = vectorized()
    monkeypatch.setattr(groups_module, "MAX_NUMBERS", 6 * CHAINS * DRAWS - 1)
    with pytest.warns(UserWarning, match="log_likelihood=False"):
        assert "log_likelihood" not in groups(to_arviz(run))
    monkeypatch.setattr(groups_module, "MAX_NUMBERS", 6 * CHAINS * DRAWS)
    assert "log_likelihood" in groups(to_arviz(run))


@pytest.mark.slow
def test_discrete_sites_have_no_draws_to_condition_on():
    run = vectorized(model=enumerated, args=(data(0.5, -1.0, 2.0),))
    with pytest.warns(UserWarning, match="discrete"):
        assert "log_likelihood" not in groups(to_arviz(run))


def test_a_model_without_observations():
    run = vectorized(model=factored, args=(data(1.0, 0.0),))
    idata = to_arviz(run)
    assert groups(idata) == {"posterior", "sample_stats", "constant_data"}
    np.testing.assert_array_equal(idata.constant_data["y"], data(1.0, 0.0))


def test_a_potential_has_neither_data_nor_likelihood():
    start = {"x": torch.zeros(2)}
    for kernel in (IMH(potential_fn=potential), NUTS(potential_fn=potential)):
        run = sequential(kernel, args=(), initial_params=start)
        assert groups(to_arviz(run)) == {"posterior", "sample_stats"}


def test_a_target_remembers_its_model():
    target = Target.from_model(conjugate, *conjugate_data())
    run = VectorizedMCMC(IMH(target), DRAWS, num_chains=CHAINS, disable_progbar=True)
    run.kernel.guide = AutoFlow(target, options=QUICK)
    run.run()
    assert "log_likelihood" in groups(to_arviz(run))


# ---- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        None,
        {"x": torch.zeros(3)},
        IMH(conjugate),
        AutoNormal(conjugate),
        Predictive(conjugate, num_samples=2),
        StreamingMCMC(IMH(conjugate), num_samples=2),
    ],
    ids=lambda source: type(source).__name__,
)
def test_unsupported_sources(source):
    with pytest.raises(ValueError, match=type(source).__name__):
        to_arviz(source)


@pytest.mark.parametrize("make", [VectorizedMCMC, MCMC])
def test_a_run_without_draws(make):
    with pytest.raises(ValueError, match="no draws yet"):
        to_arviz(make(IMH(conjugate), num_samples=2))


def test_an_interrupted_run_without_draws(monkeypatch):
    run = VectorizedMCMC(IMH(guide=guide()), DRAWS, 0, CHAINS, disable_progbar=True)

    def interrupt(self, state):
        raise KeyboardInterrupt

    monkeypatch.setattr(IMH, "step", interrupt)
    with pytest.warns(UserWarning, match="interrupted"):
        run.run(*conjugate_data())
    with pytest.raises(ValueError, match="no draws yet"):
        to_arviz(run)


def test_an_untrained_guide():
    with pytest.raises(ValueError, match="untrained"):
        to_arviz(AutoFlow(conjugate), *conjugate_data())


def test_arguments_are_for_guides():
    with pytest.raises(ValueError, match="has stored"):
        to_arviz(vectorized(), *conjugate_data())
    with pytest.raises(ValueError, match="num_samples"):
        to_arviz(guide(), *conjugate_data(), num_samples=0)


# ---- the host library --------------------------------------------------------------------------


@pytest.mark.skipif(not ARVIZ_0, reason="ArviZ 1.x has no from_pyro")
def test_arviz_own_converter_takes_our_kernels():
    run = sequential(IMH(guide=guide()))
    theirs, ours = az.from_pyro(run), to_arviz(run)
    assert groups(theirs) == groups(ours)
    for group in ("posterior", "observed_data"):
        for name in ours[group].data_vars:
            np.testing.assert_array_equal(theirs[group][name], ours[group][name])
    np.testing.assert_array_equal(theirs.sample_stats["diverging"], ours.sample_stats["diverging"])
    for name in ("y", "counts"):
        np.testing.assert_allclose(
            theirs.log_likelihood[name], ours.log_likelihood[name], rtol=1e-5
        )
