"""Recorded graphs with fewer operations, which give the same numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["must_stay", "simplify"]

#: elements of the largest constant that is computed in advance
MAX_CONSTANT = 100_000
#: operations that return their first argument, but for what autograd knows of it
_SAME = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}


def simplify(module: fx.GraphModule) -> None:
    """Leaves out operations that change nothing, are made twice, or depend on constants only.

    Arguments:
        module: A graph that writes into none of its tensors and draws no random numbers; it is
            changed.

    Example:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> module = make_fx(lambda x: x.exp() + x.exp().detach())(torch.zeros(1))
        >>> simplify(module)
        >>> sum(node.op == "call_function" for node in module.graph.nodes)  # exp, and the sum
        2
    """
    graph = module.graph
    _leave_out_copies(graph)
    _compute_constants(module)
    _merge_equal(graph)
    graph.eliminate_dead_code(must_stay)
    graph.lint()


def must_stay(node: fx.Node) -> bool:
    """Whether an operation matters although its result is not used: a check that may raise.

    Arguments:
        node: The operation.

    Example:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> graph = make_fx(torch.linalg.cholesky)(torch.eye(2)).graph
        >>> [str(node) for node in graph.nodes if node.op == "call_function" and must_stay(node)]
        ['_linalg_check_errors']
    """
    if node.op in ("placeholder", "output"):
        return True
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and not schema.returns


def _leave_out_copies(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in _SAME:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _compute_constants(module: fx.GraphModule) -> None:
    """Computes in advance what depends on Python numbers only, and not on tensors that are held."""
    graph, known = module.graph, dict[fx.Node, Any]()
    for node in list(graph.nodes):
        if node.op == "get_attr":
            known[node] = getattr(module, str(node.target))
        if node.op != "call_function" or not all(n in known for n in node.all_input_nodes):
            continue
        if not isinstance(node.target, torch._ops.OpOverload) or must_stay(node):
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: known[n])
        with torch.no_grad():
            value = node.target(*args, **kwargs)
        if not isinstance(value, Tensor) or value.numel() > MAX_CONSTANT:
            continue
        known[node] = value
    used = [n for n in known if n.op != "get_attr" and any(user not in known for user in n.users)]
    for index, node in enumerate(used):
        name = f"_computed_{index}"
        module.register_buffer(name, known[node].clone(), persistent=False)
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.get_attr(name))


def _merge_equal(graph: fx.Graph) -> None:
    """Makes each operation with the same arguments only once."""
    first: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or must_stay(node):
            continue
        key = (node.target, repr(node.args), repr(sorted(node.kwargs.items())))
        if key in first:
            node.replace_all_uses_with(first[key])
            graph.erase_node(node)
        else:
            first[key] = node
