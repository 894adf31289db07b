"""The record of `triton_kernel.py`."""

from __future__ import annotations

from fusec import symbolic
from fusec.ir import Graph, Node
from fusec.kernels.launch import Call, Launch, Layout
from fusec.kernels.registry import Kernel
from fusec.kernels.triton_gemm import known
from fusec.kernels.triton_launch import triton_launch
from fusec.kernels.triton_rows import FAMILIES, FLOATS, power_above
from fusec.symbolic import Dim
from fusec.target import Target

MOST_STATES = 256
"""States of a channel at most: a program holds all of them."""

TILE = 512
"""States of all channels of a program: few, so that every compute unit has a program."""


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    for value in node.inputs:
        if graph.type(value).dtype not in FLOATS:
            return f"dtype: `%{value}` is {graph.type(value).dtype}, not {', '.join(FLOATS)}"
    channels, states = graph.type(node.inputs[2]).shape
    if not isinstance(channels, int) or not isinstance(states, int):
        return "shape: channels and states are not known at compile time"
    if states > MOST_STATES:
        return f"states: a channel has {states}; a program holds {MOST_STATES}"
    return None


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    return ("strided", "strided", "contiguous", "strided", "strided", "strided")


def _output_order(graph: Graph, node: Node) -> tuple[int, ...]:
    # Channels innermost: what comes after is [batch, sequence, channels].
    return (0, 2, 1)


def _launch(call: Call) -> Launch:
    u, dt, a, b, c = call.inputs
    out = call.outputs[0]
    channels, states = map(known, a.shape)
    padded = power_above(states, 1)
    block = min(TILE // padded, power_above(channels, 1))
    axes = {"u": "channel", "dt": "channel", "b": "state", "c": "state", "y": "channel"}
    strides: dict[str, Dim] = {
        f"{name}_{axis}": stride
        for (name, inner), storage in zip(axes.items(), (u, dt, b, c, out), strict=True)
        for axis, stride in zip(("batch", inner, "step"), storage.strides, strict=True)
    }
    units = {name: 1 for name, stride in strides.items() if stride == 1}
    return triton_launch(
        "fusec.kernels.selective_scan.triton_kernel",
        "selective_scan_kernel",
        {"p_u": u, "p_dt": dt, "p_a": a, "p_b": b, "p_c": c, "p_y": out},
        sizes={"steps": u.shape[2]},
        params={name: stride for name, stride in strides.items() if name not in units},
        constants={
            **units,
            "CHANNELS": channels,
            "STATES": states,
            "BLOCK": block,
            "BLOCK_N": padded,
        },
        grid=(u.shape[0] * symbolic.ceil_divide(channels, block), 1, 1),
        warps=1,
    )


TRITON = (
    Kernel(
        op="selective_scan",
        name="selective_scan.triton",
        provider="triton",
        families=FAMILIES,
        source="selective_scan/triton_kernel.py",
        supports=_supports,
        launch=_launch,
        layouts=_layouts,
        output_order=_output_order,
    ),
)
