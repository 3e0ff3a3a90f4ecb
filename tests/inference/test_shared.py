"""Queries that share their recording's projection get the answers they get alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from amrctl.data.dataset import Moments
from amrctl.data.features import FeatureFile
from amrctl.inference.predict import predict
from amrctl.model.detector import build
from tests.small import AUDIO_DIM, TEXT_DIM, features_for, manifest, query, recipe


@pytest.mark.parametrize("sets", [(), ("model.tokens.tef=null",)])
def test_shared_answers_are_the_same(tmp_path: Path, sets: tuple[str, ...]) -> None:
    queries = manifest(
        *(query(f"q{i}", f"v{i % 3}", 12 + 9 * (i % 3), None) for i in range(10)), query("w", "w", 12, None)
    )
    answers = []
    path = features_for(tmp_path / "f.h5", queries)
    projected = []
    for size in (1, 11):
        made = recipe(f"train.eval_batch={size}", "train.max_frames=24", *sets)
        with FeatureFile(path) as file:
            dataset = Moments(queries, file, made, training=False)
        torch.manual_seed(0)
        detector = build(made, (AUDIO_DIM,), (TEXT_DIM,), training=False)
        rows: list[int] = []
        audio = detector.tokens.audio
        assert isinstance(audio, torch.nn.Module)
        audio.register_forward_hook(lambda m, given, out, rows=rows: rows.append(len(out)))
        answers.append(predict(detector, dataset, made, saliency=True))
        projected.append(sum(rows))
    assert projected == [14, 5]  # pairs of a query and a chunk; chunks
    for alone, together in zip(*answers, strict=True):
        assert alone.qid == together.qid
        np.testing.assert_allclose(alone.windows, together.windows, atol=1e-4)
        assert alone.saliency is not None
        assert together.saliency is not None
        np.testing.assert_allclose(alone.saliency, together.saliency, atol=1e-5)
