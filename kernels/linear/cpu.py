"""linear, linear_epilogue and linear_glu on the CPU, with packed weights."""

from __future__ import annotations

from collections.abc import Mapping

from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr, float_attr, str_attr
from fusec.kernels.cpu import (
    ACTIVATIONS,
    cpp_kernel,
    flags,
    float_kernel,
    operands,
    outer_params,
    pack_gate_up_bias,
    pack_gate_up_weight,
    pack_weight,
    precision_param,
)
from fusec.kernels.launch import Call, Launch, Param
from fusec.kernels.registry import Packing
from fusec.target import Target


def _constant_weight(graph: Graph, node: Node, target: Target) -> str | None:
    if node.inputs[1] not in graph.parameters:
        return "it packs the weight ahead of time, and this one is computed at run time"
    return float_kernel(graph, node, target)


def _packing(graph: Graph, node: Node, target: Target) -> Mapping[int, Packing]:
    return {1: pack_weight}


def _symbol(call: Call, op: str) -> str:
    x, out = call.inputs[0], call.outputs[0]
    wide = "" if out.dtype == x.dtype else f"_{out.dtype}"
    return f"fusec_{op}_{x.dtype}{wide}"


def _launch(call: Call, activation: str, *, has_bias: bool, has_residual: bool) -> Launch:
    x, out = call.inputs[0], call.outputs[0]
    n, k = call.input_type(1).shape
    storages = (x, out, call.inputs[-1]) if has_residual else (x, out)
    rows = outer_params(*storages)
    no_residual: tuple[Param, ...] = () if has_residual else (0, 0, 0, 0)
    params = (
        *(*rows, *no_residual, n, k, ACTIVATIONS[activation]),
        *flags(has_bias, has_residual),
        precision_param(call.target),
    )
    return Launch(_symbol(call, "linear"), operands(call), params)


def _linear(call: Call) -> Launch:
    return _launch(call, "none", has_bias=len(call.inputs) == 3, has_residual=False)


def _linear_epilogue(call: Call) -> Launch:
    return _launch(
        call,
        str_attr(call.attrs, "activation"),
        has_bias=bool_attr(call.attrs, "has_bias"),
        has_residual=bool_attr(call.attrs, "has_residual"),
    )


def _supports_glu(graph: Graph, node: Node, target: Target) -> str | None:
    if any(value not in graph.parameters for value in node.inputs[1:]):
        return "it packs weight and bias ahead of time, and these are computed at run time"
    return float_kernel(graph, node, target)


def _glu_packing(graph: Graph, node: Node, target: Target) -> Mapping[int, Packing]:
    layout = str_attr(node.attrs, "gate_up_layout")
    packing: dict[int, Packing] = {1: lambda weight: pack_gate_up_weight(weight, layout)}
    if bool_attr(node.attrs, "has_bias"):
        packing[2] = lambda bias: pack_gate_up_bias(bias, layout)
    return packing


def _linear_glu(call: Call) -> Launch:
    x, out = call.inputs[0], call.outputs[0]
    rows, depth = call.input_type(1).shape
    activation = str_attr(call.attrs, "activation")
    oai = activation == "swiglu_oai"
    params = (
        *(*outer_params(x, out), rows // 2, depth, ACTIVATIONS[activation]),
        float_attr(call.attrs, "alpha") if oai else 0.0,
        float_attr(call.attrs, "limit") if oai else 0.0,
        *flags(bool_attr(call.attrs, "has_bias")),
        precision_param(call.target),
    )
    return Launch(_symbol(call, "linear_glu"), operands(call), params)


KERNELS = (
    cpp_kernel("linear", _linear, supports=_constant_weight, packing=_packing),
    cpp_kernel(
        "linear_epilogue",
        _linear_epilogue,
        supports=_constant_weight,
        packing=_packing,
        source="linear",
    ),
    cpp_kernel(
        "linear_glu", _linear_glu, supports=_supports_glu, packing=_glu_packing, source="linear"
    ),
)
