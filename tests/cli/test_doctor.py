"""`fusec doctor` on machines that lack this and that."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from test_cli import Fusec, fusec  # noqa: F401

from fusec.cli import doctor
from fusec.diagnostics import UnsupportedError
from fusec.runtime.driver import DeviceInfo
from fusec.versions import PACKAGES, outside

ROOT = Path(__file__).parents[2]
VERSION = importlib.metadata.version


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make packages look as if they were not installed."""

    def version(name: str) -> str:
        if name in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return VERSION(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "loaded_library", lambda kind: None)


def test_a_gpu_target_without_triton_is_not_ready(
    fusec: Fusec,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hide(monkeypatch, "triton")
    no_devices(monkeypatch)
    done = fusec("doctor", "--target", "mi355x", "--need", "compile")
    assert done.code == 6
    assert "`gfx950` cannot be compiled for here" in done.err
    assert "triton: pip install 'fusec[gpu]'" in done.err
    assert re.search(r"gfx950 +no +no", done.out)
    everything = fusec("doctor")
    assert everything.code == 0
    assert re.search(r"triton +missing", everything.out)


def test_compiling_needs_no_device_and_running_does(
    fusec: Fusec,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_devices(monkeypatch)
    monkeypatch.setattr(doctor, "_hip_compiler", lambda: "clang 22")
    assert fusec("doctor", "--target", "gfx942", "--need", "compile").code == 0
    for need in ("run", "both"):
        done = fusec("doctor", "--target", "gfx942", "--need", need)
        assert done.code == 6
        assert "libamdhip64: install ROCm's HIP runtime" in done.err


def test_a_device_makes_a_target_ready_to_run(
    fusec: Fusec,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = DeviceInfo("AMD Instinct MI355X", "gfx950:sramecc+:xnack-", 288 << 30)
    monkeypatch.setattr(doctor, "loaded_library", lambda kind: f"lib{kind}.so")
    monkeypatch.setattr(doctor, "list_devices", lambda kind: [found] if kind == "hip" else [])
    assert fusec("doctor", "--target", "gfx950", "--need", "run").code == 0
    other = fusec("doctor", "--target", "gfx942", "--need", "run")
    assert other.code == 6
    assert "a device of `gfx942`: here are gfx950" in other.err


def test_a_missing_compiler_and_what_to_do(
    fusec: Fusec,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(choice: str | None = None) -> None:
        raise UnsupportedError("the CPU target needs a C++ compiler, and there is none")

    monkeypatch.setattr("fusec.link.toolchain.find_toolchain", none)
    done = fusec("doctor", "--target", "cpu")
    assert done.code == 6
    assert "fusec[toolchain]" in done.err


def test_sources_say_what_they_need(
    fusec: Fusec,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hide(monkeypatch, "transformers", "onnx")
    done = fusec("doctor")
    assert re.search(r"model folders +no: pip install 'fusec\[huggingface\]'", done.out)
    assert re.search(r"ONNX files +no: pip install 'fusec\[onnx\]'", done.out)
    assert re.search(r"archives.* yes", done.out)


def test_json_keeps_its_members_and_has_more(fusec: Fusec) -> None:  # noqa: F811
    document = fusec("doctor", "--json").json
    assert document["schema"] == "fusec.doctor/1"
    assert {"what", "found", "needed", "hint"} == {*document["findings"][0]}
    (cpu,) = (each for each in document["targets"] if each["target"] == "cpu")
    assert cpu == {
        "target": "cpu",
        "compile": True,
        "compile_needs": [],
        "run": True,
        "run_needs": [],
    }
    assert document["machine"]["threads"] >= 1
    assert document["machine"]["memory_bytes"] > 1 << 30
    assert "avx2" in document["machine"]["features"]
    assert {"folder", "files", "bytes"} == {*document["cache"]}


def test_limits_of_a_container_are_told(
    fusec: Fusec,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for path, text in {
        "proc/cpuinfo": "processor : 0\nmodel name\t: A Processor\nprocessor : 1\n",
        "proc/meminfo": "MemTotal:       33554432 kB\n",
        "sys/fs/cgroup/memory.max": f"{8 << 30}\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.setattr(doctor, "SYSTEM", tmp_path)
    shown = fusec("doctor").out
    assert re.search(r"CPU +A Processor", shown)
    assert re.search(r"memory +32\.0 GiB, limited to 8\.0 GiB", shown)
    assert re.search(r"huge pages +madvise", shown)
    assert "of 2 processors" in shown


def test_versions_outside_of_what_was_tested_are_warned_of(
    fusec: Fusec,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "99.1" if name == "torch" else VERSION(name)
    )
    done = fusec("doctor")
    assert "warning: torch is newer than 2.13.0, the last that was tested" in done.err
    assert fusec("doctor", "--json").json["untested"] == {
        "torch": "newer than 2.13.0, the last that was tested"
    }
    assert outside("torch", "2.13.0+rocm6.4") is None
    assert outside("torch", "2.10.1") == "older than 2.11, which fusec needs"
    assert outside("rich", "13") is None


def test_tested_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line
    )
    for name, tested in PACKAGES.items():
        asked = extras[tested.extra] if tested.extra else project["dependencies"]
        assert f"{name}>={tested.oldest}" in asked or f"{name}=={tested.oldest}" in asked
        assert pinned[name] == tested.newest
