"""Sites: the blocks of coordinates that the latent variables of a model make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import Transform, identity_transform

from .support import bijection, unwrapped

Values = dict[str, Tensor]
_CIRCULAR = (dist.VonMises, dist.SineBivariateVonMises, dist.SineSkewed)


class Site(NamedTuple):
    r"""A latent variable: one block of coordinates of :math:`\mathbb R^d`.

    Attributes:
        name: The Pyro sample site.
        shape: Shape of one unconstrained value.
        value_shape: Shape of one constrained value (a simplex has one coordinate fewer).
        event_dim: How many right-most dimensions of a constrained value are one event.
        transform: The bijection from unconstrained to constrained.
        circular: Whether the coordinates are angles, periodic on :math:`[-\pi, \pi)`.
    """

    name: str
    shape: Size
    value_shape: Size
    event_dim: int
    transform: Transform
    circular: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def constrain(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Maps ``(N, *shape)`` to values ``(N, *value_shape)`` and log-dets ``(N,)``."""
        value = self.transform(u)
        ladj = self.transform.log_abs_det_jacobian(u, value)
        return value, ladj.reshape(len(u), -1).sum(-1)


def _components(fn: Any) -> list[Any]:
    """What a distribution is made of, itself left out."""
    parts = [getattr(fn, name, None) for name in ("base_dist", "component0", "component1")]
    found = [part for part in parts if part is not None]
    return found + [inner for part in found for inner in _components(part)]


def _site(node: dict) -> Site:
    transform, value = bijection(node), node["value"]
    fn = unwrapped(node["fn"])
    angles = [part for part in _components(fn) if isinstance(part, _CIRCULAR)]
    if angles and not isinstance(fn, _CIRCULAR):
        raise ValueError(
            f"site '{node['name']}': an angle that is transformed or mixed has no density on the "
            f"line, and a transformed angle no period of 2 pi; sample the "
            f"{type(angles[0]).__name__} and transform its value."
        )
    if isinstance(fn, dist.Delta):
        raise ValueError(
            f"site '{node['name']}' is a Delta, which has no density: give its value by "
            f"pyro.deterministic, or observe it."
        )
    shape = transform.inv(value).shape
    if not bool(torch.isfinite(transform(value.new_zeros(shape))).all()):
        raise ValueError(
            f"site '{node['name']}': the bijection onto {node['fn'].support} is not finite at 0; "
            f"re-parametrise the site over real numbers."
        )
    return Site(
        name=node["name"],
        shape=shape,
        value_shape=value.shape,
        event_dim=node["fn"].event_dim,
        transform=transform,
        circular=isinstance(fn, _CIRCULAR),
    )


def _real_site(name: str, shape: Size) -> Site:
    return Site(name, shape, shape, len(shape), identity_transform)


def _split(sites: Sequence[Site], x: Tensor) -> Values:
    blocks = x.split([s.size for s in sites], -1)
    return {s.name: b.reshape(x.shape[:-1] + s.shape) for s, b in zip(sites, blocks)}


def _constrain(sites: Sequence[Site], x: Tensor) -> tuple[Values, Tensor]:
    pairs = {s.name: s.constrain(u) for s, u in zip(sites, _split(sites, x).values())}
    ladj = torch.stack([ladj for _, ladj in pairs.values()]).sum(0)
    return {name: value for name, (value, _) in pairs.items()}, ladj
