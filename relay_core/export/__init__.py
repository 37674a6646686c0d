"""Export a trained solver as an ONNX model that is proved to give what the solver gives."""

from relay_core.export import onnx
from relay_core.export.checkpoint import export_checkpoint

__all__ = [
    "export_checkpoint",
    "onnx",
]
