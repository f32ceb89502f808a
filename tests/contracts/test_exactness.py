"""Draws of IMH and MALA are exact, however bad the flow is."""

from functools import partial
from math import pi

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC
from scipy.special import iv
from scipy.stats import chi2
from support.marks import slow
from support.mutations import broken, must_fail, mutation, stale
from support.scenarios import (
    SCENARIOS,
    THRESHOLD,
    Scenario,
    assert_exact,
    largest_score,
    shake,
    spoil,
    starts,
)
from torch.distributions import AffineTransform

from pyro_flowsamp import (
    IMH,
    AutoFlow,
    LatentHMC,
    LatentMALA,
    LocalGlobalHMC,
    Target,
    VectorizedMCMC,
    kernels,
)
from pyro_flowsamp._zuko import zuko
from pyro_flowsamp.flows.latent import LatentDistribution
from pyro_flowsamp.flows.proposal import Proposal
from pyro_flowsamp.flows.recipes import circular, coupling
from pyro_flowsamp.target.site import Site
from pyro_flowsamp.transitions import hamiltonian, independence

# chains, warm-up steps, draws
BUDGET = {IMH: (1000, 800, 20), LatentMALA: (700, 300, 10)}
# mistakes show by far
SHORT = {IMH: (1000, 300, 10), LatentMALA: (1000, 100, 10)}
KERNELS = pytest.mark.parametrize("kernel", BUDGET)


def _draws(name, kernel, seed=0, patience=1, budget=BUDGET):
    pyro.set_rng_seed(seed)
    scenario = SCENARIOS[name]
    source = scenario.source()
    guide = spoil(AutoFlow(source, flow=scenario.flow()), scenario)
    num_chains, warmup_steps, num_samples = budget[kernel]
    mcmc = VectorizedMCMC(
        kernel(guide=guide),
        num_samples,
        patience * warmup_steps,
        num_chains,
        initial_params=starts(guide.target_for(), scenario, num_chains),
        disable_progbar=True,
    )
    mcmc.run()
    return mcmc.get_samples(group_by_chain=True)


@KERNELS
@pytest.mark.parametrize(
    "name",
    slow(
        SCENARIOS,
        "torus",
        "modes",
        "conjugate",
        "cylinder",
        "enumerated",
        "manifolds",
        "bounded base",
    ),
)
def test_draws_are_exact_however_bad_the_flow(name, kernel):
    assert_exact(_draws(name, kernel), SCENARIOS[name])


# ---- flows that know nothing of angles ---------------------------------------------------------


def _von_mises(x):
    return -2 * (x - 1).cos().sum(-1)


def _wide_cylinder(x):
    return 0.5 * (x[:, 1] / 2).square() - (x[:, 0] - 1).cos()


FOREIGN = {
    "a flow on the line": (_von_mises, [0, 1], partial(zuko.flows.NSF, transforms=1)),
    "a flow with a bounded base": (_von_mises, [0, 1], partial(zuko.flows.NCSF, transforms=2)),
    "a recipe with arguments": (_wide_cylinder, [0], partial(circular, transforms=2)),
}


@KERNELS
@pytest.mark.parametrize("name", slow(FOREIGN, "a flow on the line", "a flow with a bounded base"))
def test_draws_are_exact_whatever_the_flow_knows_of_angles(name, kernel):
    pyro.set_rng_seed(2)
    energy, angles, recipe = FOREIGN[name]
    guide = AutoFlow(
        Target.from_energy(energy, 2, angles=angles), flow=partial(recipe, hidden_features=(16,))
    )
    guide.target_for()
    if angles == [0]:
        guide.flow.affine.initialize(torch.zeros(2), 2.5 * torch.eye(2))
    guide.trained = True
    mcmc = VectorizedMCMC(kernel(guide=guide), 20, 200, 1000, disable_progbar=True)
    mcmc.run()
    cosine = float(iv(1, 2) / iv(0, 2))
    moments = {f"cos {i}": (lambda d, i=i: (d["x"][..., i] - 1).cos(), cosine) for i in (0, 1)}
    if angles == [0]:
        moments = {"x1 squared": (lambda d: d["x"][..., 1].square(), 4.0)}
    draws = mcmc.get_samples(group_by_chain=True)
    assert draws["x"][..., angles].abs().max() <= pi + 1e-4
    assert_exact(draws, Scenario(None, None, [], [], moments))


def _stretched():
    half = dist.VonMises(0.0, 2.0)
    pyro.sample("x", dist.TransformedDistribution(half, AffineTransform(0.0, 2.0)))


def test_an_angle_times_two_is_refused():
    with pytest.raises(ValueError, match="transformed angle"):
        Target.from_model(_stretched)


# ---- mistakes, each made on purpose -------------------------------------------------------------


@mutation(Proposal, "push")
def flipped_log_det(push, self, z):
    x, ladj = push(self, z)
    return x, -ladj


