"""An artifact timed on a device that is here."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fusec.bench.peers import Source, Visits
from fusec.bench.predicted import SCHEMA
from fusec.bench.rows import grouped, limits_document, step_row, totals
from fusec.bench.timing import summary, timed, warm_up
from fusec.costs import Limits, StepCost, limits_of, step_costs
from fusec.diagnostics import InternalError
from fusec.runtime.layout import StepTime
from fusec.runtime.model import Model

PROFILED = 20
"""Runs in which each step is timed, unless another number is asked for."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be measured.

    Attributes:
        model: loaded.
        inputs: an array for each input.
        sizes: the value of each symbol.
        device: the name of the device.
        iterations: timed calls; `None` for as many as tell the median.
        warm_up: calls before; `None` until times are steady.
        profiled: runs in which each step is timed.
        against: the source, run by its own framework.
    """

    model: Model
    inputs: Mapping[str, Any]
    sizes: Mapping[str, int]
    device: str
    iterations: int | None = None
    warm_up: int | None = None
    profiled: int = PROFILED
    against: Source | None = None
    report: Callable[[str], None] = field(default=lambda text: None)


def measure(request: Request) -> dict[str, Any]:
    """Time the model, its steps and, if asked for, its source.

    Raises:
        InputError: the artifact is older than costs, or the source cannot be run.
    """
    model, report = request.model, request.report
    sizes = dict(request.sizes)
    costs_at = {**sizes, "threads": model.threads or 1}
    costs = step_costs(model.artifact, model.target, costs_at)

    def call() -> object:
        return model.run(request.inputs)

    load = os.getloadavg()[0]
    report("measuring the limits of the machine")
    limits, measured = _limits(model)
    report("warming up")
    warmed = warm_up(call, request.warm_up)
    report("timing the whole")
    whole: dict[str, Any] = {**summary(timed(call, request.iterations))}
    report("timing each step")
    seconds = _step_seconds(model, request.inputs, costs, request.profiled)
    rows = [step_row(cost, each, limits) for cost, each in zip(costs, seconds, strict=True)]
    whole |= totals(costs, limits)
    in_steps = sum(seconds)
    whole["steps_seconds"] = in_steps
    whole["between_seconds"] = max(0.0, float(whole["median"]) - in_steps)
    whole["of_bound"] = whole["least_seconds"] / whole["median"] if whole["median"] else None
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "artifact": {"name": model.artifact.path.name, "id": model.artifact.id},
        "kind": "measurement",
        "target": model.target,
        "target_reason": model.reason,
        "device": request.device,
        "threads": model.threads,
        "load": load,
        "sizes": sizes,
        "limits": limits_document(limits, measured),
        "warm_up": warmed,
        "profiled": request.profiled,
        "whole": whole,
        "groups": grouped(rows),
        "steps": rows,
    }
    if request.against is not None:
        visits = Visits(request.against, request.inputs, model, report)
        document["against"] = visits.compared(call, request.iterations)
    return document


def _limits(model: Model) -> tuple[Limits, Sequence[str]]:
    """What the machine gives at most, and which of that was measured."""
    probed = model.probe()
    if probed.flops_per_second:
        source = f"measured with {model.threads} threads of the engine"
        return Limits(probed.bytes_per_second, probed.flops_per_second, source), ("bytes", "flops")
    sheet = limits_of(model.target)
    source = f"bytes: a copy within the device, measured; flops: {sheet.source}"
    return Limits(probed.bytes_per_second, sheet.flops_per_second, source), ("bytes",)


def _step_seconds(
    model: Model, inputs: Mapping[str, Any], costs: Sequence[StepCost], runs: int
) -> list[float]:
    """The median time of each step."""
    profiles: list[list[StepTime]] = [model.profile(inputs)[1] for _ in range(max(1, runs))]
    for profile in profiles:
        if [step.node for step in profile] != [cost.node for cost in costs]:
            raise InternalError("the steps that ran are not those that were to be expected")
    return [
        statistics.median(step.seconds for step in steps) for steps in zip(*profiles, strict=True)
    ]
