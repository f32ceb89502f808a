"""VectorizedMCMC: thousands of chains as one tensor, in one process."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from numbers import Integral
from time import perf_counter
from typing import Any

import pyro
import torch
from pyro.infer.mcmc.util import diagnostics, print_summary, select_samples
from torch import Tensor
from tqdm.auto import trange

from .kernels.base import STATISTICS, FlowKernel, proposal_diagnostics, statistics
from .target.density import Target
from .target.site import Values

__all__ = ["VectorizedMCMC"]


FEWEST_DRAWS = 4  #: a chain, for effective sample sizes and R-hat
LEAST_ACCEPTED = 0.01  #: share of proposals, below which a run warns
FEWEST_PROPOSALS = 300  #: by which that can be told


def _check_counts(least: int = 1, **counts: int) -> None:
    for name, value in counts.items():
        if not isinstance(value, Integral):
            raise ValueError(f"{name} must be a whole number, got {value}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


class VectorizedMCMC:
    """The surface of :class:`pyro.infer.MCMC`, with all chains in one tensor.

    Arguments:
        kernel: An :class:`~pyro_flowsamp.IMH`, :class:`~pyro_flowsamp.LatentMALA`, …
        num_samples: Draws kept per chain.
        warmup_steps: Steps per chain before them; the first trains the guide where it is untrained.
            By default ``num_samples``, as in Pyro.
        num_chains: Chains.
        initial_params: Unconstrained starting values, ``{site: (num_chains, ...)}``; by default
            draws of the flow.
        thin: Keep every ``thin``-th draw.
        save_params: Sites to keep; all by default.
        disable_progbar: Whether to hide the progress bars of sampling and training.

    Attributes:
        statistics: Per-draw statistics ``{name: (num_chains, num_samples)}``.
        unconstrained: The draws of the kept sites in R^d, ``(num_chains, num_samples, d)``.
        target: The posterior that they are drawn from.
        step_size: Of the kernel's moves, 0-d; None where it has none.
        num_samples, num_chains, thin: Of the draws there are; :meth:`run` makes as many as were
            asked for in the first place.
        interrupted: Whether Ctrl-C has cut them short.
        seconds: Wall-clock time of the run's "training", "warmup" and "sampling".

    Raises:
        ValueError: A count is no whole number or out of range, or ``save_params`` is no list of
            names; on :meth:`run`, one of them is no site.
    """

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
        _check_counts(num_samples=num_samples, num_chains=num_chains, thin=thin)
        if warmup_steps is not None:
            _check_counts(0, warmup_steps=warmup_steps)
        if isinstance(save_params, str) or (save_params is not None and not len(save_params)):
            raise ValueError(f"save_params must be a list of one site or more, got {save_params!r}")
        self.kernel, self._asked = kernel, (num_samples, num_chains, thin)
        self.num_samples, self.num_chains, self.thin = self._asked
        self.warmup_steps = num_samples if warmup_steps is None else warmup_steps
        self.initial_params = initial_params
        self.save_params, self.disable_progbar = save_params, disable_progbar
        self.statistics: dict[str, Tensor] = {}
        self.seconds: dict[str, float] = {}
        self.unconstrained, self.interrupted = torch.empty(0), False
        self.target: Target | None = None
        self.step_size: Tensor | None = None
        self._proposal: Any = None
        self._samples: Values | None = None
        self._state: Any = None

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Trains the guide if need be, warms up, and draws. Ctrl-C keeps what was drawn."""
        self._args, self._kwargs, self._samples, self._state = args, kwargs, None, None
        self.num_samples, self.num_chains, self.thin = self._asked
        kernel, starts = self.kernel, self._starts()
        try:
            if starts is not None:
                kernel.initial_params = {k: v[0] for k, v in starts.items()}
            with pyro.validation_enabled(False):
                self._run(starts)
        finally:
            kernel.cleanup()  # else another run would begin where this one was told to
        self._warn_rejecting()

    def _run(self, starts: Values | None) -> None:
        kernel = self.kernel
        kernel.setup(self.warmup_steps, *self._args, **self._kwargs)
        self._columns = self._kept_columns()
        clock = [perf_counter()]
        self._train()
        self.target, self._proposal = kernel.target, kernel.proposal
        clock.append(perf_counter())
        state = self._warm_up(kernel.start(self.num_chains, starts))
        clock.append(perf_counter())
        self._state = self._draw(state, self.num_samples, self.thin)
        clock.append(perf_counter())
        spans = (b - a for a, b in pairwise(clock))
        self.seconds = dict(zip(("training", "warmup", "sampling"), spans))

    def resume(self, num_samples: int, thin: int = 1, initial_params: Values | None = None) -> None:
        """Goes on after :meth:`run`, everything frozen: new draws in place of the old.

        Ctrl-C before the first of them leaves the old ones.

        Arguments:
            num_samples: Draws kept per chain.
            thin: Keep every ``thin``-th draw.
            initial_params: Where as many chains as these go on from, unconstrained; by default the
                old ones from where they are.

        Raises:
            RuntimeError: There has been no run to go on from, or its kernel has made another since.
            ValueError: A count is out of range, or ``initial_params`` are as they must not be: see
                :meth:`FlowKernel.state_at`.
        """
        if self._state is None:
            raise RuntimeError(
                "there is no run to go on from: call run(...) first (a copied or unpickled run has "
                "its draws, but no chains)"
            )
        if self.kernel._proposal is not self._proposal:
            raise RuntimeError(
                "the kernel has made another run since, with a flow and step sizes of its own: a "
                "run that shall go on needs a kernel for itself"
            )
        _check_counts(num_samples=num_samples, thin=thin)
        clock = perf_counter()
        with pyro.validation_enabled(False):
            state = self._state
            if initial_params is not None:
                state = self.kernel.state_at(initial_params)
            self._state = self._draw(state, num_samples, thin)
        self.seconds["sampling"] = perf_counter() - clock

    def _train(self) -> None:
        guide = self.kernel.guide
        assert guide is not None
        options = guide.options
        if self.disable_progbar and not guide.trained:
            guide.options = replace(options, progress=False)
        try:
            self.kernel.prepare(self.warmup_steps)
        finally:
            guide.options = options

    def _starts(self) -> Values | None:
        if self.initial_params is None:
            return None
        starts = {name: torch.as_tensor(value) for name, value in self.initial_params.items()}
        for name, value in starts.items():
            if value.shape[:1] != (self.num_chains,):
                raise ValueError(
                    f"initial_params['{name}'] has shape {tuple(value.shape)}; its leading "
                    f"dimension must be num_chains={self.num_chains}"
                )
        return starts

    def _kept_columns(self) -> Tensor:
        sites = self.kernel.target.sites
        names = [s.name for s in sites] if self.save_params is None else list(self.save_params)
        unknown = set(names) - {s.name for s in sites}
        if unknown:
            raise ValueError(f"save_params: {sorted(unknown)} are not sites of the model")
        keep = torch.tensor([s.name in names for s in sites for _ in range(s.size)])
        self._kept_sites = [s for s in sites if s.name in names]
        return keep.nonzero()[:, 0].to(self.kernel.target.device)

    def _warm_up(self, state: Any) -> Any:
        for _ in self._bar(self.warmup_steps, "Warmup"):
            state, info = self.kernel.step(state)
            self.kernel.adapt(info)
        self.kernel.freeze()
        return state

    def _bar(self, steps: int, name: str) -> Any:
        return trange(steps, desc=name, disable=self.disable_progbar or steps == 0)

    def _draw(self, state: Any, num_samples: int, thin: int) -> Any:
        shape, columns = (num_samples, len(state.x)), self._columns
        draws = state.x.new_empty((*shape, len(columns)))
        kinds = {"accepted": torch.bool, "diverging": torch.bool}
        stats = {
            name: torch.empty(shape, dtype=kinds.get(name, torch.double), device=draws.device)
            for name in STATISTICS
        }
        done, self.interrupted = 0, False
        try:
            for _ in self._bar(num_samples, "Sample"):
                for _ in range(thin):
                    state, info = self.kernel.step(state)
                draws[done] = state.x.index_select(-1, columns)
                for name, value in statistics(state, info).items():
                    stats[name][done] = value
                done += 1
        except KeyboardInterrupt:
            self.interrupted = True
            warnings.warn(f"interrupted: {done} of {num_samples} draws kept", stacklevel=3)
        self.step_size = getattr(self.kernel, "step_size", None)
        if done or self._samples is None:
            self.num_samples, self.num_chains, self.thin = done, shape[1], thin
            self.statistics = {name: value[:done].mT for name, value in stats.items()}
            self.unconstrained = draws[:done].transpose(0, 1)
            self._samples = self._unpack(self.unconstrained)
        return state

    def _warn_rejecting(self) -> None:
        accepted = self.statistics["accepted"]
        if accepted.numel() < FEWEST_PROPOSALS:
            return
        rate = float(accepted.double().mean())
        if rate < LEAST_ACCEPTED:
            warnings.warn(
                f"only {rate:.2%} of the proposals were accepted, none by "
                f"{int((~accepted).all(1).sum())} of {len(accepted)} chains: the flow does not fit "
                f"this posterior, and what depends on it has hardly mixed. If it was trained on "
                f"other data, call guide.fit(...) on these; diagnostics() tells more.",
                stacklevel=3,
            )

    def _unpack(self, draws: Tensor) -> Values:
        samples = {}
        for site, block in zip(
            self._kept_sites, draws.split([s.size for s in self._kept_sites], -1)
        ):
            samples[site.name] = site.transform(block.reshape(block.shape[:2] + site.shape))
        return samples

    def get_samples(self, num_samples: int | None = None, group_by_chain: bool = False) -> Values:
        """Constrained draws ``{site: (draws, ...)}``, or ``(chains, draws, ...)`` by chain.

        Arguments:
            num_samples: Resample this many with replacement.
            group_by_chain: Whether to keep the chain dimension.
        """
        if self._samples is None:
            raise RuntimeError("there are no draws yet: call run(...) first")
        if num_samples is not None:
            return select_samples(self._samples, num_samples, group_by_chain)
        return {k: v if group_by_chain else v.flatten(0, 1) for k, v in self._samples.items()}

    def diagnostics(self) -> dict[str, Any]:
        """Effective sample size and R-hat by site, and how the kernel fared.

        Chains that all sit in one mode have R-hat 1: read the importance ESS and Pareto k too.
        (A run that was pickled or copied knows its flow no more, and leaves these out.)

        Raises:
            ValueError: There are fewer than four draws a chain.
        """
        self._check_enough()
        result: dict[str, Any] = diagnostics(self._summarised())
        diverging = self.statistics["diverging"]
        result["divergences"] = {
            f"chain {i}": row.nonzero()[:, 0].tolist() for i, row in enumerate(diverging)
        }
        accepted = self.statistics["accepted"].double().mean(-1)
        result["acceptance rate"] = {f"chain {i}": float(a) for i, a in enumerate(accepted)}
        result.update(self._flow_diagnostics())
        return result

    def _summarised(self) -> Values:
        """Draws by chain of what has any: Pyro's summaries know no empty sites."""
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
        """Draws and statistics; target, flow and chains stay behind, as a kernel's do."""
        return {**self.__dict__, "target": None, "_proposal": None, "_state": None}
