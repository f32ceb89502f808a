"""Seeds of all generators of random numbers, for the time of a call."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from .validation import check_seed

__all__ = ["seeded", "set_seed"]


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
    states = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            set_seed(seed)
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
