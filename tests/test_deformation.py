"""Deformation flows: the equation, weights with the right mean, training, and what is refused."""

import copy
import math
import pickle
import warnings
from dataclasses import replace
from functools import partial

import models
import pyro
import pytest
import torch
from pyro.infer.mcmc.api import MCMC
from torch.testing import assert_close

from pyro_flowsamp import (
    IMH,
    AutoDeformationFlow,
    FitOptions,
    LatentMALA,
    Target,
    VectorizedMCMC,
    diffusion,
    log_evidence,
    paths,
)
from pyro_flowsamp.deformation import (
    LOSSES,
    BoltzmannPath,
    EnergyMLP,
    GeneralisedNormal,
    residual,
)
from pyro_flowsamp.guides import deformation as guides
from pyro_flowsamp.guides import trainers, walkers
from pyro_flowsamp.importance import Evidence
from pyro_flowsamp.symmetry import group
from pyro_flowsamp.targets import phi4, phi4_symmetries, unequal_pair
from pyro_flowsamp.transitions import transport
from pyro_flowsamp.velocity import VelocityMLP

QUICK = FitOptions(
    max_steps=20, batch_size=96, learning_rate=1e-2, window=10, anneal=True, progress=False
)
SMALL = {"times": 4, "hidden_features": 16, "options": QUICK}
WIDE = 2 * 2**0.5  #: sigma of N(0, sd 2)


def sixteen_steps(block, *args, **options):
    block.steps = 16


@pytest.fixture(autouse=True)
def unrefined(monkeypatch):
    """The integrator's check has tests of its own, and takes seconds."""
    monkeypatch.setattr(guides, "refine", sixteen_steps)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)


def rough(net, size=0.5):
    """A network with no zero weight left."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += size * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5
    return net


# ---- the base ------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.8, 1.0, 2.0, 4.0])
def test_the_base_is_normalised_and_sampled(power, double):
    base = GeneralisedNormal(torch.zeros(3), power)
    grid = torch.linspace(-60, 60, 600_001)
    one = GeneralisedNormal(torch.zeros(1), power)
    density = one.log_prob(grid[:, None]).exp()
    assert_close(torch.trapezoid(density, grid), torch.tensor(1.0), atol=1e-4, rtol=0)
    u = base.sample((40_000,))
    assert u.shape == (40_000, 3) and base.log_prob(u).shape == (40_000,)
    for moment in (lambda v: v, lambda v: v.square(), lambda v: v.abs(), lambda v: v.cos()):
        exact = torch.trapezoid(density * moment(grid), grid)
        found = moment(u)
        error = found.std() / found.numel() ** 0.5
        assert abs(found.mean() - exact) < 4.5 * error + 1e-4
    assert_close(base.log_prob(u).sum(), one.log_prob(u.reshape(-1, 1)).sum())
    assert base.expand((2,)).sample((5,)).shape == (5, 2, 3)


# ---- energies and their derivatives --------------------------------------------------------------


def derivatives(function, t, u):
    t, u = t.clone().requires_grad_(), u.clone().requires_grad_()
    value = function(t, u)
    return value, *torch.autograd.grad(value.sum(), (t, u), create_graph=True)


@pytest.mark.parametrize("kernels", [1, 4])
def test_derivatives_of_the_network(kernels, double):
    net = rough(EnergyMLP(3, 8, kernels), 1.0)
    t, u = torch.rand(7), torch.randn(7, 3)
    found = net.with_derivatives(t, u)
    assert [v.shape for v in found] == [(7,), (7,), (7, 3)]
    assert_close(found, derivatives(lambda t, u: net(t, u)[:, 0], t, u))
    u.requires_grad_()
    assert torch.autograd.gradcheck(net.with_derivatives, (t.requires_grad_(), u))


def _energy(x):
    return (x - 0.3).pow(4).sum(-1) / 4 + x.prod(-1)


def _bent(t, x):
    """From |x / 2|^3 to the target, with a constant on top that depends on time."""
    return (1 - t**2) * (x / 2).abs().pow(3).sum(-1) + t**2 * _energy(x) + 5 * t.sin()


def make_path(kind):
    """A path at some place and scale, and its energy written down once more."""
    target = Target.from_energy(_energy, 2)
    detour = rough(EnergyMLP(2, 8, 3), 1.0) if kind == "trainable" else None
    path = BoltzmannPath(2, 3.0, detour, _bent if kind == "given" else None)
    if kind == "given":
        path.scale.fill_(2.0)
    else:
        path.loc.copy_(torch.tensor([0.5, -1.0]))
        path.scale.copy_(torch.tensor([2.0, 0.7]))
    if kind == "trainable":
        path.pace.fill_(math.log(5.0))
        path.share = 0.6
    path.check(target, torch.randn(16, 2))

    def energy(t, u, width=1.0):
        x, volume = path.loc + path.scale * u, path.scale.log().sum()
        if kind == "given":
            return _bent(t, x) - t * (5 * math.sin(1) + volume)
        beta = t if detour is None else (5**t - 1) / 4
        value = (1 - beta) * (u / width).abs().pow(3).sum(-1) + beta * (_energy(x) - volume)
        return value if detour is None else value + 0.6 * t * (1 - t) * detour(t, u)[:, 0]

    return path, target, energy


KINDS = ["linear", "trainable", "given"]


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_the_path(kind, double):
    path, target, energy = make_path(kind)
    t, shift, u = torch.rand(9), 0.1 * torch.rand(9), torch.randn(9, 2)
    value, rate, slope = derivatives(energy, t, u)
    spot, (more, faster, steeper) = path.spot(target, t, u), path.learnt(t, u)
    assert_close((-spot.log_pi, spot.rate + faster, -spot.grad), (value, rate, slope))
    fixed = path.fixed(target, t, u)
    assert_close(fixed.energy + more, value)
    assert_close((fixed.rate, fixed.slope), (spot.rate, spot.slope))
    assert not fixed.slope.requires_grad  # where points are not differentiated, nothing is
    later = derivatives(energy, t + shift, u)
    _, faster, steeper = path.learnt(t + shift, u)
    rate, slope = path.at(t + shift - shift, shift, u, spot.rate, spot.slope, spot.turn)
    assert_close((rate + faster, slope + steeper), later[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_through_the_path(kind, double):
    path, target, _ = make_path(kind)
    t, u = torch.rand(3), torch.randn(3, 2, requires_grad=True)
    rate_and_slope = lambda u: path.fixed(target, t, u)[1:3]  # noqa: E731
    assert torch.autograd.gradcheck(rate_and_slope, u, check_undefined_grad=False)


@pytest.mark.parametrize("kind", ["linear", "trainable"])
def test_a_path_from_a_wider_base(kind, double):
    path, target, energy = make_path(kind)
    t, u = torch.rand(9), torch.randn(9, 2)
    spot, more = path.spot(target, t, u, 2.5, detour=False), path.learnt(t, u)
    value, _, slope = derivatives(partial(energy, width=2.5), t, u)
    assert_close((-spot.log_pi, -spot.grad), (value - more[0], slope - more[2]))
    own = path.spot(target, t, u)
    assert_close((spot.rate, spot.slope), (own.rate, own.slope))


def test_a_steady_pace():
    """From a variance of 100 to 1, the precision's logarithm grows by equal steps."""
    path = BoltzmannPath(1, 2.0, None, None)
    path.pace.fill_(math.log(100.0))
    beta, _ = path.clock(torch.linspace(0, 1, 11))
    precision = (1 - beta) / 100 + beta
    step = torch.tensor(math.log(100.0) / 10)
    assert_close(precision.log().diff(), step.expand(10), rtol=1e-3, atol=1e-3)


