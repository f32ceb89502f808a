"""AutoDeformationFlow: training, warnings, copies, and input that it refuses."""

import copy
import math
import pickle
import warnings

import pyro
import pytest
import torch
from pyro.infer.mcmc.api import MCMC
from support import models
from support.deformation import QUICK, SMALL, SURE, bad_guide, edged, narrow, shifted, sixteen_steps
from torch.testing import assert_close

from pyro_flowsamp import (
    IMH,
    AutoDeformationFlow,
    DeformationOptions,
    FitOptions,
    LatentMALA,
    Target,
    VectorizedMCMC,
    diffusion,
    log_evidence,
)
from pyro_flowsamp.guides.deformation import checks, collocation, training
from pyro_flowsamp.guides.deformation import guide as deformation_guide
from pyro_flowsamp.problems import unequal_pair
from pyro_flowsamp.weights import Estimate

WIDE = 2 * 2**0.5  #: sigma of N(0, sd 2)
EIGHT_SLICES = DeformationOptions(time_grid=8, hidden_features=16)


# ---- training ------------------------------------------------------------------------------------


def pair_path():
    known = unequal_pair()
    return diffusion(known.weights, known.modes, torch.ones(2, 1), WIDE)


PAIR = DeformationOptions(time_grid=16, hidden_features=48)


def trained_pair(interpolation, steps, **options):
    pyro.set_rng_seed(0)
    fit = FitOptions(
        steps,
        192,
        2e-2,
        eval_every=steps // 2,
        cosine_schedule=True,
        stop_at_ess=1.0,
        progress=False,
    )
    if interpolation == "diffusion":
        interpolation, options = pair_path(), {"base_scale": WIDE, **options}
    else:
        options = {"base_scale": WIDE, "exploration_scale": 3.0, **options}
    guide = AutoDeformationFlow(
        unequal_pair().target,
        interpolation=interpolation,
        settings=PAIR,
        **{"options": fit, **options},
    )
    guide.fit()
    return guide


@pytest.fixture(scope="module", params=[("trainable", 600), ("diffusion", 300)], ids=lambda p: p[0])
def pair(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "refine", sixteen_steps)
        return trained_pair(*request.param)


def shares(x, log_w=None):
    return unequal_pair().mode_fractions(x, log_w)[0]


@pytest.mark.slow
def test_both_modes(pair):
    x, log_w = pair.weighted_samples(4000)
    assert 0.08 < shares(x) < 0.92
    assert abs(shares(x, log_w) - 1 / 3) < 0.15
    log_z, error = log_evidence(log_w)
    assert abs(log_z) < 4.5 * error < 0.5
    cloud = pair.particles(4096)
    share = cloud.mean((unequal_pair().assign(cloud.x) == 0).double())
    assert abs(share.value - 1 / 3) < 4.5 * share.standard_error < 0.3
    assert pair.progress[-1].ess > 0.15 and pair.history.final_ess > 0.15
    assert (pair.flow.step_sizes != 1).all()
    assert pair.evidences.keys() == {"flow", "base", "twice as wide", "over-dispersed"}
    assert max(pair.missed_mass.values()) < 0.01


def test_distillation(pair):
    options = FitOptions(max_steps=120, progress=False)
    student = pair.distill(num=2048, options=options, flow="coupling")
    assert student.history.final_ess > 0.5
    with torch.no_grad():
        assert 0.1 < shares(student.flow().sample((2000,))) < 0.6


@pytest.mark.slow
def test_a_bad_guide_leaves_the_target_as_it_is():
    """Chains that start from exact draws stay there, though most of their proposals are bad."""
    known = unequal_pair()
    guide = trained_pair("trainable", 100)
    start = {"x": known.sample(4000)}
    mcmc = VectorizedMCMC(
        IMH(guide=guide), 20, 0, num_chains=4000, initial_params=start, disable_progbar=True
    )
    mcmc.run()
    x = mcmc.get_samples(group_by_chain=True)["x"][:, -1]
    moved = mcmc.statistics["accepted"].double().mean()
    assert 0.01 < moved < 0.5
    share, error = shares(x), (2 / 9 / 4000) ** 0.5
    assert abs(share - 1 / 3) < 4.5 * error
    log_p = known.target.log_prob(x)
    assert abs(log_p.mean() + known.entropy) < 4.5 * log_p.std() / 4000**0.5


# ---- copies, models, dtypes ----------------------------------------------------------------------


def same_particles(one, other):
    clouds = []
    for guide in (one, other):
        torch.manual_seed(3)
        clouds.append(guide.particles(512))
    assert_close(clouds[0].x, clouds[1].x)
    assert_close(clouds[0].evidences, clouds[1].evidences)


