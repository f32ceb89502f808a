"""Seeds of the whole range, for the time of a call."""

import random

import numpy as np
import pyro
import pytest
import torch

from pyro_flowsamp import seeding
from pyro_flowsamp.seeding import Stream, kept_generators, seeded, set_seed

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


# ---- streams -------------------------------------------------------------------------------------


def first_of(*names, num=4):
    with Stream(*names).active():
        return torch.rand(num, dtype=torch.double)


def test_streams_differ_in_each_of_their_names():
    names = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (2**64 - 1, "a", 0), (0, "a", 10)]
    found = torch.cat([first_of(*one) for one in names])
    assert len(found.unique()) == len(found)
    assert torch.equal(first_of(0, "a", 1), first_of(0, "a", 1))


def test_a_stream_goes_on_and_leaves_the_others_alone():
    expected = first_of(3, "a", 5, num=6)
    set_seed(4)
    outside, stream, found = draws(), Stream(3, "a", 5), []
    set_seed(4)
    for _ in range(3):
        with stream.active():
            found.append(torch.rand(2, dtype=torch.double))
    assert torch.cat(found).tolist() == expected.tolist()
    assert draws() == outside
    state = stream.state_dict()
    other = Stream(0, "b", 0)
    other.load_state_dict(state)
    with stream.active():
        following = torch.rand(2)
    with other.active():
        assert torch.equal(torch.rand(2), following)


def test_a_stream_is_the_mersenne_twister_with_words_of_a_hash():
    """NumPy's generator with the same words: notices where torch lays out its state otherwise."""
    words = np.random.SeedSequence(5).generate_state(624, np.uint32)
    generator = torch.Generator()
    generator.set_state(seeding._twister(words))
    found = torch.rand(2000, generator=generator).numpy()
    twister = np.random.MT19937(0)
    words[0] = 2**31
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    expected = (twister.random_raw(2000) & (2**24 - 1)) / 2**24
    assert np.array_equal(found, expected.astype(np.float32))


def test_streams_are_independent():
    """Sums over 400 streams of consecutive units, and products of neighbours, are right."""
    x = torch.stack([first_of(0, "chains", unit, num=64) for unit in range(400)]) - 0.5
    scores = [
        x.mean() * (12 * x.numel()) ** 0.5,
        (x[1:] * x[:-1]).mean() * 12 * x[1:].numel() ** 0.5,
        (x[:, 1:] * x[:, :-1]).mean() * 12 * x[:, 1:].numel() ** 0.5,
        x.mean(0).square().sum() * 12 * 400 / 64,
    ]
    assert max(abs(float(s)) for s in scores[:3]) < 4
    assert 0.5 < float(scores[3]) < 1.7  # a chi-squared of 64 degrees over 64
