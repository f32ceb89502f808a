"""Missing data: observed sites with a mask, whose hidden entries are latent."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

DATA_KEY = "_flowsamp_data"  #: the observed value of a site, as the user gave it


class Imputed(Messenger):
    """Gives all of what ``obs_mask`` imputes a density, and gradients to what it does not.

    ``pyro.sample("y", fn, obs=data, obs_mask=mask)`` draws "y_unobserved" for every datum, uses it
    where ``mask`` is false, and leaves it without a density elsewhere: a posterior that is improper
    in coordinates on which nothing depends. With the density of ``fn`` there, whatever the scale of
    the rest, they integrate to one, and all else is as it was. (What a mask around both hides stays
    hidden.) NaN among the data, masked, would make all gradients NaN: their place takes a point of
    the support.
    """

    def __enter__(self) -> Any:
        self._shown: dict[str, Tensor] = {}
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        stem, _, kind = msg["name"].rpartition("_")
        mask, scale, value = msg["mask"], msg["scale"], msg["value"]
        if not isinstance(mask, Tensor):
            return
        if kind == "observed" and isinstance(value, Tensor):
            self._shown[stem] = mask
            msg["infer"] = {**msg["infer"], DATA_KEY: value}
            msg["value"] = _filled(value, mask, msg["fn"])
        elif kind == "unobserved" and stem in self._shown:
            shown = self._shown[stem]
            msg["mask"] = shown | mask
            if isinstance(scale, Tensor) or scale != 1:
                msg["scale"] = torch.where(shown & ~mask, 1.0, scale)


def _filled(data: Tensor, shown: Tensor, fn: Any) -> Tensor:
    """A point of the support in place of each NaN that is not shown."""
    if not data.is_floating_point():
        return data
    hidden = ~shown.reshape(shown.shape + (1,) * fn.event_dim)
    try:
        transform = biject_to(fn.support)
        inside = transform(data.new_zeros(transform.inverse_shape(fn.event_shape)))
    except NotImplementedError:  # discrete
        inside = data.new_zeros(fn.event_shape)
    return torch.where(hidden & data.isnan(), inside, data)
