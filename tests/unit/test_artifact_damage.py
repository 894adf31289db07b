"""Damaged, hostile and foreign artifacts: each gives its own error, and nothing else."""

from __future__ import annotations

import json
import os
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from artifact_samples import (
    CODE,
    MODULE,
    contents,
    edited,
    entries_of,
    places_of,
    seal,
    seal_as_is,
    weight,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fusec.diagnostics import ArtifactError, InputError
from fusec.link.artifact_writer import write_artifact
from fusec.runtime import artifact as reader
from fusec.runtime.artifact import open_artifact
from fusec.runtime.errors import (
    ChecksumError,
    CompressedEntryError,
    DuplicateEntryError,
    EncryptedEntryError,
    HeaderMismatchError,
    LayoutError,
    LimitError,
    MalformedError,
    MissingEntryError,
    NotAnArtifactError,
    OutOfBoundsError,
    OverlapError,
    TruncatedError,
    UnexpectedEntryError,
    UnsafeNameError,
    VersionError,
    WeightsError,
)
from fusec.runtime.tensor_file import read_header

SMALL = (weight("a", "f32", (3, 5), bytes(range(60))), weight("b", "u8", (7,), bytes(range(7))))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "good.fusec"
    return write_artifact(path, contents(weights=SMALL)).path


@pytest.fixture(scope="module")
def entries(good: Path) -> dict[str, bytes]:
    return entries_of(good)


def read_all(path: Path) -> None:
    """Everything that inspecting and loading reads."""
    artifact = open_artifact(path)
    artifact.graph_text()
    artifact.source_graph_text()
    list(artifact.decisions())
    for section in artifact.manifest.targets:
        artifact.program(section.target)
        artifact.origins(section.target)
    artifact.verify_weights(artifact.weights())


def refused(
    folder: Path, data: bytes, error: type[ArtifactError], match: str | None = None
) -> None:
    path = folder / "bad.fusec"
    path.write_bytes(data)
    with pytest.raises(error, match=match) as caught:
        read_all(path)
    assert type(caught.value) is error
    assert caught.value.exit_code == 5
    assert caught.value.at is not None


def rezip(folder: Path, items: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """Pack as another tool would, first entry first."""
    path = folder / "zip"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # about duplicate names
        for index, (name, data) in enumerate(items):
            info = zipfile.ZipInfo(name)
            info.compress_type = method if index else zipfile.ZIP_STORED
            if index == 0:
                info.extra = struct.pack("<2H", 0xD935, 25) + bytes(25)
            archive.writestr(info, data)
    data = path.read_bytes()
    assert data[64:69] == b"fusec"
    return data


def test_good_is_good(good: Path, entries: dict[str, bytes]) -> None:
    read_all(good)
    assert seal(entries) == good.read_bytes()


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        open_artifact(tmp_path / "missing.fusec")
    with pytest.raises(InputError, match="cannot read"):
        open_artifact(tmp_path)
    for data in (b"", b"x", b"PK\x03\x04", b"\x7fELF" + bytes(500), b"PK\x05\x06" + bytes(18)):
        refused(tmp_path, data, NotAnArtifactError)
    with zipfile.ZipFile(tmp_path / "other", "w") as archive:
        archive.writestr("archive_format", "pt2")
    refused(tmp_path, (tmp_path / "other").read_bytes(), NotAnArtifactError)


def test_every_truncation(tmp_path: Path, good: Path) -> None:
    data = good.read_bytes()
    for length in [*range(88, len(data) - 700, 211), *range(len(data) - 700, len(data))]:
        refused(tmp_path, data[:length], TruncatedError)
    refused(tmp_path, data + b"\0", TruncatedError)
    refused(tmp_path, data[:40], TruncatedError)


def flip_every(folder: Path, data: bytes, positions: range) -> None:
    path = folder / "flipped.fusec"
    for position in positions:
        for bit in (0, 3, 7):
            bad = bytearray(data)
            bad[position] ^= 1 << bit
            path.write_bytes(bad)
            with pytest.raises(ArtifactError):
                read_all(path)


def test_flipped_bits(tmp_path: Path, good: Path) -> None:
    data = good.read_bytes()
    flip_every(tmp_path, data, range(0, len(data), 37))


@pytest.mark.slow
def test_every_flipped_byte(tmp_path: Path, good: Path) -> None:
    data = good.read_bytes()
    flip_every(tmp_path, data, range(len(data)))


def test_bombs_and_packed_again(tmp_path: Path, entries: dict[str, bytes]) -> None:
    items = list(entries.items())
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        refused(tmp_path, rezip(tmp_path, items, method), CompressedEntryError, "compressed")
    bomb = [*items, ("residual/9.onnx", bytes(50_000_000))]
    refused(tmp_path, rezip(tmp_path, bomb, zipfile.ZIP_DEFLATED), CompressedEntryError)
    refused(tmp_path, rezip(tmp_path, items), HeaderMismatchError)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../x",
        "residual/../../x",
        "a\\b",
        "c:x",
        "a//b",
        ".hidden",
        "a/",
        "ü",
        "a\nb",
    ],
)
def test_unsafe_names(tmp_path: Path, entries: dict[str, bytes], name: str) -> None:
    data = rezip(tmp_path, [*entries.items(), (name, b"x")])
    refused(tmp_path, data, UnsafeNameError)


