"""A module of simple kernels, compiled once, and programs that call them."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from artifact_samples import weight

from fusec.link.artifact_writer import (
    ArtifactContents,
    TargetContents,
    WeightData,
    WeightStorage,
    module_entry,
    write_artifact,
)
from fusec.runtime.artifact import Source, TensorSpec
from fusec.symbolic import parse_dim

KERNELS = """
#include <fusec/kernel.h>

// a, b, out; n
FUSEC_KERNEL void sample_add(void* const* buffers, const int64_t* params) {
  const float* a = (const float*)buffers[0];
  const float* b = (const float*)buffers[1];
  float* out = (float*)buffers[2];
  fusec::parallel_for(params[0], 1024, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) out[i] = a[i] + b[i];
  });
}

// a, out; n, factor
FUSEC_KERNEL void sample_scale(void* const* buffers, const int64_t* params) {
  const float* a = (const float*)buffers[0];
  float* out = (float*)buffers[1];
  for (int64_t i = 0; i < params[0]; ++i) out[i] = a[i] * fusec::f32_param(params[1]);
}

// table, ids, out; count, width, rows
FUSEC_KERNEL void sample_take(void* const* buffers, const int64_t* params) {
  const float* table = (const float*)buffers[0];
  const int64_t* ids = (const int64_t*)buffers[1];
  float* out = (float*)buffers[2];
  for (int64_t i = 0; i < params[0]; ++i) {
    if (ids[i] < 0 || ids[i] >= params[2]) {
      fusec_raise(FUSEC_INDEX_OUT_OF_RANGE, ids[i], params[2]);
      return;
    }
    for (int64_t j = 0; j < params[1]; ++j) {
      out[i * params[1] + j] = table[ids[i] * params[1] + j];
    }
  }
}

// a, out; n
FUSEC_KERNEL void sample_copy2(void* const* buffers, const int64_t* params) {
  for (int64_t i = 0; i < params[0]; ++i) {
    ((uint16_t*)buffers[1])[i] = ((const uint16_t*)buffers[0])[i];
  }
}

// out
FUSEC_KERNEL void sample_threads(void* const* buffers, const int64_t*) {
  *(int64_t*)buffers[0] = fusec_threads();
}

