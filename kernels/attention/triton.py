"""The record of the Triton kernels: one for every kind of attention, in two sizes.

Few queries of long keys leave most compute units idle: the heads that share a key head become rows
of one tile, and the keys are divided among programs.  Many queries have a program for each tile of
a head's.  The range of the queries decides which runs where it suffices; else both are launched,
one of them with an empty grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from fusec import symbolic
from fusec.ir import Graph, Node
from fusec.ir.types import Attrs, bool_attr, float_attr, int_attr
from fusec.kernels.launch import Call, Launch, Layout, Storage
from fusec.kernels.registry import Kernel
from fusec.kernels.triton_gemm import MFMA_16, UNITS, known
from fusec.kernels.triton_launch import triton_launch
from fusec.kernels.triton_rows import FAMILIES, FLOATS, power_above
from fusec.symbolic import Dim
from fusec.target import LONGEST_HEAD, Family, Target

MODULE = "fusec.kernels.attention.triton_kernel"

LOG2_E = 1.4426950408889634
"""log2(e): scores in its units go through exp2."""

FEW_QUERIES = 16
"""The most queries whose keys are divided among programs."""

LEAST_ROWS = 16
"""What the matrix units take at least."""

PROGRAMS = 2
"""Programs that a compute unit should have, where keys are divided."""

MOST_PARTS = 64
"""Parts that one program brings together, at most."""

MOST_ROWS_OF_FEW = 64
"""Rows of a tile of few queries, at most."""

SUM_WARPS = 4
"""Of a program that brings parts together."""

SCALAR_SPILLS = 512
"""Scalar registers that may be kept in lanes of vector registers: rows that are not whole vectors
are read element by element, with a mask for each.  At the sizes of models there are few or none."""

MASK_BOOL, MASK_FLOAT = 1, 2
"""`MASK` of the kernel."""

LEAST_BLOCKS = 2
"""Blocks of keys of a part, where there are as many keys as there may be."""

FARTHEST_HEAD = 1 << 20
"""Elements between heads, at most, where products with their number are to have 32 bits."""

FARTHEST_KEY = 1 << 30
"""A window or chunk that hides nothing nearer is none: distances, and twice the window, have 32
bits."""

OUT_STRIDES = ("out_b", "out_h", "out_s")
"""Those of the result."""

OPERANDS = ("q", "k", "v", "mask", "sinks", "padding", "out", "parts", "tops", "sums")
"""Pointers of `attention_kernel`, in its order."""


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program holds.

    Attributes:
        rows: queries.
        keys: those that are scored at a time.
        warps: waves or warps of the program.
        stages: blocks of keys in flight at once, as Triton counts them.
        options: further options of Triton's backend.
    """

    rows: int
    keys: int
    warps: int
    stages: int
    options: tuple[tuple[str, int], ...] = ()


Tiles: TypeAlias = tuple[tuple[int, Tile], ...]
"""Tiles by the longest head that each is for."""

MANY: dict[str, Tiles] = {
    "gfx950": (
        (128, Tile(128, 64, 4, 2, MFMA_16)),
        (256, Tile(128, 32, 4, 2, MFMA_16)),
        (512, Tile(64, 32, 8, 1, MFMA_16)),
    ),
    "gfx942": (
        (64, Tile(128, 64, 4, 2, MFMA_16)),
        (192, Tile(128, 32, 4, 2, MFMA_16)),
        (256, Tile(128, 32, 8, 2, MFMA_16)),
        (512, Tile(64, 16, 8, 1, MFMA_16)),
    ),
    "sm_90": ((256, Tile(128, 64, 8, 2)), (512, Tile(32, 32, 8, 1))),
}
"""Tiles of many queries, by target."""

MASKED: dict[Family, Tiles] = {
    "amdgpu": ((256, Tile(128, 32, 8, 1, MFMA_16)), (512, Tile(64, 16, 8, 1, MFMA_16))),
    "nvidia": (
        (128, Tile(128, 32, 8, 1)),
        (256, Tile(32, 32, 8, 2)),
        (512, Tile(LEAST_ROWS, 16, 8, 1)),
    ),
}
"""The same with a mask, by family: elements of it are at addresses of their own in registers."""

