"""Steps as graphs: the same draws as without, and no number that a graph would keep."""

import time
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.marks import slow
from support.mutations import broken, mutation

from pyro_flowsamp import (
    IMH,
    AutoFlow,
    FitOptions,
    LatentHMC,
    LatentMALA,
    LocalGlobalHMC,
    Target,
    TracingOptions,
)
from pyro_flowsamp.kernels.inversion import InversionOptions
from pyro_flowsamp.kernels.step_graphs import StepGraphs
from pyro_flowsamp.target import graphs
from pyro_flowsamp.target.held_values import HeldValues
from pyro_flowsamp.transitions import hamiltonian

CHAINS = 8
KERNELS = {
    "IMH": partial(IMH, lookahead=3 * CHAINS),
    "MALA": LatentMALA,
    "HMC": partial(LatentHMC, num_steps=2),
    "adapted": partial(LatentHMC, trajectory="adapted", global_prob=0.3),
    "jacobian": partial(LatentHMC, metric="jacobian", num_steps=2),
    "LocalGlobalHMC": partial(
        LocalGlobalHMC, num_steps=2, local_steps=1, inversion=InversionOptions(every=2)
    ),
}


def model(y):
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    pyro.sample("y", dist.StudentT(4.0, mean, scale).to_event(1), obs=y)


def of_model(compile_mode):
    target = Target.from_model(model, torch.tensor([0.5, -1.0]))
    target.compile_mode = compile_mode
    return target


def target_of(compile_mode, **options):
    """A target of few operations, with heavy tails."""
    data = torch.tensor([0.5, -1.0, 2.0])
    target = Target.from_energy(lambda x: 2 * ((x - data).square() / 3).log1p().sum(-1), 3)
    target.compile_mode = compile_mode
    target.tracing = TracingOptions(**options)
    return target


def ready(make, target, flow="gaussian"):
    """A kernel that has an untrained flow, but for its affine layer."""
    pyro.set_rng_seed(0)
    options = FitOptions(progress=False, max_steps=2)
    guide = AutoFlow(target, flow=flow, options=options)
    guide.flow  # noqa: B018  # it is made when it is first asked for
    guide.trained = True
    kernel = make(guide=guide)
    kernel.setup(10)
    kernel.prepare(10)
    return kernel


def draws(kernel, steps=10, warmup=4, seed=1):
    """Positions of chains in a short warm-up and after it, and the evaluations."""
    pyro.set_rng_seed(seed)
    state, found = kernel.start(CHAINS), []
    counter = kernel.target.counter
    before = counter.evaluations, int(counter.nonfinite)
    for step in range(warmup + steps):
        state, info = kernel.step(state)
        found.append(torch.cat([state.x, info.accept_prob[:, None]], -1))
        if step < warmup:
            kernel.adapt(info)
        if step == warmup - 1:
            kernel.freeze()
    counts = counter.evaluations - before[0], int(counter.nonfinite) - before[1]
    return torch.stack(found), counts


def fake(monkeypatch, delay=0.0, error=2e-16):
    """Let a function that adds a rounding error take the place of the compiler."""
    import torch._inductor

    def compile_slowly(module, inputs):
        time.sleep(delay)

        def run(*inputs):
            return tuple(t * (1 + error) if t.is_floating_point() else t for t in module(*inputs))

        return run

    monkeypatch.setenv("PYRO_FLOWSAMP_COMPILE", "1")
    monkeypatch.setattr(torch._inductor, "compile", compile_slowly)


@pytest.mark.parametrize("name", slow(KERNELS, "jacobian", "LocalGlobalHMC"))
def test_the_same_draws(name, double):
    flow = "coupling" if name == "HMC" else "gaussian"
    graph, eager = (ready(KERNELS[name], of_model(mode), flow) for mode in (True, False))
    for seed in (1, 2):  # the second run begins with graphs
        found, own = draws(graph, seed=seed), draws(eager, seed=seed)
        assert torch.equal(found[0], own[0]) and found[1] == own[1]
    assert own[0][-1].std() > 0 and own[1][0] > 100
    assert not graph.step_graphs.reasons and len(graph.step_graphs.names[0]) >= 2
    assert eager.step_graphs.names == ([], [])


@pytest.mark.parametrize("name", ["IMH", "HMC"])
def test_compiled_draws_differ_by_rounding_errors(monkeypatch, name, double):
    fake(monkeypatch)
    kernel, eager = (ready(KERNELS[name], target_of(mode)) for mode in (True, False))
    found, own = draws(kernel), draws(eager)
    torch.testing.assert_close(found[0], own[0], rtol=1e-10, atol=1e-10)
    assert not torch.equal(found[0], own[0]) and found[1] == own[1]
    assert kernel.step_graphs.names[0] == kernel.step_graphs.names[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["IMH", "HMC", "LocalGlobalHMC"])
