"""Searchable archives: recordings as vectors, kept up to date, and the nearest to a sentence found."""
