"""layer_norm on the CPU."""

from __future__ import annotations

from fusec.ir.types import bool_attr, float_attr
from fusec.kernels.cpu import cpp_kernel, operands, outer_params, weight_kind
from fusec.kernels.launch import Call, Launch


def _layer_norm(call: Call) -> Launch:
    x, out = call.inputs[0], call.outputs[0]
    rest = [call.input_type(index) for index in range(1, len(call.inputs))]
    weight = rest.pop(0) if bool_attr(call.attrs, "has_weight") else None
    bias = rest.pop(0) if bool_attr(call.attrs, "has_bias") else None
    kinds = (weight_kind(weight, call.input_type(0)), weight_kind(bias, call.input_type(0)))
    params = (*outer_params(x, out), x.shape[-1], float_attr(call.attrs, "eps"), *kinds)
    return Launch(f"fusec_layer_norm_{x.dtype}", operands(call), params)


KERNELS = (cpp_kernel("layer_norm", _layer_norm),)
