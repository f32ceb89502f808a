"""Draws that a checkpoint streams into its folder: the same ones, in little memory."""

from types import SimpleNamespace

import arviz as az
import pyro
import pyro.distributions as dist
import pytest
import torch
from support.checkpoints import Killed, in_two_parts, killed_after
from support.mutations import broken, mutation
from support.peak import Peak, unknown

from pyro_flowsamp import (
    IMH,
    AutoFlow,
    CheckpointOptions,
    DiagnosisOptions,
    FitOptions,
    ModeSearchOptions,
    SearchOptions,
    StoredDraws,
    Target,
    VectorizedMCMC,
    convergence,
    sample,
    to_arviz,
)
from pyro_flowsamp.chains import draw_buffer, streaming
from pyro_flowsamp.chains import storage as chain_storage
from pyro_flowsamp.checkpoint.folder import CheckpointError
from pyro_flowsamp.diagnostics.chains import chain_checks
from pyro_flowsamp.diagnostics.draws import read_draws
from pyro_flowsamp.sampling import final_run
from pyro_flowsamp.sampling.pilot import Goal

ARVIZ_0 = az.__version__.startswith("0.")

DATA = torch.tensor([0.5, -1.0, 2.0])


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK_NUMBERS", 100)
    monkeypatch.setattr(chain_storage, "BLOCK_BYTES", 4000)


def model(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
    pyro.deterministic("twice", 2 * mean * shares)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def chains(path, stream=True, appended=False, **options):
    pyro.set_rng_seed(0)
    guide = AutoFlow(model, flow="gaussian", options=FitOptions(max_steps=4, progress=False))
    checkpoint = path and CheckpointOptions(
        path, every_seconds=float("inf"), every_steps=7, stream=stream
    )
    run = VectorizedMCMC(
        IMH(model, guide=guide), 20, 5, 6, checkpoint=checkpoint, disable_progbar=True, **options
    )
    run.min_acceptance = 0.0
    run.run(DATA)
    if appended:
        run.resume(9)
        run.resume(6, append=True)
    return run


def same(one, other):
    """Whether two ArviZ objects have the same numbers."""
    groups = [list(x.groups()) if ARVIZ_0 else list(x.children) for x in (one, other)]
    assert groups[0] == groups[1]
    return all(one[group].equals(other[group]) for group in groups[0])


def exported(run):
    pyro.set_rng_seed(1)
    return to_arviz(run, groups=["log_prior", "unconstrained_posterior"])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("appended", [False, True])
def test_streamed_draws_are_those_in_memory(tmp_path, small_blocks, appended):
    whole = exported(chains(None, appended=appended))
    run = chains(tmp_path / "run", appended=appended)
    assert same(whole, exported(run))
    stored = StoredDraws(tmp_path / "run", model, DATA)
    assert same(whole, exported(stored)) and torch.equal(stored.starts, run.starts)
    assert (stored.num_chains, stored.num_samples, stored.thin) == (6, run.num_samples, 1)
    chains(tmp_path / "held", stream=False, appended=appended)
    assert same(whole, exported(StoredDraws(tmp_path / "held", model, DATA)))
    assert not list((tmp_path / "run").glob("draws-*"))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_that_was_ended_goes_on_and_its_draws_so_far_can_be_read(tmp_path, small_blocks):
    whole = chains(None)
    with killed_after(6), pytest.raises(Killed):
        chains(tmp_path / "run")
    stored = StoredDraws(tmp_path / "run", model, DATA)
    count = stored.num_samples
    assert 0 < count < 20
    assert torch.equal(stored.unconstrained, whole.unconstrained[:, :count])
    assert stored.get_samples()["mean"].shape == (6 * count,)
    found = in_two_parts(lambda: chains(tmp_path / "other"), 6)
    assert torch.equal(found.unconstrained, whole.unconstrained)


def test_some_sites_alone(tmp_path):
    chains(tmp_path, save_params=["shares"])
    assert list(StoredDraws(tmp_path, model, DATA).get_samples()) == ["shares"]


@mutation(draw_buffer.DrawBuffer, "since")
def one_draw_too_few(since, self, first):
    return since(self, min(first + 1, self.count - 1))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_mutation_of_blocks_is_seen(tmp_path, small_blocks):
    with broken(one_draw_too_few):
        run = chains(tmp_path)
    assert StoredDraws(tmp_path, model, DATA).num_samples < run.num_samples


# ---- refusals ------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder"):
        StoredDraws(tmp_path / "none", model, DATA)
    with pytest.raises(CheckpointError, match="there are no draws of chains in"):
        StoredDraws(tmp_path, model, DATA)
    chains(tmp_path)
    with pytest.raises(
        CheckpointError, match="another model: data has other values; log density at"
    ):
        StoredDraws(tmp_path, model, DATA + 1)


def test_too_little_room_is_told_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(
        draw_buffer.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100})
    )
    with pytest.raises(ValueError, match="the draws need .* bytes in .*, where 100 are free"):
        chains(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_too_little_memory_is_told_before_any_search_or_step(tmp_path, monkeypatch):
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    with pytest.raises(
        ValueError, match="1000000000 draws .* need .* bytes .*num_samples=.*stream"
    ):
        sample(target, num_samples=10**9, num_chains=64, seed=0, progress=False)
    assert not target.evaluations
    run = chains(None)
    before = run.unconstrained
    with pytest.raises(ValueError, match=r"1000000020 draws of 6 chains, 3 numbers .* thin=\.\.\."):
        run.resume(10**9, append=True)
    assert run.unconstrained is before
    with monkeypatch.context() as patch:
        patch.setattr(draw_buffer.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
        with pytest.raises(ValueError, match="where 100 are free: ask for fewer draws"):
            checkpoint = CheckpointOptions(tmp_path, stream=True)
            options = {"seed": 0, "progress": False, "checkpoint": checkpoint}
            sample(target, num_samples=20, num_chains=64, **options)


def test_draws_on_another_device_are_refused(tmp_path):
    target = Target.from_energy(lambda x: x.square().sum(-1), 2)
    target.device = torch.device("meta")
    with pytest.raises(ValueError, match="this target is on meta: leave stream out"):
        draw_buffer.check_memory(target, 10, 10, 2, tmp_path)


#: a search for modes and pilot runs of little work
QUICK = SearchOptions(
    modes=ModeSearchOptions(paths=16, particles=128, max_evaluations=40_000),
    pilot_warmup=10,
    pilot_steps=20,
    evidence_draws=200,
)
OPTIONS = SearchOptions()


# ---- memory --------------------------------------------------------------------------------------


def wide(path, stream, chains=128, draws=600, dim=200):
    """By default 61 MB of positions."""
    pyro.set_rng_seed(0)
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), dim)
    guide = AutoFlow(target, flow="gaussian", options=FitOptions(max_steps=1, progress=False))
    guide.target_for()
    guide.trained = True
    checkpoint = CheckpointOptions(path, every_seconds=float("inf"), stream=stream)
    run = VectorizedMCMC(
        IMH(guide=guide, lookahead=512),
        draws,
        1,
        chains,
        checkpoint=checkpoint,
        disable_progbar=True,
    )
    run.min_acceptance = 0.0
    run.run()
    return target, run


