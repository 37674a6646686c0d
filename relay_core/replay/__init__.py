"""Memory of the sites before: who they were, and pictures like theirs from the generators that were handed over."""

from relay_core.replay.bank import SiteBank, Slot
from relay_core.replay.sampler import LabelCodec, Replay, Replayer

__all__ = ["LabelCodec", "Replay", "Replayer", "SiteBank", "Slot"]
