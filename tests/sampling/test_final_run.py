"""The final run: where chains begin, when they have moved, and what the logger says of it."""

import logging
import re
from math import exp, inf
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.diagnosed import found_modes
from support.mutations import broken, must_fail, mutation

import pyro_flowsamp as pf
from pyro_flowsamp import ModeSearchOptions, SearchOptions, Target, sample
from pyro_flowsamp.chains import draw_buffer, vectorized
from pyro_flowsamp.free_memory import TooLittleMemoryError
from pyro_flowsamp.sampling import final_run, pilot
from pyro_flowsamp.sampling.candidates import gaussian_guide
from pyro_flowsamp.sampling.pilot import Goal
from pyro_flowsamp.stays import ess_of_longest_stays, expected_stays


@pytest.mark.slow
def test_info_says_what_is_tried_and_why(caplog):
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    with caplog.at_level(logging.INFO, logger="pyro_flowsamp"):
        data = sample(target, ess=500, seed=0, progress=False)
    said = "\n".join(caplog.messages)
    assert re.search(r"modes: 1, after \d+ evaluations", said)
    for tried in data.attrs["candidates"].split("; "):
        assert tried in said
    assert "HMC: not tried, since its pilot run takes more work than it could save" in said
    assert f"{data.attrs['method']} makes the draws, with about" in said
    last = re.findall(r"effective sample size (\d+) of (\d+)", said)[-1]
    assert int(last[0]) >= int(last[1]) >= 500


def test_nothing_is_said_by_default(capfd):
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
    sample(target, num_samples=5, seed=0, progress=False)
    assert capfd.readouterr() == ("", "")


# ---- where chains begin --------------------------------------------------------------------------


def test_chains_begin_at_particles_by_their_weights():
    """A search that has missed mass counts in proportion to its evidence."""
    modes = found_modes((0.9, 0.1), log_evidence=torch.tensor([0.0, -2.0]).double())
    order = torch.randperm(len(modes.x))  # as the search has them
    x, second, weights = modes.x[order], modes.second[order], modes.weights[order]
    modes = modes._replace(x=x, second=second, weights=weights)
    starts = final_run.starting_points(SimpleNamespace(num_chains=1000), modes)
    first = (starts[:, None] == modes.x[~modes.second]).all(-1).any(-1)
    assert abs(float(first.double().mean()) - 1 / (1 + exp(-2))) < 0.05
    assert abs(float((starts[:, 0] > 0).double().mean()) - 0.1) < 0.03


def test_without_particles_chains_go_on_from_the_pilot_run():
    none = float("nan")
    modes = found_modes(unseen=none)
    states = torch.randn(4, 3, 2)
    best = SimpleNamespace(num_chains=20, run=SimpleNamespace(unconstrained=states))
    starts = final_run.starting_points(best, modes)
    assert len(starts) == 20
    assert bool((starts[:, None] == states.flatten(0, 1)).all(-1).any(-1).all())


# ---- chains that never move ----------------------------------------------------------------------


def problems(num_modes):
    """What is wrong after a burn-in with local moves, and a flow that is far away."""
    torch.manual_seed(0)
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    flow = gaussian_guide(target, torch.full((2,), 60.0), 0.1 * torch.eye(2))
    kernel = pf.LocalGlobalHMC(guide=flow, local_steps=1, inversion=None, step_size=0.01)
    goal = Goal(None, 10, 64)
    best = pilot.run_pilot("LocalGlobalHMC", kernel, target, torch.randn(64, 2), goal, 0.0)
    assert not bool(best.run.statistics["accepted"].any())
    modes = found_modes(num=64, modes=torch.arange(2) % num_modes)
    modes = modes._replace(x=torch.randn(64, 2))
    return final_run.finish(best, target, modes, progress=False)


def test_local_moves_are_enough_at_one_mode():
    assert problems(1) == []
    assert "64 of 64 chains have never moved" in problems(2)[0]


@mutation(final_run, "chains_that_moved")
def by_proposals_alone(chains_that_moved, run, first, several):
    return chains_that_moved(run, first, True)


