"""Steps of many chains: warm-up, and draws into a buffer, with checkpoints on the way."""

from __future__ import annotations

from time import perf_counter

from .. import progress
from .draw_buffer import DrawBuffer
from .sharing import ChainSteps
from .storage import ChainPosition, ChainStorage

__all__ = ["draw", "warm_up"]


def warm_up(
    kernel: ChainSteps, position: ChainPosition, steps: int, storage: ChainStorage, hidden: bool
) -> None:
    """Makes the steps of warm-up that are left, and ends the adaptation.

    Arguments:
        kernel: The kernel.
        position: Where the chains are; it moves with them.
        steps: All steps of warm-up.
        storage: Where the position is stored.
        hidden: Whether to show no progress bar.
    """
    if position.phase == "sampling":
        return
    clock = perf_counter() - position.seconds.get("warmup", 0.0)
    for _ in progress.steps("Warmup", "step", position.steps, steps, kernel.target, hidden):
        position.state, info = kernel.step(position.state)
        kernel.adapt(info)
        position.steps += 1
        position.seconds["warmup"] = perf_counter() - clock
        progress.tick()
        storage.after(1, position)
    kernel.freeze()
    position.phase, position.seconds["warmup"] = "sampling", perf_counter() - clock


def draw(
    kernel: ChainSteps,
    position: ChainPosition,
    buffer: DrawBuffer,
    thin: int,
    storage: ChainStorage,
    hidden: bool,
) -> None:
    """Fills a buffer with draws: first with those that are stored, then by steps.

    Where an error or Ctrl-C ends it, the buffer has the draws so far.

    Arguments:
        kernel: The kernel, whose adaptation has ended.
        position: Where the chains are; it moves with them.
        buffer: The buffer.
        thin: Steps for each draw.
        storage: Where position and draws are stored.
        hidden: Whether to show no progress bar.
    """
    storage.load_draws(buffer)
    clock = perf_counter() - position.seconds.get("sampling", 0.0)
    left = buffer.size - buffer.count
    bar = "Sample", "draw", buffer.count, buffer.size, kernel.target, hidden
    for _ in progress.steps(*bar):
        for _ in range(thin):
            position.state, info = kernel.step(position.state)
        buffer.add(position.state, info)
        position.seconds["sampling"] = perf_counter() - clock
        progress.tick(draws=1)
        if buffer.count < buffer.size:
            storage.after(thin, position, buffer)
    if left:
        storage.write(position, buffer)
