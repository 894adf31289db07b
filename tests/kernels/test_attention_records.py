"""Attention on GPUs: what the record refuses, how queries are divided, and its code objects."""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass, field
from typing import Any

import pytest

from fusec import symbolic
from fusec.ir import Graph, Node, TensorType
from fusec.ir.types import Attr
from fusec.kernels.attention.triton import FARTHEST_KEY, FEW_QUERIES, TRITON, parts_of_head
from fusec.kernels.launch import Call, Launch, Storage, TritonSource, dense_strides
from fusec.kernels.registry import choose
from fusec.link.gpu_checks import fitted, unfit
from fusec.link.triton_build import build_triton
from fusec.symbolic import Dim, Range, symbol
from fusec.target import GPU_TARGETS, Target, target_named

BATCH, QUERIES, KEYS = symbol("batch"), symbol("queries"), symbol("keys")
RANGES: dict[str, Range] = {"batch": (1, 64), "queries": (1, 8192), "keys": (1, 131072)}


@dataclass(frozen=True)
class Geometry:
    """Attention of a model; q, k and v are parts of one row unless sizes differ.

    Attributes:
        name: the model.
        heads: query heads.
        kv_heads: key heads.
        depth: of a query.
        value_depth: of a value.
        options: attributes that are not as usual.
        mask: dtype of a mask [batch, 1, queries, keys], if there is one.
        sinks: dtype of the sinks, if there are any.
        dtype: of q, k and v.
        keys: how many.
        ranges: of the symbols.
    """

    name: str
    heads: int
    kv_heads: int
    depth: int
    value_depth: int
    options: dict[str, Attr] = field(default_factory=dict, hash=False)
    mask: str = ""
    sinks: str = ""
    dtype: str = "bf16"
    keys: Dim = QUERIES
    ranges: dict[str, Range] = field(default_factory=lambda: RANGES, hash=False)

    def __str__(self) -> str:
        return self.name

    def node(self) -> tuple[Graph, Node]:
        """A graph of this attention alone."""
        attrs: dict[str, Attr] = {
            "scale": self.depth**-0.5,
            "causal": True,
            "window": None,
            "softcap": None,
            "has_mask": bool(self.mask),
            "has_sinks": bool(self.sinks),
            "has_key_padding": False,
            **self.options,
        }
        kinds = [
            TensorType(self.dtype, (BATCH, self.heads, QUERIES, self.depth)),
            TensorType(self.dtype, (BATCH, self.kv_heads, self.keys, self.depth)),
            TensorType(self.dtype, (BATCH, self.kv_heads, self.keys, self.value_depth)),
        ]
        if self.mask:
            kinds.append(TensorType(self.mask, (BATCH, 1, QUERIES, self.keys)))
        if self.sinks:
            kinds.append(TensorType(self.sinks, (self.heads,)))
        if attrs["has_key_padding"]:
            kinds.append(TensorType("bool", (BATCH, self.keys)))
        graph = Graph("case", dict(self.ranges))
        names = [graph.add_input(f"x{i}", kind) for i, kind in enumerate(kinds)]
        return graph, graph.add("attention", names, attrs)

    def launches(self, target: Target) -> tuple[Launch, ...]:
        """What runs."""
        graph, node = self.node()
        assert TRITON.supports(graph, node, target) is None
        places: list[Storage] = []

        def scratch(dtype: str, shape: tuple[Dim, ...]) -> Storage:
            places.append(Storage(len(places), dtype, shape, dense_strides(shape)))
            return places[-1]

        q, k, v, *rest = (graph.type(name) for name in node.inputs)
        is_merged = self.depth == self.value_depth and self.keys == QUERIES
        widths = [self.heads * self.depth, self.kv_heads * self.depth]
        row = sum(widths) + self.kv_heads * self.value_depth
        begins = (0, widths[0], sum(widths))
        for kind, begin in zip((q, k, v), begins, strict=True):
            size = kind.shape[3]
            width = row if is_merged else kind.shape[1] * size
            strides = (kind.shape[2] * width, size, width, 1)
            offset = begin if is_merged else 0
            places.append(Storage(len(places), kind.dtype, kind.shape, strides, offset))
        inputs = (*places, *(scratch(kind.dtype, kind.shape) for kind in rest))
        shape = graph.type(node.output).shape
        width = self.heads * self.value_depth
        strides = (QUERIES * width, self.value_depth, width, 1)
        places.append(Storage(len(places), self.dtype, shape, strides))
        return TRITON.launches(Call(graph, node, target, inputs, (places[-1],), scratch))


