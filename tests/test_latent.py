"""Latent HMC, MALA and HMC with jumps: exact in both metrics, for both targets; the integrator."""

from functools import partial

import pyro
import pytest
import torch
import zuko
from scenarios import _MEAN as GAUSSIAN_MEAN
from scenarios import _ROOT as GAUSSIAN_ROOT
from scenarios import SCENARIOS, THRESHOLD, Scenario, assert_exact, spoil, starts, z_scores
from torch.testing import assert_close

from pyro_flowsamp import AutoFlow, JumpHMC, LatentHMC, LatentMALA, Target, VectorizedMCMC
from pyro_flowsamp.flows import spline
from pyro_flowsamp.proposal import Proposal
from pyro_flowsamp.transitions import imh, langevin, latent

# name → (kernel, chains, warm-up steps, draws)
KERNELS = {
    "MALA in the Jacobian metric": (partial(LatentMALA, metric="jacobian"), 500, 300, 10),
    "MALA and jumps": (partial(LatentMALA, global_prob=0.3), 1000, 200, 10),
    "HMC": (LatentHMC, 1000, 100, 10),
    "HMC in the Jacobian metric": (
        partial(LatentHMC, metric="jacobian", num_steps=2, global_prob=0.1),
        500,
        200,
        10,
    ),
    "jumps": (partial(JumpHMC, num_steps=1, metric="jacobian"), 500, 100, 10),
    "jumps, one proposal": (
        partial(JumpHMC, num_steps=1, num_proposals=1, local_steps=3),
        500,
        100,
        10,
    ),
}
CASES = ["funnel", "modes", "half space", "conjugate", "cylinder"]


def _guide(name, size=0.1):
    scenario = SCENARIOS[name]
    return spoil(AutoFlow(scenario.source(), flow=scenario.flow()), scenario, size)


def _run(kernel, budget, initial_params=None):
    num_chains, warmup_steps, num_samples = budget
    mcmc = VectorizedMCMC(
        kernel,
        num_samples,
        warmup_steps,
        num_chains,
        initial_params=initial_params,
        disable_progbar=True,
    )
    mcmc.run()
    return mcmc.get_samples(group_by_chain=True)


def _draws(name, kernel):
    pyro.set_rng_seed(0)
    make, *budget = KERNELS[kernel]
    guide = _guide(name)
    return _run(make(guide=guide), budget, starts(guide.bind(), SCENARIOS[name], budget[0]))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", CASES)
def test_draws_are_exact_however_bad_the_flow(name, kernel):
    assert_exact(_draws(name, kernel), SCENARIOS[name])


# ---- mistakes, each made on purpose -------------------------------------------------------------


def _departure(kernel):
    """How far chains that start at exact draws come to be from the truth, through a worse flow."""
    pyro.set_rng_seed(0)
    start = GAUSSIAN_MEAN + torch.randn(4000, 5) @ GAUSSIAN_ROOT.mT
    make = KERNELS[kernel][0]
    draws = _run(make(guide=_guide("gaussian", size=0.2)), (4000, 80, 40), {"x": start})
    return max(map(abs, z_scores(draws, SCENARIOS["gaussian"]).values()))


def _keep(*fields):
    """Forgets to refresh some fields of the state after a local move."""

    def mistake(patch):
        step = latent.step

        def stale(state, *args):
            new, info = step(state, *args)
            return new._replace(**{name: getattr(state, name) for name in fields}), info

        patch.setattr(latent, "step", stale)

    return mistake


def _no_volume(patch):
    frame = LatentHMC._frame.fget

    def without(self):
        return frame(self)._replace(log_det=latent.IDENTITY.log_det)

    patch.setattr(LatentHMC, "_frame", property(without))


def _no_reverse_step(patch):
    trajectory = latent.trajectory

    def still(*args):
        end, _, finite = trajectory(*args)
        return end, args[-1], finite

    patch.setattr(latent, "trajectory", still)


def _swap(state):
    return state._replace(log_p=state.log_q, log_q=state.log_p)


def _upside_down(patch):
    """The ratio of global moves, for those mixed in and for those in turn."""
    step, choose = latent.step, imh.choose

    def flipped(state, density, *args):
        new, info = step(_swap(state), lambda z: _swap(density(z)), *args)
        return _swap(new), info

    patch.setattr(latent, "step", flipped)
    patch.setattr(imh, "choose", lambda w, proposals, *args: choose(-w, -proposals, *args))


