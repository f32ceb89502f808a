"""Checks of a model and its arguments, before the model is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from inspect import Parameter, Signature
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ..validation import default_device, shown
from .context import signature_of

__all__ = [
    "check_autograd",
    "check_fits",
    "check_model",
    "check_observed",
    "check_shared_names",
    "check_values",
]


def check_model(model: Any) -> None:
    """Checks that a model can be called.

    Raises:
        TypeError: It is None, a class, or no function, module or other callable object.

    Example:
        >>> check_model(3)
        Traceback (most recent call last):
        ...
        TypeError: the model must be a function with pyro.sample statements, a module or a Target, got 3
    """  # noqa: E501
    if isinstance(model, type):
        raise TypeError(
            f"the model is the class {model.__name__}: give an instance, {model.__name__}(...)"
        )
    if not callable(model):
        raise TypeError(
            f"the model must be a function with pyro.sample statements, a module or a Target, got "
            f"{shown(model)}"
        )


def check_values(model: Callable, args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Checks that the model's arguments and parameters are not on the device "meta".

    Arguments:
        model: The model.
        args, kwargs: Its arguments.

    Raises:
        ValueError: One of them is, or new tensors are by default.

    Example:
        >>> check_values(lambda x: None, (torch.zeros(1, device="meta"),), {})
        Traceback (most recent call last):
        ValueError: argument 0 of the model is on the device 'meta', which holds no values: ...
    """
    given = {f"argument {i} of the model": value for i, value in enumerate(args)}
    given |= {f"the model's argument '{name}'": value for name, value in kwargs.items()}
    if isinstance(model, nn.Module):
        given |= {f"the parameter '{name}'": value for name, value in model.named_parameters()}
    for name, value in given.items():
        if isinstance(value, Tensor) and value.is_meta:
            raise ValueError(
                f"{name} is on the device 'meta', which holds no values: give it on 'cpu' or 'cuda'"
            )
    if default_device().type == "meta":
        raise ValueError(
            "torch's default device is 'meta', which holds no values: "
            "torch.set_default_device('cpu')"
        )


def check_observed(nodes: Iterable[Mapping[str, Any]]) -> None:
    """Checks that observed values are tensors or numbers.

    Arguments:
        nodes: The nodes of a trace.

    Raises:
        TypeError: One of them is an array, a list, a boolean or anything else.

    Example:
        >>> check_observed([{"type": "sample", "is_observed": True, "name": "y", "value": [1.0]}])
        Traceback (most recent call last):
        TypeError: site 'y' is observed as [1.0], which is no tensor: give torch.as_tensor(...
    """
    for node in nodes:
        if node["type"] != "sample" or not node["is_observed"]:
            continue
        value = node["value"]
        if isinstance(value, Tensor) or (isinstance(value, Real) and not isinstance(value, bool)):
            continue
        raise TypeError(
            f"site '{node['name']}' is observed as {shown(value)}, which is no tensor: give "
            f"torch.as_tensor(data, dtype={torch.get_default_dtype()})"
        )


def check_autograd() -> None:
    """Checks that gradients can be recorded.

    Raises:
        RuntimeError: ``torch.inference_mode()`` is on.

    Example:
        >>> with torch.inference_mode():
        ...     check_autograd()
        Traceback (most recent call last):
        RuntimeError: torch.inference_mode() is on, in which there are no gradients of the ...
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "torch.inference_mode() is on, in which there are no gradients of the density: call "
            "this outside of it (torch.no_grad() is no hindrance)"
        )


def check_fits(model: Callable, args: tuple, kwargs: dict[str, Any], error: TypeError) -> None:
    """Says which arguments a model takes, where a call of it has failed because of them.

    Arguments:
        model: The model.
        args, kwargs: The arguments of the call.
        error: The error of the call.

    Raises:
        TypeError: The arguments do not fit the model's signature; the cause is the error.

    Example:
        >>> def model(x):
        ...     pass
        >>> check_fits(model, (1, 2), {}, TypeError("a call has failed"))
        Traceback (most recent call last):
        TypeError: the arguments do not fit the model model(x): too many positional arguments...
    """
    signature = _signature(model)
    if signature is None:
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as misfit:
        name = getattr(model, "__name__", type(model).__name__)
        raise TypeError(
            f"the arguments do not fit the model {name}{signature}: {misfit}. The arguments of a "
            f"model are given after it, or to run(...) and fit(...)"
        ) from error


def check_shared_names(
    function: Callable, model: Any, args: tuple, given: Mapping[str, Any]
) -> None:
    """Checks that no option of a function is meant for an argument of the model, or might be.

    Arguments:
        function: A function that takes a model, the model's arguments, and options by name.
        model: The model.
        args: The model's arguments by position.
        given: The options of the call by name, with those that have their default value.

    Raises:
        ValueError: An option is given, and the model has an argument of this name whose value is
            neither among ``args`` nor fixed by ``functools.partial``.

    Example:
        >>> def sample(model, *args, seed=None): ...
        >>> def model(y, seed): ...
        >>> check_shared_names(sample, model, (1.0, 2), {"seed": 0})
        >>> check_shared_names(sample, model, (1.0,), {"seed": 0})
        Traceback (most recent call last):
        ...
        ValueError: 'seed' is an option of sample() and an argument of the model: give the model's by position, or fix it by functools.partial(model, seed=...)
    """  # noqa: E501
    signature = _signature(model)
    if signature is None:
        return
    fixed: set[str] = set()
    inner = model
    while isinstance(inner, partial):
        fixed |= set(inner.keywords)
        inner = inner.func
    try:
        bound = set(signature.bind_partial(*args).arguments)
    except TypeError:  # too many arguments: the model's call says so
        return
    defaults = signature_of(function).parameters
    for name, value in given.items():
        own = signature.parameters.get(name)
        if own is None or own.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            continue
        if value is defaults[name].default or name in bound or name in fixed:
            continue
        raise ValueError(
            f"'{name}' is an option of {function.__name__}() and an argument of the model: give "
            f"the model's by position, or fix it by functools.partial(model, {name}=...)"
        )


def _signature(model: Callable) -> Signature | None:
    """A model's signature; None where Python knows none."""
    try:
        return signature_of(model)
    except (TypeError, ValueError):
        return None
