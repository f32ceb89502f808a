"""Checks of arguments and of option classes, and errors that are short to read."""

from __future__ import annotations

import math
import sys
from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "as_tensor",
    "check_at_least_one",
    "check_count",
    "check_flag",
    "check_kind",
    "check_number",
    "check_options",
    "check_seed",
    "default_device",
    "public_call",
]


PACKAGE = str(Path(__file__).parent)
LAST_FRAMES = 2  #: frames of the package that a traceback keeps, beside that of the public function
MAX_SEED = 2**64 - 1  #: the largest seed of torch
_LOCK = RLock()


# ---- single arguments ----------------------------------------------------------------------------


def check_count(name: str, value: Any, least: int = 1) -> int:
    """A whole number as an ``int``.

    Arguments:
        name: The name of the argument, for the message.
        value: Its value; NumPy integers will do, booleans will not.
        least: The least value that is allowed.

    Raises:
        ValueError: The value is no whole number, or too small.

    Example:
        >>> check_count("num_chains", np.int64(4))
        4
        >>> check_count("num_chains", 0)
        Traceback (most recent call last):
        ...
        ValueError: num_chains must be at least 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number, got {shown(value)}: give an int")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def check_number(
    name: str,
    value: Any,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    open_least: bool = False,
    open_most: bool = False,
) -> float:
    """A real number as a ``float``; neither NaN nor a boolean.

    Arguments:
        name: The name of the argument, for the message.
        value: Its value.
        least, most: The range that is allowed.
        open_least, open_most: Whether these ends do not belong to the range.

    Raises:
        ValueError: The value is no number, or out of range.

    Example:
        >>> check_number("clip_norm", 2)
        2.0
        >>> check_number("global_prob", 1.0, 0, 1, open_most=True)
        Traceback (most recent call last):
        ...
        ValueError: global_prob must lie in [0, 1), got 1.0
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number, got {shown(value)}: give a float")
    number = float(value)
    low = number > least if open_least else number >= least
    high = number < most if open_most else number <= most
    if low and high:  # neither is true of NaN
        return number
    if most == math.inf and not math.isnan(number):
        finite = " and finite" if open_most else ""
        wanted = f"be positive{finite}" if open_least and least == 0 else f"be at least {least:g}"
        raise ValueError(f"{name} must {wanted}, got {value}")
    if math.inf in (most, -least):
        raise ValueError(f"{name} must be a number, got {value}")
    ends = "[("[open_least], "])"[open_most]
    raise ValueError(f"{name} must lie in {ends[0]}{least:g}, {most:g}{ends[1]}, got {value}")


def check_flag(name: str, value: Any) -> bool:
    """A value that is True or False, as a ``bool``.

    Raises:
        ValueError: The value is anything else.

    Example:
        >>> check_flag("progress", "no")
        Traceback (most recent call last):
        ...
        ValueError: progress must be True or False, got 'no'
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def check_kind(name: str, value: Any, kind: type) -> None:
    """Checks that an argument is an instance of an option class, or None.

    Raises:
        TypeError: It is anything else.

    Example:
        >>> class Options: ...
        >>> check_kind("options", {"max_steps": 3}, Options)
        Traceback (most recent call last):
        ...
        TypeError: options must be Options(...), got {'max_steps': 3}
    """
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} must be {kind.__name__}(...), got {shown(value)}")


def check_seed(seed: Any) -> int:
    """A seed, of the whole range of torch's generators, as an ``int``.

    Raises:
        ValueError: It is no whole number from 0 to :math:`2^{64} - 1`.

    Example:
        >>> check_seed(np.uint32(7))
        7
        >>> check_seed(2**64)
        Traceback (most recent call last):
        ...
        ValueError: seed must be a whole number from 0 to 2**64 - 1, got 18446744073709551616
    """
    whole = isinstance(seed, Integral) and not isinstance(seed, bool)
    if not whole or not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be a whole number from 0 to 2**64 - 1, got {shown(seed)}")
    return int(seed)


def shown(value: Any) -> str:
    """A value in a message: in full where it is short, else its type and shape.

    Example:
        >>> import torch
        >>> shown(torch.zeros(2, 3)), shown(3.5), shown(float)
        ('a Tensor of shape (2, 3)', '3.5', 'the class float')
    """
    if isinstance(value, Tensor | np.ndarray) and value.ndim:
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"


# ---- arrays --------------------------------------------------------------------------------------


def default_device() -> torch.device:
    """The device of new tensors, also where no other than the CPU has been set.

    :func:`torch.get_default_device` of torch 2.8 fails after ``torch.set_default_device(None)``.

    Example:
        >>> default_device()
        device(type='cpu')
    """
    try:
        return torch.get_default_device()
    except AttributeError:
        return torch.device("cpu")


def as_tensor(name: str, value: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor as it is; arrays, numbers and nested lists of them as a tensor of a dtype.

    Arguments:
        name: What the value is, for the message.
        value: The value.
        dtype, device: Type and device of the tensor that is made where the value is none yet.

    Raises:
        ValueError: The value is a tensor of integers, or is made of booleans, complex or no numbers
            at all, or is a tensor without values, on the device "meta".

    Example:
        >>> as_tensor("points", [[0.0, 1.0]], torch.float64, torch.device("cpu"))
        tensor([[0., 1.]], dtype=torch.float64)
        >>> as_tensor("x", torch.tensor([1]), torch.float64, torch.device("cpu"))
        Traceback (most recent call last):
        ...
        ValueError: x: dtype torch.int64, expected torch.float64; convert with .to(torch.float64)
    """
    found = value
    if not isinstance(value, Tensor):
        try:
            found = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{name}: expected a tensor of numbers, got {shown(value)}; convert with "
                f"torch.as_tensor(..., dtype={dtype})"
            ) from error
        if found.dtype != torch.bool and not found.is_complex():
            found = found.to(device, dtype)
    if not found.is_floating_point():
        raise ValueError(
            f"{name}: dtype {found.dtype}, expected {dtype}; convert with .to({dtype})"
        )
    if found.is_meta:
        raise ValueError(f"{name}: the device 'meta' holds no values; give them on 'cpu' or 'cuda'")
    return found


