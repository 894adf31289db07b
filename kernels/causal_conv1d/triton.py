"""The record of `triton_kernel.py`."""

from __future__ import annotations

from fusec import symbolic
from fusec.diagnostics import InternalError
from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr, str_attr
from fusec.kernels.launch import Call, Launch, Layout
from fusec.kernels.registry import Kernel
from fusec.kernels.triton_launch import triton_launch
from fusec.kernels.triton_rows import FAMILIES, FLOATS, power_above
from fusec.symbolic import Dim
from fusec.target import Target

ELEMENTS = 32
"""Elements of a tile that a lane computes: it reads 16 bytes of bf16 four times a tap.
Where channels do not lie in whole vectors it has fewer, each with a mask of its own."""

VECTOR = 8
"""Channels that a lane reads at once: 16 bytes of bf16."""

MOST_TAPS = 64
"""Steps of a filter at most: the loop over them is unrolled."""

WARPS = 4


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    x, weight = map(graph.type, node.inputs[:2])
    if x.dtype not in FLOATS:
        return f"dtype: it takes {', '.join(FLOATS)}, not {x.dtype}"
    channels, taps = weight.shape
    if not isinstance(channels, int) or not isinstance(taps, int):
        return f"shape: the weight `{weight}` has no size known at compile time"
    if taps > MOST_TAPS:
        return f"taps: filters have up to {MOST_TAPS} steps, not {taps}"
    return None


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    dense: Layout = "contiguous"
    return ("strided", *(dense,) * (len(node.inputs) - 1), "strided")


def _output_order(graph: Graph, node: Node) -> tuple[int, ...]:
    # Channels innermost: what comes before and after is [batch, sequence, channels].
    return (0, 2, 1)


def _launch(call: Call) -> Launch:
    x, weight, *rest = call.inputs
    out = call.outputs[0]
    batch, _, steps = x.shape
    channels, taps = call.input_type(1).shape
    if not isinstance(channels, int) or not isinstance(taps, int):
        raise InternalError(f"{weight} has no size known at compile time")
    operands = {"p_x": x, "p_weight": weight, "p_y": out}
    bias = bool_attr(call.attrs, "has_bias")
    if bias:
        operands = {"p_x": x, "p_weight": weight, "p_bias": rest[0], "p_y": out}
    strides: dict[str, Dim] = {
        f"{name}_{axis}": stride
        for name, storage in (("x", x), ("y", out))
        for axis, stride in zip(("batch", "channel", "step"), storage.strides, strict=True)
    }
    units = {name: 1 for name, stride in strides.items() if stride == 1}
    lanes = call.target.wave_size
    block = min(VECTOR * lanes, power_above(channels))
    whole = channels % VECTOR == 0 and x.strides[1] == out.strides[1] == 1
    elements = ELEMENTS if whole else VECTOR
    rows = elements * lanes * WARPS // block
    columns = symbolic.ceil_divide(channels, block)
    return triton_launch(
        "fusec.kernels.causal_conv1d.triton_kernel",
        "causal_conv1d_kernel",
        operands,
        sizes={"steps": steps},
        params={name: stride for name, stride in strides.items() if name not in units},
        constants={
            **units,
            **({} if bias else {"p_bias": 0}),
            "CHANNELS": channels,
            "TAPS": taps,
            "BLOCK": block,
            "STEPS": rows,
            "BIAS": int(bias),
            "SILU": int(str_attr(call.attrs, "activation") == "silu"),
        },
        grid=(batch * symbolic.ceil_divide(steps, rows) * columns, 1, 1),
        warps=WARPS,
    )


TRITON = (
    Kernel(
        op="causal_conv1d",
        name="causal_conv1d.triton",
        provider="triton",
        families=FAMILIES,
        source="causal_conv1d/triton_kernel.py",
        supports=_supports,
        launch=_launch,
        layouts=_layouts,
        output_order=_output_order,
    ),
)
