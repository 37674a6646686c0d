"""Solvers, the networks that are used in the clinic: an image goes in, class logits come out."""

from relay_core.models.solvers.classifier import Classifier
from relay_core.models.solvers.resnet import ResNetEncoder
from relay_core.models.solvers.unet import UNet

__all__ = ["Classifier", "ResNetEncoder", "UNet"]