MANY_F32: dict[Family, Tiles] = {
    "amdgpu": (
        (128, Tile(64, 32, 4, 1, MFMA_16)),
        (256, Tile(64, 16, 4, 1, MFMA_16)),
        (512, Tile(32, 16, 4, 1, MFMA_16)),
    ),
    "nvidia": ((256, Tile(32, 16, 8, 1)), (512, Tile(LEAST_ROWS, 16, 8, 1))),
}
"""The same in f32, with a mask or without."""

FEW: dict[Family, Tiles] = {
    "amdgpu": (
        (128, Tile(LEAST_ROWS, 64, 4, 2, MFMA_16)),
        (256, Tile(LEAST_ROWS, 32, 4, 2, MFMA_16)),
        (512, Tile(LEAST_ROWS, 16, 8, 1, MFMA_16)),
    ),
    "nvidia": (
        (128, Tile(LEAST_ROWS, 64, 4, 3)),
        (256, Tile(LEAST_ROWS, 32, 4, 3)),
        (512, Tile(LEAST_ROWS, 16, 8, 2)),
    ),
}
"""Tiles of few queries, by family; where a key head has more query heads, they have more rows."""

FEW_MASKED: dict[Family, Tiles] = {
    "amdgpu": FEW["amdgpu"],
    "nvidia": ((256, Tile(LEAST_ROWS, 32, 8, 3)), (512, Tile(LEAST_ROWS, 16, 8, 2))),
}
"""The same with a mask; they have no more rows."""

FEW_F32: dict[Family, Tiles] = {
    "amdgpu": (
        (128, Tile(LEAST_ROWS, 32, 4, 1, MFMA_16)),
        (256, Tile(LEAST_ROWS, 16, 4, 1, MFMA_16)),
        (512, Tile(LEAST_ROWS, 16, 4, 1, MFMA_16)),
    ),
    "nvidia": (
        (128, Tile(LEAST_ROWS, 32, 4, 1)),
        (256, Tile(LEAST_ROWS, 16, 4, 1)),
        (512, Tile(LEAST_ROWS, 16, 4, 1)),
    ),
}
"""The same in f32, with a mask or without."""


def _supports(graph: Graph, node: Node, target: Target) -> str | None:
    q, k, v, *rest = (graph.type(value) for value in node.inputs)
    if q.dtype not in FLOATS:
        return f"dtype: `{q}` is not one of {', '.join(FLOATS)}"
    for name, size in (
        ("query heads", q.shape[1]),
        ("key heads", k.shape[1]),
        ("a query", q.shape[3]),
        ("a value", v.shape[3]),
    ):
        if not isinstance(size, int):
            return f"shape: the size of {name} is `{size}`, not known at compile time"
    longest = max(known(q.shape[3]), known(v.shape[3]))
    if longest > LONGEST_HEAD:
        return f"attention.head-dim: {longest}, more than {LONGEST_HEAD}"
    if bool_attr(node.attrs, "has_mask"):
        mask = rest.pop(0)
        if mask.dtype not in ("bool", "f32", q.dtype):
            return f"mask: it is {mask.dtype}, not bool, f32 or {q.dtype}"
    if bool_attr(node.attrs, "has_sinks"):
        sinks = rest.pop(0)
        if sinks.dtype not in ("f32", q.dtype):
            return f"sinks: they are {sinks.dtype}, not f32 or {q.dtype}"
    return None


def _layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    rows: Layout = "rows"
    layouts: list[Layout] = [rows, rows, rows]
    if bool_attr(node.attrs, "has_mask"):
        layouts.append("strided")
    if bool_attr(node.attrs, "has_sinks"):
        layouts.append("contiguous")
    if bool_attr(node.attrs, "has_key_padding"):
        layouts.append("strided")
    return (*layouts, rows)


