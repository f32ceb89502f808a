r"""Batches of points that several workers evaluate, each a part.

Where all workers make the same computation, they evaluate the same batches. A batch whose gradient
needs much memory, and so much time, is cut into blocks of rows. Each worker evaluates some of them,
and all gather the rows in their order, values and gradients in one message. The blocks do not
depend on the number of workers, and so the numbers do not either, bit for bit.

Derivatives of higher order are not known of such a batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..distributed import WorkerGroup
from .batching import Density
from .tracing import is_seen

__all__ = ["evaluated_by_all"]


def evaluated_by_all(group: WorkerGroup, density: Density, x: Tensor, c: Tensor | None) -> Tensor:
    """Log densities ``(N,)`` of a batch, of which each worker evaluates some blocks of rows.

    Where something has to see each operation, such as a count of them, each worker evaluates all
    blocks.

    Arguments:
        group: The workers.
        density: Maps points ``(N, d)`` and contexts ``(N, c)`` or None to log densities ``(N,)``.
        x: The points, the same on all workers.
        c: Their contexts, or None.

    Example:
        >>> from pyro_flowsamp import workers
        >>> x = torch.ones(20, 2, requires_grad=True)
        >>> with workers() as group:
        ...     log_p = evaluated_by_all(group, lambda x, c: -x.square().sum(-1), x, None)
        >>> log_p.sum().backward()
        >>> float(log_p[0].detach()), x.grad[0].tolist()
        (-2.0, [-2.0, -2.0])
    """
    if is_seen(x) or (c is not None and c.requires_grad):
        with group.in_unit():
            return torch.cat([density(*block) for block in _blocks(group, x, c)])
    if torch.is_grad_enabled() and x.requires_grad:
        return _Shared.apply(x, c, density, group)
    blocks = _blocks(group, x, c)
    with group.in_unit():
        own = [density(*blocks[unit]) for unit in group.units(len(blocks))]
    return group.join(own, [len(points) for points, _ in blocks])


def _blocks(group: WorkerGroup, x: Tensor, c: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    """The blocks of rows of a batch, whose number does not depend on that of workers."""
    number = min(group.options.batch_blocks, len(x))
    contexts = [None] * number if c is None else c.tensor_split(number)
    return list(zip(x.tensor_split(number), contexts))


class _Shared(torch.autograd.Function):
    """Values and gradients of a batch, in one message."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, c: Tensor | None, density: Density, group: WorkerGroup
    ) -> Tensor:
        blocks = _blocks(group, x, c)
        own = []
        with torch.enable_grad(), group.in_unit():
            for unit in group.units(len(blocks)):
                points, contexts = blocks[unit]
                points = points.detach().requires_grad_()
                value = density(points, contexts)
                grad = torch.zeros_like(points)
                if value.requires_grad:  # not where all matrices of the block are bad
                    (grad,) = torch.autograd.grad(value.sum(), points)
                own.append(torch.cat([value.detach()[:, None], grad], 1))
        rows = group.join(own, [len(points) for points, _ in blocks])
        ctx.save_for_backward(rows[:, 1:])
        return rows[:, 0].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple:
        (grad,) = ctx.saved_tensors
        return incoming[:, None] * grad, None, None, None
