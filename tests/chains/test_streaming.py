"""Memory in files: the same numbers, little memory, and nothing that is left behind."""

import errno
import os

import pytest
import torch

from pyro_flowsamp.chains import streaming
from pyro_flowsamp.chains.streaming import InFiles, in_blocks, in_memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool, torch.int64])
def test_a_tensor_in_a_file_is_one_in_memory(tmp_path, dtype):
    x = torch.arange(24).reshape(2, 3, 4).to(dtype)
    made = InFiles(tmp_path)((2, 3, 4), x)
    made[:] = x
    assert torch.equal(made, x) and made.dtype == dtype
    assert not list(tmp_path.iterdir())  # it has no name


def test_an_empty_one(tmp_path):
    assert InFiles(tmp_path)((0, 3), torch.zeros(1)).shape == (0, 3)


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="a file of 24 bytes .* No space left on device. Make room"):
        InFiles(tmp_path)((2, 3), torch.zeros(1))


@pytest.mark.parametrize("numbers", [1, 5, 100])
def test_blocks_are_those_of_all_at_once(tmp_path, monkeypatch, numbers):
    monkeypatch.setattr(streaming, "BLOCK_NUMBERS", 30)
    x, seen = torch.randn(3, 7, 2), []

    def make(x, first, last):
        seen.append(last - first)
        return {"twice": 2 * x[:, first:last], "sum": x[:, first:last].sum(-1)}

    whole = in_blocks(make, x, (3, 7), numbers, in_memory)
    found = in_blocks(make, x, (3, 7), numbers, InFiles(tmp_path))
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert seen == [7, *{1: [7], 5: [2, 2, 2, 1], 100: [1] * 7}[numbers]]
