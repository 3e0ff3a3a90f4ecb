"""Spelling of encoders: names alone, and names with the file of their weights."""

from __future__ import annotations

import pytest

from amrctl import registry
from amrctl.encoders.base import AUDIO, EncoderConfig, load_audio_encoder
from amrctl.errors import FeatureError


class Weights(EncoderConfig):
    checkpoint: str


def test_an_encoder_with_weights_is_spelled_with_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "logmel" in registry.kinds(AUDIO)
    entry = registry.Component(AUDIO, "amrctl", Weights, lambda config: config.checkpoint)
    monkeypatch.setitem(registry._found, (AUDIO, "amrctl"), entry)
    built: object = load_audio_encoder("amrctl:runs/a:b.safetensors")
    assert built == "runs/a:b.safetensors"
    for spec, wanted in (
        ("amrctl", "amrctl:CHECKPOINT"),
        ("amrctl:", "amrctl:CHECKPOINT"),
        ("logmel:x", "logmel"),
    ):
        with pytest.raises(FeatureError) as caught:
            load_audio_encoder(spec)
        assert str(caught.value) == f"--audio-encoder {spec}: write it as {wanted}"
