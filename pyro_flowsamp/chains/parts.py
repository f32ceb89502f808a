"""Draws that each of several workers writes, its own part, and that are read as one.

Each worker has a folder of its own inside of a common one. Its draws are written in blocks, and
read in blocks, so that neither a worker nor the reader needs to hold all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checkpoint.folder import CheckpointError, CheckpointFolder
from .streaming import Empty

__all__ = ["DrawsOfParts", "is_of_parts", "joined_parts", "write_part"]

PART = "worker-"  #: beginning of the names of the folders of workers
BLOCK_NUMBERS = 2**23  #: of draws in one file


class DrawsOfParts(NamedTuple):
    """The draws of all parts, in the order of chains.

    Attributes:
        x: Unconstrained draws, ``(C, n, d)``.
        statistics: Statistics of each draw, ``{name: (C, n)}``.
        starts: The points where the chains began, ``(C, d)``.
        facts: What else is known of the run.
    """

    x: Tensor
    statistics: dict[str, Tensor]
    starts: Tensor
    facts: dict[str, Any]


def write_part(
    folder: Path, rank: int, values: dict[str, Tensor], rows: Tensor, facts: dict[str, Any]
) -> None:
    """Writes the draws of one worker.

    Arguments:
        folder: The folder of all parts.
        rank: The worker.
        values: Draws ``x`` ``(C_own, n, d)``, where chains began as ``starts`` ``(C_own, d)``, and
            statistics ``(C_own, n)``.
        rows: The numbers of these chains, ``(C_own,)``.
        facts: What is known of the run, the same on all workers: numbers and strings.

    Raises:
        CheckpointError: The folder cannot be written to.

    Example:
        >>> import tempfile
        >>> from pyro_flowsamp.chains.streaming import in_memory
        >>> x, facts = torch.arange(4.0).view(4, 1, 1), {"workers": 2, "chains": 4, "samples": 1}
        >>> with tempfile.TemporaryDirectory() as path:
        ...     for rank, rows in enumerate((torch.tensor([0, 3]), torch.tensor([1, 2]))):
        ...         values = {"x": x[rows], "starts": x[rows, 0], "lp": x[rows, :, 0]}
        ...         write_part(Path(path), rank, values, rows, facts)
        ...     found = joined_parts(Path(path), in_memory)
        >>> found.x.flatten().tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    opened = CheckpointFolder(folder / f"{PART}{rank:04d}")
    try:
        starts = values.pop("starts")
        most = max(1, BLOCK_NUMBERS // max(1, values["x"][:, :1].numel()))
        blocks = {name: value.split(most, 1) for name, value in values.items()}
        number = len(blocks["x"]) if len(rows) else 0
        for block in range(number):
            # copies: a part of a tensor would be written with all of its memory
            parts = {name: split[block].clone() for name, split in blocks.items()}
            opened.commit({f"draws-{block}": parts}, {}, None if block else "")
        about = {"rows": rows, "starts": starts.clone(), "blocks": number}
        opened.commit({"about": about}, facts, None if number else "")
    finally:
        opened.close()


def is_of_parts(folder: Path) -> bool:
    """Whether a folder has parts of workers.

    Arguments:
        folder: The folder.
    """
    return any(folder.glob(f"{PART}*"))


def joined_parts(folder: Path, empty: Empty) -> DrawsOfParts:
    """The draws of all workers, in the order of chains.

    Arguments:
        folder: The folder of all parts.
        empty: Makes the memory for them.

    Raises:
        CheckpointError: A part is missing, not whole, in use, or of another run.
    """
    facts = _facts(folder, 0)
    chains, samples = facts["chains"], facts["samples"]
    x, starts, statistics = torch.empty(0), torch.empty(0), dict[str, Tensor]()
    for rank in range(facts["workers"]):
        if _facts(folder, rank) != facts:
            raise CheckpointError(
                f"{folder / PART}{rank:04d} is of another run than {PART}0000: let all workers "
                f"write their parts again, to a new folder"
            )
        opened = CheckpointFolder(folder / f"{PART}{rank:04d}")
        try:
            about, first = opened.read("about"), 0
            for block in range(about["blocks"]):
                parts = opened.read(f"draws-{block}")
                if not len(x):
                    width, like = parts["x"].shape[-1], parts["x"]
                    x = empty((samples, chains, width), like).transpose(0, 1)
                    starts = like.new_empty(chains, about["starts"].shape[-1])
                    names = [name for name in parts if name != "x"]
                    statistics = {n: empty((samples, chains), parts[n]).mT for n in names}
                last = first + parts["x"].shape[1]
                for name, value in parts.items():
                    all_chains = x if name == "x" else statistics[name]
                    all_chains[about["rows"], first:last] = value
                first = last
            if about["blocks"]:
                starts[about["rows"]] = about["starts"]
        finally:
            opened.close()
    return DrawsOfParts(x, statistics, starts, facts)


def _facts(folder: Path, rank: int) -> dict[str, Any]:
    """The facts of the part of a worker."""
    path = folder / f"{PART}{rank:04d}"
    if not path.is_dir():
        raise CheckpointError(
            f"there is no folder {path}: all workers must have written their part"
        )
    opened = CheckpointFolder(path)
    try:
        if "workers" not in opened.facts:
            raise CheckpointError(f"{path} is not whole: its worker has not come to the end of it")
        return opened.facts
    finally:
        opened.close()
