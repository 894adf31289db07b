"""The program document of a CPU target: `fusec.runtime.program` says what is in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from fusec.ir import TensorType
from fusec.kernels.launch import Param, Storage
from fusec.lower.lowering import KernelStep, Lowered, OnnxStep, step_buffers
from fusec.lower.memory_plan import UNBOUNDED
from fusec.symbolic import Dim, Expr

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | None"

SCHEMA = "fusec.program/1"


def program_document(lowered: Lowered, module: str | None) -> dict[str, Json]:
    """The program of `lowered`.

    Args:
        lowered: a lowered graph.
        module: the entry of the artifact that holds the code; `None` when there is none.
    """
    return _Document(lowered).document(module)


def symbol_ranges(lowered: Lowered) -> dict[str, tuple[int, int]]:
    """The inclusive range of each symbol; a missing end is a large number."""
    return {
        name: (least, UNBOUNDED if most is None else most)
        for name, (least, most) in lowered.graph.symbols.items()
    }


class _Document:
    def __init__(self, lowered: Lowered) -> None:
        self.lowered = lowered
        used = {buffer for step in lowered.steps for buffer in step_buffers(step)}
        used |= set(lowered.inputs.values())
        used |= {storage.buffer for storage in lowered.outputs}
        self.number = {buffer: position for position, buffer in enumerate(sorted(used))}

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
            "module": module,
            "inputs": inputs,
            "outputs": outputs,
            "buffers": [self._buffer(buffer) for buffer in self.number],
            "slots": [[size_json(size) for size in sizes] for sizes in lowered.plan.slots],
            "steps": [
                self._kernel_step(step) if isinstance(step, KernelStep) else self._onnx_step(step)
                for step in lowered.steps
            ],
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

    def _kernel_step(self, step: KernelStep) -> Json:
        operands: list[Json] = [
            [self.number[storage.buffer], size_json(storage.byte_offset)]
            for storage in step.launch.operands
        ]
        if step.scratch is not None:
            operands.append([self.number[step.scratch], 0])
        return {
            "kind": "kernel",
            "symbol": step.launch.symbol,
            "kernel": step.kernel,
            "node": step.node,
            "op": step.op,
            "buffers": operands,
            "params": [param_json(param) for param in step.launch.params],
        }

    def _onnx_step(self, step: OnnxStep) -> Json:
        return {
            "kind": "onnx",
            "model": step.residual.model,
            "node": step.residual.node,
            "op": step.residual.op,
            "reason": step.residual.reason,
            "inputs": self._operands(step.inputs),
            "outputs": self._operands(step.outputs),
        }

    def _operands(self, operands: Sequence[tuple[str, Storage]]) -> Json:
        return [
            {
                **_tensor(value, storage.dtype, storage.shape),
                "buffer": self.number[storage.buffer],
                "offset": size_json(storage.byte_offset),
            }
            for value, storage in operands
        ]


def _tensor(name: str, dtype: str, shape: tuple[Dim, ...]) -> dict[str, Json]:
    return {"name": name, "dtype": dtype, "shape": [size_json(size) for size in shape]}


def size_json(size: Dim) -> int | str:
    """A size as it stands in JSON."""
    return str(size) if isinstance(size, Expr) else int(size)


def param_json(param: Param) -> Json:
    """A launch parameter as it stands in JSON."""
    if isinstance(param, float):
        if math.isfinite(param):
            return {"f64": param}
        return {"f64": "nan" if math.isnan(param) else "inf" if param > 0 else "-inf"}
    return size_json(param)
