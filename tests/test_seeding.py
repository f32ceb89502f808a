"""Seeds of the whole range, for the time of a call."""

import random

import numpy as np
import pyro
import pytest
import torch

from pyro_flowsamp.seeding import seeded, set_seed

SEEDS = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**63, 2**64 - 1, np.int64(7)]


def draws():
    return (*torch.rand(2).tolist(), *np.random.rand(2), random.random())


@pytest.mark.parametrize("seed", [seed for seed in SEEDS if seed < 2**32])
def test_small_seeds_are_those_of_pyro(seed):
    set_seed(seed)
    ours = draws()
    pyro.set_rng_seed(int(seed))
    assert ours == draws()


def test_seeds_differ_in_every_generator():
    found = []
    for seed in SEEDS:
        with seeded(seed):
            found.append(draws())
        with seeded(seed):
            assert found[-1] == draws()
    for one in zip(*found):
        assert len(set(one)) == len(SEEDS)


def test_states_are_as_before():
    set_seed(3)
    expected = draws()
    set_seed(3)
    with pytest.raises(KeyError), seeded(2**64 - 1):
        draws()
        raise KeyError
    assert draws() == expected


def test_without_a_seed():
    set_seed(3)
    expected = draws()
    set_seed(3)
    with seeded(None):
        assert draws() == expected


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, "1"])
def test_no_seeds(seed):
    with pytest.raises(ValueError, match="seed must be a whole number"):
        set_seed(seed)