def test_off_the_support_the_path_begins_at_the_base():
    target = Target.from_energy(
        lambda x: torch.where(x[:, 0] > 0, x.square().sum(-1), torch.inf), 1
    )
    path = BoltzmannPath(1, 2.0, None, None)
    spot = path.spot(target, torch.tensor([0.0, 0.5]), -torch.ones(2, 1))
    assert spot.log_pi.tolist() == [-1.0, -torch.inf]


# ---- the equation --------------------------------------------------------------------------------


class Linear:
    """V = shift(t) + growth(t) (u - centre(t)) of a moving Gaussian, with its divergence."""

    def __init__(self, centre, spread):
        self.centre, self.spread = centre, spread

    def __call__(self, t, u):
        return self.with_divergence(t, u)[0]

    @torch.enable_grad()
    def with_divergence(self, t, u):
        t = t.clone().requires_grad_()
        centre, spread = self.centre(t), self.spread(t)
        (growth,) = torch.autograd.grad(spread.log().sum(), t)
        shift = [torch.autograd.grad(c.sum(), t, retain_graph=True)[0] for c in centre.unbind(-1)]
        v = torch.stack(shift, -1) + growth[:, None] * (u - centre).detach()
        return v, growth * u.shape[-1]


def _still(t):
    return torch.stack([0 * t, 0 * t, 0 * t], -1)


def rate_of(log_z, t):
    t = t.clone().requires_grad_()
    return torch.autograd.grad(log_z(t).sum(), t)[0]


def solved(path, target, velocity, log_z, factor=1.0):
    """The error of a solution, C included; ``factor`` spoils the velocity."""
    t, u = torch.rand(50), 2 * torch.randn(50, 3)
    _, rate, slope, _ = path.fixed(target, t, u)

    class Spoilt:
        def with_divergence(self, t, u):
            v, divergence = velocity.with_divergence(t, u)
            return factor * v, factor * divergence

    errors, _ = residual(path, Spoilt(), t, u, rate, slope)
    return (errors + rate_of(log_z, t)).abs().max()


def spreading():
    """N(0, 1/2) to N(0, 3), and an energy 5 too high; the path is linear in the precision."""
    target = Target.from_energy(lambda x: x.square().sum(-1) / 6 + 5, 3)
    path = BoltzmannPath(3, 2.0, None, None)

    def variance(t):
        return 1 / (2 + t * (1 / 3 - 2))

    velocity = Linear(_still, lambda t: variance(t).sqrt())
    return path, target, velocity, lambda t: 1.5 * (2 * math.pi * variance(t)).log() - 5 * t


def moving():
    """Given: from N(0, 2) at sigma = 2 to N((1, -2, 3), 1/2), on a curve."""
    end = torch.tensor([1.0, -2.0, 3.0])

    def variance(t):
        return 2 - 1.5 * t**2

    def given(t, x):
        square = (x - t[:, None] ** 3 * end).square().sum(-1)
        return square / (2 * variance(t))

    target = Target.from_energy(lambda x: (x - end).square().sum(-1), 3)
    path = BoltzmannPath(3, 2.0, None, given)
    path.scale.fill_(2.0)
    path.check(target, torch.randn(16, 3))
    volume = 3 * math.log(2)
    velocity = Linear(lambda t: t[:, None] ** 3 * end / 2, lambda t: variance(t).sqrt() / 2)
    return (
        path,
        target,
        velocity,
        lambda t: 1.5 * (2 * math.pi * variance(t)).log() - (1 - t) * volume,
    )


def diffusing():
    """A single Gaussian that diffuses into the base; its energies are normalised."""
    mean, sigma = torch.tensor([[3.0, -1.0, 0.5]]), 1.7
    variance = torch.full((1, 3), 0.3)
    given = diffusion(torch.ones(1), mean, variance, sigma)
    target = Target.from_energy(lambda x: (x - mean[0]).square().sum(-1) / 0.6, 3)
    path = BoltzmannPath(3, 2.0, None, given)
    path.scale.fill_(sigma)
    path.check(target, torch.randn(16, 3))

    def spread(t):
        return (t**2 * 0.3 + (1 - t**2) * sigma**2 / 2).sqrt() / sigma

    velocity = Linear(lambda t: t[:, None] * mean / sigma, spread)
    end = 1.5 * math.log(2 * math.pi * 0.3)
    return path, target, velocity, lambda t: (1 - t) * 1.5 * math.log(math.pi) + t * end


@pytest.mark.parametrize("solution", [spreading, moving, diffusing])
def test_a_solution_has_no_error(solution, double):
    known = solution()
    assert solved(*known) < 1e-10
    assert solved(*known, factor=-1.0) > 0.1
    log_z = known[-1](torch.tensor([0.0]))
    assert_close(log_z, torch.tensor([1.5 * math.log(math.pi)]))


def test_diffusion_is_diffusion(double):
    """At time t it is t X + noise: by quadrature over X."""
    weights, means = torch.tensor([0.3, 0.7]), torch.tensor([[-2.0], [3.0]])
    variances, sigma, x = torch.tensor([[0.5], [2.0]]), 1.5, torch.linspace(-4, 5, 7)[:, None]
    energy = diffusion(weights, means, variances, sigma)
    grid = torch.linspace(-15, 18, 4001)
    normal = torch.distributions.Normal
    prior = (weights[:, None] * normal(means, variances.sqrt()).log_prob(grid).exp()).sum(0)
    for time in (0.0, 0.4, 0.8):
        noise = normal(time * grid, ((1 - time**2) * sigma**2 / 2) ** 0.5)
        density = torch.trapezoid(prior * noise.log_prob(x).exp(), grid)
        assert_close(energy(torch.full((7,), time), x), -density.log())
    exact = (weights[:, None] * normal(means, variances.sqrt()).log_prob(x.mT).exp()).sum(0)
    assert_close(energy(torch.ones(7), x), -exact.log())


