"""Models in memory, and the wire format in which programs call them."""
