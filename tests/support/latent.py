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
