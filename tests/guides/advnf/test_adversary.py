"""The adversary: its losses, its balance with the other losses, and its pauses."""

from math import log

import pytest
import torch
from support.discriminators import FixedTerms
from torch import nn
from torch.testing import assert_close
from variants import ADVERSARIAL_LOSSES, HINGE, WASSERSTEIN, gradient_penalty

from pyro_flowsamp.flows.recipes import coupling
from pyro_flowsamp.guides.advnf import GAN, AdvNFOptions, AdvNFWeights
from pyro_flowsamp.guides.advnf.adversary import AdversarialKL, Adversary
from pyro_flowsamp.guides.advnf.discriminator import DenseDiscriminator
from pyro_flowsamp.guides.advnf.ensemble import Ensemble
from pyro_flowsamp.guides.advnf.options import fading
from pyro_flowsamp.problems import mog4

LOSSES = {"gan": GAN, **ADVERSARIAL_LOSSES}
NO_ANGLES = torch.zeros(2, dtype=torch.bool)


# ---- the adversary ------------------------------------------------------------------------------


def adversary(network, loss=GAN, rate=1e-3):
    return Adversary(network, NO_ANGLES, loss, AdvNFOptions(learning_rate=rate))


@pytest.mark.parametrize("loss, chance", [(GAN, 2 * log(2)), (HINGE, 2.0)])
def test_losses_at_chance(loss, chance):
    zero = torch.zeros(5)
    assert_close(loss.real(zero).mean() + loss.fake(zero).mean(), torch.tensor(chance))
    assert loss.chance == pytest.approx(chance)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_signs(loss):
    """Large logits are for the ensemble's draws; the flow wants large ones for its own."""
    d = torch.tensor([-0.5, 0.5])
    assert loss.real(d).diff() < 0 < loss.fake(d).diff()
    assert loss.flow(d).diff() < 0


def test_the_best_discriminator_is_the_log_ratio():
    """Of N(1, 1) and N(-1, 1) that is 2x, so that a step from there moves nothing on average."""
    network = FixedTerms(2.0)
    real, fake = torch.randn(200_000, 2), torch.randn(200_000, 2)
    real[:, 0] += 1
    fake[:, 0] -= 1
    loss = GAN.real(network(real)).mean() + GAN.fake(network(fake)).mean()
    loss.backward()
    assert network.w.grad[0].abs() < 5e-3 and network.b.grad.abs() < 5e-3


@pytest.mark.slow
def test_what_is_known_by_heart_does_not_count():
    """A large network tells 20 draws that it has seen from others of the same distribution."""
    network, draws = DenseDiscriminator(2, hidden_features=(256, 256)), Ensemble(torch.randn(20, 2))
    judge, unseen = adversary(network, rate=3e-3), Ensemble(torch.randn(2000, 2))
    for _ in range(600):
        judge.update(draws.pick(200), torch.randn(200, 2), unseen.pick(200))
    learnt = network(draws.draws)[:, None] > network(torch.randn(2000, 2))
    assert learnt.double().mean() > 0.75 and float(judge.gini) < 0.2


def test_ensembles_split():
    whole = Ensemble(torch.arange(10.0)[:, None], torch.arange(10.0)[:, None])
    some, rest = whole.split(0.2)
    assert len(some.draws) == 2 and len(rest.draws) == 8
    together = torch.cat([some.draws, rest.draws]).flatten()
    assert_close(together.sort().values, torch.arange(10.0))
    assert torch.equal(rest.draws, rest.contexts)
    assert [len(part.draws) for part in whole.at(torch.arange(2)).split(0.0)] == [1, 1]


def test_the_forward_kl_fades():
    known, flow = mog4(), coupling(2)
    objective = AdversarialKL(
        Ensemble(known.sample(100)), None, AdvNFWeights(reverse=0.0, forward=fading)
    )
    values = []
    for objective.progress in (0.0, 0.25):
        torch.manual_seed(0)
        values.append(objective(flow, known.target, 64).loss)
    assert_close(values[1], 0.5 * values[0])
    assert fading(0.5) == fading(1.0) == 0.0


