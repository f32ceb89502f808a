"""Short trainings of annealing flows, and a normal target."""

from pyro_flowsamp import FitOptions, Target

QUICK = FitOptions(
    max_steps=40,
    batch_size=256,
    learning_rate=5e-3,
    cosine_schedule=True,
    stop_at_ess=0.99,
    progress=False,
)
SMALL = {"num_particles": 2048, "hidden_features": 32, "options": QUICK}


def normal_target(variance):
    """Make the target N(0, variance I) in two dimensions, not normalised."""
    return Target.from_energy(lambda x: 0.5 * x.square().sum(-1) / variance, 2)
