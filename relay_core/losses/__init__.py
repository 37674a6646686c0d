"""Losses by name: functions of class logits and class ids."""

from relay_core.losses.segmentation import LOSSES, Loss, distillation, make_loss, soft_dice

__all__ = ["LOSSES", "Loss", "distillation", "make_loss", "soft_dice"]
