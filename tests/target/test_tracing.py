"""Traced densities: the same numbers as without a trace, and none that is out of date."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from support import models
from support.models import BATCHING, named
from support.mutations import broken, mutation
from torch.testing import assert_close

from pyro_flowsamp import Target
from pyro_flowsamp.target import graph_simplification, graphs, tracing
from pyro_flowsamp.target.held_values import HeldValues
from pyro_flowsamp.target.options import TracingOptions
from pyro_flowsamp.target.work import WorkCounter

NUM = 24
SCALE = torch.tensor(2.0)
POWER = 2.0


def two(model, *args):
    """A target that is traced from the first call on, and one that never is."""
    traced, eager = Target.from_model(model, *args), Target.from_model(model, *args)
    traced.compile_mode, eager.compile_mode = True, False
    return traced, eager


def of_energy(energy, dim=2):
    traced, eager = Target.from_energy(energy, dim), Target.from_energy(energy, dim)
    traced.compile_mode, eager.compile_mode = True, False
    return traced, eager


def is_same(traced, eager, x, context=None):
    """Whether values, gradients and counts are the same numbers."""
    pairs = [t.log_prob_and_grad(x, context) for t in (traced, eager)]
    with torch.no_grad():
        pairs += [(t.log_prob(x, context), t.nonfinite) for t in (traced, eager)]
    same = [torch.equal(a, b) for one, two in (pairs[:2], pairs[2:]) for a, b in zip(one, two)]
    return all(same) and traced.evaluations == eager.evaluations


TRACED = [case for case in BATCHING if case[2] == "vmap"]


@pytest.mark.parametrize("model, y, batching", named(TRACED))
def test_the_same_numbers(model, y, batching):
    traced, eager = two(model, y)
    for _ in range(3):
        assert is_same(traced, eager, torch.randn(NUM, traced.dim))
    assert traced.density.density.sizes == [NUM] and not traced.untraced_reason
    assert eager.density.density.sizes == []


@pytest.mark.parametrize("num", [1, 2, 7, 64])
def test_batches_of_any_size(num):
    traced, eager = two(models.conjugate, *models.conjugate_data())
    assert is_same(traced, eager, torch.randn(num, 2))
    assert is_same(traced, eager, torch.randn(2, num).T)  # of other strides
    assert traced.density.density.sizes == [num]


def test_derivatives_of_any_order():
    traced, eager = two(models.schools, torch.tensor([0.5, -1.0, 2.0]))
    x = torch.randn(NUM, traced.dim)
    weights = torch.rand(NUM)
    found = []
    for target in (traced, eager):
        points = x.clone().requires_grad_()
        value = target.log_prob(points) @ weights
        (first,) = torch.autograd.grad(value, points, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), points)
        (alone,) = torch.autograd.grad(target.log_prob(points) @ weights, points)
        found.append((value, first, second, alone))
    assert_close(*found, rtol=1e-5, atol=1e-6)
    functions = [lambda x: traced.log_prob(x).sum(), lambda x: eager.log_prob(x).sum()]
    assert_close(*(torch.func.hessian(f)(x[:2]) for f in functions))
    assert traced.density.density.sizes == [NUM]


def test_contexts_are_inputs():
    def model(y, scale):
        x = pyro.sample("x", dist.Normal(0.0, scale))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    traced, eager = (t.conditional_on("scale") for t in two(model, SCALE, torch.tensor(1.0)))
    assert traced.compile_mode is True
    for _ in range(2):
        assert is_same(traced, eager, torch.randn(NUM, 1), torch.rand(NUM, 1) + 0.5)
    rows = torch.rand(NUM, 1).add(0.5).requires_grad_()
    values = [t.log_prob(torch.ones(NUM, 1), rows).sum() for t in (traced, eager)]
    assert_close(*(torch.autograd.grad(value, rows) for value in values))


# ---- infinite and undefined densities ------------------------------------------------------------


def test_minus_infinity_and_nan():
    traced, eager = of_energy(lambda x: x[:, 0].log() + x.square().sum(-1))
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    assert is_same(traced, eager, x)
    assert traced.log_prob(x).isneginf().tolist() == [False, True, True]
    assert_close(traced.log_prob_and_grad(x)[1], eager.log_prob_and_grad(x)[1], rtol=0, atol=0)


def test_bad_matrices():
    traced, eager = two(models.not_always_positive_definite)
    good, bad = torch.tensor([[0.1], [0.2], [0.5]]), torch.tensor([[0.1], [-1.5], [0.5]])
    for x in (good, bad, good):
        assert is_same(traced, eager, x)
    assert traced.log_prob(bad).isfinite().tolist() == [True, False, True]
    assert traced.density.density.sizes == [3] and not traced.untraced_reason


def test_a_check_that_raises_stays_in_the_graph():
    @mutation(graph_simplification, "must_stay")
    def none_stays(must_stay, node):
        return node.op in ("placeholder", "output")

    good = torch.tensor([[0.1], [0.2], [0.5]])
    with broken(none_stays):
        traced, eager = of_energy(lambda x: torch.linalg.cholesky(x[:, :, None] + 1).sum((1, 2)), 1)
        assert is_same(traced, eager, good)
        assert not is_same(traced, eager, good - 1.15)


# ---- values that are held ------------------------------------------------------------------------


class Holder:
    """An object whose attribute a density reads."""

    def __init__(self):
        self.scale = torch.tensor(1.0)

    def energy(self, x):
        return self.scale * x.square().sum(-1)


def test_a_global_name(monkeypatch):
    traced, eager = of_energy(lambda x: (SCALE * x.abs() ** POWER).sum(-1))
    x = torch.randn(NUM, 2)
    assert is_same(traced, eager, x)
    for name, value in (("SCALE", torch.tensor(3.0)), ("POWER", 3.0)):
        monkeypatch.setitem(globals(), name, value)
        assert is_same(traced, eager, x)
    assert traced.density.density.sizes == [NUM]


@pytest.mark.parametrize("in_place", [True, False])
def test_attributes_containers_and_arguments(in_place):
    holder, listed, x = Holder(), [torch.ones(2)], torch.randn(NUM, 2)
    pairs = of_energy(holder.energy), of_energy(lambda x: (listed[0] * x.square()).sum(-1))
    pairs += (two(in_a_dictionary, {"scale": listed}),)
    for traced, eager in pairs:
        assert is_same(traced, eager, x)
    if in_place:
        listed[0].mul_(3)
        holder.scale.mul_(2)
    else:
        listed[0] = torch.full((2,), 4.0)
        holder.scale = torch.tensor(5.0)
    for traced, eager in pairs:
        assert is_same(traced, eager, x)
        assert traced.density.density.sizes == [NUM]


def in_a_dictionary(options):
    pyro.sample("x", dist.Normal(torch.zeros(2), options["scale"][0]).to_event(1))


def test_parameters_of_pyro_and_of_modules():
    net = torch.nn.Linear(2, 1)

    def model():
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        x = pyro.sample("x", dist.Normal(torch.zeros(2), scale).to_event(1))
        pyro.sample("y", dist.Normal(net(x), 1.0).to_event(1), obs=torch.ones(1))

    traced, eager = two(model)
    x = torch.randn(NUM, 2)
    assert is_same(traced, eager, x)
    with torch.no_grad():
        pyro.get_param_store().get_state()["params"]["scale"].add_(0.5)
        net.weight.add_(1.0)
    assert is_same(traced, eager, x)
    pyro.get_param_store()["scale"] = torch.tensor(3.0)
    net.bias = torch.nn.Parameter(torch.ones(1))
    assert is_same(traced, eager, x)
    assert traced.density.density.sizes == [NUM]
    grads = [torch.autograd.grad(t.log_prob(x).sum(), net.parameters()) for t in (traced, eager)]
    assert_close(*grads, rtol=0, atol=0)


def test_an_old_trace_would_show():
    @mutation(HeldValues, "unchanged")
    def never_old(unchanged, self):
        return True

    holder, x = Holder(), torch.randn(NUM, 2)
    with broken(never_old):
        traced, eager = of_energy(holder.energy)
        assert is_same(traced, eager, x)
        holder.scale = torch.tensor(5.0)
        assert not is_same(traced, eager, x)


# ---- densities that cannot be traced -------------------------------------------------------------


def branch(x):
    return x.square().sum(-1) if x.abs().max() < 100 else x.abs().sum(-1)


def branch_on_a_list(x):
    return x.square().sum(-1) if max(map(max, x.tolist())) < 100 else x.abs().sum(-1)


def branch_on_data(x):
    return x.square().sum(-1) if SCALE.item() > 0 else x.abs().sum(-1)


WRITTEN = torch.zeros(2)


def writes(x):
    WRITTEN.fill_(2.0)
    return (WRITTEN * x.square()).sum(-1)


class Counted:
    """A density that changes what it reads."""

    calls = 0

    def energy(self, x):
        self.calls += 1
        return x.square().sum(-1) + 0 * self.calls


@pytest.mark.parametrize(
    "energy, reason",
    [
        (branch, "reads numbers of a tensor"),
        (branch_on_a_list, "reads numbers of a tensor"),
        (branch_on_data, "reads numbers of a tensor"),
        (writes, "writes into a tensor that it holds"),
        (Counted().energy, "other objects at each call"),
    ],
)
def test_reasons(energy, reason):
    traced, eager = of_energy(energy)
    for radius in (1, 100, 1000):
        assert is_same(traced, eager, radius * torch.randn(NUM, 2))
    assert reason in traced.untraced_reason and not traced.density.density.sizes


@pytest.mark.filterwarnings("ignore:the density is evaluated point by point")
@pytest.mark.parametrize("model, y, batching", named([c for c in BATCHING if c[2] != "vmap"]))
def test_reasons_of_models(model, y, batching):
    traced, eager = two(model, y)
    assert is_same(traced, eager, torch.randn(4, traced.dim))
    assert "reads numbers of a tensor" in traced.untraced_reason


def test_random_numbers_are_never_kept():
    """A density that becomes random is found out, and not frozen."""
    noise = []

    def energy(x):
        return x.square().sum(-1) + (torch.rand(len(x)) if noise else 0.0)

    target = Target.from_energy(energy, 2)
    target.compile_mode = True
    noise.append(1)
    x = torch.randn(NUM, 2)
    assert not torch.equal(target.log_prob(x), target.log_prob(x))
    assert "draws random numbers" in target.untraced_reason


def test_a_number_that_is_baked_in_is_seen():
    """Without the refusal of random numbers the comparison with the density sees them."""

    @mutation(graphs, "record")
    def shifted(record, density, *args):
        shift = float(torch.rand(()))
        return record(lambda x, c: density(x, c) + shift, *args)

    with broken(shifted):
        traced, eager = of_energy(models.energy)
        assert is_same(traced, eager, torch.randn(NUM, 2))
    assert "other values or gradients" in traced.untraced_reason


# ---- decisions -----------------------------------------------------------------------------------


def test_when_it_is_traced():
    target = Target.from_energy(models.energy, 2)
    assert target.compile_mode == "auto"
    target.tracing = TracingOptions(calls=3, max_sizes=2)
    x = torch.randn(NUM, 2)
    sizes = []
    for _ in range(4):
        target.log_prob_and_grad(x)
        sizes.append(len(target.density.density.sizes))
    assert sizes == [0, 0, 0, 1]
    for num in (1, 2, 3):
        for _ in range(5):
            target.log_prob(x[:num])
    assert target.density.density.sizes == [NUM, 1]
    assert copy.deepcopy(target).density.density.sizes == []


def test_operations_are_seen_by_a_counter():
    traced, eager = two(models.schools, torch.tensor([0.5, -1.0, 2.0]))
    x = torch.randn(NUM, traced.dim)
    traced.log_prob_and_grad(x)
    counts = []
    for target in (traced, eager):
        with WorkCounter() as counter:
            target.log_prob_and_grad(x)
        counts.append(counter.work)
    assert counts[0] == counts[1]


def test_bad_values_of_the_mode():
    target = Target.from_energy(models.energy, 2)
    with pytest.raises(ValueError, match="compile must be 'auto', True or False, got 'yes'"):
        target.compile_mode = "yes"


# ---- counts that are stored ----------------------------------------------------------------------


def energy(x):
    return 0.5 * (x.square().sum(-1) - 1).square()


def evaluated(target, sizes):
    """For which sizes there are graphs after each of some batches."""
    found = []
    for size in sizes:
        target.log_prob_and_grad(torch.ones(size, 2))
        found.append(sorted(target.density.density.sizes))
    return found


def split_in_two(sizes, first):
    """The graphs of a target, and of one that takes over its counts."""
    options = TracingOptions(calls=2, max_sizes=2, compiler=False)
    whole, other = Target.from_energy(energy, 2), Target.from_energy(energy, 2)
    whole.tracing = other.tracing = options
    evaluated(whole, sizes[:first])
    other.load_tracing_state(copy.deepcopy(whole.tracing_state()))
    both = [evaluated(target, sizes[first:]) for target in (whole, other)]
    return *both, whole.tracing_state(), other.tracing_state()


def test_a_target_with_the_counts_of_another_is_traced_at_the_same_call():
    one, two, state, other = split_in_two([3, 4, 3, 4, 3, 4, 5], 2)
    assert one == two == [[], [], [3], [3, 4], [3, 4]] and state == other


def test_sizes_that_are_traced_are_counted_by_a_target_that_takes_over():
    """There are graphs for two sizes; a third one has none, though none was made here."""
    _, two, state, other = split_in_two([3, 3, 3, 4, 4, 4, 5, 5, 5, 4, 3], 6)
    assert two == [[], [], [], [4], [3, 4]] and state == other


@mutation(tracing.TracedDensity, "load_state_dict")
def calls_alone(_, self, state):
    self.restart()
    self._calls.update(state["calls"])


def test_counts_that_are_not_taken_over_would_show():
    with broken(calls_alone):
        _, two, _, _ = split_in_two([3, 3, 3, 4, 4, 4, 5, 5, 5, 4, 3], 6)
    assert two[2] == [5]


def test_nothing_is_counted_while_it_is_untraced():
    target = Target.from_energy(energy, 2)
    evaluated(target, [3])
    before = copy.deepcopy((target.tracing_state(), target.evaluations, target.compile_mode))
    with target.untraced():
        evaluated(target, [3, 4])
        target.log_prob(torch.full((1, 2), torch.nan))
    assert (target.tracing_state(), target.evaluations, target.compile_mode) == before
    assert not target.nonfinite
