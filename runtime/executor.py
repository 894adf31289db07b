"""Runs a program on the CPU.

What depends on the sizes of the inputs is computed once for each combination of sizes and kept
for the last few: buffer sizes, the places of the arena's slots, every pointer's buffer and offset,
every parameter.  A run then fills in the addresses of its inputs and outputs and calls the steps.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusec.diagnostics import InputError
from fusec.runtime.cpu import (
    DIVISION_BY_ZERO,
    INDEX_OUT_OF_RANGE,
    Module,
    StepError,
)
from fusec.runtime.errors import CodeError, WeightsError
from fusec.runtime.layout import (
    CACHE_LINE,
    KEPT_PLANS,
    Key,
    Layout,
    Place,
    StepTime,
    Storage,
    check_input,
    index_error,
    lay_out,
    new_array,
    out_of_memory,
    place,
)
from fusec.runtime.onnx_part import OnnxPart
from fusec.runtime.program import THREADS
from fusec.runtime.steps import KernelStep, OnnxStep, Program


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive steps: kernels from `begin` to `end`, or one that onnxruntime runs."""

    begin: int
    end: int
    onnx: OnnxStep | None = None
    inputs: tuple[Place, ...] = ()
    outputs: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything about a run that follows from the sizes of its inputs.

    Attributes:
        layout: sizes, places and parameters.
        pointers: the addresses that steps read; written before each run.
        steps: the `FusecStep` array, three addresses a row.
        parts: what to do, in order.
    """

    layout: Layout
    pointers: NDArray[np.int64]
    steps: NDArray[np.int64]
    parts: tuple[Part, ...]


class Executor:
    """A program with its code and weights, ready to run; calls from several threads take turns."""

    def __init__(
        self,
        program: Program,
        module: Module | None,
        weights: Mapping[str, Storage],
        onnx: Mapping[str, OnnxPart],
        threads: int | None,
    ) -> None:
        """Resolve every function and weight.

        Args:
            program: checked.
            module: its code; `None` if no step needs any.
            weights: the bytes of each weight.
            onnx: each model that a step names.
            threads: that take part in a step; `None` for the CPUs this process may use.

        Raises:
            CodeError: the module lacks a function.
            WeightsError: a weight has another size.
        """
        self.program = program
        self._module = module
        self._onnx = onnx
        self.threads = threads or len(os.sched_getaffinity(0))
        self._weights = weights
        self._lock = threading.Lock()
        self._plans: OrderedDict[Key, Plan] = OrderedDict()
        self._arena = _Arena()
        self._kernel_steps = [step for step in program.steps if isinstance(step, KernelStep)]
        self._functions = self._resolve_functions()
        self._bases = np.zeros(len(program.buffers), np.int64)
        self._is_arena = np.array([b.kind == "arena" for b in program.buffers], np.bool_)
        # Held, because the addresses in `_bases` are theirs.
        self._aligned = self._place_weights()

    def run(
        self,
        inputs: Mapping[str, Storage],
        symbols: Mapping[str, int],
        times: list[StepTime] | None = None,
    ) -> dict[str, Storage]:
        """Run the program.

        Args:
            inputs: every input, contiguous, in the storage type of its dtype, of the sizes that
                its shape has for `symbols`.
            symbols: the value of each symbol.
            times: if given, gets the time of every step.

        Returns:
            Every output, in the storage type of its dtype.

        Raises:
            InputError: a kernel found a value that it cannot take, or memory is short.
            ArtifactError: the program does not hold together for these sizes.
        """
        with self._lock:
            if self._module is not None:
                self._module.set_threads(self.threads)  # another model may share the module
            plan = self._plan(symbols)
            layout = plan.layout
            bases = np.where(self._is_arena, layout.arena_offsets, self._bases)
            bases[self._is_arena] += self._arena.address(layout.arena_bytes)
            for binding in self.program.inputs:
                check_input(self.program, layout, binding.buffer, inputs[binding.spec.name])
                bases[binding.buffer] = inputs[binding.spec.name].ctypes.data
            outputs = self._new_outputs(plan, bases)
            offsets = layout.pointer_offsets
            np.add(bases[self.program.pointer_buffers], offsets, out=plan.pointers)
            self._execute(plan, bases, times)
            return self._finished(plan, bases, outputs)

    def arena_bytes(self, symbols: Mapping[str, int]) -> int:
        """The size of the arena for these sizes of the inputs."""
        with self._lock:
            return self._plan(symbols).layout.arena_bytes

    def close(self) -> None:
        """Do nothing: memory of the host goes with the executor."""

    # --- loading ---

    def _resolve_functions(self) -> NDArray[np.int64]:
        known: dict[str, int] = {}
        for step in self._kernel_steps:
            if self._module is not None and step.symbol not in known:
                known[step.symbol] = self._module.address(step.symbol)
        return np.array([known[step.symbol] for step in self._kernel_steps], np.int64)

    def _place_weights(self) -> list[Storage]:
        held: list[Storage] = []
        for index, buffer in enumerate(self.program.buffers):
            if buffer.name is None:
                continue
            weight = self._weights[buffer.name]
            if weight.nbytes != buffer.bytes:
                raise WeightsError(
                    f"the weight `{buffer.name}` has {weight.nbytes} bytes, not {buffer.bytes}",
                    at=self.program.at,
                )
            held.append(weight)
            self._bases[index] = weight.ctypes.data
        return held

    # --- planning ---

    def _plan(self, symbols: Mapping[str, int]) -> Plan:
        key = tuple(sorted(symbols.items()))
        plan = self._plans.get(key)
        if plan is None:
            plan = self._new_plan({**symbols, THREADS: self.threads})
            self._plans[key] = plan
            if len(self._plans) > KEPT_PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return plan

    def _new_plan(self, values: Mapping[str, int]) -> Plan:
        layout = lay_out(self.program, values, CACHE_LINE)
        count = len(layout.pointer_offsets)
        pointers = np.zeros(max(1, count), np.int64)[:count]
        return Plan(
            layout=layout,
            pointers=pointers,
            steps=self._steps(pointers, layout.params),
            parts=self._parts(layout),
        )

    def _steps(self, pointers: NDArray[np.int64], params: NDArray[np.int64]) -> NDArray[np.int64]:
        rows = np.empty((len(self._kernel_steps), 3), np.int64)
        rows[:, 0] = self._functions
        rows[:, 1] = [step.pointers.start for step in self._kernel_steps]
        rows[:, 2] = [step.params.start for step in self._kernel_steps]
        rows[:, 1:] *= 8
        rows[:, 1] += pointers.ctypes.data
        rows[:, 2] += params.ctypes.data
        return rows

    def _parts(self, layout: Layout) -> tuple[Part, ...]:
        parts: list[Part] = []
        kernels = 0
        for step in self.program.steps:
            if isinstance(step, OnnxStep):
                inputs, outputs = (
                    tuple(place(self.program, operand, layout) for operand in operands)
                    for operands in (step.inputs, step.outputs)
                )
                parts.append(Part(kernels, kernels, step, inputs, outputs))
                continue
            if parts and parts[-1].onnx is None:
                parts[-1] = Part(parts[-1].begin, kernels + 1)
            else:
                parts.append(Part(kernels, kernels + 1))
            kernels += 1
        return tuple(parts)

    # --- running ---

    def _new_outputs(self, plan: Plan, bases: NDArray[np.int64]) -> dict[int, Storage]:
        """Memory for every output buffer, by index."""
        outputs: dict[int, Storage] = {}
        for binding, shape in zip(self.program.outputs, plan.layout.output_shapes, strict=True):
            if self.program.buffers[binding.buffer].kind == "output":
                array = new_array(binding.spec.dtype, shape)
                outputs[binding.buffer] = array
                bases[binding.buffer] = array.ctypes.data
        return outputs

    def _execute(self, plan: Plan, bases: NDArray[np.int64], times: list[StepTime] | None) -> None:
        for part in plan.parts:
            if part.onnx is not None:
                model = self._onnx[part.onnx.model]
                inputs = [(place, int(bases[place.buffer]) + place.offset) for place in part.inputs]
                outputs = [
                    (place, int(bases[place.buffer]) + place.offset) for place in part.outputs
                ]
                seconds = model.run(
                    [(place.spec, place.shape, address) for place, address in inputs],
                    [(place.spec, place.shape, address) for place, address in outputs],
                    part.onnx.node,
                )
                if times is not None:
                    step = part.onnx
                    times.append(StepTime(step.node, step.op, "onnxruntime", seconds))
                continue
            self._execute_kernels(plan, part, times)

    def _execute_kernels(self, plan: Plan, part: Part, times: list[StepTime] | None) -> None:
        if self._module is None:
            return
        count = part.end - part.begin
        seconds = None if times is None else np.zeros(count, np.float64)
        address = plan.steps.ctypes.data + part.begin * plan.steps.strides[0]
        try:
            self._module.execute(address, count, None if seconds is None else seconds.ctypes.data)
        except StepError as error:
            raise self._explained(error, self._kernel_steps[part.begin + error.step]) from None
        if times is not None and seconds is not None:
            steps = self._kernel_steps[part.begin : part.end]
            times += [
                StepTime(step.node, step.op, step.kernel, float(taken))
                for step, taken in zip(steps, seconds, strict=True)
            ]

    def _explained(self, error: StepError, step: KernelStep) -> Exception:
        at = f"{step.node} ({step.op})"
        if error.code == INDEX_OUT_OF_RANGE:
            return index_error(error.value, error.bound, at)
        if error.code == DIVISION_BY_ZERO:
            return InputError("an integer is divided by zero", at=at)
        return CodeError(
            f"the kernel `{step.kernel}` does not take {error.value}; it takes {error.bound}", at=at
        )

    def _finished(
        self, plan: Plan, bases: NDArray[np.int64], outputs: Mapping[int, Storage]
    ) -> dict[str, Storage]:
        result: dict[str, Storage] = {}
        for binding, shape in zip(self.program.outputs, plan.layout.output_shapes, strict=True):
            array = outputs.get(binding.buffer)
            if array is None:
                # The output is an input, a weight or what is left in the arena.
                array = new_array(binding.spec.dtype, shape)
                ctypes.memmove(array.ctypes.data, int(bases[binding.buffer]), array.nbytes)
            result[binding.spec.name] = array
        return result


class _Arena:
    """Memory that steps share; grows to the largest run and stays."""

    def __init__(self) -> None:
        self._memory: NDArray[np.uint8] = np.empty(0, np.uint8)

    def address(self, size: int) -> int:
        """Where `size` bytes are; what was in them is lost when they move."""
        if size > self._memory.nbytes:
            self._memory = np.empty(0, np.uint8)
            try:
                mapped = mmap.mmap(-1, size)
            except (OSError, ValueError, OverflowError):
                raise out_of_memory(size) from None
            # One entry of the page table for 2 MiB instead of 512.
            mapped.madvise(mmap.MADV_HUGEPAGE)
            self._memory = np.frombuffer(mapped, np.uint8)
        return int(self._memory.ctypes.data)
