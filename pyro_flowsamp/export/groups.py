"""The groups of ArviZ that are computed from a model at draws of its posterior."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..chains.streaming import in_blocks
from ..target.context import signature_of
from ..target.density import Target
from ..target.quantities import (
    ModelVariables,
    deterministic_values,
    log_prior,
    prior_draws,
    replicated_data,
)
from ..target.site import Values
from .sources import ExportedDraws, unconstrained_values

__all__ = ["MAX_NUMBERS", "ON_REQUEST", "ModelGroups", "check_groups", "constant_data"]


MAX_NUMBERS = 500_000_000  #: numbers of the largest group that is computed: 2 GB in float32

#: groups that are made where ``groups=`` names them
ON_REQUEST = (
    "log_prior",
    "unconstrained_posterior",
    "posterior_predictive",
    "prior",
    "prior_predictive",
)


def check_groups(groups: Sequence[str]) -> None:
    """Checks names of groups to make.

    Arguments:
        groups: The names.

    Raises:
        ValueError: One is unknown, or there is no list.

    Example:
        >>> check_groups(["prior"])
    """
    if isinstance(groups, str):
        raise ValueError(f"groups must be a list of names: ['{groups}']")
    unknown = [name for name in groups if name not in ON_REQUEST]
    if unknown:
        raise ValueError(
            f"groups: {unknown} are not among those that can be asked for, {list(ON_REQUEST)}; "
            f"the others are always made where they can be"
        )


def constant_data(target: Target, data: Values) -> Values:
    """The tensors among a model's arguments, by name, without those that are observed as they are.

    Arguments:
        target: The target of a model.
        data: The values of the observed sites.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro_flowsamp import Target
        >>> def model(width, y):
        ...     x = pyro.sample("x", dist.Normal(0.0, width))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> y = torch.tensor(1.0)
        >>> constant_data(Target.from_model(model, torch.tensor(2.0), y), {"y": y})
        {'width': tensor(2.)}
    """
    density = target.model
    if density is None:
        return {}
    try:
        bound = signature_of(density.model).bind_partial(*density.args, **density.kwargs)
    except (TypeError, ValueError):  # a callable that does not show its arguments
        return {}
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        else:
            named[name] = value
    seen = [(value.data_ptr(), value.shape) for value in data.values()]
    tensors = {name: v for name, v in named.items() if isinstance(v, torch.Tensor)}
    return {name: v for name, v in tensors.items() if (v.data_ptr(), v.shape) not in seen}


class ModelGroups:
    """Makes groups from draws, and remembers why some could not be made.

    Arguments:
        drawn: The draws and their target, which must not be at several contexts.
        found: The sites of the target's model.

    Attributes:
        left_out: What was left out, and why, in words.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro_flowsamp import Target
        >>> from pyro_flowsamp.target.quantities import model_variables
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.deterministic("twice", 2 * x)
        >>> target, x = Target.from_model(model), torch.tensor([[1.0, 3.0]])
        >>> drawn = ExportedDraws({"x": x}, {}, target, None, torch.zeros(1))
        >>> ModelGroups(drawn, model_variables(target)).deterministic()
        {'twice': tensor([[2., 6.]])}
    """

    def __init__(self, drawn: ExportedDraws, found: ModelVariables) -> None:
        assert drawn.target is not None
        self.target, self.drawn, self.found = drawn.target, drawn, found
        self.left_out: list[str] = []
        self.missing = [s.name for s in self.target.sites if s.name not in drawn.samples]

    def deterministic(self) -> Values:
        """The draws of deterministic sites, ``{site: (chains, draws, ...)}``."""
        if not self.found.deterministic:
            return {}
        names = list(self.found.deterministic)
        numbers = sum(v.shape.numel() for v in self.found.deterministic.values())
        reason = self._obstacle(numbers, needs_discrete=True)
        return self._made(f"no draws of the deterministic sites {names}", reason, self._values)

    def _values(self) -> Values:
        numbers = self.found.numbers
        return self._by_chain(lambda x: deterministic_values(self.target, x, numbers))

    def log_likelihood(self) -> Values:
        """The log-likelihood of each observation, ``{site: (chains, draws, *batch_shape)}``."""
        observed = self.found.observed.values()
        numbers = sum(v.shape[: v.batch_dims].numel() for v in observed)
        reason = self._obstacle(numbers, needs_discrete=True)
        return self._made(
            "no log_likelihood group",
            reason,
            lambda: self._by_chain(self.target.pointwise_log_likelihood),
            remedy=". log_likelihood=False silences this.",
        )

    def requested(self, groups: Sequence[str], num_prior: int) -> dict[str, Values]:
        """The groups that were asked for.

        Arguments:
            groups: Their names.
            num_prior: The number of draws from the prior.
        """
        makers: dict[str, Callable[[], Values]] = {
            "log_prior": self._log_prior,
            "unconstrained_posterior": lambda: unconstrained_values(self.drawn),
            "posterior_predictive": self._replicated,
        }
        made = {name: makers[name]() for name in groups if name in makers}
        prior = [name for name in groups if name not in makers]
        return {**made, **self._prior(prior, num_prior)}

    def _log_prior(self) -> Values:
        latent = self.found.latent.values()
        numbers = sum(v.shape[: v.batch_dims].numel() for v in latent)
        return self._made(
            "no log_prior group",
            self._obstacle(numbers, needs_discrete=True),
            lambda: self._by_chain(lambda x: log_prior(self.target, x, self.found.numbers)),
        )

    def _replicated(self) -> Values:
        numbers = sum(v.shape.numel() for v in self.found.observed.values())
        return self._made(
            "no posterior_predictive group",
            self._obstacle(numbers) or self._unobserved(),
            lambda: self._by_chain(lambda x: replicated_data(self.target, x, self.found.numbers)),
        )

    def _prior(self, groups: Sequence[str], num: int) -> dict[str, Values]:
        """One set of draws from the prior, for both of its groups."""
        if not groups:
            return {}
        what = f"no {' and '.join(groups)} group"
        improper = self.found.improper
        reason = "the target was made without a model" if self.target.model is None else ""
        if not reason and improper:
            reason = f"the prior of {improper} is masked or scaled, so that no draws are from it"
        if not reason and num * self.found.numbers > MAX_NUMBERS:
            reason = _too_large(num * self.found.numbers)
        made = self._made(what, reason, lambda: prior_draws(self.target, num, self.found.numbers))
        if "prior_predictive" in groups and made and not made["prior_predictive"]:
            self.left_out.append(f"no prior_predictive group: {self._unobserved()}")
        return {
            group: {name: value[None] for name, value in made.get(group, {}).items()}
            for group in groups
        }

    def _unobserved(self) -> str:
        return "" if self.found.observed else "the model observes no data"

    def _obstacle(self, numbers: int, needs_discrete: bool = False) -> str:
        """The reason why a group cannot be evaluated at all draws, in words; "" if there is none.

        Arguments:
            numbers: Numbers of the result for one draw.
            needs_discrete: Whether it depends on the values of discrete sites.
        """
        if self.target.model is None:
            return "the target was made without a model"
        if self.missing:
            return f"the draws of {self.missing} were not saved (save_params)"
        if needs_discrete and self.target.enumerated:
            return "the model has discrete sites, which were summed out"
        numbers *= self._shape.numel()
        return _too_large(numbers) if numbers > MAX_NUMBERS else ""

    @property
    def _shape(self) -> torch.Size:
        return next(iter(self.drawn.samples.values())).shape[:2]

    def _by_chain(self, make: Callable[[Values], Values]) -> Values:
        """Values of all draws, by chain; ``make`` has them of draws of all chains in one row."""

        def made(samples: Values, first: int, last: int) -> Values:
            x = {name: value[:, first:last].flatten(0, 1) for name, value in samples.items()}
            shape = self._shape[0], last - first
            return {name: value.unflatten(0, shape) for name, value in make(x).items()}

        chains, draws = self._shape
        shape, numbers = (chains, draws), self.found.numbers
        return in_blocks(made, self.drawn.samples, shape, numbers, self.drawn.empty)

    def _made(self, what: str, reason: str, make: Callable[[], Any], remedy: str = "") -> Any:
        """Calls ``make`` unless there is a reason not to; keeps the reason, or the error."""
        if not reason:
            try:
                return make()
            except Exception as error:  # of the model's code; the draws must not be lost for it
                reason = f"the model cannot be evaluated for it ({type(error).__name__}: {error})"
        self.left_out.append(f"{what}: {reason}{remedy}")
        return {}


def _too_large(numbers: int) -> str:
    return f"it would hold {numbers:.1e} numbers; draw or keep fewer (thin=...)"
