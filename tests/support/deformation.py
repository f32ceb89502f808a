"""Paths with known answers, and deformation flows that were never trained."""

import math

import torch
from support.mutations import mutation
from support.networks import roughened

from pyro_flowsamp import AutoDeformationFlow, DeformationOptions, FitOptions, Target
from pyro_flowsamp.guides.deformation.energy_path import BoltzmannPath, EnergyMLP
from pyro_flowsamp.nn.mlp import VelocityMLP

QUICK = FitOptions(
    max_steps=20,
    batch_size=96,
    learning_rate=1e-2,
    eval_every=10,
    cosine_schedule=True,
    progress=False,
)
SMALL = {"settings": DeformationOptions(time_grid=4, hidden_features=16), "options": QUICK}


def sixteen_steps(block, *args, **options):
    """Set the number of integration steps without a check."""
    block.steps = 16


def quartic_energy(x):
    return (x - 0.3).pow(4).sum(-1) / 4 + x.prod(-1)


def _bent(t, x):
    """Go from |x / 2|^3 to the target; a constant that depends on time is added."""
    return (1 - t**2) * (x / 2).abs().pow(3).sum(-1) + t**2 * quartic_energy(x) + 5 * t.sin()


def make_path(kind):
    """Make a path, its target, and its energy written a second time."""
    target = Target.from_energy(quartic_energy, 2)
    learned_term = roughened(EnergyMLP(2, 8, 3), 1.0) if kind == "trainable" else None
    path = BoltzmannPath(2, 3.0, learned_term, _bent if kind == "given" else None)
    if kind == "given":
        path.scale.fill_(2.0)
    else:
        path.loc.copy_(torch.tensor([0.5, -1.0]))
        path.scale.copy_(torch.tensor([2.0, 0.7]))
    if kind == "trainable":
        path.log_kappa.fill_(math.log(5.0))
        path.learned_fraction = 0.6
    path.check(target, torch.randn(16, 2))

    def energy(t, u, width=1.0):
        x, volume = path.loc + path.scale * u, path.scale.log().sum()
        if kind == "given":
            return _bent(t, x) - t * (5 * math.sin(1) + volume)
        beta = t if learned_term is None else (5**t - 1) / 4
        value = (1 - beta) * (u / width).abs().pow(3).sum(-1) + beta * (quartic_energy(x) - volume)
        return (
            value if learned_term is None else value + 0.6 * t * (1 - t) * learned_term(t, u)[:, 0]
        )

    return path, target, energy


KINDS = ["linear", "trainable", "given"]


class Linear:
    """Velocity of a moving Gaussian: shift(t) + growth(t) (u - centre(t))."""

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


def spreading():
    """Go from N(0, 1/2) to N(0, 3) with an energy 5 too high; the precision is linear in time."""
    target = Target.from_energy(lambda x: x.square().sum(-1) / 6 + 5, 3)
    path = BoltzmannPath(3, 2.0, None, None)

    def variance(t):
        return 1 / (2 + t * (1 / 3 - 2))

    velocity = Linear(_still, lambda t: variance(t).sqrt())
    return path, target, velocity, lambda t: 1.5 * (2 * math.pi * variance(t)).log() - 5 * t


LOG_Z = math.log(2 * math.pi * 0.64) - 3  #: of the target below


def shifted(t, x):
    straight = (1 - t) * x.square().sum(-1) / 2 + t * narrow(x)
    return straight + 2 * t * (1 - t) * x[:, 0].sin()


def narrow(x):
    return 0.5 * ((x - 0.5) / 0.8).square().sum(-1) + 3


def bad_guide(kind, time_grid=8):
    """Make a guide that was never trained: its velocity and its detour are random."""
    guide = AutoDeformationFlow(
        Target.from_energy(narrow, 2),
        interpolation=shifted if kind == "given" else kind,
        base_scale=2**0.5,
        settings=DeformationOptions(time_grid=time_grid, hidden_features=8, time_kernels=2),
    )
    target = guide.target_for()
    roughened(guide.flow)
    guide.flow.path.learned_fraction = 1.0
    guide.flow.set_loc_scale(torch.zeros(2), torch.full((2,), 2**0.5))  # roughened too
    for parameter in guide.flow.transform.transforms[0].parameters():
        parameter.detach().zero_()
    guide.flow.path.check(target, torch.randn(16, 2))
    guide.flow.step_sizes.fill_(0.7)
    return guide


@mutation(VelocityMLP, "with_divergence")
def flipped_divergence(with_divergence, *args):
    """Change the divergence's sign."""
    velocity, divergence = with_divergence(*args)
    return velocity, -divergence


@mutation(BoltzmannPath, "fixed_terms")
def no_rate(fixed, *args):
    """Forget that the energy changes with time."""
    return fixed(*args)._replace(denergy_dt=torch.zeros(()))


SURE = {"base_scale": 1.0}


def edged(edge):
    """Make a target without density beyond an edge, which cuts off a part of the base N(0, 1/2)."""

    def energy(x):
        return torch.where(x[:, 0] < edge, x.square().sum(-1), torch.nan)

    return Target.from_energy(energy, 2)
