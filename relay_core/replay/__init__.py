"""Memory of the sites before: who they were, their colours, and pictures like theirs from the generators handed over."""

from relay_core.replay.bank import SiteBank, Slot
from relay_core.replay.colours import Styles, colours, recoloured
from relay_core.replay.sampler import LabelCodec, Replay, Replayer
from relay_core.replay.sizes import resize_images, resize_labels

__all__ = [
    "LabelCodec",
    "Replay",
    "Replayer",
    "SiteBank",
    "Slot",
    "Styles",
    "colours",
    "recoloured",
    "resize_images",
    "resize_labels",
]
