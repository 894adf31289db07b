"""Records of kernels that read or write where indices say: their code objects and refusals."""

from __future__ import annotations

import importlib

import pytest
from index_problems import triton_record

from fusec.ir import Graph, Node, TensorType
from fusec.ir.types import Attr
from fusec.kernels.launch import Call, Launch, Storage, TritonSource, dense_strides
from fusec.link.gpu_checks import fitted, unfit
from fusec.link.triton_build import build_triton
from fusec.symbolic import Dim, evaluate, symbol
from fusec.target import GPU_TARGETS, Target, target_named

TOKENS = symbol("tokens")


def case(op: str, kinds: tuple[TensorType, ...], attrs: dict[str, Attr]) -> tuple[Graph, Node]:
    graph = Graph("case", {"tokens": (1, 8192)})
    names = [graph.add_input(f"x{i}", kind) for i, kind in enumerate(kinds)]
    return graph, graph.add(op, names, attrs)


def launches(graph: Graph, node: Node, target: Target) -> tuple[Launch, ...]:
    """What the record launches for dense operands."""
    places: list[Storage] = []

    def place(dtype: str, shape: tuple[Dim, ...]) -> Storage:
        places.append(Storage(len(places), dtype, shape, dense_strides(shape)))
        return places[-1]

    kinds = [graph.type(value) for value in (*node.inputs, *node.outputs)]
    placed = tuple(place(kind.dtype, kind.shape) for kind in kinds)
    count = len(node.inputs)
    call = Call(
        graph, node, target, placed[:count], placed[count:], place, lambda: place("i64", (1,))
    )
    record = triton_record(node.op)
    assert record.supports(graph, node, target) is None
    return record.launches(call)


def kind(dtype: str, *shape: Dim) -> TensorType:
    return TensorType(dtype, shape)


CODE: dict[str, tuple[str, tuple[TensorType, ...], dict[str, Attr], int]] = {
    "embedding": ("take", (kind("bf16", 32000, 4096), kind("i64", 1, TOKENS)), {"axis": 0}, 16),
    "embedding of 2880": ("take", (kind("bf16", 99, 2880), kind("i64", TOKENS)), {"axis": 0}, 16),
    "columns": ("take", (kind("f32", TOKENS, 64), kind("i32", 7)), {"axis": 1}, 0),
    "mask": (
        "index",
        (kind("bool", 2, TOKENS), kind("i64", 2, 1, 1, 1), kind("i64", 1, 1, 1, TOKENS)),
        {"axes": (0, 1)},
        0,
    ),
    "scores": ("gather", (kind("f32", TOKENS, 64), kind("i64", TOKENS, 8)), {"axis": 1}, 0),
    "scores of some": ("gather", (kind("f32", 99, 64), kind("i64", TOKENS, 8)), {"axis": 1}, 0),
    "experts": ("topk", (kind("f32", TOKENS, 64),), {"axis": 1, "k": 8, "largest": True}, 0),
    "tokens by expert": (
        "sort",
        (kind("i64", 8 * TOKENS),),
        {"axis": 0, "descending": False},
        0,
    ),
    "chosen experts": (
        "scatter",
        (kind("f32", TOKENS, 64), kind("i64", TOKENS, 8), kind("f32", TOKENS, 8)),
        {"axis": 1},
        0,
    ),
    "largest of long lines": (
        "scatter",
        (kind("i32", 8, 999), kind("i64", 8, TOKENS), kind("i32", 8, TOKENS)),
        {"axis": 1, "reduce": "amax"},
        0,
    ),
    "tokens of experts": (
        "index_put",
        (kind("bf16", TOKENS, 2880), kind("bf16", 8 * TOKENS, 2880), kind("i64", 8 * TOKENS)),
        {"axes": (0,), "accumulate": True},
        16,
    ),
    "tokens of each expert": (
        "histogram",
        (kind("f32", 8 * TOKENS),),
        {"bins": 64, "low": 0.0, "high": 63.0},
        0,
    ),
    "a vocabulary": ("sort", (kind("bf16", 2, 32000),), {"axis": 1, "descending": True}, 0),
}
"""By name: a node, and the bytes of the widest load that it needs."""


