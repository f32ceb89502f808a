"""The memory that a device has free, and the error where a run needs more."""

from __future__ import annotations

import os
from pathlib import Path

import torch

__all__ = ["TooLittleMemoryError", "free_bytes"]

MEMINFO = Path("/proc/meminfo")
#: the limit of a container, statistics of its use, and the entry for what cannot be given back
LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.stat"), "anon"),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.stat"),
        "total_rss",
    ),
)


class TooLittleMemoryError(ValueError):
    """A run needs more memory, or room on the disk, than there is.

    Arguments:
        need: What it needs, and what there is, in words.
        remedy: What the caller can do.

    Example:
        >>> error = TooLittleMemoryError("10 bytes are needed, and 5 are free", "ask for less")
        >>> str(error), error.need
        ('10 bytes are needed, and 5 are free: ask for less', '10 bytes are needed, and 5 are free')
    """

    def __init__(self, need: str, remedy: str) -> None:
        super().__init__(f"{need}: {remedy}")
        self.need, self.remedy = need, remedy

    def __reduce__(self) -> tuple:
        return type(self), (self.need, self.remedy)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where this is not known.

    On the CPU they are those that Linux says to be available, and no more than a container may
    use; elsewhere all there are.

    Example:
        >>> free_bytes(torch.device("cpu")) > 0
        True
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    found = [_available(), *(_left(*files) for files in LIMITS)]
    return min((value for value in found if value is not None), default=None)


def _available() -> int | None:
    entries = _entries(MEMINFO)
    if "MemAvailable:" in entries:
        return 1024 * entries["MemAvailable:"]
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _left(limit: Path, statistics: Path, used: str) -> int | None:
    """The rest of a container's limit; None where there is no limit."""
    try:
        return max(0, int(limit.read_text()) - _entries(statistics)[used])
    except (OSError, ValueError, KeyError):
        return None


def _entries(file: Path) -> dict[str, int]:
    """The lines of a file of names and whole numbers; none where it cannot be read."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
