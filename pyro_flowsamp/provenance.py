"""The record of a run that a report needs: versions, seed, training, flow's draws, shares of modes.

It is kept in attributes and groups of the ArviZ object, so that it is stored in a file with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .chains.streaming import some_draws
from .seeding import kept_generators
from .trust import FlowDraws, draws_of_flow
from .versions import versions

__all__ = ["add_record"]


MAX_PROPOSALS = 1000  #: draws of the flow that are kept
MAX_NUMBERS = 2_000_000  #: numbers of these draws
MAX_SORTED = 20_000  #: draws that are sorted into modes
TRAINING = ("stopped", "steps", "evaluations", "skipped", "seconds")  #: numbers of a training


def add_record(
    data: Any,
    run: Any,
    seed: int | None = None,
    modes: Any = None,
    flow_draws: FlowDraws | None = None,
) -> None:
    r"""Adds to an ArviZ object what a report about its run needs.

    Attributes: ``versions``, ``seed`` (where there was one), ``device``, ``threads``, ``kernel``,
    ``warmup_steps``;
    ``training_loss`` and ``training_ess`` (a value for each window of steps), ``training_stopped``,
    ``training_steps``, ``training_evaluations``, ``training_skipped`` and ``training_seconds``;
    ``mode_shares``, the share of draws in each mode, and ``mode_shares_first`` and
    ``mode_shares_second``, the shares of the particles of the two searches.

    Groups: ``proposal``, up to 1000 draws of the flow as one chain, and ``proposal_stats`` with
    their ``lp``, ``log_q`` and ``log_weight``. At several contexts there are none. Where they are
    not given they are drawn and evaluated, which the target counts.

    The state of the random generators is left as it was.

    Arguments:
        data: The ArviZ object, ``InferenceData`` or ``DataTree``; it is changed.
        run: The :class:`~pyro_flowsamp.VectorizedMCMC` that made the draws.
        seed: The seed that the caller gave.
        modes: The result of the search for modes, see :mod:`pyro_flowsamp.smc.mode_search`.
        flow_draws: Draws of the flow that have been made already.

    Example::

        >>> import pyro_flowsamp as pf
        >>> target = pf.Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> options = pf.FitOptions(progress=False)
        >>> guide = pf.AutoFlow(target, flow="gaussian", options=options)
        >>> run = pf.VectorizedMCMC(pf.IMH(guide=guide), 20, 10, 50, disable_progbar=True)
        >>> run.run()
        >>> data = pf.to_arviz(run)
        >>> add_record(data, run, seed=1)
        >>> data["proposal"]["x"].shape, data.attrs["seed"], data.attrs["kernel"]
        ((1, 1000, 2), 1, 'IMH')
    """
    found: dict[str, Any] = {
        "versions": "; ".join(f"{name} {value}" for name, value in versions().items()),
        "threads": torch.get_num_threads(),
        "kernel": type(run.kernel).__name__,
        "warmup_steps": run.warmup_steps,
        "device": str(run.unconstrained.device),
    }
    if seed is not None:
        found["seed"] = int(seed)
    history = getattr(getattr(run.kernel.binding, "guide", None), "history", None)
    if history is not None:
        found.update(_training(history))
    with kept_generators(run.unconstrained.device, seed=0):
        if modes is not None:
            found.update(_mode_shares(run.unconstrained, modes))
        _add_proposals(data, run, flow_draws)
    data.attrs.update(found)


def _training(history: Any) -> dict[str, Any]:
    curves = {"training_loss": history.loss, "training_ess": history.ess}
    kept: dict[str, Any] = {name: [float(v) for v in curve] for name, curve in curves.items()}
    kept = {name: np.array(curve) for name, curve in kept.items() if curve}
    return kept | {f"training_{name}": getattr(history, name) for name in TRAINING}


def _mode_shares(draws: Tensor, modes: Any) -> dict[str, Any]:
    """Shares of draws and of the particles of both searches, from the largest mode on."""
    x = some_draws(draws, MAX_SORTED)
    agreement = modes.agreement
    component = modes.component_of(x)
    of_component = agreement.modes.to(component.device)
    num = int(of_component.max()) + 1
    share = of_component[component].bincount(minlength=num).double() / len(x)
    counts = torch.zeros(2, num, dtype=torch.double, device=share.device)
    counts.index_add_(1, of_component, agreement.counts.to(share))
    particles = counts / counts.sum(1, keepdim=True).clamp(min=1.0)
    used = (share > 0) | (particles > 0).any(0)
    order = (share + particles.sum(0)).masked_fill(~used, -1.0).argsort(descending=True)
    order = order[: int(used.sum())]
    return {
        "mode_shares": share[order].cpu().numpy(),
        "mode_shares_first": particles[0, order].cpu().numpy(),
        "mode_shares_second": particles[1, order].cpu().numpy(),
    }


@torch.no_grad()
def _add_proposals(data: Any, run: Any, made: FlowDraws | None) -> None:
    proposal, target = getattr(run.kernel, "proposal", None), run.target
    if proposal is None or target is None or target.contexts is not None:
        return
    num = max(1, min(MAX_PROPOSALS, MAX_NUMBERS // max(1, target.dim)))
    made = draws_of_flow(proposal, target, num) if made is None else made.first(num)
    values = {name: value[None] for name, value in target.unpack(made.x).items()}
    stats = {"lp": made.log_p, "log_q": made.log_q, "log_weight": made.log_weights}
    _add_group(data, "proposal", values)
    _add_group(data, "proposal_stats", {name: value[None] for name, value in stats.items()})


def _add_group(data: Any, group: str, values: dict[str, Tensor]) -> None:
    """Adds a group, with the dimensions and coordinates that the posterior has for its sites."""
    import xarray as xr  # it comes with ArviZ, which is imported when it is used

    posterior, arrays = data["posterior"], {}
    for name, value in values.items():
        array = value.detach().cpu().numpy()
        dims = [f"{name}_dim_{i}" for i in range(array.ndim - 2)]
        coords: dict[str, Any] = {}
        if name in posterior and posterior[name].shape[2:] == array.shape[2:]:
            dims = list(posterior[name].dims[2:])
            coords = {dim: posterior.coords[dim] for dim in dims if dim in posterior.coords}
        arrays[name] = xr.DataArray(array, dims=["chain", "draw", *dims], coords=coords)
    dataset = xr.Dataset(arrays)
    if hasattr(data, "add_groups"):  # InferenceData of ArviZ 0.x
        data.add_groups({group: dataset})
    else:
        data[group] = xr.DataTree(dataset)
