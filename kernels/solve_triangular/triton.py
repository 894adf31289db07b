"""The record of `triton_kernel.py`."""

from __future__ import annotations

import dataclasses

from fusec import symbolic
from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr
from fusec.kernels.cpu import OUTER_DIMS, expanded_strides, outer_params, strided_layouts
from fusec.kernels.launch import Call, Launch, Storage
from fusec.kernels.registry import Kernel
from fusec.kernels.triton_gemm import known
from fusec.kernels.triton_launch import triton_launch
from fusec.kernels.triton_rows import FAMILIES, power_above
from fusec.target import Target

DTYPES = ("f32", "f64")

MOST_ROWS = 1024
"""Rows of a system at most: a program holds all of them."""

TILE = 8192
"""Elements of a tile at most: a lane holds 32."""

MOST_COLUMNS = 64

WARPS = 4


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    out = graph.type(node.outputs[0])
    rows = out.shape[-2]
    if out.dtype not in DTYPES:
        return f"dtype: it solves in {' and '.join(DTYPES)}, not {out.dtype}"
    if out.rank - 2 > OUTER_DIMS:
        return f"shape: it takes up to {OUTER_DIMS} batch dims, not {out.rank - 2}"
    if not isinstance(rows, int) or rows > MOST_ROWS:
        return f"shape: it solves up to {MOST_ROWS} rows, known at compile time, not {rows}"
    if node.attrs.get("left") is False:
        return "side: it solves A X = B, not X A = B"
    return None


def _as_batch(storage: Storage, like: Storage) -> Storage:
    """`storage` seen with the batch dims of `like`."""
    batch = like.shape[:-2]
    strides = expanded_strides(storage, (*batch, *storage.shape[-2:]))[: len(batch)]
    shape = (*batch, *storage.shape[-2:])
    return dataclasses.replace(storage, shape=shape, strides=(*strides, *storage.strides[-2:]))


def _launch(call: Call) -> Launch:
    out = call.outputs[0]
    storages = {"a": call.inputs[0], "b": call.inputs[1], "x": out}
    batches = {name: _as_batch(storage, out) for name, storage in storages.items()}
    outer = [dim for dim in outer_params(*batches.values(), inner=2) if not isinstance(dim, float)]
    sizes, steps = outer[:OUTER_DIMS], outer[OUTER_DIMS:]
    places = [f"{name}_step_{axis}" for name in storages for axis in range(OUTER_DIMS)]
    rows, columns = known(out.shape[-2]), out.shape[-1]
    padded = power_above(rows, 1)
    block = min(MOST_COLUMNS, TILE // padded)
    edges = {
        f"{name}_{axis}": stride
        for name, storage in storages.items()
        for axis, stride in zip(("row", "column"), storage.strides[-2:], strict=True)
    }
    units = {name: 1 for name, stride in edges.items() if stride == 1}
    return triton_launch(
        "fusec.kernels.solve_triangular.triton_kernel",
        "solve_triangular_kernel",
        {f"p_{name}": storage for name, storage in storages.items()},
        sizes={"columns": columns},
        params={
            **{f"size_{axis}": sizes[axis] for axis in range(1, OUTER_DIMS)},
            **dict(zip(places, steps, strict=True)),
            **{name: stride for name, stride in edges.items() if name not in units},
        },
        constants={
            **units,
            "N": rows,
            "ROWS": padded,
            "BLOCK": block,
            "UPPER": int(bool_attr(call.attrs, "upper")),
            "UNIT_DIAGONAL": int(bool_attr(call.attrs, "unit_diagonal")),
        },
        grid=(symbolic.product(sizes) * symbolic.ceil_divide(columns, block), 1, 1),
        warps=WARPS,
    )


TRITON = (
    Kernel(
        op="solve_triangular",
        name="solve_triangular.triton",
        provider="triton",
        families=FAMILIES,
        source="solve_triangular/triton_kernel.py",
        supports=_supports,
        launch=_launch,
        layouts=strided_layouts,
    ),
)
