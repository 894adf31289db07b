"""Prints a region as the text of a Python module that defines a Triton function.

The function takes the operands, then the parameters.  Sizes and strides that are integers are
written into the text, expressions become parameters, so two regions that differ only in their
buffers have the same text; its hash is the name.

Without rows a program has a block of neighbouring places.  With rows it has one or several rows in
registers, or, where they are long, walks along them in chunks once for each pass.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fusec import symbolic
from fusec.diagnostics import InternalError
from fusec.dtypes import DTYPES
from fusec.ir import Attr
from fusec.kernels.launch import Launch, Storage, TritonSource, dense_strides
from fusec.kernels.triton_rows import is_divisible, power_above
from fusec.lower.region import ARG_REDUCTIONS, SCANS, Operand, Region, Store, Value, simplified
from fusec.lower.region_plan import (
    FOLDS,
    RegionPlan,
    axis_of,
    cost_of,
    numbers_of,
    operand_of,
    permuted,
)
from fusec.symbolic import Dim, Expr, Range
from fusec.target import Target

POINTER_TYPES = {
    "f64": "*fp64",
    "f32": "*fp32",
    "f16": "*fp16",
    "bf16": "*bf16",
    "f8e4m3fn": "*u8",
    "f8e4m3fnuz": "*u8",
    "f8e5m2": "*u8",
    "i64": "*i64",
    "i32": "*i32",
    "i16": "*i16",
    "i8": "*i8",
    "u8": "*u8",
    "bool": "*u8",
}
"""Triton's pointer types; floats of 8 bits are read and written as their bits."""

_KINDS = {"i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8", "u8": "uint8"}
_NARROW = {"f16": "float16", "bf16": "bfloat16"}

HEADER = """\
import triton
import triton.language as tl

import fusec.kernels.triton_functions as f


@triton.jit
def """

_LANE_BYTES = 16
"""What a lane reads of each operand at once."""

_LANE_ELEMENTS = 16
"""Elements of rows that a lane holds."""

_WARPS = 4
"""Waves or warps of a program without rows."""

_LANE_WORDS = 64
"""Words of 32 bits of what is reduced and scanned that a lane holds."""

_LANE_COST = 256
"""Additions of a lane: where elements cost more, it has less of them, and registers enough."""

_DIVISIONS = frozenset("floordiv mod fmod pow".split())
"""What costs several times as much as other functions, where integers and remainders divide."""

_DIVIDING = 4
"""Elements of a lane that divides places by sizes that are not known: ptxas calls a function for
64 bits, and with 8 elements keeps some on a stack, however many registers there are."""

_MOST_WARPS = 16

_REGISTERS = 8192
"""The longest row that a program holds whole."""

_CHUNK = 4096
"""Elements of a longer row that it holds at a time."""

_SCANNED = 1024
"""The same where it scans them: each register of a lane takes a scan of its own."""

_TILE = 2048
"""Elements of the rows that a program holds together, at least."""

_SIDE = 64
"""Rows that are walked side by side where they are neighbours in memory."""

_SMALL = 1 << 31


@dataclass(frozen=True, slots=True)
class _Tile:
    """What a program holds: rows, elements of each, and the waves or warps that hold them."""

    rows: int
    columns: int
    warps: int
    is_whole: bool = True


def compute_type(dtype: str) -> str:
    """Triton's type in which values of `dtype` are computed."""
    if dtype == "bool":
        return "tl.int1"
    if DTYPES[dtype].is_float:
        return "tl.float64" if dtype == "f64" else "tl.float32"
    return f"tl.{_KINDS[dtype]}"


