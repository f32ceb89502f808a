"""Proposals at which a flow cannot be inverted are refused, and draws stay exact."""

from math import erfc, exp, pi, sqrt

import pytest
import torch
from support.mutations import broken, must_fail, mutation

from pyro_flowsamp import IMH, LocalGlobalHMC, Target, VectorizedMCMC
from pyro_flowsamp.flows.proposal import Proposal
from pyro_flowsamp.kernels import inversion
from pyro_flowsamp.kernels.inversion import InversionOptions, inverted, leads_back
from pyro_flowsamp.sampling.candidates import gaussian_guide

FOLD = 1.2  #: where the flow turns back, in its first coordinate
BEYOND = 0.5 * erfc(
    FOLD / sqrt(2)
)  #: the probability of all that lies beyond, of a standard normal
OPTIONS = InversionOptions()
#: next to the fold two points lead to the same x, and lie within any distance of each other
TIGHT = InversionOptions(max_distance=1e-3, relative=1e-4, every=2)


@mutation(Proposal, "push")
def folded(push, self, z):
    """A flow that turns back at the fold, and once more: three z lead to the same x."""
    first = z[:, :1]
    turned = torch.where(first > FOLD + 1, first - 2, 2 * FOLD - first)
    return push(self, torch.cat([torch.where(first > FOLD, turned, first), z[:, 1:]], -1))


@mutation(inversion, "leads_back")
def never_asked(leads_back, proposal, z, x, log_q, options):
    return torch.ones_like(log_q, dtype=torch.bool)


def standard():
    return Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)


def run(kind, starts, num=8, **options):
    """Return a run of a kernel whose flow is the target itself, but for its fold."""
    target = standard()
    kernel = kind(guide=gaussian_guide(target, torch.zeros(2), torch.eye(2)), **options)
    kernel.still_chains = kernel.still_chains.__class__(max_expected=0.0)
    made = VectorizedMCMC(
        kernel, num, 5, len(starts), initial_params={"x": starts}, disable_progbar=True
    )
    made.min_acceptance = 0.0
    made.run()
    return made


def largest(x, means):
    """Return the largest z-score of functions of draws ``(chains, 2)`` of a known mean."""
    x = x.double()
    values = torch.stack([x[:, 0], x[:, 0].square(), (x[:, 0] > FOLD).double(), x[:, 1]], -1)
    error = values.std(0).clamp(min=1e-12) / len(x) ** 0.5
    return float(((values.mean(0) - torch.tensor(means).double()) / error).abs().max())


def below_the_fold(count):
    x = torch.randn(3 * count, 2)
    return x[x[:, 0] < FOLD][:count]


def truncated():
    """Return the means for a standard normal below the fold."""
    height = exp(-0.5 * FOLD**2) / sqrt(2 * pi) / (1 - BEYOND)
    return [-height, 1 - FOLD * height, 0.0, 0.0]


def jumps():
    """Return the score of independence sampling, from exact draws below the fold."""
    torch.manual_seed(0)
    with broken(folded):
        made = run(IMH, below_the_fold(4000), inversion=TIGHT)
    return largest(made.unconstrained[:, -1], truncated())


def cycles():
    """Return the score of cycles of all moves, from exact draws of the whole target."""
    torch.manual_seed(0)
    with broken(folded):
        made = run(LocalGlobalHMC, torch.randn(5000, 2), 24, inversion=TIGHT)
    return largest(made.unconstrained[:, -1], [0.0, 1.0, BEYOND, 0.0])


def test_jumps_are_exact_where_the_flow_can_be_inverted():
    assert jumps() < 4


def test_cycles_are_exact_everywhere():
    assert cycles() < 4


@pytest.mark.parametrize("score", [jumps, cycles])
def test_the_rule_is_needed(score):
    must_fail(never_asked, score=score, above=8)


@mutation(LocalGlobalHMC, "_move_in_x")
def by_chains_outside_alone(_move_in_x, self, state, inversion):
    """Chains that are outside come in, and none goes out."""
    moved = _move_in_x(self, state, inversion)
    outside = torch.isinf(state.log_q)
    return type(state)(
        *(
            torch.where(outside.reshape(-1, *[1] * (a.dim() - 1)), a, b)
            for a, b in zip(moved, state)
        )
    )


