"""Training of a dual encoder: captions and recordings in, the loop of `loop` over their pairs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from amrctl import provenance
from amrctl.data.audio import Sound, byte_size
from amrctl.data.caption_lists import CaptionSet, read_set
from amrctl.data.captions import read_ids
from amrctl.data.extract_jobs import digest
from amrctl.data.pairs import PairSet
from amrctl.data.relevance import original
from amrctl.data.score_matrix import ScoreMatrix, write_scores
from amrctl.encoders.dual.load import DualCheckpoint, read_dual
from amrctl.encoders.dual.model import DualEncoder, Pairs, audio_tower
from amrctl.encoders.weights import local, sha256_of
from amrctl.errors import CheckpointError, RecipeError
from amrctl.evaluation.retrieval import parse, rank
from amrctl.inference.retrieval import score
from amrctl.launch import ALONE, Ranks
from amrctl.losses.retrieval_total import RetrievalCriterion
from amrctl.losses.total import Loss
from amrctl.progress import SILENT, Reporter
from amrctl.recipe_retrieval import RetrievalRecipe
from amrctl.run_folder import RunFolder, find_checkpoint
from amrctl.training import parallel, precision, state
from amrctl.training.task import Asked, Trainable, Validated, stems


@dataclass(frozen=True)
class RetrievalRequest(Asked):
    """What the user asked for. Several `train` lists are joined; several `val` are validated one by one,
    and the first decides. Recordings lie anywhere under `audio`; `exclude` are files of ids."""

    recipe: RetrievalRecipe
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    audio: tuple[Path, ...]
    exclude: tuple[Path, ...] = ()
    skip_bad: bool = False
    init: Path | None = None
    device: str = "auto"
    precision: str = "auto"
    ranks: Ranks = ALONE

    def sets(self) -> tuple[CaptionSet, list[CaptionSet]]:
        """The training captions joined, and every validation set. Raises `AmrctlError`."""
        banned = {name for path in self.exclude for name in read_ids(path)}
        train = read_set(self.train, self.audio, excluded=banned, skip_bad=self.skip_bad)
        return train, [read_set([path], self.audio, skip_bad=self.skip_bad) for path in self.val]

    def fingerprint(self, report: Reporter = SILENT) -> dict[str, Any]:
        """The recipe, hashes of the lists and the initial weights, names and sizes of the recordings."""
        for metric in self.recipe.train.metrics:
            parse(metric)
        if self.ranks.several and self.recipe.train.compile:
            raise RecipeError("train.compile: leave it out with torchrun; both together are not supported")
        device = parallel.device_of(self.device, self.ranks)
        train, val = self.sets()
        init = find_checkpoint(self.init) if self.init else None
        return {
            "recipe": self.recipe.to_dict(),
            "train": [provenance.sha256(path) for path in self.train],
            "val": [provenance.sha256(path) for path in self.val],
            "exclude": [provenance.sha256(path) for path in self.exclude],
            "audio": [_sizes(part.sounds) for part in (train, *val)],
            "init": provenance.sha256(init) if init else None,
            "pretrained": None if init else _pretrained(self.recipe),
            "precision": precision.resolve(self.precision, device),
            "ranks": self.ranks.count if self.ranks.several else None,
        }

    def load(self, made_of: Mapping[str, Any], report: Reporter = SILENT) -> RetrievalJob:
        """Find all recordings, read the initial checkpoint."""
        train, val = self.sets()
        for note in dict.fromkeys((*train.notes, *(note for part in val for note in part.notes))):
            report.note(note)
        for path, content in zip(self.val, made_of["val"], strict=True):
            if content in made_of["train"]:
                report.note(f"{path} is a training list too: validation will look better than it is")
        shared = set(train.sounds) & set(val[0].sounds)
        if shared:
            report.note(f"{len(shared):,} recordings of {self.val[0]} are trained on too")
        init = read_dual(find_checkpoint(self.init)) if self.init else None
        if init is None and getattr(self.recipe.model.audio, "checkpoint", "none to set") is None:
            report.note(
                f"{self.recipe.model.audio.kind} begins with random weights, what of it is frozen too; name "
                "trained ones with --set model.audio.checkpoint=FILE"
            )
        _require_same_towers(self.recipe, init, str(self.init))
        tower = audio_tower(self.recipe.model, init.memory.get("audio") if init else None)
        sets = [PairSet(part, tower, self.recipe.train, self.ranks) for part in (train, *val)]
        for part in sets if self.ranks.first else sets[:1]:  # the first alone validates
            part.load(report)
            if not part.spectra.in_memory:
                report.note(
                    f"spectra of {part.spectra.bytes / 2**30:.1f} GB are read anew each epoch by "
                    f"{part.spectra.workers} processes (train.memory_gb)"
                )
        return RetrievalJob(
            recipe=self.recipe,
            train=sets[0],
            val=tuple(zip(stems(self.val), sets[1:], strict=True)),
            init=init,
            init_sha256=made_of["init"],
            device=parallel.device_of(self.device, self.ranks),
            precision=made_of["precision"],
            provenance=self._provenance(made_of, init),
            verb=self.recipe.stage,
            ranks=self.ranks,
        )

    def _provenance(self, made_of: Mapping[str, Any], init: DualCheckpoint | None) -> dict[str, Any]:
        def listed(paths: Sequence[Path], hashes: Sequence[str]) -> list[dict[str, str]]:
            return [{"path": str(p), "sha256": h} for p, h in zip(paths, hashes, strict=True)]

        trained_on = listed(self.train, made_of["train"])
        parents = listed([find_checkpoint(self.init)], [made_of["init"]]) if self.init else []
        earlier = init.provenance.get("trained_on", []) if init else []
        return {
            **provenance.origin(),
            "inputs": {"train": trained_on, "val": listed(self.val, made_of["val"])},
            "trained_on": list({entry["sha256"]: entry for entry in (*trained_on, *earlier)}.values()),
            "parents": parents,
            "pretrained": made_of["pretrained"],
            **({"ranks": self.ranks.count} if self.ranks.several else {}),
        }


def _pretrained(recipe: RetrievalRecipe) -> dict[str, str]:
    """Hashes of the weights that the towers begin with, or the hub's names of them."""
    found = {}
    for side, config in (("audio", recipe.model.audio), ("text", recipe.model.text)):
        name = getattr(config, "checkpoint", None)
        if name:
            path = local(name)
            found[side] = sha256_of(path) if path.exists() else str(name)
    return found


