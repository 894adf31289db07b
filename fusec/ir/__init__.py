"""The graph that frontends make, passes rewrite and lowering reads."""

from fusec.ir.graph import Graph, Node, Origin
from fusec.ir.ops import OPS, OpDef, op_named
from fusec.ir.text import parse_graph, print_graph
from fusec.ir.types import Attr, Attrs, TensorType
from fusec.ir.weights import Weight

__all__ = [
    "OPS",
    "Attr",
    "Attrs",
    "Graph",
    "Node",
    "OpDef",
    "Origin",
    "TensorType",
    "Weight",
    "op_named",
    "parse_graph",
    "print_graph",
]
