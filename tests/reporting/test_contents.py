"""The sections of a report: numbers as a reader wants them."""

import numpy as np
import pytest
from support.results import result

from pyro_flowsamp.reporting.checks import judge
from pyro_flowsamp.reporting.contents import sections
from pyro_flowsamp.reporting.source import read_source

pytest.importorskip("matplotlib")


@pytest.mark.parametrize(
    "mean, text",
    [(26988.4, "26\u202f988"), (-9999.8, "-10\u202f000"), (1821.0, "1821"), (3e9, "3e+09")],
)
def test_a_mean_in_dollars_has_all_its_digits(mean, text):
    draws = mean + np.random.default_rng(0).normal(size=(4, 50))
    source = read_source(result({"price": mean + (draws - draws.mean())}))
    found = next(s for s in sections(source, judge(source)) if s.anchor == "summary")
    assert found.tables[0].rows[0][:2] == ["price", text]
