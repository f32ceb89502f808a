"""Seeds of the whole range, for the time of a call."""

import random

import numpy as np
import pyro
import pytest
import torch

from pyro_flowsamp.seeding import kept_generators, seeded, set_seed

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


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu")])
def test_generators_of_torch_are_kept(device):
    set_seed(3)
    expected = torch.rand(2)
    set_seed(3)
    with pytest.raises(KeyError), kept_generators(device):
        assert torch.equal(torch.rand(2), expected)  # they go on from their states
        raise KeyError
    assert torch.equal(torch.rand(2), expected)
    with kept_generators(device, seed=3):
        assert torch.equal(torch.rand(2), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("device", [None, "cuda"])
def test_generators_of_a_device_are_kept(device):
    torch.cuda.init()
    before = torch.cuda.get_rng_state()
    with kept_generators(device, seed=3):
        torch.rand(2, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before)