# ---- option classes ------------------------------------------------------------------------------


def check_options(options: Any) -> None:
    """Checks the types of the fields of an option class; for its ``__post_init__``.

    Fields that are annotated ``int``, ``float``, ``bool``, ``str`` or as a tuple are checked, and
    those whose default is an option class. NaN is no number.

    Arguments:
        options: An instance of a dataclass.

    Raises:
        ValueError: A field has a value of another type.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Steps:
        ...     count: int = 3
        ...
        ...     def __post_init__(self):
        ...         check_options(self)
        >>> Steps(2.5)
        Traceback (most recent call last):
        ...
        ValueError: Steps.count must be a whole number, got 2.5: give an int
    """
    for field in fields(options):
        name, value = f"{type(options).__name__}.{field.name}", getattr(options, field.name)
        kind = str(field.type).removeprefix("<class '").removesuffix("'>")
        if kind == "int":
            check_count(name, value, -sys.maxsize)
        elif kind == "float":
            check_number(name, value)
        elif kind == "bool":
            check_flag(name, value)
        elif kind == "str" and not isinstance(value, str):
            raise ValueError(f"{name} must be a string, got {shown(value)}")
        elif kind.startswith("tuple["):
            _check_tuple(name, value, "str" in kind)
        elif hasattr(field.default, "__dataclass_fields__"):
            if not isinstance(value, type(field.default)):
                kind = type(field.default).__name__
                raise ValueError(f"{name} must be {kind}(...), got {shown(value)}")


def check_at_least_one(options: Any, negative: bool = False) -> None:
    """Checks that whole numbers of an option class are at least 1, and other numbers not negative.

    Which of the two holds follows from the type of a field's default.

    Arguments:
        options: An instance of a dataclass.
        negative: Whether numbers that need not be whole may be negative.

    Raises:
        ValueError: A number is too small, or as :func:`check_options`.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Draws:
        ...     number: int = 3
        >>> check_at_least_one(Draws(0))
        Traceback (most recent call last):
        ...
        ValueError: Draws.number must be at least 1, got 0
    """
    check_options(options)
    for field in fields(options):
        name, value = f"{type(options).__name__}.{field.name}", getattr(options, field.name)
        if isinstance(field.default, int) and not isinstance(field.default, bool):
            check_count(name, value)
        elif isinstance(field.default, float) and not negative:
            check_number(name, value, 0)


def _check_tuple(name: str, value: Any, of_names: bool) -> None:
    if not isinstance(value, list | tuple):
        kind = "names" if of_names else "numbers"
        raise ValueError(f"{name} must be a tuple of {kind}, got {shown(value)}: ({value!r},)")
    for item in value:
        if not of_names:
            check_number(name, item)
        elif not isinstance(item, str):
            raise ValueError(f"{name} must be a tuple of names, got {shown(value)}")


# ---- public functions ----------------------------------------------------------------------------


class public_call:  # noqa: N801
    """A context in which one thread at a time runs, and whose errors have short tracebacks.

    Pyro's handlers, its flag of validation and all seeds belong to the whole process. So a second
    thread waits until the first has left the context. One thread may enter it again.

    A traceback shows the public function and where the error was raised, without the functions of
    the package between. Errors raised by a user's model keep theirs.

    Example:
        >>> with public_call():
        ...     check_count("num_chains", 3)
        3
    """

    def __enter__(self) -> None:
        _LOCK.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _LOCK.release()
        if isinstance(error, ValueError | TypeError | RuntimeError):
            _shorten(error)


def _shorten(error: BaseException) -> None:
    """Leaves out the middle of a traceback that ends in the package."""
    frames, frame = [], error.__traceback__
    while frame is not None:
        frames.append(frame)
        frame = frame.tb_next
    raised_here = frames and frames[-1].tb_frame.f_code.co_filename.startswith(PACKAGE)
    if not raised_here or len(frames) <= 1 + LAST_FRAMES:
        return
    shorter: TracebackType | None = None
    for kept in reversed([frames[0], *frames[-LAST_FRAMES:]]):
        shorter = TracebackType(shorter, kept.tb_frame, kept.tb_lasti, kept.tb_lineno)
    error.__traceback__ = shorter
