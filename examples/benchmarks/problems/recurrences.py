r"""Models with a recurrence over time, written as a loop and by an associative scan.

A linear recurrence :math:`h_t = a_t h_{t-1} + b_t` is a composition of the maps
:math:`h \mapsto a_t h + b_t`, and compositions are associative. So
``torch._higher_order_ops.associative_scan`` makes all of them in about :math:`2 \log_2 T` steps,
where a loop makes T.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch._higher_order_ops import associative_scan

Recurrence = Callable[[Tensor, Tensor], Tensor]


def by_loop(factor: Tensor, added: Tensor) -> Tensor:
    r"""All :math:`h_t = a_t h_{t-1} + b_t` with :math:`h_0 = 0`, one after another, ``(T,)``."""
    values, last = [], torch.zeros_like(added[0])
    for t in range(len(added)):
        last = factor[t] * last + added[t]
        values.append(last)
    return torch.stack(values)


def by_scan(factor: Tensor, added: Tensor) -> Tensor:
    r"""All :math:`h_t = a_t h_{t-1} + b_t` by an associative scan, ``(T,)``; :math:`h_0 = 0`."""

    def then(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return first[0] * second[0], second[0] * first[1] + second[1]

    return associative_scan(then, (factor, added), 0, combine_mode="generic")[1]


def garch(y: Tensor, recurrence: Recurrence) -> None:
    """The GARCH(1, 1) model of ``problems/known``, for returns ``(T,)``."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    omega = pyro.sample("omega", dist.LogNormal(-1.0, 1.0))
    alpha = pyro.sample("alpha", dist.Uniform(0.0, 1.0))
    u = pyro.sample("u", dist.Uniform(0.0, 1.0))
    pushes = torch.cat([torch.ones_like(mu)[None], omega + alpha * (y[:-1] - mu) ** 2])
    variances = recurrence(((1 - alpha) * u).expand(len(y)), pushes)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, variances.sqrt()), obs=y)


def autoregression(y: Tensor, recurrence: Recurrence) -> None:
    """Observations ``(T,)`` of a latent autoregressive process, by its innovations."""
    phi = pyro.sample("phi", dist.Uniform(-1.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(y)]).to_event(1))
    latent = recurrence(phi.expand(len(y)), scale * z)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(latent, 0.5), obs=y)


def returns(count: int) -> Tensor:
    """Returns of a process with strong volatility clusters; the first 200 are those of GARCH."""
    rng = np.random.default_rng(0)
    y, variance = np.empty(count), 1.0
    for t in range(count):
        y[t] = 0.2 + variance**0.5 * rng.standard_normal()
        variance = 0.2 + 0.4 * (y[t] - 0.2) ** 2 + 0.4 * variance
    return torch.as_tensor(y, dtype=torch.get_default_dtype())


#: models with their data, by name
RECURRENCES: dict[str, Callable[[], tuple[Callable, tuple]]] = {
    f"{model.__name__}_{count}_{way}": partial(
        lambda model, count, recurrence: (model, (returns(count), recurrence)),
        model,
        count,
        recurrence,
    )
    for model in (garch, autoregression)
    for count in (200, 1000)
    for way, recurrence in (("loop", by_loop), ("scan", by_scan))
}