def test_a_real_compiler(monkeypatch, name, double):
    monkeypatch.setenv("PYRO_FLOWSAMP_COMPILE", "1")
    kernel, eager = (ready(KERNELS[name], target_of(mode)) for mode in (True, False))
    found, own = draws(kernel), draws(eager)
    torch.testing.assert_close(found[0], own[0], rtol=1e-10, atol=1e-10)
    if kernel.step_graphs.reasons:
        pytest.skip(f"there is no compiler: {kernel.step_graphs.reasons}")
    assert kernel.step_graphs.names[0] == kernel.step_graphs.names[1]


def test_chains_at_several_contexts(double):
    found = []
    for mode in (True, False):
        target = of_model(mode).conditional_on("y")
        target.compile_mode = mode
        rows = torch.tensor([[0.5, -1.0], [3.0, 2.0]])
        found.append(draws(ready(LatentMALA, target.at_contexts(rows))))
    assert torch.equal(found[0][0], found[1][0])


# ---- random numbers ------------------------------------------------------------------------------


class OwnNumbers(IMH):
    """A kernel whose part draws random numbers."""

    def _score(self, z):
        return super()._score(z + torch.randn_like(z))


class KeptNumbers(IMH):
    """A kernel whose part uses random numbers that it is not given."""

    def _look_ahead(self, num_chains):
        noise, z = self.proposal.sample_latent(num_chains), self.proposal.sample_latent(num_chains)
        score = self._score
        proposals = self.part("proposals", lambda z: score(noise + 0 * z), z)
        return proposals, torch.rand_like(proposals.log_p).log()


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [(OwnNumbers, "it draws random numbers"), (KeptNumbers, "a tensor .* that is in no argument")],
)
def test_random_numbers_are_inputs(kernel, reason, double):
    """A part that draws or keeps random numbers is refused, with the reason, which is said once."""
    eager = draws(ready(kernel, target_of(False)))[0]
    with pytest.warns(UserWarning, match=rf"\(proposals\): .*{reason}") as said:
        graph = ready(kernel, target_of(True))
        found = draws(graph)[0]
    assert torch.equal(found, eager)
    assert len([w for w in said if "(proposals)" in str(w.message)]) == 1
    assert graph.step_graphs.names[0] == ["decision"]


@mutation(graphs, "_as_inputs")
def any_tensor_is_kept(right, module, held):
    nodes = [node for node in module.graph.nodes if node.op == "get_attr"]
    tensors = [getattr(module, str(node.target)) for node in nodes]
    return right(module, {**held, **{id(tensor): tensor for tensor in tensors}})


def test_a_baked_random_number_is_seen(double):
    eager = draws(ready(KeptNumbers, target_of(False)))[0]
    with broken(any_tensor_is_kept):
        found = draws(ready(KeptNumbers, target_of(True)))[0]
    assert not torch.equal(found, eager)


@mutation(hamiltonian, "trajectory")
def step_size_as_a_number(right, state, density, step_size, *args, run, **options):
    def fixed(name, function, *inputs):
        number = float(step_size)
        return run(name, lambda *rest: function(*rest, number), *inputs[:-1])

    return right(state, density, step_size, *args, run=fixed, **options)


def test_a_baked_step_size_is_seen(double):
    """A warm-up changes the step size, and the draws of a graph that keeps it are others."""
    with broken(step_size_as_a_number):
        found, own = (draws(ready(LatentMALA, target_of(mode)))[0] for mode in (True, False))
    assert not torch.equal(found, own)
    assert torch.equal(own, draws(ready(LatentMALA, target_of(True)))[0])


def test_proposals_ahead_are_in_the_state(double):
    """A state with other proposals leads elsewhere, by a graph too, and uses each once."""
    kernel = ready(KERNELS["IMH"], target_of(True))
    state, _ = kernel.step(kernel.start(CHAINS))
    assert state.steps_ahead == 2
    rise = torch.tensor([100.0, 50.0])  # so that the last, and then the first, is accepted
    better = state._replace(next_x=state.next_x + 1, next_log_p=state.next_log_p + rise)
    moved, info = kernel.step(better)
    assert info.accepted.all() and torch.equal(moved.x, better.next_x[:, -1])
    again, _ = kernel.step(moved)
    assert torch.equal(again.x, better.next_x[:, -2]) and again.steps_ahead == 0


