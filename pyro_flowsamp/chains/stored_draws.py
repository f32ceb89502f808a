"""The draws that a checkpoint of chains holds, without the run that has made them."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.description import describe_target, differences
from ..checkpoint.folder import CheckpointError, CheckpointFolder
from ..target.density import as_target
from ..validation import public_call
from .blocks import Parts
from .draw_buffer import DrawBuffer, KeptSites, joined
from .draws import ChainDraws
from .parts import is_of_parts, joined_parts
from .storage import ChainPosition
from .streaming import InFiles

__all__ = ["StoredDraws"]

#: entries of a description that must be the same: the sites, the data and the model
COMPARED = ("sites", "dtype", "data", "log density")


class StoredDraws(ChainDraws):
    """The draws that are stored in a folder, by a run that has ended, however it has.

    The folder is that of a checkpoint, or of the parts that several workers have written by
    :meth:`VectorizedMCMC.write_part <pyro_flowsamp.VectorizedMCMC.write_part>`.

    They are read block by block into files without names in the same folder, see
    :class:`~pyro_flowsamp.CheckpointOptions`, so that they need not fit into memory. Use it with
    :func:`~pyro_flowsamp.to_arviz`. Nothing is trained, and no step is made.

    Arguments:
        folder: The folder of the checkpoint.
        model: The model of the run, or its :class:`~pyro_flowsamp.Target`; its code makes values of
            sites of what is stored.
        args, kwargs: Arguments of the model.

    Attributes:
        starts: The points where the chains began, in R^d, ``(num_chains, d)``.
        num_samples, num_chains, thin: Counts of the draws there are.
        step_size: Step size of the kernel's moves, 0-d; None where it has none.

    Raises:
        CheckpointError: The folder has no draws of chains, is of another model, is in use, or
            cannot be read.
        OSError: There is no room for the files.

    Example:
        >>> import tempfile
        >>> import pyro_flowsamp as pf
        >>> target = pf.Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> guide = pf.AutoFlow(target, flow="gaussian", options=pf.FitOptions(progress=False))
        >>> with tempfile.TemporaryDirectory() as path:
        ...     checkpoint = pf.CheckpointOptions(path, stream=True)
        ...     options = {"checkpoint": checkpoint, "disable_progbar": True}
        ...     pf.VectorizedMCMC(pf.IMH(guide=guide), 30, 10, 50, **options).run()
        ...     stored = StoredDraws(path, target)
        >>> pf.to_arviz(stored)["posterior"]["x"].shape
        (50, 30, 2)
    """

    def __init__(
        self, folder: str | PathLike[str], model: Callable, /, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__()
        with public_call():
            self.kernel = None
            self.target = as_target(model, *args, **kwargs)
            path = Path(folder)
            if not path.is_dir():
                raise CheckpointError(f"there is no folder {path}: give that of a checkpoint")
            self._empty = InFiles(path)
            if is_of_parts(path):
                self._join(path, describe_target(self.target, args, kwargs))
                return
            opened = CheckpointFolder(path)
            try:
                self._read(opened, describe_target(self.target, args, kwargs))
            finally:
                opened.close()

    def _read(self, folder: CheckpointFolder, target: dict[str, Any]) -> None:
        described = folder.facts.get("described", {})
        states = {
            place: folder.read(f"{place}state")["value"]
            for place in ("run/", *_resumed(described))
            if f"{place}state" in folder
        }
        places = [place for place, state in states.items() if state["blocks"]]
        if not places:
            raise CheckpointError(
                f"there are no draws of chains in {folder.path}: give the folder of a "
                f"VectorizedMCMC with checkpoint=..., after its first draw"
            )
        stored = described.get("run/", {})
        now = {name: target[name] for name in COMPARED}
        _check_model({name: stored.get(name) for name in COMPARED}, now, folder.path)
        assert self.target is not None
        kept = KeptSites(self.target, stored.get("save_params"))
        x, found = torch.empty(0), dict[str, Tensor]()
        for place in _last_draws(places, described):
            size = described[place]["num_samples"]
            more, others = self._draws_at(folder, place, states[place], size, kept)
            if found:
                more = joined(x, more, self._empty)
                others = {name: joined(found[name], v, self._empty) for name, v in others.items()}
            x, found = more, others
        self.unconstrained, self.statistics = x, found
        self.num_chains, self.num_samples = x.shape[:2]
        self.thin = described[places[-1]]["thin"]
        last = states[places[-1]]
        position: ChainPosition = last["position"]
        self.starts, self.step_size = position.starts, last["kernel"].get("step_size")
        self._samples = kept.unpack(x, self._empty)

    def _join(self, path: Path, target: dict[str, Any]) -> None:
        """Reads the parts of several workers."""
        found = joined_parts(path, self._empty)
        stored, facts = found.facts["target"], found.facts
        then, now = ({name: known[name] for name in COMPARED} for known in (stored, target))
        _check_model(then, now, path)
        assert self.target is not None
        kept = KeptSites(self.target, facts["save_params"])
        self.unconstrained, self.statistics, self.starts = found[:3]
        self.num_chains, self.num_samples = self.unconstrained.shape[:2]
        self.thin, step_size = facts["thin"], facts["step_size"]
        self.step_size = None if step_size is None else self.starts.new_tensor(step_size)
        self._samples = kept.unpack(self.unconstrained, self._empty)

    def _draws_at(
        self,
        folder: CheckpointFolder,
        place: str,
        state: dict[str, Any],
        size: int,
        kept: KeptSites,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The draws, and their statistics, of one call of ``run`` or ``resume``."""
        chains = state["position"].state
        if isinstance(chains, dict):  # blocks of workers
            chains = Parts([block["state"] for block in chains["blocks"]])
        buffer = DrawBuffer(size, chains, kept.columns, self._empty)
        for block in range(state["blocks"]):
            buffer.extend(**folder.read(f"{place}draws-{block}")["value"])
        return buffer.by_chain()


def _check_model(stored: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Raises a CheckpointError unless draws are of a model."""
    if other := differences(stored, now):
        raise CheckpointError(
            f"the draws in {path} are of another model: {'; '.join(other)}. Give the model and the "
            f"data of the run"
        )


def _resumed(described: dict[str, Any]) -> list[str]:
    """The places of the calls of ``resume``, in their order."""
    numbers = [place for place in described if place.startswith("resume-")]
    return sorted(numbers, key=lambda place: int(place[len("resume-") : -1]))


def _last_draws(places: list[str], described: dict[str, Any]) -> list[str]:
    """The last places, from the one on after which all draws were appended."""
    first = len(places) - 1
    while first > 0 and described[places[first]].get("append"):
        first -= 1
    return places[first:]