def judged(run):
    """What sample() computes of all draws: those that are missing, and the checks of chains."""
    best = SimpleNamespace(run=run, goal=Goal(10**5, None, None, OPTIONS), options=OPTIONS)
    best.is_independence_sampler = False
    torch.manual_seed(3)
    wrong = final_run.shortfall(run, best, torch.arange(run.num_chains) % 4)
    checks = chain_checks(read_draws(run), DiagnosisOptions())
    return wrong, {check.name: check.value for check in checks}, torch.rand(1)


@pytest.mark.slow
@unknown
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_checks_of_streamed_draws_are_the_same_in_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(chain_storage, "BLOCK_BYTES", 2**20)
    monkeypatch.setattr(convergence, "MAX_NUMBERS", 3 * 4 * 64 * 150)  # four columns at a time
    size = 64 * 150 * 400 * 4
    judged(wide(tmp_path / "warm", True, 8, 20, 10)[1])  # imports what is used first
    run = wide(tmp_path / "streamed", True, 64, 150, 400)[1]
    with Peak() as streamed:
        one = judged(run)
    del run
    run = wide(tmp_path / "held", False, 64, 150, 400)[1]
    with Peak() as held:
        other = judged(run)
    print(f"bytes of draws {size:.2g}, streamed {streamed.largest:.2g}, held {held.largest:.2g}")
    # sums of numbers that lie in another order in memory are rounded otherwise
    assert one[1] == pytest.approx(other[1], rel=1e-6, nan_ok=True)
    assert one[0] == other[0] and torch.equal(one[2], other[2])
    assert streamed.largest < 0.5 * held.largest and held.largest > size


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sample_with_streamed_draws_has_the_same_result(tmp_path):
    results = []
    for checkpoint in (None, CheckpointOptions(tmp_path, stream=True)):
        target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        target.compile_mode = False
        options = {"search": QUICK, "progress": False, "checkpoint": checkpoint}
        results.append(sample(target, num_samples=20, num_chains=64, seed=0, **options))
    one, other = results
    assert one["posterior"].equals(other["posterior"])
    for name in ("problems", "log_evidence", "evaluations", "reliable"):
        assert one.attrs[name] == other.attrs[name]


@unknown
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_memory_does_not_grow_with_the_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(chain_storage, "BLOCK_BYTES", 2**21)
    wide(tmp_path / "warm", True)
    size = 600 * 128 * 200 * 4
    with Peak() as streamed:
        target, run = wide(tmp_path / "streamed", True)
        data = to_arviz(run)
        mean = float(data["posterior"]["x"][..., 0].mean())
        again = to_arviz(StoredDraws(tmp_path / "streamed", target))
    assert float(again["posterior"]["x"][..., 0].mean()) == mean
    with Peak() as held:
        held_data = to_arviz(wide(tmp_path / "held", False)[1])
    assert held_data["posterior"]["x"].shape == (128, 600, 200)
    print(f"bytes of draws {size:.2g}, streamed {streamed.largest:.2g}, held {held.largest:.2g}")
    assert streamed.largest < 0.4 * size and held.largest > 0.9 * size