def test_diffusion_of_equal_widths(double):
    weights, means = torch.tensor([0.3, 0.7]), torch.randn(2, 3)
    t, x = torch.rand(5), torch.randn(5, 3)
    short = diffusion(weights, means, torch.full((2, 1), 0.4), 2.0)
    long = diffusion(weights, means, torch.full((2, 3), 0.4), 2.0)
    assert_close(short(t, x), long(t, x))
    assert_close(pickle.loads(pickle.dumps(short))(t, x), long(t, x))


# ---- E[w] = Z_1 / Z_0, whatever the velocity -----------------------------------------------------

LOG_Z = math.log(2 * math.pi * 0.64) - 3  #: of the target below


def _shifted(t, x):
    straight = (1 - t) * x.square().sum(-1) / 2 + t * _narrow(x)
    return straight + 2 * t * (1 - t) * x[:, 0].sin()


def _narrow(x):
    return 0.5 * ((x - 0.5) / 0.8).square().sum(-1) + 3


def bad_guide(kind, times=8):
    """Never trained: a random velocity, and a random detour."""
    guide = AutoDeformationFlow(
        Target.from_energy(_narrow, 2),
        interpolation=_shifted if kind == "given" else kind,
        scale=2**0.5,
        times=times,
        hidden_features=8,
        kernels=2,
    )
    target = guide.bind()
    rough(guide.flow)
    guide.flow.path.share = 1.0
    guide.flow.place(torch.zeros(2), torch.full((2,), 2**0.5))  # roughened too
    for parameter in guide.flow.transform.transforms[0].parameters():
        parameter.detach().zero_()
    guide.flow.path.check(target, torch.randn(16, 2))
    guide.flow.step_sizes.fill_(0.7)
    return guide


def by_path(guide):
    return log_evidence(guide.path_weights(20_000)[1])


def by_flow(guide):
    with torch.no_grad():
        x, log_q = guide.flow(None).rsample_and_log_prob((20_000,))
        return log_evidence(guide.bind().log_prob(x) - log_q)


def by_particles(guide):
    return guide.particles(16_384, islands=64).evidence


def by_one_slice(guide):
    guide.times = [0.0, 1.0]
    return by_particles(guide)


def by_uneven_slices(guide):
    guide.times = [0.0, 0.1, 0.9, 1.0]
    return guide.particles(16_384, islands=64, moves=2).evidence


def z_score(evidence):
    return abs(math.exp(evidence.log_z - LOG_Z) - 1) / float(evidence.standard_error)


WAYS = [by_path, by_flow, by_particles, by_one_slice, by_uneven_slices]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before, after", [(0.0, 0.3), (0.2, 0.5), (0.7, 1.0)])
def test_what_was_looked_at_later_is_known_earlier(kind, before, after):
    guide = bad_guide(kind)
    path, target = guide.flow.path, guide.bind()
    u = torch.randn(50, 2)
    early, late = (path.spot(target, torch.full((50,), t), u) for t in (before, after))
    asked = target.evaluations
    assert_close(path.log_prob_at(before, late, after), early.log_pi, rtol=1e-5, atol=1e-5)
    assert target.evaluations == asked


