"""Batches, precision and provenance that all networks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amrctl.encoders import frozen
from amrctl.encoders.base import EncoderConfig, Sentence
from amrctl.encoders.frozen import FrozenAudio, FrozenText, pick_device, pick_precision, require
from amrctl.errors import FeatureError


class Audio(FrozenAudio):
    name, sample_rate, dim = "net", 100, 3
    seen: ClassVar[list[tuple[torch.dtype, int, bool]]] = []

    def front_end(self, samples: Tensor) -> Tensor:
        assert not torch.is_autocast_enabled(samples.device.type)
        return samples @ torch.ones(samples.shape[1], 4)

    def forward(self, samples: Tensor) -> Tensor:
        rows: Tensor = self.network(samples)
        self.seen.append((rows.dtype, len(rows), torch.is_inference_mode_enabled()))
        assert samples.dtype == torch.float32
        return rows


class Text(FrozenText):
    name, dim = "net", 3

    def forward(self, sentences: Sequence[str]) -> list[Sentence]:
        rows = self.network(torch.tensor([[len(s), 1.0, 1.0, 1.0] for s in sentences])).float().numpy()
        return [Sentence(row[None]) for row in rows]


def config(**more: Any) -> EncoderConfig:
    return EncoderConfig.model_validate({"kind": "net", **more})


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))


@pytest.mark.parametrize(("precision", "dtype"), [("auto", torch.float32), ("bf16", torch.bfloat16)])
def test_audio_in_batches(precision: str, dtype: torch.dtype) -> None:
    network = net()
    encoder = Audio(
        config(batch=4, device="cpu", precision=precision), network, sha256="ab", checkpoint="w.pt"
    )
    windows = np.random.default_rng(0).random((10, 100)).astype(np.float32)
    Audio.seen.clear()
    rows = encoder.encode(windows)
    assert rows.dtype == np.float32
    assert Audio.seen == [(dtype, 4, True), (dtype, 4, True), (dtype, 2, True)]
    linear = network[0]  # type: ignore[index]
    sums = np.repeat(windows.astype(np.float64).sum(axis=1, keepdims=True), 4, axis=1)
    exact = sums @ linear.weight.double().numpy().T + linear.bias.double().numpy()
    np.testing.assert_allclose(rows, exact, rtol=1e-4 if dtype == torch.float32 else 0.05, atol=1e-2)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert encoder.attributes() == {
        "version": 1,
        "normalisation": "none",
        "space": None,
        "checkpoint": "w.pt",
        "checkpoint_sha256": "ab",
        "parameters": 15,
        "precision": "fp32" if precision == "auto" else "bf16",
    }
    assert encoder.encode(windows[:0]).shape == (0, 3)
    with pytest.raises(ValueError, match=r"net takes windows of 100 samples, not shape \(2, 50\)"):
        encoder.encode(windows[:2, :50])


def test_window_and_hop_of_the_options() -> None:
    encoder = Audio(config(window=0.5, hop=0.2), net(), sha256=None, checkpoint=None)
    assert (encoder.window, encoder.hop, encoder.batch) == (0.5, 0.2, 16)
    assert encoder.encode(np.zeros((1, 50), np.float32)).shape == (1, 3)
    assert (Audio.window, Audio.hop) == (1.0, 1.0)


def test_text_in_batches() -> None:
    encoder = Text(config(batch=2), net(), sha256=None, checkpoint=None)
    sentences = ["a", "bcd", "ef", "", "ghi"]
    answers = encoder.encode(sentences)
    alone = [encoder.encode([sentence])[0].tokens for sentence in sentences]
    np.testing.assert_allclose(np.stack([a.tokens for a in answers]), np.stack(alone), atol=1e-5)


def test_devices_and_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(FeatureError, match="--device cuda: torch sees no CUDA device"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cuda = pick_device("auto")
    assert cuda.type == "cuda"
    for has, best in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has: has)
        chosen: Mapping[str, str] = {name: pick_precision(name, cuda) for name in ("auto", "fp32", "fp16")}
        assert chosen == {"auto": best, "fp32": "fp32", "fp16": "fp16"}
    cpu = torch.device("cpu")
    for has, best in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(frozen, "cpu_has_bf16", lambda has=has: has)
        assert pick_precision("auto", cpu) == pick_precision("fp32", cpu, half_on_cpu=True) == "fp32"
        assert pick_precision("auto", cpu, half_on_cpu=True) == best
        asked = config(device="cpu")
        assert Audio(asked, net(), sha256=None, checkpoint=None).precision == best
        assert Text(asked, net(), sha256=None, checkpoint=None).precision == "fp32"


def test_a_package_that_is_not_there() -> None:
    require("torch", "net")
    with pytest.raises(FeatureError, match=r"net needs the package nowhere_x, .* pip install 'amrctl\[encod"):
        require("nowhere_x", "net")
