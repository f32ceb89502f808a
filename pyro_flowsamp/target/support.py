r"""Supports of the distributions of a model: bijections onto them, and values outside them.

A bijection from :math:`\mathbb R^n` is made once for each latent site, so its support must not
change. Data may be anywhere. Where validation is off, as it must be under vmap, many distributions
give values outside their support a finite density, which :class:`Guard` makes zero.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import copy
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent, Transform, biject_to, constraints
from torch.distributions.constraints import Constraint

from .batchable import Rewritten, batchable
from .simplex import with_logarithms

__all__ = [
    "WRAPPERS",
    "Guard",
    "bijection",
    "edges",
    "has_bounds",
    "inside",
    "is_transformed",
    "moves",
    "same_bijection",
    "unwrapped",
]


#: distributions that mask another one, expand it or regroup its dimensions
WRAPPERS = (Independent, dist.MaskedDistribution, dist.ExpandedDistribution)
_TRANSFORMED = (dist.TransformedDistribution, torch.distributions.TransformedDistribution)
#: the support of a mixture; before torch 2.8 it has that of its components
MIXTURE_SUPPORT: Any = getattr(constraints, "MixtureSameFamilyConstraint", ())
PROBES = -1.0, 0.0, 1.0  #: points where bijections are compared; 0 alone fits every (-s, s)
FARTHEST = 16.0  #: coordinates, in R^n, of values that are as near to an edge as float32 can tell


def unwrapped(fn: Any) -> Any:
    """A distribution without the wrappers that mask it, expand it or regroup its dimensions.

    Example:
        >>> unwrapped(dist.Exponential(2.0).mask(False))
        Exponential(rate: 2.0)
    """
    while isinstance(fn, WRAPPERS):
        fn = fn.base_dist
    return fn


def bijection(site: dict) -> Transform:
    r"""The bijection from :math:`\mathbb R^n` onto a site's support.

    It is that of ``torch.distributions.biject_to``; onto a simplex the same map in log space. The
    support of a mixture is that of its components, where they have one in common.

    Arguments:
        site: The site's node in a trace.

    Raises:
        ValueError: There is none.

    Example:
        >>> bijection({"name": "x", "fn": dist.HalfNormal(1.0)})(torch.tensor(0.0))  # exp(0)
        tensor(1.)
    """
    try:
        return with_logarithms(biject_to(_of_components(site["fn"].support)))
    except NotImplementedError as error:
        raise ValueError(
            f"site '{site['name']}': no bijection from R^n onto the support of "
            f"{site['fn']}; register one with torch.distributions.biject_to, or "
            f"re-parametrise the site over real numbers."
        ) from error


def _of_components(support: Constraint) -> Constraint:
    """A support in which that of a mixture is replaced by that of all of its components.

    It stays where the components' supports differ, such as intervals with other bounds.
    """
    if isinstance(support, constraints.independent):
        base = _of_components(support.base_constraint)
        return constraints.independent(base, support.reinterpreted_batch_ndims)
    if not isinstance(support, MIXTURE_SUPPORT):
        return support
    one = copy(support.base_constraint)
    inner: Any = one
    dim = -1
    while isinstance(inner, constraints.independent):  # bounds have the dimensions of an event
        dim -= inner.reinterpreted_batch_ndims
        base = copy(inner.base_constraint)
        inner.base_constraint = base
        inner = base
    for name, bound in vars(inner).items():
        if isinstance(bound, Tensor) and bound.dim() >= -dim:
            first = bound.select(dim, 0)
            if not bool((bound == first.unsqueeze(dim)).all()):
                return support
            setattr(inner, name, first)
    return one


def same_bijection(one: Transform, two: Transform, u: Tensor) -> bool:
    """Whether two bijections agree at points of the shape of ``u``; the second may be a batch.

    Arguments:
        one, two: The bijections.
        u: A point of the space that they map from.

    Example:
        >>> u = torch.zeros(2)
        >>> one, two = (biject_to(dist.Uniform(0.0, high).support) for high in (1.0, 2.0))
        >>> same_bijection(one, one, u), same_bijection(one, two, u)
        (True, False)
    """
    points = [torch.full_like(u, at) for at in PROBES]
    return all(torch.allclose(one(x), two(x), equal_nan=True) for x in points)


def is_transformed(fn: Any) -> bool:
    """Whether a distribution is transformed, so that its support is that of the last transform.

    Example:
        >>> normal = dist.Normal(0.0, 1.0)
        >>> fn = dist.TransformedDistribution(normal, torch.distributions.transforms.ExpTransform())
        >>> is_transformed(fn), is_transformed(normal)
        (True, False)
    """
    return type(unwrapped(fn)) in _TRANSFORMED


def has_bounds(fn: Any) -> bool:
    """Whether a distribution, or the one that it transforms, has a bounded support.

    Example:
        >>> has_bounds(dist.Gamma(1.0, 1.0)), has_bounds(dist.Normal(0.0, 1.0).expand([2]))
        (True, False)
    """
    fn = unwrapped(fn)
    if is_transformed(fn):
        return has_bounds(fn.base_dist)
    try:
        support = fn.support
    except NotImplementedError:
        return False
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return not isinstance(support, type(constraints.real))


def moves(one: dict, two: dict) -> bool:
    """Whether a site's value or its support differs, or may differ, between two runs.

    Example:
        >>> one = {"fn": dist.Uniform(0.0, 1.0), "value": torch.tensor(0.5)}
        >>> moves(one, one), moves(one, {**one, "fn": dist.Uniform(0.0, 2.0)})
        (False, True)
    """
    return (
        is_transformed(one["fn"])
        or not _same(one["value"], two["value"])
        or not _same(one["fn"].support, two["fn"].support)
    )


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        alike = one.shape == two.shape and one.dtype == two.dtype
        return alike and torch.allclose(one, two, rtol=0, atol=0, equal_nan=True)
    if isinstance(one, Constraint) and isinstance(two, Constraint):
        return type(one) is type(two) and _same(list(vars(one).values()), list(vars(two).values()))
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(_same, one, two))
    return one is two or bool(one == two)


def inside(fn: Any, value: Any) -> Tensor:
    """Whether values lie in the support, of shape ``batch_shape``; masked values count as inside.

    Example:
        >>> inside(dist.Exponential(1.0), torch.tensor([-1.0, 2.0])).tolist()
        [False, True]
    """
    value = torch.as_tensor(value)
    if isinstance(fn, dist.MaskedDistribution):
        return inside(fn.base_dist, value) | ~torch.as_tensor(fn._mask, device=value.device)
    if isinstance(fn, Independent):
        return _all_of(inside(fn.base_dist, value), fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.ExpandedDistribution):
        return inside(fn.base_dist, value)
    if isinstance(fn, dist.MaskedMixture):
        # torch's constraint cannot have more dimensions than the value, as enumerated masks have
        return torch.where(fn.mask, inside(fn.component1, value), inside(fn.component0, value))
    if not is_transformed(fn):
        return fn.support.check(value)
    for transform in reversed(fn.transforms):
        value = transform.inv(value)
    return inside(fn.base_dist, value)


def edges(fn: Any, value: Tensor) -> Tensor:
    """Whether values lie on an edge of the support where the density is zero or infinite.

    The density there is not finite, and finite at the nearest value inside.

    Arguments:
        fn: A distribution of real values.
        value: Values in its support.

    Returns:
        A mask of shape ``batch_shape``; none where there is no bijection onto the support.

    Example:
        >>> edges(dist.Beta(2.0, 0.5), torch.tensor([0.5, 1.0])).tolist()
        [False, True]
    """
    infinite = fn.log_prob(value).isinf()
    try:
        transform = bijection({"name": "", "fn": fn})
        near = transform(transform.inv(value).clamp(-FARTHEST, FARTHEST))
    except (NotImplementedError, ValueError):
        return torch.zeros_like(infinite)
    return infinite & fn.log_prob(near).isfinite()


def _all_of(ok: Tensor, dims: int) -> Tensor:
    return ok.flatten(-dims).all(-1) if dims else ok


class _Bounded(Rewritten):
    """A distribution whose density outside its support is zero, whatever its formula gives."""

    def log_prob(self, value: Any) -> Tensor:
        log_prob = self.base_dist.log_prob(value)
        return torch.where(inside(self.base_dist, value), log_prob, -torch.inf)


class Guard(Messenger):
    """Makes densities of some sites zero outside their supports, and lets vmap batch others.

    Arguments:
        names: The names of these sites.

    Example:
        >>> import pyro
        >>> from pyro import poutine
        >>> def model():
        ...     pyro.sample("x", dist.Uniform(0.0, 1.0), obs=torch.tensor(3.0))
        >>> with Guard({"x"}), pyro.validation_enabled(False):
        ...     trace = poutine.trace(model).get_trace()
        ...     trace.log_prob_sum()  # without the guard 0, the log density inside
        tensor(-inf)
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_post_sample(self, msg: Any) -> None:
        msg["fn"] = batchable(msg["fn"])
        if msg["name"] in self.names:
            msg["fn"] = _Bounded(msg["fn"])
