"""Counts of rare points: the binomial distribution, and its false alarms."""

import pytest
import torch
from scipy.stats import binom
from support.mutations import must_fail, mutation

from pyro_flowsamp.diagnostics import counts
from pyro_flowsamp.diagnostics.counts import (
    distinct_points,
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


def test_the_largest_count_is_never_more_than_there_are():
    assert most_by_chance(50, 10, 5, 1e-3) == 10


def test_the_first_of_equal_points():
    points = torch.tensor([[5.0], [1.0], [2.0], [1.0], [2.0], [3.0]])
    found = distinct_points(points, torch.tensor([1, 2, 3, 4, 5]))
    assert sorted(found.tolist()) == [1, 2, 5]
    assert len(distinct_points(points, torch.tensor([], dtype=torch.long))) == 0
