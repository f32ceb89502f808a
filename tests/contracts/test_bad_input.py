"""Errors say what is wrong and what to do about it."""

import re
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
import zuko
from pyro.infer import MCMC
from support import models
from support.bad_inputs import BAD_INPUTS
from support.models import QUICK
from support.mutations import must_fail, mutation

import pyro_flowsamp
from pyro_flowsamp import (
    IMH,
    AutoFlow,
    FitOptions,
    LatentHMC,
    LatentMALA,
    LocalGlobalHMC,
    Target,
    VectorizedMCMC,
    validation,
)
from pyro_flowsamp.flows.recipes import coupling
from pyro_flowsamp.flows.transforms import AffineMap
from pyro_flowsamp.kernels.local_global import LocalStepsOptions
from pyro_flowsamp.target import batching, points
from pyro_flowsamp.target.inspection import ModelStructureError

KERNELS = [IMH, LatentMALA, LatentHMC, LocalGlobalHMC]


def normal():
    return pyro.sample("x", dist.Normal(0.0, 1.0))


def vectorized(kernel, **options):
    defaults = {"num_samples": 5, "warmup_steps": 2, "num_chains": 3, "disable_progbar": True}
    return VectorizedMCMC(kernel, **{**defaults, **options})


def sequential(kernel, **options):
    defaults = {"num_samples": 5, "warmup_steps": 2, "disable_progbar": True}
    return MCMC(kernel, **{**defaults, **options})


# ---- the table -----------------------------------------------------------------------------------

PACKAGE = Path(pyro_flowsamp.__file__).parent


def refuse(bad):
    """Assert that an input is refused by name, with the remedy, by a short traceback."""
    with pytest.raises((ValueError, TypeError, RuntimeError), match=f"(?s){bad.text}") as caught:
        bad.call()
    files = [Path(frame.path) for frame in caught.traceback]
    assert PACKAGE in files[-1].parents, "raised by another package"
    assert sum(PACKAGE in file.parents for file in files) <= 5
    assert len(str(caught.value)) < 600


def without_addresses(bad):
    """Name a test the same in each process that runs a part of them."""
    return re.sub(r" at 0x[0-9a-f]+", "", bad.name)


@pytest.mark.parametrize("bad", BAD_INPUTS, ids=without_addresses)
def test_refused(bad):
    refuse(bad)


@mutation(batching, "check_repeatable")
def noise_is_allowed(check_repeatable, *args):
    pass


@mutation(batching, "couples")
def far_rows_are_not_looked_at(couples, *args, **options):
    return False


@mutation(points, "check_finite_above")
def infinite_densities_are_allowed(check_finite_above, log_p):
    pass


@mutation(validation, "check_count")
def any_count_is_taken(check_count, name, value, least=1):
    return value


@mutation(validation, "_shorten")
def long_tracebacks(_shorten, error):
    pass


@pytest.mark.parametrize(
    "wrong, prefix",
    [
        (noise_is_allowed, "energy:"),
        (far_rows_are_not_looked_at, "energy:"),
        (infinite_densities_are_allowed, "energy:"),
        (any_count_is_taken, "VectorizedMCMC(num_"),
        (long_tracebacks, "VectorizedMCMC(subsampling"),
    ],
)
def test_the_table_sees_a_missing_check(wrong, prefix):
    def not_refused():
        count = 0
        for bad in BAD_INPUTS:
            if bad.name.startswith(prefix):
                try:
                    refuse(bad)
                except (AssertionError, pytest.fail.Exception):
                    count += 1
        return count

    must_fail(wrong, score=not_refused, above=0)
    assert not_refused() == 0


def test_many_are_refused():
    print(f"{len(BAD_INPUTS)} bad inputs are refused")
    assert len({bad.name for bad in BAD_INPUTS}) == len(BAD_INPUTS) >= 150


# ---- models that cannot be sampled -------------------------------------------------------------


def nothing():
    pyro.sample("z", dist.Bernoulli(0.5))


def counting():
    pyro.sample("n", dist.Poisson(pyro.sample("rate", dist.Gamma(2.0, 1.0))))


def subsampling():
    mu = normal()
    with pyro.plate("data", 10, subsample_size=3):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.zeros(3))


class Growing:
    """One more element in each run."""

    def __init__(self):
        self.runs = 0

    def __call__(self):
        self.runs += 1
        pyro.sample("x", dist.Normal(torch.zeros(self.runs), 1.0).to_event(1))


