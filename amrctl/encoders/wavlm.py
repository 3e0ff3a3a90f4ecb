"""`wavlm-base`, `wavlm-base-plus`, `wavlm-large`: self-supervised speech networks, one row per window.

Source: WavLM (Chen et al., IEEE JSTSP 16(6), 2022), which Chung-Ang's system for DCASE 2026 task 6 uses
as one of its streams (1 s windows, 1 s hop, frozen). Neither says which layer is taken nor how 49 frames
become one row; here it is the mean over frames of the last hidden state, the plain reading.

16 kHz. A window goes in as it is: no padding, no repeating; seven convolutions (stride 320, field 400)
make 49 frames of a second. The large network was trained on waveforms of mean 0 and variance 1, so each
window is brought to that first (with 1e-7 beside the variance, as transformers has it; the original code
has 1e-5); base and base-plus hear the samples unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from amrctl.encoders.base import AUDIO, Card, EncoderConfig
from amrctl.encoders.frozen import FrozenAudio
from amrctl.encoders.hub import folder_of, load_network, name_of, read_config
from amrctl.encoders.weights import sha256_of
from amrctl.errors import FeatureError
from amrctl.registry import component

if TYPE_CHECKING:
    from torch import Tensor

RATE = 16_000
FIELD = 400  # samples that the convolutions need for one frame
_LICENCE = "unclear: MIT or CC BY-SA 3.0, see docs/encoders/wavlm.md"


def _card(dim: int, name: str) -> Card:
    return Card(dim, RATE, f"https://huggingface.co/microsoft/{name}", _LICENCE, ("transformers",))


class BaseConfig(EncoderConfig):
    """Options of `wavlm-base`."""

    default_checkpoint: ClassVar[str | None] = "microsoft/wavlm-base"


class BasePlusConfig(EncoderConfig):
    """Options of `wavlm-base-plus`."""

    default_checkpoint: ClassVar[str | None] = "microsoft/wavlm-base-plus"


class LargeConfig(EncoderConfig):
    """Options of `wavlm-large`."""

    default_checkpoint: ClassVar[str | None] = "microsoft/wavlm-large"


class _WavLM(FrozenAudio):
    sample_rate = RATE
    normalise = False  # the waveform of each window

    def __init__(self, config: EncoderConfig) -> None:
        assert config.checkpoint is not None
        if config.window is not None and round(config.window * RATE) < FIELD:
            raise FeatureError(f"--window {config.window:g}: {self.name} needs at least {FIELD / RATE:g} s")
        folder = folder_of(config.checkpoint, encoder=self.name)
        # The family decides what is done to the waveform, so it must be the one that was named.
        norm = "layer" if self.normalise else "group"
        read_config(
            folder,
            encoder=self.name,
            model_type="wavlm",
            hidden_size=self.dim,
            feat_extract_norm=norm,
            do_stable_layer_norm=self.normalise,
        )
        from transformers import WavLMModel

        from amrctl.encoders.networks.wavlm import attend_directly

        # The mask vector stands for frames that training hides.
        network = load_network(WavLMModel, folder, encoder=self.name, unused=r"^(wavlm\.)?masked_spec_embed$")
        super().__init__(config, network, sha256=sha256_of(folder), checkpoint=name_of(config.checkpoint))
        if not self.plain:
            attend_directly(network)

    def front_end(self, samples: Tensor) -> Tensor:
        """Mean 0 and variance 1 for the large network; base and base-plus get what was heard."""
        if not self.normalise:
            return samples
        samples = samples - samples.mean(dim=1, keepdim=True)
        return samples / (samples.square().mean(dim=1, keepdim=True) + 1e-7).sqrt()

    def forward(self, samples: Tensor) -> Tensor:
        """`(n, samples)` to `(n, dim)`: the mean over frames of the last hidden state."""
        rows: Tensor = self.network(samples).last_hidden_state.mean(dim=1)
        return rows

    def direct(self) -> Callable[[Tensor], Tensor] | None:
        """The network rearranged."""
        from amrctl.encoders.networks.wavlm_rows import WavLM, supported

        network: Any = self.network
        return WavLM(network) if supported(network) else None


@component(AUDIO, "wavlm-base", BaseConfig)
class WavLMBase(_WavLM):
    """The audio encoder `wavlm-base`; see the top of this file."""

    name, dim, card = "wavlm-base", 768, _card(768, "wavlm-base")


@component(AUDIO, "wavlm-base-plus", BasePlusConfig)
class WavLMBasePlus(_WavLM):
    """The audio encoder `wavlm-base-plus`; see the top of this file."""

    name, dim, card = "wavlm-base-plus", 768, _card(768, "wavlm-base-plus")


@component(AUDIO, "wavlm-large", LargeConfig)
class WavLMLarge(_WavLM):
    """The audio encoder `wavlm-large`; see the top of this file."""

    name, dim, card = "wavlm-large", 1024, _card(1024, "wavlm-large")
    normalise = True