def test_the_base_has_density_off_the_target_s_support():
    edge = Target.from_energy(lambda x: torch.where(x > 0, x.square(), torch.inf).sum(-1), 1)
    guide = AutoDeformationFlow(edge, interpolation="linear")
    target, u = guide.bind(), torch.randn(50, 1)
    late = guide.flow.path.spot(target, torch.full((50,), 0.3), u)
    assert bool(guide.flow.path.log_prob_at(0.0, late, 0.3).isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_the_mean_weight(way, kind):
    evidence = way(bad_guide(kind))
    assert evidence.standard_error < 0.05
    assert z_score(evidence) < 4.5


def flipped_divergence(patch):
    right = VelocityMLP.with_divergence
    patch(VelocityMLP, "with_divergence", lambda *args: (right(*args)[0], -right(*args)[1]))


def no_rate(patch):
    right = BoltzmannPath.fixed
    patch(BoltzmannPath, "fixed", lambda *args: right(*args)._replace(rate=torch.zeros(())))


def stale_log_pi(patch):
    right = transport.reweight

    def stale(cloud, state, ladj=0.0):
        return right(cloud, state, ladj)._replace(state=state._replace(log_pi=cloud.state.log_pi))

    patch(transport, "reweight", stale)


def weights_kept(patch):
    right = transport.resample

    def kept(cloud, below):
        return right(cloud, below)._replace(log_w=cloud.log_w)

    patch(transport, "resample", kept)


@pytest.mark.parametrize(
    "mistake, way",
    [
        (flipped_divergence, by_path),
        (flipped_divergence, by_flow),
        (flipped_divergence, by_particles),
        (flipped_divergence, by_one_slice),
        (no_rate, by_path),
        (stale_log_pi, by_particles),
        (weights_kept, by_one_slice),
    ],
)
def test_the_check_sees_mistakes(mistake, way, monkeypatch):
    guide = bad_guide("trainable")
    mistake(monkeypatch.setattr)
    assert z_score(way(guide)) > 9


@pytest.mark.parametrize("kind", KINDS)
def test_path_weights_are_importance_weights(kind, double):
    guide = bad_guide(kind)
    guide.flow.block.steps = 64
    x, log_w = guide.path_weights(200)
    with torch.no_grad():
        expected = guide.bind().log_prob(x) - guide.flow(None).log_prob(x)
    assert_close(log_w, expected, atol=1e-4, rtol=0)


def test_weighted_particles_have_the_target_s_moments():
    cloud = bad_guide("trainable").particles(16_384, islands=64)
    for value, truth in ((cloud.x[:, 0], 0.5), ((cloud.x[:, 1] - 0.5).square(), 0.64)):
        mean = cloud.mean(value)
        assert abs(mean.value - truth) < 4.5 * mean.standard_error
    assert not cloud.x.requires_grad and not cloud.state.log_pi.requires_grad


def test_slices_are_integrated_as_finely_as_was_refined(monkeypatch):
    guide, slices = bad_guide("linear", times=[0, 0.01, 0.5, 1]), []
    guide.flow.block.steps = 40
    make = guides.ContinuousMap

    def counted(velocity, steps, method, recompute, start, end):
        slices.append((start, end, steps))
        return make(velocity, steps, method, recompute, start, end)

    monkeypatch.setattr(guides, "ContinuousMap", counted)
    guide.particles(16)
    assert slices == [(0, 0.01, 1), (0.01, 0.5, 20), (0.5, 1, 20)]


def test_nothing_is_adapted_while_particles_run():
    guide = bad_guide("trainable")
    before = copy.deepcopy(guide.state_dict())
    guide.particles(512)
    guide.path_weights(512)
    assert_close(guide.state_dict(), before, rtol=0, atol=0)


# ---- walkers -------------------------------------------------------------------------------------


def crowds(width=1.0):
    guide = bad_guide("trainable")
    flow, times = guide.flow, torch.tensor(guide.times)
    return guide, walkers.Walkers(
        flow.path, flow.velocity, guide.bind(), guide.get_base_dist(), times, width
    )


@pytest.mark.parametrize("width", [1.0, 2.0])
def test_explorers_know_the_evidence(width):
    _, crowd = crowds(width)
    log_z, error = crowd.explorers.evidence
    assert error < 0.1 and abs(log_z - LOG_Z) < 4.5 * error
    t = crowd.times[4].expand(2048)
    spot = crowd.path.spot(crowd.target, t, crowd.explorers.spots.x[4], width, detour=False)
    assert_close(spot.log_pi, crowd.explorers.spots.log_pi[4])


@pytest.mark.parametrize(
    "mistake, below",
    [(None, 0), (None, 1.1), (flipped_divergence, 0), (stale_log_pi, 1.1), (weights_kept, 1.1)],
)
def test_crowds_are_small_runs_of_particles(mistake, below, monkeypatch):
    """From base to target they take a refresh for each time; their evidence is unbiased."""
    monkeypatch.setattr(walkers, "FOLLOWERS", 1024)
    monkeypatch.setattr(walkers, "RESAMPLE_BELOW", below)
    pyro.set_rng_seed(1)  # whose velocity spreads the weights little
    _, crowd = crowds()
    crowd.step_sizes = torch.full_like(crowd.step_sizes, 0.5)
    if mistake:
        mistake(monkeypatch.setattr)
    found = []
    for _ in range(24):
        crowd.refresh()
        found.append([c.evidences[-1] for c in (crowd.followers, crowd.trajectories)])
    log_z = torch.tensor(found[len(crowd.times) :]) + crowd.base.log_z
    gaps = ((log_z - LOG_Z).exp().mean(0) - 1).abs()
    if mistake in (None, weights_kept):
        assert gaps[1] < 0.05
    assert gaps[0] < 0.05 if mistake is None else gaps.max() > 0.15


@pytest.mark.parametrize("mistake", [None, flipped_divergence, stale_log_pi])
def test_weights_along_a_solution(mistake, double, monkeypatch):
    """Carried by a velocity that solves the equation, all weigh the same, there and back."""
    path, target, velocity, log_z = spreading()
    if mistake is flipped_divergence:
        right = velocity.with_divergence
        velocity.with_divergence = lambda t, u: (right(t, u)[0], -right(t, u)[1])
    elif mistake:
        mistake(monkeypatch.setattr)
    times, base = torch.linspace(0, 1, 65), GeneralisedNormal(path.loc, 2.0)
    crowd = walkers.Walkers(path, velocity, target, base, times, 1.0)
    for _ in times:
        crowd.refresh()
    gained = log_z(times) - log_z(times[:1])
    gaps = (
        crowd.trajectories.log_w - gained[:, None],
        crowd.returning.log_w - (gained - gained[-1])[:, None],
    )
    for gap in gaps:
        assert gap.abs().max() < 0.02 if mistake is None else gap.abs().max() > 0.5
    arrived = crowd.explorers.spots.x[-1]
    assert (crowd.returning.x.view(65, -1, 3)[-1, :, None] == arrived).all(-1).any(-1).all()


def test_what_is_sampled_is_the_path(double):
    """At the shifted times, also of points whose energies were asked for long ago."""
    _, crowd = crowds()
    crowd.refresh()
    asked = crowd.target.evaluations
    t, u, rate, slope = crowd.sample(3)
    assert crowd.target.evaluations == asked
    assert t.shape == (9 * 12,) and u.shape == slope.shape == (108, 2)
    assert (t.view(9, 12) == t.view(9, 12)[:, :1]).all()
    half = torch.tensor([0.0] + [1 / 16] * 8), torch.tensor([1 / 16] * 8 + [0.0])
    assert (crowd.times - half[0] <= t.view(9, 12)[:, 0]).all()
    assert (t.view(9, 12)[:, 0] <= crowd.times + half[1]).all()
    fixed = crowd.path.fixed(crowd.target, t, u)
    assert_close((rate, slope), (fixed.rate, fixed.slope))


def test_the_dead_are_not_sought(double):
    """A trajectory off the support has no weight, however large its logarithm."""
    _, crowd = crowds()
    log_w = torch.full_like(crowd.trajectories.log_w, -torch.inf)
    log_w[:, :9] = 43.0  # whatever log Z is
    log_w[:, 0] = 51.0
    crowd.trajectories = crowd.trajectories._replace(log_w=log_w)
    crowd.returning = crowd.returning._replace(log_w=log_w)
    crowd._gather()
    sought = crowd.sample(400).u.view(9, 4, 400, 2)
    for position, cloud in ((2, crowd.trajectories), (3, crowd.returning)):
        alive = cloud.x.view(9, -1, 2)[:, :1]
        assert (sought[:, position] == alive).all(-1).double().mean() > 0.75


def test_what_is_out_of_line():
    """The dead have no say in what is usual."""
    log_w = torch.tensor([[-torch.inf] * 7 + [-8.0] + [0.0] * 8, [-torch.inf] * 16])
    sought = torch.tensor([[0.1] * 7 + [8.1] + [0.1] * 8, [0.1] * 16])
    assert_close(walkers._out_of_line(log_w), sought)


def test_returning_weights_are_densities(double):
    """Along any velocity, of a detour that joins meanwhile: log q - log p, but for log Z."""
    guide = bad_guide("trainable")
    flow, times = guide.flow, torch.linspace(0, 1, 129) ** 1.3
    crowd = walkers.Walkers(
        flow.path, flow.velocity, guide.bind(), guide.get_base_dist(), times, 1.5
    )
    for step in range(132):
        flow.path.share = min(1.0, step / 40)
        crowd.refresh()
    flow.block.steps = 64
    x = flow(None).transform.inv(crowd.returning.x[:16])
    gaps = flow(None).log_prob(x) - guide.bind().log_prob(x) + crowd.base.log_z
    assert_close(crowd.returning.log_w[0], gaps.detach(), atol=1e-3, rtol=0.0)
    assert gaps.std() > 0.1


def test_rare_modes_are_explored(double):
    """By particles that are resampled by the square root; but nothing off the support is."""

    def energy(x):
        near = torch.stack([(x - 4).square().sum(-1) / 2, (x + 4).square().sum(-1) / 2 + 7], -1)
        return torch.where(x[:, 1].abs() < 2, -(-near).logsumexp(-1), torch.inf)

    path = BoltzmannPath(2, 2.0, None, None)
    path.scale.fill_(6.0)
    target, base = Target.from_energy(energy, 2), GeneralisedNormal(path.loc, 2.0)
    times = torch.linspace(0, 1, 17)
    fair, root = (walkers.explore(path, target, base, times, selection=s) for s in (1.0, 0.5))
    for found, share in ((fair, 1 / (1 + math.exp(7))), (root, 1 / (1 + math.exp(3.5)))):
        rare = found.spots.x[-1, :, 0] < 0
        assert share / 3 < found.weights[-1, rare].sum() < 3 * share
    both = walkers.Walkers(path, None, target, base, times, 1.0).explorers
    assert_close(both.weights.sum(-1), torch.ones(17))
    assert not both.weights[both.spots.log_pi.isneginf()].any()
    assert both.weights[-1, both.spots.x[-1, :, 0] < 0].sum() > 0.005


# ---- training ------------------------------------------------------------------------------------


def pair_path():
    known = unequal_pair()
    return diffusion(known.weights, known.modes, torch.ones(2, 1), WIDE)


def trained_pair(interpolation, steps, **options):
    pyro.set_rng_seed(0)
    fit = FitOptions(steps, 192, 2e-2, window=steps // 2, anneal=True, enough=1.0, progress=False)
    if interpolation == "diffusion":
        interpolation, options = pair_path(), {"scale": WIDE, **options}
    else:
        options = {"scale": WIDE, "train_scale": 3.0, **options}
    guide = AutoDeformationFlow(
        unequal_pair().target,
        interpolation=interpolation,
        **{"times": 16, "hidden_features": 48, "options": fit, **options},
    )
    guide.fit()
    return guide


@pytest.fixture(scope="module", params=[("trainable", 600), ("diffusion", 300)], ids=lambda p: p[0])
def pair(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guides, "refine", sixteen_steps)
        return trained_pair(*request.param)


def shares(x, log_w=None):
    return unequal_pair().mode_fractions(x, log_w)[0]


def test_both_modes(pair):
    x, log_w = pair.path_weights(4000)
    assert 0.08 < shares(x) < 0.92
    assert abs(shares(x, log_w) - 1 / 3) < 0.15
    log_z, error = log_evidence(log_w)
    assert abs(log_z) < 4.5 * error < 0.5
    cloud = pair.particles(4096)
    share = cloud.mean((unequal_pair().assign(cloud.x) == 0).double())
    assert abs(share.value - 1 / 3) < 4.5 * share.standard_error < 0.3
    assert pair.progress[-1].ess > 0.15 and pair.history.final_ess > 0.15
    assert (pair.flow.step_sizes != 1).all()
    assert pair.evidences.keys() == {"flow", "base", "twice as wide", "over-dispersed"}
    assert max(pair.missed.values()) < 0.01


def test_the_other_trainer():
    options = FitOptions(80, 128, 1e-2, window=40, anneal=True, progress=False)
    target = Target.from_energy(_narrow, 2)
    start = {"scale": 2.0, "train_scale": 1.2, "trainer": "trajectories"}
    guide = AutoDeformationFlow(target, **start, **{**SMALL, "options": options})
    guide.fit()
    assert guide.progress[-1].ess > 0.7
    log_z, error = log_evidence(guide.path_weights(4000)[1])
    assert abs(log_z - LOG_Z) < 4.5 * error < 0.1


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss(loss):
    target = Target.from_energy(_narrow, 2)
    options = FitOptions(80, 192, 1e-2, window=80, anneal=True, progress=False)
    guide = AutoDeformationFlow(
        target, loss=loss, interpolation="linear", scale=2.0, **{**SMALL, "options": options}
    )
    guide.fit()
    assert guide.history.final_ess > 0.7


def test_the_formulas_of_the_losses():
    e = torch.tensor([-2.0, 0.5])
    values = {
        "mixed": [6.0, 0.75],
        "absolute": [2.0, 0.5],
        "square": [4.0, 0.25],
        "log": [math.log(3), math.log(1.5)],
    }
    assert values.keys() == LOSSES.keys()
    for name, value in values.items():
        assert_close(LOSSES[name](e), torch.tensor(value))


def test_the_weight_of_a_wider_start(monkeypatch):
    """With no error anywhere it is the ratio of both bases, which averages give away."""
    target = Target.from_energy(lambda x: x.square().sum(-1), 1)
    guide = AutoDeformationFlow(target, scale=1.0, interpolation="linear", times=1)
    guide.bind()
    times = torch.tensor([0.0, 1.0])
    trainer = trainers.Trainer(guide.flow, target, times, "mixed", 100_000, 1.5, 1)
    trainer.loss = lambda deviations: trainer.drawn.square().sum(-1)  # whose mean is 1/2
    sample = guide.flow.base(None).sample

    class Base:
        def sample(self, shape):
            u = sample(shape)
            trainer.drawn = 1.5 * u
            return u

    trainer.base = Base()
    assert float(trainer.carrying()()) == pytest.approx(0.5, abs=0.02)


def test_when_the_detour_joins(monkeypatch):
    """Between a tenth and a fifth of the first training; later ones go on with all of it."""
    guide = AutoDeformationFlow(Target.from_energy(_narrow, 2), scale=2.0, **SMALL)
    shares = []

    def noted(path, *args):
        shares.append(path.share)
        return residual(path, *args)

    monkeypatch.setattr(trainers, "residual", noted)
    guide.fit()
    assert shares == [0.0] * 3 + [0.5] + [1.0] * 16
    shares.clear()
    guide.fit()
    assert {*shares} == {1.0}


def test_a_detour_that_had_not_joined(monkeypatch):
    """A training that was cut short leaves it on its way; the next takes it further."""
    guide = AutoDeformationFlow(Target.from_energy(_narrow, 2), scale=2.0, **SMALL)
    shares = []

    def noted(path, *args):
        shares.append(path.share)
        if len(shares) == 4:
            raise KeyboardInterrupt
        return residual(path, *args)

    monkeypatch.setattr(trainers, "residual", noted)
    guide.fit()
    assert guide.flow.path.share == 0.5
    shares[:] = [None] * 4
    guide.fit()
    assert shares[4:] == [0.5] * 4 + [1.0] * 16


def test_trajectories_take_the_detour_at_once():
    how = {"trainer": "trajectories", "options": replace(QUICK, max_steps=1, window=1)}
    guide = AutoDeformationFlow(Target.from_energy(_narrow, 2), scale=2.0, **{**SMALL, **how})
    assert guide.bind() and guide.flow.path.share == 0
    guide.fit()
    assert guide.flow.path.share == 1


def test_as_few_steps_as_will_do(monkeypatch):
    monkeypatch.setattr(guides, "refine", paths.refine)
    guide = AutoDeformationFlow(Target.from_energy(_narrow, 2), **SMALL)
    history = guide.fit()
    assert guide.flow.block.steps <= 8 and history.log_q_gap < 1e-3
    log_z, error = log_evidence(guide.path_weights(10_000)[1])
    assert abs(log_z - LOG_Z) < 4.5 * error < 0.1


def test_polish_does_no_harm(pair):
    """A second fit goes on from the first: here, but for the polish, it does next to nothing."""
    guide = copy.deepcopy(pair)
    guide.attach(unequal_pair().target)
    guide.polish, guide.options = 12, FitOptions(1, 192, 1e-9, progress=False)
    x = torch.randn(100, 2)
    before = guide.flow(None).log_prob(x).detach()
    history = guide.fit()
    change = (guide.flow(None).log_prob(x) - before).abs().max()
    assert 1e-4 < change < 1
    assert history.final_ess > 0.8 * pair.history.final_ess


def test_distillation(pair):
    options = FitOptions(max_steps=120, progress=False)
    student = pair.distill(num=2048, options=options, flow="coupling")
    assert student.history.final_ess > 0.5
    with torch.no_grad():
        assert 0.1 < shares(student.flow().sample((2000,))) < 0.6


def test_a_bad_guide_leaves_the_target_as_it_is():
    """Chains that start from exact draws stay there, though most of their proposals are bad."""
    known = unequal_pair()
    guide = trained_pair("trainable", 100)
    start = {"x": known.sample(4000)}
    mcmc = VectorizedMCMC(
        IMH(guide=guide), 20, 0, num_chains=4000, initial_params=start, disable_progbar=True
    )
    mcmc.run()
    x = mcmc.get_samples(group_by_chain=True)["x"][:, -1]
    moved = mcmc.statistics["accepted"].double().mean()
    assert 0.01 < moved < 0.5
    share, error = shares(x), (2 / 9 / 4000) ** 0.5
    assert abs(share - 1 / 3) < 4.5 * error
    log_p = known.target.log_prob(x)
    assert abs(log_p.mean() + known.entropy) < 4.5 * log_p.std() / 4000**0.5


# ---- symmetry ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.5, None])
def test_a_symmetric_flow(scale, double):
    """Also where the base was placed by points that know no symmetry, and after copying."""
    generators = phi4_symmetries(4)
    elements = group(generators)
    guide = AutoDeformationFlow(
        phi4(4, alpha=0.0).target, symmetry=generators, scale=scale, kernels=2, times=4,
        hidden_features=16, options=QUICK,
    )  # fmt: skip
    for _ in range(2):
        guide.fit()
        t, u = torch.rand(20), torch.randn(20, 4)
        flow, target = guide.flow, guide.bind()
        v = flow.velocity(t, u)
        spots = [flow.path.spot(target, t, y) for y in elements.act(u)]
        for y, w, spot in zip(elements.act(u), elements.act(v), spots):
            assert_close(flow.velocity(t, y), w)
            assert_close(spot.log_pi, spots[0].log_pi)
        assert v.abs().max() > 1e-3 and flow.path.learnt(t, u)[0].abs().max() > 1e-5
        guide = pickle.loads(pickle.dumps(guide))
        guide.attach(target)


def test_a_width_that_symmetry_does_not_divide():
    guide = AutoDeformationFlow(
        phi4(4, alpha=0.0).target, symmetry=phi4_symmetries(4), hidden_features=20
    )
    with pytest.raises(ValueError, match="multiple of the symmetry's 16 elements, got 20"):
        guide.bind()


# ---- copies, models, dtypes ----------------------------------------------------------------------


def same_particles(one, other):
    clouds = []
    for guide in (one, other):
        torch.manual_seed(3)
        clouds.append(guide.particles(512))
    assert_close(clouds[0].x, clouds[1].x)
    assert_close(clouds[0].evidences, clouds[1].evidences)


def like(pair):
    """A guide of the same arguments, untrained."""
    interpolation = pair._interpolation[0]
    return AutoDeformationFlow(
        unequal_pair().target, interpolation=interpolation, scale=WIDE, times=16,
        hidden_features=48,
    )  # fmt: skip


@pytest.mark.parametrize("used", [True, False])
def test_a_state_dict(pair, used):
    other = like(pair)
    if used:
        other.bind()
    other.load_state_dict(pair.state_dict())
    other.bind()
    assert other.trained
    same_particles(other, pair)
    x = 5 * torch.randn(20, 2)
    assert_close(other.flow().log_prob(x), pair.flow().log_prob(x))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))])
