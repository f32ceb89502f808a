"""The state of a kernel in a checkpoint."""

from __future__ import annotations

from typing import Any

from .binding import CompiledKernel

__all__ = ["StoredKernel"]

#: attributes of every kernel that belong to its model, or to a chain of Pyro's MCMC
NOT_STORED = {
    *("binding", "still_chains", "_initial_params", "_user_start", "_save_params"),
    *("_warmup_steps", "_state", "_time", "_statistics"),
}


GRAPHS = "graphs of steps"  #: the name of their counts among the attributes


class StoredKernel(CompiledKernel):
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
        """The attributes, by name, and the counts of the graphs of its steps."""
        state = {name: value for name, value in vars(self).items() if name not in NOT_STORED}
        return (
            state if self.step_graphs is None else {**state, GRAPHS: self.step_graphs.state_dict()}
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the state of :meth:`state_dict`."""
        graphs = state.get(GRAPHS)
        if graphs is not None and self.step_graphs is not None:
            self.step_graphs.load_state_dict(graphs)
        self.__dict__.update({name: value for name, value in state.items() if name != GRAPHS})
