"""Fixtures of the deformation flow's tests."""

import pytest
from support.deformation import sixteen_steps

from pyro_flowsamp.guides.deformation import guide as deformation_guide


@pytest.fixture(autouse=True)
def unrefined(monkeypatch):
    """Replace the integrator's check, which has tests of its own and takes seconds."""
    monkeypatch.setattr(deformation_guide, "refine", sixteen_steps)
