"""AutoFlow works wherever Pyro takes a guide, and trains itself."""

import copy
import io
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
import zuko
from pyro.infer import MCMC, NUTS, SVI, Importance, Predictive, Trace_ELBO
from pyro.infer.reparam import NeuTraReparam
from support import models
from support.models import CONJUGATE_LOG_EVIDENCE, CONJUGATE_TRUTH, QUICK, conjugate, location
from torch.testing import assert_close

from pyro_flowsamp import IMH, AutoFlow, FitOptions, ForwardKL, ReverseKL, Target, VectorizedMCMC
from pyro_flowsamp.flows import DiagnosticOptions
from pyro_flowsamp.guides import GuideOptions, InitialFitOptions
from pyro_flowsamp.training.train import fit


@pytest.fixture
def data():
    return models.conjugate_data()


@pytest.fixture
def guide():
    return models.conjugate_guide()


def assert_truth(samples, within=0.1):
    """Means of draws against the posterior's, in posterior standard deviations."""
    for name, (mean, sd) in CONJUGATE_TRUTH.items():
        assert abs(float(samples[name].detach().mean()) - mean) < within * sd, name


# ---- Pyro's algorithms -------------------------------------------------------------------------


@pytest.mark.parametrize("flow", ["coupling", zuko.flows.MAF(2, transforms=2)])
def test_svi(data, flow):
    guide = AutoFlow(conjugate, flow=flow)
    elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(conjugate, guide, pyro.optim.Adam({"lr": 0.02}), elbo)
    losses = [svi.step(*data) for _ in range(60)]
    assert losses[0] > -CONJUGATE_LOG_EVIDENCE + 1
    assert sum(losses[-10:]) / 10 == pytest.approx(-CONJUGATE_LOG_EVIDENCE, abs=0.5)
    store, flow = pyro.get_param_store(), guide.flow
    before = {name: value.detach().clone() for name, value in flow.named_parameters()}
    svi.step(*data)
    for name, parameter in flow.named_parameters():
        assert store[f"AutoFlow.flow$$${name}"] is parameter
        assert not torch.equal(parameter, before[name])


def test_vectorized_particles(data, guide):
    elbo = Trace_ELBO(num_particles=256, vectorize_particles=True, max_plate_nesting=1)
    loss = elbo.loss(conjugate, guide, *data)
    assert loss == pytest.approx(-CONJUGATE_LOG_EVIDENCE, abs=0.2)


@pytest.mark.slow
def test_predictive(data, guide):
    samples = Predictive(conjugate, guide=guide, num_samples=500)(*data)
    assert_truth(samples, within=0.3)
    assert samples["y"].shape[-1] == 3


@pytest.mark.slow
def test_importance(data, guide):
    posterior = Importance(conjugate, guide, num_samples=200).run(*data)
    assert posterior.get_ESS() > 100
    assert float(posterior.get_log_normalizer()) == pytest.approx(CONJUGATE_LOG_EVIDENCE, abs=0.1)


@pytest.mark.slow
def test_neutra(data, guide):
    neutra = NeuTraReparam(guide)
    nuts = NUTS(neutra.reparam(conjugate), step_size=0.5, adapt_step_size=False, max_tree_depth=3)
    mcmc = MCMC(nuts, num_samples=100, warmup_steps=10, disable_progbar=True)
    mcmc.run(*data)
    (latent,) = mcmc.get_samples().values()
    assert_truth(neutra.transform_sample(latent), within=0.5)


@pytest.mark.parametrize("arguments", [True, False], ids=["with arguments", "without"])
def test_median_and_quantiles(data, guide, arguments):
    args = data if arguments else ()  # as Pyro's own guides, which know their prototype
    median = guide.median(*args)
    low, middle, high = guide.quantiles([0.05, 0.5, 0.95], *args)["rate"]
    gamma = torch.distributions.Gamma(11.0, 4.0).sample((100_000,))
    truth = gamma.quantile(torch.tensor([0.05, 0.5, 0.95]))
    assert_close(torch.stack([low, middle, high]), truth, atol=0.25, rtol=0.0)
    assert_close(median["rate"], truth[1], atol=0.1, rtol=0.0)
    assert median["mean"].shape == ()


