"""Guides: trained proposals, as Pyro autoguides."""

from .advnf import AutoAdvNF
from .annealing import AutoAnnealingFlow
from .auto_flow import AutoFlow
from .base import FlowGuide
from .deformation import AutoDeformationFlow

__all__ = ["AutoAdvNF", "AutoAnnealingFlow", "AutoDeformationFlow", "AutoFlow", "FlowGuide"]
