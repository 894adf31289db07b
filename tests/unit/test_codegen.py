"""Generated functions of numbers: accuracy, special values, conversions."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lowered_runner import Compiled, decoded, random_array, stored

from fusec import symbolic
from fusec.ir import Attrs, Graph, TensorType
from fusec.ir.interpret import interpret
from fusec.lower.codegen_cpp import literal
from fusec.lower.region import Operand, Region, Store, Value, simplified

SIZE = symbolic.symbol("size")

# Domain, and units in the last place that the result may be off; 0.5 is perfect rounding.
FUNCTIONS: dict[str, tuple[float, float, float]] = {
    "exp": (-104, 88.5, 1.5),
    "exp2": (-126, 127.5, 1.5),
    "expm1": (-20, 20, 4),
    "log": (1e-30, 100, 1.5),
    "log2": (1e-30, 100, 2.5),
    "log1p": (-0.99, 50, 4),
    "sqrt": (0, 1e6, 0.51),
    "rsqrt": (1e-6, 1e6, 1.6),
    "reciprocal": (-100, 100, 0.51),
    "sin": (-1e4, 1e4, 2),
    "cos": (-1e4, 1e4, 2),
    "tanh": (-12, 12, 2.5),
    "erf": (-5, 5, 7),
    "sigmoid": (-15, 80, 3),
    "silu": (-15, 80, 4),
    "log_sigmoid": (-80, 30, 4),
    "hardswish": (-5, 5, 2),
    "atan": (-50, 50, 2),
    "sinh": (-20, 20, 2),
}
SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40, 3e38, -3e38], np.float32)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("objects")


def graph_of(dtype: str, build: Callable[[Graph, str], list[str]]) -> Graph:
    graph = Graph("case", {"size": (0, 1 << 20)})
    graph.add_input("x", TensorType(dtype, (SIZE,)))
    graph.outputs = build(graph, "x")
    graph.output_names = [f"y{number}" for number in range(len(graph.outputs))]
    return graph


@pytest.fixture(scope="module")
def unary(cache: Path) -> Compiled:
    return Compiled(
        graph_of("f32", lambda g, x: [g.add(op, [x]).output for op in FUNCTIONS]), cache
    )


@pytest.mark.parametrize("op", FUNCTIONS)
def test_functions_are_accurate(unary: Compiled, op: str) -> None:
    low, high, most = FUNCTIONS[op]
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(low, high, 20_000), rng.uniform(max(low, -1), 1, 20_000)])
    x = x.astype(np.float32)
    name = f"y{list(FUNCTIONS).index(op)}"
    result = unary({"x": x})[name].astype(np.float64)
    right = interpret(unary.graph, {"x": x})[name]
    unit = np.spacing(np.maximum(np.abs(right), 2.0**-126).astype(np.float32)).astype(np.float64)
    error = np.abs(result - right) / unit
    worst = int(np.nanargmax(error))
    assert error[worst] <= most, f"{op}({x[worst]!r}) is {result[worst]!r}"
    assert (np.isnan(result) == np.isnan(right)).all()


def test_logarithms_of_powers_of_two_are_exact(unary: Compiled) -> None:
    exponents = np.arange(-149, 128)
    x = np.ldexp(np.float32(1), exponents).astype(np.float32)
    result = unary({"x": x})[f"y{list(FUNCTIONS).index('log2')}"]
    np.testing.assert_array_equal(result, exponents)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_quotients_by_infinity_are_floored(cache: Path, dtype: str) -> None:
    graph = Graph("case", {"size": (0, 1 << 20)})
    for name in "xy":
        graph.add_input(name, TensorType(dtype, (SIZE,)))
    graph.outputs = [graph.add("floordiv", ["x", "y"]).output]
    graph.output_names = ["floor"]
    kind = np.float32 if dtype == "f32" else np.float64
    x = np.array([1, -1, 0, 1, -1, np.inf, -7, 7, -1e-20, np.nan], kind)
    y = np.array([np.inf, np.inf, -np.inf, -np.inf, -np.inf, 2, 2, -2, 1, 1], kind)
    result = Compiled(graph, cache)({"x": x, "y": y})["floor"]
    right = [0, -1, 0, -1, 0, np.nan, -4, -4, -1, np.nan]
    np.testing.assert_array_equal(result, np.array(right, kind))


def test_special_values(unary: Compiled) -> None:
    results = unary({"x": SPECIAL})
    with np.errstate(all="ignore"):
        expected = interpret(unary.graph, {"x": SPECIAL})
        for number, op in enumerate(FUNCTIONS):
            # An angle of 3e38 has no meaningful sine in f32; six times 3e38 is none at all.
            if op in ("sin", "cos", "hardswish"):
                continue
            right = expected[f"y{number}"].astype(np.float32)
            np.testing.assert_allclose(
                results[f"y{number}"], right, rtol=1e-6, atol=1e-38, err_msg=op
            )


def test_16_bit_floats_round_to_nearest_even(cache: Path) -> None:
    def build(graph: Graph, x: str) -> list[str]:
        return [graph.add("cast", [x], {"dtype": dtype}).output for dtype in ("f16", "bf16")]

    bits = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    ties = (np.arange(1 << 16, dtype=np.uint32) << 16) | 0x8000
    x = np.concatenate([bits, ties, np.arange(1 << 16, dtype=np.uint32) << 16]).view(np.float32)
    compiled = Compiled(graph_of("f32", build), cache)
    results = compiled({"x": x})
    with np.errstate(all="ignore"):
        half = x.astype(np.float16)
    np.testing.assert_array_equal(results["y0"], half)
    finite = ~np.isnan(x)
    np.testing.assert_array_equal(results["y1"][finite], stored(x, "bf16")[finite])
    assert ((results["y1"][~finite] & 0x7FFF) > 0x7F80).all()


def test_16_bit_floats_widen_exactly(cache: Path) -> None:
    def build(graph: Graph, x: str) -> list[str]:
        return [graph.add("cast", [x], {"dtype": "f32"}).output]

    every = np.arange(1 << 16, dtype=np.uint16)
    half = every.view(np.float16)
    result = Compiled(graph_of("f16", build), cache)({"x": half})["y0"]
    np.testing.assert_array_equal(result, half.astype(np.float32))
    wide = Compiled(graph_of("bf16", build), cache)({"x": every})["y0"]
    expected = (every.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(wide, expected)


@pytest.mark.parametrize("dtype", ["f8e4m3fn", "f8e4m3fnuz", "f8e5m2"])
def test_8_bit_floats_are_those_of_torch(cache: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    kind = getattr(torch, "float8_" + dtype.removeprefix("f8"))

    def down(graph: Graph, x: str) -> list[str]:
        narrow = graph.add("cast", [x], {"dtype": dtype}).output
        return [narrow, graph.add("cast", [narrow], {"dtype": "f32"}).output]

    half = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    # What does not fit saturates in some releases of torch and is NaN in others.
    half = half[np.abs(half) < (57344 if dtype == "f8e5m2" else 240)]
    x = np.concatenate([half, np.nextafter(half, np.float32(np.inf)), half * np.float32(0.001)])
    results = Compiled(graph_of("f32", down), cache)({"x": x})
    narrow = torch.from_numpy(x).to(kind)
    np.testing.assert_array_equal(results["y1"], narrow.float().numpy())
    kept = ~np.isnan(results["y1"])
    np.testing.assert_array_equal(results["y0"][kept], narrow.view(torch.uint8).numpy()[kept])


def test_powers(cache: Path) -> None:
    exponents = (2.0, 3, 4.0, 0.5, -0.5, -1.0, 1.0, 1.7, 0.0)

    def build(graph: Graph, x: str) -> list[str]:
        outputs: list[str] = []
        for exponent in exponents:
            attrs = {"value": exponent, "dtype": "f32", "shape": ()}
            held = graph.add("constant", [], attrs).output
            outputs.append(graph.add("pow", [x, held]).output)
        return outputs

    x = np.random.default_rng(0).uniform(0.1, 9, 333).astype(np.float32)
    compiled = Compiled(graph_of("f32", build), cache)
    results = compiled({"x": x})
    for number, exponent in enumerate(exponents):
        right = x.astype(np.float64) ** exponent
        np.testing.assert_allclose(results[f"y{number}"], right, rtol=5e-7)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64", "i32", "bool"])
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_columns_are_reduced_side_by_side(cache: Path, dtype: str, axes: tuple[int, ...]) -> None:
    rows = symbolic.symbol("rows")
    graph = Graph("case", {"rows": (0, 4096)})
    graph.add_input("x", TensorType(dtype, (3, rows, 77)))
    attrs: Attrs = {"axes": axes, "keepdims": True}
    if dtype == "bool":
        graph.outputs = [graph.add(op, ["x"], attrs).output for op in ("reduce_any", "reduce_all")]
    else:
        ops = ["reduce_sum", "reduce_max", "reduce_min"]
        ops += ["reduce_mean"] if TensorType(dtype, ()).element.is_float else []
        graph.outputs = [graph.add(op, ["x"], attrs).output for op in ops]
        raised = graph.add("neg", [graph.outputs[0]]).output
        graph.outputs.append(raised)
    graph.output_names = [f"y{number}" for number in range(len(graph.outputs))]
    compiled = Compiled(graph, cache)
    assert "FUSEC_SIMD" in compiled.lowered.generated_source()
    assert "[64]" in compiled.lowered.generated_source()
    x = random_array(np.random.default_rng(0), (3, 41, 77), dtype)
    if dtype == "f32":
        x[1, 7, 5] = np.nan
    results, expected = compiled({"x": x}), interpret(graph, {"x": x})
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        result = decoded(results[name], graph.type(value).dtype)
        tolerance = 1e-2 if dtype == "bf16" else 1e-5
        np.testing.assert_allclose(
            result.astype(np.float64), expected[name], rtol=tolerance, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64"])
@pytest.mark.parametrize("sign", [0.0, -0.0])
def test_the_largest_and_smallest_of_a_row(cache: Path, dtype: str, sign: float) -> None:
    rows = symbolic.symbol("rows")
    graph = Graph("case", {"rows": (0, 64)})
    graph.add_input("x", TensorType(dtype, (rows, 77)))
    attrs: Attrs = {"axes": (1,), "keepdims": False}
    graph.outputs = [graph.add(op, ["x"], attrs).output for op in ("reduce_max", "reduce_min")]
    graph.output_names = ["most", "least"]
    x = np.random.default_rng(0).standard_normal((8, 77))
    x[1, 5] = np.copysign(np.nan, sign)
    x[2, 76], x[3, 0] = np.inf, -np.inf
    x[4], x[5] = np.inf, -np.inf
    x[6] = np.copysign(x[6], -1)
    x[7] = np.copysign(x[7], 1)
    given = stored(x, dtype)
    exact = decoded(given, dtype).astype(np.float64)
    results = Compiled(graph, cache)({"x": given})
    for name, wanted in (("most", exact.max(axis=1)), ("least", exact.min(axis=1))):
        np.testing.assert_array_equal(decoded(results[name], dtype).astype(np.float64), wanted)


@pytest.mark.parametrize("dtype", ["i32", "i64"])
def test_integers_have_no_mean_of_nothing(cache: Path, dtype: str) -> None:
    attrs: Attrs = {"axes": (0,), "keepdims": False}
    compiled = Compiled(
        graph_of(dtype, lambda g, x: [g.add("reduce_mean", [x], attrs).output]), cache
    )
    x = stored(np.array([-7, 2, 1]), dtype)
    assert compiled({"x": x})["y0"] == -1
    with pytest.raises(AssertionError, match="failed"):
        compiled({"x": x[:0]})


@pytest.mark.parametrize("tokens", [0, 1, 5, 1500])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_functions_of_short_rows_are_computed_along_another_axis(
    cache: Path, dtype: str, tokens: int
) -> None:
    size = symbolic.symbol("tokens")
    graph = Graph("case", {"tokens": (0, 4096)})
    graph.add_input("x", TensorType(dtype, (size, 3, 4)))
    graph.add_input("w", TensorType(dtype, (3, 2)))
    window: Attrs = {"axis": 2, "start": 1, "step": 1, "stop": 3}
    part = graph.add("slice", ["x"], window).output
    total = graph.add("add", [part, "w"]).output
    graph.outputs = [graph.add("sigmoid", [total]).output]
    graph.output_names = ["y"]
    compiled = Compiled(graph, cache)
    assert "r0[j * 12]" in compiled.lowered.generated_source()
    random = np.random.default_rng(0)
    given = {
        "x": random_array(random, (tokens, 3, 4), dtype),
        "w": random_array(random, (3, 2), dtype),
    }
    results, expected = compiled(given), interpret(graph, given)
    got = decoded(results["y"], dtype).astype(np.float64)
    np.testing.assert_allclose(got, expected["y"], rtol=2**-8 if dtype == "bf16" else 1e-6)


@pytest.mark.parametrize("rows", [0, 1, 7, 300])
def test_runs_are_copied_as_they_are(cache: Path, rows: int) -> None:
    size = symbolic.symbol("rows")
    graph = Graph("case", {"rows": (0, 4096)})
    graph.add_input("x", TensorType("bf16", (size, 3, 11)))
    graph.add_input("z", TensorType("bf16", (size, 3, 1)))
    window: Attrs = {"axis": 2, "start": 2, "step": 1, "stop": 9}
    part = graph.add("slice", ["x"], window).output
    wide = graph.add("expand", ["z"], {"shape": (size, 3, 2)}).output
    graph.outputs = [graph.add("concat", [part, wide], {"axis": 2}).output]
    graph.output_names = ["y"]
    compiled = Compiled(graph, cache)
    source = compiled.lowered.generated_source()
    assert source.count("copy_run") == 1
    assert "Narrow" not in source
    # Every pattern of bits, signalling NaNs as well: nothing is computed.
    random = np.random.default_rng(0)
    x, z = (random.integers(0, 1 << 16, (rows, 3, n)).astype(np.uint16) for n in (11, 1))
    wanted = np.concatenate([x[:, :, 2:9], np.repeat(z, 2, axis=2)], axis=2)
    np.testing.assert_array_equal(compiled({"x": x, "z": z})["y"], wanted)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_any_number_of_threads_gives_the_same_bits(cache: Path, threads: int) -> None:
    rows = symbolic.symbol("rows")
    graph = Graph("case", {"rows": (0, 4096)})
    graph.add_input("x", TensorType("f32", (rows, 1000)))
    total = graph.add("reduce_sum", ["x"], {"axes": (1,), "keepdims": True}).output
    graph.outputs = [graph.add("tanh", ["x"]).output, graph.add("div", ["x", total]).output]
    graph.output_names = ["y0", "y1"]
    compiled = Compiled(graph, cache)
    x = np.random.default_rng(0).random((533, 1000), np.float32)
    one, many = compiled({"x": x}, threads=1), compiled({"x": x}, threads=threads)
    for name in one:
        assert one[name].tobytes() == many[name].tobytes()


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (0.1, "float", "0.10000000149011612f"),
        (0.1, "double", "0.1"),
        (1e300, "float", "static_cast<float>(__builtin_inf())"),
        (-math.inf, "double", "-static_cast<double>(__builtin_inf())"),
        (True, "bool", "true"),
        (-(2**63), "int64_t", "static_cast<int64_t>(-9223372036854775807LL - 1)"),
        (3, "int8_t", "static_cast<int8_t>(3)"),
        (2, "float", "2.0f"),
    ],
)
def test_literals(value: float, kind: str, text: str) -> None:
    assert literal(value, kind) == text


def region(axes: tuple[symbolic.Dim, ...], *strides: tuple[symbolic.Dim, ...]) -> Region:
    operands = tuple(Operand("f32", steps) for steps in strides)
    values = tuple(
        Value("load", "f32", (), (("operand", number),)) for number in range(len(strides) - 1)
    )
    return Region(axes, 0, operands, values, (Store(0, len(strides) - 1),))


def test_axes_are_joined_where_every_operand_allows_it() -> None:
    joined = simplified(region((2, SIZE, 1, 8), (8 * SIZE, 8, 5, 1), (8 * SIZE, 8, 8, 1)))
    assert joined.axes == (16 * SIZE,)
    kept = simplified(region((SIZE, 8), (1, SIZE), (8, 1)))
    assert kept.axes == (SIZE, 8)
    spread = simplified(region((SIZE, 4, 8), (0, 0, 1), (32, 8, 1)))
    assert spread.axes == (4 * SIZE, 8)
    assert simplified(region((), (), ())).axes == (1,)
