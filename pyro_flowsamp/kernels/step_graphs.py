r"""Steps as graphs: parts of a kernel's step run as recorded, and compiled, operations.

A step of a kernel draws its random numbers first. What follows is made of a few *parts*: functions
of the state, of these numbers and of the step size, such as a leapfrog step with the flow and the
density in it, and the decision at its end. A part that is run often is recorded as a graph of ATen
operations (:mod:`pyro_flowsamp.target.graphs`), and compiled by TorchInductor, as a density is
(:mod:`pyro_flowsamp.target.tracing`). A loop over parts makes the step.

- **Random numbers are inputs**, and so are step sizes. A part that draws numbers of its own is
  refused, and so is one that uses a tensor which it is not given and which is no data of the target
  or parameter of the flow: a graph would use the same numbers for ever.
- **Numbers of steps are not part of a graph.** A trajectory of L leapfrog steps runs one graph L
  times. So a graph does not depend on adapted lengths, and is compiled as fast as that of one step.
- **Results** of a recorded part are the same numbers as without; those of a compiled part differ by
  rounding errors. A part is compared on two batches before its graph is used.
- **Evaluations** of the target in a graph are counted as those outside of it.
- **A matrix that cannot be factorised** in a graph leads to the part itself, with the same random
  numbers.

When a graph takes over is decided by counts, never by a clock: where ``compile_mode`` is "auto", a
part of not too few operations is recorded after :attr:`~pyro_flowsamp.TracingOptions.calls` calls,
or where it is worth compiling before; and compiled where its counted work is as large as that of
its compilation.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..flows.proposal import Proposal
from ..target import compiling
from ..target.compiling import check_matrices, compiled_module, is_near, may_compile
from ..target.density import Target
from ..target.evaluation import MEMORY_BUDGET
from ..target.graphs import UntraceableError, recorded, with_checks
from ..target.held_values import HeldValues
from ..target.tracing import admitted, is_bad_matrix, is_seen
from ..target.work import OVERHEAD, WorkCounter
from .nested_tensors import inputs_of, rebuilt, skeleton_of, tensors_of

__all__ = ["PartGraph", "StepGraphs"]

#: factor of the inputs of the second batch that a graph is compared on; uniform variates, and logs
#: of them, stay such numbers
SHRINK = 0.99
log = logging.getLogger(__name__)


class PartGraph:
    """The operations of one part of a step, for chains of one shape.

    Arguments:
        function: The part, a function of tensors and of tuples of them.
        args: Arguments, for their shapes.
        held: Tensors that it may use beside them, by ``id``.
        target: The target, whose evaluations are counted.

    Attributes:
        operations: The number of operations.
        evaluations: The number of evaluations of the target in a call.

    Raises:
        UntraceableError: The part cannot be recorded.

    Example:
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 1)
        >>> one = torch.ones(2, 1)
        >>> graph = PartGraph(lambda x, e: target.log_prob(x + e), (one, one), {}, target)
        >>> graph((one, 2 * one))
        tensor([-9., -9.])
        >>> graph.evaluations, target.evaluations  # the call is counted
        (2, 2)
    """

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple,
        held: dict[int, Tensor],
        target: Target,
    ) -> None:
        self.counter, self.evaluations = target.counter, 0
        arguments, self._result = skeleton_of(args), None

        def flat(*inputs: Tensor) -> tuple[Tensor, ...]:
            with target.counted_apart() as counter:
                found = function(*rebuilt(arguments, iter(inputs)))
                self.evaluations, nonfinite = counter.evaluations, counter.nonfinite
            self._result = skeleton_of(found)
            return *(tensor.detach() for tensor in tensors_of(found)), nonfinite

        self.module, self.tensors = recorded(flat, inputs_of(args), held)
        if target.density.bytes_per_point * self.evaluations > MEMORY_BUDGET:
            raise UntraceableError("a batch of the target is evaluated in chunks")
        self.operations = sum(node.op == "call_function" for node in self.module.graph.nodes)
        self._run: Callable[..., Sequence[Tensor]] = self.module.forward

    def __call__(self, args: tuple) -> Any:
        """The result of the part.

        Raises:
            RuntimeError: A matrix cannot be factorised.
        """
        with torch.no_grad():
            found = iter(self._run(*inputs_of(args), *self.tensors))
        result, nonfinite = rebuilt(self._result, found), next(found)
        check_matrices(list(found))
        self.counter.evaluations += self.evaluations
        self.counter.nonfinite = self.counter.nonfinite + nonfinite
        return result

    def compiled(self, args: tuple) -> PartGraph:
        """A copy that is compiled.

        Raises:
            UntraceableError: It cannot be compiled.
        """
        own = object.__new__(PartGraph)
        own.__dict__.update(self.__dict__)
        inputs = [*inputs_of(args), *self.tensors]
        own._run = compiled_module(with_checks(self.module), inputs, "steps of kernels")
        return own


class StepGraphs:
    """The graphs of a kernel's parts, and the counts by which they are made.

    Arguments:
        target: The target.
        proposal: The frozen flow.

    Attributes:
        reasons: The reasons why parts have no graph, by name, or no compiled one, by a name that
            ends in ", compiled".
        names: The names of the parts that have a graph, and of those that have a compiled one.

    Example:
        >>> from pyro_flowsamp.flows import gaussian
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 1)
        >>> graphs = StepGraphs(target, Proposal(gaussian(1)))
        >>> target.compile_mode = True
        >>> graphs("density", target.log_prob, torch.ones(2, 1))
        tensor([-1., -1.])
        >>> "density" in graphs.names[0]
        True
    """

    def __init__(self, target: Target, proposal: Proposal) -> None:
        self.target, self.proposal = target, proposal
        self.reasons: dict[str, str] = {}
        self._calls: dict[tuple, int] = {}
        self._costs: dict[tuple, tuple[int, int]] = {}
        self._graphs: dict[tuple, PartGraph] = {}
        self._compiled: dict[tuple, PartGraph] = {}
        self._kept: dict[tuple, PartGraph] = {}  # by the name that reasons have, and the key
        self._traced: dict[str, list[tuple]] = {}
        self._worth_compiling: dict[str, list[tuple]] = {}
        self._compiled_since: dict[tuple, int] = {}
        self._flow: dict[int, Tensor] | None = None
        self._read: HeldValues | None = None
        self._retraces = 0

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """The names of the parts that have a graph, and of those that have a compiled one."""
        return sorted({k[0] for k in self._graphs}), sorted({k[0] for k in self._compiled})

    def described(self) -> list[str]:
        """The parts that have graphs, and the calls at which compiled ones began, as text."""
        compiled = [f"{k[0]}: compiled at call {n}" for k, n in self._compiled_since.items()]
        return [f"{name}: traced" for name, keys in self._traced.items() if keys] + compiled

    def are_of(self, target: Target, proposal: Proposal) -> bool:
        """Whether the graphs are those of a target and a flow."""
        return self.target is target and self.proposal is proposal

    def state_dict(self) -> dict[str, Any]:
        """The counts, without the graphs, as numbers, strings, lists and tuples."""
        return {
            "calls": list(self._calls.items()),
            "costs": list(self._costs.items()),
            "traced": dict(self._traced),
            "compiled": dict(self._worth_compiling),
            "compiled since": list(self._compiled_since.items()),
            "reasons": dict(self.reasons),
            "retraces": self._retraces,
        }

    def fresh_state(self) -> dict[str, Any]:
        """The counts of :meth:`state_dict` before any call."""
        return StepGraphs(self.target, self.proposal).state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the counts of :meth:`state_dict`.

        Graphs are kept, and used again from the call on at which they would be made.
        """
        self._calls, self._costs = dict(state["calls"]), dict(state["costs"])
        self._traced, self._worth_compiling = dict(state["traced"]), dict(state["compiled"])
        self.reasons, self._retraces = dict(state["reasons"]), state["retraces"]
        self._compiled_since = dict(state.get("compiled since", ()))
        self._kept |= {(key[0], key): graph for key, graph in self._graphs.items()}
        self._kept |= {(_compiled(key[0]), key): graph for key, graph in self._compiled.items()}
        self._graphs, self._compiled = {}, {}
        if self._compiled_since and not may_compile():
            compiling.warn_of_other_rounding("steps", compiling.NOT_ALLOWED)

    def __call__(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """The result of a part, by its graph where there is one.

        Arguments:
            name: The name, always the same for the same function.
            function: The part, a function of tensors and of tuples of them.
            args: Its arguments.
        """
        mode, options = self.target.compile_mode, self.target.tracing
        tensors = tensors_of(args)
        if mode is False or not options.steps or self.target.untraced_reason or is_seen(tensors[0]):
            return function(*args)
        key = _key(name, tensors)
        self._calls[key] = calls = self._calls.get(key, 0) + 1
        if mode == "auto" and key not in self._costs:
            with WorkCounter() as counter:
                result = function(*args)
            self._costs[key] = counter.work, counter.operations
            return result
        graph = self._graph_of(key, function, args, calls)
        if graph is None:
            return function(*args)
        try:
            return graph(args)
        except RuntimeError as error:
            if not is_bad_matrix(error):
                raise
            return function(*args)

    # ---- decisions ------------------------------------------------------------------------------

    @property
    def _may_compile(self) -> bool:
        return self.target.tracing.compiler and may_compile()

    def _worth_compiling_at(self, key: tuple, calls: int, operations: int) -> bool:
        """Whether the work of so many calls is that of compiling so many operations."""
        if not self._may_compile:
            return False
        if self.target.compile_mode is True:
            return True
        price = self.target.tracing.compile_operations * OVERHEAD * operations
        return key in self._costs and calls * self._costs[key][0] >= price

    def _graph_of(
        self, key: tuple, function: Callable[..., Any], args: tuple, calls: int
    ) -> PartGraph | None:
        """The graph for the next call, compiled or not; None where there is none, or not yet."""
        options, name = self.target.tracing, key[0]
        small = key in self._costs and self._costs[key][1] < options.min_operations
        if small and self.target.compile_mode == "auto":
            return None
        early = key in self._costs and self._worth_compiling_at(key, calls, self._costs[key][1])
        if self.target.compile_mode is not True and calls <= options.calls and not early:
            return None
        if self._read is not None and not self._read.unchanged():
            self._drop_graphs()
        if self._retraces > options.max_retraces:
            return None
        if key not in self._graphs and name not in self.reasons:
            if not admitted(key, self._traced.setdefault(name, []), options.max_sizes):
                return None
            self._try(name, self._graphs, key, lambda: self._record(function, args))
        graph = self._graphs.get(key)
        if graph is None or key in self._compiled:
            return self._compiled.get(key, graph)
        compiled = _compiled(name)
        if compiled not in self.reasons and self._worth_compiling_at(key, calls, graph.operations):
            if admitted(key, self._worth_compiling.setdefault(name, []), options.max_compiled):
                self._try(compiled, self._compiled, key, lambda: self._compile(graph, args))
                if key in self._compiled:
                    self._compiled_since.setdefault(key, calls)
                elif key in self._compiled_since:
                    compiling.warn_of_other_rounding(name, self.reasons[compiled])
        return self._compiled.get(key, graph)

    def _drop_graphs(self) -> None:
        """Drops all graphs: a value that the target reads is another object."""
        self._graphs, self._compiled, self._kept, self._read = {}, {}, {}, None
        self._traced, self._worth_compiling, self._compiled_since = {}, {}, {}
        self._retraces += 1
        if self._retraces > self.target.tracing.max_retraces:
            self.reasons["step"] = "values that the target reads are other objects at each call"

    def _try(self, name: str, graphs: dict, key: tuple, make: Callable[[], PartGraph]) -> None:
        """Makes a graph, or takes one that is kept; a reason why it fails is said once."""
        try:
            graphs[key] = self._kept.get((name, key)) or make()
        except UntraceableError as error:
            self.reasons[name] = str(error)
            said = f"the graph of a part of a step is not used ({name}): {error}"
            if self.target.compile_mode is True:
                warnings.warn(said, stacklevel=2)
            log.info(said)

    def _record(self, function: Callable[..., Any], args: tuple) -> PartGraph:
        if self._flow is None:
            self._flow = HeldValues(partial(id, self.proposal)).tensors
        read = self._read or HeldValues(partial(id, self.target.read_values))
        if read.unknown:
            raise UntraceableError(read.unknown)
        graph = PartGraph(function, args, self._flow | read.tensors, self.target)
        most = self.target.tracing.max_operations
        if graph.operations > most:
            raise UntraceableError(f"it has {graph.operations} operations, more than {most}")
        most_error = self.target.tracing.max_error
        self._compare(lambda args: function(*args), graph, args, partial(_close, most=most_error))
        self._read = read
        return graph

    def _compile(self, graph: PartGraph, args: tuple) -> PartGraph:
        compiled, ulps = graph.compiled(args), self.target.tracing.compiled_ulps
        self._compare(graph, compiled, args, partial(_near, ulps=ulps, inputs=tensors_of(args)))
        return compiled

    def _compare(
        self,
        one: Callable[[tuple], Any],
        two: Callable[[tuple], Any],
        args: tuple,
        same: Callable[[list[Tensor], list[Tensor]], bool],
    ) -> None:
        """Compares a part with its graph on two batches, where matrices can be factorised.

        Raises:
            UntraceableError: They differ.
        """
        smaller = [t * SHRINK if t.is_floating_point() else t for t in tensors_of(args)]
        for batch in (args, rebuilt(skeleton_of(args), iter(smaller))):
            found = []
            with self.target.untraced(), torch.no_grad():
                for function in (one, two):
                    try:
                        found.append(tensors_of(function(batch)))
                    except RuntimeError as error:
                        if not is_bad_matrix(error):
                            raise UntraceableError(str(error).splitlines()[0][:200]) from error
                        found.append([])
            if len(found[0]) != len(found[1]) or not same(*found):
                raise UntraceableError("its graph has other results")


# ---- keys, and comparisons -----------------------------------------------------------------------


def _compiled(name: str) -> str:
    """The name of a compiled part."""
    return f"{name}, compiled"


def _key(name: str, tensors: list[Tensor]) -> tuple:
    """The facts on which a graph depends beside values."""
    kinds = tuple((tuple(t.shape), t.dtype) for t in tensors)
    return name, kinds, tensors[0].device, torch.get_default_dtype()


def _close(one: list[Tensor], two: list[Tensor], most: float) -> bool:
    """Whether results are the same numbers, but for small errors."""
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=most, atol=most, equal_nan=True)
        for a, b in zip(one, two)
    )


def _near(one: list[Tensor], two: list[Tensor], ulps: float, inputs: list[Tensor]) -> bool:
    """Whether results differ by so many rounding errors of the least precise of all tensors."""
    kinds = (t.dtype for t in (*inputs, *one) if t.is_floating_point())
    eps = max((torch.finfo(kind).eps for kind in kinds), default=0.0)
    for a, b in zip(one, two):
        if not a.is_floating_point():
            same = torch.equal(a, b)
        else:
            most = ulps * eps / torch.finfo(a.dtype).eps
            same = is_near(b.reshape(len(b), -1), a.reshape(len(a), -1), most)
        if not same:
            return False
    return True
