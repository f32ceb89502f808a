"""Checkpoints: files from which a run that was ended goes on, with the same draws."""

from .options import CheckpointOptions

__all__ = ["CheckpointOptions"]
