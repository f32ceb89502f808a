"""AdvNF: a conditional flow trained against a discriminator."""

from .guide import AutoAdvNF

__all__ = ["AutoAdvNF"]