def test_copies(pair, duplicate):
    other = duplicate(pair)
    other.attach(unequal_pair().target)
    other.bind()
    same_particles(other, pair)


def test_one_seed_one_flow():
    def draws(seed):
        pyro.set_rng_seed(seed)
        guide = AutoDeformationFlow(Target.from_energy(_narrow, 2), **SMALL)
        guide.fit()
        return guide.particles(64).x

    first, again, other = draws(1), draws(1), draws(2)
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_model_with_a_constrained_site(dtype):
    torch.set_default_dtype(dtype)
    data = models.conjugate_data()
    guide = AutoDeformationFlow(models.conjugate, times=8, hidden_features=16, options=QUICK)
    guide.fit(*data)
    cloud = guide.particles(8192, *data, islands=32)
    x, log_w = guide.path_weights(8192, *data)
    assert cloud.x.dtype == x.dtype == dtype and log_w.dtype == torch.float64
    for log_z, error in (cloud.evidence, log_evidence(log_w)):
        assert error < 0.1 and abs(log_z - models.CONJUGATE_LOG_EVIDENCE) < 4.5 * error
    sites = guide.bind(*data).unpack(cloud.x)
    for name, (mean, _) in models.CONJUGATE_TRUTH.items():
        found = cloud.mean(sites[name])
        assert abs(found.value - mean) < 4.5 * found.standard_error, name


