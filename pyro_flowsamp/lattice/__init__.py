"""Lattice fields: flows, discriminators, densities and exact solutions."""

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
from .phi4_exact import ExactPhi4, exact_phi4
from .xy_density import (
    XYObservables,
    vortex_density,
    xy,
    xy_energy,
    xy_magnetization,
    xy_model,
    xy_observables,
)
from .xy_exact import ExactXY, exact_xy_chain, exact_xy_torus

__all__ = [
    "LatticeDiscriminator",
    "LatticeFlow",
    "Phi4Observables",
    "ExactPhi4",
    "XYObservables",
    "ExactXY",
    "lattice_discriminator",
    "lattice_flow",
    "lattice_symmetries",
    "phi4",
    "phi4_action",
    "phi4_model",
    "phi4_observables",
    "phi4_symmetries",
    "exact_phi4",
    "vortex_density",
    "xy",
    "exact_xy_chain",
    "xy_energy",
    "xy_magnetization",
    "xy_model",
    "xy_observables",
    "exact_xy_torus",
]
