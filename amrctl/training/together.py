"""Training several seeds in one program: what `training.loop` does for one, epoch by epoch for all.

The program holds the same seeds from its first to its last epoch. One that has stopped, diverged or is
ahead (a kill may come between two seeds' commits) computes along, and nothing of that is kept: the random
numbers of an epoch depend on the list of seeds and its number alone, so that a run that was killed ends with
the same bits. They are not the bits of a seed trained alone, which is why the list is in the fingerprint.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from amrctl.data.batch import Batch
from amrctl.errors import CheckpointError
from amrctl.losses.total import Loss
from amrctl.model.detector import Detector
from amrctl.model.types import Output
from amrctl.progress import SILENT, Bar, Reporter
from amrctl.run_folder import RunFolder
from amrctl.training import state
from amrctl.training.ema import Average
from amrctl.training.folder import find_state, locked
from amrctl.training.loop import DivergedError, Outcome, _Run, begin, place, repeatable
from amrctl.training.run import Job
from amrctl.training.stacked import (
    Losses,
    Program,
    Weights,
    clip_each,
    load_optimizer,
    optimizer_of,
    save_optimizer,
)
from amrctl.training.task import Validated
from amrctl.training.watch import Watch

COMMIT_EVERY = 60.0  # seconds: the states of many seeds are large, and writing them costs more than an epoch

Tell = Callable[[Mapping[int, Outcome], Mapping[int, Exception]], None]


def programs(
    folders: Mapping[int, RunFolder], marks: Mapping[int, Mapping[str, Any]], overwrite: bool
) -> list[tuple[int, ...]]:
    """The seeds of each program that the seeds of `folders` are of: of the one in which a seed began, or in
    which another did that lists it, or else of one with all that begin now.

    `marks`: every seed's fingerprint, but for its program. Raises `OutputError` where a folder holds
    another run.
    """
    own: dict[int, tuple[int, ...]] = {}
    for seed, folder in folders.items():
        before = _program(folder)
        mark = {**marks[seed], "together": list(before)}
        if before and find_state(folder, mark, overwrite) is not None:
            own[seed] = before
    listed = {seed: program for program in own.values() for seed in program} | own
    fresh = tuple(seed for seed in folders if seed not in listed)
    return list(dict.fromkeys(listed.get(seed, fresh) for seed in folders))


def _program(folder: RunFolder) -> tuple[int, ...]:
    """The seeds of the program that a run is of; none where it is of none."""
    try:
        found = state.read(folder.state, tensors=False).fingerprint.get("together")
    except CheckpointError:
        return ()
    return tuple(found) if isinstance(found, list) else ()


def train_together(
    job: Job,
    group: Sequence[int],
    folders: Mapping[int, RunFolder],
    fingerprints: Mapping[int, Mapping[str, Any]],
    resume: Mapping[int, bool],
    *,
    tell: Tell = lambda outcomes, failed: None,
    report: Reporter = SILENT,
) -> None:
    """Train the seeds of `folders`, which are of the program of `group`, each in its own folder.

    `fingerprints` and `resume`: of every seed, as for `loop.train`. `tell` is called with what ended or
    failed, whenever a seed is settled; an error that is not one seed's own fails all that were still
    training.
    """
    settled: set[int] = set()

    def told(ended: Mapping[int, Outcome], failed: Mapping[int, Exception]) -> None:
        settled.update(ended, failed)
        tell(ended, failed)

    try:
        with contextlib.ExitStack() as held:
            for folder in folders.values():
                held.enter_context(locked(folder.path))
            held.enter_context(repeatable(job.device))
            held.enter_context(job.context())
            members = [
                _Member(job, folder, seed, begin(job, folder, fingerprints[seed], resume[seed]), report)
                for seed, folder in folders.items()
            ]
            program = _Together(job, tuple(group), members, told, report)
            place(job, report)
            program.to_the_end()
    except Exception as error:
        told({}, {seed: error for seed in folders if seed not in settled})


class _Member(_Run):
    """One seed: its files, validations and best values. Its tensors are those of its last `sync`."""

    def __init__(self, job: Job, folder: RunFolder, seed: int, found: state.State, report: Reporter) -> None:
        super().__init__(job, folder, seed, found, report)
        self.resumed = self.committed = self.state.epoch
        self.joined = self.due = self.behind = False
        self.sync: Callable[[], None] = lambda: None
        self.outputs: Iterator[Output] = iter(())  # of every validation batch, in their order

    def outcome(self) -> Outcome:
        return Outcome(self.folder, self.seed, self.state.best, self.state.epoch, self.resumed)

    def judge(
        self, total: Tensor, norm: Tensor, raw: dict[str, Tensor], weighted: dict[str, Tensor], where: str
    ) -> None:
        """Raise the error of a step whose numbers are none."""
        self.state = replace(self.state, epoch=self.committed)  # where the run stands from now on
        watch, loss = Watch(self._diverged, deferred=False), Loss(total, raw, weighted)
        watch.loss(loss, where)
        watch.norm(loss, norm, where, counts=False)

    def _answered(self) -> Validated:
        return self.job.validate(cast(Detector, _Replay(self.outputs)))

    def _save(self, path: Path, number: int, metrics: Mapping[str, float]) -> None:
        if self.behind:
            self.sync()
            self.behind = False
        super()._save(path, number, metrics)

    def _commit(self, number: int, *, finished: bool) -> None:
        if not (finished or self.due):
            self._write_log()
            self.state = replace(self.state, epoch=number)
            return
        if not finished:
            self.drawn = time.monotonic()  # the curves of many seeds are drawn at the end only
        super()._commit(number, finished=finished)
        self.state = replace(self.state, weights=None, average=None, optimizer=None)
        self.committed = number


class _Replay:
    """In the place of a detector: says what was said before, batch by batch."""

    def __init__(self, outputs: Iterator[Output]) -> None:
        self._left = outputs

    def eval(self) -> None:
        """Nothing to change."""

    def __call__(self, batch: Batch) -> Output:
        return next(self._left)


class _Together:
    """The program of a group of seeds while it runs."""

    def __init__(
        self,
        job: Job,
        group: tuple[int, ...],
        members: list[_Member],
        tell: Tell,
        report: Reporter,
    ) -> None:
        self.job, self.group, self.members, self.tell, self.report = job, group, members, tell, report
        self.settings = job.recipe.train
        first = members[0]
        network = cast(Detector, first.network)
        self.weights = Weights(network, len(group))
        self.optimizer = optimizer_of(job.recipe, self.weights)
        ema = self.settings.ema
        self.average = Average(self.weights, ema.decay) if ema else None
        self.program = Program(network, first.criterion, job.precision, job.device)
        self.schedule, self.base_rates, self.steps = first.schedule, first.base_rates, first.steps
        self.left = list(members)
        self.committed = time.monotonic()

    def to_the_end(self) -> None:
        """Train the epochs that are missing."""
        epochs = self.settings.epochs
        done = min(member.state.epoch for member in self.members)
        if done:
            self.report.note(f"{len(self.members)} seeds go on after epoch {done} of {epochs}")
        title = f"{self.job.verb} {len(self.members)} seeds"
        with self.report.bar(title, epochs * self.steps, unit="steps", done=done * self.steps) as bar:
            while self.left:
                self._epoch(bar)

    def _epoch(self, bar: Bar) -> None:
        began = time.monotonic()
        number = min(member.state.epoch for member in self.left) + 1
        acting = [member for member in self.left if member.state.epoch == number - 1]
        for member in acting:
            if not member.joined:
                self._join(member)
        tally, rate = self._train(number, bar)
        for member in list(acting):
            try:
                tally.judge(self.group.index(member.seed), member, number)
            except DivergedError as error:
                acting.remove(member)
                self._settle(member, error)
        if acting and (number % self.settings.evaluate_every == 0 or number == self.settings.epochs):
            self._answer(acting)
        due = time.monotonic() - self.committed >= COMMIT_EVERY
        for member in acting:
            member.due, member.behind = due, True
            try:
                member._finish(number, began, *tally.means(self.group.index(member.seed)), rate)
            except Exception as error:  # of its files: the others may still be written
                self._settle(member, error)
            else:
                if member.state.finished:
                    self._settle(member)
        if due:
            self.committed = time.monotonic()

    def _settle(self, member: _Member, error: Exception | None = None) -> None:
        """Take a seed out, and tell."""
        self.left.remove(member)
        if error is None:
            self.tell({member.seed: member.outcome()}, {})
        else:
            self.tell({}, {member.seed: error})

    def _join(self, member: _Member) -> None:
        """Bring a seed's tensors into the program, and from now on out of it."""
        at = self.group.index(member.seed)
        modules = [(self.weights, member.network)]
        if self.average and member.average:
            modules.append((self.average.module, member.average.module))
        for stack, alone in modules:
            stack.load(at, alone)
        load_optimizer(self.optimizer, at, member.optimizer)

        def sync() -> None:
            for stack, alone in modules:
                stack.save(at, alone)
            save_optimizer(self.optimizer, at, member.optimizer)

        member.sync, member.joined = sync, True

    def _train(self, number: int, bar: Bar) -> tuple[_Tally, float]:
        """Every step of an epoch; returns what came of it and the last learning rate."""
        torch.manual_seed(state.mix(self._key(), number))
        tally, rate = _Tally(), 0.0
        streams = [self.job.epoch(seed, number) for seed in self.group]
        for taken, batches in enumerate(zip(*streams, strict=True)):
            step = (number - 1) * self.steps + taken
            factor = self.schedule.factor(step, self.steps, self.settings.epochs)
            for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
                group["lr"] = base * factor
            rate = self.optimizer.param_groups[0]["lr"]
            tally.add(self._step([batch.to(self.job.device) for batch in batches]))
            if self.average:
                self.average.update(step)
            bar.advance(1, f"epoch {number}")
        return tally, rate

    def _step(self, batches: Sequence[Batch]) -> list[tuple[Losses, Tensor]]:
        """One optimiser step of all seeds; returns losses and norms of its passes."""
        passes = []

        def closure() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            total, found = self.program.losses(self.weights.tensors(), batches)
            torch.autograd.backward(total)
            passes.append((found, clip_each(self.weights.parameters(), self.settings.clip)))
            return total.detach()

        self.optimizer.step(closure)  # type: ignore[arg-type]  # a tensor is taken too, and not read
        return passes

    def _key(self) -> int:
        digest = hashlib.sha256(" ".join(map(str, self.group)).encode()).digest()
        return int.from_bytes(digest[:8], "big")

    def _answer(self, members: Sequence[_Member]) -> None:
        """Run the validation sets through all seeds at once."""
        weights = (self.average.module if self.average else self.weights).tensors()
        said: list[list[Output]] = []
        for _, dataset in self.job.val:
            dataset.place(self.job.device)
            said += [
                self.program.evaluate(weights, batch.to(self.job.device)) for batch in dataset.in_order()
            ]
        for member in members:
            at = self.group.index(member.seed)
            member.outputs = iter([outputs[at] for outputs in said])