LLAMA = Geometry("Llama", 32, 8, 128, 128)
GPT_OSS = Geometry("gpt-oss", 64, 8, 64, 64, {"window": 128}, sinks="bf16")
LLAMA4 = Geometry("Llama 4", 40, 8, 128, 128, {"chunk": 2048})
DEEPSEEK = Geometry("DeepSeek", 128, 128, 192, 128)
QWEN_NEXT = Geometry("Qwen3-Next", 16, 2, 256, 256)
GEMMA = Geometry("Gemma", 8, 4, 256, 256, {"softcap": 50.0})
GEMMA4 = Geometry("Gemma 4", 8, 2, 512, 512)
BERT = Geometry("BERT", 12, 12, 64, 64, {"causal": False, "has_key_padding": True})
PHI = Geometry("Phi", 32, 32, 96, 96)
T5 = Geometry("T5", 12, 12, 64, 64, {"causal": False}, mask="f32")
LLAMA_MASKED = dataclasses.replace(LLAMA, name="Llama, masked", mask="bool")
QWEN_MASKED = dataclasses.replace(QWEN_NEXT, name="Qwen3-Next, masked", mask="bool")
LLAMA_F32 = dataclasses.replace(LLAMA, name="Llama, f32", dtype="f32")
QWEN_F32 = dataclasses.replace(QWEN_MASKED, name="Qwen3-Next, f32", dtype="f32")
GEOMETRIES = (LLAMA, LLAMA4, GPT_OSS, DEEPSEEK, QWEN_NEXT, GEMMA, GEMMA4, BERT, PHI, T5)
GEMMA4_F32 = dataclasses.replace(GEMMA4, name="Gemma 4, f32", dtype="f32")
HARD = (LLAMA_MASKED, QWEN_MASKED, LLAMA_F32, QWEN_F32, GEMMA4_F32)

MATRIX = {
    "gfx950": "v_mfma_f32_16x16x32_bf16",
    "gfx942": "v_mfma_f32_16x16x16_bf16",
    "sm_90": "wgmma.mma_async.sync.aligned.m64n",
}
"""What multiplies bf16 in tiles of many queries."""

MOST_REGISTERS = {"amdgpu": 512, "nvidia": 255}
"""Those of a lane, by family: what a SIMD has for one wave."""


def check(geometry: Geometry, target_name: str) -> None:
    """Nothing beside registers, wide loads and stores, and the matrix units of the target."""
    target = target_named(target_name)
    for launch in geometry.launches(target):
        source = launch.code
        assert isinstance(source, TritonSource)
        function = getattr(importlib.import_module(source.module), source.function)
        given = [name for name in function.arg_names if name not in dict(source.constants)]
        assert given == [name for name, _ in source.signature]
        compiled = build_triton(source, target)
        assert not [*unfit(compiled, source, launch, target, TRITON)]
        built = fitted(compiled, source, target)
        assert built.resources["vgpr"] <= MOST_REGISTERS[target.family]
        if source.function == "attention_kernel":
            assert built.machine.widest_load == 16 and built.machine.widest_store >= 8
            if geometry.dtype != "f32" and dict(source.constants)["BLOCK_M"] >= 64:
                used = built.machine.mfma
                assert any(each.startswith(MATRIX[target_name]) for each in used)


@pytest.mark.parametrize(
    ("target_name", "geometry"), [("gfx950", GPT_OSS), ("gfx942", LLAMA), ("sm_90", DEEPSEEK)]
)
def test_code_objects(target_name: str, geometry: Geometry) -> None:
    check(geometry, target_name)


@pytest.mark.slow
@pytest.mark.parametrize("geometry", [*GEOMETRIES, *HARD], ids=str)
@pytest.mark.parametrize("target_name", GPU_TARGETS)
def test_every_code_object(target_name: str, geometry: Geometry) -> None:
    check(geometry, target_name)
    check(dataclasses.replace(geometry, keys=KEYS), target_name)


