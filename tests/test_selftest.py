"""The test of the kernels passes right kernels, and sees wrong ones."""

import pytest
import torch
from support.marks import slow
from support.mutations import must_fail, mutation, stale

from pyro_flowsamp import selftest
from pyro_flowsamp.flows.proposal import Proposal
from pyro_flowsamp.selftest import SelfTestOptions, run_self_test
from pyro_flowsamp.target.site import Site
from pyro_flowsamp.transitions import hamiltonian, independence

NORMAL, MODES = "a correlated normal", "two modes"
MODEL = "a half line, an interval and a simplex"
OPTIONS = SelfTestOptions(
    num_chains=500, num_samples=10, independence_chains=800, independence_warmup=300
)


def only(monkeypatch, kernel, density):
    """Leaves one kernel on one density in the test."""
    for name, table in (("KERNELS", kernel), ("DENSITIES", density)):
        found = getattr(selftest, name)
        monkeypatch.setattr(selftest, name, {table: found[table]})
    monkeypatch.setattr(selftest, "FEWER", {})


@pytest.mark.parametrize(
    ("kernel", "density", "dtype"),
    [("IMH", MODEL, torch.float32), ("LatentMALA", NORMAL, torch.float64)],
)
def test_right_kernels_pass(kernel, density, dtype, monkeypatch):
    only(monkeypatch, kernel, density)
    (found,) = run_self_test(dtype=dtype, options=OPTIONS)
    assert found.ok and found.score < OPTIONS.bound, found
    assert 0.05 < found.acceptance < 1
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["IMH", "LatentMALA"])
def test_scores_are_those_of_right_kernels(kernel, monkeypatch):
    """The largest of 9 standard normals is 1.8 on average, and 1.5 where some move together."""
    only(monkeypatch, kernel, NORMAL)
    found = [next(run_self_test(seed=seed, options=OPTIONS)) for seed in range(10)]
    assert all(check.ok for check in found)
    assert 1.0 < sum(check.score for check in found) / len(found) < 2.4


def test_a_table_of_few_densities_is_kept():
    assert set(selftest.FEWER) <= set(selftest.KERNELS)
    assert {d for names in selftest.FEWER.values() for d in names} <= set(selftest.DENSITIES)


@pytest.mark.parametrize("values", [torch.full((5, 3), torch.nan), torch.zeros(5, 3)])
def test_draws_that_are_not_finite_or_never_vary_fail(values):
    score = selftest._z_score(values, 0.5)
    assert not abs(score) <= 4.5


# ---- mistakes, each made on purpose --------------------------------------------------------------
@mutation(independence, "step")
def no_log_q(step, state, proposal, log_u):
    zero = torch.zeros_like(log_u)
    return step(state._replace(log_q=zero), proposal._replace(log_q=zero), log_u)


@mutation(Proposal, "push")
def flipped_log_det(push, self, z):
    x, ladj = push(self, z)
    return x, -ladj


@mutation(Site, "constrain")
def no_support(constrain, self, u):
    value, ladj = constrain(self, u)
    return value, torch.zeros_like(ladj)


@mutation(hamiltonian, "trajectory")
def no_backward_density(trajectory, *args, **options):
    end, _, finite = trajectory(*args, **options)
    return end, args[-1], finite


MISTAKES = {
    "no log q in the ratio": (no_log_q, "IMH", NORMAL),
    "log q not refreshed": (stale(independence, "step", "log_q"), "IMH", MODES),
    "log-det sign of the flow": (flipped_log_det, "LatentMALA", NORMAL),
    "no log-det of the support": (no_support, "IMH", MODEL),
    "no backward density": (no_backward_density, "LatentMALA", NORMAL),
    "log pi not refreshed": (stale(hamiltonian, "step", "log_pi"), "LatentMALA", MODES),
    "gradient not refreshed": (stale(hamiltonian, "step", "grad"), "LatentMALA", MODES),
}


@pytest.mark.parametrize(
    "mistake",
    slow(MISTAKES, "gradient not refreshed", "log q not refreshed", "no backward density"),
)
def test_mistakes_are_seen(mistake, monkeypatch):
    wrong, kernel, density = MISTAKES[mistake]
    only(monkeypatch, kernel, density)
    monkeypatch.setattr("pyro_flowsamp.kernels.latent.TINY", 0.0)  # let a broken kernel go on
    must_fail(
        wrong,
        score=lambda: next(run_self_test(options=OPTIONS)).score,
        above=SelfTestOptions.bound,
    )
