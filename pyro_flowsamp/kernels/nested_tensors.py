"""Nested tuples of tensors, and the tensors in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

__all__ = ["inputs_of", "rebuilt", "skeleton_of", "tensors_of"]


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of nested tuples, in order.

    Example:
        >>> import torch
        >>> len(tensors_of((torch.ones(1), (torch.ones(2), torch.ones(3)))))
        3
    """
    return [value] if isinstance(value, Tensor) else [t for item in value for t in tensors_of(item)]


def inputs_of(args: tuple) -> list[Tensor]:
    """The inputs of a graph; it has views where other strides need copies.

    Example:
        >>> import torch
        >>> [x.is_contiguous() for x in inputs_of((torch.ones(2, 3).mT,))]
        [True]
    """
    return [tensor.detach().contiguous() for tensor in tensors_of(args)]


def skeleton_of(value: Any) -> Any:
    """Nested tuples without their tensors.

    Example:
        >>> import torch
        >>> skeleton_of((torch.ones(1), (torch.ones(2),)))
        (None, (None,))
    """
    if isinstance(value, Tensor):
        return None
    items = [skeleton_of(item) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def rebuilt(skeleton: Any, tensors: Iterator[Tensor]) -> Any:
    """Nested tuples of a form with these tensors.

    Arguments:
        skeleton: The form, from :func:`skeleton_of`.
        tensors: The tensors, in order.

    Example:
        >>> import torch
        >>> rebuilt((None, (None,)), iter([torch.tensor(1), torch.tensor(2)]))
        (tensor(1), (tensor(2),))
    """
    if skeleton is None:
        return next(tensors)
    items = [rebuilt(item, tensors) for item in skeleton]
    return type(skeleton)(*items) if hasattr(skeleton, "_fields") else tuple(items)
