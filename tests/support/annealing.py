"""Short trainings of annealing flows, and a normal target."""

import torch

from pyro_flowsamp import AnnealingOptions, AutoAnnealingFlow, FitOptions, Target

QUICK = FitOptions(
    max_steps=40,
    batch_size=256,
    learning_rate=5e-3,
    cosine_schedule=True,
    stop_at_ess=0.99,
    progress=False,
)
SMALL = {
    "num_particles": 2048,
    "settings": AnnealingOptions(hidden_features=32),
    "options": QUICK,
}


def normal_target(variance):
    """Make the target N(0, variance I) in two dimensions, not normalised."""
    return Target.from_energy(lambda x: 0.5 * x.square().sum(-1) / variance, 2)


def trained_displacement(a, b, settings=None):
    """Train one block from variance a to b; the slope and residual of its displacement."""
    guide = AutoAnnealingFlow(
        normal_target(b),
        reference=a**0.5,
        schedule=[0, 1],
        num_particles=8192,
        options=FitOptions(300, 1024, 2e-3, cosine_schedule=True, stop_at_ess=1.0, progress=False),
        settings=settings,
    )
    guide.fit()
    x = a**0.5 * torch.randn(4000, 2)
    moved = (guide.flow.blocks[0](None).push(x)[0] - x).detach()
    slope = float((x * moved).sum() / x.square().sum())
    return slope, float((moved - slope * x).norm() / x.norm())
