"""What a user of Pyro writes out of habit works here as it does with Pyro's own inference."""

import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.infer.mcmc.util import initialize_model
from pyro.infer.reparam import (
    LatentStableReparam,
    ProjectedNormalReparam,
    StudentTReparam,
    TransformReparam,
)
from support.models import QUICK, conjugate, conjugate_data
from torch import nan, tensor
from torch.testing import assert_close

from pyro_flowsamp import (
    IMH,
    AutoAdvNF,
    AutoAnnealingFlow,
    AutoDeformationFlow,
    AutoFlow,
    FitOptions,
    LatentMALA,
    Target,
    VectorizedMCMC,
    sample,
)
from pyro_flowsamp.guides.deformation import DeformationOptions


def z_score(draws, truth):
    """The deviation of a mean over independent chains ``(C, n)``, in its standard errors."""
    means = draws.double().mean(1)
    return abs(float((means.mean() - truth) / (means.std() / len(means) ** 0.5)))


def vectorized(kernel, *args, **options):
    defaults = {"num_samples": 20, "warmup_steps": 10, "num_chains": 200}
    mcmc = VectorizedMCMC(kernel, **{**defaults, **options}, disable_progbar=True)
    mcmc.run(*args)
    return mcmc.get_samples(group_by_chain=True)


def sequential(kernel, *args, **options):
    defaults = {"num_samples": 100, "warmup_steps": 10}
    mcmc = MCMC(kernel, **{**defaults, **options}, disable_progbar=True)
    mcmc.run(*args)
    return mcmc.get_samples(group_by_chain=True)


@pytest.fixture
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# ---- a potential, and the arguments of a model ---------------------------------------------------


@pytest.mark.parametrize("kernel", [IMH, LatentMALA])
def test_a_potential_ignores_the_arguments_of_a_model(kernel):
    """As NUTS does."""

    def potential(q):
        return (q["x"] - 2).square().sum() / 2

    starts = {"x": torch.zeros(200, 1)}
    draws = vectorized(kernel(potential_fn=potential), torch.ones(3), initial_params=starts)
    assert z_score(draws["x"][..., 0], 2.0) < 4
    single = sequential(
        kernel(potential_fn=potential), torch.ones(3), initial_params={"x": torch.zeros(1)}
    )
    assert single["x"].shape == (1, 100, 1)


# ---- a guide of a part of a model ----------------------------------------------------------------


def part(make=AutoFlow, **options):
    return make(poutine.block(conjugate, hide=["rate"]), **options)


def test_a_guide_of_a_part_in_a_list_is_trained_by_svi():
    """The two posteriors are independent, so each part has its own of them."""
    pyro.clear_param_store()
    args, guide = conjugate_data(), AutoGuideList(conjugate)
    guide.append(part(flow="gaussian"))
    guide.append(AutoNormal(poutine.block(conjugate, expose=["rate"])))
    elbo = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(conjugate, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.95}), elbo)
    for _ in range(80):
        svi.step(*args)
    draws = guide[0].get_posterior(*args).sample((1000,))
    assert abs(float(draws.mean()) - 0.75) < 0.15
    assert abs(float(draws.std()) - 0.5) < 0.15
    assert guide.median(*args).keys() == {"mean", "rate"}


