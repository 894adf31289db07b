"""`fusec bench`: the structure of what it says, its sums, labels and errors; never how fast."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from onnx_models import model_of, saved
from torch import nn

import fusec
from fusec.bench.rows import grouped, step_row
from fusec.bench.text import amount, duration, percent
from fusec.bench.timing import summary, timed, warm_up
from fusec.cli import main
from fusec.costs import Limits, StepCost, limits_of
from fusec.generate import artifact_graph, generate_inputs
from fusec.runtime.artifact import TensorSpec, open_artifact
from fusec.symbolic import symbol

QUICK = ("--iterations", 5, "--warmup", 1, "--steps", 2)


class Words(nn.Module):
    """A table of words, a gated layer twice, and scores of words."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.up = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.head = nn.Linear(32, 50, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        for up in self.up:
            x = x + nn.functional.silu(up(x))
        scores: torch.Tensor = self.head(x)
        return scores


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    rows = torch.export.Dim("rows", min=1, max=64)
    ids = torch.randint(0, 50, (3, 7))
    program = torch.export.export(Words().eval(), (ids,), dynamic_shapes=({0: rows},))
    path = tmp_path_factory.mktemp("bench") / "words.pt2"
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="module")
def artifact(archive: Path) -> Path:
    path = archive.with_suffix(".fusec")
    fusec.compile(archive, path, target="x86-64-v3", dims={"batch": "1:5:64"})
    return path


