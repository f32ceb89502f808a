"""Guides: trained proposals, as Pyro autoguides."""

from .annealing import AutoAnnealingFlow
from .base import FlowGuide
from .flow import AutoFlow

__all__ = ["AutoAnnealingFlow", "AutoFlow", "FlowGuide"]
