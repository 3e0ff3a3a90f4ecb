"""Loss terms of the dual encoder."""
