"""Record of the Triton kernel, with tiles for few rows of a stretch and for many."""

from __future__ import annotations

from fusec import symbolic
from fusec.ir import Graph, Node
from fusec.kernels.launch import Call, Launch, Layout
from fusec.kernels.matmul.triton import FEW, MANY, fitted
from fusec.kernels.registry import Kernel
from fusec.kernels.triton_gemm import Tile, above, known, weight_refusal
from fusec.kernels.triton_launch import triton_launch
from fusec.kernels.triton_rows import FAMILIES, FLOATS, SCALAR_SPILLS, power_above
from fusec.symbolic import Dim
from fusec.target import Target

FEW_OF_A_GROUP = 32
"""Rows that a stretch has on average, at most, if it has few."""


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    x, weight, ends = map(graph.type, node.inputs)
    if x.dtype not in FLOATS:
        return f"dtype: it computes {', '.join(FLOATS)}, not {x.dtype}"
    if ends.dtype not in ("i32", "i64"):
        return f"dtype: its offsets are i32 or i64, not {ends.dtype}"
    return weight_refusal(weight)


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    """Weights are read by the strides of their storage."""
    return ("rows", "strided", "contiguous", "rows")


def _launches(call: Call) -> tuple[Launch, ...]:
    rows = call.inputs[0].shape[0]
    groups = known(call.input_type(1).shape[0])
    family = call.target.family
    x, weight, _ = call.inputs
    out = call.outputs[0]
    few, many = (fitted(call, tier[family], x, weight, out) for tier in (FEW, MANY))
    if few == many:
        return (_launch(call, few, 1),)
    many_run = above(rows, FEW_OF_A_GROUP * groups, call.graph)
    tiers = ((few, 1 - many_run), (many, many_run))
    return tuple(_launch(call, tile, runs) for tile, runs in tiers if runs != 0)


def _launch(call: Call, tile: Tile, runs: Dim) -> Launch:
    x, weight, ends = call.inputs
    out = call.outputs[0]
    groups, length, columns = map(known, call.input_type(1).shape)
    rows = x.shape[0]
    strides: dict[str, Dim] = {
        "x_stride": x.strides[0],
        "w_group": weight.strides[0],
        "w_row": weight.strides[1],
        "w_column": weight.strides[2],
        "y_stride": out.strides[0],
    }
    fixed = {name: step for name, step in strides.items() if isinstance(step, int) and step < 2}
    tiles = symbolic.floor_divide(rows, tile.rows) + groups + 1
    return triton_launch(
        "fusec.kernels.grouped_mm.triton_kernel",
        "grouped_mm_kernel",
        {"p_x": x, "p_w": weight, "p_ends": ends, "p_error": call.error(), "p_y": out},
        sizes={"M": rows},
        params={name: step for name, step in strides.items() if name not in fixed},
        constants={
            **fixed,
            "N": columns,
            "K": length,
            "GROUPS": groups,
            "GROUPS_PADDED": power_above(groups, 1),
            "BLOCK_M": tile.rows,
            "BLOCK_N": tile.columns,
            "BLOCK_K": tile.depth,
        },
        grid=(tiles * -(-columns // tile.columns) * runs, 1, 1),
        warps=tile.warps,
        options=(("num_stages", tile.stages), *tile.options),
    )


TRITON = Kernel(
    op="grouped_mm",
    name="grouped_mm.triton",
    provider="triton",
    families=FAMILIES,
    source="grouped_mm/triton_kernel.py",
    supports=_supports,
    launch=_launches,
    layouts=_layouts,
    scalar_spills=SCALAR_SPILLS,
)
