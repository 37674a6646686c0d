"""The networks: StyleGAN2 with SPADE, and the solvers."""

from relay_core.models import published
from relay_core.models.factory import HALF, make_gan, make_solver
from relay_core.models.flips import Flipped

__all__ = [
    "HALF",
    "Flipped",
    "make_gan",
    "make_solver",
    "published",
]
