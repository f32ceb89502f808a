"""Guides: trained proposals, as Pyro autoguides."""

from .advnf import AutoAdvNF
from .annealing import AutoAnnealingFlow
from .base import FlowGuide
from .deformation import AutoDeformationFlow
from .flow import AutoFlow

__all__ = ["AutoAdvNF", "AutoAnnealingFlow", "AutoDeformationFlow", "AutoFlow", "FlowGuide"]
