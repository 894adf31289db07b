"""From a graph to a program: kernels chosen, code generated, memory planned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from fusec import symbolic
from fusec.diagnostics import InputError, InternalError, UnsupportedError
from fusec.dtypes import DTYPES
from fusec.ir import OPS, Graph, Node, Weight
from fusec.ir.interpret import encoded
from fusec.ir.ops import is_opaque
from fusec.ir.types import dim_attr, dims_attr, int_attr, ints_attr
from fusec.ir.weights import from_array
from fusec.kernels.launch import Call, Layout, Storage
from fusec.kernels.registry import Choice, Kernel, choose
from fusec.lower.backend import Backend, CpuBackend, GpuBackend
from fusec.lower.costs import launch_costs, region_cost, residual_cost
from fusec.lower.fusion import (
    COPIES,
    Group,
    Grouping,
    Single,
    generated_reason,
    group_nodes,
    is_number,
    single_value,
)
from fusec.lower.host_fallback import arch_rejection
from fusec.lower.memory_plan import Lifetime, MemoryPlan, plan_memory
from fusec.lower.regions import (
    BuiltRegion,
    JoinedAxes,
    Memory,
    copy_region,
    fill_region,
    free_region,
    group_region,
)
from fusec.lower.steps import Buffer, KernelStep, Lowered, OnnxStep, Residual, Step, step_buffers
from fusec.lower.storage import VIEWS, dense, merged_axes, of_type, ordered, viewed
from fusec.symbolic import Dim, Expr
from fusec.target import Target

MAX_STORED = 1 << 14
"""Elements up to which a constant of one number is stored when something reads it in memory."""


def lower(
    graph: Graph,
    target: Target,
    *,
    allow_host_fallback: bool = False,
    providers: Sequence[Kernel] = (),
) -> Lowered:
    """Lower `graph` for `target`.

    Nodes that neither a kernel nor generated code computes are left to onnxruntime and listed in
    `residual`, with every reason.

    Args:
        graph: rewritten for `target`.
        target: for what.
        allow_host_fallback: whether a program for a GPU may leave nodes to the host: a model that
            falls back in silence is the outage that fusec exists to prevent.
        providers: records that are asked before those of the registry: those of libraries that
            were asked for, and of extensions.

    Raises:
        UnsupportedError: a size depends on data, or nodes are left to the host and may not be.
    """
    _check_sizes(graph)
    backend: Backend = CpuBackend(providers)
    if target.is_gpu:
        backend = GpuBackend(graph, target, providers)
    lowered = _Lowering(graph, target, backend).run()
    if target.is_gpu and lowered.residual and not allow_host_fallback:
        raise _not_lowered(lowered)
    return lowered


def _not_lowered(lowered: Lowered) -> UnsupportedError:
    residual = lowered.residual
    counts = Counter(node.op for node in residual)
    first = {node.op: node for node in reversed(residual)}
    total = len(residual) + len({step.node.name for step in lowered.kernel_steps})
    lines = [
        f"{count} x {op}, first at {first[op].path or first[op].node}: {first[op].reason}"
        for op, count in counts.most_common()
    ]
    if (rejection := arch_rejection(lowered.target)) is not None:
        lines.append(f"`{rejection.code}`: {rejection.reason}")
    return UnsupportedError(
        f"{len(residual)} of {total} operations are not lowered for `{lowered.target.name}` yet",
        at=lowered.graph.name,
        detail=tuple(lines),
        hint=_elsewhere(lowered.graph, [lowered.graph.node(node.node) for node in first.values()]),
    )


def _elsewhere(graph: Graph, nodes: Sequence[Node]) -> str:
    """What to do about nodes that a GPU does not run: who else runs all of them, if anybody."""
    # Takes the frontend's tables of ONNX, which lowering itself does without.
    from fusec.lower.residual import build_residual

    refused: list[Node] = []
    for node in nodes:
        try:
            build_residual(graph, node)
        except UnsupportedError:
            refused.append(node)
        except InputError:  # what it takes to tell is not installed
            continue
    for node in refused:
        if is_opaque(node.op):
            return f"change the model so that it does without `{node.op}`, which no target runs"
    if refused:
        return "compile for `cpu`"
    return "compile for `cpu`, or allow these to run on the host with `--allow-host-fallback`"


def _check_sizes(graph: Graph) -> None:
    """Every size follows from the sizes of the inputs.

    Raises:
        UnsupportedError: one depends on the values of a tensor.
    """
    known = {name for value in graph.inputs for name in _symbols(graph, value)}
    known |= {name for name, (least, most) in graph.symbols.items() if least == most}
    for node in graph.nodes():
        for value in node.outputs:
            if unknown := _symbols(graph, value) - known:
                raise UnsupportedError(
                    f"the size `{min(unknown)}` depends on data: `{node.op}` makes it",
                    at=node.origin.path or node.name,
                    hint="give the model a version of that part whose sizes follow from its inputs",
                )


def _symbols(graph: Graph, value: str) -> frozenset[str]:
    dims = graph.type(value).shape
    return frozenset(name for dim in dims for name in symbolic.symbols_of(dim))


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a concatenation: from `offset` along `axis` of the value `whole`."""

    whole: str
    axis: int
    offset: Dim


