"""Soups against a direct mean, and what they refuse."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from amrctl.ensemble.soup import make_soup
from amrctl.errors import CheckpointError, OutputError
from amrctl.model.checkpoint import KEY, read_metadata
from amrctl.progress import Reporter
from amrctl.run_folder import write_seeds


class Notes(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def save(
    path: Path, tensors: dict[str, Tensor], *, ancestry: tuple[str, ...] = ("root",), **changes: Any
) -> Path:
    meta = {
        "format": 1,
        "recipe": {"name": "a", "stage": "finetune", "train": {"epochs": 1}},
        "features": {"audio": [{"name": "x", "dim": 4}], "text": [{"name": "x", "dim": 4}]},
        "epoch": 3,
        "metrics": {"R1@0.7": 12.5},
        "provenance": {
            "ancestry": list(ancestry),
            "trained_on": [{"path": "train.jsonl", "sha256": "t"}, {"path": path.name, "sha256": path.name}],
            "parameters": {"trainable": 7, "total": 7},
        },
        "rounding": 1,
        **changes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={KEY: json.dumps(meta)})
    return path


def some(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w": (5, 3), "scalar": (), "empty": (0, 4)}
    drawn = {key: torch.randn(shape, generator=generator).to(dtype) for key, shape in shapes.items()}
    return {**drawn, "steps": torch.tensor([7, 9])}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_mean_is_computed_in_float64(tmp_path: Path, dtype: torch.dtype) -> None:
    parts = [some(seed, dtype) for seed in range(5)]
    paths = [save(tmp_path / f"{i}.safetensors", part) for i, part in enumerate(parts)]
    shares = [0.5, 0.125, 0.25, 0.1, 0.025]
    for weights in (None, shares):
        soup = make_soup(paths, tmp_path / "soup.safetensors", weights=weights, overwrite=True)
        made = load_file(soup.path)
        for key in ("w", "scalar", "empty"):
            stack = np.stack([part[key].double().numpy() for part in parts])
            mean = torch.as_tensor(np.tensordot(weights or [0.2] * 5, stack, axes=1)).to(dtype)
            tolerance = torch.finfo(dtype).eps  # one unit in the last place, where a tie rounds apart
            torch.testing.assert_close(made[key], mean, rtol=tolerance, atol=1e-15)
            assert made[key].shape == parts[0][key].shape
        assert torch.equal(made["steps"], torch.tensor([7, 9]))
        flat = [torch.cat([p[k].double().reshape(-1) for k in ("w", "scalar")]) for p in [*parts, made]]
        # the distances are of the soup before it is rounded to the checkpoint's dtype
        exact = sum(share * part for share, part in zip(weights or [0.2] * 5, flat[:5], strict=True))
        assert isinstance(exact, Tensor)
        for ingredient, part in zip(soup.ingredients, flat[:5], strict=True):
            assert ingredient.distance == pytest.approx(float((part - exact).norm() / exact.norm()))
        apart = {(i, j): float((flat[i] - flat[j]).norm()) for i in range(5) for j in range(i)}
        assert soup.farthest[2] == pytest.approx(max(apart.values()) / float(exact.norm()))
        assert {soup.farthest[:2], soup.farthest[1::-1]} & {max(apart, key=lambda pair: apart[pair])}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(1, 9), min_size=2, max_size=6))
def test_soup_of_equals_is_equal_to_the_bit(seed: int, parts: list[int]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        tensors = some(seed)
        paths = [save(Path(folder) / f"{i}.safetensors", tensors) for i in range(len(parts))]
        out = Path(folder) / "soup.safetensors"
        soup = make_soup(paths, out, weights=[part / sum(parts) for part in parts])
        made = load_file(out)
        assert all(torch.equal(made[key], tensors[key]) for key in tensors)
        assert soup.farthest[2] == 0
        assert {ingredient.distance for ingredient in soup.ingredients} == {0.0}


def test_order_does_not_matter(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{i}.safetensors", some(i)) for i in range(4)]
    weights = [0.4, 0.3, 0.2, 0.1]
    ahead = load_file(make_soup(paths, tmp_path / "a.safetensors", weights=weights).path)
    back = load_file(make_soup(paths[::-1], tmp_path / "b.safetensors", weights=weights[::-1]).path)
    for key in ahead:
        torch.testing.assert_close(ahead[key], back[key], rtol=1e-6, atol=1e-7)


def test_metadata_and_notes(tmp_path: Path) -> None:
    a = save(tmp_path / "a.safetensors", some(0))
    b = save(tmp_path / "b.safetensors", some(1))
    notes = Notes()
    soup = make_soup([a, b], tmp_path / "ab.safetensors", weights=[0.8, 0.2], report=notes)
    assert notes.notes == []
    meta = read_metadata(soup.path)
    origin = meta["provenance"]
    assert [(p["path"], p["weight"]) for p in origin["parents"]] == [(str(a), 0.8), (str(b), 0.2)]
    assert [entry["sha256"] for entry in origin["trained_on"]] == ["t", "a.safetensors", "b.safetensors"]
    assert meta["metrics"] == {}
    assert meta["rounding"] == 1
    # a soup and its own ingredient have a common ancestor
    make_soup([soup.path, a], tmp_path / "c.safetensors", report=notes)
    assert notes.notes == []
    stranger = save(
        tmp_path / "d.safetensors",
        some(1),
        ancestry=("other",),
        recipe={"name": "a", "stage": "finetune", "train": {"epochs": 2}},
    )
    make_soup([a, stranger, b], tmp_path / "e.safetensors", weights=[0.5, 0.5, 0], report=notes)
    assert "no known common ancestor" in notes.notes[1]
    assert notes.notes[0] == f"{b} has weight 0 and is left out"
    assert notes.notes[2] == f"{a} and {stranger} differ in their recipes: train"


def test_unlike_checkpoints_are_refused_by_key_and_file(tmp_path: Path) -> None:
    base = some(0)
    a = save(tmp_path / "a.safetensors", base)
    nan = base["w"].clone()
    nan[0, 0] = math.nan
    cases: dict[str, tuple[dict[str, Tensor], str]] = {
        "less": ({k: v for k, v in base.items() if k != "w"}, "less.safetensors has no 'w', which .*a.safe"),
        "more": ({**base, "extra": torch.zeros(2)}, "a.safetensors has no 'extra', which .*more.safetensors"),
        "shape": (
            {**base, "w": torch.zeros(3, 5)},
            r"'w' is \(5, 3\) in .*a.safe.* and \(3, 5\) in .*shape.safe",
        ),
        "kind": (
            {**base, "steps": torch.tensor([7.0, 9.0])},
            "'steps' is I64 in .*a.safe.* and F32 in .*kind",
        ),
        "count": ({**base, "steps": torch.tensor([7, 8])}, "'steps' holds whole numbers that differ .*count"),
        "nan": ({**base, "w": nan}, "nan.safetensors: 'w' holds a number that is not finite"),
    }
    for name, (tensors, message) in cases.items():
        other = save(tmp_path / f"{name}.safetensors", tensors)
        with pytest.raises(CheckpointError, match=message):
            make_soup([a, other], tmp_path / "soup.safetensors")
        assert not list(tmp_path.glob("*soup*"))
        assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.4], "sum to 0.9; they must sum to 1"),
        ([1.5, -0.5], "-0.5 is not a share"),
        ([math.nan, 1], "nan is not a share"),
        ([1.0], "1 numbers for 2 checkpoints"),
    ],
)
def test_weights_are_checked(tmp_path: Path, weights: list[float], message: str) -> None:
    paths = [save(tmp_path / f"{i}.safetensors", some(i)) for i in range(2)]
    with pytest.raises(CheckpointError, match=message):
        make_soup(paths, tmp_path / "soup.safetensors", weights=weights)
    with pytest.raises(CheckpointError, match="at least two checkpoints, this is 1"):
        make_soup(paths[:1], tmp_path / "soup.safetensors")
    paths[0].with_name("there").write_text("x")
    with pytest.raises(OutputError, match="exists"):
        make_soup(paths, tmp_path / "there")


def test_run_folders_and_incomplete_seeds(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        save(tmp_path / "runs" / f"seed-{seed}" / "best.safetensors", some(seed))
    write_seeds(tmp_path / "runs", [0, 1, 2], [0, 1, 2], {})
    soup = make_soup([tmp_path / "runs"], tmp_path / "all.safetensors")
    direct = [tmp_path / "runs" / f"seed-{seed}" for seed in (0, 1, 2)]
    same = make_soup(direct, tmp_path / "same.safetensors")
    assert [i.path for i in soup.ingredients] == [i.path for i in same.ingredients]
    assert all(torch.equal(v, load_file(same.path)[k]) for k, v in load_file(soup.path).items())

    write_seeds(tmp_path / "runs", [0, 1, 2, 3], [0, 1], {2: "DivergedError: ..."})
    with pytest.raises(CheckpointError, match=r"2 of 4 seeds failed or are unfinished \(2, 3\)"):
        make_soup([tmp_path / "runs"], tmp_path / "part.safetensors")
    part = make_soup([tmp_path / "runs"], tmp_path / "part.safetensors", allow_incomplete=True)
    assert len(part.ingredients) == 2
    with pytest.raises(CheckpointError, match=r"holds no best\.safetensors"):
        make_soup([tmp_path, tmp_path / "runs"], tmp_path / "x.safetensors", allow_incomplete=True)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see the peak memory")
def test_memory_holds_one_tensor_per_input(tmp_path: Path) -> None:
    """8 checkpoints of 40 tensors of 1 MB: 320 MB of weights in well under 100 MB."""
    paths = []
    for i in range(8):
        tensors = {f"t{k}": torch.full((512, 512), float(i + k)) for k in range(40)}
        paths.append(str(save(tmp_path / f"{i}.safetensors", tensors)))
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from amrctl.ensemble.soup import make_soup\n"
        "def kept(key):\n"
        "    lines = Path('/proc/self/status').read_text().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024\n"
        "before = kept('VmRSS')\n"
        "make_soup(sys.argv[2:], sys.argv[1])\n"
        "print(kept('VmHWM') - before)\n"
    )
    out = tmp_path / "soup.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out), *paths], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 70  # 8 x 2 MB in float64, the mean, the mapped tensor, the allocator's slack
    assert float(load_file(out)["t7"][0, 0]) == pytest.approx(3.5 + 7)
