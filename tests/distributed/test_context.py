"""The context of workers: who takes part, and what is refused."""

import os
import signal
import warnings

import pytest
import torch
from support.workers import run_workers

from pyro_flowsamp import WorkersOptions, distributed, workers
from pyro_flowsamp.distributed import context, current_workers, guarded, refuse_workers


def test_one_worker_without_torchrun():
    before = torch.get_rng_state()
    with workers() as group:
        assert (group.rank, group.size, group.shard) == (0, 1, None)
        assert current_workers() is group
    assert current_workers() is None
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_arguments():
    with workers(), pytest.raises(ValueError, match="nested"), workers():
        pass
    with pytest.raises(ValueError, match="name of a plate, got 3"), workers(shard=3):
        pass
    with pytest.raises(ValueError, match=r"must be WorkersOptions\(...\)"), workers(options=3):
        pass
    for wrong in ({"timeout": 0.0}, {"gather_every": 0}, {"chains_per_block": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            WorkersOptions(**wrong)
    assert current_workers() is None


def test_refusal_names_the_computation():
    refuse_workers("sample()", "none")
    with workers(), pytest.raises(ValueError, match=r"sample\(\) is not shared out"):
        refuse_workers("sample()", "none")


def test_torchrun_without_the_context_warns_once(monkeypatch):
    monkeypatch.setattr(context, "_WARNED", [])
    assert current_workers() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.warns(UserWarning, match="started 4 processes, and each does the whole work"):
        current_workers()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        current_workers()


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="process 2 of this machine has no GPU"), workers():
        pass


def drawn(group):
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn("seen", stacklevel=1)
    return torch.rand(3), group.shared_seed(), len(caught)


def test_random_numbers_are_those_of_rank_0():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        first, second = run_workers(2, drawn)
    assert first[0].tolist() == second[0].tolist() == expected.tolist()
    assert first[1] == second[1]
    assert (first[2], second[2]) == (1, 0)  # warnings are those of rank 0


def test_other_versions_are_refused(monkeypatch):
    def told():
        return {"torch": f"2.{os.environ['RANK']}", "numpy": "2"}

    monkeypatch.setattr(distributed.group, "versions", told)
    for found in run_workers(2, drawn):
        assert isinstance(found, ValueError)
        assert "rank 1 has torch 2.1, not 2.0 as rank 0" in str(found)


def killed(group):
    group.all_gather(torch.zeros(1))
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    group.all_gather(torch.zeros(1))


def failing(group):
    with guarded():
        if group.rank == 1:
            raise KeyError("mine")
        group.all_gather(torch.zeros(1))


def caught_and_gone_on(group):
    try:
        failing(group)
    except Exception:
        pass
    group.all_gather(torch.zeros(1))


def test_a_killed_process_is_named():
    found = run_workers(3, killed)
    assert found[1] is None
    for rank in (0, 2):
        assert f"3 workers failed on rank {rank}: rank 1 does not answer" in str(found[rank])


def test_a_process_with_an_error_is_named():
    found = run_workers(3, failing)
    assert str(found[1]) == "'mine'"
    for rank in (0, 2):
        assert (
            str(found[rank]) == "another worker has ended with an error. rank 1: KeyError: 'mine'"
        )


def test_an_error_that_was_caught_still_ends_the_work():
    for found in run_workers(2, caught_and_gone_on):
        assert isinstance(found, RuntimeError)
        assert "'mine'" in str(found)
