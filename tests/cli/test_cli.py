"""Commands as people and scripts meet them: exit codes, what is printed where, JSON."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from artifact_samples import contents
from onnx import helper
from onnx_models import model_of, random
from rich.console import Console
from safetensors.numpy import load_file, save_file
from torch import nn

from fusec.cli import main
from fusec.cli.console import progress_bar, table
from fusec.kernels.tuning import table_text
from fusec.link.artifact_writer import write_artifact


class Block(nn.Module):
    """A residual join, a norm and a gated activation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(48) * 0.1 + 1)
        self.gate = nn.Linear(48, 64, bias=False)
        self.up = nn.Linear(48, 64, bias=False)
        self.down = nn.Linear(64, 48, bias=False)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> dict[str, torch.Tensor]:
        total = x + residual
        scale = torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + 1e-6)
        normed = self.weight * (total * scale)
        hidden = nn.functional.silu(self.gate(normed)) * self.up(normed)
        return {"y": self.down(hidden) + total}


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Fusec:
    """Runs commands in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self.capture = capture

    def __call__(self, *arguments: object) -> Result:
        self.capture.readouterr()
        code = 0
        try:
            main(tuple(map(str, arguments)))
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        captured = self.capture.readouterr()
        return Result(code, captured.out, captured.err)


@pytest.fixture
def fusec(capsys: pytest.CaptureFixture[str]) -> Fusec:
    return Fusec(capsys)


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The block, exported with a dynamic size; archives forget its name, and it becomes `batch`."""
    rows = torch.export.Dim("rows", min=1, max=64)
    inputs = (torch.randn(3, 48), torch.randn(3, 48))
    program = torch.export.export(Block().eval(), inputs, dynamic_shapes=({0: rows}, {0: rows}))
    path = tmp_path_factory.mktemp("archive") / "block.pt2"
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="session")
def artifact(archive: Path) -> Path:
    from fusec.api import compile

    return compile(archive, archive.with_suffix(".fusec"), target="cpu").path


@pytest.fixture(scope="session")
def rows(archive: Path) -> Path:
    rng = np.random.default_rng(0)
    path = archive.with_name("rows.npz")
    x, residual = rng.standard_normal((2, 5, 48)).astype(np.float32)
    np.savez(path, x=x, residual=residual)
    return path


