"""The command `relay`: what it offers, reads and prints."""
