r"""Evaluation of a batch: in chunks that fit into memory, and by halves where a matrix fails.

For a gradient, autograd keeps intermediate results of every point: a gradient of a logistic
regression on 50 000 data keeps .8 MB for each. So a batch is evaluated in chunks, where it would
keep more than :data:`MEMORY_BUDGET` bytes at once. The size of the chunks follows from a count of
these bytes, which depends on the shapes of tensors only. It does not depend on how much memory is
free, and so results do not either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from .batching import Density

__all__ = [
    "MEMORY_BUDGET",
    "ChunkedDensity",
    "EvaluationCounter",
    "PointsWithContext",
    "bytes_per_point",
    "finite_or_zero",
]

#: bytes that autograd may keep for the gradient of a batch at once
MEMORY_BUDGET = 512 * 2**20


@dataclass
class EvaluationCounter:
    """The evaluations of a target and of those made from it by ``at_contexts``."""

    nonfinite: Tensor
    evaluations: int = 0


def finite_or_zero(grad: Tensor) -> Tensor:
    """A gradient, zero where it is NaN or infinite."""
    return torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)


class PointsWithContext(NamedTuple):
    """Some points of a batch.

    Attributes:
        x: The points ``(N, d)``.
        c: Their contexts ``(N, c)``, or None.
    """

    x: Tensor
    c: Tensor | None


def bytes_per_point(density: Density, x: Tensor, c: Tensor | None) -> int:
    """The bytes that autograd keeps for the gradient at each point of a batch.

    This is the difference between the bytes that it keeps for a batch with each point twice and for
    the batch itself, so that data which all points share do not count.

    Arguments:
        density: A batched density.
        x: A few points ``(N, d)``.
        c: Their contexts ``(N, c)``, or None.

    Returns:
        The number of bytes; 0 where the density cannot be differentiated.

    Example:
        >>> bytes_per_point(lambda x, c: x.exp().sum(-1), torch.zeros(2, 5), None)  # keeps exp(x)
        20
    """
    try:
        once = _saved_bytes(density, x, c)
        twice = _saved_bytes(density, x.repeat(2, 1), None if c is None else c.repeat(2, 1))
    except Exception:  # the density is evaluated later, and raises its error there
        return 0
    return max(0, (twice - once) // len(x))


def _saved_bytes(density: Density, x: Tensor, c: Tensor | None) -> int:
    """The size of the storages that one evaluation keeps for its gradient."""
    kept: list[Tensor] = []  # keeps the storages, lest a later one take the place of an earlier

    def keep(tensor: Tensor) -> Any:
        kept.append(tensor.detach())

    with torch.enable_grad(), saved_tensors_hooks(keep, lambda nothing: nothing):
        density(x.detach().requires_grad_(), c)
    storages = {StorageWeakRef(s): s.nbytes() for s in (t.untyped_storage() for t in kept)}
    return sum(storages.values())


class ChunkedDensity:
    r"""A batched density that is evaluated in chunks where a batch would need too much memory.

    Where gradients may be asked for later, the intermediate results of a chunk are not kept. They
    are computed again in the backward pass, so that it costs one evaluation more. A caller that
    wants value and gradient at once saves it by going through the chunks of :meth:`split` itself.

    A matrix that cannot be factorised makes the evaluation of a whole batch fail. Such matrices are
    searched for by halves, and the density is zero there.

    Arguments:
        density: Maps points ``(N, d)`` and contexts ``(N, c)`` or None to log densities ``(N,)``.
        bytes_per_point: The bytes that autograd keeps for each point.

    Example:
        >>> density = ChunkedDensity(lambda x, c: x.sum(-1), MEMORY_BUDGET // 10)
        >>> [len(chunk.x) for chunk in density.split(torch.zeros(24, 2), None)]
        [8, 8, 8]
        >>> density(torch.ones(24, 2), None).sum()
        tensor(48.)
    """

    def __init__(self, density: Density, bytes_per_point: int = 0) -> None:
        self.density, self.bytes_per_point = density, bytes_per_point

    @classmethod
    def measured(cls, density: Density, x: Tensor, c: Tensor | None) -> ChunkedDensity:
        """A density whose memory for each point is counted at some points."""
        return cls(density, bytes_per_point(density, x, c))

    def split(self, x: Tensor, c: Tensor | None) -> list[PointsWithContext]:
        """The chunks of a batch; of equal size, but for one."""
        most = max(1, MEMORY_BUDGET // max(1, self.bytes_per_point))
        if len(x) <= most:
            return [PointsWithContext(x, c)]
        size = -(-len(x) // -(-len(x) // most))
        contexts = [None] * -(-len(x) // size) if c is None else c.split(size)
        return [PointsWithContext(*chunk) for chunk in zip(x.split(size), contexts)]

    def __call__(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Log densities ``(N,)``."""
        chunks = self.split(x, c)
        if len(chunks) == 1:
            return _without_bad_matrices(self.density, x, c)
        density = self._recomputed if torch.is_grad_enabled() else self.density
        return torch.cat([_without_bad_matrices(density, *chunk) for chunk in chunks])

    def _recomputed(self, x: Tensor, c: Tensor | None) -> Tensor:
        return checkpoint(self.density, x, c, use_reentrant=False, preserve_rng_state=False)


def _is_bad_matrix(error: RuntimeError) -> bool:
    """Whether a matrix cannot be factorised; a traced function says so in the message alone."""
    return isinstance(error, torch.linalg.LinAlgError) or "linalg." in str(error)


def _without_bad_matrices(density: Density, x: Tensor, c: Tensor | None) -> Tensor:
    """The density, zero where a matrix cannot be factorised."""
    try:
        return density(x, c)
    except RuntimeError as error:
        if not _is_bad_matrix(error):
            raise
        if len(x) == 1:
            return torch.full_like(x[:, 0], -torch.inf)
    halves = [slice(None, len(x) // 2), slice(len(x) // 2, None)]
    parts = [(x[half], None if c is None else c[half]) for half in halves]
    return torch.cat([_without_bad_matrices(density, *part) for part in parts])
