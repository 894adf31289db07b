"""The record of `triton_kernel.py`: chunks all at once, then one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

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

MOST_DEPTH: dict[Family, int] = {"amdgpu": 256, "nvidia": 128}
"""Channels of keys at most: a program holds all of a chunk's, and an NVIDIA GPU has half the
registers for it."""

LONG_DEPTH = 128
"""Channels of keys beyond which chunks have half the steps and programs twice the warps."""

CHUNKS: dict[Family, int] = {"amdgpu": 64, "nvidia": 32}
"""Steps of a chunk, at most."""

STATE_COLUMNS = 16
"""Columns of the state that a program walks with: few, so that every compute unit has a program."""

GATED_CHANNELS = 64
"""Channels of keys that a program decays at a time, where each has its gate."""

VALUE_COLUMNS = 64
"""Columns of values that a program multiplies at a time."""

SCALAR_SPILLS = 64
"""Scalar registers that may be kept in lanes of vector registers: masks and exponents of a tile
are many, and vector registers are left."""

WARPS: dict[Family, int] = {"amdgpu": 4, "nvidia": 8}

CHANNEL_WARPS = 8
"""Warps at least where decays of channels are computed: each exponential takes a mask."""

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
    if len({graph.type(value).dtype for value in node.inputs[:3]}) > 1:
        return "dtype: its queries, keys and values are of one dtype"
    sizes = _sizes(graph, node)
    if sizes is None:
        return "shape: heads and their sizes are not known at compile time"
    if sizes.heads % sizes.key_heads != 0:
        return f"heads: {sizes.heads} heads do not share {sizes.key_heads} evenly"
    most = MOST_DEPTH[target.family]
    if sizes.depth > most:
        return f"head-dim: keys have {sizes.depth} channels; a program holds {most}"
    return None


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    rows: Layout = "rows"
    gate: Layout = rows if graph.type(node.inputs[3]).rank == 4 else "strided"
    return (rows, rows, rows, gate, "strided", rows)


def _chunk(sizes: _Sizes, v: Storage, gate: Storage, family: Family) -> int:
    """Steps of a chunk: half as many where more registers are needed for each.

    That is so where keys are long; on NVIDIA GPUs also for f32, which their matrix units do not
    multiply, and for gates of channels.
    """
    fewer = sizes.block > LONG_DEPTH
    if family == "nvidia":
        fewer = fewer or v.dtype == "f32" or len(gate.shape) == 4
    return CHUNKS[family] // 2 if fewer else CHUNKS[family]


def _strides(storages: Mapping[str, Storage]) -> dict[str, Dim]:
    """What the kernels are told of where rows lie."""
    axes = ("batch", "step", "head")
    return {
        f"{name}_{axis}": stride
        for name, storage in storages.items()
        for axis, stride in zip(axes, storage.strides[:3], strict=True)
    }


def _launch(call: Call) -> tuple[Launch, ...]:
    sizes = _sizes(call.graph, call.node)
    if sizes is None:
        raise InternalError("heads and their sizes are not known at compile time")
    q, k, v, gate, beta = call.inputs
    out = call.outputs[0]
    batch, steps = out.shape[:2]
    family = call.target.family
    chunk = _chunk(sizes, v, gate, family)
    places = batch * sizes.heads * symbolic.ceil_divide(steps, chunk)
    parts, dtype = (1, "f32") if v.dtype == "f32" else (2, "bf16")
    normalise = bool_attr(call.attrs, "qk_l2_norm")
    eps = float_attr(call.attrs, "eps") if normalise else 0.0

    def factor(columns: int) -> Storage:
        return call.scratch(dtype, (places * chunk, parts * columns))

    def single(rows: Dim, columns: int) -> Storage:
        return call.scratch("f32", (rows, columns))

    lower = {"p_lower": single(places * chunk, chunk)}
    scores = {
        "p_scores": factor(chunk),
        "p_query": factor(sizes.block),
        "p_key": factor(sizes.block),
        "p_decay": single(places, sizes.block),
    }
    solved = {"p_w": factor(sizes.block), "p_u": single(places * chunk, sizes.columns)}
    shared = {"HEADS": sizes.heads, "CHUNK": chunk, "BLOCK_K": sizes.block, "PARTS": parts}
    values = {"WIDTH": sizes.width, "COLUMNS": sizes.columns}
    keys = {
        "GROUP": sizes.heads // sizes.key_heads,
        "DEPTH": sizes.depth,
        "LEVELS": chunk.bit_length() - 1,
        "PER_CHANNEL": int(len(gate.shape) == 4),
        "NORMALISE": int(normalise),
    }

    warps = WARPS[family] if sizes.block <= LONG_DEPTH else 2 * WARPS[family]

    def launch(
        function: str,
        given: Mapping[str, Storage],
        between: Mapping[str, Storage],
        numbers: Mapping[str, float],
        constants: Mapping[str, int],
        programs: Dim,
        warps: int,
    ) -> Launch:
        return triton_launch(
            MODULE,
            function,
            {**{f"p_{name}": storage for name, storage in given.items()}, **between},
            sizes={"steps": steps},
            params={**_strides(given), **numbers},
            constants={**shared, **constants},
            grid=(programs, 1, 1),
            warps=warps,
            options=OPTIONS[family],
        )

    columns = min(STATE_COLUMNS, sizes.columns)
    return (
        launch(
            "delta_scores_kernel",
            {"q": q, "k": k, "gate": gate, "beta": beta},
            {**lower, **scores},
            {"scale": float_attr(call.attrs, "scale"), "eps": eps},
            {**keys, "CHANNELS": min(GATED_CHANNELS, sizes.block)},
            places,
            max(warps, CHANNEL_WARPS) if keys["PER_CHANNEL"] else warps,
        ),
        launch(
            "delta_inverse_kernel",
            {"k": k, "v": v, "gate": gate, "beta": beta},
            {**lower, **solved},
            {"eps": eps},
            {**keys, **values, "BLOCK_V": min(VALUE_COLUMNS, sizes.columns)},
            places,
            warps,
        ),
        launch(
            "delta_state_kernel",
            {"out": out},
            {**solved, **scores},
            {},
            {**values, "BLOCK_V": columns},
            batch * sizes.heads * (sizes.columns // columns),
            warps,
        ),
    )


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
        scalar_spills=SCALAR_SPILLS,
    ),
)
