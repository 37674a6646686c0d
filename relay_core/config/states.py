"""Define what a strategy's state may hold at a hand-off: schemas that an import is checked against. Loads no torch."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

LARGEST = 1 << 53
"""Below it every program reads the same number."""
Count = Annotated[int, Field(ge=0, lt=LARGEST)]
Number = Annotated[float, Field(gt=-LARGEST, lt=LARGEST)]


class HandedOverState(BaseModel):
    """What every such schema derives from: nothing but the fields that it names, of exactly their types.

    A bundle carries the state in the clear, in its manifest: a schema holds counts and settings, never images or names of
    patients.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class NoState(HandedOverState):
    """The networks are all that the next site needs."""


class SiteCountState(HandedOverState):
    """The number of sites that were trained at."""

    sites: Count
    """As many as the hand-off's history has."""


class SlotState(HandedOverState):
    """A site in a relay's bank."""

    id: Count
    """Its place in the site code."""
    frequency: Annotated[int, Field(ge=1, lt=1 << 40)]
    """Its training images."""
    classes: list[Count] = Field(default_factory=list)
    """How many of them are of each class, for classification; a segmentation's bank does not have the key."""
    drawn: bool = True
    """Whether the generators have learned to draw it; a bank has the key where they have not."""
    merged: Annotated[list[Count], Field(max_length=256)] = Field(default_factory=list)
    """Groups of classes that its labels do not tell apart; a bank has the key where there are any."""

    @model_validator(mode="after")
    def _every_image_has_a_class(self) -> Self:
        if "classes" in self.model_fields_set and sum(self.classes) != self.frequency:
            raise ValueError("classes must add up to frequency")
        return self


class AugmentationState(HandedOverState):
    """Adaptive augmentation of a discriminator's inputs."""

    p: Annotated[float, Field(ge=0, le=1)]
    """Probability of each operation."""
    sign_sum: Number
    """Sum of the signs of its answers to real images since p was last changed."""
    count: Count
    """How many answers that were."""


class AdversarialPairState(HandedOverState):
    """One generator and its discriminator."""

    ada: AugmentationState
    """How strongly the discriminator's inputs are augmented."""
    path_mean: Number
    """Running mean of the generator's path lengths."""


class RelayState(HandedOverState):
    """Which sites a relay's generators remember, and where its adversarial training stands."""

    previous: dict[str, SlotState]
    """Sites before the last one."""
    current: dict[str, SlotState]
    """The last site."""
    stage: Annotated[int, Field(ge=1, le=3)]
    """Stage of training that it ended in."""
    img: AdversarialPairState
    """The networks of images."""
    label: AdversarialPairState | None = None
    """The networks of label maps; a classification's state does not have the key."""
    frozen: list[str] = Field(max_length=0)
    """Frozen copies that the tensors fill: none is handed over."""

    @model_validator(mode="after")
    def _slots_differ(self) -> Self:
        for bank in (self.previous, self.current):
            if len({slot.id for slot in bank.values()}) != len(bank):
                raise ValueError("two sites of a bank have the same slot")
        if self.label is None and "label" in self.model_fields_set:
            raise ValueError("label is left out where there are no label maps")
        return self
