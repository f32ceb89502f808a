"""``sample()`` that is ended at any moment, and what Ctrl-C and errors leave of it."""

import pytest
import torch
from support.checkpoints import banana, in_two_parts, number_of_writes
from support.mutations import broken, mutation

from pyro_flowsamp import (
    CheckpointOptions,
    ModeSearchOptions,
    SearchOptions,
    Target,
    VectorizedMCMC,
    sample,
)
from pyro_flowsamp.checkpoint.folder import CheckpointError
from pyro_flowsamp.checkpoint.scope import active, entered
from pyro_flowsamp.sampling.storage import interruptible, stored_check


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def run(path, **changed):
    """The draws, and the attributes but for the times, in a process of its own."""
    checkpoint = path and CheckpointOptions(path, every_seconds=float("inf"), every_steps=40)
    options = {"num_samples": 20, "num_chains": 16, "seed": 1, "candidates": ["HMC"], **changed}
    options["search"] = SearchOptions(modes=ModeSearchOptions(paths=16, survey_points=1024))
    data = sample(banana(), progress=False, checkpoint=checkpoint, **options)
    attrs = {k: str(v) for k, v in data.attrs.items() if "seconds" not in k and k != "created_at"}
    return torch.as_tensor(data["posterior"]["x"].values), attrs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_same_draws_after_an_end_in_each_phase(tmp_path):
    draws, attrs = run(None)
    count = number_of_writes(lambda: run(tmp_path / "count"))
    for writes in sorted({1, 3, count // 2, count - 1}):
        path = tmp_path / str(writes)
        found, others = in_two_parts(lambda path=path: run(path), writes)
        assert torch.equal(draws, found) and attrs == others, writes
    found, others = run(tmp_path / "count")
    assert torch.equal(draws, found) and attrs == others
    with pytest.raises(CheckpointError, match="num_chains is 17 and was 16"):
        run(tmp_path / "count", num_chains=17)
    with pytest.raises(CheckpointError, match="seed is 2 and was 1"):
        run(tmp_path / "count", seed=2)


class Counted:
    """A kernel whose state a check changes."""

    def __init__(self):
        self.steps = 0

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]

    def check(self):
        assert not active().stores
        self.steps += 5
        return "a problem", float(torch.rand(()))


def checked(path):
    kernel = Counted()
    with entered(path, "sample"):
        return stored_check(kernel, kernel.check), kernel.steps


def test_a_check_is_made_once_and_leaves_the_kernel_as_it_did(tmp_path):
    assert checked(tmp_path) == checked(tmp_path)


@mutation(Counted, "load_state_dict")
def kernel_left_as_it_was(right, self, state):
    return None


def test_a_mutation_of_checks_is_seen(tmp_path):
    first = checked(tmp_path)
    with broken(kernel_left_as_it_was):
        assert checked(tmp_path) != first


@pytest.mark.parametrize("goes_on", [True, False])
def test_what_was_interrupted_is_so_again(tmp_path, goes_on):
    """Unless the search could not do without it: then it is made."""
    made = []
    for error in (KeyboardInterrupt, None):
        with entered(tmp_path, "sample"):
            try:
                with interruptible("pilot", lambda: goes_on):
                    made.append(error)
                    if error:
                        raise error
            except KeyboardInterrupt:
                continue
    assert made == ([KeyboardInterrupt] if goes_on else [KeyboardInterrupt, None])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_error_late_in_the_draws_ends_them(monkeypatch):
    """And is a problem of the result; one of a flow's training leaves the flow out."""
    right, calls = VectorizedMCMC.resume, []

    def resume(self, *args, **kwargs):
        calls.append(self)
        if kwargs.get("append"):
            raise ArithmeticError("a late error")
        return right(self, *args, **kwargs)

    monkeypatch.setattr(VectorizedMCMC, "resume", resume)
    data = sample(banana(), ess=3000, seed=0, progress=False, candidates=["HMC"])
    assert "the density raised ArithmeticError (a late error)" in data.attrs["problems"]
    assert data.attrs["reliable"] == 0 and data["posterior"]["x"].shape[1] >= 8


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_flow_whose_training_fails_is_left_out(monkeypatch):
    import pyro_flowsamp.sampling.search as search

    def fails(*arguments):
        raise RuntimeError("no such flow")

    monkeypatch.setattr(search, "train_guide", fails)
    monkeypatch.setattr(search.SamplerSearch, "worth_trying", lambda *arguments: True)
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    with pytest.warns(UserWarning, match="coupling is left out: no such flow"):
        data = sample(target, num_samples=5, num_chains=16, seed=0, progress=False)
    assert data["posterior"]["x"].shape[1] == 5
