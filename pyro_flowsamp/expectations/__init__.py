"""Expectations and probabilities of rare events by importance flows."""

from .rare_events import ImportanceEstimate, importance_flow

__all__ = ["ImportanceEstimate", "importance_flow"]
