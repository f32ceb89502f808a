"""VectorizedMCMC: thousands of chains as one tensor, in one process."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from time import perf_counter
from typing import Any

import pyro
import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from ..checkpoint.options import Location, as_checkpoint_options
from ..checkpoint.scope import Scope, entered
from ..distributed import guarded, is_hidden, number_here
from ..kernels.base import FlowKernel
from ..kernels.statistics import StillChainOptions, warn_of_still_chains
from ..target.site import Values
from ..validation import check_count, check_flag, public_call, shown
from .draw_buffer import DrawBuffer, KeptSites, check_memory, joined, starting_values
from .loop import draw, warm_up
from .sharing import (
    SharedRun,
    agree_on_draws,
    all_points,
    blocks_of,
    check_still_shared_out,
    draws_here,
    sends_draws,
    shared_out,
    statistics_of_all,
)
from .storage import ChainPosition, ChainStorage

__all__ = ["VectorizedMCMC"]


def _check_kernel(kernel: Any) -> None:
    """Raises a TypeError unless this is a kernel of the package, or a subclass's instance."""
    if isinstance(kernel, FlowKernel):
        return
    if isinstance(kernel, type):
        name = kernel.__name__
        raise TypeError(f"the kernel is the class {name}: give an instance, {name}(model)")
    remedy = "such as IMH(model)"
    if isinstance(kernel, MCMCKernel):
        remedy = "such as LatentHMC(model), or run this one by pyro.infer.MCMC"
    raise TypeError(f"the kernel must be one of this package, {remedy}, got {shown(kernel)}")


def _check_names(names: Any) -> None:
    """Raises a ValueError unless these are names of sites in a list, or None."""
    if names is None:
        return
    listed = isinstance(names, list | tuple | set | frozenset) and len(names) > 0
    if not listed or not all(isinstance(name, str) for name in names):
        raise ValueError(f"save_params must be a list of one site or more, got {names!r}")


def warn_of_rejections(
    found: Values, least: float, proposals: int, options: StillChainOptions
) -> None:
    """Warns where chains hardly move, or some of them never, unless ``least`` is 0.

    Arguments:
        found: Statistics of the draws by name, ``(C, n)`` each.
        least: The share of accepted proposals below which all chains together hardly move.
        proposals: The number of proposals from which on this is told.
        options: Where single chains that never move are told.

    Example:
        >>> accepted = torch.zeros(2, 50, dtype=torch.bool)
        >>> with warnings.catch_warnings(record=True, action="always") as told:
        ...     warn_of_rejections({"accepted": accepted}, 0.01, 100, StillChainOptions())
        >>> str(told[0].message)[:42]
        'only 0.00% of the proposals were accepted,'
    """
    accepted = found["accepted"]
    rate = float(accepted.count_nonzero()) / max(1, accepted.numel())
    if rate < least and accepted.numel() >= proposals:
        warnings.warn(
            f"only {rate:.2%} of the proposals were accepted, none by "
            f"{int((~accepted).all(1).sum())} of {len(accepted)} chains: the flow does not fit "
            f"this posterior, and the chains have hardly mixed. If the guide was trained on "
            f"other data, call guide.fit(...) on these; diagnostics() has more.",
            stacklevel=3,
        )
    elif least > 0:
        warn_of_still_chains(found, options)


def _counts(num: int, chains: int, thin: int, names: Any) -> dict[str, Any]:
    """The counts and names that a run was asked for, by which its checkpoint is known."""
    names = None if names is None else sorted(names)
    return {"num_samples": num, "num_chains": chains, "thin": thin, "save_params": names}


def _how_to_go_on(count: int, num: int, thin: int) -> str:
    """The note to an error after the first draw."""
    thinned = "" if thin == 1 else f", thin={thin}"
    return (
        f"{count} of {num} draws of each chain were made before this error: get_samples() returns "
        f"them, and resume({num - count}{thinned}, append=True) makes the others"
    )


