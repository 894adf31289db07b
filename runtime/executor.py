"""Runs a program on the CPU.

What depends on the sizes of the inputs is computed once for each combination of sizes and kept
for the last few: buffer sizes, the places of the arena's slots, every pointer's buffer and offset,
every parameter.  A run then fills in the addresses of its inputs and outputs and calls the steps.
"""

from __future__ import annotations

import ctypes
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusec.diagnostics import InputError
from fusec.dtypes import DTYPES, bf16_to_f32, f32_to_bf16
from fusec.runtime.cpu import (
    DIVISION_BY_ZERO,
    INDEX_OUT_OF_RANGE,
    Module,
    StepError,
    available_cpus,
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
    Watch,
    address_of,
    check_input,
    index_error,
    lay_out,
    new_array,
    out_of_memory,
    place,
)
from fusec.runtime.locks import Lock
from fusec.runtime.onnx_part import OnnxPart
from fusec.runtime.pages import Bytes, Recycler, new_pages
from fusec.runtime.probe import Probed, probe_cpu
from fusec.runtime.program import THREADS
from fusec.runtime.steps import KernelStep, OnnxStep, Program

RECYCLED_BYTES = 1 << 20
"""Outputs from this size on lie in memory of earlier ones that nobody holds any more."""


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive steps: kernels from `begin` to `end`, or one that onnxruntime runs."""

    begin: int
    end: int
    onnx: OnnxStep | None = None
    inputs: tuple[Place, ...] = ()
    outputs: tuple[Place, ...] = ()


@dataclass(slots=True)
class Plan:
    """Everything about a run that follows from the sizes of its inputs.

    Attributes:
        layout: sizes, places and parameters.
        bases: the address of each buffer; those of inputs and outputs are written before each run.
        pointers: the addresses that steps read; likewise.
        moving: which of them point into inputs and outputs.
        arena: where the arena was when the others were written.
        steps: the `FusecStep` array, three addresses a row.
        parts: what to do, in order.
    """

    layout: Layout
    bases: NDArray[np.int64]
    pointers: NDArray[np.int64]
    moving: NDArray[np.int64]
    arena: int
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
            threads: that take part in a step; `None` for the CPUs this process may keep busy.

        Raises:
            CodeError: the module lacks a function.
            WeightsError: a weight has another size.
        """
        self.program = program
        self._module = module
        self._onnx = onnx
        self.threads = threads or available_cpus()
        self._weights = weights
        self._lock = Lock()
        self._plans: OrderedDict[Key, Plan] = OrderedDict()
        self._arena = _Arena()
        self._kernel_steps = [step for step in program.steps if isinstance(step, KernelStep)]
        self._functions = self._resolve_functions()
        self._bases = np.zeros(len(program.buffers), np.int64)
        self._is_arena = np.array([b.kind == "arena" for b in program.buffers], np.bool_)
        self._is_moving = np.array([b.kind in ("input", "output") for b in program.buffers])
        self._recycler = Recycler()
        # Held, because the addresses in `_bases` are theirs.
        self._aligned = self._place_weights()

    def run(
        self,
        inputs: Mapping[str, Storage],
        symbols: Mapping[str, int],
        times: list[StepTime] | None = None,
        watch: Watch | None = None,
    ) -> dict[str, Storage]:
        """Run the program.

        Args:
            inputs: every input, contiguous, in the storage type of its dtype, of the sizes that
                its shape has for `symbols`.
            symbols: the value of each symbol.
            times: if given, gets the time of every step.
            watch: if given, is called after every step, and no time is taken.

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
            for binding in self.program.inputs:
                array = inputs[binding.spec.name]
                check_input(self.program, plan.layout, binding.buffer, array)
                plan.bases[binding.buffer] = address_of(array)
            outputs = self._new_outputs(plan)
            self._place_arena(plan)
            moving = plan.moving
            plan.pointers[moving] = (
                plan.bases[self.program.pointer_buffers[moving]]
                + plan.layout.pointer_offsets[moving]
            )
            if watch is None:
                self._execute(plan, times)
            else:
                self._execute_watched(plan, watch)
            return self._finished(plan, outputs)

    def arena_bytes(self, symbols: Mapping[str, int]) -> int:
        """The size of the arena for these sizes of the inputs."""
        with self._lock:
            return self._plan(symbols).layout.arena_bytes

    def widened(self, bits: NDArray[np.uint16]) -> NDArray[np.float32]:
        """Contiguous bf16 as f32."""
        if self._module is None:
            return bf16_to_f32(bits)
        wide = self._new_output("f32", bits.shape).view(np.float32)
        self._module.widen_bf16(address_of(bits), address_of(wide), bits.size)
        return wide

    def narrowed(self, values: NDArray[np.float32]) -> NDArray[np.uint16]:
        """Contiguous f32 as bf16, rounded to nearest even."""
        if self._module is None:
            return f32_to_bf16(values)
        bits = self._new_output("bf16", values.shape).view(np.uint16)
        self._module.narrow_bf16(address_of(values), address_of(bits), values.size)
        return bits

    def probe(self) -> Probed:
        """What this machine gives at most, to as many threads as run the model.

        Raises:
            InputError: the artifact has no code that could measure it.
        """
        if self._module is None:
            raise InputError("no step of the artifact runs on this CPU", at=self.program.at)
        with self._lock:
            self._module.set_threads(self.threads)
            return probe_cpu(self._module)

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
            bases=self._bases.copy(),
            pointers=pointers,
            moving=np.flatnonzero(self._is_moving[self.program.pointer_buffers]),
            arena=-1,
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

    def _place_arena(self, plan: Plan) -> None:
        """Write the addresses that stay as long as the arena does not move."""
        arena = self._arena.address(plan.layout.arena_bytes)
        if plan.arena == arena:
            return
        np.copyto(plan.bases, plan.layout.arena_offsets + arena, where=self._is_arena)
        np.add(
            plan.bases[self.program.pointer_buffers],
            plan.layout.pointer_offsets,
            out=plan.pointers,
        )
        plan.arena = arena  # last: an interrupt leaves it to the next run

    def _new_output(self, dtype: str, shape: tuple[int, ...]) -> Storage:
        storage = DTYPES[dtype].numpy
        size = math.prod(shape) * storage.itemsize
        if size < RECYCLED_BYTES:
            return new_array(dtype, shape)
        try:
            return self._recycler.take(size).view(storage).reshape(shape)
        except (OSError, ValueError, OverflowError):
            raise out_of_memory(size) from None

    def _new_outputs(self, plan: Plan) -> dict[int, Storage]:
        """Memory for every output buffer, by index."""
        outputs: dict[int, Storage] = {}
        for binding, shape in zip(self.program.outputs, plan.layout.output_shapes, strict=True):
            if self.program.buffers[binding.buffer].kind == "output":
                array = self._new_output(binding.spec.dtype, shape)
                outputs[binding.buffer] = array
                plan.bases[binding.buffer] = address_of(array)
        return outputs

    def _execute(self, plan: Plan, times: list[StepTime] | None) -> None:
        for part in plan.parts:
            if part.onnx is not None:
                self._execute_onnx(plan, part, part.onnx, times)
            else:
                self._execute_kernels(plan, part, times)

    def _execute_watched(self, plan: Plan, watch: Watch) -> None:
        """Run one step after the other and let `watch` look at memory after each."""
        bases = plan.bases

        def read(buffer: int, begin: int, size: int) -> NDArray[np.uint8]:
            copy = np.empty(size, np.uint8)
            ctypes.memmove(address_of(copy), int(bases[buffer]) + begin, size)
            return copy

        kernels = 0
        onnx = iter(part for part in plan.parts if part.onnx is not None)
        for index, step in enumerate(self.program.steps):
            if isinstance(step, OnnxStep):
                self._execute_onnx(plan, next(onnx), step, None)
            else:
                self._execute_kernels(plan, Part(kernels, kernels + 1), None)
                kernels += 1
            watch(index, read)

    def _execute_onnx(
        self, plan: Plan, part: Part, step: OnnxStep, times: list[StepTime] | None
    ) -> None:
        bases = plan.bases
        seconds = self._onnx[step.model].run(
            [(e.spec, e.shape, int(bases[e.buffer]) + e.offset) for e in part.inputs],
            [(e.spec, e.shape, int(bases[e.buffer]) + e.offset) for e in part.outputs],
            step.node,
        )
        if times is not None:
            times.append(StepTime(step.node, step.op, "onnxruntime", seconds))

    def _execute_kernels(self, plan: Plan, part: Part, times: list[StepTime] | None) -> None:
        if self._module is None:
            return
        count = part.end - part.begin
        seconds = None if times is None else np.zeros(count, np.float64)
        address = address_of(plan.steps) + part.begin * plan.steps.strides[0]
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

    def _finished(self, plan: Plan, outputs: Mapping[int, Storage]) -> dict[str, Storage]:
        result: dict[str, Storage] = {}
        for binding, shape in zip(self.program.outputs, plan.layout.output_shapes, strict=True):
            array = outputs.get(binding.buffer)
            if array is None:
                # The output is an input, a weight or what is left in the arena.
                array = self._new_output(binding.spec.dtype, shape)
                ctypes.memmove(array.ctypes.data, int(plan.bases[binding.buffer]), array.nbytes)
            result[binding.spec.name] = array
        return result


class _Arena:
    """Memory that steps share; grows to the largest run and stays."""

    def __init__(self) -> None:
        self._memory: Bytes = np.empty(0, np.uint8)

    def address(self, size: int) -> int:
        """Where `size` bytes are; what was in them is lost when they move."""
        if size > self._memory.nbytes:
            self._memory = np.empty(0, np.uint8)
            try:
                self._memory = new_pages(size)
            except (OSError, ValueError, OverflowError):
                raise out_of_memory(size) from None
        return address_of(self._memory)
