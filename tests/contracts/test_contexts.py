"""One flow serves a range of a model's arguments, and chains run at several of its values."""

import pickle
import warnings
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_flowsamp import (
    IMH,
    AutoAdvNF,
    AutoFlow,
    FitOptions,
    LatentHMC,
    LatentMALA,
    LocalGlobalHMC,
    Target,
    VectorizedMCMC,
    tempered_smc,
    to_arviz,
)
from pyro_flowsamp.flows.proposal import Proposal
from pyro_flowsamp.flows.recipes import coupling
from pyro_flowsamp.kernels.local_global import LocalGlobalInfo, LocalStepsOptions
from pyro_flowsamp.transitions import hamiltonian

OPTIONS = FitOptions(150, 128, 1e-2, stop_at_ess=1.0, progress=False)
SCALES = torch.tensor([0.5, 1.0, 2.0])


def scaled(scale, shift=0.0):
    """N(shift, scale²) in the plane."""
    loc = torch.as_tensor(shift) + torch.zeros(2)
    pyro.sample("x", dist.Normal(loc, torch.as_tensor(scale)).expand([2]).to_event(1))


@pytest.fixture(scope="module")
def guide():
    torch.manual_seed(0)
    made = AutoFlow(scaled, context=["scale"], flow="coupling", options=OPTIONS)
    made.fit(torch.linspace(0.4, 2.5, 32))
    return made


# ---- targets and proposals ----------------------------------------------------------------------


@pytest.mark.slow
def test_quality_is_told_for_each_context(guide):
    """At the second of two contexts the target is tilted away from the flow."""
    proposal = Proposal(guide.flow, SCALES[:2, None])

    def log_prob(x):
        second = torch.arange(len(x)) % 2
        return proposal.log_prob(x) + second * 3 * x[:, 0]

    found = proposal.diagnostics(log_prob)
    assert found.ess.shape == found.pareto_k.shape == (2,)
    assert found.ess[0] > 0.999 and found.ess[1] < 0.5
    assert found.pareto_k[0] < found.pareto_k[1] and found.log_q_error < 1e-2


def test_a_target_at_several_contexts():
    target = Target.from_model(scaled, torch.tensor(1.0)).conditional_on("scale")
    x = torch.randn(7, 2)
    rows = SCALES[torch.arange(7) % 3][:, None]
    assert_close(target.at_contexts(SCALES[:, None]).log_prob(x), target.log_prob(x, rows))
    assert target.contexts is None  # the original stays as it is
    before = target.evaluations
    target.at_contexts(SCALES[:, None]).log_prob(x)
    assert target.evaluations == before + 7  # counted together
    for rows in (SCALES, torch.ones(3, 2)):
        with pytest.raises(ValueError, match=r"expected \(K, c\).*c = 1"):
            target.at_contexts(rows)
    with pytest.raises(ValueError, match=r"expected \(K, c\)"):
        Target.from_model(scaled, 1.0).at_contexts(SCALES[:, None])


GROUPS = torch.tensor([0.0, 5.0, 10.0])


def chosen(k, shift=0.0):
    """N(one of GROUPS, 1), by its number."""
    x = pyro.sample("x", dist.Normal(0.0, 10.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=GROUPS[k] + shift)


def shown(mask):
    x = pyro.sample("x", dist.Normal(0.0, 10.0))
    with pyro.plate("data", 3), pyro.poutine.mask(mask=mask):
        pyro.sample("y", dist.Normal(x, 1.0), obs=GROUPS)


def vmap_can_index():
    """Whether torch indexes with a number that is batched: not before some version after 2.8."""
    try:
        return bool(torch.vmap(lambda k: GROUPS[k])(torch.arange(3)).equal(GROUPS))
    except RuntimeError:
        return False


@pytest.mark.parametrize("first", [0, torch.tensor(0)])
def test_a_number_of_a_group_as_context(first):
    """Integers stay such on their way through rows of floats: the model may index with them."""
    target = Target.from_model(chosen, first, shift=1.0).conditional_on("k", "shift")
    x, rows = torch.randn(3, 1), torch.tensor([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]])
    expected = [
        Target.from_model(chosen, k, s).log_prob(x[[k]]) for k, s in enumerate([1.0, 2.0, 3.0])
    ]
    assert target.batching == ("vmap" if vmap_can_index() else "loop")
    assert_close(target.log_prob(x, rows), torch.cat(expected))
    with pytest.raises(ValueError, match="'k': the target was made with torch.int64 values"):
        target.log_prob(x, rows + 0.5)


