"""Graphs with fewer operations: the same numbers, and every check that may raise."""

import pytest
import torch
from support.mutations import broken, mutation
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_flowsamp.target import graph_simplification
from pyro_flowsamp.target.graph_simplification import MAX_CONSTANT, must_stay, simplify

X = torch.tensor([[0.3, -1.2], [2.0, 0.7]])


def simplified(function, *args):
    """The graph of a function, and the names of its operations, before and after."""
    module = make_fx(function)(*args)
    before = names(module)
    simplify(module)
    module.recompile()
    return module, before, names(module)


def names(module):
    return [str(node.target) for node in module.graph.nodes if node.op == "call_function"]


def repeated(x):
    """The same operation with the same arguments, with others, and with other keywords."""
    two = torch.full((2,), 2.0) * 3
    return x.exp() * two + x.exp().detach() - x.sum(0) + x.sum(1, keepdim=True) - x.sum(1)


def test_the_same_numbers_by_fewer_operations():
    module, before, after = simplified(repeated, X)
    assert torch.equal(module(X), repeated(X))
    assert torch.equal(module(X + 1), repeated(X + 1))
    assert before.count("aten.exp.default") == 2 and after.count("aten.exp.default") == 1
    assert not {"aten.detach.default", "aten.full.default"} & set(after)
    assert sum(name.startswith("aten.sum") for name in after) == 3  # none of them is another


def test_operations_merged_by_their_names_alone_are_seen():
    @mutation(graph_simplification, "_merge_equal")
    def by_name(right, graph):
        first = {}
        for node in [node for node in graph.nodes if node.op == "call_function"]:
            if (known := first.setdefault(node.target, node)) is not node:
                node.replace_all_uses_with(known)
                graph.erase_node(node)

    def two_sums(x):
        return x.sum(0) - x.exp().sum(0)

    assert torch.equal(simplified(two_sums, X)[0](X), two_sums(X))
    with broken(by_name):
        assert not torch.equal(simplified(two_sums, X)[0](X), two_sums(X))


def test_a_held_tensor_is_no_constant():
    """What is computed of a tensor among the inputs follows it."""
    module, _, _ = simplified(lambda x, held: x + held.exp(), X, X[0])
    for held in (X[0], X[1]):
        assert torch.equal(module(X, held), X + held.exp())


@pytest.mark.parametrize("size, is_computed", [(MAX_CONSTANT, True), (MAX_CONSTANT + 1, False)])
def test_large_constants_are_not_kept(size, is_computed):
    module, _, after = simplified(lambda x: x + torch.arange(size).sqrt()[-1], X)
    assert ("aten.arange.default" not in after) == is_computed
    assert torch.equal(module(X), X + torch.arange(size).sqrt()[-1])


def test_checks_stay():
    matrix = torch.eye(2)
    module, _, after = simplified(lambda x: torch.linalg.cholesky(x), matrix)
    checks = [n for n in module.graph.nodes if n.op == "call_function" and must_stay(n)]
    assert len(checks) == 1 and str(checks[0].target) in after
    with pytest.raises(torch.linalg.LinAlgError):
        module(-matrix)
