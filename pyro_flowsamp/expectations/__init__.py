"""Expectations and probabilities of rare events by importance flows."""

from .options import ImportanceOptions
from .rare_events import ImportanceEstimate, importance_flow

__all__ = ["ImportanceEstimate", "ImportanceOptions", "importance_flow"]