@pytest.mark.parametrize("make", [AutoAdvNF, AutoAnnealingFlow, AutoDeformationFlow])
@pytest.mark.filterwarnings("ignore:this AutoAnnealingFlow is its reference")
def test_any_guide_of_a_part(make):
    pyro.clear_param_store()
    guide = AutoGuideList(conjugate)
    guide.append(part(make))
    guide.append(AutoNormal(poutine.block(conjugate, expose=["rate"])))
    svi = SVI(conjugate, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert svi.step(*conjugate_data()) < 1e3


@pytest.mark.parametrize(
    "use",
    [
        lambda *args: part().fit(*args),
        lambda *args: vectorized(IMH(guide=part()), *args),
        lambda *args: vectorized(IMH(poutine.block(conjugate, hide=["rate"])), *args),
        lambda *args: sequential(LatentMALA(guide=part()), *args),
    ],
)
def test_a_part_has_no_density(use):
    with pytest.raises(RuntimeError, match="Give the whole model, if poutine.block hides"):
        use(*conjugate_data())


# ---- reparametrisations --------------------------------------------------------------------------


def direction():
    pyro.sample("x", dist.ProjectedNormal(tensor([1.0, 2.0, 0.0])))


def stable():
    pyro.sample("x", dist.Stable(1.5, 0.2, 1.0, 0.0))


@pytest.mark.parametrize(
    "model, how, prior",
    [
        (direction, ProjectedNormalReparam(), dist.Normal(torch.zeros(3), 1.0).to_event(1)),
        (
            lambda: pyro.sample("x", dist.LogNormal(3.0, 2.0)),
            TransformReparam(),
            dist.Normal(3.0, 2.0).expand([1]).to_event(1),
        ),
    ],
)
def test_reparametrised_sites_have_initial_values(model, how, prior):
    """A sphere has no bijection onto it, but points that Pyro begins at."""
    target = Target.from_model(poutine.reparam(model, {"x": how}))
    points = torch.randn(5, target.dim)
    assert_close(target.log_prob(points), prior.log_prob(points))
    guide = AutoFlow(poutine.reparam(model, {"x": how}), flow="gaussian", options=QUICK)
    assert guide.fit().final_ess > 0.99


@pytest.mark.filterwarnings("ignore:the density is evaluated")
def test_initial_values_make_no_reparametrisation_warn():
    def model():
        stable()
        pyro.sample("t", dist.StudentT(3.0, 0.0, 1.0))

    how = {"x": LatentStableReparam(), "t": StudentTReparam()}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*does not commute with initialization")
        guide = AutoFlow(poutine.reparam(model, how))
        guide()
        Target.from_model(poutine.reparam(model, how))


# ---- mixtures in enumerated models ---------------------------------------------------------------


def zero_inflated(steps, shown=None, zero=1e-6):
    """A hidden Markov model whose steps may be zero, as in Pyro's mixed HMM example."""
    probs = pyro.sample("probs", dist.Dirichlet(3 * torch.eye(2) + 1).to_event(1))
    inflation = pyro.sample("inflation", dist.Beta(torch.ones(2), 9.0).to_event(1))
    rate = pyro.sample("rate", dist.Gamma(torch.ones(2), 1.0).to_event(1))
    shown = ~steps.isnan() if shown is None else shown
    with pyro.plate("individuals", len(steps), dim=-1):
        x = 0
        for t in pyro.markov(range(steps.shape[1])):
            x = pyro.sample(f"x_{t}", dist.Categorical(probs[x]), infer={"enumerate": "parallel"})
            none = pyro.sample(f"none_{t}", dist.Bernoulli(inflation[x]))
            moved, still = dist.LogNormal(rate[x], 1.0), dist.Delta(tensor(zero))
            mixture = dist.MaskedMixture(none == 1, moved, still)
            with poutine.mask(mask=shown[:, t]):
                pyro.sample(f"step_{t}", mixture, obs=steps[:, t])


@pytest.mark.parametrize("hidden", [False, True])
def test_a_masked_mixture_of_enumerated_masks(hidden):
    """Pyro's own potential is the truth, where hidden data have any number in the place of NaN."""
    steps = tensor([[1.0, 1e-6, 2.0], [0.5, 0.3, 1e-6]])
    given = steps.clone()
    if hidden:
        given[0, 2] = nan
    target = Target.from_model(zero_inflated, given)
    assert target.batching == "vmap"
    points = torch.randn(4, target.dim, requires_grad=True)
    _, potential, _, _ = initialize_model(
        pyro.infer.config_enumerate(zero_inflated), (steps, ~given.isnan())
    )
    values = target.unpack_unconstrained(points)
    truth = torch.stack([-potential({k: v[i] for k, v in values.items()}) for i in range(4)])
    log_p, grad = target.log_prob_and_grad(points)
    assert_close(log_p, truth.detach())
    assert_close(grad, torch.autograd.grad(truth.sum(), points)[0])


# ---- initial values ------------------------------------------------------------------------------


def in_a_box():
    """N(50, 1/2) cut to [47, 53], far from where a search would begin."""
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1e4).to_event(1))
    pyro.factor("in the box", torch.where((x - 50).abs() < 3, -(x - 50).square(), -torch.inf).sum())


