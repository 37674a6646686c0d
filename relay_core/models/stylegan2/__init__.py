"""StyleGAN2 (Karras 2020, arXiv 1912.04958) with a site code as class label, and SPADE (Park 2019, arXiv 1903.07291)."""

from relay_core.models.stylegan2.discriminator import Discriminator
from relay_core.models.stylegan2.generator import Generator, Noise
from relay_core.models.stylegan2.spade import Spade

__all__ = ["Discriminator", "Generator", "Noise", "Spade"]
