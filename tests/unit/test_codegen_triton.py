"""Generated Triton: what its text depends on, and sound code objects for every GPU target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from region_problems import run_graph

from fusec import symbolic
from fusec.dtypes import DTYPES
from fusec.ir import Graph, TensorType
from fusec.ir.types import Attr
from fusec.kernels.launch import Launch, Storage, TritonSource
from fusec.kernels.registry import Kernel
from fusec.link import gpu_sources
from fusec.link.cache import ObjectCache
from fusec.link.gpu_checks import fitted, unfit
from fusec.link.gpu_compile import compile_sources
from fusec.link.gpu_kernel import GpuKernel
from fusec.link.gpu_sources import source_digest, source_from_json, source_json
from fusec.link.triton_build import build_triton
from fusec.lower.codegen_cpp import can_compute
from fusec.lower.codegen_triton import region_launch
from fusec.lower.region import Operand, Region, Store, Value
from fusec.lower.storage import dense
from fusec.symbolic import Dim, Range
from fusec.target import GPU_TARGETS, Target, target_named

SIZE = symbolic.symbol("size")
GFX950 = target_named("gfx950")
RANGES: dict[str, Range] = {"size": (0, 1 << 20)}
RECORD = Kernel(
    op="generated",
    name="generated",
    provider="triton",
    families=("amdgpu", "nvidia"),
    source="",
    supports=lambda graph, node, target: None,
    launch=lambda call: (),
)

Build = Callable[..., list[str]]


def copy(
    shape: tuple[Dim, ...],
    strides: tuple[Dim, ...],
    dtype: str = "bf16",
    ranges: Mapping[str, Range] = RANGES,
    offset: int = 0,
    buffers: tuple[int, int] = (0, 1),
) -> Launch:
    """The launch that makes dense what lies in `strides`."""
    target = dense(buffers[1], dtype, shape)
    operands = (Operand(dtype, strides), Operand(dtype, target.strides))
    load = Value("load", dtype, (), (("operand", 0),))
    region = Region(shape, 0, operands, (load,), (Store(0, 1),))
    source = Storage(buffers[0], dtype, shape, strides, offset)
    return region_launch(region, (source, target), "a copy", GFX950, ranges)


def source_of(launch: Launch) -> TritonSource:
    assert isinstance(launch.code, TritonSource)
    return launch.code


def test_regions_that_differ_in_their_buffers_are_one_source() -> None:
    one, other = (copy((SIZE, 96), (200, 1), buffers=pair) for pair in ((0, 1), (7, 4)))
    assert source_of(one) == source_of(other) and one.operands != other.operands
    assert one.symbol == source_of(one).function and one.symbol in source_of(one).text
    assert one.symbol != copy((SIZE, 96), (201, 1)).symbol


def test_what_is_known_is_text_and_what_is_not_is_a_parameter() -> None:
    launch = copy((SIZE, 96), (2 * SIZE, 1))
    assert launch.params == (96 * SIZE, 2 * SIZE)
    assert "% 96" in source_of(launch).text
    assert [kind for _, kind in source_of(launch).signature] == ["*bf16", "*bf16", "i32", "i32"]
    assert source_of(launch).divisible == ("b0", "b1", "p0")
    moved = copy((SIZE, 96), (2 * SIZE, 1), offset=3)
    assert source_of(moved).divisible == ("b1", "p0")
    assert source_of(moved).text == source_of(launch).text


def test_offsets_are_wide_where_they_may_be_large() -> None:
    assert "int64" not in source_of(copy((SIZE, 96), (200, 1))).text
    large = source_of(copy((SIZE, 4096), (8192, 1)))
    assert "tl.program_id(0).to(tl.int64)" in large.text
    unbounded = source_of(copy((SIZE, 96), (200, 1), ranges={}))
    assert "tl.program_id(0).to(tl.int64)" in unbounded.text
    assert unbounded.signature[2] == ("p0", "i64")


def test_results_are_walked_along_memory() -> None:
    """A transposed copy writes neighbours, and joins what it can."""
    turned = copy((SIZE, 8, 4), (4, 4 * SIZE, 1))
    assert "tl.store(b1 + place" in source_of(turned).text
    plain = source_of(copy((2, SIZE, 8), (8 * SIZE, 8, 1))).text
    assert "tl.load(b0 + place" in plain and "%" not in plain


def test_json_keeps_the_text_and_the_digest_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(copy((SIZE, 96), (200, 1)))
    assert source_from_json(source_json(source)) == source
    digest = source_digest(source, GFX950)
    changed = replace(source, text=source.text.replace("% 96", "% 97"))
    assert source_digest(changed, GFX950) != digest
    monkeypatch.setattr(gpu_sources, "triton_text", lambda module: f"{module} changed")
    assert source_digest(source, GFX950) != digest, "functions of numbers belong to it"


def test_a_text_is_compiled_in_a_process_of_its_own(tmp_path: Any) -> None:
    source = source_of(copy((SIZE, 96), (200, 1)))
    made = compile_sources([source], GFX950, ObjectCache(tmp_path)).code[source]
    assert made.code == build_triton(source, GFX950).code


# --- code objects ---------------------------------------------------------------------------


def kernels_of(kinds: Sequence[TensorType], build: Build, target: Target) -> list[GpuKernel]:
    """The kernels of a graph, none of which has anything against it."""
    graph = Graph("case", dict(RANGES))
    names = [graph.add_input(f"x{index}", kind) for index, kind in enumerate(kinds)]
    graph.outputs = build(graph, *names)
    graph.output_names = [f"y{number}" for number in range(len(graph.outputs))]
    found: list[GpuKernel] = []

    def compiled(launch: Launch, pointers: list[Any], symbols: Mapping[str, int]) -> None:
        source = source_of(launch)
        made = build_triton(source, target)
        assert not [*unfit(made, source, launch, target, RECORD)], source.text
        found.append(fitted(made, source, target))

    def empty(kind: TensorType) -> NDArray[Any]:
        shape = [symbolic.evaluate(size, {"size": 0}) for size in kind.shape]
        return np.zeros(shape, DTYPES[kind.dtype].numpy)

    inputs = {name: empty(kind) for name, kind in zip(names, kinds, strict=True)}
    run_graph(graph, inputs, target, compiled)
    return found


def activation(g: Graph, x: str, bias: str) -> list[str]:
    return [g.add("silu", [g.add("add", [x, bias]).output]).output]


def softmax(g: Graph, x: str) -> list[str]:
    return [g.add("softmax", [x], {"axis": 1}).output]


def columns(g: Graph, x: str) -> list[str]:
    return [g.add("reduce_sum", [x], {"axes": (0,), "keepdims": False}).output]


def greedy(g: Graph, x: str) -> list[str]:
    return [g.add("argmax", [x], {"axis": 1, "keepdims": False}).output]


def turned(g: Graph, x: str) -> list[str]:
    seen = g.add("transpose", [x], {"perm": (1, 0)}).output
    return [g.add("cast", [seen], {"dtype": "f32"}).output]


WIDE: list[tuple[str, tuple[TensorType, ...], Build]] = [
    ("flat", (TensorType("bf16", (SIZE, 2880)), TensorType("bf16", (2880,))), activation),
    ("rows", (TensorType("bf16", (SIZE, 4096)),), softmax),
    ("chunks", (TensorType("f32", (SIZE, 151936)),), greedy),
    ("columns", (TensorType("bf16", (SIZE, 2880)),), columns),
]


@pytest.mark.parametrize("target_name", GPU_TARGETS)
@pytest.mark.parametrize(("kinds", "build"), [case[1:] for case in WIDE], ids=[c[0] for c in WIDE])
def test_loads_are_wide(kinds: tuple[TensorType, ...], build: Build, target_name: str) -> None:
    (kernel,) = kernels_of(kinds, build, target_named(target_name))
    assert kernel.machine.widest_load == 16
    assert kernel.resources["vgpr"] <= 128


FLOAT_OPS = (
    "exp exp2 expm1 log log2 log1p sqrt rsqrt reciprocal sin cos tan asin acos atan sinh cosh tanh "
    "asinh acosh atanh erf erfc sigmoid silu log_sigmoid quick_gelu hardswish hardsigmoid mish "
    "gelu softplus leaky_relu elu isnan isinf"
).split()
NUMBER_OPS = "neg abs sign floor ceil round trunc relu clamp".split()
PAIR_OPS = "add sub mul minimum maximum pow mod fmod floordiv eq ne lt le gt ge".split()
FLOAT_PAIR_OPS = ["div", "atan2"]
INTEGER_PAIR_OPS = "and or xor shl shr".split()
ATTRS: dict[str, dict[str, Attr]] = {
    "gelu": {"approximate": "tanh"},
    "softplus": {"beta": 1.0, "threshold": 20.0},
    "leaky_relu": {"slope": 0.1},
    "elu": {"alpha": 1.0},
    "clamp": {"min": -3, "max": 5},
}


def functions(ops: Sequence[str]) -> Build:
    def build(g: Graph, x: str, y: str) -> list[str]:
        one = {*FLOAT_OPS, *NUMBER_OPS, "not"}
        return [g.add(op, [x] if op in one else [x, y], ATTRS.get(op, {})).output for op in ops]

    return build


def conversions(g: Graph, x: str, y: str) -> list[str]:
    narrow = [g.add("cast", [x], {"dtype": dtype}).output for dtype in DTYPES if can_compute(dtype)]
    return [g.add("cast", [value], {"dtype": "f32"}).output for value in narrow]


def folds(g: Graph, x: str, y: str) -> list[str]:
    attrs: dict[str, Attr] = {"axes": (1,), "keepdims": True}
    ops = ["reduce_any", "reduce_all"]
    if g.type(x).dtype != "bool":
        ops = ["reduce_sum", "reduce_max", "reduce_min", "reduce_prod"]
    outputs = [g.add(op, [x], attrs).output for op in ops]
    return [
        *outputs,
        *(g.add(op, [x], {"axis": 1, "keepdims": True}).output for op in ("argmax", "argmin")),
    ]


def scans(g: Graph, x: str, y: str) -> list[str]:
    return [g.add(op, [x], {"axis": 1}).output for op in ("cumsum", "cumprod")]


def _everything() -> list[Any]:
    cases: list[Any] = []
    for dtype in filter(can_compute, DTYPES):
        builds: list[tuple[str, Build]] = [("folds", folds), ("conversions", conversions)]
        if dtype != "bool":
            builds.append(("scans", scans))
        if dtype in ("f64", "f32"):
            ops = [*FLOAT_OPS, *NUMBER_OPS, *PAIR_OPS, *FLOAT_PAIR_OPS]
            builds += [(f"{part}", functions(ops[part::8])) for part in range(8)]
        elif DTYPES[dtype].is_integer:
            ops = [*NUMBER_OPS, *PAIR_OPS, *INTEGER_PAIR_OPS, "not"]
            builds += [(f"{part}", functions(ops[part::2])) for part in range(2)]
        quick = {("f32", "folds"), ("bf16", "conversions"), ("i8", "1"), ("f32", "4")}
        for name, build in builds:
            marks = [] if (dtype, name) in quick else [pytest.mark.slow]
            cases.append(pytest.param(dtype, build, id=f"{dtype}-{name}", marks=marks))
    return cases


@pytest.mark.parametrize("target_name", GPU_TARGETS)
@pytest.mark.parametrize(("dtype", "build"), _everything())
def test_everything_compiles(dtype: str, build: Build, target_name: str) -> None:
    for shape in ((SIZE, 96), (2, SIZE)):
        kernels_of([TensorType(dtype, shape)] * 2, build, target_named(target_name))
