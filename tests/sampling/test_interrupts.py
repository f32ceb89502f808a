"""Ctrl-C at any evaluation of ``sample()``: what is returned, and what is said of it."""

from math import inf

import pytest
import torch
from support.checkpoints import in_two_parts, number_of_writes
from support.mutations import broken, mutation

from pyro_flowsamp import CheckpointOptions, ModeSearchOptions, SearchOptions, Target, sample
from pyro_flowsamp.checkpoint.scope import active, entered
from pyro_flowsamp.sampling.interrupts import made_again, modes_problem, modes_so_far
from pyro_flowsamp.sampling.storage import stored_modes
from pyro_flowsamp.smc.mode_search import ModeSearch

FEW = ModeSearchOptions(
    paths=16,
    particles=128,
    mcmc_steps=1,
    particles_many_modes=256,
    mcmc_steps_many_modes=1,
    max_evaluations=60_000,
    max_components=4,
    mixture_degrees_of_freedom=(inf,),
)
QUICK = SearchOptions(modes=FEW, pilot_warmup=10, pilot_steps=20, evidence_draws=200)


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def two_modes(x):
    """An energy with two modes that are far apart."""
    near, far = (-0.5 * (x - shift).square().sum(-1) for shift in (-5.0, 5.0))
    return -torch.logaddexp(near, far)


class Interrupted:
    """An energy whose evaluation of a given number raises KeyboardInterrupt."""

    def __init__(self, energy=lambda x: 0.5 * x.square().sum(-1)):
        self.energy, self.calls, self.at = energy, 0, None

    def target(self, at=None):
        target = Target.from_energy(self, 2)
        self.calls, self.at = 0, at
        return target

    def __call__(self, x):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return self.energy(x)


# ---- the search for modes ------------------------------------------------------------------------


def interrupted_search(at, energy):
    torch.manual_seed(0)
    count = Interrupted(energy)
    try:
        return modes_so_far(ModeSearch(count.target(at), FEW)), count.calls
    except KeyboardInterrupt as error:
        return str(error), count.calls


