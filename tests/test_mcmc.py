"""VectorizedMCMC's own matters: memory, thinning, what is kept."""

import subprocess
import sys
from pathlib import Path

import pyro
import pytest
import torch
from models import QUICK, conjugate, conjugate_data

from pyro_flowsamp import IMH, AutoFlow, LatentMALA, VectorizedMCMC

MILLION = """
import resource, sys, torch
sys.path.insert(0, "examples")
from models import load
from pyro_flowsamp import IMH, AutoFlow, FitOptions, VectorizedMCMC

torch.set_num_threads(1)
model, data = load("eight_schools")
guide = AutoFlow(model, options=FitOptions(progress=False))
guide.fit(*data)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
mcmc = VectorizedMCMC(
    IMH(model, guide=guide), 1000, warmup_steps=50, num_chains=1000, disable_progbar=True
)
mcmc.run(*data)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert mcmc.get_samples()["z"].shape == (1_000_000, 8)
assert mcmc.statistics["accepted"].double().mean() > 0.7
print((after - before) / 1024)
"""


def test_a_million_draws_in_bounded_memory():
    """10 float32 coordinates and 5 statistics are 66 MB; thrice that is room for all else."""
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", MILLION], capture_output=True, text=True, cwd=root, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 250


@pytest.fixture
def guide():
    guide = AutoFlow(conjugate, options=QUICK)
    guide.fit(*conjugate_data())
    return guide


def run(guide, kernel=IMH, **options):
    pyro.set_rng_seed(3)
    made = kernel(conjugate, guide=guide)
    mcmc = VectorizedMCMC(made, warmup_steps=5, num_chains=7, disable_progbar=True, **options)
    mcmc.run(*conjugate_data())
    return mcmc


@pytest.mark.parametrize("kernel", [IMH, LatentMALA])
def test_thinning_keeps_every_third_draw(guide, kernel):
    every = run(guide, kernel, num_samples=30).get_samples(group_by_chain=True)
    third = run(guide, kernel, num_samples=10, thin=3).get_samples(group_by_chain=True)
    for name, value in third.items():
        assert torch.equal(value, every[name][:, 2::3])


def test_resampling_and_grouping(guide):
    mcmc = run(guide, num_samples=10)
    name = next(iter(mcmc.get_samples()))
    assert mcmc.get_samples()[name].shape[0] == 70
    assert mcmc.get_samples(num_samples=5)[name].shape[0] == 5
    assert mcmc.get_samples(group_by_chain=True)[name].shape[:2] == (7, 10)


def test_seconds_of_each_phase(guide):
    assert set(run(guide, num_samples=3).seconds) == {"training", "warmup", "sampling"}


@pytest.mark.parametrize("kernel", [IMH, LatentMALA])
def test_resume_goes_on_as_one_longer_run(guide, kernel):
    """The same draws as if there had been no pause: nothing is adapted or started anew."""
    runs = []
    for pieces in ((40,), (15, 25)):
        pyro.set_rng_seed(0)
        mcmc = VectorizedMCMC(
            kernel(guide=guide), pieces[0], warmup_steps=5, num_chains=8, disable_progbar=True
        )
        mcmc.run(*conjugate_data())
        draws = [mcmc.get_samples(group_by_chain=True)["mean"]]
        for more in pieces[1:]:
            mcmc.resume(more)
            draws.append(mcmc.get_samples(group_by_chain=True)["mean"])
        runs.append(torch.cat(draws, 1))
    assert torch.equal(*runs)


def test_resume_with_other_chains(guide):
    mcmc = VectorizedMCMC(IMH(guide=guide), 5, warmup_steps=5, num_chains=8, disable_progbar=True)
    with pytest.raises(RuntimeError, match="no run to go on from"):
        mcmc.resume(5)
    mcmc.run(*conjugate_data())
    starts = {"mean": torch.linspace(0, 1, 30), "rate": torch.zeros(30)}
    mcmc.resume(7, thin=2, initial_params=starts)
    assert mcmc.get_samples(group_by_chain=True)["mean"].shape == (30, 7)
    assert mcmc.statistics["lp"].shape == (30, 7)
    with pytest.raises(ValueError, match="at least 1"):
        mcmc.resume(0)
