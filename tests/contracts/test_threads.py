"""The same seed gives the same draws, bit by bit, whatever else the machine does.

``make test-kill`` runs it: it keeps all cores busy, which would disturb other tests.
"""

import hashlib
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

BUSY = 2  #: processes that run beside
PROGRAM = """
import hashlib, sys, torch, warnings
from support.models import conjugate, conjugate_data
from pyro_flowsamp import ModeSearchOptions, SearchOptions, sample
torch.set_num_threads(int(sys.argv[1]))
warnings.simplefilter("ignore")
digest = hashlib.sha256()
options = SearchOptions(modes=ModeSearchOptions(paths=16, first_evaluations=10_000))
call = {"seed": 0, "num_samples": 10, "num_chains": 100, "search": options, "progress": False}
data = sample(conjugate, *conjugate_data(), **call)
digest.update(data.attrs["candidates"].encode())
for site in sorted(data["posterior"].data_vars):
    digest.update(data["posterior"][site].values.tobytes())
print(torch.get_num_threads(), digest.hexdigest())
"""


@contextmanager
def busy(count):
    """Run processes that do nothing but take time."""
    spin = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(spin) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def drawn(threads):
    """Return the number of threads, and a digest of what is compared and of all draws."""
    path = os.pathsep.join(p for p in sys.path if p)
    env = {**os.environ, "OMP_DYNAMIC": "FALSE", "MKL_DYNAMIC": "FALSE", "PYTHONPATH": path}
    env.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-c", PROGRAM, str(threads)]
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return found.stdout.split()


@pytest.mark.skipif("FLOWSAMP_BUSY" not in os.environ, reason="a part of make test-kill")
@pytest.mark.parametrize("threads", [1, 2])
def test_draws_are_the_same_idle_and_busy(threads):
    used, idle = drawn(threads)
    assert int(used) == threads and len(idle) == 2 * hashlib.sha256().digest_size
    with busy(BUSY):
        assert drawn(threads)[1] == idle
