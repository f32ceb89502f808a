r"""Pyro's interface of a kernel that uses a flow.

:class:`FlowKernel` is an :class:`~pyro.infer.mcmc.mcmc_kernel.MCMCKernel`.
:class:`pyro.infer.MCMC` and StreamingMCMC run it with one chain,
:class:`~pyro_flowsamp.VectorizedMCMC` runs it with many. To add a kernel, write a subclass with
:meth:`FlowKernel.init` and :meth:`FlowKernel.step`, and with :meth:`FlowKernel.adapt` if it tunes
itself.

The order of calls: ``setup`` binds the model to its data. The first warm-up step trains the guide,
unless it is trained, and freezes a copy of its flow. Further warm-up steps adapt the kernel. From
the first sampling step on nothing changes any more.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor
from torch.distributions import Transform

from ..distributed import refuse_workers
from ..flows.proposal import Proposal
from ..target.context import check_number_of_chains
from ..target.density import Target
from ..target.site import Values, site_shapes
from ..validation import public_call
from .binding import Guide, ModelBinding
from .statistics import (
    STATISTICS,
    StillChainOptions,
    on_one_period,
    proposal_diagnostics,
    statistics,
    warn_of_still_chains,
)
from .stored import StoredKernel

__all__ = ["FlowKernel", "Guide"]


MAX_REDRAWS = 100  #: of starting points at which the target has no density


def default_guide(source: Any) -> Guide:
    """A new :class:`~pyro_flowsamp.AutoFlow` for a model or target.

    Kernels work with any guide and import none; this default is imported when it is first used.

    Example:
        >>> guide = default_guide(Target.from_energy(lambda x: x.square().sum(-1), 2))
        >>> type(guide).__name__, guide.trained
        ('AutoFlow', False)
    """
    from ..guides.auto_flow import AutoFlow

    return AutoFlow(source)


class FlowKernel(StoredKernel, MCMCKernel):
    r"""Base class of kernels that use a flow.

    A kernel corrects the flow's draws by MCMC, so that they come from the exact posterior even when
    the flow fits poorly.

    The order of calls is ``setup``, ``prepare``, :meth:`reset`, :meth:`init`, then :meth:`step` and
    :meth:`adapt` in turn, :meth:`freeze`, and :meth:`step` alone. :attr:`target` and
    :attr:`proposal` exist from :meth:`reset` on. :meth:`freeze` is called without any
    :meth:`adapt` where there is no warm-up. A kernel that tunes a step size has an attribute
    ``step_size``.

    Arguments:
        model: A Pyro model, or a :class:`~pyro_flowsamp.Target`.
        potential_fn: A potential over ``{name: unconstrained tensor}``, as in Pyro's HMC; needs
            ``initial_params``.
        guide: A flow guide, trained or not; by default ``AutoFlow(model)``.

    Attributes:
        binding: The model, guide and arguments, and the target and frozen flow made of them.
        stays_where_not_inverted: Whether chains may be where the flow cannot be inverted, so that
            its log density is :math:`-\infty` in their state.
        still_chains: Options of the warning of chains that never move; may be set.

    Raises:
        ValueError: Not exactly one of model, potential_fn, guide, or a model with its guide, is
            given.

    Example of a kernel whose chains never move::

        >>> import torch
        >>> from pyro_flowsamp import AutoFlow, FitOptions, FlowKernel, Target, VectorizedMCMC
        >>> from pyro_flowsamp.transitions import independence, metropolis
        >>> class Still(FlowKernel):
        ...     def init(self, x):
        ...         return independence.init(x, self.log_prob(x), self.proposal.log_prob(x))
        ...
        ...     def step(self, state):
        ...         no = torch.zeros_like(state.log_p, dtype=torch.bool)
        ...         return state, metropolis.MetropolisInfo(no, no.double(), no)
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> guide = AutoFlow(target, flow="gaussian", options=FitOptions(progress=False))
        >>> run = VectorizedMCMC(Still(guide=guide), 3, 1, num_chains=5, disable_progbar=True)
        >>> run.run()
        >>> int(run.statistics["accepted"].sum())
        0
    """

    stays_where_not_inverted: ClassVar[bool] = False

    def __init__(
        self,
        model: Callable | None = None,
        potential_fn: Callable[[Values], Tensor] | None = None,
        guide: Guide | None = None,
    ) -> None:
        self.binding = ModelBinding(model, potential_fn, guide)
        self._initial_params: Values | None = None
        self._user_start = False
        self._save_params: list[str] | None = None
        self.still_chains = StillChainOptions()
        self._warmup_steps = 0
        self._begin_chain()

    def _begin_chain(self) -> None:
        self._state: Any = None
        self._time = 0
        self._statistics = {name: array("d") for name in STATISTICS}

    # ---- for subclasses -----------------------------------------------------------------------

    def init(self, x: Tensor) -> Any:
        """Returns the state of chains at ``x`` ``(C, d)``.

        It is a named tuple with the fields of
        :class:`~pyro_flowsamp.kernels.statistics.KernelState`, log densities in float64, and the
        chains along the first dimension of each field.
        """
        raise NotImplementedError

    def step(self, state: Any) -> tuple[Any, Any]:
        """Makes one transition of every chain, and returns the new state and a report of it.

        The report has the fields of :class:`~pyro_flowsamp.kernels.statistics.StepInfo`.
        It must not make the host wait for the device.
        """
        raise NotImplementedError

    def adapt(self, info: Any) -> None:
        """Tunes the kernel after a warm-up step."""

    def freeze(self) -> None:
        """Ends tuning; called once, at the end of warm-up."""

    def reset(self) -> None:
        """Prepares the kernel for new chains: undoes what :meth:`adapt` has done."""

    # ---- binding and training ------------------------------------------------------------------

    @property
    def guide(self) -> Guide | None:
        """The guide; None before ``setup`` where none was given."""
        return self.binding.guide

    @guide.setter
    def guide(self, guide: Guide) -> None:
        self.binding.guide = guide

    @property
    def model(self) -> Callable | None:
        """The Pyro model, or None for a potential or a target."""
        source = self.binding.source
        return None if isinstance(source, Target) else source

    @property
    def target(self) -> Target:
        """The target of the current model arguments.

        Raises:
            RuntimeError: The kernel has not been set up.
        """
        for target in (self.binding.target, self.binding.source):
            if isinstance(target, Target):
                return target
        raise RuntimeError("the kernel has no target yet: call setup (or MCMC.run) first")

    @property
    def proposal(self) -> Proposal:
        """The frozen flow.

        Raises:
            RuntimeError: No flow has been trained and frozen yet.
        """
        if self.binding.proposal is None:
            raise RuntimeError("the kernel has no trained flow yet: call prepare first")
        return self.binding.proposal

    def bind(self, *args: Any, **kwargs: Any) -> None:
        """Makes the target of these model arguments, unless they are the ones already bound.

        Raises:
            ValueError: See :meth:`~pyro_flowsamp.kernels.binding.ModelBinding.bind`.
        """
        self.binding.bind(args, kwargs, self._initial_params, default_guide)

    def prepare(self, warmup_steps: int, progress: bool = True) -> None:
        """Trains the guide unless it is trained, and freezes a copy of its flow.

        Raises:
            RuntimeError: The guide is untrained and there is no warm-up to train it in.
        """
        self.binding.prepare(warmup_steps, progress)

    def start(self, num_chains: int, params: Values | None = None) -> Any:
        """Starts new chains at ``params``, or at draws of the flow, and undoes all adaptation.

        Returns:
            The state of the chains.

        Raises:
            ValueError: See :meth:`state_at`.
        """
        self.reset()
        if params is not None:
            return self.state_at(params, num_chains)
        check_number_of_chains(num_chains, self.target.contexts)
        return self.init(flow_starts(self, num_chains))

    def state_at(self, params: Values, num_chains: int | None = None) -> Any:
        """Returns the state of chains at ``params``, and leaves all adaptation as it is.

        Arguments:
            params: Unconstrained values, ``{site: (num_chains, ...)}``.
            num_chains: Chains; by default as many as there are values.

        Raises:
            ValueError: A shape or dtype of ``params`` is wrong, the density there is not finite, or
                the chains cannot be shared out among the contexts.
        """
        self.target.layout.check_sites(params)
        unknown = set(params) - {site.name for site in self.target.sites}
        if unknown:
            raise ValueError(f"initial_params: {sorted(unknown)} are not sites of the model")
        x = self.target.pack_unconstrained(params).reshape(-1, self.target.dim)
        num_chains = num_chains or len(x)
        check_number_of_chains(num_chains, self.target.contexts)
        state = self.init(x.reshape(num_chains, self.target.dim))
        log_q = 0.0 if self.stays_where_not_inverted else state.log_q
        bad = ~torch.isfinite(state.log_p - log_q)
        if bad.any():
            chains = bad.nonzero()[:, 0].tolist()
            raise ValueError(f"initial_params: the density is zero or NaN for chains {chains}")
        return state

    def log_prob(self, x: Tensor) -> Tensor:
        r"""The target's log density on one period: :math:`-\infty` at angles outside [−π, π].

        Flows for angles never leave this period. Any other flow would meet a density that repeats
        without end, whose integral is infinite.
        """
        return on_one_period(self.target, x)

    def usable(self, x: Tensor) -> Tensor:
        """Whether chains may start at draws ``(N, d)`` of the flow, ``(N,)``."""
        return torch.isfinite(self.log_prob(x).detach())

    # ---- Pyro's contract ----------------------------------------------------------------------

    @property
    def transforms(self) -> dict[str, Transform] | None:
        """Maps from constrained to unconstrained values, by site; None before ``setup``."""
        if self.binding.target is None and not isinstance(self.binding.source, Target):
            return None
        return {site.name: site.transform.inv for site in self.target.sites}

    @property
    def initial_params(self) -> Values:
        """Unconstrained starting values by site."""
        return self._initial_params or {}

    @initial_params.setter
    def initial_params(self, params: Values) -> None:
        self._initial_params, self._user_start = params, True

    @property
    def save_params(self) -> list[str]:
        """The sites kept by MCMC; sorted, because Pyro confuses the sites in any other order."""
        if self._save_params is not None:
            return self._save_params
        return sorted(self.initial_params)

    @save_params.setter
    def save_params(self, names: list[str]) -> None:
        self._save_params = sorted(names)

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Binds the model to its arguments and begins a new chain; trains nothing yet."""
        with public_call():
            self.bind(*args, **kwargs)
            self.binding.proposal = None  # the guide may have been trained further since
            self._begin_chain()
            self.binding.starts = None
            if self._user_start:
                x = self.target.pack_unconstrained(self.initial_params)
                if x.dim() > 1:
                    raise ValueError(
                        f"initial_params have leading dimensions {tuple(x.shape[:-1])}; for one "
                        f"chain their shapes must be {site_shapes(self.target.sites)}"
                    )
                self.binding.starts = x[None]
            else:
                first = self.target.initial_points(1)[0]
                self._initial_params = self.target.unpack_unconstrained(first)
        self._warmup_steps = warmup_steps

    def sample(self, params: Values) -> Values:
        """Makes one step of one chain, as Pyro calls for it."""
        if self._time == 0:
            refuse_workers("MCMC of Pyro", "use VectorizedMCMC, whose chains are")
            with public_call():
                self.prepare(self._warmup_steps)
                self._state = self.start(1, params if self._user_start else None)
        if self._time == self._warmup_steps:
            self.freeze()
        self._state, info = self.step(self._state)
        if self._time < self._warmup_steps:
            self.adapt(info)
        else:
            self._record(info)
        self._time += 1
        return self.target.unpack_unconstrained(self.target.wrap(self._state.x[0]))

    def _record(self, info: Any) -> None:
        for name, value in statistics(self._state, info).items():
            self._statistics[name].append(float(value[0]))

    def cleanup(self) -> None:
        """Ends a chain, and warns where it never moved; Pyro calls this twice."""
        found = {k: torch.tensor(v)[None] for k, v in self._statistics.items()}
        warn_of_still_chains(found, self.still_chains)
        self._begin_chain()
        self._initial_params, self._user_start = None, False

    def logging(self) -> OrderedDict[str, str]:
        """The entries of Pyro's progress bar."""
        accepted = self._statistics["accepted"]
        rate = f"{sum(accepted[-100:]) / len(accepted[-100:]):.2f}" if accepted else "warm-up"
        return OrderedDict([("acc. rate", rate)])

    def diagnostics(self) -> dict[str, Any]:
        """Acceptance, divergences, importance ESS, Pareto k and the statistics of each draw."""
        stats = {k: torch.tensor(v, dtype=torch.double) for k, v in self._statistics.items()}
        return {
            "divergences": stats["diverging"].nonzero()[:, 0].tolist(),
            "acceptance rate": float(stats["accepted"].mean()) if len(stats["accepted"]) else 0.0,
            **self.proposal_diagnostics(),
            "statistics": {k: v.numpy() for k, v in stats.items()},
        }

    def proposal_diagnostics(self) -> dict[str, float]:
        """The fit of the frozen flow, on 4096 fresh draws; of several contexts, the worst."""
        return proposal_diagnostics(self.proposal, self.target)

    def __getstate__(self) -> dict[str, Any]:
        """The kernel without its state; ``setup`` makes that again."""
        return {**self.__dict__, "_state": None}


def flow_starts(kernel: FlowKernel, num_chains: int) -> Tensor:
    """Independent draws of a kernel's flow, redrawn where its chains may not start.

    Raises:
        ValueError: There is no such draw: the target has no density at any, or the flow of a kernel
            that asks for it cannot be inverted there.
    """
    x, _ = kernel.proposal.sample_and_log_prob(num_chains)
    for _ in range(MAX_REDRAWS):
        bad = ~kernel.usable(x)
        if not bad.any():
            return x
        fresh, _ = kernel.proposal.sample_and_log_prob(num_chains)
        x = torch.where(bad[:, None], fresh, x)
    raise ValueError(
        "the flow never proposes a point of finite density at which a chain of this kernel may "
        "start: train it longer, or give initial_params and a wider flow."
    )
