"""Records of routed experts on a GPU: several launches with buffers in between.

1. `triton_align_kernel.py` puts the pairs of tokens and slots in the order of their experts.
2. `moe_product_kernel`: rows of tokens times gate_up, and the activation.
3. Where one scale spans a whole activated row or expert, `triton_quantise_kernel.py` quantises it;
   scales of groups are made in step 2.
4. `moe_product_kernel`: activated rows times down, times the weight of the route.
5. `moe_sum_kernel`: the sum over the slots of a token.

Values in between belong to a pair and lie at its number, in f32 unless they are codes or the next
product takes another float.  Nothing is added atomically: the result is the same for every run.
"""

from __future__ import annotations

from dataclasses import replace

from fusec import symbolic
from fusec.diagnostics import InternalError
from fusec.formats import MX_GROUP, Scaling
from fusec.ir import Graph, Node
from fusec.ir.ops.quantised import has_scaled_rows
from fusec.ir.types import bool_attr
from fusec.kernels.launch import Call, Launch, Layout, Storage
from fusec.kernels.moe.align import order_rows
from fusec.kernels.moe.operands import Experts, Order, even_groups, launch, scale_limits
from fusec.kernels.moe.product import Product, launch_product
from fusec.kernels.registry import Kernel, Supports
from fusec.kernels.triton_gemm import known
from fusec.kernels.triton_rows import FAMILIES, FLOATS, SCALAR_SPILLS, is_divisible, power_above
from fusec.symbolic import Dim
from fusec.target import Target

MOST_EXPERTS = 1023
"""Experts that one program counts, with one more bin for what is none."""

SUM_BLOCK = 1024
"""Columns of a token that one program adds up."""

QUANTISE_BLOCK = 128
"""Columns of a row that are quantised at a time."""

LARGEST_OFFSET = 2**31
"""Offsets in the weight of one expert are 32-bit numbers."""


def _quantised(
    experts: Experts, order: Order, rows: Storage
) -> tuple[Storage, Storage, tuple[Launch, ...]]:
    """Codes, their scales, and the launches that make them of activated rows."""
    call, scaling, inner = experts.call, experts.scaling, experts.inner
    if scaling is None:
        raise InternalError(f"the rows of `{call.node.name}` are not quantised")
    codes = call.scratch(scaling.dtype, (experts.pairs, inner))
    scale = call.scratch("f32", (experts.pairs, 1))
    of_expert = scaling.granularity == "tensor"
    largest = call.scratch("f32", (order.blocks,)) if of_expert else scale
    block = QUANTISE_BLOCK if is_divisible(inner) else QUANTISE_BLOCK // 4
    shape = {"E": experts.count, "N": inner, "BLOCK_M": order.block, "BLOCK": block}
    quantise = launch(
        "triton_quantise_kernel",
        "moe_quantise_kernel",
        {"p_x": rows, "p_largest": largest, "p_codes": codes, "p_scale": scale, **order.storages},
        scale_limits(scaling),
        {
            **shape,
            "OF_EXPERT": int(of_expert),
            "ROUND_UP": int(scaling.rounding == "up"),
            "BLOCKS": 64,
        },
        (order.blocks, 1),
    )
    if not of_expert:
        return codes, scale, (quantise,)
    find = launch(
        "triton_quantise_kernel",
        "moe_largest_kernel",
        {"p_x": rows, "p_largest": largest, **order.storages},
        {},
        shape,
        (order.blocks, 1),
    )
    return codes, scale, (find, quantise)


