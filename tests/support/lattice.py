"""Lattice energies by loops over sites."""

from itertools import combinations, product
from math import cos

import torch

from pyro_flowsamp.nn.equivariant import group

SHAPES = [(2,), (5,), (2, 2), (3, 4), (2, 3, 4)]


def z_score(values, mean, error=0.0):
    """Return the z-score of independent values; their known mean may have an error of its own."""
    return float((values.mean() - mean) / (values.var() / len(values) + error**2).sqrt())


def size(shape):
    """Return the number of sites."""
    return torch.Size(shape).numel()


def neighbours(shape, periodic=True):
    """Yield (i, j, axis), where j is next to i along the axis; both are tuples of coordinates."""
    for i in product(*map(range, shape)):
        for axis, n in enumerate(shape):
            if periodic or i[axis] + 1 < n:
                yield i, (*i[:axis], (i[axis] + 1) % n, *i[axis + 1 :]), axis


def plaquettes(shape, periodic=True):
    """Yield the corners of each plaquette."""
    step = {(i, axis): j for i, j, axis in neighbours(shape, periodic)}
    for i in product(*map(range, shape)):
        for a, b in combinations(range(len(shape)), 2):
            if (i, a) in step and (i, b) in step:
                yield i, step[i, a], step[step[i, a], b], step[i, b]


def naive_action(x, shape, m, lam, alpha):
    """Return the phi^4 action of one field, by loops."""
    phi = x.reshape(shape)
    total = sum(float(phi[i] - phi[j]) ** 2 for i, j, _ in neighbours(shape))
    return total + sum(-m * v**2 + lam * (v - alpha) ** 4 for v in x.tolist())


def naive_xy(x, shape, j, k, periodic):
    """Return the XY energy of one configuration, by loops."""
    theta = x.reshape(shape)
    total = sum(-j * cos(theta[a] - theta[b]) for a, b, _ in neighbours(shape, periodic))
    rings = plaquettes(shape, periodic)
    return total - sum(k * cos(theta[a] - theta[b] + theta[c] - theta[d]) for a, b, c, d in rings)


def images(x, generators):
    """Return the images of points under all elements of a group."""
    elements = group(generators)
    return x[:, elements.order] * elements.sign
