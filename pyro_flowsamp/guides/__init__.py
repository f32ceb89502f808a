"""Guides: trained proposals, as Pyro autoguides."""

from .advnf import AdversarialLoss, AdvNFOptions, AdvNFWeights, AutoAdvNF
from .annealing import AnnealingOptions, AutoAnnealingFlow
from .auto_flow import AutoFlow, InitialFitOptions
from .base import FlowGuide, GuideOptions
from .deformation import AutoDeformationFlow, DeformationOptions

__all__ = [
    "AdvNFOptions",
    "AdvNFWeights",
    "AdversarialLoss",
    "AnnealingOptions",
    "AutoAdvNF",
    "AutoAnnealingFlow",
    "AutoDeformationFlow",
    "AutoFlow",
    "DeformationOptions",
    "FlowGuide",
    "GuideOptions",
    "InitialFitOptions",
]
