"""Export of draws to ArviZ: its groups, and the names of their dimensions."""

from .conversion import to_arviz
from .dimensions import check_names
from .groups import check_groups

__all__ = ["check_groups", "check_names", "to_arviz"]
