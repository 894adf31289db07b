"""`fusec diff`: what two artifacts differ in, and that equal ones do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_block import Layer
from torch import nn

import fusec
from fusec.cli import main

TARGET = "x86-64-v3"


class Stack(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, x)
        return x


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("diff") / "stack.pt2"
    torch.export.save(torch.export.export(Stack().eval(), (torch.randn(3, 48),)), path)
    return path


@pytest.fixture(scope="module")
def plain(archive: Path) -> Path:
    return fusec.compile(archive, archive.with_name("plain.fusec"), target=TARGET).path


Diff = Callable[..., tuple[int, str, str]]


@pytest.fixture
def diff(capsys: pytest.CaptureFixture[str]) -> Diff:
    """Runs the command: exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(("diff", *map(str, words)))
        printed = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, printed.out, printed.err

    return run


def test_a_second_build_is_the_same(archive: Path, plain: Path, tmp_path: Path, diff: Diff) -> None:
    again = fusec.compile(archive, tmp_path / "again.fusec", target=TARGET)
    code, out, err = diff(plain, again.path)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "the same"
    code, out, _ = diff(plain, again.path, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["same"] and {*document} == {"schema", "artifacts", "same"}
    assert document["schema"] == "fusec.diff/1"


def test_a_disabled_pass_loses_its_fusions_and_no_others(
    archive: Path, plain: Path, tmp_path: Path, diff: Diff
) -> None:
    without = fusec.compile(
        archive, tmp_path / "without.fusec", target=TARGET, disable=["add_rms_norm"]
    )
    code, out, _ = diff(plain, without.path, "--json")
    assert code == 1
    (target,) = json.loads(out)["targets"]
    lost = {each["fusion"]: each["lost"] for each in target["fusions"] if each["lost"]}
    assert lost == {
        "add_rms_norm": [
            {"site": f"layers.{number}", "why": "its pass is disabled"} for number in (0, 1)
        ]
    }
    (changes,) = [each for each in target["fusions"] if each["fusion"] == "add_rms_norm"]
    assert changes["fired"] == [2, 0]

    code, out, _ = diff(plain, without.path)
    assert code == 1
    assert "options   disable: none -> add_rms_norm" in out
    assert "2 lost at layers.*: its pass is disabled" in out

    code, out, _ = diff(without.path, plain, "--json")
    (target,) = json.loads(out)["targets"]
    gained = {each["fusion"]: len(each["gained"]) for each in target["fusions"] if each["gained"]}
    assert (code, gained["add_rms_norm"]) == (1, 2)


def test_other_operations_are_counted_by_layer(
    archive: Path, plain: Path, tmp_path: Path, diff: Diff
) -> None:
    without = fusec.compile(
        archive, tmp_path / "without.fusec", target=TARGET, disable=["silu_mul"]
    )
    document = json.loads(diff(plain, without.path, "--json")[1])
    operations: dict[str, Any] = {each["layer"]: each["operations"] for each in document["graph"]}
    assert {*operations} == {"layers.0", "layers.1"}
    assert all([1, 0] in changes.values() for changes in operations.values())
    assert all([0, 1] in changes.values() for changes in operations.values())
    (target,) = document["targets"]
    assert target["launches"][0] < target["launches"][1]
    assert [each["layer"] for each in target["layers"]] == ["layers.0", "layers.1"]


def test_targets_of_one_artifact_alone(
    archive: Path, plain: Path, tmp_path: Path, diff: Diff
) -> None:
    both = fusec.compile(archive, tmp_path / "both.fusec", target=[TARGET, "x86-64-v4"])
    code, out, _ = diff(plain, both.path)
    assert code == 1
    assert "target    x86-64-v4 is only in b" in out


def test_what_is_no_artifact(plain: Path, archive: Path, diff: Diff) -> None:
    code, out, err = diff(plain, archive)
    assert (code, out) == (5, "")
    assert err.startswith("error: ") and "stack.pt2" in err