def test_the_kernel_is_chosen_and_writes_queries_in_rows() -> None:
    graph, node = LLAMA.node()
    for target in GPU_TARGETS.values():
        assert choose(graph, node, target).kernel is TRITON
    assert TRITON.output_order(graph, node) == (0, 2, 1, 3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "f64"}, "dtype: "),
        ({"depth": 544}, "attention.head-dim: 544, more than 512"),
        ({"value_depth": 768}, "attention.head-dim: 768"),
        ({"heads": symbol("heads")}, "shape: the size of query heads"),
        ({"value_depth": symbol("depth")}, "shape: the size of a value"),
        ({"mask": "f16"}, "mask: it is f16"),
        ({"sinks": "f16"}, "sinks: they are f16"),
    ],
)
def test_refusals(change: dict[str, Any], reason: str) -> None:
    ranges = {**RANGES, "heads": (32, 64), "depth": (64, 128)}
    graph, node = dataclasses.replace(LLAMA, ranges=ranges, **change).node()
    refused = TRITON.supports(graph, node, target_named("gfx950"))
    assert refused is not None and refused.startswith(reason)


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        *((1, (16, 0)), (12, (16, 0)), (24, (32, 0)), (33, (32, 16)), (40, (32, 16))),
        *((64, (64, 0)), (80, (64, 16)), (96, (64, 32)), (112, (128, 0)), (192, (128, 64))),
        *((256, (256, 0)), (288, (256, 32)), (512, (512, 0))),
    ],
)
def test_heads_in_powers_of_two(size: int, parts: tuple[int, int]) -> None:
    assert parts_of_head(size) == parts


@pytest.mark.parametrize(
    ("queries", "keys", "count"),
    [
        ((1, 8192), QUERIES, 2),
        ((1, FEW_QUERIES), QUERIES, 1),
        ((1, 8192), KEYS, 3),
        ((1, FEW_QUERIES), KEYS, 2),
        ((FEW_QUERIES + 1, None), KEYS, 1),
        ((1, 1), 100, 1),
    ],
)
def test_ranges_decide_what_is_launched(queries: Range, keys: Dim, count: int) -> None:
    ranges = {**RANGES, "queries": queries}
    geometry = dataclasses.replace(LLAMA, keys=keys, ranges=ranges)
    assert len(geometry.launches(target_named("gfx950"))) == count


def test_keys_without_a_bound_are_divided() -> None:
    """As those of a cache are."""
    ranges = {**RANGES, "keys": (1, None)}
    geometry = dataclasses.replace(LLAMA, keys=KEYS, ranges=ranges)
    assert len(geometry.launches(target_named("gfx950"))) == 3


def grids(queries: int, batch: int, geometry: Geometry = LLAMA) -> list[list[int]]:
    sizes = {"queries": queries, "keys": 4096, "batch": batch}
    launches = dataclasses.replace(geometry, keys=KEYS).launches(target_named("gfx950"))
    return [[symbolic.evaluate(size, sizes) for size in launch.grid] for launch in launches]


def test_keys_are_divided_until_every_unit_has_programs() -> None:
    kept = [0, 4, 1]
    assert grids(1, 1) == [[8, 64, 1], [8, 4, 1], [0, 1, 1]]
    assert grids(16, 1)[:2] == [[32, 16, 1], [32, 16, 1]]
    # Enough sequences: one program has all keys of each, and nothing is left to bring together.
    assert grids(1, 64) == [[512, 1, 1], kept, [0, 1, 1]]
    assert [grid[0] for grid in grids(17, 1)] == [0, 0, 32]
    assert [grid[0] for grid in grids(129, 2)] == [0, 0, 128]


@pytest.mark.parametrize(("window", "kept"), [(131071, 131071), (131072, -1), (1 << 32, -1)])
def test_a_window_that_hides_no_key_is_none(window: int, kept: int) -> None:
    """Distances are compared in 32 bits."""
    geometry = dataclasses.replace(LLAMA, options={"window": window}, keys=KEYS)
    source = geometry.launches(target_named("gfx950"))[0].code
    assert isinstance(source, TritonSource)
    assert dict(source.constants)["WINDOW"] == kept


@pytest.mark.parametrize(
    ("chunk", "causal", "kept"),
    [
        (131071, True, 131071),
        (131072, True, -1),
        (131072, False, 131072),  # with more queries than keys the first are in no chunk of keys
        (1 << 32, False, FARTHEST_KEY),
    ],
)
def test_chunks_that_hide_no_key_are_none(chunk: int, causal: bool, kept: int) -> None:
    geometry = dataclasses.replace(LLAMA, options={"chunk": chunk, "causal": causal}, keys=KEYS)
    source = geometry.launches(target_named("gfx950"))[0].code
    assert isinstance(source, TritonSource)
    assert dict(source.constants)["CHUNK"] == kept


def test_a_window_bounds_how_often_keys_are_divided() -> None:
    assert grids(1, 1, GPT_OSS)[0] == [8, 2, 1]
    chunked = dataclasses.replace(LLAMA, options={"chunk": 128})
    assert grids(1, 1, chunked)[0] == [8, 2, 1]
