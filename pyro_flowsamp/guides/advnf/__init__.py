"""AdvNF: a conditional flow trained with a discriminator."""

from .adversary import GAN, AdversarialLoss
from .guide import AutoAdvNF
from .options import AdvNFOptions, AdvNFWeights

__all__ = ["GAN", "AdvNFOptions", "AdvNFWeights", "AdversarialLoss", "AutoAdvNF"]
