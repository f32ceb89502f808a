"""Parts of draws that workers write, and that are read as those of one run."""

import numpy as np
import pyro
import pytest
import torch
from support.models import conjugate, conjugate_data, conjugate_guide
from support.mutations import broken, mutation
from support.workers import run_workers

from pyro_flowsamp import (
    IMH,
    LatentMALA,
    StoredDraws,
    VectorizedMCMC,
    to_arviz,
    workers,
)
from pyro_flowsamp.chains import parts as chain_parts
from pyro_flowsamp.checkpoint.folder import CheckpointError


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def guide():
    return conjugate_guide()


def made(guide, kernel=IMH, **options):
    pyro.set_rng_seed(2)
    run = VectorizedMCMC(kernel(conjugate, guide=guide), 6, 4, 90, disable_progbar=True, **options)
    run.run(*conjugate_data())
    return run


def written(group, guide, folder, kernel=IMH):
    run = made(guide, kernel)
    run.write_part(folder)
    if group.rank == 0:  # all parts are there
        StoredDraws(folder, conjugate, *conjugate_data())
    every = run.gathered()
    if every is not None:
        return every.unconstrained, every.statistics, every.starts


@pytest.mark.parametrize(("size", "kernel"), [(1, LatentMALA), (2, IMH), (4, LatentMALA)])
def test_parts_of_workers_are_read_as_one(tmp_path, guide, monkeypatch, size, kernel):
    monkeypatch.setattr(chain_parts, "BLOCK_NUMBERS", 200)  # of two or three draws
    given = guide, str(tmp_path), kernel
    x, statistics, starts = run_workers(size, written, *given, chains_per_block=32)[0]
    found = StoredDraws(tmp_path, conjugate, *conjugate_data())
    assert np.array_equal(found.unconstrained, x) and np.array_equal(found.starts, starts)
    assert found.statistics.keys() == statistics.keys()
    for name, value in statistics.items():
        assert np.array_equal(found.statistics[name], value, equal_nan=True)
    assert (found.num_chains, found.num_samples, found.thin) == (90, 6, 1)
    assert (found.step_size is None) == (kernel is IMH)
    data = to_arviz(found)
    assert data["posterior"]["mean"].shape == (90, 6)


def test_one_process_writes_one_part(tmp_path, guide):
    run = made(guide, save_params=["rate"])
    run.write_part(tmp_path)
    found = StoredDraws(tmp_path, conjugate, *conjugate_data())
    assert torch.equal(found.get_samples()["rate"], run.get_samples()["rate"])
    assert list(found.get_samples()) == ["rate"]


def test_parts_in_another_order_are_seen(tmp_path, guide):
    def in_order(right, folder, rank, values, rows, facts):
        return right(folder, rank, values, torch.arange(len(rows)) + 32 * rank, facts)

    with broken(mutation(chain_parts, "write_part")(in_order)):
        x = run_workers(2, written, guide, str(tmp_path), chains_per_block=32)[0][0]
    found = StoredDraws(tmp_path, conjugate, *conjugate_data())
    assert not np.array_equal(found.unconstrained, x)


def test_parts_that_are_missing_or_of_another_run(tmp_path, guide):
    run_workers(2, written, guide, str(tmp_path), chains_per_block=32)
    model = conjugate, *conjugate_data()
    with pytest.raises(CheckpointError, match="of another model: .*Give the model and the data"):
        StoredDraws(tmp_path, conjugate, *(value + 1 for value in conjugate_data()))
    (tmp_path / "worker-0001").rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="worker-0001: all workers must have written"):
        StoredDraws(tmp_path, *model)
    made(guide).write_part(tmp_path / "one")
    (tmp_path / "one" / "worker-0000").rename(tmp_path / "worker-0001")
    with pytest.raises(CheckpointError, match="of another run than worker-0000"):
        StoredDraws(tmp_path, *model)


def test_a_part_that_was_not_ended_is_told(tmp_path, guide):
    run = made(guide)

    def ended(right, self, parts, *args):
        if "about" in parts:
            raise OSError("full")
        return right(self, parts, *args)

    with broken(mutation(chain_parts.CheckpointFolder, "commit")(ended)), pytest.raises(OSError):
        run.write_part(tmp_path)
    with pytest.raises(CheckpointError, match="is not whole: its worker has not come to the end"):
        StoredDraws(tmp_path, conjugate, *conjugate_data())


def test_there_must_be_draws_in_their_context(tmp_path, guide):
    run = VectorizedMCMC(IMH(conjugate, guide=guide), 6, 4, 90, disable_progbar=True)
    with pytest.raises(RuntimeError, match="there are no draws to write"):
        run.write_part(tmp_path)
    with workers() as group:
        run = made(guide)
    group.size = 2
    with pytest.raises(RuntimeError, match=r"write_part\(...\) must be called there"):
        run.write_part(tmp_path)
