"""Slot `score`: how a query's outputs become the number that ranks its window, in 0..1.

A component is a class built from its config and called with `(output, batch)`; it returns [B, N] float32.
"""
