"""Every step of a run, held against what its nodes mean.

Each value is computed anew, in float64, from what the device itself made of the values before it:
an error does not spread, and a router that is torn between two experts is no matter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusec.dtypes import DTYPES
from fusec.ir import Node
from fusec.ir.interpret import bind_symbols, computed, parameter_value, widen
from fusec.kernels.launch import Storage
from fusec.lower.program import buffer_numbers
from fusec.lower.steps import KernelStep, Lowered
from fusec.lower.storage import VIEWS
from fusec.runtime.layout import Read
from fusec.runtime.model import Model
from fusec.symbolic import evaluate
from fusec.verify.measures import measured
from fusec.verify.tolerances import CODES, CODES_THAT_DIFFER, TOLERANCES, format_of


@dataclass(frozen=True, slots=True)
class StepError:
    """How far a value that a step made is from what its node means.

    Attributes:
        value: its name.
        node: that makes it.
        op: of the node.
        step: the place of the step in the program.
        kernel: that the step runs.
        error: `largest`, or for codes and integers the share that differs.
        allowed: how large that may be.
        largest: the largest difference relative to the largest element that is meant; infinite
            where one of both is not finite and the other is something else.
    """

    value: str
    node: str
    op: str
    step: int
    kernel: str
    error: float
    allowed: float
    largest: float

    @property
    def is_right(self) -> bool:
        """Whether the value is within what is allowed."""
        return self.error <= self.allowed


def step_errors(
    lowered: Lowered, model: Model, inputs: Mapping[str, Any], dtype: str
) -> list[StepError]:
    """Run `model` step by step; every value that it makes, in the order of the steps.

    Args:
        lowered: what the model's program was made of.
        model: loaded on some device.
        inputs: for one run, as `Model.run` takes them.
        dtype: the narrowest that the model computes in, a key of `TOLERANCES`.
    """
    held = _Held(lowered, inputs, dtype)
    model.watch(inputs, held)
    return held.found


class _Held:
    """Is called after each step, with memory as the step left it."""

    def __init__(self, lowered: Lowered, inputs: Mapping[str, Any], dtype: str) -> None:
        self.lowered = lowered
        self.graph = lowered.graph
        self.dtype = dtype
        graph = self.graph
        self.symbols = bind_symbols(graph, {name: inputs[name].shape for name in graph.inputs})
        self.known = {
            name: widen(np.asarray(inputs[name]), graph.type(name).dtype) for name in graph.inputs
        }
        self.meant: dict[str, Any] = {}
        self.found: list[StepError] = []
        self.number = buffer_numbers(lowered)
        self.ready = self._ready()

    def __call__(self, step: int, read: Read) -> None:
        for value in self.ready.get(step, ()):
            got = self._read(self.lowered.storages[value], read)
            self.found.append(self._compared(value, got, step))
            self.known[value] = got

    def _ready(self) -> dict[int, list[str]]:
        """The values that are complete after each step: those whose last part it writes."""
        writers: dict[int, list[int]] = defaultdict(list)
        for index, step in enumerate(self.lowered.steps):
            if isinstance(step, KernelStep):
                if all(evaluate(size, self.symbols) for size in step.launch.grid):
                    for buffer in step.written:
                        writers[buffer].append(index)
            else:
                for _, storage in step.outputs:
                    writers[storage.buffer].append(index)
        members = self._members()
        ready: dict[int, list[str]] = defaultdict(list)
        for node in self.graph.nodes():
            if node.op in VIEWS:
                continue
            for value in node.outputs:
                place = self.lowered.storages.get(value)
                if place is None or not (steps := writers.get(place.buffer)):
                    continue
                own = [index for index in steps if node.name in members[index]]
                ready[(own or steps)[-1]].append(value)
        return ready

    def _members(self) -> list[frozenset[str]]:
        """The nodes that each step computes."""
        together: dict[str, frozenset[str]] = {}
        for group in self.lowered.grouping.steps:
            names = frozenset(node.name for node in getattr(group, "nodes", ()))
            together |= dict.fromkeys(names, names)
        nodes = [
            step.node.name if isinstance(step, KernelStep) else step.residual.node
            for step in self.lowered.steps
        ]
        return [together.get(name, frozenset((name,))) for name in nodes]

    def _read(self, storage: Storage, read: Read) -> Any:
        dtype = DTYPES[storage.dtype]
        shape = [evaluate(size, self.symbols) for size in storage.shape]
        strides = [evaluate(stride, self.symbols) for stride in storage.strides]
        reach = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True) if n)
        offset = evaluate(storage.byte_offset, self.symbols)
        size = reach * dtype.itemsize if 0 not in shape else 0
        raw = read(self.number[storage.buffer], offset, size)
        if not size:
            return widen(np.zeros(shape, dtype.numpy), storage.dtype)
        steps = [stride * dtype.itemsize for stride in strides]
        array = np.lib.stride_tricks.as_strided(raw.view(dtype.numpy), shape, steps)
        return widen(array.copy(), storage.dtype)

    def _compared(self, value: str, got: Any, step: int) -> StepError:
        node = self.graph.producer(value)
        assert node is not None  # inputs are known before the first step
        found = measured(got, self._computed(node)[value])
        largest = float("inf") if found.misplaced else found.error
        dtype = self.graph.type(value).dtype
        if DTYPES[dtype].is_float and dtype != "e8m0" and format_of(dtype) not in CODES:
            error, allowed = largest, TOLERANCES[self.dtype].step
        else:
            error, allowed = 1.0 if found.misplaced else found.differing, CODES_THAT_DIFFER
        made = self.lowered.steps[step]
        kernel = made.kernel.name if isinstance(made, KernelStep) else "onnxruntime"
        return StepError(value, node.name, node.op, step, kernel, error, allowed, largest)

    def _value(self, value: str) -> Any:
        if value in self.known:
            return self.known[value]
        if value in self.graph.parameters:
            return parameter_value(self.graph.parameters[value])
        if value not in self.meant:
            node = self.graph.producer(value)
            assert node is not None  # an input is known
            self.meant.update(self._computed(node))
        return self.meant[value]

    def _computed(self, node: Node) -> dict[str, Any]:
        operands = [self._value(value) for value in node.inputs]
        return computed(self.graph, node, operands, self.symbols)
