"""Steps never wait for the device, and make all tensors on the device of the flow.

No GPU is needed: "meta" is the default device, so that a tensor made elsewhere breaks the step.
"""

from copy import deepcopy
from functools import cache, partial

import pytest
import torch
from support import models
from support.devices import (
    NoWaiting,
    default_device_elsewhere,
    device_traps,
    make_draws,
    started,
)
from support.marks import in_turn, studies
from variants import along_trajectories, kl_loss, linear_loss

from pyro_flowsamp import (
    IMH,
    AnnealingOptions,
    AutoAnnealingFlow,
    AutoDeformationFlow,
    AutoFlow,
    DeformationOptions,
    ForwardKL,
    LatentHMC,
    LatentMALA,
    LocalGlobalHMC,
    PathGradient,
    ReverseKL,
    Target,
    WeightedSum,
)
from pyro_flowsamp.guides.annealing import log_variance, training
from pyro_flowsamp.guides.annealing.blocks import BaseDensity
from pyro_flowsamp.guides.deformation import CollocationLoss, at_smc_points
from pyro_flowsamp.nn.equivariant import group, tied
from pyro_flowsamp.options import FitOptions
from pyro_flowsamp.smc import driver, particles, paths
from pyro_flowsamp.training.train import Stepper


def torus(x):
    return 0.5 * x[:, 0].square() - x[:, 1].cos()


TARGETS = {
    "energy": lambda: Target.from_energy(models.energy, 2),
    "torus": lambda: Target.from_energy(torus, 2, angles=[1]),
    "model": lambda: Target.from_model(models.conjugate, *models.conjugate_data()),
    "turned model": lambda: Target.from_model(models.turned, torch.tensor(1.0)),
}
CASES = [
    ("coupling", "energy"),
    ("mixture", "energy"),
    ("spline", "energy"),
    ("circular", "torus"),
    ("coupling", "model"),
    ("spline", "model"),
    ("circular", "turned model"),
    ("annealing", "energy"),
    ("annealing", "model"),
]
SLOW = [case for case in CASES if "annealing" in case]
DRAWS = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))


def _annealed(target, **arguments):
    options = FitOptions(max_steps=2, batch_size=8, stop_at_ess=1.0, progress=False)
    guide = AutoAnnealingFlow(
        target, reference=2.0, schedule=[0, 0.5, 1], num_particles=128, options=options, **arguments
    )
    guide.fit()
    return guide


@cache
def _trained(flow, name):
    options = FitOptions(max_steps=2, batch_size=8, stop_at_ess=1.0, progress=False)
    ensemble = None
    if flow == "annealing":
        return _annealed(TARGETS[name]())
    if flow == "mixture":  # couplings on a mixture
        flow, ensemble = "coupling", {"x": DRAWS}
    guide = AutoFlow(TARGETS[name](), flow=flow, ensemble=ensemble, options=options)
    guide.fit()
    return guide


@pytest.fixture
def guide(request):
    """A copy, which a test may change, of a guide that is trained once."""
    return deepcopy(_trained(*request.param))


def on_cases(**names):
    """Each name on each case of a guide, the rest of the pairs in turn as further runs."""
    ((parameter, names),) = names.items()
    chosen, values = in_turn(names, CASES), []
    for name in names:
        for case in CASES:
            marks = [studies] * ((name, case) not in chosen) + [pytest.mark.slow] * (case in SLOW)
            values.append(pytest.param(name, case, marks=marks, id=f"{name}-{' on '.join(case)}"))
    return pytest.mark.parametrize((parameter, "guide"), values, indirect=["guide"])


SAMPLERS = {
    "IMH": partial(IMH, lookahead=24),  # three steps, then again
    "LatentMALA": LatentMALA,
    "LatentHMC": partial(LatentHMC, global_prob=0.5),
    "LatentMALA, Jacobian metric": partial(LatentMALA, metric="jacobian"),
    "LocalGlobalHMC": partial(LocalGlobalHMC, num_steps=1),
}


@on_cases(kernel=SAMPLERS)
def test_sampling(kernel, guide):
    draws = 5 if kernel == "IMH" else 2  # IMH proposes ahead, and twice here; no other kernel does
    kernel = SAMPLERS[kernel](guide=guide)
    mcmc, state = started(kernel, 8, draws)
    with device_traps():
        state, info = kernel.step(state)
        kernel.adapt(info)
    kernel.freeze()  # may wait, once: for a step size gone to zero, for how many steps in turn
    with device_traps():
        make_draws(mcmc, state)
    assert mcmc.get_samples(group_by_chain=True).popitem()[1].shape[:2] == (8, draws)


