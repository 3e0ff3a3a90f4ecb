"""amrctl: language-based audio moment retrieval, from sound files to challenge files."""

__version__ = "0.1.0"
