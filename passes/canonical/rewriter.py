"""What a rule is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from fusec.ir import Attr, Attrs, Graph, Node, Origin, TensorType
from fusec.symbolic import Dim


@dataclass(slots=True)
class Rewriter:
    """Adds nodes in the place, and with the origin, of the node that a rule looks at."""

    graph: Graph
    root: Node
    added: list[str] = field(default_factory=list)

    def value(
        self,
        op: str,
        inputs: Iterable[str],
        attrs: Attrs | None = None,
        origin: Origin | None = None,
    ) -> str:
        """Add a node with one output and give that."""
        came_from = self.root.origin if origin is None else origin
        made = self.graph.add(op, inputs, attrs, origin=came_from, at=self.root.name)
        self.added.append(made.name)
        return made.output

    def constant(self, value: Attr, dtype: str, shape: tuple[Dim, ...] = ()) -> str:
        """Add a constant."""
        return self.value("constant", (), {"value": value, "dtype": dtype, "shape": shape})

    def reshaped(self, value: str, shape: tuple[Dim, ...]) -> str:
        """`value` with another shape."""
        if self.type(value).shape == shape:
            return value
        return self.value("reshape", [value], {"shape": shape})

    def type(self, value: str) -> TensorType:
        """The type of a value."""
        return self.graph.type(value)

    def producer(self, value: str, *ops: str) -> Node | None:
        """The node that defines `value`, if it is one of `ops`."""
        node = self.graph.producer(value)
        return node if node is not None and node.op in ops else None


Rule: TypeAlias = Callable[[Rewriter, Node], str | None]
"""Gives the value that takes the place of the node's output, or `None` to leave the node alone.

A rule that changes the node's operands in place gives back the node's own output.
"""
