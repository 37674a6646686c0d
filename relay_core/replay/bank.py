"""The bank of sites: a slot of the site code and a number of images for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from relay_core import distributed
from relay_core.errors import RelayError


@dataclass
class Slot:
    """A site's place in the site code, and the number of its training images; of each class where images have one."""

    id: int
    frequency: int
    classes: list[int] | None = None
    drawn: bool = True
    """Whether the generators have learned to draw the site."""
    merged: list[int] = field(default_factory=list)
    """Groups of classes that the site's labels do not tell apart, by number."""

    def to_json(self) -> dict[str, Any]:
        """The content as a checkpoint's JSON holds it."""
        plain: dict[str, Any] = {"id": self.id, "frequency": self.frequency}
        if self.classes is not None:
            plain["classes"] = self.classes
        if not self.drawn:
            plain["drawn"] = False
        if self.merged:
            plain["merged"] = self.merged
        return plain


@dataclass
class SiteBank:
    """Sites by name, each with its slot of the site code."""

    slots: dict[str, Slot] = field(default_factory=dict)

    def joined(self, other: SiteBank) -> SiteBank:
        """Join both banks into a new one; where both know a name, `other`'s entry holds."""
        return SiteBank({**self.slots, **other.slots})

    @property
    def drawn(self) -> SiteBank:
        """The sites that the generators have learned to draw."""
        return SiteBank({name: slot for name, slot in self.slots.items() if slot.drawn})

    def enter(
        self, name: str, images: int, taken: SiteBank, c_dim: int, classes: Sequence[int] | None = None, drawn: bool = True
    ) -> None:
        """Add a site; a name that `taken` knows keeps its slot. `drawn`: the generators will learn it.

        Raises:
            RelayError: all `c_dim` slots are taken.
        """
        earlier = taken.slots.get(name)
        used = {slot.id for slot in (*self.slots.values(), *taken.slots.values())}
        free = next((i for i in range(c_dim) if i not in used), None)
        if earlier is None and free is None:
            raise RelayError(f"no slot left for site {name!r}: this relay's networks hold {c_dim} sites (c_img_dim)")
        counted = None if classes is None else list(classes)
        drawn = drawn or (earlier is not None and earlier.drawn)
        self.slots[name] = Slot(earlier.id if earlier else int(free or 0), images, counted, drawn)

    @property
    def images(self) -> int:
        """Sum of the sites' images: the bank's weight in a merge."""
        return sum(slot.frequency for slot in self.slots.values())

    def draw(self, n: int, mode: Literal["uniform", "frequency"], device: torch.device | str = "cpu") -> Tensor:
        """Slot ids (n,) of randomly drawn sites."""
        slots = list(self.slots.values())
        weights = torch.tensor([s.frequency if mode == "frequency" else 1 for s in slots], dtype=torch.float64)
        edges = (weights.cumsum(0) / weights.sum()).to(torch.float32).to(device)
        index = torch.searchsorted(edges, distributed.rand(n, device=device), right=True).clamp(max=len(slots) - 1)
        return torch.tensor([s.id for s in slots], device=device)[index]

    def draw_classes(self, ids: Tensor) -> Tensor:
        """A class (n,) for each slot id (n,), in proportion to how many images of it the slot's site has."""
        known = {slot.id: slot.classes for slot in self.slots.values() if slot.classes}
        rows = torch.tensor([known[i] for i in ids.tolist()], dtype=torch.float64)
        edges = (rows.cumsum(1) / rows.sum(1, keepdim=True)).to(torch.float32)
        drawn = distributed.rand(len(ids), device="cpu")[:, None]
        return torch.searchsorted(edges, drawn, right=True)[:, 0].clamp(max=rows.shape[1] - 1).to(ids.device)

    def to_json(self) -> dict[str, Any]:
        """The content as a checkpoint's JSON holds it."""
        return {name: slot.to_json() for name, slot in self.slots.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SiteBank:
        """Make a bank from what `to_json` returned."""
        slots = {
            n: Slot(int(s["id"]), int(s["frequency"]), s.get("classes"), bool(s.get("drawn", True)), s.get("merged", []))
            for n, s in data.items()
        }
        return cls(slots)


def one_hot(ids: Tensor, c_dim: int) -> Tensor:
    """Site codes: ids (N,) -> (N, c_dim) float32."""
    return F.one_hot(ids, c_dim).to(torch.float32)
