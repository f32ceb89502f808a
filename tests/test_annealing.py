"""AutoAnnealingFlow: right evidence and mode weights, blocks that help, and what it refuses."""

import pytest
import torch
from torch.testing import assert_close

from pyro_flowsamp import IMH, AutoAnnealingFlow, FitOptions, Target, VectorizedMCMC
from pyro_flowsamp.guides import annealing
from pyro_flowsamp.targets import exp_gauss, gmm, unequal_pair

QUICK = FitOptions(
    max_steps=40, batch_size=256, learning_rate=5e-3, anneal=True, enough=0.99, progress=False
)
SMALL = {"num_particles": 2048, "hidden_features": 32, "options": QUICK}


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    guide = AutoAnnealingFlow(unequal_pair().target, **SMALL)
    guide.fit()
    return guide


def test_corrected_weights_of_modes_and_evidence(pair):
    known = unequal_pair()
    cloud = pair.particles(16384, islands=32)
    log_z, error = cloud.evidence
    assert error < 0.1 and abs(log_z - known.log_z) < 4.5 * error
    share = cloud.mean((known.assign(cloud.x) == 0).double())
    assert abs(share.value - known.weights[0]) < 4.5 * share.standard_error


def test_a_wrong_log_det_shows(pair, monkeypatch):
    push = annealing.transport.push

    def flipped(cloud, stage):
        right = push(cloud, stage)
        ladj = stage.map.push(cloud.x)[1].detach().double().view_as(right.log_w)
        return right._replace(log_w=right.log_w - 2 * ladj)

    monkeypatch.setattr(annealing.transport, "push", flipped)
    log_z, error = pair.particles(16384, islands=32).evidence
    assert abs(log_z) > 9 * error


def test_blocks_make_weights_even():
    guide = AutoAnnealingFlow(exp_gauss(5, 2, 4.0).target, start=1.0, **SMALL)
    with pytest.warns(UserWarning, match="where the start has no draws"):
        history = guide.fit()
    assert all(report.ess_before <= report.ess for report in guide.reports)
    assert min(report.ess for report in guide.reports) > 0.9
    assert history.final_ess > 0.7 and history.log_q_gap < 1e-3


def test_a_given_schedule_and_the_kernels():
    known = gmm(6)
    schedule = [0, 0.2, 0.4, 0.6, 0.8, 1]
    guide = AutoAnnealingFlow(known.target, start=1.0, schedule=schedule, **SMALL)
    with pytest.warns(UserWarning, match="where the start has no draws"):
        guide.fit()
    assert [report.beta for report in guide.reports] == schedule[1:]
    mcmc = VectorizedMCMC(IMH(guide=guide), 20, 10, 500, disable_progbar=True)
    mcmc.run()
    shares = known.mode_fractions(mcmc.get_samples()["x"])
    assert_close(shares, known.weights.to(shares), rtol=0, atol=0.08)


def test_a_state_dict_brings_its_blocks(pair):
    other = AutoAnnealingFlow(unequal_pair().target, **SMALL)
    other.bind()
    other.load_state_dict(pair.state_dict())
    x = 5 * torch.randn(20, 2)
    assert_close(other.flow().log_prob(x), pair.flow().log_prob(x))


def test_an_interrupted_path_goes_on(monkeypatch):
    guide = AutoAnnealingFlow(unequal_pair().target, **SMALL)
    add_block, calls = guide._add_block, []

    def interrupt(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return add_block(*args)

    monkeypatch.setattr(guide, "_add_block", interrupt)
    with pytest.warns(UserWarning, match="2 finished blocks are kept"):
        guide.fit()
    assert not guide.trained and len(guide.flow.blocks) == 2
    guide.fit()
    assert guide.trained and guide._annealing_blocks()[-1].beta == 1


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"schedule": [0, 0.5]}, "rises from 0 to 1"),
        ({"schedule": [0, 0.6, 0.5, 1]}, "rises from 0 to 1"),
        ({"objective": "reverse"}, "objective must be one of"),
        ({"start": -1.0}, "positive standard deviation"),
        ({"ess": 1.5}, "between 0 and 1"),
        ({"wasserstein": -1.0}, "must not be negative"),
    ],
)
def test_bad_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        AutoAnnealingFlow(unequal_pair().target, **wrong)


