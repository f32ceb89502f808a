"""What workers do in processes that are spawned, and so import this module themselves."""

import os
import signal

import pyro
import torch
from torch import nn

from pyro_flowsamp import (
    AutoFlow,
    FitOptions,
    LatentMALA,
    Target,
    VectorizedMCMC,
    tempered_smc,
)
from pyro_flowsamp.distributed import shared_training
from pyro_flowsamp.smc.starts import TemperedStart
from pyro_flowsamp.training.train import Stepper

CHAINS = {"chains_per_block": 32}


def energy(x):
    return 0.5 * (x / 2 - 1).square().sum(-1)


def chains(group):
    """Draws of 96 chains in three blocks."""
    pyro.set_rng_seed(1)
    guide = AutoFlow(Target.from_energy(energy, 2), flow="gaussian", options=FitOptions(4))
    guide.target_for()
    guide.trained = True
    run = VectorizedMCMC(LatentMALA(guide=guide), 5, 20, 96, disable_progbar=True)
    run.run()
    return run.gathered(to_all=True).unconstrained


def particles(group):
    """Particles of four islands, and their log evidences."""
    pyro.set_rng_seed(2)
    base = TemperedStart(torch.zeros(2), 5 * torch.ones(2), torch.zeros(2, dtype=torch.bool))
    target = Target.from_energy(energy, 2)
    found = tempered_smc(target, 256, islands=4, mcmc_steps=2, base=base, check_coverage=False)
    return found.x, found.log_w, found.log_z


def gradient(group):
    """The averaged gradient of one step of a regression, each worker with its rows of the batch."""
    pyro.set_rng_seed(3)
    x, y = torch.randn(48, 3, dtype=torch.double), torch.randn(48, dtype=torch.double)
    slope = nn.Parameter(torch.zeros(3, dtype=torch.double))
    stepper = Stepper([slope], FitOptions(learning_rate=0.1))
    stepper.shared = shared_training(stepper.parameters, True)
    own = [value.tensor_split(group.size)[group.rank] for value in (x, y)]
    stepper.step((own[1] - own[0] @ slope).square().mean())
    return stepper.first[0]  # a tenth of the gradient


def everything(group):
    return chains(group), particles(group), gradient(group)


def killed(group):
    group.all_gather(torch.zeros(1))
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    group.all_gather(torch.zeros(1))
