"""Equal layers as one block: a model of 61 layers has two or three that differ.

Two layers are equal where their graphs are, before and after the passes, with the same fusions and
the same kernels; names of values and the layer's own path do not count.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fusec.explanation import ranges_text
from fusec.ir import Graph, Node
from fusec.ir.text import attr_text
from fusec.lower.fusion import CREATED
from fusec.lower.layers import layer_of
from fusec.lower.storage import VIEWS

Json: TypeAlias = dict[str, Any]

MAX_TEXT = 240
"""Characters of an attribute or a name that are shown."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the nodes of a graph beside the graph.

    Attributes:
        fusions: by node, the fusions that fired there, the largest last.
        refusals: by node, the fusions that were refused there.
        kernels: by node, positions in the list of kernels.
        origins: by node, the nodes of the graph before the passes that it took the place of.
    """

    fusions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    refusals: Mapping[str, Sequence[str]] = field(default_factory=dict)
    kernels: Mapping[str, Sequence[int]] = field(default_factory=dict)
    origins: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Graphs:
    """Graphs of blocks, each once; blocks and targets refer to them by number."""

    def __init__(self) -> None:
        self.held: dict[str, int] = {}

    def number(self, graph: Json) -> int:
        """The number of `graph`."""
        return self.held.setdefault(json.dumps(graph, sort_keys=True), len(self.held))

    def all(self) -> list[Json]:
        """The graphs by number."""
        return [json.loads(text) for text in self.held]


def blocks(
    before: Graph | None,
    after: Graph,
    known: Known,
    counts: Iterable[Mapping[str, Any]],
    graphs: Graphs,
) -> tuple[list[Json], list[Json]]:
    """The blocks of a target, and which one each layer is.

    Args:
        before: as it was read, if the artifact has it.
        after: for the target.
        known: about the nodes of `after`.
        counts: launches of each layer, as in the report of the target.
        graphs: takes the graphs of the blocks.

    Returns:
        Blocks, the most frequent first and what stands outside of all layers last; and layers in
        the order of the model.
    """
    launches = {str(row["layer"]): row for row in counts}
    parts_before = {} if before is None else _by_layer(before)
    parts_after = _by_layer(after)
    names = [*dict.fromkeys((*parts_before, *parts_after))]
    pairs: dict[str, tuple[Json | None, Json]] = {}
    members: dict[str, list[str]] = {}
    for name in names:
        numbers = {node.name: i for i, node in enumerate(parts_before.get(name, ()))}
        first = None
        if before is not None:
            first = _part(before, parts_before.get(name, ()), name, Known(), {})
        second = _part(after, parts_after.get(name, ()), name, known, numbers)
        pairs[name] = first, second
        members.setdefault(_signature(name, pairs[name]), []).append(name)
    order = {name: position for position, name in enumerate(names)}
    grouped = sorted(
        members.values(), key=lambda group: ("" in group, -len(group), order[group[0]])
    )
    made: list[Json] = []
    block_of: dict[str, int] = {}
    for number, group in enumerate(grouped):
        block_of.update(dict.fromkeys(group, number))
        shown = group[len(group) > 1]
        first, second = pairs[shown]
        made.append(
            {
                "layers": group,
                "title": layers_name(group),
                "shown": shown,
                "launches": launches.get(shown, {}).get("launches"),
                "unfused": launches.get(shown, {}).get("unfused"),
                "before": None if first is None else graphs.number(first),
                "after": graphs.number(second),
            }
        )
    layers = [{"layer": name, "block": block_of[name]} for name in names if name]
    return made, layers


def layers_name(layers: Sequence[str]) -> str:
    """Layers for people: `model.layers.0-2, 5`; "outside of layers" for what is in none."""
    stems: dict[str, list[int]] = {}
    for layer in layers:
        stem, _, number = layer.rpartition(".")
        stems.setdefault(stem, []).append(int(number) if layer else -1)
    return ", ".join(
        "outside of layers" if numbers == [-1] else f"{stem}.{_ranges(numbers)}"
        for stem, numbers in stems.items()
    )


def _ranges(numbers: Sequence[int]) -> str:
    return ranges_text(sorted(numbers)).replace("-", "\u2013")


def _by_layer(graph: Graph) -> dict[str, list[Node]]:
    parts: dict[str, list[Node]] = {}
    for node in graph.nodes():
        parts.setdefault(layer_of(node.origin.path), []).append(node)
    return parts


def _signature(layer: str, pair: tuple[Json | None, Json]) -> str:
    """What equal layers have in common."""
    kept = [
        None
        if part is None
        else [
            [{key: node[key] for key in node.keys() - {"n", "made"}} for node in part["nodes"]],
            [each["type"] for each in part["from"]],
            part["to"],
        ]
        for part in pair
    ]
    text = json.dumps(kept, sort_keys=True)
    return text.replace(json.dumps(layer)[1:-1], "*") if layer else text


def _part(
    graph: Graph, nodes: Sequence[Node], layer: str, known: Known, numbers: Mapping[str, int]
) -> Json:
    """The graph of a layer.

    `nodes` have the name `n`, the operation `op`, the types of the results `out`, the operands `in`
    (a position in `nodes`, or `-1 - i` for position i in `from`, or a text for a weight or a
    constant), attributes `attrs`, the module path `at`, file and line `src`, the operation as read
    `as`, and of those there are `fused`, `refused`, `kernels`, `made` (positions in the graph
    before) and `view` for what only looks at memory.  `to` has the positions of what others read.
    """
    position = {value: i for i, node in enumerate(nodes) for value in node.outputs}
    outside: dict[str, int] = {}
    made = [_node(graph, node, layer, position, outside, known, numbers) for node in nodes]
    inside = {node.name for node in nodes}
    returned = set(graph.outputs)
    read = [
        number
        for number, node in enumerate(nodes)
        if any(
            value in returned or any(user.name not in inside for user in graph.users(value))
            for value in node.outputs
        )
    ]
    external = [{"name": _external(graph, value), "type": _type(graph, value)} for value in outside]
    return {"nodes": made, "from": external, "to": read}


def _node(
    graph: Graph,
    node: Node,
    layer: str,
    position: Mapping[str, int],
    outside: dict[str, int],
    known: Known,
    numbers: Mapping[str, int],
) -> Json:
    operands: list[int | str] = []
    for value in node.inputs:
        weight = graph.parameters.get(value)
        if weight is not None:
            operands.append(_short(f"{_within(weight.name, layer)}: {graph.type(value)}"))
        elif (constant := graph.constant(value)) is not None:
            operands.append(_short(attr_text(constant)))
        elif value in position:
            operands.append(position[value])
        else:
            operands.append(-1 - outside.setdefault(value, len(outside)))
    sources = sorted(numbers[name] for name in known.origins.get(node.name, ()) if name in numbers)
    optional: Json = {
        "attrs": {key: _short(attr_text(held)) for key, held in sorted(node.attrs.items())},
        "src": _short(node.origin.source),
        "as": _short(node.origin.op),
        "fused": list(known.fusions.get(node.name, ())),
        "refused": list(known.refusals.get(node.name, ())),
        "kernels": list(known.kernels.get(node.name, ())),
        "made": sources,
        "view": node.op in VIEWS or node.op in CREATED,
    }
    return {
        "n": _short(node.name),
        "op": _short(node.op),
        "out": [_type(graph, value) for value in node.outputs],
        "in": operands,
        "at": _short(_within(node.origin.path, layer)),
        **{key: value for key, value in optional.items() if value},
    }


def _within(name: str, layer: str) -> str:
    """A name without the path of its layer."""
    return name.removeprefix(layer).replace(f"{layer}.", "").lstrip(".") if layer else name


def _external(graph: Graph, value: str) -> str:
    """What is said of a value from outside of the layer: the operation, and the layer it is in."""
    producer = graph.producer(value)
    if producer is None:
        return _short(value)
    place = layer_of(producer.origin.path) or producer.origin.path
    return _short(f"{producer.op} in {place}" if place else producer.op)


def _type(graph: Graph, value: str) -> str:
    return _short(str(graph.type(value)))


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}\u2026"
