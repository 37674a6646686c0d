"""Relay learning: multi-site medical deep learning without a network between the sites."""

__version__ = "0.1.0"