@pytest.mark.parametrize(
    "run", ["vectorized", "sequential", pytest.param("sample", marks=pytest.mark.slow)]
)
def test_initial_params_reach_the_training(run):
    starts = {"x": 50 + torch.randn(200, 2).clamp(-2, 2)}
    if run == "sequential":
        draws = sequential(
            IMH(in_a_box), num_samples=400, initial_params={"x": tensor([51.0, 49.0])}
        )["x"]
        draws = draws.reshape(20, 20, 2)
    elif run == "vectorized":
        draws = vectorized(IMH(in_a_box), initial_params=starts)["x"]
    else:
        found = sample(in_a_box, num_chains=200, num_samples=20, initial_params=starts)
        draws = torch.as_tensor(found["posterior"]["x"].values)
    assert z_score(draws[..., 0], 50.0) < 4
    assert z_score((draws[..., 0] - 50).square(), 0.5) < 4


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(partial(AutoAdvNF, options=FitOptions(max_steps=5)), marks=pytest.mark.slow),
        partial(
            AutoAnnealingFlow,
            num_particles=1024,
            options=FitOptions(max_steps=20, batch_size=128),
        ),
        pytest.param(
            partial(
                AutoDeformationFlow,
                options=FitOptions(max_steps=20, eval_every=20),
                settings=DeformationOptions(time_grid=4, hidden_features=16),
            ),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["advnf", "annealing", "deformation"],
)
def test_initial_params_reach_the_training_of_other_guides(make):
    starts = {"x": 50 + torch.randn(200, 2).clamp(-2, 2)}
    guide = make(in_a_box)
    draws = vectorized(IMH(guide=guide), initial_params=starts)["x"]
    assert guide.history.final_ess > 0.5
    assert z_score(draws[..., 0], 50.0) < 4
    assert z_score((draws[..., 0] - 50).square(), 0.5) < 4


def test_without_initial_params_there_is_nothing_to_find():
    with pytest.raises(ValueError, match="NaN or -inf at every initial point"):
        vectorized(IMH(in_a_box))


# ---- SVI -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [AutoFlow, AutoAdvNF, AutoAnnealingFlow, AutoDeformationFlow])
def test_no_layer_is_missing_from_the_param_store(make):
    pyro.clear_param_store()
    guide = make(conjugate)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not registered in the param store")
        warnings.filterwarnings("ignore", message="this AutoAnnealingFlow is its reference")
        SVI(conjugate, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(*conjugate_data())


def test_svi_has_nothing_to_train_in_an_annealing_flow_without_blocks():
    guide = AutoAnnealingFlow(conjugate)
    with pytest.warns(UserWarning, match="SVI can train none of it: call fit first"):
        guide(*conjugate_data())


# ---- data that are missing -----------------------------------------------------------------------

Y = tensor([[1.0, nan, 2.0], [nan, nan, nan], [1.0, 2.0, 3.0], [nan, 0.5, nan]])


@pytest.mark.parametrize("kind", ["normal", "event", "multivariate"])
def test_nan_masked_distributions_are_batched(kind, no_warnings):
    """The truth is Pyro's own density, one point after the other."""

    def likelihood(loc, scale):
        if kind == "multivariate":
            return dist.NanMaskedMultivariateNormal(loc, scale_tril=scale)
        normal = dist.NanMaskedNormal(loc, scale.diagonal())
        return normal.to_event(1) if kind == "event" else normal

    def model(y):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.LKJCholesky(3, 2.0))
        with pyro.plate("data", 4, dim=-1 if kind != "normal" else -2):
            if kind == "normal":
                with pyro.plate("parts", 3, dim=-1):
                    pyro.sample("y", likelihood(loc, scale), obs=y)
            else:
                pyro.sample("y", likelihood(loc, scale), obs=y)

    target = Target.from_model(model, Y)
    assert target.batching == "vmap"
    points = torch.randn(5, 6, requires_grad=True)
    values, ladj = target.layout.constrain(points)
    truth = dist.Normal(0.0, 1.0).log_prob(values["loc"]).sum(-1) + ladj
    truth = truth + dist.LKJCholesky(3, 2.0).log_prob(values["scale"])
    pairs = zip(values["loc"], values["scale"])
    truth = truth + torch.stack([likelihood(*pair).log_prob(Y).sum() for pair in pairs])
    log_p, grad = target.log_prob_and_grad(points)
    assert_close(log_p, truth.detach())
    assert_close(grad, torch.autograd.grad(truth.sum(), points)[0])


SHOWN = ~Y.isnan()


