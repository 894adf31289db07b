"""Artifacts for GPUs, written by hand, and kernels of Python that stand for their code."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from artifact_samples import weight
from executor_samples import spec
from fake_driver import Arguments

from fusec.link.artifact_writer import (
    ArtifactContents,
    TargetContents,
    WeightData,
    WeightStorage,
    module_entry,
    write_artifact,
)
from fusec.runtime.artifact import Source

TABLE = np.arange(55, dtype=np.float32).reshape(11, 5)
AMD, NVIDIA = 224, 190
GFX950 = 0x4F


def elf(machine: int, flags: int, more: bytes = b"") -> bytes:
    """The header of a code object, and whatever else."""
    header = struct.pack("<4s14xHI3QI12x", b"\x7fELF", machine, 1, 0, 0, 0, flags)
    return header + more


CODE = {"gfx950": elf(AMD, GFX950 | 0x500, b"amd"), "sm_90": elf(NVIDIA, 0, b"nvidia")}
ENTRY = {
    "gfx950": module_entry("gfx950", CODE["gfx950"], "hsaco"),
    "sm_90": module_entry("sm_90", CODE["sm_90"], "cubin"),
}


def take(arguments: Arguments) -> None:
    """table, ids, out, error; count, width, rows."""
    count, width, rows = map(arguments.integer, range(3))
    table = arguments.array(0, "<f4")[: rows * width].reshape(rows, width)
    ids = arguments.array(1, "<i8")[:count].astype(np.int64)
    out = arguments.array(2, "<f4")
    bad = (ids < 0) | (ids >= rows)
    if bad.any():
        index = int(ids[bad][0])
        arguments.array(3, "<i8")[0] = rows << 32 | (index & 0xFFFFFFFF)
    out[: count * width] = table[np.where(bad, 0, ids)].reshape(-1)


def scale(arguments: Arguments) -> None:
    """a, out; n, factor."""
    n, factor = arguments.integer(0), np.float32(arguments.single(1))
    arguments.array(1, "<f4")[:n] = arguments.array(0, "<f4")[:n].astype(np.float32) * factor


def add(arguments: Arguments) -> None:
    """a, b, out; n."""
    n = arguments.integer(0)
    a, b = (arguments.array(index, "<f4")[:n].astype(np.float32) for index in range(2))
    arguments.array(2, "<f4")[:n] = a + b


KERNELS = {"sample_take": take, "sample_scale": scale, "sample_add": add}


def launch(
    symbol: str,
    buffers: Sequence[tuple[int, int | str]],
    *params: object,
    grid: Sequence[int | str] = (1, 1, 1),
    sizes: Sequence[int] | None = None,
    shared_bytes: int = 0,
    target: str = "sm_90",
    **changes: object,
) -> dict[str, object]:
    """A launch; a parameter that is an integer has 8 bytes unless `sizes` says otherwise."""
    if sizes is None:
        sizes = [4 if isinstance(param, dict) else 8 for param in params]
    places: list[list[int]] = []
    end = 0
    for size in [8] * len(buffers) + list(sizes):
        end = -(-end // size) * size
        places.append([end, size])
        end += size
    return {
        "kind": "launch",
        "op": symbol.removeprefix("sample_"),
        "node": f"%{symbol}",
        "kernel": f"{symbol}_triton",
        "module": ENTRY[target],
        "symbol": symbol,
        "grid": list(grid),
        "block": [128, 1, 1],
        "shared_bytes": shared_bytes,
        "buffers": [list(pair) for pair in buffers],
        "params": list(params),
        "arguments": places,
        "kernarg_bytes": -(-end // 8) * 8 + 8,
        **changes,
    }


def program(
    inputs: Sequence[str],
    outputs: Sequence[str],
    buffers: Sequence[Mapping[str, object]],
    steps: Sequence[Mapping[str, object]],
    *,
    symbols: Mapping[str, tuple[int, int]],
    slots: Sequence[Sequence[int | str]] = (),
    target: str = "sm_90",
    binding: Sequence[int] | None = None,
) -> dict[str, object]:
    """A program; buffers of inputs and then outputs come first, unless `binding` says others."""
    binding = range(len(inputs) + len(outputs)) if binding is None else binding
    bound = [
        {
            "name": parsed.name,
            "dtype": parsed.dtype,
            "shape": [dim if isinstance(dim, int) else str(dim) for dim in parsed.shape],
            "buffer": buffer,
        }
        for parsed, buffer in zip(map(spec, [*inputs, *outputs]), binding, strict=True)
    ]
    return {
        "schema": "fusec.program/1",
        "target": target,
        "arch": target,
        "features": [],
        "symbols": {name: list(ends) for name, ends in symbols.items()},
        "inputs": bound[: len(inputs)],
        "outputs": bound[len(inputs) :],
        "buffers": list(buffers),
        "slots": [list(slot) for slot in slots],
        "sources": {ENTRY[target]: {"kind": "triton"}},
        "steps": list(steps),
    }


def write(
    path: Path,
    document: Mapping[str, object],
    weights: Sequence[WeightData] = (),
    residual: Mapping[str, bytes] | None = None,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    storage: WeightStorage = "embed",
    code: bytes | None = None,
) -> Path:
    """Write the artifact of one program."""
    target = str(document["target"])
    contents = ArtifactContents(
        name="sample",
        source=Source("export", "sample", "ab" * 32),
        inputs=tuple(map(spec, inputs)),
        outputs=tuple(map(spec, outputs)),
        symbols=document["symbols"],  # type: ignore[arg-type]
        graph="",
        decisions=(),
        targets=(
            TargetContents(
                target=target,
                family="amdgpu" if target.startswith("gfx") else "nvidia",
                arch=target,
                features=(),
                program=document,
                modules={ENTRY[target]: code or CODE[target]},
                kernels=(),
                launches=0,
                residual=(),
                weights_bytes=0,
                arena_bytes=0,
            ),
        ),
        weights=weights,
        residual=residual or {},
    )
    return write_artifact(path, contents, storage=storage).path


EMBEDDING = ("input_ids: i64[batch, seq]",), ("hidden: f32[batch, seq, 5]",)


def embedding_program(target: str = "sm_90") -> dict[str, object]:
    """`hidden = table[input_ids] * 3 + table[input_ids]`, `batch` in 1..8 and `seq` in 1..64.

    A launch for more than 64 rows stands beside that for fewer; one of the two has an empty grid.
    """
    size = "20*batch*seq"
    rows = "batch*seq"
    buffers: list[dict[str, object]] = [
        {"kind": "input", "bytes": "8*batch*seq"},
        {"kind": "output", "bytes": size},
        {"kind": "weight", "bytes": 220, "name": "table"},
        {"kind": "arena", "bytes": size, "slot": 0},
        {"kind": "arena", "bytes": size, "slot": 1},
        {"kind": "error", "bytes": 8},
    ]
    taken = [(2, 0), (0, 0), (3, 0), (5, 0)]
    few = f"({rows} + 3)//4*max(0, min(1, 65 - {rows}))"
    many = f"({rows} + 15)//16*max(0, min(1, {rows} - 64))"
    steps = [
        launch("sample_take", taken, rows, 5, 11, grid=(few, 1, 1), target=target),
        launch("sample_take", taken, rows, 5, 11, grid=(many, 1, 1), target=target),
        launch("sample_scale", [(3, 0), (4, 0)], f"5*{rows}", {"f32": 3}, target=target),
        launch("sample_add", [(3, 0), (4, 0), (1, 0)], f"5*{rows}", sizes=[4], target=target),
    ]
    inputs, outputs = EMBEDDING
    return program(
        inputs,
        outputs,
        buffers,
        steps,
        symbols={"batch": (1, 8), "seq": (1, 64)},
        slots=[[size, 64], [size]],
        target=target,
    )


def embedding(
    folder: Path, target: str = "sm_90", *, code: bytes | None = None, name: str = "embedding"
) -> Path:
    """The artifact of `embedding_program`; the table is `TABLE`."""
    weights = [weight("table", "f32", (11, 5), TABLE.tobytes())]
    inputs, outputs = EMBEDDING
    document = embedding_program(target)
    path = folder / f"{name}.fusec"
    return write(path, document, weights, inputs=inputs, outputs=outputs, code=code)
