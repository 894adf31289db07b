"""Key heads that several query heads share, and the scale of the queries.

Fuses, around an `attention`,

    k, v repeated n times a head, [B, Hkv, T, D] to [B, Hkv*n, T, D]     into   k, v as they were
    k, v expanded from one head                                         into   k, v as they were
    q multiplied by a constant, before views of it                      into   scale

Every `attention` has its row in the decisions after this pass, whoever raised it.

Leaves the repetition alone, and says nothing, where k and v are not repeated alike: the kernel then
reads what the graph makes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, TypeAlias

from fusec import symbolic
from fusec.ir import Graph, Node
from fusec.ir.types import float_attr, int_attr
from fusec.passes.attention_operands import AttentionOperands, factor
from fusec.passes.facts import only_reader
from fusec.rewrite import Decision, DecisionLog, Pass
from fusec.rewrite.coordinates import Coordinates, coordinate
from fusec.rewrite.driver import Builder
from fusec.symbolic import Dim
from fusec.target import Target

Terms: TypeAlias = Callable[[], Coordinates]
"""The analysis of positions, made when it is first asked for."""

VIEWS = ("reshape", "transpose", "cast")


class AttentionHeads(Pass):
    """Takes repeated heads and scaled queries into the attention that reads them."""

    name: ClassVar[str] = "attention_heads"
    after: ClassVar[tuple[str, ...]] = ("canonicalise", "attention")

    def run(self, graph: Graph, target: Target, log: DecisionLog) -> int:
        """Look at every `attention`."""
        changes = 0
        terms = functools.cache(lambda: Coordinates(graph))
        for node in [node for node in graph.nodes() if node.op == "attention"]:
            if _fold(graph, node, terms, log):
                changes += 1
            elif node.name in graph and not log.tells_of("attention", node.name):
                site = node.origin.path or node.name
                log.add(Decision("attention", site, "fired", node=node.name))
        return changes


def _fold(graph: Graph, node: Node, terms: Terms, log: DecisionLog) -> bool:
    before = AttentionOperands.of(node)
    build = Builder(graph, node)
    after = before
    keys, values = (_repeated(graph, value, terms) for value in (before.k, before.v))
    if keys is not None and values is not None and keys[1:] == values[1:]:
        k, v = (_base(build, found) for found in (keys, values))
        after = replace(after, k=k, v=v)
    scale = float_attr(node.attrs, "scale") * _unscaled(graph, before.q)
    if scale != float_attr(node.attrs, "scale"):
        after = replace(after, q=graph.node(node.name).inputs[0]).changed(scale=scale)
    if after == before:
        return False
    _replace(build, graph.node(node.name), after, log)
    return True


def _replace(build: Builder, node: Node, operands: AttentionOperands, log: DecisionLog) -> None:
    """Put an `attention` of `operands` in place of `node`."""
    graph = build.graph
    result = build.value("attention", operands.inputs, operands.attrs)
    graph.replace_uses(node.output, result)
    graph.prune([node.name])
    log.absorb([node.name])
    log.add(Decision("attention", node.origin.path or node.name, "fired", node=result))


def _repeated(graph: Graph, value: str, terms: Terms) -> tuple[str, Dim, Dim] | None:
    """What `value` repeats, the heads of that, and how often each head is repeated."""
    shape = graph.type(value).shape
    node = graph.producer(value)
    if node is None:
        return None
    if node.op == "expand":
        inner = graph.type(node.inputs[0]).shape
        wanted = (shape[0], 1, *shape[2:])
        return (node.inputs[0], 1, shape[1]) if inner == wanted else None
    if node.op == "take" and int_attr(node.attrs, "axis") % 4 == 1:
        return _taken(graph, node, terms)
    if node.op != "reshape":
        return None
    spread = graph.producer(node.inputs[0])
    if spread is None or spread.op != "expand":
        return None
    wide, thin = (graph.type(each).shape for each in (spread.output, spread.inputs[0]))
    if len(wide) != 5 or (wide[0], *wide[3:]) != (shape[0], *shape[2:]):
        return None
    if thin != (*wide[:2], 1, *wide[3:]):
        return None
    return spread.inputs[0], wide[1], wide[2]


def _taken(graph: Graph, node: Node, terms: Terms) -> tuple[str, Dim, Dim] | None:
    """Heads that are picked by `position // n`."""
    source, index = node.inputs
    heads, repeated = graph.type(source).shape[1], graph.type(index).shape
    if len(repeated) != 1 or not isinstance(heads, int) or not isinstance(repeated[0], int):
        return None
    if repeated[0] % heads:
        return None
    times = repeated[0] // heads
    if terms().term(index) != symbolic.floor_divide(coordinate(0), times):
        return None
    return source, heads, times


def _base(build: Builder, found: tuple[str, Dim, Dim]) -> str:
    """The value that is repeated, as [B, Hkv, T, D]."""
    graph, (value, heads, _) = build.graph, found
    shape = graph.type(value).shape
    if len(shape) == 4:
        return value
    wanted = (shape[0], heads, *shape[3:])
    node = graph.producer(value)
    if node is not None and node.op == "reshape":
        if graph.type(node.inputs[0]).shape == wanted:
            return node.inputs[0]
    return build.value("reshape", [value], {"shape": wanted})


def _read_once(graph: Graph, value: str) -> bool:
    """Whether `value` is one operand of one node; an `attention` may read it as its keys too."""
    reader = only_reader(graph, value)
    return reader is not None and reader.inputs.count(value) == 1


def _unscaled(graph: Graph, q: str) -> float:
    """Take the constant factor off `q`, if only views stand between, and give it."""
    value, scale = q, 1.0
    while _read_once(graph, value):
        found = factor(graph, value)
        node = graph.producer(value)
        if found is not None:
            operand, times = found
            if graph.type(operand) != graph.type(value) or not math.isfinite(times):
                break
            graph.replace_uses(value, operand)
            graph.prune([value])
            value, scale = operand, scale * times
        elif node is not None and node.op in VIEWS:
            value = node.inputs[0]
        else:
            break
    return scale
