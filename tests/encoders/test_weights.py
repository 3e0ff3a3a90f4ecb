"""Reading official weights without running anything in them, and placing each tensor by its name."""

from __future__ import annotations

import argparse
import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from amrctl.encoders.weights import place, read_tensors, sha256_of
from amrctl.errors import FeatureError


class Net(nn.Module):
    """Three projections that an official file stores as one, a buffer, and one that it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(2, 3) for _ in range(3))
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("table", torch.zeros(4))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)


TABLE: dict[str, str | tuple[str, ...]] = {
    "attn.qkv.weight": ("q.weight", "k.weight", "v.weight"),
    "attn.qkv.bias": ("q.bias", "k.bias", "v.bias"),
    "bn.weight": "norm.weight",
    "bn.bias": "norm.bias",
    "bn.running_mean": "norm.running_mean",
    "bn.running_var": "norm.running_var",
    "bn.num_batches_tracked": "norm.num_batches_tracked",
}


def official() -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {"attn.qkv.weight": (9, 2), "attn.qkv.bias": (9,), "bn.num_batches_tracked": ()}
    return {key: torch.rand(shapes.get(key, (3,))) * 9 for key in TABLE}  # integers come as floats


def filled(tensors: dict[str, Tensor], **more: Any) -> Net:
    net = Net()
    place(net, tensors, TABLE, where="x.pth", computed=["table"], **more)
    return net


def test_every_tensor_is_copied_to_its_place() -> None:
    tensors = official()
    net = filled(tensors)
    for i, layer in enumerate((net.q, net.k, net.v)):
        assert torch.equal(layer.weight, tensors["attn.qkv.weight"][3 * i : 3 * i + 3])
        assert torch.equal(layer.bias, tensors["attn.qkv.bias"][3 * i : 3 * i + 3])
    assert net.norm.num_batches_tracked is not None
    assert net.norm.num_batches_tracked.dtype == torch.int64
    assert net.norm.num_batches_tracked.item() == int(tensors["bn.num_batches_tracked"])
    tensors["attn.qkv.weight"].zero_()
    assert net.q.weight.any()  # a copy, not the file's tensor


@pytest.mark.parametrize("key", sorted(TABLE))
def test_a_renamed_key_is_named_with_both_names(key: str) -> None:
    tensors = official()
    tensors[f"{key}.old"] = tensors.pop(key)
    with pytest.raises(FeatureError) as caught:
        filled(tensors)
    said = f"x.pth: not the weights that are expected; missing: '{key}'; unknown: '{key}.old'"
    assert str(caught.value) == said
    tensors[key] = tensors[f"{key}.old"]
    filled(tensors, ignore=lambda name: name.endswith(".old"))


def test_shapes_are_told_and_nothing_is_copied() -> None:
    tensors = official()
    tensors["attn.qkv.weight"] = torch.ones(6, 2)
    tensors["bn.bias"] = torch.ones(1)
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(FeatureError) as caught:
        place(net, tensors, TABLE, where="x.pth", computed=["table"])
    assert "of another shape: 'attn.qkv.weight' is (6, 2), not (9, 2), 'bn.bias' is (1,), not (3,)" in str(
        caught.value
    )
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    many = {f"extra.{i}": torch.ones(1) for i in range(5)} | official()
    with pytest.raises(FeatureError, match=r"unknown: 'extra\.0', 'extra\.1', 'extra\.2' and 2 more$"):
        filled(many)


def test_a_table_with_a_hole_is_a_mistake_of_the_program() -> None:
    short = {key: name for key, name in TABLE.items() if key != "bn.bias"}
    with pytest.raises(ValueError, match=r"not filled: \['table', 'norm\.bias'\]"):
        place(Net(), official(), short, where="x.pth")
    with pytest.raises(ValueError, match=r"not in the module: \['nowhere'\]"):
        place(Net(), official(), {**TABLE, "a": "nowhere"}, where="x.pth", computed=["table"])


class Harmful:
    """A pickle that would make a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_reading_files_of_all_kinds(tmp_path: Path) -> None:
    tensors = official()
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "b.pt")
    torch.save({"model": tensors, "args": argparse.Namespace(lr=1e-3), "epoch": 3}, tmp_path / "c.pth")
    torch.save({"state_dict": {**tensors, "step": 7}}, tmp_path / "d.ckpt")
    torch.save(tensors, tmp_path / "e.pt", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "b.pt", "c.pth", "d.ckpt", "e.pt"):
        found = read_tensors(tmp_path / name, "state_dict", "model")
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)
    assert sha256_of(tmp_path / "b.pt") == hashlib.sha256((tmp_path / "b.pt").read_bytes()).hexdigest()


def test_unreadable_and_harmful_files_are_told(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    files: dict[str, Any] = {
        "harm.pt": {"model": torch.ones(1), "x": Harmful(mark)},
        "numpy.pt": {"model": {"w": torch.ones(1)}, "best": np.float64(1)},
        "list.pt": [torch.ones(1)],
        "empty.pt": {"epoch": 3},
    }
    for name, held in files.items():
        torch.save(held, tmp_path / name)
    (tmp_path / "words.pt").write_text("no weights")
    (tmp_path / "words.safetensors").write_text("no weights at all")
    (tmp_path / "pickled.pt").write_bytes(pickle.dumps({"w": 1}))
    for name, said in (
        ("harm.pt", "not a readable file with weights (Unsupported global"),
        ("numpy.pt", "not a readable file with weights (Unsupported global"),
        ("words.pt", "not a readable file with weights"),
        ("words.safetensors", "not a readable file with weights"),
        ("pickled.pt", "not a readable file with weights"),
        ("list.pt", "holds a list, not tensors by name"),
        ("empty.pt", "holds no tensors"),
        ("gone.pt", "no such file with weights"),
        ("", "is a folder; name the file"),
    ):
        with pytest.raises(FeatureError) as caught:
            read_tensors(tmp_path / name, "model")
        assert str(caught.value).startswith(str(tmp_path / name))
        assert said.lower() in str(caught.value).lower()
        assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_the_hash_of_a_folder_is_that_of_what_is_read(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="holds no weights"):
        sha256_of(tmp_path)
    parts = [tmp_path / f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for part in parts:
        part.write_bytes(part.name.encode())
    lines = "".join(f"{hashlib.sha256(part.read_bytes()).hexdigest()}  {part.name}\n" for part in parts)
    assert sha256_of(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()
    (tmp_path / "model.safetensors").write_bytes(b"one")
    assert sha256_of(tmp_path) == hashlib.sha256(b"one").hexdigest()
