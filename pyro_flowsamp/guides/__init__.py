"""Guides: trained proposals, as Pyro autoguides."""

from .annealing import AutoAnnealingFlow
from .base import FlowGuide
from .deformation import AutoDeformationFlow
from .flow import AutoFlow

__all__ = ["AutoAnnealingFlow", "AutoDeformationFlow", "AutoFlow", "FlowGuide"]
