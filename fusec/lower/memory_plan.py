"""Which arena buffers share memory: slots, reused once what they held is not read again.

A step that reads each element before it writes in its place may have its result in the slot of an
operand that nothing reads later.

The order of steps is fixed.  A slot is as large as the largest buffer it ever holds, an expression
over the symbols; the runtime evaluates it for the shapes it meets.  Whether one expression is
larger than another is proved where it can be, and otherwise judged at the largest sizes the symbols
may have, so the plan is right for all shapes and tight for large ones.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fusec import symbolic
from fusec.symbolic import Dim, Range

ALIGNMENT = 64
UNBOUNDED = 1 << 16
THREADS = 64
"""Sizes assumed, for comparing only, where there is no bound."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """One arena buffer: its size, and the steps from the one that fills it to the last reader.

    Attributes:
        buffer: its number.
        bytes: its size.
        first: the step that fills it.
        last: the last that reads it.
        over: a buffer that the step that fills this one reads, and that it may lie upon if nothing
            reads it later.
    """

    buffer: int
    bytes: Dim
    first: int
    last: int
    over: int | None = None


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where arena buffers lie.

    Attributes:
        slot_of: the slot of each buffer.
        slots: the different sizes each slot must hold.
        alignment: bytes at multiples of which slots begin.
    """

    slot_of: Mapping[int, int]
    slots: tuple[tuple[Dim, ...], ...]
    alignment: int = ALIGNMENT

    def bytes_at(self, sizes: Mapping[str, int]) -> int:
        """Bytes of all slots for these values of the symbols and of `threads`."""
        slots = (max(symbolic.evaluate(size, sizes) for size in slot) for slot in self.slots)
        return sum(-(-size // self.alignment) * self.alignment for size in slots)


@dataclass(slots=True)
class _Slot:
    """A slot in the making; `starts` and `ends` of what it holds are sorted and do not overlap."""

    number: int
    judged: int
    sizes: list[Dim] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    held: list[Lifetime] = field(default_factory=list)

    def is_free(self, life: Lifetime) -> bool:
        """Whether nothing that it holds lives at the same time."""
        after = bisect_left(self.starts, life.first)
        return (after == 0 or _ends_before(self.held[after - 1], life)) and (
            after == len(self.starts) or _ends_before(life, self.held[after])
        )

    def take(self, life: Lifetime) -> None:
        """Hold one more buffer."""
        place = bisect_left(self.starts, life.first)
        self.starts.insert(place, life.first)
        self.held.insert(place, life)
        if life.bytes not in self.sizes:
            self.sizes.append(life.bytes)


def _ends_before(earlier: Lifetime, later: Lifetime) -> bool:
    """Whether `earlier` is read no more when `later` is filled, or as it is filled upon it."""
    lies_upon = earlier.last == later.first and later.over == earlier.buffer
    return lies_upon or earlier.last < later.first


def plan_memory(
    lifetimes: Sequence[Lifetime], ranges: Mapping[str, Range], alignment: int = ALIGNMENT
) -> MemoryPlan:
    """Give each buffer a slot that holds nothing else while it lives.

    The largest come first, so that a slot never grows; each takes the free slot that already holds
    a buffer of its size, or else the smallest one that is free (Pisarchyk and Lee, "Efficient
    Memory Management for Deep Neural Net Inference", 2020, greedy by size).

    Args:
        lifetimes: in any order; a buffer lives from step `first` to step `last`, both included.
        ranges: of the symbols.
        alignment: bytes at multiples of which slots begin.
    """
    largest = largest_sizes(ranges)
    judged = {life.buffer: symbolic.evaluate(life.bytes, largest) for life in lifetimes}
    slots: list[_Slot] = []
    slot_of: dict[int, int] = {}
    for life in sorted(lifetimes, key=lambda life: (-judged[life.buffer], life.first, life.buffer)):
        free = [slot for slot in slots if slot.is_free(life)]
        slot = min(free, key=lambda slot: _waste(slot, life.bytes), default=None)
        if slot is None:
            slot = _Slot(len(slots), judged[life.buffer])
            slots.append(slot)
        slot.take(life)
        slot_of[life.buffer] = slot.number
    return MemoryPlan(slot_of, tuple(tuple(_needed(slot.sizes)) for slot in slots), alignment)


def largest_sizes(ranges: Mapping[str, Range]) -> dict[str, int]:
    """The largest value of each symbol, and of `threads`."""
    sizes = {name: UNBOUNDED if most is None else most for name, (_, most) in ranges.items()}
    return {**sizes, "threads": THREADS}


def _waste(slot: _Slot, size: Dim) -> tuple[bool, int, int]:
    return (size not in slot.sizes, slot.judged, slot.number)


def _needed(sizes: list[Dim]) -> list[Dim]:
    """`sizes` without the numbers that a larger number makes needless."""
    numbers = [size for size in sizes if isinstance(size, int)]
    expressions = sorted((size for size in sizes if not isinstance(size, int)), key=str)
    return [*([max(numbers)] if numbers else []), *expressions]
