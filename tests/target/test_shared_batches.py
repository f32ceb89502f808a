"""Batches that several workers evaluate: the numbers of one, whatever their number."""

import numpy as np
import pytest
import torch
from support.models import conjugate, conjugate_data
from support.mutations import broken, mutation
from support.shared_sampling import BLOCKS, sampled
from support.workers import run_workers

from pyro_flowsamp import Target
from pyro_flowsamp.distributed import WorkerGroup, replicated
from pyro_flowsamp.target import shared_batches
from pyro_flowsamp.target.work import WorkCounter

SHARED = {"batch_bytes": 1, "batch_blocks": 3}


def evaluated(group, target=None, first_order=True):
    """Values and gradients of a batch, its evaluations, and messages."""
    target = target or Target.from_model(conjugate, *conjugate_data())
    x = torch.linspace(-1.0, 1.0, 14).view(7, 2).requires_grad_()
    with replicated("a test", target, first_order):
        messages, before = group.messages, target.evaluations
        log_p = target.log_prob(x)
        (grad,) = torch.autograd.grad((torch.arange(7.0) * log_p).sum(), x)
        with torch.no_grad():
            again = target.log_prob(x.detach())
        found = log_p, grad, again, *target.log_prob_and_grad(x.detach())
        return [*found, target.evaluations - before, group.messages - messages]


def test_batches_are_the_same_on_any_number_of_workers():
    one, *others = (run_workers(size, evaluated, **SHARED) for size in (1, 2, 4))
    for found in (rank for ranks in others for rank in ranks):
        assert all(np.array_equal(a, b) for a, b in zip(one[0][:5], found[:5], strict=True))
        assert found[5:] == [21, 3]


def test_they_are_those_of_the_whole_batch():
    whole = run_workers(2, evaluated)[0]  # of few bytes, and so not shared out
    assert whole[5:] == [21, 0]
    for found, wanted in zip(run_workers(2, evaluated, **SHARED)[0][:5], whole[:5], strict=True):
        assert np.allclose(found, wanted, rtol=1e-5, atol=1e-5)
    second_order = run_workers(2, evaluated, None, False, **SHARED)[0]
    assert second_order[6] == 0


def bad_points(group):
    """A density that is zero or not a number at some points, and a matrix with no factor."""

    def energy(x):
        torch.linalg.cholesky(x[:, :1, None] + 8.0)
        return torch.where(x > 0.9, torch.nan, x.square()).sum(-1)

    target = Target.from_energy(energy, 2)
    found = evaluated(group, target)
    with replicated("a test", target):
        x = torch.tensor([[-9.0, 0.0], [0.0, 0.0], [0.5, 0.0]])
        return [*found[:5], *target.log_prob_and_grad(x)]


def test_bad_points_are_as_without():
    whole, shared = run_workers(1, bad_points)[0], run_workers(2, bad_points, **SHARED)
    for found in shared:
        assert all(np.allclose(a, b) for a, b in zip(whole, found, strict=True))
    assert np.isneginf(whole[0]).any() and np.isneginf(whole[5]).any()


def counted(group):
    target = Target.from_energy(lambda x: x.square().sum(-1), 2)
    with replicated("a test", target):
        before = group.messages
        with WorkCounter() as counter:
            target.log_prob_and_grad(torch.ones(9, 2))
        return counter.operations, counter.elements, group.messages - before


def test_counted_work_does_not_depend_on_the_number_of_workers():
    one, two = run_workers(1, counted, **SHARED), run_workers(2, counted, **SHARED)
    assert one[0] == two[0] == two[1]
    assert one[0][2] == 0


@pytest.mark.slow
def test_sample_with_shared_batches():
    one, two = (run_workers(size, sampled, **SHARED, **BLOCKS) for size in (1, 2))
    for draws, attrs in two:
        assert attrs == one[0][1]
        assert all(np.array_equal(draws[name], one[0][0][name]) for name in draws)


def test_a_whole_batch_on_one_worker_is_seen():
    """Where one worker alone evaluates the batch as a whole, numbers differ from those of two."""

    @mutation(shared_batches, "_blocks")
    def whole(right, group, x, c):
        return [(x, c)] if group.size == 1 else right(group, x, c)

    hidden, out = torch.randn(2, 300), torch.randn(300)
    target = Target.from_energy(lambda x: (x @ hidden).tanh() @ out, 2)
    with broken(whole):
        one, two = (run_workers(size, many, target, **SHARED)[0] for size in (1, 2))
    assert not np.array_equal(one, two)
    assert np.array_equal(*(run_workers(size, many, target, **SHARED)[0] for size in (1, 2)))


def many(group, target):
    with replicated("a test", target):
        return target.log_prob(torch.linspace(-1.0, 1.0, 202).view(101, 2))


def test_units_send_nothing():
    group = WorkerGroup.__new__(WorkerGroup)
    group.shares_batches = True
    with group.in_unit():
        assert not group.shares_batches
    assert group.shares_batches