def _output_order(graph: Graph, node: Node) -> tuple[int, ...]:
    # Heads beside one another: the projection that follows reads [batch, queries, heads * size].
    return (0, 2, 1, 3)


def parts_of_head(size: int) -> tuple[int, int]:
    """Powers of two that cover a head of `size`: one, or two where that is less.

    Matrix units take 16 elements at least.
    """
    whole = power_above(size, LEAST_ROWS)
    most = whole // 2
    if most < LEAST_ROWS:
        return whole, 0
    rest = power_above(size - most, LEAST_ROWS)
    return (most, rest) if most + rest < whole else (whole, 0)


@dataclass(frozen=True, slots=True)
class _Attention:
    """A node whose operands have a place, but for what depends on the tile.

    Attributes:
        call: what is computed.
        operands: pointers `p_NAME`, those of scratch left out.
        strides: of `attention_kernel`, but those that are constants.
        numbers: its parameters in f32.
        constants: its compile-time arguments, but those of the tile.
    """

    call: Call
    operands: Mapping[str, Storage]
    strides: Mapping[str, Dim]
    numbers: Mapping[str, float]
    constants: Mapping[str, int]

    @property
    def sizes(self) -> dict[str, Dim]:
        """S and T."""
        return {"S": self.call.inputs[0].shape[2], "T": self.call.inputs[1].shape[2]}

    def launches(self) -> tuple[Launch, ...]:
        """What runs."""
        queries = self.sizes["S"]
        least, most = symbolic.bounds(queries, self.call.graph.symbols)
        if least > FEW_QUERIES:
            return (self._many(1),)
        if most <= FEW_QUERIES:
            return self._few(1)
        above = symbolic.minimum(1, symbolic.floor_divide(queries - 1, FEW_QUERIES))
        some = symbolic.simplify(symbolic.maximum(queries, 1), self.call.graph.symbols)
        not_above = symbolic.minimum(1, symbolic.floor_divide(FEW_QUERIES, some))
        return (*self._few(not_above), self._many(above))

    def _many(self, runs: Dim) -> Launch:
        """A program for each tile of the queries of a head."""
        batch, heads, queries, _ = self.call.outputs[0].shape
        tile = _tile_of_many(self.call, is_masked="mask" in self.operands)
        programs = batch * heads * symbolic.ceil_divide(queries, tile.rows) * runs
        return self._launch(tile, {}, {"PACK": 1, "SPLIT": 0}, (programs, 1, 1))

    def _few(self, runs: Dim) -> tuple[Launch, ...]:
        """Programs for the heads of a key head, and for parts of the keys."""
        batch, _, queries, length = self.call.outputs[0].shape
        kv_heads = self.constants["KV_HEADS"]
        group = self.constants["HEADS"] // kv_heads
        tile = _tile_of_few(self.call, group, is_masked="mask" in self.operands)
        rows = symbolic.minimum(queries, FEW_QUERIES) * group
        programs = batch * kv_heads * symbolic.ceil_divide(rows, tile.rows)
        most = self._most_parts(tile)
        constants = {"PACK": group, "SPLIT": int(most > 1)}
        if most == 1:
            return (self._launch(tile, {}, constants, (programs * runs, 1, 1)),)
        some = symbolic.simplify(symbolic.maximum(programs, 1), self.call.graph.symbols)
        shared = symbolic.floor_divide(PROGRAMS * UNITS[self.call.target.name], some)
        parts = symbolic.maximum(symbolic.minimum(shared, most), 1)
        programs *= runs
        shape = (parts, programs, tile.rows)
        scratch = {
            "parts": self.call.scratch("f32", (*shape, length)),
            "tops": self.call.scratch("f32", shape),
            "sums": self.call.scratch("f32", shape),
        }
        grid = (programs * symbolic.minimum(parts - 1, 1), symbolic.minimum(rows, tile.rows), 1)
        return (
            self._launch(tile, scratch, constants, (programs, parts, 1)),
            self._sum(tile, scratch, parts, {"PACK": group, "PARTS": power_above(most, 2)}, grid),
        )

    def _most_parts(self, tile: Tile) -> int:
        """Into how many parts the keys are divided at most."""
        if self.sizes["T"] == self.sizes["S"]:  # as many keys as queries are few, too
            return 1
        _, keys = symbolic.bounds(self.sizes["T"], self.call.graph.symbols)
        limit = max(self.constants["WINDOW"], self.constants["CHUNK"])
        if limit >= 0:
            keys = min(keys, 2 * limit + FEW_QUERIES)
        units = PROGRAMS * UNITS[self.call.target.name] // self.constants["KV_HEADS"]
        return max(1, int(min(keys / (LEAST_BLOCKS * tile.keys), units, MOST_PARTS)))

    def _launch(
        self,
        tile: Tile,
        scratch: Mapping[str, Storage],
        constants: Mapping[str, int],
        grid: tuple[Dim, Dim, Dim],
    ) -> Launch:
        operands = {**self.operands, "out": self.call.outputs[0], **scratch}
        return triton_launch(
            MODULE,
            "attention_kernel",
            {f"p_{name}": operands[name] for name in OPERANDS if name in operands},
            sizes=self.sizes,
            params={**self.strides, **self.numbers},
            constants={
                **{f"p_{name}": 0 for name in OPERANDS if name not in operands},
                **self.constants,
                **constants,
                "BLOCK_M": tile.rows,
                "BLOCK_N": tile.keys,
            },
            grid=grid,
            warps=tile.warps,
            options=(("num_stages", tile.stages), *tile.options),
        )

    def _sum(
        self,
        tile: Tile,
        scratch: Mapping[str, Storage],
        parts: Dim,
        constants: Mapping[str, int],
        grid: tuple[Dim, Dim, Dim],
    ) -> Launch:
        names = {"HEADS", "KV_HEADS", "DV", "BLOCK_DV", "CAUSAL", "MASK", *OUT_STRIDES}
        operands = {**scratch, "out": self.call.outputs[0]}
        return triton_launch(
            MODULE,
            "attention_parts_kernel",
            {f"p_{name}": each for name, each in operands.items()},
            sizes={"S": self.sizes["S"], "n_parts": parts},
            params={name: self.strides[name] for name in OUT_STRIDES if name in self.strides},
            constants={
                **{name: each for name, each in self.constants.items() if name in names},
                **constants,
                "BLOCK_M": tile.rows,
            },
            grid=grid,
            warps=SUM_WARPS,
        )


