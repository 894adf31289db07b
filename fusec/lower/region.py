"""What a generated kernel computes: one loop nest, as data.

From one description C++ is printed for CPUs; nothing in it belongs to a language.  A region runs
over `axes`.  The last `row_axes` of them make a row: a reduction runs over a row, and what it gives
is one number a row that later values of the same row may use.  A region without reductions has no
rows.  Values are listed in an order in which each comes after what it reads.

Floats narrower than 32 bits are computed in f32 and rounded when they are stored, or where a
`cast` says so and something reads the result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fusec.ir import Attr
from fusec.symbolic import Dim

REDUCTIONS = frozenset(
    f"reduce_{name}" for name in ("sum", "mean", "max", "min", "prod", "any", "all")
)
"""One number a row."""

ARG_REDUCTIONS = frozenset(("argmax", "argmin"))
"""The place of a number in its row."""

SCANS = frozenset(("cumsum", "cumprod"))
"""A number at each place, from all those up to it."""


@dataclass(frozen=True, slots=True)
class Operand:
    """A buffer that the region reads or writes.

    Attributes:
        dtype: of its elements.
        strides: the step along each axis, in elements; 0 where it does not depend on the axis.
    """

    dtype: str
    strides: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """One number at each place, or one a row.

    Attributes:
        op: an elementwise operation of the IR, a reduction, a scan, or `load` (`operand`),
            `constant` (`value`), `index` (`axis`: the place along it).
        dtype: of the result.
        args: values it reads, by their position.
        attrs: what else the operation needs, sorted by name.
    """

    op: str
    dtype: str
    args: tuple[int, ...] = ()
    attrs: tuple[tuple[str, Attr], ...] = ()

    def attr(self, name: str) -> Attr:
        """The attribute `name`, or `None`."""
        return dict(self.attrs).get(name)


@dataclass(frozen=True, slots=True)
class Store:
    """The value at position `value` is written to the operand at position `operand`."""

    value: int
    operand: int


@dataclass(frozen=True, slots=True)
class Region:
    """A loop nest, see the module's documentation."""

    axes: tuple[Dim, ...]
    row_axes: int
    operands: tuple[Operand, ...]
    values: tuple[Value, ...]
    stores: tuple[Store, ...]

    def indexed_axes(self) -> frozenset[int]:
        """The axes along which some value needs its place."""
        axes = {value.attr("axis") for value in self.values if value.op == "index"}
        if any(value.op in ARG_REDUCTIONS | SCANS for value in self.values):
            axes.update(range(len(self.axes) - self.row_axes, len(self.axes)))
        return frozenset(axis for axis in axes if isinstance(axis, int))


def simplified(region: Region) -> Region:
    """`region` with as few axes as it can have: axes of size 1 dropped, neighbours joined.

    Two neighbours are joined when every operand steps along both as along one.  At least one axis
    stays, and at least one in a row.
    """
    region = _without_unit_axes(region)
    indexed = region.indexed_axes()
    first_row = len(region.axes) - region.row_axes
    groups: list[list[int]] = []
    for axis in range(len(region.axes)):
        if groups and axis != first_row and _joins(region, groups[-1][-1], axis, indexed):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    sizes: list[Dim] = []
    for group in groups:
        size: Dim = 1
        for axis in group:
            size = size * region.axes[axis]
        sizes.append(size)
    operands = tuple(
        replace(operand, strides=tuple(operand.strides[group[-1]] for group in groups))
        for operand in region.operands
    )
    number = {group[-1]: position for position, group in enumerate(groups)}
    rows = sum(1 for group in groups if group[0] >= first_row)
    values = tuple(_renumbered(value, number) for value in region.values)
    return Region(tuple(sizes), rows, operands, values, region.stores)


def _joins(region: Region, left: int, right: int, indexed: frozenset[int]) -> bool:
    if left in indexed or right in indexed:
        return False
    size = region.axes[right]
    return all(
        operand.strides[left] == operand.strides[right] * size for operand in region.operands
    )


def _without_unit_axes(region: Region) -> Region:
    indexed = region.indexed_axes()
    first_row = len(region.axes) - region.row_axes
    kept = [axis for axis, size in enumerate(region.axes) if size != 1 or axis in indexed]
    rows = sum(1 for axis in kept if axis >= first_row)
    if region.row_axes and not rows:
        kept.append(len(region.axes) - 1)
        rows = 1
    operands = tuple(
        replace(operand, strides=tuple(operand.strides[axis] for axis in kept))
        for operand in region.operands
    )
    number = {axis: position for position, axis in enumerate(kept)}
    values = tuple(_renumbered(value, number) for value in region.values)
    axes = tuple(region.axes[axis] for axis in kept)
    if not axes:
        operands = tuple(replace(operand, strides=(0,)) for operand in operands)
        axes = (1,)
    return Region(axes, rows, operands, values, region.stores)


def _renumbered(value: Value, number: dict[int, int]) -> Value:
    axis = value.attr("axis")
    if value.op != "index" or not isinstance(axis, int):
        return value
    attrs = tuple((key, number[axis] if key == "axis" else held) for key, held in value.attrs)
    return replace(value, attrs=attrs)