class VectorizedMCMC(SharedRun):
    """Runs many chains of a kernel as one tensor; otherwise used as :class:`pyro.infer.MCMC`.

    Inside of :func:`~pyro_flowsamp.workers` a run has the chains of this worker in its attributes,
    and :meth:`gathered` returns those of all.

    Arguments:
        kernel: A kernel of this package, as :class:`~pyro_flowsamp.IMH`.
        num_samples: Draws kept per chain.
        warmup_steps: Steps per chain before the first draw that is kept; the first of them trains
            the guide unless it is trained. By default ``num_samples``, as in Pyro.
        num_chains: Number of chains.
        initial_params: Unconstrained starting values, ``{site: (num_chains, ...)}``, near which a
            training of the guide looks for the density too; by default draws of the flow.
        thin: Keep every ``thin``-th draw.
        save_params: Sites to keep; all by default.
        disable_progbar: Whether to hide the progress bars of sampling and training.
        checkpoint: A folder, or :class:`~pyro_flowsamp.CheckpointOptions`, where the run is stored.
            The same calls in another process go on from there, with the same draws; those of a
            finished run return its draws. With workers rank 0 writes it, and other numbers of
            workers can go on; Ctrl-C on one of several then ends the run on all.

    Attributes:
        statistics: Statistics of each draw, ``{name: (num_chains, num_samples)}``.
        unconstrained: The draws of the kept sites in R^d, ``(num_chains, num_samples, d)``.
        target: The posterior that they are drawn from.
        starts: The points where the chains began, in R^d, ``(num_chains, d)``.
        step_size: Step size of the kernel's moves, 0-d; None where it has none.
        num_samples, num_chains, thin: Counts of the draws there are; :meth:`run` makes as many as
            the constructor was asked for.
        interrupted: Whether Ctrl-C ended the sampling early.
        seconds: Wall-clock time of the run's "training", "warmup" and "sampling".
        min_acceptance: Share of accepted proposals below which :meth:`run` warns; set it to 0 to
            silence the warning, and that of single chains that never move
            (``kernel.still_chains``).
        min_proposals: Number of proposals from which on it may warn.

    Raises:
        TypeError: ``kernel`` is no kernel of this package.
        ValueError: A count is no whole number or out of range, or ``save_params`` is no list of
            names; in :meth:`run`, one of them is no site.

    Example::

        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_flowsamp import IMH, AutoFlow, FitOptions, VectorizedMCMC
        >>> _ = pyro.set_rng_seed(0)
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> guide = AutoFlow(model, flow="gaussian", options=FitOptions(progress=False))
        >>> mcmc = VectorizedMCMC(
        ...     IMH(model, guide=guide), 50, warmup_steps=10, num_chains=200, disable_progbar=True
        ... )
        >>> mcmc.run(torch.tensor(1.0))
        >>> mcmc.get_samples(group_by_chain=True)["mean"].shape
        torch.Size([200, 50])
        >>> mcmc.resume(10)  # ten more draws of each chain
        >>> mcmc.statistics["accepted"].shape
        torch.Size([200, 10])
    """

    min_acceptance: float = 0.01
    min_proposals: int = 300

    def __init__(
        self,
        kernel: FlowKernel,
        num_samples: int,
        warmup_steps: int | None = None,
        num_chains: int = 1000,
        *,
        initial_params: Values | None = None,
        thin: int = 1,
        save_params: Sequence[str] | None = None,
        disable_progbar: bool = False,
        checkpoint: Location | None = None,
    ) -> None:
        super().__init__()
        _check_kernel(kernel)
        self.num_samples = check_count("num_samples", num_samples)
        self.num_chains = check_count("num_chains", num_chains)
        self.thin = check_count("thin", thin)
        warmup_steps = num_samples if warmup_steps is None else warmup_steps
        self.warmup_steps = check_count("warmup_steps", warmup_steps, 0)
        check_flag("disable_progbar", disable_progbar)
        _check_names(save_params)
        self.kernel, self._asked = kernel, (self.num_samples, self.num_chains, self.thin)
        self.initial_params = initial_params
        self.save_params, self.disable_progbar = save_params, disable_progbar
        self.checkpoint = as_checkpoint_options(checkpoint)
        self.seconds: dict[str, float] = {}
        self.starts, self.interrupted, self._resumed = torch.empty(0), False, 0
        self.step_size: Tensor | None = None

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Trains the guide unless it is trained, warms up, and draws.

        Ctrl-C ends the run early and keeps the draws so far, and so does an error after the first
        draw. Before the first draw they leave the draws of an earlier run as they are.

        Arguments:
            args, kwargs: Arguments of the model.

        Raises:
            CheckpointError: The checkpoint cannot be read or written, or is of another run.
            ValueError: ``initial_params`` have a wrong shape, or their density is zero; the draws
                need more memory than there is; or see the kernel.
            RuntimeError: The guide is untrained and there is no warm-up; or see the kernel.
        """
        kernel = self.kernel
        with public_call(), guarded(), entered(self.checkpoint, "run") as scope:
            starts = starting_values(self.initial_params, self._asked[1])
            try:
                if starts is not None:
                    kernel.initial_params = {k: v[0] for k, v in starts.items()}
                with pyro.validation_enabled(False):
                    self._run(starts, args, kwargs, scope)
            finally:
                kernel.cleanup()  # or the next run would begin at this one's initial_params
        if (found := statistics_of_all(self._steps, self.statistics)) is not None:
            warn_of_rejections(found, self.min_acceptance, self.min_proposals, kernel.still_chains)

    def _run(self, starts: Values | None, args: tuple, kwargs: dict, scope: Scope) -> None:
        kernel, (num, chains, thin) = self.kernel, self._asked
        kernel.setup(self.warmup_steps, *args, **kwargs)
        if starts is not None:
            kernel.binding.starts = kernel.target.pack_unconstrained(starts)
        kept = KeptSites(kernel.target, self.save_params)
        here, folder = number_here(chains), scope.stream_folder
        check_memory(kernel.target, num, here, len(kept.columns), folder)
        storage = ChainStorage(scope, kernel)
        counts = _counts(*self._asked, self.save_params)
        storage.describe(args, kwargs, **counts, warmup_steps=self.warmup_steps, starts=starts)
        clock = perf_counter()
        kernel.prepare(self.warmup_steps, progress=not self.disable_progbar)
        seconds = {"training": perf_counter() - clock}
        steps = shared_out(kernel, chains)
        storage.blocks = blocks_of(steps)
        with storage.restoring() as found:
            if found is None:
                state = steps.start(chains, starts)
                found = ChainPosition(state, all_points(steps, starts, state), seconds=seconds)
        warm_up(steps, found, self.warmup_steps, storage, is_hidden(self.disable_progbar))
        made = {"target": kernel.target, "_proposal": kernel.proposal, "_kept": kept}
        made |= {"_args": args, "_kwargs": kwargs, "_resumed": 0, "_steps": steps}
        self._draw(found, num, thin, storage, made)

    def resume(
        self,
        num_samples: int,
        thin: int = 1,
        initial_params: Values | None = None,
        append: bool = False,
    ) -> None:
        """Continues after :meth:`run`, without adaptation; the new draws replace the old.

        Ctrl-C or an error before the first new draw keeps the old ones.

        Arguments:
            num_samples: Draws kept per chain.
            thin: Keep every ``thin``-th draw.
            initial_params: Unconstrained values from which as many chains continue; by default the
                chains continue from where they are.
            append: Whether the new draws follow the old ones and do not replace them; ``thin`` must
                then be that of the old ones.

        Raises:
            RuntimeError: There has been no run, or the kernel has been used in another run since.
            ValueError: A count is out of range, the draws need more memory than there is,
                ``initial_params`` are not valid, see :meth:`FlowKernel.state_at`, or are given
                with ``append``.
        """
        if self._state is None:
            raise RuntimeError(
                "there is no run to go on from: call run(...) first (a copied or unpickled run has "
                "its draws, but no chains)"
            )
        if self.kernel.binding.proposal is not self._proposal:
            raise RuntimeError(
                "the kernel has made another run since, with another flow and step size: a run "
                "that is to be resumed needs a kernel of its own"
            )
        num_samples, thin = check_count("num_samples", num_samples), check_count("thin", thin)
        append = check_flag("append", append)
        if append and (initial_params is not None or thin != self.thin):
            raise ValueError(
                f"append=True goes on with the same chains: give no initial_params, and "
                f"thin={self.thin}"
            )
        kind = f"resume-{self._resumed + 1}"
        check_still_shared_out(self._steps)
        unchecked = pyro.validation_enabled(False)
        with public_call(), guarded(), entered(self.checkpoint, kind) as scope, unchecked:
            total, folder = num_samples + append * self.num_samples, scope.stream_folder
            columns, here = len(self._kept.columns), len(self.unconstrained)
            check_memory(self.kernel.target, total, here, columns, folder)
            storage = ChainStorage(scope, self.kernel)
            storage.blocks = blocks_of(self._steps)
            counts = {"num_samples": num_samples, "thin": thin, "append": append}
            storage.describe((), {}, **counts, starts=initial_params)
            with storage.restoring() as found:
                if found is None:
                    seconds = {**self.seconds, "sampling": 0.0}
                    found = ChainPosition(self._state, self.starts, "sampling", 0, seconds)
                    if initial_params is not None:
                        found.state = self._steps.state_at(initial_params)
                        found.starts = all_points(self._steps, initial_params, found.state)
            made = {"_kept": self._kept, "_resumed": self._resumed + 1, "_steps": self._steps}
            self._draw(found, num_samples, thin, storage, made, append)

    def _draw(
        self,
        position: ChainPosition,
        num: int,
        thin: int,
        storage: ChainStorage,
        made: dict[str, Any],
        append: bool = False,
    ) -> None:
        """Draws, and takes the draws and the attributes ``made`` with them once there are any."""
        made["_empty"], interrupted = storage.empty, False
        buffer = DrawBuffer(num, position.state, made["_kept"].columns, storage.empty)
        kept = partial(self._keep, buffer, position, thin, made, append)
        try:
            draw(made["_steps"], position, buffer, thin, storage, is_hidden(self.disable_progbar))
        except KeyboardInterrupt:
            interrupted = True
            warnings.warn(f"interrupted: {buffer.count} of {num} draws kept", stacklevel=3)
        except Exception as error:
            if buffer.count and not sends_draws(made["_steps"]):
                kept()
                error.add_note(_how_to_go_on(buffer.count, num, thin))
            raise
        agree_on_draws(made["_steps"], buffer)
        kept()
        self.interrupted = interrupted

    def _keep(
        self,
        buffer: DrawBuffer,
        position: ChainPosition,
        thin: int,
        made: dict[str, Any],
        append: bool,
    ) -> None:
        """Puts the draws of a buffer in the place of the old ones, or after them."""
        if not buffer.count and self._samples is not None:
            return
        x, found = draws_here(made["_steps"], *buffer.by_chain())
        if append:
            x = joined(self.unconstrained, x, made["_empty"])
            found = {k: joined(self.statistics[k], v, made["_empty"]) for k, v in found.items()}
        self.__dict__.update(made)
        self.unconstrained, self.statistics, self.starts = x, found, position.starts
        self.num_chains, self.num_samples, self.thin = len(x), x.shape[1], thin
        self._samples, self._state = self._kept.unpack(x, self._empty), position.state
        self.seconds, self.interrupted = position.seconds, False
        self.step_size = getattr(self.kernel, "step_size", None)

    def __getstate__(self) -> dict[str, Any]:
        """The run's draws and statistics, without target, flow and chains."""
        return {**self.__dict__, "target": None, "_proposal": None, "_state": None, "_steps": None}
