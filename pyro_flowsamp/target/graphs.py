r"""Graphs of densities: the operations of a value and its gradient, recorded once.

A Pyro model that is evaluated goes through Pyro's handlers, ``vmap`` and autograd. What they lead
to is a list of operations of ATen, which depends on the shapes of the inputs alone. ``make_fx``
records it, and :class:`DensityGraph` runs it again on other points. So it makes the same operations
as the density itself, in the same order, and its results are the same numbers.

Points, contexts, and the tensors that the density holds (data, ``pyro.param``, parameters of
modules) are inputs of a graph. Python numbers, and operations on them alone, are part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from .batching import Density
from .graph_simplification import must_stay, simplify
from .work import WorkCounter

__all__ = ["DensityGraph", "UntraceableError", "record", "recorded", "with_checks"]

_ATEN = torch.ops.aten
#: operations that make the tensor of a Python number
_LIFTS = {_ATEN.lift_fresh_copy.default, _ATEN.lift_fresh.default}


class UntraceableError(Exception):
    """The reason why a density cannot be recorded as a graph.

    Example:
        >>> try:
        ...     record(lambda x, c: x[:, 0] * float(x[0, 0]), torch.ones(3, 1), None, {})
        ... except UntraceableError as error:
        ...     str(error)
        'it reads numbers of a tensor (.item(), or a branch on its values)'
    """


class _Watch(TorchDispatchMode):
    """Refuses operations whose results a graph would keep although they may change."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if torch.Tag.data_dependent_output in func.tags:
            raise UntraceableError(
                "it reads numbers of a tensor (.item(), or a branch on its values)"
            )
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise UntraceableError(f"it draws random numbers ({func})")
        return func(*args, **(kwargs or {}))


