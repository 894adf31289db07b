"""The record of `triton_kernel.py`."""

from __future__ import annotations

from fusec.ir import Graph, Node
from fusec.ir.ops.router import MOST_EXPERTS, SCORES
from fusec.ir.types import bool_attr, float_attr, int_attr, str_attr
from fusec.kernels.launch import Call, Launch
from fusec.kernels.triton_launch import triton_launch
from fusec.kernels.triton_rows import (
    FLOATS,
    power_above,
    row_kernels,
    row_length,
)
from fusec.target import Target


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    logits = graph.type(node.inputs[0])
    for value in (*node.inputs, node.outputs[0]):
        if graph.type(value).dtype not in FLOATS:
            return f"`%{value}` is {graph.type(value).dtype}, not one of {', '.join(FLOATS)}"
    experts = logits.shape[1]
    if not isinstance(experts, int) or experts > MOST_EXPERTS:
        return f"it chooses among {MOST_EXPERTS} experts, known at compile time, not {experts}"
    return None


def _launch(call: Call) -> Launch:
    attrs, logits = call.attrs, call.inputs[0]
    weights, experts = call.outputs
    biased = bool_attr(attrs, "has_bias")
    groups, k = int_attr(attrs, "groups"), int_attr(attrs, "k")
    size = row_length(call.input_type(0)) // groups
    operands = {
        "p_logits": logits,
        "p_bias": call.inputs[1] if biased else logits,
        "p_weights": weights,
        "p_experts": experts,
    }
    strides = {
        "logits_stride": logits.strides[0],
        "weights_stride": weights.strides[0],
        "experts_stride": experts.strides[0],
    }
    numbers = {name: float_attr(attrs, name) for name in ("fill", "eps", "least", "scale")}
    constants = {
        "SCORES": SCORES.index(str_attr(attrs, "scores")),
        "HAS_BIAS": int(biased),
        "GROUPS": groups,
        "GROUPS_KEPT": int_attr(attrs, "groups_kept"),
        "GROUP_BEST": int_attr(attrs, "group_best"),
        "FILL_WEIGHS": int(bool_attr(attrs, "fill_weighs")),
        "GROUP_SIZE": size,
        "TOP_K": k,
        "RENORMALISE": int(bool_attr(attrs, "renormalise")),
        "GROUP_BLOCK": power_above(groups, least=1),
        "SIZE_BLOCK": power_above(size, least=1),
        "SLOT_BLOCK": power_above(k, least=1),
    }
    return triton_launch(
        "fusec.kernels.router.triton_kernel",
        "router_kernel",
        operands,
        params={**strides, **numbers},
        constants=constants,
        grid=(logits.shape[0], 1, 1),
        warps=1,
    )


TRITON = row_kernels(("router",), "router", _launch, _supports)
