"""The prior of a model as a target of its own."""

from __future__ import annotations

from pyro import poutine

from .density import Target

__all__ = ["prior_target"]


def prior_target(target: Target) -> Target | None:
    r"""The density of a model's latent sites, given nothing; its log evidence is 0.

    Observed sites and factors are left out. Evaluations are counted apart from the target's. It is
    not traced where the target must not be.

    Arguments:
        target: The target of a model.

    Returns:
        The target; None where there is no model, where discrete sites are summed out, or where
        there is a context.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> def model(y):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> prior = prior_target(Target.from_model(model, torch.tensor(7.0)))
        >>> prior.log_prob(torch.zeros(1, 1))
        tensor([-0.9189])
    """
    density = target.model
    if density is None or target.enumerated or target.context_names:
        return None
    latent = {site.name for site in target.sites}
    model = poutine.block(
        density.model,
        hide_fn=lambda msg: msg["type"] == "sample" and msg["name"] not in latent,
    )
    try:
        made = Target.from_model(model, *density.args, **density.kwargs)
    except Exception:  # whatever the model's code raises without its data
        return None
    sites, own = ([(s.name, s.shape) for s in t.sites] for t in (made, target))
    if target.compile_mode is False:
        made.compile_mode = False
    return made if sites == own and made.dtype == target.dtype else None
