"""Context: the model arguments over which one flow or target is conditional."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Size, Tensor

from .site import Values


def signature_of(model: Callable) -> inspect.Signature:
    """A model's own, also where it is a module, or wrapped."""
    plain = inspect.unwrap(model)
    return inspect.signature(plain.forward if isinstance(plain, torch.nn.Module) else plain)


def named_arguments(model: Callable, args: tuple, kwargs: dict) -> dict[str, Any]:
    """All arguments of a model by name, defaults and those of its ``**kwargs`` among them.

    Raises:
        ValueError: One of them cannot be given by name.
    """
    bound = signature_of(model).bind_partial(*args, **kwargs)
    kinds = {name: p.kind for name, p in bound.signature.parameters.items()}
    nameless = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY
    for name in bound.arguments:
        if kinds[name] in nameless:
            raise ValueError(
                f"a model that is conditional on some of its arguments needs names for all: "
                f"'{name}' is positional only"
            )
    bound.apply_defaults()
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if kinds[name] is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        elif kinds[name] not in nameless:
            named[name] = value
    return named


def every(rows: Tensor, num: int) -> Tensor:
    """K rows over and over, ``(num, c)``: row i is the one of i mod K."""
    return rows[torch.arange(num, device=rows.device) % len(rows)]


def same_objects(one: tuple, two: tuple) -> bool:
    """Whether two argument lists hold the same objects (comparing tensors' values would sync)."""
    return len(one) == len(two) and all(a is b for a, b in zip(one, two))


def _unflatten(context: Tensor | None, own: Values) -> Values:
    """Rows of numbers as arguments of the model, integers and bools again where its ``own`` are."""
    if not own:
        return {}
    if context is None:
        raise ValueError(f"this target is conditional: give context for {list(own)}")
    blocks = context.split([value.numel() for value in own.values()], -1)
    return {
        name: _like(value, block.reshape(block.shape[:-1] + value.shape), name)
        for (name, value), block in zip(own.items(), blocks)
    }


def _like(own: Tensor, value: Tensor, name: str) -> Tensor:
    if own.is_floating_point():
        return value
    exact = value.to(own.dtype)
    if bool((exact != value).any()):
        raise ValueError(
            f"context '{name}': the target was made with {own.dtype} values, which these are not; "
            f"make it with floating-point ones"
        )
    return exact


class ContextRange:
    """What contexts a flow was trained on: each argument's shape, and each number's range.

    Arguments:
        shapes: Of one value, by argument.
        low, high: The least and the greatest of each feature, ``(c,)``.
    """

    def __init__(self, shapes: Mapping[str, Size], low: Tensor, high: Tensor) -> None:
        self.shapes, self.low, self.high = dict(shapes), low, high
        self._warned = False

    def with_(self, other: ContextRange) -> ContextRange:
        """Of both trainings, if they were of the same arguments."""
        if self.shapes != other.shapes:
            return self
        low, high = (v.to(self.low) for v in (other.low, other.high))
        return ContextRange(self.shapes, self.low.minimum(low), self.high.maximum(high))

    def saved(self) -> dict[str, Any]:
        """As plain lists, which any ``torch.load`` takes."""
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        return {"shapes": shapes, "low": self.low.tolist(), "high": self.high.tolist()}

    @classmethod
    def load(cls, saved: dict[str, Any]) -> ContextRange:
        shapes = {name: Size(shape) for name, shape in saved["shapes"].items()}
        return cls(shapes, torch.tensor(saved["low"]), torch.tensor(saved["high"]))

    def stack(self, name: str, value: Tensor) -> Tensor:
        """One value or several of an argument, along a leading dimension.

        Raises:
            ValueError: The shape is neither's.
        """
        shape = self.shapes[name]
        if value.shape == shape:
            return value[None]
        if value.dim() and value.shape[1:] == shape and len(value):
            return value
        raise ValueError(
            f"context '{name}': the guide was trained on values of shape {tuple(shape)}; expected "
            f"that or (K, *{tuple(shape)}) for K of them, got {tuple(value.shape)}"
        )

    def warn_outside(self, rows: Tensor) -> None:
        """Warns, once, of contexts that the flow has not been trained between."""
        low, high = self.low.to(rows), self.high.to(rows)
        slack = 1e-5 * (high - low).abs() + 1e-6 * high.abs()
        if self._warned or bool(((rows >= low - slack) & (rows <= high + slack)).all()):
            return
        self._warned = True
        names = ", ".join(self.shapes)
        warnings.warn(
            f"the context ({names}) = {rows.amin(0).tolist()} to {rows.amax(0).tolist()} leaves "
            f"the range that the flow was trained on, {low.tolist()} to {high.tolist()}: its draws "
            f"may be far off there, and few accepted. Train on values around those you ask for.",
            stacklevel=5,
        )


def _check_names(model: Callable, context: Sequence[str]) -> None:
    if isinstance(context, str):
        raise ValueError(f"context is a list of names: ['{context}']")
    parameters = signature_of(model).parameters if context else {}
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    unknown = [name for name in context if name not in parameters]
    if unknown:
        raise ValueError(
            f"context {unknown}: no such arguments of the model, which has {list(parameters)}"
        )


def _as_context(value: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"context '{name}' is no number or tensor: {value!r}") from error


def _rows(values: Iterable[Tensor]) -> Tensor:
    """Stacked values as rows ``(K, c)``."""
    real = torch.get_default_dtype()
    parts = [v.reshape(len(v), -1) for v in values]
    return torch.cat([p if p.is_floating_point() else p.to(real) for p in parts], -1)
