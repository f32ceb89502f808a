"""Trainings that are ended at any moment: the same flow, bit by bit."""

import pyro
import pytest
import torch
from support.checkpoints import banana, in_two_parts, killed_after, number_of_writes
from support.marks import slow
from support.mutations import broken, mutation

from pyro_flowsamp import (
    AdvNFOptions,
    AutoAdvNF,
    AutoAnnealingFlow,
    AutoDeformationFlow,
    AutoFlow,
    CheckpointOptions,
    DeformationOptions,
    FitOptions,
)
from pyro_flowsamp.checkpoint.folder import CheckpointError
from pyro_flowsamp.guides.advnf.adversary import AdversarialKL
from pyro_flowsamp.guides.deformation.collocation import CollocationPoints
from pyro_flowsamp.training.train import Stepper, fit

DRAWS = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def guide_and_arguments(kind, options):
    target = banana()
    if kind == "AutoFlow":
        return AutoFlow(target, options=options), {}
    if kind == "ensemble":
        return AutoFlow(target, options=options, ensemble=DRAWS), {}
    if kind == "AutoAdvNF":
        settings = AdvNFOptions(pretraining=0.2)
        return AutoAdvNF(target, options=options, settings=settings), {"ensemble": DRAWS}
    if kind == "AutoAnnealingFlow":
        arguments = {"reference": 4.0, "target_ess": 0.6, "num_particles": 512}
        return AutoAnnealingFlow(target, options=options, **arguments), {}
    settings = DeformationOptions(time_grid=6, hidden_features=16)
    return AutoDeformationFlow(target, base_scale=2.0, options=options, settings=settings), {}


def train(kind, path, steps=22, every=4):
    """All that a training returns, in a process of its own."""
    pyro.set_rng_seed(0)
    checkpoint = path and CheckpointOptions(path, every_seconds=float("inf"), every_steps=every)
    options = FitOptions(max_steps=steps, eval_every=6, progress=False, checkpoint=checkpoint)
    guide, arguments = guide_and_arguments(kind, options)
    history = guide.fit(**arguments)
    numbers = torch.tensor(
        [*history.loss, *history.ess, history.final_ess, history.steps, history.evaluations],
        dtype=torch.double,
    )
    return [*guide.flow.parameters(), numbers.nan_to_num(-1.0), torch.rand(3)]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


KINDS = "AutoFlow", "AutoAdvNF", "ensemble", "AutoAnnealingFlow", "AutoDeformationFlow"


@pytest.mark.parametrize("kind", slow(KINDS, *KINDS[1:]))
def test_the_same_flow_after_an_end_at_any_moment(tmp_path, kind):
    whole = train(kind, None)
    count = number_of_writes(lambda: train(kind, tmp_path / "count"))
    for writes in sorted({1, count // 3, count // 2, count - 1} - {0}):
        path = tmp_path / str(writes)
        assert same(whole, in_two_parts(lambda path=path: train(kind, path), writes)), writes
    again = train(kind, tmp_path / "count")  # finished: nothing is trained
    assert same(whole[:-1], again[:-1])


def test_other_trainings_are_refused_by_name(tmp_path):
    train("AutoFlow", tmp_path)
    with pytest.raises(CheckpointError, match="options.max_steps is 23 and was 22"):
        train("AutoFlow", tmp_path, steps=23)
    with pytest.raises(CheckpointError, match="ensemble has other values"):
        train("ensemble", tmp_path)


def test_an_interrupted_training_goes_on(tmp_path):
    """The step that Ctrl-C has ended is made again."""
    whole = train("AutoFlow", None)
    right, calls = Stepper.step, []

    def step(*arguments):
        calls.append(0)
        if len(calls) == 14:
            raise KeyboardInterrupt
        return right(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.warns(UserWarning, match="interrupted"):
        patch.setattr(Stepper, "step", step)
        train("AutoFlow", tmp_path)
    assert same(whole, train("AutoFlow", tmp_path))


def test_fit_alone_is_stored_too(tmp_path):
    def run(path):
        torch.manual_seed(0)
        x = torch.nn.Parameter(torch.tensor(3.0))
        options = FitOptions(max_steps=9, progress=False, checkpoint=path)
        fit([x], lambda: ((x - torch.rand(())).square(), None), torch.mean, options)
        return x.detach()

    assert torch.equal(run(tmp_path), run(None))
    with killed_after(None) as writes:
        assert torch.equal(run(tmp_path), run(None)) and not writes


# ---- broken on purpose ---------------------------------------------------------------------------


@mutation(Stepper, "load_state_dict")
def without_averages(right, self, state):
    right(self, {**state, "second": [0 * value for value in state["second"]]})


@mutation(AdversarialKL, "load_state_dict")
def without_the_discriminator(right, self, state):
    self.steps = state["steps"]


@mutation(CollocationPoints, "load_state_dict")
def without_the_points(right, self, state):
    return None


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (without_averages, "AutoFlow"),
        pytest.param(without_the_discriminator, "AutoAdvNF", marks=pytest.mark.slow),
        pytest.param(without_the_points, "AutoDeformationFlow", marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_mutations_are_seen(tmp_path, wrong, kind):
    whole = train(kind, None)
    count = number_of_writes(lambda: train(kind, tmp_path / "count"))
    with broken(wrong):
        found = in_two_parts(lambda: train(kind, tmp_path / "run"), count - 2)
    assert not same(whole, found)
