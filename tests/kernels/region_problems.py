"""Graphs of generated nodes, run as their regions on memory that is fenced and full of NaN."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fusec.diagnostics import InternalError
from fusec.dtypes import DTYPES, bf16_to_f32, f32_to_bf16
from fusec.formats import decode, encode
from fusec.ir import Graph
from fusec.ir.interpret import bind_symbols
from fusec.kernels.launch import Launch, Storage, TritonSource
from fusec.link.triton_build import triton_function
from fusec.lower import Lowered
from fusec.lower.codegen_triton import POINTER_TYPES, region_launch
from fusec.lower.fusion import Group, group_nodes
from fusec.lower.regions import BuiltRegion, Memory, group_region
from fusec.lower.steps import KernelStep
from fusec.lower.storage import VIEWS, dense, viewed
from fusec.symbolic import evaluate, product
from fusec.target import Target

Array = NDArray[Any]
Run = Callable[[Launch, list[Any], Mapping[str, int]], None]

FENCE = 256
CANARY = 0xA5

_TORCH = {
    "*fp64": torch.float64,
    "*fp32": torch.float32,
    "*fp16": torch.float16,
    "*bf16": torch.bfloat16,
    "*i64": torch.int64,
    "*i32": torch.int32,
    "*i16": torch.int16,
    "*i8": torch.int8,
    "*u8": torch.uint8,
}


def stored(array: Array, dtype: str) -> Array:
    """Numbers as they lie in memory."""
    if dtype == "bf16":
        return f32_to_bf16(np.asarray(array, np.float32)).reshape(np.shape(array))
    if dtype.startswith("f8"):
        return encode(np.asarray(array, np.float64), dtype)
    with np.errstate(all="ignore"):
        return np.asarray(array).astype(DTYPES[dtype].numpy)


def decoded(array: Array, dtype: str) -> Array:
    """What lies in memory as the numbers of the interpreter of graphs."""
    if dtype == "bf16":
        return bf16_to_f32(array).astype(np.float64)
    if dtype.startswith("f8"):
        return decode(array, dtype)
    if DTYPES[dtype].is_float:
        return array.astype(np.float64)
    return array.astype(np.bool_ if dtype == "bool" else np.int64)


class Buffers:
    """Fenced memory, by number."""

    def __init__(self) -> None:
        self.all: list[Array] = []

    def add(self, size: int) -> int:
        memory = np.full(size + 2 * FENCE, 0xFF, np.uint8)  # NaN in every float format
        memory[:FENCE] = CANARY
        memory[size + FENCE :] = CANARY
        self.all.append(memory)
        return len(self.all) - 1

    def view(self, storage: Storage, symbols: Mapping[str, int]) -> Array:
        """The elements of a storage, which may be written."""
        kind = DTYPES[storage.dtype].numpy
        offset = FENCE + evaluate(storage.byte_offset, symbols)
        shape = tuple(evaluate(size, symbols) for size in storage.shape)
        strides = [evaluate(step, symbols) * kind.itemsize for step in storage.strides]
        if 0 in shape:
            return np.empty(shape, kind)
        return np.ndarray(shape, kind, self.all[storage.buffer].data, offset, strides)

    def pointer(self, storage: Storage, symbols: Mapping[str, int]) -> torch.Tensor:
        offset = FENCE + evaluate(storage.byte_offset, symbols)
        memory = torch.from_numpy(self.all[storage.buffer])[offset:]
        kind = _TORCH[POINTER_TYPES[storage.dtype]]
        return memory[: memory.numel() // kind.itemsize * kind.itemsize].view(kind)

    def check_fences(self) -> None:
        for memory in self.all:
            assert (memory[:FENCE] == CANARY).all(), "written before a buffer"
            assert (memory[-FENCE:] == CANARY).all(), "written behind a buffer"


def interpret_launch(launch: Launch, pointers: list[Any], symbols: Mapping[str, int]) -> None:
    """Run each program of a launch, one after the other."""
    grid = tuple(evaluate(size, symbols) for size in launch.grid)
    if 0 in grid:
        return
    numbers = [evaluate(param, symbols) for param in launch.params if not isinstance(param, float)]
    assert isinstance(launch.code, TritonSource)
    triton_function(launch.code)[grid](*pointers, *numbers)


def run_lowered(lowered: Lowered, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of a graph that was lowered to generated kernels alone; no buffers are shared."""
    graph = lowered.graph
    symbols = bind_symbols(graph, {name: inputs[name].shape for name in graph.inputs})
    buffers = Buffers()
    for buffer in lowered.buffers:
        buffers.add(evaluate(buffer.bytes, symbols))
    numbers = {buffer.name: number for number, buffer in enumerate(lowered.buffers)}
    filled = {numbers[weight.name]: weight.load() for weight in lowered.weights}
    filled |= {number: inputs[name] for name, number in lowered.inputs.items()}
    for number, array in filled.items():
        held = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        buffers.all[number][FENCE : FENCE + held.size] = held
    for step in lowered.steps:
        assert isinstance(step, KernelStep)
        pointers = [buffers.pointer(each, symbols) for each in step.launch.operands]
        interpret_launch(step.launch, pointers, symbols)
    buffers.check_fences()
    pairs = zip(graph.output_names, lowered.outputs, strict=True)
    return {name: buffers.view(storage, symbols).copy() for name, storage in pairs}


