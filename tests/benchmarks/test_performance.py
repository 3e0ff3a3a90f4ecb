"""The performance table: its arithmetic, its page, what a case does without the official code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from amrctl.model.layers.attention import attend
from benchmarks import inputs, measure, official, run, same_training, scan, steps
from benchmarks.cases import metric, training
from benchmarks.official import Official
from benchmarks.table import BEGIN, END, Row, cells, markdown, number, text_table, write_block


def test_ratios_by_hand() -> None:
    row = Row("x", 0.5, 2.0, limit=0.1)
    assert (row.ratio, row.of_limit) == (4.0, 0.2)
    rate = Row("y", 50.0, 10.0, unit="MB/s", limit=100.0, higher_is_better=True)
    assert (rate.ratio, rate.of_limit) == (5.0, 0.5)
    assert Row("z", 1.0).ratio is Row("z", None, 1.0).ratio is Row("z", 1.0).of_limit is None
    assert cells(row)[:6] == ("x", "0.5", "2", "s", "4.00 x", "20 %")
    assert [number(v) for v in (None, 0, 1234.5, 12.345, 0.0012345, 0.0000126)] == [
        *("", "0", "1,234", "12.3", "0.00123", "0.000013"),
    ]


def test_the_table_in_text_and_on_a_page(tmp_path: Path) -> None:
    made = [Row("one | two", 1.0, 2.0, note="a"), Row("b", 0.25, memory_mb=1234.0)]
    lines = text_table(made).splitlines()
    assert len(lines) == 4
    assert len({line.index("s") for line in lines[2:] if "  s" in line}) == 1
    assert all(line.count("|") == 9 for line in markdown(made).splitlines())
    page = tmp_path / "p.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_block(page, markdown(made))
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert "| 1,234 |" in text
    page.write_text("no markers")
    with pytest.raises(ValueError, match="lacks"):
        write_block(page, "x")


def test_medians_of_works_that_take_turns() -> None:
    turns: list[str] = []
    times = measure.interleaved({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, 3)
    assert turns == ["a", "b"] * 4  # one round warms up
    assert all(t >= 0 for t in times.values())


def test_operations_are_counted() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7, requires_grad=True)
    assert measure.flops(lambda: a @ b) == 2 * 3 * 5 * 7
    assert measure.flops(lambda: (a @ b).sum().backward()) == 4 * 3 * 5 * 7  # and one in the backward pass
    q = torch.ones(1, 2, 6, 4)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert measure.flops(lambda: attention(q, q, q)) == 2 * 2 * 2 * 6 * 6 * 4


def test_operations_in_other_threads_are_counted() -> None:
    x = torch.randn(600, 2, 40, 8, requires_grad=True)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        counted = measure.flops(lambda: attend(x, x, x, None, 0.1, True).sum().backward())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert counted == 6 * 2 * 600 * 2 * 40 * 40 * 8  # two products, and four for their gradients


def test_the_scan_is_timed_beside_an_equal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = scan.rows(True)
    assert row.ours
    assert row.reference
    right = scan.reference
    monkeypatch.setattr(scan, "reference", lambda *args: 1.001 * right(*args))
    with pytest.raises(AssertionError, match="a gradient differs by 1"):
        scan.rows(True)


def test_the_table_of_equal_trainings() -> None:
    scores = [{"R1@0.5": r, "R1@0.7": r / 2, "mAP": 1.0, "loss": r / 8} for r in (10.0, 20.0, 30.0)]
    found = same_training.lines({"ours": scores, "official": scores[:1]}, {"ours": 1.25, "official": 3.0})
    assert found[2] == "| ours | 3 | 20.0 ± 10.0 | 10.0 ± 5.0 | 1.0 ± 0.0 | 2.500 ± 1.250 | 1.2 |"
    assert found[3] == "| official | 1 | 10.0 | 5.0 | 1.0 | 1.250 | 3.0 |"


def test_memory_is_what_the_work_held() -> None:
    code = "import torch; from benchmarks.measure import peak_mb; "
    code += "print(peak_mb(lambda: torch.ones(20, 1 << 20).sum()))"  # 80 MiB
    # in a process of its own: here memory may lie ready that other tests have freed
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "None" or 70 < float(told) < 160


def test_made_up_data_has_castellas_shape() -> None:
    made = inputs.queries(400)
    lengths = list(made.recordings.values())
    assert 240 < sum(lengths) / len(lengths) < 290
    assert 2 < len(made) / len(lengths) < 3
    assert all(0 <= s < e <= q.duration for q in made for s, e in q.windows or ())
    dataset = inputs.moments(inputs.queries(4, length=20), inputs.recipe("qd-detr"), training=True, width=4)
    (batch,) = inputs.first(dataset, 1)
    assert batch.audio[0].shape[1:] == (20, 4)
    again = inputs.queries(400)
    assert again == made


def test_a_step_trains() -> None:
    recipe = inputs.recipe("qd-detr-small", "train.batch=2", "model.hidden_dim=16")
    dataset = inputs.moments(inputs.queries(2, length=12), recipe, training=True, width=4)
    detector = training.detector_of(recipe, 4)
    before = detector.state_dict()["heads.span.mlp.layers.0.weight"].clone()
    step = training.our_step(detector, recipe, "fp32")
    (batch,) = inputs.first(dataset, 1)
    assert step(batch) > 0
    assert not torch.equal(before, detector.state_dict()["heads.span.mlp.layers.0.weight"])
    inputs.without_dropout(detector)
    assert all(m.p == 0 for m in detector.modules() if isinstance(getattr(m, "p", None), float))


def test_the_official_code_is_fed_with_our_batches() -> None:
    recipe = inputs.recipe("qd-detr", "train.batch=3")
    (batch,) = inputs.first(
        inputs.moments(inputs.queries(3, length=12, per_recording=1), recipe, training=True, width=4), 1
    )
    given, wanted = official.inputs(batch), official.targets(batch)
    assert given["src_aud"].shape == (3, 12, 6)
    torch.testing.assert_close(given["src_aud"][0, :, 4], torch.arange(12) / 12)
    assert given["src_aud_mask"].dtype == given["src_txt_mask"].dtype == torch.float32
    assert batch.targets is not None
    assert [len(t["spans"]) for t in wanted["span_labels"]] == batch.targets.mask.sum(1).tolist()


def test_the_metric_case_without_the_official_code() -> None:
    small, large = metric.rows(True)
    assert small.reference is None
    assert "no --official" in small.note
    assert small.ours
    assert large.limit


def test_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"no src/qd_detr\.py"):
        Official(tmp_path)
    for arguments in (["--cases", "nothing"], ["--page", str(tmp_path / "no.md")]):
        with pytest.raises(SystemExit):
            run.main(arguments)
    assert "there is no group 'nothing'; there is training, prediction, metric" in capsys.readouterr().err

    def broken(quick: bool) -> list[Row]:
        raise RuntimeError("no disk")

    known = {"good": lambda quick: [Row(f"quick {quick}", 1.0, 3.0)], "bad": broken}
    monkeypatch.setattr(run, "groups", lambda reference: known)
    monkeypatch.setattr(run, "machine", lambda: ["a machine"])
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    assert run.main(["--cases", "good", "--quick", "--page", str(page)]) == 0
    assert "| quick True | 1 | 3 | s | 3.00 x |" in page.read_text()
    assert "`python -m benchmarks.run --cases good --quick`" in page.read_text()
    assert run.main([]) == 1  # the good rows are printed all the same
    out = capsys.readouterr().out
    assert "quick False" in out
    assert "failed: RuntimeError: no disk" in out


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::_softmax_backward_data", "attention"),
        ("_DropBackward", "dropout"),
        ("_AttentionBackward", "attention"),
        ("ConvolutionBackward", "scan"),
        ("aten::convolution", "matrix products"),
        ("aten::native_layer_norm_backward", "layer norm"),
        ("aten::_fused_adamw_", "optimiser"),
        ("aten::mul_", "elementwise"),
        ("aten::copy_", "copies"),
        ("aten::view", "dispatch"),
        ("autograd::engine::evaluate_function: MulBackward0", "dispatch"),
        ("aten::_prelu_kernel", "activation"),
        ("_AddedBackward", "dropout"),
        ("SomethingOfOurs", "python"),
    ],
)
def test_kinds_of_work(name: str, kind: str) -> None:
    assert steps.group(name) == kind


def test_shares_of_a_step() -> None:
    a = torch.randn(400, 400)
    found = steps.shares(lambda: a @ a)
    assert sum(found.values()) == pytest.approx(100)
    assert next(iter(found)) == "matrix products"
    told = steps.line("name", {"dropout": 20.0, "matrix products": 80.0}, 6)
    assert "20.0 %!" in told
    assert "80.0 % " in told
