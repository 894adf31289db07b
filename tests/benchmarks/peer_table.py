"""What `peers.py` found out, and how it is written down."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peer_runners import TITLES

DISTRIBUTIONS = (
    "torch",
    "transformers",
    "onnxruntime",
    "openvino",
    "iree-base-compiler",
    "libggml-python",
)


@dataclass(frozen=True)
class Result:
    """One peer with one workload at one number of threads.

    Attributes:
        workload: its name.
        threads: that computed.
        peer: its name.
        goal: the ratio that is aimed at.
        failed: why there are no times; empty if there are.
        note: on how the peer compiled it.
        error: against float64.
        setup: seconds to compile and warm up in.
        wall: milliseconds of calls, by round.
        processor: milliseconds of all threads' processors, by round.
    """

    workload: str
    threads: int
    peer: str
    goal: float = 1.0
    failed: str = ""
    note: str = ""
    error: float | None = None
    setup: float | None = None
    wall: list[list[float]] = field(default_factory=list)
    processor: list[list[float]] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, int, str]:
        """What it is about."""
        return self.workload, self.threads, self.peer

    @property
    def median(self) -> float:
        """Milliseconds: the median of the rounds' medians."""
        return statistics.median(statistics.median(each) for each in self.wall)

    @property
    def least(self) -> float:
        """Milliseconds: the least of all calls."""
        return min(min(each) for each in self.wall)

    @property
    def least_processor(self) -> float:
        """Milliseconds: the least that a call took of all processors together."""
        return min(min(each) for each in self.processor)

    def as_json(self) -> dict[str, Any]:
        """What its constructor takes."""
        return asdict(self)


def markdown(results: Sequence[Result], absent: Mapping[str, Sequence[str]]) -> str:
    """Three tables: a line for each workload, one for each peer, and what gave no times."""
    parts = [_machine(), _summary(results), _details(results), _without_times(results, absent)]
    return "\n\n".join(part for part in parts if part) + "\n"


def measured(results: Sequence[Result]) -> str:
    """The times of one workload, for a terminal."""
    lines = [
        f"{each.workload} {each.threads} {each.peer}: "
        + (f"failed, {each.failed}" if each.failed else f"{_time(each)} ms, error {_error(each)}")
        for each in results
    ]
    return "\n".join(lines)


def core_of(number: int) -> str:
    """What the processors of one core have in common, which share its caches and units."""
    path = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
    return path.read_text() if path.exists() else str(number)


def _machine() -> str:
    """Where and with what it was measured."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    names = {key.strip(): value.strip() for key, value in fields.items()}
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    has = [flag for flag in wanted if flag in names.get("flags", "").split()]
    versions = [f"{name} {_version(name)}" for name in DISTRIBUTIONS if _version(name)]
    usable = os.sched_getaffinity(0)
    cores = len({core_of(number) for number in usable})
    return (
        f"{datetime.date.today()}, {names.get('model name', platform.processor())} "
        f"({', '.join(has)}; {len(usable)} processors on {cores} cores), "
        f"Python {platform.python_version()}, {', '.join(versions)}. "
        "Milliseconds: median of rounds (least of all calls)."
    )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cells(results: Iterable[Result]) -> dict[tuple[str, int], dict[str, Result]]:
    """Results with times, by workload and threads and then by peer."""
    cells: dict[tuple[str, int], dict[str, Result]] = {}
    for each in results:
        if not each.failed and each.wall:
            cells.setdefault((each.workload, each.threads), {})[each.peer] = each
    return cells


def _summary(results: Sequence[Result]) -> str:
    """fusec beside the best peer of each workload."""
    rows = []
    for (workload, threads), peers in _cells(results).items():
        ours = peers.pop("fusec", None)
        if ours is None or not peers:
            continue
        best = min(peers.values(), key=lambda each: each.median)
        quickest = min(each.least for each in peers.values())
        cheapest = min(each.least_processor for each in peers.values())
        ratio = best.median / ours.median
        eager = peers.get("eager")
        rows.append(
            (
                workload,
                threads,
                _time(ours),
                _error(ours),
                TITLES[best.peer],
                _time(best),
                _error(best),
                f"**{ratio:.2f}**" if ratio >= ours.goal else f"{ratio:.2f}",
                f"{quickest / ours.least:.2f}",
                f"{cheapest / ours.least_processor:.2f}",
                f"{ours.goal:.1f}",
                "" if eager is None else f"{eager.median / ours.median:.2f}",
            )
        )
    heads = (
        "workload",
        "threads",
        "fusec",
        "error",
        "best peer",
        "its time",
        "its error",
        "ratio",
        "of least",
        "of processor",
        "goal",
        "eager / fusec",
    )
    return _table(heads, rows)


def _details(results: Sequence[Result]) -> str:
    rows = []
    for (workload, threads), peers in _cells(results).items():
        ours = peers.get("fusec")
        for peer in TITLES:
            if (each := peers.get(peer)) is None:
                continue
            ratio = "" if ours is None else f"{each.median / ours.median:.2f}"
            rows.append(
                (
                    workload,
                    threads,
                    TITLES[peer],
                    _time(each),
                    f"{each.least_processor:.3g}",
                    _error(each),
                    ratio,
                    each.note,
                )
            )
    heads = ("workload", "threads", "peer", "time", "processor", "error", "of fusec's", "note")
    return _table(heads, rows)


def _without_times(results: Sequence[Result], absent: Mapping[str, Sequence[str]]) -> str:
    rows = [("all", TITLES[peer], f"not installed: {', '.join(n)}") for peer, n in absent.items()]
    reasons: dict[tuple[str, str], str] = {}
    for each in results:
        if each.failed:
            reasons.setdefault((each.workload, each.peer), each.failed)
    for (workload, peer), reason in reasons.items():
        rows.append((workload, TITLES[peer], reason.replace("|", "/")))
    return _table(("workload", "peer", "why there are no times"), rows) if rows else ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _time(each: Result) -> str:
    return f"{each.median:.3g} ({each.least:.3g})"


def _error(each: Result) -> str:
    return "" if each.error is None else f"{each.error:.1e}"
