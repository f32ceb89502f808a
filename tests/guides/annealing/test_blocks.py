"""Blocks of the annealing flow: the share that stays behind, and training that fails."""

import pytest
import torch
from support.annealing import QUICK, SMALL, normal_target
from torch.testing import assert_close

from pyro_flowsamp import AnnealingOptions, AutoAnnealingFlow, Target
from pyro_flowsamp.guides.annealing import blocks, training
from pyro_flowsamp.nn import mlp
from pyro_flowsamp.smc import driver, particles, paths
from pyro_flowsamp.smc.starts import TemperedStart
from pyro_flowsamp.training import train

# ---- paths that lead nowhere ---------------------------------------------------------------------


class NotFinite:
    """Spoils the velocity in the first few trainings, and keeps what each of them reported."""

    def __init__(self, monkeypatch, times):
        self.times, self.histories, self.rates = times, [], []
        self.with_divergence = mlp.VelocityMLP.with_divergence
        self.fit = train.fit
        spoilt = lambda network, t, x: self.spoilt(network, t, x)  # noqa: E731
        monkeypatch.setattr(mlp.VelocityMLP, "with_divergence", spoilt)
        monkeypatch.setattr(training, "fit", self.counted)

    def spoilt(self, network, t, x):
        velocity, divergence = self.with_divergence(network, t, x)
        if len(self.histories) < self.times and torch.is_grad_enabled():
            return velocity * torch.nan, divergence
        return velocity, divergence

    def counted(self, parameters, closure, ess, options):
        history = self.fit(parameters, closure, ess, options)
        self.histories.append(history)
        self.rates.append(options.learning_rate)
        return history


@pytest.mark.filterwarnings("ignore:.*where the reference has no draws")
def test_a_velocity_that_is_not_finite_is_rolled_back(monkeypatch):
    spoilt = NotFinite(monkeypatch, 1)
    guide = AutoAnnealingFlow(normal_target(2.0), reference=1.0, schedule=[0, 1], **SMALL)
    history = guide.fit()
    assert spoilt.histories[0].skipped == QUICK.max_steps
    assert spoilt.rates == pytest.approx([QUICK.learning_rate, QUICK.learning_rate / 3])
    assert guide.reports[0].rollbacks == history.skipped == 1
    assert guide.reports[0].ess > guide.reports[0].ess_before


@pytest.mark.filterwarnings("ignore:.*where the reference has no draws")
def test_a_velocity_that_is_never_finite_is_given_up(monkeypatch):
    NotFinite(monkeypatch, 100)
    guide = AutoAnnealingFlow(normal_target(2.0), reference=1.0, schedule=[0, 1], **SMALL)
    message = "beta = 1 made the weights worse, or was not finite, in 3 trainings"
    with pytest.warns(UserWarning, match=message):
        guide.fit()
    assert guide.reports[0].rollbacks == 3
    x = torch.randn(10, 2)
    with torch.no_grad():
        assert_close(guide.flow.blocks[0](None).push(x)[0], x)


# ---- edges, dtypes, models -----------------------------------------------------------------------


def _toward(shift):
    """Particles of N(0, 1), the next density N(1, 1), and a block that shifts by so much."""
    block = blocks.Block(1, 8)  # which moves nothing yet
    block.velocity.out_bias.data.fill_(shift)
    ones = torch.ones(1)
    base = TemperedStart(torch.zeros(1), ones, torch.zeros(1, dtype=torch.bool))
    target = Target.from_energy(lambda x: 0.5 * (x[:, 0] - 1).square(), 1)
    cloud = particles.init(base.sample(20000), paths.density(target, base, 0 * ones[0], ones))
    density = paths.density(target, base, ones[0], ones)
    unmoved = driver.transport(cloud, driver.Stage(None, density, ones, ones[0]))
    return training.choose_defensive_weight(
        block,
        cloud,
        unmoved,
        lambda x: base.log_prob_and_grad(x)[0],
        AnnealingOptions().defensive_grid,
    )


@pytest.mark.parametrize("shift, share", [(1.0, 0.02), (-3.0, 1.0), (0.0, 1.0)])
def test_few_stay_behind_where_a_block_is_right(shift, share):
    assert _toward(shift) == share


@pytest.mark.parametrize("shift", [1.5, 4.0])
def test_some_stay_behind_where_it_is_not(shift):
    assert 0.02 < _toward(shift) < 1
