"""`--dump-ir`, `--stop-after`, and the command that an artifact was made by."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from test_cli import Block, Fusec, archive, artifact, fusec  # noqa: F401

from fusec.command import compile_command
from fusec.diagnostics import UsageError
from fusec.dump import difference, dump_request, labels_of, passes_until
from fusec.frontend.dims import DimRequest, DimSpec
from fusec.ir.text import parse_graph
from fusec.options import selected_passes
from fusec.runtime import open_artifact

PASSES = selected_passes(())


@pytest.fixture
def compiled(fusec: Fusec, archive: Path, tmp_path: Path) -> Path:  # noqa: F811
    """The folder of a dump for two targets."""
    targets = ("--target", "gfx950", "--target", "gfx942", "--stop-after", "merge_qkv")
    done = fusec("compile", archive, *targets, "--dump-ir", tmp_path / "ir")
    assert (done.code, done.out) == (0, "")
    assert f"`{tmp_path / 'ir'}`" in done.err
    return tmp_path / "ir"


def test_each_target_has_graphs_differences_and_an_index(compiled: Path) -> None:
    assert sorted(path.name for path in compiled.iterdir()) == ["gfx942", "gfx950"]
    folder = compiled / "gfx950"
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "00-import.fir",
        "03-rms_norm.diff",
        "03-rms_norm.fir",
        "11-silu_mul.diff",
        "11-silu_mul.fir",
        "23-merge_gate_up.diff",
        "23-merge_gate_up.fir",
        "index.md",
    ]
    index = (folder / "index.md").read_text().splitlines()
    assert index[0] == "# block, gfx950"
    assert "| 11-silu_mul | 8 -> 7 | +2 -3 | silu_mul 1 |" in "\n".join(index)
    for path in folder.glob("*.fir"):
        parse_graph(path.read_text())


def test_what_is_of_no_dump_is_not_replaced(
    fusec: Fusec,  # noqa: F811
    archive: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    call = ("compile", archive, "--target", "gfx950", "--stop-after", "rms_norm", "--dump-ir")
    notes, patch = tmp_path / "index.md", tmp_path / "01-mend.diff"
    for path in (notes, patch):
        path.write_text("mine", encoding="utf-8")
        done = fusec(*call, tmp_path)
        assert (done.code, "export" in done.err) == (2, False)
        assert f"`{path}` is not of a dump, but would be replaced" in done.err
        assert path.read_text(encoding="utf-8") == "mine"
        path.unlink()
    assert fusec(*call, tmp_path).code == fusec(*call, tmp_path).code == 0


def test_a_difference_shows_what_the_pass_did_and_nothing_else(compiled: Path) -> None:
    lines = (compiled / "gfx950" / "11-silu_mul.diff").read_text().splitlines()
    assert lines[:2] == ["--- before 11-silu_mul", "+++ after 11-silu_mul"]
    removed = [line.split(" = ")[1] for line in lines[2:] if line.startswith("-")]
    added = [line.split(" = ")[1] for line in lines[2:] if line.startswith("+")]
    assert [line.split("(")[0] for line in removed] == ["silu", "mul", "linear"]
    assert [line.split("(")[0] for line in added] == ["silu_mul", "linear"]
    assert not any(" @ " in line for line in lines if not line.startswith("@@"))


def test_a_part_of_a_difference_is_headed_by_its_module() -> None:
    before = ["graph {", '  %a: f32[2] = neg(%x) @ "model.layers.3.mlp" "m.py:1" "aten.neg"', "}"]
    after = ["graph {", '  %a: f32[2] = abs(%x) @ "model.layers.3.mlp" "m.py:1" "aten.neg"', "}"]
    assert [*difference(before, after, "07-x")] == [
        "--- before 07-x",
        "+++ after 07-x",
        "@@ -1,3 +1,3 @@ model.layers.3.mlp",
        " graph {",
        "-  %a: f32[2] = neg(%x)",
        "+  %a: f32[2] = abs(%x)",
        " }",
    ]
    moved = [before[0], before[1].replace("layers.3", "layers.4"), before[2]]
    assert len([*difference(before, moved, "08-y")]) == 2


def test_what_an_earlier_dump_wrote_goes_and_other_files_stay(
    fusec: Fusec,  # noqa: F811
    archive: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    folder = tmp_path / "ir"
    dump = ("compile", archive, "--target", "gfx950", "--dump-ir", folder, "--stop-after")
    assert fusec(*dump, "rms_norm").code == 0
    for name in ("44-old_pass.fir", "44-old_pass.diff", "notes.md"):
        (folder / name).touch()
    assert fusec(*dump, "silu_mul", "--dump-ir-after", "silu_mul").code == 0
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["11-silu_mul.diff", "11-silu_mul.fir", "index.md", "notes.md"]


def test_stop_after_prints_the_graph(fusec: Fusec, archive: Path, tmp_path: Path) -> None:  # noqa: F811
    done = fusec("compile", archive, "--target", "gfx950", "--stop-after", "rms_norm")
    assert done.code == 0
    ops = {node.op for node in parse_graph(done.out).nodes()}
    assert "rms_norm" in ops and "silu_mul" not in ops
    several = ("--target", "gfx950", "--target", "cpu", "--stop-after", "11-silu_mul")
    both = fusec("compile", archive, *several)
    assert both.out.startswith("// gfx950\ngraph @block")
    assert "\n// cpu\ngraph @block" in both.out
    dumped = fusec("compile", archive, *several[:2], *several[4:], "--dump-ir", "-")
    assert [line for line in dumped.out.splitlines() if line.startswith("//")] == [
        "// 00-import, gfx950, 14 nodes",
        "// 03-rms_norm, gfx950, 14 -> 8 nodes",
        "// 11-silu_mul, gfx950, 8 -> 7 nodes",
    ]


def test_passes_that_run_more_than_once() -> None:
    labels = labels_of("canonicalise", PASSES)
    assert len(labels) > 1 and labels[0] == "01-canonicalise"
    assert [each.name for each in passes_until("canonicalise", PASSES)] == ["canonicalise"]
    second = passes_until(labels[1], PASSES)
    assert [each.name for each in second].count("canonicalise") == 2
    with pytest.raises(UsageError, match="no pass `rmsnorm` runs") as caught:
        labels_of("rmsnorm", PASSES)
    assert caught.value.hint == "did you mean `rms_norm`?"
    request = dump_request("-", ["canonicalise"], PASSES)
    assert request is not None and request.after == frozenset(labels)


# --- the command that an artifact was made by ------------------------------------------------


def test_the_command_is_what_shapes_the_artifact() -> None:
    options = {
        "disable": ["rope"],
        "quantize": ["fp8-block:*.mlp.*"],
        "tuning": ["/home/someone/tables/gfx950.json"],
        "mxfp4_align": "reject",
        "dtype": "bf16",
        "attention_mask": True,
        "adapter": Path("/home/someone/lora"),
        "weights": "embed",
    }
    dims: dict[str, DimRequest] = {
        "seq": "1:8:64",
        "batch": DimSpec(1, None, 4),
        "rows": (2, 3),
        "one": 5,
    }
    command = compile_command("/home/someone/my model", "my model", ["gfx950"], dims, options)
    assert command == (
        "fusec compile 'my model' --target gfx950 --dim seq=1:8:64 --dim batch=1::4 "
        "--dim rows=2:3 --dim one=5 --disable rope --quantize 'fp8-block:*.mlp.*' "
        "--tuning gfx950.json --mxfp4-align reject --dtype bf16 --attention-mask --adapter lora"
    )
    assert compile_command("a.b:make", "make", ["cpu"], {}, {}) == (
        "fusec compile a.b:make --target cpu"
    )


def test_the_command_makes_the_same_bytes_wherever_it_runs(
    fusec: Fusec,  # noqa: F811
    archive: Path,  # noqa: F811
    artifact: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(archive, tmp_path / "elsewhere" / archive.name)
    monkeypatch.chdir(tmp_path / "elsewhere")
    command = open_artifact(artifact).manifest.options["command"]
    assert command == "fusec compile block.pt2 --target cpu"
    assert fusec(*str(command).split()[1:], "-o", "other-name.fusec", "-j", 1).code == 0
    assert Path("other-name.fusec").read_bytes() == artifact.read_bytes()


def test_a_model_in_memory_has_no_command(tmp_path: Path) -> None:
    import fusec as package

    inputs = {name: np.zeros((2, 48), np.float32) for name in ("x", "residual")}
    import torch

    tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
    made = package.compile(
        Block().eval(), tmp_path / "m.fusec", target="cpu", example_inputs=tensors
    )
    assert made.document["options"]["command"] is None