def test_angles_are_refused():
    target = Target.from_energy(lambda x: -x.cos().sum(-1), 2, angles=[0, 1])
    with pytest.raises(ValueError, match="has angles"):
        AutoAnnealingFlow(target).fit()


def test_particles_divide_into_islands(pair):
    with pytest.raises(ValueError, match="do not divide"):
        pair.particles(100, islands=16)


# ---- a single block between Gaussians N(0, a I) → N(0, b I) --------------------------------------


def _normal(variance):
    return Target.from_energy(lambda x: 0.5 * x.square().sum(-1) / variance, 2)


def _block(a, b, **options):
    """Slope and residual of the trained displacement, against x."""
    guide = AutoAnnealingFlow(
        _normal(b),
        start=a**0.5,
        schedule=[0, 1],
        num_particles=8192,
        options=FitOptions(300, 1024, 2e-3, anneal=True, enough=1.0, progress=False),
        **options,
    )
    guide.fit()
    x = a**0.5 * torch.randn(4000, 2)
    moved = (guide.flow.blocks[0](None).push(x)[0] - x).detach()
    slope = float((x * moved).sum() / x.square().sum())
    return slope, float((moved - slope * x).norm() / x.norm())


def test_an_infinitesimal_block_is_the_difference_of_scores():
    """Theorem 3.3: as h → 0, v = ∇log f_k − ∇log f_{k−1} = x (1/a − 1/b)."""
    a, b, h = 2.0, 1.0, 0.02
    slope, residual = _block(a, b, objective="linear", wasserstein=1 / (2 * h))
    assert slope / h == pytest.approx(1 / a - 1 / b, rel=0.08)
    assert residual < 0.1 * abs(slope)


def test_a_block_of_finite_time_is_the_optimal_map():
    """s a/b − 1/s + (s − 1) a/h = 0 for x → s x, with γ = 1/(2h)."""
    slope, residual = _block(2.0, 1.0, objective="kl", wasserstein=0.5)
    assert 1 + slope == pytest.approx((1 + 5**0.5) / 4, rel=0.02)
    assert residual < 0.05


def test_the_default_block_is_the_whole_map():
    slope, _ = _block(2.0, 1.0)
    assert 1 + slope == pytest.approx(0.5**0.5, rel=0.02)


# ---- paths that lead nowhere ---------------------------------------------------------------------


def test_a_target_that_cannot_be_normalised():
    target = Target.from_energy(lambda x: -0.5 * x.square().sum(-1), 2)
    with pytest.raises(ValueError, match="cannot be normalised"):
        AutoAnnealingFlow(target, start=1.0, **SMALL).fit()


def test_a_start_too_narrow_for_one_stage():
    target = Target.from_energy(lambda x: 0.5 * (x - 30).square().sum(-1), 2)
    with pytest.raises(ValueError, match="lost their weight at beta = 1.*more stages"):
        AutoAnnealingFlow(target, start=0.1, schedule=[0, 1], **SMALL).fit()


def test_a_velocity_that_is_not_finite_is_rolled_back(monkeypatch):
    push = annealing.VelocityMLP.with_divergence
    seen = []

    def with_divergence(self, t, x):
        velocity, divergence = push(self, t, x)
        if self.training and len(seen) < 1:
            return velocity * torch.nan, divergence
        return velocity, divergence

    fit = annealing.fit

    def counted(*args):
        history = fit(*args)
        seen.append(history)
        return history

    monkeypatch.setattr(annealing.VelocityMLP, "with_divergence", with_divergence)
    monkeypatch.setattr(annealing, "fit", counted)
    guide = AutoAnnealingFlow(_normal(2.0), start=1.0, schedule=[0, 1], **SMALL)
    guide.fit()
    assert seen[0].skipped == QUICK.max_steps
    assert guide.reports[0].ess >= guide.reports[0].ess_before
