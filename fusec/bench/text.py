"""The document of `fusec bench` as people read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Table = Callable[[Sequence[str], Sequence[Sequence[object]]], str]
"""Aligns columns."""

SHOWN = 12
"""Rows of the table, at most, unless all are asked for."""

BUSY = 0.5
"""Programs that ran on average before a measurement, above which that is said."""


def bench_text(document: Mapping[str, Any], table: Table, *, all_steps: bool = False) -> str:
    """The whole text."""
    is_prediction = document["kind"] == "prediction"
    parts = [
        _head(document),
        _prediction(document) if is_prediction else _whole(document),
        _limits(document),
        _steps(document, table, all_steps=all_steps),
    ]
    if "against" in document:
        parts.append(_against(document["against"], table))
    return "\n\n".join(part for part in parts if part)


def _head(document: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{name} = {size}" for name, size in document["sizes"].items())
    where = document["device"] or document["target"]
    threads = document.get("threads")
    if threads:
        where += f", {threads} thread{'s' if threads > 1 else ''}"
    lines = [f"{document['artifact']['name']} for {document['target']} on {where}"]
    if document["kind"] == "prediction":
        lines = [
            f"prediction: {document['artifact']['name']} for {document['target']}, not run",
            f"because     {document['target_reason']}",
        ]
    if sizes:
        label = "because     " if document["kind"] == "prediction" else "sizes     "
        lines.append("sizes".ljust(len(label)) + sizes)
    return "\n".join(lines)


def _whole(document: Mapping[str, Any]) -> str:
    whole = document["whole"]
    bound = whole["least_seconds"]
    lines = [
        f"median    {duration(whole['median'])} of {whole['calls']} runs; "
        f"p90 {duration(whole['p90'])}, p99 {duration(whole['p99'])}, "
        f"quartiles {percent(whole['spread'])} apart",
        f"at least  {duration(bound)}, if every step were as fast as the machine: "
        f"{percent(whole['of_bound'])} of that speed",
        f"steps     {whole['launches']} take {duration(whole['steps_seconds'])}, "
        f"what is around them {_around(whole['between_seconds'])}",
        f"work      {amount(whole['read'], 'B')} read, {amount(whole['write'], 'B')} written, "
        f"{amount(whole['flops'], 'flop')}",
    ]
    if document["load"] > BUSY:
        lines.append(
            f"busy      {document['load']:.1f} programs ran in the last minute beside this one: "
            "times are longer than on a quiet machine"
        )
    return "\n".join(lines)


def _around(seconds: float) -> str:
    return duration(seconds) if seconds else "too little to tell"


def _prediction(document: Mapping[str, Any]) -> str:
    whole = document["whole"]
    lines = [
        f"launches    {whole['launches']}",
        f"work        {amount(whole['read'], 'B')} read, {amount(whole['write'], 'B')} written, "
        f"{amount(whole['flops'], 'flop')}",
    ]
    if whole["least_seconds"] is not None:
        lines.insert(
            0,
            f"at least    {duration(whole['least_seconds'])}, by bytes and flops alone: "
            "no launch, wait or cache is in it",
        )
    return "\n".join(lines)


def _limits(document: Mapping[str, Any]) -> str:
    limits = document["limits"]
    if limits is None:
        return ""
    rates = limits["flops_per_second"]
    used = {row["unit"] for row in document["steps"]}
    shown = {unit: rate for unit, rate in rates.items() if unit in used} or rates
    told = ", ".join(f"{amount(rate, 'flop/s')} in {unit}" for unit, rate in shown.items())
    label = "limits".ljust(12 if document["kind"] == "prediction" else 10)
    first = f"{label}{amount(limits['bytes_per_second'], 'B/s')}, {told}"
    return f"{first}\n{'':<{len(label)}}({limits['source']})"


def _steps(document: Mapping[str, Any], table: Table, *, all_steps: bool) -> str:
    rows = document["steps"] if all_steps else document["groups"]
    if document["kind"] == "prediction":
        header, cells = _predicted_cells(rows, all_steps=all_steps)
    else:
        header, cells = _measured_cells(rows, all_steps=all_steps)
    fast = "of_bound" in rows[0] and any((row["of_bound"] or 0) > 1 for row in rows)
    notes = ["(above 100 %: the operands lie in caches, faster than memory)"] if fast else []
    if all_steps or len(cells) <= SHOWN:
        return "\n".join((table(header, cells), *notes))
    rest = rows[SHOWN:]
    more = f"{sum(row['count'] for row in rest)} more steps"
    share = percent(sum(row["share"] for row in rest))
    notes.append(f"({more}, {share} of the time; `--all` shows every step)")
    return "\n".join((table(header, cells[:SHOWN]), *notes))


def _measured_cells(
    rows: Sequence[Mapping[str, Any]], *, all_steps: bool
) -> tuple[list[str], list[list[object]]]:
    first = "node" if all_steps else "share"
    header = [first, "time", "steps", "GB/s", "Gflop/s", "of bound", "", "op", "kernel"]
    cells: list[list[object]] = []
    for row in rows:
        of_bound = "-" if row["of_bound"] is None else percent(row["of_bound"])
        cells.append(
            [
                row["node"] if all_steps else percent(row["share"]),
                duration(row["seconds"]),
                row.get("count", 1),
                _rate(row["bytes_per_second"]),
                _rate(row["flops_per_second"]),
                of_bound,
                row["bound"] or "",
                row["op"],
                row["kernel"],
            ]
        )
    return header, cells


def _predicted_cells(
    rows: Sequence[Mapping[str, Any]], *, all_steps: bool
) -> tuple[list[str], list[list[object]]]:
    first = "node" if all_steps else "share"
    header = [first, "at least", "steps", "bytes", "flops", "bound", "op", "kernel"]
    cells: list[list[object]] = []
    for row in rows:
        least = row["least_seconds"]
        cells.append(
            [
                row["node"] if all_steps else percent(row["share"]),
                "-" if least is None else duration(least),
                row.get("count", 1),
                amount(row["read"] + row["write"], "B"),
                amount(row["flops"], ""),
                row["bound"] or "-",
                row["op"],
                row["kernel"],
            ]
        )
    return header, cells


def _against(against: Mapping[str, Any], table: Table) -> str:
    rows: list[list[object]] = [
        ["fusec", duration(against["fusec"]["median"]), duration(against["fusec"]["p90"]), ""]
    ]
    failed: list[str] = []
    for way in against["ways"]:
        if way["failed"] is not None:
            failed.append(f"{way['way']} failed: {way['failed']}")
            continue
        ratio = f"{way['ratio']:.2f} x the time of fusec"
        rows.append([way["name"], duration(way["median"]), duration(way["p90"]), ratio])
    text = table(["in turns", "median", "p90", ""], rows)
    return "\n".join((text, *failed))


def duration(seconds: float) -> str:
    """A time with three digits and its unit."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 1:
            return f"{_digits(seconds * factor)} {unit}"
    return f"{_digits(seconds * 1e9)} ns"


def amount(value: float, unit: str) -> str:
    """A number with three digits and a decimal prefix."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{_digits(value / factor)} {prefix}{unit}".rstrip()
    return f"{value:.0f} {unit}".rstrip()


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"


def _rate(value: float | None) -> str:
    return "-" if value is None else _digits(value / 1e9)


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
