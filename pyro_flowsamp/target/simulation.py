"""Draws of the sites of a model, data included, that vmap can batch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .inspection import is_data
from .support import unwrapped

__all__ = ["Simulated", "drawn"]


class Simulated(Messenger):
    """Draws the values of sites that are not given, those of observed sites included.

    Arguments:
        given: The names of sites whose values stay.

    Example:
        >>> import pyro
        >>> def model():
        ...     x = pyro.sample("x", dist.Delta(torch.tensor(5.0)))
        ...     return pyro.sample("y", dist.Uniform(x, x + 1), obs=torch.tensor(5.5))
        >>> with Simulated():
        ...     y = model()
        >>> bool(5 <= y <= 6), float(y) == 5.5  # drawn, though the model observes it
        (True, False)
    """

    def __init__(self, given: Collection[str] = ()) -> None:
        super().__init__()
        self.given = frozenset(given)

    def _pyro_sample(self, msg: Any) -> None:
        fn, value = msg["fn"], msg["value"]
        if msg["name"] in self.given or site_is_subsample(msg) or site_is_factor(msg):
            return
        if not msg["is_observed"]:
            msg["value"] = drawn(fn)
        elif is_data(msg):
            shape = torch.as_tensor(value).shape
            batch = torch.broadcast_shapes(fn.batch_shape, shape[: len(shape) - fn.event_dim])
            msg["value"] = drawn(fn if batch == fn.batch_shape else fn.expand(batch))


def drawn(fn: Any) -> Tensor:
    """One draw of a distribution; under vmap with other random numbers in each row.

    Example:
        >>> def run(rate):
        ...     return drawn(dist.StudentT(4.0, 0.0, 1.0)) + drawn(dist.Beta(rate, 1.0))
        >>> draws = torch.func.vmap(run, randomness="different")(torch.ones(100))
        >>> len(draws.unique())
        100
    """
    base = unwrapped(fn)
    for kind, rule in _DRAWS:
        if isinstance(base, kind) and base.shape() == fn.shape():
            return rule(base)
    with _OutOfPlace():
        return fn.sample()


class _OutOfPlace(TorchFunctionMode):
    """Makes new tensors of random numbers where torch fills old ones in place.

    vmap refuses to fill a tensor that has no batch dimension with different numbers in each row, as
    several distributions of torch do.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(getattr(func, "__name__", ""))
        return func(*args, **kwargs) if rule is None else rule(*args, **kwargs)


def _exponential(x: Tensor, rate: float = 1.0) -> Tensor:
    return -torch.log1p(-torch.rand_like(x)) / rate


def _uniform(x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand_like(x)


def _normal(x: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return mean + std * torch.randn_like(x)


def _cauchy(x: Tensor, median: float = 0.0, scale: float = 1.0) -> Tensor:
    return median + scale * torch.tan(torch.pi * (torch.rand_like(x) - 0.5))


#: the method that fills a tensor → the function that makes a new one
_RULES: dict[str, Callable] = {
    "exponential_": _exponential,
    "uniform_": _uniform,
    "normal_": _normal,
    "cauchy_": _cauchy,
}


class _DirichletDraw(torch.autograd.Function):
    """A draw of a Dirichlet distribution, which torch cannot make under vmap."""

    @staticmethod
    def forward(concentration: Tensor) -> Tensor:
        return torch._sample_dirichlet(concentration)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, concentration: Tensor) -> tuple[Tensor, int]:
        return _DirichletDraw.apply(concentration.movedim(in_dims[0], 0).contiguous()), 0


def _dirichlet(fn: Any) -> Tensor:
    # vmap calls the rule above for batched tensors only, as all random ones are
    return _DirichletDraw.apply(fn.concentration + 0 * torch.rand_like(fn.concentration))


def _beta(fn: Any) -> Tensor:
    both = torch.stack([fn.concentration1, fn.concentration0], -1)
    return _dirichlet(dist.Dirichlet(both, validate_args=False))[..., 0]


def _beta_binomial(fn: Any) -> Tensor:
    return dist.Binomial(fn.total_count, _beta(fn), validate_args=False).sample()


def _multinomial(total: Any, probs: Tensor) -> Tensor:
    """Counts of each category: binomial among those that the categories before have left."""
    tails = probs.flip(-1).cumsum(-1).flip(-1)
    shares = (probs / tails).nan_to_num(0.0).clamp(0.0, 1.0)
    left = torch.as_tensor(total, dtype=probs.dtype, device=probs.device).expand(probs.shape[:-1])
    counts = []
    for k in range(probs.shape[-1] - 1):
        counts.append(torch.binomial(left, shares[..., k]))
        left = left - counts[-1]
    return torch.stack([*counts, left], -1)


#: distributions with a way of their own to be drawn under vmap
_DRAWS: list[tuple[Any, Callable[[Any], Tensor]]] = [
    (dist.Dirichlet, _dirichlet),
    (dist.Beta, _beta),
    (dist.BetaBinomial, _beta_binomial),
    (dist.Multinomial, lambda fn: _multinomial(fn.total_count, fn.probs)),
    (dist.DirichletMultinomial, lambda fn: _multinomial(fn.total_count, _dirichlet(fn))),
]
