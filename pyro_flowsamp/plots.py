"""Pictures that ArviZ has not: of a training, of modes, and of the path of an annealing.

Each function draws on Matplotlib's axes and returns them. Matplotlib is imported when it is used;
it comes with the extra "report".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .guides.path_guide import PathGuide
from .reporting.drawing import draw_modes, draw_training, mode_shares, training_curve
from .training.history import History
from .validation import check_count, check_kind, shown

__all__ = ["PlotOptions", "plot_modes", "plot_path", "plot_training"]


@dataclass(frozen=True)
class PlotOptions:
    """Sizes of the pictures of :mod:`pyro_flowsamp.plots`.

    Attributes:
        num_particles: Particles that :func:`plot_path` carries along the path.
        bins: Bins of a coordinate in :func:`plot_path`.
        outside: Share of the particles, over all densities of the path, that may lie beyond each
            end of the picture.
        time_labels: Times that are written at the axis of :func:`plot_path`, at most.
        max_modes: Modes that :func:`plot_modes` shows, at most.

    Raises:
        ValueError: A count is below 1, or the share is not in [0, 1/2).

    Example::

        >>> PlotOptions(bins=40).max_modes
        20
    """

    num_particles: int = 4096
    bins: int = 80
    outside: float = 5e-4
    time_labels: int = 8
    max_modes: int = 20

    def __post_init__(self) -> None:
        for name in ("num_particles", "bins", "time_labels", "max_modes"):
            check_count(f"PlotOptions.{name}", getattr(self, name))
        if not 0 <= self.outside < 0.5:
            raise ValueError(f"PlotOptions.outside must lie in [0, 0.5), got {self.outside}")


def plot_training(source: Any, *, ax: Sequence[Any] | None = None) -> np.ndarray:
    """Draws the loss and the effective sample size of a flow along its training.

    The loss should fall and become level. The effective sample size is that of the flow's draws as
    an importance sample, as a share of their number. It should rise; 1 is a perfect flow.

    Arguments:
        source: A trained guide, the :class:`~pyro_flowsamp.History` of a training, a
            :class:`~pyro_flowsamp.VectorizedMCMC` after ``run``, or a result of
            :func:`~pyro_flowsamp.sample`.
        ax: Two of Matplotlib's axes, for the loss and for the effective sample size; by default
            those of a new figure.

    Returns:
        The two axes.

    Raises:
        TypeError: The source is none of these.
        ValueError: There was no training, or its record is empty; there are not two axes.

    Example::

        >>> import matplotlib
        >>> matplotlib.use("agg")
        >>> axes = plot_training(History(loss=[3.0, 2.0, 1.8], ess=[0.1, 0.4, 0.5]))
        >>> [a.get_ylabel() for a in axes]
        ['loss', 'ESS fraction']
    """
    curves = {
        key: training_curve(_record(source), key) for key in ("training_loss", "training_ess")
    }
    if not any(np.isfinite(values).any() for values in curves.values()):
        raise ValueError(
            f"{type(source).__name__} has no record of a training: no flow was trained, or the "
            f"affine layer was good enough without a step"
        )
    axes = _new_axes(2) if ax is None else np.atleast_1d(np.asarray(ax, dtype=object)).reshape(-1)
    if len(axes) != 2:
        raise ValueError(f"ax must be two axes, for the loss and the ESS, got {len(axes)}")
    for one, (key, values) in zip(axes, curves.items()):
        draw_training(one, key, values)
    return axes


def _record(source: Any) -> Mapping[str, Any]:
    """The curves of a training by the names that they have in a result."""
    kernel = getattr(source, "kernel", None)
    if kernel is not None:  # a run
        source = getattr(getattr(kernel, "binding", None), "guide", None)
    history = source if isinstance(source, History) else getattr(source, "history", None)
    if isinstance(history, History):
        return {"training_loss": history.loss, "training_ess": history.ess}
    attrs = getattr(source, "attrs", None)
    if isinstance(attrs, Mapping):
        return attrs
    if history is None and hasattr(source, "history"):
        raise ValueError("this guide has not been trained: call guide.fit(...) first")
    raise TypeError(
        f"plot_training needs a trained guide, a History, a run or a result of sample(), "
        f"got {shown(source)}"
    )


def plot_modes(data: Any, *, ax: Any = None, options: PlotOptions = PlotOptions()) -> Any:
    """Draws the share of each mode among the draws, and among the particles of two searches.

    The three bars of a mode should have the same height. A mode that one search has alone shows
    that modes can be missed; a mode without draws, that the chains have lost it.

    Arguments:
        data: A result of :func:`~pyro_flowsamp.sample`.
        ax: Matplotlib's axes; by default those of a new figure.
        options: Sizes of the picture.

    Returns:
        The axes.

    Raises:
        TypeError: ``data`` has no attributes, or ``options`` are no :class:`PlotOptions`.
        ValueError: The result has no shares of modes: it is not one of ``sample()``, or it has a
            single mode.

    Example::

        >>> import matplotlib, xarray
        >>> matplotlib.use("agg")
        >>> names = ("mode_shares", "mode_shares_first", "mode_shares_second")
        >>> data = xarray.Dataset(attrs={name: [0.7, 0.3] for name in names})
        >>> [text.get_text() for text in plot_modes(data).get_legend().get_texts()]
        ['chains', 'first search', 'second search']
    """
    check_kind("options", options, PlotOptions)
    attrs = getattr(data, "attrs", None)
    if not isinstance(attrs, Mapping):
        raise TypeError(f"plot_modes needs a result of sample(), got {shown(data)}")
    shares = mode_shares(attrs)
    if not shares:
        raise ValueError(
            "there are no shares of several modes to draw: the result has one mode, or is not one "
            "of sample()"
        )
    ax = _new_axes(1)[0] if ax is None else ax
    draw_modes(ax, shares, options.max_modes)
    return ax


def plot_path(
    guide: Any,
    *args: Any,
    coordinate: int = 0,
    ax: Any = None,
    options: PlotOptions = PlotOptions(),
    **kwargs: Any,
) -> Any:
    r"""Draws the densities of one coordinate along the path of a guide, from base to target.

    The guide carries fresh particles along its path, weighted and moved on the way. Each column of
    the picture is a weighted histogram of the particles at one time: the inverse temperature β of
    an :class:`~pyro_flowsamp.AutoAnnealingFlow`, the time t of an
    :class:`~pyro_flowsamp.AutoDeformationFlow`. The columns are as wide as each other, whatever
    the difference of their times. The densities of a column are relative to its largest.

    Arguments:
        guide: A trained guide of one of these two kinds.
        args, kwargs: The model's.
        coordinate: The coordinate in R^d, from 0 to d − 1; from −d on they are counted from the
            last.
        ax: Matplotlib's axes; by default those of a new figure.
        options: Sizes of the picture.

    Returns:
        The axes.

    Raises:
        TypeError: The guide is of another kind, or ``options`` are no :class:`PlotOptions`.
        ValueError: The guide is untrained or its path has not been trained to its end, or there is
            no such coordinate.

    Example::

        >>> import matplotlib, pyro
        >>> from pyro_flowsamp import AutoAnnealingFlow, FitOptions
        >>> from pyro_flowsamp.problems import unequal_pair
        >>> matplotlib.use("agg")
        >>> pyro.set_rng_seed(0)
        >>> training = FitOptions(max_steps=10, batch_size=128, progress=False)
        >>> guide = AutoAnnealingFlow(
        ...     unequal_pair().target,
        ...     reference=8.0,
        ...     target_ess=0.5,
        ...     num_particles=512,
        ...     options=training,
        ... )
        >>> history = guide.fit()
        >>> plot_path(guide, options=PlotOptions(num_particles=1024)).get_xlabel()
        'inverse temperature β'
    """
    check_kind("options", options, PlotOptions)
    if not isinstance(guide, PathGuide):
        raise TypeError(
            f"plot_path needs an AutoAnnealingFlow or an AutoDeformationFlow, got {shown(guide)}"
        )
    if not guide.trained:
        raise ValueError("this guide has no path yet: call guide.fit(...) first")
    target = guide.target_for(*args, **kwargs)
    times = guide.path_times()
    if times[-1] < 1:
        raise ValueError(f"the path ends at {times[-1]:.4g}: call fit, which goes on from there")
    if not -target.dim <= coordinate < target.dim:
        raise ValueError(f"coordinate {coordinate} is none of the {target.dim} of this target")
    columns = []
    for cloud in guide.intermediate_particles(target, options.num_particles, 1):
        weights = torch.softmax(cloud.log_weights, 0)
        columns.append((cloud.x[:, coordinate].double().cpu().numpy(), weights.cpu().numpy()))
    every = np.concatenate([x for x, _ in columns])
    low, high = np.quantile(every[np.isfinite(every)], [options.outside, 1 - options.outside])
    edges = np.linspace(low, high, options.bins + 1)
    counts = np.stack([np.histogram(x, edges, weights=w)[0] for x, w in columns], 1)
    ax = _new_axes(1)[0] if ax is None else ax
    ax.pcolormesh(
        np.arange(len(times) + 1) - 0.5,
        edges,
        counts / np.maximum(counts.max(0), np.finfo(float).tiny),
        cmap="Blues",
        vmin=0,
        rasterized=True,
    )
    most = min(len(times), options.time_labels)
    ticks = np.unique(np.linspace(0, len(times) - 1, most).round().astype(int))
    ax.set_xticks(ticks, [f"{times[i]:.2g}" for i in ticks])
    ax.set(xlabel=guide.time_name, ylabel=f"coordinate {coordinate % target.dim}")
    return ax


def _new_axes(number: int) -> np.ndarray:
    """Axes beside each other in a new figure of pyplot."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "a picture needs matplotlib: pip install 'pyro_flowsamp[report]'"
        ) from error
    _, axes = plt.subplots(
        1, number, figsize=(4.8 * number, 3.2), layout="constrained", squeeze=False
    )
    return axes.reshape(-1)