@mutation(final_run, "chains_that_moved")
def by_any_move(chains_that_moved, run, first, several):
    return chains_that_moved(run, first, False)


def test_what_moves_chains_depends_on_the_modes():
    with broken(by_proposals_alone):
        assert problems(1)
    with broken(by_any_move):
        assert not problems(2)


SMALL = ModeSearchOptions(paths=16, particles=256, max_evaluations=60_000)

# ---- draws that do not fit into memory -----------------------------------------------------------


def drawn_in(memory, monkeypatch, draws=150, chains=64):
    """A call of sample() that needs more than one doubling, in memory for so many draws or in all.

    Returns:
        The result, and the draws of each of its checks of memory.
    """
    asked, right = [], vectorized.check_memory

    def check(target, num_samples, *counts, **options):
        asked.append(num_samples)
        right(target, num_samples, *counts, **options)

    with monkeypatch.context() as patch:
        target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        target.compile_mode = False
        patch.setattr(vectorized, "check_memory", check)
        if memory:
            most = draw_buffer.needed_bytes(target, draws, chains, target.dim)
            patch.setattr(draw_buffer, "free_bytes", lambda device: most)
        search = SearchOptions(modes=SMALL, candidates=("IMH",), pilot_chains=64)
        data = sample(target, ess=14_000, num_chains=chains, seed=0, progress=False, search=search)
    return data, asked


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_doubling_that_does_not_fit_ends_the_draws(monkeypatch):
    """The draws so far are kept, and are those that a larger memory has first."""
    whole, _ = drawn_in(False, monkeypatch)
    data, asked = drawn_in(True, monkeypatch)
    num = data["posterior"].sizes["draw"]
    assert num <= 150 < asked[-1] == 2 * num  # the last check, which has failed
    assert np.array_equal(data["posterior"]["x"], whole["posterior"]["x"][:, :num])
    text = (
        rf"the draws end before they are enough, since more do not fit into memory: {2 * num} "
        rf"draws of 64 chains, 2 numbers each, need [\d,]+ bytes on cpu, and [\d,]+ are free; ask "
        rf"for fewer draws by ess=.* or hold them in files"
    )
    assert re.search(text, data.attrs["problems"])
    assert data.attrs["reliable"] == 0 and whole.attrs["reliable"] == 1


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_draws_without_room_for_the_first_ones_are_refused(monkeypatch):
    with pytest.raises(
        TooLittleMemoryError, match="draws of 64 chains.* are free: ask for .* ess="
    ):
        drawn_in(True, monkeypatch, draws=70)
    with pytest.raises(TooLittleMemoryError, match="draws of 64 chains.* are free: keep"):
        drawn_in(True, monkeypatch, draws=5)  # not even for those of pilot runs


# ---- tails that a flow hardly reaches ------------------------------------------------------------

#: mixtures whose tails are thinner than those of the target
THINNER = ModeSearchOptions(mixture_degrees_of_freedom=(inf, 3.0), heavier_tail_errors=0.0)


def lack_of_rare_states(ess=4000):
    """Return wanted over effective draws of the states at which an independence sampler stays.

    The shape of the tail is not asked for, so that the sampler is trusted.
    """
    heavy = Target.from_energy(lambda x: 1.5 * (x.square().sum(-1) / 2).log1p(), 1)  # Student-t(2)
    search = SearchOptions(modes=THINNER, candidates=("IMH",), max_pareto_k=10.0)
    data = sample(heavy, ess=ess, seed=1, progress=False, search=search)
    assert data.attrs["method"] == "IMH (Student-t)"
    log_w = torch.as_tensor(data["sample_stats"]["log_weight"].values).flatten()
    steps = len(log_w) * data.attrs["thin"]
    return ess / ess_of_longest_stays(expected_stays(log_w), steps, search.rare_states)


def test_tails_get_the_effective_size_that_is_wanted():
    assert lack_of_rare_states() <= 1


@mutation(final_run, "_rare_ess")
def by_the_chains_alone(_rare_ess, best):
    return inf


def test_the_chains_alone_do_not_show_it():
    must_fail(by_the_chains_alone, score=lack_of_rare_states, above=1.5)