def schools_mean(y):
    """E[mu | y] of the eight schools: given mu and tau, y is N(mu, 1 + tau^2)."""
    mu, log_tau = torch.linspace(-6, 8, 281), torch.linspace(-6, 4, 201)[:, None]
    tau = log_tau.exp()
    log_p = -0.5 * (mu / 5).square() - (1 + (tau / 5).square()).log() + log_tau
    spread = (1 + tau.square()).sqrt()
    log_p = log_p + torch.distributions.Normal(mu, spread).log_prob(y[:, None, None]).sum(0)
    return float((log_p.flatten().softmax(0).view_as(log_p) * mu).sum())


def test_eight_schools():
    y = torch.tensor([2.8, 0.8, -0.3, 0.7, -0.1, 0.1, 1.8, 1.2])
    options = FitOptions(400, 192, 1e-2, window=200, anneal=True, progress=False)
    guide = AutoDeformationFlow(models.schools, **{**SMALL, "times": 8, "options": options})
    guide.fit(y)
    guide.flow.block.steps = 4  # for haste: draws are scored by the pass that made them
    for kernel, steps in ((IMH, 400), (LatentMALA, 50)):
        mcmc = VectorizedMCMC(kernel(guide=guide), steps, steps, 100, disable_progbar=True)
        mcmc.run(y)
        samples = mcmc.get_samples()
        assert samples["theta"].shape == (100 * steps, 8) and (samples["tau"] > 0).all()
        assert float(samples["mu"].mean()) == pytest.approx(schools_mean(y), abs=0.2)
        mcmc = MCMC(kernel(guide=guide), 5, 2, disable_progbar=True)
        mcmc.run(y)
        assert (mcmc.get_samples()["tau"] > 0).all()


