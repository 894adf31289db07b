"""causal_conv1d on the CPU."""

from __future__ import annotations

from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr, str_attr
from fusec.kernels.cpu import cpp_kernel, flags, float_kernel, operands
from fusec.kernels.launch import Call, Launch, Layout


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    dense: Layout = "contiguous"
    return ("strided", *(dense,) * (len(node.inputs) - 1), "strided")


def _output_order(graph: Graph, node: Node) -> tuple[int, ...]:
    # Channels innermost: what comes before and after is [batch, sequence, channels].
    return (0, 2, 1)


def _causal_conv1d(call: Call) -> Launch:
    x, out = call.inputs[0], call.outputs[0]
    taps = call.input_type(1).shape[1]
    silu = str_attr(call.attrs, "activation") == "silu"
    has_bias = bool_attr(call.attrs, "has_bias")
    params = (*x.shape, taps, *x.strides, *out.strides, *flags(has_bias, silu))
    return Launch(f"fusec_causal_conv1d_{x.dtype}", operands(call), params)


KERNELS = (
    cpp_kernel(
        "causal_conv1d",
        _causal_conv1d,
        supports=float_kernel,
        layouts=_layouts,
        output_order=_output_order,
    ),
)
