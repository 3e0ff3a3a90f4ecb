"""Slot `score`: how a query's outputs become the number that ranks its window, in 0..1."""
