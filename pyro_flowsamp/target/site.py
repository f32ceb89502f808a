r"""Sites: the blocks of coordinates that the latent variables of a model make."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import Transform, identity_transform

from ..validation import as_tensor, shown
from .support import bijection, unwrapped

__all__ = ["Site", "SiteLayout", "Values", "real_site", "site_of", "site_shapes"]


Values = dict[str, Tensor]
_CIRCULAR = (dist.VonMises, dist.SineBivariateVonMises, dist.SineSkewed)


class Site(NamedTuple):
    r"""A latent variable: one block of coordinates of :math:`\mathbb R^d`.

    Attributes:
        name: The Pyro sample site.
        shape: Shape of one unconstrained value.
        value_shape: Shape of one constrained value (a simplex has one coordinate fewer).
        event_dim: How many right-most dimensions of a constrained value are one event.
        transform: The bijection from unconstrained to constrained values.
        circular: Whether the coordinates are angles, periodic on :math:`[-\pi, \pi)`.

    Example:
        >>> site = real_site("x", torch.Size([2, 3]))
        >>> site.size, site.circular
        (6, False)
    """

    name: str
    shape: Size
    value_shape: Size
    event_dim: int
    transform: Transform
    circular: bool = False

    @property
    def size(self) -> int:
        """The number of coordinates."""
        return math.prod(self.shape)

    def constrain(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Maps ``(N, *shape)`` to values ``(N, *value_shape)`` and log-dets ``(N,)``."""
        value = self.transform(u)
        ladj = self.transform.log_abs_det_jacobian(u, value)
        return value, ladj.reshape(len(u), -1).sum(-1)


def _components(fn: Any) -> list[Any]:
    """The distributions that a distribution is made of, without itself."""
    parts = [getattr(fn, name, None) for name in ("base_dist", "component0", "component1")]
    found = [part for part in parts if part is not None]
    return found + [inner for part in found for inner in _components(part)]


def site_of(node: dict) -> Site:
    """The site of a sample statement.

    Arguments:
        node: The site's node in a trace of the model.

    Raises:
        ValueError: There is no bijection onto the support, or none that is finite at 0; the site is
            a Delta, or an angle that is transformed or mixed.

    Example:
        >>> import pyro
        >>> from pyro import poutine
        >>> def model():
        ...     pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        >>> site = site_of(poutine.trace(model).get_trace().nodes["p"])
        >>> site.name, site.shape, site.value_shape
        ('p', torch.Size([2]), torch.Size([3]))
    """
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


def real_site(name: str, shape: Size) -> Site:
    """A site whose values are all real, so that they are their own coordinates.

    Example:
        >>> site = real_site("x", torch.Size([2, 3]))
        >>> site.size, site.circular
        (6, False)
    """
    return Site(name, shape, shape, len(shape), identity_transform)


def site_shapes(sites: Sequence[Site]) -> dict[str, tuple[int, ...]]:
    """The shape of an unconstrained value of each site, by the site's name.

    Example:
        >>> site_shapes([real_site("x", torch.Size([2, 3]))])
        {'x': (2, 3)}
    """
    return {site.name: tuple(site.shape) for site in sites}


