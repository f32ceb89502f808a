"""Variants of the papers' methods that only studies use.

The package's defaults were better than, or as good as, these variants in the studies, so they are
not part of the package. The objects below are passed to it as arguments.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from pyro_flowsamp import AutoDeformationFlow, History, PathGradient, ess_fraction
from pyro_flowsamp.flows.continuous import refine
from pyro_flowsamp.flows.transforms import wrap
from pyro_flowsamp.guides.advnf.adversary import AdversarialLoss
from pyro_flowsamp.guides.advnf.ensemble import Ensemble
from pyro_flowsamp.guides.annealing import TransportBatch
from pyro_flowsamp.guides.deformation import CollocationLoss, residual
from pyro_flowsamp.guides.deformation.training import MIN_STEPS, NUM_REFINE
from pyro_flowsamp.lattice import LatticeFlow
from pyro_flowsamp.lattice.flow import LatticeCoupling
from pyro_flowsamp.training.train import fit

# ---- adversarial losses of AutoAdvNF ------------------------------------------------------------


def _hinge_real(logits: Tensor) -> Tensor:
    return relu(1 - logits)


def _hinge_fake(logits: Tensor) -> Tensor:
    return relu(1 + logits)


def _identity(logits: Tensor) -> Tensor:
    return logits


def gradient_penalty(
    network: nn.Module, real: Ensemble, fake: Tensor, angles: Tensor, weight: float = 10.0
) -> Tensor:
    r"""Penalises a discriminator whose gradient norm is not one, 0-d.

    .. math:: w\, \mathbb E (\|\nabla D\| - 1)^2

    at random points between pairs of draws; between angles they lie on the shorter arc.

    Arguments:
        network: The discriminator.
        real: Draws of the ensemble.
        fake: As many draws of the flow, ``(N, d)``.
        angles: Mask of periodic coordinates, ``(d,)``.
        weight: The factor w.

    References:
        Gulrajani et al., *Improved Training of Wasserstein GANs*, 2017,
        https://arxiv.org/abs/1704.00028
    """
    step = fake - real.draws
    step = torch.where(angles, wrap(step), step)
    between = (real.draws + torch.rand_like(step[:, :1]) * step).requires_grad_()
    logits = network(between, real.contexts)
    (slope,) = torch.autograd.grad(logits.sum(), between, create_graph=True)
    return weight * (slope.norm(dim=-1) - 1).square().mean()


#: The hinge loss (Lim and Ye, Geometric GAN, 2017, https://arxiv.org/abs/1705.02894).
HINGE = AdversarialLoss(_hinge_real, _hinge_fake, torch.neg, chance=2.0)
#: The Wasserstein loss with a gradient penalty. It has no level at chance, and is never paused.
WASSERSTEIN = AdversarialLoss(torch.neg, _identity, torch.neg, penalty=gradient_penalty)

ADVERSARIAL_LOSSES = {"hinge": HINGE, "wasserstein": WASSERSTEIN}


# ---- losses of the blocks of AutoAnnealingFlow --------------------------------------------------

#: The weight of the transport cost in the paper's losses, for a block of unit time.
TRANSPORT_COST = 0.5


def kl_loss(batch: TransportBatch) -> tuple[Tensor, Tensor]:
    r"""The KL divergence of a block's output from the next density, up to a constant.

    .. math:: \mathbb E[E_k(T_k x) - \log|\det T_k'|], \qquad E_k = -\log\tilde f_k

    This is the dynamic optimal transport loss of the paper (its Eq. 7, type I). The weights that
    are not finite are left out.

    References:
        Wu and Xie, *Annealing Flow Generative Models Towards Sampling High-Dimensional and
        Multi-Modal Distributions*, 2025, https://arxiv.org/abs/2409.20547
    """
    log_w = batch.log_weights()
    finite = torch.isfinite(log_w)
    return -torch.where(finite, log_w, 0.0).sum() / finite.sum(), log_w.detach()


def linear_loss(batch: TransportBatch) -> tuple[Tensor, None]:
    r"""The loss :func:`kl_loss` with the energy replaced by its linearisation.

    .. math:: E_k(x) + \nabla E_k(x) \cdot (T_k x - x)

    It needs no density of the target where the block leads (type II of the paper).
    """
    score = (1 - batch.beta) * batch.before.grad_b + batch.beta * batch.before.grad_p
    gain = (score * (batch.x - batch.before.x)).sum(-1)
    return -(gain + batch.ladj).mean(), None


# ---- training of AutoDeformationFlow ------------------------------------------------------------


def along_trajectories(training: CollocationLoss) -> Callable[[], Tensor]:
    """The deformation error along the flow's own trajectories, weighted, by Euler steps.

    Gradients go back through the trajectories. The learned term is there from the first step. It is
    the trainer of the paper.

    References:
        Máté and Fleuret, *Learning Interpolations between Boltzmann Densities*, 2023,
        https://arxiv.org/abs/2301.07388
    """
    path = training.path
    path.learned_fraction = 1.0

    def closure() -> Tensor:
        u = training.width * training.base.sample((training.batch_size,))
        log_w = path.base(u, training.width)[0] - path.base(u)[0]
        loss = torch.zeros_like(log_w)
        for start, end in pairwise(training.times):
            t, h = start.expand(len(u)), end - start
            _, denergy_dt, grad_energy, _ = path.fixed_terms(training.target, t, u)
            errors, v = residual(path, training.velocity, t, u, denergy_dt, grad_energy)
            deviations = training.deviations(errors[None])[0]
            loss = loss + h * training.loss(deviations)
            log_w = log_w - h * torch.where(errors.isfinite(), deviations, torch.inf).detach()
            u = u + h * v
        return (log_w.softmax(0) * loss).sum()

    return closure


POLISH_RATE = 1e-4  #: learning rate of :func:`polish`


def polish(guide: AutoDeformationFlow, steps: int) -> History:
    """Trains a fitted deformation flow further by the path gradient of the reverse KL.

    Arguments:
        guide: The guide, without symmetries, of a model without arguments.
        steps: Number of optimiser steps.

    Returns:
        The record of this training.
    """
    target, flow, base = guide.target_for(), guide.trained_flow, guide.get_base_dist()
    options = replace(guide.options, max_steps=steps, learning_rate=POLISH_RATE)
    objective, already = PathGradient(), target.evaluations
    flow.block.steps = guide.settings.integration_steps
    history = fit(
        flow.velocity.parameters(),
        lambda: objective(flow, target, options.batch_size),
        ess_fraction,
        options,
    )
    flow.block.steps = MIN_STEPS
    refine(flow.block, base.sample((NUM_REFINE,)), log_prob=base.log_prob)
    return history.updated(evaluations=target.evaluations - already)


# ---- flows of larger lattices from those of smaller ones ----------------------------------------


def copy_levels(larger: LatticeFlow, smaller: LatticeFlow) -> list[str]:
    """Copies the weights of a trained flow into the layers of a larger lattice's flow.

    A layer takes the weights of a layer of the same level, counted from the finest, or of a finer
    one, whose displacements to known sites are the same in units of its spacing.

    Arguments:
        larger: The flow whose weights are set.
        smaller: A trained flow with as many context features, and with networks as wide.

    Returns:
        The keys of the layers whose weights were set.
    """
    copied = []
    for key, layer in larger.layers.items():
        level, kind = key.split("_", 1)
        levels = [level] if level == "coarse" else range(int(level), -1, -1)
        for name in (f"{i}_{kind}" for i in levels):
            if name in smaller.layers and _alike(layer, smaller.layers[name]):
                layer.load_state_dict(smaller.layers[name].state_dict())
                copied.append(key)
                break
    return copied


def _alike(one: LatticeCoupling, two: LatticeCoupling) -> bool:
    """Whether two layers have weights of the same shapes, for the same displacements."""
    a, b = one.state_dict(), two.state_dict()
    shapes = a.keys() == b.keys() and all(a[key].shape == b[key].shape for key in a)
    return shapes and _in_units(one.steps) == _in_units(two.steps)


def _in_units(steps: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Displacements in units of their smallest non-zero component."""
    unit = min((abs(i) for step in steps for i in step if i), default=1)
    return [tuple(i // unit for i in step) for step in steps]
