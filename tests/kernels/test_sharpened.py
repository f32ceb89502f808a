"""Kernels that sharpen a flow trained on data sample the sharpened density."""

from functools import partial
from itertools import product

import pytest
import torch
from support.latent import FOREIGN, run, shaken
from support.marks import in_turn, studies
from support.scenarios import (
    THRESHOLD,
    Scenario,
    assert_exact,
    z_scores,
)
from torch.testing import assert_close

from pyro_flowsamp import LatentHMC, LatentMALA, LocalGlobalHMC
from pyro_flowsamp.flows.proposal import Proposal

# ---- the sharpened target ------------------------------------------------------------------------

SHARPENED = {
    "MALA": (partial(LatentMALA, global_prob=0.2), 1000, 200, 10),
    "HMC": (LatentHMC, 1000, 80, 10),
    "jumps": (partial(LocalGlobalHMC, num_steps=1, num_proposals=4), 1000, 40, 10),
    "MALA in the Jacobian metric": (
        partial(LatentMALA, metric="jacobian", global_prob=0.3),
        1000,
        100,
        10,
    ),
}
MOMENTS = {
    "x": lambda x: x[..., 0],
    "x squared": lambda x: x[..., 0].square(),
    "y squared": lambda x: x[..., -1].square(),
    "xy": lambda x: x[..., 0] * x[..., -1],
    "tanh": lambda x: x[..., 0].tanh(),
}


@torch.no_grad()
def _averages(flow, sharpened):
    """By quadrature over z of q_X(f(z)), or of q_Z."""
    dim = flow(None).event_shape[0]
    num = 20001 if dim == 1 else 601
    axes = [torch.linspace(-6, 6, num)] * dim
    z = torch.cartesian_prod(*axes).reshape(-1, dim)
    x = flow(None).transform.inv(z)
    log_density = flow(None).log_prob(x) if sharpened else flow(None).base.log_prob(z)
    weights = log_density.double().softmax(0)
    return {name: float((weights * f(x)).sum()) for name, f in MOMENTS.items()}


def _as_scenario(truth):
    moments = {name: (lambda d, f=f: f(d["x"]), truth[name]) for name, f in MOMENTS.items()}
    return Scenario(None, None, [], [], moments)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        pytest.param(*pair, marks=[] if pair in in_turn(SHARPENED, FOREIGN) else [studies])
        for pair in product(SHARPENED, FOREIGN)
    ],
)
def test_sharpened_draws_are_those_of_quadrature(name, kernel):
    flow = FOREIGN[name]()
    make, *budget = SHARPENED[kernel]
    draws = run(make(flow=flow, target="sharpened"), budget)
    assert_exact(draws, _as_scenario(_averages(flow, sharpened=True)))
    unsharpened = z_scores(draws, _as_scenario(_averages(flow, sharpened=False)))
    assert max(map(abs, unsharpened.values())) > 2 * THRESHOLD


# ---- jumps --------------------------------------------------------------------------------------


def test_proposals_of_a_pretrained_flow_are_a_frozen_copy():
    flow = FOREIGN["MAF in 2-D"]()
    kernel = LatentMALA(flow=flow, target="sharpened")
    kernel.setup(0)
    kernel.prepare(0)
    state = kernel.start(8)
    shaken(flow)
    assert_close(kernel.density(state.z).log_pi, state.log_pi)
    assert not torch.equal(Proposal(flow).log_prob(state.x), kernel.proposal.log_prob(state.x))