def like(pair):
    """A guide of the same arguments, untrained."""
    interpolation = pair._interpolation.value
    return AutoDeformationFlow(
        unequal_pair().target, interpolation=interpolation, base_scale=WIDE, settings=PAIR
    )


@pytest.mark.parametrize("used", [True, False])
def test_a_state_dict(pair, used):
    other = like(pair)
    if used:
        other.target_for()
    other.load_state_dict(pair.state_dict())
    other.target_for()
    assert other.trained
    same_particles(other, pair)
    x = 5 * torch.randn(20, 2)
    assert_close(other.flow().log_prob(x), pair.flow().log_prob(x))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))])
def test_copies(pair, duplicate):
    other = duplicate(pair)
    other.restore_model(unequal_pair().target)
    other.target_for()
    same_particles(other, pair)


@pytest.mark.slow
def test_one_seed_one_flow():
    def draws(seed):
        pyro.set_rng_seed(seed)
        guide = AutoDeformationFlow(Target.from_energy(narrow, 2), **SMALL)
        guide.fit()
        return guide.particles(64).x

    first, again, other = draws(1), draws(1), draws(2)
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_model_with_a_constrained_site(dtype):
    torch.set_default_dtype(dtype)
    data = models.conjugate_data()
    guide = AutoDeformationFlow(models.conjugate, settings=EIGHT_SLICES, options=QUICK)
    guide.fit(*data)
    cloud = guide.particles(8192, *data, islands=32)
    x, log_w = guide.weighted_samples(8192, *data)
    assert cloud.x.dtype == x.dtype == dtype and log_w.dtype == torch.float64
    for log_z, error in (cloud.evidence, log_evidence(log_w)):
        assert error < 0.1 and abs(log_z - models.CONJUGATE_LOG_EVIDENCE) < 4.5 * error
    sites = guide.target_for(*data).unpack(cloud.x)
    for name, (mean, _) in models.CONJUGATE_TRUTH.items():
        found = cloud.mean(sites[name])
        assert abs(found.value - mean) < 4.5 * found.standard_error, name


def schools_mean(y):
    """E[mu | y] of the eight schools: given mu and tau, y is N(mu, 1 + tau^2)."""
    mu, log_tau = torch.linspace(-6, 8, 281), torch.linspace(-6, 4, 201)[:, None]
    tau = log_tau.exp()
    log_p = -0.5 * (mu / 5).square() - (1 + (tau / 5).square()).log() + log_tau
    spread = (1 + tau.square()).sqrt()
    log_p = log_p + torch.distributions.Normal(mu, spread).log_prob(y[:, None, None]).sum(0)
    return float((log_p.flatten().softmax(0).view_as(log_p) * mu).sum())


@pytest.mark.slow
def test_eight_schools():
    y = torch.tensor([2.8, 0.8, -0.3, 0.7, -0.1, 0.1, 1.8, 1.2])
    options = FitOptions(400, 192, 1e-2, eval_every=200, cosine_schedule=True, progress=False)
    guide = AutoDeformationFlow(models.schools, settings=EIGHT_SLICES, options=options)
    guide.fit(y)
    guide.flow.block.steps = 4  # for haste: draws are scored by the pass that made them
    for kernel, steps in ((IMH, 400), (LatentMALA, 50)):
        mcmc = VectorizedMCMC(kernel(guide=guide), steps, steps, 100, disable_progbar=True)
        mcmc.run(y)
        samples = mcmc.get_samples()
        assert samples["theta"].shape == (100 * steps, 8) and (samples["tau"] > 0).all()
        assert float(samples["mu"].mean()) == pytest.approx(schools_mean(y), abs=0.2)
        mcmc = MCMC(kernel(guide=guide), 5, 2, disable_progbar=True)
        mcmc.run(y)
        assert (mcmc.get_samples()["tau"] > 0).all()


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"base_scale": 0.0}, "scale must be positive and finite, got 0"),
        ({"base_scale": math.nan}, "scale must be"),
        ({"base_power": -1.0}, "power must be positive"),
        ({"base_power": math.inf}, "power must be positive and finite"),
        ({"exploration_scale": 0.0}, "exploration_scale must be positive"),
        ({"interpolation": "quadratic"}, "'trainable', 'linear' or a function"),
        ({"interpolation": 3}, "'trainable', 'linear' or a function"),
        ({"interpolation": shifted}, "give its base_scale"),
        (
            {"interpolation": shifted, "exploration_scale": 2.0, **SURE},
            "leave exploration_scale at 1",
        ),
    ],
)
def test_bad_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        AutoDeformationFlow(unequal_pair().target, **wrong)


def test_angles_are_refused():
    target = Target.from_energy(lambda x: -x.cos().sum(-1), 2, angles=[0, 1])
    with pytest.raises(ValueError, match="has angles"):
        AutoDeformationFlow(target).fit()


