"""Which number format is taken, and that averaged weights are what the formula says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from amrctl import processor
from amrctl.errors import AmrctlError
from amrctl.training import precision
from amrctl.training.ema import Average


def test_auto_takes_bf16_only_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for flags, expected in (({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags, raising=False)
        assert precision.resolve("auto", cpu) == expected
        assert precision.resolve("fp32", cpu) == "fp32"
        assert precision.resolve("bf16", cpu) == "bf16"
    with pytest.raises(AmrctlError, match="--precision half: there is auto, fp32, bf16"):
        precision.resolve("half", cpu)


def test_older_torch_reads_the_kernels_list(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name : x\nflags\t\t: fpu avx2 avx512_bf16 sse\n")
    assert processor._flagged(str(cpuinfo))
    cpuinfo.write_text("flags : fpu avx2 avx512_bf16x\n")
    assert not processor._flagged(str(cpuinfo))
    assert not processor._flagged(str(tmp_path / "none"))


def test_autocast_multiplies_in_bf16_and_leaves_fp32_alone() -> None:
    cpu = torch.device("cpu")
    a = torch.randn(4, 4)
    with precision.autocast("bf16", cpu):
        assert (a @ a).dtype == torch.bfloat16
    with precision.autocast("fp32", cpu):
        assert (a @ a).dtype == torch.float32


@pytest.mark.parametrize("asked", ["tpu", "cuda:x"])
def test_unknown_device(asked: str) -> None:
    with pytest.raises(AmrctlError, match=f"--device {asked}"):
        precision.pick_device(asked)


def test_average_follows_the_formula_and_copies_counters() -> None:
    module = nn.BatchNorm1d(3)
    average = Average(module, decay=0.5)
    expected = module.weight.detach().double().clone()
    for step in range(6):
        with torch.no_grad():
            module.weight.copy_(torch.tensor([1.0, -2.0, 5.0]) * (step + 1))
        module.train()(torch.randn(4, 3))
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach().double()
    torch.testing.assert_close(average.module.weight.double(), expected, rtol=1e-6, atol=1e-6)
    assert average.module.num_batches_tracked is not None
    assert int(average.module.num_batches_tracked) == 6
    assert not average.module.weight.requires_grad
    assert not average.module.training
