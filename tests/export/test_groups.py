"""The groups that are computed from a model, and what ArviZ makes of them."""

import functools
import warnings

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer import Predictive
from support.models import QUICK, conjugate, conjugate_data, data

from pyro_flowsamp import IMH, AutoFlow, FitOptions, Target, VectorizedMCMC, sample, to_arviz
from pyro_flowsamp.export import groups as groups_module
from pyro_flowsamp.export.groups import ON_REQUEST, constant_data
from pyro_flowsamp.export.sources import numbered
from pyro_flowsamp.target.quantities import model_variables

ARVIZ_0 = az.__version__.startswith("0.")
ONLY_1 = pytest.mark.skipif(ARVIZ_0, reason="ArviZ 1.x only")
CHAINS, DRAWS, SCHOOLS = 4, 50, 8
Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERROR = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(error, y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    with pyro.plate("schools", len(error)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, error), obs=y)


def run_of(model, *args, chains=CHAINS, draws=DRAWS, **options):
    guide = AutoFlow(model, flow="gaussian", options=QUICK)
    guide(*args)  # makes the flow
    guide.trained = True  # it proposes standard normal values: chains need not mix here
    run = VectorizedMCMC(
        IMH(model, guide=guide), draws, 10, chains, disable_progbar=True, **options
    )
    run.run(*args)
    return run


@functools.cache
def schools_run():
    return run_of(eight_schools, ERROR, Y)


@functools.cache
def everything():
    torch.manual_seed(1)
    return to_arviz(schools_run(), groups=ON_REQUEST, num_samples=200)


def names(idata):
    return set(idata.groups()) if ARVIZ_0 else set(idata.children)


# ---- what there is -------------------------------------------------------------------------------


def test_groups_and_their_dimensions():
    idata = to_arviz(schools_run())
    default = {"posterior", "sample_stats", "log_likelihood", "observed_data", "constant_data"}
    assert names(idata) == default
    assert names(everything()) == default | set(ON_REQUEST)
    assert set(idata.posterior.data_vars) == {"mu", "tau", "z", "theta"}
    for group in ("posterior", "log_likelihood", "observed_data"):
        for name in {"z", "theta", "y"} & set(idata[group].data_vars):
            assert idata[group][name].dims[-1] == "schools"
    assert set(idata.constant_data.data_vars) == {"error"}
    np.testing.assert_array_equal(idata.constant_data["error"], ERROR)
    np.testing.assert_array_equal(idata.observed_data["y"], Y)


def test_groups_on_request_and_their_dimensions():
    idata = everything()
    assert idata.posterior_predictive["y"].sizes == {"chain": 4, "draw": 50, "schools": 8}
    assert idata.prior_predictive["y"].sizes == {"chain": 1, "draw": 200, "schools": 8}
    assert set(idata.prior.data_vars) == {"mu", "tau", "z", "theta"}
    assert idata.log_prior["z"].dims == ("chain", "draw", "schools")
    assert idata.unconstrained_posterior["tau"].dims == ("chain", "draw")
    np.testing.assert_allclose(  # float32 of the run, and of the exponential
        np.exp(idata.unconstrained_posterior["tau"]), idata.posterior["tau"], rtol=1e-5
    )


def test_deterministic_sites_are_those_of_pyros_predictive():
    run, idata = schools_run(), to_arviz(schools_run())
    draws = run.get_samples()
    assert "theta" not in draws  # as in Pyro's MCMC
    theirs = Predictive(eight_schools, draws)(ERROR, Y)["theta"]
    ours = idata.posterior["theta"].values.reshape(-1, SCHOOLS)
    np.testing.assert_allclose(ours, theirs.reshape(-1, SCHOOLS), rtol=1e-4, atol=1e-4)