# ---- when graphs take over -----------------------------------------------------------------------


def counted(monkeypatch, delay, **options):
    fake(monkeypatch, delay, error=1e-9)
    kernel = ready(KERNELS["HMC"], target_of("auto", **options))
    return draws(kernel)[0], kernel.step_graphs


def test_a_slow_compiler_changes_no_draw(monkeypatch, double):
    options = {"calls": 3, "compile_operations": 3, "compiled_ulps": 1e12}
    found, step_graphs = counted(monkeypatch, 0.0, **options)
    again, _ = counted(monkeypatch, 0.1, **options)
    late, _ = counted(monkeypatch, 0.0, **{**options, "compile_operations": 6})
    assert step_graphs.names == (["leapfrog"],) * 2
    assert torch.equal(found, again) and not torch.equal(found, late)


def test_what_is_expensive_is_compiled_early(monkeypatch, double):
    """A part that is called rarely is worth a compilation by its work."""
    options = {"calls": 10**6, "compiled_ulps": 1e12}
    assert counted(monkeypatch, 0.0, **options)[1].names == ([], [])
    options["compile_operations"] = 3
    assert counted(monkeypatch, 0.0, **options)[1].names[1] == ["leapfrog"]


def test_a_compiler_that_is_wrong_is_not_used(monkeypatch, double):
    fake(monkeypatch, error=1e-6)
    kernel = ready(KERNELS["HMC"], target_of(True))
    with pytest.warns(UserWarning, match=r"\(leapfrog, compiled\): .* other results"):
        found = draws(kernel)[0]
    assert torch.equal(found, draws(ready(KERNELS["HMC"], target_of(False)))[0])
    assert kernel.step_graphs.names == (["decision", "leapfrog"], [])


def test_steps_can_be_left_out():
    kernel = ready(KERNELS["HMC"], target_of(True, steps=False))
    draws(kernel)
    assert kernel.step_graphs.names == ([], []) and kernel.target.density.density.sizes


# ---- what changes between calls ------------------------------------------------------------------

DATA = {"y": torch.tensor([0.5, -1.0])}


def with_data(mode):
    data = dict(DATA)
    target = Target.from_energy(lambda x: 0.5 * (x - data["y"]).square().sum(-1), 2)
    target.compile_mode = mode
    return target, data


def draws_with_new_data(mode):
    target, data = with_data(mode)
    kernel = ready(LatentMALA, target)
    found = [draws(kernel)[0]]
    data["y"] = torch.tensor([4.0, 4.0])
    found.append(draws(kernel)[0])
    data["y"].add_(1.0)  # in place: the same tensor
    return torch.stack([*found, draws(kernel)[0]])


def test_new_data():
    assert torch.equal(draws_with_new_data(True), draws_with_new_data(False))


@mutation(HeldValues, "unchanged")
def never_looked_at(_, self):
    return True


def test_a_stale_graph_is_seen():
    with broken(never_looked_at):
        assert not torch.equal(draws_with_new_data(True), draws_with_new_data(False))


def test_a_matrix_that_cannot_be_factorised(double):
    """The chains whose matrices are good move as without a graph."""

    def energy(x):
        matrix = torch.diag_embed(1.5 + x)
        return torch.linalg.cholesky(matrix).sum((-2, -1)) + 2 * x.square().sum(-1)

    found = []
    for mode in (True, False):
        target = Target.from_energy(energy, 2)
        target.compile_mode = mode
        kernel = ready(partial(LatentMALA, step_size=1.0), target)
        found.append(draws(kernel))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]
    assert found[0][1][1] > 0 and kernel.target.nonfinite > 0


def test_counts_go_on_where_they_were(double):
    kernel = ready(KERNELS["HMC"], target_of("auto", calls=5))
    draws(kernel, steps=1)
    state = kernel.state_dict()
    other = ready(KERNELS["HMC"], target_of("auto", calls=5))
    other.load_state_dict(state)
    assert other.step_graphs.state_dict() == kernel.step_graphs.state_dict()
    assert isinstance(other.step_graphs, StepGraphs)


def test_rounding_errors_are_those_of_the_inputs(monkeypatch):
    """Results in float64 of inputs in float32 are no more precise than these."""
    fake(monkeypatch, error=1e-7)
    step_graphs = ready(KERNELS["HMC"], target_of(True)).step_graphs
    step_graphs("sum", lambda x: x.double().sum(-1), torch.ones(4, 2))
    assert not step_graphs.reasons and step_graphs.names[1] == ["sum"]
