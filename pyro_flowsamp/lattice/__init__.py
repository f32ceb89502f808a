"""Lattice fields: their flows, discriminators, densities and exact solutions."""

from .discriminator import LatticeDiscriminator, lattice_discriminator
from .flow import LatticeFlow, lattice_flow
from .grid import lattice_symmetries
from .phi4_density import (
    Phi4Observables,
    phi4,
    phi4_action,
    phi4_model,
    phi4_observables,
    phi4_symmetries,
)
from .phi4_exact import Phi4Truth, phi4_truth
from .xy_density import (
    XYObservables,
    vortex_density,
    xy,
    xy_energy,
    xy_magnetization,
    xy_model,
    xy_observables,
)
from .xy_exact import XYTruth, xy_chain_truth, xy_torus_truth

__all__ = [
    "LatticeDiscriminator",
    "LatticeFlow",
    "Phi4Observables",
    "Phi4Truth",
    "XYObservables",
    "XYTruth",
    "lattice_discriminator",
    "lattice_flow",
    "lattice_symmetries",
    "phi4",
    "phi4_action",
    "phi4_model",
    "phi4_observables",
    "phi4_symmetries",
    "phi4_truth",
    "vortex_density",
    "xy",
    "xy_chain_truth",
    "xy_energy",
    "xy_magnetization",
    "xy_model",
    "xy_observables",
    "xy_torus_truth",
]
