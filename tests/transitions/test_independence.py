"""The choice among independent proposals is balanced."""

import torch
from torch.testing import assert_close

from pyro_flowsamp.transitions import independence


def test_one_proposal_is_metropolis_hastings():
    log_w, proposals, log_u = torch.randn(50), torch.randn(50, 1), torch.rand(50).log()
    index, accepted, accept_prob = independence.choose(log_w, proposals, torch.zeros(50, 1), log_u)
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
        index, accepted, _ = independence.choose(
            weights[i].log().expand(num), proposals, gumbel, log_u
        )
        for k, j in enumerate(others):
            flow[i, j] = (accepted & (index == k)).double().mean() * weights[i]
            assert flow[i, j] > weights[i] * weights[j] / weights.sum() - 0.01
    assert_close(flow, flow.mT, rtol=0, atol=0.015)


def test_proposals_of_no_density_are_never_taken():
    proposals = torch.tensor([[-torch.inf, torch.nan], [torch.nan, 1.0]])
    index, accepted, accept_prob = independence.choose(
        torch.zeros(2), proposals, torch.zeros(2, 2), torch.full((2,), -1e30)
    )
    assert accepted.tolist() == [False, True] and index[1] == 1
    assert accept_prob.tolist() == [0.0, 1.0]
