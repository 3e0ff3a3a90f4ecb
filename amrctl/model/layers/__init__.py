"""Bricks that several components share; nothing here registers itself."""
