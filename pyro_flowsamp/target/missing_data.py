"""Missing data: observed sites with a mask, whose hidden entries are latent."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

DATA_KEY = "_flowsamp_data"  #: the key of a site's data as the user gave them


class Imputed(Messenger):
    """Makes the posterior of a model with ``obs_mask`` proper, and its gradients finite.

    ``pyro.sample("y", fn, obs=data, obs_mask=mask)`` draws "y_unobserved" for every datum and uses
    it where ``mask`` is false. Elsewhere Pyro gives it no density: nothing depends on these
    coordinates, and the posterior is improper. Here they have the density of ``fn``, whatever the
    scale of the other terms. It integrates to one, and the posterior of all other sites does not
    change. Data that an outer mask hides stay hidden. NaN among the masked data would make all
    gradients NaN; a point of the support replaces each of them.
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
    """The data, with a point of the support in place of each NaN that is masked."""
    if not data.is_floating_point():
        return data
    hidden = ~shown.reshape(shown.shape + (1,) * fn.event_dim)
    try:
        transform = biject_to(fn.support)
        inside = transform(data.new_zeros(transform.inverse_shape(fn.event_shape)))
    except NotImplementedError:  # discrete
        inside = data.new_zeros(fn.event_shape)
    return torch.where(hidden & data.isnan(), inside, data)
