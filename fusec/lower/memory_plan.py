"""Which arena buffers share memory: slots, reused once what they held is not read again.

The order of steps is fixed.  A slot is as large as the largest buffer it ever holds, an expression
over the symbols; the runtime evaluates it for the shapes it meets.  Whether one expression is
larger than another is proved where it can be, and otherwise judged at the largest sizes the symbols
may have, so the plan is right for all shapes and tight for large ones.
"""

from __future__ import annotations

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
    """One arena buffer: its size, and the steps from the one that fills it to the last reader."""

    buffer: int
    bytes: Dim
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where arena buffers lie.

    Attributes:
        slot_of: the slot of each buffer.
        slots: the different sizes each slot must hold.
    """

    slot_of: Mapping[int, int]
    slots: tuple[tuple[Dim, ...], ...]

    def bytes_at(self, sizes: Mapping[str, int]) -> int:
        """Bytes of all slots for these values of the symbols and of `threads`."""
        slots = (max(symbolic.evaluate(size, sizes) for size in slot) for slot in self.slots)
        return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in slots)


@dataclass(slots=True)
class _Slot:
    number: int
    sizes: list[Dim] = field(default_factory=list)
    judged: int = 0
    free_after: int = -1


def plan_memory(lifetimes: Sequence[Lifetime], ranges: Mapping[str, Range]) -> MemoryPlan:
    """Give each buffer a slot that holds nothing else while it lives.

    Args:
        lifetimes: in any order; a buffer lives from step `first` to step `last`, both included.
        ranges: of the symbols.
    """
    largest = largest_sizes(ranges)
    slots: list[_Slot] = []
    slot_of: dict[int, int] = {}
    free: list[_Slot] = []
    busy: list[_Slot] = []
    for life in sorted(lifetimes, key=lambda life: (life.first, life.buffer)):
        free += [slot for slot in busy if slot.free_after < life.first]
        busy = [slot for slot in busy if slot.free_after >= life.first]
        size = symbolic.evaluate(life.bytes, largest)
        slot = min(free, key=lambda slot: _waste(slot, life.bytes, size), default=None)
        if slot is None:
            slot = _Slot(len(slots))
            slots.append(slot)
        else:
            free.remove(slot)
        if life.bytes not in slot.sizes:
            slot.sizes.append(life.bytes)
        slot.judged = max(slot.judged, size)
        slot.free_after = life.last
        busy.append(slot)
        slot_of[life.buffer] = slot.number
    return MemoryPlan(slot_of, tuple(tuple(_needed(slot.sizes)) for slot in slots))


def largest_sizes(ranges: Mapping[str, Range]) -> dict[str, int]:
    """The largest value of each symbol, and of `threads`."""
    sizes = {name: UNBOUNDED if most is None else most for name, (_, most) in ranges.items()}
    return {**sizes, "threads": THREADS}


def _waste(slot: _Slot, size: Dim, judged: int) -> tuple[int, int, int]:
    """Order of preference: the same expression, then the least growth, then the least left over."""
    growth = max(0, judged - slot.judged)
    return (
        0 if size in slot.sizes and not growth else 1 + growth,
        abs(slot.judged - judged),
        slot.number,
    )


def _needed(sizes: list[Dim]) -> list[Dim]:
    """`sizes` without the numbers that a larger number makes needless."""
    numbers = [size for size in sizes if isinstance(size, int)]
    expressions = sorted((size for size in sizes if not isinstance(size, int)), key=str)
    return [*([max(numbers)] if numbers else []), *expressions]
