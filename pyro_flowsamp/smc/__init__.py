"""Sequential Monte Carlo: particles annealed or carried along a path of densities."""

from .particles import Particles
from .tempering import tempered_smc

__all__ = ["Particles", "tempered_smc"]
