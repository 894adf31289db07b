"""Linears that read one value and can be one linear: what `merge_qkv` and `merge_gate_up` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fusec.ir import Attr, Graph, Node, TensorType
from fusec.ir.weights import Bits, Weight, computed, concatenated
from fusec.rewrite import Guard, Match, Rejection
from fusec.rewrite.driver import Builder
from fusec.target import Target


def parent(node: Node) -> str:
    """The path of the module that owns the module of `node`."""
    return node.origin.path.rpartition(".")[0]


def linears_of(graph: Graph, value: str) -> list[Node]:
    """The linears that multiply `value`, in order."""
    return [user for user in graph.users(value) if user.op == "linear" and user.inputs[0] == value]


def in_few_bits(graph: Graph, linear: Node) -> bool:
    """Whether the source holds the weight of `linear` as codes and scales."""
    weight = graph.parameters.get(linear.inputs[1])
    return weight is not None and weight.quantised is not None


def group(graph: Graph, nodes: list[Node]) -> Match:
    """A match of linears that begins at the first."""
    return Match(graph, nodes[0], values={"x": nodes[0].inputs[0]}, inner=tuple(nodes))


def _weight(match: Match, target: Target) -> Rejection | None:
    graph = match.graph
    for node in match.inner:
        for value in node.inputs[1:]:
            if value not in graph.parameters:
                return Rejection("weight", f"`%{value}` is computed, not a weight", value)
    return None


def _tied(match: Match, target: Target) -> Rejection | None:
    for node in match.inner:
        for value in node.inputs[1:]:
            if match.graph.use_count(value) != 1:
                return Rejection("tied", f"`%{value}` has another reader", value)
    return None


def _scales(match: Match, target: Target) -> Rejection | None:
    weights = tuple(match.graph.parameters[node.inputs[1]] for node in match.inner)
    held = [weight for weight in weights if weight.quantised is not None]
    if not held or concatenated("", weights, axis=0).quantised is not None:
        return None
    at = match.inner[weights.index(held[0])].inputs[1]
    reason = f"`%{at}` is held as {_form(held[0])}, and joining it would lose that"
    return Rejection("scales", reason, at)


def _form(weight: Weight) -> str:
    held = weight.quantised
    assert held is not None
    return f"{held.codes.type.dtype} with a scale for each {held.block[0]}x{held.block[1]}"


GUARDS: tuple[Guard, ...] = (_weight, _tied, _scales)
"""What linears that become one must agree on; that of dtypes follows from their one input."""


def _joined(graph: Graph, nodes: Sequence[Node], position: int) -> Weight:
    """The weights at `position` of the linears, one behind the other; zeros where a bias lacks."""
    parts = [
        graph.parameters[node.inputs[position]]
        if len(node.inputs) > position
        else graph.parameters[node.inputs[1]].shape[0]
        for node in nodes
    ]
    held = tuple(part for part in parts if isinstance(part, Weight))
    names = [f"zeros[{part}]" if isinstance(part, int) else part.name for part in parts]
    name = "+".join(names)
    if len(held) == len(parts):
        return concatenated(name, held, axis=0)

    def fill(biases: Sequence[Bits]) -> Bits:
        waiting, kind = iter(biases), biases[0].dtype
        return np.concatenate(
            [np.zeros(part, kind) if isinstance(part, int) else next(waiting) for part in parts]
        )

    rows = [part if isinstance(part, int) else part.shape[0] for part in parts]
    kind = TensorType(held[0].type.dtype, (sum(rows),))
    return computed(name, kind, f"concatenation of {', '.join(names)}", held, fill)


def merged(match: Match, build: Builder) -> Mapping[str, str]:
    """One linear over the rows of all weights, and a slice of its result for each linear."""
    graph, nodes = match.graph, match.inner
    inputs = [match.values["x"]]
    for position in (1, 2):
        values = [node.inputs[position] for node in nodes if len(node.inputs) > position]
        if values:
            joined = _joined(graph, nodes, position)
            inputs.append(graph.add_parameter(graph.fresh("_".join(values)), joined))
    names = "+".join(node.origin.path.rpartition(".")[2] for node in nodes)
    origin = replace(match.root.origin, path=f"{parent(match.root)}.{names}".strip(".+"))
    whole = graph.add("linear", inputs, origin=origin, at=match.root.name)
    axis, start = graph.type(whole.output).rank - 1, 0
    stands_for: dict[str, str] = {}
    for node in nodes:
        rows = graph.parameters[node.inputs[1]].shape[0]
        window: dict[str, Attr] = {"axis": axis, "start": start, "stop": start + rows, "step": 1}
        part = graph.add("slice", [whole.output], window, origin=node.origin, at=match.root.name)
        stands_for[node.output] = part.output
        start += rows
    build.added.append(whole.name)
    return stands_for
