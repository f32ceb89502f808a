"""The agreement of two searches: what one alone has found, and what both have lost."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from support.mutations import broken, mutation

from pyro_flowsamp import ModeSearchOptions
from pyro_flowsamp.flows.mixture_fit import Mixture
from pyro_flowsamp.smc import comparison
from pyro_flowsamp.smc.comparison import Cover
from pyro_flowsamp.smc.path_modes import PathModes

OPTIONS = ModeSearchOptions()
BESIDE = torch.tensor([[-5.0], [5.0]]).double()  #: the two modes
MIXTURE = Mixture(torch.zeros(2).double().log_softmax(0), BESIDE, torch.ones(2, 1, 1).double())


def search(x, log_z=0.0):
    return SimpleNamespace(x=x.double(), evidences=torch.full((4,), log_z).double())


def agreement(*searches, fitted=MIXTURE, mixture=MIXTURE, alone=None):
    u = torch.cat([s.x for s in searches])
    cover = Cover(u, alone, fitted, mixture)
    return comparison.compare(cover, searches, 0.0, OPTIONS)


def both():
    return torch.cat([torch.randn(400, 1) - 5, torch.randn(400, 1) + 5])


def one():
    return torch.randn(800, 1) + 5


def path_modes(*locs, times=1.0):
    loc = torch.tensor(locs).double()[:, None]
    none = torch.zeros(len(locs)).double()
    return PathModes(loc, torch.ones(len(locs), 1, 1).double(), none, loc[:, None], none + times)


def test_unseen_mass_counts_by_evidence():
    """The search that has missed a mode has the smaller evidence, and counts for less."""
    x = one()
    assert agreement(search(both()), search(x, -100.0)).unseen == pytest.approx(0.5)
    assert agreement(search(both()), search(x)).unseen == pytest.approx(0.25)
    assert agreement(search(both()), search(both())).unseen == 0.0
    stray = x.clone()
    stray[:3] -= 10
    assert agreement(search(stray), search(x)).unseen == 0.0  # too few to count


def test_further_components_are_no_modes():
    """They are regions of the mode that is nearest."""
    locs = torch.tensor([[-5.0], [5.0], [9.0]]).double()
    weights = torch.tensor([0.5, 0.49, 0.01]).double().log()
    mixture = Mixture(weights, locs, 0.3 * torch.ones(3, 1, 1).double())
    fitted = Mixture(*(part[:2] for part in mixture[:3]))
    x = torch.cat([locs.repeat_interleave(100, 0), locs[2:].expand(3, 1)])
    x = x + 0.1 * torch.randn_like(x)
    beside = partial(agreement, fitted=fitted, mixture=mixture)
    found = beside(search(x), search(x))
    assert found.modes.tolist() == [0, 1, 1] and found.num_modes == 2
    assert found.counts.tolist() == [[100, 100, 103]] * 2 and found.unseen == 0
    other = search(x[:200].repeat(2, 1)[:303])
    assert beside(search(x), other).unseen == pytest.approx(0.5 * 103 / 303)


def test_modes_of_paths_that_both_have_lost():
    """Their masses are as large as the evidence. Those found once are missed mass."""
    searches = search(one()), search(one())
    for times, missed in ((1.0, 0.5), (2.0, 0.0)):
        found = agreement(*searches, alone=path_modes(-5.0, times=times))
        assert found.lost == pytest.approx(0.5) and found.missed == pytest.approx(missed)


@mutation(comparison, "compare")
def times_do_not_count(compare, cover, *args):
    once = torch.ones_like(cover.alone.times)
    return compare(cover._replace(alone=cover.alone._replace(times=once)), *args)


def test_times_must_count():
    with broken(times_do_not_count), pytest.raises(AssertionError):
        test_modes_of_paths_that_both_have_lost()