def test_compile_reports_on_stderr_and_writes(fusec: Fusec, archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "block.fusec"
    done = fusec("compile", archive, "--target", "cpu", "-o", output)
    assert (done.code, done.out) == (0, "")
    assert output.exists()
    words = [line.split()[0] for line in done.err.splitlines() if not line.startswith(" ")]
    assert words == ["export", "rewrite", "link", "wrote"]
    assert "add_rms_norm 1" in done.err
    assert "nothing residual" in done.err


def test_no_command_replaces_what_it_reads(
    fusec: Fusec, archive: Path, artifact: Path, rows: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    for source, arguments in (
        (archive, ["compile", archive, "--target", "cpu", "-o", link]),
        (artifact, ["inspect", artifact, "--html", link]),
        (rows, ["run", artifact, "--input", rows, "--output", tmp_path / "link.npz"]),
    ):
        place = Path(str(arguments[-1]))
        place.unlink(missing_ok=True)
        place.symlink_to(source)
        before = source.read_bytes()
        done = fusec(*arguments)
        assert done.code == 2, done.err
        assert done.err.splitlines()[0].endswith("is what is read, and would be replaced")
        assert source.read_bytes() == before


def test_no_command_replaces_files_of_a_folder_that_it_reads(fusec: Fusec, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_text("{}", encoding="utf-8")
    folder = tmp_path / "model"
    folder.mkdir()
    config = folder / "config.json"
    config.symlink_to(blob)  # as in the cache of a model hub
    done = fusec("compile", folder, "--target", "gfx950", "-o", config)
    assert done.code == 2
    assert f"`{config}` is what is read, and would be replaced" in done.err
    assert blob.read_text(encoding="utf-8") == "{}"


def test_tables_and_weights_are_not_replaced(
    fusec: Fusec, archive: Path, artifact: Path, rows: Path, tmp_path: Path
) -> None:
    table = tmp_path / "table.json"
    table.write_text(table_text("gfx950", []), encoding="utf-8")
    weights = tmp_path / "weights.npz"
    weights.touch()
    done = fusec("run", artifact, "--input", rows, "--weights", weights)
    assert (done.code, done.out) == (2, "")
    assert f"weights are given, but `{artifact}` holds its own" in done.err
    for arguments in (
        ["compile", archive, "--target", "gfx950", "--tuning", table, "-o", table],
        ["run", artifact, "--input", rows, "--weights", weights, "--output", weights],
    ):
        done = fusec(*arguments)
        assert done.code == 2
        assert "is what is read, and would be replaced" in done.err


def test_what_a_source_leads_to_is_not_replaced(
    fusec: Fusec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = random(2, 3)
    model = model_of(
        [helper.make_node("Add", ["x", "c"], ["y"])], {"x": x}, ["y"], constants={"c": x}
    )
    data = tmp_path / "model.data"
    onnx.save_model(
        model,
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location=data.name,
        size_threshold=0,
    )
    code = tmp_path / "relu_alone.py"
    code.write_text(
        "import torch\n\ndef model():\n    return torch.nn.ReLU(), (torch.ones(2),)\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    for source, held in (("model.onnx", data), ("relu_alone:model", code)):
        before = held.read_bytes()
        done = fusec("compile", source, "--target", "x86-64-v3", "-o", held)
        assert done.code == 2
        assert f"`{held}` is what is read, and would be replaced" in done.err
        assert held.read_bytes() == before


def test_weights_beside_an_artifact_replace_only_its_own(
    fusec: Fusec, archive: Path, tmp_path: Path
) -> None:
    output, weights = tmp_path / "block", tmp_path / "block.weights.safetensors"
    call = ("compile", archive, "--target", "x86-64-v3", "--weights", "external", "-o")
    save_file({"x": np.ones(3)}, weights)
    done = fusec(*call, output)
    assert done.code == 2
    assert done.err.startswith(f"error: `{weights}` holds no weights of an artifact, but would be")
    assert list(load_file(weights)) == ["x"]

    weights.unlink()
    assert fusec(*call, output).code == 0
    assert fusec(*call, output).code == 0
    done = fusec(*call, tmp_path / "block.fusec")
    assert done.code == 2
    assert "export" not in done.err
    assert f"`{weights}` holds the weights of `block`, and would be replaced" in done.err
    assert fusec("inspect", output, "--verify").code == 0


def test_the_model_of_a_folder_is_not_replaced_by_weights(fusec: Fusec, tmp_path: Path) -> None:
    weights = tmp_path / "block.weights.safetensors"
    save_file({"x": np.ones(3)}, weights)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    call = ("--target", "x86-64-v3", "--weights", "external", "-o", tmp_path / "block.fusec")
    done = fusec("compile", tmp_path, *call)
    assert done.code == 2
    assert f"`{weights}` is what is read, and would be replaced" in done.err


def test_weights_that_an_artifact_has_beside_it_are_not_replaced(
    fusec: Fusec, archive: Path, rows: Path, tmp_path: Path
) -> None:
    output, weights = tmp_path / "block.fusec", tmp_path / "block.weights.safetensors"
    call = ("compile", archive, "--target", "x86-64-v3", "--weights", "external", "-o", output)
    assert fusec(*call).code == 0
    for arguments in (
        ["run", output, "--input", rows, "--output", weights],
        ["inspect", output, "--html", weights],
    ):
        done = fusec(*arguments)
        assert done.code == 2
        assert f"`{weights}` is what is read, and would be replaced" in done.err
    assert fusec("inspect", output, "--verify").code == 0


def test_standard_input_is_not_replaced(artifact: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text("{}\n", encoding="utf-8")
    done = shell('fusec run "$1" --input - --output "$2" < "$2"', artifact, lines)
    assert done.returncode == 2
    assert "is what is read, and would be replaced" in done.stderr
    assert lines.read_text(encoding="utf-8") == "{}\n"


def test_devices_are_not_replaced_by_files(
    fusec: Fusec, archive: Path, artifact: Path, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for arguments in (
        ["compile", archive, "--target", "cpu", "-o", pipe],
        ["inspect", artifact, "--html", pipe],
    ):
        done = fusec(*arguments)
        assert (done.code, done.out) == (1, "")
        assert f"error: `{pipe}` is not a file, but a device or a pipe" in done.err
        assert pipe.is_fifo()


def test_a_place_that_cannot_be_written_is_told_before_anything_is_read(
    fusec: Fusec, tmp_path: Path
) -> None:
    output = tmp_path / "missing" / "block.fusec"
    done = fusec("compile", "missing.pt2", "--target", "cpu", "-o", output)
    assert done.code == 1
    assert done.err == (
        f"error: cannot write `{output}`: no such file or directory\n\n"
        "hint: check the path: each folder in it has to exist\n"
    )
    below_a_file = Path(__file__) / "block.fusec"
    done = fusec("compile", "missing.pt2", "--target", "cpu", "-o", below_a_file)
    assert done.code == 1
    assert done.err.startswith(f"error: cannot write `{below_a_file}`: not a directory\n")
    done = fusec("inspect", "missing.fusec", "--html", tmp_path)
    assert done.code == 1
    assert f"error: `{tmp_path}` is a folder\n" in done.err


def test_folders_that_cannot_be_made(
    fusec: Fusec, archive: Path, artifact: Path, rows: Path
) -> None:
    for arguments, place in (
        (
            ["compile", archive, "--target", "cpu", "--stop-after", "linear", "--dump-ir"],
            rows / "x",
        ),
        (["verify", artifact, "--against", archive, "--save"], rows),
    ):
        done = fusec(*arguments, place)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith(f"error: cannot write `{place}`: ")


def test_names_that_are_too_long(fusec: Fusec, archive: Path, tmp_path: Path) -> None:
    call = ("compile", archive, "--target", "x86-64-v3", "-o")
    done = fusec(*call, tmp_path / ("a" * 256))
    assert done.code == 1
    assert done.err.endswith("file name too long\n\nhint: give it a shorter name\n")
    assert fusec("compile", "a" * 256, "--target", "x86-64-v3").code == 1
    assert fusec(*call, tmp_path / ("a" * 255)).code == 0


def test_a_file_that_cannot_be_read_is_no_wrong_call(
    fusec: Fusec, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # what typer asks
    done = fusec("inspect", artifact)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: cannot read `{artifact}`: permission denied\n\nhint: ")


def test_what_a_link_points_to_is_written(fusec: Fusec, archive: Path, tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.mkdir()
    link = tmp_path / "link.fusec"
    link.symlink_to(held / "block.fusec")
    call = ("compile", archive, "--target", "cpu", "--weights", "external", "-o", link)
    assert fusec(*call).code == 0
    assert link.is_symlink()
    assert sorted(path.name for path in held.iterdir()) == [
        "block.fusec",
        "block.weights.safetensors",
    ]
    assert fusec("inspect", link, "--verify").code == 0


def test_graph_and_page_exclude_each_other(fusec: Fusec, artifact: Path, tmp_path: Path) -> None:
    done = fusec("inspect", artifact, "--graph", "--html", tmp_path / "page.html")
    assert done.code == 2
    assert "`--html` and `--graph` exclude each other" in done.err


HALF_WRITTEN = """
import signal, sys, time
import fusec.link.artifact_writer as writer
from fusec.cli import main

def wait(path):
    print("waiting", flush=True)
    time.sleep(120)

# A test that is run by `nohup`, or in the background, begins with ignored signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
writer._check_readable = wait
main()
"""
"""A `fusec` that stays at the moment before an artifact gets its name."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_half_written_is_left_by_a_signal(
    number: signal.Signals, archive: Path, tmp_path: Path
) -> None:
    call = ["compile", archive, "--target", "x86-64-v3", "-o", tmp_path / "block.fusec"]
    command = [sys.executable, "-c", HALF_WRITTEN, *map(str, call)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_not_utf_8(archive: Path, rows: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff"))
    odd.mkdir()
    held, artifact = odd / "b\udcfe.pt2", odd / "b\udcfe.fusec"
    shutil.copy(archive, held)
    done = shell('fusec compile "$1" --target cpu -o "$2"', held, artifact)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "m\\udcff/b\\udcfe.fusec, " in done.stderr
    done = shell('fusec inspect "$1" --json', artifact)
    assert json.loads(done.stdout)["source"]["name"] == held.name
    for command in (
        'fusec inspect "$1" --html "$1.html"',
        'fusec run "$1" -i "$3" -o "$1.npz"',
        'fusec verify "$1" --against "$2"',
    ):
        done = shell(command, artifact, held, rows)
        assert done.returncode == 0, done.stderr


INTERRUPTED_IMPORT = """
import signal, sys

class Finder:
    def find_spec(self, name, path, target=None):
        if name == sys.argv[0]:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise ImportError("what libraries in C make of it")

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
from fusec.__main__ import main
del sys.argv[0]
main()
"""
"""A `fusec` that is interrupted when it imports the module that comes first in its arguments."""


@pytest.mark.parametrize(("module", "said"), [("typer", ""), ("fusec.api", "interrupted\n")])
def test_an_interrupt_of_an_import_has_no_traceback(module: str, said: str) -> None:
    call = [module, "compile", "missing.pt2", "--target", "cpu"]
    command = [sys.executable, "-c", INTERRUPTED_IMPORT, *call]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", said)


def shell(command: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """What a script in bash does, in which `fusec` is this one and `$1` the first argument."""
    prelude = f'set -o pipefail; fusec() {{ "{sys.executable}" -m fusec "$@"; }}; '
    return subprocess.run(
        ["bash", "-c", prelude + command, "bash", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        check=False,
    )


@pytest.mark.parametrize(
    "command",
    [
        "fusec list targets",
        "fusec --help",
        'fusec inspect "$1" --json',
        'fusec run "$1" -i "$2"',
    ],
)
def test_standard_output_that_takes_nothing(command: str, artifact: Path, rows: Path) -> None:
    unread = shell(f"{command} | true", artifact, rows)
    assert (unread.returncode, unread.stderr) == (141, "")
    full = shell(f"{command} > /dev/full", artifact, rows)
    assert full.returncode == 1
    assert full.stderr.startswith("error: ")
    assert "no space left on device" in full.stderr
    closed = shell(f"{command} >&-", artifact, rows)
    assert closed.returncode == 0
    assert "error" not in closed.stderr


def test_closed_streams(artifact: Path, rows: Path) -> None:
    done = shell('fusec run "$1" -i "$2" 2>&-', artifact, rows)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 5)
    done = shell('fusec run "$1" -i - <&-', artifact)
    assert (done.returncode, done.stdout) == (0, "")


def test_an_encoding_that_lacks_a_letter(fusec: Fusec, artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "m\u00f6del.fusec"
    path.write_bytes(artifact.read_bytes())
    done = shell('fusec inspect "$1"', path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "file      m\\xf6del.fusec" in done.stdout
    done = shell('fusec inspect "$1" --json', path, PYTHONIOENCODING="ascii")
    assert json.loads(done.stdout)["file"]["name"] == "m\u00f6del.fusec"


@pytest.mark.parametrize("base", ["file/below", ""])
def test_a_cache_that_cannot_be_written_to(
    base: str, fusec: Fusec, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / base) if base else "")
    if not base:
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(os, "getuid", lambda: 0x7FFFFFF0)
    output = tmp_path / "block.fusec"
    done = fusec("compile", archive, "--target", "x86-64-v3", "-o", output)
    assert done.code == 1, done.err
    assert "hint: set `XDG_CACHE_HOME` to a folder that can be written to" in done.err
    assert not output.exists()


def test_what_the_machine_refuses_is_no_bug(
    fusec: Fusec, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/var/tmp/some.o")

    monkeypatch.setattr("fusec.cli.inspect.inspect_document", full)
    done = fusec("inspect", artifact)
    assert done.code == 1
    lines = done.err.splitlines()
    assert lines[:2] == [
        "error: the system refuses: no space left on device",
        "  --> /var/tmp/some.o",
    ]
    with pytest.raises(OSError, match="No space left"):
        fusec("--debug", "inspect", artifact)

    def lost(_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "lost")

    monkeypatch.setattr("fusec.cli.inspect.inspect_document", lost)
    assert fusec("inspect", artifact).code == 70


def test_a_factory_that_fails_is_the_source_at_fault(
    fusec: Fusec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "failing_factories.py").write_text(
        "import sys\n"
        "def breaks():\n    raise RuntimeError('there are\\nno weights')\n"
        "def leaves():\n    sys.exit(3)\n"
        "def takes(path):\n    return path\n"
    )
    (tmp_path / "failing_import.py").write_text("def broken(:\n")
    for source, said, at in (
        ("failing_factories:breaks", "RuntimeError: there are no weights", "factories.py:3"),
        ("failing_factories:leaves", "SystemExit: 3", "failing_factories.py:5"),
        ("failing_factories:takes", "TypeError: takes() missing 1 required", None),
        ("failing_import:model", "importing `failing_import` fails: Syntax", "failing_import.py:1"),
    ):
        done = fusec("compile", source, "--target", "cpu", "-o", tmp_path / "x.fusec")
        assert done.code == 1, done.err
        first, second, *_ = done.err.splitlines()
        assert said in first
        assert second.endswith(at) if at is not None else second == ""


def test_one_text_is_not_its_letters(archive: Path, tmp_path: Path) -> None:
    from fusec.api import compile
    from fusec.diagnostics import RequirementError, UsageError

    def options(**given: Any) -> Any:
        made = compile(archive, tmp_path / "block.fusec", target="x86-64-v3", **given)
        return made.document["options"]

    assert options(disable="silu_mul")["disable"] == ["silu_mul"]
    assert options(require="silu_mul", dims=None)["dims"] == {}
    assert options(dims="batch=1:32")["dims"] == {"batch": "1:32"}
    assert options(quantize="mxfp4:*.nothing")["quantize"] == ["mxfp4:*.nothing"]
    with pytest.raises(RequirementError, match="silu_mul>=2"):
        options(require="silu_mul>=2")
    with pytest.raises(UsageError, match="unknown `--weights embedded`"):
        options(weights="embedded")
    with pytest.raises(UsageError, match="`--jobs 0` is no number of compilers"):
        options(jobs=0)


def test_compile_json_is_what_inspect_prints(fusec: Fusec, archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "block.fusec"
    made = fusec("compile", archive, "--target", "cpu", "-o", output, "--json")
    assert made.json == fusec("inspect", output, "--json").json
    assert made.err == ""


def test_inspect_json(fusec: Fusec, artifact: Path) -> None:
    document = fusec("inspect", artifact, "--json").json
    assert document["schema"] == "fusec.inspect/1"
    assert document["source"]["kind"] == "export"
    assert document["inputs"] == [
        {"name": "x", "dtype": "f32", "shape": ["batch", 48]},
        {"name": "residual", "dtype": "f32", "shape": ["batch", 48]},
    ]
    assert document["outputs"] == [{"name": "y", "dtype": "f32", "shape": ["batch", 48]}]
    assert document["weights"]["count"] > 0
    (target,) = document["targets"]
    assert target["target"] == "cpu"
    assert target["residual"] == []
    assert target["launches"] > 0
    for kernel in target["kernels"]:
        assert {"name", "op", "provider", "symbol", "sha256", "bytes", "resources"} <= set(kernel)
    fired = {row["fusion"] for row in target["decisions"] if row["status"] == "fired"}
    assert {"add_rms_norm", "silu_mul", "merge_gate_up"} <= fired


def test_inspect_for_people(fusec: Fusec, artifact: Path) -> None:
    shown = fusec("inspect", artifact, "--kernels", "--decisions").out
    assert "x: f32[batch, 48]" in shown
    assert "residual  nothing" in shown
    assert "linear_glu.cpp" in shown
    assert "add_rms_norm     1 of 1 fired" in shown
    assert "made by   fusec compile block.pt2 --target cpu\n" in shown
    assert fusec("inspect", artifact, "--graph").out.startswith("graph @")


def test_graphs_of_targets_that_differ(fusec: Fusec, tmp_path: Path) -> None:
    held = contents(target_graphs={"gfx950": "graph @other() {\n}\n"})
    (cpu,) = held.targets
    held = replace(held, targets=(cpu, replace(cpu, target="gfx950")))
    artifact = write_artifact(tmp_path / "two.fusec", held).path
    shown = fusec("inspect", artifact, "--graph").out
    assert shown == "// cpu\ngraph @sample() {\n}\n\n// gfx950\ngraph @other() {\n}\n"


def test_run_agrees_with_pytorch(fusec: Fusec, artifact: Path, rows: Path, tmp_path: Path) -> None:
    output = tmp_path / "y.npz"
    command = ("run", artifact, "--input", rows, "--output", output, "--batch-size", 2)
    done = fusec(*command, "--json")
    assert done.code == 0
    assert (done.json["records"], done.json["failed"]) == (5, 0)
    given = {name: torch.from_numpy(values) for name, values in np.load(rows).items()}
    with torch.no_grad():
        wanted = Block().eval()(**given)["y"].numpy()
    found = np.load(output)["y"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    fusec(*command, "--huge-pages")
    np.testing.assert_array_equal(np.load(output)["y"], found)


def test_a_bad_record_is_named_and_the_rest_is_done(
    fusec: Fusec, artifact: Path, tmp_path: Path
) -> None:
    good = json.dumps({"x": [0.5] * 48, "residual": [0.0] * 48})
    lines = tmp_path / "rows.jsonl"
    lines.write_text(f'{good}\n{{"x": [1]}}\nnot json\n{good}\n')
    output = tmp_path / "y.jsonl"
    done = fusec("run", artifact, "--input", lines, "--output", output)
    assert done.code == 1
    assert "rows.jsonl:2" in done.err
    assert "rows.jsonl:3" in done.err
    assert "2 of 4 records are at fault" in done.err
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(written) == 4
    assert len(written[0]["y"]) == 48
    assert written[0]["y"] == written[3]["y"]


def test_explain(fusec: Fusec, artifact: Path, archive: Path) -> None:
    assert "add_rms_norm     1 of 1 fired" in fusec("explain", artifact).out
    one = fusec("explain", archive, "--target", "gfx950", "--fusion", "silu_mul", "--json").json
    assert one["schema"] == "fusec.explain/1"
    rows = one["targets"]["gfx950"]["decisions"]
    assert [(row["fusion"], row["status"]) for row in rows] == [("silu_mul", "fired")]
    refused = fusec("explain", archive)
    assert refused.code == 2
    assert "needs a target" in refused.err


@pytest.mark.parametrize("subject", ["targets", "passes", "kernels"])
def test_list(fusec: Fusec, subject: str) -> None:
    assert fusec("list", subject).code == 0
    document = fusec("list", subject, "--json").json
    assert document["schema"] == "fusec.list/1"
    assert len(document[subject]) > 3


def test_doctor(fusec: Fusec) -> None:
    assert "C++ compiler" in fusec("doctor").out
    findings = fusec("doctor", "--json").json["findings"]
    assert {"python", "torch", "triton", "libamdhip64"} <= {row["what"] for row in findings}


def test_dump_ir_holds_what_changed(fusec: Fusec, archive: Path, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    output = tmp_path / "block.fusec"
    fusec("compile", archive, "--target", "cpu", "-o", output, "--dump-ir", dump)
    names = sorted(path.name for path in dump.iterdir())
    assert names[0] == "00-import.fir"
    assert names[-1] == "index.md"
    assert any(name.endswith("-add_rms_norm.fir") for name in names)
    assert not any(name.endswith("-moe.fir") for name in names)


def test_gpu_targets(fusec: Fusec, archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "block.fusec"
    targets = ("--target", "gfx950", "--target", "mi300x")
    done = fusec("compile", archive, *targets, "-o", output, "--json")
    assert done.code == 0
    assert [target["target"] for target in done.json["targets"]] == ["gfx950", "gfx942"]
    for target in done.json["targets"]:
        providers = {kernel["op"]: kernel["provider"] for kernel in target["kernels"]}
        assert providers["add_rms_norm"] == "triton" and providers["silu_mul"] == "hip"
        assert target["residual"] == []
    no_code = fusec("run", output, "--input", "x.npz")
    assert no_code.code == 5


def test_what_no_kernel_computes_runs_on_the_host_only_if_that_is_allowed(
    fusec: Fusec, tmp_path: Path
) -> None:
    matrices = np.random.default_rng(0).standard_normal((3, 4, 4)).astype(np.float32)
    nodes = [helper.make_node("Abs", ["x"], ["a"]), helper.make_node("Det", ["a"], ["d"])]
    nodes.append(helper.make_node("Neg", ["d"], ["y"]))
    source = model_of(nodes, {"x": matrices}, ["y"], shapes={"x": ("batch", 4, 4)})
    path, output = tmp_path / "det.onnx", tmp_path / "det.fusec"
    onnx.save(source, path)
    refused = fusec("compile", path, "--target", "gfx950", "-o", output)
    assert refused.code == 1
    assert "are not lowered for `gfx950` yet" in refused.err
    assert "1 x onnx.ai.Det" in refused.err and "`ort.arch`" in refused.err
    assert "--allow-host-fallback" in refused.err
    assert not output.exists()
    targets = ("--target", "gfx950", "--target", "gfx942")
    allowed = fusec("compile", path, *targets, "--allow-host-fallback", "-o", output, "--json")
    assert allowed.code == 0
    for target in allowed.json["targets"]:
        assert [item["op"] for item in target["residual"]] == ["onnx.ai.Det"]
    np.savez(tmp_path / "x.npz", x=matrices)
    files = ("--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
    assert fusec("run", output, *files, "--device", "emulator:gfx942").code == 0
    wanted = -np.linalg.det(np.abs(matrices))
    np.testing.assert_allclose(np.load(tmp_path / "y.npz")["y"], wanted, rtol=1e-4)


def test_bars_on_a_terminal_show_bytes_with_units(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=100, no_color=True)
    monkeypatch.setattr("fusec.cli.console._terminal", lambda: terminal)
    with progress_bar(counts="bytes") as bar:
        task = bar.add_task("checking weights", total=None)
        bar.update(task, completed=41_200_000_000, total=80_100_000_000)
    with progress_bar() as bar:
        bar.add_task("loading", total=None)
    assert "41.2/80.1 GB" in shown.getvalue()
    assert "None" not in shown.getvalue()


def test_a_table_without_room_for_its_last_column_is_left_as_it_is() -> None:
    rows = [["x" * 50, "amdgpu, nvidia"]]
    assert table(["kernel", "families"], rows, 60).splitlines()[1] == f"{'x' * 50}  amdgpu, nvidia"
    wrapped = table(["pass", "summary"], [["x" * 40, "words that go on"]], 56)
    assert wrapped.splitlines()[2] == f"{' ' * 42}on"


def test_a_table_wider_than_the_terminal_is_shown_in_parts() -> None:
    rows = [["linear.triton", 125, "linear_kernel"], ["silu_mul.hip", 22, "gated_activation_rows"]]
    assert table(["kernel", "VGPR", "symbol"], rows, 30).split("\n\n") == [
        "#  kernel         VGPR\n1  linear.triton   125\n2  silu_mul.hip     22",
        "#  kernel         symbol\n1  linear.triton  linear_kernel\n"
        "2  silu_mul.hip   gated_activation_rows",
    ]
    assert table(["kernel", "VGPR", "symbol"], rows).count("\n") == 2
    reasons = [["x" * 20, "y" * 20, "words that go on and on"]]
    assert table(["a", "b", "reason"], reasons, 44).split("\n\n")[1].splitlines() == [
        f"#  {'a':<20}  reason",
        f"1  {'x' * 20}  words that go on",
        f"{' ' * 25}and on",
    ]


def test_lists_are_one_line_a_row_unless_a_terminal_is_too_narrow(artifact: Path) -> None:
    for columns in (72, 200):
        leader, follower = os.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        command = [sys.executable, "-m", "fusec", "inspect", str(artifact), "--kernels"]
        with subprocess.Popen(command, stdout=follower, env={**os.environ, "COLUMNS": ""}):
            os.close(follower)
            shown = b""
            with contextlib.suppress(OSError):  # what Linux says of a terminal nobody writes to
                while read := os.read(leader, 65536):
                    shown += read
        os.close(leader)
        lines = shown.decode().splitlines()
        assert max(map(len, lines)) <= columns
        assert any(line.startswith("#  kernel") for line in lines) == (columns == 72)


def test_inputs_are_looked_at_before_weights(
    fusec: Fusec, archive: Path, rows: Path, tmp_path: Path
) -> None:
    artifact = tmp_path / "block.fusec"
    made = ("compile", archive, "--target", "cpu", "--weights", "none", "-o", artifact)
    assert fusec(*made).code == 0
    done = fusec("run", artifact, "--input", "nowhere.npz")
    assert done.code == 1 and "cannot read `nowhere.npz`" in done.err
    done = fusec("run", artifact, "--input", rows, "--output", tmp_path / "out.txt")
    assert done.code == 2 and "cannot tell what" in done.err


def test_a_file_of_no_records_is_said_to_be_empty(
    fusec: Fusec, artifact: Path, tmp_path: Path
) -> None:
    path = tmp_path / "none.npz"
    np.savez(path, x=np.ones((0, 48), np.float32), residual=np.ones((0, 48), np.float32))
    done = fusec("run", artifact, "--input", path)
    assert done.code == 1
    assert done.err.startswith("error: `batch` is 0 in the input `x`")
    assert f"  --> {path}\n" in done.err


STOPPED = ("compile", "ARCHIVE", "--target", "cpu", "--stop-after", "rope")

CASES: list[tuple[tuple[str, ...], int, str]] = [
    (("compile", "ARCHIVE"), 2, "--target"),
    (("compile", "ARCHIVE", "--target", "gfx999"), 2, "unknown target `gfx999`"),
    (("compile", "nowhere.pt2", "--target", "cpu"), 1, "nowhere.pt2"),
    (("compile", "ARCHIVE", "--target", "cpu", "--dim", "rows"), 2, "not a range"),
    (("compile", "ARCHIVE", "--target", "cpu", "--dim", "columns=4"), 2, "columns"),
    (("compile", "ARCHIVE", "--target", "cpu", "--disable", "magic"), 2, "unknown pass `magic`"),
    (("compile", "ARCHIVE", "--target", "cpu", "--require", "magic"), 2, "unknown fusion `magic`"),
    (("compile", "ARCHIVE", "--target", "cpu", "--require", "moe>=2"), 3, "moe>=2"),
    (("compile", "ARCHIVE", "--target", "cpu", "--dtype", "bf16"), 2, "--dtype"),
    (("inspect", "nowhere.fusec"), 1, "nowhere.fusec"),
    (("inspect", "ARCHIVE"), 5, "not"),
    (("run", "ARTIFACT", "--input", "nowhere.npz"), 1, "nowhere.npz"),
    (("run", "ARTIFACT", "--input", "ROWS", "--device", "tpu"), 2, "unknown device `tpu`"),
    (("run", "ARTIFACT", "--input", "ROWS", "--device", "hip:0"), 5, "choose the device `cpu`"),
    (
        ("run", "ARTIFACT", "--input", "ROWS", "--device", "hip:0", "--huge-pages"),
        2,
        "in the memory of a CPU",
    ),
    (("run", "ARTIFACT", "--input", "ROWS", "--json"), 2, "--output"),
    (("run", "ARTIFACT", "--input", "ROWS", "--json", "--output", "-"), 2, "--output"),
    (("run", "ARTIFACT"), 2, "--input"),
    (("compile", "ARCHIVE", "--target", "cpu", "--require"), 2, "`fusec compile --help`"),
    (("compile", "ARCHIVE", "--target", "cpu", "--require", "attn"), 2, "mean `attention`?"),
    (("compile", "ARCHIVE", "--target", "cpu", "--disable", "rmsnorm"), 2, "mean `rms_norm`?"),
    (("compile", "nowhere.pt2", "--target", "cpu", "--toolchain", "icc"), 1, "compiler `icc`"),
    (("compile", "--target", "cpu"), 2, "error: missing argument `SOURCE`\n\nhint: "),
    (("compile", "ARCHIVE", "--ranks", "2"), 2, "error: no such option: `--ranks`"),
    (("compile", "ARCHIVE", "--target", "gfx950", "--tp", "2"), 1, "for one of 2 ranks"),
    (("compile", "ARCHIVE", "--target", "gfx950", "--tp", "0"), 2, "value for `--tp`"),
    (("compile", "ARCHIVE", "--target", "cpu", "--quantize", "int4"), 2, "`fp8-block`"),
    (("compile", "ARCHIVE", "--target", "cpu", "--mxfp4-align", "cut"), 2, "`--mxfp4-align`"),
    (("explain", "ARTIFACT", "--quantize", "mxfp4"), 2, "`--quantize` needs a source"),
    (("explain", "ARTIFACT", "--tp", "2"), 2, "`--tp` needs a source"),
    (("explain", "ARCHIVE", "--target", "gfx950", "--quantize", "mxfp5"), 2, "`mxfp4`"),
    (("run", "ARTIFACT", "--input", "ROWS", "--threads", "0"), 2, "value for `--threads`"),
    (("compile", "ARCHIVE", "--target", "cpu", "--stop-after", "magic"), 2, "no pass `magic`"),
    (("compile", "ARCHIVE", "--target", "cpu", "--stop-after", "rope", "-o", "x"), 2, "--output"),
    (("compile", "ARCHIVE", "--target", "cpu", "--stop-after", "rope", "--json"), 2, "--json"),
    ((*STOPPED, "--weights", "none"), 2, "`--weights` and `--stop-after`"),
    ((*STOPPED, "--provider", "aiter==0.1.14"), 2, "`--provider` and `--stop-after`"),
    ((*STOPPED, "--allow-host-fallback"), 2, "`--allow-host-fallback` and `--stop-after`"),
    (("compile", "ARCHIVE", "--target", "cpu", "--dump-ir-after", "rope"), 2, "--dump-ir DIR"),
    (("compile", "ARCHIVE", "--target", "cpu", "--dump-ir", "ROWS"), 2, "is not a folder"),
    (("compile", "ARCHIVE", "--target", "cpu", "--dump-ir", "-", "--json"), 2, "exclude"),
    (("explain", "nowhere.fusec"), 1, "no such file or folder: `nowhere.fusec`"),
    (("explain", "ARTIFACT", "--fusion", "magic"), 2, "unknown fusion `magic`"),
    (("doctor", "--target", "gfx1"), 2, "unknown target `gfx1`"),
    (("list",), 2, "error: missing argument `targets|passes|kernels`\n\nhint: "),
    (("list", "nothing"), 2, "`nothing` is not one of `targets`, `passes`, `kernels`"),
    (("magic",), 2, "magic"),
]


@pytest.mark.parametrize(("arguments", "code", "said"), CASES)
def test_what_goes_wrong_is_said(
    arguments: tuple[str, ...],
    code: int,
    said: str,
    fusec: Fusec,
    archive: Path,
    artifact: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    real = {"ARCHIVE": archive, "ARTIFACT": artifact, "ROWS": rows}
    done = fusec(*(real.get(argument, argument) for argument in arguments))
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_is_said(
    fusec: Fusec, monkeypatch: pytest.MonkeyPatch, artifact: Path
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fusec.cli.inspect.inspect_document", interrupted)
    done = fusec("inspect", artifact)
    assert (done.code, done.out, done.err) == (130, "", "interrupted\n")


def test_a_bug_is_called_one(fusec: Fusec, monkeypatch: pytest.MonkeyPatch, artifact: Path) -> None:
    def broken(_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("fusec.cli.inspect.inspect_document", broken)
    done = fusec("inspect", artifact)
    assert done.code == 70
    assert "a bug in fusec: KeyError" in done.err
    assert f"command: fusec inspect {artifact}" in done.err
    assert "version: fusec " in done.err
    with pytest.raises(KeyError):
        main(("inspect", str(artifact), "--debug"))


def test_module_and_version() -> None:
    command = [sys.executable, "-m", "fusec", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("fusec ")


def test_a_flipped_bit_in_a_weight_is_seen(fusec: Fusec, artifact: Path, tmp_path: Path) -> None:
    from fusec.runtime import open_artifact

    opened = open_artifact(artifact)
    name = opened.manifest.weights.tensors[0].name
    held = bytes(opened.weights()[name])
    data = artifact.read_bytes()
    damaged = tmp_path / "damaged.fusec"
    at = data.index(held) + len(held) // 2
    damaged.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    done = fusec("inspect", damaged)
    assert (done.code, done.out) == (5, "")
    assert f"`{name}` is not the one that was written" in done.err
