"""What the logger ``pyro_flowsamp`` says of a call of ``sample()``."""

import logging
import re

import pytest

from pyro_flowsamp import Target, sample


@pytest.mark.slow
def test_info_says_what_is_tried_and_why(caplog):
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    with caplog.at_level(logging.INFO, logger="pyro_flowsamp"):
        data = sample(target, ess=500, seed=0, progress=False)
    said = "\n".join(caplog.messages)
    assert re.search(r"modes: 1, after \d+ evaluations", said)
    for tried in data.attrs["candidates"].split("; "):
        assert tried in said
    assert "HMC: not tried, since its pilot run takes more work than it could save" in said
    assert f"{data.attrs['method']} makes the draws, with about" in said
    last = re.findall(r"effective sample size (\d+) of (\d+)", said)[-1]
    assert int(last[0]) >= int(last[1]) >= 500


def test_nothing_is_said_by_default(capfd):
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
    sample(target, num_samples=5, seed=0, progress=False)
    assert capfd.readouterr() == ("", "")
