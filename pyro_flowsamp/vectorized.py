"""VectorizedMCMC: thousands of chains as one tensor, in one process."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise
from time import perf_counter
from typing import Any

import pyro
import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from pyro.infer.mcmc.util import diagnostics, print_summary, select_samples
from torch import Tensor
from tqdm.auto import trange

from .draw_buffer import DrawBuffer, KeptSites, starting_values
from .kernels.base import FlowKernel
from .kernels.statistics import StillChainOptions, proposal_diagnostics, warn_of_still_chains
from .target.density import Target
from .target.site import Values
from .validation import check_count, check_flag, public_call, shown

__all__ = ["VectorizedMCMC"]


FEWEST_DRAWS = 4  #: draws of a chain for which effective sample sizes and R-hat are defined


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
    """
    accepted = found["accepted"]
    rate = float(accepted.double().mean())
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


def _points(kernel: FlowKernel, params: Values | None, state: Any) -> Tensor:
    """The starting points ``(C, d)``; those given, since passing through a flow rounds them."""
    if params is None:
        return state.x
    return kernel.target.pack_unconstrained(params).reshape(len(state.x), -1)


class VectorizedMCMC:
    """Runs many chains of a kernel as one tensor; otherwise used as :class:`pyro.infer.MCMC`.

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
    ) -> None:
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
        self.statistics: dict[str, Tensor] = {}
        self.seconds: dict[str, float] = {}
        self.unconstrained, self.starts, self.interrupted = torch.empty(0), torch.empty(0), False
        self.target: Target | None = None
        self.step_size: Tensor | None = None
        self._proposal: Any = None
        self._samples: Values | None = None
        self._state = None

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Trains the guide unless it is trained, warms up, and draws.

        Ctrl-C ends the run early and keeps the draws so far.

        Arguments:
            args, kwargs: Arguments of the model.

        Raises:
            ValueError: ``initial_params`` have a wrong shape, or their density is zero; or see the
                kernel.
            RuntimeError: The guide is untrained and there is no warm-up; or see the kernel.
        """
        self._args, self._kwargs, self._samples, self._state = args, kwargs, None, None
        self.num_samples, self.num_chains, self.thin = self._asked
        kernel = self.kernel
        with public_call():
            starts = starting_values(self.initial_params, self.num_chains)
            try:
                if starts is not None:
                    kernel.initial_params = {k: v[0] for k, v in starts.items()}
                with pyro.validation_enabled(False):
                    self._run(starts)
            finally:
                kernel.cleanup()  # or the next run would begin at this one's initial_params
        warn_of_rejections(
            self.statistics, self.min_acceptance, self.min_proposals, kernel.still_chains
        )

    def _run(self, starts: Values | None) -> None:
        kernel = self.kernel
        kernel.setup(self.warmup_steps, *self._args, **self._kwargs)
        if starts is not None:
            kernel.binding.starts = kernel.target.pack_unconstrained(starts)
        self._kept = KeptSites(kernel.target, self.save_params)
        clock = [perf_counter()]
        kernel.prepare(self.warmup_steps, progress=not self.disable_progbar)
        self.target, self._proposal = kernel.target, kernel.proposal
        clock.append(perf_counter())
        state = kernel.start(self.num_chains, starts)
        points = _points(kernel, starts, state)
        state = self._warm_up(state)
        clock.append(perf_counter())
        self._state = self._draw(state, points, self.num_samples, self.thin)
        clock.append(perf_counter())
        spans = (b - a for a, b in pairwise(clock))
        self.seconds = dict(zip(("training", "warmup", "sampling"), spans))

    def resume(
        self,
        num_samples: int,
        thin: int = 1,
        initial_params: Values | None = None,
        append: bool = False,
    ) -> None:
        """Continues after :meth:`run`, without adaptation; the new draws replace the old.

        Ctrl-C before the first new draw keeps the old ones.

        Arguments:
            num_samples: Draws kept per chain.
            thin: Keep every ``thin``-th draw.
            initial_params: Unconstrained values from which as many chains continue; by default the
                chains continue from where they are.
            append: Whether the new draws follow the old ones and do not replace them; ``thin`` must
                then be that of the old ones.

        Raises:
            RuntimeError: There has been no run, or the kernel has been used in another run since.
            ValueError: A count is out of range, ``initial_params`` are not valid, see
                :meth:`FlowKernel.state_at`, or are given with ``append``.
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
        clock = perf_counter()
        with public_call(), pyro.validation_enabled(False):
            state, starts = self._state, self.starts
            if initial_params is not None:
                state = self.kernel.state_at(initial_params)
                starts = _points(self.kernel, initial_params, state)
            self._state = self._draw(state, starts, num_samples, thin, append)
        self.seconds["sampling"] = perf_counter() - clock

    def _warm_up(self, state: Any) -> Any:
        for _ in self._bar(self.warmup_steps, "Warmup"):
            state, info = self.kernel.step(state)
            self.kernel.adapt(info)
        self.kernel.freeze()
        return state

    def _bar(self, steps: int, name: str) -> Any:
        return trange(steps, desc=name, unit="step", disable=self.disable_progbar or steps == 0)

    def _draw(self, state: Any, starts: Tensor, num: int, thin: int, append: bool = False) -> Any:
        buffer, self.interrupted = DrawBuffer(num, state, self._kept.columns), False
        try:
            for _ in self._bar(num, "Sample"):
                for _ in range(thin):
                    state, info = self.kernel.step(state)
                buffer.add(state, info)
        except KeyboardInterrupt:
            self.interrupted = True
            warnings.warn(f"interrupted: {buffer.count} of {num} draws kept", stacklevel=3)
        self.step_size = getattr(self.kernel, "step_size", None)
        if buffer.count or self._samples is None:
            x, found = buffer.by_chain()
            if append:
                x = torch.cat([self.unconstrained, x], 1)
                found = {k: torch.cat([self.statistics[k], v], 1) for k, v in found.items()}
            self.unconstrained, self.statistics, self.starts = x, found, starts
            self.num_chains, self.num_samples, self.thin = len(x), x.shape[1], thin
            self._samples = self._kept.unpack(self.unconstrained)
        return state

    def get_samples(self, num_samples: int | None = None, group_by_chain: bool = False) -> Values:
        """Constrained draws ``{site: (draws, ...)}``, or ``(chains, draws, ...)`` by chain.

        They are those of latent sites, as in Pyro. Deterministic sites are made of them by Pyro's
        ``Predictive`` and by :func:`~pyro_flowsamp.to_arviz`.

        Arguments:
            num_samples: Resample this many with replacement.
            group_by_chain: Whether to keep the chain dimension.

        Raises:
            RuntimeError: There has been no run.
            ValueError: ``num_samples`` is no whole number, or below 1.
        """
        if self._samples is None:
            raise RuntimeError("there are no draws yet: call run(...) first")
        if num_samples is not None:
            num_samples = check_count("num_samples", num_samples)
            return select_samples(self._samples, num_samples, group_by_chain)
        return {k: v if group_by_chain else v.flatten(0, 1) for k, v in self._samples.items()}

    def diagnostics(self) -> dict[str, Any]:
        """Effective sample size and R-hat by site, acceptance rates, and the fit of the flow.

        Chains that have all missed the same mode have an R-hat of 1: read the importance ESS and
        Pareto k too. (A run that was pickled or copied has lost its flow and leaves these out.)

        Returns:
            A dictionary:

            - the name of each site: its ``n_eff`` and ``r_hat``, as Pyro computes them;
            - ``acceptance rate``: the share of accepted moves of each chain;
            - ``divergences``: for each chain, the draws whose trajectory diverged;
            - ``importance ess``: the effective sample size of the flow's own draws as an
              importance sample, as a share of their number; at several contexts the least one;
            - ``pareto k``: the shape of the tail of their weights, below 0.7 where averages by
              them can be trusted; at several contexts the largest one;
            - ``log q error``: the largest difference in nats between the log densities of
              sampling and of scoring, on 99.9 % of draws.

        Raises:
            ValueError: There are fewer than four draws a chain.
        """
        self._check_enough()
        by_site: dict[str, Any] = diagnostics(self._summarised())
        return {**by_site, **_of_chains(self.statistics), **self._flow_diagnostics()}

    def _summarised(self) -> Values:
        """Draws by chain of the sites that are not empty, which Pyro's summaries cannot treat."""
        draws = self.get_samples(group_by_chain=True)
        return {name: value for name, value in draws.items() if value.numel()}

    def _flow_diagnostics(self) -> dict[str, float]:
        if self._proposal is None or self.target is None:
            return {}
        return proposal_diagnostics(self._proposal, self.target)

    def _check_enough(self) -> None:
        if self.num_samples < FEWEST_DRAWS and self._samples is not None:
            raise ValueError(
                f"effective sample sizes and R-hat need {FEWEST_DRAWS} draws a chain, there are "
                f"{self.num_samples}: draw more by resume(...), or look at get_samples()"
            )

    def summary(self, prob: float = 0.9) -> None:
        """Prints Pyro's table of means, quantiles, effective sample sizes and R-hats.

        Raises:
            ValueError: There are fewer than four draws a chain.
        """
        self._check_enough()
        print_summary(self._summarised(), prob=prob)
        print(f"Number of divergences: {int(self.statistics['diverging'].sum())}")
        print(f"Acceptance rate: {float(self.statistics['accepted'].double().mean()):.3f}")
        print("  ".join(f"{name}: {value:.3g}" for name, value in self._flow_diagnostics().items()))

    def __getstate__(self) -> dict[str, Any]:
        """The run's draws and statistics, without target, flow and chains."""
        return {**self.__dict__, "target": None, "_proposal": None, "_state": None}


def _of_chains(statistics: dict[str, Tensor]) -> dict[str, Any]:
    """Divergences and acceptance rates of each chain, named as in Pyro's diagnostics."""
    diverging = statistics["diverging"]
    accepted = statistics["accepted"].double().mean(-1)
    return {
        "divergences": {
            f"chain {i}": row.nonzero()[:, 0].tolist() for i, row in enumerate(diverging)
        },
        "acceptance rate": {f"chain {i}": float(a) for i, a in enumerate(accepted)},
    }
