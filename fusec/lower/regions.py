"""Makes regions: of groups of nodes, of copies, and of values that cost nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fusec.diagnostics import InternalError
from fusec.dtypes import DTYPES
from fusec.ir import Attr, Graph, Node
from fusec.ir.types import dim_attr, int_attr, ints_attr
from fusec.kernels.launch import Storage, dense_strides
from fusec.lower.fusion import (
    CREATED,
    ROW_OPS,
    Axes,
    Group,
    operand_axes,
    single_value,
    unit_reshape,
)
from fusec.lower.region import ARG_REDUCTIONS, REDUCTIONS, SCANS, Operand, Region, Store, Value
from fusec.lower.storage import VIEWS
from fusec.symbolic import Dim, Expr

StorageOf = Callable[[str], Storage]

JoinedAxes = tuple[tuple[int, ...], ...]
"""For each axis of a reshaped value, the axes of the value before it that it joins."""

Joined = Callable[[str], tuple[Storage, JoinedAxes] | None]
"""What a value that only a copy could make dense is a joining of, if it is one."""

_KEPT_ATTRS = {
    "clamp": ("min", "max"),
    "gelu": ("approximate",),
    "softplus": ("beta", "threshold"),
    "leaky_relu": ("slope",),
    "elu": ("alpha",),
}


@dataclass(frozen=True, slots=True)
class Place:
    """A coordinate along one axis of a value: `offset + scale * (place along axis)`."""

    axis: int | None
    scale: Dim = 1
    offset: Dim = 0


@dataclass(frozen=True, slots=True)
class BuiltRegion:
    """A region and the storages of its operands, in order."""

    region: Region
    storages: tuple[Storage, ...]
    written: tuple[int, ...]

    def overwritable(self) -> dict[int, int]:
        """For buffers that are written, one that is read just where they are.

        Only of regions without rows: each element is read once, before it is written.
        """
        found: dict[int, int] = {}
        if self.region.row_axes:
            return found
        operands = [*zip(self.storages, self.region.operands, strict=True)]
        uses = Counter(storage.buffer for storage in self.storages)
        for number in self.written:
            target, place = operands[number]
            for source, operand in operands:
                same_place = operand.strides == place.strides and source.offset == target.offset
                same_size = DTYPES[source.dtype].bits == DTYPES[target.dtype].bits
                alone = uses[source.buffer] == uses[target.buffer] == 1
                if same_place and same_size and alone and source.buffer != target.buffer:
                    found.setdefault(target.buffer, source.buffer)
        return found


@dataclass(slots=True)
class RegionBuilder:
    """Collects the values of a region; equal values are kept once.

    Attributes:
        graph: of the values.
        axes: sizes the region runs over.
        free: values that are computed wherever they are read.
        splits: axes that are walked as several, and the sizes of those.
    """

    graph: Graph
    axes: tuple[Dim, ...]
    row_axes: int
    free: dict[str, int]
    storages: list[Storage] = field(default_factory=list)
    operands: list[Operand] = field(default_factory=list)
    values: dict[Value, int] = field(default_factory=dict)
    stores: list[Store] = field(default_factory=list)
    splits: Mapping[int, tuple[Dim, ...]] = field(default_factory=dict)

    def add(self, op: str, dtype: str, *args: int, **attrs: Attr) -> int:
        """The position of a value."""
        held = tuple(sorted((name, value) for name, value in attrs.items() if value is not None))
        return self.values.setdefault(Value(op, dtype, args, held), len(self.values))

    def load(self, storage: Storage, axes: Axes, joined: JoinedAxes | None = None) -> int:
        """What lies in `storage`, whose axes, or groups of them, run along `axes`."""
        strides = self._strides(storage, axes, joined)
        for number, (known, operand) in enumerate(zip(self.storages, self.operands, strict=True)):
            same_place = (known.buffer, known.offset, known.dtype) == (
                storage.buffer,
                storage.offset,
                storage.dtype,
            )
            if same_place and operand.strides == strides:
                return self.add("load", storage.dtype, operand=number)
        number = self._operand(storage, strides)
        return self.add("load", storage.dtype, operand=number)

    def store(self, value: int, storage: Storage, axes: Axes) -> None:
        """Write `value` to `storage`, whose axes run along `axes`."""
        self.stores.append(Store(value, self._operand(storage, self._strides(storage, axes))))

    def built(self) -> BuiltRegion:
        """The region as it stands."""
        written = tuple(store.operand for store in self.stores)
        axes = tuple(size for axis in range(len(self.axes)) for size in self._sizes(axis))
        first_row = len(self.axes) - self.row_axes
        rows = sum(len(self._sizes(axis)) for axis in range(first_row, len(self.axes)))
        region = Region(axes, rows, tuple(self.operands), tuple(self.values), tuple(self.stores))
        return BuiltRegion(region, tuple(self.storages), written)

    def _operand(self, storage: Storage, strides: tuple[Dim, ...]) -> int:
        self.storages.append(storage)
        self.operands.append(Operand(storage.dtype, strides))
        return len(self.operands) - 1

    def _sizes(self, axis: int) -> tuple[Dim, ...]:
        return self.splits.get(axis, (self.axes[axis],))

    def _offsets(self) -> tuple[list[int], int]:
        """Where each axis begins among the axes that are walked, and how many those are."""
        offsets: list[int] = []
        width = 0
        for axis in range(len(self.axes)):
            offsets.append(width)
            width += len(self._sizes(axis))
        return offsets, width

    def _strides(
        self, storage: Storage, axes: Axes, joined: JoinedAxes | None = None
    ) -> tuple[Dim, ...]:
        offsets, width = self._offsets()
        strides: list[Dim] = [0] * width
        groups = [(source,) for source in range(len(axes))] if joined is None else joined
        for axis, group in zip(axes, groups, strict=True):
            if axis is None:
                continue
            steps = [storage.strides[source] for source in group]
            if len(group) == 1:
                steps = [steps[0] * step for step in dense_strides(self._sizes(axis))]
            strides[offsets[axis] : offsets[axis] + len(steps)] = steps
        return tuple(strides)

    # --- free values ------------------------------------------------------------------------

    def free_value(self, value: str, places: tuple[Place, ...]) -> int:
        """A free value at `places`, one for each of its axes."""
        node = self.graph.producer(value)
        if node is None:
            raise InternalError(f"`%{value}` is not computed by any node")
        if node.op in VIEWS:
            return self._free_view(node, places)
        dtype = self.graph.type(value).dtype
        if node.op == "iota":
            return self._iota(node, dtype, places[0])
        if node.op in CREATED:
            return self.add("constant", dtype, value=single_value(node.attrs["value"]))
        shape = self.graph.type(value).shape
        args: list[int] = []
        for operand in node.inputs:
            own = self.graph.type(operand).shape
            missing = len(shape) - len(own)
            args.append(
                self.free_value(
                    operand,
                    tuple(
                        Place(None) if size == 1 else place
                        for size, place in zip(own, places[missing:], strict=True)
                    ),
                )
            )
        return self.elementwise(node, dtype, args)

    def _free_view(self, node: Node, places: tuple[Place, ...]) -> int:
        source = node.inputs[0]
        before, after = self.graph.type(source).shape, self.graph.type(node.output).shape
        inner: list[Place] = [Place(None)] * len(before)
        if node.op == "transpose":
            for place, axis in zip(places, ints_attr(node.attrs, "perm"), strict=True):
                inner[axis] = place
        elif node.op == "expand":
            missing = len(after) - len(before)
            for position, size in enumerate(before):
                if size != 1:
                    inner[position] = places[position + missing]
        elif node.op == "reshape":
            moved = unit_reshape(before, after)
            for place, source_axis in zip(places, moved or (), strict=moved is not None):
                if source_axis is not None:
                    inner[source_axis] = place
        else:
            inner = list(places)
            axes = (
                (int_attr(node.attrs, "axis"),)
                if node.op == "slice"
                else ints_attr(node.attrs, "axes")
            )
            for axis in {axis % len(before) for axis in axes}:
                inner[axis] = self._moved(node, places[axis], before[axis])
        return self.free_value(source, tuple(inner))

    @staticmethod
    def _moved(node: Node, place: Place, size: Dim) -> Place:
        if node.op == "slice":
            step, start = int_attr(node.attrs, "step"), dim_attr(node.attrs, "start")
            return Place(place.axis, place.scale * step, place.offset * step + start)
        return Place(place.axis, place.scale * -1, size - 1 - place.offset)

    def _iota(self, node: Node, dtype: str, place: Place) -> int:
        start, step = node.attrs.get("start", 0), node.attrs.get("step", 1)
        wide = "f64" if DTYPES[dtype].is_float else "i64"
        if place.axis is None:
            number = self.add("constant", "i64", value=0)
        else:
            number = self.add("index", "i64", axis=place.axis)
        number = self._affine(number, "i64", place.scale, place.offset)
        if wide == "f64":
            number = self.add("cast", wide, number)
        number = self._affine(number, wide, step, start)
        return number if dtype == wide else self.add("cast", dtype, number)

    def _affine(self, number: int, dtype: str, scale: Attr, offset: Attr) -> int:
        if scale != 1:
            number = self.add("mul", dtype, number, self.add("constant", dtype, value=scale))
        if offset != 0:
            number = self.add("add", dtype, number, self.add("constant", dtype, value=offset))
        return number

    # --- nodes ------------------------------------------------------------------------------

    def elementwise(self, node: Node, dtype: str, args: list[int]) -> int:
        """The value of an elementwise node whose operands are `args`."""
        if node.op == "pow" and (simple := self._power(node, dtype, args)) is not None:
            return simple
        kept = {name: node.attrs.get(name) for name in _KEPT_ATTRS.get(node.op, ())}
        return self.add(node.op, dtype, *args, **kept)

    def _power(self, node: Node, dtype: str, args: list[int]) -> int | None:
        """Powers by a known small exponent as products and roots."""
        by_position = list(self.values)
        exponent = by_position[args[1]]
        held = exponent.attr("value") if exponent.op == "constant" else None
        if isinstance(held, bool | Expr | str | tuple) or held is None:
            return None
        x = args[0]
        if held in (2, 3, 4):
            square = self.add("mul", dtype, x, x)
            if held == 2:
                return square
            return self.add("mul", dtype, square, x if held == 3 else square)
        if held == 1:
            return x
        if DTYPES[dtype].is_float and held in (0.5, -0.5, -1):
            return self.add({0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}[held], dtype, x)
        return None

    def row_operation(self, node: Node, dtype: str, x: int) -> int:
        """The value of a reduction, scan or softmax over the row of `x`."""
        source = list(self.values)[x].dtype
        if node.op in REDUCTIONS | ARG_REDUCTIONS | SCANS:
            return self.add(node.op, dtype, x)
        top = self.add("reduce_max", source, x)
        if node.op == "logsumexp":
            infinite = self.add("isinf", "bool", top)
            top = self.add("where", source, infinite, self.add("constant", source, value=0), top)
        shifted = self.add("sub", source, x, top)
        powers = self.add("exp", source, shifted)
        total = self.add("reduce_sum", source, powers)
        if node.op == "softmax":
            return self.add("div", source, powers, total)
        logarithm = self.add("log", source, total)
        if node.op == "log_softmax":
            return self.add("sub", source, shifted, logarithm)
        return self.add("add", source, logarithm, top)


@dataclass(frozen=True, slots=True)
class Memory:
    """Where the values of a group are.

    Attributes:
        is_stored: whether a value of the group must be written to memory.
        storage_of: where a value that is read lies.
        joined: see `Joined`.
        places: makes room for a value, and says everywhere it is to be written.
    """

    is_stored: Callable[[str], bool]
    storage_of: StorageOf
    joined: Joined
    places: Callable[[str], Sequence[Storage]]


def group_region(graph: Graph, group: Group, free: dict[str, int], memory: Memory) -> BuiltRegion:
    """The region of `group`; `free` are the values that are computed where they are read."""
    splits, joined = _splits(group, memory, free)
    built = _group_region(graph, group, free, memory, splits, joined)
    # Places along an axis are not numbers once the axis is walked as several.
    if splits and built.region.indexed_axes():
        return _group_region(graph, group, free, memory, {}, {})
    return built


def _axis_order(group: Group) -> list[int]:
    rows = group.rows or frozenset()
    return [axis for axis in range(len(group.axes)) if axis not in rows] + sorted(rows)


def _splits(
    group: Group, memory: Memory, free: dict[str, int]
) -> tuple[dict[int, tuple[Dim, ...]], dict[tuple[str, int], tuple[Storage, JoinedAxes]]]:
    """Axes to be walked as several, so that operands can be read without a copy, and those."""
    splits: dict[int, tuple[Dim, ...]] = {}
    found: dict[tuple[str, int], tuple[Storage, JoinedAxes]] = {}
    for node in group.nodes:
        for index, value in enumerate(node.inputs):
            axes = group.operand_axes.get((node.output, index))
            if axes is None or value in free or (joined := memory.joined(value)) is None:
                continue
            storage, parts = joined
            wanted = {
                axis: tuple(storage.shape[source] for source in sources)
                for axis, sources in zip(axes, parts, strict=True)
                if axis is not None and len(sources) > 1
            }
            if all(splits.get(axis, sizes) == sizes for axis, sizes in wanted.items()):
                splits.update(wanted)
                found[node.output, index] = joined
    return splits, found


def _group_region(
    graph: Graph,
    group: Group,
    free: dict[str, int],
    memory: Memory,
    splits: Mapping[int, tuple[Dim, ...]],
    joined: Mapping[tuple[str, int], tuple[Storage, JoinedAxes]],
) -> BuiltRegion:
    order = _axis_order(group)
    position = {axis: index for index, axis in enumerate(order)}

    def moved(axes: Axes) -> Axes:
        return tuple(None if axis is None else position[axis] for axis in axes)

    builder = RegionBuilder(
        graph,
        tuple(group.axes[axis] for axis in order),
        len(group.rows or ()),
        free,
        splits={position[axis]: sizes for axis, sizes in splits.items()},
    )
    known: dict[str, int] = {}
    for node in group.nodes:
        args: list[int] = []
        for index, value in enumerate(node.inputs):
            register = group.registers.get((node.output, index))
            if register is not None:
                args.append(known[register])
                continue
            axes = moved(group.operand_axes[node.output, index])
            if value in free:
                args.append(builder.free_value(value, tuple(Place(axis) for axis in axes)))
            elif (read := joined.get((node.output, index))) is not None:
                args.append(builder.load(read[0], axes, read[1]))
            else:
                args.append(builder.load(memory.storage_of(value), axes))
        dtype = graph.type(node.output).dtype
        if node.op in ROW_OPS:
            known[node.output] = builder.row_operation(node, dtype, args[0])
        else:
            known[node.output] = builder.elementwise(node, dtype, args)
        if memory.is_stored(node.output):
            for target in memory.places(node.output):
                builder.store(known[node.output], target, moved(group.value_axes[node.output]))
    return builder.built()


def copy_region(graph: Graph, source: Storage, target: Storage) -> BuiltRegion:
    """Writes what lies in `source` to `target`; `source` is broadcast to the shape of `target`."""
    axes = tuple(range(len(target.shape)))
    builder = RegionBuilder(graph, target.shape, 0, {})
    value = builder.load(source, operand_axes(source.shape, target.shape, axes))
    if source.dtype != target.dtype:
        raise InternalError(f"a copy from {source.dtype} to {target.dtype}")
    builder.store(value, target, axes)
    return builder.built()


def fill_region(graph: Graph, held: Attr, target: Storage) -> BuiltRegion:
    """Writes one number everywhere in `target`."""
    builder = RegionBuilder(graph, target.shape, 0, {})
    value = builder.add("constant", target.dtype, value=held)
    builder.store(value, target, tuple(range(len(target.shape))))
    return builder.built()


def free_region(graph: Graph, free: dict[str, int], value: str, target: Storage) -> BuiltRegion:
    """Computes a free value into `target`."""
    axes = tuple(range(len(target.shape)))
    builder = RegionBuilder(graph, target.shape, 0, free)
    builder.store(builder.free_value(value, tuple(Place(axis) for axis in axes)), target, axes)
    return builder.built()
