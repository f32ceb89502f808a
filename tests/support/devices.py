"""Traps for code that waits for the device, or that makes tensors on the wrong one."""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_flowsamp import VectorizedMCMC
from pyro_flowsamp.chains.storage import ChainPosition, ChainStorage
from pyro_flowsamp.chains.vectorized import KeptSites
from pyro_flowsamp.checkpoint.scope import Scope

aten = torch.ops.aten
WAITS = (aten._local_scalar_dense, aten.nonzero, aten.is_nonzero, aten.item, aten.equal)


class NoWaiting(TorchDispatchMode):
    """Raises wherever the host would have to know a value."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if func.overloadpacket in WAITS or masks:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def default_device_elsewhere():
    """Make "meta" the default device: a tensor made there breaks the step that uses it."""
    return torch.device("meta")


@contextmanager
def device_traps():
    """Both traps at once."""
    with NoWaiting(), default_device_elsewhere():
        yield


def started(kernel, num_chains, num_samples=5):
    """Return the run and the chains' states before the first step of warm-up."""
    mcmc = VectorizedMCMC(kernel, num_samples, 1, num_chains, disable_progbar=True)
    kernel.setup(1)
    mcmc._kept = KeptSites(kernel.target, None)
    kernel.prepare(1)
    return mcmc, kernel.start(num_chains)


def make_draws(mcmc, state):
    """Make the draws of a run that has been started, from these states."""
    position = ChainPosition(state, state.x, "sampling")
    storage = ChainStorage(Scope(), mcmc.kernel)
    made = {"_kept": mcmc._kept, "_steps": mcmc.kernel}
    mcmc._draw(position, mcmc.num_samples, mcmc.thin, storage, made)
