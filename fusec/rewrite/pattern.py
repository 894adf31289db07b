"""Patterns over a graph, and the search for them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeAlias

from fusec.ir import OPS, Graph, Node
from fusec.ir.types import Attr

Pattern: TypeAlias = "Var | Number | Maybe | Op"


@dataclass(frozen=True, slots=True)
class Var:
    """Any value, called `name`; a second use must be the same value."""

    name: str


@dataclass(frozen=True, slots=True)
class Number:
    """A constant with one element.

    Attributes:
        name: what to call the number in `Match.numbers`, if anything.
        value: what it must be, to a relative 1e-6, or `None` for any.
    """

    name: str | None = None
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Maybe:
    """`inner`, possibly seen through one unary operation such as `cast`.

    A node that is looked through is not part of the match: other readers may share it.
    """

    op: str
    inner: Pattern


@dataclass(frozen=True, slots=True)
class Op:
    """A node of `op` whose operands match in order, or in either order if `op` commutes.

    Attributes:
        op: the operation, or several that will do.
        inputs: patterns of the operands.
        name: what to call the node in `Match.nodes`, if anything.
        output: which output of the node stands here.
        attrs: attributes that must have these values.
        shared: the node may have readers outside the match; it is kept for them.
    """

    op: str | tuple[str, ...]
    inputs: tuple[Pattern, ...]
    name: str | None = None
    output: int = 0
    attrs: Mapping[str, Attr] = field(default_factory=lambda: MappingProxyType({}))
    shared: bool = False

    @property
    def ops(self) -> tuple[str, ...]:
        """The operations that will do."""
        return (self.op,) if isinstance(self.op, str) else self.op


@dataclass(frozen=True, slots=True)
class Match:
    """A place where a pattern holds.

    Attributes:
        graph: where.
        root: the node that the search began at.
        values: values by the names of variables.
        nodes: nodes by the names of `Op`s.
        numbers: numbers by the names of `Number`s.
        inner: the nodes that a rewrite takes the place of, root first; without shared ones.
        facts: anything else that a pass found out and its rewrite needs.
    """

    graph: Graph
    root: Node
    values: Mapping[str, str] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    inner: tuple[Node, ...] = ()
    facts: Mapping[str, Attr] = field(default_factory=dict)


def find(pattern: Op, graph: Graph, root: Node) -> Match | None:
    """The first way in which `pattern` holds at `root`; nothing is left behind where it fails."""
    if root.op not in pattern.ops:
        return None
    begin = Match(graph, root)
    return next(_node(pattern, root, begin), None)


def _value(pattern: Pattern, value: str, so_far: Match) -> Iterator[Match]:
    match pattern:
        case Var(name):
            if so_far.values.get(name, value) == value:
                yield replace(so_far, values={**so_far.values, name: value})
        case Number(name, wanted):
            held = so_far.graph.constant(value)
            if isinstance(held, bool) or not isinstance(held, int | float):
                return
            if wanted is not None and not math.isclose(held, wanted, rel_tol=1e-6):
                return
            if name is None:
                yield so_far
            elif so_far.numbers.get(name, held) == held:
                yield replace(so_far, numbers={**so_far.numbers, name: float(held)})
        case Maybe(op, inner):
            node = so_far.graph.producer(value)
            if node is not None and node.op == op:
                yield from _value(inner, node.inputs[0], so_far)
            yield from _value(inner, value, so_far)
        case Op():
            node = so_far.graph.producer(value)
            if node is not None and node.op in pattern.ops:
                if node.outputs[pattern.output] == value:
                    yield from _node(pattern, node, so_far)


def _node(pattern: Op, node: Node, so_far: Match) -> Iterator[Match]:
    if len(node.inputs) != len(pattern.inputs):
        return
    if any(node.attrs.get(key) != wanted for key, wanted in pattern.attrs.items()):
        return
    if pattern.name is not None:
        if so_far.nodes.get(pattern.name, node) is not node:
            return
        so_far = replace(so_far, nodes={**so_far.nodes, pattern.name: node})
    if not pattern.shared and node not in so_far.inner:
        so_far = replace(so_far, inner=(*so_far.inner, node))
    yield from _operands(pattern.inputs, node.inputs, so_far)
    definition = OPS.get(node.op)
    if definition is not None and definition.commutative and len(node.inputs) == 2:
        yield from _operands(pattern.inputs, node.inputs[::-1], so_far)


def _operands(
    patterns: tuple[Pattern, ...], values: tuple[str, ...], so_far: Match
) -> Iterator[Match]:
    if not patterns:
        yield so_far
        return
    for found in _value(patterns[0], values[0], so_far):
        yield from _operands(patterns[1:], values[1:], found)
