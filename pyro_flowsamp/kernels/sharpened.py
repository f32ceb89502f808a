"""A flow that was trained elsewhere, as a guide, and the checks of it before a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..flows.proposal import Proposal
from ..target.density import Target

__all__ = ["SharpenedFlow", "check_flow", "check_metric"]


NUM_CHECKED = 2048  #: draws on which a flow is checked
MAX_ROWS = 4096  #: rows of the batch for Jacobians, one for each coordinate of each point
TOLERANCE = 0.1  #: bound of errors of positions; of log densities plus 0.01 nats a dimension


class SharpenedFlow:
    r"""A flow as the guide of its own sharpened target.

    The target is :math:`\log\tilde p(x) = 2 \log q_X(x) - \log q_Z(f^{-1}(x))`. Its pullback
    :math:`\tilde p(f(z))\,|\det J(z)|` is :math:`q_X(f(z))`.

    Arguments:
        flow: A flow in zuko's convention, without context.

    Raises:
        ValueError: The flow has no latent map, or is not a density of vectors.

    References:
        Coeurdoux et al., *Normalizing flow sampling with Langevin dynamics in the latent space*,
        2023, https://arxiv.org/abs/2305.12149

    Example::

        >>> import torch, zuko
        >>> flow = zuko.flows.RealNVP(2, hidden_features=(8,))
        >>> guide = SharpenedFlow(flow)
        >>> x = torch.zeros(1, 2)
        >>> z = flow(None).transform(x)
        >>> expected = 2 * flow(None).log_prob(x) - flow(None).base.log_prob(z)
        >>> torch.allclose(guide.target_for().log_prob(x), expected, atol=1e-4)
        True
    """

    trained, options = True, None
    model_source = None

    def __init__(self, flow: nn.Module) -> None:
        self.flow = flow
        distribution = flow(None)
        transform = getattr(distribution, "transform", None)
        if transform is None or not transform.bijective:
            raise ValueError(f"{type(flow).__name__} is not invertible: it maps no latent z to x")
        if len(distribution.event_shape) != 1 or distribution.batch_shape:
            raise ValueError(
                f"the flow must be a density of vectors (d,), its events have the shape "
                f"{tuple(distribution.event_shape)}, its batch {tuple(distribution.batch_shape)}"
            )
        self._target: Target | None = None

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the flow is trained."""

    def restore_model(self, model: Any) -> None:
        """Does nothing: there is no model."""

    def target_for(self, *args: Any, **kwargs: Any) -> Target:
        """The sharpened target.

        Raises:
            ValueError: There are arguments, as for a model.
        """
        if args or kwargs:
            raise ValueError("a flow alone takes no model arguments: call run() without any")
        if self._target is None:
            proposal = Proposal(self.flow)
            like, _ = proposal.sample_and_log_prob(1)

            def energy(x: Tensor) -> Tensor:
                z, ladj = proposal.distribution(len(x)).transform.call_and_ladj(x)
                return -proposal.base_log_prob(z) - 2 * ladj

            self._target = Target.from_energy(
                energy, proposal.dim, dtype=like.dtype, device=like.device
            )
        return self._target

    def proposal(self, *args: Any, **kwargs: Any) -> Proposal:
        """A frozen copy of the flow, checked by :func:`check_flow`."""
        proposal = Proposal(self.flow)
        check_flow(proposal)
        return proposal

    def __getstate__(self) -> dict[str, Any]:
        return {"flow": self.flow, "_target": None}


