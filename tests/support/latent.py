"""Bad guides, flows of other libraries, and runs of latent kernels."""

import torch
import zuko
from support.scenarios import SCENARIOS, spoil

from pyro_flowsamp import AutoFlow, VectorizedMCMC


def bad_guide(name, size=0.1):
    """Make a trained guide of a scenario, with a flow that is wrong in every layer."""
    scenario = SCENARIOS[name]
    return spoil(AutoFlow(scenario.source(), flow=scenario.flow()), scenario, size)


def run(kernel, budget, initial_params=None):
    """Return draws by chain; the budget is (chains, warm-up steps, draws)."""
    num_chains, warmup_steps, num_samples = budget
    mcmc = VectorizedMCMC(
        kernel,
        num_samples,
        warmup_steps,
        num_chains,
        initial_params=initial_params,
        disable_progbar=True,
    )
    mcmc.run()
    return mcmc.get_samples(group_by_chain=True)


def shaken(flow, size=0.3):
    """Add noise to all parameters of a flow."""
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += size * torch.randn_like(parameter)
    return flow


def mala(state, density, step_size, noise, log_u):
    """Move by Langevin in the letters of its papers: both proposal densities, and a cut drift."""

    def drift(grad):
        step = 0.5 * step_size**2 * grad
        bound = step_size * grad.shape[-1] ** 0.5
        return step * (bound / step.norm(dim=-1, keepdim=True)).clamp(max=1)

    new = density(state.z + drift(state.grad) + step_size * noise)
    backward = (state.z - new.z - drift(new.grad)) / step_size
    log_g = 0.5 * (noise.double().square() - backward.double().square()).sum(-1)
    log_alpha = new.log_pi - state.log_pi + log_g
    accepted = log_u < log_alpha
    moved = (torch.where(accepted.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in zip(new, state))
    return type(state)(*moved), log_alpha.clamp(max=0).exp()


FOREIGN = {
    "NSF in 1-D": lambda: shaken(zuko.flows.NSF(1)),
    "MAF in 2-D": lambda: shaken(zuko.flows.MAF(2, transforms=2, hidden_features=(16,)), 0.2),
    "NICE in 2-D": lambda: shaken(zuko.flows.NICE(2, transforms=2, hidden_features=(16,)), 0.2),
    "splines in 2-D": lambda: shaken(
        zuko.flows.NICE(
            2,
            univariate=zuko.transforms.MonotonicRQSTransform,
            shapes=[(8,), (8,), (7,)],
            transforms=2,
            hidden_features=(16,),
        ),
        0.2,
    ),
}
