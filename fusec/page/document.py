"""Everything that the page shows, as one JSON document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from fusec.costs import StepCost, limits_of, step_cost, step_nodes, typical_sizes
from fusec.ir import Graph, parse_graph
from fusec.lower.layers import layer_of
from fusec.lower.memory_plan import ALIGNMENT, THREADS, UNBOUNDED
from fusec.page.blocks import Graphs, Known, blocks
from fusec.report import Row, alike, details_text, inspect_document, layers_text, rejected_texts
from fusec.runtime.artifact import Artifact
from fusec.runtime.documents import Field
from fusec.runtime.program import read_program
from fusec.runtime.steps import ExternalStep, OnnxStep, Program, Step
from fusec.symbolic import evaluate
from fusec.target import data_sheet

Json: TypeAlias = dict[str, Any]

PAGE_SCHEMA = "fusec.page/1"


def page_document(artifact: Artifact) -> Json:
    """What the page shows; the same for the same artifact.

    Raises:
        ParseError: a graph is not one.
        ArtifactError: a program is not what its schema says.
    """
    document = inspect_document(artifact)
    source = artifact.source_graph_text()
    before = None if source is None else parse_graph(source, foreign=True)
    sizes = _sizes(artifact)
    graphs = Graphs()
    targets = [_target(artifact, each, before, sizes, graphs) for each in document["targets"]]
    return {
        **document,
        "schema": PAGE_SCHEMA,
        "sizes": sizes,
        "before": before is not None,
        "targets": targets,
        "graphs": graphs.all(),
    }


def _sizes(artifact: Artifact) -> list[Json]:
    """The sizes that numbers are given for: typical ones, the smallest and the largest.

    A symbol without a bound is left at its typical size among the largest.
    """
    typical = dict(typical_sizes(artifact.manifest))
    ranges = artifact.manifest.symbols
    least = {name: low for name, (low, _) in ranges.items()}
    most = {
        name: typical[name] if high == UNBOUNDED else high for name, (_, high) in ranges.items()
    }
    found: list[Json] = []
    for name, at in (("typical", typical), ("smallest", least), ("largest", most)):
        if all(at != each["at"] for each in found):
            found.append({"name": name, "at": at})
    return found


def _target(
    artifact: Artifact, held: Json, before: Graph | None, sizes: Sequence[Json], graphs: Graphs
) -> Json:
    name = held["target"]
    after = parse_graph(artifact.graph_text(name), foreign=True)
    document = artifact.program(name)
    program = read_program(document, artifact.manifest)
    steps = document.get("steps").items()
    costs = _costs(steps, sizes)
    nodes_of = [step_nodes(step) for step in steps]
    kernel_of = [_kernel_index(step, held["kernels"]) for step in program.steps]
    decisions = held["decisions"]
    known = Known(
        fusions=_fusions_by_node(decisions, "fired"),
        refusals=_fusions_by_node(decisions, "refused"),
        kernels=_kernels_by_node(nodes_of, kernel_of),
        origins=artifact.origins(name) or {},
    )
    found, layers = blocks(before, after, known, held.get("layers", ()), graphs)
    limits = None if data_sheet(name) is None else limits_of(name)
    return {
        **{key: value for key, value in held.items() if key not in ("decisions", "layers")},
        "nodes": {"before": None if before is None else len(before), "after": len(after)},
        "launches_text": layers_text(held),
        "unfused": sum(row["unfused"] for row in held.get("layers", ())),
        "blocks": found,
        "layers": layers,
        "decisions": _grouped(decisions),
        "steps": [
            {"op": step.op, "node": step.node, "kernel": kernel, "layer": _layer(after, step.node)}
            for step, kernel in zip(program.steps, kernel_of, strict=True)
        ],
        "points": _points(program.steps, kernel_of, costs),
        "limits": None
        if limits is None
        else {
            "bytes_per_second": limits.bytes_per_second,
            "flops_per_second": dict(limits.flops_per_second),
            "source": limits.source,
        },
        "memory_plan": _memory(program, sizes),
    }


def _layer(graph: Graph, node: str) -> str:
    """The layer of a node; "" for one that lowering made, or that is in none."""
    return layer_of(graph.node(node).origin.path) if node in graph else ""


def _fusions_by_node(decisions: Iterable[Row], status: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in decisions:
        if row["status"] == status and row.get("node"):
            held = found.setdefault(row["node"], [])
            if row["fusion"] not in held:
                held.append(row["fusion"])
    return found


def _kernel_index(step: Step, kernels: Sequence[Row]) -> int | None:
    """The position of the step's kernel; `None` for what onnxruntime runs."""
    if isinstance(step, OnnxStep):
        return None
    symbol = None if isinstance(step, ExternalStep) else step.symbol
    module = getattr(step, "module", "")
    matching = [
        position
        for position, kernel in enumerate(kernels)
        if kernel["name"] == step.kernel and symbol in (None, kernel["symbol"])
    ]
    exact = [position for position in matching if kernels[position]["sha256"] in module]
    return next(iter(exact or matching), None)


