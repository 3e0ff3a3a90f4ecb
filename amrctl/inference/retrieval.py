"""A dual encoder's answer: one score for every sentence and every recording."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from amrctl.data.pairs import PairSet
from amrctl.encoders.dual.model import DualEncoder
from amrctl.progress import SILENT, Reporter

SEGMENTS = 64  # that the audio tower gets at a time


def score(
    network: DualEncoder,
    pairs: PairSet,
    *,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    report: Reporter = SILENT,
) -> npt.NDArray[np.float32]:
    """Cosines (sentences, recordings) float32, both in the order of the caption set.

    `precision`: dtype of autocast, None for float32. The network is left in evaluation mode.
    """
    network.eval()
    device = torch.device(device)
    size = pairs.settings.eval_batch
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype=precision, enabled=precision is not None),
        report.bar("predict", len(pairs.captions.sounds), unit="recordings") as bar,
    ):
        audio = []
        for vids, spectra, counts in pairs.recordings():
            rows = torch.cat([network.audio(part.to(device)).float() for part in spectra.split(SEGMENTS)])
            audio.append(network.recordings(rows, counts).float().cpu())
            bar.advance(len(vids))
        sentences = [pair.caption for pair in pairs.captions.pairs]
        text = []
        for i in range(0, len(sentences), size):
            tokens = network.text.tokenize(sentences[i : i + size]).to(device)
            text.append(network.sentences(tokens).float().cpu())
    found: npt.NDArray[np.float32] = (torch.cat(text) @ torch.cat(audio).T).numpy()
    return found
