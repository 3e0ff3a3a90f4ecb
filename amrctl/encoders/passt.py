"""`passt`: audio rows of PaSST, 768 numbers per window: the mean of its two class tokens.

Koutini et al., "Efficient Training of Audio Transformers with Patchout", Interspeech 2022. The network
is `networks/passt.py`; this file reads the official files, whose stride and longest sound are told from
the shapes of their positions. Trained on 10 s of sound; a shorter window is neither padded nor repeated,
it has fewer patches.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from amrctl.encoders.base import AUDIO, Card, EncoderConfig
from amrctl.encoders.frozen import FrozenAudio, require
from amrctl.encoders.weights import local, place, read_tensors, sha256_of
from amrctl.errors import FeatureError
from amrctl.registry import component

if TYPE_CHECKING:
    from torch import Tensor

    from amrctl.encoders.networks.passt import PasstNetwork
    from amrctl.encoders.networks.vit import VitSize

DIM, RATE = 768, 32_000
STRIDES = {12: 10, 10: 12, 9: 14, 8: 16}  # rows of patches on 128 bands, to the stride between them
WEIGHTS = (
    "https://github.com/kkoutini/PaSST, release v0.0.2-audioset, passt-s-f128-p16-s16-ap.468.pt, or another"
)


def read_passt(path: Path, *, size: VitSize | None = None) -> PasstNetwork:
    """The network of an official file, of any stride and length. Raises `FeatureError` naming the key."""
    tensors = read_tensors(path, "state_dict", "model")

    from amrctl.encoders.networks.passt import PasstNetwork

    rows, columns = tensors.get("freq_new_pos_embed"), tensors.get("time_new_pos_embed")
    stride = 10
    if rows is not None and rows.ndim == 4:
        if rows.shape[2] not in STRIDES:
            known = ", ".join(f"{count} (stride {stride})" for count, stride in STRIDES.items())
            raise FeatureError(
                f"{path}: 'freq_new_pos_embed' has {rows.shape[2]} rows; PaSST files have {known}"
            )
        stride = STRIDES[rows.shape[2]]
    length = columns.shape[3] if columns is not None and columns.ndim == 4 else 99
    network = PasstNetwork(stride=stride, columns=length, size=size)
    place(
        network,
        tensors,
        network.table(),
        where=str(path),
        # the classifiers of the 527 AudioSet classes
        ignore=lambda key: key.startswith(("head.", "head_dist.")),
    )
    return network


@component(AUDIO, "passt", EncoderConfig)
class Passt(FrozenAudio):
    """The audio encoder `passt`; see the top of this file."""

    name = "passt"
    sample_rate = RATE
    dim = DIM
    card = Card(DIM, RATE, WEIGHTS, "Apache-2.0", ("transformers",), "trained on 10 s; up to 10, 20 or 30 s")
    size: ClassVar[VitSize | None] = None  # None: ViT-B

    def __init__(self, config: EncoderConfig) -> None:
        require("transformers", self.name)
        path = local(config.checkpoint)
        network = read_passt(path, size=self.size)
        super().__init__(config, network, sha256=sha256_of(path), checkpoint=path.name)

        from amrctl.encoders.networks.passt import PATCH, STEP, PasstMel, patch_count

        self._mel = PasstMel().to(self.device)
        spectra = 1 + (round(self.window * RATE) - 1) // STEP
        if not 0 < patch_count(spectra, network.stride) <= network.columns:
            least, most = PATCH, PATCH + network.stride * network.columns - 1
            raise FeatureError(
                f"--window {self.window:g}: {path.name} takes windows of {least * STEP / RATE:g} to "
                f"{most * STEP / RATE:g} s"
            )

    def front_end(self, samples: Tensor) -> Tensor:
        """`(n, window samples)` to scaled log-mel spectra `(n, spectra, 128)`."""
        spectra: Tensor = self._mel(samples)
        return spectra

    def forward(self, samples: Tensor) -> Tensor:
        """Spectra to `(n, 768)`."""
        rows: Tensor = self.network(samples)
        return rows
