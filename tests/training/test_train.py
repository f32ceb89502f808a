"""The optimiser loop descends, skips values that are not finite, and stops for a reason."""

import pytest
import torch
from torch import nn

from pyro_flowsamp.options import FitOptions
from pyro_flowsamp.training.train import Stepper, fit
from pyro_flowsamp.weights import ess_fraction

OPTIONS = FitOptions(max_steps=200, learning_rate=0.05, eval_every=20, progress=False)


class Valley:
    """A quadratic whose loss, or gradient, is not finite now and then."""

    def __init__(self, bad=lambda step: 0.0, log_weights=None):
        self.x = nn.Parameter(torch.tensor([3.0, -2.0]))
        self.idle = nn.Parameter(torch.ones(1))  # gets no gradient
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.parameters = [self.x, self.idle, self.frozen]
        self.log_weights = torch.randn(10) if log_weights is None else log_weights
        self.bad, self.step = bad, 0

    def __call__(self):
        self.step += 1
        loss = (self.x * (1 + self.bad(self.step))).square().sum()
        return loss, self.log_weights + 0 * loss.detach()  # NaN where the loss is


def test_descends():
    valley = Valley()
    history = fit(valley.parameters, valley, ess_fraction, OPTIONS)
    assert valley.x.abs().max() < 0.1
    assert history.loss[-1] < 0.1 * history.loss[0]
    assert len(history.loss) == len(history.ess) == -(-history.steps // 20)
    assert valley.idle == 1 and valley.frozen == 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_skips_and_counts_what_is_not_finite(value):
    valley = Valley(bad=lambda step: value if step % 5 == 0 else 0.0)
    history = fit(valley.parameters, valley, ess_fraction, OPTIONS)
    assert history.skipped == history.steps // 5 > 0
    assert torch.isfinite(valley.x).all() and valley.x.abs().max() < 0.1


def test_a_skipped_step_changes_nothing():
    valley = Valley()
    stepper = Stepper(valley.parameters, OPTIONS)
    stepper.step(valley()[0])

    def state():
        return [valley.x.clone(), *map(torch.clone, stepper.first + stepper.second)]

    before = state()
    stepper.step(valley()[0] * torch.nan)
    stepper.step((valley.x - valley.x.detach()).sqrt().sum())  # a finite loss, not its gradient
    assert all(torch.equal(a, b) for a, b in zip(before, state()))
    assert int(stepper.skipped) == 2
    stepper.step(valley()[0])
    assert not torch.equal(before[0], valley.x)


def test_gradients_laid_out_otherwise_than_their_parameter():
    """Fused Adam walks both in one order of memory, whatever their strides."""
    parameter, wish = nn.Parameter(torch.zeros(3, 4)), torch.randn(3, 4)
    stepper = Stepper([parameter], FitOptions(learning_rate=0.1))
    stepper.step((parameter.mT * wish.mT.contiguous()).sum())
    assert torch.equal(parameter.sign(), -wish.sign())  # Adam's first step


def test_a_parameter_that_joins_late():
    """Until a loss depends on it, it stays, and its first step is as long as anyone's first."""
    early, late = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    stepper = Stepper([early, late], FitOptions(learning_rate=0.1))
    for _ in range(20):
        stepper.step(early.square().sum() + early.sum())
    assert (late == 0).all() and (early != 0).all()
    stepper.step(early.square().sum() + late.sum())
    torch.testing.assert_close(late.detach(), torch.full((2,), -0.1))


def test_the_learning_rate_rises_and_falls():
    """Adam's steps are as long as the learning rate, where the gradient is constant."""
    options = FitOptions(
        100,
        learning_rate=0.1,
        eval_every=1,
        warmup_fraction=0.2,
        cosine_schedule=True,
        progress=False,
    )
    x, path = nn.Parameter(torch.zeros(1)), [0.0]

    def slope():
        path.append(float(x.detach()))
        return x.sum(), None

    fit([x], slope, ess_fraction, options)
    steps = -torch.tensor(path[1:]).diff()
    assert torch.isclose(steps[0], torch.tensor(0.1 / 20), rtol=1e-2)
    assert steps.argmax() == 19 and (steps[:20].diff() > 0).all() and (steps[19:].diff() < 0).all()
    assert steps[49] == pytest.approx(0.05, rel=0.1) and steps[-1] < 1e-3


def test_warm_up_is_a_part():
    with pytest.raises(ValueError, match="warmup_fraction is a part"):
        FitOptions(warmup_fraction=50)


@pytest.mark.parametrize("value", [-1.0, torch.nan])
@pytest.mark.parametrize("name", ["learning_rate", "clip_norm"])
def test_rates_and_bounds_are_positive(name, value):
    with pytest.raises(ValueError, match=f"FitOptions.{name} must be .*, got {value}"):
        FitOptions(**{name: value})


def test_decays_are_counted_from_zero():
    assert FitOptions(max_lr_decays=0).max_lr_decays == 0
    with pytest.raises(ValueError, match="FitOptions.max_lr_decays must be at least 0, got -1"):
        FitOptions(max_lr_decays=-1)


@pytest.mark.parametrize(
    "log_weights, stopped",
    [(torch.zeros(10), "enough"), (torch.arange(10.0), "flat")],
)
def test_stops(log_weights, stopped):
    valley = Valley(log_weights=log_weights)
    options = FitOptions(max_steps=3000, eval_every=10, learning_rate=0.1, progress=False)
    history = fit(valley.parameters, valley, ess_fraction, options)
    assert history.stopped == stopped
    assert history.steps < 3000 and history.steps % 10 == 0


def test_progress_bar(capsys):
    for progress in (True, False):
        valley = Valley()
        options = FitOptions(max_steps=5, eval_every=5, progress=progress)
        fit(valley.parameters, valley, ess_fraction, options)
        assert ("Train" in capsys.readouterr().err) == progress
