"""What workers exchange: rows of units, sums, and checks that all have the same."""

from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from support.workers import run_workers

from pyro_flowsamp import (
    AutoFlow,
    FitOptions,
    LatentMALA,
    Target,
    VectorizedMCMC,
    WorkersOptions,
    workers,
)
from pyro_flowsamp.distributed import WorkerGroup

SIZES = [2, 3, 1, 2, 2]


def rows(unit, dtype=torch.double):
    """Rows of a unit, different in every entry."""
    return (10 * unit + torch.arange(2.0 * SIZES[unit]).view(-1, 2)).to(dtype)


def exchanged(group):
    own = list(group.units(len(SIZES)))
    joined = [group.join([rows(u, t) for u in own], SIZES) for t in (torch.double, torch.float)]
    flags = group.join([rows(u) > 11 for u in own], SIZES)
    first = group.join([rows(u) for u in own], SIZES, to_all=False)
    number = torch.tensor([group.rank, 2 * group.rank])
    reduced = group.add(number), group.largest(number), group.broadcast(number)
    return joined, flags, first, reduced, group.messages


@pytest.mark.parametrize("size", [1, 2, 3])
def test_rows_are_in_the_order_of_units(size):
    every = torch.cat([rows(u) for u in range(len(SIZES))])
    for rank, (joined, flags, first, reduced, messages) in enumerate(run_workers(size, exchanged)):
        for found in joined:
            assert found.tolist() == every.tolist()
        assert flags.tolist() == (every > 11).tolist()
        assert (first is None) == (rank > 0)
        total = size * (size - 1) // 2
        assert reduced[0].tolist() == [total, 2 * total]
        assert reduced[1].tolist() == [size - 1, 2 * (size - 1)]
        assert reduced[2].tolist() == [0, 0]
        assert messages == 8  # and one at the beginning


def few(group):
    return list(group.units(1)), group.join([torch.ones(2)], [2])


def test_a_rank_without_units_repeats_the_first():
    for units, joined in run_workers(3, few):
        assert units == [0]
        assert joined.tolist() == [1, 1]


def compared(group, values):
    return group.check_same("the log density", torch.tensor(values[group.rank]))


def test_different_numbers_are_refused():
    near = [1.0, -torch.inf, 1e6], [1.0 + 1e-6, -torch.inf, 1e6 + 0.1]
    assert run_workers(2, compared, near) == [None, None]
    for found in run_workers(3, compared, [[1.0, 2.0], [1.0, 2.0], [1.0, 2.1]]):
        assert isinstance(found, ValueError)
        assert "the log density differs between the workers" in str(found)
        assert "rank 2: ['1', '2.1']" in str(found)
        assert "rank 1" not in str(found)


@contextmanager
def process_group(backend, folder):
    """The process group of one process that a caller has made before the context."""
    method = f"file://{folder}/store"
    dist.init_process_group(backend, init_method=method, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def used(device):
    """Every kind of exchange, with tensors that stay on their device."""
    with workers() as group:
        x = torch.arange(3.0, device=device)
        found = [group.all_gather(x)[0], group.broadcast(x), group.add(x), group.largest(x)]
        flags = group.join([x > 1], [3])
        group.check_same("numbers", x)
        seed = group.shared_seed()
        target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2, device=device)
        guide = AutoFlow(target, flow="gaussian", options=FitOptions(20, progress=False))
        run = VectorizedMCMC(LatentMALA(guide=guide), 3, 3, 300, disable_progbar=True)
        run.run()
        every = run.gathered()
    assert all(torch.equal(value, x) and value.device == x.device for value in found)
    assert flags.tolist() == [False, False, True]
    assert 0 <= seed < 2**62
    assert every.unconstrained.shape == (300, 3, 2)
    assert every.unconstrained.device == x.device
    assert dist.is_initialized()  # it is the caller's


def test_a_process_group_of_the_caller_is_used(tmp_path):
    with process_group("gloo", tmp_path):
        used("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_tensors_stay_on_a_gpu(tmp_path):
    with process_group("cpu:gloo,cuda:nccl", tmp_path):
        used("cuda:0")


def test_units_are_shared_out_evenly():
    for size in (1, 2, 4):
        groups = [
            WorkerGroup(rank, size, torch.device("cpu"), WorkersOptions()) for rank in range(size)
        ]
        own = [list(group.units(9)) for group in groups]
        assert sorted(sum(own, [])) == list(range(9))
        assert max(map(len, own)) - min(map(len, own)) <= 1