MISTAKES = {
    "log q not refreshed": (_keep("log_q"), ["jumps, one proposal"]),
    "log p and log q not refreshed": (_keep("log_p", "log_q"), ["jumps, one proposal"]),
    "no volume of the Jacobian metric": (
        _no_volume,
        ["MALA in the Jacobian metric", "HMC in the Jacobian metric"],
    ),
    "no reverse step": (
        _no_reverse_step,
        ["MALA in the Jacobian metric", "HMC", "HMC in the Jacobian metric"],
    ),
    "jumps upside down": (_upside_down, ["MALA and jumps", "jumps"]),
}


@pytest.mark.parametrize(
    ("mistake", "kernel"),
    [(name, kernel) for name, (_, kernels) in MISTAKES.items() for kernel in kernels],
)
def test_the_check_sees_mistakes(mistake, kernel, monkeypatch):
    MISTAKES[mistake][0](monkeypatch)
    assert _departure(kernel) > 1.5 * THRESHOLD


@pytest.mark.parametrize("kernel", KERNELS)
def test_and_sees_none_where_there_is_none(kernel):
    assert _departure(kernel) < THRESHOLD


# ---- the tempered target ------------------------------------------------------------------------


def _shaken(flow, size=0.3):
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += size * torch.randn_like(parameter)
    return flow


FOREIGN = {
    "NSF in 1-D": lambda: _shaken(zuko.flows.NSF(1)),
    "MAF in 2-D": lambda: _shaken(zuko.flows.MAF(2, transforms=2, hidden_features=(16,)), 0.2),
    "NICE in 2-D": lambda: _shaken(zuko.flows.NICE(2, transforms=2, hidden_features=(16,)), 0.2),
    "splines in 2-D": lambda: _shaken(
        zuko.flows.NICE(
            2,
            univariate=zuko.transforms.MonotonicRQSTransform,
            shapes=[(8,), (8,), (7,)],
            transforms=2,
            hidden_features=(16,),
        ),
        0.2,
    ),
}
TEMPERED = {
    "MALA": (partial(LatentMALA, global_prob=0.2), 1000, 200, 10),
    "MALA in the Jacobian metric": (
        partial(LatentMALA, metric="jacobian", global_prob=0.3),
        1000,
        100,
        10,
    ),
    "HMC": (LatentHMC, 1000, 80, 10),
    "jumps": (partial(JumpHMC, num_steps=1, num_proposals=4), 1000, 40, 10),
}
MOMENTS = {
    "x": lambda x: x[..., 0],
    "x squared": lambda x: x[..., 0].square(),
    "y squared": lambda x: x[..., -1].square(),
    "xy": lambda x: x[..., 0] * x[..., -1],
    "tanh": lambda x: x[..., 0].tanh(),
}


@torch.no_grad()
def _averages(flow, tempered):
    """By quadrature over z of q_X(f(z)), or of q_Z."""
    dim = flow(None).event_shape[0]
    num = 20001 if dim == 1 else 601
    axes = [torch.linspace(-6, 6, num)] * dim
    z = torch.cartesian_prod(*axes).reshape(-1, dim)
    x = flow(None).transform.inv(z)
    log_density = flow(None).log_prob(x) if tempered else flow(None).base.log_prob(z)
    weights = log_density.double().softmax(0)
    return {name: float((weights * f(x)).sum()) for name, f in MOMENTS.items()}


def _as_scenario(truth):
    moments = {name: (lambda d, f=f: f(d["x"]), truth[name]) for name, f in MOMENTS.items()}
    return Scenario(None, None, [], [], moments)


@pytest.mark.parametrize("kernel", TEMPERED)
@pytest.mark.parametrize("name", FOREIGN)
def test_tempered_draws_are_those_of_quadrature(name, kernel):
    flow = FOREIGN[name]()
    make, *budget = TEMPERED[kernel]
    draws = _run(make(flow=flow, target="tempered"), budget)
    assert_exact(draws, _as_scenario(_averages(flow, tempered=True)))
    untempered = z_scores(draws, _as_scenario(_averages(flow, tempered=False)))
    assert max(map(abs, untempered.values())) > 2 * THRESHOLD


# ---- what a state carries -----------------------------------------------------------------------


def _check_caches(kernel, state):
    close = {"rtol": 1e-6, "atol": 1e-6}
    again = kernel.density(state.z)
    for name, cached in state._asdict().items():
        assert_close(cached, getattr(again, name), **close, msg=name)
    assert_close(state.log_p, kernel.target.log_prob(state.x), **close)
    assert_close(state.log_q, kernel.proposal.log_prob(state.x), **close)
    assert_close(kernel.proposal.push(state.z)[0], state.x, **close)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["funnel", "half space", "tempered"])
