"""`ms-clap`, `ms-clap-centred`: MS-CLAP 2023's audio side, one row of 768 numbers per window.

Source: Elizalde et al., "Natural Language Supervision for General-Purpose Audio Representations",
arXiv:2309.05767; weights microsoft/msclap, `CLAP_weights_2023.pth`. The row is the mean over all tokens of
HTSAT-tiny after its last norm: neither projected nor scaled to length 1, as in the official features of
CASTELLA and Clotho-Moment. The network is transformers' `ClapAudioModel`, filled by name (`audio_table`).

44,100 Hz, mono. Power spectra of 1024 samples every 320 (periodic Hann, centred, reflected ends), the 64
mel filters that the file brings, decibels. A second gives 138 spectra, which the network stretches to 1024
by bicubic interpolation; it is neither repeated nor padded. Windows over 1024 spectra (7.43 s) are cut
into pieces of 689 spectra every 344, whose rows are averaged, as the official network does.

The two names differ in the grid: `ms-clap` has frame i begin at second i (Lighthouse's inference, 60 rows
for 60 s), `ms-clap-centred` has it centred there (the data sets' extraction script, 61 rows). That script
reads the first channel of a recording; here channels are averaged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from amrctl.encoders.base import AUDIO, Card, EncoderConfig
from amrctl.encoders.frozen import FrozenAudio, require
from amrctl.encoders.htsat import Table, compare_positions, computed, htsat_table, rearranged, unused
from amrctl.encoders.mel import decibels, hann, mel_power
from amrctl.encoders.weights import local, place, read_tensors, sha256_of
from amrctl.errors import FeatureError
from amrctl.registry import component

if TYPE_CHECKING:
    from torch import Tensor, nn

RATE, FFT, HOP, BANDS = 44_100, 1024, 320, 64
FRAMES = 1024  # spectra that one image of the network holds
CROP, STEP = 689, 344  # spectra of a piece, and from piece to piece, of a longer window
KERNELS = 1e-3  # how far the file's transform may lie from a Hann window's, largest value 1

HTSAT = "audio_encoder.base.htsat."
WEIGHTS = "https://huggingface.co/microsoft/msclap, CLAP_weights_2023.pth"
LICENCE = "code MIT; the Hub tags the weights ms-pl"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the two networks of the 2023 file."""

    embed: int = 96  # channels of a patch; eight times as many in a row
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    width: int = 768  # of the text network
    layers: int = 12
    text_heads: int = 12
    vocabulary: int = 50_257
    positions: int = 1024
    joint: int = 1024  # of the space in which audio and text meet


SIZES = Sizes()


class MsClapConfig(EncoderConfig):
    """Options of MS-CLAP; `checkpoint` is the official file."""

    checkpoint: str = Field(description="CLAP_weights_2023.pth, as microsoft/msclap offers it")


def audio_table(sizes: Sizes) -> Table:
    """Official names of the audio side to names in what `audio_network` builds."""
    spectrum = f"{HTSAT}spectrogram_extractor.stft.conv"
    return {
        f"{spectrum}_real.weight": "front.real",
        f"{spectrum}_imag.weight": "front.imag",
        f"{HTSAT}logmel_extractor.melW": "front.bank",
        **htsat_table(HTSAT, "clap.audio_encoder.", sizes.depths),
    }


def head_table(side: str, ours: str) -> Table:
    """Official names of the projection of a side (`audio_encoder`, `caption_encoder`)."""
    ends = ("linear1.weight", "linear2.weight", "layer_norm.weight", "layer_norm.bias")
    return {f"{side}.projection.{end}": f"{ours}.{end}" for end in ends}


def text_table(sizes: Sizes) -> Table:
    """Official names of GPT-2 to those of transformers' `GPT2Model`, which are the same, and the head."""
    names = ["wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"]
    parts = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    for layer in range(sizes.layers):
        names += [f"h.{layer}.{part}.{end}" for part in parts for end in ("weight", "bias")]
    table: Table = {f"caption_encoder.base.{name}": f"gpt.{name}" for name in names}
    return table | head_table("caption_encoder", "head")


def known(sizes: Sizes) -> Callable[[str], bool]:
    """A test that is true for every key that the official file may hold, whichever side is read."""
    named = {*audio_table(sizes), *text_table(sizes), *head_table("audio_encoder", ""), "logit_scale"}
    # Causal masks, which older versions of transformers stored.
    masks = re.compile(r"caption_encoder\.base\.h\.\d+\.attn\.(masked_)?bias")
    return lambda key: key in named or masks.fullmatch(key) is not None or unused(HTSAT, key)


def read_official(checkpoint: str) -> tuple[Path, dict[str, Tensor]]:
    """The file that `checkpoint` names, and its tensors. Raises `FeatureError`."""
    path = local(checkpoint)
    return path, read_tensors(path, "model")


