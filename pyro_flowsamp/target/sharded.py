r"""Log densities whose data are shared out to workers.

The rows of a plate are shared out to K workers. Rank k has the log-likelihood :math:`s_k(x)` of its
rows, and all have the rest :math:`r(x)`: the prior, the log-determinant, and what is outside of the
plate. With

.. math:: \ell_k(x) = \tfrac1K\, r(x) + s_k(x), \qquad
          \log\tilde p(x) = \sum_{k=1}^K \ell_k(x), \qquad
          \nabla\log\tilde p(x) = \sum_{k=1}^K \nabla\ell_k(x),

the density and its gradient are each one sum over workers. All workers evaluate the same points in
the same order, as all have the same random numbers.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ..distributed import WorkerGroup, current_workers
from .batching import Density
from .nodes import is_random

__all__ = ["Shard", "SummedDensity", "shard_of_workers"]


class Shard:
    """The plate whose rows are shared out to workers.

    Arguments:
        group: The workers.
        plate: The name of the plate.

    Attributes:
        share: The weight 1/K of what is outside of the plate.

    Example:
        >>> from pyro_flowsamp import workers
        >>> with workers(shard="rows") as group:
        ...     shard_of_workers().share
        1.0
    """

    def __init__(self, group: WorkerGroup, plate: str) -> None:
        self.group, self.plate, self.share = group, plate, 1.0 / group.size

    def has(self, node: dict[str, Any]) -> bool:
        """Whether a node of a trace is inside of the plate."""
        return any(frame.name == self.plate for frame in node["cond_indep_stack"])

    def check(self, trace: Trace, latent: set[str]) -> None:
        """Checks that there are data in the plate, and nothing else.

        Arguments:
            trace: A trace of the model.
            latent: The names of its latent sites.

        Raises:
            ValueError: There are none, or there is a latent site in it.
        """
        inside = [node for node in trace.nodes.values() if is_random(node) and self.has(node)]
        names = sorted(node["name"] for node in inside if node["name"] in latent)
        if names:
            raise ValueError(
                f"the latent sites {names} are inside of the plate '{self.plate}', whose rows are "
                f"shared out: each worker would have other ones. Only data may be in it"
            )
        if not inside:
            raise ValueError(
                f"the model has no data in a plate of the name '{self.plate}': give the rows that "
                f"are shared out 'with pyro.plate({self.plate!r}, len(y)):', or another name to "
                f"workers(shard=...)"
            )

    def weigh(self, trace: Trace) -> Trace:
        """Gives all nodes outside of the plate the weight 1/K."""
        for node in trace.nodes.values():
            if node["type"] == "sample" and not self.has(node):
                node["scale"] = node["scale"] * self.share
        return trace

    def check_same_rest(self, rest: Tensor, rows: Tensor) -> None:
        """Checks that workers differ in the rows alone; warns where these seem to be the same.

        Arguments:
            rest: Log densities ``(n,)`` of what is outside of the plate, at points of all workers.
            rows: Those of the rows.

        Raises:
            ValueError: The first differ.
        """
        self.group.check_same(f"the log density outside of the plate '{self.plate}'", rest)
        found = self.group.all_gather(rows.double())
        if self.group.size > 1 and bool((found == found[0]).all()):
            warnings.warn(
                f"all workers have the same log-likelihood of the plate '{self.plate}'. If they "
                f"have the same rows, these count {self.group.size} times: give each its own part "
                f"of the data, such as y[group.rank :: group.size]",
                stacklevel=6,
            )


def shard_of_workers() -> Shard | None:
    """The plate whose rows are shared out, where there are workers with one.

    Example:
        >>> shard_of_workers() is None
        True
    """
    group = current_workers()
    return None if group is None or group.shard is None else Shard(group, group.shard)


class SummedDensity:
    """The sum over workers of log densities, whose gradient is the sum of theirs.

    Arguments:
        group: The workers.
        density: The part of this worker.

    Example:
        >>> from pyro_flowsamp import workers
        >>> with workers() as group:
        ...     density = SummedDensity(group, lambda x, c: x.sum(-1))
        ...     density(torch.ones(2, 3), None)
        tensor([3., 3.])
    """

    def __init__(self, group: WorkerGroup, density: Density) -> None:
        self.group, self.density = group, density

    def __call__(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Log densities ``(N,)``."""
        if torch.is_grad_enabled() and x.requires_grad:
            return _Sum.apply(x, c, self.density, self.group)
        return self.group.add(self.density(x, c))


class _Sum(torch.autograd.Function):
    """Value and gradient of the sum, one message each."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, c: Tensor | None, density: Density, group: WorkerGroup
    ) -> Tensor:
        with torch.enable_grad():
            own = x.detach().requires_grad_()
            value = density(own, c)
        ctx.own, ctx.value, ctx.group = own, value, group
        return group.add(value)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple:
        (grad,) = torch.autograd.grad(ctx.value, ctx.own, incoming, retain_graph=True)
        return ctx.group.add(grad), None, None, None
