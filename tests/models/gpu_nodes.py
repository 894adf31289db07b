"""Runs a program on the emulated device and holds every value against what its node means.

Each value is computed anew, in float64, from what the device made of the values before it: an error
does not spread, and a router that is torn between two experts is no matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fusec
from fusec.dtypes import DTYPES
from fusec.emulator import Emulator
from fusec.ir.interpret import _known, _run, bind_symbols, widen
from fusec.kernels.launch import Storage
from fusec.lower import lowering
from fusec.lower.steps import KernelStep
from fusec.lower.storage import VIEWS
from fusec.runtime.driver import KernelLaunch
from fusec.symbolic import evaluate


@dataclass(frozen=True)
class Difference:
    """How far a value that a launch made is from what its node means.

    Attributes:
        value: its name.
        op: of its node.
        at: the launch.
        error: the largest difference, relative to the largest element that is meant.
    """

    value: str
    op: str
    at: str
    error: float


class Watched:
    """A model folder, compiled with its lowering at hand."""

    def __init__(self, source: Path, artifact: Path, target: str) -> None:
        self.folder = source
        with _kept() as kept:
            self.compiled = fusec.compile(source, artifact, target=target)
        self.lowering = kept[-1]
        self.device = Emulator.for_artifact(artifact, target)
        self.model = fusec.load(artifact, driver=self.device, graphs=False)

    def differences(self, inputs: Mapping[str, Any]) -> Iterator[Difference]:
        """Run the model; every value, in the order in which launches make them."""
        graph = self.lowering.graph
        self.symbols = bind_symbols(graph, {name: inputs[name].shape for name in graph.inputs})
        self.known = {
            name: widen(np.asarray(inputs[name]), graph.type(name).dtype) for name in graph.inputs
        }
        self.meant: dict[str, Any] = {}
        self.found: list[Difference] = []
        steps = [
            step
            for step in self.lowering.steps
            if isinstance(step, KernelStep)
            and all(evaluate(size, self.symbols) for size in step.launch.grid)
        ]
        places: dict[int, list[str]] = {}
        for node in graph.nodes():
            for value in node.outputs:
                storage = self.lowering.storages.get(value)
                if storage is not None and node.op not in VIEWS:
                    places.setdefault(storage.buffer, []).append(value)
        last = {step.node.name: index for index, step in enumerate(steps)}
        remaining = iter(enumerate(steps))
        begins: dict[int, int] = {}
        written: set[int] = set()
        run = self.device.launch

        def launch(each: KernelLaunch, stream: int) -> None:
            run(each, stream)
            index, step = next(remaining)
            for storage, span in zip(step.launch.operands, each.spans, strict=True):
                begins[storage.buffer] = span[0]
            written.update(step.written)
            if last[step.node.name] == index:
                own = {value for node in self._nodes(step) for value in node.outputs}
                for buffer in sorted(written & begins.keys()):
                    for value in own.intersection(places.get(buffer, ())) - self.known.keys():
                        got = self._read(self.lowering.storages[value], begins[buffer])
                        self.known[value] = self._compared(value, got, each.at)
                written.clear()

        self.device.launch = launch  # type: ignore[method-assign,assignment]
        try:
            self.model.run(dict(inputs))
        finally:
            self.device.launch = run  # type: ignore[method-assign]
        return iter(self.found)

    def _nodes(self, step: KernelStep) -> list[Any]:
        for group in self.lowering.grouping.steps:
            nodes = getattr(group, "nodes", None)
            members = nodes if nodes is not None else (group.node,)
            if any(node.name == step.node.name for node in members):
                return list(members)
        return [step.node]

    def _read(self, storage: Storage, begin: int) -> Any:
        dtype = DTYPES[storage.dtype]
        shape = [evaluate(size, self.symbols) for size in storage.shape]
        strides = [evaluate(stride, self.symbols) for stride in storage.strides]
        reach = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True) if n)
        offset = evaluate(storage.byte_offset, self.symbols)
        raw = np.zeros(reach * dtype.itemsize, np.uint8)
        self.device.download(raw, begin + offset, 0)
        steps = [stride * dtype.itemsize for stride in strides]
        array = np.lib.stride_tricks.as_strided(raw.view(dtype.numpy), shape, steps)
        return widen(array.copy(), storage.dtype)

    def _compared(self, value: str, got: Any, at: str) -> Any:
        node = self.lowering.graph.producer(value)
        wanted = self._computed(node)[value]
        finite = np.isfinite(np.asarray(wanted, np.float64))
        wrong = np.where(finite, np.abs(got.astype(np.float64) - wanted), got != wanted)
        largest = float(np.abs(np.where(finite, wanted, 0)).max(initial=0)) or 1.0
        error = float(np.nan_to_num(wrong, nan=np.inf).max(initial=0)) / largest
        self.found.append(Difference(value, node.op, at, error))
        return got

    def _value(self, value: str) -> Any:
        graph = self.lowering.graph
        if value in self.known:
            return self.known[value]
        if value not in self.meant:
            if value in graph.parameters:
                weight = graph.parameters[value]
                logical = tuple(slice(size) for size in weight.shape)
                array = np.asarray(weight.load())[logical]
                self.meant[value] = widen(array, weight.type.dtype)
            else:
                self.meant.update(self._computed(graph.producer(value)))
        return self.meant[value]

    def _computed(self, node: Any) -> dict[str, Any]:
        graph = self.lowering.graph
        operands = [self._value(value) for value in node.inputs]
        types = tuple(_known(graph.type(value), self.symbols) for value in node.outputs)
        with np.errstate(all="ignore"):
            made = _run(node, operands, types, self.symbols)
        return dict(zip(node.outputs, made, strict=True))


@contextmanager
def _kept() -> Iterator[list[Any]]:
    """Every lowering that is made meanwhile."""
    kept: list[Any] = []
    run = lowering._Lowering.run

    def keeping(self: Any) -> Any:
        kept.append(self)
        return run(self)

    lowering._Lowering.run = keeping  # type: ignore[method-assign]
    try:
        yield kept
    finally:
        lowering._Lowering.run = run  # type: ignore[method-assign]
