"""Particles carried by maps: unbiased whatever the maps, and mistakes show."""

import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_flowsamp import Target
from pyro_flowsamp.importance import log_evidence
from pyro_flowsamp.maps import AffineMap
from pyro_flowsamp.transitions import bridge, transport

ISLANDS, NUM = 1000, 50
LOC = torch.tensor([1.0, -0.5])


def _energy(x):
    """N(LOC, diag(½², 2²)) with Z = 7."""
    scaled = (x - LOC) / torch.tensor([0.5, 2.0])
    return 0.5 * scaled.square().sum(-1) + math.log(2 * math.pi) - math.log(7)


def _run(moves=2, below=0.5, stay=0.0):
    """A bad map at each of three stages."""
    target = Target.from_energy(_energy, 2)
    start = bridge.Base(torch.zeros(2), 3 * torch.ones(2), torch.zeros(2, dtype=torch.bool))
    ones = torch.ones(2)
    cloud = transport.init(
        start.sample(ISLANDS * NUM), bridge.density(target, start, 0 * ones[0], ones), ISLANDS
    )
    previous = 0.0
    for beta, shift, factor in ((0.2, 0.3, 0.9), (0.6, 0.2, 1.1), (1.0, -0.2, 0.8)):
        scale = torch.tensor([0.7, 1.3])
        log_det = torch.tensor(2 * math.log(factor))
        bad = AffineMap(shift * ones, factor * ones, log_det, None)
        density = bridge.density(target, start, ones[0] * beta, scale)
        before = partial(bridge.log_path, beta=torch.tensor(previous))
        stage = transport.Stage(bad, density, scale, torch.tensor(0.8), stay, before)
        cloud, previous = transport.advance(cloud, stage, moves, below), beta
    return cloud


def _worst(cloud):
    """z-scores of Z, means and squares, by the spread over islands."""
    log_z, error = cloud.evidence
    moments = torch.cat([cloud.x, (cloud.x - LOC).square()], -1)
    truth = torch.tensor([1.0, -0.5, 0.25, 4.0], dtype=torch.double)
    mean = cloud.mean(moments)
    z = (mean.value - truth) / mean.standard_error
    return max(abs(float((log_z - math.log(7 * 2 * 0.5)) / error)), float(z.abs().max()))


@pytest.mark.parametrize("moves", [0, 2])
@pytest.mark.parametrize("below", [0.0, 0.5, math.inf])
@pytest.mark.parametrize("stay", [0.0, 0.1, 0.5, 1.0])
def test_particles_are_properly_weighted(moves, below, stay):
    assert _worst(_run(moves, below, stay)) < 4.5


def _no_log_det(patch):
    push = AffineMap.push
    patch.setattr(AffineMap, "push", lambda self, z: (push(self, z)[0], torch.zeros(len(z))))


def _stale_density(patch):
    reweight = transport.reweight

    def stale(cloud, state, ladj=0.0):
        new = reweight(cloud, state, ladj)
        return new._replace(state=state._replace(log_pi=cloud.state.log_pi))

    patch.setattr(transport, "reweight", stale)


def _weights_survive_resampling(patch):
    resample = transport.resample

    def keep(cloud, below):
        return resample(cloud, below)._replace(log_w=cloud.log_w)

    patch.setattr(transport, "resample", keep)


@pytest.mark.parametrize("mistake", [_no_log_det, _stale_density, _weights_survive_resampling])
def test_the_check_sees_mistakes(mistake, monkeypatch):
    mistake(monkeypatch)
    assert _worst(_run(below=math.inf)) > 9


def _no_log_det_back(patch):
    pull = AffineMap.pull
    patch.setattr(AffineMap, "pull", lambda self, x: (pull(self, x)[0], torch.zeros(len(x))))


def _stale_origin(patch):
    """Those that stay behind are taken to have the density of where they are."""
    patch.setattr(AffineMap, "pull", lambda self, x: (x, torch.zeros(len(x))))


def _later_before(patch):
    log_path = bridge.log_path
    patch.setattr(bridge, "log_path", lambda state, beta: log_path(state, beta + 0.2))


@pytest.mark.parametrize(
    "mistake, moves",
    [(_no_log_det, 2), (_no_log_det_back, 2), (_stale_origin, 0), (_later_before, 2)],
)
def test_the_check_sees_mistakes_in_the_mixture(mistake, moves, monkeypatch):
    mistake(monkeypatch)
    assert _worst(_run(moves, math.inf, 0.5)) > 9


def _cliff(x):
    """exp(-x - e^{-x}) on the line, Z = 1: a steep wall to the left."""
    return x[:, 0] + (-x[:, 0]).exp()