def test_log_densities_add_up_to_lp():
    """The sum of all log densities is lp, but for the Jacobian of the one constrained site."""
    idata = everything()
    total = idata.log_likelihood["y"].sum("schools") + idata.log_prior["z"].sum("schools")
    total = total + idata.log_prior["mu"] + idata.log_prior["tau"]
    jacobian = idata.unconstrained_posterior["tau"]  # d exp(u) / du
    np.testing.assert_allclose(total + jacobian, idata.sample_stats["lp"], rtol=1e-4)


def test_labels_of_a_plate():
    labels = [f"school {i}" for i in range(SCHOOLS)]
    idata = to_arviz(schools_run(), coords={"schools": labels})
    assert float(idata.observed_data["y"].sel(schools="school 6")) == 18
    assert idata.posterior["theta"].sel(schools="school 6").shape == (CHAINS, DRAWS)


def test_names_in_place_of_those_of_a_plate():
    idata = to_arviz(schools_run(), dims={"theta": ["place"], "y": ["place"], "error": ["place"]})
    assert idata.posterior["theta"].dims == idata.log_likelihood["y"].dims
    assert idata.constant_data["error"].dims == ("place",)
    assert idata.posterior["z"].dims[-1] == "schools"
    with pytest.raises(ValueError, match=r"\['thetas'\] are no variables"):
        to_arviz(schools_run(), dims={"thetas": ["place"]})


def test_unconstrained_values_of_other_shapes(tmp_path):
    def model(y):
        with pyro.plate("people", 2):
            share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
            pyro.sample("y", dist.Multinomial(5, share), obs=y)

    run = run_of(model, torch.tensor([[1.0, 2.0, 2.0], [0.0, 4.0, 1.0]]))
    idata = to_arviz(run, groups=["unconstrained_posterior"], dims={"share": [None, "party"]})
    assert idata.posterior["share"].dims[2:] == ("people", "party")
    assert idata.unconstrained_posterior["share"].dims[2:] == ("people", "share_event_dim_1")
    assert idata.unconstrained_posterior["share"].shape[2:] == (2, 2)
    idata.to_netcdf(tmp_path / "draws.nc")


def test_a_guide_has_the_groups_too():
    guide = AutoFlow(conjugate, flow="gaussian", options=QUICK)
    guide.fit(*conjugate_data())
    idata = to_arviz(guide, *conjugate_data(), groups=ON_REQUEST, num_samples=30)
    assert idata.prior["mean"].shape == idata.posterior["mean"].shape == (1, 30)
    assert idata.posterior_predictive["y"].shape == (1, 30, 3)
    assert idata.log_likelihood["y"].dims == ("chain", "draw", "data")
    assert idata.posterior["superchain"].values.tolist() == [0]


def test_random_groups_follow_pyros_seed():
    def made():
        pyro.set_rng_seed(5)
        return to_arviz(schools_run(), groups=["posterior_predictive", "prior"], num_samples=10)

    first, second = made(), made()
    for group, name in (("posterior_predictive", "y"), ("prior", "mu")):
        np.testing.assert_array_equal(first[group][name], second[group][name])
    assert not np.array_equal(
        first.posterior_predictive["y"], to_arviz(schools_run(), groups=["posterior_predictive"])
    )


def test_netcdf(tmp_path):
    everything().to_netcdf(tmp_path / "draws.nc")
    again = az.from_netcdf(tmp_path / "draws.nc")
    for group in names(everything()):
        assert again[group].equals(everything()[group])


# ---- chains that start together ------------------------------------------------------------------


def test_superchains_are_chains_that_start_at_one_point():
    start = torch.tensor([3.0, -1.0, 3.0, -1.0])
    params = {"mean": start, "rate": torch.zeros(4)}
    run = run_of(conjugate, *conjugate_data(), initial_params=params)
    assert to_arviz(run).posterior["superchain"].values.tolist() == [0, 1, 0, 1]
    run.resume(5)
    assert to_arviz(run).posterior["superchain"].values.tolist() == [0, 1, 0, 1]
    run.resume(5, initial_params={"mean": torch.zeros(2), "rate": torch.zeros(2)})
    assert to_arviz(run).posterior["superchain"].values.tolist() == [0, 0]
    free = to_arviz(schools_run()).posterior
    assert free["superchain"].dims == ("chain",)
    assert free["superchain"].values.tolist() == [0, 1, 2, 3]


