"""What the runtime asks of the machine: instruction sets, CPUs, pages."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from artifact_samples import entries_of, seal
from executor_samples import embedding, kernel_step, program, write

from fusec.runtime import cpu, load
from fusec.runtime.artifact import open_artifact
from fusec.runtime.errors import ChecksumError, TargetError
from fusec.runtime.pages import HUGE_PAGE, Recycler, new_pages
from fusec.target import CPU_ARCHES

V3, V4, AMX = (CPU_ARCHES[name].features for name in ("x86-64-v3", "x86-64-v4", "sapphirerapids"))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedding(tmp_path_factory.mktemp("host"))


def with_cpuinfo(monkeypatch: pytest.MonkeyPatch, folder: Path, features: tuple[str, ...]) -> None:
    """Make this a machine with these features."""
    file = folder / "cpuinfo"
    file.write_text(f"processor\t: 0\nflags\t\t: fpu {' '.join(features)}\nbugs\t\t: none\n")
    monkeypatch.setattr(cpu, "_CPUINFO", file)


def for_targets(path: Path, file: Path, targets: dict[str, tuple[str, ...]]) -> Path:
    """The artifact at `path`, as if it had been compiled for `targets`."""
    entries = entries_of(path)
    manifest = json.loads(entries["manifest.json"])
    (section,) = manifest["targets"]
    document = json.loads(entries.pop(section["program"]))
    manifest["targets"] = []
    for name, features in targets.items():
        entry = f"program/{name}.json"
        known = {"target": name, "arch": name, "features": list(features)}
        manifest["targets"].append({**section, **known, "program": entry})
        entries[entry] = json.dumps({**document, **known}).encode()
    file.write_bytes(seal({**entries, "manifest.json": json.dumps(manifest).encode()}))
    return file


@pytest.mark.parametrize(
    ("host", "refusal", "chosen", "reason"),
    [
        (V3, None, "x86-64-v3", "the richest that runs here; not `sapphirerapids`: this processor"),
        (V4, None, "x86-64-v4", "the richest that runs here; not `sapphirerapids`: this processor"),
        (AMX, None, "sapphirerapids", "the richest that runs here"),
        (
            AMX,
            "operation not permitted",
            "x86-64-v4",
            "the richest that runs here; not `sapphirerapids`: the system gives no access to AMX: "
            "operation not permitted",
        ),
    ],
)
def test_the_richest_target_is_chosen(
    tmp_path: Path,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: tuple[str, ...],
    refusal: str | None,
    chosen: str,
    reason: str,
) -> None:
    targets = {"x86-64-v4": V4, "sapphirerapids": AMX, "x86-64-v3": V3}
    file = for_targets(path, tmp_path / "several.fusec", targets)
    with_cpuinfo(monkeypatch, tmp_path, host)
    monkeypatch.setattr(cpu, "_request_tiles", lambda: refusal)
    model = load(file)
    assert model.target == chosen
    assert model.reason.startswith(reason)
    assert model(input_ids=[[3]])["hidden"].shape == (1, 1, 5)


def test_an_artifact_for_another_processor_is_refused_first(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before code is loaded, weights are looked at, or the system is asked for tiles."""

    def never(*_: object) -> None:
        raise AssertionError("it was not refused first")

    for name in ("load_module", "_weight_arrays", "read_program"):
        monkeypatch.setattr(f"fusec.runtime.loader.{name}", never)
    monkeypatch.setattr(cpu, "_request_tiles", never)
    with_cpuinfo(monkeypatch, tmp_path, V3)
    file = for_targets(path, tmp_path / "amx.fusec", {"sapphirerapids": AMX, "x86-64-v4": V4})
    with pytest.raises(TargetError, match="no `avx512bw`, `avx512cd`") as caught:
        load(file)
    assert caught.value.exit_code == 5
    assert "--target x86-64-v3" in str(caught.value.hint)
    assert "`sapphirerapids`: this processor has no `amx_bf16`" in caught.value.detail[0]
    with_cpuinfo(monkeypatch, tmp_path, ())
    with pytest.raises(TargetError, match="this processor has no `avx2`, `bmi1`"):
        load(for_targets(path, file, {"x86-64-v3": V3}))


@pytest.mark.parametrize("name", CPU_ARCHES)
def test_every_feature_of_a_target_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(cpu, "_request_tiles", lambda: None)
    features = CPU_ARCHES[name].features
    with_cpuinfo(monkeypatch, tmp_path, features)
    assert cpu.why_not(features) is None
    for missing in features:
        left = tuple(feature for feature in features if feature != missing)
        with_cpuinfo(monkeypatch, tmp_path, left)
        assert cpu.why_not(features) == f"this processor has no `{missing}`"