def _moe(call: Call) -> tuple[Launch, ...]:
    experts = Experts.of(call)
    scaling, pairs, inner, hidden = experts.scaling, experts.pairs, experts.inner, experts.hidden
    order, launches = order_rows(experts)
    groups = scaling is not None and scaling.granularity == "group"
    activated_scale = None
    if scaling is None:
        activated = call.scratch(experts.x.dtype, (pairs, inner))
    elif groups:
        activated = call.scratch(scaling.dtype, (pairs, inner))
        activated_scale = call.scratch(scaling.scale_dtype, (pairs, inner // scaling.group))
    else:
        activated = call.scratch("f32", (pairs, inner))
    first = Product(
        first=True,
        a=experts.x,
        a_scale=experts.x_scale,
        weight=experts.gate_up,
        scale=experts.gate_up_scale,
        y=activated,
        y_scale=activated_scale,
        depth=hidden,
        width=inner * (2 if experts.gated else 1),
    )
    launches += (launch_product(experts, order, first),)
    if scaling is not None and not groups:
        activated, activated_scale, more = _quantised(experts, order, activated)
        launches += more
    products = call.scratch("f32", (pairs, hidden))
    second = replace(
        first,
        first=False,
        a=activated,
        a_scale=activated_scale,
        weight=experts.down,
        scale=experts.down_scale,
        y=products,
        y_scale=None,
        depth=inner,
        width=hidden,
    )
    return (*launches, launch_product(experts, order, second), _sum(experts, products))


def _sum(experts: Experts, products: Storage) -> Launch:
    out = experts.call.outputs[0]
    block = min(SUM_BLOCK, power_above(experts.hidden))
    return launch(
        "triton_kernel",
        "moe_sum_kernel",
        {"p_products": products, "p_experts": experts.indices, "p_y": out},
        {"experts_stride": experts.indices.strides[0], "y_stride": out.strides[0]},
        {"E": experts.count, "TOP_K": experts.top_k, "N": experts.hidden, "BLOCK": block},
        (experts.tokens, symbolic.ceil_divide(experts.hidden, block)),
    )


# --- what is refused ------------------------------------------------------------------------


def _routed(graph: Graph, node: Node, operands: tuple[str, ...]) -> str | None:
    """Why the routes, or the weights [gate_up, down] and biases, are none that it takes."""
    weights, indices, gate_up, down, *biases = (graph.type(value) for value in operands)
    if weights.dtype not in FLOATS:
        return f"its routing weights are floats, not `{weights.dtype}`"
    if indices.dtype not in ("i32", "i64"):
        return f"its expert indices are i32 or i64, not `{indices.dtype}`"
    sizes = (*gate_up.shape, *down.shape, indices.shape[1])
    if not all(isinstance(size, int) for size in sizes):
        return f"the sizes of `{gate_up}` and `{down}` are not all known at compile time"
    if known(gate_up.shape[0]) > MOST_EXPERTS:
        return f"it counts {MOST_EXPERTS} experts, not {gate_up.shape[0]}"
    for kind in (gate_up, down):
        if known(symbolic.product(kind.memory_shape[1:])) >= LARGEST_OFFSET:
            return f"the weight of one expert of `{kind}` has more than {LARGEST_OFFSET} elements"
    if any(bias.dtype not in FLOATS for bias in biases):
        return "its biases are floats"
    return None


def _supports_moe(graph: Graph, node: Node, target: Target) -> str | None:
    x = graph.type(node.inputs[0])
    if x.dtype not in FLOATS:
        return f"it multiplies {', '.join(FLOATS)}, not {x.dtype}"
    if any(graph.type(value).dtype != x.dtype for value in node.inputs[3:5]):
        return f"its experts are of the dtype of the tokens, `{x.dtype}`"
    return _routed(graph, node, node.inputs[1:])


def _supports_fp8(graph: Graph, node: Node, target: Target) -> str | None:
    if not has_scaled_rows(node.attrs):
        return "scales: it takes x as codes with scales"
    scaling = Scaling.of(node.attrs)
    if scaling.dtype != target.fp8:
        return f"fp8.arch: `{target.name}` multiplies {target.fp8}; this is {scaling.dtype}"
    scales = [graph.type(node.inputs[index]).dtype for index in (1, 5, 7)]
    if scaling.scale_dtype != "f32" or scales != ["f32"] * 3:
        return f"scales: they are f32, not {', '.join(sorted(set(scales)))}"
    inputs = node.inputs
    reason = _routed(graph, node, (*inputs[2:5], inputs[6], *inputs[8:]))
    if reason is not None:
        return reason
    if not even_groups(graph, node, 64):
        return "scales: a group of columns with one scale is not a multiple of 64 long"
    return _supports_group(graph.type(inputs[6]).shape[2], scaling)


def _supports_group(inner: Dim, scaling: Scaling) -> str | None:
    group = scaling.group
    if group and (group & (group - 1) or group > 128):
        return f"scales: a group is a power of two up to 128, not {group}"
    if group and known(inner) % group:
        return f"scales: the activated rows of {inner} are not whole groups of {group}"
    return None


def _supports_mxfp4(graph: Graph, node: Node, target: Target) -> str | None:
    scaled = bool_attr(node.attrs, "has_x_scale")
    inputs = node.inputs
    begin = 1 + scaled
    operands = (*inputs[begin : begin + 3], inputs[begin + 4], *inputs[begin + 6 :])
    reason = _routed(graph, node, operands)
    if reason is not None:
        return reason
    depths = [known(graph.type(value).shape[2]) * 2 for value in operands[2:4]]
    if any(depth % MX_GROUP for depth in depths):
        return f"mxfp4.align: rows of {depths} elements are not whole groups of {MX_GROUP}"
    if not scaled:
        dtype = graph.type(inputs[0]).dtype
        return None if dtype in ("bf16", "f16") else f"it multiplies bf16 or f16, not {dtype}"
    if target.family == "amdgpu" and not target.native_mxfp4:
        return f"mxfp4.arch: native scaled MFMA needs gfx950; this is {target.name}"
    scaling = Scaling.of(node.attrs)
    if (scaling.dtype, scaling.scale_dtype, scaling.group) != ("f8e4m3fn", "e8m0", MX_GROUP):
        return f"scales: it takes f8e4m3fn with a scale for {MX_GROUP}, not {scaling.dtype}"
    return None


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    """Evenly spaced rows of tokens; weights are read by the strides of their storage."""
    rows: Layout = "even_rows"
    strided: Layout = "strided"
    scaled = node.op == "moe_fp8" or bool_attr(node.attrs, "has_x_scale")
    routes = 3 + scaled
    return (*(rows,) * routes, *(strided,) * (len(node.inputs) - routes), rows)


def _record(op: str, supports: Supports) -> Kernel:
    return Kernel(
        op=op,
        name=f"{op}.triton",
        provider="triton",
        families=FAMILIES,
        source="moe/triton_kernel.py",
        supports=supports,
        launch=_moe,
        layouts=_layouts,
        scalar_spills=SCALAR_SPILLS,
    )


TRITON = (
    _record("moe", _supports_moe),
    _record("moe_fp8", _supports_fp8),
    _record("moe_mxfp4", _supports_mxfp4),
)
