"""Routed experts on the CPU, in every format of their weights, against the reference in f64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
from cpu_library import (
    DTYPES,
    MATRIX_LEVELS,
    ULP,
    Module,
    assert_close,
    bits,
    blank,
    cpu_library,
    decode,
    encode,
    random,
)

from fusec.formats import decode as decode_format
from fusec.formats import expand_blocks, mx_scaling
from fusec.ir import OPS, Graph, TensorType
from fusec.ir.ops.quantised import mxfp4_values
from fusec.ir.types import Attr
from fusec.ir.weights import from_array
from fusec.kernels.launch import Call, Storage
from fusec.kernels.moe.cpu import rows_in_turn
from fusec.kernels.registry import choose
from fusec.target import Fp32Precision, target_named

experts = cpu_library("moe", levels=MATRIX_LEVELS)

TARGET = target_named("x86-64-v4")
GAP = 3
"""Elements between rows of tokens, of results and of routes."""

PRECISIONS: Mapping[Fp32Precision, float] = {"highest": 5e-7, "high": 4e-5, "medium": 6e-3}
"""Root mean square errors of experts that are never exceeded."""

WHOLE = 256
"""Rows or columns of a block that has all there are."""


@dataclass(frozen=True, slots=True)
class Coded:
    """The weight of one product of all experts.

    Attributes:
        values: [E, N, K] in f64.
        operands: in storage form, each with its dtype.
    """

    values: np.ndarray
    operands: tuple[tuple[np.ndarray, str], ...]


Make = Callable[[np.random.Generator, str, tuple[int, int, int]], Coded]


def plain(rng: np.random.Generator, dtype: str, shape: tuple[int, int, int]) -> Coded:
    """Normal numbers over the root of K."""
    stored = encode(rng.standard_normal(shape) / np.sqrt(shape[2]), dtype)
    return Coded(decode(stored, dtype), ((stored, dtype),))


def mxfp4(rng: np.random.Generator, dtype: str, shape: tuple[int, int, int]) -> Coded:
    """Random codes, with scales from 1/256 to 1/16."""
    count, rows, depth = shape
    codes = rng.integers(0, 256, (count, rows, depth // 2)).astype(np.uint8)
    scale = rng.integers(119, 124, (count, rows, depth // 32)).astype(np.uint8)
    values = mxfp4_values(codes, decode_format(scale, "e8m0"))
    return Coded(values, ((codes, "f4e2m1x2"), (scale, "e8m0")))


def fp8(block: tuple[int, int]) -> Make:
    """Random codes that are numbers, with a scale for each block."""

    def make(rng: np.random.Generator, dtype: str, shape: tuple[int, int, int]) -> Coded:
        count, rows, depth = shape
        codes = rng.integers(0, 256, shape).astype(np.uint8)
        codes[(codes & 0x7F) == 0x7F] = 0x01
        blocks = (-(-rows // block[0]), -(-depth // block[1]))
        scale = rng.uniform(0.5, 2, (count, *blocks)).astype(np.float32)
        scale /= np.float32(100 * np.sqrt(depth))
        values = decode_format(codes, "f8e4m3fn") * expand_blocks(scale, block, shape)
        return Coded(values, ((codes, "f8e4m3fn"), (scale, "f32")))

    return make


FORMATS: Mapping[str, tuple[str, Make, Mapping[str, Attr]]] = {
    "plain": ("moe", plain, {"transposed": False}),
    "mxfp4": ("moe_mxfp4", mxfp4, {"has_x_scale": False, "hidden_pad": 0, "intermediate_pad": 0}),
    "fp8-block": ("moe_fp8", fp8((64, 32)), {"weight_block": (64, 32)}),
    "fp8-token": ("moe_fp8", fp8((1, WHOLE)), {"weight_block": (1, WHOLE)}),
    "fp8-tensor": ("moe_fp8", fp8((WHOLE, WHOLE)), {"weight_block": (WHOLE, WHOLE)}),
}
"""The operation, how weights are drawn, and attributes beside those of `moe`."""


@dataclass(frozen=True, slots=True)
class Case:
    """Experts and how tokens are routed.

    Attributes:
        format: a key of `FORMATS`.
        dtype: of the tokens.
        tokens, count, top_k, hidden, inner: sizes.
        activation, layout, gated, has_bias: as in `moe`.
        routes: `random` without the third expert, `one` for all, or `outside` for some.
        shares: dtype of the routing weights.
        indices: dtype of the expert indices.
        precision: of products of f32.
    """

    format: str = "plain"
    dtype: str = "f32"
    tokens: int = 7
    count: int = 5
    top_k: int = 3
    hidden: int = 96
    inner: int = 64
    activation: str = "silu"
    layout: str = "split"
    gated: bool = True
    has_bias: bool = False
    routes: str = "random"
    shares: str = "f32"
    indices: str = "i64"
    precision: Fp32Precision = "highest"

    def attrs(self) -> dict[str, Attr]:
        """Of the node."""
        op, _, extra = FORMATS[self.format]
        given: dict[str, Attr] = {
            "activation": self.activation,
            "alpha": 1.702,
            "limit": 0.75,
            "gate_up_layout": self.layout,
            "gated": self.gated,
            "has_bias": self.has_bias,
            **extra,
        }
        return given if op == "moe" else {**given, "dtype": self.dtype}


def routed(rng: np.random.Generator, case: Case) -> np.ndarray:
    """Indices of experts [T, k]."""
    shape = (case.tokens, case.top_k)
    if case.routes == "one":
        return np.full(shape, case.count - 1)
    others = np.delete(np.arange(case.count), 2)
    rows = [rng.permutation(others)[: case.top_k] for _ in range(case.tokens)]
    chosen = np.array(rows, np.int64).reshape(shape)
    if case.routes == "outside":
        chosen[::2, 0], chosen[1::3, -1] = -1, case.count
    return chosen


def with_gaps(values: np.ndarray) -> np.ndarray:
    """Rows with GAP elements behind each, ones in their place."""
    return np.concatenate([values, np.ones((len(values), GAP), values.dtype)], axis=1)


@dataclass(frozen=True, slots=True)
class Problem:
    """A launch and what it should give.

    Attributes:
        symbol: the kernel.
        buffers: what it is passed, the result last.
        params: its parameters.
        expected: the result [T, H] in f64.
    """

    symbol: str
    buffers: list[np.ndarray]
    params: list[int]
    expected: np.ndarray


def problem(case: Case, seed: int = 0) -> Problem:
    """Random operands of `case`, packed by the record of the kernel."""
    rng = np.random.default_rng([seed, case.tokens, case.inner])
    op, make, _ = FORMATS[case.format]
    columns = case.inner * (2 if case.gated else 1)
    gate_up = make(rng, case.dtype, (case.count, columns, case.hidden))
    down = make(rng, case.dtype, (case.count, case.hidden, case.inner))
    chosen = routed(rng, case)
    rows = [
        (random(rng, (case.tokens, case.hidden), case.dtype), case.dtype),
        (encode(rng.random(chosen.shape).astype(np.float32), case.shares), case.shares),
        (chosen.astype(np.int64 if case.indices == "i64" else np.int32), case.indices),
    ]
    weights = [*gate_up.operands, *down.operands]
    if case.has_bias:
        shapes = ((case.count, columns), (case.count, case.hidden))
        weights += [(random(rng, shape, case.dtype), case.dtype) for shape in shapes]

    graph = Graph()
    names = [
        graph.add_input(f"r{i}", TensorType(kind, v.shape)) for i, (v, kind) in enumerate(rows)
    ]
    for i, (values, kind) in enumerate(weights):
        names.append(graph.add_parameter(f"w{i}", from_array(f"w{i}", kind, values)))
    node = graph.add(op, names, case.attrs())
    choice = choose(graph, node, TARGET)
    assert choice.kernel is not None, choice.reason
    packings = choice.kernel.packing(graph, node, TARGET)

    buffers = [with_gaps(values) for values, _ in rows]
    storages = [
        Storage(i, kind, values.shape, (values.shape[1] + GAP, 1))
        for i, (values, kind) in enumerate(rows)
    ]
    for i, name in enumerate(names[3:], start=3):
        weight = graph.parameters[name]
        stored = packings[i](weight) if i in packings else weight
        buffers.append(stored.load())
        assert buffers[-1].shape == stored.shape
        storages.append(Storage(i, "u8", (buffers[-1].nbytes,), (1,)))
    out = Storage(len(buffers), case.dtype, (case.tokens, case.hidden), (case.hidden + GAP, 1))
    buffers.append(blank((case.tokens, case.hidden + GAP), case.dtype))
    target = replace(TARGET, fp32_precision=case.precision)
    (launch,) = choice.kernel.launches(Call(graph, node, target, tuple(storages), (out,)))
    assert [operand.buffer for operand in launch.operands] == list(range(len(buffers)))

    seen = [decode(values, kind) if kind in ULP else values for values, kind in rows]
    seen += [gate_up.values, down.values, *(decode(b, case.dtype) for b, _ in weights[-2:])]
    wide = seen[: 5 + 2 * case.has_bias]
    types = (TensorType("f32", (case.tokens, case.hidden)),)
    (expected,) = OPS["moe"].reference(wide, {**case.attrs(), "transposed": False}, types)
    numbers = [bits(p) if isinstance(p, float) else int(str(p)) for p in launch.params]
    return Problem(launch.symbol, buffers, numbers, expected)


def result(library: Module, given: Problem) -> np.ndarray:
    """The result [T, H] in storage form."""
    rows = library.call(given.symbol, given.buffers, given.params)[-1]
    assert rows[:, -GAP:].tobytes() == given.buffers[-1][:, -GAP:].tobytes(), "between the rows"
    return rows[:, :-GAP]


def check(library: Module, case: Case) -> None:
    given = problem(case)
    out = decode(result(library, given), case.dtype)
    scale = max(1.0, float(np.abs(given.expected).max(initial=0)))
    # Activated rows are rounded to the dtype of the tokens; with few bits in the weights, few rows
    # of bf16 may be taken as 16-bit integers.
    slack = 2e-6 if case.dtype == "f32" else 4e-5
    assert_close(out / scale, given.expected / scale, 4 * ULP[case.dtype] + slack)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", FORMATS)
def test_tokens(experts: Module, format: str, dtype: str) -> None:
    for tokens in (0, 1, 2, 9, 40, 330):
        check(experts, Case(format, dtype, tokens))


@pytest.mark.parametrize("format", FORMATS)
def test_kinds(experts: Module, format: str) -> None:
    oai = Case(format, "bf16", activation="swiglu_oai", layout="interleaved", has_bias=True)
    check(experts, oai)
    check(experts, replace(oai, dtype="f32", layout="split", shares="f32", indices="i32"))
    check(experts, replace(oai, shares="bf16", top_k=1))
    check(experts, Case(format, "f16", activation="gelu", has_bias=True))
    check(experts, Case(format, "f32", activation="relu2", gated=False, has_bias=True))


@pytest.mark.parametrize("format", FORMATS)
def test_routes(experts: Module, format: str) -> None:
    for tokens in (5, 200):
        check(experts, Case(format, "bf16", tokens, routes="one"))
        check(experts, Case(format, "bf16", tokens, routes="outside"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_sizes(experts: Module, dtype: str) -> None:
    """Sizes that are not whole panels, of experts and of what they share scales in."""
    for hidden, inner in ((1, 1), (33, 5), (130, 31)):
        check(experts, Case("plain", dtype, 11, hidden=hidden, inner=inner))
        check(experts, Case("fp8-token", dtype, 11, hidden=hidden, inner=inner))
    for hidden, inner in ((32, 32), (160, 96)):
        check(experts, Case("mxfp4", dtype, 11, hidden=hidden, inner=inner))
        check(experts, Case("fp8-block", dtype, 11, hidden=hidden + 8, inner=inner - 7))


def rms_error(library: Module, case: Case) -> float:
    """Relative to the result."""
    given = problem(case)
    difference = decode(result(library, given), case.dtype) - given.expected
    return float(np.sqrt(np.mean(difference**2) / np.mean(given.expected**2)))


@pytest.mark.parametrize(("precision", "most"), PRECISIONS.items())
def test_precision(experts: Module, precision: Fp32Precision, most: float) -> None:
    """Of blocks of many rows and few, with sizes that are not whole panels or tiles."""
    for hidden, inner, routes in ((1000, 45, "random"), (70, 130, "outside"), (37, 300, "one")):
        case = Case(tokens=90, hidden=hidden, inner=inner, routes=routes, precision=precision)
        assert rms_error(experts, case) < most
        biased = replace(case, has_bias=True, gated=False, activation="relu2")
        assert rms_error(experts, biased) < 2 * most


@pytest.mark.parametrize("experts", ["emulated"], indirect=True)
def test_tiles_have_the_bits_that_are_asked_for(experts: Module) -> None:
    """Many rows are multiplied in planes: fewer of them are less accurate; few rows are not."""
    errors = [rms_error(experts, Case(tokens=90, precision=each)) for each in PRECISIONS]
    assert errors[2] > 1e-3 > 1e-5 > errors[1] > 10 * errors[0]
    assert rms_error(experts, Case(tokens=20, precision="medium")) < PRECISIONS["highest"]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_every_number_of_rows(experts: Module, dtype: str) -> None:
    """Around those from which on rows are tiles, and where blocks of them end."""
    for tokens in (31, 32, 33, 48, 65, 144, 145, 161, 300):
        check(experts, Case("plain", dtype, tokens, top_k=1, hidden=40, inner=33, routes="one"))


def test_infinity_reaches_only_its_token(experts: Module) -> None:
    """In a token, and where a sum or an activation is first too large for f32."""
    given = problem(Case(tokens=80, top_k=1, routes="one"))
    before = result(experts, given)
    x = given.buffers[0]
    x[3, 5], x[20, 7], x[41, :96] = np.inf, np.nan, 1e30
    after = result(experts, given)
    assert not np.isfinite(after[3]).any() and np.isnan(after[20]).all()
    assert not np.isfinite(after[41]).any()
    others = np.delete(np.arange(80), [3, 20, 41])
    assert_close(after[others], before[others], 2e-6)


@pytest.mark.parametrize("format", ["plain", "mxfp4", "fp8-block"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_threads_do_not_change_the_result(experts: Module, format: str, dtype: str) -> None:
    for tokens in (1, 6, 170):
        case = Case(format, dtype, tokens, hidden=256, inner=128, routes="outside")
        given = problem(case, seed=1)
        experts.threads(1)
        alone = result(experts, given).tobytes()
        for threads in (2, 3, 5):
            experts.threads(threads)
            assert result(experts, given).tobytes() == alone


def test_a_doubled_answer_fails(experts: Module) -> None:
    given = problem(Case())
    out = decode(result(experts, given), "f32")
    with pytest.raises(AssertionError, match="error"):
        assert_close(2 * out, given.expected, 0.05)


def test_rows_in_turn() -> None:
    rows = np.arange(2 * 70).reshape(70, 2)
    turns = rows_in_turn(rows, "split", fill=-1).reshape(2, 2, 32, 2)
    assert (turns[0, 0] == rows[:32]).all() and (turns[0, 1] == rows[35:67]).all()
    assert (turns[1, 0, :3] == rows[32:35]).all() and (turns[1, 1, :3] == rows[67:]).all()
    assert (turns[1, :, 3:] == -1).all()
    woven = rows.reshape(2, 35, 2).swapaxes(0, 1).reshape(70, 2)
    assert (rows_in_turn(woven, "interleaved", fill=-1).reshape(turns.shape) == turns).all()


@pytest.mark.parametrize(
    ("format", "attrs", "reason"),
    [
        ("mxfp4", {"has_x_scale": True}, "without scales"),
        ("fp8-block", {"weight_block": (64, 48)}, "multiple of 32"),
        ("fp8-token", {"dtype": "bf16"}, "dtype of the tokens"),
    ],
)
def test_refusals(format: str, attrs: Mapping[str, Attr], reason: str) -> None:
    case = Case(format)
    op, make, _ = FORMATS[format]
    if "weight_block" in attrs:
        make = fp8((64, 48))
    rng = np.random.default_rng(0)
    graph = Graph()
    x = TensorType("f32", (3, 96))
    given = [x, TensorType("f32", (3, 2)), TensorType("i64", (3, 2))]
    if "has_x_scale" in attrs:
        given = [TensorType("f8e4m3fn", (3, 96)), TensorType("e8m0", (3, 3)), *given[1:]]
        attrs = {**attrs, **mx_scaling("f8e4m3fn", "even").attrs()}
    names = [graph.add_input(f"r{i}", kind) for i, kind in enumerate(given)]
    for shape in ((5, 128, 96), (5, 96, 64)):
        for values, kind in make(rng, "f32", shape).operands:
            name = f"w{len(names)}"
            names.append(graph.add_parameter(name, from_array(name, kind, values)))
    node = graph.add(op, names, {**case.attrs(), **attrs})
    assert reason in choose(graph, node, TARGET).reason
