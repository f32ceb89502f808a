"""The affine layer takes a location and a scale, and leaves angles alone."""

from math import pi

import torch
from torch.testing import assert_close

from pyro_flowsamp.flows.recipes import circular, gaussian
from pyro_flowsamp.flows.transforms import wrap

MIXED = torch.tensor([True, False, True, False])


# ---- normalisation: brute force on a grid ------------------------------------------------------


def test_wrap():
    angle = torch.tensor([-pi, 0.0, 3.0, 4.0, -4.0, 7.0], dtype=torch.float64)
    expected = torch.tensor([-pi, 0.0, 3.0, 4.0 - 2 * pi, 2 * pi - 4.0, 7.0 - 2 * pi]).double()
    assert_close(wrap(angle), expected)


# ---- where training starts ---------------------------------------------------------------------


def test_the_affine_layer_takes_a_vector_of_scales():
    affine = gaussian(3).affine
    affine.initialize(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0]))
    assert_close(affine.scale, torch.diag(torch.tensor([1.0, 2.0, 3.0])))


def test_the_affine_layer_keeps_the_covariance_of_the_reals():
    root = torch.tril(torch.randn(4, 4), -1) + torch.diag(1 + torch.rand(4))
    affine = circular(4, angles=MIXED).affine
    affine.initialize(torch.zeros(4), root)
    real = ~MIXED
    covariance = affine.scale @ affine.scale.T
    assert_close(covariance[real][:, real], (root @ root.T)[real][:, real])
    assert_close(covariance[MIXED], torch.eye(4)[MIXED])