@pytest.mark.parametrize("target_name", GPU_TARGETS)
@pytest.mark.parametrize("name", CODE)
def test_code_objects(name: str, target_name: str) -> None:
    op, kinds, attrs, load = CODE[name]
    target = target_named(target_name)
    widest = 0
    for launch in launches(*case(op, kinds, attrs), target):
        source = launch.code
        assert isinstance(source, TritonSource)
        function = getattr(importlib.import_module(source.module), source.function)
        given = [each for each in function.arg_names if each not in dict(source.constants)]
        assert given == [each for each, _ in source.signature]
        compiled = build_triton(source, target)
        built = fitted(compiled, source, target)
        assert built.code.startswith(b"\x7fELF")
        assert not [*unfit(compiled, source, launch, target, triton_record(op))]
        if target.family == "amdgpu":
            assert built.resources["vgpr"] <= 128
            widest = max(widest, built.machine.widest_load)
            assert not built.machine.forbidden
    assert target.family != "amdgpu" or widest >= load


@pytest.mark.parametrize("op", ["gather", "scatter"])
def test_an_index_that_may_be_longer_than_what_it_picks_from(op: str) -> None:
    """Either that is reported, or the others run; where it cannot be, there are only the others."""
    operands = (kind("f32", 99, 64), kind("i64", TOKENS, 8), kind("f32", TOKENS, 8))
    kinds = operands[: 2 + (op == "scatter")]
    gfx950 = target_named("gfx950")
    report, *others = launches(*case(op, kinds, {"axis": 1}), gfx950)
    assert report.symbol == "report_kernel"
    for tokens in (1, 99, 100, 8192):
        run = [evaluate(each.grid[0], {"tokens": tokens}) > 0 for each in (report, *others)]
        assert run == [tokens > 99, *[tokens <= 99] * len(others)]
    same = (kind("f32", TOKENS, 64), *kinds[1:])
    assert len(launches(*case(op, same, {"axis": 1}), gfx950)) <= len(others)


REFUSED: list[tuple[str, tuple[TensorType, ...], dict[str, Attr], str]] = [
    ("sort", (kind("f8e4m3fn", 4),), {"axis": 0, "descending": False}, "dtype: it orders"),
    (
        "scatter",
        (kind("f8e4m3fn", 4), kind("i64", 4), kind("f8e4m3fn", 4)),
        {"axis": 0, "reduce": "add"},
        "dtype: it combines",
    ),
    (
        "scatter",
        (kind("f32", 4), kind("i64", 4), kind("f32", 4)),
        {"axis": 0, "reduce": "mean"},
        "reduce: it does not know",
    ),
    (
        "index_put",
        (kind("f32", *(2,) * 6), kind("f32", 1), kind("i64", 4)),
        {"axes": (0,), "accumulate": False},
        "shape: it walks",
    ),
    (
        "histogram",
        (kind("bool", 4),),
        {"bins": 2, "low": 0.0, "high": 1.0},
        "dtype: it counts",
    ),
    ("topk", (kind("f32", *(2,) * 6),), {"axis": 0, "k": 1, "largest": True}, "shape: it walks"),
    ("take", (kind("f32", 4, 4), kind("u8", 3)), {"axis": 0}, "dtype: its indices are"),
    ("take", (kind("f32", 4, 4), kind("i64", 2, 2, 2, 2, 2)), {"axis": 0}, "shape: it walks 4"),
    ("gather", (kind("f32", 2, 2, 2, 2, 2), kind("i64", 2, 2, 2, 2, 2)), {"axis": 0}, "shape: it"),
    (
        "index",
        (kind("f32", 2, 2, 2, 2, 2), *(kind("i64", 3),) * 5),
        {"axes": (0, 1, 2, 3, 4)},
        "shape: it takes 4 index operands",
    ),
]


@pytest.mark.parametrize(("op", "kinds", "attrs", "reason"), REFUSED)
def test_refusals(
    op: str, kinds: tuple[TensorType, ...], attrs: dict[str, Attr], reason: str
) -> None:
    graph, node = case(op, kinds, attrs)
    refused = triton_record(op).supports(graph, node, target_named("gfx950"))
    assert refused is not None and refused.startswith(reason)
