"""The library on a GPU: exact draws, all tensors on the device, and steps that never wait.

The default device stays the CPU, so that everything has to follow the data. One test of kernels
uses :func:`torch.set_default_device` instead.
"""

from contextlib import contextmanager
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from baselines.parallel_tempering import parallel_tempering
from pyro.infer import MCMC
from support import models
from support.devices import make_draws, started
from support.scenarios import SCENARIOS, THRESHOLD, assert_exact, shake, spoil, starts
from torch.testing import assert_close
from variants import along_trajectories

from pyro_flowsamp import (
    IMH,
    AutoAdvNF,
    AutoAnnealingFlow,
    AutoDeformationFlow,
    AutoFlow,
    DeformationOptions,
    FitOptions,
    LatentHMC,
    LatentMALA,
    LocalGlobalHMC,
    PathGradient,
    Target,
    VectorizedMCMC,
    diffusion,
    importance_flow,
    lattice_flow,
    log_evidence,
    sample,
    tempered_smc,
    to_arviz,
)
from pyro_flowsamp.guides.deformation import CollocationLoss, at_smc_points
from pyro_flowsamp.lattice import phi4, xy, xy_model
from pyro_flowsamp.problems import funnel, mog4, rings4, unequal_pair
from pyro_flowsamp.training.train import Stepper

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
DEVICE = "cuda"
QUICK = FitOptions(60, 256, stop_at_ess=1.0, progress=False)
KERNELS = {
    "IMH": IMH,
    "LatentMALA": LatentMALA,
    "LatentMALA, Jacobian metric": partial(LatentMALA, metric="jacobian"),
    "LatentHMC, jumps": partial(LatentHMC, global_prob=0.3),
    "LocalGlobalHMC": LocalGlobalHMC,
}


