"""What a run on a device does for one combination of sizes: segments of launches, and host calls.

Every launch has its geometry, its argument block and the ranges of its buffers; addresses are those
of the workspace as it was when they were resolved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fusec.diagnostics import InputError
from fusec.runtime.driver import KernelLaunch
from fusec.runtime.errors import OutOfBoundsError
from fusec.runtime.gpu_memory import ALIGNMENT, aligned
from fusec.runtime.layout import Layout, Place, StridedPlace, place, strided_place
from fusec.runtime.steps import ExternalStep, LaunchStep, OnnxStep, Program

MOST_GROUPS = ((1 << 31) - 1, 65535, 65535)
"""Work groups along each axis that every device takes."""

MOST_LANES = (1 << 32) - 1
"""Lanes of all work groups along an axis that an AMD GPU takes."""

NEVER = -1
"""The number of moves of a workspace for which nothing has been resolved."""


@dataclass(slots=True)
class Segment:
    """Launches with nothing between them.

    Attributes:
        steps: indexes of the launches in the program, those with an empty grid left out.
        launches: the same, resolved.
        graph: of the driver, once they have been captured.
    """

    steps: tuple[int, ...]
    launches: tuple[KernelLaunch, ...] = ()
    graph: int | None = None


@dataclass(frozen=True, slots=True)
class OnnxCall:
    """A step that onnxruntime runs on the host."""

    step: OnnxStep
    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class ExternalCallPlace:
    """A step that a library runs, by its index among those of the program."""

    step: ExternalStep
    index: int
    operands: tuple[StridedPlace, ...]


Part: TypeAlias = Segment | OnnxCall | ExternalCallPlace


@dataclass(slots=True)
class GpuPlan:
    """A program for one combination of sizes.

    Attributes:
        layout: sizes, places and parameters.
        offsets: of each buffer in the workspace; 0 for weights.
        device_bytes: that the workspace needs on the device.
        host_bytes: that it needs in pinned memory.
        inputs: where each input lies in pinned memory.
        outputs: where each output lies in pinned memory.
        errors: where each error word lies in pinned memory, by buffer.
        parts: what to do, in order.
        bases: the address of each buffer, once the launches have been resolved.
        moves: of the workspace when the launches were resolved.
        runs: how often it has run.
    """

    layout: Layout
    offsets: NDArray[np.int64]
    device_bytes: int
    host_bytes: int
    inputs: tuple[slice, ...]
    outputs: tuple[slice, ...]
    errors: dict[int, slice]
    parts: tuple[Part, ...]
    bases: tuple[int, ...] = ()
    moves: int = NEVER
    runs: int = 0

    @property
    def segments(self) -> list[Segment]:
        """The parts that are launches."""
        return [part for part in self.parts if isinstance(part, Segment)]


@dataclass(frozen=True, slots=True)
class Packing:
    """Where the arguments of all launches lie, as if their argument blocks followed each other.

    Attributes:
        blocks: the part of each launch.
        pointers: where each pointer goes.
        wide: indexes of the parameters of 8 bytes, and where they go.
        narrow: indexes of the parameters of 4 bytes, and where they go.
    """

    blocks: tuple[slice, ...]
    pointers: NDArray[np.int64]
    wide: tuple[NDArray[np.int64], NDArray[np.int64]]
    narrow: tuple[NDArray[np.int64], NDArray[np.int64]]

    @staticmethod
    def of(steps: Sequence[LaunchStep]) -> Packing:
        """For the launches of a program, whose operands and parameters are in their order."""
        ends = list(accumulate((step.kernarg_bytes for step in steps), initial=0))
        pointers: list[int] = []
        params: dict[int, tuple[list[int], list[int]]] = {4: ([], []), 8: ([], [])}
        for step, begin in zip(steps, ends, strict=False):
            split = len(step.pointers)
            pointers += [begin + offset for offset, _ in step.arguments[:split]]
            for index, (offset, size) in zip(step.params, step.arguments[split:], strict=True):
                params[size][0].append(index)
                params[size][1].append(begin + offset)
        narrow, wide = (
            (np.array(indexes, np.int64), np.array(places, np.int64))
            for indexes, places in params.values()
        )
        blocks = tuple(
            slice(begin, begin + step.kernarg_bytes)
            for step, begin in zip(steps, ends, strict=False)
        )
        return Packing(blocks, np.array(pointers, np.int64), wide, narrow)

    def packed(
        self, pointers: NDArray[np.int64], params: NDArray[np.int64], at: str
    ) -> NDArray[np.uint8]:
        """All argument blocks.

        Args:
            pointers: every address of every launch.
            params: every parameter of every launch.
            at: the program, for messages.

        Raises:
            InputError: a number does not fit in 4 bytes.
        """
        size = self.blocks[-1].stop if self.blocks else 0
        data = np.zeros(size, np.uint8)
        indexes, places = self.narrow
        numbers = params[indexes]
        outside = numbers != numbers.astype("<i4")
        if outside.any():
            raise InputError(
                f"a kernel takes a number in 4 bytes that is {numbers[int(np.argmax(outside))]} "
                "for these sizes",
                at=at,
                hint="give smaller batches",
            )
        _scatter(data, places, numbers.astype("<i4"))
        _scatter(data, self.wide[1], params[self.wide[0]])
        _scatter(data, self.pointers, pointers)
        return data


def new_plan(program: Program, layout: Layout) -> GpuPlan:
    """Place every buffer in the workspace: error words, inputs, outputs, and then the arena.

    Raises:
        OutOfBoundsError: the program does not hold together for these sizes.
    """
    offsets = np.zeros(len(program.buffers), np.int64)
    end = 0
    for kind in ("error", "input", "output"):
        for index, buffer in enumerate(program.buffers):
            if buffer.kind == kind:
                offsets[index] = end
                end += aligned(int(layout.sizes[index]))
    is_arena = np.array([buffer.kind == "arena" for buffer in program.buffers], np.bool_)
    offsets[is_arena] = end + layout.arena_offsets[is_arena]
    errors = [index for index, buffer in enumerate(program.buffers) if buffer.kind == "error"]
    held = [
        *errors,
        *(binding.buffer for binding in program.inputs),
        *(binding.buffer for binding in program.outputs),
    ]
    sizes = [int(layout.sizes[buffer]) for buffer in held]
    begins = list(accumulate(map(aligned, sizes), initial=0))
    host = [slice(begin, begin + size) for begin, size in zip(begins, sizes, strict=False)]
    inputs = len(errors) + len(program.inputs)
    return GpuPlan(
        layout=layout,
        offsets=offsets,
        device_bytes=max(ALIGNMENT, end + layout.arena_bytes),
        host_bytes=begins[-1],
        errors=dict(zip(errors, host, strict=False)),
        inputs=tuple(host[len(errors) : inputs]),
        outputs=tuple(host[inputs:]),
        parts=_parts(program, layout),
    )


def resolve(
    plan: GpuPlan,
    program: Program,
    packing: Packing,
    functions: Sequence[int],
    bases: NDArray[np.int64],
) -> None:
    """Give every launch of a plan its addresses; graphs of the old ones must have been freed.

    Args:
        plan: to change.
        program: that it is for.
        packing: of the launches of the program.
        functions: of the driver, for each of these launches.
        bases: the address of every buffer.
    """
    pointers = bases[program.pointer_buffers] + plan.layout.pointer_offsets
    data = packing.packed(pointers, plan.layout.params, program.at).tobytes()
    steps = [step for step in program.steps if isinstance(step, LaunchStep)]
    plan.bases = tuple(bases.tolist())
    ends = bases + plan.layout.sizes
    spans = list(zip(plan.bases, ends.tolist(), strict=True))
    buffers = program.pointer_buffers.tolist()
    grids = plan.layout.grids.tolist()

    def launch(index: int) -> KernelLaunch:
        step = steps[index]
        grid = grids[step.grid.start : step.grid.stop]
        return KernelLaunch(
            function=functions[index],
            grid=(grid[0], grid[1], grid[2]),
            block=step.block,
            shared_bytes=step.shared_bytes,
            kernargs=data[packing.blocks[index]],
            arguments=step.arguments,
            spans=tuple(spans[buffers[pointer]] for pointer in step.pointers),
            at=f"{step.kernel} of {step.node} ({step.op})",
        )

    for segment in plan.segments:
        segment.launches = tuple(map(launch, segment.steps))


@dataclass(slots=True)
class _Parts:
    """Parts in the making."""

    done: list[Part] = field(default_factory=list)
    open: list[int] = field(default_factory=list)

    def close(self) -> None:
        if self.open:
            self.done.append(Segment(tuple(self.open)))
            self.open = []


def _check_grids(program: Program, layout: Layout) -> None:
    """Raise where a launch has more work groups than a device takes, or less than none."""
    grids = layout.grids.reshape(-1, 3)
    if (grids < 0).any():
        raise OutOfBoundsError(f"a grid of {grids.min()} work groups is none", at=program.at)
    steps = [step for step in program.steps if isinstance(step, LaunchStep)]
    most = np.broadcast_to(np.array(MOST_GROUPS), grids.shape)
    if program.arch.startswith("gfx"):
        lanes = np.array([step.block for step in steps], np.int64).reshape(-1, 3)
        most = np.minimum(most, MOST_LANES // lanes)
    outside = (grids > most).any(axis=1)
    if outside.any():
        index = int(np.argmax(outside))
        step, sizes = steps[index], " x ".join(map(str, grids[index].tolist()))
        raise InputError(
            f"`{step.kernel}` of `{step.node}` would need {sizes} work groups for these sizes, "
            "more than a device takes",
            at=program.at,
            hint="give smaller batches",
        )


def _parts(program: Program, layout: Layout) -> tuple[Part, ...]:
    _check_grids(program, layout)
    filled = [all(grid) for grid in layout.grids.reshape(-1, 3).tolist()]
    parts = _Parts()
    launches = externals = 0
    for step in program.steps:
        if isinstance(step, LaunchStep):
            if filled[launches]:
                parts.open.append(launches)
            launches += 1
            continue
        parts.close()
        if isinstance(step, ExternalStep):
            places = tuple(strided_place(program, operand, layout) for operand in step.operands)
            parts.done.append(ExternalCallPlace(step, externals, places))
            externals += 1
        elif isinstance(step, OnnxStep):
            inputs, outputs = (
                tuple(place(program, operand, layout) for operand in operands)
                for operands in (step.inputs, step.outputs)
            )
            parts.done.append(OnnxCall(step, inputs, outputs))
    parts.close()
    return tuple(parts.done)


def _scatter(
    data: NDArray[np.uint8], places: NDArray[np.int64], numbers: NDArray[np.generic]
) -> None:
    """Write each number, in its own bytes, to its place."""
    size = numbers.dtype.itemsize
    raw = numbers.reshape(-1, 1).view(np.uint8)
    data[places[:, None] + np.arange(size)] = raw
