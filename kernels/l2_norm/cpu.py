"""l2_norm on the CPU."""

from __future__ import annotations

from fusec.ir.types import float_attr, str_attr
from fusec.kernels.cpu import cpp_kernel, flags, operands, outer_params
from fusec.kernels.launch import Call, Launch


def _l2_norm(call: Call) -> Launch:
    x, out = call.inputs[0], call.outputs[0]
    mode = flags(str_attr(call.attrs, "mode") == "max")
    params = (*outer_params(x, out), x.shape[-1], float_attr(call.attrs, "eps"), *mode)
    return Launch(f"fusec_l2_norm_{x.dtype}", operands(call), params)


KERNELS = (cpp_kernel("l2_norm", _l2_norm),)
