r"""A frozen flow as kernels use it: draws with densities, and the latent map both ways."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn
from torch.distributions import constraints

from ..target.context import every
from ..validation import check_at_least_one, check_count
from ..weights import ess_fraction, pareto_k

__all__ = ["DiagnosticOptions", "FlowDiagnostics", "FlowDistribution", "Proposal"]


@dataclass(frozen=True)
class DiagnosticOptions:
    """The numbers of draws that judge a proposal.

    Attributes:
        num_draws: Fresh draws for importance weights, at all contexts together.
        min_draws_per_context: Fresh draws at each context, at least.
        num_scored: Fresh draws on which sampling's and scoring's log q are compared.
        quantile: The quantile of their differences that is reported.

    Raises:
        ValueError: An option is out of range, or of another type.

    Example:
        >>> from pyro_flowsamp.flows import gaussian
        >>> proposal, few = Proposal(gaussian(1)), DiagnosticOptions(num_draws=500, num_scored=100)
        >>> proposal.log_q_error(few) < 1e-5
        True
    """

    num_draws: int = 4096
    min_draws_per_context: int = 256
    num_scored: int = 2048
    quantile: float = 0.999

    def __post_init__(self) -> None:
        check_at_least_one(self)


class FlowDiagnostics(NamedTuple):
    """The quality of a proposal for a target, at each of its K contexts.

    Attributes:
        ess: Importance ESS fractions, ``(K,)``.
        pareto_k: Shapes of the tails of the importance weights, ``(K,)``.
        log_q_error: The difference between sampling's and scoring's log q, in nats.

    Example:
        >>> from pyro_flowsamp.flows import gaussian
        >>> found = Proposal(gaussian(1)).diagnostics(lambda x: -0.5 * x.square().sum(-1))
        >>> round(float(found.ess), 4)  # the flow is standard normal, as the target is
        1.0
    """

    ess: Tensor
    pareto_k: Tensor
    log_q_error: float


class Proposal:
    r"""A snapshot of a flow :math:`q`, at one context or at several in turn.

    The parameters are copied, so that training the guide further cannot change a running chain. At
    K contexts row i of any batch has the context i mod K, so that each chain keeps its context.

    Arguments:
        flow: A zuko-style flow.
        context: One context row ``(c,)``, K of them ``(K, c)``, or None.

    Attributes:
        dim: The dimension :math:`d`.
        angles: Mask ``(d,)`` of the latent coordinates that are angles; None where there are none.

    Example:
        >>> from pyro_flowsamp.flows import gaussian
        >>> proposal = Proposal(gaussian(2))
        >>> x, log_q = proposal.sample_and_log_prob(5)
        >>> x.shape, torch.allclose(proposal.log_prob(x), log_q)
        (torch.Size([5, 2]), True)
    """

    def __init__(self, flow: nn.Module, context: Tensor | None = None) -> None:
        self._frozen = copy.deepcopy(flow).requires_grad_(False).eval()
        several = context is not None and context.dim() > 1
        self._rows = context if several else None
        self._one = None if several else self._frozen(context)
        one = self.distribution(1)
        self.dim = one.event_shape[-1]
        self.angles = getattr(one.base, "angles", None)

    def state_dict(self) -> dict[str, Any]:
        """The parameters of the flow, and the rows of its contexts."""
        return {"flow": self._frozen.state_dict(), "rows": self._rows}

    def distribution(self, num: int) -> Any:
        """The flow's distribution of a batch of ``num`` points, at their contexts."""
        if self._rows is None:
            return self._one
        return self._frozen(every(self._rows, num))

    @torch.no_grad()
    def sample_and_log_prob(self, num: int) -> tuple[Tensor, Tensor]:
        r"""``num`` draws ``(num, d)`` and :math:`\log q` by the pass that made them.

        Raises:
            ValueError: ``num`` is no whole number.
        """
        num = check_count("num", num, 0)
        return self.distribution(num).rsample_and_log_prob((num,) if self._rows is None else ())

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        r""":math:`\log q(x)` by the inverse pass, ``(N, d) → (N,)``."""
        return self.distribution(len(x)).log_prob(x)

    def push(self, z: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`x = f(z)` and :math:`\log|\det \partial f/\partial z|`; differentiable.

        Only where :meth:`base_log_prob` is finite is f a bijection: the latent space of angles is
        one period. A chain that moves in z must give z a density of zero elsewhere.
        """
        return self.distribution(len(z)).transform.inv.call_and_ladj(z)

    @torch.no_grad()
    def pull(self, x: Tensor) -> Tensor:
        r""":math:`z = f^{-1}(x)`."""
        return self.distribution(len(x)).transform(x)

    @torch.no_grad()
    def pull_and_log_prob(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`z = f^{-1}(x)` ``(N, d)`` and :math:`\log q(x)` ``(N,)`` by the inverse pass."""
        distribution = self.distribution(len(x))
        z, ladj = distribution.transform.call_and_ladj(x)
        return z, distribution.base.log_prob(z) + ladj

    def push_vector(self, z: Tensor, v: Tensor) -> Tensor:
        r""":math:`J(z)\, v`, ``(N, d)``, in one forward-mode pass; J is that of f."""
        return torch.func.jvp(lambda at: self.push(at)[0], (z,), (v,))[1]

    def pull_vector(self, x: Tensor, u: Tensor) -> Tensor:
        r""":math:`J(z)^{-1} u` at :math:`x = f(z)`, ``(N, d)``, in one forward-mode pass."""
        return torch.func.jvp(self.pull, (x,), (u,))[1]

    def base_log_prob(self, z: Tensor) -> Tensor:
        r""":math:`\log q_Z(z)`, so that :math:`\log q(f(z)) = \log q_Z(z) - \log|\det f'|`.

        It is :math:`-\infty` outside of a bounded base, which a chain may leave.
        """
        with pyro.validation_enabled(False):  # that would make an error of it
            return self.distribution(len(z)).base.log_prob(z)

    @torch.no_grad()
    def sample_latent(self, num: int) -> Tensor:
        """Draws of the base distribution, ``(num, d)``."""
        return self.distribution(num).base.sample((num,) if self._rows is None else ())

    def log_q_error(self, options: DiagnosticOptions | None = None) -> float:
        """The difference between sampling's and scoring's log q on nearly all draws, in nats."""
        options = options or DiagnosticOptions()
        x, log_q = self.sample_and_log_prob(options.num_scored)
        return float((log_q - self.log_prob(x)).abs().double().quantile(options.quantile))

    @torch.no_grad()
    def diagnostics(
        self,
        log_prob: Callable[[Tensor], Tensor],
        options: DiagnosticOptions | None = None,
    ) -> FlowDiagnostics:
        """Judges the proposal by the importance weights of fresh draws.

        Arguments:
            log_prob: The target's log density, ``(N, d) → (N,)``, at the same contexts.
            options: How many draws to take.
        """
        options = options or DiagnosticOptions()
        count = 1 if self._rows is None else len(self._rows)
        each = max(options.num_draws // count, options.min_draws_per_context)
        x, log_q = self.sample_and_log_prob(each * count)
        log_w = (log_prob(x).double() - log_q.double()).reshape(each, count)
        shapes = torch.tensor([pareto_k(column) for column in log_w.mT], dtype=torch.double)
        return FlowDiagnostics(ess_fraction(log_w), shapes, self.log_q_error(options))


class FlowDistribution(dist.TorchDistribution):
    r"""A zuko distribution as a Pyro distribution.

    Arguments:
        base: A distribution with ``rsample_and_log_prob``.

    Unlike :class:`pyro.contrib.zuko.ZukoToPyro` it has ``sample`` and ``support``, so that
    :class:`pyro.infer.Predictive` takes it. A draw is scored by the pass that made it.

    Example:
        >>> from pyro_flowsamp.flows import gaussian
        >>> fn = FlowDistribution(gaussian(2)())
        >>> x = fn.sample((3,))
        >>> torch.allclose(fn.log_prob(x), fn.base.log_prob(x), atol=1e-5)
        True
    """

    arg_constraints: dict = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, base: Any) -> None:
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)
        self.base = base
        self._drawn: tuple[Tensor, Tensor] | None = None

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """Returns the distribution with another batch shape."""
        return FlowDistribution(self.base.expand(Size(batch_shape)))

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        """Differentiable draws, whose log density is kept for :meth:`log_prob`."""
        self._drawn = self.base.rsample_and_log_prob(Size(sample_shape))
        return self._drawn[0]

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        """Draws without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density; of the last draws by the pass that made them."""
        if self._drawn is not None and value is self._drawn[0]:
            return self._drawn[1]
        return self.base.log_prob(value)
