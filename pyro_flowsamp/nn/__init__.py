"""Networks: velocity fields with an exact divergence, and networks with a symmetry."""

from .equivariant import SignedPermutation, group
from .mlp import TimeMLP, VelocityMLP

__all__ = ["SignedPermutation", "TimeMLP", "VelocityMLP", "group"]
