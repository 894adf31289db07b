"""A distribution that adds a fusion, installed beside fusec as users install both: from wheels."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from docs_examples import FENCE, normalised
from sample_models import build

from fusec.extensions import API_VERSION
from fusec.kernels.sources import include_folder

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "samples" / "extension"
PACKAGE = SAMPLE / "fusec_norm_add"
MODEL = "post_norm:model"

if importlib.util.find_spec("hatchling") is None:
    pytest.skip("wheels are built with hatchling", allow_module_level=True)


@dataclass(frozen=True)
class Done:
    """What a command gave."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Installed:
    """Wheels, unpacked where no source tree is: fusec, and fusec with the extension.

    Attributes:
        folder: where commands run.
        fusec: site of fusec alone.
        extension: site of the extension.
    """

    folder: Path
    fusec: Path
    extension: Path

    def python(self, *arguments: str, extended: bool = True) -> Done:
        """Run Python with fusec, and the extension, from their wheels and from nowhere else."""
        sites = [self.fusec, *([self.extension] if extended else []), self.folder]
        done = subprocess.run(
            [sys.executable, "-P", *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sites)), "COLUMNS": "100"},
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def shell(self, command: str, path: str) -> str:
        """What a command prints in a shell, with the extension."""
        sites = os.pathsep.join(map(str, (self.fusec, self.extension, self.folder)))
        done = subprocess.run(
            ["bash", "-c", command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": sites, "COLUMNS": "100", "PATH": path},
        )
        return done.stdout

    def command(self, *arguments: str, extended: bool = True) -> Done:
        """Run `fusec`."""
        return self.python("-m", "fusec", *arguments, extended=extended)


def wheel(source: Path, folder: Path) -> Path:
    """The wheel of a source tree, with nothing fetched."""
    command = ["-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run([sys.executable, *command], cwd=source, check=True, capture_output=True)
    return max(folder.glob("*.whl"), key=lambda path: path.stat().st_mtime_ns)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    made = Installed(folder / "work", folder / "fusec", folder / "extension")
    made.folder.mkdir()
    for source, site in ((ROOT, made.fusec), (SAMPLE, made.extension)):
        with zipfile.ZipFile(wheel(source, folder)) as archive:
            archive.extractall(site)
    (made.folder / "post_norm.py").write_text((SAMPLE / "post_norm.py").read_text())
    x = np.random.default_rng(0).standard_normal((2, 5, 96))
    np.savez(made.folder / "x.npz", x=x.astype(np.float32))
    return made


def eager(installed: Installed) -> Any:
    """What PyTorch computes."""
    script = (
        "import numpy, post_norm, torch; model, _ = post_norm.model();"
        "x = torch.from_numpy(numpy.load('x.npz')['x']);"
        "numpy.save('y.npy', model.double()(x.double()).detach().numpy())"
    )
    done = installed.python("-c", script)
    assert done.code == 0, done.err
    return np.load(installed.folder / "y.npy")


def output(installed: Installed, name: str) -> Any:
    """The only output in a file."""
    with np.load(installed.folder / name) as held:
        (value,) = held.values()
    return value


def test_the_wheel_of_fusec_has_all_that_is_in_the_tree(installed: Installed) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "fusec", "kernels", "passes", "runtime"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    wanted = {name if name.startswith("fusec/") else f"fusec/{name}" for name in listed}
    links = {"fusec/kernels", "fusec/passes", "fusec/runtime"}
    missing = sorted(name for name in wanted - links if not (installed.fusec / name).is_file())
    assert not missing
    suffixes = {Path(name).suffix for name in wanted}
    assert {".py", ".cpp", ".hip", ".h", ".json", ".typed"} <= suffixes


def test_fusec_and_the_extension_come_from_their_wheels(installed: Installed) -> None:
    script = "import fusec, fusec_norm_add; print(fusec.__file__); print(fusec_norm_add.__file__)"
    done = installed.python("-c", script)
    fusec, extension = map(Path, done.out.split())
    assert fusec.is_relative_to(installed.fusec) and not fusec.is_relative_to(ROOT)
    assert extension.is_relative_to(installed.extension)


def test_the_fusion_of_an_installed_extension_is_compiled_and_runs(installed: Installed) -> None:
    done = installed.command("explain", MODEL, "--target", "cpu", "--fusion", "norm_add")
    assert "norm_add  3 of 4 fired" in done.out, done.err
    assert "`f32[1, 96]` is added to the norm of `f32[2, 5, 96]`" in done.out
    assert "hint: expand it before the sum" in done.out
    done = installed.command(
        *("compile", MODEL, "--target", "cpu", "--require", "norm_add>=3", "-o", "m.fusec")
    )
    assert done.code == 0, done.err
    # A tolerance that nothing meets, so that every pass and every step is looked at.
    verify = ("verify", "m.fusec", "--against", MODEL, "--tol", "1e-12", "--bisect")
    done = installed.command(*verify)
    assert done.code == 4 and "every pass and every step is right by itself" in done.err
    # From here on without the extension: its kernels are in the artifact.
    run = ("run", "m.fusec", "--input", "x.npz", "--output", "cpu.npz")
    done = installed.command(*run, extended=False)
    assert done.code == 0, done.err
    np.testing.assert_allclose(output(installed, "cpu.npz"), eager(installed), rtol=0, atol=3e-6)
    document = json.loads(installed.command("inspect", "m.fusec", "--json", extended=False).out)
    assert document["options"]["extensions"]["fusec-norm-add"]["version"] == "0.1.0"
    (target,) = document["targets"]
    assert "norm_add.cpp" in {kernel["name"] for kernel in target["kernels"]}
    rows = [row for row in target["decisions"] if row["fusion"] == "norm_add"]
    assert sorted(row["status"] for row in rows) == ["fired"] * 3 + ["refused"]
    done = installed.command("explain", "m.fusec", "--fusion", "norm_add", extended=False)
    assert "norm_add  3 of 4 fired" in done.out


def test_without_extensions_there_is_no_such_fusion(installed: Installed) -> None:
    done = installed.command(
        *("explain", MODEL, "--target", "cpu", "--fusion", "norm_add", "--no-extensions")
    )
    assert done.code == 2 and "unknown fusion `norm_add`" in done.err
    listed = json.loads(installed.command("list", "passes", "--json").out)["passes"]
    (row,) = [each for each in listed if each["pass"] == "norm_add"]
    assert row["distribution"] == "fusec-norm-add 0.1.0"
    assert row["summary"].startswith("The norm behind a sublayer")
    kernels = json.loads(installed.command("list", "kernels", "--json").out)["kernels"]
    ours = [each["kernel"] for each in kernels if each["distribution"] != "fusec"]
    assert ours == ["norm_add.cpp", "norm_add.triton"]
    plain = json.loads(installed.command("list", "passes", "--no-extensions", "--json").out)
    assert {each["distribution"] for each in plain["passes"]} == {"fusec"}


@pytest.mark.slow
def test_artifacts_tell_which_extension_they_were_made_with(installed: Installed) -> None:
    shared = ("compile", MODEL, "--target", "cpu", "-o")
    for name, more in (("a.fusec", ()), ("b.fusec", ()), ("c.fusec", ("--no-extensions",))):
        assert installed.command(*shared, name, *more).code == 0
    first, second, third = ((installed.folder / f"{name}.fusec").read_bytes() for name in "abc")
    assert first == second != third
    done = installed.command("diff", "a.fusec", "c.fusec", extended=False)
    assert done.code == 1 and "norm_add" in done.out
    verify = ("verify", "a.fusec", "--against", MODEL)
    assert installed.command(*verify, extended=False).code == 0
    done = installed.command(*verify, "--tol", "1e-12", "--bisect", extended=False)
    assert done.code == 1
    assert (
        "`fusec-norm-add` 0.1.0, which took part in the compilation, is not installed" in done.err
    )


@pytest.mark.slow
def test_a_program_for_a_gpu_runs_on_the_emulated_device(installed: Installed) -> None:
    targets = ("--target", "gfx950", "--target", "gfx942", "--target", "sm_90")
    require = ("--require", "norm_add>=3")
    done = installed.command("compile", MODEL, *targets, *require, "-o", "g.fusec")
    assert done.code == 0, done.err
    run = ("run", "g.fusec", "--input", "x.npz", "--output", "gpu.npz", "--device")
    done = installed.command(*run, "emulator:gfx950")
    assert done.code == 0, done.err
    np.testing.assert_allclose(output(installed, "gpu.npz"), eager(installed), rtol=0, atol=3e-6)
    done = installed.command(*run, "emulator:gfx950", extended=False)
    assert done.code == 1 and "hint: install the extension" in done.err


@pytest.mark.slow
def test_the_tests_of_the_sample_pass(installed: Installed) -> None:
    path = str(SAMPLE / "test_norm_add.py")
    done = installed.python("-m", "pytest", "-q", "-c", os.devnull, "--rootdir", ".", path)
    assert done.code == 0, done.out


@pytest.mark.slow
def test_fusec_from_its_wheel_compiles_and_runs_the_small_llama(installed: Installed) -> None:
    build("llama", installed.folder / "llama")
    done = installed.command(
        *("compile", "llama", "--target", "cpu", "--target", "gfx950", "-o", "llama.fusec"),
        extended=False,
    )
    assert done.code == 0, done.err
    np.savez(installed.folder / "ids.npz", input_ids=np.arange(10, dtype=np.int64).reshape(2, 5))
    run = ("run", "llama.fusec", "--input", "ids.npz", "--output", "logits.npz")
    assert installed.command(*run, extended=False).code == 0
    logits = output(installed, "logits.npz")
    assert logits.shape[:2] == (2, 5) and np.isfinite(logits).all()


PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def test_the_page_has_the_files_of_the_sample() -> None:
    shown = {body for language, body in FENCE.findall(PAGE) if language in ("py", "cpp", "toml")}
    files = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".cpp")]
    assert shown == {path.read_text() for path in (*files, SAMPLE / "pyproject.toml")}