def test_the_state_is_never_stale(name, kernel):
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(1)
    if name == "tempered":
        ready = KERNELS[kernel][0](flow=FOREIGN["NICE in 2-D"](), target="tempered", step_size=0.3)
    else:
        ready = KERNELS[kernel][0](guide=_guide(name), step_size=0.3)
    ready.setup(0)
    ready.prepare(0)
    first = state = ready.start(64)
    for _ in range(20):
        state, info = ready.step(state)
    assert 0 < info.accepted.double().mean()
    assert (state.x != first.x).any(-1).double().mean() > 0.8
    _check_caches(ready, state)


@pytest.mark.parametrize(
    ("make", "gradients", "densities"),
    [
        (LatentMALA, 1, 0),
        (partial(LatentMALA, metric="jacobian", global_prob=0.5), 1, 0),
        (partial(LatentHMC, num_steps=3), 3, 0),
        (partial(JumpHMC, num_steps=2, local_steps=3, num_proposals=5), 2 * 3 + 1, 5),
    ],
)
def test_nothing_is_evaluated_twice(make, gradients, densities):
    kernel = make(guide=_guide("gaussian"))
    kernel.setup(0)
    kernel.prepare(0)
    state = kernel.start(10)
    before = kernel.target.evaluations
    kernel.step(state)
    assert kernel.target.evaluations - before == 10 * (gradients + densities)


# ---- the integrator -----------------------------------------------------------------------------


