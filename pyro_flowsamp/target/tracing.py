r"""Traced densities: a density that is evaluated often runs as a graph of ATen operations.

The first evaluations of a target go through Pyro, ``vmap`` and autograd. After
:attr:`~pyro_flowsamp.target.options.TracingOptions.calls` of them with one batch size the
operations of value and gradient are recorded (:mod:`pyro_flowsamp.target.graphs`) and compared with
the density on two batches. From then on the graph is run in its place. It is the same sequence of
operations, so that results are the same numbers, but for this:

- in the backward pass of ``log_prob`` the gradient of each row is multiplied by the gradient that
  comes in, :math:`g_i \nabla \log p(x_i)`, in place of passing it through the operations, which
  differs by rounding errors;
- derivatives of higher order, and those with respect to parameters and contexts, are taken through
  the density itself.

The density itself is evaluated where another transformation has to see its operations
(``torch.func``, forward-mode derivatives, counting of operations), and where it cannot be recorded;
:attr:`TracedDensity.reason` says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..validation import default_device
from .batching import Density, fixed_points, value_and_grad
from .compiling import CompiledGraph, may_compile, padded, padded_size, warn_of_other_rounding
from .graphs import DensityGraph, UntraceableError, record
from .held_values import HeldValues
from .options import CompileMode, TracingOptions
from .work import OVERHEAD

__all__ = ["TracedDensity", "admitted", "described_graphs", "is_bad_matrix", "is_seen"]

#: dictionaries of a traced density that are neither copied nor pickled
EMPTIED = "_calls _work _graphs _compiled _kept _kept_compiled _compiled_since".split()


def is_bad_matrix(error: RuntimeError) -> bool:
    """Whether a matrix cannot be factorised; a traced function says so in the message alone.

    Example:
        >>> try:
        ...     torch.linalg.cholesky(-torch.eye(2))
        ... except RuntimeError as error:
        ...     is_bad_matrix(error)
        True
    """
    return isinstance(error, torch.linalg.LinAlgError) or "linalg." in str(error)


class TracedDensity:
    """A batched density that is recorded as a graph once it has been evaluated often.

    Arguments:
        density: Maps points ``(N, d)`` and contexts ``(N, c)`` or None to log densities ``(N,)``.

    Attributes:
        density: The density itself.
        compile_mode: "auto", True (traced and compiled from the first call on) or False (neither).
        options: Numbers that decide; may be set.
        reason: The reason why there are no graphs; empty where there is none.
        uncompiled_reason: The reason why graphs are not compiled; empty where there is none.

    Example:
        >>> density = TracedDensity(lambda x, c: -x.square().sum(-1))
        >>> density.compile_mode = True
        >>> density.value_and_grad(torch.ones(2, 1), None)
        (tensor([-1., -1.]), tensor([[-2.],
                [-2.]]))
        >>> density.sizes
        [2]
    """

    def __init__(self, density: Density) -> None:
        self.density = density
        self.compile_mode: CompileMode = "auto"
        self.options = TracingOptions()
        self.reason = self.uncompiled_reason = ""
        self._calls: dict[tuple, int] = {}
        self._graphs: dict[tuple, DensityGraph] = {}
        self._compiled: dict[tuple, CompiledGraph] = {}
        self._kept: dict[tuple, DensityGraph] = {}
        self._kept_compiled: dict[tuple, CompiledGraph] = {}
        self._work: dict[tuple, int] = {}
        self._held: HeldValues | None = None
        self._retraces = 0
        self._traced: list[tuple] = []
        self._worth_compiling: list[tuple] = []
        self._compiled_since: dict[tuple, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """The density and its options, without graphs: they are neither copied nor pickled."""
        fresh: dict[str, Any] = {name: {} for name in EMPTIED}
        fresh |= {"_held": None, "_retraces": 0, "_traced": [], "_worth_compiling": []}
        return {**self.__dict__, **fresh}

    @property
    def compiled_sizes(self) -> list[int]:
        """The padded numbers of points for which there is a compiled graph."""
        return [key[0] for key in self._compiled]

    @property
    def sizes(self) -> list[int]:
        """The numbers of points for which there is a graph."""
        return [key[0] for key in self._graphs]

    def restart(self) -> None:
        """Counts calls from zero again, so that a run does not depend on earlier ones.

        Graphs are kept, and used again from the call on at which they would be made.
        """
        self._kept = {**self._kept, **self._graphs}
        self._kept_compiled = {**self._kept_compiled, **self._compiled}
        for counted in (self._calls, self._work, self._graphs, self._compiled):
            counted.clear()
        self._traced, self._worth_compiling, self._compiled_since = [], [], {}

    def state_dict(self) -> dict[str, Any]:
        """The counts of calls and work, and for what there are graphs, without the graphs.

        They are tensors, numbers, strings, and lists and tuples of these.
        """
        return {
            "calls": list(self._calls.items()),
            "work": list(self._work.items()),
            "traced": list(self._traced),
            "compiled": list(self._worth_compiling),
            "compiled since": list(self._compiled_since.items()),
            "reasons": [self.reason, self.uncompiled_reason],
            "retraces": self._retraces,
        }

    def fresh_state(self) -> dict[str, Any]:
        """The counts of :meth:`state_dict` before any call."""
        return TracedDensity(self.density).state_dict()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """A context without graphs, whose calls do not count."""
        mode, state = self.compile_mode, self.state_dict()
        self.compile_mode = False
        try:
            yield
        finally:
            self.compile_mode = mode
            self.load_state_dict(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the counts of :meth:`state_dict`; graphs are made again where they are needed."""
        self.restart()
        self._calls.update(state["calls"])
        self._work.update(state["work"])
        self._traced, self._worth_compiling = list(state["traced"]), list(state["compiled"])
        self._compiled_since.update(state.get("compiled since", ()))
        self.reason, self.uncompiled_reason = state["reasons"]
        self._retraces = state["retraces"]

    def __call__(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Log densities ``(N,)``."""
        recorded = torch.is_grad_enabled()
        differentiable = recorded and x.requires_grad
        run = self._graph_of(x, c, differentiable)
        if run is None:
            key = _key(x, c)
            self._calls[key] = self._calls.get(key, 0) + 1
            return self.density(x, c)
        if recorded and (run.graph.requires_grad or (c is not None and c.requires_grad)):
            return self.density(x, c)  # gradients beside those of the points may be asked for
        return _Gradient.apply(x, c, run, self.density) if differentiable else run(x, c)[0]

    def value_and_grad(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Log densities and gradients, ``(N,)`` and ``(N, d)``, detached; None without a graph."""
        run = self._graph_of(x, c, True)
        if run is None:
            return None
        value, grad = run(x.detach(), c)
        assert grad is not None
        return value, grad

    # ---- decisions ------------------------------------------------------------------------------

    def _graph_of(self, x: Tensor, c: Tensor | None, gradient: bool) -> _Run | CompiledGraph | None:
        """The graph for a batch, compiled or not; None where there is none, or not yet."""
        if self.compile_mode is False or self.reason or not len(x) or is_seen(x):
            return None
        key = _key(x, c)
        if self.compile_mode is not True and self._calls.get(key, 0) < self.options.calls:
            return None
        if self._held is not None and not self._held.unchanged():
            for graphs in (self._graphs, self._compiled, self._kept, self._kept_compiled):
                graphs.clear()
            self._traced, self._worth_compiling, self._compiled_since = [], [], {}
            self._held = None
            self._retraces += 1
            if self._retraces > self.options.max_retraces:
                self.reason = "values that it reads are other objects at each call"
                return None
        if key not in self._graphs and admitted(key, self._traced, self.options.max_sizes):
            try:
                self._graphs[key] = self._kept.get(key) or self._record(x, c)
            except UntraceableError as error:
                self.reason = str(error)
        if key not in self._graphs:
            return None
        compiled = self._compiled_for(self._graphs[key], x, c, gradient)
        return _Run(self._graphs[key], gradient) if compiled is None else compiled

    def _compiled_for(
        self, graph: DensityGraph, x: Tensor, c: Tensor | None, gradient: bool
    ) -> CompiledGraph | None:
        """The compiled graph for a batch; None where there is none, or it does not pay yet."""
        if self.uncompiled_reason or not self.options.compiler or not may_compile():
            return None
        num = padded_size(len(x))
        key = (num, *_key(x, c)[1:], gradient)
        done = self._work[key] = self._work.get(key, 0) + graph.work(gradient)
        price = self.options.compile_operations * OVERHEAD * graph.operations
        if self.compile_mode is not True and done < price:
            return None
        most = self.options.max_compiled
        if key not in self._compiled and admitted(key, self._worth_compiling, most):
            points = padded(x.detach(), num)
            contexts = None if c is None else padded(c.detach(), num)
            try:
                kept = self._kept_compiled.get(key)
                self._compiled[key] = kept or self._compile(points, contexts, gradient)
                self._compiled_since.setdefault(key, done)
            except UntraceableError as error:
                self.uncompiled_reason = str(error)
                if key in self._compiled_since:
                    warn_of_other_rounding("density", str(error))
        return self._compiled.get(key)

    def _compile(self, x: Tensor, c: Tensor | None, gradient: bool) -> CompiledGraph:
        graph = self._graphs.get(_key(x, c)) or self._record(x, c)
        found = CompiledGraph(graph, x, c, gradient)
        for points in (x, fixed_points(x, len(x))):
            if not found.agrees(points, c, self.options.compiled_ulps):
                raise UntraceableError("compiled, it has other values or gradients")
        return found

    def _record(self, x: Tensor, c: Tensor | None) -> DensityGraph:
        held = self._held or HeldValues(self.density)
        if held.unknown:
            raise UntraceableError(held.unknown)
        graph = record(self.density, x, c, held.tensors)
        if graph.operations > self.options.max_operations:
            raise UntraceableError(
                f"its graph has {graph.operations} operations, more than "
                f"{self.options.max_operations}"
            )
        for points in (x.detach(), fixed_points(x, len(x))):
            _check(self.density, graph, points, c, self.options.max_error)
        if not held.unchanged():
            raise UntraceableError("values that it reads are other objects at each call")
        self._held = held
        return graph


def _check(density: Density, graph: DensityGraph, x: Tensor, c: Tensor | None, most: float) -> None:
    """Compares a graph with the density at some points; bad matrices must be those of both.

    Raises:
        UntraceableError: They differ.
    """
    found: list[tuple[Tensor, Tensor] | None] = []
    for evaluate in (lambda: value_and_grad(density, x, c), lambda: _both(graph, x, c)):
        try:
            found.append(evaluate())
        except RuntimeError as error:
            if not is_bad_matrix(error):
                raise UntraceableError(f"the graph fails: {str(error).splitlines()[0]}") from error
            found.append(None)
    own, other = found
    if own is None or other is None:
        same = own is other
    else:
        same = all(
            a.shape == b.shape and torch.allclose(a, b, rtol=most, atol=most, equal_nan=True)
            for a, b in zip(own, other)
        )
    if not same:
        raise UntraceableError("its graph has other values or gradients")


def _both(graph: DensityGraph, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
    value, grad = graph.value_and_grad(x, c)
    graph.count(x, c)
    if not torch.equal(graph.value(x, c).nan_to_num(), value.nan_to_num()):
        raise UntraceableError("its graph has other values without the gradient")
    return value, grad


def described_graphs(density: TracedDensity) -> list[str]:
    """For which batches there are graphs, traced or compiled, and the counts they began at.

    Arguments:
        density: The traced density.

    Example:
        >>> density = TracedDensity(lambda x, c: -x.square().sum(-1))
        >>> density.compile_mode, density.options = True, TracingOptions(compiler=False)
        >>> _ = density.value_and_grad(torch.ones(2, 1), None)
        >>> described_graphs(density)
        ['2 points: traced after 0 calls']
    """
    counts = density.state_dict()
    calls = dict(counts["calls"])
    traced = [
        f"{key[0]} points: traced after {calls.get(key, 0)} calls" for key in counts["traced"]
    ]
    return traced + [
        f"{key[0]} points, {'with' if key[-1] else 'without'} gradient: compiled after {work:,} "
        f"operations on numbers"
        for key, work in counts["compiled since"]
    ]


def admitted(key: tuple, keys: list[tuple], most: int) -> bool:
    """Whether there may be a graph for a key; the first keys are added to those that may.

    Example:
        >>> keys = []
        >>> [admitted(key, keys, most=1) for key in ((1,), (2,), (1,))]
        [True, False, True]
    """
    if key not in keys and len(keys) < most:
        keys.append(key)
    return key in keys


def _key(x: Tensor, c: Tensor | None) -> tuple:
    """The facts on which a graph depends beside values; the number of points is the first."""
    defaults = torch.get_default_dtype(), default_device()
    return len(x), x.dtype, x.device, None if c is None else (c.dtype, c.shape[1]), defaults


def is_seen(x: Tensor) -> bool:
    """Whether something else has to see each operation on points, so that no graph may run.

    Example:
        >>> from pyro_flowsamp.target.work import WorkCounter
        >>> x = torch.zeros(1)
        >>> with WorkCounter():
        ...     inside = is_seen(x)
        >>> inside, is_seen(x)
        (True, False)
    """
    return (
        type(x) not in (Tensor, torch.nn.Parameter)
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch.jit.is_tracing()
        or torch.is_autocast_enabled()
    )


class _Run:
    """A graph that is not compiled, called as a compiled one."""

    def __init__(self, graph: DensityGraph, gradient: bool) -> None:
        self.graph, self.gradient = graph, gradient

    def __call__(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.graph.value_and_grad(x, c) if self.gradient else (self.graph.value(x, c), None)


class _Gradient(torch.autograd.Function):
    """A density by its graph, with the gradient that the graph has computed beside the value."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, c: Tensor | None, run: _Run | CompiledGraph, density: Density
    ) -> Tensor:
        value, grad = run(x.detach(), c)
        ctx.save_for_backward(x, grad)
        ctx.context, ctx.density = c, density
        return value

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple:
        x, grad = ctx.saved_tensors
        if torch.is_grad_enabled():  # a derivative of this gradient may be asked for
            value = ctx.density(x, ctx.context)
            (result,) = torch.autograd.grad(value, x, incoming, create_graph=True)
        else:
            result = incoming[:, None] * grad
        return result, None, None, None
