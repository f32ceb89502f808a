"""Memory in files: draws that are not all held in the memory of the machine.

An array is mapped to a file (:class:`numpy.memmap`), which has no name, so that it is deleted when
the process ends, however that is. The system keeps those pages of it in memory that are in use, and
writes others to the disk where memory is needed. Tensors share the memory of the array, so that all
that works with draws works with these.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = ["Empty", "InFiles", "in_blocks", "in_memory", "joined_columns", "some_draws"]

BLOCK_NUMBERS = 4_000_000  #: of draws that are computed with at a time, where all are in files


class Empty(Protocol):
    """A function that makes a tensor of a shape and type, with any numbers.

    Example:
        >>> make: Empty = in_memory
        >>> make((2, 3), torch.zeros(1)).shape
        torch.Size([2, 3])
    """

    def __call__(self, shape: tuple[int, ...], like: Tensor) -> Tensor: ...


def in_memory(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A tensor in memory.

    Arguments:
        shape: Its shape.
        like: A tensor with its type and device.

    Example:
        >>> in_memory((2, 3), torch.zeros(1)).shape
        torch.Size([2, 3])
    """
    return like.new_empty(shape)


class InFiles:
    """Makes tensors whose memory is a file.

    Arguments:
        folder: The folder of the files.

    Raises:
        OSError: In a call: there is no room for the file, or the folder cannot be written to.

    Example:
        >>> with tempfile.TemporaryDirectory() as path:
        ...     x = InFiles(Path(path))((2, 3), torch.zeros(1))
        >>> x.fill_(1.0).sum()
        tensor(6.)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A tensor in a file of its own, of a shape, and of the type of another tensor."""
        count = int(np.prod(shape))
        if not count:
            return torch.empty(shape, dtype=like.dtype)
        kind = torch.empty(0, dtype=like.dtype).numpy().dtype
        size = count * kind.itemsize
        try:
            with tempfile.TemporaryFile(dir=self.folder, prefix="draws-") as file:
                if hasattr(os, "posix_fallocate"):  # else a full disk would end the process later
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
                return torch.from_numpy(np.memmap(file, kind, "r+", shape=tuple(shape)))
        except OSError as error:
            text = (
                f"a file of {size:,} bytes for draws cannot be made in {self.folder}: "
                f"{error.strerror or error}. Make room, or keep fewer draws"
            )
            raise OSError(error.errno, text) from error


def joined_columns(values: Sequence[Tensor], dtype: torch.dtype, empty: Empty) -> Tensor:
    """All numbers of draws of several variables, ``(chains, draws, D)``.

    Arguments:
        values: Draws of each variable, ``(chains, draws, ...)``.
        dtype: The type of the result.
        empty: Makes the memory.

    Example:
        >>> parts = [torch.zeros(2, 3), torch.ones(2, 3, 2, 2)]
        >>> joined_columns(parts, torch.double, in_memory)[0, 0]
        tensor([0., 1., 1., 1., 1.], dtype=torch.float64)
    """
    parts = [value.flatten(2) if value.dim() > 2 else value[..., None] for value in values]
    if empty is in_memory:
        return torch.cat([part.to(dtype) for part in parts], -1)
    chains, draws = parts[0].shape[:2]
    like = torch.empty(0, dtype=dtype)
    # a column after the other, since columns are looked at one after the other
    made = empty((sum(part.shape[-1] for part in parts), draws, chains), like).permute(2, 1, 0)
    first = 0
    for part in parts:
        for column in range(part.shape[-1]):
            made[..., first + column] = part[..., column]
        first += part.shape[-1]
    return made


def some_draws(x: Tensor, most: int) -> Tensor:
    """Draws in random order, without a copy of all of them.

    Arguments:
        x: Draws ``(N, d)`` or ``(chains, draws, d)``.
        most: The number of draws, or all where there are fewer.

    Returns:
        A tensor ``(n, d)``.

    Example:
        >>> some_draws(torch.arange(6.0).view(3, 2, 1), 10).sort(0).values[:, 0]
        tensor([0., 1., 2., 3., 4., 5.])
    """
    index = torch.randperm(x[..., 0].numel(), device=x.device)[:most]
    return x[index] if x.dim() == 2 else x[index // x.shape[1], index % x.shape[1]]


def in_blocks(
    make: Callable[[Any, int, int], dict[str, Tensor]],
    values: Any,
    shape: tuple[int, int],
    numbers: int,
    empty: Empty,
) -> dict[str, Tensor]:
    """Values ``{name: (chains, draws, ...)}`` that are computed block by block, and held in files.

    Arguments:
        make: Makes those of the draws from one number to another.
        values: What it makes them of.
        shape: The numbers of chains and draws.
        numbers: Numbers in the memory of one draw of one chain.
        empty: Makes the memory; all is one block where that is the machine's.

    Example:
        >>> def squares(x, first, last):
        ...     return {"square": x[:, first:last] ** 2}
        >>> x = torch.arange(6.0).view(2, 3)
        >>> in_blocks(squares, x, (2, 3), 1, in_memory)
        {'square': tensor([[ 0.,  1.,  4.],
                [ 9., 16., 25.]])}
    """
    chains, draws = shape
    if empty is in_memory:
        return make(values, 0, draws)
    rows = max(1, BLOCK_NUMBERS // max(1, chains * numbers))
    found: dict[str, Tensor] = {}
    for first in range(0, draws, rows):
        last = min(draws, first + rows)
        for name, block in make(values, first, last).items():
            if name not in found:
                made = empty((draws, chains, *block.shape[2:]), block)
                found[name] = made.transpose(0, 1)
            found[name][:, first:last] = block
    return found
