"""Draws that are right, or wrong in one way, for the checks of a diagnosis."""

import pytest
import torch
from support.mutations import broken

from pyro_flowsamp import Target
from pyro_flowsamp.diagnostics.draws import DiagnosedDraws
from pyro_flowsamp.flows.mixture_fit import Mixture
from pyro_flowsamp.smc.coordinates import WhitenedTarget
from pyro_flowsamp.smc.found_modes import Agreement, FoundModes

CHAINS, DRAWS = 40, 200


def scenario_tests(scenarios, mutations):
    """Two tests: each scenario is flagged, and a broken check does not flag it.

    Arguments:
        scenarios: ``{function: name of the check that must fail}``; the function returns checks by
            their names.
        mutations: Pairs of a mutation and of a scenario that must pass under it.
    """

    @pytest.mark.parametrize("scenario", scenarios, ids=lambda s: s.__name__)
    def flagged(scenario):
        check = scenario()[scenarios[scenario]]
        assert not check.ok and check.message and check.advice

    @pytest.mark.parametrize("wrong, scenario", mutations, ids=lambda value: value.__name__)
    def not_flagged(wrong, scenario):
        with broken(wrong):
            found = scenario()
        check = found.get(scenarios[scenario])
        assert check is None or check.ok

    return flagged, not_flagged


def by_name(checks):
    """Checks by their names."""
    return {c.name: c for c in checks}


def independent(chains=CHAINS, draws=DRAWS, dim=2):
    torch.manual_seed(0)
    return torch.randn(chains, draws, dim).double()


def diagnosed(x, statistics=None, **fields):
    """Draws ``(chains, draws, d)`` of which nothing else is known."""
    names = tuple(f"x[{i}]" for i in range(x.shape[-1]))
    known = dict(attributes={}, target=None, proposal=None, kernel=None, groups=None)
    return DiagnosedDraws(x, names, x, statistics or {}, **{**known, **fields})


def slow(correlation, chains=CHAINS, draws=DRAWS):
    """Autoregressive chains of variance 1."""
    noise = independent(chains, draws + 1, 1)
    x = noise.clone()
    for i in range(1, draws + 1):
        x[:, i] = correlation * x[:, i - 1] + (1 - correlation**2) ** 0.5 * noise[:, i]
    return x[:, 1:]


def two_modes(shares=(0.5, 0.5), num=2000):
    """Unit Gaussians at -10 and 10, the energy that has these shares, and a search's result."""
    centres = torch.tensor([[-10.0, 0.0], [10.0, 0.0]])
    log_shares = torch.tensor(shares).log()

    def energy(x):
        return -(log_shares - 0.5 * torch.cdist(x, centres.to(x)).square()).logsumexp(-1)

    return Target.from_energy(energy, 2), found_modes(shares, num)


def found_modes(shares=(0.5, 0.5), num=2000, **fields):
    """The result of a search that has found two modes with these shares in each half."""
    torch.manual_seed(1)
    centres = torch.tensor([[-10.0, 0.0], [10.0, 0.0]]).double()
    which = torch.multinomial(torch.tensor(shares), num, replacement=True)
    x = centres[which] + torch.randn(num, 2).double()
    mixture = Mixture(torch.tensor(shares).double().log(), centres, torch.eye(2).double()[None])
    counts = torch.stack([which[::2].bincount(minlength=2), which[1::2].bincount(minlength=2)])
    evidence = torch.full((2,), 1.8).double()
    agreement = Agreement(counts, torch.arange(2), 0.0, evidence, torch.full((2,), 0.05).double())
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    coordinates = WhitenedTarget(target, torch.zeros(2).double(), torch.eye(2).double())
    agreement = agreement._replace(**{k: v for k, v in fields.items() if k in Agreement._fields})
    known = dict(covered=True, settled=True, evaluations=0)
    known |= {k: v for k, v in fields.items() if k in FoundModes._fields}
    second = torch.arange(num) % 2 == 1
    weights = agreement.search_weights[second.long()] * 2 / num
    return FoundModes(x, second, weights, coordinates, mixture, agreement, **known)


def draws_of_modes(shares=(0.5, 0.5), chains=CHAINS, draws=DRAWS, cross=True):
    """Draws of the two modes, by chains that cross freely or never."""
    torch.manual_seed(2)
    rows = (chains, draws) if cross else (chains, 1)
    right = (torch.rand(rows) < shares[1] / sum(shares)).double().expand(chains, draws)
    return independent(chains, draws) + torch.stack([20 * right - 10, 0 * right], -1)
