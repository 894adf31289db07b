"""What every printer of regions decides alike: when a value is known, and where it varies.

A value is one an element or one a row.  A row is walked in passes: a reduction gives its number at
the end of a pass, and what depends on it is computed in a later one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fusec.diagnostics import InternalError
from fusec.lower.region import ARG_REDUCTIONS, REDUCTIONS, SCANS, Region, Store, Value

FOLDS = REDUCTIONS | ARG_REDUCTIONS
"""What gives its number at the end of a pass."""

_COSTS = {"load": 2, "constant": 0, "cast": 2}
_CHEAP = frozenset(
    "neg abs add sub mul where clamp eq ne lt le gt ge and or xor not minimum maximum relu".split()
)


class RegionPlan:
    """The passes of a region.

    Attributes:
        region: which is walked.
        is_rows: whether it has rows.
        first_row: the first axis of a row, or the last axis of all where there are no rows.
        stage: for each value, the pass in which it is known.
        per_element: for each value, whether it is one an element.
        read_by_values: for each value, whether another one reads it.
    """

    def __init__(self, region: Region) -> None:
        self.region = region
        self.is_rows = region.row_axes > 0
        self.first_row = len(region.axes) - (region.row_axes or 1)
        self.per_element = [False] * len(region.values)
        self.stage = [0] * len(region.values)
        self.read_by_values = [False] * len(region.values)
        for position, value in enumerate(region.values):
            self._place(position, value)

    def _place(self, position: int, value: Value) -> None:
        for argument in value.args:
            self.read_by_values[argument] = True
        stage = max((self.stage[argument] for argument in value.args), default=0)
        if value.op == "load":
            strides = self.region.operands[operand_of(value)].strides[self.first_row :]
            self.per_element[position] = any(stride != 0 for stride in strides)
        elif value.op == "index":
            self.per_element[position] = axis_of(value) >= self.first_row
        elif value.op in FOLDS:
            stage += 1
        elif value.op in SCANS:
            self.per_element[position] = True
        else:
            self.per_element[position] = any(self.per_element[arg] for arg in value.args)
        self.stage[position] = stage

    @property
    def stages(self) -> range:
        """The passes, in order."""
        return range(max(self.stage, default=0) + 1)

    def one_a_row(self, operand: int) -> bool:
        """Whether the operand at a position is one number a row."""
        strides = self.region.operands[operand].strides[self.first_row :]
        return self.is_rows and all(stride == 0 for stride in strides)

    def folds(self, stage: int) -> list[int]:
        """The reductions that end with a pass."""
        return [
            position
            for position, value in enumerate(self.region.values)
            if value.op in FOLDS and self.stage[position] == stage + 1
        ]

    def row_stores(self, stage: int) -> list[Store]:
        """Stores of numbers that are one a row and known before a pass."""
        return [
            store
            for store in self.region.stores
            if self.one_a_row(store.operand) and self.stage[store.value] == stage
        ]

    def element_stores(self, stage: int) -> list[Store]:
        """Stores of each element that a pass makes."""
        return [
            store
            for store in self.region.stores
            if not self.one_a_row(store.operand) and self.stage[store.value] == stage
        ]

    def needed(self, folds: Iterable[int], stores: Iterable[Store]) -> list[int]:
        """The values that are one an element and that a pass depends on, in order."""
        seen: set[int] = set()
        stack = [argument for position in folds for argument in self.region.values[position].args]
        stack += [store.value for store in stores]
        while stack:
            position = stack.pop()
            if position in seen or not self.per_element[position]:
                continue
            seen.add(position)
            stack += self.region.values[position].args
        return sorted(seen)


def operand_of(value: Value) -> int:
    """The operand that a load reads."""
    operand = value.attr("operand")
    if not isinstance(operand, int):
        raise InternalError("a load names no operand")
    return operand


def axis_of(value: Value) -> int:
    """The axis of an index."""
    axis = value.attr("axis")
    if not isinstance(axis, int):
        raise InternalError("an index names no axis")
    return axis


def numbers_of(value: Value, names: Iterable[str]) -> list[int | float]:
    """The attributes `names`, which are numbers."""
    numbers: list[int | float] = []
    for name in names:
        held = value.attr(name)
        if not isinstance(held, int | float):
            raise InternalError(f"`{value.op}` has no number `{name}`")
        numbers.append(held)
    return numbers


def cost_of(value: Value) -> int:
    """The work of one element, in additions."""
    if value.op in _COSTS:
        return _COSTS[value.op]
    return 1 if value.op in _CHEAP else 8


def permuted(region: Region, order: list[int]) -> Region:
    """`region`, which has no rows, with its axes in another order."""
    number = {axis: position for position, axis in enumerate(order)}

    def moved(value: Value) -> Value:
        if value.op != "index":
            return value
        return replace(value, attrs=(("axis", number[axis_of(value)]),))

    return Region(
        tuple(region.axes[axis] for axis in order),
        0,
        tuple(
            replace(operand, strides=tuple(operand.strides[axis] for axis in order))
            for operand in region.operands
        ),
        tuple(map(moved, region.values)),
        region.stores,
    )
