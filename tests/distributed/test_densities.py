"""Densities of workers: they are compared, and traced only where the user has asked for it."""

import pytest
import torch
from support.workers import run_workers

from pyro_flowsamp import Target
from pyro_flowsamp.distributed import check_same_density, without_auto_tracing


def gaussian(scale=1.0, dim=2):
    return Target.from_energy(lambda x: 0.5 * (x / scale).square().sum(-1), dim)


def compared(group, scales, log_qs):
    log_q = log_qs[group.rank]
    check_same_density(
        group, gaussian(scales[group.rank]), lambda x: log_q * torch.ones(len(x)).double()
    )
    return "the same"


@pytest.mark.parametrize(
    "scales, log_qs, message",
    [
        ((1.0, 1.0), (0.0, 0.0), "the same"),
        ((1.0, 1.0 + 1e-7), (0.0, 0.0), "the same"),  # less than rounding errors
        ((1.0, 1.1), (0.0, 0.0), "the log density differs between the workers"),
        ((1.0, 1.0), (0.0, 0.1), "the log density of the flow differs between the workers"),
    ],
)
def test_workers_with_other_densities_are_refused(scales, log_qs, message):
    for found in run_workers(2, compared, scales, log_qs):
        assert message in str(found)


def random_numbers(group):
    before = torch.get_rng_state()
    check_same_density(group, gaussian())
    return bool((torch.get_rng_state() == before).all())


def test_a_comparison_draws_no_random_numbers_of_the_caller():
    assert run_workers(1, random_numbers) == [True]


@pytest.mark.parametrize("mode, inside", [("auto", False), (False, False), (True, True)])
def test_the_mode_of_compilation_comes_back(mode, inside):
    target = gaussian()
    target.compile_mode = mode
    with pytest.raises(KeyError), without_auto_tracing(target):
        assert target.compile_mode is inside
        raise KeyError
    assert target.compile_mode == mode
