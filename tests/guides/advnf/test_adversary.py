"""The adversary: its losses, its balance with the other losses, and its pauses."""

from math import log

import pytest
import torch
from support.discriminators import FixedTerms
from torch import nn
from torch.testing import assert_close

from pyro_flowsamp.flows.recipes import coupling
from pyro_flowsamp.guides.advnf.adversary import LOSSES, AdversarialKL, Adversary, Ensemble
from pyro_flowsamp.guides.advnf.discriminator import DenseDiscriminator
from pyro_flowsamp.guides.advnf.guide import fading
from pyro_flowsamp.problems import mog4

NO_ANGLES = torch.zeros(2, dtype=torch.bool)


# ---- the adversary ------------------------------------------------------------------------------


def adversary(network, loss="gan", rate=1e-3):
    return Adversary(network, loss, rate, NO_ANGLES)


@pytest.mark.parametrize("loss, chance", [("gan", 2 * log(2)), ("hinge", 2.0)])
def test_losses_at_chance(loss, chance):
    zero = torch.zeros(5)
    assert_close(
        LOSSES[loss].real(zero).mean() + LOSSES[loss].fake(zero).mean(), torch.tensor(chance)
    )
    assert LOSSES[loss].chance == pytest.approx(chance)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_signs(loss):
    """Large logits are for the ensemble's draws; the flow wants large ones for its own."""
    one, d = LOSSES[loss], torch.tensor([-0.5, 0.5])
    assert one.real(d).diff() < 0 < one.fake(d).diff()
    assert one.flow(d).diff() < 0


def test_the_best_discriminator_is_the_log_ratio():
    """Of N(1, 1) and N(-1, 1) that is 2x, so that a step from there moves nothing on average."""
    network = FixedTerms(2.0)
    real, fake = torch.randn(200_000, 2), torch.randn(200_000, 2)
    real[:, 0] += 1
    fake[:, 0] -= 1
    loss = LOSSES["gan"].real(network(real)).mean() + LOSSES["gan"].fake(network(fake)).mean()
    loss.backward()
    assert network.w.grad[0].abs() < 5e-3 and network.b.grad.abs() < 5e-3


@pytest.mark.slow
def test_what_is_known_by_heart_does_not_count():
    """A large network tells 20 draws that it has seen from others of the same distribution."""
    network, draws = DenseDiscriminator(2, hidden_features=(256, 256)), Ensemble(torch.randn(20, 2))
    told, unseen = adversary(network, rate=3e-3), Ensemble(torch.randn(2000, 2))
    for _ in range(600):
        told.update(draws.pick(200), torch.randn(200, 2), unseen.pick(200))
    learnt = network(draws.draws)[:, None] > network(torch.randn(2000, 2))
    assert learnt.double().mean() > 0.75 and float(told.gini) < 0.2


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
    objective = AdversarialKL(Ensemble(known.sample(100)), None, reverse=0.0, forward=fading)
    values = []
    for objective.progress in (0.0, 0.25):
        torch.manual_seed(0)
        values.append(objective(flow, known.target, 64).loss)
    assert_close(values[1], 0.5 * values[0])
    assert fading(0.5) == fading(1.0) == 0.0


def test_the_weight_falls_to_nothing_at_chance():
    told, draws = adversary(FixedTerms(0.0)), Ensemble(torch.randn(500, 2))
    told._ratio, told.gini = torch.tensor(3.0), torch.tensor(1.0)
    first = float(told.weight())
    for _ in range(200):
        told.update(draws.pick(500), torch.randn(500, 2), draws.pick(500))
    assert first == 3.0 and float(told.weight()) < 0.3


def test_a_discriminator_without_error_is_paused():
    """Its loss has vanished: it is left as it is, and has no say, until it errs again."""
    told = adversary(FixedTerms(100.0), rate=0.1)
    real, fake = (
        torch.tensor([[3.0, 0.0]]).expand(50, -1),
        torch.tensor([[-3.0, 0.0]]).expand(50, -1),
    )
    active = [float(told.update(Ensemble(real), fake, Ensemble(real))) for _ in range(200)]
    assert active[0] == 1 and active[-1] == 0 and float(told.paused) == active.count(0)
    before = told.network.w.detach().clone()
    told.update(Ensemble(real), fake, Ensemble(real))
    assert torch.equal(told.network.w, before)
    assert float(told.update(Ensemble(fake), real, Ensemble(fake))) == 1  # now all are wrong


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_a_logit_that_is_no_number_is_passed_over(loss):
    told = adversary(FixedTerms(1.0), loss)
    bad = torch.tensor([[torch.nan, 0.0]])
    assert float(told.update(Ensemble(bad), torch.zeros(1, 2), Ensemble(bad))) == 1
    assert told.gini.isfinite() and told.paused.isfinite() and int(told.stepper.skipped) == 1


def test_the_slope_of_a_wasserstein_discriminator():
    told = adversary(FixedTerms(3.0), "wasserstein")
    real, fake = Ensemble(torch.randn(10, 2)), torch.randn(10, 2)
    assert_close(told._steepness(real, fake), torch.tensor(4.0))  # (3 - 1)²
    before = told.network.w.detach().clone()
    assert float(told.update(real, fake, real)) == 1 and not torch.equal(told.network.w, before)


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

    told = Adversary(Spy(), "wasserstein", 1e-3, torch.ones(1, dtype=torch.bool))
    told._steepness(Ensemble(torch.full((50, 1), 3.0)), torch.full((50, 1), -3.0))
    assert (seen[0].cos() < -0.98).all()


def test_balanced_by_gradient_norms():
    flow = coupling(2)
    told, x = adversary(FixedTerms(1.0)), flow(None).rsample((64,))
    generator_loss = told.generator_loss(x, None)
    told.update_balance(generator_loss, 5 * generator_loss, list(flow.parameters()))
    assert_close(told._ratio, torch.tensor(5.0), atol=1e-4, rtol=1e-4)


def test_the_objective_is_the_weighted_sum():
    known, flow = mog4(), coupling(2)
    told = adversary(FixedTerms(0.5, 0.1))
    ensemble = Ensemble(known.sample(1000))

    def value(**how):
        torch.manual_seed(3)
        return AdversarialKL(ensemble, **how)(flow, known.target, 64).loss

    parts = [value(adversary=None, reverse=r, forward=f) for r, f in ((1.0, 0.0), (0.0, 1.0))]
    both = value(adversary=None, reverse=0.5, forward=2.0)
    assert_close(both, 0.5 * parts[0] + 2 * parts[1], atol=1e-3, rtol=1e-3)
    alone = value(adversary=told, adversarial=3.0, reverse=0.0, forward=0.0)
    x = flow(None).sample((4096,))
    assert 0.5 < float(alone) / float(3 * LOSSES["gan"].flow(told.network(x)).mean()) < 2
