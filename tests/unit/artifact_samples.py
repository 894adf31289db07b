"""A small artifact for tests, and ways to damage it."""

from __future__ import annotations

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
    return {
        "schema": "fusec.program/1",
        "target": "cpu",
        "arch": "x86-64-v3",
        "features": [],
        "symbols": {"batch": [1, 8], "seq": [1, 64]},
        "module": MODULE,
        "inputs": [],
        "outputs": [],
        "buffers": [],
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
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def rezip(path: Path, output: Path, entries: Mapping[str, bytes], **options: int) -> None:
    """Pack entries with the standard library, as another tool would."""
    import zipfile

    with zipfile.ZipFile(output, "w", **options) as archive:  # type: ignore[call-overload]
        for name, data in entries.items():
            archive.writestr(name, data)