@pytest.mark.parametrize("how", ["poutine", "distribution"])
def test_a_mask_over_nan_hides_them(how, no_warnings):
    """Density and gradient are those of the other data alone."""

    def model(y):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        if how == "poutine":
            with pyro.plate("data", 4, dim=-2), pyro.plate("parts", 3), poutine.mask(mask=SHOWN):
                pyro.sample("y", dist.Normal(loc, 1.0), obs=y)
        else:
            with pyro.plate("data", 4):
                pyro.sample("y", dist.Normal(loc, 1.0).mask(SHOWN).to_event(1), obs=y)

    def truth(loc):
        parts = torch.arange(3).expand(4, 3)[SHOWN]
        data = dist.Normal(loc[:, parts], 1.0).log_prob(Y[SHOWN]).sum(-1)
        return dist.Normal(0.0, 1.0).log_prob(loc).sum(-1) + data

    target = Target.from_model(model, Y)
    loc = torch.randn(5, 3, requires_grad=True)
    log_p, grad = target.log_prob_and_grad(loc)
    assert_close(log_p, truth(loc).detach())
    assert_close(grad, torch.autograd.grad(truth(loc).sum(), loc)[0])
    assert_close(target.observed_data()["y"], Y, equal_nan=True)


COUNTS, COUNTED = tensor([1.0, nan, 3.0, nan]), tensor([True, False, True, False])


def counting(y, use=None, fn=dist.Poisson):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", 4):
        y = pyro.sample("y", fn(rate), obs=y, obs_mask=COUNTED)
    if use is not None:
        pyro.sample("z", dist.Normal(use(y), 1.0), obs=tensor(0.5))


def shown_alone(rate):
    return dist.Gamma(2.0, 1.0).log_prob(rate) + dist.Poisson(rate[:, None]).log_prob(
        COUNTS[COUNTED]
    ).sum(-1)


@pytest.mark.parametrize("use", [None, lambda y: y[0] + y[2]], ids=["unused", "others are used"])
def test_missing_counts_are_summed_out(use):
    target = Target.from_model(counting, COUNTS, use)
    assert (target.dim, target.batching, target.enumerated) == (1, "vmap", False)
    points = torch.randn(5, 1)
    values, ladj = target.layout.constrain(points)
    truth = shown_alone(values["rate"]) + ladj
    if use is not None:
        truth = truth + dist.Normal(4.0, 1.0).log_prob(tensor(0.5))
    assert_close(target.log_prob(points), truth)
    assert list(target.observed_data()) == ["y_observed"] + ["z"] * (use is not None)


def test_missing_counts_in_an_enumerated_model():
    """And in a time series whose end is missing: the missing depend on the missing."""

    def model(y):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", 4):
            more = pyro.sample("more", dist.Bernoulli(0.3))
            pyro.sample("y", dist.Poisson(rate + more), obs=y, obs_mask=COUNTED)
        last = 0.0
        for t, value in enumerate(tensor([2.0, nan, nan])):
            last = pyro.sample(
                f"y_{t}", dist.Poisson(rate + last), obs=value, obs_mask=~value.isnan()
            )

    target = Target.from_model(model, COUNTS)
    points = torch.randn(5, 1)
    values, ladj = target.layout.constrain(points)
    rate = values["rate"][:, None]
    none, one = (dist.Poisson(rate + k).log_prob(COUNTS[COUNTED]) for k in (0, 1))
    truth = (0.7 * none.exp() + 0.3 * one.exp()).log().sum(-1) + ladj
    truth = truth + dist.Gamma(2.0, 1.0).log_prob(rate[:, 0])
    truth = truth + dist.Poisson(rate[:, 0]).log_prob(tensor(2.0))
    assert target.enumerated
    assert_close(target.log_prob(points), truth)


@pytest.mark.parametrize(
    "use",
    [lambda y: y.sum(), lambda y: y[1] - y[3], lambda y: y[3]],
    ids=["sum", "difference", "one of them"],
)
def test_missing_counts_that_others_depend_on_are_refused(use):
    with pytest.raises(ValueError, match=r"site 'y': its missing values .*Poisson.*\['z'\] depend"):
        Target.from_model(counting, COUNTS, use)
    for seed in range(5):  # of rates at which all counts are alike, too
        torch.manual_seed(seed)
        with pytest.raises(ValueError, match="site 'y'"):
            Target.from_model(counting, COUNTS, use, lambda rate: dist.Poisson(1e-3 * rate))


def test_missing_counts_of_another_scale_are_refused():
    """The sum of a squared density over all counts is not 1, and depends on the rate."""
    scaled = poutine.scale(counting, 2.0)
    with pytest.raises(ValueError, match="site 'y': .* since poutine.scale scales them"):
        Target.from_model(scaled, COUNTS)