class SiteLayout:
    r"""The sites of a target in order, as blocks of the coordinates of one vector.

    Arguments:
        sites: The blocks of coordinates, in order.
        dtype, device: Type and device of the vectors.
        angles: Mask ``(d,)`` of periodic coordinates; by default those of circular sites.

    Attributes:
        dim: The number d of all coordinates.
        angles: Mask ``(d,)`` of periodic coordinates.
        circular: Whether there are any.

    Example:
        >>> sites = [real_site("a", torch.Size([])), real_site("b", torch.Size([2]))]
        >>> layout = SiteLayout(sites, torch.float32, torch.device("cpu"))
        >>> {name: value.tolist() for name, value in layout.split(torch.arange(3.0)).items()}
        {'a': 0.0, 'b': [1.0, 2.0]}
    """

    def __init__(
        self,
        sites: Sequence[Site],
        dtype: torch.dtype,
        device: torch.device,
        angles: Tensor | None = None,
    ) -> None:
        self.sites = list(sites)
        self.dtype, self.device = dtype, device
        self.sizes = [site.size for site in sites]
        self.dim = sum(self.sizes)
        circular = [site.circular for site in sites for _ in range(site.size)]
        mask = torch.tensor(circular, device=device) if angles is None else angles
        self.angles = mask.to(device)
        self.circular = bool(self.angles.any())

    def check_sites(self, values: Any) -> None:
        """Checks that there is a value of each site.

        Raises:
            TypeError: The values are no dictionary.
            ValueError: A site has none.
        """
        if not isinstance(values, Mapping):
            raise TypeError(
                f"expected a dict of a value for each site, {{'{self.sites[0].name}': ...}}, got "
                f"{shown(values)}"
            )
        for site in self.sites:
            if site.name not in values:
                raise ValueError(f"no value for site '{site.name}' (got {sorted(values)})")

    def points(self, x: Any, batch: bool = False) -> Tensor:
        """Points ``(..., d)`` as a tensor of a floating type; arrays and lists are converted.

        Arguments:
            x: The points.
            batch: Whether they must have the shape ``(N, d)``.

        Raises:
            ValueError: The shape or the type is another one.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.is_meta:
            x = as_tensor("the points", x, self.dtype, self.device)
        if x.shape[-1:] != (self.dim,) or (batch and x.dim() != 2):
            leading = "N" if batch else "..."
            raise ValueError(
                f"expected points of shape ({leading}, {self.dim}), got {tuple(x.shape)}"
            )
        return x

    def split(self, x: Tensor) -> Values:
        """Points ``(..., d)`` as unconstrained blocks ``{site: (..., *shape)}``."""
        blocks = zip(self.sites, x.split(self.sizes, -1))
        return {s.name: block.reshape(x.shape[:-1] + s.shape) for s, block in blocks}

    def constrain(self, x: Tensor) -> tuple[Values, Tensor]:
        """Points ``(N, d)`` as constrained values ``{site: (N, ...)}``, and log-dets ``(N,)``."""
        pairs = [site.constrain(u) for site, u in zip(self.sites, self.split(x).values())]
        values = {site.name: value for site, (value, _) in zip(self.sites, pairs)}
        return values, torch.stack([ladj for _, ladj in pairs]).sum(0)

    def wrap(self, x: Tensor) -> Tensor:
        r"""Brings the periodic coordinates of points ``(..., d)`` into :math:`[-\pi, \pi)`."""
        if not self.circular:
            return x
        wrapped = torch.remainder(x + math.pi, 2 * math.pi) - math.pi
        return torch.where(self.angles, wrapped, x)

    def unpack(self, x: Tensor) -> Values:
        """Points ``(..., d)`` as constrained values ``{site: (..., *value_shape)}``."""
        blocks = self.split(self.wrap(x))
        return {site.name: site.transform(blocks[site.name]) for site in self.sites}

    def pack(self, values: Mapping[str, Tensor], constrained: bool = True) -> Tensor:
        """Values of all sites, constrained or not, as points ``(..., d)``.

        Raises:
            TypeError: The values are no dictionary.
            ValueError: A site has no value, or its value has another shape or dtype.
        """
        self.check_sites(values)
        parts = [self._packed(site, values, constrained) for site in self.sites]
        if len({part.shape[:-1] for part in parts}) > 1:
            found = {s.name: tuple(part.shape[:-1]) for s, part in zip(self.sites, parts)}
            raise ValueError(f"the sites' leading dimensions differ: {found}")
        return torch.cat(parts, -1)

    def _packed(self, site: Site, values: Mapping[str, Tensor], constrained: bool) -> Tensor:
        shape = site.value_shape if constrained else site.shape
        value = as_tensor(f"site '{site.name}'", values[site.name], self.dtype, self.device)
        leading = value.dim() - len(shape)
        if value.shape[leading:] != shape:
            raise ValueError(
                f"site '{site.name}': expected a shape ending in {tuple(shape)}, "
                f"got {tuple(value.shape)}"
            )
        if value.dtype != self.dtype:
            raise ValueError(
                f"site '{site.name}': expected dtype {self.dtype}, got {value.dtype}; "
                f"convert with .to({self.dtype})"
            )
        u = site.transform.inv(value) if constrained else value
        return u.reshape(value.shape[:leading] + (site.size,))
