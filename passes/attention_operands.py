"""The operands of an `attention`, and what its passes share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fusec.ir import Attrs, Graph, Node
from fusec.ir.types import Attr, TensorType, bool_attr
from fusec.rewrite.driver import Builder

MASKED = -1e4
"""A number this low, added to a score, leaves no share for its key."""


@dataclass(frozen=True, slots=True)
class AttentionOperands:
    """The operands of an `attention` by name; `flags` are its other attributes."""

    q: str
    k: str
    v: str
    mask: str | None
    sinks: str | None
    key_padding: str | None
    flags: Mapping[str, Attr]

    @classmethod
    def of(cls, node: Node) -> AttentionOperands:
        """The operands of `node`."""
        q, k, v, *rest = node.inputs
        names = ("has_mask", "has_sinks", "has_key_padding")
        given = (rest.pop(0) if bool_attr(node.attrs, name) else None for name in names)
        mask, sinks, key_padding = given
        flags = {key: value for key, value in node.attrs.items() if key not in names}
        return cls(q, k, v, mask, sinks, key_padding, flags)

    def changed(self, **flags: Attr) -> AttentionOperands:
        """The same operands with other attributes."""
        return replace(self, flags={**self.flags, **flags})

    @property
    def inputs(self) -> tuple[str, ...]:
        """Values in operand order."""
        optional = (self.mask, self.sinks, self.key_padding)
        return (self.q, self.k, self.v, *(value for value in optional if value is not None))

    @property
    def attrs(self) -> Attrs:
        """All attributes."""
        return {
            "causal": False,
            "window": None,
            "softcap": None,
            **self.flags,
            "has_mask": self.mask is not None,
            "has_sinks": self.sinks is not None,
            "has_key_padding": self.key_padding is not None,
        }


def as_type(build: Builder, value: str, wanted: TensorType) -> str:
    """`value` cast and reshaped to `wanted`; decisions go on naming what `build` added before."""
    graph, root = build.graph, build.root
    if graph.type(value).dtype != wanted.dtype:
        attrs: Attrs = {"dtype": wanted.dtype}
        value = graph.add("cast", [value], attrs, origin=root.origin, at=root.name).output
    if graph.type(value).shape != wanted.shape:
        attrs = {"shape": wanted.shape}
        value = graph.add("reshape", [value], attrs, origin=root.origin, at=root.name).output
    return value


def swapped(graph: Graph, value: str) -> tuple[int, ...]:
    """The permutation that exchanges the last two axes of `value`."""
    rank = graph.type(value).rank
    return (*range(rank - 2), rank - 1, rank - 2)


def factor(graph: Graph, value: str) -> tuple[str, float] | None:
    """What `value` is a constant multiple of, and the constant; neither is zero."""
    node = graph.producer(value)
    if node is None or node.op not in ("mul", "div"):
        return None
    sides = (node.inputs, node.inputs[::-1]) if node.op == "mul" else (node.inputs,)
    for operand, other in sides:
        held = graph.constant(other)
        if isinstance(held, bool) or not isinstance(held, int | float) or held == 0:
            continue
        if graph.type(operand).shape == graph.type(value).shape:
            return operand, float(held) if node.op == "mul" else 1.0 / held
    return None