def appearing():
    if normal() > 100:  # not in the prior's reach, but in the flow's
        pyro.sample("extra", dist.Normal(0.0, 1.0))


def bounded_by_another():
    upper = pyro.sample("upper", dist.Uniform(0.0, 1.0))
    pyro.sample("lower", dist.Uniform(0.0, upper))


def directional():
    pyro.sample("direction", dist.ProjectedNormal(torch.ones(3)))


@pytest.mark.parametrize(
    "model, error, text",
    [
        (nothing, ValueError, "no continuous latent site"),
        (counting, ValueError, r"'n' is discrete \(Poisson\).*marginalise it by hand, or observe"),
        (subsampling, ValueError, "'data' subsamples 3 of 10 data.*Remove subsample_size"),
        (
            Growing(),
            ModelStructureError,
            r"changes between calls: site 'x' has shape .*\[1\].*\[2\]",
        ),
        (
            bounded_by_another,
            ModelStructureError,
            "support of site 'lower' depends .* re-parametri",
        ),
        (directional, ValueError, "'direction': no bijection .* re-parametrise the site"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_model_without_a_density_on_real_space(model, error, text):
    for make in (Target.from_model, AutoFlow(model).fit, sequential(IMH(model)).run):
        if isinstance(model, Growing):
            model.runs = 0
        args = (model,) if make == Target.from_model else ()
        with pytest.raises(error, match=text):
            make(*args)


@pytest.mark.filterwarnings("ignore:the density is evaluated point by point")
def test_site_that_appears_later():
    target = Target.from_model(appearing)
    with pytest.raises(ModelStructureError, match="site 'extra' appeared in the model"):
        target.log_prob(torch.tensor([[1000.0]]))


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
@pytest.mark.parametrize("flow", ["coupling", zuko.flows.NSF(1, hidden_features=(4,))])
def test_no_finite_density(value, flow):
    def model():
        pyro.sample("y", dist.Normal(normal(), 1.0), obs=torch.tensor(value))

    guide = AutoFlow(model, flow=flow, options=QUICK)
    for run in (guide.fit, vectorized(IMH(model)).run, sequential(LatentMALA(model)).run):
        with pytest.raises(ValueError, match="NaN or -inf at every initial point.*data for NaN"):
            run()


@pytest.mark.parametrize("kernel", KERNELS)
def test_half_space(kernel):
    def model():
        x = normal()
        pyro.factor("positive", torch.where(x > 0, 0.0, -torch.inf))

    mcmc = vectorized(kernel(guide=AutoFlow(model, options=QUICK)), num_samples=50)
    mcmc.run()
    draws = mcmc.get_samples()["x"]
    assert (draws > 0).all() and draws.std() > 0.3


@pytest.mark.slow
def test_item_falls_back_to_the_loop_with_one_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options = FitOptions(max_steps=2, batch_size=4, progress=False)
        flow = zuko.flows.MAF(2, hidden_features=(4,), transforms=1)  # no costly first rung
        guide = AutoFlow(models.reading, flow=flow, options=options)
        vectorized(IMH(guide=guide, lookahead=1)).run(torch.ones(1))
    (warning,) = [w for w in caught if "point by point" in str(w.message)]
    assert "vmap: " in str(warning.message) and "plate: " in str(warning.message)
    assert ".item()" in str(warning.message)


# ---- arguments that do not fit -----------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "params, text",
    [
        ({"rate": torch.zeros(3)}, "no value for site 'mean'"),
        ({"mean": torch.zeros(3, 2), "rate": torch.zeros(3)}, "leading dimensions.*'mean'"),
        (
            {"mean": torch.zeros(3, dtype=torch.double), "rate": torch.zeros(3)},
            r"'mean'.*expected dtype torch.float32, got torch.float64; convert with",
        ),
    ],
    ids=["missing", "shape", "dtype"],
)
def test_initial_params(kernel, params, text):
    data = models.conjugate_data()
    with pytest.raises(ValueError, match=text):
        vectorized(kernel(models.conjugate), initial_params=params).run(*data)
    with pytest.raises(ValueError, match=text):
        first = {name: value[0] for name, value in params.items()}
        sequential(kernel(models.conjugate), initial_params=first).run(*data)


def test_initial_params_of_other_chains():
    params = {"mean": torch.zeros(2), "rate": torch.zeros(2)}
    for value in (torch.zeros(2), torch.zeros(())):
        mcmc = vectorized(IMH(models.conjugate), initial_params={**params, "mean": value})
        with pytest.raises(ValueError, match=r"'mean'\] .*leading dimension must be num_chains=3"):
            mcmc.run(*models.conjugate_data())


def test_initial_params_of_no_density():
    target = Target.from_energy(lambda x: torch.where(x > 0, x, torch.inf).sum(-1), 2)
    mcmc = vectorized(
        IMH(guide=AutoFlow(target, options=QUICK)), initial_params={"x": -torch.ones(3, 2)}
    )
    with pytest.raises(ValueError, match="initial_params: the density is zero or NaN for chains"):
        mcmc.run()


@pytest.mark.parametrize(
    "options, text",
    [
        ({"num_chains": 0}, "num_chains must be at least 1, got 0"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0, got -1"),
        ({"thin": 0}, "thin must be at least 1, got 0"),
        ({"num_samples": 10.5}, "num_samples must be a whole number, got 10.5"),
        ({"warmup_steps": 2.0}, "warmup_steps must be a whole number, got 2.0"),
    ],
)
def test_counts(options, text):
    with pytest.raises(ValueError, match=text):
        vectorized(IMH(normal), **options)


@pytest.mark.parametrize("names", ["x", []])
def test_save_params_that_are_no_list(names):
    with pytest.raises(ValueError, match="save_params must be a list of one site or more, got"):
        vectorized(IMH(normal), save_params=names)


def test_unknown_save_params():
    with pytest.raises(ValueError, match=r"save_params: \['mu'\] are not sites of the model"):
        vectorized(IMH(normal), save_params=["mu"]).run()


@pytest.mark.parametrize("make", [vectorized, sequential])
def test_no_draws_before_run(make):
    with pytest.raises((RuntimeError, AttributeError)):
        make(IMH(normal)).get_samples()


def test_kernel_arguments():
    with pytest.raises(ValueError, match="give a model, a potential_fn, a guide"):
        IMH()
    with pytest.raises(ValueError, match="give potential_fn alone"):
        IMH(normal, models.normal_potential)
    with pytest.raises(ValueError, match="give potential_fn alone"):
        LatentMALA(potential_fn=models.normal_potential, guide=AutoFlow(normal))
    with pytest.raises(ValueError, match="lookahead must be at least 1"):
        IMH(normal, lookahead=0)
    with pytest.raises(ValueError, match="step_size must be positive"):
        LatentMALA(normal, step_size=0.0)
    with pytest.raises(ValueError, match=r"target_accept_prob must lie in \(0, 1\)"):
        LatentMALA(normal, target_accept_prob=1.0)


@pytest.mark.parametrize(
    "energy, options, message",
    [
        (lambda x: x.numpy().sum(-1), {}, "returns a ndarray, not a tensor: write it with torch"),
        (lambda x: x.sum(-1), {"angles": [0, 3]}, r"indices of 3 coordinates, got \[0, 3\]"),
    ],
)
def test_energies(energy, options, message):
    with pytest.raises(ValueError, match=message):
        Target.from_energy(energy, 3, **options)


def test_a_flow_that_is_no_flow():
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = torch.nn.Parameter(torch.zeros(1))

        def forward(self, context=None):
            return torch.distributions.MultivariateNormal(self.loc, torch.eye(1))

    with pytest.raises(ValueError, match="MultivariateNormal, which cannot draw and score in one"):
        AutoFlow(normal, flow=Plain()).fit()


@pytest.mark.parametrize("make", [vectorized, sequential])
def test_a_guide_is_no_model(make):
    with pytest.raises(ValueError, match="this AutoFlow is a guide, not a model: .* guide="):
        make(IMH(AutoFlow(normal))).run()


@pytest.mark.parametrize("make", [vectorized, sequential])
def test_potential_fn_needs_initial_params(make):
    with pytest.raises(ValueError, match=r"needs initial_params.*initial_params=\{'x': "):
        make(IMH(potential_fn=models.normal_potential)).run()


@pytest.mark.parametrize("make", [vectorized, sequential])
@pytest.mark.parametrize("kernel", KERNELS)
def test_untrained_guide_without_warmup(kernel, make):
    with pytest.raises(RuntimeError, match=r"warmup_steps=0 .* call guide.fit\(...\) first"):
        make(kernel(normal), warmup_steps=0).run()


# ---- guides that do not fit --------------------------------------------------------------------


def test_flow_of_another_dimension():
    guide = AutoFlow(models.location, flow=zuko.flows.NSF(3, hidden_features=(4,)), options=QUICK)
    with pytest.raises(ValueError, match=r"the flow has \(3,\) features, .* needs \(2,\) \(x: 2\)"):
        guide.fit(torch.zeros(2))


def test_unknown_flow():
    with pytest.raises(ValueError, match="unknown flow 'nsf': choose one of .*'spline'"):
        AutoFlow(normal, flow="nsf")


def test_circular_flow_without_angles():
    with pytest.raises(ValueError, match="'circular' flow .* no angles.*'spline'"):
        AutoFlow(normal, flow="circular", options=QUICK).fit()


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_guide_of_another_model(kernel):
    guide = AutoFlow(models.location, options=QUICK)
    guide.fit(torch.zeros(2))
    with pytest.raises(ValueError, match=r"made for another model: it has .*'x'.*'chol'"):
        vectorized(kernel(models.correlated, guide=guide)).run(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="another model with the same sites"):
        vectorized(kernel(models.factored, guide=guide)).run(torch.zeros(2))
    guide = AutoFlow(models.schools, options=QUICK)
    guide.fit(torch.zeros(2))
    with pytest.raises(ValueError, match="built for the sites .* make a new guide"):
        guide.fit(torch.zeros(3))


# ---- flows trained elsewhere --------------------------------------------------------------------


def sharpened(flow, kernel=LatentMALA, **options):
    return kernel(flow=flow, target="sharpened", **options)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"target": "sharpened"}, r"needs flow=\.\.\., a trained flow"),
        (
            {"target": "sharpened", "model": normal},
            "does not use the model.*leave target='pullback'",
        ),
        (
            {"target": "sharpened", "guide": AutoFlow(normal)},
            "does not use .* guide.*flow=guide.flow",
        ),
        (
            {"flow": coupling(2)},
            r"no posterior.*'sharpened'.*guide=AutoFlow\(model, flow=flow\)",
        ),
        ({"model": normal, "target": "p"}, "target must be 'pullback' or 'sharpened', got 'p'"),
        ({"model": normal, "metric": "J"}, "metric must be 'identity' or 'jacobian', got 'J'"),
        ({"model": normal, "global_prob": 1.0}, r"global_prob must lie in \[0, 1\), got 1.0"),
    ],
)
@pytest.mark.parametrize("kernel", [LatentMALA, LatentHMC, LocalGlobalHMC])
def test_targets_and_metrics(kernel, options, text):
    with pytest.raises(ValueError, match=text):
        kernel(**options)


