"""Square lattices: fields, differences along bonds, symmetries, and an order of the sites.

A field on a lattice of any dimension is a vector with its sites in row-major order, so that targets
take points ``(..., d)``. Each site has one bond to its next neighbour along each axis, and the last
site is joined to the first. Two sites on an axis are therefore joined by two bonds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from math import prod, sqrt
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Size, Tensor

from ..validation import check_count

__all__ = ["SiteGroup", "coarse_to_fine", "lattice_shape", "lattice_symmetries"]


REACH = 16  #: default number of known sites that a new site depends on


# ---- the order of sites ------------------------------------------------------------------------
class SiteGroup(NamedTuple):
    """A group of sites that are drawn at the same time.

    Attributes:
        sites: Indices of the sites, ``(n,)``.
        near: The nearest known sites of each, ``(n, k)``, in the same order of displacements.
        corners: The other corners of each elementary square of which all are known, ``(n, p, 3)``,
            the opposite corner last.
        distance: Lengths of the displacements to the nearest known sites, ``(k,)``.
        steps: These displacements as the shortest way around the lattice, then those of the
            squares.
        key: The level counted from the finest, and the group within it; a group of the same kind
            has the same key on all lattices.

    Example:
        >>> last = coarse_to_fine((4,))[-1]  # site 3, next to sites 2 and 0
        >>> last.sites.tolist(), sorted(last.near[0, :2].tolist()), last.distance[:2].tolist()
        ([3], [0, 2], [1.0, 1.0])
    """

    sites: Tensor
    near: Tensor
    corners: Tensor
    distance: Tensor
    steps: tuple
    key: str


def coarse_to_fine(sizes: Sequence[int], reach: int = REACH) -> list[SiteGroup]:
    """Returns the groups of sites of a lattice in the order in which they are drawn.

    The coarsest sites, spaced by the largest power of two that divides all sizes, come one by one.
    Then each level halves the spacing. Its cosets are drawn one after the other, those of even
    parity first, and each coset in two halves like the squares of a chessboard, where possible.

    Arguments:
        sizes: Sites along each axis.
        reach: Number of nearest known sites that a new site depends on.

    Raises:
        ValueError: An axis has fewer than two sites, the reach is below one, or the coarsest level
            has more than 64 sites.

    Example::

        >>> [len(group.sites) for group in coarse_to_fine((4, 4))]
        [1, 1, 1, 1, 2, 2, 2, 2, 2, 2]
    """
    check_count("reach", reach)
    sizes = lattice_shape(sizes)
    spacing = 1
    while all(n % (2 * spacing) == 0 for n in sizes):
        spacing *= 2
    coarse = [
        tuple(spacing * i for i in at) for at in product(*(range(n // spacing) for n in sizes))
    ]
    if len(coarse) > 64:
        raise ValueError(
            f"a lattice of shape {tuple(sizes)} has no coarser one of at most 64 sites, as its "
            f"sizes are not divisible by a power of two: use such sizes, or flow='circular'"
        )
    known: list[tuple[int, ...]] = []
    groups = []
    for i, site in enumerate(coarse):
        groups.append(_group([site], known, sizes, spacing, reach, f"coarse_{i}"))
        known.append(site)
    while spacing > 1:
        spacing //= 2
        for offset in sorted(product((0, 1), repeat=len(sizes)), key=lambda o: (sum(o) % 2, o)):
            if not any(offset):
                continue
            for half, new in enumerate(_halves(sizes, spacing, offset)):
                key = f"{spacing.bit_length() - 1}_{''.join(map(str, offset))}_{half}"
                groups.append(_group(new, known, sizes, spacing, reach, key))
                known.extend(new)
    return groups


def _halves(
    sizes: Sequence[int], spacing: int, offset: Sequence[int]
) -> list[list[tuple[int, ...]]]:
    """Splits a coset into two halves where every axis has an even number of its sites."""
    counts = [n // (2 * spacing) for n in sizes]
    halves: list[list[tuple[int, ...]]] = [[], []]
    split = all(n % 2 == 0 for n in counts)
    for at in product(*(range(n) for n in counts)):
        site = tuple(spacing * (2 * i + o) for i, o in zip(at, offset))
        halves[sum(at) % 2 if split else 0].append(site)
    return [half for half in halves if half]


def _group(
    new: list[tuple[int, ...]],
    known: list[tuple[int, ...]],
    sizes: Sequence[int],
    spacing: int,
    reach: int,
    key: str,
) -> SiteGroup:
    def index(site: Sequence[int]) -> int:
        flat = 0
        for i, n in zip(site, sizes):
            flat = flat * n + i % n
        return flat

    def length(step: Sequence[int]) -> float:
        return sqrt(sum(min(i % n, -i % n) ** 2 for i, n in zip(step, sizes)))

    first, there = new[0], set(known)
    steps = [tuple((b - a) % n for a, b, n in zip(first, site, sizes)) for site in known]
    steps = sorted(steps, key=lambda step: (length(step), step))[:reach]
    around = {
        tuple(_moved(step, (0,) * len(sizes), sizes) for step in square)
        for square in _squares(len(sizes), spacing)  # the same ones, on an axis of two spacings
    }
    squares = [
        square
        for square in sorted(around)
        if all(_moved(first, step, sizes) in there for step in square)
    ]
    near = [[index(_moved(site, step, sizes)) for step in steps] for site in new]
    corners = [[[index(_moved(s, c, sizes)) for c in square] for square in squares] for s in new]
    return SiteGroup(
        torch.tensor([index(site) for site in new], device="cpu"),
        torch.tensor(near, dtype=torch.long, device="cpu").reshape(len(new), len(steps)),
        torch.tensor(corners, dtype=torch.long, device="cpu").reshape(len(new), len(squares), 3),
        torch.tensor([length(step) for step in steps], device="cpu"),
        tuple(
            _shortest(step, sizes) for step in (*steps, *(c for square in squares for c in square))
        ),
        key,
    )


def _moved(site: Sequence[int], step: Sequence[int], sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple((a + b) % n for a, b, n in zip(site, step, sizes))


def _shortest(step: Sequence[int], sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple((i + n // 2) % n - n // 2 for i, n in zip(step, sizes))


def _squares(dim: int, spacing: int) -> list[list[tuple[int, ...]]]:
    """Returns steps to the other corners of each square at a site, the opposite corner last."""
    unit = [tuple(spacing * (i == axis) for i in range(dim)) for axis in range(dim)]
    squares = []
    for one, two in combinations(unit, 2):
        for signs in product((1, -1), repeat=2):
            a, b = (tuple(sign * i for i in u) for sign, u in zip(signs, (one, two)))
            squares.append([a, b, tuple(i + j for i, j in zip(a, b))])
    return squares


Shape = int | Sequence[int]  #: sites along each axis


def lattice_shape(shape: Shape) -> Size:
    """Returns the shape as a ``torch.Size``.

    Raises:
        ValueError: There is no axis, or one has fewer than two sites.

    Example:
        >>> lattice_shape(4), lattice_shape([2, 3])
        (torch.Size([4]), torch.Size([2, 3]))
    """
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    whole = all(isinstance(n, Integral) and not isinstance(n, bool) for n in sizes)
    if not sizes or not whole or any(n < 2 for n in sizes):
        raise ValueError(
            f"a lattice has at least two sites along each axis, a whole number, got {shape}"
        )
    return Size(int(n) for n in sizes)


def on_lattice(x: Tensor, sizes: Size) -> Tensor:
    """Reshapes points ``(..., d)`` to fields ``(..., *sizes)``.

    Raises:
        ValueError: The points do not have one coordinate for each site.

    Example:
        >>> on_lattice(torch.zeros(10, 6), Size([2, 3])).shape
        torch.Size([10, 2, 3])
    """
    if x.dim() == 0 or x.shape[-1] != prod(sizes):
        raise ValueError(
            f"a lattice of shape {tuple(sizes)} has {prod(sizes)} sites, the points have shape "
            f"{tuple(x.shape)}"
        )
    return x.reshape(x.shape[:-1] + sizes)


def axes(sizes: Size) -> range:
    """Returns the axes of a field, counted from the right because there may be batches.

    Example:
        >>> list(axes(Size([2, 3])))
        [-2, -1]
    """
    return range(-len(sizes), 0)


def differences(field: Tensor, axis: int, periodic: bool = True) -> Tensor:
    """Returns neighbour minus site along an axis; an open axis has no closing bond.

    Arguments:
        field: Fields, ``(..., *sizes)``.
        axis: The axis, counted from the right.
        periodic: Whether the last site is bound to the first.

    Example:
        >>> field = torch.tensor([1.0, 2.0, 4.0])
        >>> differences(field, -1), differences(field, -1, periodic=False)
        (tensor([ 1.,  2., -3.]), tensor([1., 2.]))
    """
    return field.roll(-1, axis) - field if periodic else field.diff(dim=axis)


def over_sites(values: Tensor, sizes: Size) -> Tensor:
    """Sums over the lattice, ``(..., *sizes) → (...,)``.

    Example:
        >>> over_sites(torch.ones(10, 2, 3), Size([2, 3])).unique()
        tensor([6.])
    """
    return values.flatten(-len(sizes)).sum(-1)


def lattice_symmetries(shape: Shape) -> list[tuple[list[int], list[int]]]:
    r"""Returns generators of the symmetries of a periodic lattice.

    They are in this order: a shift by one site along each axis; the reflection of each axis; the
    exchange of each pair of neighbouring axes of equal length. A generator is :math:`(\pi, s)`, a
    permutation of the sites, and signs, which are all 1 here. See
    :mod:`pyro_flowsamp.nn.equivariant`. A subset of the generators may be used.

    Arguments:
        shape: Sites along each axis.

    Raises:
        ValueError: There is no axis, or one has fewer than two sites.

    Example::

        >>> shift, reflection = lattice_symmetries(3)
        >>> shift
        ([1, 2, 0], [1, 1, 1])
        >>> reflection
        ([2, 1, 0], [1, 1, 1])
    """
    sizes = lattice_shape(shape)
    sites = torch.arange(prod(sizes), device="cpu").reshape(sizes)
    equal = [i for i in range(len(sizes) - 1) if sizes[i] == sizes[i + 1]]
    moved = [sites.roll(-1, axis) for axis in axes(sizes)]
    moved += [sites.flip(axis) for axis in axes(sizes)]
    moved += [sites.transpose(i, i + 1) for i in equal]
    return [(order.flatten().tolist(), [1] * prod(sizes)) for order in moved]
