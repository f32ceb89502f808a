"""Values that a function reads beside its arguments: whether they are still the same objects.

A traced density is a list of operations on its inputs and on the tensors that the function held
while it was traced. It is out of date as soon as a name, an attribute or an entry of a container
refers to another object. Tensors that are changed in place stay the same objects, and the trace
reads their new values.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ReferenceType

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.distributions import Transform

__all__ = ["HeldValues", "MAX_ARRAY_BYTES", "MAX_VALUES"]

#: objects that are followed at most; a function that reads more of them is not looked through
MAX_VALUES = 10_000
#: bytes of a NumPy array whose contents are compared; tensors are compared as objects only
MAX_ARRAY_BYTES = 4096
#: packages whose functions, classes and modules hold no values of a user
_LIBRARIES = {"torch", "pyro", "numpy", "scipy", "zuko", "pyro_flowsamp", *sys.stdlib_module_names}
_LIBRARIES -= {"__main__"}
#: attributes in which a bijection keeps its last result and its inverse
_CACHES = {"_inv", "_cached_x_y"}
_CONSTANTS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_MISSING = object()


class HeldValues:
    """The values that a function reads: its closures, globals, defaults, attributes and parameters.

    Containers, attributes of objects, modules and parameters of Pyro are followed. Functions,
    classes and modules of libraries are not.

    Arguments:
        function: The function.

    Attributes:
        tensors: The tensors among the values, by ``id``.
        unknown: The reason why a change might go unseen; empty where there is none.

    Example:
        >>> def times(scale):
        ...     return lambda x: scale[0] * x
        >>> scale = [torch.tensor(2.0)]
        >>> held = HeldValues(times(scale))
        >>> held.unchanged()
        True
        >>> _ = scale[0].mul_(3)  # in place: the same object
        >>> held.unchanged()
        True
        >>> scale[0] = torch.tensor(3.0)
        >>> held.unchanged()
        False
    """

    def __init__(self, function: Callable) -> None:
        self.tensors: dict[int, Tensor] = {}
        self.unknown = ""
        self._checks: list[Callable[[], bool]] = []
        self._seen: dict[int, Any] = {}  # keeps the objects, lest another one gets the same id
        self._parameters = dict(pyro.get_param_store().named_parameters())
        self.tensors |= {id(value): value for value in self._parameters.values()}
        todo = [function]
        while todo and not self.unknown:
            todo += self._inside(todo.pop())
        self._seen.clear()

    def unchanged(self) -> bool:
        """Whether all values are still the same objects, and small arrays the same numbers."""
        now = dict(pyro.get_param_store().named_parameters())
        same = all(now.get(name) is value for name, value in self._parameters.items())
        return same and all(check() for check in self._checks)

    def _inside(self, value: Any) -> list[Any]:
        """The objects that a value refers to; makes the check that it still does."""
        if isinstance(value, _CONSTANTS) or id(value) in self._seen:
            return []
        self._seen[id(value)] = value
        if len(self._seen) > MAX_VALUES:
            self.unknown = f"it reads more than {MAX_VALUES} objects"
            return []
        if isinstance(value, Tensor):
            self.tensors[id(value)] = value
            return []
        if isinstance(value, np.ndarray):
            return self._array(value)
        if isinstance(value, CellType):
            return self._cell(value)
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, MethodType):
            return [value.__self__, value.__func__]
        if isinstance(value, partial):
            return [value.func, *value.args, *value.keywords.values()]
        if isinstance(value, tuple | frozenset):
            return list(value)
        if isinstance(value, list | set):
            return self._sequence(value)
        if isinstance(value, dict):
            return self._entries(value, list(value))
        if isinstance(value, ModuleType | ReferenceType):
            return []
        return self._object(value)

    def _array(self, array: np.ndarray) -> list[Any]:
        if array.nbytes > MAX_ARRAY_BYTES:
            self.unknown = (
                f"it reads a NumPy array of shape {array.shape}, whose contents may change: give "
                f"the model a tensor"
            )
            return []
        before = array.tobytes()
        self._checks.append(lambda: array.tobytes() == before)
        return []

    def _cell(self, cell: CellType) -> list[Any]:
        try:
            value = cell.cell_contents
        except ValueError:  # the name has no value yet
            return []
        self._checks.append(lambda: cell.cell_contents is value)
        return [value]

    def _sequence(self, values: list | set) -> list[Any]:
        before = list(values)

        def same() -> bool:
            return len(values) == len(before) and all(a is b for a, b in zip(values, before))

        self._checks.append(same)
        return before

    def _entries(self, values: dict, keys: list) -> list[Any]:
        """The values of some keys of a dictionary."""
        before = [(key, values[key]) for key in keys if key in values and key not in _CACHES]
        if before:
            self._checks.append(lambda: all(values.get(k, _MISSING) is v for k, v in before))
        return [value for _, value in before]

    def _function(self, function: FunctionType) -> list[Any]:
        found = [*(function.__closure__ or ()), *self._entries(*_plain(vars(function)))]
        found += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        if _of_a_library(function):
            return found
        names = list(_names(function.__code__))
        found += self._entries(function.__globals__, names)
        for module in list(found):
            if isinstance(module, ModuleType) and module.__name__.split(".")[0] not in _LIBRARIES:
                found += self._entries(vars(module), names)
        return found

    def _object(self, value: Any) -> list[Any]:
        if isinstance(value, type):
            return [] if _of_a_library(value) else self._entries(*_plain(vars(value)))
        found = [] if isinstance(value, Transform) else [type(value)]
        slots = (s for kind in type(value).__mro__ for s in kind.__dict__.get("__slots__", ()))
        for name in slots:
            found += (
                [getattr(value, name)] if isinstance(getattr(value, name, None), Tensor) else []
            )
        attributes = getattr(value, "__dict__", None)
        return found + (self._entries(attributes, list(attributes)) if attributes else [])


def _plain(attributes: Any) -> tuple[dict, list]:
    """The attributes of a class or function, and the names of those that are not Python's own."""
    names = [name for name in attributes if not (name.startswith("__") and name != "__wrapped__")]
    return attributes, names


def _of_a_library(value: Any) -> bool:
    return (getattr(value, "__module__", None) or "").split(".")[0] in _LIBRARIES


def _names(code: CodeType) -> Iterator[str]:
    """The global names and attributes of a function and of the functions in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
