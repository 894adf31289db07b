"""The kernels of `norm_add`: what each takes, how it is called, and where its source is."""

from fusec.kernels.cpu import cpp_kernel, float_kernel, operands, outer_params, weight_kind
from fusec.kernels.launch import Launch
from fusec.kernels.triton_launch import triton_launch
from fusec.kernels.triton_rows import power_above, row_count, row_kernels, row_length, row_stride

MODULE = "fusec_norm_add.norm_add.triton_kernel"


def _cpp(call):
    x, _, residual = call.inputs
    kind = weight_kind(call.input_type(1), call.input_type(0))
    norm = (x.shape[-1], call.attrs["eps"], kind, call.attrs["weight_offset"])
    params = (*outer_params(x, residual, *call.outputs), *norm)
    return Launch(f"norm_add_{x.dtype}", operands(call), params)


def _triton(call):
    named = dict(zip(("x", "weight", "residual", "out"), operands(call), strict=True))
    params = {f"{name}_step": row_stride(named[name]) for name in ("x", "residual", "out")}
    params["eps"] = call.attrs["eps"]
    n, grid = row_length(call.input_type(0)), (row_count(named["x"]), 1, 1)
    sizes = {"N": n, "BLOCK": min(2048, power_above(n)), "OFFSET": call.attrs["weight_offset"]}
    return triton_launch(
        MODULE, "norm_add_kernel", named, params=params, constants=sizes, grid=grid, warps=4
    )


KERNELS = (
    cpp_kernel("norm_add", _cpp, supports=float_kernel, package="fusec_norm_add"),
    *row_kernels(("norm_add",), "norm_add", _triton, package="fusec_norm_add"),
)