def run_graph(
    graph: Graph,
    inputs: Mapping[str, Array],
    target: Target,
    run: Run = interpret_launch,
    places: Mapping[str, Storage] | None = None,
) -> dict[str, Array]:
    """The outputs of `graph`, all nodes of which are generated or views.

    Args:
        graph: of generated nodes and views.
        inputs: elements as they lie in memory.
        target: for what.
        run: what runs a launch.
        places: storages of inputs and outputs (buffer ignored) that are not dense.
    """
    symbols = bind_symbols(graph, {name: inputs[name].shape for name in graph.inputs})
    buffers = Buffers()
    storages: dict[str, Storage] = {}

    def new(value: str) -> Storage:
        kind = graph.type(value)
        given = (places or {}).get(value)
        if given is None:
            storage = dense(0, kind.dtype, kind.shape)
            size = evaluate(product(kind.shape), symbols) * kind.element.itemsize
        else:
            storage = given
            shape = [evaluate(size, symbols) for size in given.shape]
            steps = [evaluate(step, symbols) for step in given.strides]
            reach = sum((n - 1) * max(s, 0) for n, s in zip(shape, steps, strict=True))
            size = (evaluate(given.offset, symbols) + reach + 1) * kind.element.itemsize
        number = buffers.add(max(0, size))
        return Storage(number, storage.dtype, storage.shape, storage.strides, storage.offset)

    for name in graph.inputs:
        storages[name] = new(name)
        buffers.view(storages[name], symbols)[...] = inputs[name]

    def storage_of(value: str) -> Storage:
        if value in storages:
            return storages[value]
        node = graph.producer(value)
        if node is None or node.op not in VIEWS:
            raise InternalError(f"`%{value}` is nowhere")
        found = viewed(
            storage_of(node.inputs[0]),
            node.op,
            node.attrs,
            graph.type(value).shape,
        )
        assert found is not None
        return found

    def place(value: str) -> list[Storage]:
        storages[value] = new(value)
        return [storages[value]]

    grouping = group_nodes(graph, lambda node: True)
    for step in grouping.steps:
        assert isinstance(step, Group)
        memory = Memory(
            is_stored=lambda value: value in grouping.in_memory,
            storage_of=storage_of,
            joined=lambda value: None,
            places=place,
        )
        built: BuiltRegion = group_region(graph, step, grouping.free, memory)
        launch = region_launch(built.region, built.storages, "case", target, graph.symbols)
        run(launch, [buffers.pointer(each, symbols) for each in launch.operands], symbols)
    buffers.check_fences()
    return {
        name: buffers.view(storage_of(value), symbols).copy()
        for name, value in zip(graph.output_names, graph.outputs, strict=True)
    }