# ---- what is refused -----------------------------------------------------------------------------

SURE = {"scale": 1.0}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"scale": 0.0}, "scale must be positive and finite, got 0"),
        ({"scale": math.nan}, "scale must be positive"),
        ({"power": -1.0}, "power must be positive"),
        ({"power": math.inf}, "power must be positive and finite"),
        ({"train_scale": 0.0}, "train_scale must be positive"),
        ({"times": 0}, "times must be at least 1"),
        ({"times": [0, 0.5]}, "times must rise from 0 to 1"),
        ({"times": [0.1, 1]}, "times must rise from 0 to 1"),
        ({"times": [0, 0.6, 0.5, 1]}, "times must rise from 0 to 1"),
        ({"times": [0, math.nan, 1]}, "times must rise from 0 to 1"),
        ({"times": []}, "times must rise from 0 to 1"),
        ({"trainer": "runners"}, "trainer must be one of .*'trajectories', 'walkers'"),
        ({"loss": "cubic"}, "loss must be one of .*'absolute'"),
        ({"interpolation": "quadratic"}, "'trainable', 'linear' or a function"),
        ({"interpolation": 3}, "'trainable', 'linear' or a function"),
        ({"interpolation": _shifted}, "give its scale"),
        ({"interpolation": _shifted, "train_scale": 2.0, **SURE}, "leave train_scale at 1"),
        ({"polish": -1}, "polish must not be negative"),
    ],
)
def test_bad_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        AutoDeformationFlow(unequal_pair().target, **wrong)


def _from_nowhere(t, x):
    return (1 - t) * (x - 3).square().sum(-1) / 2 + t * _narrow(x)


def _to_nowhere(t, x):
    return (1 - t) * x.square().sum(-1) / 2 + t * _narrow(x + 1)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda x: x.square().sum(-1), r"must map times \(N,\) and places \(N, d\).*argument"),
        (lambda t, x, z: x.sum(-1), r"must map times .*argument"),
        (lambda t, x: x, r"must return energies \(16,\), got \(16, 2\)"),
        (lambda t, x: x.sum(), r"must return energies \(16,\), got \(\)"),
        (lambda t, x: 1.0, "must map times"),
        (lambda t, x: x.square().sum(-1) / 2, "are not the target's at time 1"),
        (lambda t, x: _shifted(t, x).detach(), "must map times .*differentiable"),
        (_from_nowhere, "are not the base's at time 0"),
        (_to_nowhere, "are not the target's at time 1"),
        (lambda t, x: _shifted(t, x) / 0, "are not the base's at time 0"),
    ],
)
def test_bad_interpolations(wrong, message):
    target = Target.from_energy(_narrow, 2)
    guide = AutoDeformationFlow(target, interpolation=wrong, **{**SMALL, "scale": 2**0.5})
    with pytest.raises(ValueError, match=message):
        guide.fit()


def test_angles_are_refused():
    target = Target.from_energy(lambda x: -x.cos().sum(-1), 2, angles=[0, 1])
    with pytest.raises(ValueError, match="has angles"):
        AutoDeformationFlow(target).fit()


@pytest.mark.parametrize(
    "energy, message",
    [
        (lambda x: _narrow(x).detach(), "the energy has no gradient"),
        (lambda x: 0 * _narrow(x), "gradient is zero everywhere"),
        (lambda x: math.nan * _narrow(x), "NaN or -inf at every"),
    ],
)
def test_energies_that_cannot_be_followed(energy, message):
    with pytest.raises(ValueError, match=message):
        AutoDeformationFlow(Target.from_energy(energy, 2), **SMALL).fit()


def edged(edge):
    """No density beyond an edge, which cuts off so much of the base N(0, 1/2)."""

    def energy(x):
        return torch.where(x[:, 0] < edge, x.square().sum(-1), torch.nan)

    return Target.from_energy(energy, 2)


@pytest.mark.parametrize("trainer", trainers.TRAINERS)
def test_points_without_a_density(trainer):
    guide = AutoDeformationFlow(edged(0.5), trainer=trainer, **SMALL, **SURE)
    with pytest.raises(ValueError, match=r"NaN or infinite at \d+.\d% of the points on the way"):
        guide.fit()
    guide = AutoDeformationFlow(edged(2.3), trainer=trainer, **SMALL, **SURE)
    history = guide.fit()
    assert history.skipped == 0 and history.final_ess > 0.9
    assert float(guide.bind().nonfinite) > 0


def test_dropped_trajectories_have_no_weight(double):
    """Two of three points are off the support: all is as if they had never been."""
    guide = AutoDeformationFlow(edged(0.0), interpolation="linear", times=2, **SURE)
    rough(guide.bind() and guide.flow.velocity)
    inside = torch.tensor([[-1.0, 0.5], [-0.3, 0.2], [-2.0, -0.5]])

    def loss(u):
        times = torch.tensor([0.0, 0.01])
        trainer = trainers.Trainer(guide.flow, edged(0.0), times, "mixed", len(u), 1.0, 1)
        trainer.base = type("Base", (), {"sample": lambda self, shape: u})()
        return trainer, trainer.carrying()()

    alone = loss(inside)[1]
    trainer, among = loss(torch.cat([inside, inside.abs(), inside.abs() + 1]))
    assert_close(among, alone)
    assert (trainer.dropped, trainer.seen) == (6, 9)


