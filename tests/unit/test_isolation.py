"""Where an artifact runs there need be nothing but numpy: no torch, no triton, no networkx."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from small_block import WIDTH, Block, export_block

import fusec
from fusec.api import compile

ROOT = Path(fusec.__file__).resolve().parent.parent

ABSENT = ("torch", "triton", "networkx", "typer", "rich", "onnxruntime", "onnx", "transformers")

RUN = """
import sys
site, artifact, inputs, outputs, absent = sys.argv[1:]
sys.path.insert(0, site)
for name in absent.split(","):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{name} is here, so this shows nothing")
import fusec.runtime
import numpy
model = fusec.load(artifact)
given = numpy.load(inputs)
numpy.savez(outputs, **model(x=given["x"], residual=given["residual"]))
print(*{name.partition(".")[0] for name in sys.modules})
"""


def bare_folder(path: Path, package: Path) -> Path:
    """A folder to import from that has numpy, the package at `package`, and nothing else."""
    path.mkdir()
    numpy_folder = Path(np.__file__).parent
    libraries = numpy_folder.with_name("numpy.libs")
    for folder in (numpy_folder, libraries):
        if folder.is_dir():
            (path / folder.name).symlink_to(folder)
    (path / "fusec").symlink_to(package)
    return path


def in_bare_python(site: Path, artifact: Path, inputs: Path, outputs: Path) -> set[str]:
    """Run the artifact where only `site` and the standard library are; give what was imported."""
    command = [sys.executable, "-I", "-S", "-c", RUN]
    paths = [str(path) for path in (site, artifact, inputs, outputs)]
    done = subprocess.run(
        [*command, *paths, ",".join(ABSENT)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = export_block(tmp_path_factory.mktemp("bare") / "block.pt2")
    return compile(archive, archive.with_suffix(".fusec"), target="cpu").path


@pytest.fixture(scope="module")
def inputs(artifact: Path) -> Path:
    x, residual = np.random.default_rng(0).standard_normal((2, 7, WIDTH)).astype(np.float32)
    path = artifact.with_name("inputs.npz")
    np.savez(path, x=x, residual=residual)
    return path


def check_numbers(inputs: Path, outputs: Path) -> None:
    given = {name: torch.from_numpy(values) for name, values in np.load(inputs).items()}
    with torch.no_grad():
        wanted = Block().eval()(**given)["y"].numpy()
    got = np.load(outputs)
    assert list(got) == ["y"]
    np.testing.assert_allclose(got["y"], wanted, rtol=0, atol=1e-5)


def test_an_artifact_runs_where_there_is_only_numpy(
    artifact: Path, inputs: Path, tmp_path: Path
) -> None:
    site = bare_folder(tmp_path / "site", Path(fusec.__file__).resolve().parent)
    outputs = tmp_path / "outputs.npz"
    imported = in_bare_python(site, artifact, inputs, outputs)
    others = imported - sys.stdlib_module_names - {"__main__"}
    assert {name for name in others if "cython" not in name} == {"fusec", "numpy"}
    check_numbers(inputs, outputs)


def test_a_folder_without_numpy_is_noticed(artifact: Path, inputs: Path, tmp_path: Path) -> None:
    """The test above can fail: what it runs in has nothing that was not put there."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "fusec").symlink_to(Path(fusec.__file__).resolve().parent)
    with pytest.raises(AssertionError, match="No module named 'numpy'"):
        in_bare_python(site, artifact, inputs, tmp_path / "outputs.npz")


def copied(folder: Path) -> Path:
    """A copy of the tree, for build tools leave traces in one."""
    source = folder / "source"
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, source, symlinks=True, ignore=unwanted)
    return source


def test_an_editable_install_of_a_source_distribution_is_one_package(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "hatchling", "build", "--directory", str(tmp_path), "--target"]
    subprocess.run([*build, "sdist"], cwd=copied(tmp_path), check=True, capture_output=True)
    (archive,) = tmp_path.glob("fusec-*.tar.gz")
    shutil.unpack_archive(archive, tmp_path, filter="data")
    source = archive.with_name(archive.name.removesuffix(".tar.gz"))
    subprocess.run([*build, "wheel:editable"], cwd=source, check=True, capture_output=True)
    command = "import fusec.kernels, fusec.passes, fusec.runtime; print(fusec.kernels.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(source)},
        check=True,
    )
    assert Path(done.stdout.strip()) == source / "fusec" / "kernels" / "__init__.py"


@pytest.mark.slow
def test_a_wheel_holds_one_package_and_its_runtime_runs(
    artifact: Path, inputs: Path, tmp_path: Path
) -> None:
    source = copied(tmp_path)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    if importlib.util.find_spec("hatchling") is not None:
        command.append("--no-build-isolation")
    command += ["--wheel-dir", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("fusec-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "unpacked")

    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith((".dist-info", ".data"))} == {"fusec"}
    for folder in ("passes", "kernels", "runtime"):
        wanted = {
            f"fusec/{path.relative_to(source).as_posix()}"
            for path in (source / folder).rglob("*")
            if path.suffix in (".py", ".cpp", ".h")
        }
        assert wanted
        assert wanted <= names
    assert {"fusec/kernels/linear/kernel.cpp", "fusec/kernels/include/fusec/kernel.h"} <= names
    assert "fusec/py.typed" in names

    site = bare_folder(tmp_path / "site", tmp_path / "unpacked" / "fusec")
    outputs = tmp_path / "outputs.npz"
    in_bare_python(site, artifact, inputs, outputs)
    check_numbers(inputs, outputs)
