"""A trained solver as an ONNX model: `onnx` makes and proves one (torch), `session` runs one (ONNX Runtime, no torch)."""
