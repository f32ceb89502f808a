"""The model, guide and arguments that a kernel works with, apart from Pyro's interface."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from ..flows.proposal import Proposal
from ..target.arguments import check_model
from ..target.context import same_objects
from ..target.density import Target, as_target
from ..target.options import CompileMode, check_compile
from ..target.site import Values, site_shapes
from ..validation import shown
from .step_graphs import StepGraphs

__all__ = ["CompiledKernel", "Guide", "ModelBinding"]


class Guide(Protocol):
    """The interface that a kernel needs of a guide.

    Attributes:
        trained: Whether the flow has been trained.
        options: Options of the training, :class:`~pyro_flowsamp.FitOptions`.
        model_source: The model or target that the guide was made for, None where it has none.

    Example:
        >>> from pyro_flowsamp import IMH, AutoFlow
        >>> guide: Guide = AutoFlow(Target.from_energy(lambda x: x.square().sum(-1), 2))
        >>> IMH(guide=guide).guide is guide
        True
    """

    trained: bool
    options: Any

    @property
    def model_source(self) -> Any: ...
    def fit(self, *args: Any, **kwargs: Any) -> Any: ...
    def target_for(self, *args: Any, **kwargs: Any) -> Target: ...
    def proposal(self, *args: Any, **kwargs: Any) -> Proposal: ...
    def restore_model(self, model: Callable) -> None: ...


class ModelBinding:
    """A model with its guide, and the target and the frozen flow for one set of arguments.

    Arguments:
        model: A Pyro model, a :class:`~pyro_flowsamp.Target`, or None.
        potential_fn: A potential over ``{name: unconstrained tensor}``, or None.
        guide: A flow guide, or None for the one that ``default_guide`` of :meth:`bind` makes.

    Attributes:
        source: The model or target; None for a potential.
        guide: The guide; None before :meth:`bind` where none was given.
        target: The target of the bound arguments; None before :meth:`bind`.
        proposal: The frozen flow; None before :meth:`prepare`.
        graphs: The graphs of the parts of steps; None before the first step.
        compile_mode: The mode of compilation of targets; None for that which they have.
        starts: Points ``(N, d)`` at which chains will start, near which a training looks for the
            density too; or None.

    Raises:
        TypeError: The model or the potential cannot be called, or the guide is no flow guide.
        ValueError: Not exactly one of model, potential_fn, guide, or a model with its guide, is
            given.

    Example:
        >>> from pyro_flowsamp import AutoFlow
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> binding = ModelBinding(target)
        >>> binding.bind((), {}, None, lambda source: AutoFlow(source, flow="gaussian"))
        >>> binding.prepare(warmup_steps=1, progress=False)
        >>> binding.target is target, binding.proposal.sample_and_log_prob(3)[0].shape
        (True, torch.Size([3, 2]))
    """

    def __init__(
        self,
        model: Any = None,
        potential_fn: Callable[[Values], Tensor] | None = None,
        guide: Guide | None = None,
    ) -> None:
        if potential_fn is not None and (model is not None or guide is not None):
            raise ValueError("give potential_fn alone: it takes neither a model nor a guide")
        if model is None and potential_fn is None and guide is None:
            raise ValueError("give a model, a potential_fn, a guide, or a model with its guide")
        _check_callables(model, potential_fn, guide)
        self.source = guide.model_source if model is None and guide is not None else model
        self.potential_fn, self.guide = potential_fn, guide
        self._default_guide = guide is None
        self.compile_mode: CompileMode | None = None
        self._layout: Any = None
        self._release()

    def _release(self) -> None:
        self.target: Target | None = None
        self.proposal: Proposal | None = None
        self.starts: Tensor | None = None
        self.graphs: StepGraphs | None = None
        self._key: tuple | None = None
        self._args: tuple = ()
        self._kwargs: dict = {}

    def bind(
        self,
        args: tuple,
        kwargs: dict,
        initial_params: Values | None,
        default_guide: Callable[[Any], Guide],
    ) -> None:
        """Makes the target of these arguments, unless they are the ones already bound.

        Arguments:
            args, kwargs: Arguments of the model; a potential takes none, and ignores them, as it
                does in Pyro's HMC.
            initial_params: Unconstrained values whose names, shapes and dtypes are those of a
                potential's arguments; not used for a model.
            default_guide: Makes a guide of a model or target, where none was given.

        Raises:
            ValueError: The guide was trained for another model, or is amortised and untrained, or a
                potential comes without ``initial_params``.
        """
        if self.potential_fn is not None:
            args, kwargs = (), {}
        key = (*args, *sorted(kwargs), *(kwargs[k] for k in sorted(kwargs)))
        layout = self._layout
        if self.potential_fn is not None and initial_params is not None:
            layout = {k: (v.shape, v.dtype, v.device) for k, v in initial_params.items()}
        if self._key is not None and same_objects(self._key, key) and layout == self._layout:
            self._begin_counts()
            return
        source = self.source
        if self.potential_fn is not None:
            source = _target_of_potential(self.potential_fn, initial_params)
        if self.guide is None or (self._default_guide and self._key is not None):
            self.guide = default_guide(source)  # the one there was is trained for other data
        elif source is not None:
            self.guide.restore_model(source)
        context = getattr(self.guide, "context_names", ())
        if context and not self.guide.trained:
            raise ValueError(
                f"a guide amortised over {list(context)} must be trained before it is used, on the "
                f"range of values that it will be used for: call guide.fit(...) first"
            )
        if source is not None and not self._default_guide:
            _check_same_model(self.guide, source, args, kwargs)
        self.target, self.proposal = self.guide.target_for(*args, **kwargs), None
        self._begin_counts()
        self._key, self._args, self._kwargs, self._layout = key, args, kwargs, layout

    def _begin_counts(self) -> None:
        assert self.target is not None
        if self.compile_mode is not None:
            self.target.compile_mode = self.compile_mode
        self.target.restart_counts()
        self.graphs = None

    def prepare(self, warmup_steps: int, progress: bool = True) -> None:
        """Trains the guide unless it is trained, and freezes a copy of its flow.

        Arguments:
            warmup_steps: Steps of warm-up; training counts as part of the first.
            progress: Whether training may show a progress bar.

        Raises:
            RuntimeError: The guide is untrained and there is no warm-up to train it in.
        """
        assert self.guide is not None
        if not self.guide.trained:
            if warmup_steps == 0:
                raise RuntimeError(
                    "the guide is untrained and warmup_steps=0 leaves no step to train it in: "
                    "call guide.fit(...) first, or use warmup_steps > 0 (after training it by SVI, "
                    "set guide.trained = True)."
                )
            if multiprocessing.parent_process() is not None:
                warnings.warn(
                    "every parallel chain trains its own copy of the guide: call guide.fit(...) "
                    "before MCMC.run, or use VectorizedMCMC, to train once for all.",
                    stacklevel=3,
                )
            self._train(self.guide, progress)
        if self.proposal is None:
            self.proposal = self.guide.proposal(*self._args, **self._kwargs)

    def _train(self, guide: Guide, progress: bool) -> None:
        assert self.target is not None
        options = guide.options
        if not progress:
            guide.options = replace(options, progress=False)
        self.target.starts = self.starts
        try:
            guide.fit(*self._args, **self._kwargs)
        finally:
            guide.options, self.target.starts = options, None

    def __getstate__(self) -> dict[str, Any]:
        """The model and the guide; :meth:`bind` makes target and flow again."""
        state = self.__dict__.copy()
        state.update(target=None, proposal=None, starts=None, graphs=None)
        state.update(_key=None, _args=(), _kwargs={})
        return state


class CompiledKernel:
    """The base of kernels that say how their target is evaluated.

    Example:
        >>> from pyro_flowsamp import IMH
        >>> kernel = IMH(Target.from_energy(lambda x: x.square().sum(-1), 2))
        >>> kernel.compile_mode
        'auto'
        >>> kernel.compile_mode = False
        >>> kernel.compile_mode
        False
    """

    binding: ModelBinding

    @property
    def compile_mode(self) -> CompileMode:
        """Whether the target is traced and compiled, see :attr:`Target.compile_mode`; may be set.

        It is that of the guide or target unless it is set; a run takes it where it begins.

        Raises:
            ValueError: It is set to anything but "auto", True and False.
        """
        own, guide = self.binding.compile_mode, self.binding.guide
        return getattr(guide or self.binding.source, "compile_mode", "auto") if own is None else own

    @compile_mode.setter
    def compile_mode(self, mode: CompileMode) -> None:
        self.binding.compile_mode = check_compile(mode)

    @property
    def step_graphs(self) -> StepGraphs | None:
        """The graphs of the parts of steps; None before there are a target and a frozen flow."""
        binding = self.binding
        if binding.target is None or binding.proposal is None:
            return None
        if binding.graphs is None or not binding.graphs.are_of(binding.target, binding.proposal):
            binding.graphs = StepGraphs(binding.target, binding.proposal)
        return binding.graphs

    def part(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """The result of a part of a step, by its graph where there is one.

        Arguments:
            name: The name of the part.
            function: A function of tensors and named tuples of tensors. It draws no random numbers
                and changes nothing.
            args: Its arguments.
        """
        graphs = self.step_graphs
        return function(*args) if graphs is None else graphs(name, function, *args)


def _check_callables(model: Any, potential_fn: Any, guide: Any) -> None:
    """Raises a TypeError where a kernel cannot use what it is given."""
    if model is not None:
        check_model(model)
    if potential_fn is not None and not callable(potential_fn):
        raise TypeError(f"potential_fn must be a function, got {shown(potential_fn)}")
    wanted = "trained", "fit", "target_for", "proposal"
    if guide is None or (all(hasattr(guide, n) for n in wanted) and not isinstance(guide, type)):
        return
    raise TypeError(
        f"guide must be a flow guide of this package, such as AutoFlow(model), got "
        f"{shown(guide) if isinstance(guide, type) else type(guide).__name__}"
    )


def _target_of_potential(potential_fn: Callable, initial_params: Values | None) -> Target:
    if initial_params is None:
        raise ValueError(
            "a potential_fn needs initial_params, for the names, shapes and dtype of its "
            "arguments: MCMC(kernel, ..., initial_params={'x': torch.zeros(3)})"
        )
    return Target.from_potential(potential_fn, initial_params)


def _check_same_model(guide: Guide, source: Any, args: tuple, kwargs: dict) -> None:
    """Raises a ValueError if the guide was made for another model, and says how they differ."""
    if source == guide.model_source:
        return
    mine = site_shapes(as_target(source, *args, **kwargs).sites)
    theirs = site_shapes(guide.target_for(*args, **kwargs).sites)
    if mine != theirs:
        raise ValueError(
            f"the guide was made for another model: it has the sites {theirs}, this model "
            f"has {mine}."
        )
    raise ValueError(
        "the guide was made for another model with the same sites: make a guide of this "
        "model, or pass the guide alone."
    )