def test_a_short_training_is_checked_too():
    options = FitOptions(max_steps=3, window=50, progress=False)
    guide = AutoDeformationFlow(edged(0.5), **{**SMALL, "options": options}, **SURE)
    with pytest.raises(ValueError, match="of the points on the way"):
        guide.fit()


def test_a_base_off_the_support():
    target = Target.from_energy(
        lambda x: torch.where(x[:, 0] > 1, x.square().sum(-1), torch.inf), 2
    )
    with pytest.raises(ValueError, match="the base must cover the target's support"):
        AutoDeformationFlow(target, scale=0.05, **SMALL).fit()


def test_a_base_too_narrow():
    """The flow never sees the second mode, so its weights look well."""
    far = torch.tensor([[0.0, 0.0], [14.0, 0.0]])

    def energy(x):
        return -(-0.5 * (x[:, None] - far).square().sum(-1)).logsumexp(-1)

    guide = AutoDeformationFlow(Target.from_energy(energy, 2), scale=2**0.5, **SMALL)
    message = r"log Z is 1\.8\d ± 0\.\d\d by the flow, but 2\.\d\d ± 0\.\d\d by annealed particles"
    with pytest.warns(UserWarning, match=message):
        guide.fit()
    assert guide.history.final_ess > 0.9
    greatest = max(float(evidence.log_z) for evidence in guide.evidences.values())
    assert greatest == pytest.approx(math.log(4 * math.pi), abs=0.3)


def test_no_weight_at_all_is_a_warning():
    guide = bad_guide("linear")
    guide._log_weights = lambda target, num: torch.full((num,), -torch.inf)
    with pytest.warns(UserWarning, match="log Z is -inf ± nan by the flow, but"):
        guide._compare(guide.bind(), torch.tensor(guide.times))


def lost_mode():
    """A flow that is exact where it is, and knows nothing of a fifth of the mass far off."""
    centres, shares = torch.tensor([[0.0, 0.0], [14.0, 0.0]]), torch.tensor([0.8, 0.2])

    def energy(x):
        squares = (x[:, None] - centres).square().sum(-1)
        return math.log(2 * math.pi) - (shares.log() - 0.5 * squares).logsumexp(-1)

    target = Target.from_energy(energy, 2)
    guide = AutoDeformationFlow(target, interpolation="linear", scale=2**0.5, **SMALL)
    guide.bind()
    for parameter in guide.flow.velocity.parameters():
        parameter.detach().zero_()
    return guide, centres


def arrived(guide, *groups, log_z):
    x = torch.cat(groups)
    weights = torch.full((len(x),), 1 / len(x))
    evidence = Evidence(torch.tensor(log_z).double(), torch.tensor(0.1).double())
    return walkers.Arrived(x, guide.bind().log_prob(x).double(), weights, evidence)


def test_dead_particles_have_missed_nothing():
    guide, _ = lost_mode()
    dead = arrived(guide, torch.full((8, 2), 50.0), log_z=-math.inf)._replace(
        weights=torch.full((8,), math.nan)
    )
    assert guide._missed(dead, torch.tensor(0.0).double()) == 0


def test_a_mode_that_annealing_finds_but_not_whole(monkeypatch):
    """Its evidence is below the flow's, log 0.8; where its particles are tells all the same."""
    guide, centres = lost_mode()
    near, far = torch.randn(900, 2), centres[1] + torch.randn(100, 2)
    found = {
        "base": arrived(guide, near, log_z=math.log(0.5)),
        "twice as wide": arrived(guide, near, far, log_z=math.log(0.4)),
    }
    monkeypatch.setattr(guides, "arrivals", lambda *args: (found, guide.flow.step_sizes))
    message = r"particles \(twice as wide\) find 5\.0% of the flow's own evidence where it has less"
    with pytest.warns(UserWarning, match=message):
        guide._compare(guide.bind(), torch.tensor(guide.times))
    assert guide.missed == {"base": 0, "twice as wide": pytest.approx(0.4 * 0.1 / 0.8, rel=1e-3)}
    del found["twice as wide"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guide._compare(guide.bind(), torch.tensor(guide.times))


@pytest.mark.parametrize("interpolation", ["trainable", _shifted])
def test_where_annealed_particles_arrive(interpolation):
    """Places, densities and weights are the target's, from whichever base."""
    guide = bad_guide("given" if callable(interpolation) else interpolation)
    target, times = guide.bind(), torch.linspace(0, 1, 17)
    guide.flow.place(torch.tensor([0.3, -0.2]), torch.tensor([2.0, 1.5]))
    if callable(interpolation):
        guide.flow.place(torch.zeros(2), torch.full((2,), 2**0.5))
        guide.flow.path.check(target, torch.randn(16, 2))
    found, step_sizes = walkers.arrivals(guide.flow.path, target, guide.get_base_dist(), times)
    assert found.keys() == {"base", "twice as wide", "over-dispersed"}
    assert step_sizes.shape == times.shape
    for crowd in found.values():
        assert_close(crowd.log_prob, target.log_prob(crowd.x).double(), atol=1e-4, rtol=1e-4)
        mean = (crowd.weights[:, None] * crowd.x).sum(0)
        assert_close(mean, torch.full((2,), 0.5), atol=0.16, rtol=0)
        assert abs(crowd.evidence.log_z - LOG_Z) < 4.5 * crowd.evidence.standard_error < 0.4


def test_all_anneal_at_the_path_s_pace():
    """Of a base a hundred times as wide as the target, most of the way lies near its end."""
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 10)
    path = BoltzmannPath(10, 2.0, None, None)
    path.scale.fill_(100.0)
    path.pace.fill_(2 * math.log(100))
    base = GeneralisedNormal(path.loc, 2.0)
    found, _ = walkers.arrivals(path, target, base, torch.linspace(0, 1, 33))
    for name in ("base", "twice as wide"):
        assert abs(found[name].evidence.log_z - 5 * math.log(2 * math.pi)) < 0.5


def test_particles_divide_into_islands():
    guide = bad_guide("linear")
    for num, islands in ((100, 16), (0, 16), (16, 0)):
        with pytest.raises(ValueError, match="do not divide"):
            guide.particles(num, islands=islands)
