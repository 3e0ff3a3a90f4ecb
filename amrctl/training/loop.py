"""The training loop: epochs, validation, best checkpoints, commit, resume.

Order of an epoch: train, validate, write the checkpoints that became best and `last`, the log and
the curves, then `state.pt`, which is the commit. The weights that are validated are the weights
that are saved (with EMA: the averaged ones).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amrctl import provenance, registry
from amrctl.errors import AmrctlError
from amrctl.losses.total import Loss
from amrctl.progress import SILENT, Bar, Reporter
from amrctl.run_folder import RunFolder
from amrctl.training import curves, state
from amrctl.training.ema import Average
from amrctl.training.folder import locked
from amrctl.training.precision import autocast, compiled
from amrctl.training.task import Trainable, Validated
from amrctl.training.watch import Watch

_DRAW_EVERY = 20.0  # seconds between drawings of the curves while training goes on


class DivergedError(AmrctlError):
    """The loss or a gradient is not a number any more; the run stands at its last commit."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `best`: metric → value in percent and epoch (from 1). `epochs`: how many were
    trained over all starts; `resumed`: how many of them before this start."""

    folder: RunFolder
    seed: int
    best: dict[str, dict[str, float]]
    epochs: int
    resumed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "run": str(self.folder.path),
            "checkpoint": str(self.folder.best()),
            "seed": self.seed,
            "epochs": self.epochs,
            "resumed_after": self.resumed,
            "best": self.best,
        }


def train(
    job: Trainable[Any],
    folder: RunFolder,
    seed: int,
    fingerprint: Mapping[str, Any],
    *,
    resume: bool,
    report: Reporter = SILENT,
) -> Outcome:
    """Train one seed to its end in `folder`; with `resume`, go on from the state that is there.

    Without, whatever run the folder holds is removed first. Raises `DivergedError` when a loss term
    stops being a number.
    """
    with locked(folder.path), repeatable(job.device), job.context():
        found = begin(job, folder, fingerprint, resume)
        run = _Run(job, folder, seed, found, report)
        place(job, report)
        return run.to_the_end()


def begin(
    job: Trainable[Any], folder: RunFolder, fingerprint: Mapping[str, Any], resume: bool
) -> state.State:
    """The state to go on from; without `resume`, that of a run which begins in a cleared folder."""
    if resume:
        return state.read(folder.state)
    folder.clear()
    provenance.write_text(folder.recipe, job.recipe.to_yaml())
    found = state.State(dict(fingerprint))
    state.write(folder.state, found)
    return found


def place(job: Trainable[Any], report: Reporter) -> None:
    """Bring the data near the device, once the networks are there; say so where they do not fit."""
    if not job.place():
        report.note(f"the features do not fit beside the training on {job.device}; they stay on the host")


class _Run:
    """One seed's training while it runs."""

    def __init__(
        self, job: Trainable[Any], folder: RunFolder, seed: int, found: state.State, report: Reporter
    ) -> None:
        self.job, self.folder, self.seed, self.report = job, folder, seed, report
        self.settings = job.recipe.train
        self.network: nn.Module = job.build(seed)
        self.provenance = self._own_provenance()
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.criterion = job.criterion(self.network)
        config = self.settings.optimizer
        self.optimizer: torch.optim.Optimizer = registry.find("optimizer", config.kind).build(
            config, self.parameters
        )
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        config = self.settings.schedule
        self.schedule = registry.find("schedule", config.kind).build(config)
        self.forward = compiled(self.network) if self.settings.compile else job.spread(self.network)
        if found.weights is not None:
            self.network.load_state_dict(found.weights)
        ema = self.settings.ema
        self.average = Average(self.network, ema.decay) if ema else None
        if self.average and found.average is not None:
            self.average.module.load_state_dict(found.average)
        if found.optimizer is not None:
            self.optimizer.load_state_dict(found.optimizer)
        self.state = replace(found, weights=None, average=None, optimizer=None)  # their memory is free now
        self.steps = job.steps()
        self.latest = ""
        for line in found.history:
            self.latest = self._tell(json.loads(line)["val"]) or self.latest
        self.drawn = time.monotonic()

    @property
    def evaluated(self) -> nn.Module:
        """The weights that are validated and saved."""
        return self.average.module if self.average else self.network

    def to_the_end(self) -> Outcome:
        """Train the epochs that are missing."""
        resumed, epochs = self.state.epoch, self.settings.epochs
        if resumed and not self.state.finished:
            self.report.note(f"{self.folder.path}: goes on after epoch {resumed} of {epochs}")
            self._write_log()
        title = f"{self.job.verb} {self.folder.path.name}"
        with self.report.bar(title, epochs * self.steps, unit="steps", done=resumed * self.steps) as bar:
            while not self.state.finished:
                self._epoch(bar)
        return Outcome(self.folder, self.seed, self.state.best, self.state.epoch, resumed)

    def _epoch(self, bar: Bar) -> None:
        began = time.monotonic()
        number = self.state.epoch + 1
        self._finish(number, began, *self._train_epoch(number, bar))

    def _finish(
        self, number: int, began: float, loss: float, terms: Mapping[str, float], rate: float
    ) -> None:
        """All that comes after an epoch's last step."""
        entry: dict[str, Any] = {"epoch": number, "lr": rate, "loss": loss, "terms": terms, "val": {}}
        last = number == self.settings.epochs
        if number % self.settings.evaluate_every == 0 or last:
            entry["val"] = self._validate(number)
        patience = self.settings.patience
        stopped = patience is not None and self.state.stale >= patience and not last
        if stopped:
            self.report.note(
                f"{self.folder.path}: stops after epoch {number}: {self.state.stale} validations "
                f"without a better {self.settings.metrics[0]}"
            )
        entry["seconds"] = round(time.monotonic() - began, 3)
        self.state.history.append(json.dumps(entry, allow_nan=False))
        self._commit(number, finished=last or stopped)

    def _train_epoch(self, number: int, bar: Bar) -> tuple[float, dict[str, float], float]:
        """Returns the mean weighted loss, the mean of each raw term, and the last learning rate."""
        torch.manual_seed(state.mix(self.seed, number))
        self.network.train()
        sums: dict[str, Tensor] = {}
        rate, taken = 0.0, 0
        watch = Watch(self._diverged, deferred=self.job.device.type == "cuda")
        for batch in self.job.epoch(self.seed, number):
            step = (number - 1) * self.steps + taken
            factor = self.schedule.factor(step, self.steps, self.settings.epochs)
            for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
                group["lr"] = base * factor
            rate = self.optimizer.param_groups[0]["lr"]
            raw = self._step(batch.to(self.job.device), f"epoch {number}, step {taken + 1}", watch)
            if self.average:
                self.average.update(step)
            for name, term in raw.items():
                sums[name] = sums[name] + term.double() if name in sums else term.double()
            taken += 1
            watch.poll()
            bar.advance(1, self._note(number, watch.mean) if watch.steps else "")
        watch.poll(wait=True)
        return watch.mean, {name: float(value) / taken for name, value in sums.items()}, rate

    def _step(self, batch: Any, where: str, watch: Watch) -> dict[str, Tensor]:
        """One optimiser step; returns the raw loss terms of its first pass, on the device."""
        losses: list[Loss] = []

        def closure() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            with autocast(self.job.precision, self.job.device):
                output = self.forward(batch)
            loss = self.criterion(_float32(output), batch)
            watch.loss(loss, where)
            torch.autograd.backward(loss.total)
            limit = self.settings.clip
            norm = nn.utils.clip_grad_norm_(self.parameters, math.inf if limit is None else limit)
            watch.norm(loss, norm, where, counts=not losses)
            losses.append(loss)
            return loss.total.detach()

        self.optimizer.step(closure)  # type: ignore[arg-type]  # a tensor is taken too, and not read
        return losses[0].raw

    def _diverged(self, where: str, what: str) -> DivergedError:
        done = self.state.epoch
        saved = f"epoch {done} is the last that is saved" if done else "nothing is saved yet"
        remedy = "lower train.optimizer.lr, or try --precision fp32"
        return DivergedError(f"{self.folder.path}: {where}: {what}; {saved}; {remedy}")

    def _note(self, number: int, loss: float) -> str:
        return f"epoch {number} loss {loss:.4g}{self.latest}"

    def _tell(self, val: Mapping[str, Mapping[str, float]]) -> str:
        primary = self.settings.metrics[0]
        return f" {primary} {next(iter(val.values()))[primary]:.1f}" if val else ""

    def _validate(self, number: int) -> dict[str, dict[str, float]]:
        """Validate on every set, save what became best, and return metrics per set."""
        found = self._answered()
        self.latest = self._tell(found.scores)
        metrics = next(iter(found.scores.values()))
        self.state.stale += 1
        for metric in self.settings.metrics:
            value = self.job.compared(metrics[metric])
            best = self.state.best.get(metric)
            if best is not None and value <= best["value"]:
                continue
            self.state.best[metric] = {"value": value, "epoch": number}
            self._save(self.folder.best(metric), number, metrics)
            if metric == self.settings.metrics[0]:
                self.state.stale = 0
                self._save(self.folder.best(), number, metrics)
                found.write(self.folder)
        return found.scores

    def _answered(self) -> Validated:
        return self.job.validate(self.evaluated)

    def _save(self, path: Path, number: int, metrics: Mapping[str, float]) -> None:
        self.job.save(self.evaluated, path, number, metrics, self.provenance)

    def _commit(self, number: int, *, finished: bool) -> None:
        if not self.job.ranks.first:  # the first process keeps the run folder
            self.state = replace(self.state, epoch=number, finished=finished)
            return
        entry = json.loads(self.state.history[-1])
        metrics: dict[str, float] = next(iter(entry["val"].values()), {})
        self._save(self.folder.last, number, metrics)
        self._write_log()
        if finished or time.monotonic() - self.drawn > _DRAW_EVERY:
            log = [json.loads(line) for line in self.state.history]
            title = f"{self.job.recipe.name}, {self.job.recipe.stage}, seed {self.seed}"
            curves.draw(self.folder.curves, log, title)
            self.drawn = time.monotonic()
        self.state = replace(
            self.state,
            epoch=number,
            finished=finished,
            weights=_on_cpu(self.network.state_dict()),
            average=_on_cpu(self.average.module.state_dict()) if self.average else None,
            optimizer=self.optimizer.state_dict(),
        )
        state.write(self.folder.state, self.state)

    def _write_log(self) -> None:
        provenance.write_text(self.folder.log, "".join(line + "\n" for line in self.state.history))

    def _own_provenance(self) -> dict[str, Any]:
        """The job's provenance with what only the built network tells. `ancestry`: hashes of the
        weights that these grew from, nearest first; soups look for a common one."""
        ancestry = list(self.job.ancestry) or [_digest(self.network)]
        counts = [(p.numel(), p.requires_grad) for p in self.network.parameters()]
        return {
            **self.job.provenance,
            "seed": self.seed,
            "ancestry": ancestry,
            "parameters": {
                "trainable": sum(count for count, trains in counts if trains),
                "total": sum(count for count, _ in counts),
            },
        }


def _float32(output: Any) -> Any:
    """The same output with every half-precision tensor as float32: losses do not round."""

    def wide(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
        if isinstance(value, dict):
            return {key: wide(item) for key, item in value.items()}
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{name: wide(item) for name, item in vars(value).items()})
        return value

    return wide(output)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().cpu() for key, value in tensors.items()}


def _digest(module: nn.Module) -> str:
    """SHA-256 over names and bytes of a module's tensors."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Ask CUDA for kernels that give the same bits every time, where it has them."""
    if device.type != "cuda":
        yield
        return
    # read once, when the first matrix product runs
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warn_before = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_before)