def test_each_evaluation_of_a_search_can_be_interrupted():
    whole, calls = interrupted_search(None, two_modes)
    assert not whole.interrupted and whole.agreement.num_modes == 2
    ends = []
    for at in range(1, calls, max(1, calls // 12)):
        found, _ = interrupted_search(at, two_modes)
        if isinstance(found, str):
            assert found.endswith("there are no draws") and not ends
            continue
        assert found.interrupted and not found.settled and found.x.isfinite().all()
        ends.append(modes_problem(found).partition(": ")[2])
    paths = "by then only quasi-Newton paths had looked for them"
    pairs = "two searches had not agreed by then"
    assert set(ends) == {paths, pairs} and ends == sorted(ends, key=lambda e: e == pairs)


@pytest.fixture
def interrupted_modes(tmp_path):
    """The modes of the same call, made in parts: Ctrl-C in the particles, and then none."""

    def search(at):
        torch.manual_seed(0)
        target = Interrupted().target(at)
        checkpoint = CheckpointOptions(tmp_path / "run", every_seconds=float("inf"))
        with entered(checkpoint, "sample"):
            found = stored_modes(target, lambda: modes_so_far(ModeSearch(target, FEW)))
            return found, torch.rand(2)

    return search


def test_an_interrupted_search_is_so_again(interrupted_modes):
    """What has been returned is what the same call returns."""
    whole = Interrupted()
    modes_so_far(ModeSearch(whole.target(), FEW))
    first, number = interrupted_modes(whole.calls - 20)
    again, same = interrupted_modes(None)
    assert first.interrupted and again.interrupted
    assert torch.equal(first.x, again.x) and torch.equal(number, same)


def test_a_search_without_any_point_begins_anew(interrupted_modes):
    with pytest.raises(KeyboardInterrupt, match="there are no draws"):
        interrupted_modes(3)
    assert not interrupted_modes(None)[0].interrupted


# ---- the search for modes in a checkpoint --------------------------------------------------------


def stored_search(path):
    torch.manual_seed(0)
    target = Target.from_energy(two_modes, 2)
    checkpoint = path and CheckpointOptions(path, every_seconds=float("inf"), every_steps=4)
    with entered(checkpoint, "sample"):
        found = stored_modes(target, ModeSearch(target, FEW).run)
        values = [found.x, found.second, found.mixture.locs, found.agreement.log_evidence]
        return [*values, torch.rand(3), torch.tensor([target.evaluations, found.evaluations])]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def ends_of_search(tmp_path, ends):
    whole = stored_search(None)
    count = number_of_writes(lambda: stored_search(tmp_path / "count"))
    assert count > 6  # paths, particles on their way and at their ends, and the result
    return [
        same(whole, in_two_parts(lambda w=w: stored_search(tmp_path / str(w)), w))
        for w in sorted(set(ends(count)))
    ] + [same(whole, stored_search(tmp_path / "count"))]


def test_a_search_goes_on_from_each_of_its_stages(tmp_path):
    assert all(ends_of_search(tmp_path, lambda count: (1, 3, count - 1)))


@mutation(ModeSearch, "_tempered")
def another_number_is_drawn(right, self, *arguments):
    torch.rand(1) if active().stores else None
    return right(self, *arguments)


def test_mutations_of_a_stored_search_are_seen(tmp_path):
    with broken(another_number_is_drawn):
        assert not all(ends_of_search(tmp_path, lambda count: (count // 2,)))


# ---- short computations --------------------------------------------------------------------------


def test_a_short_computation_has_the_same_numbers_again(tmp_path):
    """And in the same call later."""

    def twice(errors):
        torch.manual_seed(0)
        with entered(tmp_path, "sample"):

            def make():
                number = torch.rand(2)
                if errors:
                    raise errors.pop()
                return number

            return *made_again("short", make), torch.rand(2)

    first, later = twice([KeyboardInterrupt()]), twice([])
    torch.manual_seed(0)
    assert first[1] and later[1] and torch.equal(first[0], torch.rand(2))
    assert torch.equal(first[0], later[0]) and torch.equal(first[2], later[2])
    with pytest.raises(KeyboardInterrupt):
        made_again("other", lambda: twice([KeyboardInterrupt()] * 2))


# ---- sample() ------------------------------------------------------------------------------------


def drawn(at, **options):
    energy = Interrupted()
    given = {"num_samples": 12, "num_chains": 32, "seed": 0, "candidates": ["HMC"], **options}
    data = sample(energy.target(at), progress=False, search=QUICK, compile=False, **given)
    return data, energy.calls


@pytest.fixture(scope="module")
def calls():
    """The calls of the energy in a whole run."""
    return drawn(None)[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("share", [0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.97])
def test_each_evaluation_can_be_interrupted(share, calls):
    """From the end of the paths on there are draws, and their attributes say what they are."""
    at = 1 + int(share * calls)
    try:
        data, _ = drawn(at)
    except KeyboardInterrupt as error:
        assert share <= 0.25 and str(error).endswith("there are no draws")
        return
    draws = torch.as_tensor(data["posterior"]["x"].values)
    assert draws.numel() and draws.isfinite().all()
    whole = draws.shape[:2] == (32, 12)
    assert whole or data.attrs["reliable"] == 0 or draws.shape[1] < 12


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("share", [0.25, 0.3])  # in the annealing, whose end is stored
def test_the_same_call_returns_the_draws_that_an_interrupted_one_has(tmp_path, share, calls):
    found = [drawn(at, checkpoint=tmp_path)[0] for at in (int(share * calls), None)]
    one, other = (torch.as_tensor(data["posterior"]["x"].values) for data in found)
    assert one.shape == other.shape == (32, 12, 2) and torch.equal(one, other)
