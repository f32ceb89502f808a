"""What a report needs is recorded with a result, and survives a file."""

from types import SimpleNamespace

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

import pyro_flowsamp
from pyro_flowsamp import IMH, AutoFlow, FitOptions, Target, VectorizedMCMC, sample, to_arviz
from pyro_flowsamp.provenance import add_record
from pyro_flowsamp.versions import versions

ARVIZ_0 = az.__version__.startswith("0.")


def model(y):
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)


def finished(num_samples=10):
    guide = AutoFlow(model, flow="gaussian", options=FitOptions(progress=False))
    run = VectorizedMCMC(IMH(model, guide=guide), num_samples, 10, 20, disable_progbar=True)
    run.run(torch.ones(2))
    return run


def test_versions():
    found = versions()
    assert found["pyro_flowsamp"] == pyro_flowsamp.__version__
    assert torch.__version__.startswith(found["torch"].split("+")[0])


def test_proposals_are_draws_of_the_flow_with_their_weights():
    run = finished()
    data = to_arviz(run, dims={"mean": ["side"]}, coords={"side": ["left", "right"]})
    state = torch.get_rng_state()
    add_record(data, run, seed=5)
    assert torch.equal(state, torch.get_rng_state())
    proposal, stats = data["proposal"], data["proposal_stats"]
    assert proposal["mean"].dims == ("chain", "draw", "side")
    assert list(proposal["mean"].coords["side"].values) == ["left", "right"]
    sites = {name: torch.tensor(proposal[name].values[0]) for name in ("mean", "scale")}
    x = run.target.pack(sites)
    lp = torch.tensor(stats["lp"].values[0])
    log_q = torch.tensor(stats["log_q"].values[0])
    torch.testing.assert_close(run.target.log_prob(x).double(), lp, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        run.kernel.proposal.log_prob(x).double(), log_q, rtol=1e-3, atol=1e-3
    )
    np.testing.assert_allclose(stats["log_weight"].values, (lp - log_q)[None].numpy())


def test_attributes_of_a_run_and_of_its_training():
    run = finished()
    data = to_arviz(run)
    run.kernel.guide.history.loss, run.kernel.guide.history.ess = [2.0, 1.0], []
    add_record(data, run, seed=5)
    attrs = data.attrs
    assert attrs["seed"] == 5 and attrs["kernel"] == "IMH" and attrs["device"] == "cpu"
    assert list(attrs["training_loss"]) == [2.0, 1.0] and "training_ess" not in attrs
    assert attrs["training_stopped"] == run.kernel.guide.history.stopped
    add_record(other := to_arviz(finished()), finished())
    assert "seed" not in other.attrs


def test_shares_of_modes():
    """Components are joined to modes, and modes sorted; a lost mode has no draws."""
    x = torch.cat([torch.full((30,), -5.0), torch.full((10,), 5.0)]).reshape(4, 10, 1)
    centres = torch.tensor([-5.0, -4.0, 5.0, 9.0, 20.0])
    counts = torch.tensor([[20, 20, 50, 10, 0], [30, 20, 50, 0, 0]])
    modes = SimpleNamespace(
        component_of=lambda x: (x - centres).square().argmin(-1),
        agreement=SimpleNamespace(counts=counts, modes=torch.tensor([0, 0, 2, 1, 3])),
    )
    run = SimpleNamespace(
        unconstrained=x,
        target=None,
        kernel=SimpleNamespace(binding=SimpleNamespace(guide=None), proposal=None),
        warmup_steps=50,
    )
    data = xr.DataTree()
    add_record(data, run, modes=modes)
    assert list(data.attrs["mode_shares"]) == [0.75, 0.25, 0.0]
    assert list(data.attrs["mode_shares_first"]) == [0.4, 0.5, 0.1]
    assert list(data.attrs["mode_shares_second"]) == [0.5, 0.5, 0.0]


def test_the_tree_of_arviz_1_gets_the_groups_too():
    run = finished()
    posterior = xr.Dataset(
        {
            name: (("chain", "draw", *(f"{name}_{i}" for i in range(v.dim() - 2))), v.numpy())
            for name, v in run.get_samples(group_by_chain=True).items()
        }
    )
    tree = xr.DataTree.from_dict({"posterior": posterior})
    add_record(tree, run)
    assert tree["proposal"]["mean"].dims == ("chain", "draw", "mean_0")
    assert tree["proposal_stats"]["log_weight"].shape == (1, 1000)


def test_at_several_contexts_there_are_no_proposals():
    def tempered(temperature):
        pyro.sample("x", dist.Normal(0.0, temperature))

    target = Target.from_model(tempered, torch.tensor([1.0]))
    run = finished()
    run.target = SimpleNamespace(contexts=torch.ones(2, 1), dim=target.dim)
    data = to_arviz(finished())
    add_record(data, run)
    assert "proposal" not in (data.groups() if ARVIZ_0 else data.children)


def test_results_of_sample_have_the_record_and_keep_it_in_a_file(tmp_path):
    data = sample(model, torch.ones(2), seed=3, ess=200, progress=False)
    data.to_netcdf(tmp_path / "run.nc")
    found = az.from_netcdf(tmp_path / "run.nc")
    assert int(found.attrs["seed"]) == 3
    assert found.attrs["versions"] == data.attrs["versions"]
    assert found["proposal"]["mean"].shape == (1, 1000, 2)
    assert len(np.atleast_1d(found.attrs["mode_shares"])) >= 1
    assert np.isclose(np.sum(found.attrs["mode_shares"]), 1.0)


@pytest.mark.parametrize("seed", [0, None])
def test_the_record_does_not_change_the_generators(seed):
    pyro.set_rng_seed(11)
    run = finished()
    data, state = to_arviz(run), torch.get_rng_state()
    add_record(data, run, seed)
    assert torch.equal(torch.get_rng_state(), state)