def _tile_of_many(call: Call, *, is_masked: bool) -> Tile:
    target = call.target
    if call.inputs[0].dtype == "f32":
        return _tile_for_heads(call, MANY_F32[target.family])
    return _tile_for_heads(call, MASKED[target.family] if is_masked else MANY[target.name])


def _tile_of_few(call: Call, group: int, *, is_masked: bool) -> Tile:
    family = call.target.family
    if call.inputs[0].dtype == "f32":
        return _tile_for_heads(call, FEW_F32[family])
    if is_masked:
        return _tile_for_heads(call, FEW_MASKED[family])
    tile = _tile_for_heads(call, FEW[family])
    return dataclasses.replace(tile, rows=min(MOST_ROWS_OF_FEW, power_above(group, tile.rows)))


def _tile_for_heads(call: Call, tiles: Tiles) -> Tile:
    longest = max(known(storage.shape[3]) for storage in call.inputs[:3])
    return next(tile for most, tile in tiles if longest <= most)


def _launch(call: Call) -> tuple[Launch, ...]:
    q, k, v, *rest = call.inputs
    attrs = call.attrs
    operands = {"q": q, "k": k, "v": v}
    for name, flag in (
        ("mask", "has_mask"),
        ("sinks", "has_sinks"),
        ("padding", "has_key_padding"),
    ):
        if bool_attr(attrs, flag):
            operands[name] = rest.pop(0)
    mask, padding = operands.get("mask"), operands.get("padding")
    mask_kind = 0 if mask is None else MASK_BOOL if mask.dtype == "bool" else MASK_FLOAT
    strides: dict[str, Dim] = {}
    for name, storage, axes in (
        ("q", q, "bhs"),
        ("k", k, "bht"),
        ("v", v, "bht"),
        ("out", call.outputs[0], "bhs"),
    ):
        strides |= _named(name, axes, storage.strides)
    strides |= _named("mask", "bhst", (0,) * 4 if mask is None else broadcast_strides(mask))
    strides |= _named("padding", "bt", (0, 0) if padding is None else padding.strides)
    constant_strides = {
        name: known(each) for name, each in strides.items() if _is_constant(name, each)
    }
    first, second = parts_of_head(known(q.shape[3]))
    attention = _Attention(
        call,
        operands=operands,
        strides={name: each for name, each in strides.items() if name not in constant_strides},
        numbers=_numbers(attrs, mask_kind),
        constants={
            "HEADS": known(q.shape[1]),
            "KV_HEADS": known(k.shape[1]),
            "D": known(q.shape[3]),
            "D0": first,
            "D1": second,
            "DV": known(v.shape[3]),
            "BLOCK_DV": power_above(known(v.shape[3]), LEAST_ROWS),
            "CAUSAL": int(bool_attr(attrs, "causal")),
            "WINDOW": _limit(call, "window"),
            "CHUNK": _limit(call, "chunk"),
            "SOFTCAP": int(attrs.get("softcap") is not None),
            "MASK": mask_kind,
            "SINKS": int("sinks" in operands),
            "PADDING": int("padding" in operands),
            **constant_strides,
        },
    )
    return attention.launches()


