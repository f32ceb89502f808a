"""The records of a diagnosis, and their table."""

import pytest

from pyro_flowsamp import Check, Diagnosis
from pyro_flowsamp.diagnostics import checks
from pyro_flowsamp.diagnostics.checks import IMPLIED_BY, REPORTED_TOO

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


def wrong(*names):
    return Diagnosis(
        tuple(Check(name, 1, 0, False, f"{name} is off", "draw more") for name in names)
    )


@pytest.mark.parametrize("name, by", [(name, by) for name in IMPLIED_BY for by in IMPLIED_BY[name]])
def test_a_message_that_another_implies_is_left_out(name, by):
    found = wrong(name, by)
    assert f"{by} is off" in found.problems and f"{name} is off" not in found.problems
    assert f"- {name} is off" not in str(found)
    assert len(found.failed) == 2  # it has failed all the same
    assert wrong(name).problems == (f"{name} is off",)


def test_something_is_always_told():
    """No two checks imply each other."""
    names = [*IMPLIED_BY, *(by for each in IMPLIED_BY.values() for by in each)]
    for one in names:
        for two in names:
            assert wrong(one, two).problems


@pytest.mark.parametrize("text", REPORTED_TOO)
def test_what_was_reported_is_told_once(text):
    reported = Check("reported", 1, 0, False, f"3 {text} 4")
    assert Diagnosis((reported,)).problems == (reported.message,)
    both = Diagnosis((reported, *wrong(REPORTED_TOO[text])))
    assert both.problems == (f"{REPORTED_TOO[text]} is off",)


def test_the_table_is_used(monkeypatch):
    monkeypatch.setattr(checks, "IMPLIED_BY", {})
    assert len(wrong("ESS per chain", "bulk ESS").problems) == 2
