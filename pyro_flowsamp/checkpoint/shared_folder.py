"""The folder of a checkpoint where several workers make the same computation.

Rank 0 alone reads and writes the folder, so that the others need not see its disk. It sends what it
reads to all. What is there is what was there when the folder was opened: a computation looks for
its state once, before it begins.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..distributed import WorkerGroup
from .folder import CheckpointFolder, decoded

__all__ = ["SharedFolder"]


class SharedFolder:
    """A checkpoint that rank 0 has open, for all workers.

    Arguments:
        path: The folder.
        group: The workers, which must all call the same methods in the same order.

    Attributes:
        path: The folder.
        facts: What the manifest says of the run, beside its files.

    Raises:
        CheckpointError: Rank 0 cannot use the folder; the other workers end with this error too.

    Example:
        >>> import tempfile
        >>> from pyro_flowsamp import workers
        >>> with tempfile.TemporaryDirectory() as path, workers() as group:
        ...     for attempt in range(2):
        ...         folder = SharedFolder(Path(path), group)
        ...         found = folder.read("state") if "state" in folder else None
        ...         folder.commit({"state": {"steps": 3}}, {"phase": "warmup"})
        ...         folder.close()
        >>> found
        {'steps': 3}
    """

    def __init__(self, path: Path, group: WorkerGroup) -> None:
        self.path, self._group = path, group
        self._own = CheckpointFolder(path) if group.rank == 0 else None
        told = b""
        if self._own is not None:
            told = json.dumps([self._own.names, self._own.facts]).encode()
        names, self.facts = json.loads(group.broadcast_bytes(told))
        self._names = set(names)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def read(self, name: str) -> Any:
        """The value of a part, which rank 0 reads.

        Raises:
            CheckpointError: It cannot be read.
        """
        data = b"" if self._own is None else self._own.read_bytes(name)
        return decoded(self._group.broadcast_bytes(data), self.path / name)

    def commit(self, parts: dict[str, Any], facts: dict[str, Any], drop: str | None = None) -> None:
        """Writes a new generation on rank 0, see :meth:`CheckpointFolder.commit`."""
        self.facts = facts
        if self._own is not None:
            self._own.commit(parts, facts, drop)

    def close(self) -> None:
        """Gives the folder free for other processes."""
        if self._own is not None:
            self._own.close()
