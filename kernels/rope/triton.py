"""The record of `triton_kernel.py`, and how rows are shared out to programs that rotate them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fusec import symbolic
from fusec.ir import Graph, Node, TensorType
from fusec.ir.types import bool_attr, int_attr, str_attr
from fusec.kernels.launch import Call, Launch, Layout, Storage
from fusec.kernels.registry import Kernel
from fusec.kernels.triton_rows import (
    FAMILIES,
    LONGEST,
    SHARES,
    RowArguments,
    Tile,
    power_above,
    supports_rows,
)
from fusec.symbolic import Dim
from fusec.target import Target

TOKEN_AXES = 3
"""Axes before the last that are not the heads', at most."""


@dataclass(frozen=True, slots=True)
class Axes:
    """Which axes of x count heads and tokens.

    Attributes:
        head: the axis along which all rows have the same angles, or `None`.
        tokens: the others but for the last, without those of size 1.
    """

    head: int | None
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a row consists of, in elements.

    Attributes:
        length: of the row.
        half: of each of the two parts that are turned together.
        block: the power of two that holds a part.
        rest_block: the power of two that holds what passes through.
    """

    length: int
    half: int
    block: int
    rest_block: int

    @property
    def padded(self) -> int:
        """Elements of a row in registers."""
        return 2 * self.block + (self.rest_block if self.length > 2 * self.half else 0)


def axes_of(rows: Sequence[TensorType], tables: Sequence[TensorType]) -> Axes:
    """The axes of values that are rotated by the same tables and differ in their heads alone.

    Args:
        rows: types of these values, of one rank.
        tables: those of the tables.
    """
    rank = rows[0].rank
    outer = [axis for axis in range(rank - 1) if any(each.shape[axis] != 1 for each in rows)]
    free = [
        axis
        for axis in outer
        if all(isinstance(each.shape[axis], int) for each in rows)
        and all(_is_broadcast(table, axis, rank) for table in tables)
    ]
    uneven = [axis for axis in free if len({each.shape[axis] for each in rows}) > 1]
    head = next(iter(uneven), free[-1] if free else None)
    return Axes(head, tuple(axis for axis in outer if axis != head))


def _is_broadcast(table: TensorType, axis: int, rank: int) -> bool:
    place = axis - rank + table.rank
    return place < 0 or table.shape[place] == 1


def parts_of(length: int, rotary: int) -> Parts:
    """The parts of a row of `length` elements, of which `rotary` are rotated."""
    half = rotary // 2
    return Parts(length, half, power_above(half, 1), power_above(max(1, length - rotary), 1))


def heads_of(heads: int, parts: Parts, target: Target) -> int:
    """How many of `heads` heads a program has: the most, a power of two, that wastes few rows."""
    most = min(power_above(heads, 1), rows_at_once(parts, target))
    sizes = [size for size in (most, most // 2, most // 4) if size > 0]
    wasted = {size: -(-heads // size) * size - heads for size in sizes}
    few = [size for size in sizes if 3 * wasted[size] <= heads]
    return few[0] if few else min(sizes, key=lambda size: wasted[size])


def rows_at_once(parts: Parts, target: Target) -> int:
    """Rows that keep a work group busy: a power of two."""
    return power_below(SHARES[target.family].least // parts.padded)


def tokens_of(heads: int, block: int, parts: Parts, target: Target) -> int:
    """How many tokens a program has: several where blocks of `block` hold all heads and are small.

    A power of two.
    """
    return max(1, rows_at_once(parts, target) // block) if block >= heads else 1


def warps_of(rows: int, parts: Parts, target: Target) -> int:
    """Waves or warps that hold `rows` rows: a power of two."""
    shares = SHARES[target.family]
    lanes = rows * parts.padded // shares.elements
    return min(shares.warps, power_below(lanes // target.wave_size))


def power_below(value: int) -> int:
    """The largest power of two that is not above `value`, and at least 1."""
    return 1 << (max(1, value).bit_length() - 1)


def refused_rows(
    rows: Sequence[TensorType], tables: Sequence[TensorType], rotary: int
) -> str | None:
    """Why these rows are not rotated by the kernel, or `None`."""
    if rotary % 2:
        return "it turns pairs, and `rotary_dim` is odd"
    longest = max(int(each.shape[-1]) for each in rows if isinstance(each.shape[-1], int))
    if longest > LONGEST:
        return f"a row has {longest} elements, more than {LONGEST}"
    tokens = axes_of(rows, tables).tokens
    if len(tokens) > TOKEN_AXES:
        return f"tokens have {len(tokens)} coordinates, more than {TOKEN_AXES}"
    return None


def all_rows(graph: Graph, node: Node) -> tuple[Layout, ...]:
    """Unit stride along a row, any strides elsewhere."""
    rows: Layout = "rows"
    return (rows,) * (len(node.inputs) + len(node.outputs))


def token_sizes(storage: Storage, axes: Axes) -> tuple[Dim, Dim | None, Dim | None]:
    """How many tokens there are, and the sizes of their last two coordinates but where none is."""
    sizes = [storage.shape[axis] for axis in axes.tokens]
    inner = [*sizes[1:], None, None]
    return symbolic.product(tuple(sizes)), inner[0], inner[1]


def pass_tokens(arguments: RowArguments, storage: Storage, axes: Axes) -> None:
    """Pass `tokens`, `size1` and `size2`; a coordinate that is not there has size 1."""
    tokens, size1, size2 = token_sizes(storage, axes)
    arguments.integer("tokens", tokens)
    for name, size in (("size1", size1), ("size2", size2)):
        if size is None:
            arguments.constants[name] = 1
        else:
            arguments.integer(name, size)


def pass_strides(
    arguments: RowArguments, name: str, storage: Storage, axes: Axes, rank: int, *, head: bool
) -> None:
    """Pass the elements between tokens along each coordinate, and between heads.

    Args:
        arguments: what is passed.
        name: of the pointer.
        storage: rows, or a table that is broadcast to rows of `rank` axes.
        axes: what its axes count.
        rank: of the rows.
        head: whether there is a row for each head.
    """
    steps = [_step(storage, axis, rank) for axis in axes.tokens]
    for place in range(TOKEN_AXES):
        arguments.integer(f"{name}_stride{place}", steps[place] if place < len(steps) else None)
    if head:
        step = None if axes.head is None else _step(storage, axes.head, rank)
        arguments.integer(f"{name}_head", step)


def _step(storage: Storage, axis: int, rank: int) -> Dim | None:
    """Elements from one place along an axis to the next, `None` where one serves all."""
    place = axis - rank + len(storage.shape)
    if place < 0 or storage.shape[place] == 1:
        return None
    return storage.strides[place]


def style_constants(call: Call, table: Storage) -> dict[str, int]:
    """`INTERLEAVED`, `DEINTERLEAVE` and `TWICE` of the kernels."""
    interleaved = str_attr(call.attrs, "style") == "interleaved"
    deinterleave = interleaved and bool_attr(call.attrs, "deinterleave")
    whole = table.shape[-1] == int_attr(call.attrs, "rotary_dim")
    return {
        "INTERLEAVED": int(interleaved),
        "DEINTERLEAVE": int(deinterleave),
        "TWICE": int(whole and interleaved and not deinterleave),
    }


def head_count(type: TensorType, axes: Axes) -> int:
    """Heads of a token; all rows are those of tokens where no axis counts heads."""
    size = 1 if axes.head is None else type.shape[axes.head]
    assert isinstance(size, int)
    return size


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    x, *tables = (graph.type(value) for value in node.inputs)
    rotary = int_attr(node.attrs, "rotary_dim")
    return supports_rows(graph, node, target) or refused_rows([x], tables, rotary)


def _launch(call: Call) -> Launch:
    x, cos, sin = call.inputs
    kind = call.input_type(0)
    axes = axes_of([kind], [call.input_type(1), call.input_type(2)])
    length = kind.shape[-1]
    assert isinstance(length, int)
    parts = parts_of(length, int_attr(call.attrs, "rotary_dim"))
    all_heads = head_count(kind, axes)
    heads = heads_of(all_heads, parts, call.target)
    tokens = tokens_of(all_heads, heads, parts, call.target)
    arguments = RowArguments()
    storages = {"x": x, "cos": cos, "sin": sin, "y": call.outputs[0]}
    for name, storage in storages.items():
        arguments.pointer(name, storage)
    pass_tokens(arguments, x, axes)
    for name in ("x", "y", "cos", "sin"):
        is_table = name in ("cos", "sin")
        pass_strides(arguments, name, storages[name], axes, kind.rank, head=not is_table)
    arguments.constants |= {
        "N": length,
        "HALF": parts.half,
        "BLOCK": parts.block,
        "REST_BLOCK": parts.rest_block,
        "ALL_HEADS": all_heads,
        "HEADS": heads,
        "TOKENS": tokens,
        **style_constants(call, cos),
    }
    tile = Tile(parts.padded, heads * tokens, warps_of(heads * tokens, parts, call.target))
    programs = symbolic.ceil_divide(token_sizes(x, axes)[0], tokens)
    columns = math.ceil(all_heads / heads)
    return arguments.launch("rope.triton_kernel", "rope_kernel", tile, programs, columns)


TRITON = (
    Kernel(
        op="rope",
        name="rope.triton",
        provider="triton",
        families=FAMILIES,
        source="rope/triton_kernel.py",
        supports=_supports,
        launch=_launch,
        layouts=all_rows,
    ),
)
