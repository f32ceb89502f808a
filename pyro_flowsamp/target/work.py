r"""The work of a computation: a count of its operations and elements, the same on any machine.

Seconds depend on the machine and on what else runs there. Decisions that depend on them cannot be
repeated. A count can:

.. math:: \text{work} = \text{operations} \cdot c + \text{elements}.

An *operation* is a call of an ATen kernel, whoever makes it: the program, the backward pass of
autograd, or a batching rule of ``vmap``. Views are none, since they compute nothing. The *elements*
of an operation are those of its largest tensor, input or output, because an operation on large
tensors takes as long as it takes to pass over them. A product of matrices does more arithmetic than
that, and is counted by its floating point operations, of which :data:`FLOPS_PER_ELEMENT` count as
an element; factorisations and solutions likewise, by :data:`SOLVER_FLOPS_PER_ELEMENT`. The
constant :math:`c` is :data:`OVERHEAD`.

The constants were measured on one core. An element took .1 ns (sum, product) to 1.5 ns
(logsigmoid), and .6 ns in the gradient of a logistic regression on 2000 data. An operation on few
numbers took 1 to 3 µs, and with what autograd and Python do around it 6 µs in an energy and 12 µs
in a Pyro model. A floating point operation took .01 to .05 ns in products, and .3 ns in Cholesky
factorisations of 256 matrices of 30 rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["FLOPS_PER_ELEMENT", "OVERHEAD", "SOLVER_FLOPS_PER_ELEMENT", "WorkCounter"]

#: elements that an operation passes over in the time that a small operation takes
OVERHEAD = 10_000
#: floating point operations of products of matrices that take as long as one element
FLOPS_PER_ELEMENT = 16
#: floating point operations of factorisations and solutions that take as long as one element
SOLVER_FLOPS_PER_ELEMENT = 2


class WorkCounter(TorchDispatchMode):
    r"""A context manager that counts the work done in it.

    Counts go on where the same counter is entered again. They depend on the program and on the
    shapes of its tensors only, and not on their values, as long as the program does not branch on
    values. Counting takes about 12 µs for each operation: small models run two to three times
    slower in it, and large ones as fast as without. So count a step once and not in each step.

    Attributes:
        operations: The number of operations that are not views.
        elements: The number of elements that they passed over.

    Example:
        >>> x = torch.ones(1000)
        >>> with WorkCounter() as counter:  # a product, an exponential and a sum
        ...     y = (2 * x).exp().sum()
        >>> counter.operations, counter.elements
        (3, 3000)
        >>> counter.work == 3 * OVERHEAD + 3000
        True
        >>> with counter:
        ...     z = x.reshape(10, 100) @ x.reshape(100, 10)
        >>> counter.operations, counter.elements == 3000 + 2 * 10 * 100 * 10 // FLOPS_PER_ELEMENT
        (4, True)
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch wraps this class: that imports its compiler, which takes a second."""
        return False

    def __init__(self) -> None:
        super().__init__()
        self.operations: float = 0
        self.elements: float = 0

    @property
    def work(self) -> float:
        """The operations and the elements in one number, in units of elements."""
        return self.operations * OVERHEAD + self.elements

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Runs an operation and counts it."""
        out = func(*args, **(kwargs or {}))
        if not _is_view(func):
            self.operations += 1
            self.elements += _elements(func, args, out)
        return out


# ---- kinds of operations -------------------------------------------------------------------------
_ATEN = torch.ops.aten
_VIEWS: dict[Any, bool] = {_ATEN._unsafe_view.default: True}


def _is_view(func: Any) -> bool:
    """Whether an operation only makes a view of its input; found once for each operation."""
    known = _VIEWS.get(func)
    if known is None:
        aliases = [a.alias_info for a in func._schema.arguments if a.alias_info is not None]
        known = _VIEWS[func] = bool(aliases) and not any(alias.is_write for alias in aliases)
    return known


def _elements(func: Any, args: tuple, out: Any) -> int:
    packet = func._overloadpacket
    if packet in _PRODUCTS:
        return _PRODUCTS[packet](args, _first(out)) // FLOPS_PER_ELEMENT
    if packet in _SOLVERS:
        return int(_SOLVERS[packet](args, _first(out))) // SOLVER_FLOPS_PER_ELEMENT
    if packet in _WRITES_NOTHING:
        return 0
    inputs = () if packet in _READS_PARTS else args
    return max(_sizes((out, *inputs)), default=0)


def _sizes(values: Iterable[Any]) -> Iterable[int]:
    """The numbers of elements of tensors, and of all tensors of a list or tuple together."""
    for value in values:
        if isinstance(value, Tensor):
            yield value.numel()
        elif isinstance(value, list | tuple):
            yield sum(v.numel() for v in value if isinstance(v, Tensor))


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, list | tuple) else out


#: operations that take some elements of a large tensor, and do not pass over the others
_READS_PARTS = {_ATEN.index, _ATEN.index_select, _ATEN.gather, _ATEN.embedding, _ATEN.take}
#: operations that allocate memory and leave it as it is
_WRITES_NOTHING = {_ATEN.empty, _ATEN.empty_like, _ATEN.empty_strided, _ATEN.new_empty}


def _product(left: int) -> Callable[[tuple, Tensor], int]:
    """The flops of a matrix product, whose left factor is the argument of this position."""
    return lambda args, out: 2 * out.numel() * args[left].shape[-1]


def _factorisation(factor: float) -> Callable[[tuple, Tensor], float]:
    """The flops of an algorithm that takes so many times n³ for a matrix of n rows."""
    return lambda args, out: factor * args[0].numel() * args[0].shape[-1]


def _substitution(matrix: int, times: int) -> Callable[[tuple, Tensor], int]:
    """The flops of solving with a triangular matrix, so many times for each right side."""
    return lambda args, out: times * out.numel() * args[matrix].shape[-1]


_PRODUCTS: dict[Any, Callable[[tuple, Tensor], int]] = {
    _ATEN.mm: _product(0),
    _ATEN.bmm: _product(0),
    _ATEN.mv: _product(0),
    _ATEN.dot: _product(0),
    _ATEN.linear: _product(0),
    _ATEN.addmm: _product(1),
    _ATEN.addmv: _product(1),
    _ATEN.baddbmm: _product(1),
    _ATEN.convolution: lambda args, out: 2 * out.numel() * args[1][0].numel(),
    _ATEN.convolution_backward: lambda args, out: 4 * args[0].numel() * args[2][0].numel(),
}
_SOLVERS: dict[Any, Callable[[tuple, Tensor], float]] = {
    _ATEN.linalg_cholesky_ex: _factorisation(1 / 3),
    _ATEN.cholesky_inverse: _factorisation(2 / 3),
    _ATEN.linalg_lu_factor_ex: _factorisation(2 / 3),
    _ATEN._linalg_det: _factorisation(2 / 3),
    _ATEN._linalg_slogdet: _factorisation(2 / 3),
    _ATEN._linalg_solve_ex: _factorisation(2),
    _ATEN.linalg_inv_ex: _factorisation(2),
    _ATEN.linalg_qr: _factorisation(4),
    _ATEN._linalg_eigh: _factorisation(9),
    _ATEN._linalg_svd: _factorisation(20),
    _ATEN.linalg_solve_triangular: _substitution(0, 1),
    _ATEN.triangular_solve: _substitution(1, 1),
    _ATEN.cholesky_solve: _substitution(1, 2),
    _ATEN.linalg_lu_solve: _substitution(0, 2),
}