def _over_the_cliff(stay):
    """A map from the target to itself that draws away from the wall, before moves that mend it."""
    target = Target.from_energy(_cliff, 1)
    base = bridge.Base(torch.zeros(1), torch.ones(1), torch.zeros(1, dtype=torch.bool))
    one = torch.ones(1)
    density = bridge.density(target, base, one[0], one)
    x = dist.Gumbel(0.0, 1.0).sample((ISLANDS * NUM, 1))
    away = AffineMap(3.0 * one, one, torch.zeros(()), None)
    before = partial(bridge.log_path, beta=one[0])
    stage = transport.Stage(away, density, one, torch.tensor(0.1), stay, before)
    return transport.push(transport.init(x, density, ISLANDS), stage)


def test_what_a_map_leaves_behind_is_not_lost():
    """Alone, it hides more than half of the mass behind weights that no crowd has."""
    cloud = _over_the_cliff(0.1)
    log_z, error = cloud.evidence
    assert error < 0.02 and abs(log_z) < 4.5 * error
    assert cloud.log_w.max() < math.log(10) + 1e-9
    assert _over_the_cliff(0.0).evidences.median() < -0.5


def test_where_no_way_leads_particles_stay(monkeypatch):
    """Off the map's image, or nearly, its inverse may be anything, NaN too."""
    pull = AffineMap.pull

    def partly(self, x):
        z, ladj = pull(self, x)
        return torch.where(x < 0, torch.nan, z), ladj

    monkeypatch.setattr(AffineMap, "pull", partly)
    log_z, error = _aside(3.0, 1).evidence
    assert error < 0.02 and abs(log_z) < 4.5 * error


def _aside(shift, times):
    """N(0, 1), shifted and mended by weights alone, some times over."""
    target = Target.from_energy(lambda x: 0.5 * (x.square() + math.log(2 * math.pi)).sum(-1), 1)
    base = bridge.Base(torch.zeros(1), torch.ones(1), torch.zeros(1, dtype=torch.bool))
    one = torch.ones(1)
    density = bridge.density(target, base, one[0], one)
    aside = AffineMap(shift * one, one, torch.zeros(()), None)
    before = partial(bridge.log_path, beta=0.5 * one[0])
    stage = transport.Stage(aside, density, one, torch.tensor(0.1), 0.3, before)
    cloud = transport.init(torch.randn(ISLANDS * NUM, 1), density, ISLANDS)
    for _ in range(times):
        cloud = transport.advance(cloud, stage, 0, math.inf)
    return cloud


def _twice_aside():
    """z of the mean."""
    cloud = _aside(1.5, 2)
    mean = cloud.mean(cloud.x)
    return abs(float(mean.value / mean.standard_error))


def test_who_stays_is_drawn_afresh(monkeypatch):
    """Systematic resampling keeps the order: the first would always be those that stayed before."""
    assert _twice_aside() < 4.5
    in_order = torch.arange(NUM).expand(ISLANDS, NUM)
    monkeypatch.setattr(torch, "rand_like", lambda x: in_order)
    assert _twice_aside() > 9


def test_all_may_stay_where_they_are():
    cloud = _over_the_cliff(1.0)
    assert_close(cloud.log_w, torch.zeros_like(cloud.log_w))


def test_the_evidence_not_its_log_is_unbiased():
    cloud = _run()
    assert_close(cloud.evidence, log_evidence(cloud.evidences))
    single = cloud.evidences
    assert single.mean() < cloud.evidence.log_z  # Jensen, seen


def test_systematic_resampling_keeps_expected_counts():
    log_w = torch.randn(3, 100).double()
    counts = torch.stack([i.bincount(minlength=100) for i in transport.systematic(log_w, 1000)])
    assert (counts - 1000 * log_w.softmax(-1)).abs().max() <= 1


def test_systematic_resampling_is_unbiased():
    log_w = torch.tensor([0.5, 0.3, 0.2]).double().log().expand(20_000, 3)
    counts = torch.stack([(transport.systematic(log_w) == i).sum(1) for i in range(3)], 1).double()
    error = counts.std(0) / len(counts) ** 0.5
    assert (counts.mean(0) - 3 * log_w[0].exp()).abs().le(4.5 * error).all()


def test_the_path_has_its_own_gradient():
    target = Target.from_energy(_energy, 2)
    start = bridge.Base(torch.ones(2), 3 * torch.ones(2), torch.zeros(2, dtype=torch.bool))
    scale, beta = torch.tensor([0.7, 1.3]), torch.tensor(0.3)
    z = torch.randn(20, 2).requires_grad_()
    log_b = torch.distributions.Normal(1.0, 3.0).log_prob(z * scale).sum(-1)
    log_pi = (1 - beta) * log_b + beta * target.log_prob(z * scale)
    (grad,) = torch.autograd.grad(log_pi.sum(), z)
    state = bridge.density(target, start, beta, scale)(z.detach())
    assert_close(state.log_pi.float(), log_pi.detach())
    assert_close(state.grad, grad)