class _Tally:
    """Sums over an epoch's steps, and each seed's first step that was no number; read once, at the end."""

    def __init__(self) -> None:
        self._names: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
        self._sums = self._first = self._then = torch.zeros(0)
        self._steps = 0

    def add(self, passes: Sequence[tuple[Losses, Tensor]]) -> None:
        """Count a step, whose first pass is logged; everything stays on its device."""
        for again, (found, norm) in enumerate(passes):
            columns = (found.total, norm, *found.raw.values(), *found.weighted.values())
            numbers = torch.stack([column.double() for column in columns])
            if not self._names[0]:
                self._names = (tuple(found.raw), tuple(found.weighted))
                self._sums, self._then = torch.zeros_like(numbers), torch.zeros_like(numbers)
                self._first = torch.full_like(numbers[0], -1)
            fresh = ~numbers[:2].isfinite().all(0) & (self._first < 0)
            self._first = torch.where(fresh, self._steps, self._first)
            self._then = torch.where(fresh, numbers, self._then)
            if not again:
                self._sums += numbers
        self._steps += 1

    def judge(self, at: int, member: _Member, number: int) -> None:
        """Raise `DivergedError` where the seed at place `at` had a step that was no number."""
        first, then = int(self._first[at]), self._then[:, at].cpu()
        if first >= 0:
            raw, weighted = self._named(then)
            member.judge(then[0], then[1], raw, weighted, f"epoch {number}, step {first + 1}")

    def means(self, at: int) -> tuple[float, dict[str, float]]:
        """The mean loss and raw terms of the seed at place `at`."""
        mean = self._sums[:, at].cpu() / self._steps
        return float(mean[0]), {name: float(value) for name, value in self._named(mean)[0].items()}

    def _named(self, numbers: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        raw, weighted = self._names
        cut = 2 + len(raw)
        return dict(zip(raw, numbers[2:cut], strict=True)), dict(zip(weighted, numbers[cut:], strict=True))
