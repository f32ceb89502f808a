"""Context: the model arguments over which one flow or target is conditional.

Values of the context arguments become rows of numbers, one row for each context. A guide goes from
arguments to rows (:class:`ContextArguments`), a target from rows to arguments
(:class:`ContextValues`). A batch at K contexts has context i mod K in its row i (:func:`every`).
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor

from ..validation import as_tensor
from .site import Values


# ---- arguments of a model ------------------------------------------------------------------------
def signature_of(model: Callable) -> inspect.Signature:
    """The signature of a model, also of one that is a module or is wrapped."""
    plain = inspect.unwrap(model)
    return inspect.signature(plain.forward if isinstance(plain, torch.nn.Module) else plain)


def named_arguments(model: Callable, args: tuple, kwargs: dict) -> dict[str, Any]:
    """All arguments of a model by name, with its defaults and what its ``**kwargs`` takes.

    Raises:
        ValueError: One of them cannot be given by name.

    Example:
        >>> named_arguments(lambda a, b=2, **more: None, (1,), {"c": 3})
        {'a': 1, 'b': 2, 'c': 3}
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


def same_objects(one: tuple, two: tuple) -> bool:
    """Whether two argument lists hold the same objects.

    Values of tensors are not compared, since that would wait for the device.

    Example:
        >>> x = torch.zeros(1)
        >>> same_objects((x, 1), (x, 1)), same_objects((x,), (x.clone(),))
        (True, False)
    """
    return len(one) == len(two) and all(a is b for a, b in zip(one, two))


# ---- batches at several contexts -----------------------------------------------------------------
def every(rows: Tensor, num: int) -> Tensor:
    """Repeats K rows ``(K, c)`` over and over to ``(num, c)``: row i is the one of i mod K.

    Example:
        >>> every(torch.tensor([[1], [2]]), 5)[:, 0].tolist()
        [1, 2, 1, 2, 1]
    """
    return rows[torch.arange(num, device=rows.device) % len(rows)]


def check_number_of_chains(num_chains: int, contexts: Tensor | None) -> None:
    """Checks that chains can be shared out evenly among contexts.

    Arguments:
        num_chains: The number of chains.
        contexts: Rows ``(K, c)``, or None where there is one context.

    Raises:
        ValueError: The number is no multiple of K.
    """
    if contexts is not None and num_chains % len(contexts):
        raise ValueError(
            f"{num_chains} chains cannot be shared out evenly among {len(contexts)} contexts: "
            f"take a multiple of {len(contexts)}; chain i is at the context of i mod "
            f"{len(contexts)}"
        )


def split_by_context(draws: Tensor, num_contexts: int) -> Tensor:
    """Draws ``(C, D, ...)`` of C chains at K contexts as ``(C / K, D, K, ...)``.

    Example:
        >>> split_by_context(torch.arange(4)[:, None], 2).tolist()
        [[[0, 1]], [[2, 3]]]
    """
    return draws.unflatten(0, (-1, num_contexts)).transpose(1, 2)


