"""Matplotlib's figures as SVG inside a page, in the colours of the page.

Ink and grid lines are drawn in colours that are used for nothing else. In the SVG they become the
page's variables, so that a picture changes with it from light to dark and to print.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any

__all__ = ["CHAIN", "FLOW", "GRID", "INK", "THIRD", "WRONG", "figure", "log_axis", "to_svg"]


INK, GRID = "#010203", "#040506"  #: stand for the page's colours
CHAIN, FLOW, THIRD, WRONG = (
    "#3d85c8",
    "#d9822b",
    "#8c8c8c",
    "#cc4c4c",
)  #: are seen on white and on black
VARIABLES = {INK: "var(--ink)", GRID: "var(--grid)"}
SIZE = 4.4, 2.7  #: inches; one column of a phone's screen
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "pyro_flowsamp",  # the same result gives the same file
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.0,
    "path.simplify": True,
    "text.parse_math": False,  # a site's name may have a dollar sign
    "axes.formatter.use_mathtext": False,
}


@contextmanager
def figure() -> Iterator[tuple[Any, Any]]:
    """A figure in the style of the page and its axes; pyplot and its global state are not used.

    Example::

        >>> with figure() as (picture, axes):
        ...     _ = axes.plot([0, 1], [0, 1])
        ...     text = to_svg(picture, "p1")
        >>> text.startswith("<svg"), INK in text
        (True, False)
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        picture = Figure(figsize=SIZE)
        picture.subplots_adjust(left=0.15, right=0.97, bottom=0.17, top=0.96)
        yield picture, picture.subplots()


def log_axis(axis: Any) -> None:
    """Puts plain numbers at an axis with a logarithmic scale, and few of them.

    Example:
        >>> with figure() as (picture, axes):
        ...     _ = axes.set(xscale="log", xlim=(1, 1000))
        ...     log_axis(axes.xaxis)
        ...     [axes.xaxis.get_major_formatter()(tick) for tick in axes.get_xticks()[1:-1]]
        ['1', '10', '100', '1000']
    """
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    low, high = sorted(axis.get_view_interval())
    wide = high > 30 * low
    axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=6))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(lambda value, _: f"{value:g}")


def to_svg(picture: Any, name: str, dpi: int = 130) -> str:
    """The figure as an ``<svg>`` element.

    Arguments:
        picture: The figure, inside of the block of :func:`figure`.
        name: A prefix for the identifiers in it, unique in the page.
        dpi: Resolution of the parts that are drawn as pixels, such as clouds of points.

    Example:
        >>> with figure() as (picture, axes):
        ...     svg = to_svg(picture, "empty")
        >>> svg[:4], 'id="empty-' in svg
        ('<svg', True)
    """
    stream = StringIO()
    picture.patch.set_alpha(0.0)
    for axes in picture.axes:
        axes.patch.set_alpha(0.0)
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    picture.savefig(stream, format="svg", dpi=dpi, metadata=metadata)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.S)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"\bfont: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return re.sub(r"\s*\n\s*", "\n", text).strip()