def test_draws_are_equally_weighted():
    cloud = _run(moves=0, below=0.0)
    mean = cloud.mean(cloud.x).value
    assert_close(cloud.draw(20_000).mean(0).double(), mean, rtol=0, atol=0.05)


# ---- edges --------------------------------------------------------------------------------------


def _half_normal(x):
    """N(0, 1) where it is positive, and nothing elsewhere: Z = ½."""
    log_p = -0.5 * x[:, 0].square() - 0.5 * math.log(2 * math.pi)
    return -torch.where(x[:, 0] > 0, log_p, -torch.inf)


@pytest.mark.parametrize("moves", [0, 2])
def test_a_particle_that_left_the_support_stays_dead(moves):
    """One mirror throws all but a few over the edge, the next brings back all but those."""
    target = Target.from_energy(_half_normal, 1)
    start = bridge.Base(torch.ones(1), torch.ones(1), torch.zeros(1, dtype=torch.bool))
    one = torch.ones(1)
    cloud = transport.init(
        start.sample(ISLANDS * NUM), bridge.density(target, start, 0 * one[0], one), ISLANDS
    )
    for beta, factor in ((0.5, -0.5), (1.0, -1.0)):
        log_det = torch.tensor(math.log(abs(factor)))
        mirror = AffineMap(0 * one, factor * one, log_det, None)
        density = bridge.density(target, start, beta * one[0], one)
        stage = transport.Stage(mirror, density, one, torch.tensor(0.5))
        cloud = transport.advance(cloud, stage, moves, below=0.0)
    if not moves:
        assert (cloud.evidences == -torch.inf).all()
    assert (cloud.log_w == -torch.inf).double().mean() > 0.8


def test_the_dead_count_for_nothing_wherever_they_are():
    log_w = torch.tensor([[0.0, -torch.inf], [0.0, 0.0]]).double()
    values = torch.tensor([1.0, torch.nan, 2.0, 3.0])
    cloud = transport.Cloud(None, log_w, torch.zeros(2).double())
    assert_close(float(cloud.mean(values).value), (0.5 * 1.0 + 1.0 * 2.5) / 1.5)


def test_a_stage_is_as_long_as_particles_on_the_support_allow():
    ratio = torch.randn(4000).double() * 3
    half = torch.cat([ratio, torch.full_like(ratio, -torch.inf)])
    assert bridge.next_beta(half, 0.0, 0.8) == pytest.approx(bridge.next_beta(ratio, 0.0, 0.8))


def test_islands_go_at_their_own_pace():
    rows = torch.randn(3, 500, dtype=torch.double) * torch.tensor([[0.1], [3.0], [30.0]])
    rows[1, :300] = -torch.inf  # the dead of one island are nothing to the others
    beta = torch.tensor([0.0, 0.2, 0.5], dtype=torch.double)
    found = bridge.next_betas(rows, beta, 0.8)
    steps = found - beta
    assert found[0] == 1 and 0 < steps[2] < steps[1] < 0.8
    assert found.tolist() == [bridge.next_beta(r, float(b), 0.8) for r, b in zip(rows, beta)]


def test_islands_have_step_sizes_of_their_own():
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    base, ones = bridge.overdispersed_base(target, 64), torch.ones(2)
    density = bridge.density(target, base, ones[0], ones)
    cloud = transport.init(torch.randn(400, 2), density, 2)
    stage = transport.Stage(None, density, ones, torch.tensor([1e-9, 2.5]))
    moved, sizes = transport.tune(cloud, stage, 3, 0.574)
    how_far = (moved.x - cloud.x).abs().view(2, 200, 2).amax((1, 2))
    assert how_far[0] < 1e-6 and how_far[1] > 0.1
    assert 1e-9 < sizes[0] < 1e-8 and 0.1 < sizes[1] < 2.5  # each by its own acceptance


def test_a_flat_density_does_not_widen_moves_without_bound():
    x = 3 * torch.randn(4000, 1)
    assert_close(bridge.local_scale(torch.zeros_like(x), x), x.std(0))
    assert_close(bridge.local_scale(-x / 9, x), torch.full((1,), 3.0), rtol=0.1, atol=0)


def test_the_start_does_not_matter_at_the_end_of_the_path():
    nothing = torch.full((2,), -torch.inf).double()
    at, zero = torch.tensor([[0.3], [0.4]]), torch.zeros(2, 1)
    log_p = torch.tensor([1.0, 2.0]).double()
    state = bridge.State(at, nothing, zero, at, log_p, nothing, zero, zero)
    assert_close(bridge.place(state, torch.tensor(1.0), torch.ones(1)).log_pi, log_p)
