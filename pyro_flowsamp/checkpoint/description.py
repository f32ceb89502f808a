"""Descriptions of a run: what must be the same when it goes on.

Arguments of a model are compared by digests of their values, and a model by its log density at
three fixed points. A model's code is not looked at.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..seeding import kept_generators

__all__ = ["describe_settings", "describe_target", "differences", "digest"]

POINTS = 3  #: fixed points at which the log density is compared
#: relative difference of these that other versions and numbers of threads may make
TOLERANCE = 1e-4
DENSITY = "log density"  #: the entry of a description that is compared as numbers
SOURCES = {"self", "model", "potential_fn", "guide"}  #: arguments that are no settings
SHOWN = 12  #: characters of a digest that a description has


def digest(*values: Any) -> str:
    """The beginning of the SHA-256 digest of values.

    These are numbers, strings, arrays, tensors, networks, option classes, and containers of these.
    Of objects of other types it has the type's name alone.

    Example:
        >>> digest(torch.zeros(2)) == digest(torch.zeros(2)), digest(1.0) == digest(2.0)
        (True, False)
    """
    found = hashlib.sha256()
    for value in values:
        _add(found, value)
    return found.hexdigest()[:SHOWN]


def _add(found: Any, value: Any) -> None:
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta:
        flat = value.detach().cpu().contiguous().reshape(-1)
        found.update(f"{value.dtype}{tuple(value.shape)}".encode())
        found.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    elif isinstance(value, np.ndarray) and value.dtype != object:
        found.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, nn.Module):
        found.update(type(value).__name__.encode())
        _add(found, value.state_dict())
    elif isinstance(value, Mapping):
        found.update(b"{")
        for key in sorted(value, key=str):
            _add(found, str(key))
            _add(found, value[key])
    elif isinstance(value, list | tuple):
        found.update(f"[{len(value)}".encode())
        for item in value:
            _add(found, item)
    elif value is None or isinstance(value, str | bytes | bool | int | float | np.generic):
        found.update(f"{type(value).__name__}:{value!r};".encode())
    elif hasattr(value, "__dataclass_fields__"):
        found.update(repr(value).encode())
    else:
        found.update(type(value).__qualname__.encode())


def describe_target(target: Any, args: tuple = (), kwargs: Mapping[str, Any] = {}) -> dict:
    """The sites, the type, the data and the log density of a target.

    The density is evaluated at three points, which are not counted, and no random numbers are used.

    Arguments:
        target: The target.
        args, kwargs: The arguments of its model.

    Example:
        >>> from ..target import Target
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> before = target.evaluations
        >>> sorted(describe_target(target))
        ['compile', 'data', 'device', 'dtype', 'evaluation', 'log density', 'sites', 'tracing']
        >>> target.evaluations == before
        True
    """
    sites = ", ".join(f"{site.name} {tuple(site.shape)}" for site in target.sites)
    return {
        "sites": sites,
        "dtype": str(target.dtype),
        "device": torch.device(target.device).type,
        "evaluation": str(target.batching),
        "compile": str(target.compile_mode),
        "tracing": repr(target.tracing),
        "data": digest(args, dict(kwargs), target.contexts),
        DENSITY: _log_densities(target),
    }


@torch.no_grad()
def _log_densities(target: Any) -> list[float]:
    count = POINTS if target.contexts is None else POINTS * len(target.contexts)
    row = torch.arange(1, count + 1, dtype=torch.double)[:, None]
    column = torch.arange(1, target.dim + 1, dtype=torch.double)
    x = torch.sin(row * column) * row / count
    with kept_generators(target.device), target.untraced():
        log_p = target.log_prob(x.to(target.device, target.dtype))
    return [float(value) for value in log_p]


def describe_settings(owner: Any) -> dict[str, str]:
    """The constructor's arguments of an object, as text, as far as it keeps them as attributes.

    An attribute ``initial_size`` is taken for the argument ``size``, where there is one.

    Example:
        >>> from ..kernels.imh import IMH
        >>> from ..target import Target
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 1)
        >>> describe_settings(IMH(target, lookahead=64, inversion=None))
        {'class': 'IMH', 'lookahead': '64', 'inversion': 'None'}
    """
    found = {"class": type(owner).__name__}
    names = dict.fromkeys(
        name
        for kind in type(owner).__mro__
        if "__init__" in vars(kind)
        for name in inspect.signature(vars(kind)["__init__"]).parameters
        if name not in SOURCES
    )
    for name in names:
        value = getattr(owner, f"initial_{name}", getattr(owner, name, owner))
        plain = value is None or isinstance(value, str | bool | int | float | tuple | list)
        if value is not owner and (plain or hasattr(value, "__dataclass_fields__")):
            found[name] = repr(value)
    return found


def differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between two descriptions, in words.

    Of options it names the fields that differ, and of digests that they differ.

    Example:
        >>> differences({"num_chains": 4, "thin": 1}, {"num_chains": 8, "thin": 1})
        ['num_chains is 8 and was 4']
        >>> differences({"options": "Fit(steps=3, rate=1)"}, {"options": "Fit(steps=4, rate=1)"})
        ['options.steps is 4 and was 3']
        >>> differences({"data": digest(1.0)}, {"data": digest(2.0)})
        ['data has other values']
    """
    found = []
    for name in dict.fromkeys([*stored, *now]):
        was, value = stored.get(name), now.get(name)
        if name != DENSITY:
            found += [] if was == value else _in_words(name, was, value)
        elif not _close(was, value):
            found.append(
                f"log density at fixed points is {_rounded(value)} and was {_rounded(was)}"
            )
    return found


def _in_words(name: str, was: Any, value: Any) -> list[str]:
    """The difference between two values of an entry, in words."""
    one, other = _fields(was), _fields(value)
    if one and one.keys() == other.keys():
        pairs = ((f"{name}.{field}", one[field], other[field]) for field in one)
        return [text for pair in pairs if pair[1] != pair[2] for text in _in_words(*pair)]
    if _is_digest(was) and _is_digest(value):
        return [f"{name} has other values"]
    return [f"{name} is {value} and was {was}"]


def _fields(text: Any) -> dict[str, str]:
    """The fields of options that are given as their text; none where it is no such text."""
    try:
        call = ast.parse(text, mode="eval").body if isinstance(text, str) else None
    except (SyntaxError, ValueError):
        return {}
    if not isinstance(call, ast.Call):
        return {}
    return {str(field.arg): ast.unparse(field.value) for field in call.keywords}


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{SHOWN}}}", value) is not None


def _rounded(value: Any) -> Any:
    return [float(f"{number:.6g}") for number in value] if isinstance(value, list) else value


def _close(was: Any, value: Any) -> bool:
    """Whether two lists of log densities agree, but for rounding errors."""
    if not isinstance(was, list) or not isinstance(value, list) or len(was) != len(value):
        return False
    return all(
        a == b
        or math.isnan(a)
        and math.isnan(b)
        or abs(a - b) <= TOLERANCE * max(1.0, abs(a), abs(b))
        for a, b in zip(was, value)
    )
