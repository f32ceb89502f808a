"""AutoAnnealingFlow: right evidence and mode weights, copies, and input that it refuses."""

import copy
import math
import pickle
from dataclasses import replace
from functools import cache

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Importance, Predictive, Trace_ELBO
from support import models
from support.annealing import QUICK, SMALL, normal_target
from support.mutations import must_fail, mutation
from torch.testing import assert_close

from pyro_flowsamp import (
    IMH,
    AnnealingOptions,
    AutoAnnealingFlow,
    FitOptions,
    Target,
    VectorizedMCMC,
)
from pyro_flowsamp.flows.recipes import gaussian
from pyro_flowsamp.guides.annealing import log_variance, training
from pyro_flowsamp.problems import exp_gauss, gmm, unequal_pair
from pyro_flowsamp.smc import driver
from pyro_flowsamp.transitions import hamiltonian


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    guide = AutoAnnealingFlow(unequal_pair().target, **SMALL)
    guide.fit()
    return guide


@cache
def _of_conjugate(dtype):
    assert torch.get_default_dtype() == dtype
    guide = AutoAnnealingFlow(models.conjugate, **SMALL)
    guide.fit(*models.conjugate_data())
    return guide


def of_conjugate(dtype=torch.float32):
    """A copy, which a test may change, of a guide that is trained once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.used(copy.deepcopy(_of_conjugate(dtype)), *models.conjugate_data())


@pytest.mark.slow
def test_corrected_weights_of_modes_and_evidence(pair):
    known = unequal_pair()
    cloud = pair.particles(16384, islands=32)
    log_z, error = cloud.evidence
    assert error < 0.1 and abs(log_z - known.log_z) < 4.5 * error
    share = cloud.mean((known.assign(cloud.x) == 0).double())
    assert abs(share.value - known.weights[0]) < 4.5 * share.standard_error


@mutation(driver, "transport")
def flipped_log_det(transport, cloud, stage):
    right = transport(cloud, stage)
    ladj = stage.map.push(cloud.x)[1].detach().double().view_as(right.log_w)
    return right._replace(log_w=right.log_w - 2 * ladj)


@pytest.mark.slow
def test_a_wrong_log_det_shows(pair):
    def z_score():
        log_z, error = pair.particles(16384, islands=32).evidence
        return abs(log_z) / error

    must_fail(flipped_log_det, score=z_score, above=9)


@pytest.mark.slow
def test_blocks_make_weights_even():
    guide = AutoAnnealingFlow(exp_gauss(5, 2, 4.0).target, reference=1.0, **SMALL)
    with pytest.warns(UserWarning, match="where the reference has no draws"):
        history = guide.fit()
    assert all(report.ess_before <= report.ess for report in guide.reports)
    assert min(report.ess for report in guide.reports) > 0.9
    assert history.final_ess > 0.7 and history.log_q_error < 1e-3


@pytest.mark.slow
def test_the_flow_s_own_draws_are_scored_right(monkeypatch):
    """Steps that would do for the particles, here any, are not the last word."""
    monkeypatch.setattr(training, "STEP_TOLERANCE", 10.0)
    gaps = []
    for doublings in (0, 5):
        torch.manual_seed(0)
        monkeypatch.setattr(training, "DOUBLINGS", doublings)
        settings = AnnealingOptions(hidden_features=32, method="euler")
        guide = AutoAnnealingFlow(unequal_pair().target, **{**SMALL, "settings": settings})
        gaps.append(guide.fit().log_q_error)
    assert gaps[1] < gaps[0] / 5


@pytest.mark.slow
def test_a_given_schedule_and_the_kernels():
    known = gmm(6)
    schedule = [0, 0.2, 0.4, 0.6, 0.8, 1]
    guide = AutoAnnealingFlow(known.target, reference=1.0, schedule=schedule, **SMALL)
    with pytest.warns(UserWarning, match="where the reference has no draws"):
        guide.fit()
    assert [report.beta for report in guide.reports] == schedule[1:]
    mcmc = VectorizedMCMC(IMH(guide=guide), 20, 10, 500, disable_progbar=True)
    mcmc.run()
    shares = known.mode_fractions(mcmc.get_samples()["x"])
    assert_close(shares, known.weights.to(shares), rtol=0, atol=0.08)


def test_a_state_dict_brings_its_blocks(pair):
    other = AutoAnnealingFlow(unequal_pair().target, **SMALL)
    other.target_for()
    other.load_state_dict(pair.state_dict())
    x = 5 * torch.randn(20, 2)
    assert_close(other.flow().log_prob(x), pair.flow().log_prob(x))


@pytest.mark.slow
def test_an_interrupted_path_goes_on(monkeypatch):
    guide = AutoAnnealingFlow(unequal_pair().target, **SMALL)
    add_block, calls = training.BlockTrainer.add_block, []

    def interrupt(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return add_block(*args)

    monkeypatch.setattr(training.BlockTrainer, "add_block", interrupt)
    with pytest.warns(UserWarning, match="2 finished blocks are kept"):
        guide.fit()
    assert not guide.trained and len(guide.flow.blocks) == 2
    with pytest.raises(ValueError, match="short of the target: call fit"):
        guide.particles(64)
    guide.fit()
    assert guide.trained and guide.flow.annealing_blocks[-1].beta == 1


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"schedule": [0, 0.5]}, "rises from 0 to 1"),
        ({"schedule": [0, 0.6, 0.5, 1]}, "rises from 0 to 1"),
        ({"reference": -1.0}, "reference must be"),
        ({"target_ess": 1.5}, r"target_ess must lie in \(0, 1\)"),
        ({"schedule": [0, math.nan, 1]}, "rises from 0 to 1"),
        ({"schedule": [0.2, 1]}, "rises from 0 to 1"),
        ({"schedule": []}, "rises from 0 to 1"),
        ({"reference": math.nan}, "reference must be"),
        ({"reference": math.inf}, "reference must be"),
        ({"num_particles": 10}, "num_particles must be at least"),
        ({"mcmc_steps": -1}, "mcmc_steps must be at least 0"),
    ],
)
def test_bad_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        AutoAnnealingFlow(unequal_pair().target, **wrong)


def test_angles_are_refused():
    target = Target.from_energy(lambda x: -x.cos().sum(-1), 2, angles=[0, 1])
    with pytest.raises(ValueError, match="has angles"):
        AutoAnnealingFlow(target).fit()


@pytest.mark.parametrize("num, islands", [(100, 16), (0, 1), (16, 0), (-16, 16)])
def test_particles_divide_into_islands(pair, num, islands):
    with pytest.raises(ValueError, match="do not divide|must be at least 1"):
        pair.particles(num, islands=islands)


def test_particles_need_a_path_that_ends():
    guide = AutoAnnealingFlow(unequal_pair().target, **SMALL)
    with pytest.raises(ValueError, match="ends at beta = 0, short of the target"):
        guide.particles(64)


# ---- paths that lead nowhere ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_target_that_cannot_be_normalised():
    target = Target.from_energy(lambda x: -0.5 * x.square().sum(-1), 2)
    with pytest.raises(ValueError, match=r"beyond beta = 0\.[45].*cannot be normalised"):
        AutoAnnealingFlow(target, reference=1.0, **SMALL).fit()


def test_a_start_too_narrow_for_one_stage():
    target = Target.from_energy(lambda x: 0.5 * (x - 30).square().sum(-1), 2)
    with pytest.raises(ValueError, match="lost their weight at beta = 1.*more stages"):
        AutoAnnealingFlow(target, reference=0.1, schedule=[0, 1], **SMALL).fit()


def test_a_density_that_is_nowhere_finite():
    target = Target.from_energy(lambda x: x.sum(-1) * torch.nan, 2)
    with pytest.raises(ValueError, match="NaN or -inf at every"):
        AutoAnnealingFlow(target, reference=1.0, **SMALL).fit()


# ---- edges, dtypes, models -----------------------------------------------------------------------


def _tail(x):
    """N(0, I) beyond x_0 = 2, and nothing before."""
    return torch.where(x[:, 0] > 2, 0.5 * x.square().sum(-1), torch.inf)


def _flat(x):
    return torch.where((x.abs() < 1).all(-1), 0 * x.sum(-1), torch.inf)


@pytest.mark.parametrize(
    "energy, log_z",
    [
        (_tail, math.log(2 * math.pi * 0.5 * math.erfc(2**0.5))),
        (_flat, math.log(4)),
    ],
)
def test_a_target_with_edges(energy, log_z):
    """Blocks that draw away from an edge would cost a tenth of the mass, unseen."""
    guide = AutoAnnealingFlow(Target.from_energy(energy, 2), reference=2.0, **SMALL)
    guide.fit()
    cloud = guide.particles(64000, islands=64)
    estimate, error = cloud.evidence
    assert error < 0.03 and abs(estimate - log_z) < 4.5 * error
    if energy is _tail:
        assert not all(report.covers for report in guide.reports)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_model_with_a_constrained_site(dtype):
    torch.set_default_dtype(dtype)
    guide = of_conjugate(dtype)
    cloud = guide.particles(16384, *models.conjugate_data(), islands=32)
    assert cloud.x.dtype == dtype
    log_z, error = cloud.evidence
    assert error < 0.02 and abs(log_z - models.CONJUGATE_LOG_EVIDENCE) < 4.5 * error
    sites = guide.target_for(*models.conjugate_data()).unpack(cloud.x)
    for name, (mean, _) in models.CONJUGATE_TRUTH.items():
        found = cloud.mean(sites[name])
        assert abs(found.value - mean) < 4.5 * found.standard_error, name


def squared(y):
    """Two modes for a, and a wall e^{-c / s²} at small s, away from which blocks draw."""
    a = pyro.sample("a", dist.Normal(1.0, 3.0))
    s = pyro.sample("s", dist.HalfNormal(1.0))
    with pyro.plate("data", 4):
        pyro.sample("y", dist.Normal(a.square(), s), obs=y)


SQUARES = torch.tensor([8.6, 9.3, 9.1, 8.8])


def _squared_log_evidence():
    """By quadrature over a and log s."""
    a, log_s = torch.linspace(-12, 12, 2001).double(), torch.linspace(-12, 2.5, 1001).double()
    s = log_s.exp()[:, None]
    log_p = dist.Normal(1.0, 3.0).log_prob(a) + dist.HalfNormal(1.0).log_prob(s) + log_s[:, None]
    for y in SQUARES.double():
        log_p = log_p + dist.Normal(a.square(), s).log_prob(y)
    return float(log_p.flatten().logsumexp(0) + ((a[1] - a[0]) * (log_s[1] - log_s[0])).log())


@pytest.mark.slow
def test_a_target_with_steep_walls():
    """What blocks leave behind has its weight; were all to follow them, it would be lost unseen."""
    truth = _squared_log_evidence()
    guide = AutoAnnealingFlow(squared, **SMALL)
    guide.fit(SQUARES)
    log_z, error = guide.particles(32000, SQUARES, islands=64).evidence
    assert error < 0.05 and abs(log_z - truth) < 4.5 * error
    assert any(report.defensive_weight > 0.02 for report in guide.reports)


@pytest.mark.slow
def test_a_funnel_that_needs_stages_of_all_lengths():
    """Centred eight schools: densities spread over many powers of ten under a wide start."""
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]) / 10
    options = FitOptions(max_steps=5, progress=False)
    guide = AutoAnnealingFlow(models.schools, **{**SMALL, "num_particles": 512, "options": options})
    guide.fit(y)
    assert guide.reports[0].beta < 1e-5 and guide.reports[-1].beta == 1


def test_one_dimension():
    target = Target.from_energy(lambda x: 2 * (x[:, 0] - 3).square(), 1)
    guide = AutoAnnealingFlow(target, **SMALL)
    assert guide.fit().final_ess > 0.8
    log_z, error = guide.particles(16384, islands=32).evidence
    assert error < 0.02 and abs(log_z - 0.5 * math.log(math.pi / 2)) < 4.5 * error


@pytest.mark.slow
def test_other_data_begin_another_path():
    guide = AutoAnnealingFlow(models.location, **SMALL)
    for y in (torch.tensor([8.0, -8.0]), torch.tensor([-6.0, 0.0])):
        history = guide.fit(y)
        assert history.final_ess > 0.8
        with torch.no_grad():
            assert_close(guide.flow().sample((4000,)).mean(0), y / 2, atol=0.2, rtol=0)
    blocks = list(guide.flow.blocks)
    guide.fit(y.clone())  # equal data: there is nothing left to do
    assert list(guide.flow.blocks) == blocks


def test_a_start_of_ones_own_is_left_alone():
    start = gaussian(2)
    guide = AutoAnnealingFlow(
        normal_target(2.0), reference=start, schedule=torch.tensor([0, 1.0]), **SMALL
    )
    guide.fit()
    assert all(parameter.requires_grad for parameter in start.parameters())
    assert guide.reports[0].beta == 1.0


@pytest.mark.slow
def test_a_refinement_is_for_the_flow_alone():
    guide, data = AutoAnnealingFlow(models.conjugate, **SMALL), models.conjugate_data()
    guide.fit(*data)
    torch.manual_seed(3)
    expected = guide.particles(512, *data)
    guide.settings = replace(guide.settings, refinement_blocks=1)
    history = guide.fit(*data)
    assert [block.refinement for block in guide.flow.blocks][-2:] == [False, True]
    report = guide.reports[-1]
    assert report.ess > report.ess_before and report.ess == pytest.approx(
        history.final_ess, abs=0.1
    )
    torch.manual_seed(3)
    assert_close(guide.particles(512, *data).evidences, expected.evidences)


@pytest.mark.slow
def test_pyro_takes_it_as_a_guide():
    guide, data = of_conjugate(), models.conjugate_data()
    elbo = Trace_ELBO(num_particles=256, vectorize_particles=True, max_plate_nesting=1)
    loss = elbo.loss(models.conjugate, guide, *data)
    assert loss == pytest.approx(-models.CONJUGATE_LOG_EVIDENCE, abs=0.2)
    draws = Predictive(models.conjugate, guide=guide, num_samples=100)(*data)
    for name, (mean, sd) in models.CONJUGATE_TRUTH.items():
        assert abs(float(draws[name].mean()) - mean) < 0.3 * sd
    posterior = Importance(models.conjugate, guide, num_samples=60).run(*data)
    assert posterior.get_ESS() > 30


def test_particles_move_by_frozen_steps(pair, monkeypatch):
    step, used = hamiltonian.step, []

    def seen(state, density, step_size, *variates):
        used.append(float(step_size))
        return step(state, density, step_size, *variates)

    monkeypatch.setattr(hamiltonian, "step", seen)
    pair.particles(512)
    frozen = [float(block.step_size) for block in pair.flow.blocks for _ in range(pair.mcmc_steps)]
    assert used == frozen and len(set(frozen)) > 1


# ---- copies and repetitions ----------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))])
def test_copies(pair, duplicate):
    other = duplicate(pair)
    other.restore_model(unequal_pair().target)
    other.target_for()
    clouds = []
    for guide in (pair, other):
        torch.manual_seed(3)
        clouds.append(guide.particles(512))
    assert_close(clouds[0].x, clouds[1].x)
    assert_close(clouds[0].evidences, clouds[1].evidences)


@pytest.mark.slow
def test_a_state_dict_before_the_first_use(pair):
    other = AutoAnnealingFlow(unequal_pair().target, **SMALL)
    other.load_state_dict(pair.state_dict())
    other.target_for()
    torch.manual_seed(3)
    expected = pair.particles(512)
    torch.manual_seed(3)
    assert_close(other.particles(512).evidences, expected.evidences)
    assert other.trained
    for mine, theirs in zip(other.flow.blocks, pair.flow.blocks, strict=True):
        assert mine.get_extra_state() == theirs.get_extra_state()
    other.fit()
    assert len(other.flow.blocks) == len(pair.flow.blocks)


@pytest.mark.slow
def test_one_seed_one_flow():
    def draws(seed):
        pyro.set_rng_seed(seed)
        guide = AutoAnnealingFlow(normal_target(4.0), reference=1.0, schedule=[0, 0.5, 1], **SMALL)
        guide.fit()
        return guide.particles(256).x

    first, again, other = draws(1), draws(1), draws(2)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_interrupted_block_is_trained_again():
    """Ctrl-C amid the second block keeps the first."""
    guide = AutoAnnealingFlow(normal_target(4.0), reference=1.0, schedule=[0, 0.5, 1], **SMALL)
    calls = []

    def interrupt(move):
        calls.append(move)
        if len(calls) == QUICK.max_steps + 5:
            raise KeyboardInterrupt
        return log_variance(move)

    guide.options = FitOptions(**{**vars(QUICK), "stop_at_ess": 1.0})
    guide.settings = replace(guide.settings, objective=interrupt)
    with pytest.warns(UserWarning, match="beta = 0.500: 1 finished blocks are kept"):
        guide.fit()
    assert not guide.trained and [block.beta for block in guide.flow.blocks] == [0.5]
    first = guide.flow.blocks[0]
    guide.fit()
    assert guide.trained and guide.flow.blocks[0] is first
    assert [report.beta for report in guide.reports] == [0.5, 1.0]
