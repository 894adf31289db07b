"""The records of `triton_kernel.py`."""

from __future__ import annotations

from fusec.ir import Graph, Node
from fusec.kernels.launch import Call, Launch, Layout
from fusec.kernels.registry import Kernel
from fusec.kernels.triton_gemm import MFMA_16, known
from fusec.kernels.triton_launch import triton_launch
from fusec.kernels.triton_rows import FAMILIES, FLOATS, power_above
from fusec.symbolic import Dim
from fusec.target import Family, Target

MODULE = "fusec.kernels.selective_scan.triton_kernel"

MOST_STATES = 256
"""States of a channel at most: a program holds all of them."""

TILE = 512
"""States of all channels of a program that goes step by step: few, so that every compute unit has a
program."""

LEAST = 16
"""What the matrix units take at least along each axis."""

COLUMNS: dict[Family, int] = {"amdgpu": 32, "nvidia": 16}
"""Channels of a program that takes chunks: few, so that every compute unit has a program."""

CHUNKS: dict[Family, int] = {"amdgpu": 64, "nvidia": 32}
"""Steps of a chunk; half as many where a channel has more than LONG states, or where an NVIDIA GPU
holds operands as f32, for which it then has no room beyond LONG."""

LONG = 128

WARPS: dict[Family, int] = {"amdgpu": 4, "nvidia": 8}

OPTIONS: dict[Family, tuple[tuple[str, int], ...]] = {
    "amdgpu": (*MFMA_16, ("num_stages", 1)),
    "nvidia": (("num_stages", 1),),
}
"""One chunk at a time: shared memory has no room for two."""


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    for value in node.inputs:
        if graph.type(value).dtype not in FLOATS:
            return f"dtype: `%{value}` is {graph.type(value).dtype}, not {', '.join(FLOATS)}"
    u, _, a, b, _ = (graph.type(value) for value in node.inputs)
    sizes = (u.shape[2], a.shape[0], *b.shape[2:])
    if not all(isinstance(size, int) for size in sizes):
        return "shape: channels, heads and states are not known at compile time"
    states = known(b.shape[3])
    most = LONG if a.shape[1] == 1 and _holds_f32(target, u.dtype) else MOST_STATES
    if states > most:
        return f"states: a channel has {states}; a program holds {most}"
    return None


def _holds_f32(target: Target, dtype: str) -> bool:
    """Whether chunks of an NVIDIA GPU are f32."""
    return target.family == "nvidia" and dtype != "bf16"


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    return ("rows", "strided", "contiguous", "rows", "rows", "rows")


def _launch(call: Call) -> Launch:
    u, dt, a, b, c = call.inputs
    out = call.outputs[0]
    family = call.target.family
    channels, heads, groups, states = map(known, (u.shape[2], dt.shape[2], *b.shape[2:]))
    by_head = a.shape[1] == 1
    row = ("batch", "step")
    shared = (*row, "group") if by_head else row
    axes = {
        "u": (u, row),
        "dt": (dt, (*row, "head" if by_head else "channel")),
        "b": (b, shared),
        "c": (c, shared),
        "y": (out, row),
    }
    strides: dict[str, Dim] = {
        f"{name}_{axis}": stride
        for name, (storage, own) in axes.items()
        for axis, stride in zip(own, storage.strides, strict=False)
    }
    units = {name: 1 for name, stride in strides.items() if stride == 1}
    if by_head:
        width, padded = channels // heads, power_above(states, LEAST)
        block = min(COLUMNS[family], power_above(width, LEAST))
        programs = heads * -(-width // block)
        fewer = padded > LONG or _holds_f32(call.target, u.dtype)
        constants = {
            "HEADS": heads,
            "GROUP": heads // groups,
            "WIDTH": width,
            "CHUNK": CHUNKS[family] // (2 if fewer else 1),
            "PARTS": 2 if u.dtype == "bf16" else 1,
        }
    else:
        padded = power_above(states, 1)
        block = min(TILE // padded, power_above(channels, 1))
        programs = -(-channels // block)
        constants = {"CHANNELS": channels}
    return triton_launch(
        MODULE,
        "selective_scan_heads_kernel" if by_head else "selective_scan_kernel",
        {"p_u": u, "p_dt": dt, "p_a": a, "p_b": b, "p_c": c, "p_y": out},
        sizes={"steps": u.shape[1]},
        params={name: stride for name, stride in strides.items() if name not in units},
        constants={**units, **constants, "STATES": states, "BLOCK": block, "BLOCK_N": padded},
        grid=(u.shape[0] * programs, 1, 1),
        warps=WARPS[family] if by_head else 1,
        options=OPTIONS[family] if by_head else (),
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
    ),
)
