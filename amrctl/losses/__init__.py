"""Matching, the general loss terms (slot `losses`), and the one place that weights and sums them."""
