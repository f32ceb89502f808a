"""Pictures are SVG elements in the page's colours, with identifiers of their own."""

import re

import pytest

from pyro_flowsamp.reporting.svg import GRID, INK, figure, log_axis, to_svg

pytest.importorskip("matplotlib")


def picture(name):
    with figure() as (drawn, axes):
        axes.plot([1, 2, 3], [1, 100, 10_000], marker="o", label="a $ sign")
        axes.set(yscale="log", xlabel="<site> & $x$")
        log_axis(axes.yaxis)
        axes.legend()
        return to_svg(drawn, name)


def test_colours_are_the_page_s_and_text_stays_text():
    text = picture("one")
    assert text.startswith("<svg") and text.endswith("</svg>")
    assert INK not in text and GRID not in text
    assert "var(--ink)" in text and "var(--grid)" in text
    assert "&lt;site&gt; &amp; $x$" in text and "10000" in text and "mathdefault" not in text
    assert "<?xml" not in text and "<metadata" not in text and "DOCTYPE" not in text


def test_identifiers_are_unique_and_all_references_lead_to_one():
    text = picture("one") + picture("two")
    found = re.findall(r'\bid="([^"]+)"', text)
    assert len(found) == len(set(found)) > 10
    references = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text)
    assert {a or b for a, b in references} <= set(found) and references


def test_the_same_figure_gives_the_same_text():
    assert picture("one") == picture("one")


def test_matplotlib_s_settings_are_left_as_they_were():
    import matplotlib

    before = dict(matplotlib.rcParams)
    picture("one")
    assert dict(matplotlib.rcParams) == before