def test_long_name(tmp_path: Path, entries: dict[str, bytes]) -> None:
    refused(tmp_path, rezip(tmp_path, [*entries.items(), ("a" * 300, b"")]), UnsafeNameError)


def test_duplicates(tmp_path: Path, entries: dict[str, bytes]) -> None:
    data = rezip(tmp_path, [*entries.items(), ("graph.fir", b"other")])
    refused(tmp_path, data, DuplicateEntryError, r"`graph\.fir`")


def patched(data: bytes, name: bytes, change: Callable[[bytearray, int], None]) -> bytes:
    """`change` gets the place of the entry's central directory header."""
    bad = bytearray(data)
    name_at = bad.rindex(b"\xff\xff\xff\xff" + name) + 4
    change(bad, name_at - 46)
    return bytes(bad)


def test_encrypted(tmp_path: Path, good: Path) -> None:
    def encrypt(data: bytearray, at: int) -> None:
        data[at + 8] |= 1

    refused(tmp_path, patched(good.read_bytes(), b"graph.fir", encrypt), EncryptedEntryError)


def place(value: int, field: int) -> Callable[[bytearray, int], None]:
    """Set the size (0), stored size (1) or header offset (2) of the ZIP64 field."""

    def change(data: bytearray, at: int) -> None:
        (length,) = struct.unpack_from("<H", data, at + 28)
        struct.pack_into("<Q", data, at + 46 + length + 4 + 8 * field, value)

    return change


def both_sizes(value: int) -> Callable[[bytearray, int], None]:
    def change(data: bytearray, at: int) -> None:
        place(value, 0)(data, at)
        place(value, 1)(data, at)

    return change


def test_places_outside_of_the_file(tmp_path: Path, good: Path) -> None:
    data = good.read_bytes()
    for offset in (len(data), 1 << 40, (1 << 64) - 1):
        refused(tmp_path, patched(data, b"graph.fir", place(offset, 2)), OutOfBoundsError)
        sized = patched(data, b"weights.safetensors", both_sizes(offset))
        refused(tmp_path, sized, OutOfBoundsError)


def test_overlapping_entries(tmp_path: Path, good: Path) -> None:
    data = good.read_bytes()
    refused(tmp_path, patched(data, b"decisions.jsonl", both_sizes(200)), OverlapError)

    def same_place(bad: bytearray, at: int) -> None:
        place(bad.index(b"PK\x03\x04", 1), 2)(bad, at)

    with pytest.raises((OverlapError, HeaderMismatchError)):
        (tmp_path / "bad").write_bytes(patched(data, b"graph.fir", same_place))
        open_artifact(tmp_path / "bad")


