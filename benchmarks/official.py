"""The official baseline's own code, from a clone on this machine, fed with our batches.

Only its network, its loss and its metric script are imported; none of it is in this repository. The
clone needs no packages beyond ours: what its files import and these parts do not use is stood in for.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from amrctl.data.batch import Batch
from amrctl.model import official as layout
from amrctl.model.detector import Detector
from amrctl.model.tokens.projection import tef_columns


class Official:
    """`clone`: the folder that holds `src/` and `config.yml`. Raises `SystemExit` when it does not."""

    def __init__(self, clone: Path) -> None:
        self.source = clone / "src"
        config = clone / "config.yml"
        if not (self.source / "qd_detr.py").is_file() or not config.is_file():
            raise SystemExit(
                f"--official {clone}: no src/qd_detr.py and config.yml there; give the clone's top"
            )
        self.config: dict[str, Any] = yaml.safe_load(config.read_text(encoding="utf-8"))

    def build(self, detector: Detector, **changes: Any) -> tuple[nn.Module, nn.Module]:
        """Its network with the weights of `detector` (recipe qd-detr), and its criterion."""
        options = types.SimpleNamespace(**{**self.config, "device": "cpu", **changes})
        with self._importable():
            model, criterion = importlib.import_module("qd_detr").build_model(options)
        weights = {
            layout.theirs(name): value
            for name, value in detector.state_dict().items()
            if not name.startswith("auxiliary.")
        }
        missing, unexpected = model.load_state_dict(weights, strict=False)
        left = [name for name in missing if not name.startswith("txt_position_embed.")]
        if left or unexpected:
            raise SystemExit(f"the official network has other weights: {left[:3]}, {unexpected[:3]}")
        return model, criterion

    def metric(self, predictions: Sequence[Mapping[str, Any]], gold: Sequence[Mapping[str, Any]]) -> Any:
        """What its script says of predictions (plain rows, as in its files)."""
        with self._importable(), contextlib.redirect_stdout(io.StringIO()):
            module = importlib.import_module("standalone_eval.eval")
            return module.eval_submission(list(predictions), list(gold), verbose=False)

    @contextlib.contextmanager
    def _importable(self) -> Iterator[None]:
        stand_in = types.ModuleType("sklearn.metrics")
        stand_in.precision_recall_curve = None  # type: ignore[attr-defined]
        absent = importlib.util.find_spec("sklearn") is None
        names = {"sklearn": types.ModuleType("sklearn"), "sklearn.metrics": stand_in} if absent else {}
        sys.modules.update(names)
        sys.path.insert(0, str(self.source))
        try:
            yield
        finally:
            sys.path.remove(str(self.source))
            for name in names:
                del sys.modules[name]


def inputs(batch: Batch) -> dict[str, Tensor]:
    """The arguments of its network for one of our batches."""
    columns = tef_columns(batch.lengths, batch.audio_mask.shape[1]) * batch.audio_mask[..., None]
    return {
        "src_txt": batch.text[0],
        "src_txt_mask": batch.text_mask[0].float(),
        "src_aud": torch.cat((batch.audio[0], columns), dim=-1),
        "src_aud_mask": batch.audio_mask.float(),
    }


def targets(batch: Batch) -> dict[str, Any]:
    """What its criterion compares with, from our targets."""
    t = batch.targets
    assert t is not None
    return {
        "span_labels": [{"spans": spans[mask]} for spans, mask in zip(t.spans, t.mask, strict=True)],
        "saliency_pos_labels": t.positives,
        "saliency_neg_labels": t.negatives,
        "saliency_all_labels": t.saliency,
    }


def loss(criterion: nn.Module, output: Any, wanted: Any) -> Tensor:
    """The weighted sum of its terms, as its training loop takes it."""
    weights: Any = criterion.weight_dict
    found = criterion(output, wanted)
    total: Tensor = sum(found[name] * weights[name] for name in found if name in weights)
    return total
