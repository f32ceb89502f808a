"""The records of a diagnosis, and their table."""

import pytest

from pyro_flowsamp import Check, Diagnosis

GOOD = Check("bulk ESS", 900.0, 400.0, True, at_least=True)
BAD = Check("R-hat", 1.3, 1.01, False, "the chains <disagree>", "draw longer chains")
TOLD = Check("Pareto k", 2.5, float("nan"), True)


def test_a_diagnosis():
    found = Diagnosis((GOOD, BAD, TOLD), ("the flow: it needs guide=",))
    assert not found.reliable and found.problems == ("the chains <disagree>",)
    assert found["R-hat"] is BAD and "Pareto k" in found and "k" not in found
    assert [check.name for check in found] == ["bulk ESS", "R-hat", "Pareto k"]
    lines = str(found).splitlines()
    assert lines[1].split() == ["bulk", "ESS", "900", ">=", "400"]
    assert lines[2].split() == ["R-hat", "1.3", "<=", "1.01", "FAILS"]
    assert lines[3].split() == ["Pareto", "k", "2.5"]
    assert "- the chains <disagree>: draw longer chains" in lines
    assert lines[-2:] == ["Not checked:", "- the flow: it needs guide="]
    page = found._repr_html_()
    assert "the chains &lt;disagree&gt;" in page and page.count("<tr>") == 4
    with pytest.raises(KeyError, match="there is no check 'ESS': there are"):
        found["ESS"]


def test_nothing_is_wrong():
    found = Diagnosis((GOOD,))
    assert found.reliable and found.problems == ()
    assert str(found).endswith("Nothing has been seen to be wrong.")
