"""Strategies compared on equal terms, and generators scored against real images."""
