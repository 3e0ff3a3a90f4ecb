"""Text encoders of the dual encoder: a sentence to rows of its tokens."""
