"""Pictures of trainings, of modes and of paths, on Matplotlib's axes."""

import numpy as np
import pyro
import pytest
import torch
import xarray as xr

from pyro_flowsamp import (
    IMH,
    AutoAnnealingFlow,
    AutoDeformationFlow,
    AutoFlow,
    DeformationOptions,
    FitOptions,
    History,
    Target,
    VectorizedMCMC,
    plot_modes,
    plot_path,
    plot_training,
)
from pyro_flowsamp.plots import PlotOptions

plt = pytest.importorskip("matplotlib.pyplot")
SHORT = FitOptions(max_steps=20, eval_every=10, batch_size=64, progress=False)
HISTORY = History(loss=[3.0, 2.0, 1.5], ess=[0.1, 0.4, 0.6])
SHARES = {
    "mode_shares": np.array([0.6, 0.3, 0.1]),
    "mode_shares_first": np.array([0.5, 0.3, 0.2]),
    "mode_shares_second": np.array([0.55, 0.35, 0.1]),
}


@pytest.fixture(autouse=True)
def pictures():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def normal(dim=2):
    return Target.from_energy(lambda x: 0.5 * (x - 3.0).square().sum(-1), dim)


# ---- trainings ----------------------------------------------------------------------------------
def curves(axes):
    return [axis.get_lines()[0].get_ydata().tolist() for axis in axes]


def test_training_of_a_history_and_of_a_result():
    attrs = {"training_loss": np.array(HISTORY.loss), "training_ess": np.array(HISTORY.ess)}
    for source in (HISTORY, xr.Dataset(attrs=attrs)):
        assert curves(plot_training(source)) == [HISTORY.loss, HISTORY.ess]


def test_training_of_a_guide_and_of_a_run():
    guide = AutoFlow(normal(), flow="gaussian", options=SHORT)
    guide.fit()
    guide.history = HISTORY
    mcmc = VectorizedMCMC(IMH(guide=guide), 2, 1, 4, disable_progbar=True)
    mcmc.min_acceptance = 0.0
    mcmc.run()
    for source in (guide, mcmc):
        assert curves(plot_training(source)) == [HISTORY.loss, HISTORY.ess]


def test_training_on_given_axes():
    _, given = plt.subplots(2)
    assert plot_training(HISTORY, ax=given)[1] is given[1]
    with pytest.raises(ValueError, match="two axes, for the loss and the ESS, got 1"):
        plot_training(HISTORY, ax=given[0])


def test_training_of_what_has_none():
    with pytest.raises(ValueError, match="no record of a training"):
        plot_training(History())
    with pytest.raises(ValueError, match=r"call guide.fit\(...\) first"):
        plot_training(AutoFlow(normal()))
    with pytest.raises(TypeError, match="a trained guide, a History, a run or a result"):
        plot_training(3)


# ---- modes --------------------------------------------------------------------------------------
def test_modes_are_bars_of_their_shares():
    _, given = plt.subplots()
    axes = plot_modes(xr.Dataset(attrs=SHARES), ax=given)
    assert axes is given
    for bars, values in zip(axes.containers, SHARES.values()):
        assert [bar.get_height() for bar in bars] == values.tolist()


def test_the_largest_modes():
    axes = plot_modes(xr.Dataset(attrs=SHARES), options=PlotOptions(max_modes=2))
    assert [len(bars) for bars in axes.containers] == [2, 2, 2]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2"]


def test_modes_of_what_has_none():
    with pytest.raises(ValueError, match="no shares of several modes"):
        plot_modes(xr.Dataset(attrs={name: [1.0] for name in SHARES}))
    with pytest.raises(TypeError, match=r"a result of sample\(\), got 'run.nc'"):
        plot_modes("run.nc")


# ---- paths --------------------------------------------------------------------------------------
def picture(axes):
    """Centres of the coordinate's bins, and the relative densities ``(bins, times)``."""
    mesh = axes.collections[0]
    edges = mesh.get_coordinates()[:, 0, 1]
    return (edges[1:] + edges[:-1]) / 2, mesh.get_array()


def moments(axes, column):
    x, density = picture(axes)
    p = density[:, column] / density[:, column].sum()
    mean = (p * x).sum()
    return mean, np.sqrt((p * (x - mean) ** 2).sum())


@pytest.fixture(scope="module")
def annealed():
    """A guide from a base of standard deviation 6 to a normal around 3."""
    pyro.set_rng_seed(0)
    options = FitOptions(max_steps=5, batch_size=64, progress=False)
    guide = AutoAnnealingFlow(
        normal(), reference=6.0, target_ess=0.4, num_particles=512, options=options
    )
    guide.fit()
    return guide


def test_path_of_an_annealing_flow_leads_from_base_to_target(annealed):
    axes = plot_path(annealed, coordinate=-1, options=PlotOptions(num_particles=4096, outside=0.0))
    assert axes.get_ylabel() == "coordinate 1"
    (first, spread), (last, width) = moments(axes, 0), moments(axes, -1)
    assert abs(first) < 0.5 and abs(spread - 6) < 0.5  # errors of 0.09 and 0.07, and of the bins
    assert abs(last - 3) < 0.3 and abs(width - 1) < 0.2
    assert picture(axes)[1].max(0).tolist() == pytest.approx([1.0] * len(annealed.path_times()))


def test_path_of_a_deformation_flow_leads_from_base_to_target():
    settings = DeformationOptions(time_grid=6, hidden_features=16)
    guide = AutoDeformationFlow(normal(), base_scale=6.0, options=SHORT, settings=settings)
    guide.fit()
    axes = plot_path(guide)
    assert axes.get_xlabel() == "time t"
    assert picture(axes)[1].shape[1] == len(guide.path_times()) == 7
    (first, _), (last, width) = moments(axes, 0), moments(axes, -1)
    assert abs(first) < 0.5 and abs(last - 3) < 0.4 and abs(width - 1) < 0.3


def test_weights_of_particles_count(annealed, monkeypatch):
    """Particles of which only the larger half has weight are seen in that half."""
    guide = annealed
    (cloud, *_) = guide.intermediate_particles(guide.target_for(), 1024, 1)
    log_w = torch.where(cloud.x[:, 0] > 0, 0.0, -torch.inf).double()[None]
    clouds = [cloud._replace(log_w=log_w, log_z=torch.zeros(1).double())]
    monkeypatch.setattr(guide, "intermediate_particles", lambda *_: clouds)
    monkeypatch.setattr(guide, "path_times", lambda: [1.0])
    x, density = picture(plot_path(guide, options=PlotOptions(bins=20)))
    assert (density[x < -2] == 0).all() and density[x > 2].sum() > 1


def test_path_of_what_has_none(annealed):
    with pytest.raises(TypeError, match="an AutoAnnealingFlow or an AutoDeformationFlow, got"):
        plot_path(AutoFlow(normal()))
    guide = AutoAnnealingFlow(normal(), reference=6.0, num_particles=512, options=SHORT)
    with pytest.raises(ValueError, match=r"no path yet: call guide.fit\(...\) first"):
        plot_path(guide)
    with pytest.raises(ValueError, match="coordinate 2 is none of the 2"):
        plot_path(annealed, coordinate=2)


def test_options_out_of_range():
    with pytest.raises(ValueError, match="PlotOptions.bins"):
        PlotOptions(bins=0)
    with pytest.raises(ValueError, match=r"PlotOptions.outside must lie in \[0, 0.5\)"):
        PlotOptions(outside=0.5)
    with pytest.raises(TypeError, match="options must be PlotOptions"):
        plot_modes(xr.Dataset(attrs=SHARES), options={"max_modes": 2})
