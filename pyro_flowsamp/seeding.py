"""Seeds of all generators of random numbers, for the time of a call."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .validation import check_seed

__all__ = ["generator_states", "kept_generators", "seeded", "set_generator_states", "set_seed"]


def set_seed(seed: int) -> None:
    r"""Seeds the generators of torch, NumPy and Python.

    Below :math:`2^{32}` this does what :func:`pyro.set_rng_seed` does, which allows no more. NumPy
    takes 32 bits only, and torch's generator on the CPU leaves out all others. So from there on
    the bits of a seed are mixed, by :class:`numpy.random.SeedSequence`.

    Arguments:
        seed: A whole number from 0 to :math:`2^{64} - 1`.

    Raises:
        ValueError: It is another one.

    Example:
        >>> set_seed(2**64 - 1)
        >>> one = torch.rand(3)
        >>> set_seed(2**64 - 1)
        >>> torch.equal(torch.rand(3), one)
        True
    """
    seed = check_seed(seed)
    random.seed(seed)
    if seed < 2**32:
        torch.manual_seed(seed)
        np.random.seed(seed)
        return
    mixed = np.random.SeedSequence(seed)
    torch.manual_seed(int(mixed.generate_state(1, np.uint64)[0]))
    np.random.seed(mixed.generate_state(4))


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seeds all generators, and gives them their states back at the end; nothing without seed.

    Raises:
        ValueError: As :func:`set_seed`.

    Example:
        >>> before = torch.get_rng_state()
        >>> with seeded(0):
        ...     x = torch.rand(3)
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    if seed is None:
        yield
        return
    states = generator_states()
    try:
        set_seed(seed)
        yield
    finally:
        set_generator_states(states)


@contextmanager
def kept_generators(
    device: torch.device | str | None = None, seed: int | None = None
) -> Iterator[None]:
    """Gives torch's generators their states back at the end, of the CPU and of CUDA devices.

    Arguments:
        device: The device that is used beside the CPU; None for all CUDA devices, if CUDA has been
            used already.
        seed: A seed for them meanwhile, of less than 2**64; None if they go on from their states.

    Example:
        >>> before = torch.get_rng_state()
        >>> with kept_generators("cpu", seed=0):
        ...     x = torch.rand(3)
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    if device is None:
        used: list[Any] = (
            list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        )
    else:
        used = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(used):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def generator_states() -> dict[str, Any]:
    """The states of the generators of torch, NumPy and Python, as tensors, numbers and strings.

    Example:
        >>> states = generator_states()
        >>> one = torch.rand(3)
        >>> set_generator_states(states)
        >>> torch.equal(torch.rand(3), one)
        True
    """
    name, keys, position, has_gauss, gauss = np.random.get_state()
    version, numbers, next_gauss = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": list(cuda),
        "numpy": (name, [int(key) for key in keys], int(position), int(has_gauss), float(gauss)),
        "python": (version, list(numbers), next_gauss),
    }


def set_generator_states(states: dict[str, Any]) -> None:
    """Gives all generators the states that :func:`generator_states` has returned.

    Raises:
        RuntimeError: The states are of more CUDA devices than there are.

    Example:
        >>> states = generator_states()
        >>> one = np.random.rand()
        >>> set_generator_states(states)
        >>> np.random.rand() == one
        True
    """
    name, keys, position, has_gauss, gauss = states["numpy"]
    version, numbers, next_gauss = states["python"]
    if states["cuda"]:
        if len(states["cuda"]) > torch.cuda.device_count():
            raise RuntimeError(
                f"the states of the random generators are of {len(states['cuda'])} CUDA devices, "
                f"and there are {torch.cuda.device_count()}: go on on a machine with as many"
            )
        for device, state in enumerate(states["cuda"]):
            torch.cuda.set_rng_state(state, device)
    torch.set_rng_state(states["torch"])
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    random.setstate((version, tuple(numbers), next_gauss))
