"""StyleGAN2 (Karras 2020, arXiv 1912.04958) with a site code as class label, and SPADE (Park 2019, arXiv 1903.07291)."""

from relay_core.models.stylegan2.ada import AdaptiveAugment, AugmentPipe
from relay_core.models.stylegan2.ada_transforms import SYM6
from relay_core.models.stylegan2.discriminator import Discriminator
from relay_core.models.stylegan2.generator import Generator, Noise
from relay_core.models.stylegan2.spade import Spade

__all__ = [
    "SYM6",
    "AdaptiveAugment",
    "AugmentPipe",
    "Discriminator",
    "Generator",
    "Noise",
    "Spade",
]
