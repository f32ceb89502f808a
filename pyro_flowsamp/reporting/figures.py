"""The pictures of a report, each one panel that is as wide as a phone's screen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .drawing import draw_modes, draw_training, mode_shares, training_curve
from .source import ReportSource
from .svg import CHAIN, FLOW, THIRD, WRONG, figure, log_axis, to_svg

__all__ = [
    "Picture",
    "acceptance",
    "convergence",
    "modes",
    "pairs",
    "rank_frequencies",
    "ranks",
    "tails",
    "traces",
    "training",
]


CHAIN_COLOURS = (
    "#3d85c8",
    "#d9822b",
    "#4fa66a",
    "#a678c9",
    "#c9a227",
    "#6fb7c9",
    "#c97896",
    "#8c8c8c",
)

LONG_TICKS = 5  #: so many intervals leave room for numbers such as 27500 and −0.0325 side by side


@dataclass(frozen=True)
class Picture:
    """A picture of a page.

    Attributes:
        svg: The ``<svg>`` element.
        caption: What it shows, in a sentence.

    Example:
        >>> from types import SimpleNamespace
        >>> source = SimpleNamespace(attrs={"training_loss": [3.0, 1.0]})
        >>> next(training(source)).svg[:4]
        '<svg'
    """

    svg: str
    caption: str


# ---- convergence --------------------------------------------------------------------------------
def convergence(source: ReportSource) -> Iterator[Picture]:
    """Histograms of R-hat and of effective sample sizes over the parameters."""
    summary, options = source.summary, source.options
    r_hat = summary.r_hat[np.isfinite(summary.r_hat)]
    if len(r_hat):
        bound = options.r_hat_bound(source.num_draws)
        with figure() as (picture, axes):
            edges = np.linspace(min(1.0, r_hat.min()), max(1.001, r_hat.max()), options.bins + 1)
            axes.hist(r_hat, edges, color=CHAIN)
            _mark(axes, bound, "bound")
            axes.set(xlabel="R-hat", ylabel="parameters")
            axes.locator_params(axis="y", integer=True)
            caption = (
                f"R-hat of {len(r_hat)} parameters. It is near 1 where chains agree; above the "
                f"line at {bound:.3f} they do not."
            )
            if bound < r_hat.max() or bound < edges[-1]:
                yield Picture(to_svg(picture, "r-hat"), caption)
            else:
                axes.set_xlim(right=bound + 0.05 * (bound - edges[0]))
                yield Picture(to_svg(picture, "r-hat"), caption)
    sizes = [s[np.isfinite(s)] for s in (summary.ess_bulk, summary.ess_tail)]
    if min(map(len, sizes)):
        with figure() as (picture, axes):
            both = np.concatenate([*sizes, [options.min_ess]])
            edges = np.geomspace(max(1.0, both.min()) * 0.9, both.max() * 1.1, options.bins + 1)
            axes.hist(sizes[0], edges, color=CHAIN, alpha=0.8, label="bulk")
            axes.hist(sizes[1], edges, color=FLOW, alpha=0.6, label="tails")
            _mark(axes, options.min_ess, "least")
            axes.set(xlabel="effective sample size", ylabel="parameters", xscale="log")
            log_axis(axes.xaxis)
            axes.locator_params(axis="y", integer=True)
            axes.legend()
            yield Picture(
                to_svg(picture, "ess"),
                f"Effective sample sizes: so many independent draws would be as good. All should "
                f"be right of the line at {options.min_ess:.0f}.",
            )


def _mark(axes: Any, value: float, label: str) -> None:
    axes.axvline(value, color=WRONG, linestyle="--", linewidth=1.0)
    axes.annotate(
        label, (value, 0.98), xycoords=axes.get_xaxis_transform(), color=WRONG, fontsize=8.5,
        xytext=(3, 0), textcoords="offset points", va="top",
    )  # fmt: skip


# ---- ranks and traces ---------------------------------------------------------------------------
def rank_frequencies(x: np.ndarray, groups: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    r"""Frequencies of the ranks of groups of chains, relative to equal ones, and chance's part.

    Of G groups of equal size, with :math:`n` effective draws each, the frequency of the ranks in
    one of B equal bars has the mean 1 and the variance :math:`(B - 1)(1 - 1/G)/n` if all chains
    have the same distribution. n is the number of draws of the group over
    :math:`(1 + \rho)/(1 - \rho)`, with :math:`\rho` the autocorrelation of ranks at lag one about
    the mean of each group: differences between groups must not make it look like chance. It is
    at least the number of its chains, which are independent.

    Arguments:
        x: Draws ``(chains, draws)``.
        groups: The group of each chain, from 0 on.
        bins: The number of bars.

    Returns:
        Frequencies ``(G, bins)``, and three standard deviations of those of each group, ``(G,)``.

    Example::

        >>> x = np.random.default_rng(0).normal(size=(8, 500))
        >>> shares, band = rank_frequencies(x, np.arange(8) // 2, 10)
        >>> bool((abs(shares - 1) < band[:, None]).all())
        True
    """
    flat = np.empty(x.size)
    flat[x.reshape(-1).argsort(kind="stable")] = np.arange(x.size) / x.size
    place = flat.reshape(x.shape)
    edges, number = np.linspace(0, 1, bins + 1), int(groups.max()) + 1
    shares, band = np.empty((number, bins)), np.empty(number)
    for group in range(number):
        ranks_of_group = place[groups == group]
        count = np.histogram(ranks_of_group, edges)[0]
        shares[group] = count * bins / count.sum()
        u = ranks_of_group - ranks_of_group.mean()
        rho = 0.0
        if x.shape[1] > 1:
            rho = float((u[:, 1:] * u[:, :-1]).mean() / max(1e-12, (u * u).mean()))
        rho = max(rho, 0.0)
        effective = max(len(u), count.sum() * (1 - rho) / (1 + rho))
        band[group] = 3 * np.sqrt((bins - 1) * (1 - 1 / number) / effective)
    return shares, band


def ranks(source: ReportSource, parameter: int) -> Picture:
    """Ranks of the draws of each chain, or of groups of chains by where they began."""
    options, x = source.options, source.draws[..., parameter]
    several = source.num_chains > 2 * options.groups
    if several:
        groups = np.argsort(np.argsort(x[:, 0], kind="stable"), kind="stable")
        groups = groups * options.groups // source.num_chains
        x = x[:, source.num_draws // 2 :]
    else:
        groups = np.arange(source.num_chains)
    shares, bands = rank_frequencies(x, groups, options.rank_bins)
    with figure() as (picture, axes):
        edges = np.linspace(0, 1, options.rank_bins + 1)
        for group, (share, colour) in enumerate(zip(shares, CHAIN_COLOURS)):
            label = f"group {group + 1}" if several else f"chain {group}"
            axes.stairs(share, edges, color=colour, linewidth=1.2, label=label)
        band = min(1.0, float(bands.max()))
        axes.fill_between([0, 1], 1 - band, 1 + band, color=THIRD, alpha=0.25, linewidth=0)
        axes.set(xlabel=f"rank of {source.names[parameter]}", ylabel="frequency", ylim=(0, None))
        axes.legend(ncols=4, loc="lower center", handlelength=1.0, columnspacing=0.8)
        caption = f"Ranks of {source.names[parameter]}: "
        if several:
            caption += (
                f"{len(shares)} groups of chains, sorted by their first draw; ranks of the second "
                f"half of their draws. Lines in the grey band differ by chance: the chains have "
                f"forgotten where they began."
            )
        else:
            caption += "a line for each chain. Lines in the grey band differ by chance."
        return Picture(to_svg(picture, f"rank-{parameter}"), caption)


def traces(source: ReportSource, parameter: int) -> Picture:
    """Traces of some chains, with quantiles of all chains where they are many."""
    options, x = source.options, source.draws[..., parameter]
    step = max(1, -(-source.num_draws // options.steps))
    when = np.arange(0, source.num_draws, step)
    many = source.num_chains >= 20
    with figure() as (picture, axes):
        if many:
            low, middle, high = np.quantile(x[:, when], [0.05, 0.5, 0.95], axis=0)
            axes.fill_between(when, low, high, color=CHAIN, alpha=0.25, linewidth=0)
            axes.plot(when, middle, color=CHAIN, linewidth=1.8)
        shown = np.linspace(0, source.num_chains - 1, min(options.lines, source.num_chains))
        for chain, colour in zip(shown.astype(int), CHAIN_COLOURS[1:] if many else CHAIN_COLOURS):
            axes.plot(when, x[chain, when], color=colour, linewidth=0.7, alpha=0.9)
        axes.set(xlabel="draw", ylabel=source.names[parameter])
        axes.locator_params(axis="x", integer=True)
        caption = f"Trace of {source.names[parameter]}: {len(shown)} of {source.num_chains} chains"
        caption += f", every {step}th draw" if step > 1 else ""
        if many:
            caption += "; band and line: 5, 50 and 95 % of all chains. They should stay level."
        else:
            caption += ". Lines should overlap and have no trend."
        return Picture(to_svg(picture, f"trace-{parameter}"), caption)


# ---- pairs --------------------------------------------------------------------------------------
def pairs(source: ReportSource, chosen: list[int]) -> Iterator[Picture]:
    """Marginals and pairs of parameters, the chains' draws with the flow's."""
    flat = source.draws.reshape(-1, len(source.names))
    options = source.options
    rows = np.linspace(0, len(flat) - 1, min(len(flat), options.points)).astype(int)
    exact = flat[rows]
    flow = None if source.proposals is None else source.proposals[: options.points]
    thinned = f" {len(rows)} of {len(flat)} draws are drawn." if len(rows) < len(flat) else ""
    for i in chosen:
        with figure() as (picture, axes):
            clouds = [flat[:, i], *_drawn_by(flow, i)]
            edges = _window(np.concatenate([c[np.isfinite(c)] for c in clouds]), options.bins)
            for values, colour, label in zip(
                clouds, (CHAIN, FLOW), ("exact draws", "flow's draws")
            ):
                axes.hist(values, edges, density=True, color=colour, alpha=0.55, label=label)
            axes.set(xlabel=source.names[i], ylabel="density")
            axes.locator_params(axis="x", nbins=LONG_TICKS)
            axes.legend()
            yield Picture(to_svg(picture, f"margin-{i}"), f"Distribution of {source.names[i]}.")
    for a, i in enumerate(chosen):
        for j in chosen[a + 1 :]:
            with figure() as (picture, axes):
                dot = {"linestyle": "none", "marker": "o", "markersize": 2.2, "alpha": 0.45}
                if all(len(_drawn_by(flow, k)) for k in (i, j)):
                    assert flow is not None
                    axes.plot(
                        flow[:, i], flow[:, j], color=FLOW, markeredgewidth=0, rasterized=True,
                        label="flow's draws", **dot,
                    )  # fmt: skip
                axes.plot(
                    exact[:, i], exact[:, j], color=CHAIN, markeredgewidth=0, rasterized=True,
                    label="exact draws", **dot,
                )  # fmt: skip
                both = exact if flow is None else np.concatenate([exact, flow])
                for setter, k in ((axes.set_xlim, i), (axes.set_ylim, j)):
                    setter(*_window(both[np.isfinite(both[:, k]), k], 1))
                axes.set(xlabel=source.names[i], ylabel=source.names[j])
                axes.locator_params(axis="x", nbins=LONG_TICKS)
                axes.legend(markerscale=2.5, loc="best")
                caption = f"{source.names[i]} and {source.names[j]}.{thinned}"
                yield Picture(to_svg(picture, f"pair-{i}-{j}"), caption)


def _drawn_by(flow: np.ndarray | None, parameter: int) -> list[np.ndarray]:
    """The flow's draws of a parameter, if it has any."""
    found = [] if flow is None else [flow[:, parameter]]
    return [values for values in found if np.isfinite(values).any()]


def _window(values: np.ndarray, bins: int) -> np.ndarray:
    """Edges of bins between the .1 % and the 99.9 % quantile, and a little beyond."""
    low, high = np.quantile(values, [0.001, 0.999])
    margin = 0.05 * (high - low) or 1.0
    return np.linspace(low - margin, high + margin, bins + 1)


# ---- flow and kernel ----------------------------------------------------------------------------
def training(source: ReportSource) -> Iterator[Picture]:
    """The loss and the effective sample size along the training.

    Example:
        >>> from types import SimpleNamespace
        >>> losses, ess = [3.0, 1.0], [0.1, 0.9]
        >>> source = SimpleNamespace(attrs={"training_loss": losses, "training_ess": ess})
        >>> [picture.caption[:4] for picture in training(source)]
        ['Loss', 'Effe']
    """
    for key, caption in (
        ("training_loss", "Loss of each window of steps. It should fall and become level."),
        (
            "training_ess",
            "Effective sample size of the flow's draws as importance sample, as a share of their "
            "number. It should rise; 1 is a perfect flow.",
        ),
    ):
        values = training_curve(source.attrs, key)
        if np.isfinite(values).sum() < 2:
            continue
        with figure() as (picture, axes):
            draw_training(axes, key, values)
            yield Picture(to_svg(picture, key.replace("_", "-")), caption)


def tails(source: ReportSource) -> Picture | None:
    """The largest weights of states and of the flow's draws, with the tails fitted to them."""
    clouds = [
        ("chains' states", CHAIN, source.log_weights, source.pareto_k_states),
        ("flow's draws", FLOW, source.proposal_log_weights, source.pareto_k_proposals),
    ]
    if not any(k is not None for *_, k in clouds):
        return None
    with figure() as (picture, axes):
        for label, colour, values, k in clouds:
            if values is None or k is None:
                continue
            finite = np.sort(values[np.isfinite(values)])[::-1]
            finite = (finite - np.median(finite)) / np.log(10)
            above = np.arange(1, len(finite) + 1) / len(finite)
            keep = np.unique(np.geomspace(1, len(finite), source.options.steps).astype(int)) - 1
            text = "no tail" if k == -np.inf else f"k = {k:.2f}"
            axes.plot(finite[keep], above[keep], color=colour, label=f"{label}: {text}")
        axes.set(
            xlabel="weight over the median weight, log10", ylabel="share of larger weights",
            yscale="log", xlim=(-1.0, None),
        )  # fmt: skip
        log_axis(axes.yaxis)
        axes.legend()
        caption = (
            "Shares of draws whose weight p/q is larger. A steep fall on the right is good. A "
            "long slope to the right means regions that the flow hardly ever proposes."
        )
        return Picture(to_svg(picture, "tails"), caption)


def acceptance(source: ReportSource) -> Iterator[Picture]:
    """Acceptance along the draws, and its distribution over the chains.

    Example:
        >>> from types import SimpleNamespace
        >>> stats, options = {"accepted": np.ones((4, 10))}, SimpleNamespace(steps=100)
        >>> source = SimpleNamespace(stats=stats, num_draws=10, num_chains=4, options=options)
        >>> len(list(acceptance(source)))  # of few chains there is no histogram
        1
    """
    name = next((n for n in ("accepted", "acceptance_rate") if n in source.stats), None)
    if name is None:
        return
    values = source.stats[name].astype(float)
    step = max(1, -(-source.num_draws // source.options.steps))
    blocks = np.array_split(values.mean(0), -(-source.num_draws // step))
    with figure() as (picture, axes):
        axes.plot(
            np.arange(len(blocks)) * step, [b.mean() for b in blocks], color=CHAIN, marker=".",
            markersize=3,
        )  # fmt: skip
        axes.set(xlabel="draw", ylabel="share of chains that moved", ylim=(0, 1.02))
        axes.locator_params(axis="x", integer=True)
        caption = "Acceptance along the draws, over all chains. It should stay level."
        yield Picture(to_svg(picture, "acceptance"), caption)
    if source.num_chains < 8:
        return
    with figure() as (picture, axes):
        axes.hist(values.mean(1), np.linspace(0, 1, source.options.bins + 1), color=CHAIN)
        axes.set(xlabel="acceptance rate of a chain", ylabel="chains")
        caption = "Acceptance of each chain. Chains at zero have never moved."
        yield Picture(to_svg(picture, "acceptance-chains"), caption)


def modes(source: ReportSource) -> Picture | None:
    """Shares of the draws and of the particles of two searches in each mode.

    Example:
        >>> from types import SimpleNamespace
        >>> modes(SimpleNamespace(attrs={"mode_shares": [1.0]})) is None  # a single mode
        True
    """
    shares = mode_shares(source.attrs)
    if not shares:
        return None
    total = len(shares["chains"])
    most = min(total, source.options.rank_bins)
    with figure() as (picture, axes):
        draw_modes(axes, shares, most)
        left = f" The {most} largest of {total}." if most < total else ""
        caption = (
            f"Shares of the modes, among the draws of the chains and among the particles of each "
            f"search. All three should agree.{left}"
        )
        return Picture(to_svg(picture, "modes"), caption)
