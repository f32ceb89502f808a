"""Modules that no training changes."""

from __future__ import annotations

from torch import nn

__all__ = ["frozen"]


def frozen(module: nn.Module) -> nn.Module:
    """Turns all parameters of a module into buffers, in place, and returns it.

    They are saved and moved as before, under the same names. Parameters that need no gradient would
    do too, but Pyro warns of each of them in a step of SVI.

    Arguments:
        module: The module.

    Example:
        >>> layer = frozen(nn.Linear(2, 1))
        >>> list(layer.parameters()), sorted(layer.state_dict())
        ([], ['bias', 'weight'])
    """
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False, remove_duplicate=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
    return module
