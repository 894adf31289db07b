"""A small artifact for tests, and ways to damage it."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from fusec.link.artifact_writer import (
    ArtifactContents,
    KernelRecord,
    TargetContents,
    WeightData,
    module_entry,
)
from fusec.runtime.artifact import Source, TensorSpec
from fusec.runtime.container import MANIFEST, Entry, local_header, order_key, tail
from fusec.runtime.documents import canonical_json
from fusec.symbolic import symbol

CODE = b"\x7fELF" + bytes(range(200))
MODULE = module_entry("x86-64-v3", CODE, "so")


def weight(name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> WeightData:
    """A weight that comes in chunks of odd sizes."""

    def chunks() -> Iterable[bytes]:
        for begin in range(0, len(data), 1001):
            yield data[begin : begin + 1001]

    return WeightData(name, dtype, shape, chunks, "plain", (f"model.{name}",))


def weights(seed: int = 0) -> tuple[WeightData, ...]:
    """Weights of odd sizes, one of them large enough to get a page of its own."""
    random = np.random.default_rng(seed)
    return (
        weight("a", "f32", (3, 5), random.bytes(60)),
        weight("empty", "i64", (0, 4), b""),
        weight("large", "bf16", (1023, 1025), random.bytes(2 * 1023 * 1025)),
        weight("packed", "f4e2m1x2", (7, 3), random.bytes(21)),
        weight("scale", "e8m0", (7,), random.bytes(7)),
    )


def program() -> dict[str, object]:
    """A program document of no steps."""
    size = "4*batch*seq*(4*seq + 1)"
    shape = ["batch", "seq", "4*seq + 1"]
    return {
        "schema": "fusec.program/1",
        "target": "cpu",
        "arch": "x86-64-v3",
        "features": [],
        "symbols": {"batch": [1, 8], "seq": [1, 64]},
        "module": MODULE,
        "inputs": [{"name": "input_ids", "dtype": "i64", "shape": ["batch", "seq"], "buffer": 0}],
        "outputs": [{"name": "logits", "dtype": "f32", "shape": shape, "buffer": 1}],
        "buffers": [
            {"kind": "input", "bytes": "8*batch*seq"},
            {"kind": "output", "bytes": size},
        ],
        "slots": [],
        "steps": [],
    }


def contents(**changes: object) -> ArtifactContents:
    """Everything an artifact can hold, small."""
    batch, seq = symbol("batch"), symbol("seq")
    target = TargetContents(
        target="cpu",
        family="cpu",
        arch="x86-64-v3",
        features=(),
        program=program(),
        modules={MODULE: CODE},
        kernels=(KernelRecord("add", "add", "cpp", "fusec_add", "0" * 64, 12, {"vgpr": 3}),),
        launches=0,
        residual=(),
        weights_bytes=100,
        arena_bytes=0,
    )
    base = ArtifactContents(
        name="sample",
        source=Source("export", "sample", "ab" * 32),
        inputs=(TensorSpec("input_ids", "i64", (batch, seq)),),
        outputs=(TensorSpec("logits", "f32", (batch, seq, 4 * seq + 1)),),
        symbols={"batch": (1, 8), "seq": (1, 64)},
        graph="graph @sample() {\n}\n",
        decisions=[{"fusion": "rms_norm", "site": "a", "status": "fired"}],
        targets=(target,),
        weights=weights(),
        tools={"fusec": "0.1.0"},
        options={"dtype": "f32"},
        residual={"residual/0.onnx": b"onnx"},
        tokenizer=b"{}",
        source_graph="graph @sample() {\n  // as read\n}\n",
        origins={"cpu": {"add": ["add_1", "mul"]}},
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def entries_of(path: Path) -> dict[str, bytes]:
    """The data of every entry."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def seal(entries: Mapping[str, bytes]) -> bytes:
    """An artifact of `entries` in which every digest is right, as an attacker would make it."""
    documents = dict(entries)
    manifest = json.loads(documents[MANIFEST])
    if isinstance(manifest, dict) and isinstance(manifest.get("entries"), dict):
        manifest["entries"] = {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in documents.items()
            if name != MANIFEST
        }
        documents[MANIFEST] = canonical_json(manifest)
    return seal_as_is(documents)


def seal_as_is(entries: Mapping[str, bytes]) -> bytes:
    """An artifact of `entries` whose manifest is not touched."""
    file = bytearray()
    placed = []
    for name in sorted(entries, key=order_key):
        entry = Entry(name, len(entries[name]), zlib.crc32(entries[name]), len(file))
        file += local_header(entry) + entries[name]
        placed.append(entry)
    return bytes(file) + tail(placed, hashlib.sha256(entries[MANIFEST]).hexdigest())


def edited(entries: Mapping[str, bytes], name: str, *path: str | int, value: object) -> bytes:
    """A sealed artifact in which one value of the JSON entry `name` is another one."""
    document = json.loads(entries[name])
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return seal({**entries, name: canonical_json(document)})


def places_of(document: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in a JSON document."""
    found = [path] if path else []
    if isinstance(document, dict):
        for key, value in document.items():
            found += places_of(value, (*path, key))
    if isinstance(document, list):
        for index, value in enumerate(document):
            found += places_of(value, (*path, index))
    return found
