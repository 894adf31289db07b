"""The rows of `fusec bench`: one a step, and one for all steps that do the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusec.costs import Limits, StepCost


def step_row(cost: StepCost, seconds: float | None, limits: Limits | None) -> dict[str, Any]:
    """What is known of a step.

    Args:
        cost: what it takes.
        seconds: that it took; `None` for a prediction.
        limits: of the machine, if they are known.
    """
    row: dict[str, Any] = {
        "node": cost.node,
        "op": cost.op,
        "kernel": cost.kernel,
        "nodes": list(cost.nodes),
        "read": cost.read,
        "write": cost.write,
        "flops": cost.flops,
        "unit": cost.unit,
        "bound": None if limits is None else limits.bound(cost),
        "least_seconds": None if limits is None else limits.seconds(cost),
    }
    if seconds is not None:
        row |= _rates(row, seconds)
    return row


def _rates(row: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What a time comes to."""
    moved = row["read"] + row["write"]
    least = row["least_seconds"]
    return {
        "seconds": seconds,
        "bytes_per_second": moved / seconds if seconds else None,
        "flops_per_second": row["flops"] / seconds if seconds else None,
        "of_bound": least / seconds if least is not None and seconds else None,
    }


def grouped(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for all steps that run the same kernel for the same operation on as much.

    Times, bytes and flops are those of all of them together; the longest come first.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("op", "kernel", "read", "write", "flops", "unit"))
        groups.setdefault(key, []).append(row)
    by = "seconds" if all("seconds" in row for row in rows) else "least_seconds"
    made = [_group(members) for members in groups.values()]
    total = sum(row[by] or 0.0 for row in made)
    for row in made:
        row["share"] = (row[by] or 0.0) / total if total else 0.0
    return sorted(made, key=lambda row: row[by] or 0.0, reverse=True)


def _group(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = members[0]
    row: dict[str, Any] = {name: first[name] for name in ("op", "kernel", "unit", "bound")}
    row["count"] = len(members)
    row["first"] = first["node"]
    for name in ("read", "write", "flops"):
        row[name] = sum(member[name] for member in members)
    least = first["least_seconds"]
    row["least_seconds"] = None if least is None else least * len(members)
    if "seconds" in first:
        row |= _rates(row, sum(member["seconds"] for member in members))
    return row


def totals(costs: Sequence[StepCost], limits: Limits | None) -> dict[str, Any]:
    """What all steps take together, each bounded on its own."""
    return {
        "launches": len(costs),
        "read": sum(cost.read for cost in costs),
        "write": sum(cost.write for cost in costs),
        "flops": sum(cost.flops for cost in costs),
        "least_seconds": None if limits is None else sum(map(limits.seconds, costs)),
    }


def limits_document(limits: Limits | None, measured: Sequence[str]) -> dict[str, Any] | None:
    """The limits of a machine, and which of them were measured: `bytes`, `flops`."""
    if limits is None:
        return None
    return {
        "bytes_per_second": limits.bytes_per_second,
        "flops_per_second": dict(limits.flops_per_second),
        "measured": list(measured),
        "source": limits.source,
    }
