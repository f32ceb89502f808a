"""Guides: trained proposals, as Pyro autoguides."""

from .base import FlowGuide
from .flow import AutoFlow

__all__ = ["AutoFlow", "FlowGuide"]