def test_the_weight_falls_to_nothing_at_chance():
    judge, draws = adversary(FixedTerms(0.0)), Ensemble(torch.randn(500, 2))
    judge.ratio, judge.gini = torch.tensor(3.0), torch.tensor(1.0)
    first = float(judge.weight())
    for _ in range(200):
        judge.update(draws.pick(500), torch.randn(500, 2), draws.pick(500))
    assert first == 3.0 and float(judge.weight()) < 0.3


def test_a_discriminator_without_error_is_paused():
    """Its loss has vanished: it is left as it is, and has no say, until it errs again."""
    judge = adversary(FixedTerms(100.0), rate=0.1)
    real, fake = (
        torch.tensor([[3.0, 0.0]]).expand(50, -1),
        torch.tensor([[-3.0, 0.0]]).expand(50, -1),
    )
    active = [float(judge.update(Ensemble(real), fake, Ensemble(real))) for _ in range(200)]
    assert active[0] == 1 and active[-1] == 0 and float(judge.paused) == active.count(0)
    before = judge.network.w.detach().clone()
    judge.update(Ensemble(real), fake, Ensemble(real))
    assert torch.equal(judge.network.w, before)
    assert float(judge.update(Ensemble(fake), real, Ensemble(fake))) == 1  # now all are wrong


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_logit_that_is_no_number_is_passed_over(loss):
    judge = adversary(FixedTerms(1.0), loss)
    bad = torch.tensor([[torch.nan, 0.0]])
    assert float(judge.update(Ensemble(bad), torch.zeros(1, 2), Ensemble(bad))) == 1
    assert judge.gini.isfinite() and judge.paused.isfinite() and int(judge.stepper.skipped) == 1


def test_the_slope_of_a_wasserstein_discriminator():
    judge = adversary(FixedTerms(3.0), WASSERSTEIN)
    real, fake = Ensemble(torch.randn(10, 2)), torch.randn(10, 2)
    penalty = gradient_penalty(judge.network, real, fake, NO_ANGLES, weight=1.0)
    assert_close(penalty, torch.tensor(4.0))  # (3 - 1)²
    before = judge.network.w.detach().clone()
    assert float(judge.update(real, fake, real)) == 1 and not torch.equal(judge.network.w, before)


def test_between_angles_along_the_arc():
    """From 3 to -3 by way of π: never through zero."""
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self, x, context=None):
            seen.append(x.detach())
            return x[:, 0] * self.w

    real, fake = Ensemble(torch.full((50, 1), 3.0)), torch.full((50, 1), -3.0)
    gradient_penalty(Spy(), real, fake, torch.ones(1, dtype=torch.bool))
    assert (seen[0].cos() < -0.98).all()


def test_balanced_by_gradient_norms():
    flow = coupling(2)
    judge, x = adversary(FixedTerms(1.0)), flow(None).rsample((64,))
    generator_loss = judge.generator_loss(x, None)
    judge.update_balance(generator_loss, 5 * generator_loss, list(flow.parameters()))
    assert_close(judge.ratio, torch.tensor(5.0), atol=1e-4, rtol=1e-4)


def test_the_objective_is_the_weighted_sum():
    known, flow = mog4(), coupling(2)
    judge = adversary(FixedTerms(0.5, 0.1))
    ensemble = Ensemble(known.sample(1000))

    def value(adversary=None, **weights):
        torch.manual_seed(3)
        objective = AdversarialKL(ensemble, adversary, AdvNFWeights(**weights))
        return objective(flow, known.target, 64).loss

    parts = [value(reverse=r, forward=f) for r, f in ((1.0, 0.0), (0.0, 1.0))]
    both = value(reverse=0.5, forward=2.0)
    assert_close(both, 0.5 * parts[0] + 2 * parts[1], atol=1e-3, rtol=1e-3)
    alone = value(adversary=judge, adversarial=3.0, reverse=0.0, forward=0.0)
    x = flow(None).sample((4096,))
    assert 0.5 < float(alone) / float(3 * GAN.flow(judge.network(x)).mean()) < 2