def test_a_mask_as_context():
    masks = torch.tensor([[True, False, True], [False, True, True]])
    target = Target.from_model(shown, masks[0]).conditional_on("mask")
    x = torch.randn(2, 1)
    expected = [Target.from_model(shown, m).log_prob(v[None]) for m, v in zip(masks, x)]
    assert_close(target.log_prob(x, masks.float()), torch.cat(expected))


def test_a_flow_for_every_group():
    torch.manual_seed(0)
    guide = AutoFlow(chosen, context=["k"], flow="coupling", options=OPTIONS)
    guide.fit(torch.arange(3))
    mcmc = VectorizedMCMC(IMH(guide=guide), num_samples=50, num_chains=300, disable_progbar=True)
    mcmc.run(torch.arange(3))
    means = mcmc.get_samples(group_by_chain=True)["x"].unflatten(0, (-1, 3)).mean((0, 2))
    assert_close(means, GROUPS / 1.01, rtol=0, atol=0.15)


def test_a_proposal_at_several_contexts():
    flow = coupling(2, 1)
    for parameter in flow.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    rows = torch.randn(3, 1)
    several, alone = Proposal(flow, rows), [Proposal(flow, row) for row in rows]
    x, log_q = several.sample_and_log_prob(12)
    z = several.sample_latent(12)
    for i, one in enumerate(alone):
        assert_close(one.log_prob(x[i::3]), log_q[i::3], atol=1e-4, rtol=1e-4)
        assert_close(several.log_prob(x)[i::3], one.log_prob(x[i::3]))
        assert_close(several.push(z)[0][i::3], one.push(z[i::3])[0])
        assert_close(several.pull(x)[i::3], one.pull(x[i::3]))
        assert_close(several.push_vector(z, x)[i::3], one.push_vector(z[i::3], x[i::3]))
        assert_close(several.base_log_prob(z)[i::3], one.base_log_prob(z[i::3]))


def test_ensembles_at_several_contexts():
    target = (
        Target.from_model(scaled, torch.tensor(1.0))
        .conditional_on("scale")
        .at_contexts(SCALES[:, None])
    )
    found = tempered_smc(target, 1000)
    x = found.x.view(3, 1000, 2)
    assert found.log_z.shape == (3,) and found.betas.shape[1] == 3
    assert_close(x.std(1).mean(-1), SCALES, atol=0.0, rtol=0.15)
    assert tempered_smc(Target.from_model(scaled, 1.0), 10).log_z.shape == (1,)
    with pytest.raises(ValueError, match="num_particles must be at least 2"):
        tempered_smc(target, 1)
    bad = Target.from_model(scaled, torch.tensor(1.0)).conditional_on("scale")
    with pytest.raises(ValueError, match=r"at the contexts \[\[nan\]\]"):
        tempered_smc(bad.at_contexts(torch.tensor([[1.0], [torch.nan]])), 50)


def two_modes(share):
    """At 4 and -4, of unequal mass; particles weigh them, moves alone would not."""
    weights = torch.stack([torch.as_tensor(share), 1 - torch.as_tensor(share)], -1)
    parts = dist.Normal(torch.tensor([4.0, -4.0]), torch.tensor([1.0, 0.5]))
    flat = dist.Normal(torch.zeros(()), 1.0).mask(False)
    x = pyro.sample("x", flat)
    mixture = dist.MixtureSameFamily(dist.Categorical(weights), parts)
    pyro.factor("two", mixture.log_prob(x))


@pytest.mark.slow
def test_each_context_has_particles_of_its_own():
    shares = torch.tensor([0.15, 0.5, 0.85])
    target = (
        Target.from_model(two_modes, torch.tensor(0.5))
        .conditional_on("share")
        .at_contexts(shares[:, None])
    )
    runs = [tempered_smc(target, 2000).x.view(3, 2000, 1) > 0 for _ in range(5)]
    found = torch.stack([x.double().mean((1, 2)) for x in runs])
    assert_close(found.mean(0), shares.double(), atol=0.03, rtol=0.0)


