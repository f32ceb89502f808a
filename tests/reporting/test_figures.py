"""The numbers in the pictures, and pictures of results that have little in them."""

import numpy as np
import pytest
from support.results import SAMPLE_ATTRS, dataset, numbers, result, statistics

from pyro_flowsamp.reporting import ReportOptions, figures
from pyro_flowsamp.reporting.source import read_source

pytest.importorskip("matplotlib")


def autoregressive(chains, draws, rho, seed):
    """A stationary AR(1) process of variance one."""
    rng = np.random.default_rng(seed)
    x = np.empty((chains, draws))
    x[:, 0] = rng.normal(size=chains)
    for t in range(1, draws):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * rng.normal(size=chains)
    return x


def outside(x, groups, bins=10):
    shares, band = figures.rank_frequencies(x, groups, bins)
    return (abs(shares - 1) > band[:, None]).mean()


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_ranks_of_equal_chains_are_in_the_band(rho):
    found = [outside(autoregressive(4, 500, rho, seed), np.arange(4)) for seed in range(60)]
    assert np.mean(found) < 0.01  # .0027 of a normal distribution


def test_the_band_is_as_wide_as_chance():
    """Frequencies of independent draws have a third of the band as standard deviation."""
    scores = []
    for seed in range(100):
        x = np.random.default_rng(seed).normal(size=(8, 250))
        shares, band = figures.rank_frequencies(x, np.arange(8) // 2, 10)
        scores.append(3 * (shares - 1) / band[:, None])
    assert 0.93 < np.std(scores) < 1.05


def test_ranks_of_chains_that_disagree_are_outside():
    x = autoregressive(4, 500, 0.7, 0) + np.array([0, 0, 0, 1.5])[:, None]
    assert outside(x, np.arange(4)) > 0.1


def test_chains_that_remember_their_start_are_outside():
    """Groups by the first draw, as the picture makes them, of chains that hardly move."""
    x = autoregressive(400, 20, 0.98, 0)
    groups = x[:, 0].argsort().argsort() * 4 // 400
    assert outside(x[:, 10:], groups) > 0.1
    x = autoregressive(400, 20, 0.3, 0)
    groups = x[:, 0].argsort().argsort() * 4 // 400
    assert outside(x[:, 10:], groups) == 0


def drawn(source):
    chosen = [int(i) for i in source.varying[:2]]
    found = [*figures.convergence(source), *figures.pairs(source, chosen)]
    for i in chosen:
        found += [figures.ranks(source, i), figures.traces(source, i)]
    found += [*figures.training(source), *figures.acceptance(source)]
    return found + [p for p in (figures.tails(source), figures.modes(source)) if p is not None]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "shape",
    [(3, 2), (30, 8), pytest.param((1, 50), marks=SLOW), pytest.param((4, 300), marks=SLOW)],
)
def test_all_pictures_of_results_of_all_shapes(shape):
    proposals = dataset(numbers(1, 50, seed=3))
    weights = dataset({"log_weight": np.random.default_rng(0).normal(size=(1, 50))})
    data = result(
        numbers(*shape),
        statistics(*shape),
        SAMPLE_ATTRS,
        tree=True,
        groups={"proposal": proposals, "proposal_stats": weights},
    )
    found = drawn(read_source(data, options=ReportOptions(pairs=2, worst=1)))
    assert len(found) >= 10
    assert all(p.svg.startswith("<svg") and p.caption.endswith(".") for p in found)


def test_a_result_without_anything_else_has_pictures_of_its_draws():
    source = read_source(result())
    assert figures.tails(source) is None and figures.modes(source) is None
    assert not list(figures.training(source)) and not list(figures.acceptance(source))
    assert len(drawn(source)) == 2 + 3 + 4


def test_thinned_clouds_say_so():
    source = read_source(result(), options=ReportOptions(points=100))
    captions = [p.caption for p in figures.pairs(source, [0, 1])]
    assert "100 of 800 draws are drawn" in captions[-1]


@pytest.mark.parametrize(
    "scale, centre", [(600.0, 27e3), (0.01, -0.03), (9e3, -1e5), (4.0, 1990.0)]
)
def test_numbers_at_an_axis_do_not_overlap(monkeypatch, scale, centre):
    """Widths are those of Matplotlib's own font, which is as wide as fonts of pages are."""
    pictures = []

    def kept(picture, name):
        pictures.append(picture)
        picture.canvas.draw()
        return "<svg"

    monkeypatch.setattr(figures, "to_svg", kept)
    values = {k: centre + scale * v for k, v in numbers().items()}
    list(figures.pairs(read_source(result(values)), [0, 1]))
    for picture in pictures:
        labels = [t for t in picture.axes[0].get_xticklabels() if t.get_text()]
        boxes = sorted((t.get_window_extent() for t in labels), key=lambda box: box.x0)
        width = picture.axes[0].get_window_extent()
        boxes = [b for b in boxes if width.x0 - 1 <= (b.x0 + b.x1) / 2 <= width.x1 + 1]
        assert len(boxes) >= 2
        assert all(a.x1 + 3 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False))


def test_infinite_draws_and_weights_do_not_stop_a_picture():
    stats = statistics()
    stats["log_weight"][0, :5] = -np.inf
    values = numbers()
    values["mean"][0, 0] = np.inf
    source = read_source(result(values, stats))
    assert drawn(source)
    assert source.names[source.varying[0]].startswith("theta")


def test_sites_that_the_flow_does_not_draw_are_drawn_without_it():
    groups = {"proposal": dataset({"theta": numbers(1)["theta"]})}  # mean is deterministic
    source = read_source(result(groups=groups, tree=True))
    found = {p.caption: "flow's draws" in p.svg for p in figures.pairs(source, [0, 1, 2])}
    with_flow = [caption for caption, has_flow in found.items() if has_flow]
    assert len(found) == 6 and with_flow == [c for c in found if "mean" not in c]