# ---- from rows to arguments: targets -------------------------------------------------------------
class ContextValues:
    """The context of a conditional target: one value of each argument, and rows in their place.

    Arguments:
        values: The value of each argument with which the target was made, numbers or tensors. They
            fix the order, the shapes and the dtypes.

    Example:
        >>> context = ContextValues({"scale": 2.0, "group": torch.tensor(1)})
        >>> context.row(torch.float32, torch.device("cpu")).tolist()
        [2.0, 1.0]
        >>> context.arguments(torch.tensor([[0.5, 3.0]]))
        {'scale': tensor([0.5000]), 'group': tensor([3])}
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = {name: torch.as_tensor(value) for name, value in values.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the arguments."""
        return tuple(self.values)

    def row(self, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """The values as one row ``(c,)``; None where there is no context."""
        parts = [value.reshape(-1).to(device, dtype) for value in self.values.values()]
        return torch.cat(parts) if parts else None

    def rows(self, rows: Any, num: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Given rows ``(K, c)`` as a tensor of this type, on this device.

        Arguments:
            rows: The rows.
            num: Their number K, or None for any.
            dtype, device: Type and device of the rows.

        Raises:
            ValueError: They have another shape, or there is no context.
        """
        rows = as_tensor("the contexts", rows, dtype, device).to(device, dtype)
        size = sum(value.numel() for value in self.values.values())
        fits = rows.dim() == 2 and rows.shape[1] == size and num in (None, len(rows))
        if not self.values or not fits or not len(rows):
            raise ValueError(
                f"contexts of shape {tuple(rows.shape)}: expected ({num or 'K'}, c), one row of "
                f"the arguments {list(self.values)} for each" + (f", c = {size}" if size else "")
            )
        return rows

    def arguments(self, rows: Tensor | None) -> Values:
        """Rows ``(..., c)`` as arguments of the model, each of its dtype.

        Raises:
            ValueError: There are no rows, or fractions in place of an integer or a bool.
        """
        if not self.values:
            return {}
        if rows is None:
            raise ValueError(f"this target is conditional: give context for {list(self.values)}")
        blocks = rows.split([value.numel() for value in self.values.values()], -1)
        return {
            name: _like(value, block.reshape(block.shape[:-1] + value.shape), name)
            for (name, value), block in zip(self.values.items(), blocks)
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


# ---- from arguments to rows: guides --------------------------------------------------------------
class ContextRange:
    """The contexts that a flow was trained on: each argument's shape, and each number's range.

    Arguments:
        shapes: The shape of one value, by argument.
        low, high: The least and the greatest value of each feature, ``(c,)``.
    """

    def __init__(self, shapes: Mapping[str, Size], low: Tensor, high: Tensor) -> None:
        self.shapes, self.low, self.high = dict(shapes), low, high
        self._warned = False

    def joined(self, earlier: ContextRange | None) -> ContextRange:
        """The range of this and an earlier training, if they were of the same arguments."""
        if earlier is None or self.shapes != earlier.shapes:
            return self
        low, high = (v.to(self.low) for v in (earlier.low, earlier.high))
        return ContextRange(self.shapes, self.low.minimum(low), self.high.maximum(high))

    def saved(self) -> dict[str, Any]:
        """The range as plain lists, which any ``torch.load`` takes."""
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        return {"shapes": shapes, "low": self.low.tolist(), "high": self.high.tolist()}

    @classmethod
    def load(cls, saved: dict[str, Any]) -> ContextRange:
        """The range that :meth:`saved` made lists of."""
        shapes = {name: Size(shape) for name, shape in saved["shapes"].items()}
        return cls(shapes, torch.tensor(saved["low"]), torch.tensor(saved["high"]))

    def stack(self, name: str, value: Tensor) -> Tensor:
        """One value or several of an argument, along a leading dimension.

        Raises:
            ValueError: The shape is that of neither.
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
        """Warns once of contexts outside the range of the training."""
        low, high = self.low.to(rows), self.high.to(rows)
        slack = 1e-5 * (high - low).abs() + 1e-6 * high.abs()
        if self._warned or bool(((rows >= low - slack) & (rows <= high + slack)).all()):
            return
        self._warned = True
        names = ", ".join(self.shapes)
        warnings.warn(
            f"the context ({names}) = {rows.amin(0).tolist()} to {rows.amax(0).tolist()} leaves "
            f"the range that the flow was trained on, {low.tolist()} to {high.tolist()}: its draws "
            f"may be far from the posterior there, and kernels may accept few of them. Train on "
            f"values around those that you need.",
            stacklevel=5,
        )


class ContextCall(NamedTuple):
    """One call of a model, whose context arguments may have had several values.

    Attributes:
        args, kwargs: Arguments of the model, with a single value of each context argument.
        rows: The contexts ``(K, c)``; None where there are no context arguments.
        range: What the rows span, in a call for training.
    """

    args: tuple
    kwargs: dict[str, Any]
    rows: Tensor | None = None
    range: ContextRange | None = None


class ContextArguments:
    """The names of the arguments over which a flow is amortised, and what it was trained on.

    Arguments:
        names: The names of the context arguments; there may be none.
        model: The model that has them.

    Attributes:
        range: The contexts of the training so far, or None.

    Raises:
        ValueError: The names are no list, or the model has no such arguments.

    Example:
        >>> def model(scale, data): ...
        >>> context = ContextArguments(["scale"], model)
        >>> call = context.for_training(model, (torch.tensor([0.5, 2.0]), "data"), {})
        >>> call.rows.tolist(), call.kwargs
        ([[0.5], [2.0]], {'scale': tensor(0.5000), 'data': 'data'})
        >>> context.learn(call)
        >>> context.for_use(model, (torch.tensor(1.5), "data"), {}).rows
        tensor([[1.5000]])
    """

    def __init__(self, names: Sequence[str], model: Callable) -> None:
        if isinstance(names, str):
            raise ValueError(f"context is a list of names: ['{names}']")
        self.names = tuple(names)
        self.range: ContextRange | None = None
        parameters = signature_of(model).parameters if names else {}
        unknown = [name for name in names if name not in parameters]
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            raise ValueError(
                f"context {unknown}: no such arguments of the model, which has {list(parameters)}"
            )

    def for_training(self, model: Callable, args: tuple, kwargs: dict) -> ContextCall:
        """The call of a training, in which each context argument has a leading dimension.

        Raises:
            ValueError: A value is missing, no number or not finite, or their numbers differ.
        """
        if not self.names:
            return ContextCall(args, kwargs)
        named = self._named(model, args, kwargs)
        values = self._values(named)
        lengths = {name: len(v) if v.dim() else None for name, v in values.items()}
        if len(set(lengths.values())) > 1 or None in lengths.values():
            raise ValueError(
                f"fit needs the context's values along a leading dimension, as many of each "
                f"argument; their lengths are {lengths}"
            )
        rows = _rows(values.values())
        if not bool(torch.isfinite(rows).all()):
            raise ValueError("the context's values are not finite")
        shapes = {name: value.shape[1:] for name, value in values.items()}
        first = {**named, **{name: value[0] for name, value in values.items()}}
        return ContextCall((), first, rows, ContextRange(shapes, rows.amin(0), rows.amax(0)))

    def learn(self, call: ContextCall) -> None:
        """Widens the range by the contexts of a training that has run."""
        self.range = None if call.range is None else call.range.joined(self.range)

    def for_use(self, model: Callable, args: tuple, kwargs: dict) -> ContextCall:
        """The call of a trained flow at one context or several; warns outside the range.

        Raises:
            ValueError: A value is missing or no number, or has another shape than in training.
        """
        if not self.names:
            return ContextCall(args, kwargs)
        rows, args, kwargs = self._used(model, args, kwargs)
        if self.range is not None:
            self.range.warn_outside(rows)
        return ContextCall(args, kwargs, rows)

    def single_row(self, model: Callable, args: tuple, kwargs: dict) -> Tensor:
        """The row ``(c,)`` of a call at one context.

        Raises:
            ValueError: There are several contexts; or as :meth:`for_use`.
        """
        rows = self._used(model, args, kwargs)[0]
        if len(rows) > 1:
            raise ValueError(f"a Pyro guide has one context at a time, got {len(rows)}")
        return rows[0]

    def _used(self, model: Callable, args: tuple, kwargs: dict) -> tuple[Tensor, tuple, dict]:
        """The contexts of a call, and its arguments with one value of each context argument."""
        named = self._named(model, args, kwargs)
        values, known = self._values(named), self.range
        if known is None:
            return _rows(v[None] for v in values.values()), args, kwargs
        stacked = {name: known.stack(name, v) for name, v in values.items()}
        num = max(len(v) for v in stacked.values())
        if any(len(v) not in (1, num) for v in stacked.values()):
            lengths = {name: len(v) for name, v in stacked.items()}
            raise ValueError(f"the context's arguments have different numbers of values: {lengths}")
        rows = _rows(v.expand(num, *v.shape[1:]) for v in stacked.values())
        if all(v.shape == known.shapes[name] for name, v in values.items()):
            return rows, args, kwargs
        return rows, (), {**named, **{name: v[0] for name, v in stacked.items()}}

    def _named(self, model: Callable, args: tuple, kwargs: dict) -> dict[str, Any]:
        """All arguments by name; those of the context must be there."""
        named = named_arguments(model, args, kwargs)
        missing = [name for name in self.names if name not in named]
        if missing:
            raise ValueError(
                f"no value for {missing}, over which this guide is amortised: give it to fit, run, "
                f"target_for and proposal as an argument of the model"
            )
        return named

    def _values(self, named: dict[str, Any]) -> Values:
        return {name: _as_context(named[name], name) for name in self.names}


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