@pytest.mark.parametrize(
    "energy, message",
    [
        (lambda x: narrow(x).detach(), "the energy has no gradient"),
        (lambda x: 0 * narrow(x), "gradient is zero everywhere"),
        (lambda x: math.nan * narrow(x), "NaN or -inf at every"),
    ],
)
def test_energies_that_cannot_be_followed(energy, message):
    with pytest.raises(ValueError, match=message):
        AutoDeformationFlow(Target.from_energy(energy, 2), **SMALL).fit()


def test_a_short_training_is_checked_too():
    options = FitOptions(max_steps=3, eval_every=50, progress=False)
    guide = AutoDeformationFlow(edged(0.5), **{**SMALL, "options": options}, **SURE)
    with pytest.raises(ValueError, match="of the points on the way"):
        guide.fit()


def test_a_base_off_the_support():
    target = Target.from_energy(
        lambda x: torch.where(x[:, 0] > 1, x.square().sum(-1), torch.inf), 2
    )
    with pytest.raises(ValueError, match="the base must cover the target's support"):
        AutoDeformationFlow(target, base_scale=0.05, **SMALL).fit()


def test_a_base_too_narrow():
    """The flow never sees the second mode, so its weights look well."""
    far = torch.tensor([[0.0, 0.0], [14.0, 0.0]])

    def energy(x):
        return -(-0.5 * (x[:, None] - far).square().sum(-1)).logsumexp(-1)

    guide = AutoDeformationFlow(Target.from_energy(energy, 2), base_scale=2**0.5, **SMALL)
    message = r"log Z is 1\.8\d ± 0\.\d\d by the flow, but 2\.\d\d ± 0\.\d\d by annealed particles"
    with pytest.warns(UserWarning, match=message):
        guide.fit()
    assert guide.history.final_ess > 0.9
    greatest = max(float(evidence.value) for evidence in guide.evidences.values())
    assert greatest == pytest.approx(math.log(4 * math.pi), abs=0.3)


def test_no_weight_at_all_is_a_warning(monkeypatch):
    guide = bad_guide("linear")
    monkeypatch.setattr(
        deformation_guide,
        "log_weights",
        lambda flow, target, num: torch.full((num,), -torch.inf),
    )
    with pytest.warns(UserWarning, match="log Z is -inf ± nan by the flow, but"):
        guide._compare(guide.target_for(), torch.tensor(guide.time_grid))


def lost_mode():
    """A flow that is exact where it is, and knows nothing of a fifth of the mass far off."""
    centres, shares = torch.tensor([[0.0, 0.0], [14.0, 0.0]]), torch.tensor([0.8, 0.2])

    def energy(x):
        squares = (x[:, None] - centres).square().sum(-1)
        return math.log(2 * math.pi) - (shares.log() - 0.5 * squares).logsumexp(-1)

    target = Target.from_energy(energy, 2)
    guide = AutoDeformationFlow(target, interpolation="linear", base_scale=2**0.5, **SMALL)
    guide.target_for()
    for parameter in guide.flow.velocity.parameters():
        parameter.detach().zero_()
    return guide, centres


def arrived(guide, *groups, log_z):
    x = torch.cat(groups)
    weights = torch.full((len(x),), 1 / len(x))
    evidence = Estimate(torch.tensor(log_z).double(), torch.tensor(0.1).double())
    return collocation.TerminalParticles(
        x, guide.target_for().log_prob(x).double(), weights, evidence
    )


def test_dead_particles_have_missed_nothing():
    guide, _ = lost_mode()
    dead = arrived(guide, torch.full((8, 2), 50.0), log_z=-math.inf)._replace(
        weights=torch.full((8,), math.nan)
    )
    assert checks.missed_mass(guide.flow, dead, torch.tensor(0.0).double()) == 0


def test_a_mode_that_annealing_finds_but_not_whole(monkeypatch):
    """Its evidence is below the flow's, log 0.8; where its particles are tells all the same."""
    guide, centres = lost_mode()
    near, far = torch.randn(900, 2), centres[1] + torch.randn(100, 2)
    found = {
        "base": arrived(guide, near, log_z=math.log(0.5)),
        "twice as wide": arrived(guide, near, far, log_z=math.log(0.4)),
    }
    monkeypatch.setattr(
        deformation_guide, "anneal_from_bases", lambda *args: (found, guide.flow.step_sizes)
    )
    message = r"particles \(twice as wide\) find 5\.0% of the flow's own evidence where it has less"
    with pytest.warns(UserWarning, match=message):
        guide._compare(guide.target_for(), torch.tensor(guide.time_grid))
    assert guide.missed_mass == {
        "base": 0,
        "twice as wide": pytest.approx(0.4 * 0.1 / 0.8, rel=1e-3),
    }
    del found["twice as wide"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guide._compare(guide.target_for(), torch.tensor(guide.time_grid))
