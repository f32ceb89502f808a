"""Targets with model arguments as context."""

from math import inf

import pyro
import pyro.distributions as dist
import pytest
import torch
from support import models
from torch.testing import assert_close

from pyro_flowsamp import Target
from pyro_flowsamp.target import as_target
from pyro_flowsamp.target.context import check_number_of_chains, split_by_context


def test_amortize():
    ys = torch.randn(4, 2)
    target = Target.from_model(models.location, ys[0])
    conditional = target.conditional_on("y")
    x = torch.randn(4, 2)
    each = [Target.from_model(models.location, y).log_prob(row[None]) for y, row in zip(ys, x)]
    assert_close(conditional.log_prob(x, ys), torch.cat(each))
    assert_close(conditional.log_prob(x), target.log_prob(x))  # its own argument is the default
    with pytest.raises(ValueError, match="only a target made from a Pyro model"):
        Target.from_energy(models.energy, 2).conditional_on("y")


# ---- what a model may hide ----------------------------------------------------------------------


def test_names_that_no_argument_has():
    target = Target.from_model(models.location, torch.zeros(2))
    with pytest.raises(ValueError, match="'z'. are no arguments of the model, which has .'y'"):
        target.conditional_on("z")
    with pytest.raises(ValueError, match="takes no model arguments"):
        as_target(target, 1.0)


def test_data_may_depend_on_an_argument():
    """Given on each call, they may leave a support that those of the beginning were in."""

    def model(y):
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        pyro.sample("y", dist.Exponential(rate), obs=y)

    target = Target.from_model(model, torch.tensor(1.0)).conditional_on("y")
    found = target.log_prob(torch.zeros(2, 1), torch.tensor([[1.0], [-1.0]]))
    assert found[0].isfinite() and found[1] == -inf


# ---- chains at several contexts -----------------------------------------------------------------


def test_chains_are_shared_out_evenly():
    contexts = torch.zeros(3, 1)
    check_number_of_chains(6, contexts)
    check_number_of_chains(5, None)
    with pytest.raises(ValueError, match="5 chains cannot be shared out evenly among 3 contexts"):
        check_number_of_chains(5, contexts)


def test_draws_are_split_by_context():
    """Chain i is at context i mod 3."""
    draws = torch.arange(6)[:, None, None] + torch.zeros(6, 4, 2)
    split = split_by_context(draws, 3)
    assert split.shape == (2, 4, 3, 2)
    assert split[:, 0, :, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