def test_local_header_disagrees(tmp_path: Path, good: Path) -> None:
    data = good.read_bytes()
    start = data.index(b"graph.fir") - 30
    for offset, value in ((14, 1), (30, ord("x")), (8, 8), (6, 1), (10, 1), (50, 9)):
        bad = bytearray(data)
        bad[start + offset] ^= value
        refused(tmp_path, bytes(bad), HeaderMismatchError, r"graph\.fir")


def test_stray_bytes(tmp_path: Path, entries: dict[str, bytes], good: Path) -> None:
    data = good.read_bytes()
    bad = bytearray(data)
    bad[data.rindex(b"PK\x01\x02") + 38] ^= 1  # external attributes
    refused(tmp_path, bytes(bad), LayoutError)
    bad = bytearray(data)
    bad[-80] ^= 1
    refused(tmp_path, bytes(bad), LayoutError)


def test_central_directory_outside(tmp_path: Path, good: Path) -> None:
    data = bytearray(good.read_bytes())
    end64 = data.rindex(b"PK\x06\x06")
    for offset, error in ((48, OutOfBoundsError), (40, OutOfBoundsError), (32, LimitError)):
        bad = data.copy()
        struct.pack_into("<Q", bad, end64 + offset, 1 << 40)
        refused(tmp_path, bytes(bad), error)
    bad = data.copy()
    struct.pack_into("<Q", bad, end64 + 32, 2)
    refused(tmp_path, bytes(bad), LayoutError)
    struct.pack_into("<Q", bad, end64 + 32, 1000)
    refused(tmp_path, bytes(bad), OutOfBoundsError)


def test_versions(tmp_path: Path, entries: dict[str, bytes]) -> None:
    newer = seal({**entries, "fusec": b"fusec 2.0\n"})
    refused(tmp_path, newer, VersionError, r"`2\.0`")
    refused(tmp_path, seal({**entries, "fusec": b"fusec x.0\n"}), MalformedError)
    other = edited(entries, "manifest.json", "schema", value="fusec.artifact/2")
    refused(tmp_path, other, VersionError, "fusec.artifact/2")
    longer = seal({**entries, "fusec": b"fusec 1.9\nmore"})
    refused(tmp_path, longer, ChecksumError, "`fusec`")
    minor = seal({**entries, "fusec": b"fusec 1.9\n", "sbom.json": b"{}"})
    (tmp_path / "minor.fusec").write_bytes(minor)
    read_all(tmp_path / "minor.fusec")


def test_missing_and_unexpected_entries(tmp_path: Path, entries: dict[str, bytes]) -> None:
    for name in ("graph.fir", "decisions.jsonl", MODULE, "program/cpu.json", "tokenizer.json"):
        left = {key: value for key, value in entries.items() if key != name}
        refused(tmp_path, seal(left), MissingEntryError, name.replace(".", r"\."))
        refused(tmp_path, seal_as_is(left), MissingEntryError)
    no_weights = {key: value for key, value in entries.items() if "weights" not in key}
    refused(tmp_path, seal(no_weights), MissingEntryError, "weights")
    refused(tmp_path, seal_as_is({**entries, "more": b""}), UnexpectedEntryError)