def test_counts_of_steps_and_proposals():
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        LatentHMC(normal, num_steps=0)
    with pytest.raises(ValueError, match="local_steps must be at least 1, got 0"):
        LocalGlobalHMC(normal, local_steps=0)
    with pytest.raises(ValueError, match="num_proposals must be at least 1, got -1"):
        LocalGlobalHMC(normal, num_proposals=-1)
    with pytest.raises(ValueError, match="need one local move at least, got 4 and 0"):
        LocalStepsOptions(most=0)
    with pytest.raises(ValueError, match=r"memory must lie in \(0, 1\], got 1.5"):
        LocalStepsOptions(memory=1.5)


def test_flow_without_a_latent_map():
    with pytest.raises(ValueError, match="GMM is not invertible: it maps no latent z to x"):
        sharpened(zuko.mixtures.GMM(2))
    with pytest.raises(ValueError, match=r"a density of vectors \(d,\), .* \(3, 2\)"):
        sharpened(lambda context: Matrices())


class Matrices:
    """A distribution of events of the wrong shape."""

    event_shape, batch_shape, transform = (3, 2), (), AffineMap(None, None, None, None)


class Broken(AffineMap):
    """x = z with what a foreign flow may have wrong."""

    def __init__(self, wrong):
        super().__init__(torch.zeros(2), torch.ones(2), torch.zeros(()), None)
        self.wrong = wrong

    def push(self, z):
        x, ladj = super().push(z)
        if self.wrong == "folded":
            return x.abs(), ladj
        if self.wrong == "flat":
            return x * torch.tensor([1.0, 0.0]), ladj - torch.inf
        return x, ladj + (0.5 if self.wrong in ("sampling", "both ways") else 0.0)

    def pull(self, x):
        z, ladj = super().pull(x)
        return z, ladj - (0.5 if self.wrong == "both ways" else 0.0)


