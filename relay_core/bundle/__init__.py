"""The hand-off: a signed file that carries a trained model from one hospital to the next. FORMAT.md specifies it."""