def region_launch(
    region: Region,
    storages: tuple[Storage, ...],
    comment: str,
    target: Target,
    ranges: Mapping[str, Range],
) -> Launch:
    """The launch that computes `region`.

    Args:
        region: what to compute.
        storages: of its operands, in order.
        comment: for people; nothing depends on it.
        target: a GPU.
        ranges: of the symbols.
    """
    region = simplified(region)
    if not region.row_axes:
        region = simplified(permuted(region, _walk(region, ranges)))
    printer = _Printer(region, target, ranges)
    body = printer.function()
    symbol = "fusec_region_" + hashlib.sha256(body.encode()).hexdigest()[:12]
    pointers = [f"b{number}" for number in range(len(storages))]
    kinds = [POINTER_TYPES[operand.dtype] for operand in region.operands]
    divisible = [
        name
        for name, storage in zip(pointers, storages, strict=True)
        if is_divisible(storage.byte_offset)
    ]
    divisible += [f"p{n}" for n, dim in enumerate(printer.params) if is_divisible(dim)]
    return Launch(
        symbol=symbol,
        operands=storages,
        params=tuple(printer.params),
        grid=(printer.programs(), 1, 1),
        code=TritonSource(
            module="",
            function=symbol,
            signature=(*zip(pointers, kinds, strict=True), *printer.parameters()),
            constants=(),
            divisible=tuple(divisible),
            warps=printer.tile.warps,
            text=f"{HEADER}{symbol}{body}",
        ),
    )


def _walk(region: Region, ranges: Mapping[str, Range]) -> list[int]:
    """The axes, ordered so that the first store goes along memory."""
    typical = {name: _typical(bounds) for name, bounds in ranges.items()}

    def step(axis: int) -> int:
        stride = region.operands[region.stores[0].operand].strides[axis]
        known = {name: typical.get(name, 1024) for name in symbolic.symbols_of(stride)}
        return -abs(symbolic.evaluate(stride, known))

    return sorted(range(len(region.axes)), key=step)


def _typical(bounds: Range) -> int:
    low, high = bounds
    return max(low, 1024 if high is None else min(high, 1024))


