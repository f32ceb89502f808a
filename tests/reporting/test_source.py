"""Numbers are read from results of both lines of ArviZ, and are those of ArviZ."""

import arviz as az
import numpy as np
import pytest
import torch
from support.results import dataset, numbers, result, statistics

from pyro_flowsamp.reporting import ReportOptions
from pyro_flowsamp.reporting.source import read_source


@pytest.mark.parametrize("tree", [False, True])
def test_draws_and_statistics_of_both_lines_of_arviz(tree):
    values, stats = numbers(), statistics()
    source = read_source(result(values, stats, {"seed": 3}, tree))
    assert source.names == ["mean", "theta[0]", "theta[1]"]
    np.testing.assert_allclose(source.draws[..., 0], values["mean"])
    np.testing.assert_allclose(source.draws[..., 2], values["theta"][..., 1])
    np.testing.assert_array_equal(source.stats["accepted"], stats["accepted"])
    assert source.attrs["seed"] == 3


def test_labels_of_coordinates_are_in_the_names():
    posterior = dataset(numbers()).assign_coords(theta_dim_0=["left", "right"])
    source = read_source({"posterior": posterior})
    assert source.names == ["mean", "theta[left]", "theta[right]"]


def test_the_summary_is_arviz_s():
    values = numbers(offset=[0.0, 0.1, 0.5, 0.0])
    source, data = read_source(result(values)), dataset(values)
    summary = source.summary
    bulk, tail = (az.ess(data, method=method) for method in ("bulk", "tail"))
    for i, entry in enumerate([{}, {"theta_dim_0": 0}, {"theta_dim_0": 1}]):
        site = "theta" if entry else "mean"
        assert np.isclose(summary.ess_bulk[i], bulk[site].isel(entry))
        assert np.isclose(summary.ess_tail[i], tail[site].isel(entry))
        assert np.isclose(summary.r_hat[i], az.rhat(data)[site].isel(entry))
        flat = data[site].isel(entry).values.reshape(-1)
        assert np.isclose(summary.mean[i], flat.mean())
        assert np.isclose(summary.error[i], flat.std() / np.sqrt(summary.ess_bulk[i]))
        assert abs(summary.low[i] - np.quantile(flat, 0.05)) < 0.02


@pytest.mark.parametrize("draws", [20, 400])
def test_means_are_as_far_off_as_their_errors_say(draws):
    """Of moving averages, which have half an effective draw each; in short and in long chains."""
    scores = []
    for seed in range(40):
        noise = numbers(8000 // draws, draws + 1, seed=seed)
        values = {name: (x[:, 1:] + x[:, :-1]) / 2**0.5 for name, x in noise.items()}
        source = read_source(result(values))
        scores += list(source.summary.mean / source.summary.error)
    assert 0.85 < np.std(scores) < 1.15


def test_the_worst_comes_first_and_constants_last():
    values = numbers(sites=[("good", ()), ("fixed", ()), ("bad", ())])
    values["fixed"][:] = 2.0
    values["bad"] += 3 * np.arange(4)[:, None]
    source = read_source(result(values))
    assert [source.names[i] for i in source.summary.order] == ["bad", "good", "fixed"]
    assert [source.names[i] for i in source.varying] == ["bad", "good"]
    assert np.isnan(source.summary.r_hat[1]) and np.isnan(source.summary.ess_bulk[1])


def test_one_chain_has_no_r_hat_and_three_draws_no_sizes():
    one = read_source(result(numbers(chains=1))).summary
    assert np.isnan(one.r_hat).all() and np.isfinite(one.ess_bulk).all()
    short = read_source(result(numbers(draws=3))).summary
    assert np.isnan(short.ess_bulk).all() and np.isfinite(short.mean).all()


def test_parameters_beyond_the_bound_are_left_out_and_counted():
    values = numbers(sites=[("a", (3,)), ("b", (4,))])
    source = read_source(result(values), options=ReportOptions(max_parameters=5))
    assert source.names == ["a[0]", "a[1]", "a[2]", "b[0]", "b[1]"]
    assert source.draws.shape[-1] == 5 and source.left_out == 2


def test_draws_of_the_flow_come_from_the_result_or_are_given():
    values = numbers(chains=1, seed=4)
    weights = {"log_weight": np.zeros((1, 200))}
    groups = {"proposal": dataset(values), "proposal_stats": dataset(weights)}
    own = read_source(result(groups=groups, tree=True))
    given = read_source(result(), result(values, weights))
    for source in (own, given):
        np.testing.assert_allclose(source.proposals[:, 0], values["mean"][0])
        assert source.proposal_log_weights.shape == (200,)
        assert source.pareto_k_proposals == -np.inf  # equal weights have no tail
    assert read_source(result()).proposals is None


def test_sites_that_the_flow_does_not_draw_are_missing_among_its_draws():
    groups = {"proposal": dataset({"theta": numbers(1)["theta"]})}  # mean is deterministic
    source = read_source(result(groups=groups, tree=True))
    assert np.isnan(source.proposals[:, 0]).all() and np.isfinite(source.proposals[:, 1:]).all()
    assert (
        read_source(result(groups={"proposal": dataset({"other": numbers(1)["mean"]})})).proposals
        is None
    )


def test_the_tail_of_weights():
    log_weights = torch.distributions.Pareto(1.0, 2.0).sample((4, 5000)).log()  # k is 1/2
    source = read_source(result(numbers(draws=5000), {"log_weight": log_weights.double().numpy()}))
    assert abs(source.pareto_k_states - 0.5) < 0.15


@pytest.mark.parametrize(
    ("data", "arguments", "words"),
    [
        ({}, {}, "no group 'posterior'"),
        (3, {}, "of type int has no group"),
        (result(), {"var_names": ["mu"]}, r"\['mu'\] are not among the sites"),
        (result(), {"var_names": "mean"}, "must be a list"),
        (result(), {"proposals": {}}, r"give to_arviz\(guide\)"),
        ({"posterior": dataset({"x": np.zeros((2, 3, 0))})}, {}, "no draws of any real number"),
    ],
)
def test_refusals(data, arguments, words):
    with pytest.raises(ValueError, match=words):
        read_source(data, **arguments)


def test_effective_sample_sizes_of_short_chains():
    """Means of 20 moving averages have the variance 1.95/20; ArviZ's sizes are 12 % too large."""
    found = {short: [] for short in (0, ReportOptions.short)}
    for seed in range(10):
        noise = numbers(400, 21, seed=seed)
        values = {name: (x[:, 1:] + x[:, :-1]) / 2**0.5 for name, x in noise.items()}
        for short, sizes in found.items():
            source = read_source(result(values), options=ReportOptions(short=short))
            sizes += list(source.summary.ess_bulk)
    arviz, ours = (np.mean(sizes) / (8000 / 1.95) for sizes in found.values())
    assert abs(ours - 1) < 0.06 and arviz > 1.08
