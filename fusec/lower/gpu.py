"""Lowering to a GPU: kernels where there are any, and the list of what has none yet.

Views cost nothing: a kernel reads a transposed, sliced or reshaped value where it lies, if its
rows are evenly spaced.  What no kernel computes is left to the host, which is an error unless it
was allowed: a model that falls back in silence is the outage that fusec exists to prevent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fusec.diagnostics import InternalError, UnsupportedError
from fusec.ir import Graph, Node, TensorType
from fusec.kernels.external.call import ExternalCall
from fusec.kernels.launch import Call, HipSource, Launch, Storage, TritonSource, dense_strides
from fusec.kernels.registry import Choice, Kernel, choose
from fusec.link.gpu_kernel import GpuKernel
from fusec.lower.memory_plan import largest_sizes
from fusec.lower.program import SCHEMA, size_json
from fusec.lower.storage import VIEWS, dense, viewed
from fusec.symbolic import Dim, evaluate
from fusec.target import Target


@dataclass(frozen=True, slots=True)
class HostNode:
    """A node that no GPU kernel computes, and why."""

    op: str
    node: str
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class GpuStep:
    """A launch of the kernel that was chosen for a node, and what makes its code object."""

    node: Node
    kernel: Kernel
    launch: Launch
    source: TritonSource | HipSource


@dataclass(frozen=True, slots=True)
class ExternalStep:
    """A call of a library that is installed beside the artifact, for a node."""

    node: Node
    kernel: Kernel
    launch: Launch
    call: ExternalCall


@dataclass(frozen=True, slots=True)
class GpuProgram:
    """What a GPU target runs, before code objects are built.

    Attributes:
        graph: what was lowered.
        target: for what.
        order: every step: a launch, a call of a library, or a node that is left to the host.
        buffers: size in bytes of each buffer, by number, and the value it holds.
        outputs: where the outputs of the graph lie.
        choices: by the name of each node that needs a kernel: the kernel, and those that were asked
            before it, each with the reason why it cannot compute the node.
    """

    graph: Graph
    target: Target
    order: tuple[GpuStep | ExternalStep | HostNode, ...]
    buffers: tuple[tuple[str, Dim], ...]
    outputs: tuple[Storage, ...]
    choices: Mapping[str, Choice]

    @property
    def steps(self) -> tuple[GpuStep, ...]:
        """The launches."""
        return tuple(step for step in self.order if isinstance(step, GpuStep))

    @property
    def external(self) -> tuple[ExternalStep, ...]:
        """The calls of libraries."""
        return tuple(step for step in self.order if isinstance(step, ExternalStep))

    @property
    def host(self) -> tuple[HostNode, ...]:
        """The nodes that are left to the host."""
        return tuple(step for step in self.order if isinstance(step, HostNode))

    @property
    def launches(self) -> int:
        """Launches and calls of libraries at the largest sizes.

        Of launches that serve a range of sizes each, those of other sizes have an empty grid.
        """
        sizes = largest_sizes(self.graph.symbols)
        launched = [
            step for step in self.steps if all(evaluate(size, sizes) for size in step.launch.grid)
        ]
        return len(launched) + len(self.external)

    def document(
        self, built: Mapping[TritonSource | HipSource, GpuKernel], entry: Callable[[GpuKernel], str]
    ) -> dict[str, object]:
        """The program as JSON; `entry` names the module that holds a kernel."""

        def document(step: GpuStep | ExternalStep | HostNode) -> dict[str, object]:
            if isinstance(step, HostNode):
                return _host_step(step)
            if isinstance(step, ExternalStep):
                return _external_step(step)
            kernel = built[step.source]
            return _launch_step(step, kernel, entry(kernel))

        return {
            "schema": SCHEMA,
            "target": self.target.name,
            "arch": self.target.arch,
            "symbols": {name: [low, high] for name, (low, high) in self.graph.symbols.items()},
            "inputs": list(self.graph.inputs),
            "outputs": [
                {"name": name, **_place(storage)}
                for name, storage in zip(self.graph.output_names, self.outputs, strict=True)
            ],
            "buffers": [self._buffer(value, size) for value, size in self.buffers],
            "steps": [document(step) for step in self.order],
        }

    def _buffer(self, value: str, size: Dim) -> dict[str, object]:
        held: dict[str, object] = {"value": value, "bytes": size_json(size)}
        weight = self.graph.parameters.get(value)
        return held if weight is None else {**held, "weight": weight.name}


def lower_gpu(
    graph: Graph, target: Target, *, allow_host_fallback: bool, providers: Sequence[Kernel] = ()
) -> GpuProgram:
    """Choose a kernel for every node that has one.

    Args:
        graph: rewritten for `target`.
        target: a GPU.
        allow_host_fallback: whether nodes without a kernel may be left to the host.
        providers: records that are asked before those of the registry: those of libraries that
            were asked for.

    Raises:
        UnsupportedError: there are such nodes, and they may not; it lists them.
    """
    lowering = _Lowering(graph, target, providers)
    for node in graph.nodes():
        lowering.add(node)
    program = GpuProgram(
        graph=graph,
        target=target,
        order=tuple(lowering.order),
        buffers=tuple(lowering.buffers),
        outputs=tuple(lowering.storages[value] for value in graph.outputs),
        choices=lowering.choices,
    )
    if program.host and not allow_host_fallback:
        raise _not_lowered(program)
    return program


class _Lowering:
    def __init__(self, graph: Graph, target: Target, providers: Sequence[Kernel]) -> None:
        self.graph = graph
        self.target = target
        self.providers = providers
        self.choices: dict[str, Choice] = {}
        self.order: list[GpuStep | ExternalStep | HostNode] = []
        self.buffers: list[tuple[str, Dim]] = []
        self.storages: dict[str, Storage] = {}
        for value in (*graph.inputs, *graph.parameters):
            self._allocate(value)

    def add(self, node: Node) -> None:
        if node.op in VIEWS and self._view(node):
            return
        for value in node.outputs:
            self._allocate(value)
        choice = choose(
            self.graph,
            node,
            self.target,
            self.providers,
            lambda kernel: self._laid_out_otherwise(node, kernel),
        )
        self.choices[node.name] = choice
        chosen = choice.kernel
        if chosen is None:
            self._leave(node, choice.reason or "no kernel computes it on a GPU yet")
            return
        inputs, outputs = (
            tuple(self.storages[value] for value in values)
            for values in (node.inputs, node.outputs)
        )
        call = Call(self.graph, node, self.target, inputs, outputs, self._scratch(node))
        for launch in chosen.launches(call):
            self.order.append(_step(node, chosen, launch))

    def _laid_out_otherwise(self, node: Node, kernel: Kernel) -> str | None:
        """Why `kernel` cannot read the operands of `node` where they lie, if it cannot."""
        values = (*node.inputs, *node.outputs)
        for value, layout in zip(values, kernel.layouts(self.graph, node), strict=True):
            if not self.storages[value].meets(layout):
                return f"`%{value}` is not laid out as it needs it"
        return None

    def _view(self, node: Node) -> bool:
        shape = self.graph.type(node.output).shape
        storage = self.storages[node.inputs[0]]
        seen = viewed(storage, node.op, node.attrs, shape, self.graph.symbols)
        if seen is not None:
            self.storages[node.output] = seen
        return seen is not None

    def _allocate(self, value: str) -> None:
        kind = self.graph.type(value)
        strides = dense_strides(kind.memory_shape)
        self.storages[value] = Storage(len(self.buffers), kind.dtype, kind.shape, strides)
        self.buffers.append((value, kind.nbytes))

    def _scratch(self, node: Node) -> Callable[[str, tuple[Dim, ...]], Storage]:
        """Gives buffers between the launches of `node`."""

        def allocate(dtype: str, shape: tuple[Dim, ...]) -> Storage:
            storage = dense(len(self.buffers), dtype, shape)
            self.buffers.append((f"{node.name}.scratch", TensorType(dtype, shape).nbytes))
            return storage

        return allocate

    def _leave(self, node: Node, reason: str) -> None:
        self.order.append(HostNode(node.op, node.name, node.origin.path, reason))


def _step(node: Node, kernel: Kernel, launch: Launch) -> GpuStep | ExternalStep:
    if isinstance(launch.code, ExternalCall):
        return ExternalStep(node, kernel, launch, launch.code)
    if launch.code is None:
        raise InternalError(f"`{kernel.name}` does not say what makes `{launch.symbol}`")
    return GpuStep(node, kernel, launch, launch.code)


def _not_lowered(program: GpuProgram) -> UnsupportedError:
    counts = Counter(node.op for node in program.host)
    first = {node.op: node for node in reversed(program.host)}
    total = len(program.host) + len(program.steps)
    lines = [
        f"{count} x {op}, first at {first[op].path or first[op].node}: {first[op].reason}"
        for op, count in counts.most_common()
    ]
    target = program.target.name
    return UnsupportedError(
        f"{len(program.host)} of {total} operations are not lowered for `{target}` yet",
        at=program.graph.name,
        detail=tuple(lines),
        hint="compile for `cpu`, or allow these to run on the host with `--allow-host-fallback`",
    )


def _host_step(step: HostNode) -> dict[str, object]:
    return {"kind": "host", "op": step.op, "node": step.node, "reason": step.reason}


def _float_json(value: float) -> float | str:
    """`value`, or its name, `inf`, `-inf` or `nan`, for which JSON has no number."""
    return value if math.isfinite(value) else str(value)


def _external_step(step: ExternalStep) -> dict[str, object]:
    return {
        "kind": "external",
        "op": step.node.op,
        "node": step.node.name,
        "kernel": step.kernel.name,
        "call": step.call.document(),
        "operands": [_place(storage) for storage in step.launch.operands],
    }


def _place(storage: Storage) -> dict[str, object]:
    """Where a value lies: its offset in bytes, its strides in elements."""
    return {
        "buffer": storage.buffer,
        "offset": size_json(storage.byte_offset),
        "dtype": storage.dtype,
        "shape": [size_json(size) for size in storage.shape],
        "strides": [size_json(stride) for stride in storage.strides],
    }


def _launch_step(step: GpuStep, kernel: GpuKernel, module: str) -> dict[str, object]:
    return {
        "kind": "launch",
        "op": step.node.op,
        "node": step.node.name,
        "kernel": step.kernel.name,
        "module": module,
        "symbol": kernel.symbol,
        "grid": [size_json(size) for size in step.launch.grid],
        "block": [kernel.threads, 1, 1],
        "shared_bytes": kernel.shared_bytes,
        "buffers": [
            [storage.buffer, size_json(storage.byte_offset)] for storage in step.launch.operands
        ],
        "params": [
            {"f32": _float_json(param)} if isinstance(param, float) else size_json(param)
            for param in step.launch.params
        ],
        "arguments": [list(argument) for argument in kernel.arguments],
        "kernarg_bytes": kernel.kernarg_bytes,
    }
