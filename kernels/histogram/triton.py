"""histogram on a GPU: the record of `triton_kernel.py`."""

from __future__ import annotations

import struct

from fusec import symbolic
from fusec.ir import Graph, Node
from fusec.ir.types import float_attr, int_attr
from fusec.kernels.histogram.cpu import DTYPES
from fusec.kernels.launch import Call, Launch
from fusec.kernels.registry import all_contiguous
from fusec.kernels.triton_index import index_kernel
from fusec.kernels.triton_launch import triton_launch
from fusec.symbolic import product
from fusec.target import Target

ROWS, BLOCK = 4, 1024
"""Bins of a program, and the elements that it compares them with at once."""


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    dtype = graph.type(node.inputs[0]).dtype
    return None if dtype in DTYPES else f"dtype: it counts {', '.join(DTYPES)}, not {dtype}"


def _bits(value: float) -> int:
    """An f64 as the integer that has its bits."""
    (bits,) = struct.unpack("<q", struct.pack("<d", value))
    return int(bits)


def _histogram(call: Call) -> Launch:
    x, out = call.inputs[0], call.outputs[0]
    bins = int_attr(call.attrs, "bins")
    return triton_launch(
        "fusec.kernels.histogram.triton_kernel",
        "histogram_kernel",
        {"p_x": x, "p_out": out},
        params={
            "count": product(x.shape),
            "low_bits": _bits(float_attr(call.attrs, "low")),
            "high_bits": _bits(float_attr(call.attrs, "high")),
        },
        constants={"BINS": bins, "ROWS": ROWS, "BLOCK": BLOCK},
        grid=(symbolic.ceil_divide(bins, ROWS), 1, 1),
        warps=4,
    )


TRITON = (index_kernel("histogram", _histogram, _supports, all_contiguous, "histogram"),)
