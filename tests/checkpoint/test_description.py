"""Descriptions of runs: which differences are seen."""

import numpy as np
import pytest
import torch
from support.checkpoints import banana

from pyro_flowsamp import LatentHMC, LocalGlobalHMC, ModeSearchOptions, SearchOptions, Target
from pyro_flowsamp.checkpoint.description import (
    describe_settings,
    describe_target,
    differences,
    digest,
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(2), torch.zeros(2, dtype=torch.double)),
        (torch.zeros(2), torch.zeros(2, 1)),
        (torch.zeros(2), torch.tensor([0.0, 1e-30])),
        (np.zeros(2), np.ones(2)),
        ([1, [2]], [[1], 2]),
        ({"a": 1}, {"b": 1}),
        (1, True),
        ("1", 1),
    ],
)
def test_digests_differ(one, other):
    assert digest(one) == digest(one) != digest(other)


def test_a_changed_density_is_seen():
    one, other = banana(), Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    assert differences(describe_target(one), describe_target(banana())) == []
    found = differences(describe_target(one), describe_target(other))
    assert len(found) == 1 and found[0].startswith("log density at fixed points is [")


def test_differences_are_named():
    """The fields of options, also of options in options, and no digests."""
    modes = (ModeSearchOptions(paths=paths) for paths in (16, 32))
    one, other = ({"search": repr(SearchOptions(modes=found))} for found in modes)
    assert differences(one, other) == ["search.modes.paths is 32 and was 16"]
    assert differences(one, {"search": "None"})[0].startswith("search is None and was SearchOpt")
    assert differences({"data": digest(1)}, {"data": digest(2)}) == ["data has other values"]
    text = {"flow": "<function spline at 0x1>"}, {"flow": "a\0b"}
    assert differences(*text) == ["flow is a\0b and was <function spline at 0x1>"]


def test_describing_uses_no_random_numbers_and_counts_nothing():
    target = banana()
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    before = target.evaluations
    describe_target(target)
    assert torch.equal(torch.rand(1), wanted) and target.evaluations == before


def test_settings_are_those_of_the_constructor():
    target = banana()
    found = describe_settings(LatentHMC(target, num_steps=7, step_size=0.1))
    assert found["num_steps"] == "7" and found["step_size"] == "0.1"
    assert describe_settings(LocalGlobalHMC(target))["local_steps"] == "None"