def test_what_is_said_to_be_stable_is_there() -> None:
    section = PAGE.partition("## What is stable")[2]
    assert f"it is {API_VERSION}" in section
    rows = re.findall(r"^\| `(fusec[\w.]+)` \| (.*) \|$", section, flags=re.MULTILINE)
    assert len(rows) > 8
    for module, names in rows:
        held = importlib.import_module(module)
        assert all(hasattr(held, name) for name in re.findall(r"`(\w+)`", names)), module
    for header in re.findall(r"`<(fusec/\w+\.h)>`", section):
        assert (include_folder() / header).is_file()


@pytest.mark.slow
def test_commands_print_what_the_page_shows(installed: Installed) -> None:
    commands = installed.folder / "bin"
    commands.mkdir()
    (commands / "fusec").write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m fusec "$@"\n')
    (commands / "fusec").chmod(0o755)
    path = os.pathsep.join((str(commands), os.environ["PATH"]))
    seen = 0
    for body in (body for language, body in FENCE.findall(PAGE) if language == "text"):
        for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            done = installed.shell(command, path)
            assert normalised(done) == normalised(printed), command
            seen += 1
    assert seen == 7


def code_lines(path: Path) -> int:
    """Lines that are neither blank nor comment nor docstring."""
    text = path.read_text()
    told: set[int] = set()
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                if ast.get_docstring(node) is not None:
                    first = node.body[0]
                    told |= {*range(first.lineno, (first.end_lineno or 0) + 1)}
    return sum(
        bool(line.strip()) and number not in told and not re.match(r"\s*(//|# )", line)
        for number, line in enumerate(text.splitlines(), start=1)
    )


def test_the_sample_is_less_than_a_hundred_lines() -> None:
    files = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".cpp")]
    assert len(files) == 5
    assert sum(map(code_lines, files)) < 100