OBJECTIVES = {
    "sum": WeightedSum([(0.5, ForwardKL(DRAWS)), (1.0, PathGradient())]),
    "path gradient": PathGradient(),
    "reverse KL": ReverseKL(),
    "forward KL": ForwardKL(DRAWS, log_weights=DRAWS[:, 0]),
}


@on_cases(objective=OBJECTIVES)
def test_training(objective, guide):
    target = guide.target_for()
    before = [p.clone() for p in guide.flow.parameters()]
    with device_traps():
        stepper = Stepper(guide.flow.parameters(), guide.options)
        for _ in range(2):
            stepper.step(OBJECTIVES[objective](guide.flow, target, 16, None).loss)
    assert any((a != b).any() for a, b in zip(before, guide.flow.parameters()))
    assert int(stepper.skipped) == 0


@pytest.mark.parametrize("objective", [log_variance, kl_loss, linear_loss])
@pytest.mark.parametrize("name", ["energy", "model"])
def test_training_a_block(name, objective):
    target = TARGETS[name]()
    guide = _annealed(target, settings=AnnealingOptions(objective))
    start, block = BaseDensity(guide.flow.start), guide.flow.new_block()
    one = torch.ones(target.dim)
    cloud = particles.init(start.sample(128), paths.density(target, start, 0 * one[0], one))
    density = training.path_density(target, start, 0.5)
    with device_traps():
        stepper = Stepper(block.parameters(), guide.options)
        trainer = training.BlockTrainer(guide.flow, target, guide)
        closure = trainer._closure(block, cloud, density, 0.5)
        for _ in range(2):
            stepper.step(closure()[0])
    assert int(stepper.skipped) == 0


@pytest.mark.parametrize("name", ["energy", "model"])
def test_particles(name):
    target = TARGETS[name]()
    guide = _annealed(target)
    with device_traps():
        cloud = guide.particles(128, islands=4)
        stage = guide._stage(target, guide.flow.blocks[-1], 0.0)
        cloud, _ = driver.move_and_tune(cloud, stage, 2, 0.574)
        assert cloud.evidence.value.shape == () and cloud.draw(10).shape == (10, target.dim)
        assert cloud.mean(cloud.x).value.shape == (target.dim,)


def _deforming():
    """Trainable, symmetric: what has the most parts."""
    guide = AutoDeformationFlow(
        TARGETS["energy"](),
        base_scale=1.5,
        symmetry=[([1, 0], [1, 1]), ([0, 1], [-1, -1])],
        settings=DeformationOptions(time_grid=4, hidden_features=8, time_kernels=2),
    )
    return guide, guide.target_for()


@pytest.mark.parametrize("collocation", [at_smc_points, along_trajectories])
def test_training_a_deformation(collocation):
    guide, target = _deforming()
    flow, times = guide.flow, torch.tensor(guide.time_grid)
    training = CollocationLoss(flow, target, times, 24, 1.5, 8, guide.settings)
    closure = collocation(training)
    with tied([flow.velocity, flow.path.learned_term], group(guide.symmetry)), device_traps():
        stepper = Stepper([*flow.velocity.parameters(), *flow.path.parameters()], guide.options)
        for _ in range(2):
            stepper.step(closure())
    assert int(stepper.skipped) == 0 and int(training.dropped) == 0


def test_deformed_particles():
    guide, target = _deforming()
    with device_traps():
        assert guide.particles(128, islands=4).evidence.value.shape == ()
        assert guide.weighted_samples(8)[0].shape == (8, 2)


WAITING = [
    lambda x: x.sum().item(),
    lambda x: 1 if (x > 0).any() else 0,
    lambda x: x[x > 0],
    lambda x: (x > 0).nonzero(),
]
ELSEWHERE = [lambda x: x + torch.zeros(3)]


@pytest.mark.parametrize(
    ("trap", "code"),
    [
        *((NoWaiting, code) for code in WAITING),
        *((default_device_elsewhere, code) for code in ELSEWHERE),
        *((device_traps, code) for code in WAITING + ELSEWHERE),
    ],
)
def test_the_traps_work(trap, code):
    x = torch.randn(3)
    code(x)
    with pytest.raises((AssertionError, RuntimeError)), trap():
        code(x)
