"""Guides: trained proposals, as Pyro autoguides."""

from .advnf import AutoAdvNF
from .annealing import AutoAnnealingFlow
from .auto_flow import AutoFlow, InitialFitOptions
from .base import FlowGuide, GuideOptions
from .deformation import AutoDeformationFlow

__all__ = [
    "AutoAdvNF",
    "AutoAnnealingFlow",
    "AutoDeformationFlow",
    "AutoFlow",
    "FlowGuide",
    "GuideOptions",
    "InitialFitOptions",
]
