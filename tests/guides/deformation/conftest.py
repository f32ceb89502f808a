"""Fixtures of the deformation flow's tests."""

import pytest
from support.deformation import sixteen_steps

from pyro_flowsamp.guides import deformation


@pytest.fixture(autouse=True)
def unrefined(monkeypatch):
    """Replace the integrator's check, which has tests of its own and takes seconds."""
    monkeypatch.setattr(deformation, "refine", sixteen_steps)