def check_flow(proposal: Proposal) -> None:
    r"""Checks that a flow is invertible and that its draws have its density.

    For fresh draws :math:`f^{-1}(f(z))` is compared with z, and the log q of sampling with that of
    scoring; for a few of them :math:`\log|\det J|` with the determinant of the actual Jacobian.

    Raises:
        ValueError: One of these pairs differs, or J is singular.

    Example:
        >>> from pyro_flowsamp.flows import gaussian
        >>> class Wrong(Proposal):
        ...     def log_prob(self, x):
        ...         return super().log_prob(x) + 1.0
        >>> check_flow(Proposal(gaussian(2)))
        >>> check_flow(Wrong(gaussian(2)))
        Traceback (most recent call last):
        ValueError: the flow's density and draws disagree: sampling and scoring by 1 nats, ...
    """
    z = proposal.sample_latent(NUM_CHECKED)
    with torch.no_grad():
        x, ladj = proposal.push(z)
    lost = _quantile((proposal.pull(x) - z).abs().amax(-1))
    if not lost < TOLERANCE:
        raise ValueError(
            f"the flow is not invertible: f⁻¹(f(z)) lies {lost:.2g} from z on 1 % of {len(z)} draws"
        )
    allowed = TOLERANCE + 0.01 * proposal.dim
    log_det = _log_det(proposal, z[: max(1, min(8, MAX_ROWS // proposal.dim))])
    if not torch.isfinite(log_det).all():
        raise ValueError("the flow's Jacobian is singular: log|det J| is not finite at its draws")
    gaps = {
        "sampling and scoring": _quantile((proposal.log_prob(x) - _log_q(proposal, z, ladj)).abs()),
        "its log-determinant and its Jacobian": float(
            (log_det - ladj[: len(log_det)].double()).abs().max()
        ),
    }
    for what, gap in gaps.items():
        if not gap < allowed:
            raise ValueError(
                f"the flow's density and draws disagree: {what} by {gap:.2g} nats, where at most "
                f"{allowed:.2g} is allowed. Draws by a kernel would be wrong."
            )


def check_metric(proposal: Proposal) -> None:
    r"""Checks that :math:`J J^{-1} u = u` at draws of a flow, for random unit vectors.

    Raises:
        ValueError: J is singular to working precision, or the flow has no forward-mode derivative.

    Example:
        >>> from pyro_flowsamp.flows import gaussian
        >>> class Wrong(Proposal):
        ...     def pull_vector(self, x, u):
        ...         return 2 * super().pull_vector(x, u)
        >>> check_metric(Proposal(gaussian(2)))
        >>> check_metric(Wrong(gaussian(2)))
        Traceback (most recent call last):
        ValueError: the flow's Jacobian J is singular to working precision: |J J⁻¹u − u| = 1 ...
    """
    z = proposal.sample_latent(NUM_CHECKED)
    x, _ = proposal.push(z)
    u = torch.nn.functional.normalize(torch.randn_like(z), dim=-1)
    try:
        back = proposal.push_vector(z, proposal.pull_vector(x, u))
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            "metric='jacobian' needs forward-mode derivatives (torch.func.jvp) of the flow and its "
            f"inverse, which this one lacks; metric='identity' does not need them. ({error})"
        ) from error
    gap = _quantile((back - u).norm(dim=-1))
    if not gap < TOLERANCE:
        raise ValueError(
            f"the flow's Jacobian J is singular to working precision: |J J⁻¹u − u| = {gap:.2g} for "
            f"unit vectors u on 1 % of {len(z)} draws. Use metric='identity', or float64."
        )


def _log_q(proposal: Proposal, z: Tensor, ladj: Tensor) -> Tensor:
    return proposal.base_log_prob(z) - ladj


def _quantile(errors: Tensor) -> float:
    """The 99 % quantile of 2048 errors; NaN counts as infinite."""
    return float(errors.double().nan_to_num(nan=torch.inf, posinf=torch.inf).sort().values[-20])


def _log_det(proposal: Proposal, z: Tensor) -> Tensor:
    r""":math:`\log|\det J|` of the map itself, ``(n,)``, by one backward pass over n·d copies."""
    num, dim = z.shape
    copies = z.repeat_interleave(dim, 0).requires_grad_()
    with torch.enable_grad():
        x, _ = proposal.push(copies)
    (rows,) = torch.autograd.grad(x, copies, torch.eye(dim).to(z).repeat(num, 1))
    return torch.linalg.slogdet(rows.double().reshape(num, dim, dim)).logabsdet
