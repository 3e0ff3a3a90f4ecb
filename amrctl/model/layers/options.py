"""Options that every attention layer of a detector takes, wherever it stands."""

from __future__ import annotations

from pydantic import Field

from amrctl.registry import ComponentConfig


class LayerConfig(ComponentConfig):
    """Base of the options of components that stack attention layers."""

    heads: int = Field(8, ge=1)
    inner: int | None = Field(None, ge=1, description="feed-forward width; default 4 x hidden")
    dropout: float = Field(0.1, ge=0, lt=1)
    drop_path: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="chance that a pair loses a layer's whole branch, in place of dropout of its elements",
    )

    def inner_width(self, width: int) -> int:
        """The feed-forward width at hidden width `width`."""
        return self.inner or 4 * width