def test_missing_states_that_others_depend_on_are_enumerated():
    def model():
        p = pyro.sample("p", dist.Beta(2.0, 1.0))
        with pyro.plate("data", 4):
            y = pyro.sample("y", dist.Bernoulli(p), obs=1 + 0 * COUNTS, obs_mask=COUNTED)
            pyro.sample("z", dist.Normal(y, 1.0), obs=torch.zeros(4))

    target = Target.from_model(model)
    points = torch.randn(5, 1)
    values, ladj = target.layout.constrain(points)
    p = values["p"]
    none, one = (dist.Normal(k, 1.0).log_prob(tensor(0.0)) for k in (0.0, 1.0))
    truth = dist.Beta(2.0, 1.0).log_prob(p) + ladj + 2 * (p.log() + one)
    truth = truth + 2 * ((1 - p) * none.exp() + p * one.exp()).log()
    assert target.enumerated
    assert_close(target.log_prob(points), truth)


def test_missing_states_that_matter_together_only():
    """Where both change, nothing else does: it is seen where one of them does."""

    def model():
        p = pyro.sample("p", dist.Beta(2.0, 1.0))
        hidden = {"obs": tensor(0.0), "obs_mask": tensor(False)}
        one, two = (pyro.sample(name, dist.Bernoulli(p), **hidden) for name in ("one", "two"))
        pyro.sample("z", dist.Normal((one - two).square(), 1.0), obs=tensor(1.0))

    target = Target.from_model(model)
    points = torch.randn(5, 1)
    values, ladj = target.layout.constrain(points)
    p, likelihood = values["p"], dist.Normal(tensor([0.0, 1.0]), 1.0).log_prob(tensor(1.0)).exp()
    unequal = 2 * p * (1 - p)
    truth = ((1 - unequal) * likelihood[0] + unequal * likelihood[1]).log()
    assert_close(target.log_prob(points), truth + dist.Beta(2.0, 1.0).log_prob(p) + ladj)


# ---- data on an edge -----------------------------------------------------------------------------


def observed(fn, value):
    def model():
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", 2):
            pyro.sample("y", fn(rate), obs=tensor([0.5, value]))

    return model


@pytest.mark.parametrize(
    "fn, value",
    [
        (lambda rate: dist.Beta(rate, 0.5), 1.0),
        (lambda rate: dist.Beta(rate, 2.0), 1.0),
        (lambda rate: dist.Beta(rate, 1.0), 0.0),
        (lambda rate: dist.Gamma(rate, 1.0), 0.0),
        (lambda rate: dist.Uniform(0.0, 1 + 0 * rate), 1.0),
    ],
)
def test_data_on_an_edge_are_refused(fn, value):
    with pytest.raises(ValueError, match="site 'y': 1 of 2 observed values lie on an edge"):
        Target.from_model(observed(fn, value))


@pytest.mark.parametrize(
    "fn, value",
    [
        (lambda rate: dist.Beta(rate, 1.0), 1.0),
        (lambda rate: dist.Exponential(rate), 0.0),
        (lambda rate: dist.Uniform(0.0, 1 + 0 * rate), 0.0),
        (lambda rate: dist.HalfCauchy(rate), 0.0),
    ],
)
def test_data_on_an_edge_of_finite_density_are_taken(fn, value):
    target = Target.from_model(observed(fn, value))
    assert target.log_prob(torch.zeros(1, 1)).isfinite()


# ---- chains that never move ----------------------------------------------------------------------


def narrow_guide():
    """A flow of .9 times the scale of its target, a standard normal."""
    guide = AutoFlow(Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2), flow="gaussian")
    guide.target_for()
    guide.flow.affine.initialize(torch.zeros(2), 0.9 * torch.eye(2))
    guide.trained = True
    return guide


def test_chains_that_never_move_are_told():
    starts = torch.zeros(20, 2)
    starts[[3, 7]] = 8.0
    with pytest.warns(
        UserWarning, match=r"chains \[3, 7\] accepted no proposal in any of 20 draws"
    ):
        vectorized(IMH(guide=narrow_guide()), num_chains=20, initial_params={"x": starts})
    with pytest.warns(UserWarning, match=r"chains \[0\] accepted no proposal in any of 100 draws"):
        sequential(IMH(guide=narrow_guide()), initial_params={"x": starts[3]})


def test_chains_that_move_are_not(no_warnings):
    vectorized(IMH(guide=narrow_guide()), num_chains=50, num_samples=100)
    vectorized(IMH(guide=narrow_guide()), num_chains=50, num_samples=1)
    sequential(IMH(guide=narrow_guide()))
