"""Files of rows: whole or absent, damaged ones told, and a cache that stays within its size."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from amrctl.archive.shards import Cache, Shards
from amrctl.errors import ArchiveError

ROWS = np.arange(12, dtype=np.float16).reshape(4, 3)


def test_what_was_put_is_got(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "s")
    assert not shards.has("a")
    with pytest.raises(ArchiveError, match="missing"):
        shards.get("a")
    shards.put("a", ROWS)
    np.testing.assert_array_equal(shards.get("a"), ROWS)
    assert shards.get("a").dtype == np.float16
    shards.put("b", ROWS)
    (tmp_path / "s/.b.1.tmp").touch()  # what a kill leaves
    shards.keep(["b"])
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["b.npy"]


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"not an array"])
def test_damaged_rows_are_removed_and_told(tmp_path: Path, content: bytes) -> None:
    shards = Shards(tmp_path)
    shards.path("a").write_bytes(content)
    with pytest.raises(ArchiveError, match="damaged and was removed"):
        shards.get("a")
    assert not shards.has("a")


def test_objects_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ArchiveError, match="damaged"):
        Shards(tmp_path).get("a")


def test_the_cache_forgets_what_was_used_longest_ago(tmp_path: Path) -> None:
    one = ROWS.nbytes + 128  # with the header of the file
    cache = Cache(tmp_path, 2 * one)
    for i, name in enumerate("ab"):
        assert cache.put("k", name, ROWS)
        os.utime(tmp_path / f"k/{name}.npy", ns=(i, i))
    assert cache.get("k", "a") is not None  # used again
    assert cache.put("l", "c", ROWS)
    assert cache.get("k", "b") is None
    np.testing.assert_array_equal(cache.get("l", "c"), ROWS)
    assert cache.get("k", "a") is not None
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.npy")) <= cache.limit
    assert not cache.put("k", "large", np.zeros((1000, 3), np.float32))


def test_a_cache_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file", 10**6)
    assert not cache.put("k", "a", ROWS)
    assert cache.get("k", "a") is None