@mutation(Proposal, "sample_and_log_prob")
@torch.no_grad()
def flipped_log_q(sample_and_log_prob, self, num):
    z = self.sample_latent(num)
    x, ladj = self.push(z)
    return x, self.base_log_prob(z) - ladj


@mutation(Proposal, "pull_and_log_prob")
def flipped_backward(pull_and_log_prob, self, x):
    """The inverse pass makes the same mistake: else the proposals would be refused."""
    z, log_q = pull_and_log_prob(self, x)
    return z, 2 * self.base_log_prob(z) - log_q


@mutation(independence, "step")
def no_log_q(step, state, proposal, log_u):
    zero = torch.zeros_like(log_u)
    return step(state._replace(log_q=zero), proposal._replace(log_q=zero), log_u)


def _stale(*fields):
    """Forget to refresh some fields of the state when a proposal is accepted."""
    return [stale(module, "step", *fields) for module in (independence, hamiltonian)]


@mutation(hamiltonian, "trajectory")
def no_backward_density(trajectory, *args, **options):
    end, _, finite = trajectory(*args, **options)
    return end, args[-1], finite


@mutation(Site, "constrain")
def flipped_support(constrain, self, u):
    value, ladj = constrain(self, u)
    return value, -ladj


@mutation(Site, "constrain")
def no_support(constrain, self, u):
    value, ladj = constrain(self, u)
    return value, torch.zeros_like(ladj)


@mutation(LatentDistribution, "log_prob")
def normal_angles(log_prob, self, z):
    return -0.5 * z.square().sum(-1)


