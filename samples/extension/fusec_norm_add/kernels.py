"""The kernels of `norm_add`: what each takes, how it is called, and where its source is."""

from fusec.kernels import cpu, triton_rows
from fusec.kernels.launch import Launch
from fusec.kernels.registry import Kernel
from fusec.kernels.triton_launch import triton_launch

PACKAGE = "fusec_norm_add"


def _cpp(call):
    x, _, residual = call.inputs
    kind = cpu.weight_kind(call.input_type(1), call.input_type(0))
    norm = (x.shape[-1], call.attrs["eps"], kind, call.attrs["weight_offset"])
    params = (*cpu.outer_params(x, residual, *call.outputs), *norm)
    return Launch(f"norm_add_{x.dtype}", cpu.operands(call), params)


def _triton(call):
    (x, weight, residual), (out,) = call.inputs, call.outputs
    rows = {"x": x, "residual": residual, "out": out}
    steps = {f"{name}_step": triton_rows.row_stride(each) for name, each in rows.items()}
    n, offset = x.shape[-1], call.attrs["weight_offset"]
    return triton_launch(
        f"{PACKAGE}.triton_kernel",
        "norm_add_kernel",
        {"x": x, "weight": weight, "residual": residual, "out": out},
        params={**steps, "eps": call.attrs["eps"]},
        constants={"N": n, "BLOCK": min(2048, triton_rows.power_above(n)), "OFFSET": offset},
        grid=(triton_rows.row_count(x), 1, 1),
        warps=4,
    )


CPP = ("norm_add", "norm_add.cpp", "cpp", ("cpu",), "kernel.cpp")
TRITON = ("norm_add", "norm_add.triton", "triton", triton_rows.FAMILIES, "triton_kernel.py")
KERNELS = (
    Kernel(*CPP, cpu.float_kernel, _cpp, cpu.row_layouts, package=PACKAGE),
    Kernel(*TRITON, triton_rows.supports_rows, _triton, triton_rows.row_layouts, package=PACKAGE),
)
