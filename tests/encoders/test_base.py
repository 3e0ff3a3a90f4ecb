"""Spelling of encoders, their options, and the list of them."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from amrctl import registry
from amrctl.encoders.base import (
    AUDIO,
    TEXT,
    Card,
    EncoderConfig,
    catalogue,
    load_audio_encoder,
    load_text_encoder,
)
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
        ("amrctl", "amrctl needs weights; write it as amrctl:CHECKPOINT (extract-tef --list"),
        ("amrctl:", "amrctl needs weights; write it as amrctl:CHECKPOINT (extract-tef --list"),
        ("logmel:x", "logmel has no weights; write it as logmel"),
    ):
        with pytest.raises(FeatureError) as caught:
            load_audio_encoder(spec)
        assert str(caught.value).startswith(f"--audio-encoder {spec}: {wanted}")


class WithDefault(EncoderConfig):
    default_checkpoint: ClassVar[str | None] = "hub/name"


class Made:
    """What an encoder is given; its card names a package that nobody has."""

    name, sample_rate, dim = "made", 8000, 5
    card = Card(5, 8000, "a shop", "MIT", ("torch", "nowhere_x"), "note")

    def __init__(self, config: EncoderConfig) -> None:
        self.config = config
        self.window, self.hop = config.window or 1.0, config.hop or 1.0


def known(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.kinds(AUDIO)
    entry = registry.Component(AUDIO, "made", WithDefault, Made)
    monkeypatch.setitem(registry._found, (AUDIO, "made"), entry)


def test_weights_may_be_left_out_where_there_are_official_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch)
    encoder: Any = load_audio_encoder("made", window=2.0, hop=0.5, precision="bf16", batch=None)
    config = encoder.config
    assert (config.checkpoint, config.window, config.hop) == ("hub/name", 2.0, 0.5)
    assert (config.precision, config.device, config.batch) == ("bf16", "auto", None)
    other: Any = load_audio_encoder("made:C:/x")
    assert other.config.checkpoint == "C:/x"
    with pytest.raises(
        FeatureError, match="--audio-encoder made:: made needs weights; write it as made:CHECKPOINT"
    ):
        load_audio_encoder("made:")


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("window", 0.0, "--window 0.0: input should be greater than 0"),
        ("hop", -1.0, "--hop -1.0: input should be greater than 0"),
        ("hop", float("nan"), "--hop nan: input should be"),
        ("window", float("inf"), "--window inf: input should be a finite number"),
        ("batch", 0, "--batch 0: input should be greater than 0"),
        ("device", "tpu", "--device tpu: input should be 'auto', 'cpu' or 'cuda'"),
        ("precision", "int8", "--precision int8: input should be 'auto', 'fp32', 'bf16' or 'fp16'"),
    ],
)
def test_options_are_checked_for_every_encoder(option: str, value: Any, said: str) -> None:
    with pytest.raises(FeatureError) as caught:
        load_audio_encoder("logmel", **{option: value})
    assert str(caught.value).startswith(said)


def test_the_hop_of_any_encoder_is_free_its_window_is_not() -> None:
    assert load_audio_encoder("logmel", hop=0.25, window=1.0).hop == 0.25
    assert load_audio_encoder("logmel").hop == 1.0
    with pytest.raises(FeatureError, match="--window 2: logmel hears 1 s, no more, no less"):
        load_audio_encoder("logmel", window=2.0)
    assert load_text_encoder("words", precision="fp32").dim == 256


def test_the_list_has_a_card_for_every_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch)
    found = {(entry.side, entry.name): entry for entry in catalogue()}
    assert sorted(name for side, name in found if side == "audio") == registry.kinds(AUDIO)
    assert sorted(name for side, name in found if side == "text") == registry.kinds(TEXT)
    made = found["audio", "made"]
    assert (made.card, made.missing, made.default) == (Made.card, ("nowhere_x",), "hub/name")
    assert found["audio", "logmel"].card == Card(229, 16000, "", "that of amrctl")
    assert found["text", "words"].card.rate is None
    for entry in found.values():
        assert entry.card.dim > 0
        assert bool(entry.card.rate) == (entry.side == "audio")
        assert entry.card.licence
        build: Any = registry.find(f"{entry.side}-encoder", entry.name).build
        # Where the class knows them, and not the weights alone.
        assert entry.card.dim == getattr(build, "dim", entry.card.dim)
        assert entry.card.rate == getattr(build, "sample_rate", entry.card.rate)
