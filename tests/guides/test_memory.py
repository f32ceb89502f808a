"""The memory of a training: counted before its first step, and told where there is too little."""

import pytest
import torch
from support.mutations import broken, mutation
from support.peak import Peak, unknown

from pyro_flowsamp import (
    AutoAdvNF,
    AutoAnnealingFlow,
    AutoDeformationFlow,
    AutoFlow,
    FitOptions,
    ReverseKL,
    Target,
)
from pyro_flowsamp.free_memory import TooLittleMemoryError
from pyro_flowsamp.guides import memory

FIRST = FitOptions(max_steps=1, progress=False)


def energy(x):
    return 0.5 * (x - 1).square().sum(-1) + (x.sum(-1)).cos()


def auto(options, **given):
    return AutoFlow(Target.from_energy(energy, 10), options=options, **given)


def spline(options):
    return auto(options, flow="spline")


def reverse(options):
    return auto(options, objective=ReverseKL())


def adversarial(options):
    return AutoAdvNF(Target.from_energy(energy, 10), options=options, flow="coupling")


def annealing(options):
    given = {"reference": 2.0, "num_particles": 256, "schedule": [0.0, 1.0]}
    return AutoAnnealingFlow(Target.from_energy(energy, 10), options=options, **given)


def deformation(options):
    return AutoDeformationFlow(Target.from_energy(energy, 10), base_scale=2.0, options=options)


GUIDES = [auto, spline, reverse, adversarial, annealing, deformation]


@pytest.mark.parametrize("make", GUIDES, ids=lambda make: make.__name__)
def test_a_training_that_does_not_fit_is_refused_before_any_step(make, monkeypatch):
    guide = make(FIRST)
    target = guide.target_for()
    needed = guide.bytes_of_training(target)
    assert needed["draws"] > 100 * FIRST.batch_size and needed["parameters"]
    before = [p.clone() for p in guide.parameters()]
    monkeypatch.setattr(memory, "free_bytes", lambda device: sum(needed.values()))
    guide.check_memory(target)
    monkeypatch.setattr(memory, "free_bytes", lambda device: sum(needed.values()) - 1)
    asked, states = target.evaluations, torch.get_rng_state()
    text = r"256 draws in a batch needs at least [\d,]+ bytes .* for draws.*FitOptions\(batch_size="
    with pytest.raises(TooLittleMemoryError, match=text):
        guide.fit()
    assert target.evaluations == asked and torch.equal(torch.get_rng_state(), states)
    assert all(torch.equal(*pair) for pair in zip(before, guide.parameters(), strict=True))


def of_step(make, num):
    """The memory that one step takes over the number that is counted."""
    guide = make(FitOptions(max_steps=1, batch_size=num, progress=False))
    target = guide.target_for()
    guide.trained = True
    with Peak() as peak:
        guide.train_flow(target, None)
    return peak.largest / sum(guide.bytes_of_training(target).values())


@unknown
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("make", [auto, spline, reverse], ids=lambda make: make.__name__)
def test_the_count_is_a_large_part_of_what_a_step_takes(make):
    of_step(make, 1000)
    found = of_step(make, 8000)
    print(f"{make.__name__}: {found:.2f} times what is counted")
    assert 0.8 < found < 2.0


@mutation(memory, "bytes_per_draw")
def draws_forgotten(bytes_per_draw, compute, device="cpu"):
    return 0


@mutation(memory, "bytes_per_draw")
def counted_twice(bytes_per_draw, compute, device="cpu"):
    return 2 * bytes_per_draw(compute, device)


@unknown
@pytest.mark.parametrize("wrong", [draws_forgotten, counted_twice], ids=lambda m: m.__name__)
def test_a_wrong_count_would_be_seen(wrong):
    with broken(wrong):
        assert not 0.8 < of_step(auto, 8000) < 2.0


def test_the_count_changes_nothing(monkeypatch):
    """Neither random numbers, nor a batch norm's averages, nor the counts of the target."""

    def trained():
        torch.manual_seed(0)
        guide = auto(FitOptions(max_steps=3, progress=False, stop_at_ess=2.0))
        guide.fit()
        return guide.state_dict(), guide.target_for().evaluations

    (one, evaluations) = trained()
    monkeypatch.setattr(memory.CountedTraining, "check_memory", lambda *given: None)
    (other, asked) = trained()
    tensors = [name for name, value in one.items() if isinstance(value, torch.Tensor)]
    assert evaluations == asked and all(torch.equal(one[name], other[name]) for name in tensors)


def test_what_a_flow_counts_is_put_back():
    guide = auto(FIRST)
    target = guide.target_for()
    guide.flow.register_buffer("seen", torch.zeros(()))
    guide.flow.register_forward_pre_hook(lambda flow, given: flow.seen.add_(1))
    guide.bytes_of_training(target)
    assert float(guide.flow.seen) == 0


def test_an_objective_of_a_user_is_not_called():
    calls = []

    def objective(flow, target, num, context):
        calls.append(num)
        return ReverseKL()(flow, target, num, context)

    guide = auto(FIRST, objective=objective)
    target = guide.target_for()
    assert guide.bytes_of_training(target)["draws"] and not calls


def test_a_computation_that_fails_counts_nothing():
    assert memory.bytes_per_draw(lambda num: 1 / 0) == 0
