"""Records of the Triton kernels.

Patches that do not overlap and are all of x, as in the vision towers that cut images beforehand,
are the rows of a `linear`.  Where a group has too few filters for a product, as in depthwise
convolutions, they go tap by tap; else patches are gathered for a product as they are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from fusec import symbolic
from fusec.ir import Graph, Node
from fusec.ir.ops.raised import AFTER_FILTERS, after_filters
from fusec.ir.types import int_attr, ints_attr, str_attr
from fusec.kernels.launch import Call, Launch, Layout, Storage
from fusec.kernels.linear.triton import ACTIVATIONS, activation_refusal, linear_launches
from fusec.kernels.registry import Kernel, all_contiguous
from fusec.kernels.triton_gemm import (
    LEAST_ROWS,
    MFMA_16,
    Tile,
    known,
    weight_refusal,
)
from fusec.kernels.triton_launch import triton_launch
from fusec.kernels.triton_rows import FAMILIES, FLOATS, SCALAR_SPILLS, power_above
from fusec.symbolic import Dim
from fusec.target import Family, Target

AXES = 3
"""Spatial axes that the kernels walk."""

MOST_GROUPS = 65535
"""Programs along the second axis of a grid."""

MOST_PLACES = (1 << 31) - 1
"""Places of a channel of the result."""

FEW_FILTERS = 8
"""Filters of a group, at most, that go tap by tap."""

TILES: dict[Family, Tile] = {
    "amdgpu": Tile(rows=64, columns=64, depth=32, warps=4, stages=2, options=MFMA_16),
    "nvidia": Tile(rows=64, columns=64, depth=32, warps=4, stages=2),
}
"""Filters, places and taps.  Each element of a patch has an address and a mask of its own, which
take registers."""

DIRECT_BLOCK = 256
"""Places of a program that goes tap by tap, at most."""


def _refusal(graph: Graph, node: Node) -> str | None:
    """What no kernel of this file does."""
    if node.op == "conv_epilogue" and (refusal := activation_refusal(node)) is not None:
        return refusal
    x, weight = map(graph.type, node.inputs[:2])
    if x.dtype not in (*FLOATS, "f64"):
        return f"dtype: it computes {', '.join(FLOATS)} and f64, not {x.dtype}"
    if x.rank - 2 > AXES:
        return f"shape: it takes up to {AXES} spatial axes, not {x.rank - 2}"
    least, _ = symbolic.bounds(_places(graph.type(node.output).shape), graph.symbols)
    if least > MOST_PLACES:
        return f"shape: a channel of the result has up to {MOST_PLACES} places, not {least:.0f}"
    return weight_refusal(weight)


def _places(shape: Sequence[Dim]) -> Dim:
    """Places of a channel: a number of 32 bits to the kernels, which the runtime makes sure of."""
    return symbolic.product(tuple(shape[2:]))


def _group_filters(graph: Graph, node: Node) -> int:
    filters = known(graph.type(node.inputs[1]).shape[0])
    return filters // int_attr(node.attrs, "groups")


def _supports_patches(graph: Graph, node: Node, target: Target) -> str | None:
    refusal = _refusal(graph, node)
    if refusal is not None:
        return refusal
    if graph.type(node.inputs[0]).dtype == "f64":
        return "dtype: the matrix units take no f64"
    if int_attr(node.attrs, "groups") != 1 or any(ints_attr(node.attrs, "padding")):
        return "shape: x is in groups, or padded"
    if graph.type(node.inputs[0]).shape[2:] != graph.type(node.inputs[1]).shape[2:]:
        return "shape: there is more than one patch"
    return None


def _supports_product(graph: Graph, node: Node, target: Target) -> str | None:
    refusal = _refusal(graph, node)
    if refusal is not None:
        return refusal
    if graph.type(node.inputs[0]).dtype == "f64":
        return "dtype: the matrix units take no f64"
    if _group_filters(graph, node) <= FEW_FILTERS:
        return f"shape: a group has {_group_filters(graph, node)} filters, too few for a product"
    if int_attr(node.attrs, "groups") > MOST_GROUPS:
        return f"shape: it takes up to {MOST_GROUPS} groups"
    return None


def _supports_direct(graph: Graph, node: Node, target: Target) -> str | None:
    return _refusal(graph, node)


def _strided(graph: Graph, node: Node) -> tuple[Layout, ...]:
    return ("strided", *all_contiguous(graph, node)[1:])


def _following(call: Call) -> dict[str, Storage]:
    """The operands after the filters, by their names."""
    if call.node.op == "conv":
        return dict(zip(("bias",), call.inputs[2:], strict=False))
    return after_filters(call.inputs, call.attrs)


def _patches(call: Call) -> tuple[Launch, ...]:
    """A product of rows: each batch is one patch."""
    x, weight = call.inputs[:2]
    rows, filters = x.shape[0], known(weight.shape[0])
    length = known(symbolic.product(weight.shape[1:]))

    def matrix(storage: Storage, columns: int) -> Storage:
        shape = (storage.shape[0], columns)
        return dataclasses.replace(storage, shape=shape, strides=(columns, 1))

    flat = dataclasses.replace(call, outputs=(matrix(call.outputs[0], filters),))
    operands = (matrix(x, length), matrix(weight, length), _following(call).get("bias"))
    return linear_launches(flat, *operands, rows, filters, length)


def _product(call: Call) -> Launch:
    filters = _group_filters(call.graph, call.node)
    tile = TILES[call.target.family]
    rows = min(tile.rows, power_above(filters, LEAST_ROWS))
    places = _places(call.outputs[0].shape) * call.outputs[0].shape[0]
    tiles = -(-filters // rows) * symbolic.ceil_divide(places, tile.columns)
    return _launch(
        call,
        "conv_kernel",
        {"BLOCK_M": rows, "BLOCK_N": tile.columns, "BLOCK_K": tile.depth},
        (tiles, int_attr(call.attrs, "groups"), 1),
        tile,
    )


def _direct(call: Call) -> Launch:
    out = call.outputs[0]
    places = _places(out.shape)
    _, most = symbolic.bounds(places, call.graph.symbols)
    block = DIRECT_BLOCK if most >= DIRECT_BLOCK else power_above(int(most), 64)
    programs = out.shape[0] * out.shape[1] * symbolic.ceil_divide(places, block)
    tile = Tile(rows=1, columns=block, depth=1, warps=max(1, block // 64), stages=1)
    constants = {"BLOCK": block, "WIDE": int(out.dtype == "f64")}
    return _launch(call, "conv_direct_kernel", constants, (programs, 1, 1), tile)


def _launch(
    call: Call, function: str, constants: dict[str, int], grid: tuple[Dim, Dim, Dim], tile: Tile
) -> Launch:
    x, weight, following, out = *call.inputs[:2], _following(call), call.outputs[0]
    attrs = call.attrs
    activation = "none" if call.node.op == "conv" else str_attr(attrs, "activation")
    groups = int_attr(attrs, "groups")
    stride, padding, dilation = (
        ints_attr(attrs, name) for name in ("stride", "padding", "dilation")
    )
    sizes: dict[str, Dim] = {
        "B": out.shape[0],
        **_of_axes("D", x.shape[2:], 1),
        **_of_axes("P", out.shape[2:], 1),
        "n_places": _places(out.shape),
    }
    strides: dict[str, Dim] = {
        "x_batch": x.strides[0],
        "x_channel": x.strides[1],
        **_of_axes("x_", x.strides[2:], 0),
    }
    fixed = {
        **{name: size for name, size in sizes.items() if isinstance(size, int)},
        **{
            name: step for name, step in strides.items() if isinstance(step, int) and step in (0, 1)
        },
        **{f"p_{name}": 0 for name in AFTER_FILTERS if name not in following},
    }
    return triton_launch(
        "fusec.kernels.conv.triton_kernel",
        function,
        {
            "p_x": x,
            "p_w": weight,
            **{f"p_{name}": operand for name, operand in following.items()},
            "p_y": out,
        },
        sizes={name: size for name, size in sizes.items() if name not in fixed},
        params={name: step for name, step in strides.items() if name not in fixed},
        constants={
            **fixed,
            **constants,
            "FILTERS": known(weight.shape[0]) // groups,
            "CHANNELS": known(weight.shape[1]),
            "GROUPS": groups,
            **{name: known(size) for name, size in _of_axes("K", weight.shape[2:], 1).items()},
            **{name: known(step) for name, step in _of_axes("STRIDE_", stride, 1).items()},
            **{name: known(size) for name, size in _of_axes("PADDING_", padding, 0).items()},
            **{name: known(step) for name, step in _of_axes("DILATION_", dilation, 1).items()},
            **{name.upper(): int(name in following) for name in AFTER_FILTERS},
            "ACTIVATION": ACTIVATIONS[activation],
            "PADDED": int(any(padding)),
        },
        grid=grid,
        warps=tile.warps,
        options=(("num_stages", tile.stages), *tile.options),
    )


def _of_axes(prefix: str, values: tuple[Dim, ...], fill: int) -> dict[str, Dim]:
    """Values of the three axes by name, with `fill` for those that there are not."""
    padded = (*(fill,) * (AXES - len(values)), *values)
    return {f"{prefix}{axis}": value for axis, value in enumerate(padded)}


def _kernel(
    name: str,
    supports: Callable[[Graph, Node, Target], str | None],
    launch: Callable[[Call], Launch | tuple[Launch, ...]],
    source: str = "conv/triton_kernel.py",
    layouts: Callable[[Graph, Node], tuple[Layout, ...]] = _strided,
) -> Kernel:
    return Kernel(
        op=name.split(".")[0],
        name=name,
        provider="triton",
        families=FAMILIES,
        source=source,
        supports=supports,
        launch=launch,
        layouts=layouts,
        scalar_spills=SCALAR_SPILLS,
    )


KERNELS = (
    _kernel(
        "conv.triton_patches",
        _supports_patches,
        _patches,
        source="linear/triton_kernel.py",
        layouts=all_contiguous,
    ),
    _kernel("conv.triton", _supports_product, _product),
    _kernel("conv.triton_direct", _supports_direct, _direct),
    _kernel("conv_epilogue.triton", _supports_product, _product),
    _kernel("conv_epilogue.triton_direct", _supports_direct, _direct),
)
