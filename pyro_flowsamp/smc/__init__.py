"""Sequential Monte Carlo: particles annealed or carried along a path of densities."""

from .particles import Cloud
from .tempering import tempered, tempered_ensemble, tempered_ensembles

__all__ = ["Cloud", "tempered", "tempered_ensemble", "tempered_ensembles"]
