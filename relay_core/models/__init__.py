"""The networks: StyleGAN2 with SPADE, and the solvers."""

from relay_core.models import published
from relay_core.models.factory import HALF, make_gan, make_solver

__all__ = [
    "HALF",
    "make_gan",
    "make_solver",
    "published",
]
