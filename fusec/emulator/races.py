"""Finds programs of one launch that depend on each other: a GPU runs them in any order, at once.

For each piece of memory that a launch reads or writes it is kept which program did; another one may
read what one reads, and nothing else.  This also holds operands that share memory, which a plan of
memory may give to an operation that works in place.

Within a program, waves that have the same elements, because there are fewer of these than lanes,
may load them one after the other, while one of them stores: it must not store where they load.
Nor may it load what it stored: another lane may have to, and nothing says that it did already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NOBODY, SEVERAL = -1, -2

WORD = 8
"""Bytes of the buffer of an error: any of several programs may win there."""

Places = NDArray[np.int64]


class Races:
    """Who reads and writes what in one launch.

    Args:
        spans: first address and address behind the last of each operand.
        unit: bytes of the smallest element that is read or written.
        lanes: of a program of several waves; 0 for one wave, whose lanes keep step.
    """

    def __init__(self, spans: Sequence[tuple[int, int]], unit: int, lanes: int = 0) -> None:
        self._unit = unit
        self._lanes = lanes
        self._regions = _merged(spans)
        self._seen: dict[int, tuple[Places, Places]] = {}
        self.program = 0

    def check(self, addresses: NDArray[Any], size: int, elements: int, writes: bool) -> str | None:
        """Note an access of the program that runs, inside one operand.

        Args:
            addresses: of elements, at least one.
            size: bytes of each.
            elements: of the tensor, with those that are masked out.
            writes: or reads.

        Returns:
            What is wrong with it, if anything is.
        """
        index, begin, end = self._region(int(addresses.min()))
        if writes and end - begin == WORD:
            return None
        count = (end - begin) // self._unit + 1
        if index not in self._seen:
            self._seen[index] = np.full(count, NOBODY), np.full(count, NOBODY)
        written, read = self._seen[index]
        places = (addresses.reshape(-1).astype(np.int64) - begin) // self._unit
        if size > self._unit:
            places = (places[:, None] + np.arange(size // self._unit)).reshape(-1)
        writers = written[places]
        if _others(writers, self.program):
            return f"what another program {'also writes' if writes else 'writes'}"
        readers = read[places]
        if writes:
            written[places] = self.program
            if _others(readers, self.program):
                return "what another program reads"
            if elements < self._lanes and (readers == self.program).any():
                return f"what it reads, {elements} elements for {self._lanes} lanes"
            return None
        if (writers == self.program).any():
            return "what it writes"
        alone = (readers == NOBODY) | (readers == self.program)
        read[places] = np.where(alone, self.program, SEVERAL)
        return None

    def _region(self, address: int) -> tuple[int, int, int]:
        for index, (begin, end) in enumerate(self._regions):
            if begin <= address < end:
                return index, begin, end
        raise AssertionError("accesses are checked against the spans first")


def _others(programs: Places, program: int) -> bool:
    return bool(((programs != NOBODY) & (programs != program)).any())


def _merged(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans of memory, those that share some as one."""
    found: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if found and begin < found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found