def test_no_access_to_tiles(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_cpuinfo(monkeypatch, tmp_path, AMX)
    monkeypatch.setattr(cpu, "_request_tiles", lambda: "no space left on device")
    file = for_targets(path, tmp_path / "amx.fusec", {"sapphirerapids": AMX})
    with pytest.raises(TargetError, match="no access to AMX: no space left on device"):
        load(file)


def test_code_that_changes_after_the_check(path: Path) -> None:
    """The file is checked when it is opened; what is loaded is checked again."""
    artifact = open_artifact(path)
    (entry,) = artifact.manifest.targets[0].modules
    changed = bytearray(artifact.entry(entry))
    changed[-1] ^= 1
    with pytest.raises(ChecksumError, match="not the one that was written"):
        cpu.load_module(memoryview(changed), artifact.manifest.entries[entry][1] + " ", "here")


CPUS = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, CPUS),
        ({"proc/self/cgroup": "0::/\n"}, CPUS),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, CPUS),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "20000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n"}, CPUS),
        # The group around it is the one with a limit.
        (
            {
                "proc/self/cgroup": "0::/outer/inner\n",
                "sys/fs/cgroup/outer/cpu.max": "50000 100000\n",
                "sys/fs/cgroup/outer/inner/cpu.max": "max 100000\n",
            },
            1,
        ),
        # A container that sees the path of the host, but only its own group.
        (
            {
                "proc/self/cgroup": "5:memory:/docker/1\n4:cpuacct,cpu:/docker/1\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "90000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/group\n",
                "sys/fs/cgroup/cpu/group/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/group/cpu.cfs_period_us": "100000\n",
            },
            CPUS,
        ),
    ],
)
def test_containers_limit_cpus(tmp_path: Path, files: dict[str, str], cpus: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu.available_cpus(tmp_path) == cpus


def test_affinity_limits_cpus() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from fusec.runtime.cpu import available_cpus; print(available_cpus())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_more_threads_than_cpus(path: Path) -> None:
    model = load(path, threads=CPUS + 5)
    assert model.threads == CPUS + 5
    ids = np.arange(11).reshape(1, 11)
    np.testing.assert_array_equal(
        model(input_ids=ids)["hidden"], load(path, threads=1)(input_ids=ids)["hidden"]
    )


def test_new_pages_are_private_and_aligned() -> None:
    memory = new_pages(3 * HUGE_PAGE + 5)
    assert memory.nbytes == 3 * HUGE_PAGE + 5
    assert memory.ctypes.data % HUGE_PAGE == 0 and not memory.any()
    child = os.fork()
    if child == 0:
        memory[:] = 7
        os._exit(0)
    os.waitpid(child, 0)
    assert not memory.any(), "a child writes into the memory of its parent"


def test_memory_is_recycled_only_when_nobody_holds_it() -> None:
    recycler = Recycler()
    first = recycler.take(1 << 20)
    address = first.ctypes.data
    view = first[4096:8192].view(np.float32)
    view[:] = 1.5
    del first
    gc.collect()
    second = recycler.take(1 << 20)
    assert second.ctypes.data != address, "a view still holds it"
    second[:] = 0
    assert (view == 1.5).all()
    del view
    gc.collect()
    assert recycler.take(1 << 20).ctypes.data == address
    del second
    gc.collect()
    assert recycler.take(64 << 20).nbytes == 64 << 20


def test_outputs_outlive_the_next_run(tmp_path: Path) -> None:
    rows = 1 << 19
    document = program(
        ["x: f32[rows]"],
        ["y: f32[rows]"],
        [{"kind": "input", "bytes": "4*rows"}, {"kind": "output", "bytes": "4*rows"}],
        [kernel_step("sample_scale", [(0, 0), (1, 0)], "rows", {"f64": 2})],
        symbols={"rows": (1, rows)},
    )
    model = load(write(tmp_path / "double.fusec", document))
    given = [np.full(rows, value, np.float32) for value in range(4)]
    kept = [model(x=x)["y"] for x in given]
    assert [float(array[-1]) for array in kept] == [0, 2, 4, 6]
    address = kept.pop().ctypes.data
    gc.collect()
    assert model(x=given[1])["y"].ctypes.data == address


def test_weights_in_huge_pages(tmp_path: Path, path: Path) -> None:
    ids = np.arange(11).reshape(1, 11)
    np.testing.assert_array_equal(
        load(path, huge_pages=True)(input_ids=ids)["hidden"], load(path)(input_ids=ids)["hidden"]
    )


def test_weights_without_a_checksum_are_held_against_their_digest(
    tmp_path: Path, path: Path
) -> None:
    """As an artifact of an earlier fusec has them."""
    entries = entries_of(path)
    manifest = json.loads(entries["manifest.json"])
    (row,) = manifest["weights"]["tensors"]
    del row["crc32"]
    file = tmp_path / "old.fusec"
    file.write_bytes(seal({**entries, "manifest.json": json.dumps(manifest).encode()}))
    load(file)
    row["sha256"] = "0" * 64
    file.write_bytes(seal({**entries, "manifest.json": json.dumps(manifest).encode()}))
    with pytest.raises(ChecksumError, match="the weight `table`"):
        load(file)