def _tile(region: Region, plan: RegionPlan, target: Target, ranges: Mapping[str, Range]) -> _Tile:
    if not plan.is_rows:
        return _flat_tile(region, target, ranges)
    length = symbolic.product(region.axes[plan.first_row :])
    rows = symbolic.product(region.axes[: plan.first_row])
    _, most = symbolic.bounds(length, ranges)
    _, most_rows = symbolic.bounds(rows, ranges)
    limit = power_above(int(min(most_rows, _TILE)), 1)
    lane = _row_lane(region)
    if _has_columns(region, plan):
        side = min(_SIDE, limit)
        columns = min(power_above(int(min(most, _TILE)), 1), max(16, _TILE // side))
    else:
        scans = any(value.op in SCANS for value in region.values)
        held = lane * target.wave_size * _MOST_WARPS
        chunk = min(_SCANNED if scans else _CHUNK, held)
        columns = power_above(int(min(most, chunk)), 16)
        # A row that is held whole is worth registers: it is read once.
        if isinstance(length, int) and length <= min(_SCANNED if scans else _REGISTERS, 2 * held):
            columns = power_above(length, 16)
        side = min(limit, max(1, _TILE // columns))
    warps = min(_MOST_WARPS, max(1, side * columns // (lane * target.wave_size)))
    return _Tile(side, columns, warps, isinstance(length, int) and length <= columns)


def _flat_tile(region: Region, target: Target, ranges: Mapping[str, Range]) -> _Tile:
    sizes = [DTYPES[operand.dtype].itemsize for operand in region.operands if any(operand.strides)]
    lane = _lane_elements(region, _LANE_BYTES // min(sizes, default=4))
    if target.family == "nvidia" and any(isinstance(size, Expr) for size in region.axes[1:]):
        lane = min(lane, _DIVIDING)
    block = _WARPS * target.wave_size * lane
    _, most = symbolic.bounds(symbolic.product(region.axes), ranges)
    block = min(block, power_above(int(min(most, block)), target.wave_size))
    return _Tile(1, block, max(1, block // (lane * target.wave_size)))


def _row_lane(region: Region) -> int:
    """Elements of rows that a lane holds, with what it reduces and scans them to."""
    words = 0
    for value in region.values:
        if value.op in FOLDS:
            fold = _fold_of(value.op, region.values[value.args[0]].dtype)
            words += fold.bits // 32 + (value.op in ARG_REDUCTIONS)
        elif value.op in SCANS:
            words += 4 if _wide_kind(value.dtype).endswith("64") else 2
    return _lane_elements(region, _power_below(min(_LANE_ELEMENTS, _LANE_WORDS // max(1, words))))


def _power_below(count: int) -> int:
    """The largest power of two that is not above `count`, and at least 1."""
    return 1 << (max(1, count).bit_length() - 1)


def _lane_elements(region: Region, most: int) -> int:
    """Elements of a lane, a power of two."""
    cost = sum(
        4 * cost_of(value) if value.op in _DIVISIONS else cost_of(value)
        for value in region.values
        if value.op not in FOLDS
    )
    return min(most, _power_below(_LANE_COST // max(1, cost)))


def _has_columns(region: Region, plan: RegionPlan) -> bool:
    """Whether neighbours in memory belong to different rows."""
    if not plan.first_row:
        return False
    reads = [region.operands[operand_of(v)].strides for v in region.values if v.op == "load"]
    steps = [strides[-1] for strides in reads if strides[-1] != 0]
    return all(step != 1 for step in steps) and any(
        strides[plan.first_row - 1] == 1 for strides in reads
    )


class _Printer:
    """Prints one region; `params` are collected on the way."""

    def __init__(self, region: Region, target: Target, ranges: Mapping[str, Range]) -> None:
        self.region = region
        self.ranges = ranges
        self.plan = RegionPlan(region)
        self.outer = self.plan.first_row if self.plan.is_rows else len(region.axes)
        self.tile = _tile(region, self.plan, target, ranges)
        self.is_small = self._is_small()
        self.params: list[Dim] = []
        self.lines: list[str] = []
        self.indent = 1
        # The text of the place along each axis that is needed.
        self.places: dict[int, str] = {}
        # Masks of rows and of elements of a row; none where all are there.
        self.row_mask = ""
        self.mask = ""

    # --- sizes ------------------------------------------------------------------------------

    def programs(self) -> Dim:
        """How many programs there are."""
        if self.plan.is_rows:
            rows = symbolic.product(self.region.axes[: self.outer])
            return symbolic.ceil_divide(rows, self.tile.rows)
        return symbolic.ceil_divide(symbolic.product(self.region.axes), self.tile.columns)

    def parameters(self) -> list[tuple[str, str]]:
        """The parameters and their types."""
        return [
            (f"p{number}", "i32" if self._largest(dim) < _SMALL else "i64")
            for number, dim in enumerate(self.params)
        ]

    def _largest(self, dim: Dim) -> float:
        low, high = symbolic.bounds(dim, self.ranges)
        return max(abs(low), abs(high))

    def _is_small(self) -> bool:
        """Whether places, those of unused lanes included, and offsets in bytes are below 2^31."""
        axes = self.region.axes
        counts = [
            math.prod(self._largest(size) for size in part) + self.tile.rows * self.tile.columns
            for part in (axes[: self.outer], axes[self.outer :])
        ]
        for operand in self.region.operands:
            reach = sum(
                self._largest(size) * self._largest(stride)
                for size, stride in zip(axes, operand.strides, strict=True)
                if stride != 0
            )
            counts.append(reach * DTYPES[operand.dtype].itemsize)
        # A product of nothing and no bound is not a number.
        return all(count < _SMALL for count in counts)

    def dim(self, dim: Dim) -> str:
        """The text of a size: the number, or a parameter."""
        if isinstance(dim, int):
            return str(dim)
        if dim not in self.params:
            self.params.append(dim)
        return f"p{self.params.index(dim)}"

    # --- text -------------------------------------------------------------------------------

    def _line(self, text: str) -> None:
        self.lines.append("    " * self.indent + text)

    def function(self) -> str:
        """Everything after the name."""
        if self.plan.is_rows:
            self._rows()
        else:
            self._flat()
        names = [f"b{number}" for number in range(len(self.region.operands))]
        names += [f"p{number}" for number in range(len(self.params))]
        return f"({', '.join(names)}):\n" + "\n".join(self.lines) + "\n"

    def _wide(self, text: str) -> str:
        return text if self.is_small else f"{text}.to(tl.int64)"

    def _coordinates(self, place: str, axes: range) -> None:
        """Places along `axes` of the number `place` of an element among them."""
        indexed = self.region.indexed_axes()
        stepped = [
            operand.strides for operand in self.region.operands if not self._is_flat(operand)
        ]
        needed = {
            axis
            for axis in axes
            if axis in indexed or any(strides[axis] != 0 for strides in stepped)
        }
        if not needed:
            return
        lowest, rest = min(needed), place
        for axis in range(axes.stop - 1, lowest - 1, -1):
            if axis == axes.start:
                self.places[axis] = rest
                break
            size = self.dim(self.region.axes[axis])
            if axis in needed:
                self._line(f"i{axis} = {rest} % {size}")
                self.places[axis] = f"i{axis}"
            if axis > lowest:
                self._line(f"rest{axis} = {rest} // {size}")
                rest = f"rest{axis}"

    def _offset(self, operand: int, axes: range) -> str:
        strides = self.region.operands[operand].strides
        steps = [
            self._step(self.places[axis], strides[axis]) for axis in axes if strides[axis] != 0
        ]
        return "".join(f" + {step}" for step in steps)

    def _step(self, place: str, stride: Dim) -> str:
        return place if stride == 1 else f"{place} * {self.dim(stride)}"

    # --- without rows -----------------------------------------------------------------------

    def _flat(self) -> None:
        axes = range(len(self.region.axes))
        block = self.tile.columns
        total = symbolic.product(self.region.axes)
        first = self._wide("tl.program_id(0)")
        self._line(f"place = {first} * {block} + tl.arange(0, {block})")
        if not (isinstance(total, int) and total % block == 0):
            self._line(f"inside = place < {self.dim(total)}")
            self.mask = "inside"
        self._coordinates("place", axes)
        for position, value in enumerate(self.region.values):
            self._define(position, value)
        for store in self.region.stores:
            # A store along no axis is that of the only place there is.
            offset = self._flat_offset(store.operand) or " + place"
            self._store(store, f"b{store.operand}{offset}", self.mask)

    def _is_flat(self, operand: Operand) -> bool:
        """Whether the elements of an operand lie in the order of places."""
        return not self.plan.is_rows and operand.strides == dense_strides(self.region.axes)

    def _flat_offset(self, operand: int) -> str:
        if self._is_flat(self.region.operands[operand]):
            return " + place"
        return self._offset(operand, range(self.outer))

    # --- rows -------------------------------------------------------------------------------

    def _rows(self) -> None:
        count = symbolic.product(self.region.axes[: self.outer])
        rows = self.tile.rows
        first = self._wide("tl.program_id(0)")
        self._line(f"row = {first} * {rows} + tl.arange(0, {rows})[:, None]")
        if rows > 1 and not (isinstance(count, int) and count % rows == 0):
            self._line(f"in_rows = row < {self.dim(count)}")
            self.row_mask = "in_rows"
        self._coordinates("row", range(self.outer))
        for number in range(len(self.region.operands)):
            offset = self._offset(number, range(self.outer))
            if self.plan.one_a_row(number) and not offset:
                offset = " + row" if self._is_stored(number) else ""
            self._line(f"r{number} = b{number}{offset}")
        if self.tile.is_whole:
            self._columns("")
        known: set[int] = set()
        for stage in self.plan.stages:
            self._row_values(stage)
            self._pass(stage, known)

    def _is_stored(self, operand: int) -> bool:
        return any(store.operand == operand for store in self.region.stores)

    def _columns(self, begin: str) -> None:
        """Where the elements are that a program holds."""
        length = symbolic.product(self.region.axes[self.outer :])
        lanes = self._wide(f"tl.arange(0, {self.tile.columns})")
        self._line(f"column = {begin}{lanes}[None, :]")
        self.mask = ""
        if not (isinstance(length, int) and length % self.tile.columns == 0):
            self._line(f"in_row = column < {self.dim(length)}")
            self.mask = "in_row"
        self._coordinates("column", range(self.outer, len(self.region.axes)))

    def _row_values(self, stage: int) -> None:
        """Values that are one a row and are known once the passes before `stage` have run."""
        for position, value in enumerate(self.region.values):
            if self.plan.per_element[position] or self.plan.stage[position] != stage:
                continue
            if value.op not in FOLDS:
                self._define(position, value)
        for store in self.plan.row_stores(stage):
            self._store(store, f"r{store.operand}", self.row_mask)

    def _pass(self, stage: int, known: set[int]) -> None:
        """What is reduced and what is stored in this pass; `known` are elements in registers."""
        folds, stores = self.plan.folds(stage), self.plan.element_stores(stage)
        if not folds and not stores:
            return
        needed = self.plan.needed(folds, stores)
        if self.tile.is_whole:
            for position in needed:
                if position not in known:
                    self._define(position, self.region.values[position])
            known.update(needed)
            for position in folds:
                self._prepare(position)
        else:
            self._walk_chunks(needed, folds, stores)
        for position in folds:
            self._finish(position)
        if self.tile.is_whole:
            self._element_stores(stores)

    def _walk_chunks(self, needed: list[int], folds: list[int], stores: list[Store]) -> None:
        shape = f"[{self.tile.rows}, {self.tile.columns}]"
        for position in folds:
            fold = self._fold(position)
            self._line(f"a{position} = tl.full({shape}, {fold.start}, {fold.kind})")
            if self.region.values[position].op in ARG_REDUCTIONS:
                lanes = self._wide(f"tl.arange(0, {self.tile.columns})")
                self._line(f"at{position} = tl.broadcast_to({lanes}[None, :], {shape})")
        for position in needed:
            value = self.region.values[position]
            if value.op in SCANS:
                start = 0 if value.op == "cumsum" else 1
                kind = _wide_kind(value.dtype)
                self._line(f"s{position} = tl.full([{self.tile.rows}, 1], {start}, {kind})")
        length = self.dim(symbolic.product(self.region.axes[self.outer :]))
        self._line(f"for begin in range(0, {length}, {self.tile.columns}):")
        self.indent += 1
        self._columns("begin + ")
        for position in needed:
            self._define(position, self.region.values[position])
        for position in folds:
            self._prepare(position)
            self._combine(position)
        self._element_stores(stores)
        self.indent -= 1

    def _element_stores(self, stores: Sequence[Store]) -> None:
        for store in stores:
            self._store(store, *self._element(store.operand))

    def _element(self, operand: int) -> tuple[str, str]:
        """Pointers to the elements of an operand, and their mask."""
        if not self.plan.is_rows:
            offset = self._flat_offset(operand)
            return f"b{operand}{offset}", self.mask if offset else ""
        strides = self.region.operands[operand].strides
        offset = self._offset(operand, range(self.outer, len(strides)))
        masks = [
            self.row_mask if any(stride != 0 for stride in strides[: self.outer]) else "",
            self.mask if offset else "",
        ]
        return f"r{operand}{offset}", " & ".join(filter(None, masks))

    # --- folds ------------------------------------------------------------------------------

    def _fold(self, position: int) -> _Fold:
        value = self.region.values[position]
        return _fold_of(value.op, self.region.values[value.args[0]].dtype)

    def _prepare(self, position: int) -> None:
        """The numbers that a reduction takes, as it takes them."""
        value, fold = self.region.values[position], self._fold(position)
        (argument,) = value.args
        x = fold.taken.format(x=f"v{argument}")
        name = f"x{position}" if not self.tile.is_whole else f"a{position}"
        if self.mask:
            self._line(f"{name} = tl.where({self.mask}, {x}, {fold.start}).to({fold.kind})")
        elif self.plan.per_element[argument]:
            self._line(f"{name} = {x}")
        else:
            shape = f"[{self.tile.rows}, {self.tile.columns}]"
            self._line(f"{name} = tl.broadcast_to({x}, {shape})")
        if self.tile.is_whole and value.op in ARG_REDUCTIONS:
            self._line(f"at{position} = column")

    def _combine(self, position: int) -> None:
        value, fold = self.region.values[position], self._fold(position)
        total, x = f"a{position}", f"x{position}"
        if value.op in ARG_REDUCTIONS:
            order = ">" if value.op == "argmax" else "<"
            self._line(f"better{position} = {x} {order} {total}")
            self._line(f"at{position} = tl.where(better{position}, column, at{position})")
        self._line(f"{total} = {fold.combined.format(a=total, x=x)}")

    def _finish(self, position: int) -> None:
        """The number that a finished reduction gives."""
        value, fold = self.region.values[position], self._fold(position)
        reduced = fold.reduced.format(a=f"a{position}")
        kind = compute_type(value.dtype)
        if value.op in ARG_REDUCTIONS:
            length = self.dim(symbolic.product(self.region.axes[self.outer :]))
            self._line(f"top{position} = {reduced}")
            places = f"tl.where(a{position} == top{position}, at{position}, {length})"
            result = f"tl.min({places}, 1, keep_dims=True).to({kind})"
        elif value.op == "reduce_mean":
            length = self.dim(symbolic.product(self.region.axes[self.outer :]))
            count = f"tl.full((), {length}, {kind})"
            if DTYPES[value.dtype].is_float:
                result = f"f.divide({reduced}, {count})"
            else:
                result = f"({reduced} // {length}).to({kind})"
        else:
            result = fold.result.format(a=reduced, kind=kind)
        self._line(f"v{position} = {result}")

    # --- values -----------------------------------------------------------------------------

    def _define(self, position: int, value: Value) -> None:
        if value.op in SCANS:
            self._scan(position, value)
            return
        self._line(f"v{position} = {self._expression(position, value)}")

    def _scan(self, position: int, value: Value) -> None:
        start, sign = ("0", "+") if value.op == "cumsum" else ("1", "*")
        wide, (argument,) = _wide_kind(value.dtype), value.args
        x = f"v{argument}.to({wide})"
        shape = f"[{self.tile.rows}, {self.tile.columns}]"
        if self.mask:
            x = f"tl.where({self.mask}, {x}, {start})"
        scanned = f"tl.{value.op}(tl.broadcast_to({x}, {shape}), 1)"
        if self.tile.is_whole:
            self._line(f"v{position} = {scanned}.to({compute_type(value.dtype)})")
            return
        total, last = f"t{position}", self.tile.columns - 1
        self._line(f"{total} = {scanned} {sign} s{position}")
        picked = f"tl.where(column == begin + {last}, {total}, 0)"
        self._line(f"s{position} = tl.sum({picked}, 1, keep_dims=True)")
        self._line(f"v{position} = {total}.to({compute_type(value.dtype)})")

    def _expression(self, position: int, value: Value) -> str:
        kind = compute_type(value.dtype)
        if value.op == "load":
            place, mask = self._element(operand_of(value))
            given = f", mask={mask}" if mask else ""
            return widened(f"tl.load({place}{given})", value.dtype)
        if value.op == "constant":
            return self._constant(value.attr("value"), value.dtype)
        if value.op == "index":
            return f"({self.places[axis_of(value)]}).to({kind})"
        args = [f"v{argument}" for argument in value.args]
        dtypes = [self.region.values[argument].dtype for argument in value.args]
        if value.op == "cast":
            return self._cast(args[0], dtypes[0], value.dtype, self.plan.read_by_values[position])
        return elementwise_text(value, args, dtypes)

    def _constant(self, held: Attr, dtype: str) -> str:
        if isinstance(held, Expr):
            return f"tl.full((), {self.dim(held)}, {compute_type(dtype)})"
        if not isinstance(held, bool | int | float):
            raise InternalError(f"`{held}` is not a number")
        return literal(held, dtype)

    def _cast(self, text: str, source: str, target: str, is_read: bool) -> str:
        result = cast_text(text, source, target)
        if DTYPES[target].is_float and target not in ("f64", "f32") and is_read:
            return result if source == target else widened(narrowed(result, target), target)
        return result

    def _store(self, store: Store, place: str, mask: str) -> None:
        dtype = self.region.operands[store.operand].dtype
        given = f", mask={mask}" if mask else ""
        self._line(f"tl.store({place}, {narrowed(f'v{store.value}', dtype)}{given})")


# --- reductions -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Fold:
    """How a reduction is done.

    Attributes:
        kind: the type of what is reduced.
        start: what it is for no elements.
        taken: what is taken of an element `x`.
        combined: of a number so far `a` and another one `x`.
        reduced: of the numbers `a` of a row.
        result: of what that gives, `a`, in type `kind`.
    """

    kind: str
    start: str
    taken: str
    combined: str
    reduced: str
    result: str

    @property
    def bits(self) -> int:
        """Of what is reduced."""
        return 64 if self.kind.endswith("64") else 32


_SUM = "tl.sum({a}, 1, keep_dims=True)"
_PRODUCT = "tl.reduce({a}, 1, f.product, keep_dims=True)"
_MAX = "tl.max({a}, 1, keep_dims=True)"
_MIN = "tl.min({a}, 1, keep_dims=True)"


def _fold_of(op: str, dtype: str) -> _Fold:
    if op in ("reduce_any", "reduce_all") or (dtype == "bool" and op not in ARG_REDUCTIONS):
        taken = "tl.where({x} != 0, 1, 0)"
        if op in ("reduce_any", "reduce_max", "reduce_sum", "reduce_mean"):
            return _Fold("tl.int32", "0", taken, "tl.maximum({a}, {x})", _MAX, "({a} != 0)")
        return _Fold("tl.int32", "1", taken, "tl.minimum({a}, {x})", _MIN, "({a} != 0)")
    is_float = DTYPES[dtype].is_float
    kind = _wide_kind(dtype)
    if op in ("reduce_sum", "reduce_mean"):
        return _Fold(kind, "0", f"{{x}}.to({kind})", "{a} + {x}", _SUM, "{a}.to({kind})")
    if op == "reduce_prod":
        return _Fold(kind, "1", f"{{x}}.to({kind})", "{a} * {x}", _PRODUCT, "{a}.to({kind})")
    up = op in ("reduce_max", "argmax")
    combined, reduced = ("tl.maximum({a}, {x})", _MAX) if up else ("tl.minimum({a}, {x})", _MIN)
    bits = 64 if dtype in ("f64", "i64") else 32
    kind = f"tl.int{bits}"
    edge = -(1 << (bits - 1)) if up else (1 << (bits - 1)) - 1
    if not is_float:
        start = edge if op in ARG_REDUCTIONS else _limit(dtype, not up)
        return _Fold(kind, str(start), f"{{x}}.to({kind})", combined, reduced, "{a}.to({kind})")
    nan = (1 << (bits - 1)) - 1 if up else -(1 << (bits - 1))
    infinity = 0x7FF0000000000000 if bits == 64 else 0x7F800000
    start = edge if op in ARG_REDUCTIONS else (-1 - infinity if up else infinity)
    taken = f"f.key({{x}}, {nan})"
    return _Fold(kind, str(start), taken, combined, reduced, "f.number({a}, {kind})")


def _wide_kind(dtype: str) -> str:
    """The type of a sum of many elements."""
    return compute_type(dtype) if DTYPES[dtype].is_float else "tl.int64"


def _limit(dtype: str, largest: bool) -> int:
    bits = DTYPES[dtype].bits
    if DTYPES[dtype].kind == "uint":
        return (1 << bits) - 1 if largest else 0
    return (1 << (bits - 1)) - 1 if largest else -(1 << (bits - 1))


# --- expressions ----------------------------------------------------------------------------

_BINARY = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "and": "&",
    "or": "|",
    "xor": "^",
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
}

_CALLS = {
    **{
        op: f"f.{op}"
        for op in (
            "sign trunc relu minimum maximum reciprocal sqrt rsqrt exp expm1 log2 log1p sin cos "
            "tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh erf erfc sigmoid silu "
            "log_sigmoid quick_gelu hardswish hardsigmoid mish fmod"
        ).split()
    },
    "abs": "tl.abs",
    "floor": "tl.floor",
    "ceil": "tl.ceil",
    "exp2": "tl.exp2",
    "log": "tl.log",
    "neg": "f.negate",
    "round": "f.round_even",
    "div": "f.divide",
    "isinf": "f.is_infinite",
    "pow": "f.power",
    "mod": "f.float_mod",
    "floordiv": "f.float_floordiv",
}
"""Functions of floats."""

_INTEGER_CALLS = {
    **{op: f"f.int_{op}" for op in ("floordiv", "mod", "fmod", "pow", "shl", "shr")},
    **{op: f"f.{op}" for op in ("sign", "relu", "minimum", "maximum")},
    "abs": "tl.abs",
}
"""Functions of integers."""


def elementwise_text(value: Value, args: list[str], dtypes: list[str]) -> str:
    """The Triton of an elementwise operation on the variables `args`."""
    op, x, dtype = value.op, args[0], dtypes[0]
    if op in _BINARY:
        return f"{x} {_BINARY[op]} {args[1]}"
    if op == "where":
        return f"tl.where({', '.join(args)})"
    if op == "not":
        return f"{x} ^ 255" if dtype == "u8" else f"~{x}"
    if op == "isnan":
        return f"{x} != {x}"
    if op == "clamp":
        return _clamp_text(value, x, dtype)
    if not DTYPES[dtype].is_float:
        if op in ("floor", "ceil", "round", "trunc"):
            return x
        if op == "neg":
            return f"0 - {x}"
        if op in _INTEGER_CALLS:
            return f"{_INTEGER_CALLS[op]}({', '.join(args)})"
        raise InternalError(f"no Triton for `{op}` of {dtype}")
    match op:
        case "softplus":
            return f"f.softplus({x}, {_attrs(value, ('beta', 'threshold'), dtype)})"
        case "leaky_relu":
            return f"f.leaky_relu({x}, {_attrs(value, ('slope',), dtype)})"
        case "elu":
            return f"f.elu({x}, {_attrs(value, ('alpha',), dtype)})"
        case "gelu":
            return f"f.{'gelu_tanh' if value.attr('approximate') == 'tanh' else 'gelu'}({x})"
    if op in _CALLS:
        return f"{_CALLS[op]}({', '.join(args)})"
    raise InternalError(f"no Triton for `{op}` of {dtype}")


def _attrs(value: Value, names: tuple[str, ...], dtype: str) -> str:
    return ", ".join(literal(number, dtype) for number in numbers_of(value, names))


def _clamp_text(value: Value, text: str, dtype: str) -> str:
    for name, function in (("min", "maximum"), ("max", "minimum")):
        bound = value.attr(name)
        if isinstance(bound, int | float):
            if DTYPES[dtype].is_integer:
                bound = min(max(bound, _limit(dtype, largest=False)), _limit(dtype, largest=True))
            text = f"f.{function}({text}, {literal(bound, dtype)})"
    return text


def widened(text: str, dtype: str) -> str:
    """Elements as they lie in memory, in the type in which they are computed."""
    if dtype.startswith("f8"):
        return f"f.read_{dtype}({text})"
    if dtype == "bool":
        return f"({text} != 0)"
    return f"{text}.to(tl.float32)" if dtype in _NARROW else text


def narrowed(text: str, dtype: str) -> str:
    """The opposite of `widened`, rounded to nearest even."""
    if dtype.startswith("f8"):
        return f"f.narrow_{dtype}({text})"
    if dtype == "bool":
        return f"{text}.to(tl.uint8)"
    return f"{text}.to(tl.{_NARROW[dtype]})" if dtype in _NARROW else text


def cast_text(text: str, source: str, target: str) -> str:
    """The Triton that converts a value of dtype `source` to the computing type of `target`."""
    kind = compute_type(target)
    if compute_type(source) == kind:
        return text
    if target == "bool":
        return f"{text} != 0"
    if DTYPES[source].is_float and DTYPES[target].is_integer:
        least, most = _limit(target, largest=False), _limit(target, largest=True)
        low = float(least) if least else -1.0
        return f"f.to_integer({text}, {kind}, {low!r}, {float(most + 1)!r}, {least}, {most})"
    return f"{text}.to({kind})"


def literal(value: bool | int | float, dtype: str) -> str:
    """A Triton constant of the type in which `dtype` is computed."""
    kind = compute_type(dtype)
    if dtype == "bool":
        return f"tl.full((), {int(bool(value))}, {kind})"
    if DTYPES[dtype].is_float:
        number = float(value)
        text = repr(number) if math.isfinite(number) else f'float("{number}")'
        return f"tl.full((), {text}, {kind})"
    whole = int(value) if not isinstance(value, float) or math.isfinite(value) else 0
    least = _limit(dtype, largest=False)
    return f"tl.full((), {(whole - least) % (1 << DTYPES[dtype].bits) + least}, {kind})"