def test_median_of_a_target():
    target = Target.from_model(conjugate, *models.conjugate_data())
    guide = AutoFlow(target, options=QUICK)
    guide.fit()
    assert 2 < guide.median()["rate"] < 3.5  # constrained


# ---- saving ------------------------------------------------------------------------------------


def _draw(guide, data):
    proposal = guide.proposal(*data)
    pyro.set_rng_seed(3)
    return proposal.sample_and_log_prob(5)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before first use", "after"])
def test_state_dict(data, guide, when):
    new = AutoFlow(conjugate, options=QUICK)
    if when == "after":
        new.target_for(*data)
    buffer = io.BytesIO()
    torch.save(guide.state_dict(), buffer)
    buffer.seek(0)
    new.load_state_dict(torch.load(buffer, weights_only=True))
    assert_close(_draw(new, data), _draw(guide, data))
    assert new.trained
    assert_truth(Predictive(conjugate, guide=new, num_samples=300)(*data), within=0.3)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_pickle(data, guide, how):
    buffer = io.BytesIO()
    dump, load = (pickle.dump, pickle.load) if how == "pickle" else (torch.save, torch.load)
    dump(guide, buffer)
    buffer.seek(0)
    new = load(buffer) if how == "pickle" else load(buffer, weights_only=False)
    assert_close(_draw(new, data), _draw(guide, data))
    assert new.trained and new.history == guide.history
    mcmc = VectorizedMCMC(IMH(conjugate, guide=new), 20, 0, 50, disable_progbar=True)
    mcmc.run(*data)
    assert_truth(mcmc.get_samples(), within=0.3)


