r"""Networks with a symmetry of their target: signed permutations of its coordinates.

An element g of a group acts by :math:`(R_g x)_i = s_i\, x_{\pi(i)}`. Name the hidden units of a
network of two hidden layers :math:`(c, a)`, by a channel and an element of the group, and set

.. math:: (W_1)_{(c,a)} = w_c^\top R_a, \qquad (W_2)_{(c,a),(c',b)} = K_{cc'}(a b^{-1}), \qquad
          (W_3)_{(c,a)} = R_a^\top o_c .

Then :math:`x \to R_g x` only renames the hidden units, :math:`(c, a) \to (c, ag)`, and a velocity
is equivariant, :math:`v(R_g x) = R_g v(x)`; with :math:`W_3 = o_c` a scalar is invariant. For the
shifts of a circle these are circular convolutions. The network keeps all its weights: their initial
values are made equal, and, by hooks in training, their gradients.

References:
    Taco Cohen and Max Welling, *Group Equivariant Convolutional Networks*, 2016,
    https://arxiv.org/abs/1602.07576.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from .mlp import TimeMLP, VelocityMLP

__all__ = ["SignedPermutationGroup", "SignedPermutation", "group", "tie", "tied"]


HIDDEN = ("time_weight", "in_bias", "mid_bias")  #: parameters of the hidden units
MAX_ELEMENTS = 4096  #: the largest group for which there is memory


#: (π, s) of one element, both of length d.
SignedPermutation = tuple[Sequence[int], Sequence[int]]


class SignedPermutationGroup(NamedTuple):
    r"""A group of signed permutations: all its elements, the identity first.

    Attributes:
        order: :math:`\pi`, ``(G, d)``.
        sign: :math:`s`, ``(G, d)``.
        quotient: The index of the element :math:`a b^{-1}`, ``(G, G)``.

    Example:
        >>> swap = group([((1, 0), (1, 1))])
        >>> swap.act(torch.tensor([1.0, 2.0]))  # the identity, and the exchange
        tensor([[1., 2.],
                [2., 1.]])
    """

    order: Tensor
    sign: Tensor
    quotient: Tensor

    def act(self, x: Tensor) -> Tensor:
        r"""The orbits :math:`R_g x` of points ``(..., d)``, as ``(G, ..., d)``."""
        order, sign = self.order.to(x.device), self.sign.to(x)
        return (x[..., order] * sign).movedim(-2, 0)


def _times(g: tuple, h: tuple) -> tuple:
    """The element of :math:`R_g R_h`."""
    (p, s), (q, r) = g, h
    return tuple(q[i] for i in p), tuple(e * r[i] for i, e in zip(p, s))


def _inverse(g: tuple) -> tuple:
    (p, s), dim = g, len(g[0])
    back = sorted(range(dim), key=p.__getitem__)
    return tuple(back), tuple(s[i] for i in back)


def group(generators: Sequence[SignedPermutation]) -> SignedPermutationGroup:
    """The group that some elements generate.

    Arguments:
        generators: Elements, each a permutation and signs.

    Raises:
        ValueError: There is no generator, one is no permutation with signs, or there are too many
            elements.

    Example:
        >>> shifts = group([([1, 2, 0], [1, 1, 1])])
        >>> shifts.act(torch.arange(3))
        tensor([[0, 1, 2],
                [1, 2, 0],
                [2, 0, 1]])
    """
    steps = [(tuple(map(int, p)), tuple(map(int, s))) for p, s in generators]
    if not steps:
        raise ValueError("a symmetry has at least one generator")
    dim = len(steps[0][0])
    for p, s in steps:
        if sorted(p) != list(range(dim)) or len(s) != dim or {*s} - {1, -1}:
            raise ValueError(f"not a permutation of {dim} coordinates with signs: {p}, {s}")
    elements = [(tuple(range(dim)), (1,) * dim)]
    number = {elements[0]: 0}
    for element in elements:  # the list grows in the loop
        for step in steps:
            product = _times(element, step)
            if product not in number:
                number[product] = len(elements)
                elements.append(product)
        if len(elements) > MAX_ELEMENTS:
            raise ValueError(f"the symmetry has more than {MAX_ELEMENTS} elements")
    inverses = [_inverse(a) for a in elements]
    quotient = [[number[_times(a, b)] for b in inverses] for a in elements]
    index, sign = zip(*elements)
    return SignedPermutationGroup(torch.tensor(index), torch.tensor(sign), torch.tensor(quotient))


class _Orbits:
    """The orbits of a weight: entries that are the same up to a sign; a hook for its gradient.

    Arguments:
        orbit: The index of the orbit of each entry.
        sign: The sign of each entry.
    """

    def __init__(self, orbit: Tensor, sign: Tensor) -> None:
        self.shape = orbit.shape
        self.orbit, self.sign = orbit.flatten(), sign.flatten()
        self.size = self.orbit.bincount()
        self.first = torch.full_like(self.size, len(self.orbit)).scatter_reduce(
            0, self.orbit, torch.arange(len(self.orbit)), "amin"
        )

    def to(self, device: torch.device) -> _Orbits:
        for name in ("orbit", "sign", "size", "first"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def _spread(self, values: Tensor, like: Tensor) -> Tensor:
        return (values[..., self.orbit] * self.sign.to(like)).reshape(like.shape)

    def copied(self, weight: Tensor) -> Tensor:
        """Sets every entry to the first of its orbit; averages would make initial weights small."""
        flat = weight.reshape(-1, len(self.orbit)) * self.sign.to(weight)
        return self._spread(flat[:, self.first], weight)

    def __call__(self, grad: Tensor) -> Tensor:
        flat = grad.reshape(-1, len(self.orbit)) * self.sign.to(grad)
        sums = flat.new_zeros(len(flat), len(self.size)).index_add(1, self.orbit, flat)
        return self._spread(sums / self.size, grad)


def _orbits(net: TimeMLP, elements: SignedPermutationGroup) -> dict[str, _Orbits]:
    index, sign, quotient = elements
    order, dim = index.shape
    hidden, outputs = net.mid_weight.shape[-1], net.out_weight.shape[-2]
    channels = hidden // order
    channel = torch.arange(channels)
    back = index.argsort(-1)  # R_a's row with an entry in column j
    rows = channel[:, None, None] * dim + back  # (c, a, j)
    signs = sign.gather(-1, back).expand(channels, order, dim)
    pairs = channel[:, None, None, None] * channels + channel[:, None]  # (c, 1, c', 1)
    middle = pairs * order + quotient[:, None]  # (c, a, c', b)
    ones = torch.ones((), dtype=torch.long)
    units = channel.repeat_interleave(order)
    orbits = {
        "in_weight": (rows.reshape(hidden, dim), signs.reshape(hidden, dim)),
        "mid_weight": (middle.reshape(hidden, hidden), ones.expand(hidden, hidden)),
        "out_weight": (rows.reshape(hidden, dim).T, signs.reshape(hidden, dim).T),
        **{name: (units[None], ones.expand(1, hidden)) for name in HIDDEN},
    }
    if outputs == 1:
        orbits["out_weight"] = (units[None], ones.expand(1, hidden))
    if isinstance(net, VelocityMLP):
        same = index.amin(0)[None].unique(return_inverse=True)[1]
        orbits["slope"] = (same, ones.expand(1, dim))
    return {
        name: _Orbits(orbit.contiguous(), s.contiguous()) for name, (orbit, s) in orbits.items()
    }


@torch.no_grad()
def tie(net: TimeMLP, elements: SignedPermutationGroup) -> dict[str, _Orbits]:
    """Makes a network equivariant (a velocity) or invariant (one output).

    Every weight is set to the first of its orbit, so that a network that has the symmetry does not
    change. A velocity's constant part must be zero where a coordinate may change its sign; it is
    always set to zero.

    Arguments:
        net: The network, changed in place.
        elements: The group.

    Returns:
        The orbits of each weight, which project its gradient.

    Raises:
        ValueError: The group acts on another dimension, the hidden layers' width is no multiple of
            its order, or a velocity has units that bend single coordinates.

    Example:
        >>> swap, net = group([((1, 0), (1, 1))]), VelocityMLP(2, 8, units=0)
        >>> _ = [torch.nn.init.normal_(weight) for weight in net.parameters()]
        >>> _ = tie(net, swap)
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> torch.allclose(net(0.5, x.flip(-1)), net(0.5, x).flip(-1), atol=1e-4)
        True
    """
    (order, dim), (hidden, features) = elements.order.shape, net.in_weight.shape[-2:]
    if dim != features:
        raise ValueError(f"the symmetry permutes {dim} coordinates, the target has {features}")
    if hidden % order:
        raise ValueError(
            f"hidden_features must be a multiple of the symmetry's {order} elements, got {hidden}"
        )
    if isinstance(net, VelocityMLP):
        if net.unit_scale.numel():
            raise ValueError("separate units have no symmetry: make the velocity with units=0")
        net.out_bias.requires_grad_(False).zero_()
    orbits = {name: o.to(net.mid_weight.device) for name, o in _orbits(net, elements).items()}
    for name, orbit in orbits.items():
        weight = getattr(net, name)
        weight.copy_(orbit.copied(weight))
    return orbits


@contextmanager
def tied(nets: Iterable[TimeMLP], elements: SignedPermutationGroup) -> Iterator[None]:
    """Keeps the symmetry of networks in training, by hooks, which copies of a network lose.

    Arguments:
        nets: The networks.
        elements: The group.

    Example:
        >>> swap, net = group([((1, 0), (1, 1))]), VelocityMLP(2, 8, units=0)
        >>> _ = [torch.nn.init.normal_(weight) for weight in net.parameters()]
        >>> x, sgd = torch.tensor([[1.0, 2.0]]), torch.optim.SGD(net.parameters(), 0.1)
        >>> with tied([net], swap):
        ...     net(0.5, x)[0, 0].backward()  # a loss without the symmetry
        ...     sgd.step()
        >>> torch.allclose(net(0.5, x.flip(-1)), net(0.5, x).flip(-1), atol=1e-3)
        True
    """
    hooks = [
        getattr(net, name).register_hook(orbit)
        for net in nets
        for name, orbit in tie(net, elements).items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
