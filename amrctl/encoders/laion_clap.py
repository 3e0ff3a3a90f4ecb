"""`laion-clap`, `laion-clap-hidden`: LAION-CLAP's audio side, one row per window.

Source: Wu, Chen, Zhang et al., "Large-scale Contrastive Language-Audio Pretraining with Feature Fusion and
Keyword-to-Caption Augmentation", ICASSP 2023; weights `laion/clap-htsat-unfused` (the default),
`laion/larger_clap_general` and their kin. `laion-clap` gives the 512 numbers of the space shared with text,
scaled to length 1 as the model does; `laion-clap-hidden` gives what comes before the projection: 768
numbers, or 1,024 with `larger_*`. The network is transformers' `ClapModel`.

48,000 Hz, mono. The network hears 10 s: a shorter window is tiled as often as it fits, the rest is
silence (`repeatpad`); a window of 1 s is heard as 10 copies of itself. Power spectra of 1024 samples
every 480 (periodic Hann, centred, reflected ends), 64 mel filters from 50 to 14,000 Hz, decibels.

Where transformers' feature extractor draws lots, the middle is taken: of a window over 10 s the middle 10 s,
or for a fused model the middle crop of each third. A fused model's extractor also calls one random clip
of every batch a long one; here a window is long if it is. laion_clap's own reading of files rounds
samples to 16 bits first; transformers does not, nor does this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from amrctl.encoders.base import AUDIO, Card, EncoderConfig
from amrctl.encoders.frozen import FrozenAudio, require
from amrctl.encoders.htsat import rearranged
from amrctl.encoders.laion_checkpoint import Front, read_official
from amrctl.encoders.mel import decibels, hann, mel_bank, mel_power
from amrctl.registry import component

if TYPE_CHECKING:
    from torch import Tensor

HUB = "laion/clap-htsat-unfused"
WEIGHTS = f"https://huggingface.co/{HUB} or laion/larger_clap_general, ..."
LICENCE = "Apache-2.0 (Hub); original code CC0-1.0"


class LaionClapConfig(EncoderConfig):
    """Options of LAION-CLAP."""

    default_checkpoint: ClassVar[str | None] = HUB
    checkpoint: str = Field(
        HUB, description="folder in the Hub's layout, name on the Hub, or original .pt file"
    )


def ten_seconds(samples: Tensor, front: Front) -> Tensor:
    """Tile, fill or cut windows `(n, samples)` to what the network hears, `(n, front.samples)`."""
    from torch.nn import functional

    have, want = samples.shape[1], front.samples
    if have >= want:
        start = (have - want) // 2
        return samples[:, start : start + want]
    if front.padding == "repeat":
        return samples.repeat(1, want // have + 1)[:, :want]
    if front.padding == "repeatpad":
        samples = samples.repeat(1, want // have)
    return functional.pad(samples, (0, want - samples.shape[1]))


def copies(samples: int, front: Front) -> int:
    """How many copies of a window of that many samples fill what the network hears exactly, with spectra at
    the same places of each; 0: none do."""
    whole = front.padding != "pad" and front.samples % samples == 0 and samples % front.hop_length == 0
    return front.samples // samples if whole and samples >= front.fft_window_size else 0


def repeated(spectra: Tensor, copies: int) -> Tensor:
    """Spectra `(n, T, bands)` of 2 copies of a sound, with mirrored ends, to those of `copies`.

    A copy begins on a frame and is longer than a transform, so that all copies but the first and the last
    have the same frames.
    """
    import torch

    half = spectra.shape[1] // 2
    inside = spectra[:, half // 2 : half // 2 + half]
    return torch.cat(
        [spectra[:, : half // 2], *[inside] * (copies - 1), spectra[:, half // 2 + half :]], dim=1
    )


def thirds(mel: Tensor, frames: int) -> Tensor:
    """A long window for a fused model: `(n, T, bands)` to `(n, 4, frames, bands)`.

    All of it, shrunk, then the middle crop among those that begin in each third of the places where a
    crop may begin (at 0 where a third has none).
    """
    import numpy as np
    import torch
    from torch.nn import functional

    starts = [
        int(third[len(third) // 2]) if len(third) else 0
        for third in np.array_split(np.arange(mel.shape[1] - frames + 1), 3)
    ]
    whole = functional.interpolate(mel[:, None], (frames, mel.shape[2]), mode="bilinear", align_corners=False)
    return torch.stack([whole[:, 0], *(mel[:, start : start + frames] for start in starts)], dim=1)


class _LaionClap(FrozenAudio):
    """What both names share; `projected` tells them apart."""

    projected: bool

    def __init__(self, config: LaionClapConfig) -> None:
        require("transformers", self.name)
        official = read_official(config.checkpoint, self.name)
        self.space = f"laion-clap:{official.sha256[:16]}" if self.projected else None
        network = self.listen(official.model, official.front)
        super().__init__(config, network, sha256=official.sha256, checkpoint=official.name)

    def listen(self, model: Any, front: Front) -> Any:
        """Take from `model`, a `ClapModel`, what sound does not need, and give it the filters of `front`."""
        self.front = front
        # The crops of a fused model's long recordings were cut from spectra under other filters.
        slaney = self.front.truncation == "rand_trunc"
        bank = mel_bank(
            rate=self.front.sampling_rate,
            fft=self.front.fft_window_size,
            bands=self.front.feature_size,
            low=self.front.frequency_min,
            high=self.front.frequency_max,
            scale="slaney" if slaney else "htk",
            area=slaney,
        )
        model.register_buffer("bank", bank)
        model.register_buffer("window", hann(self.front.fft_window_size))
        del model.text_model, model.text_projection
        self.sample_rate = self.front.sampling_rate
        self.dim = model.projection_dim if self.projected else model.config.audio_config.hidden_size
        if not self.projected:
            del model.audio_projection
        return model

    def front_end(self, samples: Tensor) -> Tensor:
        """`(n, window samples)` to decibels `(n, 1, frames, bands)`, or `(n, 4, ...)`: see `thirds`."""
        front = self.front
        long = front.truncation == "fusion" and samples.shape[1] > front.samples
        tiled = copies(samples.shape[1], front) if self.rearrange and not long else 0
        heard = samples.repeat(1, 2) if tiled > 2 else samples if long else ten_seconds(samples, front)
        bank, window = self.network.get_buffer("bank"), self.network.get_buffer("window")
        mel = decibels(mel_power(heard, bank, window, front.hop_length))
        if tiled > 2:
            mel = repeated(mel, tiled)
        return thirds(mel, front.frames) if mel.shape[1] > front.frames else mel[:, None]

    def forward(self, samples: Tensor) -> Tensor:
        """What `front_end` gives, to `(n, dim)`."""
        import torch

        long = torch.full((len(samples), 1), samples.shape[1] > 1, device=samples.device)
        rows: Tensor = self.network.get_submodule("audio_model")(samples, is_longer=long).pooler_output
        return self._ended(rows)

    def direct(self) -> Callable[[Tensor], Tensor] | None:
        """HTSAT rearranged."""
        htsat = rearranged(self.network.get_submodule("audio_model.audio_encoder"))
        return None if htsat is None else lambda samples: self._ended(htsat(samples, samples.shape[1] > 1))

    def _ended(self, rows: Tensor) -> Tensor:
        """HTSAT's rows to the encoder's."""
        if not self.projected:
            return rows
        from torch.nn import functional

        projection = self.network.get_submodule("audio_projection")
        kind = next(projection.parameters()).dtype
        return functional.normalize(projection(rows.to(kind)).float(), dim=-1)


@component(AUDIO, "laion-clap", LaionClapConfig)
class LaionClap(_LaionClap):
    """The audio encoder `laion-clap`; see the top of this file."""

    name = "laion-clap"
    dim = 512
    normalisation = "length 1"
    projected = True
    card = Card(
        512, 48_000, WEIGHTS, LICENCE, ("transformers",), "1 s is heard ten times; shared space with text"
    )


@component(AUDIO, "laion-clap-hidden", LaionClapConfig)
class LaionClapHidden(_LaionClap):
    """The audio encoder `laion-clap-hidden`; see the top of this file."""

    name = "laion-clap-hidden"
    dim = 768
    projected = False
    card = Card(
        768, 48_000, WEIGHTS, LICENCE, ("transformers",), "before the projection; 1,024 with larger_*"
    )
