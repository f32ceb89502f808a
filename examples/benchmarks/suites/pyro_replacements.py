"""Pyro's kernels and guides replaced by this package's, behind the same constructors.

Pyro's tests import ``HMC``, ``NUTS`` and autoguides from ``pyro.infer``. :func:`replace` puts the
classes below in their places before a test module is imported. They take the arguments of Pyro's
classes. Arguments that have no counterpart are ignored: step sizes, mass matrices, tree depths,
compilation, initial locations and scales.
"""

from typing import Any

import pyro.infer
import pyro.infer.autoguide
import pyro.infer.autoguide.guides
import pyro.infer.mcmc
import pyro.infer.mcmc.hmc
import pyro.infer.mcmc.nuts
import torch
from torch import Tensor

from pyro_flowsamp import IMH, AutoFlow, FitOptions, LatentHMC

#: Modules of Pyro from which its tests import kernels and guides.
MODULES = (
    pyro.infer,
    pyro.infer.autoguide,
    pyro.infer.autoguide.guides,
    pyro.infer.mcmc,
    pyro.infer.mcmc.hmc,
    pyro.infer.mcmc.nuts,
)
MOMENT_DRAWS = 200_000  #: draws for the moments of a guide
QUIET = FitOptions(progress=False)

made = 0  #: kernels and guides of this package made so far


def _count() -> None:
    global made
    made += 1


class _InPlace:
    """Pyro's argument ``transforms``, and its method ``clear_cache``."""

    _given: dict | None = None

    def clear_cache(self) -> None:
        """There is no cache that a change of the potential would make wrong."""

    @property
    def transforms(self) -> Any:
        return self._given if self._given is not None else super().transforms  # type: ignore[misc]

    @transforms.setter
    def transforms(self, transforms: Any) -> None:
        self._given = transforms


class HMC(_InPlace, LatentHMC):
    """LatentHMC in the place of Pyro's HMC."""

    def __init__(
        self,
        model: Any = None,
        potential_fn: Any = None,
        step_size: float | None = None,
        trajectory_length: float | None = None,
        num_steps: int | None = None,
        transforms: Any = None,
        **ignored: Any,
    ) -> None:
        _count()
        super().__init__(model, potential_fn, num_steps=num_steps or 4)
        self._given = transforms


class NUTS(_InPlace, IMH):
    """IMH in the place of Pyro's NUTS."""

    def __init__(
        self,
        model: Any = None,
        potential_fn: Any = None,
        step_size: float | None = None,
        transforms: Any = None,
        **ignored: Any,
    ) -> None:
        _count()
        super().__init__(model, potential_fn)
        self._given = transforms


class _Moments(AutoFlow):
    """Attributes of Pyro's guides that its tests read: moments, from draws, and transforms."""

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        posterior = super().get_posterior(*args, **kwargs)
        posterior.transforms = [self.get_transform(*args, **kwargs)]
        return posterior

    @property
    def transform(self) -> Any:
        return self.get_transform()

    @property
    def loc(self) -> Tensor:
        return self._loc_scale()[0]

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            x = self.get_posterior(*args, **kwargs).sample(torch.Size([MOMENT_DRAWS]))
        return x.mean(0), x.std(0)


class AutoDiagonalNormal(_Moments):
    """AutoFlow with a full-covariance Gaussian."""

    def __init__(self, model: Any, **ignored: Any) -> None:
        _count()
        super().__init__(model, flow="gaussian", options=QUIET)


class AutoMultivariateNormal(_Moments):
    """AutoFlow with affine couplings."""

    def __init__(self, model: Any, **ignored: Any) -> None:
        _count()
        super().__init__(model, flow="coupling", options=QUIET)


class AutoIAFNormal(_Moments):
    """AutoFlow with spline couplings."""

    def __init__(self, model: Any, **ignored: Any) -> None:
        _count()
        super().__init__(model, flow="spline", options=QUIET)


REPLACEMENTS = (HMC, NUTS, AutoDiagonalNormal, AutoMultivariateNormal, AutoIAFNormal)


def replace() -> None:
    """Puts :data:`REPLACEMENTS` in the place of Pyro's classes of the same names."""
    for module in MODULES:
        for replacement in REPLACEMENTS:
            if hasattr(module, replacement.__name__):
                setattr(module, replacement.__name__, replacement)
