"""The Gaussian mixture that flows start from is fitted to draws."""

import torch
from torch.testing import assert_close

from pyro_flowsamp.flows import mixture_fit
from pyro_flowsamp.flows.recipes import coupling


def clusters(num, weights, centres):
    k = torch.tensor(weights).multinomial(num, replacement=True)
    return torch.tensor(centres)[k] + torch.randn(num, len(centres[0]))


def test_as_many_components_as_clusters():
    torch.manual_seed(0)
    fit = mixture_fit.fit_mixture(clusters(2000, [0.25, 0.75], [[8.0, 0.0], [-8.0, 0.0]]), 16)
    order = fit.locs[:, 0].argsort()
    assert len(order) == 2
    assert_close(
        fit.log_weights.exp()[order].float(), torch.tensor([0.75, 0.25]), atol=0.04, rtol=0
    )
    assert_close(fit.locs[order, 0].float(), torch.tensor([-8.0, 8.0]), atol=0.2, rtol=0)


def test_one_component_of_one_cluster():
    torch.manual_seed(0)
    assert len(mixture_fit.fit_mixture(torch.randn(1000, 5), 16).log_weights) == 1


def test_a_flow_evaluates_and_saves_only_what_it_uses():
    torch.manual_seed(0)
    flow = coupling(2, components=16)
    flow.initialize_from(clusters(2000, [0.5, 0.5], [[8.0, 0.0], [-8.0, 0.0]]))
    used = len(flow.base(None).mixture.log_weights)
    assert used < 16
    other = coupling(2, components=16)
    other.load_state_dict(flow.state_dict())
    x = flow(None).sample((100,))
    assert len(other.base(None).mixture.log_weights) == used
    assert torch.equal(other(None).log_prob(x), flow(None).log_prob(x))