def bare_network(sizes: Sizes) -> nn.Module:
    """`clap`, a `ClapAudioModel` as it begins, and `front`: `bank`, zeros for mel filters, and `window`."""
    import torch
    from torch import nn
    from transformers import ClapAudioConfig, ClapAudioModel

    network = nn.Module()
    network.front = nn.Module()
    network.front.register_buffer("bank", torch.zeros(FFT // 2 + 1, BANDS))
    network.front.register_buffer("window", hann(FFT))
    network.clap = ClapAudioModel(
        ClapAudioConfig(
            patch_embeds_hidden_size=sizes.embed,
            hidden_size=sizes.embed * 8,
            depths=list(sizes.depths),
            num_attention_heads=list(sizes.heads),
        )
    )
    return network


def audio_network(sizes: Sizes, tensors: Mapping[str, Tensor], where: str) -> nn.Module:
    """`bare_network` with its parameters and `front.bank`, the file's mel filters, filled from `tensors`.

    Raises `FeatureError` naming the official key that is missing, unknown, misshapen or not what the
    front end computes.
    """
    import torch

    network = bare_network(sizes)
    front = network.get_submodule("front")
    for part in ("real", "imag"):
        front.register_buffer(part, torch.zeros(FFT // 2 + 1, 1, FFT))
    place(
        network,
        tensors,
        audio_table(sizes),
        where=where,
        ignore=known(sizes),
        computed=computed(network) | {"front.window"},
    )
    compare_positions(network, tensors, HTSAT, "clap.audio_encoder.", where)
    compare_kernels(front, where)
    del front.real, front.imag
    return network


def compare_kernels(front: nn.Module, where: str) -> None:
    """The file brings its Fourier transform as convolutions; hold them against the one computed here."""
    import torch

    turn = torch.arange(FFT // 2 + 1, dtype=torch.float64)[:, None] * torch.arange(FFT, dtype=torch.float64)
    turn = turn % FFT * (2 * torch.pi / FFT)
    window = front.get_buffer("window").double()
    for part, wave in (("real", turn.cos()), ("imag", turn.sin())):
        given = front.get_buffer(part)[:, 0].double()
        # The sign of the imaginary part is a matter of taste; the power does not show it.
        apart = min((given - sign * wave * window).abs().max() for sign in (1, -1))
        if not apart < KERNELS:
            key = f"{HTSAT}spectrogram_extractor.stft.conv_{part}.weight"
            raise FeatureError(
                f"{where}: '{key}' is no Fourier transform under a Hann window of {FFT} samples"
            )


def _pieced(mel: Tensor, rows: Callable[[Tensor], Tensor]) -> Tensor:
    """Decibels `(n, frames, 64)` to `(n, dim)`: `rows` of `(n, 1, frames, 64)`, or the mean over pieces."""
    import torch

    mel = mel[:, None]
    frames = mel.shape[2]
    if frames <= FRAMES:
        return rows(mel)
    starts = range(0, frames - CROP - 1, STEP)  # as the official network counts: the tail is not heard
    return torch.stack([rows(mel[:, :, start : start + CROP]).float() for start in starts]).mean(0)


@component(AUDIO, "ms-clap", MsClapConfig)
class MsClap(FrozenAudio):
    """The audio encoder `ms-clap`; see the top of this file."""

    name = "ms-clap"
    sample_rate = RATE
    tail = "floor"
    dim = 768
    card = Card(
        768, RATE, WEIGHTS, LICENCE, ("transformers",), "1 s is stretched; frame i begins at second i"
    )

    def __init__(self, config: MsClapConfig) -> None:
        require("transformers", self.name)
        window = config.window or self.window
        if round(window * RATE) <= FFT // 2:
            least = (FFT // 2 + 1) / RATE
            raise FeatureError(f"--window {window:g}: {self.name} needs at least {least:.4f} s")
        path, tensors = read_official(config.checkpoint)
        network = audio_network(SIZES, tensors, str(path))
        super().__init__(config, network, sha256=sha256_of(path), checkpoint=path.name)
        self.dim = SIZES.embed * 8

    def front_end(self, samples: Tensor) -> Tensor:
        """`(n, window samples)` to decibels `(n, window samples // 320 + 1, 64)`."""
        front = self.network.get_submodule("front")
        return decibels(mel_power(samples, front.get_buffer("bank"), front.get_buffer("window"), HOP))

    def forward(self, samples: Tensor) -> Tensor:
        """Decibels `(n, frames, 64)` to `(n, 768)`."""
        clap = self.network.get_submodule("clap")
        return _pieced(samples, lambda mel: clap(mel).pooler_output)

    def direct(self) -> Callable[[Tensor], Tensor] | None:
        """HTSAT rearranged."""
        htsat = rearranged(self.network.get_submodule("clap.audio_encoder"))
        return None if htsat is None else lambda samples: _pieced(samples, htsat)


@component(AUDIO, "ms-clap-centred", MsClapConfig)
class MsClapCentred(MsClap):
    """The audio encoder `ms-clap-centred`; see the top of this file."""

    name = "ms-clap-centred"
    grid = "centred"
    card = Card(768, RATE, WEIGHTS, LICENCE, ("transformers",), "1 s is stretched; centred grid")