def test_rows_are_numbered_in_order():
    x = torch.tensor([[2.0, 1.0], [0.0, 5.0], [2.0, 1.0], [2.0, 0.0]])
    assert numbered(x).tolist() == [0, 1, 0, 2]


# ---- names that ArviZ uses -----------------------------------------------------------------------


def test_sites_with_names_of_coordinates_get_others():
    def model(y):
        chain = pyro.sample("chain", dist.Normal(0.0, 1.0))
        pyro.deterministic("draw", 2 * chain)
        with pyro.plate("superchain", 3):
            pyro.sample("y", dist.Normal(chain, 1.0), obs=y)

    run = run_of(model, data(1.0, 2.0, 0.0))
    with pytest.warns(UserWarning) as caught:
        idata = to_arviz(run, groups=["prior"], num_samples=5, dims={"y": ["who"]})
    assert sorted(str(w.message).split("'")[1] for w in caught) == ["chain", "draw"]
    assert all(w.filename == __file__ for w in caught)
    assert set(idata.posterior.data_vars) == {"chain_", "draw_"} == set(idata.prior.data_vars)
    draws = run.get_samples(group_by_chain=True)["chain"]
    np.testing.assert_allclose(idata.posterior["draw_"], 2 * draws)
    assert {"chain_", "draw_"} <= set(az.summary(idata).index)
    assert to_arviz_quietly(run).observed_data["y"].dims == ("y_dim_0",)


def test_names_with_slashes_get_dots(tmp_path):
    """Those of scopes; a DataTree and a file would read them as paths."""

    @scope(prefix="part")
    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("people", 3):
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    run = run_of(model, data(1.0, 2.0, 0.0))
    with pytest.warns(UserWarning) as caught:
        idata = to_arviz(run, groups=["posterior_predictive"])
    assert sorted(str(w.message)[:12] for w in caught) == ["'part/x' has", "'part/y' has"]
    assert set(idata.posterior.data_vars) == {"part.x"}
    assert idata.posterior_predictive["part.y"].dims[2:] == idata.observed_data["part.y"].dims
    assert "/" not in idata.observed_data["part.y"].dims[0]
    idata.to_netcdf(str(tmp_path / "draws.nc"))
    with pytest.raises(ValueError, match=r"dims\['part.y'\]: 'a/b' has a slash"):
        to_arviz_quietly(run, dims={"part/y": ["a/b"]})


def to_arviz_quietly(run, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return to_arviz(run, **options)


# ---- what is left out, and what is refused -------------------------------------------------------


@pytest.mark.parametrize(
    "groups, message",
    [
        ("prior", r"must be a list of names: \['prior'\]"),
        (["priors"], r"\['priors'\] are not among those .*'prior_predictive'"),
        (["posterior"], "always made where they can be"),
    ],
    ids=["text", "unknown", "always there"],
)
def test_groups_that_cannot_be_asked_for(groups, message):
    with pytest.raises(ValueError, match=message):
        to_arviz(schools_run(), groups=groups)


def left_out(run, **options):
    with pytest.warns(UserWarning) as caught:
        idata = to_arviz(run, **options)
    assert all(w.filename == __file__ for w in caught)
    return names(idata), " | ".join(str(w.message) for w in caught), idata


def test_sites_that_were_not_saved():
    run = run_of(eight_schools, ERROR, Y, save_params=["mu", "z"])
    groups = ["posterior_predictive", "log_prior", "unconstrained_posterior", "prior"]
    made, message, idata = left_out(run, groups=groups, num_samples=3)
    assert set(idata.posterior.data_vars) == {"mu", "z"}
    assert set(idata.unconstrained_posterior.data_vars) == {"mu", "z"}
    assert not {"posterior_predictive", "log_prior", "log_likelihood"} & made and "prior" in made
    for what in ("deterministic sites ['theta']", "no log_prior", "no posterior_predictive"):
        assert what in message
    assert message.count("['tau'] were not saved") == 4


def test_groups_that_would_be_too_large(monkeypatch):
    monkeypatch.setattr(groups_module, "MAX_NUMBERS", SCHOOLS * CHAINS * DRAWS - 1)
    made, message, idata = left_out(schools_run(), groups=ON_REQUEST, num_samples=10_000)
    assert made == {
        "posterior", "sample_stats", "observed_data", "constant_data", "unconstrained_posterior"
    }  # fmt: skip
    assert "theta" not in idata.posterior and message.count("numbers; draw or keep fewer") == 5


def test_priors_that_cannot_be_drawn_from():
    def improper(y):
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    def masked(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0).mask(False))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    for model, reason in ((improper, "NotImplementedError"), (masked, r"masked or scaled")):
        made, message, _ = left_out(
            run_of(model, torch.tensor(1.0)), groups=["prior", "prior_predictive"]
        )
        assert reason in message and not {"prior", "prior_predictive"} & made