class Foreign(torch.nn.Module):
    def __init__(self, wrong):
        super().__init__()
        self.wrong = wrong

    def forward(self, c=None):
        base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), 1.0), 1)
        return zuko.distributions.NormalizingFlow(Broken(self.wrong).inv, base)


@pytest.mark.parametrize(
    "wrong, text",
    [
        ("folded", r"not invertible: f⁻¹\(f\(z\)\) lies [2-9].* from z"),
        ("flat", "is not invertible|Jacobian is singular"),
        ("sampling", "disagree: sampling and scoring by 0.5 nats"),
        ("both ways", "disagree: its log-determinant and its Jacobian by 0.5 nats"),
    ],
)
@pytest.mark.parametrize("make", [vectorized, sequential])
def test_flow_that_is_not_what_it_says(make, wrong, text):
    with pytest.raises(ValueError, match=text):
        make(sharpened(Foreign(wrong))).run()
    make(sharpened(Foreign(None))).run()


@pytest.mark.parametrize("make", [vectorized, sequential])
def test_a_flow_takes_no_data(make):
    with pytest.raises(ValueError, match="a flow alone takes no model arguments"):
        make(sharpened(coupling(2))).run(torch.zeros(2))


def test_singular_jacobian():
    guide = AutoFlow(models.location, flow="gaussian")
    guide.target_for(torch.zeros(2))
    guide.flow.affine.initialize(torch.zeros(2), torch.tensor([[1.0, 0.0], [1e9, 1e-9]]))
    guide.trained = True
    kernel = LatentHMC(guide=guide, metric="jacobian")
    with pytest.raises(ValueError, match="J is singular to working precision.*metric='identity'"):
        vectorized(kernel).run(torch.zeros(2))


