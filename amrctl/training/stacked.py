"""Several detectors of one recipe as one program: their weights are stacked, `torch.vmap` does the rest.

A step of S seeds is one forward pass, one assignment, one backward pass, one clipping and one optimiser
step on tensors [S, ...]. Every seed has its own batches, its own dropout, its own norm of the gradient; its
loss and its update are those of the seed trained alone, to rounding. A weight that is no number stays
within its seed.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from amrctl import registry
from amrctl.data.batch import Batch, Targets
from amrctl.errors import AmrctlError, RecipeError
from amrctl.losses.total import Loss
from amrctl.model.detector import Detector
from amrctl.model.types import Output
from amrctl.recipe import AnyRecipe, Recipe
from amrctl.training.each import for_each, norms_each
from amrctl.training.loop import _float32
from amrctl.training.precision import Resolved, autocast
from amrctl.training.run import Job

# the new weight depends on the same element of weight, gradient and state, and on nothing else
_ELEMENTWISE = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop, torch.optim.NAdam)
_CLIP_EPS = 1e-6  # of `clip_grad_norm_`
_LEAVE_OUT = "leave out --together"


def stackable(asked: AnyRecipe) -> Recipe:
    """The recipe, of which seeds trained together learn what each learns alone, as far as it tells.

    Raises `RecipeError` else. What only a network tells, `rehearse` finds.
    """
    if not isinstance(asked, Recipe):
        raise RecipeError(f"task: {asked.task}: only detectors are trained together; {_LEAVE_OUT}")
    if asked.compat == "official":
        raise RecipeError(
            "compat: official depends on how far a batch is padded, and seeds trained together share that; "
            f"{_LEAVE_OUT}"
        )
    if asked.train.compile:
        raise RecipeError("train.compile: not for seeds trained together; leave out one of the two")
    config = asked.train.optimizer
    made = registry.find("optimizer", config.kind).build(config, [nn.Parameter(torch.zeros(1))])
    if type(made) not in _ELEMENTWISE and not hasattr(made, "of_stack"):
        raise RecipeError(
            f"train.optimizer: '{config.kind}' looks at more than single weights, and seeds "
            f"trained together share their tensors; {_LEAVE_OUT}"
        )
    return asked


def rehearse(job: Job, seed: int) -> None:
    """Take a batch through two stacked detectors and back, before anything is written.

    Raises `RecipeError` that names the part of the recipe which cannot be stacked.
    """
    network = job.build(seed)
    paths = {part: f"model.{path}" for path, part in network.named_modules()}
    names = {id(part): paths[part] for part in network.components()}
    for part in network.components():
        if reason := getattr(part, "alone", None):
            raise RecipeError(f"{names[id(part)]}: {reason}; {_LEAVE_OUT}")
    criterion = job.criterion(network)
    names |= {id(term): f"losses: {term.name}" for term in getattr(criterion, "terms", ())}
    weights = Weights(network, 2)
    program = Program(network, criterion, job.precision, job.device)
    batch = next(job.epoch(seed, 1)).to(job.device)
    try:
        total, _ = program.losses(weights.tensors(), [batch, batch])
        torch.autograd.backward(total)
        program.evaluate(weights.tensors(), batch)
    except (AmrctlError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        where = [id(frame.f_locals.get("self")) for frame, _ in traceback.walk_tb(error.__traceback__)]
        culprit = next((names[found] for found in reversed(where) if found in names), "the recipe")
        told = (str(error).strip() or type(error).__name__).partition("\n")[0].partition(". ")[0]
        raise RecipeError(f"{culprit} cannot be trained together ({told}); {_LEAVE_OUT}") from error


def optimizer_of(recipe: Recipe, weights: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimiser over a stack."""
    config = recipe.train.optimizer
    trained = [p for p in weights.parameters() if p.requires_grad]
    made: torch.optim.Optimizer = registry.find("optimizer", config.kind).build(config, trained)
    if hasattr(made, "of_stack"):
        made.of_stack()
    return made