def _kernels_by_node(
    nodes_of: Iterable[Sequence[str]], kernel_of: Sequence[int | None]
) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for nodes, kernel in zip(nodes_of, kernel_of, strict=True):
        for node in nodes if kernel is not None else ():
            held = found.setdefault(node, [])
            if kernel is not None and kernel not in held:
                held.append(kernel)
    return found


def _grouped(decisions: Sequence[Row]) -> list[Json]:
    """Decisions with equal reasons, or equal details, together, in order of their first."""
    texts = ["\n".join(_said(row)) for row in decisions]
    groups: list[Json] = []
    for text, places in alike(texts):
        fusion, status, code, reason, hint, details, backend, *rejected = text.split("\n")
        groups.append(
            {
                "fusion": fusion,
                "status": status,
                "code": code,
                "reason": reason,
                "hint": hint,
                "details": details,
                "backend": backend,
                "rejected": rejected,
                "sites": [[decisions[place]["site"], decisions[place]["node"]] for place in places],
            }
        )
    return sorted(groups, key=lambda group: (group["status"] != "refused", group["fusion"]))


def _said(row: Row) -> list[str]:
    """What is said of a decision, a line each: what `_grouped` takes apart again."""
    parts = [row["fusion"], row["status"], row.get("code"), row.get("reason"), row.get("hint")]
    parts += [details_text(row), row.get("backend"), *rejected_texts(row)]
    return [" ".join(str(part or "").split()) for part in parts]


def _costs(steps: Sequence[Field], sizes: Sequence[Json]) -> list[list[StepCost | None]]:
    """By sizes, the cost of each step; `None` for one that does not run at these sizes.

    Empty in an artifact of an older version, which does not say what steps cost.
    """
    if any(step.get_or_none("cost") is None for step in steps):
        return []
    at = [{**each["at"], "threads": THREADS} for each in sizes]
    return [[step_cost(step, each) for step in steps] for each in at]


def _points(
    steps: Sequence[Step],
    kernel_of: Sequence[int | None],
    costs: Sequence[Sequence[StepCost | None]],
) -> list[Json]:
    """Steps of the same kernel with the same costs at all sizes, as one point each.

    Args:
        steps: of the program.
        kernel_of: the kernel of each.
        costs: by sizes, of each step; empty where the artifact does not have them.

    Returns:
        For each point `kernel`, `op`, `unit`, the positions of its `steps`, and `costs`: bytes
        read, bytes written and operations of one step, by sizes, `None` where it does not run.
    """
    points: dict[tuple[object, ...], Json] = {}
    for position, held in enumerate(zip(*costs, strict=True)):
        kernel, op = kernel_of[position], steps[position].op
        numbers = [cost and [cost.read, cost.write, cost.flops] for cost in held]
        unit = next((cost.unit for cost in held if cost is not None), "f32")
        point = points.setdefault(
            (kernel, op, unit, str(numbers)),
            {"kernel": kernel, "op": op, "unit": unit, "costs": numbers, "steps": []},
        )
        point["steps"].append(position)
    return [*points.values()]


def _memory(program: Program, sizes: Sequence[Json]) -> Json:
    """Which buffer lies in which slot of the arena, from which step to which.

    `slots` are bytes by slot and sizes; `buffers` are the slot, the first and the last step, and
    the bytes by sizes.
    """
    spans: dict[int, tuple[int, int]] = {}
    for position, step in enumerate(program.steps):
        for buffer in _buffers(program, step):
            first, _ = spans.get(buffer, (position, position))
            spans[buffer] = first, position
    at = [{**each["at"], "threads": THREADS} for each in sizes]
    slots = [
        [_aligned(max((evaluate(size, each) for size in slot), default=0)) for each in at]
        for slot in program.slots
    ]
    buffers = []
    for number, (first, last) in sorted(spans.items(), key=lambda item: item[1]):
        held = program.buffers[number]
        if held.slot is not None:
            taken = [evaluate(held.bytes, each) for each in at]
            buffers.append([held.slot, first, last, taken])
    return {"slots": slots, "buffers": buffers}


def _buffers(program: Program, step: Step) -> list[int]:
    if isinstance(step, ExternalStep):
        return [operand.buffer for operand in step.operands]
    if isinstance(step, OnnxStep):
        return [operand.buffer for operand in (*step.inputs, *step.outputs)]
    return [int(program.pointer_buffers[place]) for place in step.pointers]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


__all__ = ["PAGE_SCHEMA", "page_document"]
