"""Sequential Monte Carlo: particles annealed or carried along a path of densities."""

from .particles import Particles
from .tempering import tempered, tempered_ensemble, tempered_ensembles

__all__ = ["Particles", "tempered", "tempered_ensemble", "tempered_ensembles"]
