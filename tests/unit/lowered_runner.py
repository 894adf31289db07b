"""Runs lowered graphs through ctypes, on memory that is full of NaN and fenced by canaries."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusec.dtypes import DTYPES, bf16_to_f32, f32_to_bf16
from fusec.ir import Graph
from fusec.ir.interpret import bind_symbols, interpret
from fusec.link.cache import ObjectCache
from fusec.link.linker import Linked, link
from fusec.link.toolchain import find_toolchain
from fusec.lower import Lowered, lower
from fusec.lower.program import program_document
from fusec.runtime.cpu import host_features
from fusec.symbolic import evaluate, parse_dim
from fusec.target import Target, best_cpu_arch

Array = NDArray[Any]
FENCE = 256
# Relative, by the narrowest float that takes part: rounding in the middle of a graph counts too.
TOLERANCE = {"f64": 1e-9, "f32": 2e-4, "f16": 2e-2, "bf16": 0.1}
_numbers = itertools.count()
CANARY = 0xA5


def host_target() -> Target:
    """The richest instruction set of this machine."""
    found = best_cpu_arch(host_features())
    assert found is not None
    return found


class Compiled:
    """A graph compiled for this machine."""

    def __init__(self, graph: Graph, cache: Path, target: Target | None = None) -> None:
        self.graph = graph
        self.lowered: Lowered = lower(graph, target or host_target())
        self.linked: Linked = link(self.lowered, find_toolchain(), ObjectCache(cache), jobs=2)
        self.document: Any = json.loads(json.dumps(program_document(self.lowered, "module")))
        # The loader knows libraries by path: each one needs a path that was never used.
        path = cache / f"module{os.getpid()}_{next(_numbers)}.so"
        path.write_bytes(self.linked.code)
        self.library = ctypes.CDLL(str(path))
        self.library.fusec_execute.restype = ctypes.c_int64
        self.weights = {weight.name: weight.load() for weight in self.lowered.weights}

    def __call__(self, inputs: Mapping[str, Array], threads: int = 2) -> dict[str, Array]:
        """Outputs in the storage types of their dtypes."""
        document = self.document
        self.library.fusec_set_threads(threads)
        shapes = {name: inputs[name].shape for name in self.graph.inputs}
        symbols = {**bind_symbols(self.graph, shapes), "threads": threads}

        def number(value: int | str) -> int:
            return value if isinstance(value, int) else evaluate(parse_dim(value), symbols)

        ends = [number(buffer["bytes"]) for buffer in document["buffers"]]
        slots = [_fenced(max(map(number, sizes), default=0)) for sizes in document["slots"]]
        bases: list[int] = []
        held: list[Array] = []
        owned: dict[int, Array] = {}
        names = {item["buffer"]: item["name"] for item in document["inputs"]}
        for index, buffer in enumerate(document["buffers"]):
            size = ends[index]
            if buffer["kind"] == "arena":
                assert slots[buffer["slot"]].nbytes >= size + 2 * FENCE
                bases.append(slots[buffer["slot"]].ctypes.data + FENCE)
                continue
            memory = _fenced(size)
            if buffer["kind"] == "weight":
                memory[FENCE : FENCE + size] = _bytes(self.weights[buffer["name"]])
            if buffer["kind"] == "input":
                memory[FENCE : FENCE + size] = _bytes(inputs[names[index]])
            held.append(memory)
            owned[index] = memory
            bases.append(memory.ctypes.data + FENCE)
        keep: list[Any] = []
        steps = (ctypes.c_void_p * (3 * len(document["steps"])))()
        for position, step in enumerate(document["steps"]):
            assert step["kind"] == "kernel", step["reason"]
            places = [(buffer, number(offset)) for buffer, offset in step["buffers"]]
            assert all(0 <= offset <= ends[buffer] for buffer, offset in places)
            pointers = [bases[buffer] + offset for buffer, offset in places]
            params = [
                _bits(param) if isinstance(param, dict) else number(param)
                for param in step["params"]
            ]
            keep.append((ctypes.c_void_p * max(1, len(pointers)))(*pointers))
            keep.append((ctypes.c_int64 * max(1, len(params)))(*params))
            function = ctypes.cast(self.library[step["symbol"]], ctypes.c_void_p).value
            steps[3 * position] = function
            steps[3 * position + 1] = ctypes.addressof(keep[-2])
            steps[3 * position + 2] = ctypes.addressof(keep[-1])
        failed = self.library.fusec_execute(
            steps, ctypes.c_int64(len(document["steps"])), ctypes.c_void_p(None)
        )
        assert failed == 0, f"step {document['steps'][failed - 1]} failed"
        for memory in (*held, *slots):
            assert (memory[:FENCE] == CANARY).all(), "written before a buffer"
            assert (memory[-FENCE:] == CANARY).all(), "written behind a buffer"
        results: dict[str, Array] = {}
        for item in document["outputs"]:
            memory = owned[item["buffer"]]
            shape = tuple(number(size) for size in item["shape"])
            storage = DTYPES[item["dtype"]].numpy
            results[item["name"]] = memory[FENCE:-FENCE].view(storage).reshape(shape).copy()
        return results


def decoded(array: Array, dtype: str) -> Array:
    """Stored elements as the numbers of the interpreter."""
    if dtype == "bf16":
        return bf16_to_f32(array).astype(np.float64)
    if DTYPES[dtype].is_float:
        return array.astype(np.float64)
    return array.astype(np.bool_ if dtype == "bool" else np.int64)


def stored(array: Array, dtype: str) -> Array:
    """Numbers in the storage type of `dtype`."""
    if dtype == "bf16":
        return f32_to_bf16(np.asarray(array, np.float32)).reshape(np.shape(array))
    return np.asarray(array).astype(DTYPES[dtype].numpy)


def random_array(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: str, scale: float = 1.0
) -> Array:
    """Random elements in the storage type of `dtype`."""
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(np.bool_)
    if DTYPES[dtype].is_float:
        return stored(rng.standard_normal(shape) * scale, dtype)
    low = 0 if DTYPES[dtype].kind == "uint" else -9
    return rng.integers(low, 10, shape).astype(DTYPES[dtype].numpy)


def inputs_of(graph: Graph, seed: int, **symbols: int) -> dict[str, Array]:
    """Random elements for every input."""
    rng = np.random.default_rng(seed)
    return {
        name: random_array(
            rng,
            tuple(evaluate(dim, symbols) for dim in graph.type(name).shape),
            graph.type(name).dtype,
        )
        for name in graph.inputs
    }


def assert_close(graph: Graph, results: Mapping[str, Array], inputs: Mapping[str, Array]) -> None:
    """Compare outputs in storage types with what the interpreter of graphs computes."""
    expected = interpret(graph, inputs)
    dtypes = {graph.type(v).dtype for node in graph.nodes() for v in (*node.inputs, *node.outputs)}
    tolerance = max((TOLERANCE.get(dtype, 0.0) for dtype in dtypes), default=0.0)
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        kind = graph.type(value)
        result, right = decoded(results[name], kind.dtype), expected[name]
        if kind.element.is_float:
            # What overflows a narrow float is huge in float64.
            with np.errstate(over="ignore"):
                right = decoded(stored(right, kind.dtype), kind.dtype)
            huge = (np.abs(right) > 1e4) | ~np.isfinite(right)
            also_huge = (np.abs(result) > 5e3) | ~np.isfinite(result)
            close = np.isclose(result, right, rtol=tolerance, atol=tolerance, equal_nan=True)
            assert (close | (huge & also_huge)).all(), (name, kind)
        else:
            np.testing.assert_array_equal(result, right, err_msg=name)


def _fenced(size: int) -> Array:
    memory = np.full(size + 2 * FENCE, 0xFF, np.uint8)  # NaN in every float format
    memory[:FENCE] = CANARY
    memory[size + FENCE :] = CANARY
    return memory


def _bytes(array: Array) -> Array:
    return np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)


def _bits(param: Mapping[str, Any]) -> int:
    return int(struct.unpack("<q", struct.pack("<d", float(param["f64"])))[0])