# ---- kernels ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel",
    [
        IMH,
        LatentMALA,
        LatentHMC,
        partial(LatentHMC, trajectory="adapted"),
        partial(LocalGlobalHMC, num_proposals=3, search=LocalStepsOptions(2, 4)),
    ],
)
def test_every_chain_keeps_its_context(guide, kernel):
    """A chain that took another's proposal, or density, would have another's variance."""
    mcmc = VectorizedMCMC(kernel(guide=guide), 60, 60, 300, disable_progbar=True)
    mcmc.run(SCALES)
    x = mcmc.get_samples(group_by_chain=True)["x"].double()
    square = x.square().mean((1, 2)).unflatten(0, (-1, 3))  # of each chain
    z = (square.mean(0) - SCALES.square()) / (square.std(0) / len(square) ** 0.5)
    assert z.abs().max() < 4
    assert 0 < mcmc.kernel.proposal_diagnostics()["importance ess"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [IMH, partial(LocalGlobalHMC, local_steps=1, num_steps=1)])
def test_jumps_of_a_bad_flow(guide, kernel):
    """A proposal weighed at another's context, or for another chain, would show."""
    flow = coupling(2, 1)
    for parameter in flow.parameters():
        parameter.data += 0.15 * torch.randn_like(parameter)
    bad = AutoFlow(scaled, context=["scale"], flow=flow, options=OPTIONS)
    bad.target_for(torch.tensor(1.0))
    bad.context_arguments, bad.trained = guide.context_arguments, True
    starts = (SCALES[torch.arange(3000) % 3][:, None] * torch.randn(3000, 2)).float()
    mcmc = VectorizedMCMC(
        kernel(guide=bad), 40, 5, 3000, initial_params={"x": starts}, disable_progbar=True
    )
    mcmc.run(SCALES)
    square = mcmc.unconstrained.double().square().mean((1, 2)).unflatten(0, (-1, 3))
    z = (square.mean(0) - SCALES.square()) / (square.std(0) / len(square) ** 0.5)
    assert z.abs().max() < 4


def test_local_steps_do_not_mind_how_far_contexts_lie_apart(guide):
    """What is between contexts is not for a chain to explore."""
    kernel = LocalGlobalHMC(guide=guide, num_steps=2)
    VectorizedMCMC(kernel, 1, 1, 30, disable_progbar=True).run(SCALES)
    nothing = torch.zeros(3000, dtype=torch.double)
    local = hamiltonian.HMCInfo(nothing.bool(), nothing + 0.8, nothing.bool(), nothing.bool())
    steps = []
    for apart in (0.0, 100.0):
        kernel.reset()
        for _ in range(20):
            x = torch.randn(3000, 2) + apart * (torch.arange(3000) % 3)[:, None]
            squared = torch.full((3000, 2), 1.0)  # of unit variances: half the correlation is left
            kernel.adapt(
                LocalGlobalInfo(nothing.bool(), nothing, nothing.bool(), local, x, squared)
            )
        kernel.freeze()
        steps.append(kernel.local_steps)
    assert steps[0] == steps[1] < 16


def test_arviz_has_the_context_as_a_dimension(guide):
    mcmc = VectorizedMCMC(IMH(guide=guide), 20, 5, 12, disable_progbar=True)
    mcmc.run(SCALES)
    data = to_arviz(mcmc, dims={"x": ["axis"]})
    assert data["posterior"]["x"].dims == ("chain", "draw", "scale", "axis")
    np.testing.assert_array_equal(data["posterior"]["scale"], SCALES)
    assert data["sample_stats"]["accepted"].shape == (4, 20, 3)
    x = mcmc.get_samples(group_by_chain=True)["x"]
    np.testing.assert_array_equal(data["posterior"]["x"][1, :, 2], x[5])  # chain 1 of context 2
    alone = to_arviz(guide, SCALES, num_samples=7)
    assert alone["posterior"]["x"].shape == (1, 7, 3, 2)
    lp = alone["sample_stats"]["lp"].values[0, :, 2]
    draws = torch.tensor(alone["posterior"]["x"].values[0, :, 2])
    expected = dist.Normal(0.0, 2.0).log_prob(draws).sum(-1)
    np.testing.assert_allclose(lp, expected, rtol=1e-5)


