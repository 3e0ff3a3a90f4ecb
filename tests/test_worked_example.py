"""The example of docs/adding-a-component.md, registered, held to the contract, trained."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from amrctl import registry
from amrctl.losses.total import Criterion
from amrctl.model import encoder
from amrctl.model.detector import build
from amrctl.model.types import Dims, Memory
from tests import test_contract as contract
from tests.small import AUDIO_DIM, TEXT_DIM, batch, recipe

PAGE = Path(__file__).parents[1] / "docs" / "adding-a-component.md"
PLACE = ("encoder", "local-average")


def block(language: str) -> str:
    """The page's one block in that language."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return str(text)


@pytest.fixture(autouse=True)
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The file in the slot's folder, for as long as the test runs."""
    code = block("python")
    name = code.splitlines()[0].removeprefix("# amrctl/model/encoder/")
    (tmp_path / name).write_text(code, encoding="utf-8")
    monkeypatch.setattr(encoder, "__path__", [*encoder.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "_found", dict(registry._found))
    monkeypatch.setattr(registry, "_scanned", registry._scanned - {registry.SLOTS["encoder"]})
    yield
    sys.modules.pop(f"amrctl.model.encoder.{name.removesuffix('.py')}")


def test_it_is_found_and_keeps_the_contract() -> None:
    assert PLACE[1] in registry.kinds("encoder")
    contract.test_it_takes_and_returns_its_slots_record(*PLACE)
    contract.test_a_gradient_reaches_every_parameter(*PLACE)
    contract.test_padding_changes_nothing(*PLACE)
    contract.test_a_batch_equals_its_rows(*PLACE)


def test_the_recipe_line_trains_with_its_term() -> None:
    line = yaml.safe_load(block("yaml"))
    made = recipe(f"model.encoder={line['encoder']}", "model.encoder.local-average.weight=0.1")
    torch.manual_seed(0)
    detector = build(made, (AUDIO_DIM,), (TEXT_DIM,), training=True)
    data = batch()
    loss = Criterion(made, detector)(detector(data), data)
    assert float(loss.weighted["local-average"]) == pytest.approx(0.1 * float(loss.raw["local-average"]))
    assert float(loss.raw["local-average"]) > 0
    loss.total.backward()
    gate = dict(detector.named_parameters())["encoder.local-average.gate"]
    assert gate.grad is not None
    assert gate.grad != 0


def test_the_numbers_of_the_page() -> None:
    entry = registry.find(*PLACE)
    part = entry.build(
        entry.config.model_validate({"kind": "local-average", "reach": 1}), Dims(1, (1,), (1,))
    )
    with torch.no_grad():
        part.gate.fill_(1)
        part.linear.weight.fill_(1)
        part.linear.bias.zero_()

    def run(frames: list[float], real: int) -> Memory:
        zeros = torch.zeros(1, len(frames), 1)
        mask = torch.arange(len(frames))[None] < real
        audio = torch.tensor(frames, dtype=torch.float32)[None, :, None]
        text = torch.ones(1, 1, dtype=torch.bool)
        made: Memory = part(Memory(audio, mask, zeros, zeros[:, :1], text, zeros[:, 0], zeros[:, 0]))
        return made

    assert run([0, 3, 6], 3).audio.flatten().tolist() == [1.5, 6, 10.5]
    assert run([0, 3, 6, 99], 3).audio.flatten().tolist()[:3] == [1.5, 6, 10.5]
    assert not run([2, 2, 2, 2], 4).extras["local-average"].any()