def _pulled(num=16):
    """A kernel in the Jacobian metric on a curved flow, states, momenta; in float64."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(3)
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1) + 0.1 * x.pow(4).sum(-1), 2)
    flow = _shaken(spline(2, transforms=2, hidden_features=(16,)), 0.1)
    guide = AutoFlow(target, flow=flow)
    guide.bind()
    guide.trained = True
    kernel = LatentHMC(guide=guide, metric="jacobian")
    kernel.setup(0)
    kernel.prepare(0)
    return kernel, kernel.start(num), torch.randn(num, 2)


def test_one_step_is_mala():
    kernel, state, noise = _pulled()
    kernel.metric = "identity"
    state = kernel.density(state.z)
    step_size, log_u = torch.tensor(0.8), torch.rand(16).log()
    ours, info = latent.step(state, kernel.density, latent.IDENTITY, step_size, 1, noise, log_u)
    theirs, other = langevin.mala(state, kernel.density, step_size, noise, log_u)
    assert_close(tuple(ours), tuple(theirs))
    assert_close(info.accept_prob, other.accept_prob)


def test_the_jacobian_metric_in_the_letters_of_the_paper():
    kernel, state, noise = _pulled()
    step_size = torch.tensor(0.3)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda z: kernel.proposal.push(z)[0]))

    def drift(s):
        return step_size * latent.kick(s.grad, step_size)

    def log_g(to, s):
        """A normal density around μ(z), by Jacobians in full."""
        J = jacobians(s.z)
        off = (J @ (to.z - s.z)[..., None])[..., 0] - drift(s)
        return -off.square().sum(-1) / (2 * step_size**2) + torch.linalg.slogdet(J).logabsdet

    move = torch.linalg.solve(jacobians(state.z), drift(state) + step_size * noise)
    end = kernel.density(state.z + move)
    log_alpha = end.log_pi - state.log_pi + log_g(state, end) - log_g(end, state)
    log_u = torch.full((16,), -torch.inf)  # accepts whatever is possible
    ours, info = latent.step(state, kernel.density, kernel._frame, step_size, 1, noise, log_u)
    assert_close(ours.z, end.z)
    assert_close(info.accept_prob, log_alpha.clamp(max=0).exp())


@pytest.mark.parametrize("num_steps", [1, 3])
def test_trajectories_are_reversible_and_of_known_volume(num_steps):
    kernel, state, momentum = _pulled()
    step_size = torch.tensor(0.2)

    def flow(pair):
        z, r = pair.chunk(2, -1)
        return latent.trajectory(
            kernel.density(z), kernel.density, kernel._frame, step_size, num_steps, r
        )

    end, last, finite = flow(torch.cat([state.z, momentum], -1))
    assert finite.all()
    back, first, _ = flow(torch.cat([end.z, -last], -1))
    assert_close(back.z, state.z, rtol=0, atol=1e-9)
    assert_close(first, -momentum, rtol=0, atol=1e-8)

    pair, h = torch.cat([state.z, momentum], -1), 1e-5

    def image(pair):
        end, last, _ = flow(pair)
        return torch.cat([end.z, last], -1)

    columns = [(image(pair + h * e) - image(pair - h * e)) / (2 * h) for e in torch.eye(4)]
    found = torch.linalg.slogdet(torch.stack(columns, -1)).logabsdet
    expected = kernel._frame.log_det(end) - kernel._frame.log_det(state)
    assert expected.abs().max() > 0.1
    assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_products_with_the_jacobian():
    kernel, state, v = _pulled()
    proposal = kernel.proposal
    J = torch.func.vmap(torch.func.jacrev(lambda z: proposal.push(z)[0]))(state.z)
    assert_close(proposal.push_vector(state.z, v), (J @ v[..., None])[..., 0])
    assert_close(proposal.pull_vector(state.x, v), torch.linalg.solve(J, v))


# ---- jumps --------------------------------------------------------------------------------------


def test_one_proposal_is_metropolis_hastings():
    log_w, proposals, log_u = torch.randn(50), torch.randn(50, 1), torch.rand(50).log()
    index, accepted, accept_prob = imh.choose(log_w, proposals, torch.zeros(50, 1), log_u)
    assert (index == 0).all()
    assert_close(accept_prob, (proposals[:, 0] - log_w).clamp(max=0).exp())
    assert torch.equal(accepted, log_u < proposals[:, 0] - log_w)


def test_a_choice_is_balanced_and_moves_more_than_i_sir():
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.double)
    num = 400_000
    flow = torch.zeros(4, 4, dtype=torch.double)
    for i in range(4):
        others = [j for j in range(4) if j != i]
        proposals = weights[others].log().expand(num, 3)
        gumbel = -(-torch.rand(num, 3, dtype=torch.double).log()).log()
        log_u = torch.rand(num, dtype=torch.double).log()
        index, accepted, _ = imh.choose(weights[i].log().expand(num), proposals, gumbel, log_u)
        for k, j in enumerate(others):
            flow[i, j] = (accepted & (index == k)).double().mean() * weights[i]
            assert flow[i, j] > weights[i] * weights[j] / weights.sum() - 0.01
    assert_close(flow, flow.mT, rtol=0, atol=0.015)


def test_proposals_of_no_density_are_never_taken():
    proposals = torch.tensor([[-torch.inf, torch.nan], [torch.nan, 1.0]])
    index, accepted, accept_prob = imh.choose(
        torch.zeros(2), proposals, torch.zeros(2, 2), torch.full((2,), -1e30)
    )
    assert accepted.tolist() == [False, True] and index[1] == 1
    assert accept_prob.tolist() == [0.0, 1.0]


def _tuned(guide, **options):
    kernel = JumpHMC(guide=guide, num_steps=2, **options)
    mcmc = VectorizedMCMC(kernel, 1, 60, 200, disable_progbar=True)
    mcmc.run()
    return kernel


def test_local_steps_follow_what_they_earn():
    target = SCENARIOS["gaussian"].source()
    good = AutoFlow(target)
    good.fit()
    bad = _guide("gaussian")
    bad.flow.affine.loc += 20.0
    assert _tuned(good).local_steps == 1  # jumps alone give independent draws
    assert _tuned(bad).local_steps > 1  # jumps are never accepted
    assert _tuned(bad, local_steps=3).local_steps == 3


def test_local_steps_are_frozen_after_warmup(monkeypatch):
    seen, step = [], JumpHMC.step

    def watched(self, state):
        seen.append((self.local_steps, float(self.step_size)))
        return step(self, state)

    monkeypatch.setattr(JumpHMC, "step", watched)
    kernel = JumpHMC(guide=_guide("funnel"), num_steps=1)
    VectorizedMCMC(kernel, 10, 20, 50, disable_progbar=True).run()
    assert len({size for _, size in seen[:20]}) == 20
    assert len(set(seen[20:])) == 1 and 1 <= seen[-1][0] <= 32


def test_steps_are_jittered_in_hmc_only(monkeypatch):
    sizes, step = [], latent.step

    def watched(state, density, frame, step_size, *args):
        sizes.append(step_size)
        return step(state, density, frame, step_size, *args)

    monkeypatch.setattr(latent, "step", watched)
    for kernel, jittered in ((LatentHMC, True), (LatentMALA, False)):
        ready = kernel(guide=_guide("funnel"), step_size=0.5)
        ready.setup(0)
        ready.prepare(0)
        ready.step(ready.start(50))
        ratio = sizes[-1] / 0.5
        assert (ratio.numel() == 50) is jittered
        assert ratio.min() >= 0.8 and ratio.max() <= 1.2 and bool(ratio.max() > 1) is jittered


def test_proposals_of_a_pretrained_flow_are_a_frozen_copy():
    flow = FOREIGN["MAF in 2-D"]()
    kernel = LatentMALA(flow=flow, target="tempered")
    kernel.setup(0)
    kernel.prepare(0)
    state = kernel.start(8)
    _shaken(flow)
    assert_close(kernel.density(state.z).log_pi, state.log_pi)
    assert not torch.equal(Proposal(flow).log_prob(state.x), kernel.proposal.log_prob(state.x))
