"""Annealing flows: continuous flows built block by block along a tempered path."""

from .guide import AutoAnnealingFlow

__all__ = ["AutoAnnealingFlow"]