def test_wrong_digests(tmp_path: Path, entries: dict[str, bytes]) -> None:
    for name in ("graph.fir", MODULE, "residual/0.onnx", "program/cpu.json"):
        data = bytearray(entries[name])
        data[-1] ^= 1
        refused(tmp_path, seal_as_is({**entries, name: bytes(data)}), ChecksumError, name[:9])
    data = bytearray(entries["weights.safetensors"])
    data[-1] ^= 1
    broken = {**entries, "weights.safetensors": bytes(data)}
    refused(tmp_path, seal_as_is(broken), ChecksumError, "weight `b`")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("inputs",), {}),
        (("inputs", 0, "name"), ""),
        (("inputs", 0, "dtype"), "f31"),
        (("inputs", 0, "shape"), "batch"),
        (("inputs", 0, "shape", 0), -1),
        (("inputs", 0, "shape", 0), 1 << 70),
        (("inputs", 0, "shape", 0), 1.5),
        (("inputs", 0, "shape", 0), True),
        (("inputs", 0, "shape", 0), "heads"),
        (("inputs", 0, "shape", 0), "(" * 3000),
        (("inputs", 0, "shape", 0), "9" * 500),
        (("inputs", 0, "shape", 0), "batch//0"),
        (("inputs", 0, "shape", 0), "__import__('os')"),
        (("inputs", 0, "shape"), [1] * 100),
        (("symbols", "batch"), [5, 2]),
        (("symbols", "batch"), [1]),
        (("symbols", "batch"), [-1, 2]),
        (("source",), None),
        (("targets", 0, "family"), "abacus"),
        (("targets", 0, "report", "launches"), -1),
        (("targets", 0, "report", "kernels", 0, "resources", "vgpr"), "x"),
        (("weights", "storage"), "cloud"),
        (("weights", "file"), "../w.safetensors"),
        (("weights", "tensors", 0, "bytes"), -4),
        (("weights", "tensors", 0, "bytes"), 64),
        (("weights", "tensors", 0, "shape"), [1 << 62, 1 << 62]),
        (("weights", "tensors", 0, "sha256"), "AB" * 32),
        (("weights", "tensors", 1, "name"), "a"),
        (("weights", "sha256"), "0" * 64),
        (("tools", "fusec"), 3),
        (("entries",), []),
    ],
)
def test_malformed_manifest(
    tmp_path: Path, entries: dict[str, bytes], path: tuple[str | int, ...], value: object
) -> None:
    data = edited(entries, "manifest.json", *path, value=value)
    with pytest.raises((MalformedError, LimitError)):
        (tmp_path / "bad.fusec").write_bytes(data)
        open_artifact(tmp_path / "bad.fusec")


@pytest.mark.parametrize(
    "name", ["../w.safetensors", "/w.safetensors", "..", "a\\b", "", "x" * 300]
)
def test_weights_beside_the_artifact_are_in_its_folder(tmp_path: Path, name: str) -> None:
    beside = write_artifact(tmp_path / "m.fusec", contents(weights=SMALL), storage="external")
    data = edited(entries_of(beside.path), "manifest.json", "weights", "file", value=name)
    refused(tmp_path, data, MalformedError, "without a folder")


def test_weights_inside_have_one_name(tmp_path: Path, entries: dict[str, bytes]) -> None:
    data = edited(entries, "manifest.json", "weights", "file", value="w.safetensors")
    refused(tmp_path, data, MalformedError, r"weights\.safetensors")


def test_space_between_weights_is_empty(tmp_path: Path, entries: dict[str, bytes]) -> None:
    data = bytearray(entries["weights.safetensors"])
    data[data.index(bytes(range(60))) + 60] = 1
    changed = seal_as_is({**entries, "weights.safetensors": bytes(data)})
    refused(tmp_path, changed, ChecksumError, "space between")


