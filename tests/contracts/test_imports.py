"""What an import of the package imports beside Pyro and torch."""

import subprocess
import sys

import pytest

CODE = """
import sys
import pyro, torch
before = set(sys.modules)
import pyro_flowsamp
print(*sorted(set(sys.modules) - before))
"""
#: packages that take long to import, and are imported where a function needs them
SLOW = {"arviz", "matplotlib", "scipy", "pandas", "xarray", "sympy", "torchdiffeq"}
SLOW_PARTS = ("torch._inductor", "torch._dynamo", "torch.fx.experimental.proxy_tensor")


@pytest.mark.slow
def test_an_import_takes_no_slow_packages():
    run = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    found = run.stdout.split()
    assert "pyro_flowsamp" in found
    assert SLOW.isdisjoint(name.split(".")[0] for name in found)
    assert not [name for name in found if name.startswith(SLOW_PARTS)]
