"""Units of work are traced and compiled by their own counts, on any number of workers."""

from contextlib import nullcontext

import numpy as np
import pyro
import pytest
import torch
from support.mutations import broken, mutation
from support.workers import run_workers

from pyro_flowsamp import (
    AutoFlow,
    FitOptions,
    LatentHMC,
    Target,
    TracingOptions,
    VectorizedMCMC,
    tempered_smc,
    workers,
)
from pyro_flowsamp.smc.starts import TemperedStart
from pyro_flowsamp.target.unit_tracing import UnitTracing


@pytest.fixture
def compiler(monkeypatch, double):
    """A compiler that makes rounding errors, so that draws show when it has taken over."""
    import torch._inductor

    def compile_at_once(module, inputs):
        return lambda *args: tuple(
            t * (1 + 3e-16) if t.is_floating_point() else t for t in module(*args)
        )

    monkeypatch.setenv("PYRO_FLOWSAMP_COMPILE", "1")
    monkeypatch.setattr(torch._inductor, "compile", compile_at_once)


def banana():
    target = Target.from_energy(
        lambda x: 0.5 * ((x[:, 0] - 1) ** 2 + (x[:, 1] - x[:, 0] ** 2) ** 2), 2
    )
    target.tracing = TracingOptions(calls=12, compile_operations=1, min_operations=1)
    return target


def chains(group):
    """Draws of five blocks, and the parts of steps that are compiled on this worker."""
    pyro.set_rng_seed(1)
    guide = AutoFlow(banana(), flow="gaussian", options=FitOptions(4, progress=False))
    guide.target_for()
    guide.trained = True
    kernel = LatentHMC(guide=guide, num_steps=2)
    run = VectorizedMCMC(kernel, 12, 12, 40, disable_progbar=True)
    run.run()
    x = run.gathered(to_all=True).unconstrained
    kept = kernel.step_graphs._kept  # by the name of a part, or that of it compiled, and its key
    compiled = sum(name != key[0] for name, key in kept)
    return x, kernel.step_graphs.state_dict()["calls"], compiled


def islands(group):
    pyro.set_rng_seed(2)
    base = TemperedStart(torch.zeros(2), 5 * torch.ones(2), torch.zeros(2, dtype=torch.bool))
    target = banana()
    options = {"islands": 5, "mcmc_steps": 8, "base": base, "check_coverage": False}
    found = tempered_smc(target, 160, **options)
    return found.x, found.log_z, len(target.density.density._kept_compiled)


SMALL = {"chains_per_block": 8}


@pytest.mark.slow
@pytest.mark.parametrize("function", [chains, islands])
def test_what_is_compiled_does_not_depend_on_the_number_of_workers(compiler, function):
    (one,), *others = (run_workers(size, function, **SMALL) for size in (1, 2, 4))
    assert one[-1] > 0
    for found in (rank for ranks in others for rank in ranks):
        assert all(np.array_equal(a, b) for a, b in zip(found[:2], one[:2], strict=True))


@pytest.mark.parametrize("function", [chains, islands])
def test_counts_of_all_units_together_are_seen(compiler, function):
    together = mutation(UnitTracing, "active")(lambda right, self, *counted: nullcontext())
    with broken(together):
        (one,), two = (run_workers(size, function, **SMALL) for size in (1, 2))
    assert not np.array_equal(one[0], two[0][0])


def test_graphs_are_compiled_in_blocks_as_outside(compiler):
    with workers():
        inside = chains(None)
    assert inside[-1] > 0 and inside[1] == []
