"""What a device that is not here would need at least: bytes and flops against its data sheet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusec.bench.rows import grouped, limits_document, step_row, totals
from fusec.costs import Limits, limits_of, step_costs
from fusec.runtime.artifact import Artifact
from fusec.target import GPU_TARGETS

SCHEMA = "fusec.bench/1"


def predict(
    artifact: Artifact, target: str, sizes: Mapping[str, int], reason: str
) -> dict[str, Any]:
    """The document of a prediction: nothing runs.

    Args:
        artifact: an open artifact.
        target: of the artifact, or a product that has its architecture.
        sizes: the value of each symbol.
        reason: why nothing runs.
    """
    section = artifact.target(target).target
    limits: Limits | None = limits_of(target) if section in GPU_TARGETS else None
    costs = step_costs(artifact, section, sizes)
    rows = [step_row(cost, None, limits) for cost in costs]
    return {
        "schema": SCHEMA,
        "artifact": {"name": artifact.path.name, "id": artifact.id},
        "kind": "prediction",
        "target": section,
        "target_reason": reason,
        "device": None if limits is None else limits.source.removesuffix(" data sheet"),
        "sizes": dict(sizes),
        "limits": limits_document(limits, ()),
        "whole": totals(costs, limits),
        "groups": grouped(rows),
        "steps": rows,
    }
