"""scatter and index_put on a GPU: the records of `triton_kernel.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fusec import symbolic
from fusec.dtypes import DTYPES
from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr, broadcast, int_attr, ints_attr
from fusec.kernels.cpu import FLOATS, INTEGERS, expanded_strides
from fusec.kernels.gather.triton import elements_fit
from fusec.kernels.index.triton import OPERANDS, by_operand, refused_positions
from fusec.kernels.launch import Call, Launch, Layout, Storage, dense_strides
from fusec.kernels.scatter.cpu import COMBINE
from fusec.kernels.sort.triton import order_launches
from fusec.kernels.triton_index import (
    BLOCK,
    RANK,
    Walk,
    as_bits,
    index_kernel,
    index_launch,
    refused_dims,
    walk,
    where_it_fits,
)
from fusec.kernels.triton_launch import triton_launch
from fusec.kernels.triton_rows import power_above
from fusec.symbolic import Dim, product
from fusec.target import Target

MODULE = "scatter.triton_kernel"

COMBINED = (*FLOATS, "f64", *INTEGERS, "bool")
"""Dtypes whose elements are combined; those of any may be replaced."""

BOOLEAN = {0: 0, 1: 3, 2: 4, 3: 3, 4: 4}
"""What becomes of `COMBINE` for bool: a sum is the larger, a product the smaller."""

FEW = 64
"""Keys that are compared one by one."""

UNKNOWN_HALVES = 40
"""Steps that find a key by halves where nothing bounds how many there are."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Places along an axis that a source is written to.

    Attributes:
        places: i64 [lines, length], dense.
        rows: places that there are.
    """

    places: Storage
    rows: Dim

    @property
    def lines(self) -> Dim:
        """How many lines there are."""
        return self.places.shape[0]

    @property
    def length(self) -> Dim:
        """Keys of a line."""
        return self.places.shape[1]


@dataclass(frozen=True, slots=True)
class Dims:
    """The dims of the result from the outermost one on, of which one is the axis.

    Attributes:
        sizes: of the dims.
        out: steps of the result, and of x.
        line: lines of keys from one place to the next.
        row: places along the axis: 1 for the axis, 0 for others.
        value: steps of the source; 0 for the axis.
    """

    sizes: tuple[Dim, ...]
    out: tuple[Dim, ...]
    line: tuple[Dim, ...]
    row: tuple[Dim, ...]
    value: tuple[Dim, ...]

    def walked(self) -> Walk:
        """As they are walked, the innermost one first."""
        return walk(self.sizes, self.out, self.line, self.row, self.value)


def _keys_launch(
    call: Call, indices: Sequence[Storage], bounds: Sequence[Dim], walked: Walk, keys: Keys
) -> Launch:
    count = product(keys.places.shape)
    return index_launch(
        MODULE,
        "keys_kernel",
        {**by_operand("p_{}", indices), "p_keys": keys.places, "p_error": call.error()},
        {"count": count, **by_operand("{}_bound", bounds)},
        {
            **{f"p_{name}": 0 for name in OPERANDS[len(indices) :]},
            **{f"{name}_bound": 0 for name in OPERANDS[len(indices) :]},
            "AXES": len(indices),
            "BLOCK": BLOCK,
        },
        walked,
        OPERANDS,
        programs=symbolic.ceil_divide(count, BLOCK),
    )


def _copy_launch(x: Storage, out: Storage) -> Launch:
    count = product(x.shape)
    return triton_launch(
        f"fusec.kernels.{MODULE}",
        "copy_kernel",
        {"p_x": as_bits(x), "p_out": as_bits(out)},
        params={"count": count},
        constants={"BLOCK": 2 * BLOCK},
        grid=(symbolic.ceil_divide(count, 2 * BLOCK), 1, 1),
        warps=4,
    )


def _fold_launches(
    call: Call, values: Storage, how: int, keys: Keys, dims: Dims, positions: Walk
) -> tuple[Launch, ...]:
    """Puts keys in order if there are many, and computes the result.

    Args:
        call: of the operation.
        values: the source.
        how: a number of `COMBINE`.
        keys: where the source is written to.
        dims: of the result.
        positions: how the source is walked along the keys of a line.
    """
    longest = symbolic.bounds(keys.length, call.graph.symbols)[1]
    if longest <= FEW:
        return (_fold(call, values, how, keys, dims, positions, {"p_keys": keys.places}),)
    shape = keys.places.shape
    in_order, order = call.scratch("i64", shape), call.scratch("i64", shape)
    starts = call.scratch("i64", (keys.lines, keys.rows + 1))
    count = product(starts.shape)
    known = longest != float("inf")
    halves = int(longest).bit_length() if known else UNKNOWN_HALVES
    find = triton_launch(
        f"fusec.kernels.{MODULE}",
        "starts_kernel",
        {"p_keys": in_order, "p_starts": starts},
        params={
            "lines": keys.lines,
            "length": keys.length,
            "rows": keys.rows,
            "halves": halves,
        },
        constants={"BLOCK": BLOCK // 4},
        grid=(symbolic.ceil_divide(count, BLOCK // 4), 1, 1),
        warps=4,
    )
    found = {"p_order": order, "p_starts": starts}
    return (
        *order_launches(call, keys.places, in_order, order, descending=False),
        find,
        _fold(call, values, how, keys, dims, positions, found),
    )


def _fold(
    call: Call,
    values: Storage,
    how: int,
    keys: Keys,
    dims: Dims,
    positions: Walk,
    found: dict[str, Storage],
) -> Launch:
    x, out = call.inputs[0], call.outputs[0]
    if x.dtype == "bool":
        how = BOOLEAN[how]
    if how == 0 or x.dtype == "bool":
        x, values, out = as_bits(x), as_bits(values), as_bits(out)
    walked = dims.walked()
    columns, inner = walked.sizes[0], [steps[0] for steps in walked.steps]
    outer = Walk(walked.sizes[1:] or (1,), tuple(steps[1:] or (0,) for steps in walked.steps))
    along = inner[1] != 0 or inner[2] != 0
    most = BLOCK if along else 2 * BLOCK
    block = min(most, power_above(max(columns, 1), least=1)) if isinstance(columns, int) else most
    tile_rows = most // block
    tasks = product(outer.sizes)
    given: dict[str, Dim] = {
        "tasks": tasks,
        "columns": columns,
        "length": keys.length,
        "rows": keys.rows,
        **_named("position_size", positions.sizes),
        **_named("position_step", positions.steps[0]),
        "out_inner": inner[0],
        "line_inner": inner[1],
        "row_inner": inner[2],
        "value_inner": inner[3],
    }
    known = {
        name: value
        for name, value in given.items()
        if isinstance(value, int) and (name.endswith("inner") or name.startswith("position"))
    }
    operands = {"p_x": x, "p_values": values, "p_keys": keys.places, **found, "p_out": out}
    absent = {name: 0 for name in ("p_keys", "p_order", "p_starts") if name not in found}
    return index_launch(
        MODULE,
        "fold_kernel",
        {name: storage for name, storage in operands.items() if name not in absent},
        {name: value for name, value in given.items() if name not in known},
        {
            **absent,
            **known,
            "HOW": how,
            "SORTED": int("p_order" in found),
            "ALONG": int(along),
            "POSITION_RANK": len(positions.sizes),
            "ROWS": tile_rows,
            "BLOCK": block,
        },
        outer,
        ("out", "line", "row", "value"),
        programs=symbolic.ceil_divide(tasks, tile_rows) * symbolic.ceil_divide(columns, block),
    )


def _named(name: str, values: Sequence[Dim]) -> dict[str, Dim]:
    """`name_D` for each dim D that a kernel walks; those that are not there are 0."""
    return {f"{name}_{dim}": values[dim] if dim < len(values) else 0 for dim in range(RANK)}


# --- scatter ------------------------------------------------------------------------------------


def _supports_scatter(graph: Graph, node: Node, target: Target) -> str | None:
    reduce = node.attrs.get("reduce")
    if reduce not in COMBINE:
        return f"reduce: it does not know the reduction `{reduce}`"
    return _refused_dtype(graph, node, reduce is not None) or elements_fit(graph, node, target)


def _refused_dtype(graph: Graph, node: Node, combines: bool) -> str | None:
    dtype = graph.type(node.inputs[0]).dtype
    known = COMBINED if combines else tuple(DTYPES)
    return None if dtype in known else f"dtype: it combines {', '.join(known)}, not {dtype}"


def _scatter_layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    return ("contiguous", "strided", "strided", "contiguous")


def _scatter(call: Call) -> tuple[Launch, ...]:
    x, index, source = call.inputs
    axis = int_attr(call.attrs, "axis") % len(x.shape)
    reduce = call.attrs.get("reduce")
    others = [dim for dim in range(len(x.shape)) if dim != axis]
    varied = [dim for dim in others if index.strides[dim] != 0 and index.shape[dim] != 1]
    line_sizes = tuple(index.shape[dim] for dim in varied)
    length = index.shape[axis]
    keys = Keys(call.scratch("i64", (product(line_sizes), length)), x.shape[axis])
    turned = (*varied, axis)
    over = walk((*line_sizes, length), tuple(index.strides[dim] for dim in turned))
    lines = dict(zip(varied, dense_strides(line_sizes), strict=True))
    dims = Dims(
        sizes=_with(index.shape, axis, x.shape[axis]),
        out=x.strides,
        line=tuple(lines.get(dim, 0) for dim in range(len(x.shape))),
        row=tuple(int(dim == axis) for dim in range(len(x.shape))),
        value=_with(source.strides, axis, 0),
    )
    covers = all(index.shape[dim] == x.shape[dim] for dim in others)
    launches = (
        *(() if covers else (_copy_launch(x, call.outputs[0]),)),
        _keys_launch(call, (index,), (x.shape[axis],), over, keys),
        *_fold_launches(
            call,
            source,
            COMBINE[reduce if isinstance(reduce, str) else None],
            keys,
            dims,
            walk((length,), (source.strides[axis],)),
        ),
    )
    return where_it_fits(call, axis, launches)


def _with(values: tuple[Dim, ...], axis: int, value: Dim) -> tuple[Dim, ...]:
    return (*values[:axis], value, *values[axis + 1 :])


# --- index_put ----------------------------------------------------------------------------------


def _supports_put(graph: Graph, node: Node, target: Target) -> str | None:
    x = graph.type(node.inputs[0])
    axes = ints_attr(node.attrs, "axes")
    first = axes[0] % x.rank
    return (
        _refused_dtype(graph, node, bool_attr(node.attrs, "accumulate"))
        or refused_positions(graph, node.inputs[2:])
        or refused_dims((*x.shape[:first], *x.shape[first + len(axes) :]))
    )


def _put_layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    strided: Layout = "strided"
    return ("contiguous", *(strided,) * (len(node.inputs) - 1), "contiguous")


def _index_put(call: Call) -> tuple[Launch, ...]:
    x, values, *indices = call.inputs
    axes = ints_attr(call.attrs, "axes")
    first = axes[0] % len(x.shape)
    last = first + len(axes)
    bounds = x.shape[first:last]
    positions = broadcast(*(storage.shape for storage in indices))
    keys = Keys(call.scratch("i64", (1, product(positions))), product(bounds))
    over = walk(positions, *(expanded_strides(storage, positions) for storage in indices))
    steps = expanded_strides(values, (*x.shape[:first], *positions, *x.shape[last:]))
    behind = first + len(positions)
    none = (0,) * (len(x.shape) - len(axes))
    dims = Dims(
        sizes=(*x.shape[:first], keys.rows, *x.shape[last:]),
        out=(*x.strides[:first], product(x.shape[last:]), *x.strides[last:]),
        line=(*none, 0),
        row=(*none[:first], 1, *none[first:]),
        value=(*steps[:first], 0, *steps[behind:]),
    )
    how = COMBINE["add" if bool_attr(call.attrs, "accumulate") else None]
    along = walk(positions, steps[first:behind])
    return (
        _keys_launch(call, indices, bounds, over, keys),
        *_fold_launches(call, values, how, keys, dims, along),
    )


TRITON = (
    index_kernel("scatter", _scatter, _supports_scatter, _scatter_layouts, "scatter"),
    index_kernel("index_put", _index_put, _supports_put, _put_layouts, "scatter"),
)
