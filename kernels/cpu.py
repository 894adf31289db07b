"""What the records of the C++ kernels share: dtypes, strided rows, weight packing.

A kernel's `kernel.cpp` states its buffers and parameters in the comment above its symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fusec.dtypes import DTYPES
from fusec.ir import Graph, Node, TensorType, Weight
from fusec.ir.weights import Bits
from fusec.kernels.launch import OWN_PACKAGE, Call, Launch, Layout, Param, Storage
from fusec.kernels.registry import Kernel, Layouts, Packing, Supports, no_packing, row_major
from fusec.symbolic import Dim
from fusec.target import Target

CORE_SOURCES = ("cpu_core/kernel.cpp", "cpu_gemm/kernel.cpp")
"""Linked into every CPU module, below the folder of `fusec.kernels`."""

FLOATS = ("f32", "bf16", "f16")
"""Dtypes of the vector kernels; arithmetic is in f32."""

PANEL = 32
"""Columns of a panel of packed weights; see `include/fusec/panels.h`."""

OUTER_DIMS = 4
"""Strided dims that a row kernel can walk besides the row itself."""

INTEGERS = ("i64", "i32", "i16", "i8", "u8")
"""Dtypes of integer arithmetic."""

INDICES = ("i64", "i32", "i16", "i8")
"""Dtypes of indices; a negative one counts from the end."""

ACTIVATIONS = {
    "none": 0,
    "silu": 1,
    "gelu": 2,
    "gelu_tanh": 3,
    "relu": 4,
    "relu2": 5,
    "sigmoid": 6,
    "quick_gelu": 7,
    "swiglu_oai": 8,
    "swiglu_limit": 9,
    "relu6": 10,
    "hardswish": 11,
}
"""Numbers of `fusec::Activation` in `include/fusec/simd.h`."""


def float_kernel(graph: Graph, node: Node, target: Target) -> str | None:
    """Takes nodes whose first operand is in one of `FLOATS`."""
    dtype = graph.type(node.inputs[0]).dtype
    return None if dtype in FLOATS else f"it computes {', '.join(FLOATS)}, not {dtype}"


def any_float_kernel(graph: Graph, node: Node, target: Target) -> str | None:
    """Takes nodes whose first operand is in one of `FLOATS` or in f64."""
    dtypes = [graph.type(value).dtype for value in node.inputs]
    if dtypes[0] == "f64":
        return None
    if "f64" in dtypes:
        return f"it does not mix f64 with {dtypes[0]}"
    return float_kernel(graph, node, target)


def row_layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    """Strided rows for every operand and result of rank up to five, else dense ones."""

    def layout(value: str) -> Layout:
        return "rows" if graph.type(value).rank <= OUTER_DIMS + 1 else "contiguous"

    return tuple(layout(value) for value in (*node.inputs, *node.outputs))


def outer_params(*storages: Storage, inner: int = 1) -> list[Param]:
    """`sizes[4]` of the dims outside the last `inner` ones, then `strides[4]` of each storage.

    The storages agree in those sizes.  Dims that every storage walks evenly are merged, so that the
    kernel seldom divides.
    """
    rank = len(storages[0].shape) - inner
    dims: list[tuple[Dim, tuple[Dim, ...]]] = []
    for axis in range(rank):
        size = storages[0].shape[axis]
        steps = tuple(storage.strides[axis] for storage in storages)
        if size == 1:
            continue
        if dims and dims[-1][1] == tuple(step * size for step in steps):
            dims[-1] = (dims[-1][0] * size, steps)
        else:
            dims.append((size, steps))
    missing = OUTER_DIMS - len(dims)
    padded = [(1, (0,) * len(storages))] * missing + dims
    params: list[Param] = [size for size, _ in padded]
    for index in range(len(storages)):
        params += [steps[index] for _, steps in padded]
    return params


def axis_last(storage: Storage, axis: int) -> Storage:
    """The storage seen with `axis` moved to the end."""
    shape, strides = list(storage.shape), list(storage.strides)
    shape.append(shape.pop(axis))
    strides.append(strides.pop(axis))
    return replace(storage, shape=tuple(shape), strides=tuple(strides))


def leading(values: Sequence[Dim], rank: int, fill: int) -> tuple[Dim, ...]:
    """`values` after as many `fill` as make them `rank` long."""
    return (*(fill,) * (rank - len(values)), *values)


def expanded_strides(storage: Storage, shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """Strides that read the storage as if it had `shape`: 0 where it has size 1 or no axis."""
    own = zip(storage.shape, storage.strides, strict=True)
    return leading(tuple(0 if size == 1 else step for size, step in own), len(shape), 0)


def strided_layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    """Any strides for every operand and result."""
    strided: Layout = "strided"
    return (strided,) * (len(node.inputs) + len(node.outputs))


def one_axis(*dtypes: str) -> Supports:
    """Takes nodes that work along one axis, of these dtypes, with few enough other axes."""

    def supports(graph: Graph, node: Node, target: Target) -> str | None:
        x = graph.type(node.inputs[0])
        if x.dtype not in dtypes:
            return f"it computes {', '.join(dtypes)}, not {x.dtype}"
        if not 1 <= x.rank <= OUTER_DIMS + 1:
            return f"it takes operands of rank 1 to {OUTER_DIMS + 1}, not {x.rank}"
        return None

    return supports


WEIGHT_KINDS = {"f32": 2, "bf16": 3, "f16": 4}
"""Numbers of `fusec::WeightKind` for weights of another dtype than the operand."""


def weight_kind(weight: TensorType | None, x: TensorType) -> int:
    """How a row kernel reads a weight: see `WeightKind` in `include/fusec/rows.h`."""
    if weight is None:
        return 0
    return 1 if weight.dtype == x.dtype else WEIGHT_KINDS[weight.dtype]


def packed_size(dtype: str, rows: int, depth: int) -> int:
    """Elements of a packed weight [rows, depth]."""
    padded = -(-depth // PANEL) * PANEL if dtype == "bf16" else depth
    return -(-rows // PANEL) * PANEL * padded


def pack_panels(weight: Bits, dtype: str) -> Bits:
    """Weight [..., N, K] as panels: `include/fusec/panels.h` has the layout.

    Returns:
        [..., panels, K, 32], or for bf16 [..., panels, K/2, 32, 2] with K padded to 32.
    """
    *batch, rows, depth = weight.shape
    padded = -(-depth // PANEL) * PANEL if dtype == "bf16" else depth
    panels = -(-rows // PANEL)
    blocks = np.zeros((*batch, panels * PANEL, padded), weight.dtype)
    blocks[..., :rows, :depth] = weight
    if dtype == "bf16":
        pairs = blocks.reshape(*batch, panels, PANEL, padded // 2, 2)
        return np.ascontiguousarray(np.moveaxis(pairs, -3, -2))
    return np.ascontiguousarray(blocks.reshape(*batch, panels, PANEL, padded).swapaxes(-1, -2))


def pack_weight(weight: Weight) -> Weight:
    """A weight [..., N, K] in the order in which the matrix kernels read it."""
    dtype = weight.type.dtype
    *batch, rows, depth = weight.shape
    size = int(np.prod(batch, dtype=np.int64)) * packed_size(dtype, rows, depth)
    packed = TensorType(dtype, (size,))
    return weight.derive(
        f"{weight.name}.panels", packed, "panels", lambda bits: pack_panels(bits, dtype).reshape(-1)
    )


def pack_transposed_weight(weight: Weight) -> Weight:
    """A weight [..., K, N], packed as [..., N, K] is."""
    *batch, depth, rows = weight.shape
    turned = weight.derive(
        f"{weight.name}.transposed",
        TensorType(weight.type.dtype, (*batch, rows, depth)),
        "transpose",
        lambda bits: bits.swapaxes(-1, -2),
    )
    return pack_weight(turned)


def pack_gate_up(weight: Bits, dtype: str, layout: str) -> Bits:
    """Weight [..., 2N, K] of gates and ups as panels, those of one column next to each other.

    Args:
        weight: in storage form.
        dtype: of the weight.
        layout: `split` (gate rows first) or `interleaved`.

    Returns:
        [..., panels, 2, K, 32], or for bf16 [..., panels, 2, K/2, 32, 2] with K padded to 32.
    """
    gate, up = (pack_panels(part, dtype) for part in gate_and_up(weight, layout, axis=-2))
    return np.stack((gate, up), axis=weight.ndim - 1)


def gate_and_up(weight: Bits, layout: str, axis: int) -> tuple[Bits, Bits]:
    """The gates and the ups along an axis that has `split` or `interleaved` ones."""
    if layout == "interleaved":
        pairs = np.moveaxis(weight, axis, 0)
        return np.moveaxis(pairs[::2], 0, axis), np.moveaxis(pairs[1::2], 0, axis)
    gate, up = np.split(weight, 2, axis=axis)
    return gate, up


def pack_gate_up_weight(weight: Weight, layout: str) -> Weight:
    """A weight [..., 2N, K], gates and ups `split` or `interleaved`, as `pack_gate_up` has it."""
    dtype = weight.type.dtype
    *batch, rows, depth = weight.shape
    size = int(np.prod(batch, dtype=np.int64)) * 2 * packed_size(dtype, rows // 2, depth)
    return weight.derive(
        f"{weight.name}.gate_up_panels",
        TensorType(dtype, (size,)),
        f"gate_up panels {layout}",
        lambda bits: pack_gate_up(bits, dtype, layout).reshape(-1),
    )


def pack_gate_up_bias(bias: Weight, layout: str) -> Weight:
    """A bias [2N] with the gates first."""
    return bias.derive(
        f"{bias.name}.gate_up",
        bias.type,
        f"gate_up {layout}",
        lambda bits: np.concatenate(gate_and_up(bits, layout, axis=-1), axis=-1),
    )


PRECISIONS = {"highest": 0, "high": 1, "medium": 2}
"""Numbers of `fusec::Precision` in `include/fusec/gemm.h`."""


def precision_param(target: Target) -> int:
    """How precisely products of f32 are computed, as the kernels take it."""
    return PRECISIONS[target.fp32_precision]


def cpp_kernel(
    op: str,
    launch: Callable[[Call], Launch | tuple[Launch, ...]],
    *,
    supports: Supports = any_float_kernel,
    layouts: Layouts = row_layouts,
    source: str | None = None,
    name: str | None = None,
    packing: Callable[[Graph, Node, Target], Mapping[int, Packing]] = no_packing,
    output_order: Callable[[Graph, Node], tuple[int, ...] | None] = row_major,
    package: str = OWN_PACKAGE,
) -> Kernel:
    """The record of a C++ kernel whose source is in the folder of its operation, or in `source`."""
    return Kernel(
        op=op,
        name=name or f"{op}.cpp",
        provider="cpp",
        families=("cpu",),
        source=f"{source or op}/kernel.cpp",
        supports=supports,
        launch=launch,
        layouts=layouts,
        packing=packing,
        output_order=output_order,
        package=package,
    )


def itemsize(storage: Storage) -> int:
    """Bytes of an element."""
    return DTYPES[storage.dtype].itemsize


def flags(*values: bool) -> list[int]:
    """Flags as the integers of a launch."""
    return [int(value) for value in values]


def operands(call: Call, skip: Sequence[int] = ()) -> tuple[Storage, ...]:
    """Inputs and then outputs, but for the inputs numbered in `skip`."""
    kept = (storage for index, storage in enumerate(call.inputs) if index not in skip)
    return (*kept, *call.outputs)