Bench = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Bench:
    """Runs the command: exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(("bench", *map(str, words)))
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    return run


def test_a_measurement_adds_up(bench: Bench, artifact: Path) -> None:
    code, out, err = bench(artifact, *QUICK, "--threads", 1, "--json")
    assert (code, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    assert found["schema"] == "fusec.bench/1"
    assert (found["kind"], found["target"], found["device"]) == ("measurement", "x86-64-v3", "cpu")
    assert found["threads"] == 1
    assert found["load"] >= 0
    assert found["sizes"] == {"batch": 5}
    whole, steps, groups = found["whole"], found["steps"], found["groups"]
    assert whole["calls"] == 5
    assert whole["least"] <= whole["median"] <= whole["p90"] <= whole["p99"] <= whole["most"]
    assert whole["launches"] == len(steps) == sum(row["count"] for row in groups)
    for name in ("read", "write", "flops"):
        assert whole[name] == sum(row[name] for row in steps) == sum(row[name] for row in groups)
    assert whole["steps_seconds"] == pytest.approx(sum(row["seconds"] for row in groups))
    assert sum(row["share"] for row in groups) == pytest.approx(1.0)
    products = 2 * 5 * 7 * 32 * (32 + 32 + 50)
    assert sum(row["flops"] for row in steps if "linear" in row["op"]) == products


def test_limits_of_a_cpu_are_measured(bench: Bench, artifact: Path) -> None:
    limits = json.loads(bench(artifact, *QUICK, "--json")[1])["limits"]
    assert limits["measured"] == ["bytes", "flops"]
    assert limits["bytes_per_second"] > 1e8
    assert limits["flops_per_second"]["f32"] > 1e9
    assert "bf16" not in limits["flops_per_second"]  # x86-64-v3 has no such instructions


def test_equal_steps_are_one_row(bench: Bench, artifact: Path) -> None:
    code, out, _ = bench(artifact, *QUICK)
    assert code == 0
    assert "words.fusec for x86-64-v3" in out
    assert "batch = 5" in out
    found = json.loads(bench(artifact, *QUICK, "--json")[1])
    assert max(row["count"] for row in found["groups"]) == 2
    every = bench(artifact, *QUICK, "--all")[1]
    assert all(step["node"] in every for step in found["steps"])


def test_sizes_can_be_asked_for(bench: Bench, artifact: Path) -> None:
    found = json.loads(bench(artifact, *QUICK, "--dim", "batch=2", "--json")[1])
    assert found["sizes"] == {"batch": 2}
    for wrong in ("batch=0", "batch=65", "batch=two", "batch"):
        code, out, err = bench(artifact, "--dim", wrong)
        assert (code, out) == (2, "")
        assert "from 1 to 64" in err
    assert "there is no size `seq`" in bench(artifact, "--dim", "seq=3")[2]


def test_inputs_can_be_given(bench: Bench, artifact: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "ids.npz", ids=np.full((4, 7), 49))
    given = ("--input", tmp_path / "ids.npz")
    assert json.loads(bench(artifact, *QUICK, *given, "--json")[1])["sizes"] == {"batch": 4}
    np.savez(tmp_path / "ids.npz", other=np.zeros(3))
    code, _, err = bench(artifact, *given)
    assert code == 1
    assert "the file has no input `ids`" in err


def test_the_source_takes_turns(bench: Bench, artifact: Path, archive: Path) -> None:
    code, out, err = bench(artifact, *QUICK, "--against", archive, "--json")
    assert code == 0, err
    against = json.loads(out)["against"]
    assert [way["way"] for way in against["ways"]] == ["eager", "torch.compile"]
    eager = against["ways"][0]
    assert eager["failed"] is None
    assert eager["name"].startswith("PyTorch")
    assert eager["calls"] == against["fusec"]["calls"] == against["rounds"]
    assert eager["ratio"] == pytest.approx(eager["median"] / against["fusec"]["median"])


def test_an_onnx_source_runs_on_onnxruntime(bench: Bench, tmp_path: Path) -> None:
    x = np.zeros((3, 24), np.float32)
    made = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": x}, ["y"])
    path, artifact = saved(made, tmp_path), tmp_path / "m.fusec"
    fusec.compile(path, artifact, target="x86-64-v3")
    code, out, err = bench(artifact, *QUICK, "--against", path, "--json")
    assert code == 0, err
    (way,) = json.loads(out)["against"]["ways"]
    assert way["name"].startswith("onnxruntime") and way["failed"] is None


def test_a_source_that_cannot_be_run_is_an_error(bench: Bench, artifact: Path) -> None:
    code, out, err = bench(artifact, *QUICK, "--against", artifact.with_name("nothing.pt2"))
    assert (code, out) == (1, "")
    assert "the source cannot be run" in err


def test_a_target_that_is_not_here_is_predicted(
    bench: Bench, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fusec.compile(archive, archive.with_name("gpu.fusec"), target="gfx950").path
    monkeypatch.setattr("fusec.cli.bench.open_driver", _no_driver)
    code, out, _ = bench(path)
    assert code == 0
    assert out.startswith("prediction: gpu.fusec for gfx950, not run")
    assert "no driver here" in out
    assert "median" not in out
    found = json.loads(bench(path, "--target", "mi350x", "--json")[1])
    assert (found["kind"], found["target"], found["device"]) == (
        "prediction",
        "gfx950",
        "AMD Instinct MI350X",
    )
    assert found["limits"]["measured"] == []
    limits = limits_of("mi350x")
    for step in found["steps"]:
        assert "seconds" not in step
        least = max(
            (step["read"] + step["write"]) / limits.bytes_per_second,
            step["flops"] / limits.flops_per_second[step["unit"]],
        )
        assert step["least_seconds"] == pytest.approx(least)
    assert found["whole"]["least_seconds"] == pytest.approx(
        sum(step["least_seconds"] for step in found["steps"])
    )


def _no_driver(kind: str, index: int) -> Any:
    from fusec.diagnostics import DeviceError

    raise DeviceError("no driver here")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--target", "gfx942"), 5, "has no target `gfx942`"),
        (("--device", "cpu", "--target", "x86-64-v3"), 2, "give one of them"),
        (("--device", "tpu"), 2, "unknown device `tpu`"),
        (("--device", "hip:0"), 5, "holds no code for `hip:0`"),
        (("--target", "x86-64-v3", "--against", "model.pt2"), 2, "nothing runs"),
        (("--iterations", 0), 2, "--iterations"),
    ],
)
def test_what_is_refused(
    bench: Bench, artifact: Path, words: tuple[object, ...], code: int, said: str
) -> None:
    found, out, err = bench(artifact, *words)
    assert (found, out) == (code, "")
    assert said in err


def test_a_cpu_that_is_only_predicted_has_no_times(bench: Bench, artifact: Path) -> None:
    found = json.loads(bench(artifact, "--target", "x86-64-v3", "--json")[1])
    assert found["limits"] is None
    assert found["whole"]["least_seconds"] is None
    assert found["whole"]["flops"] > 0
    assert bench(artifact, "--target", "x86-64-v3")[1].startswith("prediction")


def test_ids_stay_in_the_table_that_they_index(artifact: Path) -> None:
    opened = open_artifact(artifact)
    graph = artifact_graph(opened)
    (ids,) = generate_inputs(opened.manifest.inputs, {"batch": 64}, 1, graph).values()
    assert ids.shape == (64, 7)
    assert 0 <= ids.min() < ids.max() < 50
    again = generate_inputs(opened.manifest.inputs, {"batch": 64}, 1, graph)
    assert np.array_equal(again["ids"], ids)


@pytest.mark.parametrize("dtype", ["f64", "f32", "bf16", "f16", "f8e4m3fn", "i32", "u8", "bool"])
def test_every_dtype_has_inputs(dtype: str) -> None:
    spec = TensorSpec("x", dtype, (symbol("n"), 3))
    (x,) = generate_inputs([spec], {"n": 200}).values()
    assert x.shape == (200, 3)
    assert len(np.unique(x)) > 1


def test_rows_of_a_prediction_are_grouped_by_their_least_time() -> None:
    limits = Limits(10.0, {"f32": 10.0}, "a test")
    small = StepCost("a", "add", "k", ("a",), 10, 10, 1, "f32")
    large = StepCost("b", "mul", "k", ("b",), 30, 30, 1, "f32")
    rows = grouped([step_row(cost, None, limits) for cost in (small, large, small)])
    assert [(row["op"], row["count"], row["least_seconds"]) for row in rows] == [
        ("mul", 1, 6.0),
        ("add", 2, 4.0),
    ]
    assert [row["share"] for row in rows] == [0.6, 0.4]


def test_calls_are_counted_and_summed_up() -> None:
    calls: list[int] = []
    assert warm_up(lambda: calls.append(0), 3) == 3
    assert len(timed(lambda: calls.append(0), 4)) == 4
    assert len(calls) == 7
    found = summary([float(number) for number in range(1, 101)])
    assert (found["median"], found["p90"], found["p99"], found["most"]) == (50.5, 90, 99, 100)


def test_numbers_as_people_read_them() -> None:
    shown = [duration(seconds) for seconds in (2.0, 0.0123, 4.5e-5, 3e-9)]
    assert shown == ["2.00 s", "12.3 ms", "45.0 us", "3.00 ns"]
    assert [amount(value, "B") for value in (12, 3400, 5.6e9)] == ["12 B", "3.40 kB", "5.60 GB"]
    assert [percent(share) for share in (0.012, 0.5, 1.2)] == ["1.2 %", "50 %", "120 %"]