def test_flow_without_forward_mode():
    flow = zuko.flows.CNF(2, hidden_features=(4,))
    with pytest.raises(ValueError, match="metric='jacobian' needs forward-mode derivatives"):
        vectorized(sharpened(flow, metric="jacobian")).run()


class TurningNoisy:
    """A density that is another one at each call, once it has been looked at."""

    noise = 0.0

    def __call__(self, x):
        return 0.5 * x.square().sum(-1) + self.noise * torch.rand(len(x))


@pytest.mark.parametrize("make", [vectorized, sequential])
@pytest.mark.parametrize("kernel", [LatentMALA, LatentHMC, LocalGlobalHMC])
def test_step_size_driven_to_zero(kernel, make):
    energy = TurningNoisy()
    guide = AutoFlow(Target.from_energy(energy, 2), flow="gaussian")
    energy.noise = 1e6
    guide.target_for()
    guide.trained = True
    with pytest.raises(RuntimeError, match=r"drove the step size to .*% of its moves were accep"):
        make(kernel(guide=guide), warmup_steps=100).run()


def test_ensemble_and_context():
    with pytest.raises(ValueError, match="one context only"):
        AutoFlow(models.location, ensemble={"x": torch.zeros(3, 2)}, context=["y"])


# ---- Ctrl-C ------------------------------------------------------------------------------------


def after(count, function):
    """The function, until Ctrl-C is pressed on a later call."""
    calls = iter(range(count))

    def interrupted(*args):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return function(*args)

    return interrupted


@pytest.mark.parametrize("kernel", KERNELS)
def test_interrupted_sampling_keeps_draws(kernel, monkeypatch):
    sampler = kernel(guide=AutoFlow(normal, options=QUICK))
    monkeypatch.setattr(sampler, "step", after(2 + 4, sampler.step))
    mcmc = vectorized(sampler, num_samples=100)
    with pytest.warns(UserWarning, match="interrupted: 4 of 100 draws kept"):
        mcmc.run()
    assert mcmc.get_samples(group_by_chain=True)["x"].shape == (3, 4)
    assert mcmc.statistics["accepted"].shape == (3, 4)
    mcmc.summary()


def test_interrupted_training_keeps_parameters():
    guide = AutoFlow(models.schools, options=QUICK)
    guide.objective = after(7, guide.objective)
    with pytest.warns(UserWarning, match="training interrupted after 7 steps"):
        history = guide.fit(torch.zeros(3))
    assert (history.stopped, history.steps, guide.trained) == ("interrupted", 7, True)
    assert guide.flow.affine.log_diagonal.abs().max() > 0