class _Lowering:
    def __init__(self, graph: Graph, target: Target, backend: Backend) -> None:
        self.graph = graph
        self.target = target
        self.backend = backend
        self.buffers: list[Buffer] = []
        self.steps: list[Step] = []
        self.storages: dict[str, Storage] = {}
        self.dense_copies: dict[Storage, Storage] = {}
        self.weights: dict[str, Weight] = {}
        self.weight_buffers: dict[str, int] = {}
        self.residual: list[Residual] = []
        self.choices: dict[str, Choice] = {}
        self.chosen: dict[str, Kernel] = {}
        self.error_buffer: int | None = None
        self.reasons: dict[str, str] = {}
        self.inputs: dict[str, int] = {}
        self.placed: dict[str, list[_Part]] = {}

    def run(self) -> Lowered:
        for name in self.graph.inputs:
            kind = self.graph.type(name)
            self.inputs[name] = self._buffer("input", kind.nbytes)
            self.storages[name] = of_type(self.inputs[name], kind)
        self.grouping: Grouping = group_nodes(self.graph, self._select)
        self._place_concat_operands()
        for step in self.grouping.steps:
            if isinstance(step, Group):
                self._group(step)
            else:
                self._single(step)
        outputs = tuple(self._output(value) for value in self.graph.outputs)
        plan = self._plan()
        return Lowered(
            graph=self.graph,
            target=self.target,
            buffers=tuple(self.buffers),
            steps=tuple(self.steps),
            plan=plan,
            inputs=self.inputs,
            outputs=outputs,
            weights=tuple(self.weights.values()),
            functions=tuple(self.backend.functions.values()),
            residual=tuple(self.residual),
            choices=self.choices,
            storages=self.storages,
            grouping=self.grouping,
        )

    # --- choosing ---------------------------------------------------------------------------

    def _select(self, node: Node) -> bool:
        """Whether code is generated for `node`; else a kernel is chosen, or a reason is kept."""
        definition = OPS.get(node.op)
        why_not = generated_reason(self.graph, node)
        if definition is not None and definition.elementwise and why_not is None:
            return True
        if is_opaque(node.op):
            self.reasons[node.name] = f"fusec does not know `{node.op}`"
            return False
        found = choose(self.graph, node, self.target, self.backend.providers)
        if found.kernel is not None:
            self.choices[node.name] = found
            self.chosen[node.name] = found.kernel
            return False
        if why_not is None:
            return True
        self.reasons[node.name] = found.reason or why_not
        return False

    def _place_concat_operands(self) -> None:
        """Let producers write straight into the parts of a concatenation."""
        for node in self.graph.nodes():
            if node.op != "concat":
                continue
            axis = int_attr(node.attrs, "axis") % self.graph.type(node.output).rank
            offset: Dim = 0
            for value in node.inputs:
                if self._writes_into(value, node):
                    self.placed.setdefault(value, []).append(_Part(node.output, axis, offset))
                offset = offset + self.graph.type(value).shape[axis]

    def _writes_into(self, value: str, concat: Node) -> bool:
        """Whether the step that makes `value` can write it into a part of `concat`."""
        step = self.grouping.step_of.get(value)
        if isinstance(step, Group):
            return True
        if step is None or concat.inputs.count(value) != 1 or not self._has_one_use(value):
            return False
        if step.node.op in COPIES:
            return step.node.op == "concat"
        kernel = self.chosen.get(step.node.name)
        if kernel is None or kernel.output_order(self.graph, step.node) is not None:
            return False
        return self._result_layout(kernel, step.node, value) != "contiguous"

    def _has_one_use(self, value: str) -> bool:
        return self.graph.use_count(value) == 1

    def _result_layout(self, kernel: Kernel, node: Node, value: str) -> Layout:
        layouts = kernel.layouts(self.graph, node)
        return layouts[len(node.inputs) + node.outputs.index(value)]

    def _preferred_order(self, value: str, layout: Layout) -> tuple[int, ...] | None:
        """The order of axes in which the only reader of `value` wants it, if it can be had."""
        users = self.graph.users(value)
        if layout == "contiguous" or len(users) != 1 or not self._has_one_use(value):
            return None
        if users[0].op != "transpose":
            return None
        order = ints_attr(users[0].attrs, "perm")
        # Rows stay rows, so that they are still written in one go.
        return order if order and order[-1] == len(order) - 1 else None

    # --- memory -----------------------------------------------------------------------------

    def _buffer(self, kind: str, size: Dim, name: str = "") -> int:
        self.buffers.append(Buffer(kind, size, name))
        return len(self.buffers) - 1

    def _new(self, value: str, order: tuple[int, ...] | None = None) -> Storage:
        """Room for a value that a step is about to write."""
        if value in self.storages:
            return self.storages[value]
        kind = self.graph.type(value)
        parts = self.placed.get(value, [])
        if parts and self._only_in_parts(value):
            storage = self._part_storage(value, parts[0])
        else:
            number = self._buffer("arena", kind.nbytes)
            if order is None:
                storage = of_type(number, kind)
            else:
                storage = ordered(number, kind.dtype, kind.shape, order)
        self.storages[value] = storage
        return storage

    def _only_in_parts(self, value: str) -> bool:
        """Whether nothing reads `value` but the concatenations into which it is written."""
        concats = {part.whole for part in self.placed[value]}
        return self.graph.use_count(value) == len(concats)

    def _part_storage(self, value: str, part: _Part) -> Storage:
        inside = self._new(part.whole)
        start = inside.offset + part.offset * inside.strides[part.axis]
        return replace(inside, shape=self.graph.type(value).shape, offset=start)

    def _places(self, value: str) -> list[Storage]:
        """Every place to which a generated kernel writes `value`."""
        places: list[Storage] = []
        parts = self.placed.get(value, [])
        if not parts or not self._only_in_parts(value):
            places.append(self._new(value, self._preferred_order(value, "strided")))
        for part in parts:
            places.append(self._part_storage(value, part))
        if value not in self.storages:
            self.storages[value] = places[0]
        return places

    def storage_of(self, value: str) -> Storage:
        """Where `value` can be read; copies and weights are made as needed."""
        known = self.storages.get(value)
        if known is not None:
            return known
        if value in self.graph.parameters:
            storage = self._weight(self.graph.parameters[value])
        else:
            storage = self._computed(value)
        self.storages[value] = storage
        return storage

    def _computed(self, value: str) -> Storage:
        node = self.graph.producer(value)
        if node is None:
            raise InternalError(f"`%{value}` has no place in memory")
        kind = self.graph.type(value)
        if node.op in VIEWS:
            source = self.storage_of(node.inputs[0])
            seen = viewed(source, node.op, node.attrs, kind.shape)
            if seen is None:
                copy = self._dense(source, node)
                seen = viewed(copy, node.op, node.attrs, kind.shape)
            if seen is None:
                raise InternalError(f"`{node.op}` of a dense value is not a view", at=node.name)
            return seen
        if node.op in ("constant", "full") and self._is_stored(node):
            return self._weight(constant_weight(node, self.graph))
        if value not in self.grouping.free:
            raise InternalError(f"`%{value}` is read before it is computed", at=node.name)
        target = self._new(value)
        self._launch(free_region(self.graph, self.grouping.free, value, target), node)
        return target

    def _is_stored(self, node: Node) -> bool:
        """Whether a constant is stored rather than written anew in each run."""
        elements = self.graph.type(node.output).elements
        if not isinstance(elements, int):
            return False
        held = single_value(node.attrs["value"])
        return not is_number(held) or (not isinstance(held, Expr) and elements <= MAX_STORED)

    def _joined(self, value: str) -> tuple[Storage, JoinedAxes] | None:
        """What `value` joins the axes of, if it could be read in its own shape only from a copy."""
        node = self.graph.producer(value)
        if value in self.storages or node is None or node.op != "reshape":
            return None
        source, shape = self.storage_of(node.inputs[0]), self.graph.type(value).shape
        if viewed(source, "reshape", {}, shape) is not None:
            return None
        joined = merged_axes(source.shape, shape)
        return None if joined is None else (source, joined)

    def _weight(self, weight: Weight, *, packed: bool = False) -> Storage:
        number = self.weight_buffers.get(weight.identity)
        if number is None:
            named = replace(weight, name=self._weight_name(weight.name))
            number = self._buffer("weight", weight.nbytes, named.name)
            self.weights[named.name] = named
            self.weight_buffers[weight.identity] = number
        if packed:
            return dense(number, "u8", (weight.nbytes,))
        return of_type(number, weight.type)

    def _weight_name(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self.weights:
            count += 1
            candidate = f"{name}.{count}"
        return candidate

    def _dense(self, storage: Storage, node: Node) -> Storage:
        """`storage` itself if it is dense, else a copy; one copy serves all readers."""
        if storage.is_contiguous:
            return storage
        known = self.dense_copies.get(storage)
        if known is None:
            size = symbolic.product(storage.shape) * DTYPES[storage.dtype].itemsize
            known = dense(self._buffer("arena", size), storage.dtype, storage.shape)
            self._launch(copy_region(self.graph, storage, known), node, "copy")
            self.dense_copies[storage] = known
        return known

    def _meeting(self, storage: Storage, layout: Layout, node: Node) -> Storage:
        return storage if storage.meets(layout) else self._dense(storage, node)

    # --- steps ------------------------------------------------------------------------------

    def _group(self, group: Group) -> None:
        memory = Memory(
            lambda value: value in self.grouping.in_memory,
            self.storage_of,
            self._joined,
            self._places,
        )
        built = group_region(self.graph, group, self.grouping.free, memory)
        if not built.written:
            return
        ops = "+".join(dict.fromkeys(node.op for node in group.nodes))
        nodes = tuple(node.name for node in group.nodes)
        op = ops if len(ops) <= 80 else ops[:77] + "..."
        self._launch(built, group.nodes[0], op, nodes if len(nodes) > 1 else ())

    def _launch(
        self, built: BuiltRegion, node: Node, op: str | None = None, nodes: tuple[str, ...] = ()
    ) -> None:
        op = op or node.op
        launch = self.backend.launch(built, f"{op} at {node.origin.path or node.name}")
        written = frozenset(built.storages[operand].buffer for operand in built.written)
        generated, over = self.backend.generated, built.overwritable()
        cost = region_cost(built)
        self.steps.append(KernelStep(launch, generated, node, op, written, cost, nodes, over=over))

    def _single(self, step: Single) -> None:
        node = step.node
        if node.op == "concat":
            self._concat(node)
        elif node.op == "pad":
            self._pad(node)
        elif node.op == "slice_scatter":
            self._slice_scatter(node)
        elif node.name in self.chosen:
            self._kernel(node, self.chosen[node.name])
        else:
            self._onnx(node)

    def _kernel(self, node: Node, kernel: Kernel) -> None:
        kernel = self._best_laid_out(node, kernel)
        inputs = self._kernel_inputs(node, kernel)
        outputs, copies = self._kernel_outputs(node, kernel)
        written = {place.buffer for place in outputs}
        scratch = partial(self._scratch, written)
        call = Call(self.graph, node, self.target, inputs, outputs, scratch, self._error)
        launches = kernel.launches(call)
        errors = () if self.error_buffer is None else (self.error_buffer,)
        for launch, cost in zip(launches, launch_costs(call, launches, errors), strict=True):
            last = None
            if launch.scratch_bytes != 0:
                last = self._buffer("arena", launch.scratch_bytes)
            self.steps.append(
                KernelStep(launch, kernel, node, node.op, frozenset(written), cost, scratch=last)
            )
        for source, target in copies:
            self._launch(copy_region(self.graph, source, target), node, "copy")

    def _best_laid_out(self, node: Node, kernel: Kernel) -> Kernel:
        """On a GPU, the first kernel that reads the operands where they lie; else `kernel`."""
        if not self.target.is_gpu:
            return kernel
        storages = [self.storage_of(value) for value in node.inputs]

        def laid_out_otherwise(other: Kernel) -> str | None:
            layouts = other.layouts(self.graph, node)
            for value, storage, layout in zip(node.inputs, storages, layouts, strict=False):
                if not storage.meets(layout):
                    return f"`%{value}` is not laid out as it needs it"
            return None

        providers = self.backend.providers
        found = choose(self.graph, node, self.target, providers, laid_out_otherwise)
        if found.kernel is None:
            return kernel
        self.choices[node.name] = found
        return found.kernel

    def _kernel_inputs(self, node: Node, kernel: Kernel) -> tuple[Storage, ...]:
        layouts = kernel.layouts(self.graph, node)
        packing = kernel.packing(self.graph, node, self.target)
        inputs: list[Storage] = []
        for index, value in enumerate(node.inputs):
            if index in packing:
                weight = packing[index](self.graph.parameters[value])
                inputs.append(self._weight(weight, packed=True))
            else:
                inputs.append(self._meeting(self.storage_of(value), layouts[index], node))
        return tuple(inputs)

    def _kernel_outputs(
        self, node: Node, kernel: Kernel
    ) -> tuple[tuple[Storage, ...], list[tuple[Storage, Storage]]]:
        """Where a kernel writes, and what has to be copied from there to where."""
        layouts = kernel.layouts(self.graph, node)[len(node.inputs) :]
        order = kernel.output_order(self.graph, node)
        outputs: list[Storage] = []
        copies: list[tuple[Storage, Storage]] = []
        for index, (value, layout) in enumerate(zip(node.outputs, layouts, strict=True)):
            wanted = order if index == 0 else None
            place = self._new(value, wanted or self._preferred_order(value, layout))
            if order is None and not place.meets(layout):
                whole = dense(
                    self._buffer("arena", self.graph.type(value).nbytes), place.dtype, place.shape
                )
                copies.append((whole, place))
                place = whole
            outputs.append(place)
        return tuple(outputs), copies

    def _scratch(self, written: set[int], dtype: str, shape: tuple[Dim, ...]) -> Storage:
        """A buffer between the launches of a node, which is added to those `written`."""
        size = symbolic.product(shape) * DTYPES[dtype].itemsize
        number = self._buffer("arena", size)
        written.add(number)
        return dense(number, dtype, shape)

    def _error(self) -> Storage:
        if self.error_buffer is None:
            self.error_buffer = self._buffer("error", DTYPES["i64"].itemsize)
        return dense(self.error_buffer, "i64", (1,))

    def _concat(self, node: Node) -> None:
        whole = self._new(node.output)
        axis = int_attr(node.attrs, "axis") % len(whole.shape)
        offset: Dim = 0
        for value in node.inputs:
            shape = self.graph.type(value).shape
            if all(part.whole != node.output for part in self.placed.get(value, ())):
                start = whole.offset + offset * whole.strides[axis]
                part = replace(whole, shape=shape, offset=start)
                self._copy_or_compute(value, part, node)
            offset = offset + shape[axis]

    def _copy_or_compute(self, value: str, target: Storage, node: Node) -> None:
        if value in self.grouping.free:
            self._launch(free_region(self.graph, self.grouping.free, value, target), node)
            return
        source, target = self._without_reshapes(value, target)
        self._launch(copy_region(self.graph, source, target), node)

    def _without_reshapes(self, value: str, target: Storage) -> tuple[Storage, Storage]:
        """What to copy to where, so that `value` is in `target`.

        A reshape that would need a copy of its own is done by seeing `target` in the shape before
        it.
        """
        while value not in self.storages:
            node = self.graph.producer(value)
            if node is None or node.op != "reshape":
                break
            source = self.storage_of(node.inputs[0])
            if viewed(source, "reshape", {}, target.shape) is not None:
                break
            seen = viewed(target, "reshape", {}, source.shape)
            if seen is None:
                break
            value, target = node.inputs[0], seen
        return self.storage_of(value), target

    def _pad(self, node: Node) -> None:
        whole = self._new(node.output)
        low, high = dims_attr(node.attrs, "low"), dims_attr(node.attrs, "high")
        self._launch(fill_region(self.graph, node.attrs.get("value", 0), whole), node)
        source = self.storage_of(node.inputs[0])
        target = whole
        for axis, (before, after) in enumerate(zip(low, high, strict=True)):
            size = source.shape[axis]
            crop_low, crop_high = symbolic.maximum(0 - before, 0), symbolic.maximum(0 - after, 0)
            kept = size - crop_low - crop_high
            source = _part(source, axis, crop_low, kept)
            target = _part(target, axis, symbolic.maximum(before, 0), kept)
        self._launch(copy_region(self.graph, source, target), node)

    def _slice_scatter(self, node: Node) -> None:
        whole = self._new(node.output)
        self._copy_or_compute(node.inputs[0], whole, node)
        shape = self.graph.type(node.inputs[1]).shape
        axis = int_attr(node.attrs, "axis") % len(whole.shape)
        start, step = dim_attr(node.attrs, "start"), int_attr(node.attrs, "step")
        strides = (*whole.strides[:axis], whole.strides[axis] * step, *whole.strides[axis + 1 :])
        offset = whole.offset + start * whole.strides[axis]
        part = replace(whole, shape=shape, strides=strides, offset=offset)
        self._copy_or_compute(node.inputs[1], part, node)

    def _onnx(self, node: Node) -> None:
        inputs = tuple((value, self._dense(self.storage_of(value), node)) for value in node.inputs)
        outputs = tuple((value, self._new(value)) for value in node.outputs)
        model = f"residual/{self.target.name}/{len(self.residual)}.onnx"
        reason = self.reasons[node.name]
        residual = Residual(node.name, node.op, reason, node.origin.path, model)
        self.residual.append(residual)
        places = ([place for _, place in inputs], [place for _, place in outputs])
        cost = residual_cost(self.graph, node, self.target, *places)
        self.steps.append(OnnxStep(residual, inputs, outputs, cost))

    def _output(self, value: str) -> Storage:
        """Where an output lies: dense, in a buffer of its own of the same size."""
        storage = self.storage_of(value)
        size = self.graph.type(value).nbytes
        buffer = self.buffers[storage.buffer]
        whole = storage.is_contiguous and storage.offset == 0 and buffer.bytes == size
        if whole and buffer.kind == "arena":
            buffer.kind = "output"
            return storage
        target = dense(self._buffer("output", size), storage.dtype, storage.shape)
        node = self.graph.producer(value) or Node("copy", (value,), (value,))
        self._launch(copy_region(self.graph, storage, target), node, "copy")
        return target

    # --- memory plan ------------------------------------------------------------------------

    def _plan(self) -> MemoryPlan:
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        over: dict[int, int] = {}
        for position, step in enumerate(self.steps):
            if isinstance(step, KernelStep):
                over.update(step.over)
            for buffer in step_buffers(step):
                first.setdefault(buffer, position)
                last[buffer] = position
        lifetimes = [
            Lifetime(
                buffer, self.buffers[buffer].bytes, first[buffer], last[buffer], over.get(buffer)
            )
            for buffer in first
            if self.buffers[buffer].kind == "arena"
        ]
        return plan_memory(lifetimes, self.graph.symbols, self.backend.alignment)


def constant_weight(node: Node, graph: Graph) -> Weight:
    """The elements of a `constant` node, as a weight."""
    kind = graph.type(node.output)
    (array,) = OPS["constant"].reference((), node.attrs, (kind,))
    return from_array(node.output, kind.dtype, encoded(array, kind.dtype))


def _part(storage: Storage, axis: int, start: Dim, size: Dim) -> Storage:
    shape = (*storage.shape[:axis], size, *storage.shape[axis + 1 :])
    return replace(storage, shape=shape, offset=storage.offset + start * storage.strides[axis])
