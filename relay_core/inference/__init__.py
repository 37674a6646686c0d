"""One path from a file to a mask: files, data sets and studies through a model, be it of torch or ONNX Runtime."""