def test_a_model_without_data_has_a_prior():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    groups = ["prior", "prior_predictive", "posterior_predictive"]
    made, message, _ = left_out(run_of(model), groups=groups)
    assert "prior" in made and message.count("the model observes no data") == 2


def test_a_posterior_without_a_model():
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    run = VectorizedMCMC(IMH(target), 5, 5, 3, disable_progbar=True)
    run.kernel.guide = AutoFlow(target, flow="gaussian", options=QUICK)
    run.run()
    made, message, idata = left_out(run, groups=["prior", "unconstrained_posterior"])
    assert "without a model" in message and "prior" not in made
    np.testing.assert_array_equal(idata.posterior["x"], idata.unconstrained_posterior["x"])


def test_discrete_sites():
    """What depends on them is left out; new data and the prior have draws of them."""

    def model(y):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        pyro.deterministic("odds", p / (1 - p))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Bernoulli(p))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    made, message, idata = left_out(run_of(model, data(1.0, 0.0)), groups=ON_REQUEST, num_samples=9)
    assert message.count("discrete sites, which were summed out") == 3
    assert "odds" not in idata.posterior and "log_prior" not in made
    assert idata.posterior_predictive["y"].dims[-1] == "data"
    assert idata.prior["z"].shape == (1, 9, 2) and idata.prior["z"].dims[-1] == "data"


def test_errors_of_the_model_do_not_lose_the_draws(monkeypatch):
    def fails(*args):
        raise RuntimeError("no matrix")

    monkeypatch.setattr(groups_module, "replicated_data", fails)
    made, message, _ = left_out(schools_run(), groups=["posterior_predictive"])
    assert "RuntimeError: no matrix" in message and "posterior" in made


def test_groups_at_several_contexts_are_refused():
    def model(scale):
        pyro.sample("x", dist.Normal(0.0, scale))

    scales = torch.tensor([1.0, 2.0])
    guide = AutoFlow(model, context=["scale"], options=FitOptions(max_steps=5, progress=False))
    guide.fit(scales)
    with pytest.raises(ValueError, match="2 contexts"):
        to_arviz(guide, scales, groups=["prior"])
    assert set(to_arviz(guide, scales, num_samples=5).posterior.sizes) == {"chain", "draw", "scale"}


def test_arguments_that_are_constant_data():
    def model(x, y, *rest, flag=True, **more):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(w * x, 1.0).to_event(1), obs=y + 0)

    x, y, z = torch.ones(2), torch.zeros(2), torch.ones(1)
    target = Target.from_model(model, x, y, "text", extra=z)
    found = constant_data(target, model_variables(target).data)
    assert set(found) == {"x", "y", "extra"}  # y was changed before it was observed


# ---- scales --------------------------------------------------------------------------------------