class Weights(nn.Module):
    """The tensors of S detectors, [S, ...] each, as parameters and buffers of one module."""

    def __init__(self, detector: Detector, size: int) -> None:
        super().__init__()
        for name, value in _tensors_of(detector).items():
            wide = value.detach().expand(size, *value.shape).clone()
            key = name.replace(".", "/")  # a module's own names hold no dots
            if value.requires_grad:
                self.register_parameter(key, nn.Parameter(wide))
            else:
                self.register_buffer(key, wide)

    def tensors(self) -> dict[str, Tensor]:
        """By the name each has in a detector."""
        return {key.replace("/", "."): value for key, value in _tensors_of(self).items()}

    @torch.no_grad()
    def load(self, seed: int, module: nn.Module) -> None:
        """Take a detector's tensors into place `seed` of the stack."""
        for mine, theirs in self._beside(module):
            mine[seed].copy_(theirs)

    @torch.no_grad()
    def save(self, seed: int, module: nn.Module) -> None:
        """Write place `seed` of the stack into a detector."""
        for mine, theirs in self._beside(module):
            theirs.copy_(mine[seed])

    def _beside(self, module: nn.Module) -> list[tuple[Tensor, Tensor]]:
        theirs = _tensors_of(module)
        return [(value, theirs[name]) for name, value in self.tensors().items()]


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@torch.no_grad()
def load_optimizer(stack: torch.optim.Optimizer, seed: int, alone: torch.optim.Optimizer) -> None:
    """Take the state of one detector's optimiser into place `seed` of the stack's."""
    _share(alone, stack)
    for wide, own in _pairs(stack, alone):
        for key, value in alone.state.get(own, {}).items():
            state = stack.state[wide]
            if key == "step":  # all who train together have taken as many
                state[key] = value.clone()
            else:
                state.setdefault(key, torch.zeros_like(wide))[seed].copy_(value)


@torch.no_grad()
def save_optimizer(stack: torch.optim.Optimizer, seed: int, alone: torch.optim.Optimizer) -> None:
    """Write place `seed` of the stack's optimiser state into one detector's."""
    _share(stack, alone)
    for wide, own in _pairs(stack, alone):
        found = stack.state.get(wide, {})
        alone.state[own] = {k: v.clone() if k == "step" else v[seed].clone() for k, v in found.items()}


def _pairs(stack: torch.optim.Optimizer, alone: torch.optim.Optimizer) -> list[tuple[Tensor, Tensor]]:
    wide, own = ([p for g in o.param_groups for p in g["params"]] for o in (stack, alone))
    return list(zip(wide, own, strict=True))


def _share(source: torch.optim.Optimizer, to: torch.optim.Optimizer) -> None:
    """Take over rates and counts, which are the same for all who train together."""
    for theirs, mine in zip(source.param_groups, to.param_groups, strict=True):
        mine |= {key: value for key, value in theirs.items() if key != "params"}


@dataclass
class Losses:
    """What a step found, per seed: [S] each, detached."""

    total: Tensor
    raw: dict[str, Tensor]
    weighted: dict[str, Tensor]


