"""Modules that no training changes."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

__all__ = ["FlowAtContext", "frozen"]


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


class FlowAtContext(nn.Module):
    """A frozen copy of a flow at one context, as a flow that takes none.

    Arguments:
        flow: A zuko-style flow.
        row: The context ``(c,)``; None where the flow takes none.

    Example:
        >>> import torch, zuko
        >>> flow, row = zuko.flows.MAF(2, context=3), torch.ones(3)
        >>> at, x = FlowAtContext(flow, row), torch.zeros(2)
        >>> bool(at(None).log_prob(x) == flow(row).log_prob(x))
        True
    """

    def __init__(self, flow: nn.Module, row: Tensor | None = None) -> None:
        super().__init__()
        self.flow = copy.deepcopy(flow).requires_grad_(False).eval()
        self.register_buffer("row", row)

    def forward(self, c: Tensor | None = None) -> Any:
        """The distribution at the context."""
        return self.flow(self.row)
