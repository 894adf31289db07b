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
from fusec.kernels.cpu_rows import QuantisedRows, quantised_layouts, supports_quantised_rows
from fusec.kernels.launch import Call, Launch, Layout, Param, Storage
from fusec.target import Target


def _norm_params(call: Call) -> tuple[Param, ...]:
    """The params of `rms_norm` after sizes and strides."""
    weighted = bool_attr(call.attrs, "has_weight")
    kind = weight_kind(call.input_type(1) if weighted else None, call.input_type(0))
    offset = int_attr(call.attrs, "weight_offset") if weighted else 0
    return (call.inputs[0].shape[-1], float_attr(call.attrs, "eps"), kind, offset)


def _rms_norm(call: Call) -> Launch:
    x, out = call.inputs[0], call.outputs[0]
    params = (*outer_params(x, out), *_norm_params(call))
    return Launch(f"fusec_rms_norm_{x.dtype}", operands(call), params)


def _given_scale(call: Call) -> Storage | None:
    return call.inputs[-1] if bool_attr(call.attrs, "has_scale") else None


def _rms_norm_quant(call: Call) -> Launch:
    x = call.inputs[0]
    results = QuantisedRows.of(call, list(call.outputs), _given_scale(call))
    outer, codes = results.outer(x, results.rows)
    params = (*outer, *_norm_params(call), *results.params(codes))
    return Launch(f"fusec_rms_norm_quant_{x.dtype}", operands(call), params)


def _weighted_norm_params(call: Call, weight: int) -> tuple[Param, ...]:
    """The same where the operand numbered `weight` is one."""
    return (
        call.inputs[0].shape[-1],
        float_attr(call.attrs, "eps"),
        weight_kind(call.input_type(weight), call.input_type(0)),
        int_attr(call.attrs, "weight_offset"),
    )


def _add_rms_norm(call: Call) -> Launch:
    x, residual, _ = call.inputs
    out, total = call.outputs
    params = (*outer_params(x, residual, out, total), *_weighted_norm_params(call, 2))
    return Launch(f"fusec_add_rms_norm_{x.dtype}", operands(call), params)


def _add_rms_norm_quant(call: Call) -> Launch:
    x, residual = call.inputs[:2]
    outputs = list(call.outputs)
    total = outputs.pop()
    results = QuantisedRows.of(call, outputs, _given_scale(call))
    outer, codes = results.outer(x, residual, results.rows, total)
    params = (*outer, *_weighted_norm_params(call, 2), *results.params(codes))
    return Launch(f"fusec_add_rms_norm_quant_{x.dtype}", operands(call), params)


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


def _dual_rms_norm_quant(call: Call) -> tuple[Launch, ...]:
    """One launch for each norm: the second may be quantised or not."""
    launches: list[Launch] = []
    outputs = list(call.outputs)
    for number, eps in enumerate(("eps1", "eps2")):
        x, weight = call.inputs[2 * number : 2 * number + 2]
        norm = (
            x.shape[-1],
            float_attr(call.attrs, eps),
            weight_kind(call.input_type(2 * number + 1), call.input_type(2 * number)),
            int_attr(call.attrs, "weight_offset"),
        )
        if number == 1 and call.attrs["quantises"] == "first":
            out = outputs.pop(0)
            params = (*outer_params(x, out), *norm)
            launches.append(Launch(f"fusec_rms_norm_{x.dtype}", (x, weight, out), params))
            continue
        results = QuantisedRows.of(call, outputs)
        outer, codes = results.outer(x, results.rows)
        params = (*outer, *norm, *results.params(codes))
        operands_of_norm = (x, weight, results.codes, results.scale)
        launches.append(Launch(f"fusec_rms_norm_quant_{x.dtype}", operands_of_norm, params))
    return tuple(launches)


def _quantised_dual_layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    results = quantised_layouts(graph, node)
    if node.attrs["quantises"] == "first":
        return results
    return (*results[:-1], "contiguous")


def _quantised_alike(graph: Graph, node: Node, target: Target) -> str | None:
    return _one_dtype(graph, node, target) or supports_quantised_rows(graph, node, target)


def _one_dtype(graph: Graph, node: Node, target: Target) -> str | None:
    first, second = graph.type(node.inputs[0]).dtype, graph.type(node.inputs[2]).dtype
    if first != second:
        return f"its two operands are `{first}` and `{second}`"
    return any_float_kernel(graph, node, target)


def _gated_norm_params(call: Call) -> tuple[Param, ...]:
    return (
        *_weighted_norm_params(call, 1),
        ACTIVATIONS[str_attr(call.attrs, "activation")],
        *flags(bool_attr(call.attrs, "norm_before_gate")),
    )


def _gated_rms_norm(call: Call) -> Launch:
    x, _, gate = call.inputs
    params = (*outer_params(x, gate, call.outputs[0]), *_gated_norm_params(call))
    return Launch(f"fusec_gated_rms_norm_{x.dtype}", operands(call), params)


def _gated_rms_norm_quant(call: Call) -> Launch:
    x, _, gate = call.inputs[:3]
    results = QuantisedRows.of(call, list(call.outputs), _given_scale(call))
    outer, codes = results.outer(x, gate, results.rows)
    params = (*outer, *_gated_norm_params(call), *results.params(codes))
    return Launch(f"fusec_gated_rms_norm_quant_{x.dtype}", operands(call), params)


KERNELS = (
    cpp_kernel("rms_norm", _rms_norm),
    cpp_kernel("add_rms_norm", _add_rms_norm, source="rms_norm"),
    cpp_kernel("dual_rms_norm", _dual_rms_norm, source="rms_norm", supports=_one_dtype),
    cpp_kernel("gated_rms_norm", _gated_rms_norm, source="rms_norm", supports=_one_dtype),
    cpp_kernel(
        "rms_norm_quant",
        _rms_norm_quant,
        supports=supports_quantised_rows,
        layouts=quantised_layouts,
        source="rms_norm",
    ),
    cpp_kernel(
        "add_rms_norm_quant",
        _add_rms_norm_quant,
        supports=supports_quantised_rows,
        layouts=quantised_layouts,
        source="rms_norm",
    ),
    cpp_kernel(
        "dual_rms_norm_quant",
        _dual_rms_norm_quant,
        supports=_quantised_alike,
        layouts=_quantised_dual_layouts,
        source="rms_norm",
    ),
    cpp_kernel(
        "gated_rms_norm_quant",
        _gated_rms_norm_quant,
        supports=_quantised_alike,
        layouts=quantised_layouts,
        source="rms_norm",
    ),
)
