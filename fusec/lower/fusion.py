"""Which nodes share a generated kernel.

Nodes are taken in order.  A node joins the group of a node it reads if both run over the same
places: if each axis of its result is an axis of the group, or it is one number a row of the group.
A group keeps its values in registers; those that others read are stored as well.

A group has a place in the order of steps.  A node whose other operands come later than its group
moves the group behind them, unless something reads the group already.  So the order of steps stays
topological, and each node costs the same however large the graph is.

Values that cost nothing, such as constants and what is computed from places alone, belong to no
group: every reader computes them for itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fusec.ir import Attr, Graph, Node, TensorType
from fusec.ir.types import bool_attr, int_attr, ints_attr
from fusec.lower.codegen_cpp import can_compute, is_generated
from fusec.lower.region import ARG_REDUCTIONS, REDUCTIONS, SCANS
from fusec.lower.storage import VIEWS
from fusec.symbolic import Dim, Expr

Axes = tuple[int | None, ...]
"""For each axis of a value, the axis of the group along which it runs; `None` along none."""

SOFTMAXES = frozenset(("softmax", "log_softmax"))
ROW_OPS = REDUCTIONS | ARG_REDUCTIONS | SCANS | SOFTMAXES | {"logsumexp"}
CREATED = frozenset(("constant", "full", "iota"))
COPIES = frozenset(("concat", "pad", "slice_scatter"))
"""Operations done by copying into parts of the result."""

MAX_NODES = 48
MAX_OPERANDS = 20
MAX_FREE_OPS = 12

_FREE = frozenset(
    "neg abs add sub mul where clamp eq ne lt le gt ge and or xor not minimum maximum cast "
    "floordiv mod".split()
)


def generated_reason(graph: Graph, node: Node) -> str | None:
    """Why no code can be generated for `node`, which is no copy; `None` when it can."""
    if not (is_generated(node.op) or node.op in ROW_OPS):
        return "no kernel and no generated code computes it"
    for value in (*node.inputs, *node.outputs):
        dtype = graph.type(value).dtype
        if not can_compute(dtype):
            return f"generated code does not read or write {dtype}"
    return None


@dataclass(eq=False, slots=True)
class Group:
    """Nodes of one generated kernel.

    Attributes:
        place: in the order of steps.
        axes: the sizes it runs over.
        rows: the axes that reductions run over; `None` until there is one.
        nodes: in order.
        value_axes: the axes of each value, and of what each node reads, by node.
        registers: (node, operand) pairs that read a value of the group itself.
        was_read: whether another step reads a value of the group.
    """

    place: int
    axes: list[Dim]
    rows: frozenset[int] | None = None
    nodes: list[Node] = field(default_factory=list)
    value_axes: dict[str, Axes] = field(default_factory=dict)
    operand_axes: dict[tuple[str, int], Axes] = field(default_factory=dict)
    registers: dict[tuple[str, int], str] = field(default_factory=dict)
    was_read: bool = False

    def is_full(self, axes: Axes) -> bool:
        """Whether a value with `axes` is one number at each place."""
        return {axis for axis in axes if axis is not None} == set(range(len(self.axes)))

    def is_row(self, axes: Axes) -> bool:
        """Whether a value with `axes` is one number a row."""
        if self.rows is None:
            return False
        kept = set(range(len(self.axes))) - self.rows
        return {axis for axis in axes if axis is not None} == kept


@dataclass(eq=False, slots=True)
class Single:
    """A node that is a step of its own: a kernel, a copy, or one for onnxruntime."""

    place: int
    node: Node
    was_read: bool = False


Step = Group | Single


@dataclass(slots=True)
class Grouping:
    """What every node became.

    Attributes:
        steps: in order.
        step_of: the step that makes a value; none for inputs, parameters, views and free values.
        free: values that every reader computes for itself.
        in_memory: values that must have a place in memory because some step reads them there.
    """

    steps: list[Step]
    step_of: dict[str, Step]
    free: dict[str, int]
    in_memory: set[str]


def group_nodes(graph: Graph, is_generated_node: Callable[[Node], bool]) -> Grouping:
    """Decide the steps of `graph`.

    Args:
        graph: to be lowered.
        is_generated_node: whether a node that is neither a view nor a copy is left to generated
            code; the others become steps of their own.
    """
    return _Grouper(graph, is_generated_node).run()


class _Grouper:
    def __init__(self, graph: Graph, is_generated_node: Callable[[Node], bool]) -> None:
        self.graph = graph
        self.is_generated_node = is_generated_node
        self.counter = itertools.count()
        self.result = Grouping([], {}, {}, set())
        self.uniform: set[str] = set()
        self.readers: dict[str, tuple[Group, Axes]] = {}

    def run(self) -> Grouping:
        for node in self.graph.nodes():
            if node.op in VIEWS:
                self._view(node)
            elif node.op in CREATED:
                self._is_free(node)  # a table is a weight, and no step either
            elif node.op in COPIES or not self.is_generated_node(node):
                self._single(node)
            elif not self._is_free(node):
                self._generated(node)
        for value in self.graph.outputs:
            self._read_in_memory(value, None)
        self.result.steps.sort(key=lambda step: step.place)
        return self.result

    # --- free values ------------------------------------------------------------------------

    def _view(self, node: Node) -> None:
        source = node.inputs[0]
        cost = self.result.free.get(source)
        if cost is None:
            return
        shapes = (self.graph.type(source).shape, self.graph.type(node.output).shape)
        if source in self.uniform:
            self.uniform.add(node.output)
        elif node.op == "reshape" and unit_reshape(*shapes) is None:
            return
        self.result.free[node.output] = cost

    def _is_free(self, node: Node) -> bool:
        free = self.result.free
        if node.op in CREATED:
            uniform = node.op != "iota"
            if uniform and not is_number(single_value(node.attrs.get("value"))):
                return False
            free[node.output] = 0 if uniform else 1
            if uniform:
                self.uniform.add(node.output)
            return True
        if node.op not in _FREE or any(value not in free for value in node.inputs):
            return False
        cost = 1 + sum(free[value] for value in node.inputs)
        if cost > MAX_FREE_OPS:
            return False
        free[node.output] = cost
        if all(value in self.uniform for value in node.inputs):
            self.uniform.add(node.output)
        return True

    # --- steps ------------------------------------------------------------------------------

    def _single(self, node: Node) -> None:
        step = Single(next(self.counter), node)
        for value in node.inputs:
            self._read_in_memory(value, step)
        self._enter(step, node)

    def _enter(self, step: Step, node: Node) -> None:
        self.result.steps.append(step)
        for value in node.outputs:
            self.result.step_of[value] = step

    def _base(self, value: str) -> str:
        """The value that `value` is a view of."""
        while (node := self.graph.producer(value)) is not None and node.op in VIEWS:
            value = node.inputs[0]
        return value

    def _read_in_memory(self, value: str, reader: Step | None) -> None:
        base = self._base(value)
        self.result.in_memory.add(base)
        step = self.result.step_of.get(base)
        if step is not None and step is not reader:
            step.was_read = True

    def _generated(self, node: Node) -> None:
        producers = {
            index: step
            for index, value in enumerate(node.inputs)
            if value not in self.result.free
            and (step := self.result.step_of.get(self._base(value))) is not None
        }
        groups = {id(step): step for step in producers.values() if isinstance(step, Group)}
        for group in sorted(groups.values(), key=lambda group: -group.place):
            if self._join(group, node, producers, {}):
                return
        for index, value in enumerate(node.inputs):
            sibling = self.readers.get(value)
            if sibling is not None and id(sibling[0]) not in groups:
                group, axes = sibling
                if self._join(group, node, producers, {index: axes}):
                    return
        self._start(node)

    def _start(self, node: Node) -> None:
        group = Group(next(self.counter), [])
        types = [self.graph.type(value) for value in node.inputs]
        reduced = self._row_axes(node)
        shape = types[0].shape if reduced is not None else self.graph.type(node.output).shape
        axes: list[int | None] = []
        for position, size in enumerate(shape):
            if size == 1 and not (reduced is not None and position in reduced):
                axes.append(None)
            else:
                axes.append(len(group.axes))
                group.axes.append(size)
        if reduced is not None:
            group.rows = frozenset(
                axis
                for position, axis in enumerate(axes)
                if position in reduced and axis is not None
            )
            if not group.rows:  # a reduction over no axis at all
                group.rows = frozenset((len(group.axes),))
                group.axes.append(1)
        self._enter(group, node)
        self._add(group, node, tuple(axes), {})

    def _join(
        self, group: Group, node: Node, producers: dict[int, Step], shared: dict[int, Axes]
    ) -> bool:
        """Enter `node` into `group` if it fits.

        Args:
            group: that makes an operand, or reads one too.
            node: of generated code.
            producers: the steps that make its operands.
            shared: axes along which the group reads operands of `node` that it does not make.
        """
        if len(group.nodes) >= MAX_NODES:
            return False
        external = {step.place for step in producers.values() if step is not group}
        latest = max(external, default=-1)
        if latest > group.place and group.was_read:
            return False
        registers: dict[int, Axes] = {}
        for index, step in producers.items():
            if step is group:
                seen = self._axes_through_views(group, node.inputs[index])
                if seen is None:
                    return False
                registers[index] = seen
        if len(group.operand_axes) + len(node.inputs) - len(registers) > MAX_OPERANDS:
            return False
        reduced = self._row_axes(node)
        known = {**shared, **registers}
        if reduced is not None:
            axes = self._reduction_axes(group, known[0], reduced, node)
        else:
            axes = self._elementwise_axes(group, node, known)
        if axes is None:
            return False
        if latest > group.place:
            group.place = next(self.counter)
        for value in node.outputs:
            self.result.step_of[value] = group
        self._add(group, node, axes, registers)
        return True

    def _add(self, group: Group, node: Node, axes: Axes, registers: dict[int, Axes]) -> None:
        """Enter `node`; `axes` are those of its result, or of its operand if it reduces."""
        group.nodes.append(node)
        reduced = self._row_axes(node)
        result_axes = axes
        if reduced is not None and node.op not in SOFTMAXES | SCANS:
            if bool_attr(node.attrs, "keepdims"):
                result_axes = tuple(
                    None if position in reduced else axis for position, axis in enumerate(axes)
                )
            else:
                result_axes = tuple(
                    axis for position, axis in enumerate(axes) if position not in reduced
                )
        group.value_axes[node.output] = result_axes
        shape = self.graph.type(node.output).shape
        for index, value in enumerate(node.inputs):
            if index in registers:
                group.registers[node.output, index] = self._base(value)
            else:
                if value not in self.result.free:
                    self._read_in_memory(value, group)
                read = (
                    axes
                    if reduced is not None
                    else operand_axes(self.graph.type(value).shape, shape, axes)
                )
                group.operand_axes[node.output, index] = read
                if value not in self.result.free and group.is_full(read):
                    self.readers[value] = (group, read)

    # --- axes -------------------------------------------------------------------------------

    def _row_axes(self, node: Node) -> frozenset[int] | None:
        """The axes of its operand that `node` needs whole; `None` for an elementwise one."""
        if node.op not in ROW_OPS:
            return None
        rank = self.graph.type(node.inputs[0]).rank
        if "axes" in node.attrs:
            return frozenset(axis % rank for axis in ints_attr(node.attrs, "axes"))
        return frozenset((int_attr(node.attrs, "axis") % rank,))

    def _axes_through_views(self, group: Group, value: str) -> Axes | None:
        """The axes of `value`, a view of a value of the group; `None` if it moves elements."""
        chain: list[Node] = []
        while (node := self.graph.producer(value)) is not None and node.op in VIEWS:
            chain.append(node)
            value = node.inputs[0]
        axes = group.value_axes[value]
        for node in reversed(chain):
            before, after = self.graph.type(node.inputs[0]), self.graph.type(node.output)
            seen = _viewed_axes(node, before, after, axes)
            if seen is None:
                return None
            axes = seen
        return axes

    def _reduction_axes(
        self, group: Group, axes: Axes, reduced: frozenset[int], node: Node
    ) -> Axes | None:
        shape = self.graph.type(node.inputs[0]).shape
        repeated = any(a is None and size != 1 for a, size in zip(axes, shape, strict=True))
        if repeated or not group.is_full(axes):
            return None
        rows = {axes[position] for position in reduced}
        if None in rows or not rows:
            return None
        wanted = frozenset(axis for axis in rows if axis is not None)
        if group.rows is not None:
            return axes if group.rows == wanted else None
        trailing = frozenset(range(len(group.axes) - len(wanted), len(group.axes)))
        if wanted != trailing:
            return None
        group.rows = wanted
        return axes

    def _elementwise_axes(
        self, group: Group, node: Node, registers: dict[int, Axes]
    ) -> Axes | None:
        shape = self.graph.type(node.output).shape
        axes: list[int | None] = [None] * len(shape)
        for seen in registers.values():
            missing = len(shape) - len(seen)
            for position, axis in enumerate(seen, start=missing):
                if axis is None:
                    continue
                # An axis of size 1 that the group walks for its rows may be broadcast by the node.
                if axes[position] not in (None, axis) or group.axes[axis] != shape[position]:
                    return None
                axes[position] = axis
        used = {axis for axis in axes if axis is not None}
        unused = [axis for axis in range(len(group.axes)) if axis not in used]
        for position, size in enumerate(shape):
            if axes[position] is not None or size == 1:
                continue
            if not unused or group.axes[unused[0]] != size:
                return None
            axes[position] = unused.pop(0)
        if len({axis for axis in axes if axis is not None}) != sum(
            axis is not None for axis in axes
        ):
            return None
        result = tuple(axes)
        return result if group.is_full(result) or group.is_row(result) else None


# --- shapes ---------------------------------------------------------------------------------


def operand_axes(shape: tuple[Dim, ...], result: tuple[Dim, ...], axes: Axes) -> Axes:
    """The axes of an operand of `shape` that is broadcast to `result`, which runs along `axes`."""
    missing = len(result) - len(shape)
    return tuple(
        None if size == 1 and wanted != 1 else axis
        for size, wanted, axis in zip(shape, result[missing:], axes[missing:], strict=True)
    )


def unit_reshape(before: tuple[Dim, ...], after: tuple[Dim, ...]) -> tuple[int | None, ...] | None:
    """For each axis after a reshape that only adds and drops sizes of 1, the axis before it.

    `None` as a whole if the reshape does more.
    """
    kept = [axis for axis, size in enumerate(before) if size != 1]
    if [before[axis] for axis in kept] != [size for size in after if size != 1]:
        return None
    remaining: Iterator[int] = iter(kept)
    return tuple(None if size == 1 else next(remaining) for size in after)


def _viewed_axes(node: Node, before: TensorType, after: TensorType, axes: Axes) -> Axes | None:
    if node.op == "transpose":
        return tuple(axes[axis] for axis in ints_attr(node.attrs, "perm"))
    if node.op == "expand":
        missing = after.rank - before.rank
        kept = zip(before.shape, after.shape[missing:], axes, strict=True)
        if any(size != wanted and axis is not None for size, wanted, axis in kept):
            return None
        return (None,) * missing + axes
    if node.op == "reshape":
        moved = unit_reshape(before.shape, after.shape)
        dropped = any(
            size == 1 and axis is not None for size, axis in zip(before.shape, axes, strict=True)
        )
        if moved is None or dropped:
            return None
        return tuple(None if axis is None else axes[axis] for axis in moved)
    return None


def single_value(held: Attr) -> Attr:
    """The number of which a constant consists, however deep it is nested; else `held`."""
    if isinstance(held, tuple) and held:
        first = single_value(held[0])
        if all(_same(single_value(item), first) for item in held[1:]):
            return first
    return held


def _same(left: Attr, right: Attr) -> bool:
    return type(left) is type(right) and left == right


def is_number(held: Attr) -> bool:
    """Whether `held` is a number or an expression."""
    return isinstance(held, bool | int | float | Expr)
