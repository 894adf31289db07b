"""The artifact: what is written is read back, aligned, deterministic and atomic."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from artifact_samples import CODE, MODULE, contents, program, weight, weights
from safetensors.numpy import load_file

from fusec.diagnostics import InputError, InternalError
from fusec.link.artifact_writer import WeightData, WeightStorage, write_artifact
from fusec.runtime.artifact import open_artifact
from fusec.runtime.container import Entry, is_artifact, local_header, read_directory, tail
from fusec.runtime.errors import (
    ChecksumError,
    MissingEntryError,
    TargetError,
    WeightsError,
)


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    written = write_artifact(tmp_path / "m.fusec", contents())
    artifact = open_artifact(written.path)
    manifest = artifact.manifest
    assert artifact.id == written.id
    assert artifact.bytes == written.bytes == written.path.stat().st_size
    assert list(map(str, manifest.inputs)) == ["input_ids: i64[batch, seq]"]
    assert list(map(str, manifest.outputs)) == ["logits: f32[batch, seq, 4*seq + 1]"]
    assert manifest.symbols == {"batch": (1, 8), "seq": (1, 64)}
    assert manifest.source.sha256 == "ab" * 32
    assert manifest.tokenizer == "tokenizer.json"
    assert bytes(artifact.entry(MODULE)) == CODE
    assert artifact.program("cpu").value == program()
    assert artifact.graph_text() == artifact.graph_text("cpu") == "graph @sample() {\n}\n"
    assert artifact.source_graph_text() == "graph @sample() {\n  // as read\n}\n"
    assert artifact.origins("cpu") == {"add": ("add_1", "mul")}
    assert list(artifact.decisions()) == [{"fusion": "rms_norm", "site": "a", "status": "fired"}]
    assert artifact.target("cpu").report["memory"] == {"weights_bytes": 100, "arena_bytes": 0}
    with pytest.raises(TargetError, match="no target `gfx950`"):
        artifact.target("gfx950")


def test_a_target_may_have_a_graph_of_its_own(tmp_path: Path) -> None:
    other = "graph @other() {\n}\n"
    held = contents(target_graphs={"gfx950": other})
    artifact = open_artifact(write_artifact(tmp_path / "m.fusec", held).path)
    assert artifact.graph_text("gfx950") == other
    assert artifact.graph_text("cpu") == artifact.graph_text() != other


def test_a_product_stands_for_its_architecture(tmp_path: Path) -> None:
    named = {**program(), "target": "gfx950"}
    held = contents(targets=(replace(contents().targets[0], target="gfx950", program=named),))
    artifact = open_artifact(write_artifact(tmp_path / "m.fusec", held).path)
    assert artifact.target("MI355X") is artifact.target("gfx950")


def test_an_artifact_of_an_older_version_has_only_the_graph_after_the_passes(
    tmp_path: Path,
) -> None:
    held = contents(source_graph=None, origins={})
    artifact = open_artifact(write_artifact(tmp_path / "m.fusec", held).path)
    assert artifact.source_graph_text() is None
    assert artifact.origins("cpu") is None


def test_other_tools_read_it(tmp_path: Path) -> None:
    path = write_artifact(tmp_path / "m.fusec", contents()).path
    assert is_artifact(path)
    assert not is_artifact(__file__)
    assert not is_artifact(tmp_path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist()[0] == "fusec"
        assert archive.namelist()[-1] == "manifest.json"
        assert {item.compress_type for item in archive.infolist()} == {zipfile.ZIP_STORED}
        listed = json.loads(archive.read("manifest.json"))["entries"]
        for name, row in listed.items():
            data = archive.read(name)
            assert row == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (tmp_path / "w.safetensors").write_bytes(archive.read("weights.safetensors"))
    assert path.read_bytes()[64:74] == b"fusec 1.0\n"


def test_weights_of_more_than_4_gib(tmp_path: Path) -> None:
    """The layout alone, in a sparse file."""
    path = tmp_path / "large.fusec"
    large = 5 << 30
    entries = [Entry("fusec", 10, 1, 0)]
    for name, size in (("graph.fir", 3), ("weights.safetensors", large), ("zz", 7)):
        entries.append(Entry(name, size, 2, entries[-1].end))
    entries.append(Entry("manifest.json", 9, 3, entries[-1].end))
    with path.open("wb") as file:
        for entry in entries:
            file.seek(entry.header_offset)
            file.write(local_header(entry))
            file.write(b"fusec 1.0\n" if entry.name == "fusec" else b"")
        file.seek(entries[-1].end)
        file.write(tail(entries, "0" * 64))
    with path.open("rb") as read, mmap.mmap(read.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found, _ = read_directory(data, "large")
    assert list(found.values()) == entries
    with zipfile.ZipFile(path) as archive:
        sizes = {item.filename: item.file_size for item in archive.infolist()}
        assert sizes["weights.safetensors"] == large
        assert archive.getinfo("manifest.json").header_offset > large


@pytest.mark.parametrize("storage", ["embed", "external"])
def test_weights_are_aligned_valid_safetensors(tmp_path: Path, storage: WeightStorage) -> None:
    written = write_artifact(tmp_path / "m.fusec", contents(), storage=storage)
    raw = written.path.read_bytes()
    begin = 0
    if storage == "embed":
        with zipfile.ZipFile(written.path) as archive:
            raw_weights = archive.read("weights.safetensors")
        begin = raw.index(raw_weights)
        assert begin % 4096 == 0
        assert raw.index(CODE) % 4096 == 0
        file = tmp_path / "copy.safetensors"
        file.write_bytes(raw_weights)
    else:
        assert written.weights_path is not None
        file = written.weights_path
        assert file.name == "m.weights.safetensors"
        assert len(raw) < 100_000
    loaded = {name: array for name, array in read_official(file) if "padding" not in name}
    artifact = open_artifact(written.path)
    mapped = artifact.weights()
    artifact.verify_weights(mapped)
    assert set(loaded) == {tensor.name for tensor in artifact.manifest.weights.tensors}
    for source, tensor in zip(weights(), artifact.manifest.weights.tensors, strict=True):
        expected = b"".join(bytes(chunk) for chunk in source.chunks())
        assert loaded[tensor.name] == expected == bytes(mapped[tensor.name])
        address = np.frombuffer(mapped[tensor.name], np.uint8).ctypes.data if expected else 0
        assert address % (4096 if tensor.bytes >= 1 << 20 else 64) == 0
        assert tensor.packing == "plain"
        assert tensor.sources == (f"model.{tensor.name}",)


def read_official(path: Path) -> Iterator[tuple[str, bytes]]:
    from safetensors import deserialize

    for name, view in deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
        yield name, bytes(view["data"])


def test_official_reader_takes_the_file_with_its_padding(tmp_path: Path) -> None:
    plain = (weight("a", "f32", (3,), bytes(12)), weight("b", "i64", (5,), bytes(range(40))))
    written = write_artifact(tmp_path / "m.fusec", contents(weights=plain), storage="external")
    assert written.weights_path is not None
    loaded = load_file(written.weights_path)
    assert loaded["b"].tobytes() == bytes(range(40))


def test_two_builds_are_the_same_bytes(tmp_path: Path) -> None:
    for storage in ("embed", "external", "none"):
        first = write_artifact(tmp_path / "1" / "m.fusec", contents(), storage=storage)
        second = write_artifact(tmp_path / "2" / "m.fusec", contents(), storage=storage)
        assert first.path.read_bytes() == second.path.read_bytes()
        assert first.id == second.id


@pytest.fixture(autouse=True)
def folders(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()


def test_no_weights(tmp_path: Path) -> None:
    stored = write_artifact(tmp_path / "1" / "m.fusec", contents(), storage="external")
    bare = write_artifact(tmp_path / "2" / "m.fusec", contents(), storage="none")
    artifact = open_artifact(bare.path)
    with pytest.raises(WeightsError, match="5 weights have to be given"):
        artifact.weights()
    with pytest.raises(InputError, match="there is no file `nowhere` with weights"):
        artifact.weights(Path("nowhere"))
    mapped = artifact.weights(stored.weights_path)
    artifact.verify_weights(mapped)
    assert bytes(mapped["scale"]) == b"".join(map(bytes, weights()[-1].chunks()))
    other = contents(weights=[*weights()[1:], weight("a", "f32", (5, 3), bytes(60))])
    swapped = write_artifact(tmp_path / "1" / "m.fusec", other, storage="external")
    with pytest.raises(WeightsError, match=r"`a` is f32\[5, 3\]"):
        artifact.weights(swapped.weights_path)
    fewer = write_artifact(
        tmp_path / "1" / "m.fusec", contents(weights=weights()[1:]), storage="external"
    )
    with pytest.raises(WeightsError, match=f"`{weights()[0].name}` is missing"):
        artifact.weights(fewer.weights_path)


def test_external_weights_are_checked(tmp_path: Path) -> None:
    written = write_artifact(tmp_path / "m.fusec", contents(), storage="external")
    file = written.weights_path
    assert file is not None
    good = file.read_bytes()
    artifact = open_artifact(written.path)

    file.write_bytes(good[:-1])
    with pytest.raises(WeightsError, match="bytes"):
        artifact.weights()
    for position in range(8, len(good), 101_111):
        bad = bytearray(good)
        bad[position] ^= 0x10
        file.write_bytes(bad)
        with pytest.raises(ChecksumError):
            artifact.verify_weights(artifact.weights())
    file.unlink()
    with pytest.raises(MissingEntryError, match=r"m\.weights\.safetensors"):
        artifact.weights()


def test_chunks_are_used_before_the_next_one(tmp_path: Path) -> None:
    data = np.random.default_rng(1).bytes(5000)

    def chunks() -> Iterator[memoryview]:
        buffer = bytearray(1000)
        for begin in range(0, 5000, 1000):
            buffer[:] = data[begin : begin + 1000]
            yield memoryview(buffer)

    only = WeightData("w", "u8", (5000,), chunks)
    artifact = open_artifact(write_artifact(tmp_path / "m.fusec", contents(weights=[only])).path)
    mapped = artifact.weights()
    artifact.verify_weights(mapped)
    assert bytes(mapped["w"]) == data


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[bytes]:
        yield bytes(4)
        raise InputError("no such tensor")

    folder = tmp_path / "1"
    bad = contents(weights=[WeightData("w", "f32", (2,), failing)])
    for storage in ("embed", "external"):
        with pytest.raises(InputError, match="no such tensor"):
            write_artifact(folder / "m.fusec", bad, storage=storage)
    short = contents(weights=[WeightData("w", "f32", (2,), lambda: [bytes(4)])])
    with pytest.raises(InternalError, match="gave 4 bytes, not 8"):
        write_artifact(folder / "m.fusec", short)
    unreadable = contents(residual={"../x.onnx": b""})
    with pytest.raises(InternalError, match="unreadable"):
        write_artifact(folder / "m.fusec", unreadable)
    assert list(folder.iterdir()) == []
    with pytest.raises(InputError, match="cannot write"):
        write_artifact(tmp_path / "missing" / "m.fusec", contents())


def test_a_program_that_the_runtime_refuses_is_not_written(tmp_path: Path) -> None:
    sample = contents()
    broken = {**program(), "buffers": []}
    with pytest.raises(InternalError, match="there are 0 buffers"):
        write_artifact(
            tmp_path / "m.fusec",
            replace(sample, targets=(replace(sample.targets[0], program=broken),)),
        )
    assert not (tmp_path / "m.fusec").exists()


def test_failure_keeps_what_was_there(tmp_path: Path) -> None:
    path = write_artifact(tmp_path / "m.fusec", contents()).path
    before = path.read_bytes()
    short = contents(weights=[WeightData("w", "f32", (2,), lambda: [])])
    with pytest.raises(InternalError):
        write_artifact(path, short)
    assert path.read_bytes() == before
    assert os.listdir(path.parent).count("m.fusec") == 1


def test_memory_does_not_hold_the_weights(tmp_path: Path) -> None:
    script = f"""
import resource
from pathlib import Path
from fusec.link.artifact_writer import WeightData, write_artifact
from artifact_samples import contents
block = bytes(1 << 20)
weights = [WeightData(f"w{{i}}", "u8", (1 << 26,), lambda: (block for _ in range(64)))
           for i in range(6)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_artifact(Path({str(tmp_path)!r}) / "m.fusec", contents(weights=weights))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=True,
    )
    assert int(result.stdout) < 64 << 10
