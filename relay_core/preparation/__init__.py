"""Volumes and their labels become the slices of a data set. Imports no torch, and nothing heavy before it is used.

`run.prepare` does the work, `slicing` and `selection` hold its options, `cli` the commands.
"""