def _limit(call: Call, name: str) -> int:
    """`WINDOW` or `CHUNK` of the kernel: -1 for none, or for one that hides no key."""
    if call.attrs.get(name) is None:
        return -1
    lengths = (call.inputs[0].shape[2], call.inputs[1].shape[2])
    most = max(symbolic.bounds(length, call.graph.symbols)[1] for length in lengths)
    limit = int_attr(call.attrs, name)
    if limit < min(most, FARTHEST_KEY):
        return limit
    # What stands before the first key is in a chunk without keys.
    ahead = symbolic.bounds(lengths[1] - lengths[0], call.graph.symbols)[0] >= 0
    is_needed = name == "chunk" and not (ahead or bool_attr(call.attrs, "causal"))
    return min(limit, FARTHEST_KEY) if is_needed else -1


def _named(name: str, axes: str, strides: tuple[Dim, ...]) -> dict[str, Dim]:
    return {f"{name}_{axis}": stride for axis, stride in zip(axes, strides, strict=False)}


def _is_constant(name: str, stride: Dim) -> bool:
    """Whether the compiler is told a stride: it then loads neighbours together.

    One between heads may be a multiple of 8 elements and not of `ALIGNMENT`.
    """
    is_between_heads = name.endswith("_h") and isinstance(stride, int) and stride < FARTHEST_HEAD
    return stride in (0, 1) or is_between_heads


def _numbers(attrs: Attrs, mask_kind: int) -> dict[str, float]:
    """`scale` and `cap` of the kernel."""
    unit = 1.0 if mask_kind == MASK_FLOAT else LOG2_E
    scale = float_attr(attrs, "scale")
    if attrs.get("softcap") is None:
        return {"scale": scale * unit, "cap": 0.0}
    cap = float_attr(attrs, "softcap")
    return {"scale": scale / cap, "cap": cap * unit}


def broadcast_strides(mask: Storage) -> tuple[Dim, ...]:
    """Strides of a mask expanded to rank 4: 0 where it has size 1 or no axis."""
    pairs = zip(mask.shape, mask.strides, strict=True)
    steps = tuple(0 if size == 1 else step for size, step in pairs)
    return (0,) * (4 - len(steps)) + steps


TRITON = Kernel(
    op="attention",
    name="attention.triton",
    provider="triton",
    families=FAMILIES,
    source="attention/triton_kernel.py",
    supports=_supports,
    launch=_launch,
    layouts=_layouts,
    output_order=_output_order,
    scalar_spills=SCALAR_SPILLS,
)
