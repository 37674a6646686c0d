"""A whole site, and several, on one machine."""
