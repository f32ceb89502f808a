"""Annealing flows: continuous flows built block by block along a tempered path."""

from .guide import AutoAnnealingFlow
from .losses import TransportBatch, log_variance
from .options import AnnealingOptions

__all__ = ["AnnealingOptions", "AutoAnnealingFlow", "TransportBatch", "log_variance"]
