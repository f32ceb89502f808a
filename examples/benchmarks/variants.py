"""Variants of the papers' methods that only studies use.

The package's defaults were better than, or as good as, these variants in the studies, so they are
not part of the package. The objects below are passed to it as arguments.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from pyro_flowsamp.flows.transforms import wrap
from pyro_flowsamp.guides.advnf.adversary import AdversarialLoss
from pyro_flowsamp.guides.advnf.ensemble import Ensemble
from pyro_flowsamp.lattice import LatticeFlow
from pyro_flowsamp.lattice.flow import LatticeCoupling

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
