"""`m2d-clap` and `m2d-clap-unpadded`: audio rows of M2D-CLAP, 768 numbers per window.

The network is `networks/m2d.py`; this file reads the official checkpoint, which the user downloads
under NTT's evaluation licence (docs/encoders/m2d-clap.md). Two published recipes differ in what they
feed for a second of sound (101 spectra): `m2d-clap` fills them up to whole patches, 35 tokens (the
official path, KAIST); `m2d-clap-unpadded` drops the spectra that fill no patch, 30 tokens (Yokohama's
published script). Their rows must not be mixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from amrctl.encoders.base import AUDIO, Card, EncoderConfig
from amrctl.encoders.frozen import FrozenAudio, require
from amrctl.encoders.weights import local, place, read_tensors, sha256_of
from amrctl.errors import FeatureError
from amrctl.registry import component

if TYPE_CHECKING:
    from torch import Tensor

    from amrctl.encoders.networks.m2d import M2dAudio
    from amrctl.encoders.networks.vit import VitSize

DIM, RATE = 768, 16_000
BACKBONE = "backbone."  # what audio keys of the 2025 files begin with; those of 2024 begin with nothing
USED = frozenset({"cls_token", "pos_embed", "patch_embed", "blocks", "norm", "norm_stats", "audio_proj"})
# bands x spectra of a patch and columns of positions, to the spectra that the network takes at once
INPUTS = {((16, 16), 62): 1001, ((80, 2), 500): 1001, ((16, 16), 38): 608}
WEIGHTS = (
    "https://github.com/nttcslab/m2d, release v0.5.0, checkpoint-30.pth in "
    "m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025.zip"
)
LICENCE = "NTT evaluation licence (not commercial, not to be passed on)"


def read_audio_network(path: Path, *, pad: bool, size: VitSize | None = None) -> M2dAudio:
    """The audio side of an official checkpoint of 2025 or 2024. Raises `FeatureError` naming the key."""
    tensors = read_tensors(path, "model")

    from amrctl.encoders.networks.m2d import M2dAudio

    root = BACKBONE if any(key.startswith(BACKBONE) for key in tensors) else ""
    # What is neither there nor forbidden is missed under its official name by `place`.
    old = f"{root}audio_proj.0.weight" in tensors or (not root and "audio_proj.sem_token" not in tensors)
    patch, columns = _grid(path, tensors, root)
    network = M2dAudio(
        patch=patch,
        columns=columns,
        unit=INPUTS[patch, columns],
        head="mlp" if old else "semantic",
        pad=pad,
        size=size,
    )
    table = network.table(root)
    stats = f"{root}norm_stats"
    given = stats in tensors or not old  # only the older files go without
    if not given:
        del table[stats]

    def ignore(key: str) -> bool:
        """Text encoder, decoder and target network of the pre-training, temperature: not for rows."""
        first = key.removeprefix(root).partition(".")[0]
        return not key.startswith(root) or first == "text_proj" or (not root and first not in USED)

    place(network, tensors, table, where=str(path), ignore=ignore, computed=() if given else ("norm_stats",))
    return network


def _grid(path: Path, tensors: Mapping[str, Tensor], root: str) -> tuple[tuple[int, int], int]:
    """Size of a patch and columns of positions, from shapes; those of 2025 where a key is missing."""
    kernel, positions = tensors.get(f"{root}patch_embed.proj.weight"), tensors.get(f"{root}pos_embed")
    patch, columns = (16, 16), 62
    if kernel is not None and kernel.ndim == 4:
        patch = (int(kernel.shape[2]), int(kernel.shape[3]))
    if positions is not None and positions.ndim == 3:
        columns = (int(positions.shape[1]) - 1) // max(1, 80 // max(1, patch[0]))
    if (patch, columns) not in INPUTS:
        known = ", ".join(f"{p[0]}x{p[1]} with {c}" for p, c in INPUTS)
        raise FeatureError(
            f"{path}: patches of {patch[0]}x{patch[1]} with {columns} columns of positions "
            f"('{root}pos_embed') are not those of an M2D-CLAP release ({known})"
        )
    return patch, columns


@component(AUDIO, "m2d-clap", EncoderConfig)
class M2dClap(FrozenAudio):
    """The audio encoder `m2d-clap`; see the top of this file."""

    name = "m2d-clap"
    sample_rate = RATE
    dim = DIM
    tail = "floor"
    card = Card(DIM, RATE, WEIGHTS, LICENCE, ("transformers",), "patches filled up; 35 tokens a second")
    pad: ClassVar[bool] = True
    size: ClassVar[VitSize | None] = None  # None: ViT-B

    def __init__(self, config: EncoderConfig) -> None:
        require("transformers", self.name)
        path = local(config.checkpoint)
        network = read_audio_network(path, pad=self.pad, size=self.size)
        sha256 = sha256_of(path)
        super().__init__(config, network, sha256=sha256, checkpoint=path.name)
        # Only the sentence rows of the same file can be compared with these.
        self.space = f"m2d-clap:{sha256[:16]}"
        if round(self.window * RATE) < network.shortest:
            raise FeatureError(
                f"--window {self.window:g}: {self.name} needs at least {network.shortest / RATE:g} s"
            )

    def front_end(self, samples: Tensor) -> Tensor:
        """`(n, window samples)` to centred and scaled log-mel spectra `(n, 1 + samples // 160, 80)`."""
        network: M2dAudio = self.network  # type: ignore[assignment]
        return network.log_mel(samples)

    def forward(self, samples: Tensor) -> Tensor:
        """Spectra to `(n, 768)`."""
        rows: Tensor = self.network(samples)
        return rows


@component(AUDIO, "m2d-clap-unpadded", EncoderConfig)
class M2dClapUnpadded(M2dClap):
    """The audio encoder `m2d-clap-unpadded`; see the top of this file."""

    name = "m2d-clap-unpadded"
    card = Card(DIM, RATE, WEIGHTS, LICENCE, ("transformers",), "whole patches only; 30 tokens a second")
    pad = False
