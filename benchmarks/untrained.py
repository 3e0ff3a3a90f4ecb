"""Audio encoders of true size with random weights: what speed and memory need, without a download.

Each is the encoder's own class, front end and network included; only its reading of a file is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amrctl.encoders.base import AudioEncoder, EncoderConfig, load_audio_encoder
from amrctl.encoders.frozen import FrozenAudio
from amrctl.encoders.laion_checkpoint import Front
from amrctl.encoders.laion_clap import LaionClap
from amrctl.encoders.m2d_clap import M2dClap
from amrctl.encoders.mel import mel_bank
from amrctl.encoders.ms_clap import BANDS, FFT, SIZES, MsClap, bare_network
from amrctl.encoders.passt import Passt
from amrctl.encoders.wavlm import WavLMBase, WavLMLarge

LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}


def _frozen(encoder: FrozenAudio, network: Any, options: dict[str, Any]) -> FrozenAudio:
    """What the constructor of every encoder ends with."""
    config = EncoderConfig(kind=encoder.name, checkpoint="random weights", **options)
    FrozenAudio.__init__(encoder, config, network, sha256=None, checkpoint="random weights")
    return encoder


class _MsClap(MsClap):
    def __init__(self, **options: Any) -> None:
        network = bare_network(SIZES)
        bank = mel_bank(rate=32_000, fft=FFT, bands=BANDS, low=50, high=14_000, scale="slaney", area=True)
        network.get_submodule("front").get_buffer("bank").copy_(bank)
        _frozen(self, network, options)


class _LaionClap(LaionClap):
    def __init__(self, **options: Any) -> None:
        from transformers import ClapConfig, ClapModel

        # Sentences have no part in this, so their network is small.
        config: Any = ClapConfig(text_config={"num_hidden_layers": 1, "vocab_size": 10})
        front = Front.model_validate({"frequency_min": 50, "truncation": "rand_trunc"})
        _frozen(self, self.listen(ClapModel(config), front), options)


class _M2dClap(M2dClap):
    def __init__(self, **options: Any) -> None:
        from amrctl.encoders.networks.m2d import M2dAudio

        _frozen(self, M2dAudio(), options)


class _Passt(Passt):
    def __init__(self, **options: Any) -> None:
        from amrctl.encoders.networks.passt import PasstMel, PasstNetwork

        _frozen(self, PasstNetwork(stride=16, columns=62), options)
        self._mel = PasstMel().to(self.device)


class _WavLMBase(WavLMBase):
    def __init__(self, **options: Any) -> None:
        from transformers import WavLMConfig, WavLMModel

        _frozen(self, WavLMModel(WavLMConfig()), options)


class _WavLMLarge(WavLMLarge):
    def __init__(self, **options: Any) -> None:
        from transformers import WavLMConfig, WavLMModel

        _frozen(self, WavLMModel(WavLMConfig.from_dict(LARGE)), options)


UNTRAINED: dict[str, Callable[..., AudioEncoder]] = {
    encoder.name: encoder for encoder in (_MsClap, _LaionClap, _M2dClap, _Passt, _WavLMBase, _WavLMLarge)
}


def load(spec: str, **options: Any) -> AudioEncoder:
    """The encoder called `spec`; with random weights if it needs some and names none."""
    if spec in UNTRAINED:
        import torch

        torch.manual_seed(0)
        return UNTRAINED[spec](**{name: value for name, value in options.items() if value is not None})
    return load_audio_encoder(spec, **options)