def test_one_value_with_a_leading_dimension(guide):
    mcmc = VectorizedMCMC(IMH(guide=guide), 10, 5, 8, disable_progbar=True)
    mcmc.run(SCALES[:1])
    assert mcmc.get_samples()["x"].shape == (80, 2)
    assert_close(guide.median(SCALES[:1])["x"], torch.zeros(2), atol=0.2, rtol=0.0)


def test_a_second_training_widens_the_range():
    made = AutoFlow(
        scaled, context=["scale"], flow="coupling", options=FitOptions(2, progress=False)
    )
    made.fit(torch.tensor([0.5, 1.0]))
    made.fit(torch.tensor([2.0, 3.0]))
    learned = made.context_arguments.range
    assert_close(torch.cat([learned.low, learned.high]), torch.tensor([0.5, 3.0]))


@pytest.mark.slow
def test_vector_contexts_are_numbered():
    made = AutoFlow(scaled, context=["scale", "shift"], flow="coupling", options=OPTIONS)
    made.fit(torch.rand(16) + 0.5, shift=torch.randn(16, 2))
    mcmc = VectorizedMCMC(IMH(guide=made), 10, 5, 8, disable_progbar=True)
    mcmc.run(torch.ones(4), shift=torch.zeros(2))  # one value of the second for all of the first
    data = to_arviz(mcmc)
    assert data["posterior"]["x"].dims[:3] == ("chain", "draw", "context")
    assert data["posterior"]["x"].shape == (2, 10, 4, 2)
    assert_close(
        torch.tensor(data["constant_data"]["context_values"].values),
        torch.tensor([[1.0, 0.0, 0.0]] * 4).double(),
    )


# ---- state --------------------------------------------------------------------------------------


def test_a_loaded_guide_knows_its_contexts(guide, tmp_path):
    torch.save(guide.state_dict(), tmp_path / "guide.pt")
    fresh = AutoFlow(scaled, context=["scale"], flow="coupling")
    fresh.load_state_dict(torch.load(tmp_path / "guide.pt", weights_only=True))
    mcmc = VectorizedMCMC(IMH(scaled, guide=fresh), 10, 5, 6, disable_progbar=True)
    mcmc.run(SCALES)
    with pytest.warns(UserWarning, match=r"leaves the range that the flow was trained on, \[0.4"):
        fresh.proposal(torch.tensor(7.0))


# ---- bad input ----------------------------------------------------------------------------------


