"""Options of checkpoints: where they are written, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..validation import check_count, check_flag, check_number, shown

__all__ = ["CheckpointOptions", "Location", "as_checkpoint_options"]


@dataclass(frozen=True)
class CheckpointOptions:
    """Options of the checkpoints of a run.

    The clock decides when a checkpoint is written. It never decides what is drawn.

    Attributes:
        folder: The folder of the checkpoints, of one run alone; it is made where there is none.
        every_seconds: Seconds after which a step is followed by a checkpoint; infinite for none.
        every_steps: Steps, of chains or of an optimiser, after which one is written too; 0 for
            seconds alone.
        stream: Whether draws are held in files of the folder, and not all in memory; see
            :class:`~pyro_flowsamp.StoredDraws`. Only for chains on the CPU.

    Raises:
        ValueError: The folder is no path, or a number is out of range.

    Example::

        >>> CheckpointOptions("run-1", every_seconds=60.0).folder
        'run-1'
    """

    folder: str | PathLike[str]
    every_seconds: float = 30.0
    every_steps: int = 0
    stream: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.folder, str | PathLike) or not str(self.folder):
            raise ValueError(
                f"checkpoint must be the path of a folder or CheckpointOptions(...), got "
                f"{shown(self.folder)}"
            )
        check_number("CheckpointOptions.every_seconds", self.every_seconds, 0)
        check_count("CheckpointOptions.every_steps", self.every_steps, 0)
        check_flag("CheckpointOptions.stream", self.stream)

    @property
    def path(self) -> Path:
        """The folder as a path."""
        return Path(self.folder)


#: what a user may give: a folder, or options with one
Location = str | PathLike[str] | CheckpointOptions


def as_checkpoint_options(given: Any) -> CheckpointOptions | None:
    """Options as they are, and those of a folder; None stays None.

    Raises:
        ValueError: See :class:`CheckpointOptions`.

    Example::

        >>> as_checkpoint_options("run-1").every_seconds
        30.0
    """
    if given is None or isinstance(given, CheckpointOptions):
        return given
    return CheckpointOptions(given)
