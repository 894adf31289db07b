"""Runs a program on a device, by whatever driver it is given.

What depends on the sizes of the inputs is computed once for each combination of sizes and kept for
the last few.  All buffers but the weights lie in one workspace, so the launches of a combination
are always the same ones, down to their addresses, until the workspace has to grow.  The first run
of a combination launches one kernel after the other, the second captures the launches between two
host calls as a graph, and those after it replay the graphs.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fusec.diagnostics import FusecError
from fusec.dtypes import bf16_to_f32, f32_to_bf16
from fusec.runtime.driver import Bytes, Driver
from fusec.runtime.errors import CodeError
from fusec.runtime.external import ExternalFunction
from fusec.runtime.external_call import call_external
from fusec.runtime.gpu_memory import ALIGNMENT, Weights, Workspace
from fusec.runtime.gpu_plan import (
    ExternalCallPlace,
    GpuPlan,
    OnnxCall,
    Packing,
    Segment,
    new_plan,
    resolve,
)
from fusec.runtime.layout import (
    KEPT_PLANS,
    Key,
    Place,
    StepTime,
    Storage,
    Watch,
    check_input,
    index_error,
    lay_out,
    new_array,
)
from fusec.runtime.onnx_part import OnnxPart
from fusec.runtime.probe import Probed, probe_device
from fusec.runtime.steps import LaunchStep, Program


class GpuExecutor:
    """A program with its code and weights on a device; calls from several threads take turns."""

    threads = None
    """No threads of the host take part in a step."""

    def __init__(
        self,
        program: Program,
        driver: Driver,
        code: Mapping[str, memoryview],
        weights: Mapping[str, Storage],
        onnx: Mapping[str, OnnxPart],
        external: tuple[ExternalFunction, ...] = (),
        *,
        graphs: bool = True,
        owns_driver: bool = False,
    ) -> None:
        """Load the code and upload the weights.

        Args:
            program: checked.
            driver: of the device.
            code: each module that a step names, checked to be for the device.
            weights: the bytes of each weight; they are read once, here.
            onnx: each model that a step names.
            external: the function of each external step, in their order.
            graphs: whether launches are captured and replayed.
            owns_driver: whether `close` closes the driver.

        Raises:
            CodeError: the driver refuses the code, or it lacks a function.
            OutOfMemoryError: the weights do not fit on the device.
            WeightsError: a weight has another size.
        """
        self.program = program
        self._driver = driver
        self._onnx = onnx
        self._external = external
        self._graphs = graphs
        self._owns_driver = owns_driver
        self._lock = threading.Lock()
        self._busy = False
        self._plans: OrderedDict[Key, GpuPlan] = OrderedDict()
        self._events: list[int] = []
        self._steps = [step for step in program.steps if isinstance(step, LaunchStep)]
        self._functions = self._load(code)
        self._packing = Packing.of(self._steps)
        self._stream = driver.stream()
        self._weights = Weights(driver, program, weights, self._stream)
        self._is_weight = np.array(
            [buffer.kind == "weight" for buffer in program.buffers], np.bool_
        )
        self._workspace = Workspace(driver)

    def probe(self) -> Probed:
        """How fast the device copies within its memory; arithmetic is not measured."""
        with self._lock:
            return probe_device(self._driver, self._stream)

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
            times: if given, gets the time of every step that was not left out.
            watch: if given, is called after every step that was not left out, one at a time, and
                no time is taken.

        Returns:
            Every output, in the storage type of its dtype.

        Raises:
            InputError: a kernel found a value that it cannot take, or memory is short.
            ArtifactError: the program does not hold together for these sizes, or the device failed.
        """
        with self._lock:
            self._settle()
            plan = self._plan(symbols)
            self._prepare(plan)
            self._busy = True
            self._send(plan, inputs)
            if watch is None:
                self._execute(plan, times)
            else:
                self._execute_watched(plan, watch)
            outputs = self._receive(plan)
            self._busy = False
            self._check_errors(plan)
            return outputs

    def widened(self, bits: NDArray[np.uint16]) -> NDArray[np.float32]:
        """Contiguous bf16 as f32."""
        return bf16_to_f32(bits)

    def narrowed(self, values: NDArray[np.float32]) -> NDArray[np.uint16]:
        """Contiguous f32 as bf16, rounded to nearest even."""
        return f32_to_bf16(values)

    def arena_bytes(self, symbols: Mapping[str, int]) -> int:
        """The size of the arena for these sizes of the inputs."""
        with self._lock:
            return self._plan(symbols).layout.arena_bytes

    def close(self) -> None:
        """Give the memory of the device back; the executor cannot run any more."""
        with self._lock:
            if self._owns_driver:
                self._driver.close()
                return
            self._settle()
            self._forget_graphs()
            self._workspace.free()
            self._weights.free()

    # --- loading ---

    def _load(self, code: Mapping[str, memoryview]) -> list[int]:
        """The function of every launch; each module and each function is loaded once."""
        driver = self._driver
        modules = {entry: driver.load_module(code[entry], entry) for entry in self.program.modules}
        known: dict[tuple[str, str, int], int] = {}
        functions: list[int] = []
        for step in self._steps:
            key = (step.module, step.symbol, step.shared_bytes)
            if key not in known:
                known[key] = driver.function(modules[step.module], step.symbol, step.shared_bytes)
            functions.append(known[key])
        return functions

    # --- planning ---

    def _plan(self, symbols: Mapping[str, int]) -> GpuPlan:
        key = tuple(sorted(symbols.items()))
        plan = self._plans.get(key)
        if plan is None:
            plan = new_plan(self.program, lay_out(self.program, symbols, ALIGNMENT))
            self._plans[key] = plan
            if len(self._plans) > KEPT_PLANS:
                _, oldest = self._plans.popitem(last=False)
                self._free_graphs(oldest)
        self._plans.move_to_end(key)
        return plan

    def _prepare(self, plan: GpuPlan) -> None:
        """Make room, and give every launch its addresses if they have changed."""
        before = self._workspace.moves
        try:
            self._workspace.reserve(plan.device_bytes, plan.host_bytes)
        finally:
            if self._workspace.moves != before:
                self._forget_graphs()
        if plan.moves != self._workspace.moves:
            worked_in = plan.offsets + self._workspace.address
            bases = np.where(self._is_weight, self._weights.bases, worked_in)
            resolve(plan, self.program, self._packing, self._functions, bases)
            plan.moves = self._workspace.moves
            plan.runs = 0

    def _forget_graphs(self) -> None:
        for plan in self._plans.values():
            self._free_graphs(plan)

    def _free_graphs(self, plan: GpuPlan) -> None:
        for segment in plan.segments:
            if segment.graph is not None:
                self._driver.free_graph(segment.graph)
                segment.graph = None

    # --- running ---

    def _settle(self) -> None:
        """After a run that failed, wait for what it left behind."""
        if self._busy:
            self._driver.synchronize(self._stream)
            self._busy = False

    def _send(self, plan: GpuPlan, inputs: Mapping[str, Storage]) -> None:
        for buffer, place in plan.errors.items():
            size = place.stop - place.start
            self._driver.fill(plan.bases[buffer], 0, size, self._stream)
        for binding, place in zip(self.program.inputs, plan.inputs, strict=True):
            value = inputs[binding.spec.name]
            check_input(self.program, plan.layout, binding.buffer, value)
            pinned = self._workspace.host[place]
            pinned[:] = value.reshape(-1).view(np.uint8)
            self._driver.upload(plan.bases[binding.buffer], pinned, self._stream)

    def _execute(self, plan: GpuPlan, times: list[StepTime] | None) -> None:
        for part in plan.parts:
            if isinstance(part, OnnxCall):
                self._run_onnx(part, plan.bases, times)
            elif isinstance(part, ExternalCallPlace):
                self._run_external(part, plan.bases, times)
            elif times is not None:
                self._run_timed(part, times)
            elif self._graphs and plan.runs > 0:
                self._replay(part)
            else:
                self._launch(part)
        plan.runs += 1

    def _execute_watched(self, plan: GpuPlan, watch: Watch) -> None:
        """Run one step after the other and let `watch` look at memory after each."""
        driver, stream = self._driver, self._stream

        def read(buffer: int, begin: int, size: int) -> NDArray[np.uint8]:
            copy = driver.host_array(size)
            driver.download(copy, plan.bases[buffer] + begin, stream)
            driver.synchronize(stream)
            return copy

        indexes = {id(step): index for index, step in enumerate(self.program.steps)}
        for part in plan.parts:
            if isinstance(part, OnnxCall):
                self._run_onnx(part, plan.bases, None)
                watch(indexes[id(part.step)], read)
            elif isinstance(part, ExternalCallPlace):
                self._run_external(part, plan.bases, None)
                watch(indexes[id(part.step)], read)
            else:
                for number, launch in zip(part.steps, part.launches, strict=True):
                    driver.launch(launch, stream)
                    watch(indexes[id(self._steps[number])], read)

    def _launch(self, segment: Segment) -> None:
        for launch in segment.launches:
            self._driver.launch(launch, self._stream)

    def _replay(self, segment: Segment) -> None:
        if segment.graph is None:
            self._driver.begin_capture(self._stream)
            try:
                self._launch(segment)
            except BaseException:  # an interrupt, too, must not leave the stream capturing
                with contextlib.suppress(FusecError):
                    self._driver.end_capture(self._stream)
                raise
            segment.graph = self._driver.end_capture(self._stream)
            if segment.graph is None:
                self._graphs = False
                return
        self._driver.replay(segment.graph, self._stream)

    def _run_timed(self, segment: Segment, times: list[StepTime]) -> None:
        driver = self._driver
        while len(self._events) <= len(segment.launches):
            self._events.append(driver.event())
        events = self._events[: len(segment.launches) + 1]
        driver.record(events[0], self._stream)
        for launch, event in zip(segment.launches, events[1:], strict=True):
            driver.launch(launch, self._stream)
            driver.record(event, self._stream)
        driver.wait(events[-1])
        for index, begin, end in zip(segment.steps, events, events[1:], strict=False):
            step = self._steps[index]
            seconds = driver.elapsed_ms(begin, end) / 1e3
            times.append(StepTime(step.node, step.op, step.kernel, seconds))

    def _run_onnx(self, call: OnnxCall, bases: Sequence[int], times: list[StepTime] | None) -> None:
        """Bring the operands to the host, run there, and take the results back."""

        def array(place: Place) -> Storage:
            return new_array(place.spec.dtype, place.shape)

        def address(place: Place) -> int:
            return bases[place.buffer] + place.offset

        begin = time.perf_counter()
        inputs = [(place, array(place)) for place in call.inputs]
        outputs = [(place, array(place)) for place in call.outputs]
        for place, value in inputs:
            self._driver.download(_raw(value), address(place), self._stream)
        self._driver.synchronize(self._stream)
        self._onnx[call.step.model].run(
            [(place.spec, place.shape, value.ctypes.data) for place, value in inputs],
            [(place.spec, place.shape, value.ctypes.data) for place, value in outputs],
            call.step.node,
        )
        for place, value in outputs:
            self._driver.upload(address(place), _raw(value), self._stream)
        self._driver.synchronize(self._stream)
        if times is not None:
            seconds = time.perf_counter() - begin
            times.append(StepTime(call.step.node, call.step.op, "onnxruntime", seconds))

    def _run_external(
        self, call: ExternalCallPlace, bases: Sequence[int], times: list[StepTime] | None
    ) -> None:
        begin = time.perf_counter()
        addresses = [bases[place.buffer] + place.offset for place in call.operands]
        operands = list(zip(call.operands, addresses, strict=True))
        call_external(self._external[call.index], operands, self._driver, self._stream)
        if times is not None:
            self._driver.synchronize(self._stream)
            seconds = time.perf_counter() - begin
            times.append(StepTime(call.step.node, call.step.op, call.step.kernel, seconds))

    def _receive(self, plan: GpuPlan) -> dict[str, Storage]:
        """The outputs, each in memory of its own."""
        host = self._workspace.host
        for buffer, place in plan.errors.items():
            self._driver.download(host[place], plan.bases[buffer], self._stream)
        for binding, place in zip(self.program.outputs, plan.outputs, strict=True):
            self._driver.download(host[place], plan.bases[binding.buffer], self._stream)
        try:
            self._driver.synchronize(self._stream)
        except CodeError as error:
            raise self._failed(plan, error) from None
        outputs: dict[str, Storage] = {}
        for binding, place, shape in zip(
            self.program.outputs, plan.outputs, plan.layout.output_shapes, strict=True
        ):
            array = new_array(binding.spec.dtype, shape)
            _raw(array)[:] = host[place]
            outputs[binding.spec.name] = array
        return outputs

    def _check_errors(self, plan: GpuPlan) -> None:
        """Say what a kernel reported.

        Raises:
            InputError: an index is out of range.
        """
        for buffer, place in plan.errors.items():
            word = int(self._workspace.host[place].view("<i8")[0])
            if not word:
                continue
            index, bound = struct.unpack("<ii", struct.pack("<q", word))
            raise index_error(index, bound, self._users(buffer))

    def _users(self, buffer: int) -> str:
        """The steps that a buffer is handed to."""
        buffers = self.program.pointer_buffers
        users = [
            f"{step.node} ({step.op})"
            for step in self._steps
            if buffer in buffers[step.pointers.start : step.pointers.stop]
        ]
        return ", or ".join(users[:3]) + (f", or {len(users) - 3} more" if users[3:] else "")

    def _failed(self, plan: GpuPlan, error: CodeError) -> CodeError:
        launches = [launch for segment in plan.segments for launch in segment.launches]
        detail: tuple[str, ...] = ()
        if launches:
            ends = f"from {launches[0].at} to {launches[-1].at}"
            detail = (f"among {len(launches)} kernels, {ends}",)
        return CodeError(
            str(error),
            at=error.at,
            detail=detail,
            hint="set `HIP_LAUNCH_BLOCKING=1` or `CUDA_LAUNCH_BLOCKING=1` to see which one it is",
        )


def _raw(array: Storage) -> Bytes:
    return array.reshape(-1).view(np.uint8)
