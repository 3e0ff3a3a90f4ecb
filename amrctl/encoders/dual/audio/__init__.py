"""Audio encoders of the dual encoder: segments of sound to one row each."""