@contextmanager
def no_waiting():
    """Anything for which the host would wait raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def default_on_cuda():
    torch.set_default_device(DEVICE)
    yield
    torch.set_default_device(None)


def data(device=DEVICE):
    return [y.to(device) for y in models.conjugate_data()]


def conjugate(device=DEVICE):
    return Target.from_model(models.conjugate, *data(device))


def quiet(y, zero, one):
    """Makes no tensor of its own, for which the host would wait."""
    mean = pyro.sample("mean", dist.Normal(zero, one))
    rate = pyro.sample("rate", dist.Gamma(one, one))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, rate), obs=y)


def model():
    y, zero, one = (torch.tensor(v, device=DEVICE) for v in ([0.5, 1.5], 0.0, 1.0))
    return Target.from_model(quiet, y, zero, one)


def gaussian():
    return Target.from_energy(models.energy, 2, device=DEVICE)


def on_cuda(values):
    return all(v.device.type == DEVICE for v in values)


def assert_conjugate(draws):
    """Each mean within THRESHOLD standard errors; chains are independent."""
    for site, (mean, _) in models.CONJUGATE_TRUTH.items():
        of_chains = draws[site].double().mean(1)
        error = of_chains.std() / len(of_chains) ** 0.5
        assert abs(of_chains.mean() - mean) < THRESHOLD * error


# ---- targets ------------------------------------------------------------------------------------

KNOWN = {"mog4": mog4, "rings4": rings4, "pair": unequal_pair, "funnel": funnel, "phi4": phi4}
KNOWN |= {"xy": partial(xy, (4, 4))}


@pytest.mark.parametrize("name", KNOWN)
def test_known_targets(name):
    here, there = KNOWN[name](device="cpu"), KNOWN[name](device=DEVICE)
    x = torch.randn(100, there.target.dim) if there.sample is None else there.sample(100).cpu()
    log_p = there.target.log_prob(x.to(DEVICE))
    assert log_p.device.type == DEVICE
    assert_close(log_p.cpu(), here.target.log_prob(x), rtol=1e-4, atol=1e-3)


def test_a_model_follows_its_data():
    z = torch.randn(50, 2)
    (here, here_grad), (there, there_grad) = (
        target.log_prob_and_grad(z.to(target.device)) for target in (conjugate("cpu"), conjugate())
    )
    assert on_cuda([there, there_grad])
    assert_close(there.cpu(), here, rtol=1e-4, atol=1e-4)
    assert_close(there_grad.cpu(), here_grad, rtol=1e-4, atol=1e-4)


# ---- kernels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_are_exact_with_a_bad_flow(kernel):
    guide = AutoFlow(conjugate(), flow="coupling")
    guide.target_for()
    shake(guide.flow)
    guide.trained = True
    mcmc = VectorizedMCMC(KERNELS[kernel](guide=guide), 10, 100, 2000, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)
    assert on_cuda(draws.values())
    assert_conjugate(draws)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["cylinder", "enumerated"])
def test_kernels_where_cuda_is_the_default(name, kernel, default_on_cuda):
    scenario = SCENARIOS[name]
    guide = spoil(AutoFlow(scenario.source(), flow=scenario.flow()), scenario)
    start = starts(guide.target_for(), scenario, 2000)
    mcmc = VectorizedMCMC(
        KERNELS[kernel](guide=guide), 10, 150, 2000, initial_params=start, disable_progbar=True
    )
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)
    assert on_cuda(draws.values())
    assert_exact({name: v.cpu() for name, v in draws.items()}, scenario)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("make", [model, gaussian])
def test_a_step_waits_for_nothing(make, kernel):
    guide = AutoFlow(make(), flow="coupling", options=QUICK)
    guide.fit()
    kernel = KERNELS[kernel](guide=guide)
    mcmc, state = started(kernel, 64)
    state, info = kernel.step(state)  # the first use of a library may wait
    with no_waiting():
        state, info = kernel.step(state)
        kernel.adapt(info)
    kernel.freeze()
    with no_waiting():
        make_draws(mcmc, state)


@pytest.mark.parametrize("kernel", [IMH, LatentMALA])
def test_inside_pyros_mcmc(kernel):
    guide = AutoFlow(models.conjugate, options=QUICK)
    guide.fit(*data())
    mcmc = MCMC(kernel(models.conjugate, guide=guide), 200, warmup_steps=50, disable_progbar=True)
    mcmc.run(*data())
    assert on_cuda(mcmc.get_samples().values())
    assert to_arviz(mcmc).posterior["mean"].shape == (1, 200)


def test_parallel_tempering():
    guide = AutoFlow(conjugate())
    draws = parallel_tempering(guide.target_for(), 200, 10, 50, num_replicas=4)
    assert on_cuda([draws.x])


# ---- guides -------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow", ["coupling", "spline", "gaussian"])
def test_a_guide_trains_and_draws(flow):
    guide = AutoFlow(models.conjugate, flow=flow, options=QUICK)
    guide.fit(*data())
    assert on_cuda(guide.parameters()) and on_cuda(guide(*data()).values())
    x, log_q = guide.proposal(*data()).sample_and_log_prob(4096)
    log_z, error = log_evidence(guide.target_for(*data()).log_prob(x).double() - log_q.double())
    assert abs(float(log_z) - models.CONJUGATE_LOG_EVIDENCE) < 0.01 + THRESHOLD * float(error)
    idata = to_arviz(guide, *data(), num_samples=100)
    assert idata.posterior["rate"].shape[-1] == 100


def test_a_state_comes_back_on_either_device(tmp_path):
    guide = AutoFlow(models.conjugate, options=QUICK)
    guide.fit(*data())
    torch.save(guide.state_dict(), tmp_path / "guide.pt")
    other = AutoFlow(models.conjugate)
    other.load_state_dict(torch.load(tmp_path / "guide.pt", map_location="cpu"))
    y = models.conjugate_data()
    assert all(v.device.type == "cpu" for v in other(*y).values())


def _annealing():
    options = FitOptions(20, 64, stop_at_ess=1.0, progress=False)
    return AutoAnnealingFlow(
        gaussian(), reference=2.0, schedule=[0, 0.5, 1], num_particles=512, options=options
    )


def test_annealing():
    guide = _annealing()
    guide.fit()
    cloud = guide.particles(1024, islands=8)
    assert on_cuda([cloud.x, cloud.evidence.value])


@pytest.mark.parametrize("collocation", [at_smc_points, along_trajectories])
def test_deformation(collocation):
    options = FitOptions(30, 64, 1e-2, stop_at_ess=1.0, progress=False)
    guide = AutoDeformationFlow(
        phi4(4, 0.5, device=DEVICE).target,
        base_power=4.0,
        base_scale=2.0,
        options=options,
        settings=DeformationOptions(collocation, hidden_features=16),
    )
    guide.fit()
    draws, log_w = guide.weighted_samples(100)
    assert on_cuda([draws, log_w, guide.particles(64).x])


def test_a_diffusion_and_its_distillation():
    known = mog4(device=DEVICE)
    path = diffusion(known.weights, known.modes, torch.ones_like(known.modes), 2**0.5)
    options = FitOptions(30, 64, 1e-2, stop_at_ess=1.0, progress=False)
    guide = AutoDeformationFlow(
        known.target, base_scale=2**0.5, interpolation=path, options=options
    )
    guide.fit()
    assert on_cuda(guide.distill(num=256, options=QUICK)().values())


def _advnf():
    guide = AutoAdvNF(xy_model, context=["temperature"], flow=lattice_flow((4, 4)), options=QUICK)
    temperatures = torch.linspace(0.5, 2, 4, device=DEVICE)
    guide.fit(
        shape=(4, 4), temperature=temperatures, ensemble=partial(tempered_smc, num_particles=100)
    )
    return guide, {"shape": (4, 4), "temperature": temperatures}


def test_a_lattice_at_several_temperatures():
    guide, arguments = _advnf()
    mcmc = VectorizedMCMC(IMH(xy_model, guide=guide), 10, 10, 64, disable_progbar=True)
    mcmc.run(**arguments)
    assert on_cuda(mcmc.get_samples().values())
    assert to_arviz(mcmc).posterior.sizes["temperature"] == 4


# ---- training waits for nothing -----------------------------------------------------------------


@pytest.mark.parametrize("make", [model, gaussian])
@pytest.mark.parametrize("flow", ["coupling", "spline"])
def test_a_training_step_waits_for_nothing(flow, make):
    guide = AutoFlow(make(), flow=flow, options=QUICK)
    target = guide.target_for()
    stepper = Stepper(guide.flow.parameters(), guide.options)
    stepper.step(PathGradient()(guide.flow, target, 16, None).loss)
    with no_waiting():
        for _ in range(2):
            stepper.step(PathGradient()(guide.flow, target, 16, None).loss)
    assert int(stepper.skipped) == 0


@pytest.mark.parametrize("collocation", [at_smc_points, along_trajectories])
def test_training_a_deformation_waits_for_nothing(collocation):
    settings = DeformationOptions(time_grid=4, hidden_features=8, time_kernels=2)
    guide = AutoDeformationFlow(gaussian(), base_scale=1.5, settings=settings)
    target = guide.target_for()
    flow, times = guide.flow, torch.tensor(guide.time_grid, device=DEVICE)
    closure = collocation(CollocationLoss(flow, target, times, 24, 1.5, 8, settings))
    stepper = Stepper([*flow.velocity.parameters(), *flow.path.parameters()], guide.options)
    stepper.step(closure())
    with no_waiting():
        for _ in range(2):
            stepper.step(closure())
    assert int(stepper.skipped) == 0


# ---- in one call --------------------------------------------------------------------------------


def test_sample():
    found = sample(models.conjugate, *data())
    for site, (mean, deviation) in models.CONJUGATE_TRUTH.items():
        assert abs(float(found.posterior[site].mean()) - mean) < 0.1 * deviation


def test_tempered_particles():
    cloud = tempered_smc(conjugate(), 1024)
    assert on_cuda([cloud.x])


def test_a_rare_event():
    p = torch.distributions.Independent(
        torch.distributions.Normal(torch.zeros(2, device=DEVICE), 1.0), 1
    )
    found = importance_flow(p, event=lambda x: x.norm(dim=-1) - 4, num_samples=4096)
    assert abs(float(found.value) / 3.35e-4 - 1) < 0.2
