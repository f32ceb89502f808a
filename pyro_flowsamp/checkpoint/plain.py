"""Objects as tensors, numbers and strings, and back; nothing that is read can run code.

:func:`torch.load` with ``weights_only=True`` reads tensors, numbers, strings, and lists, tuples and
dictionaries of these. Named tuples, and the objects that hold the state of an adaptation, are
written as dictionaries with the name of their class. Reading makes an object of such a class
without calling it, and only of classes that are imported already: named tuples, classes of this
package, and those of :data:`OTHERS`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["from_plain", "to_plain"]

CLASS = "<class>"  #: key of the name of a class
PACKAGE = __name__.partition(".")[0]
#: classes of other packages whose objects have fields of plain values alone
OTHERS = {"pyro.ops.dual_averaging:DualAveraging"}
PLAIN = str | bytes | bool | int | float | torch.dtype | torch.device | None


def to_plain(value: Any, name: str = "value") -> Any:
    """A value as tensors, numbers, strings, and lists, tuples and dictionaries of these.

    Arguments:
        value: The value.
        name: What it is, for the message.

    Raises:
        TypeError: It holds an object of another kind, such as a function or a network.

    Example:
        >>> from ..transitions.independence import IMHState
        >>> state = IMHState(torch.zeros(2, 1), torch.zeros(2), torch.ones(2))
        >>> plain = to_plain({"state": state, "steps": 3})
        >>> from_plain(plain)["state"].log_q
        tensor([1., 1.])
    """
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list):
        return [to_plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {_key(key, name): to_plain(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, tuple):
        items = tuple(to_plain(item, f"{name}[{i}]") for i, item in enumerate(value))
        return {CLASS: _named(type(value)), "items": items} if hasattr(value, "_fields") else items
    if isinstance(value, PLAIN):
        return value
    if _allowed(type(value)):
        fields = {key: to_plain(item, f"{name}.{key}") for key, item in vars(value).items()}
        return {CLASS: _named(type(value)), "fields": fields}
    raise TypeError(
        f"a checkpoint cannot hold {name}, a {type(value).__name__}: it holds tensors, numbers, "
        f"strings, and lists, tuples and dictionaries of these"
    )


def from_plain(plain: Any) -> Any:
    """The value that :func:`to_plain` was given, with tensors of their own.

    Raises:
        ValueError: A class is none whose objects may be read.

    Example:
        >>> from_plain(to_plain([np.float64(0.5), {"steps": 3}]))
        [0.5, {'steps': 3}]
        >>> from_plain({CLASS: "builtins:eval", "items": ()})
        Traceback (most recent call last):
        ValueError: ...
    """
    if isinstance(plain, list):
        return [from_plain(item) for item in plain]
    if isinstance(plain, tuple):
        return tuple(from_plain(item) for item in plain)
    if not isinstance(plain, dict):
        return plain
    if CLASS not in plain:
        return {key: from_plain(item) for key, item in plain.items()}
    kind = _class_of(plain[CLASS])
    if "items" in plain and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return tuple.__new__(kind, from_plain(plain["items"]))
    if "fields" in plain and _allowed(kind):
        made: Any = object.__new__(kind)
        made.__dict__.update(from_plain(plain["fields"]))
        return made
    raise ValueError(f"a checkpoint may not hold objects of the class {plain[CLASS]!r}")


def _key(key: Any, name: str) -> Any:
    if isinstance(key, str | int) and key != CLASS:
        return key
    raise TypeError(f"a checkpoint cannot hold {name}: its keys must be strings, got {key!r}")


def _named(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _allowed(kind: type) -> bool:
    """Whether objects of a class are written field by field."""
    if issubclass(kind, nn.Module | type) or not hasattr(kind, "__dict__"):
        return False
    return kind.__module__.partition(".")[0] == PACKAGE or _named(kind) in OTHERS


def _class_of(name: str) -> type:
    """A class by its name, of the modules that are imported already; none is imported here."""
    module, _, path = str(name).partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None) if part != "<locals>" else None
    if not isinstance(found, type):
        raise ValueError(
            f"a checkpoint holds an object of the class {name!r}, which is not known: import the "
            f"module that defines it first, and define it at the top of that module"
        )
    return found