def test_contexts_outside_are_warned_of_once():
    made = AutoFlow(scaled, context=["scale"], flow="coupling", options=OPTIONS)
    made.options = FitOptions(3, progress=False)
    made.fit(torch.linspace(0.5, 2.0, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.proposal(torch.tensor(0.5))
        made.target_for(torch.tensor([0.5, 2.0]))
    with pytest.warns(UserWarning, match=r"\(scale\) = \[3.0\] to \[3.0\] leaves the range"):
        made.target_for(torch.tensor(3.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.target_for(torch.tensor(3.0))


@pytest.mark.parametrize("make", [AutoFlow, AutoAdvNF])
def test_bad_contexts(make):
    made = make(scaled, context=["scale"], flow="coupling", options=FitOptions(3, progress=False))
    with pytest.raises(ValueError, match=r"amortised over \['scale'\] must be trained before"):
        VectorizedMCMC(IMH(guide=made), 5, 5, 9, disable_progbar=True).run(SCALES)
    with pytest.raises(ValueError, match=r"no value for \['scale'\]"):
        made.fit(shift=torch.zeros(2))
    with pytest.raises(ValueError, match="along a leading dimension.*'scale': None"):
        made.fit(torch.tensor(1.0))
    with pytest.raises(ValueError, match="context's values are not finite"):
        made.fit(torch.tensor([1.0, float("nan")]))
    with pytest.raises(ValueError, match="context 'scale' is no number or tensor: 'hot'"):
        made.fit("hot")
    made.fit(SCALES)
    with pytest.raises(ValueError, match=r"no value for \['scale'\]"):
        made.proposal()
    with pytest.raises(ValueError, match=r"'scale': the guide was trained on values of shape \(\)"):
        made.proposal(torch.ones(2, 2))
    with pytest.raises(ValueError, match="one context at a time, got 3"):
        made.median(SCALES)
    with pytest.raises(ValueError, match="10 chains cannot be shared out evenly among 3 contexts"):
        VectorizedMCMC(IMH(guide=made), 5, 5, 10, disable_progbar=True).run(SCALES)
    two = AutoFlow(scaled, context=["scale", "shift"], flow="coupling")
    with pytest.raises(ValueError, match="their lengths are {'scale': 3, 'shift': 4}"):
        two.fit(SCALES, shift=torch.zeros(4, 2))


def warmed(temperature, *, offset=0.0, **more):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    scale = more.get("scale", 1.0) * temperature
    pyro.sample("y", dist.Normal(x, scale), obs=torch.tensor(2.0) + offset)


def test_arguments_in_keywords_stay():
    """Those that ``**more`` takes, and defaults."""
    t, scale = torch.tensor(1.0), 0.1
    plain = Target.from_model(warmed, t, scale=scale)
    x = torch.randn(6, 1)
    assert_close(plain.conditional_on("temperature").log_prob(x), plain.log_prob(x))
    row = torch.full((6, 1), 0.5)
    moved = Target.from_model(warmed, t, offset=row[0, 0], scale=scale)
    assert_close(plain.conditional_on("offset").log_prob(x, row), moved.log_prob(x))


def test_positional_arguments_have_no_names():
    def model(*data):
        pyro.sample("x", dist.Normal(data[0], 1.0))

    with pytest.raises(ValueError, match="'data' is positional only"):
        Target.from_model(model, torch.zeros(())).conditional_on("data")


@pytest.mark.parametrize("flow", ["coupling", "spline"])
def test_one_dimension(flow):
    """A flow of one coordinate has nothing to couple, but a context to follow."""

    def model(t):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, t), obs=torch.tensor(2.0))

    t = torch.tensor([0.2, 1.0, 5.0])
    guide = AutoFlow(
        model, flow=flow, context=["t"], options=FitOptions(max_steps=400, progress=False)
    )
    guide.fit(t=t)
    x, _ = guide.proposal(t=t).sample_and_log_prob(30_000)
    precision = 1 + t**-2
    mean, sd = x.unflatten(0, (-1, 3)).mean(0)[:, 0], x.unflatten(0, (-1, 3)).std(0)[:, 0]
    assert ((mean - 2 * t**-2 / precision) * precision.sqrt()).abs().max() < 0.1
    assert (sd * precision.sqrt() - 1).abs().max() < 0.1


def test_a_gaussian_follows_no_context():
    guide = AutoFlow(warmed, flow="gaussian", context=["temperature"])
    with pytest.raises(ValueError, match="'gaussian' flow takes no context"):
        guide.fit(temperature=torch.tensor([0.5, 1.0]))


@pytest.mark.parametrize("context, words", [("t", r"list of names: \['t'\]"), (["u"], r"\['t'\]")])
def test_bad_names(context, words):
    with pytest.raises(ValueError, match=words):
        AutoFlow(lambda t: None, context=context)


def test_contexts_keep_their_precision():
    def model(t):
        pyro.sample("x", dist.Normal(t.new_zeros(()), t))

    t = torch.tensor([0.1, 0.7], dtype=torch.double)
    guide = AutoFlow(model, context=["t"], options=FitOptions(2, progress=False))
    guide.fit(t=t)
    assert guide.target_for(t=t).contexts[:, 0].equal(t)


def test_a_run_keeps_its_contexts(guide):
    """Whatever its kernel has done since."""
    kernel = IMH(guide=guide)
    first, later = (VectorizedMCMC(kernel, 5, 5, 6, disable_progbar=True) for _ in range(2))
    first.run(SCALES)
    later.run(SCALES[:2])
    assert to_arviz(first).posterior.sizes["chain"] == 2


def test_a_pickled_run_knows_its_contexts(guide):
    run = VectorizedMCMC(IMH(scaled, guide=guide), 5, 5, 6, disable_progbar=True)
    run.run(SCALES)
    again = pickle.loads(pickle.dumps(run))
    assert to_arviz(again).posterior.sizes == to_arviz(run).posterior.sizes
