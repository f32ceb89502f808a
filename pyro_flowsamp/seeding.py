"""Seeds of all generators for the time of a call, and streams of random numbers of their own."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .validation import check_seed

__all__ = [
    "Stream",
    "generator_states",
    "kept_generators",
    "seeded",
    "set_generator_states",
    "set_seed",
]


WORDS = 624  #: words of the state of a Mersenne twister
HEAD, WORD_BYTES = 24, 8  #: bytes of the state of torch's CPU generator before and for each of them


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


class Stream:
    r"""Random numbers of torch that belong to one unit of work, whatever is drawn elsewhere.

    The numbers depend on the seed, the phase and the unit alone. So they are the same on whichever
    process the unit is worked on, and in whatever order units are.

    torch's own seed for the CPU has 32 bits, so that among many streams two would soon be the same:
    of :math:`2^{16}` streams two with probability .4. So all 624 words of the Mersenne twister come
    from a hash of the three, by :class:`numpy.random.SeedSequence`, and the 64 bits of a seed on a
    GPU come from the same hash.

    Arguments:
        seed: The seed of the computation.
        phase: The part of the computation.
        unit: The number of the unit.
        device: The device whose generator is given the stream's state, beside that of the CPU.

    References:
        Salmon, Moraes, Dror and Shaw, *Parallel Random Numbers: As Easy as 1, 2, 3*, 2011,
        https://doi.org/10.1145/2063384.2063405

    Example:
        >>> one, same, other = (Stream(0, "chains", unit) for unit in (3, 3, 4))
        >>> def draw(stream):
        ...     with stream.active():
        ...         return torch.rand(()).item()
        >>> first, second = draw(one), draw(one)
        >>> first == draw(same), second == draw(same), first == draw(other)
        (True, True, False)
    """

    def __init__(
        self, seed: int, phase: str, unit: int, device: torch.device | str = "cpu"
    ) -> None:
        digest = hashlib.sha256(f"{seed}/{phase}/{unit}".encode()).digest()
        sequence = np.random.SeedSequence(int.from_bytes(digest, "little"))
        self._cpu = _twister(sequence.generate_state(WORDS, np.uint32))
        self._device = torch.device(device)
        self._cuda: torch.Tensor | None = None
        if self._device.type == "cuda":
            number = int(sequence.generate_state(WORDS + 2, np.uint32)[-2:].view(np.uint64)[0])
            generator = torch.Generator(self._device).manual_seed(number)
            self._cuda = generator.get_state()

    @contextmanager
    def active(self) -> Iterator[None]:
        """A context in which torch draws from this stream; it goes on where it ended last."""
        cpu, cuda = torch.get_rng_state(), None
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            cuda = torch.cuda.get_rng_state(self._device)
            torch.cuda.set_rng_state(self._cuda, self._device)
        try:
            yield
        finally:
            self._cpu = torch.get_rng_state()
            torch.set_rng_state(cpu)
            if cuda is not None:
                self._cuda = torch.cuda.get_rng_state(self._device)
                torch.cuda.set_rng_state(cuda, self._device)

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream."""
        return {"cpu": self._cpu, "cuda": self._cuda}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the state of :meth:`state_dict`."""
        self._cpu, self._cuda = state["cpu"], state["cuda"]


def _twister(words: np.ndarray) -> torch.Tensor:
    """The state of torch's generator on the CPU before its first number, with these words."""
    state = torch.Generator().manual_seed(0).get_state()
    words = words.copy()
    words[0] = 2**31  # so that they are not all zero
    own = torch.from_numpy(words.astype(np.int64)).view(torch.uint8)
    state[HEAD : HEAD + WORDS * WORD_BYTES] = own
    return state
