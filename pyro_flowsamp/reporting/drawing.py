"""Pictures on given axes, for the report's figures and for :mod:`pyro_flowsamp.plots`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .svg import CHAIN, FLOW, THIRD

__all__ = ["draw_modes", "draw_training", "mode_shares", "training_curve"]


#: attribute of a result -> label of its curve
CURVES = {"training_loss": "loss", "training_ess": "ESS fraction"}
#: attribute of a result -> label of its bars
SHARES = {
    "mode_shares": "chains",
    "mode_shares_first": "first search",
    "mode_shares_second": "second search",
}
COLOURS = (CHAIN, FLOW, THIRD)
BAR = 0.25  #: width of a bar, in units of the distance of modes


def training_curve(attrs: Mapping[str, Any], key: str) -> np.ndarray:
    """The values of each window of a training, empty where there are none.

    Example:
        >>> training_curve({"training_ess": [0.2, 0.9]}, "training_ess")
        array([0.2, 0.9])
        >>> training_curve({}, "training_loss")
        array([], dtype=float64)
    """
    return np.atleast_1d(np.asarray(attrs.get(key, ()), dtype=float))


def draw_training(axes: Any, key: str, values: np.ndarray) -> None:
    """Draws the loss or the effective sample size along a training.

    Arguments:
        axes: Matplotlib's axes.
        key: "training_loss" or "training_ess".
        values: A value for each window of steps.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().subplots()
        >>> draw_training(axes, "training_ess", np.array([0.2, 0.9]))
        >>> axes.get_ylabel()
        'ESS fraction'
    """
    axes.plot(np.arange(1, len(values) + 1), values, color=FLOW, marker=".", linewidth=1.2)
    axes.set(xlabel="window of steps", ylabel=CURVES[key])
    axes.locator_params(axis="x", integer=True)
    if key == "training_ess":
        axes.set_ylim(0, 1.02)


def mode_shares(attrs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The shares of each mode by their labels; empty where a result has none, or one mode.

    Example::

        >>> names = ("mode_shares", "mode_shares_first", "mode_shares_second")
        >>> list(mode_shares({name: [0.7, 0.3] for name in names}))
        ['chains', 'first search', 'second search']
    """
    found = {
        label: np.atleast_1d(np.asarray(attrs.get(key, ()), dtype=float))
        for key, label in SHARES.items()
    }
    sizes = {len(values) for values in found.values()}
    return found if len(sizes) == 1 and sizes.pop() > 1 else {}


def draw_modes(axes: Any, shares: Mapping[str, np.ndarray], most: int) -> None:
    """Draws bars of the shares of the largest modes.

    Arguments:
        axes: Matplotlib's axes.
        shares: The shares of each mode, by label.
        most: The largest number of modes to draw.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().subplots()
        >>> draw_modes(axes, {"chains": np.array([0.7, 0.2, 0.1])}, most=2)
        >>> len(axes.patches)
        2
    """
    shifts = (np.arange(len(shares)) - (len(shares) - 1) / 2) * (BAR + 0.02)
    for shift, (label, values), colour in zip(shifts, shares.items(), COLOURS):
        shown = values[:most]
        axes.bar(np.arange(len(shown)) + shift, shown, BAR, color=colour, label=label)
    place = np.arange(min(most, max(map(len, shares.values()))))
    axes.set(xlabel="mode", ylabel="share", xticks=place, xticklabels=place + 1)
    axes.legend()
