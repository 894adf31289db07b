"""The program document of a target: `fusec.runtime.program` says what is in it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from fusec import symbolic
from fusec.diagnostics import InternalError
from fusec.ir import TensorType
from fusec.kernels.external.call import ExternalCall
from fusec.kernels.launch import Param, Storage, TritonSource
from fusec.link.gpu_checks import GpuSource
from fusec.link.gpu_kernel import GpuKernel
from fusec.link.gpu_sources import source_json
from fusec.lower.costs import Cost
from fusec.lower.memory_plan import UNBOUNDED
from fusec.lower.steps import KernelStep, Lowered, OnnxStep, step_buffers
from fusec.symbolic import Dim, Expr

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | None"

SCHEMA = "fusec.program/1"


@dataclass(frozen=True, slots=True)
class GpuCode:
    """The code objects of a program.

    Attributes:
        kernels: by what they were made of.
        entry: names the entry of the artifact that holds a kernel.
    """

    kernels: Mapping[GpuSource, GpuKernel] = field(default_factory=dict)
    entry: Callable[[GpuKernel], str] = lambda kernel: kernel.sha256

    def sources(self) -> dict[str, Json]:
        """What each code object was made of, by its entry.

        Sources that differ only in what they say is divisible may give the same code, which then
        relies on nothing but what all of them say.
        """
        found: dict[str, GpuSource] = {}
        for source, kernel in self.kernels.items():
            entry = self.entry(kernel)
            other = found.setdefault(entry, source)
            if isinstance(source, TritonSource) and isinstance(other, TritonSource):
                both = tuple(name for name in other.divisible if name in source.divisible)
                found[entry] = replace(other, divisible=both)
        return {entry: json.loads(source_json(source)) for entry, source in found.items()}


def program_document(
    lowered: Lowered, module: str | None = None, code: GpuCode | None = None
) -> dict[str, Json]:
    """The program of `lowered`.

    Args:
        lowered: a lowered graph.
        module: for a CPU, the entry of the artifact that holds the code; `None` when there is none.
        code: for a GPU, the code.
    """
    return _Document(lowered, code).document(module)


def symbol_ranges(lowered: Lowered) -> dict[str, tuple[int, int]]:
    """The inclusive range of each symbol; a missing end is a large number."""
    return {
        name: (least, UNBOUNDED if most is None else most)
        for name, (least, most) in lowered.graph.symbols.items()
    }


def buffer_numbers(lowered: Lowered) -> dict[int, int]:
    """The number in the program of each buffer that it has, by the position in `lowered`."""
    used = {buffer for step in lowered.steps for buffer in step_buffers(step)}
    used |= set(lowered.inputs.values())
    used |= {storage.buffer for storage in lowered.outputs}
    return {buffer: position for position, buffer in enumerate(sorted(used))}


class _Document:
    def __init__(self, lowered: Lowered, code: GpuCode | None) -> None:
        self.lowered = lowered
        self.code = code
        self.number = buffer_numbers(lowered)

    def document(self, module: str | None) -> dict[str, Json]:
        lowered = self.lowered
        graph = lowered.graph
        inputs: list[Json] = [
            self._binding(name, graph.type(name), lowered.inputs[name]) for name in graph.inputs
        ]
        outputs: list[Json] = [
            self._binding(name, graph.type(value), storage.buffer)
            for name, value, storage in zip(
                graph.output_names, graph.outputs, lowered.outputs, strict=True
            )
        ]
        return {
            "schema": SCHEMA,
            "target": lowered.target.name,
            "arch": lowered.target.arch,
            "features": list(lowered.target.features),
            "symbols": {name: list(ends) for name, ends in symbol_ranges(lowered).items()},
            **({"module": module} if self.code is None else {"sources": self.code.sources()}),
            "inputs": inputs,
            "outputs": outputs,
            "buffers": [self._buffer(buffer) for buffer in self.number],
            "slots": [[size_json(size) for size in sizes] for sizes in lowered.plan.slots],
            "steps": [self._step(step) for step in lowered.steps],
        }

    def _binding(self, name: str, kind: TensorType, buffer: int) -> Json:
        return {**_tensor(name, kind.dtype, kind.shape), "buffer": self.number[buffer]}

    def _buffer(self, position: int) -> Json:
        buffer = self.lowered.buffers[position]
        held: dict[str, Json] = {"kind": buffer.kind, "bytes": size_json(buffer.bytes)}
        if buffer.kind == "weight":
            held["name"] = buffer.name
        if buffer.kind == "arena":
            held["slot"] = self.lowered.plan.slot_of[position]
        return held

    def _step(self, step: KernelStep | OnnxStep) -> Json:
        if isinstance(step, OnnxStep):
            return self._onnx_step(step)
        call = step.launch.code
        about: dict[str, Json] = {
            "op": step.op,
            "node": step.node.name,
            "kernel": step.kernel.name,
            "cost": cost_json(step.cost),
        }
        if step.nodes:
            about["nodes"] = list(step.nodes)
        if isinstance(call, ExternalCall):
            operands: list[Json] = [self._place(storage) for storage in step.launch.operands]
            document = json.loads(json.dumps(call.document()))
            return {"kind": "external", **about, "call": document, "operands": operands}
        if step.source is not None:
            return {"kind": "launch", **about, **self._launch(step, step.source)}
        return {
            "kind": "kernel",
            **about,
            "symbol": step.launch.symbol,
            "buffers": self._pointers(step),
            "params": [param_json(param) for param in step.launch.params],
        }

    def _pointers(self, step: KernelStep) -> list[Json]:
        operands: list[Json] = [
            [self.number[storage.buffer], self._offset(storage)] for storage in step.launch.operands
        ]
        if step.scratch is not None:
            operands.append([self.number[step.scratch], 0])
        return operands

    def _launch(self, step: KernelStep, source: GpuSource) -> dict[str, Json]:
        if self.code is None:
            raise InternalError("a program for a GPU is written with its code objects")
        kernel = self.code.kernels[source]
        return {
            "module": self.code.entry(kernel),
            "symbol": kernel.symbol,
            "grid": [size_json(size) for size in step.launch.grid],
            "block": [kernel.threads, 1, 1],
            "shared_bytes": kernel.shared_bytes,
            "buffers": self._pointers(step),
            "params": [
                {"f32": _float_json(param)} if isinstance(param, float) else size_json(param)
                for param in step.launch.params
            ],
            "arguments": [list(argument) for argument in kernel.arguments],
            "kernarg_bytes": kernel.kernarg_bytes,
        }

    def _offset(self, storage: Storage) -> Json:
        """Bytes before the first element: within the buffer, even where there is no element."""
        offset, ranges = storage.byte_offset, self.lowered.graph.symbols
        if offset != 0 and not all(symbolic.known_positive(size, ranges) for size in storage.shape):
            end = self.lowered.buffers[storage.buffer].bytes
            offset = symbolic.minimum(symbolic.maximum(offset, 0), end)
        return size_json(offset)

    def _place(self, storage: Storage) -> Json:
        """Where a value lies: its offset in bytes, its strides in elements."""
        return {
            "buffer": self.number[storage.buffer],
            "offset": self._offset(storage),
            "dtype": storage.dtype,
            "shape": [size_json(size) for size in storage.shape],
            "strides": [size_json(stride) for stride in storage.strides],
        }

    def _onnx_step(self, step: OnnxStep) -> Json:
        return {
            "kind": "onnx",
            "model": step.residual.model,
            "node": step.residual.node,
            "op": step.residual.op,
            "reason": step.residual.reason,
            "cost": cost_json(step.cost),
            "inputs": self._operands(step.inputs),
            "outputs": self._operands(step.outputs),
        }

    def _operands(self, operands: Sequence[tuple[str, Storage]]) -> Json:
        return [
            {
                **_tensor(value, storage.dtype, storage.shape),
                "buffer": self.number[storage.buffer],
                "offset": self._offset(storage),
            }
            for value, storage in operands
        ]


def _tensor(name: str, dtype: str, shape: tuple[Dim, ...]) -> dict[str, Json]:
    return {"name": name, "dtype": dtype, "shape": [size_json(size) for size in shape]}


def size_json(size: Dim) -> int | str:
    """A size as it stands in JSON."""
    return str(size) if isinstance(size, Expr) else int(size)


def cost_json(cost: Cost) -> Json:
    """What a step moves and computes as it stands in JSON."""
    return {
        "read": size_json(cost.read),
        "write": size_json(cost.write),
        "flops": size_json(cost.flops),
        "unit": cost.unit,
    }


def param_json(param: Param) -> Json:
    """A parameter of a C++ function as it stands in JSON."""
    return {"f64": _float_json(param)} if isinstance(param, float) else size_json(param)


def _float_json(value: float) -> float | str:
    """`value`, or its name, `inf`, `-inf` or `nan`, for which JSON has no number."""
    return value if math.isfinite(value) else str(value)