def test_every_chain_must_move_in_x():
    must_fail(by_chains_outside_alone, score=cycles, above=8)


def test_chains_reach_what_the_flow_cannot():
    """They begin on one side of the fold, and have the right share on the other in the end."""
    torch.manual_seed(0)
    with broken(folded):
        made = run(LocalGlobalHMC, torch.zeros(1000, 2), 60, inversion=TIGHT)
    assert largest(made.unconstrained[:, -1], [0.0, 1.0, BEYOND, 0.0]) < 4
    assert not bool(made.statistics["diverging"].any())


def test_a_chain_of_jumps_that_begins_beyond_stays_and_is_reported():
    target, starts = standard(), torch.tensor([[2.0, 0.5], [0.0, 0.0]])
    kernel = IMH(guide=gaussian_guide(target, torch.zeros(2), torch.eye(2)))
    made = VectorizedMCMC(kernel, 200, 5, 2, initial_params={"x": starts}, disable_progbar=True)
    with broken(folded), pytest.warns(UserWarning, match=r"chains \[0\] accepted no proposal"):
        made.run()
    assert bool((made.unconstrained[0] == starts[0]).all())
    assert float(made.statistics["accepted"][1].double().mean()) > 0.5


def test_starts_are_drawn_where_the_flow_can_be_inverted():
    target = standard()
    kernel = IMH(guide=gaussian_guide(target, torch.zeros(2), torch.eye(2)))
    with broken(folded):
        kernel.setup(0)
        kernel.prepare(0, progress=False)
        state = kernel.start(1000)
    assert bool(torch.isfinite(state.log_q).all()) and float(state.x[:, 0].max()) < FOLD + 0.1


def proposal_of(flow_dtype=torch.float32):
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2, dtype=flow_dtype)
    kernel = IMH(guide=gaussian_guide(target, torch.full((2,), 3.0), 2 * torch.eye(2)))
    kernel.setup(0)
    kernel.prepare(0, progress=False)
    return kernel.proposal


def test_points_of_the_set():
    """It depends on z alone; NaN does not belong to it."""
    proposal = proposal_of()
    z = torch.tensor([[0.0, 0.0], [5.0, -8.0], [1.3, 0.0], [torch.nan, 0.0]])
    with broken(folded):
        x, ladj = proposal.push(z)
        log_q = proposal.base_log_prob(z) - ladj
        assert leads_back(proposal, z, x, log_q, OPTIONS).tolist() == [True, False, False, False]
    x, ladj = proposal.push(z)
    log_q = proposal.base_log_prob(z) - ladj
    assert leads_back(proposal, z, x, log_q, OPTIONS).tolist() == [True, True, True, False]
    off = log_q + torch.tensor([0.05, 0.2, -0.2, 0.0])
    assert leads_back(proposal, z, x, off, OPTIONS).tolist() == [True, False, False, False]


def test_points_that_are_given():
    proposal = proposal_of()
    x = torch.tensor([[3.0, 3.0], [3 + 2 * 1.5, 0.0]])
    assert inverted(proposal, x, OPTIONS)[-1].tolist() == [True, True]
    with broken(folded):
        z, image, log_q, known = inverted(proposal, x, OPTIONS)
    assert known.tolist() == [True, False]
    torch.testing.assert_close(z, (x - 3) / 2)
    torch.testing.assert_close(image[0], x[0])


@pytest.mark.parametrize("name, value", [("every", 0), ("max_nats", -1.0)])
def test_tolerances_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"InversionOptions.{name} must be at least"):
        InversionOptions(**{name: value})
    with pytest.raises(TypeError, match="inversion must be InversionOptions"):
        IMH(guide=gaussian_guide(standard(), torch.zeros(2), torch.eye(2)), inversion=0.1)


@pytest.mark.parametrize("kind", [IMH, LocalGlobalHMC])
def test_the_rule_can_be_left_out(kind):
    """Then no proposal is looked at, and draws of a right flow are right."""
    torch.manual_seed(0)
    with broken(mutation(inversion, "leads_back")(lambda *args: 1 / 0)):
        made = run(kind, torch.randn(2000, 2), inversion=None)
    assert largest(made.unconstrained[:, -1], [0.0, 1.0, BEYOND, 0.0]) < 4