def test_entries_are_not_larger_than_any_real_one(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MAX_DOCUMENT", 10)
    refused(tmp_path, good.read_bytes(), LimitError, "no real one")


def test_an_entry_that_is_not_there(good: Path) -> None:
    with pytest.raises(MissingEntryError, match=r"`graph\.txt`"):
        open_artifact(good).entry("graph.txt")


def test_weights_outside_of_the_file(tmp_path: Path, entries: dict[str, bytes]) -> None:
    far = edited(entries, "manifest.json", "weights", "tensors", 0, "offset", value=1 << 40)
    refused(tmp_path, far, OutOfBoundsError)
    other = edited(entries, "manifest.json", "weights", "tensors", 0, "dtype", value="i32")
    refused(tmp_path, other, WeightsError)
    first = json.loads(entries["manifest.json"])["weights"]["tensors"][:1]
    fewer = edited(entries, "manifest.json", "weights", "tensors", value=first)
    refused(tmp_path, fewer, WeightsError, "not in the manifest")


@pytest.mark.parametrize(
    "text",
    [b"", b"[" * 100_000, b'{"a":1,"a":2}', b"NaN", b"\xff", b"9" * 5000, b'{"a":' * 5000, b"[]"],
)
def test_json_that_is_none(tmp_path: Path, entries: dict[str, bytes], text: bytes) -> None:
    refused(tmp_path, seal_as_is({**entries, "manifest.json": text}), MalformedError)
    path = tmp_path / "bad.fusec"
    path.write_bytes(seal({**entries, "decisions.jsonl": b"{}\n" + text + b"\n"}))
    if text:
        with pytest.raises(MalformedError, match=r"JSON|must be"):
            list(open_artifact(path).decisions())


Tensor: TypeAlias = tuple[str, list[int], list[int]]
"""The dtype, shape and offsets of a tensor."""


def safetensors(tensors: list[Tensor], data: bytes = b"", claim: int | None = None) -> bytes:
    """A file of tensors `a`, `b`; with `claim` as the length of its header if that is given."""
    keys = ("dtype", "shape", "data_offsets")
    pairs = zip("ab", tensors, strict=False)
    document = {name: dict(zip(keys, tensor, strict=True)) for name, tensor in pairs}
    text = json.dumps(document).encode()
    return struct.pack("<Q", len(text) if claim is None else claim) + text + data


A: Tensor = ("F32", [1], [0, 4])
B: Tensor = ("F32", [1], [4, 8])


def test_safetensors_are_read() -> None:
    places, header = read_header(memoryview(safetensors([B, A], bytes(8))), "w")
    assert [(place.name, place.offset, place.bytes) for place in places.values()] == [
        ("b", 0, 4),
        ("a", 4, 4),
    ]
    assert header == len(safetensors([B, A]))


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        (b"", MalformedError, "too short"),
        (b"1234567", MalformedError, "too short"),
        (safetensors([A], bytes(4), claim=1 << 63), OutOfBoundsError, "header is longer"),
        (safetensors([A], bytes(4), claim=10_000_000), OutOfBoundsError, "header is longer"),
        (safetensors([A], bytes(4), claim=200), OutOfBoundsError, "header is longer"),
        (safetensors([A, A], bytes(4)), MalformedError, "overlaps another tensor"),
        (safetensors([A, ("F32", [1], [8, 12])], bytes(12)), MalformedError, "leaves a hole"),
        (safetensors([B], bytes(8)), MalformedError, "leaves a hole"),
        (safetensors([A], bytes(8)), OutOfBoundsError, "take 4 bytes but the file has 8"),
        (safetensors([A, B], bytes(4)), OutOfBoundsError, "take 8 bytes but the file has 4"),
        (safetensors([("F32", [1], [0, 1 << 60])]), MalformedError, "as long as its shape"),
        (safetensors([("F32", [2], [0, 4])], bytes(4)), MalformedError, "as long as its shape"),
        (safetensors([("F32", [1], [4, 0])]), MalformedError, "as long as its shape"),
        (safetensors([("F32", [-1], [0, 4])], bytes(4)), MalformedError, "integer from 0"),
        (safetensors([("F99", [1], [0, 4])], bytes(4)), MalformedError, "a known dtype"),
        (safetensors([("F32", [1], [0])], bytes(4)), MalformedError, "two offsets"),
        (safetensors([("F4", [2, 3], [0, 2])], bytes(2)), MalformedError, "even in its last dim"),
        (struct.pack("<Q", 2) + b"[]", MalformedError, "must be"),
    ],
)
def test_hostile_safetensors(data: bytes, error: type[ArtifactError], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        read_header(memoryview(data), "w")
    assert type(caught.value) is error


# --- fuzzing --------------------------------------------------------------------------------


def mutations(size: int) -> st.SearchStrategy[list[tuple[str, int, int, bytes]]]:
    """Edits of a file: flip, overwrite, insert, delete, truncate, copy a range elsewhere."""
    # Headers and end records are where the reader takes decisions; data is only hashed.
    position = st.one_of(
        st.integers(0, size - 1), st.integers(0, 200), st.integers(max(0, size - 1500), size - 1)
    )
    number = st.one_of(
        st.binary(min_size=1, max_size=12),
        st.sampled_from([b"\xff" * 8, bytes(8), b"\xff" * 4, b"\xff\x7f", b"PK\x05\x06"]),
    )
    kind = st.sampled_from(["flip", "write", "insert", "delete", "truncate", "copy"])
    return st.lists(st.tuples(kind, position, position, number), min_size=1, max_size=4)


def mutate(data: bytes, edits: list[tuple[str, int, int, bytes]]) -> bytes:
    bad = bytearray(data)
    for kind, at, other, content in edits:
        if kind == "flip" and at < len(bad):
            bad[at] ^= content[0] or 1
        elif kind == "write":
            bad[at : at + len(content)] = content
        elif kind == "insert":
            bad[at:at] = content
        elif kind == "delete":
            del bad[at : at + len(content)]
        elif kind == "truncate":
            del bad[at:]
        elif kind == "copy":
            bad[at : at + 64] = bad[other : other + 64]
    return bytes(bad)


def check_mutation(path: Path, data: bytes, edits: list[tuple[str, int, int, bytes]]) -> None:
    bad = mutate(data, edits)
    path.write_bytes(bad)
    if bad == data:
        read_all(path)
        return
    with pytest.raises(ArtifactError):
        read_all(path)


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-(1 << 70), 1 << 70),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=12),
        st.sampled_from(["batch", "batch*seq//0", "a" * 5000, "(" * 60, "../x", "0" * 64]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def check_document(path: Path, entries: dict[str, bytes], place: int, value: object) -> None:
    places = places_of(json.loads(entries["manifest.json"]))
    try:
        data = edited(entries, "manifest.json", *places[place % len(places)], value=value)
    except UnicodeEncodeError:
        return
    path.write_bytes(data)
    try:
        read_all(path)
    except ArtifactError:
        pass
    except InputError as error:
        assert "weights" in str(error)  # an external file that cannot be read


FUZZ = settings(
    max_examples=1200,
    deadline=5000,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FUZZ
@given(st.data())
def test_fuzz_bytes(good: Path, data: st.DataObject) -> None:
    raw = good.read_bytes()
    edits = data.draw(mutations(len(raw)))
    check_mutation(good.with_name(f"fuzz{os.getpid()}"), raw, edits)


@FUZZ
@given(place=st.integers(0, 10_000), value=JSON)
@example(place=0, value="\ud800")
def test_fuzz_manifest(good: Path, entries: dict[str, bytes], place: int, value: object) -> None:
    check_document(good.with_name(f"fuzz{os.getpid()}"), entries, place, value)


@pytest.mark.slow
@settings(FUZZ, max_examples=30_000)
@given(st.data())
def test_fuzz_bytes_long(good: Path, data: st.DataObject) -> None:
    raw = good.read_bytes()
    check_mutation(good.with_name(f"fuzz{os.getpid()}"), raw, data.draw(mutations(len(raw))))


@pytest.mark.slow
@settings(FUZZ, max_examples=30_000)
@given(place=st.integers(0, 10_000), value=JSON)
def test_fuzz_manifest_long(
    good: Path, entries: dict[str, bytes], place: int, value: object
) -> None:
    check_document(good.with_name(f"fuzz{os.getpid()}"), entries, place, value)


def test_code_is_only_bytes(good: Path) -> None:
    """Opening never loads code: this module is no shared object, and it opens."""
    assert bytes(open_artifact(good).entry(MODULE)) == CODE
