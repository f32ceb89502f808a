"""Square lattices: fields on them, differences along bonds, symmetries.

A field on a lattice of any dimension is a vector, its sites in row-major order, so that targets
see points ``(..., d)``. Each site has one bond to its neighbour along each axis, with the last
joined to the first; an axis of two sites therefore joins them by two bonds.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Size, Tensor

__all__ = ["lattice_symmetries"]

Shape = int | Sequence[int]  #: sites along each axis


def lattice_shape(shape: Shape) -> Size:
    """The shape as a tuple.

    Raises:
        ValueError: No axis, or one of fewer than two sites.
    """
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if not sizes or any(int(n) != n or n < 2 for n in sizes):
        raise ValueError(f"a lattice has at least two sites along each axis, got {sizes}")
    return Size(int(n) for n in sizes)


def on_lattice(x: Tensor, sizes: Size) -> Tensor:
    """Points ``(..., d)`` as fields ``(..., *sizes)``.

    Raises:
        ValueError: They do not have one coordinate for each site.
    """
    if x.dim() == 0 or x.shape[-1] != prod(sizes):
        raise ValueError(
            f"a lattice of shape {tuple(sizes)} has {prod(sizes)} sites, the points have shape "
            f"{tuple(x.shape)}"
        )
    return x.reshape(x.shape[:-1] + sizes)


def axes(sizes: Size) -> range:
    """The axes of a field on the lattice, counted from the right: there may be batches."""
    return range(-len(sizes), 0)


def differences(field: Tensor, axis: int, periodic: bool = True) -> Tensor:
    """Each site's neighbour along an axis, less the site; without the closing bond if open."""
    return field.roll(-1, axis) - field if periodic else field.diff(dim=axis)


def over_sites(values: Tensor, sizes: Size) -> Tensor:
    """The sum over the lattice, ``(...,)``."""
    return values.flatten(-len(sizes)).sum(-1)


def lattice_symmetries(shape: Shape) -> list[tuple[list[int], list[int]]]:
    r"""Generators of the symmetries of a periodic lattice.

    In this order: a shift by one site along each axis; the reflection of each; the exchange of each
    pair of neighbouring axes of one length. Each is :math:`(\pi, s)`, a permutation of the sites
    and signs, here all 1, as in :mod:`pyro_flowsamp.symmetry`; leave out what you do not need.

    Arguments:
        shape: Sites along each axis.

    Raises:
        ValueError: No axis, or one of fewer than two sites.
    """
    sizes = lattice_shape(shape)
    sites = torch.arange(prod(sizes), device="cpu").reshape(sizes)
    equal = [i for i in range(len(sizes) - 1) if sizes[i] == sizes[i + 1]]
    moved = [sites.roll(-1, axis) for axis in axes(sizes)]
    moved += [sites.flip(axis) for axis in axes(sizes)]
    moved += [sites.transpose(i, i + 1) for i in equal]
    return [(order.flatten().tolist(), [1] * prod(sizes)) for order in moved]
