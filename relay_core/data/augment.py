"""Augment the batches of images and labels that the solver learns from, on the training device.

There are two kinds. "published" is what the published relay does to its replayed images: each of three groups of operations
(colour, blur, geometry) is used on a part of the samples, one to three operations at a time. "standard" leaves out what
harms medical images: no inversion, turns of up to 30 degrees instead of quarter turns, reflected borders instead of
black corners.

Everything random about a batch is one call of `relay_core.distributed.rand` on the CPU, so that processes agree,
nothing waits for a GPU, and operations that no sample uses are skipped. Each operation runs on the samples that use it.

Shapes: images (N, C, H, W) in [-1, 1]; label ids (N, H, W), or (N,) for classification. The operations work in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from relay_core import distributed
from relay_core.data import augment_ops as ops

Kind = Literal["none", "published", "standard"]

COLOUR = ("invert", "hue_saturation", "brightness", "gamma")
BLUR = ("motion_blur", "gaussian_blur", "sharpen", "noise", "jpeg")
GEOMETRY = ("flip_x", "flip_y", "rotate", "scale", "shift", "shear")
MAGNITUDES = (
    *("invert", "hue", "saturation", "brightness", "gamma"),
    *("length", "angle", "sigma", "sharpness", "noise", "seed", "quality"),
    *("rotate", "scale_x", "scale_y", "shift_x", "shift_y", "shear"),
)


class _Plan:
    """The random choices for a batch: which operations each sample uses, and how strongly."""

    def __init__(self, n: int, kind: Kind) -> None:
        groups = (COLOUR if kind == "published" else COLOUR[1:], BLUR, GEOMETRY)
        columns = sum(2 + len(group) for group in groups) + len(MAGNITUDES)
        numbers = iter(distributed.rand(n, columns).unbind(1))
        self.uses: dict[str, Tensor] = {}
        for group, probability, most_operations in zip(groups, (0.5, 0.3, 0.5), (2, 3, 3), strict=True):
            group_used = next(numbers) < probability
            operation_count = 1 + (next(numbers) * most_operations).floor()
            rank = torch.stack([next(numbers) for _ in group], dim=1).argsort(dim=1).argsort(dim=1)
            chosen = (rank < operation_count[:, None]) & group_used[:, None]
            self.uses.update(zip(group, chosen.unbind(1), strict=True))
        self.magnitude = dict(zip(MAGNITUDES, numbers, strict=True))

    def any_of(self, names: tuple[str, ...]) -> Tensor:
        """Return which samples use at least one of the operations, bool (N,)."""
        return torch.stack([self.uses[name] for name in names if name in self.uses]).any(dim=0)

    def between(self, name: str, low: float, high: float) -> Tensor:
        """Return the magnitude called `name`, uniform in low..high, shape (N,)."""
        return low + (high - low) * self.magnitude[name]


class SolverAugment:
    """The random augmentation of the solver's batches; every sample is augmented differently.

    Args:
        kind: "none" leaves batches as they are; the module describes "published" and "standard".

    Raises:
        ValueError: if the kind is none of these.
    """

    def __init__(self, kind: Kind) -> None:
        if kind not in get_args(Kind):
            raise ValueError(f"unknown augmentation {kind!r}: one of {', '.join(get_args(Kind))}")
        self.kind = kind

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Augment a batch; the input tensors are not changed.

        Args:
            images: (N, C, H, W) in [-1, 1].
            labels: ids (N, H, W), moved along with the images, or (N,), left alone. With "published", pixels that come
                in at the border get id 0 (background).

        Returns:
            The images, clipped to [-1, 1], and the labels, of the same shapes and types.
        """
        if self.kind == "none":
            return images, labels
        plan = _Plan(len(images), self.kind)
        touched = plan.any_of((*COLOUR, *BLUR, *GEOMETRY)).nonzero()[:, 0]
        if len(touched) == 0:
            return images, labels
        plan.uses = {name: used[touched] for name, used in plan.uses.items()}
        plan.magnitude = {name: value[touched] for name, value in plan.magnitude.items()}
        index = touched.to(images.device, non_blocking=True)
        x = _blur(_change_colours((images[index] + 1) / 2, plan), plan)
        moved = plan.any_of(GEOMETRY).nonzero()[:, 0]
        if len(moved):
            x, labels = self._move(x, labels, plan, moved, touched[moved])
        return images.index_copy(0, index, (x * 2 - 1).clamp(-1, 1)), labels

    def _move(self, x: Tensor, labels: Tensor, plan: _Plan, moved: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the geometric operations to the samples `moved` of x, which are the samples `rows` of the labels."""
        theta = _affine_matrices(plan, x.shape[2], x.shape[3], right_angles=self.kind == "published")[moved]
        index, rows = moved.to(x.device, non_blocking=True), rows.to(x.device, non_blocking=True)
        grid = F.affine_grid(theta.to(x), [len(moved), 1, *x.shape[2:]], align_corners=False)
        border = "zeros" if self.kind == "published" else "reflection"
        x = x.index_copy_(0, index, F.grid_sample(x[index], grid, "bilinear", border, align_corners=False))
        if labels.ndim > 1:
            maps = labels[rows].to(x.dtype)[:, None]
            maps = F.grid_sample(maps, grid, "nearest", border, align_corners=False)[:, 0]
            labels = labels.index_copy(0, rows, maps.round().to(labels.dtype))
        return x, labels


def _apply(x: Tensor, used: Tensor, operation: Callable[..., Tensor], *magnitudes: Tensor) -> Tensor:
    """Run an operation in place on the samples that use it; `used` and `magnitudes` are (n,), on the CPU."""
    rows = used.nonzero()[:, 0]
    if len(rows) == 0:
        return x
    values = torch.stack([m[rows] for m in magnitudes]).to(x.device, non_blocking=True)
    index = rows.to(x.device, non_blocking=True)
    return x.index_copy_(0, index, operation(x[index], *values))


def _change_colours(x: Tensor, plan: _Plan) -> Tensor:
    if "invert" in plan.uses:  # a sample that chose it is inverted half of the time
        x = _apply(x, plan.uses["invert"] & (plan.magnitude["invert"] < 0.5), ops.invert, plan.magnitude["invert"])
    if x.shape[1] == 3:
        factors = plan.between("hue", 0.5, 1.5), plan.between("saturation", 0.5, 1.5)
        x = _apply(x, plan.uses["hue_saturation"], ops.hue_saturation, *factors)
    x = _apply(x, plan.uses["brightness"], ops.brightness, plan.between("brightness", 0.7, 1.3))
    return _apply(x, plan.uses["gamma"], ops.gamma, plan.between("gamma", 0.7, 1.7))


def _blur(x: Tensor, plan: _Plan) -> Tensor:
    motion = plan.between("length", 3, 4), plan.between("angle", 0, torch.pi)
    x = _apply(x, plan.uses["motion_blur"], ops.motion_blur, *motion)
    x = _apply(x, plan.uses["gaussian_blur"], ops.gaussian_blur, plan.between("sigma", 0, 0.5))
    x = _apply(x, plan.uses["sharpen"], ops.sharpen, plan.between("sharpness", 0, 1))
    x = _apply(x, plan.uses["noise"], ops.noise, plan.between("noise", 0.01, 0.05), plan.magnitude["seed"])
    return _apply(x, plan.uses["jpeg"], ops.jpeg, plan.between("quality", 30, 90))


def _affine_matrices(plan: _Plan, height: int, width: int, right_angles: bool) -> Tensor:
    """Return matrices (n, 2, 3) for `affine_grid`, from output to input coordinates in -1..1; unused ones are the identity.

    Flip, turn, scale and shear act about the centre in pixels, so that turning an oblong image does not distort it.
    """
    uses = {name: plan.uses[name] for name in GEOMETRY}
    ones = torch.ones(len(uses["rotate"]))
    turn = plan.between("rotate", -1, 1)
    angle = (turn.sign() * 90 if right_angles else turn * 30).where(uses["rotate"], 0.0).deg2rad()
    sin, cos = angle.sin(), angle.cos()
    scale_x = plan.between("scale_x", 0.7, 1.3).where(uses["scale"], 1.0) * (1 - 2 * uses["flip_x"].float())
    scale_y = plan.between("scale_y", 0.7, 1.3).where(uses["scale"], 1.0) * (1 - 2 * uses["flip_y"].float())
    slope = plan.between("shear", -15, 15).where(uses["shear"], 0.0).deg2rad().tan()
    shift = torch.stack([plan.between("shift_x", -0.4, 0.4), plan.between("shift_y", -0.4, 0.4)], dim=1)
    shift = shift.where(uses["shift"][:, None], 0.0)  # up to 20 % of the side; affine_grid counts in half sides

    turned = torch.stack([cos, -sin, sin, cos], dim=1).unflatten(1, (2, 2))
    sheared = torch.stack([ones, slope, 0 * ones, ones], dim=1).unflatten(1, (2, 2))
    linear = sheared @ turned / torch.stack([scale_x, scale_y], dim=1)[:, None, :]
    half_sides = torch.tensor([width / 2, height / 2])
    linear = linear * half_sides[None, None, :] / half_sides[None, :, None]
    return torch.cat([linear, -(linear @ shift[:, :, None])], dim=2)