def _require_same_towers(recipe: RetrievalRecipe, init: DualCheckpoint | None, where: str) -> None:
    if init is None:
        return
    for slot in ("audio", "text", "pooling"):
        theirs, ours = getattr(init.recipe.model, slot).kind, getattr(recipe.model, slot).kind
        if theirs != ours:
            raise CheckpointError(f"{where} has the {slot} component '{theirs}', the recipe wants '{ours}'")


def _sizes(sounds: Mapping[str, Sound]) -> str:
    """A hash of the names and sizes of recordings: tells sets of files apart without reading them."""
    return digest([[vid, byte_size(sound)] for vid, sound in sounds.items()])


def _fresh(recipe: RetrievalRecipe, init: DualCheckpoint | None, where: str) -> DualEncoder:
    """A network of the recipe; with `init` of its weights (pretrained files are not read then)."""
    network = DualEncoder(recipe.model, init.memory if init else None)
    if init is not None:
        init.fill(network, where)
    return network


@dataclass(frozen=True)
class RetrievalJob(Trainable[DualEncoder]):
    """A dual encoder's training."""

    recipe: RetrievalRecipe
    train: PairSet
    val: tuple[tuple[str, PairSet], ...]
    init: DualCheckpoint | None
    init_sha256: str | None
    device: torch.device
    precision: precision.Resolved
    provenance: Mapping[str, Any]
    verb: str
    ranks: Ranks = ALONE

    @property
    def ancestry(self) -> tuple[str, ...]:
        """The initial checkpoint and its own ancestors."""
        if self.init is None or self.init_sha256 is None:
            return ()
        return (self.init_sha256, *(self.init.provenance.get("ancestry") or []))

    def build(self, seed: int) -> DualEncoder:
        """Weights of `init`; else pretrained ones where the recipe names them, the rest drawn from `seed`."""
        torch.manual_seed(seed)
        network = _fresh(self.recipe, self.init, "the initial checkpoint").to(self.device)
        return parallel.prepared(network, self.ranks)

    def spread(self, network: DualEncoder) -> Callable[[Any], Any]:
        """See `parallel.spread`."""
        return parallel.spread(network, self.ranks) if self.ranks.several else network

    def criterion(self, network: DualEncoder) -> Callable[[Any, Any], Loss]:
        """The recipe's terms."""
        return RetrievalCriterion(self.recipe)

    def place(self) -> bool:
        """Spectra are brought batch by batch."""
        return True

    def steps(self) -> int:
        """Batches of an epoch."""
        return self.train.steps()

    def epoch(self, seed: int, number: int) -> Iterator[Pairs]:
        """The batches of one epoch, of each this process's share."""
        if not self.ranks.first:  # the loop has seeded all alike, and draws nothing before the first step
            torch.manual_seed(state.mix(seed, number, self.ranks.rank))
        return self.train.epoch(seed, number)

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """On a CUDA device float32 products of medium precision, as the paper; on the CPU that would change
        what float32 means."""
        before = torch.get_float32_matmul_precision()
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("medium")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def validate(self, network: DualEncoder) -> Validated:
        """Score every validation set; the first one's matrix can be written. The first process does both,
        the others are told the metrics."""
        if not self.ranks.first:
            return Validated(parallel.told(self.ranks, {}), lambda folder: None)
        scores: dict[str, dict[str, float]] = {}
        first: npt.NDArray[np.float32] | None = None
        for name, pairs in self.val:
            found = score(network, pairs, device=self.device)
            first = found if first is None else first
            matrix = matrix_of(found, pairs.captions)
            scores[name] = rank(found, original(matrix).relevant).metrics(self.recipe.train.metrics)
        assert first is not None
        return Validated(parallel.told(self.ranks, scores), partial(self._write, first))

    def _write(self, scores: npt.NDArray[np.float32], folder: RunFolder) -> None:
        meta = {
            "operation": "validate",
            "checkpoints": [source_of(folder.best(), self.recipe, self.provenance)],
            "predicted": self.provenance["inputs"]["val"][:1],
            "origin": provenance.origin(),
        }
        matrix = matrix_of(scores, self.val[0][1].captions, meta)
        write_scores(folder.scores, matrix, overwrite=True)
        provenance.write_json(folder.metrics, rank(scores, original(matrix).relevant).metrics())

    def save(
        self, network: DualEncoder, path: Path, epoch: int, metrics: Mapping[str, float], made: dict[str, Any]
    ) -> None:
        """Write the dual encoder's checkpoint, in the first process."""
        if not self.ranks.first:
            return
        tensors = {key: value.detach().cpu() for key, value in network.state_dict().items()}
        DualCheckpoint(tensors, self.recipe, network.memory(), epoch, dict(metrics), made).write(path)


def matrix_of(
    scores: npt.NDArray[np.float32], captions: CaptionSet, meta: dict[str, Any] | None = None
) -> ScoreMatrix:
    """Scores with the names of their rows and columns."""
    return ScoreMatrix(
        scores,
        tuple(pair.caption for pair in captions.pairs),
        tuple(pair.vid for pair in captions.pairs),
        tuple(captions.sounds),
        tuple(file_name(vid, sound) for vid, sound in captions.sounds.items()),
        meta or {},
    )


def file_name(vid: str, sound: Sound) -> str:
    """The name of a recording's file; of one in a tar its id with the suffix that the tar gives it."""
    return sound.name if isinstance(sound, Path) else vid + Path(sound.name).suffix


def source_of(path: Path, recipe: RetrievalRecipe, made: Mapping[str, Any]) -> dict[str, Any]:
    """What a score file says about a checkpoint."""
    return {
        "path": str(path),
        "sha256": provenance.sha256(path),
        "recipe": recipe.name,
        "trained_on": made.get("trained_on", []),
    }