# ---- flows -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda features: zuko.flows.NSF(features, passes=2, transforms=2, hidden_features=(32,)),
        lambda features: zuko.flows.MAF(features, transforms=2, hidden_features=(32,)),
    ],
    ids=["NSF", "MAF"],
)
@pytest.mark.parametrize("built", [True, False], ids=["module", "recipe"])
def test_any_zuko_flow(data, make, built):
    def recipe(features, context, **kwargs):
        return make(features)

    options = FitOptions(max_steps=200, learning_rate=0.01, progress=False)
    guide = AutoFlow(conjugate, flow=make(2) if built else recipe, options=options)
    assert guide.fit(*data).final_ess > 0.3
    mcmc = VectorizedMCMC(IMH(conjugate, guide=guide), 50, 20, 50, disable_progbar=True)
    mcmc.run(*data)
    assert_truth(mcmc.get_samples(), within=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("flow, dtype", [("spline", torch.float32), ("coupling", torch.float64)])
def test_context(flow, dtype):
    options = FitOptions(max_steps=150, batch_size=128, learning_rate=0.01, progress=False)
    guide = AutoFlow(location, flow=flow, context=["y"], options=options)
    history = guide.fit(4 * torch.rand(64, 2, dtype=dtype) - 2)
    assert history.final_ess > 0.5
    for y in torch.tensor([[1.5, -1.5], [-1.0, 0.5]], dtype=dtype):
        samples = Predictive(location, guide=guide, num_samples=200)(y)["x"]
        assert samples.dtype == dtype
        assert_close(samples.mean(0), y / 2, atol=0.2, rtol=0.0)
        assert_close(guide.median(y)["x"], y / 2, atol=0.2, rtol=0.0)
        mcmc = VectorizedMCMC(IMH(location, guide=guide), 50, 10, 50, disable_progbar=True)
        mcmc.run(y)  # the same guide, exact for each argument
        assert_close(mcmc.get_samples()["x"].mean(0), y / 2, atol=0.1, rtol=0.0)


def test_context_by_keyword():
    guide = AutoFlow(location, context=["y"], options=QUICK)
    guide.fit(y=torch.zeros(8, 2))
    assert guide.median(y=torch.zeros(2))["x"].shape == (2,)


# ---- training ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_ensemble(data):
    rate = torch.distributions.Gamma(11.0, 4.0).sample((1000,))
    mean = torch.distributions.Normal(0.75, 0.5).sample((1000,))
    guide = AutoFlow(conjugate, ensemble={"rate": rate, "mean": mean}, options=QUICK)
    assert guide.fit(*data).final_ess > 0.7
    target = Target.from_model(conjugate, *data)
    of_points = AutoFlow(
        conjugate, ensemble=lambda target: target.pack({"mean": mean, "rate": rate}), options=QUICK
    )
    assert of_points.fit(*data).final_ess > 0.7
    assert ForwardKL(target.pack({"mean": mean, "rate": rate})).draws.shape == (1000, 2)


@pytest.mark.parametrize("flow", ["gaussian", "coupling"])
def test_history(flow):
    options = FitOptions(max_steps=70, eval_every=50, stop_at_ess=1.0, progress=False)
    guide = AutoFlow(models.schools, flow=flow, options=options)
    history = guide.fit(torch.tensor([0.5, -1.0, 2.0]))
    assert history is guide.history
    assert history.steps == 70 and history.stopped == "max_steps" and history.skipped == 0
    assert len(history.loss) == len(history.ess) == 2  # a window of 50, and what is left
    for ess in (history.gaussian_ess, history.final_ess, *history.ess):
        assert 0 < ess <= 1
    assert history.pareto_k == history.pareto_k and 0 < history.log_q_error < 1e-2
    assert history.seconds > 0 and history.evaluations > 70 * 256


def test_a_gaussian_posterior_needs_no_flow():
    guide = AutoFlow(location, options=FitOptions(progress=False))
    history = guide.fit(torch.ones(2))
    assert history.stopped == "gaussian" and history.steps == 0 and guide.flow.depth == 0
    assert history.gaussian_ess > 0.99 and history.final_ess > 0.99


EDGES = {
    "half space": lambda x: torch.where(x[:, 0] > 0, 0.5 * x.square().sum(-1), torch.inf),
    "corner": lambda x: torch.where((x > 0).all(-1), x.sum(-1), torch.inf),
    "box": lambda x: torch.where((x.abs() < 1).all(-1), 0 * x.sum(-1), torch.inf),
}


@pytest.mark.parametrize("edge", EDGES)
def test_gaussian_of_a_target_with_edges(edge):
    guide = AutoFlow(Target.from_energy(EDGES[edge], 2), flow="gaussian", options=QUICK)
    assert guide.fit().gaussian_ess > 0.05
    draws = guide.proposal().sample_and_log_prob(1000)[0]
    assert torch.isfinite(guide.target_for().log_prob(draws)).float().mean() > 0.4


@pytest.mark.slow
def test_second_fit_continues(data):
    guide = AutoFlow(models.schools, objective=ReverseKL(), options=QUICK)
    y = torch.tensor([0.5, -1.0, 2.0])
    first = guide.fit(y)
    loc = guide.flow.affine.loc.clone()
    second = guide.fit(y)
    assert_close(guide.flow.affine.loc, loc)  # not initialised again
    assert second.loss[0] < first.loss[0]
    assert second.evaluations < first.evaluations


@pytest.mark.parametrize("name", ["max_steps", "batch_size", "eval_every", "patience"])
def test_fit_options(name):
    with pytest.raises(ValueError, match=f"FitOptions.{name} must be at least 1, got 0"):
        FitOptions(**{name: 0})
    with pytest.raises(ValueError, match="decay must lie between 0 and 1"):
        FitOptions(lr_decay=1.0)


def test_options_of_diagnostics(data):
    made = AutoFlow(conjugate, options=QUICK)
    made.guide_options = GuideOptions(DiagnosticOptions(num_draws=512), -1.0, num_summary=16)
    with pytest.warns(UserWarning, match="sampling and scoring disagree on log q by"):
        made.fit(*data)
    assert made.median(*data).keys() == CONJUGATE_TRUTH.keys()


def test_options_of_the_first_fit():
    """The Gaussian is good enough, unless its effective sample size is not trusted."""
    normal = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    options = FitOptions(max_steps=5, progress=False)
    assert AutoFlow(normal, options=options).fit().stopped == "gaussian"
    strict = InitialFitOptions(num_starts=8, max_pareto_k=-torch.inf)
    assert AutoFlow(normal, options=options, initial=strict).fit().steps == 5


def test_nothing_to_train():
    with pytest.raises(ValueError, match="no trainable parameter"):
        fit([], lambda: None, lambda w: w)


# ---- plates, copies and states -------------------------------------------------------------------


def grouped(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", len(y)):
        level = pyro.sample("level", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(level, 1.0), obs=y)


def test_a_guide_never_fitted_in_plates():
    y, elbo = torch.arange(3.0), Trace_ELBO()
    SVI(grouped, AutoFlow(grouped), pyro.optim.Adam({"lr": 1e-2}), elbo).step(y)
    drawn = Predictive(grouped, guide=AutoFlow(grouped), num_samples=3)(y)
    assert drawn["level"].shape == (3, 3)


@pytest.mark.parametrize("num", [1, 3])
def test_medians_in_plates(num):
    """E[level | y] = Σ (Σ + I)⁻¹ y, where Σ = I + 11ᵀ."""
    y = torch.arange(float(num)) + 1
    guide = AutoFlow(grouped, options=FitOptions(max_steps=200, progress=False))
    guide.fit(y)
    prior = torch.eye(num) + 1
    truth = prior @ torch.linalg.solve(prior + torch.eye(num), y)
    for median in (guide.median(y), guide.median(), guide.quantiles([0.5], y)):
        level = median["level"].reshape(-1)
        assert (level - truth).abs().max() < 0.1
    assert guide.median(y)["level"].shape == (num,)
    assert guide.quantiles([0.1, 0.9], y)["level"].shape == (2, num)


def rooted():
    x = pyro.sample("x", dist.Normal(0.0, 2.0))
    pyro.sample("y", dist.Normal(x.sqrt(), 1.0), obs=torch.tensor(1.0))


@pytest.mark.parametrize("seed", range(6))
def test_density_that_is_not_a_number_on_one_side(seed):
    """Wherever the first look at the model takes it."""
    pyro.set_rng_seed(seed)
    AutoFlow(rooted, options=FitOptions(max_steps=2, progress=False)).fit()


@pytest.mark.slow
def test_a_deep_copy_knows_its_model(guide, data):
    copied = copy.deepcopy(guide)
    before = {name: value.clone() for name, value in guide.flow.named_parameters()}
    copied.fit(*data)
    assert copied.median(*data).keys() == CONJUGATE_TRUTH.keys()
    assert all(before[name].equal(value) for name, value in guide.flow.named_parameters())
    assert not all(before[name].equal(value) for name, value in copied.flow.named_parameters())


def test_an_unpickled_guide_asks_for_its_model(guide, data):
    again = pickle.loads(pickle.dumps(guide))
    for use in (again.fit, again.target_for, again, again.median):
        with pytest.raises(ValueError, match=r"guide.restore_model\(model\)"):
            use(*data)
    again.restore_model(conjugate)
    again(*data)
    assert again.median().keys() == guide.median().keys() == copy.deepcopy(guide).median().keys()


def test_a_state_without_a_flow():
    with pytest.raises(ValueError, match="this state holds no flow"):
        AutoFlow(conjugate).load_state_dict(AutoFlow(conjugate).state_dict())


def test_an_untrained_state_stays_untrained(data):
    untrained = AutoFlow(conjugate)
    untrained.target_for(*data)
    loaded = AutoFlow(conjugate)
    loaded.load_state_dict(untrained.state_dict())
    assert not loaded.trained
    loaded.target_for(*data)
    assert not loaded.trained


def test_a_target_takes_no_arguments():
    target = Target.from_energy(models.energy, 2)
    with pytest.raises(ValueError, match="takes no model arguments"):
        AutoFlow(target).fit(torch.zeros(2))


def test_another_precision(guide, data):
    with pytest.raises(ValueError, match="flow is of torch.float32, .* torch.float64"):
        guide.fit(*(v.double() for v in data))
