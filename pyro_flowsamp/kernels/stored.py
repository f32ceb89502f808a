"""The state of a kernel in a checkpoint."""

from __future__ import annotations

from typing import Any

__all__ = ["StoredKernel"]

#: attributes of every kernel that belong to its model, or to a chain of Pyro's MCMC
NOT_STORED = {
    *("binding", "still_chains", "_initial_params", "_user_start", "_save_params"),
    *("_warmup_steps", "_state", "_time", "_statistics"),
}


class StoredKernel:
    """A kernel whose attributes, but for those of every kernel, make its state.

    They are its settings, and what its adaptation and its steps change. A kernel with attributes
    that are no tensors, numbers, strings or objects of this package, such as functions, must have
    methods of its own that leave them out.

    Example:
        >>> from pyro_flowsamp import LatentMALA, Target
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 2)
        >>> one, other = LatentMALA(target, global_prob=0.3), LatentMALA(target)
        >>> other.load_state_dict(one.state_dict())
        >>> other.global_prob
        0.3
    """

    def state_dict(self) -> dict[str, Any]:
        """The attributes, by name."""
        return {name: value for name, value in vars(self).items() if name not in NOT_STORED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the state of :meth:`state_dict`."""
        self.__dict__.update(state)
