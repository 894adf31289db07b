"""Every operation, defined once: a type rule and a meaning in numpy."""

from fusec.ir.ops import elementwise, linear_algebra, quantised, raised, reduction, router, shape
from fusec.ir.ops.base import OPS, OpDef, is_opaque, op_named

__all__ = [
    "OPS",
    "OpDef",
    "elementwise",
    "is_opaque",
    "linear_algebra",
    "op_named",
    "quantised",
    "raised",
    "reduction",
    "router",
    "shape",
]