class Program:
    """Forward, losses and gradients of all stacked detectors."""

    def __init__(
        self,
        detector: Detector,
        criterion: Callable[[Any, Any], Loss],
        precision: Resolved,
        device: torch.device,
    ) -> None:
        self._detector, self._criterion = detector, criterion
        self._precision, self._device = precision, device

    def losses(self, weights: Mapping[str, Tensor], batches: Sequence[Batch]) -> tuple[Tensor, Losses]:
        """The sum over seeds to differentiate, and what it is made of; `batches`: one per seed.

        Seeds whose batches have different sizes (the last of an epoch may stand anywhere) run apart,
        because components may take means over the rows.
        """
        self._detector.train()
        sizes = [len(batch) for batch in batches]
        parts = []
        for size in sorted(set(sizes)):
            at = [i for i, other in enumerate(sizes) if other == size]
            mine = dict(weights)
            if len(at) < len(sizes):
                index = torch.tensor(at, device=self._device)
                mine = {name: value.index_select(0, index) for name, value in weights.items()}
            batch = stack_batches([batches[i] for i in at])
            output = self._run(mine, batch, 0)
            parts.append((at, *self._criteria(_float32(output), batch)))
        places = [i for at, *_ in parts for i in at]
        order = None
        if len(parts) > 1:
            order = torch.tensor(places, device=self._device).argsort()

        def joined(pieces: Iterable[Tensor]) -> Tensor:
            whole = torch.cat([piece.detach() for piece in pieces])
            return whole if order is None else whole[order]

        found = Losses(
            total=joined(total for _, total, _, _ in parts),
            raw={name: joined(raw[name] for _, _, raw, _ in parts) for name in parts[0][2]},
            weighted={name: joined(weighted[name] for *_, weighted in parts) for name in parts[0][3]},
        )
        return torch.stack([total.sum() for _, total, _, _ in parts]).sum(), found

    @torch.no_grad()
    def evaluate(self, weights: Mapping[str, Tensor], batch: Batch) -> list[Output]:
        """Every seed's output on one and the same batch, in float32."""
        self._detector.eval()
        output = self._run(weights, batch, None)
        size = len(next(iter(weights.values())))
        return [_filled(output, iter([x[i] for x in _tensors(output)])) for i in range(size)]

    def _run(self, weights: Mapping[str, Tensor], batch: Batch, dim: int | None) -> Output:
        """All outputs, [S, ...] each; `dim`: where `batch` has its seeds, None if they share it."""
        shape: list[Output] = []

        def one(weights: dict[str, Tensor], parts: list[Tensor]) -> list[Tensor]:
            mine = batch if dim is None else _filled(batch, iter(parts))
            with self._number_format():
                output = torch.func.functional_call(self._detector, weights, (mine,))
            if dim is None:
                output = replace(output, extras=self._for_scores(output.extras))
            shape[:] = [output]
            return _tensors(output)

        given = [] if dim is None else _tensors(batch)
        found = torch.vmap(one, in_dims=(0, dim), randomness="different")(dict(weights), given)
        whole: Output = _filled(shape[0], iter(found))
        return whole

    def _for_scores(self, extras: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What heads and refinement wrote. The others' are for losses, and large."""
        parts = (*self._detector.heads, *self._detector.refine)
        return {name: value for name, value in extras.items() if name.partition(".")[0] in parts}

    @contextlib.contextmanager
    def _number_format(self) -> Iterator[None]:
        if not self._detector.training or self._precision == "fp32":
            yield
            return
        with autocast(self._precision, self._device), _WholeLinear():
            yield

    def _criteria(self, output: Output, batch: Batch) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Total, raw and weighted terms of every seed, [S] each."""

        def one(of_output: list[Tensor], of_batch: list[Tensor]) -> Any:
            loss = self._criterion(_filled(output, iter(of_output)), _filled(batch, iter(of_batch)))
            return loss.total, loss.raw, loss.weighted

        total, raw, weighted = torch.vmap(one)(_tensors(output), _tensors(batch))
        return total, raw, weighted


class _WholeLinear(TorchFunctionMode):
    """Autocast of `linear` as a whole.

    Under vmap its product comes before autocast and its sum after, so that the result would be float32.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear:
            args = tuple(_half(x) for x in args)
            kwargs = {name: _half(x) for name, x in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


def _half(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.to(torch.bfloat16)


def clip_each(parameters: Iterable[nn.Parameter], limit: float | None) -> Tensor:
    """Scale every seed's gradients to a norm of at most `limit`; returns the norms before, [S].

    As `torch.nn.utils.clip_grad_norm_`, which would take one norm over all seeds.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = norms_each(grads)
    if limit is not None:
        scale = (limit / (norm + _CLIP_EPS)).clamp(max=1.0)
        torch._foreach_mul_(grads, [for_each(scale, grad) for grad in grads])
    return norm


def stack_batches(batches: Sequence[Batch]) -> Batch:
    """Batches of equal size as one with a first dimension for their seeds.

    Frames, tokens and moments are padded to the longest of all; padding is masked as in any batch.
    """
    columns = [_tensors(replace(batch, targets=_without_pairs(batch))) for batch in batches]
    wide = [_padded(column) for column in zip(*columns, strict=True)]
    first = replace(batches[0], targets=_without_pairs(batches[0]))
    stacked: Batch = _filled(first, iter(wide))
    return stacked


def _without_pairs(batch: Batch) -> Targets | None:
    """Their number differs between seeds; `losses.dense` makes its own."""
    return None if batch.targets is None else replace(batch.targets, pairs=None)


def _padded(tensors: Sequence[Tensor]) -> Tensor:
    shapes = {x.shape for x in tensors}
    if len(shapes) == 1:
        return torch.stack(list(tensors))
    longest = [max(sizes) for sizes in zip(*shapes, strict=True)]
    wide = tensors[0].new_zeros(len(tensors), *longest)
    for place, x in zip(wide, tensors, strict=True):
        place[tuple(slice(size) for size in x.shape)] = x
    return wide


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in a record of the detector, in a fixed order."""
    if isinstance(value, Tensor):
        return [value]
    return [x for _, part in _parts(value) for x in _tensors(part)]


def _filled(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The record with other tensors in the places of its own."""
    if isinstance(value, Tensor):
        return next(tensors)
    made = {key: _filled(part, tensors) for key, part in _parts(value)}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **made)
    if isinstance(value, dict):
        return made
    return tuple(made.values()) if isinstance(value, tuple) else value


def _parts(value: Any) -> Iterable[tuple[Any, Any]]:
    if is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, tuple) else ()
