"""Trainings whose batches are shared out: gradients, skipped steps, and the same flow on all."""

import numpy as np
import pyro
import pytest
import torch
from support.models import QUICK, conjugate, conjugate_data
from support.mutations import broken, mutation
from support.workers import run_workers
from torch import nn

from pyro_flowsamp import AutoFlow, FitOptions, PathGradient, ReverseKL, Target, workers
from pyro_flowsamp.distributed import SharedTraining, number_here, shared_training
from pyro_flowsamp.flows import coupling
from pyro_flowsamp.training.train import Stepper, fit
from pyro_flowsamp.weights import ess_fraction

OPTIONS = FitOptions(max_steps=8, batch_size=64, stop_at_ess=1.0, progress=False)


class OfLatents:
    """The reverse KL, or the path gradient, at given latent points."""

    def __init__(self, z, path):
        self.z, self.path = z, path

    def __call__(self, flow, target):
        x, ladj = flow(None).transform.inv.call_and_ladj(self.z)
        log_q = flow(None).base.log_prob(self.z) - ladj
        if self.path:
            return PathGradient().of_draws(flow, target, x, log_q, None).loss
        return (log_q - target.log_prob(x)).mean()


def gradient(group, path):
    """The gradient of one step, each worker with its rows of one batch."""
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    flow = coupling(3)
    target = Target.from_energy(lambda x: 0.5 * (x - 1).square().sum(-1), 3)
    z = torch.randn(48, 3).tensor_split(group.size)[group.rank]
    stepper = Stepper(flow.parameters(), FitOptions(learning_rate=0.1))
    stepper.shared = shared_training(stepper.parameters, True)
    seen = []

    def noted(right, self, grads, loss):
        seen.extend(right(self, grads, loss))
        return seen[-2], seen[-1]

    with broken(mutation(SharedTraining, "average")(noted)):
        loss = stepper.step(OfLatents(z, path)(flow, target))
    grads, _ = seen
    after = torch.cat([p.detach().flatten() for p in flow.parameters()])
    return torch.cat([g.flatten() for g in grads]), loss, after


@pytest.mark.parametrize("path", [False, True])
def test_the_gradient_is_that_of_the_whole_batch(path):
    (whole,) = run_workers(1, gradient, path)
    for size in (2, 4):
        for grad, loss, after in run_workers(size, gradient, path):
            assert np.abs(grad - whole[0]).max() < 1e-12 * np.abs(whole[0]).max()
            assert loss == pytest.approx(whole[1], rel=1e-12)
            assert np.abs(after - whole[2]).max() < 1e-6  # Adam divides by the gradient's root


def test_a_gradient_that_is_added_and_not_averaged_is_seen():
    @mutation(SharedTraining, "average")
    def added(right, self, grads, loss):
        grads, loss = right(self, grads, loss)
        return [grad * self.group.size for grad in grads], loss

    (whole,) = run_workers(1, gradient, False)
    with broken(added):
        found = run_workers(2, gradient, False)
    assert np.abs(found[0][0] - whole[0]).max() > 0.5 * np.abs(whole[0]).max()


def skipping(group):
    """Three steps, in the second of which one worker has a loss that is not a number."""
    x = nn.Parameter(torch.tensor(3.0))
    stepper = Stepper([x], FitOptions(learning_rate=0.5))
    stepper.shared = shared_training(stepper.parameters, True)
    places = []
    for step in range(3):
        factor = torch.nan if step == 1 and group.rank == 1 else 1.0
        stepper.step(factor * x.square())
        places.append(float(x))
    return places, float(stepper.skipped)


def test_steps_are_skipped_by_all_or_by_none():
    first, second = run_workers(2, skipping)
    assert first == second
    assert first[1] == 1.0
    assert first[0][0] == first[0][1] > first[0][2]


def test_a_step_that_one_worker_skips_alone_is_seen():
    @mutation(SharedTraining, "average")
    def finite_part(right, self, grads, loss):
        own = torch.isfinite(loss)
        mean = right(self, [grad.nan_to_num() for grad in grads], loss.nan_to_num())
        return mean[0], torch.where(own, mean[1], torch.nan)

    with broken(finite_part):
        first, second = run_workers(2, skipping)
    assert first != second


def trained(group, objective):
    pyro.set_rng_seed(group.rank)  # all begin with the flow of rank 0 all the same
    guide = AutoFlow(conjugate, objective=objective, options=OPTIONS)
    batches = []

    def noted(right, self, grads, loss):
        batches.append(loss)
        return right(self, grads, loss)

    with broken(mutation(SharedTraining, "average")(noted)):
        history = guide.fit(*conjugate_data())
    state = torch.cat([p.detach().flatten() for p in guide.parameters()])
    return state, history.loss, history.ess, history.stopped, torch.stack(batches)


def test_all_workers_end_with_the_same_flow():
    first, second = run_workers(2, trained, ReverseKL())
    assert np.array_equal(first[0], second[0])
    assert first[1:4] == second[1:4]
    assert not np.array_equal(first[4], second[4])  # of batches of their own


def test_one_worker_trains_as_well():
    with workers():
        guide = AutoFlow(conjugate, options=QUICK)
        assert guide.fit(*conjugate_data()).final_ess > 0.9


def shares(group):
    return number_here(100)


def test_batches_are_shared_out():
    assert run_workers(1, shares) == [100]
    assert run_workers(3, shares) == [34, 34, 34]
    assert number_here(100) == 100


def test_trainings_that_are_not_shared_out_are_refused():
    x = nn.Parameter(torch.tensor(3.0))

    def closure():
        return x.square(), None

    with workers(), pytest.raises(ValueError, match="this training is not shared out to workers"):
        fit([x], closure, ess_fraction, OPTIONS)
