"""Memory of the sites before: who they were, their colours, and pictures like theirs from the generators handed over."""

from relay_core.replay.bank import SiteBank, Slot
from relay_core.replay.colours import Styles, colours, recoloured
from relay_core.replay.sampler import LabelCodec, Replay, Replayer
from relay_core.replay.sizes import partly_reduced, resize_images, resize_labels

__all__ = [
    "LabelCodec",
    "Replay",
    "Replayer",
    "SiteBank",
    "Slot",
    "Styles",
    "colours",
    "partly_reduced",
    "recoloured",
    "resize_images",
    "resize_labels",
]
