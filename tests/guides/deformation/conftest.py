"""Fixtures of the deformation flow's tests."""

import pytest
from support.deformation import sixteen_steps

from pyro_flowsamp.guides.deformation import training


@pytest.fixture(autouse=True)
def unrefined(monkeypatch):
    """Replace the integrator's check, which has tests of its own and takes seconds."""
    monkeypatch.setattr(training, "refine", sixteen_steps)
