"""rms_norm and its relatives on the CPU: all from `rms_norm/kernel.cpp`."""

from __future__ import annotations

from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr, float_attr, int_attr, str_attr
from fusec.kernels.cpu import (
    ACTIVATIONS,
    any_float_kernel,
    cpp_kernel,
    flags,
    operands,
    outer_params,
    weight_kind,
)
from fusec.kernels.launch import Call, Launch, Param
from fusec.target import Target


def _rms_norm(call: Call) -> Launch:
    x, out = call.inputs[0], call.outputs[0]
    weighted = bool_attr(call.attrs, "has_weight")
    kind = weight_kind(call.input_type(1) if weighted else None, call.input_type(0))
    offset = int_attr(call.attrs, "weight_offset") if weighted else 0
    params = (*outer_params(x, out), x.shape[-1], float_attr(call.attrs, "eps"), kind, offset)
    return Launch(f"fusec_rms_norm_{x.dtype}", operands(call), params)


def _add_rms_norm(call: Call) -> Launch:
    x, residual, _ = call.inputs
    out, total = call.outputs
    params = (
        *outer_params(x, residual, out, total),
        x.shape[-1],
        float_attr(call.attrs, "eps"),
        weight_kind(call.input_type(2), call.input_type(0)),
        int_attr(call.attrs, "weight_offset"),
    )
    return Launch(f"fusec_add_rms_norm_{x.dtype}", operands(call), params)


def _dual_rms_norm(call: Call) -> Launch:
    params: list[Param] = []
    for number, (x, out) in enumerate(zip(call.inputs[::2], call.outputs, strict=True)):
        params += outer_params(x, out)
        kind = weight_kind(call.input_type(2 * number + 1), call.input_type(2 * number))
        offset = int_attr(call.attrs, "weight_offset")
        params += [x.shape[-1], float_attr(call.attrs, f"eps{number + 1}"), kind, offset]
    (x1, weight1, x2, weight2), (out1, out2) = call.inputs, call.outputs
    order = (x1, weight1, out1, x2, weight2, out2)
    return Launch(f"fusec_dual_rms_norm_{x1.dtype}", order, tuple(params))


def _one_dtype(graph: Graph, node: Node, target: Target) -> str | None:
    first, second = graph.type(node.inputs[0]).dtype, graph.type(node.inputs[2]).dtype
    if first != second:
        return f"its two operands are `{first}` and `{second}`"
    return any_float_kernel(graph, node, target)


def _gated_rms_norm(call: Call) -> Launch:
    x, _, gate = call.inputs
    params = (
        *outer_params(x, gate, call.outputs[0]),
        x.shape[-1],
        float_attr(call.attrs, "eps"),
        weight_kind(call.input_type(1), call.input_type(0)),
        int_attr(call.attrs, "weight_offset"),
        ACTIVATIONS[str_attr(call.attrs, "activation")],
        *flags(bool_attr(call.attrs, "norm_before_gate")),
    )
    return Launch(f"fusec_gated_rms_norm_{x.dtype}", operands(call), params)


KERNELS = (
    cpp_kernel("rms_norm", _rms_norm),
    cpp_kernel("add_rms_norm", _add_rms_norm, source="rms_norm"),
    cpp_kernel("dual_rms_norm", _dual_rms_norm, source="rms_norm", supports=_one_dtype),
    cpp_kernel("gated_rms_norm", _gated_rms_norm, source="rms_norm", supports=_one_dtype),
)
