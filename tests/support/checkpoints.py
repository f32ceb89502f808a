"""Runs that are ended in the middle, as by a kill, and go on from their checkpoint."""

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from pyro_flowsamp import Target
from pyro_flowsamp.checkpoint import scope


class Killed(BaseException):
    """The end of a process, which nothing in the package catches."""


def banana() -> Target:
    return Target.from_energy(
        lambda x: 0.5 * ((x[:, 0] - 1) ** 2 + (x[:, 1] - x[:, 0] ** 2) ** 2), 2
    )


@contextmanager
def killed_after(writes: int | None):
    """End everything after so many writes to a checkpoint; the list has one entry for each."""
    done: list[str] = []
    right = scope.Scope.write

    def write(self, values, phase, drop=None):
        right(self, values, phase, drop)
        if self.stores:
            done.append(phase)
            if len(done) == writes:
                raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scope.Scope, "write", write)
        yield done


def in_two_parts(run: Callable[[], Any], writes: int) -> Any:
    """The result of a run that is ended after so many writes, and made again."""
    with killed_after(writes):
        try:
            run()
        except Killed:
            pass
        else:
            raise AssertionError(f"there are fewer than {writes} writes")
    torch.rand(100)  # another process has other random numbers
    return run()


def number_of_writes(run: Callable[[], Any]) -> int:
    with killed_after(None) as done:
        run()
    return len(done)
