"""Calls that are timed: a warm-up until times are steady, then as many as tell the median."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence

WINDOW = 5
"""Calls of which the median is compared with that of as many before."""

STEADY = 0.03
"""How much two medians may differ where times are steady."""

LONGEST_WARM_UP = 3.0
"""Seconds after which a warm-up ends in any case."""

LEAST_CALLS = 20
LEAST_SECONDS = 1.0
LONGEST_SECONDS = 30.0
MOST_CALLS = 2000
"""Calls are timed until there are at least so many and so much time has passed, within bounds."""


def warm_up(call: Callable[[], object], calls: int | None) -> int:
    """Call until times are steady, or `calls` times; gives how many calls it took."""
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < calls if calls is not None else not _is_steady(taken, begin):
        taken.append(_seconds(call))
    return len(taken)


def _is_steady(taken: Sequence[float], begin: float) -> bool:
    if taken and time.perf_counter() - begin > LONGEST_WARM_UP:
        return True
    if len(taken) < 2 * WINDOW:
        return False
    now = statistics.median(taken[-WINDOW:])
    before = statistics.median(taken[-2 * WINDOW : -WINDOW])
    return abs(now - before) <= STEADY * before


def timed(call: Callable[[], object], calls: int | None) -> list[float]:
    """Seconds of each of `calls` calls, or of as many as tell the median."""
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < calls if calls is not None else not _is_enough(taken, begin):
        taken.append(_seconds(call))
    return taken


def _is_enough(taken: Sequence[float], begin: float) -> bool:
    passed = time.perf_counter() - begin
    if taken and (passed > LONGEST_SECONDS or len(taken) >= MOST_CALLS):
        return True
    return len(taken) >= LEAST_CALLS and passed >= LEAST_SECONDS


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def summary(taken: Sequence[float]) -> dict[str, float | int]:
    """What the times of calls come to.

    `spread` is the distance of the quartiles, as a share of the median.
    """
    ordered = sorted(taken)
    median = statistics.median(ordered)
    spread = (_percentile(ordered, 0.75) - _percentile(ordered, 0.25)) / median if median else 0.0
    return {
        "calls": len(ordered),
        "median": median,
        "least": ordered[0],
        "most": ordered[-1],
        "p90": _percentile(ordered, 0.90),
        "p99": _percentile(ordered, 0.99),
        "spread": spread,
    }


def _percentile(ordered: Sequence[float], share: float) -> float:
    """The least time that `share` of all calls did not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