def test_log_likelihood_has_no_scale():
    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 2), poutine.scale(scale=5.0):
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    run = run_of(model, data(1.0, 2.0))
    idata = to_arviz(run)
    x = torch.tensor(idata.posterior["x"].values)[..., None]
    expected = dist.Normal(x, 1.0).log_prob(data(1.0, 2.0))
    np.testing.assert_allclose(idata.log_likelihood["y"], expected, rtol=1e-5)


# ---- sample() ------------------------------------------------------------------------------------


def line(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("point", len(x)):
        mean = pyro.deterministic("mean", slope * x)
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_sample_names_dimensions():
    x = torch.arange(3.0)
    idata = sample(
        line, x, x.clone(), seed=0, num_samples=20, num_chains=10, progress=False,
        log_likelihood=True, dims={"x": ["place"]}, coords={"point": ["a", "b", "c"]},
    )  # fmt: skip
    assert idata.posterior["mean"].dims == ("chain", "draw", "point")
    assert idata.posterior["mean"].sel(point="c").shape == (10, 20)
    assert idata.constant_data["x"].dims == ("place",)
    assert "superchain" in idata.posterior.coords


def test_sample_refuses_unknown_names_before_it_searches(monkeypatch):
    monkeypatch.setattr("pyro_flowsamp.sampling.sample.SamplerSearch", None)
    with pytest.raises(ValueError, match=r"\['slopes'\] are no variables"):
        sample(line, torch.ones(2), torch.ones(2), dims={"slopes": ["a"]})
    with pytest.raises(ValueError, match="3 labels, but this dimension has the size 2"):
        sample(line, torch.ones(2), torch.ones(2), coords={"point": "abc"})


# ---- ArviZ works on it ---------------------------------------------------------------------------


def quietly(function, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a Pareto k of few draws, styles of matplotlib
        return function(*args, **options)


def test_loo_and_summary():
    loo = quietly(az.loo, everything(), var_name="y")
    assert np.isfinite(loo.elpd_loo if ARVIZ_0 else loo.elpd)
    assert {"mu", "tau", "theta[0]", "z[7]"} <= set(az.summary(everything()).index)
    extracted = az.extract(everything(), num_samples=5)
    assert "superchain" in extracted.coords


@pytest.mark.skipif(not ARVIZ_0, reason="plots of ArviZ 0.x")
@pytest.mark.parametrize(
    "name, options",
    [
        ("plot_ppc", {"num_pp_samples": 5}),
        ("plot_ppc", {"group": "prior", "num_pp_samples": 5}),
        ("plot_loo_pit", {"y": "y"}),
        ("plot_dist_comparison", {"var_names": ["mu"]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_plots(name, options, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    quietly(getattr(az, name), everything(), **options)
    plt.close("all")


@ONLY_1
def test_nested_r_hat_of_arviz():
    start = torch.tensor([3.0, -1.0, 3.0, -1.0])
    params = {"mean": start, "rate": torch.zeros(4)}
    idata = to_arviz(run_of(conjugate, *conjugate_data(), initial_params=params))
    found = az.rhat_nested(idata, superchain_ids=idata.posterior["superchain"].values)
    assert 0.9 < float(found["mean"]) < 2


@ONLY_1
def test_sensitivity_to_the_prior():
    table = quietly(az.psense_summary, everything(), var_names=["mu", "tau"])
    assert np.isfinite(table.loc["mu", "prior"])


@ONLY_1
def test_loo_of_a_guide():
    guide = AutoFlow(conjugate, flow="gaussian", options=QUICK)
    guide.fit(*conjugate_data())
    idata = to_arviz(guide, *conjugate_data(), num_samples=500)
    stats = idata.sample_stats
    found = quietly(az.loo_approximate_posterior, idata, stats["lp"], stats["log_q"], var_name="y")
    assert np.isfinite(found.elpd)


@ONLY_1
def test_predictive_checks_of_arviz_1():
    quietly(az.plot_ppc_pit, everything(), backend="none")
