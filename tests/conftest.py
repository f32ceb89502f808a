"""Every test starts from the same state and leaves none behind."""

import os

import pyro
import pytest
import torch

os.environ["PYRO_FLOWSAMP_COMPILE"] = "0"  # no test needs a compiler, nor its seconds


@pytest.fixture(autouse=True)
def clean_slate():
    dtype = torch.get_default_dtype()
    torch.set_num_threads(1)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture
def double(clean_slate):
    """Make float64 the default dtype of a test."""
    torch.set_default_dtype(torch.float64)