BOTH = (IMH, LatentMALA)
MISTAKES = {
    "log-det sign of the flow": (
        [flipped_log_det, flipped_log_q, flipped_backward],
        BOTH,
        "conjugate",
    ),
    "no log q in the ratio": ([no_log_q], (IMH,), "gaussian"),
    "log q not refreshed": (_stale("log_q"), (IMH,), "gaussian"),
    "log p and log q not refreshed": (_stale("log_p", "log_q"), (IMH,), "modes"),
    "log pi not refreshed": (_stale("log_pi"), (LatentMALA,), "manifolds"),
    "gradient not refreshed": (_stale("grad"), (LatentMALA,), "gaussian"),
    "no backward density": ([no_backward_density], (LatentMALA,), "gaussian"),
    "log-det sign of the support": ([flipped_support], BOTH, "conjugate"),
    "no log-det of the support": ([no_support], BOTH, "manifolds"),
    "a normal base for angles": ([normal_angles], (IMH,), "torus"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mistake", "kernel"),
    [(name, kernel) for name, (_, kernels, _) in MISTAKES.items() for kernel in kernels],
)
def test_the_check_sees_mistakes(mistake, kernel, monkeypatch):
    mutations, _, name = MISTAKES[mistake]
    # a broken kernel is to go on, wherever that drives its step size
    monkeypatch.setattr("pyro_flowsamp.kernels.latent.TINY", 0.0)
    must_fail(
        *mutations,
        score=lambda: largest_score(_draws(name, kernel, budget=SHORT), SCENARIOS[name]),
        above=2 * THRESHOLD,
    )


# ---- what a state carries ----------------------------------------------------------------------


def _ready(kernel, num_chains=256):
    kernel.setup(0)
    kernel.prepare(0)
    return kernel.start(num_chains)


#: every exported kernel, in each metric and with each kind of trajectory
EVERY = {
    "IMH": IMH,
    "LatentMALA": partial(LatentMALA, step_size=0.5),
    "LatentMALA, Jacobian metric": partial(LatentMALA, step_size=0.3, metric="jacobian"),
    "LatentMALA and jumps": partial(LatentMALA, step_size=0.5, global_prob=0.3),
    "LatentHMC": partial(LatentHMC, step_size=0.4, num_steps=3),
    "LatentHMC, adapted trajectories": partial(LatentHMC, step_size=0.4, trajectory="adapted"),
    "LocalGlobalHMC": partial(LocalGlobalHMC, step_size=0.4, num_steps=2, local_steps=2),
}


def test_every_exported_kernel_is_among_them():
    classes = {getattr(make, "func", make).__name__ for make in EVERY.values()}
    assert classes == set(kernels.__all__) - {"FlowKernel"}


@pytest.mark.parametrize("kernel", EVERY)
@pytest.mark.parametrize("name", ["funnel", "manifolds", "cylinder", "half space", "bounded base"])
def test_the_state_is_never_stale(name, kernel):
    _check_state(name, kernel)


@pytest.mark.parametrize("kernel", EVERY)
def test_a_stale_state_is_seen(kernel):
    with broken(*_stale("log_p")), pytest.raises(AssertionError, match="not close"):
        _check_state("half space", kernel)


def _check_state(name, kernel):
    torch.set_default_dtype(torch.float64)
    scenario = SCENARIOS[name]
    guide = spoil(AutoFlow(scenario.source(), flow=scenario.flow()), scenario)
    ready = EVERY[kernel](guide=guide)
    state = _ready(ready)
    first = state.x
    for _ in range(60 if kernel == "IMH" else 20):
        state, info = ready.step(state)
    assert 0 < info.accepted.double().mean() < 1
    assert (state.x != first).any(-1).double().mean() > 0.9
    close = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(state.log_p, ready.target.log_prob(state.x), **close)
    torch.testing.assert_close(state.log_q, ready.proposal.log_prob(state.x), **close)
    if kernel != "IMH":
        x, ladj = ready.proposal.push(state.z)
        torch.testing.assert_close(state.x, x, **close)
        torch.testing.assert_close(state.log_pi, state.log_p + ladj, **close)
        torch.testing.assert_close(state.grad, ready.density(state.z).grad, **close)
        if "Jacobian" not in kernel:  # in that metric the field is a gradient in x
            torch.testing.assert_close(state.grad, _slopes(ready, state.z), rtol=1e-4, atol=1e-4)


def _slopes(kernel, z, h=1e-5):
    """The gradient of log pi by central differences."""
    steps = h * torch.eye(z.shape[-1])
    ups, downs = (
        torch.stack([kernel.density(z + sign * e).log_pi for e in steps], -1) for sign in (1, -1)
    )
    return (ups - downs) / (2 * h)


# ---- nothing changes after warm-up -------------------------------------------------------------


def test_the_step_size_is_constant_after_warmup(monkeypatch):
    seen, step = [], LatentMALA.step

    def watched(self, state):
        seen.append(float(self.step_size))
        return step(self, state)

    monkeypatch.setattr(LatentMALA, "step", watched)
    guide = spoil(AutoFlow(SCENARIOS["funnel"].source(), flow="coupling"))
    vectorized = VectorizedMCMC(LatentMALA(guide=guide), 30, 20, 10, disable_progbar=True)
    single = MCMC(LatentMALA(guide=guide), 30, 20, disable_progbar=True)
    for mcmc in (vectorized, single):
        seen.clear()
        mcmc.run()
        assert len(seen) == 50
        assert len(set(seen[:20])) == 20 and len(set(seen[20:])) == 1
        assert mcmc.kernel.step_size == seen[-1]


@KERNELS
def test_training_the_guide_further_does_not_change_a_chain(kernel):
    guide = spoil(AutoFlow(SCENARIOS["modes"].source(), flow="coupling"))
    ready = kernel(guide=guide)
    state = _ready(ready)
    before = ready.proposal.log_prob(state.x)
    shake(guide.flow)
    assert not torch.equal(before, guide.flow().log_prob(state.x))
    assert torch.equal(before, ready.proposal.log_prob(state.x))


# ---- simulation-based calibration --------------------------------------------------------------

FLIPS, TOSSES = 4, 6


def _two_conjugates(y, heads):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    chance = pyro.sample("chance", dist.Beta(2.0, 1.0))
    with pyro.plate("data", FLIPS):
        pyro.sample("y", dist.Normal(mean, 1.5), obs=y)
    pyro.sample("heads", dist.Binomial(TOSSES, chance), obs=heads)


@pytest.mark.slow
def test_ranks_of_the_truth_are_uniform():
    """Talts et al. (2018, https://arxiv.org/abs/1804.06788): one flow, off the mark but wide."""
    num_sets, num_draws = 300, 19
    truths = {"mean": torch.randn(num_sets), "chance": dist.Beta(2.0, 1.0).sample((num_sets,))}
    guide = AutoFlow(_two_conjugates, flow=coupling(2, transforms=2, hidden_features=(16,)))
    ranks = {name: [] for name in truths}
    for mean, chance in zip(*truths.values()):
        y = mean + 1.5 * torch.randn(FLIPS)
        heads = dist.Binomial(TOSSES, chance).sample()
        if not guide.trained:
            guide.target_for(y, heads)
            off, wide = torch.tensor([1.5, -1.0]), torch.diag(torch.tensor([1.5, 2.0]))
            guide.flow.affine.initialize(off, wide)
            shake(guide.flow)
            guide.trained = True
        mcmc = VectorizedMCMC(IMH(guide=guide), 1, 200, num_draws, disable_progbar=True)
        mcmc.run(y, heads)
        draws = mcmc.get_samples()
        for name, truth in (("mean", mean), ("chance", chance)):
            ranks[name].append(int((draws[name] < truth).sum()))
    for name, found in ranks.items():
        counts = torch.bincount(torch.tensor(found), minlength=num_draws + 1).double()
        expected = num_sets / (num_draws + 1)
        statistic = float((counts - expected).square().sum() / expected)
        assert chi2.sf(statistic, num_draws) > 1e-4, name
