"""Workers in processes of their own: spawned with a FileStore between them, one thread each."""

import numpy as np
import pytest
from support import spawned
from support.marks import long_workers
from support.shared_sampling import BLOCKS, sampled
from support.workers import run_workers


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, pytest.param(4, marks=long_workers)])
def test_chains_particles_evidences_and_gradients_are_those_of_one_worker(size):
    ((chains, particles, gradient),) = run_workers(
        1, spawned.everything, start="spawn", **spawned.CHAINS
    )
    assert chains.shape == (96, 5, 2) and particles[0].shape == (256, 2)
    for found in run_workers(size, spawned.everything, start="spawn", **spawned.CHAINS):
        assert np.array_equal(found[0], chains)
        assert all(np.array_equal(*pair) for pair in zip(found[1], particles, strict=True))
        assert np.abs(found[2] - gradient).max() < 1e-12 * np.abs(gradient).max()


@pytest.mark.slow
def test_a_killed_process_is_named():
    first, second = run_workers(2, spawned.killed, start="spawn")
    assert second is None
    assert "2 workers failed on rank 0: rank 1 does not answer" in str(first)


@pytest.mark.slow
@long_workers
def test_sample_is_that_of_one_worker():
    one, two = (run_workers(size, sampled, start="spawn", **BLOCKS) for size in (1, 2))
    for draws, attrs in two:
        assert all(np.array_equal(draws[k], one[0][0][k], equal_nan=True) for k in draws)
        assert attrs == one[0][1]
