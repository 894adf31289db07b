"""Records of the Triton kernel: products by any strides, of which sizes may be known late.

They also compute `linear` where the sizes of its weight are not known at compile time, or its dtype
is none of the matrix units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fusec import symbolic
from fusec.ir import Graph, Node
from fusec.kernels.launch import Call, Launch, Layout, Storage
from fusec.kernels.registry import Kernel
from fusec.kernels.triton_gemm import (
    FEW_OR_SEVERAL_ROWS,
    LEAST_ROWS,
    MFMA_16,
    UNITS,
    Tile,
    above,
)
from fusec.kernels.triton_launch import triton_launch
from fusec.kernels.triton_rows import (
    FAMILIES,
    FLOATS,
    SCALAR_SPILLS,
    is_divisible,
    power_above,
    row_stride,
)
from fusec.symbolic import Dim
from fusec.target import Family, Target

BATCH_AXES = 4
"""Batch axes of the kernel."""

LOOPED = ("f64", "i64", "i32")
"""Dtypes that no matrix unit takes, or none that Triton uses."""

FEW: dict[Family, Tile] = {
    "amdgpu": Tile(rows=32, columns=64, depth=64, warps=4, stages=2, options=MFMA_16),
    "nvidia": Tile(rows=64, columns=64, depth=64, warps=4, stages=3),
}
MANY: dict[Family, Tile] = {
    "amdgpu": Tile(rows=128, columns=128, depth=64, warps=4, stages=2, options=MFMA_16),
    "nvidia": Tile(rows=128, columns=128, depth=64, warps=8, stages=3),
}
"""By how many rows there are."""

SMALLER = 64
"""Rows and columns of a tile of many rows where larger ones would leave compute units idle, or
elements are of 32 bits, or are moved one by one."""

WIDE_DEPTH = 32
"""The same of its depth, where elements are of 32 bits or are moved one by one."""

LOOPED_TILE = Tile(rows=32, columns=32, depth=1, warps=4, stages=1)
"""Of dtypes that are multiplied one by one."""


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    x, out = graph.type(node.inputs[0]), graph.type(node.output)
    if x.dtype not in (*FLOATS, *LOOPED):
        return f"dtype: it computes {', '.join((*FLOATS, *LOOPED))}, not {x.dtype}"
    if node.op == "matmul" and out.rank - 2 > BATCH_AXES:
        return f"shape: it takes up to {BATCH_AXES} batch axes, not {out.rank - 2}"
    if x.dtype in LOOPED and out.dtype != x.dtype:
        return f"dtype: it does not give a product of {x.dtype} in {out.dtype}"
    return None


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    strided: Layout = "strided"
    even: Layout = "even_rows"
    if node.op == "linear":
        return (even, strided, *(even,) * (len(node.inputs) - 1))
    return (strided, strided, "rows")


def _matmul(call: Call) -> tuple[Launch, ...]:
    a, b = call.inputs
    return _launches(call, a, b, call.outputs[0], None)


def _linear(call: Call) -> tuple[Launch, ...]:
    x, weight = call.inputs[:2]
    bias = call.inputs[2] if len(call.inputs) == 3 else None
    turned = dataclasses.replace(weight, shape=weight.shape[::-1], strides=weight.strides[::-1])
    return _launches(call, _as_matrix(x), turned, _as_matrix(call.outputs[0]), bias)


def _as_matrix(storage: Storage) -> Storage:
    """Evenly spaced rows as one matrix."""
    rows, stride = symbolic.product(storage.shape[:-1]), row_stride(storage)
    shape, strides = (rows, storage.shape[-1]), (stride, storage.strides[-1])
    return dataclasses.replace(storage, shape=shape, strides=strides)


def _launches(
    call: Call, a: Storage, b: Storage, y: Storage, bias: Storage | None
) -> tuple[Launch, ...]:
    """What runs for few rows of `y` and for many."""
    if a.dtype in LOOPED:
        return (_launch(call, a, b, y, bias, LOOPED_TILE, 1),)
    few, many = (fitted(call, tier[call.target.family], a, b, y) for tier in (FEW, MANY))
    if few == many:
        return (_launch(call, a, b, y, bias, few, 1),)
    many_run = above(y.shape[-2], FEW_OR_SEVERAL_ROWS.most, call.graph)
    tiers = ((few, 1 - many_run), (many, many_run))
    return tuple(_launch(call, a, b, y, bias, tile, runs) for tile, runs in tiers if runs != 0)


def fitted(call: Call, tile: Tile, a: Storage, b: Storage, y: Storage) -> Tile:
    """`tile` for y = a @ b, no larger than sizes and registers let it be."""
    symbols = call.graph.symbols
    (_, rows), (_, columns), (_, length) = (
        symbolic.bounds(dim, symbols) for dim in (*y.shape[-2:], a.shape[-1])
    )
    batch, _ = symbolic.bounds(symbolic.product(y.shape[:-2]), symbols)
    tiles = max(1, batch) * max(1, rows / tile.rows) * max(1, columns / tile.columns)
    is_narrow = a.dtype == "f32" or not (_loads_wide(a) and _loads_wide(b))
    if is_narrow or tiles < UNITS[call.target.name]:
        smaller = min(tile.rows, SMALLER), min(tile.columns, SMALLER)
        tile = dataclasses.replace(tile, rows=smaller[0], columns=smaller[1], warps=4)
    depth = min(tile.depth, WIDE_DEPTH) if is_narrow else tile.depth
    return dataclasses.replace(
        tile,
        rows=_no_larger(tile.rows, rows),
        columns=_no_larger(tile.columns, columns),
        depth=_no_larger(depth, length),
    )


def _no_larger(size: int, most: float) -> int:
    return size if most >= size else min(size, power_above(int(most), LEAST_ROWS))


def _loads_wide(matrices: Storage) -> bool:
    """Whether elements are loaded some at a time: neighbours, in rows of whole vectors."""
    for axis, other in ((-1, -2), (-2, -1)):
        if matrices.strides[axis] == 1:
            return all(map(is_divisible, (matrices.shape[axis], matrices.strides[other])))
    return False


def _launch(
    call: Call,
    a: Storage,
    b: Storage,
    y: Storage,
    bias: Storage | None,
    tile: Tile,
    runs: Dim,
) -> Launch:
    rows, columns, length = *y.shape[-2:], a.shape[-1]
    batch = _batch_axes(a, b, y)
    sizes: dict[str, Dim] = {"M": rows, "N": columns, "K": length}
    sizes |= {f"B{axis}": batch[axis][0] for axis in range(1, BATCH_AXES)}
    strides: dict[str, Dim] = {}
    matrices = (
        ("a", {"row": a.strides[-2], "column": a.strides[-1]}),
        ("b", {"row": b.strides[-2], "column": b.strides[-1]}),
        ("y", {"row": y.strides[-2]}),
    )
    for index, (name, inner) in enumerate(matrices):
        strides |= {f"{name}_{axis}": steps[index] for axis, (_, steps) in enumerate(batch)}
        strides |= {f"{name}_{axis}": step for axis, step in inner.items()}
    operands = {"p_a": a, "p_b": b, **({} if bias is None else {"p_bias": bias}), "p_y": y}
    fixed: dict[str, int] = {
        **{name: size for name, size in sizes.items() if isinstance(size, int)},
        **{
            name: step for name, step in strides.items() if isinstance(step, int) and step in (0, 1)
        },
        **({"p_bias": 0} if bias is None else {}),
    }
    tiles = symbolic.ceil_divide(rows, tile.rows) * symbolic.ceil_divide(columns, tile.columns)
    return triton_launch(
        "fusec.kernels.matmul.triton_kernel",
        "matmul_kernel",
        operands,
        sizes={name: size for name, size in sizes.items() if name not in fixed},
        params={name: step for name, step in strides.items() if name not in fixed},
        constants={
            **fixed,
            "BIAS": int(bias is not None),
            "BLOCK_M": tile.rows,
            "BLOCK_N": tile.columns,
            "BLOCK_K": tile.depth,
            "GROUP_M": tile.group,
            "WHOLE_M": _is_multiple(rows, tile.rows),
            "WHOLE_N": _is_multiple(columns, tile.columns),
            "WHOLE_K": _is_multiple(length, tile.depth),
            "DOT": int(a.dtype not in LOOPED),
        },
        grid=(tiles * symbolic.product(y.shape[:-2]) * runs, 1, 1),
        warps=tile.warps,
        options=(("num_stages", tile.stages), *tile.options),
    )


def _is_multiple(dim: Dim, size: int) -> int:
    return int(isinstance(dim, int) and dim % size == 0)


def _batch_axes(*storages: Storage) -> tuple[tuple[Dim, tuple[Dim, ...]], ...]:
    """Four batch axes: the size of each, and the strides of `storages`, of which y is the last.

    Axes that every storage walks evenly are merged, so that the kernel seldom divides.
    """
    *_, y = storages
    axes: list[tuple[Dim, tuple[Dim, ...]]] = []
    expanded = [_expanded(storage, y.shape[:-2]) for storage in storages]
    for size, *steps in zip(y.shape[:-2], *expanded, strict=True):
        if size == 1:
            continue
        if axes and axes[-1][1] == tuple(step * size for step in steps):
            axes[-1] = (axes[-1][0] * size, tuple(steps))
        else:
            axes.append((size, tuple(steps)))
    return (*((1, (0,) * len(storages)),) * (BATCH_AXES - len(axes)), *axes)


def _expanded(storage: Storage, batch: Sequence[Dim]) -> tuple[Dim, ...]:
    """Strides of the batch axes: 0 where the storage has size 1 or no axis."""
    own = zip(storage.shape[:-2], storage.strides[:-2], strict=True)
    strides = tuple(0 if size == 1 else step for size, step in own)
    return (*(0,) * (len(batch) - len(strides)), *strides)


KERNELS = tuple(
    Kernel(
        op=op,
        name=name,
        provider="triton",
        families=FAMILIES,
        source="matmul/triton_kernel.py",
        supports=_supports,
        launch=launch,
        layouts=_layouts,
        scalar_spills=SCALAR_SPILLS,
    )
    for op, name, launch in (
        ("matmul", "matmul.triton", _matmul),
        ("linear", "linear_strided.triton", _linear),
    )
)