FUSEC_KERNEL void sample_divide(void* const*, const int64_t*) {
  fusec_raise(FUSEC_DIVISION_BY_ZERO, 0, 0);
}
"""


@functools.cache
def code() -> bytes:
    """The module."""
    kernels = Path(__file__).parents[2] / "kernels"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "sample.cpp"
        source.write_text(KERNELS)
        output = Path(folder) / "sample.so"
        flags = ["-O1", "-march=x86-64-v3", "-shared", "-fPIC", "-std=c++17", "-pthread"]
        inputs = [f"-I{kernels / 'include'}", str(source), str(kernels / "cpu_core/kernel.cpp")]
        command = [*compiler(), *flags, *inputs, "-o", str(output)]
        subprocess.run(command, check=True, capture_output=True)
        return output.read_bytes()


def compiler() -> list[str]:
    for name in ("g++", "clang++"):
        if shutil.which(name) is not None:
            return [name]
    assert importlib.util.find_spec("ziglang") is not None
    return [sys.executable, "-m", "ziglang", "c++"]


def spec(text: str) -> TensorSpec:
    """Read `name: dtype[dim, ...]`."""
    name, _, rest = text.partition(": ")
    dtype, _, dims = rest.removesuffix("]").partition("[")
    return TensorSpec(name, dtype, tuple(parse_dim(dim) for dim in dims.split(", ") if dim))


def kernel_step(
    symbol: str, buffers: Sequence[tuple[int, int | str]], *params: object
) -> dict[str, object]:
    """One call of a kernel of the module."""
    return {
        "kind": "kernel",
        "symbol": symbol,
        "kernel": f"{symbol}.cpp",
        "node": f"%{symbol}",
        "op": symbol.removeprefix("sample_"),
        "buffers": [list(pair) for pair in buffers],
        "params": list(params),
    }


def program(
    inputs: Sequence[str],
    outputs: Sequence[str],
    buffers: Sequence[Mapping[str, object]],
    steps: Sequence[Mapping[str, object]],
    *,
    symbols: Mapping[str, tuple[int, int]],
    slots: Sequence[Sequence[int | str]] = (),
    binding: Sequence[int] | None = None,
    features: Sequence[str] = (),
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
        "target": "cpu",
        "arch": "x86-64-v3",
        "features": list(features),
        "symbols": {name: list(ends) for name, ends in symbols.items()},
        "module": module_entry("x86-64-v3", code(), "so"),
        "inputs": bound[: len(inputs)],
        "outputs": bound[len(inputs) :],
        "buffers": list(buffers),
        "slots": [list(slot) for slot in slots],
        "steps": list(steps),
    }


def artifact_of(
    document: Mapping[str, object],
    weights: Sequence[WeightData] = (),
    residual: Mapping[str, bytes] | None = None,
    tokenizer: bytes | None = None,
) -> ArtifactContents:
    """An artifact around one program."""

    def specs(key: str) -> tuple[TensorSpec, ...]:
        rows: list[dict[str, object]] = document[key]  # type: ignore[assignment]
        return tuple(
            TensorSpec(
                str(row["name"]),
                str(row["dtype"]),
                tuple(parse_dim(str(dim)) for dim in row["shape"]),  # type: ignore[attr-defined]
            )
            for row in rows
        )

    target = TargetContents(
        target="cpu",
        family="cpu",
        arch="x86-64-v3",
        features=tuple(document["features"]),  # type: ignore[arg-type]
        program=document,
        modules={module_entry("x86-64-v3", code(), "so"): code()},
        kernels=(),
        launches=0,
        residual=(),
        weights_bytes=0,
        arena_bytes=0,
    )
    return ArtifactContents(
        name="sample",
        source=Source("export", "sample", "ab" * 32),
        inputs=specs("inputs"),
        outputs=specs("outputs"),
        symbols=document["symbols"],  # type: ignore[arg-type]
        graph="",
        decisions=(),
        targets=(target,),
        weights=weights,
        residual=residual or {},
        tokenizer=tokenizer,
    )


def write(
    path: Path,
    document: Mapping[str, object],
    weights: Sequence[WeightData] = (),
    residual: Mapping[str, bytes] | None = None,
    *,
    storage: WeightStorage = "embed",
    tokenizer: bytes | None = None,
) -> Path:
    """Write the artifact of one program."""
    contents = artifact_of(document, weights, residual, tokenizer)
    return write_artifact(path, contents, storage=storage).path


def embedding(folder: Path, *, storage: WeightStorage = "embed") -> Path:
    """`hidden = (table[input_ids] * 3 + table[input_ids])`, `batch` in 1..8 and `seq` in 1..64.

    The table is f32[11, 5] with 0, 1, 2, ... in it; the arena is used twice over.
    """
    import numpy as np

    table = np.arange(55, dtype=np.float32)
    size = "20*batch*seq"
    buffers: list[dict[str, object]] = [
        {"kind": "input", "bytes": "8*batch*seq"},
        {"kind": "output", "bytes": size},
        {"kind": "weight", "bytes": 220, "name": "table"},
        {"kind": "arena", "bytes": size, "slot": 0},
        {"kind": "arena", "bytes": size, "slot": 1},
    ]
    steps = [
        kernel_step("sample_take", [(2, 0), (0, 0), (3, 0)], "batch*seq", 5, 11),
        kernel_step("sample_scale", [(3, 0), (4, 0)], "5*batch*seq", {"f64": 3}),
        kernel_step("sample_add", [(3, 0), (4, 0), (1, 0)], "5*batch*seq"),
    ]
    document = program(
        ["input_ids: i64[batch, seq]"],
        ["hidden: f32[batch, seq, 5]"],
        buffers,
        steps,
        symbols={"batch": (1, 8), "seq": (1, 64)},
        slots=[[size, 64], [size]],
    )
    weights = [weight("table", "f32", (11, 5), table.tobytes())]
    return write(folder / "embedding.fusec", document, weights, storage=storage)
