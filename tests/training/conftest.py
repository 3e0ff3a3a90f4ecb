"""One tiny data set for all tests of this folder."""

from __future__ import annotations

import pytest

from tests.training.tiny import Tiny, make


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Manifests, features and a recipe that trains in a blink."""
    return make(tmp_path_factory.mktemp("tiny"))
