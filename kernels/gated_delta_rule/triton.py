"""The record of `triton_kernel.py`: chunks all at once, then one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from fusec import symbolic
from fusec.diagnostics import InternalError
from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr, float_attr
from fusec.kernels.launch import Call, Launch, Layout, Storage
from fusec.kernels.registry import Kernel
from fusec.kernels.triton_gemm import MFMA_16
from fusec.kernels.triton_launch import triton_launch
from fusec.kernels.triton_rows import FAMILIES, FLOATS, power_above
from fusec.symbolic import Dim
from fusec.target import Family, Target

MODULE = "fusec.kernels.gated_delta_rule.triton_kernel"

LEAST = 16
"""What the matrix units take at least along each axis."""

MOST_DEPTH = 256
"""Channels of keys at most: a program holds all of a chunk's."""

CHUNK = 64
"""Steps of a chunk."""

STATE_COLUMNS: dict[Family, int] = {"amdgpu": 16, "nvidia": 32}
"""Columns of the state that a program walks with: few, so that every compute unit has a program."""

VALUE_COLUMNS = 64
"""Columns of values that a program multiplies at a time."""

WARPS: dict[Family, int] = {"amdgpu": 4, "nvidia": 8}

OPTIONS: dict[Family, tuple[tuple[str, int], ...]] = {
    "amdgpu": (*MFMA_16, ("num_stages", 1)),
    "nvidia": (("num_stages", 1),),
}
"""One chunk at a time: shared memory has no room for two."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Sizes:
    """Sizes of a delta rule that are known at compile time."""

    key_heads: int
    heads: int
    depth: int
    width: int

    @property
    def block(self) -> int:
        """Channels of keys with padding."""
        return power_above(self.depth, LEAST)

    @property
    def columns(self) -> int:
        """Channels of values with padding."""
        return power_above(self.width, LEAST)


def _sizes(graph: Graph, node: Node) -> _Sizes | None:
    q, v = graph.type(node.inputs[0]), graph.type(node.inputs[2])
    sizes = [size for size in (*q.shape[2:], *v.shape[2:]) if isinstance(size, int)]
    if len(sizes) < 4:
        return None
    key_heads, depth, heads, width = sizes
    return _Sizes(key_heads, heads, depth, width)


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    for value in node.inputs:
        if graph.type(value).dtype not in FLOATS:
            return f"dtype: `%{value}` is {graph.type(value).dtype}, not {', '.join(FLOATS)}"
    sizes = _sizes(graph, node)
    if sizes is None:
        return "shape: heads and their sizes are not known at compile time"
    if sizes.heads % sizes.key_heads != 0:
        return f"heads: {sizes.heads} heads do not share {sizes.key_heads} evenly"
    if sizes.depth > MOST_DEPTH:
        return f"head-dim: keys have {sizes.depth} channels; a program holds {MOST_DEPTH}"
    return None


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    rows: Layout = "rows"
    gate: Layout = rows if graph.type(node.inputs[3]).rank == 4 else "strided"
    return (rows, rows, rows, gate, "strided", rows)


def _steps_of(storages: Mapping[str, Storage]) -> Iterator[tuple[str, Dim]]:
    for name, storage in storages.items():
        for axis, stride in zip(("batch", "step", "head"), storage.strides, strict=False):
            yield f"{name}_{axis}", stride


def _launch(call: Call) -> tuple[Launch, ...]:
    sizes = _sizes(call.graph, call.node)
    if sizes is None:
        raise InternalError("heads and their sizes are not known at compile time")
    inputs = dict(zip(("q", "k", "v", "gate", "beta"), call.inputs, strict=True))
    out = call.outputs[0]
    batch, steps = out.shape[:2]
    chunks = symbolic.ceil_divide(steps, CHUNK)
    places = batch * sizes.heads * chunks

    parts, dtype = (1, "f32") if inputs["v"].dtype == "f32" else (2, "bf16")

    def factor(columns: int) -> Storage:
        return call.scratch(dtype, (places * CHUNK, parts * columns))

    between = {
        "p_w": factor(sizes.block),
        "p_u": call.scratch("f32", (places * CHUNK, sizes.columns)),
        "p_scores": factor(CHUNK),
        "p_query": factor(sizes.block),
        "p_key": factor(sizes.block),
        "p_decay": call.scratch("f32", (places, sizes.block)),
    }
    normalise = bool_attr(call.attrs, "qk_l2_norm")
    constants = {
        "HEADS": sizes.heads,
        "WIDTH": sizes.width,
        "CHUNK": CHUNK,
        "BLOCK_K": sizes.block,
        "COLUMNS": sizes.columns,
        "PARTS": parts,
    }
    chunk = triton_launch(
        MODULE,
        "delta_chunk_kernel",
        {**{f"p_{name}": storage for name, storage in inputs.items()}, **between},
        sizes={"steps": steps},
        params={
            **dict(_steps_of(inputs)),
            "scale": float_attr(call.attrs, "scale"),
            "eps": float_attr(call.attrs, "eps") if normalise else 0.0,
        },
        constants={
            **constants,
            "GROUP": sizes.heads // sizes.key_heads,
            "DEPTH": sizes.depth,
            "LEVELS": CHUNK.bit_length() - 1,
            "BLOCK_V": min(VALUE_COLUMNS, sizes.columns),
            "PER_CHANNEL": int(len(inputs["gate"].shape) == 4),
            "NORMALISE": int(normalise),
        },
        grid=(places, 1, 1),
        warps=WARPS[call.target.family],
        options=OPTIONS[call.target.family],
    )
    block = min(STATE_COLUMNS[call.target.family], sizes.columns)
    state = triton_launch(
        MODULE,
        "delta_state_kernel",
        {**between, "p_out": out},
        sizes={"steps": steps},
        params=dict(_steps_of({"out": out})),
        constants={**constants, "BLOCK_V": block},
        grid=(batch * sizes.heads * (sizes.columns // block), 1, 1),
        warps=WARPS[call.target.family],
        options=OPTIONS[call.target.family],
    )
    return chunk, state


TRITON = (
    Kernel(
        op="gated_delta_rule",
        name="gated_delta_rule.triton",
        provider="triton",
        families=FAMILIES,
        source="gated_delta_rule/triton_kernel.py",
        supports=_supports,
        launch=_launch,
        layouts=_layouts,
    ),
)
