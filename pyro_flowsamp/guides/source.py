"""Attributes of guides that are no submodules: the model, with its last target, and others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..target.construction import sites_alone
from ..target.context import same_objects
from ..target.density import Target, as_target
from ..target.inspection import RandomDensityError
from ..target.options import CompileMode, check_compile

__all__ = ["CompiledGuide", "ModelSource", "Unregistered"]


@dataclass(frozen=True)
class Unregistered:
    """A value that does not become a submodule of the guide that has it as an attribute.

    Attributes:
        value: The value.

    Example:
        >>> import torch
        >>> module = torch.nn.Module()
        >>> module.held, module.own = Unregistered(torch.nn.Linear(1, 1)), torch.nn.Linear(1, 1)
        >>> [name for name, _ in module.named_parameters()]
        ['own.weight', 'own.bias']
    """

    value: Any


class ModelSource:
    """A guide's model, which is not a submodule of the guide, and the target made of it last.

    A deep copy has the very same model. A pickled source has none, since models and targets need
    not pickle.

    Arguments:
        model: A Pyro model or a target.

    Attributes:
        compile_mode: The mode of compilation of targets; None for that which they have.

    Example:
        >>> model = Target.from_energy(lambda x: x.square().sum(-1), 2)
        >>> source = ModelSource(model)
        >>> source.target((), {}, ()) is source.last_target is model
        True
    """

    def __init__(self, model: Callable | None) -> None:
        self.model = model
        self.compile_mode: CompileMode | None = None
        self._last: tuple[tuple, Target] | None = None
        self._part: Target | None = None

    @property
    def required(self) -> Callable:
        """The model.

        Raises:
            ValueError: There is none, after pickling.
        """
        if self.model is None:
            raise ValueError(
                "this guide was pickled, which leaves its model behind: give it back by "
                "guide.restore_model(model), or use the guide with its model in a kernel"
            )
        return self.model

    @property
    def last_target(self) -> Target | None:
        """The target of the last arguments, or None."""
        return None if self._last is None else self._last[1]

    def target(self, args: tuple, kwargs: dict, context: Sequence[str]) -> Target:
        """The target of these arguments; the last one is kept, since making one takes time."""
        model, names = self.required, sorted(kwargs)
        key = (model, torch.get_default_dtype(), *args, *names, *(kwargs[k] for k in names))
        if self._last is not None and same_objects(key, self._last[0]):
            return self._in_mode(self._last[1])
        target = self._in_mode(as_target(model, *args, **kwargs))
        if context:
            target = target.conditional_on(*context)
        self._last = key, target
        return target

    def _in_mode(self, target: Target) -> Target:
        if self.compile_mode is not None:
            target.compile_mode = self.compile_mode
        return target

    def sites(self, args: tuple, kwargs: dict, context: Sequence[str]) -> Target:
        """The target, or one of the same sites without a density where that is random.

        A part of a larger model, such as ``poutine.block(model, hide=["z"])``, draws what it hides
        at each run. Pyro's SVI can train a guide of it beside guides of the other parts.
        """
        if self._part is not None:
            return self._part
        try:
            return self.target(args, kwargs, context)
        except RandomDensityError:
            self._part = Target(*sites_alone(self.required, args, kwargs))
            return self._part

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "model": None, "_last": None, "_part": None}

    def __deepcopy__(self, memo: dict) -> ModelSource:
        made = ModelSource(self.model)
        made._last, made._part, made.compile_mode = self._last, self._part, self.compile_mode
        return made


class CompiledGuide:
    """The base of guides that say how their targets are evaluated.

    Example:
        >>> from pyro_flowsamp import AutoFlow
        >>> guide = AutoFlow(Target.from_energy(lambda x: x.square().sum(-1), 2))
        >>> guide.compile_mode = False
        >>> guide.target_for().compile_mode
        False
    """

    _source: ModelSource

    @property
    def compile_mode(self) -> CompileMode:
        """Whether targets are traced and compiled, see :attr:`Target.compile_mode`; may be set.

        "auto", or what a target has with which the guide was made, unless it is set.

        Raises:
            ValueError: It is set to anything but "auto", True and False.
        """
        if self._source.compile_mode is not None:
            return self._source.compile_mode
        model = self._source.model
        return model.compile_mode if isinstance(model, Target) else "auto"

    @compile_mode.setter
    def compile_mode(self, mode: CompileMode) -> None:
        self._source.compile_mode = check_compile(mode)
