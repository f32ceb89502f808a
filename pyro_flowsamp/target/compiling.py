r"""Compiled densities: the graph of a traced density, compiled by TorchInductor.

A compiled graph makes one pass over the points where the traced one makes an operation after the
other. Its results differ from the traced one's by rounding errors. So the call at which it takes
over must not depend on the machine: it follows from the counted work (:mod:`~.work`), and the run
waits there for the compiler.

A compilation serves batches of several sizes: they are padded with copies of their last point, to
the next of the sizes :math:`2^k \cdot 4/4, 5/4, 6/4` and :math:`7/4`. The results of these copies
are left out.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from .graphs import DensityGraph, UntraceableError

__all__ = [
    "NOT_ALLOWED",
    "CompiledGraph",
    "check_matrices",
    "compiled_module",
    "is_near",
    "may_compile",
    "padded",
    "padded_size",
    "warn_of_other_rounding",
]

#: sizes of batches for which there are compilations, between one power of two and the next
SIZES_PER_DOUBLING = 4
#: the reason why nothing is compiled where :func:`may_compile` is false
NOT_ALLOWED = "PYRO_FLOWSAMP_COMPILE is 0"

_said: set[str] = set()


def may_compile() -> bool:
    """Whether the environment allows compilations: ``PYRO_FLOWSAMP_COMPILE`` is not 0.

    Example:
        >>> before = os.environ.get("PYRO_FLOWSAMP_COMPILE", "1")
        >>> os.environ["PYRO_FLOWSAMP_COMPILE"] = "0"
        >>> may_compile()
        False
        >>> os.environ["PYRO_FLOWSAMP_COMPILE"] = before
    """
    return os.environ.get("PYRO_FLOWSAMP_COMPILE", "1") != "0"


def padded_size(num: int) -> int:
    """The size to which a batch is padded for a compiled graph.

    Example:
        >>> [padded_size(num) for num in (1, 3, 9, 64, 100, 1000)]
        [1, 3, 10, 64, 112, 1024]
    """
    step = max(1, 2 ** (num.bit_length() - 1) // SIZES_PER_DOUBLING)
    return -(-num // step) * step


def padded(x: Tensor, num: int) -> Tensor:
    """Rows ``(N, k)`` followed by copies of the last one, ``(num, k)``.

    Example:
        >>> padded(torch.tensor([[1], [2]]), 4)[:, 0].tolist()
        [1, 2, 2, 2]
    """
    return x if len(x) == num else torch.cat([x, x[-1:].expand(num - len(x), -1)])


class CompiledGraph:
    """A graph compiled by TorchInductor, for batches of one padded size.

    Arguments:
        graph: The graph at points of this size.
        x, c: Points ``(P, d)`` and contexts ``(P, c)`` or None of this size.
        gradient: Whether it has the gradient too.

    Raises:
        UntraceableError: It cannot be compiled.
    """

    def __init__(self, graph: DensityGraph, x: Tensor, c: Tensor | None, gradient: bool) -> None:
        self.graph, self.gradient, self.num = graph, gradient, len(x)
        self._run = compiled_module(graph.with_checks(gradient), graph.inputs(x, c), "densities")

    def __call__(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Log densities ``(N,)``, and gradients ``(N, d)`` or None, of at most P points.

        Raises:
            torch.linalg.LinAlgError: A matrix cannot be factorised.
        """
        num = len(x)
        own = padded(x, self.num), None if c is None else padded(c, self.num)
        with torch.no_grad():
            value, *rest = self._run(*self.graph.inputs(*own))
        check_matrices(rest[1:] if self.gradient else rest)
        return value[:num], rest[0][:num] if self.gradient else None

    def agrees(self, x: Tensor, c: Tensor | None, ulps: float) -> bool:
        """Whether it differs from the graph by rounding errors, at points ``(P, d)``.

        Arguments:
            x, c: The points and their contexts.
            ulps: Rounding errors that may be, in units of eps times one plus the largest entry.
        """
        try:
            value, grad = self.graph.value_and_grad(x, c)
        except RuntimeError:  # a bad matrix: there is nothing to compare
            return True
        try:
            found, slope = self(x, c)
        except RuntimeError:
            return False
        pairs = [(found[:, None], value[:, None])] + ([] if slope is None else [(slope, grad)])
        return all(is_near(one, two, ulps) for one, two in pairs)


def check_matrices(checks: Sequence[Tensor]) -> None:
    """Raises an error where a matrix could not be factorised.

    Arguments:
        checks: The tensors that :func:`~pyro_flowsamp.target.graphs.with_checks` adds.

    Raises:
        torch.linalg.LinAlgError: One of them is not zero.

    Example:
        >>> check_matrices([torch.zeros(3)])
    """
    if checks and bool(torch.stack([check.any() for check in checks]).any()):
        raise torch.linalg.LinAlgError("linalg.cholesky: a matrix cannot be factorised")


def is_near(one: Tensor, two: Tensor, ulps: float) -> bool:
    """Whether two tensors ``(N, k)`` differ by so many rounding errors of their rows at most.

    Arguments:
        one, two: The tensors.
        ulps: The largest difference, in units of eps times one plus the largest entry of a row.

    Example:
        >>> two = torch.tensor([[1.0, 1000.0]])
        >>> is_near(two + 1e-4, two, 10.0), is_near(two + 1.0, two, 10.0)
        (True, False)
    """
    size = two.nan_to_num(posinf=0.0, neginf=0.0).abs().amax(-1, keepdim=True)
    bound = ulps * torch.finfo(two.dtype).eps * (1 + size)
    same = (one == two) | (one.isnan() & two.isnan()) | ((one - two).abs() <= bound)
    return bool(same.all())


def warn_of_other_rounding(name: str, reason: str) -> None:
    """Says that a graph which a stored run had compiled cannot be compiled here.

    Arguments:
        name: What it computes.
        reason: Why it cannot be compiled.

    Example:
        >>> with warnings.catch_warnings(record=True) as told:
        ...     warnings.simplefilter("always")
        ...     warn_of_other_rounding("density", "there is no compiler")
        >>> str(told[0].message)[:51]
        'the stored run had compiled the density, which cann'
    """
    warnings.warn(
        f"the stored run had compiled the {name}, which cannot be done here ({reason}): draws will "
        f"not be the same bit by bit",
        stacklevel=2,
    )


def compiled_module(
    module: fx.GraphModule, inputs: Sequence[Tensor], name: str
) -> Callable[..., tuple]:
    """A graph, compiled by TorchInductor.

    Arguments:
        module: The graph, without checks that may raise.
        inputs: Its inputs.
        name: What it computes, for the warning where there is no compiler.

    Raises:
        UntraceableError: It cannot be compiled.
    """
    # takes seconds to import
    import torch._inductor as inductor
    import torch._inductor.config as config

    try:
        with torch.no_grad(), config.patch(compile_threads=1):
            run = inductor.compile(module, [tensor.detach() for tensor in inputs])
            run(*inputs)
    except Exception as error:  # no compiler, or one that fails
        first = (str(error).strip().splitlines() or [repr(error)])[0][:200]
        if not _said:
            _said.add(first)
            warnings.warn(
                f"{name} are traced and not compiled, which needs a C++ compiler or, on a GPU, "
                f"Triton ({first}). Give compile=False to silence this warning.",
                stacklevel=2,
            )
        raise UntraceableError(f"it cannot be compiled: {first}") from error
    return run
