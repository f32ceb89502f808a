"""Counts of rare points: the binomial distribution, and its false alarms."""

import pytest
import torch
from scipy.stats import binom
from support.mutations import must_fail, mutation

from pyro_flowsamp.diagnostics import counts
from pyro_flowsamp.diagnostics.counts import (
    distinct_points,
    effective_counts,
    most_by_chance,
    probability_of_as_many,
)


@pytest.mark.parametrize("count, other, share", [(1, 0, 0.2), (3, 2, 0.1), (5, 40, 0.3)])
def test_the_probability_is_binomial(count, other, share):
    expected = binom.sf(count - 1, count + other, share)
    assert probability_of_as_many(count, other, share) == pytest.approx(expected)


def alarms(probability=0.01, runs=20_000, size=500, other_size=2000):
    """The share of false alarms, of two samples with the same rate."""
    torch.manual_seed(0)
    both = torch.poisson(torch.tensor([size, other_size]).expand(runs, 2) * 0.04)
    most = {k: counts.most_by_chance(k, size, other_size, probability) for k in range(200)}
    return sum(int(k) > most[int(other)] for k, other in both) / runs


def test_false_alarms_are_as_rare_as_they_should_be():
    """Counts are whole numbers, so that they are rarer."""
    assert 0.004 < alarms() < 0.0105


@mutation(counts, "probability_of_as_many")
def of_more_than_so_many(probability_of_as_many, count, other, share):
    return probability_of_as_many(count + 1, other, share)


def test_a_wrong_tail_is_seen():
    must_fail(of_more_than_so_many, score=alarms, above=0.0105)


def weighted_alarms(probability=0.005, runs=5000, rate=0.01, other_size=2500):
    """The share of false alarms where 20 of 2020 points have a third of the weight."""
    torch.manual_seed(0)
    weights = torch.cat([torch.full((2000,), 0.7 / 2000), torch.full((20,), 0.3 / 20)]).double()
    others = torch.poisson(torch.full((runs,), other_size * rate)).int().tolist()
    found = 0
    for rare, other in zip(torch.rand(runs, 2020) < rate, others):
        count, size = counts.effective_counts(weights, rare.nonzero()[:, 0])
        share = size / (size + other_size)
        found += count > 0 and probability_of_as_many(count, other, share) < probability
    return found / runs


def test_weights_do_not_make_false_alarms():
    assert weighted_alarms() < 0.0055


@mutation(counts, "effective_counts")
def of_one_size(effective_counts, weights, rare):
    size = 1 / float(weights.square().sum())
    return int(size * float(weights[rare].sum()) + 0.5), size


def test_one_size_for_all_weights_is_seen():
    must_fail(of_one_size, score=weighted_alarms, above=0.008)


def test_effective_counts():
    """Of equal weights they are the numbers; in any case their ratio is the weighted share."""
    equal, none = torch.full((200,), 1 / 200).double(), torch.tensor([], dtype=torch.long)
    assert effective_counts(equal, torch.arange(7)) == (7, pytest.approx(200))
    assert effective_counts(equal, none) == (0, pytest.approx(200))
    assert effective_counts(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([2])) == (0, 2.0)


def test_the_largest_count_is_never_more_than_there_are():
    assert most_by_chance(50, 10, 5, 1e-3) == 10


def test_the_first_of_equal_points():
    points = torch.tensor([[5.0], [1.0], [2.0], [1.0], [2.0], [3.0]])
    found = distinct_points(points, torch.tensor([1, 2, 3, 4, 5]))
    assert sorted(found.tolist()) == [1, 2, 5]
    assert len(distinct_points(points, torch.tensor([], dtype=torch.long))) == 0
