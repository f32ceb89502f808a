"""Masks of coupling layers move every feature."""

import pytest
import torch

from pyro_flowsamp.flows import recipes


@pytest.mark.parametrize("features", [2, 3, 7])
@pytest.mark.parametrize("transforms", [2, 4, 6])
def test_every_feature_is_moved(features, transforms):
    masks = torch.stack(recipes._masks(features, transforms))
    assert masks.any(-1).all() and (~masks).any(-1).all() and (~masks).any(0).all()