class DensityGraph:
    """The operations of a density and its gradient for batches of one size.

    Arguments:
        module: The graph of value and gradient; its inputs are points, contexts if there are any,
            and ``tensors``.
        tensors: The tensors that the density holds.

    Attributes:
        module, tensors: The same.
        operations: The number of operations.

    Example:
        >>> graph = record(lambda x, c: -x.square().sum(-1), torch.ones(3, 2), None, {})
        >>> graph.value_and_grad(torch.full((3, 2), 2.0), None)[0]
        tensor([-8., -8., -8.])
    """

    def __init__(self, module: fx.GraphModule, tensors: list[Tensor]) -> None:
        self.module, self.tensors = module, tensors
        self.operations = sum(node.op == "call_function" for node in module.graph.nodes)
        self._work: dict[bool, int] = {False: 0, True: 0}
        self._both = module.forward
        self._value: Any = None

    def work(self, gradient: bool) -> int:
        """The work of one call of the graph, with or without the gradient."""
        return self._work[gradient]

    def count(self, x: Tensor, c: Tensor | None) -> None:
        """Counts the work of a call at points ``(N, d)``."""
        for gradient, run in ((False, self.value), (True, self.value_and_grad)):
            with WorkCounter() as counter:
                run(x, c)
            self._work[gradient] = counter.work

    @property
    def requires_grad(self) -> bool:
        """Whether the density has gradients with respect to tensors that it holds."""
        return any(tensor.requires_grad for tensor in self.tensors)

    def value(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Log densities ``(N,)``, detached."""
        if self._value is None:
            self._value = _without_gradient(self.module).forward
        with torch.no_grad():
            return self._value(*self.inputs(x, c))[0]

    def value_and_grad(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log densities ``(N,)`` and their gradients ``(N, d)``, detached."""
        with torch.no_grad():
            value, grad = self._both(*self.inputs(x, c))
        return value, grad

    def with_checks(self, gradient: bool) -> fx.GraphModule:
        """The graph for a compiler, which would leave out checks: they are further outputs.

        Arguments:
            gradient: Whether the gradient is an output, beside the value.

        Returns:
            A module of the same inputs. Its outputs are the value, the gradient, and tensors that
            are zero unless a matrix could not be factorised.

        Raises:
            UntraceableError: There is a check of another kind.
        """
        return with_checks(self.module if gradient else _without_gradient(self.module))

    def inputs(self, x: Tensor, c: Tensor | None) -> list[Tensor]:
        """The inputs of the graph at points ``(N, d)`` and contexts ``(N, c)`` or None."""
        # recorded on contiguous points: a graph has views where other strides need copies
        own = [x.contiguous()] if c is None else [x.contiguous(), c.contiguous()]
        return own + self.tensors


def record(
    density: Density, x: Tensor, c: Tensor | None, held: Mapping[int, Tensor]
) -> DensityGraph:
    """Records a density and its gradient at points of the shape of these.

    The values of the points do not matter: recording runs on tensors without values.

    Arguments:
        density: A batched density.
        x: Points ``(N, d)``.
        c: Their contexts ``(N, c)``, or None.
        held: Tensors that the density holds, by ``id``.

    Raises:
        UntraceableError: The density branches on values, is random, writes into a tensor that it
            holds, has no gradient, or uses a tensor that is neither held nor made from numbers.

    Example:
        >>> scale = torch.tensor(3.0)
        >>> held = {id(scale): scale}
        >>> graph = record(lambda x, c: scale * x.exp().sum(-1), torch.zeros(2, 1), None, held)
        >>> graph.value_and_grad(torch.zeros(2, 1), None)
        (tensor([3., 3.]), tensor([[3.],
                [3.]]))
    """

    def value_and_grad(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            points = inputs[0].detach().requires_grad_()
            value = density(points, inputs[1] if len(inputs) > 1 else None)
            if not value.requires_grad:
                raise UntraceableError("it has no gradient")
            (grad,) = torch.autograd.grad(value.sum(), points)
        return value.detach(), grad.detach()

    inputs = [x.detach().contiguous()] if c is None else [x.detach().contiguous(), c.contiguous()]
    return DensityGraph(*recorded(value_and_grad, inputs, held))


def recorded(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], held: Mapping[int, Tensor]
) -> tuple[fx.GraphModule, list[Tensor]]:
    """Records the operations of a function of tensors, on tensors without values.

    Arguments:
        function: Maps tensors to a tuple of tensors.
        inputs: Tensors of the shapes that the graph will be for.
        held: Tensors that the function holds, by ``id``.

    Returns:
        The graph, and the tensors that it takes after the inputs.

    Raises:
        UntraceableError: The function branches on values, is random, writes into a tensor that it
            is given or holds, or uses one that is neither held nor made from numbers.

    Example:
        >>> module, held = recorded(lambda x: (x.exp() + 1,), [torch.zeros(2)], {})
        >>> module(torch.zeros(2)), held
        ((tensor([2., 2.]),), [])
        >>> recorded(lambda x: (x + torch.rand(2),), [torch.zeros(2)], {})
        Traceback (most recent call last):
        ...
        pyro_flowsamp.target.graphs.UntraceableError: it draws random numbers (aten.rand.default)
    """

    def watched(*inputs: Tensor) -> Sequence[Tensor]:
        with _Watch():
            return function(*inputs)

    from torch.fx.experimental.proxy_tensor import make_fx  # takes long to import

    try:
        module = make_fx(watched, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    except UntraceableError:
        raise
    except Exception as error:  # whatever the user's code raises on tensors without values
        lines = str(error).strip().splitlines() or [repr(error)]
        raise UntraceableError(lines[0][:200]) from error
    tensors = _as_inputs(module, held)
    _write_elsewhere(module.graph)
    if not _writes(module.graph):
        simplify(module)
    module.recompile()
    return module, tensors


def with_checks(module: fx.GraphModule) -> fx.GraphModule:
    """A graph for a compiler, which would leave out checks: they are further outputs.

    Arguments:
        module: The graph, whose output is a tuple.

    Returns:
        A graph of the same inputs. Its further outputs are tensors that are zero unless a matrix
        could not be factorised.

    Raises:
        UntraceableError: There is a check of another kind.

    Example:
        >>> one = torch.eye(2)
        >>> module, _ = recorded(lambda x: (torch.linalg.cholesky(x),), [one], {})
        >>> [int(check) for check in with_checks(module)(-one)[1:]]
        [1]
    """
    module = fx.GraphModule(module, deepcopy(module.graph))
    checks = [node for node in module.graph.nodes if node.op == "call_function"]
    checks = [node for node in checks if must_stay(node)]
    if any(node.target is not _ATEN._linalg_check_errors.default for node in checks):
        raise UntraceableError("it has a check that a compiler would leave out")
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    output.args = ((*output.args[0], *(node.args[0] for node in checks)),)
    for node in checks:
        module.graph.erase_node(node)
    module.recompile()
    return module


# ---- inputs --------------------------------------------------------------------------------------


def _as_inputs(module: fx.GraphModule, held: Mapping[int, Tensor]) -> list[Tensor]:
    """Makes the tensors that the density holds inputs of its graph, after the other ones."""
    graph = module.graph
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    tensors: dict[int, fx.Node] = {}
    found: list[Tensor] = []
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        tensor = getattr(module, str(node.target))
        if not isinstance(tensor, Tensor):
            raise UntraceableError(f"its graph has a part of the kind {type(tensor).__name__}")
        if id(tensor) not in held:
            if all(user.target in _LIFTS for user in node.users):
                continue
            raise UntraceableError(
                f"it uses a tensor of shape {tuple(tensor.shape)} that is in no argument, closure, "
                f"global name, attribute or parameter"
            )
        if id(tensor) not in tensors:
            with graph.inserting_after(last):
                last = tensors[id(tensor)] = graph.placeholder(f"held_{len(found)}")
            found.append(tensor)
        node.replace_all_uses_with(tensors[id(tensor)])
        graph.erase_node(node)
    return found


def _aliases(node: fx.Node) -> list[Any]:
    """The aliases of an operation's arguments, None for those that are only read."""
    schema = getattr(node.target, "_schema", None)
    return [] if schema is None else [a.alias_info for a in schema.arguments]


def _is_write(node: fx.Node) -> bool:
    return any(alias is not None and alias.is_write for alias in _aliases(node))


def _writes(graph: fx.Graph) -> bool:
    """Whether a graph writes into tensors that it has made.

    Raises:
        UntraceableError: It may write into one of its inputs.
    """
    writes, inputs = False, {node for node in graph.nodes if node.op in ("placeholder", "get_attr")}
    for node in graph.nodes:
        given = any(argument in inputs for argument in node.all_input_nodes)
        if _is_write(node):
            writes = True
            if node.args[0] in inputs:
                raise UntraceableError("it writes into a tensor that it holds, or into its points")
        elif given and any(_aliases(node)):  # a view of an input
            inputs.add(node)
    return writes


def _write_elsewhere(graph: fx.Graph) -> None:
    """Replaces writes into a tensor without views by operations that make a new one."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if not _is_write(node) or not isinstance(node.args[0], fx.Node):
            continue
        written = node.args[0]
        packet, _, overload = str(node.target).removeprefix("aten.").partition(".")
        other = getattr(getattr(_ATEN, packet.removesuffix("_"), None), overload, None)
        viewed = any(any(_aliases(user)) for user in written.users if user is not node)
        if other is None or viewed or any(_aliases(written)) or written.op != "call_function":
            continue
        node.target = other
        for user in [user for user in written.users if order[user] > order[node]]:
            user.replace_input_with(written, node)


def _without_gradient(module: fx.GraphModule) -> fx.GraphModule:
    """The graph of the value alone."""
    copy = fx.GraphModule(module, deepcopy(module.graph))
    (output,) = (node for node in copy.graph.nodes if node.op == "output")
    output.args = ((output.args[0][0],),)
    if not _writes(copy.graph):
        copy.graph.eliminate_dead_code(must_stay)
    copy.recompile()
    return copy
