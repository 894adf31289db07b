"""Passes and lowering keep the meaning of graphs that nobody wrote: idioms, near misses, soup."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from lowered_runner import Compiled, assert_close, inputs_of

from fusec.ir import Graph, TensorType, parse_graph, print_graph
from fusec.ir.interpret import interpret
from fusec.ir.types import broadcast
from fusec.passes import PIPELINE
from fusec.rewrite import DecisionLog, run_pipeline
from fusec.symbolic import symbol
from fusec.target import target_named

N = symbol("n")
TARGET = target_named("x86-64-v3")
UNARY = ("neg", "sigmoid", "silu", "tanh", "exp", "rsqrt", "sqrt", "reciprocal", "erf", "relu")
BINARY = ("add", "mul", "sub", "div", "maximum")
NUMBERS = (0.0, 1.0, 2.0, 0.5, -1.0, 1.702, 1e-6, 6.0, 0.7071067811865476)


def rows(graph: Graph) -> list[str]:
    """The latest values that look like a hidden state, so that steps build on one another."""
    return [v for v in _floats(graph) if graph.type(v).shape == (N, 4, 6)][-3:]


def _floats(graph: Graph) -> list[str]:
    """What steps left unread, and now and then what they computed on the way."""
    made = [value for node in graph.nodes() for value in node.outputs]
    last = [v for v in made if not graph.users(v)] + made[::7]
    values = [*graph.inputs, *last]
    return [v for v in values if graph.type(v).element.is_float and graph.type(v).rank > 0]


def one(graph: Graph, op: str, inputs: list[str], **attrs: object) -> str:
    return graph.add(op, inputs, attrs).output  # type: ignore[arg-type]


def number(graph: Graph, value: float, dtype: str) -> str:
    return one(graph, "constant", [], value=value, dtype=dtype, shape=())


def alike(graph: Graph, value: str, dtype: str) -> str:
    if graph.type(value).dtype == dtype:
        return value
    return one(graph, "cast", [value], dtype=dtype)


@st.composite
def soups(draw: DrawFn) -> Graph:
    """A graph of some twenty operations over two inputs, a vector and numbers."""
    graph = Graph("soup", {"n": (1, 8)})
    dtype = draw(st.sampled_from(["f32", "bf16"]))
    for name in ("x", "z"):
        graph.add_input(name, TensorType(dtype, (N, 4, 6)))
    graph.add_input("w", TensorType(dtype, (6,)))
    for _ in range(draw(st.integers(4, 16))):
        draw(st.sampled_from(STEPS))(graph, draw)
    finals = [v for v in _floats(graph) if not graph.users(v)]
    for value in finals + draw(st.lists(st.sampled_from(_floats(graph)), max_size=1)):
        graph.outputs.append(value)
        graph.output_names.append(f"out{len(graph.outputs)}")
    graph.verify()
    return graph


def unary(graph: Graph, draw: DrawFn) -> None:
    one(graph, draw(st.sampled_from(UNARY)), [draw(st.sampled_from(_floats(graph)))])


def binary(graph: Graph, draw: DrawFn) -> None:
    a = draw(st.sampled_from(_floats(graph)))
    kind = graph.type(a)
    others = [v for v in _floats(graph) if _fits(graph, a, v)]
    b = draw(st.sampled_from(others))
    if draw(st.integers(0, 2)) == 0:
        b = number(graph, draw(st.sampled_from(NUMBERS)), kind.dtype)
    pair = [a, alike(graph, b, kind.dtype)]
    one(graph, draw(st.sampled_from(BINARY)), draw(st.permutations(pair)))


def _fits(graph: Graph, a: str, b: str) -> bool:
    first, second = graph.type(a).shape, graph.type(b).shape
    pairs = zip(first[::-1], second[::-1], strict=False)
    return all(x == y or 1 in (x, y) for x, y in pairs) and len(broadcast(first, second)) <= 4


def power(graph: Graph, draw: DrawFn) -> None:
    value = draw(st.sampled_from(_floats(graph)))
    exponent = draw(st.sampled_from([2.0, 3.0, 0.5, -0.5, 1.0]))
    one(graph, "pow", [value, number(graph, exponent, graph.type(value).dtype)])


def cast(graph: Graph, draw: DrawFn) -> None:
    value = draw(st.sampled_from(_floats(graph)))
    one(graph, "cast", [value], dtype=draw(st.sampled_from(["f32", "bf16", "f16"])))


def reduce(graph: Graph, draw: DrawFn) -> None:
    value = draw(st.sampled_from(_floats(graph)))
    axis = draw(st.sampled_from([-1, graph.type(value).rank - 1, 0]))
    op = draw(st.sampled_from(["reduce_mean", "reduce_sum", "reduce_max"]))
    one(graph, op, [value], axes=(axis,), keepdims=draw(st.booleans()))


def view(graph: Graph, draw: DrawFn) -> None:
    value = draw(st.sampled_from(_floats(graph)))
    shape = graph.type(value).shape
    match draw(st.sampled_from(["reshape", "transpose", "slice", "concat", "expand"])):
        case "reshape" if shape == (N, 4, 6):
            wanted = draw(st.sampled_from([(N, 24), (N, 2, 2, 6), (1, N, 4, 6), (N, 4, 2, 3)]))
            one(graph, "reshape", [value], shape=wanted)
        case "reshape":
            one(graph, "reshape", [value], shape=(1, *shape))
        case "transpose":
            one(graph, "transpose", [value], perm=tuple(draw(st.permutations(range(len(shape))))))
        case "slice" if isinstance(shape[-1], int) and shape[-1] > 1:
            start = draw(st.integers(0, shape[-1] - 1))
            stop = draw(st.integers(start + 1, shape[-1]))
            step = draw(st.integers(1, 2))
            bounds = {"start": start, "stop": stop, "step": step}
            one(graph, "slice", [value], axis=len(shape) - 1, **bounds)
        case "concat":
            last = len(shape) - 1
            fitting = [
                v
                for v in _floats(graph)
                if graph.type(v).shape[:-1] == shape[:-1]
                and graph.type(v).dtype == graph.type(value).dtype
            ]
            parts = draw(st.lists(st.sampled_from(fitting), min_size=1, max_size=3))
            one(graph, "concat", parts, axis=last)
        case "expand":
            one(graph, "expand", [value], shape=(2, *shape) if len(shape) < 4 else shape)


def norm(graph: Graph, draw: DrawFn) -> None:
    """A root mean square norm, now and then with one operand exchanged for another value."""
    x, other = (draw(st.sampled_from(rows(graph))) for _ in range(2))
    near_miss = draw(st.integers(0, 3)) == 0
    wide = alike(graph, x, "f32")
    squared = alike(graph, other, "f32") if near_miss else wide
    square = one(graph, "mul", [wide, squared])
    op = draw(st.sampled_from(["reduce_mean", "reduce_sum"]))
    axis = draw(st.sampled_from([-1, -1, -1, 1]))
    mean = one(graph, op, [square], axes=(axis,), keepdims=True)
    shifted = one(graph, "add", [mean, number(graph, 1e-6, "f32")])
    normed = one(graph, "mul", [wide, one(graph, "rsqrt", [shifted])])
    normed = alike(graph, normed, draw(st.sampled_from(["f32", graph.type(x).dtype])))
    weight = alike(graph, "w", graph.type(normed).dtype)
    if draw(st.booleans()):
        weight = one(graph, "add", [weight, number(graph, 1.0, graph.type(weight).dtype)])
    one(graph, "mul", draw(st.permutations([normed, weight])))


def gate(graph: Graph, draw: DrawFn) -> None:
    """An activation times something of its shape, often a norm."""
    x, y = draw(st.sampled_from(rows(graph))), rows(graph)[-1]
    act = one(graph, draw(st.sampled_from(["silu", "sigmoid"])), [alike(graph, x, "f32")])
    product = one(graph, "mul", draw(st.permutations([act, alike(graph, y, "f32")])))
    alike(graph, product, graph.type(x).dtype)


def residual(graph: Graph, draw: DrawFn) -> None:
    """A sum, and a norm of it."""
    x, y = (draw(st.sampled_from(rows(graph))) for _ in range(2))
    total = one(graph, "add", [x, alike(graph, y, graph.type(x).dtype)])
    attrs = {"eps": 1e-5, "has_weight": True, "weight_offset": 0}
    one(graph, "rms_norm", [total, "w"], **attrs)


def rotation(graph: Graph, draw: DrawFn) -> None:
    """A rotary embedding over the last axis, with tables that may or may not repeat."""
    x = draw(st.sampled_from(rows(graph)))
    dtype = graph.type(x).dtype
    table = alike(graph, draw(st.sampled_from(rows(graph))), dtype)
    bounds = {"start": 0, "stop": 3, "step": 1}
    half = one(graph, "slice", [table], axis=2, **bounds)
    full = one(graph, "concat", [half, half if draw(st.booleans()) else _flip(graph, half)], axis=2)
    cos, sin = one(graph, "cos", [full]), one(graph, "sin", [full])
    near_miss = draw(st.integers(0, 3)) == 0
    base = alike(graph, draw(st.sampled_from(rows(graph))), dtype) if near_miss else x
    low = one(graph, "slice", [base], axis=2, **bounds)
    high = one(graph, "slice", [base], axis=2, start=3, stop=6, step=1)
    pair = [one(graph, "neg", [high]), low]
    turned = one(graph, "concat", pair if draw(st.integers(0, 3)) else pair[::-1], axis=2)
    terms = [one(graph, "mul", [x, cos]), one(graph, "mul", [turned, sin])]
    one(graph, "add", draw(st.permutations(terms)))


def _flip(graph: Graph, value: str) -> str:
    return one(graph, "flip", [value], axes=(2,))


STEPS = (unary, binary, power, cast, reduce, view, view, norm, norm, gate, gate, residual, rotation)


@pytest.mark.parametrize("verify_each", [True])
@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(graph=soups(), seed=st.integers(0, 3))
def test_passes_keep_the_meaning(graph: Graph, seed: int, verify_each: bool) -> None:
    random = np.random.default_rng(seed)
    inputs = {"x": random.standard_normal((3, 4, 6)), "z": random.standard_normal((3, 4, 6))}
    inputs["w"] = random.standard_normal(6)
    expected = interpret(graph, inputs)
    before, log = print_graph(graph), DecisionLog()
    run_pipeline([each() for each in PIPELINE], graph, TARGET, log, verify_each=verify_each)
    actual = interpret(graph, inputs)
    for name, value in expected.items():
        np.testing.assert_allclose(
            actual[name], value, rtol=1e-6, atol=1e-6, err_msg=f"{before}\n{print_graph(graph)}"
        )
    after = print_graph(graph)
    for each in PIPELINE:
        each().run(graph, TARGET, DecisionLog())
    assert print_graph(graph) == after, "a second run of the pipeline rewrites something"


@pytest.mark.slow
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(graph=soups())
def test_lowering_keeps_the_meaning(graph: Graph, tmp_path: Path) -> None:
    """On the CPU; in f32 alone, for roundings of narrower types add up."""
    assume(all(graph.type(v).dtype == "f32" for node in graph.nodes() for v in node.outputs))
    written = parse_graph(print_graph(graph))
    run_pipeline([each() for each in PIPELINE], graph, TARGET, DecisionLog())
    compiled = Compiled(graph, tmp_path)
    for n in (3, 1, 8):
        inputs = inputs_of(written, n, n=n)
        assert_close(written, compiled(inputs), inputs)


def test_soups_hold_what_they_are_for() -> None:
    """The strategy makes graphs in which fusions fire and are refused."""
    fired: set[str] = set()
    refused: set[str] = set()

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(graph=soups())
    def collect(graph: Graph) -> None:
        log = DecisionLog()
        run_pipeline([each() for each in PIPELINE], graph, TARGET, log)
        fired.update(log.fired())
        refused.update(decision.fusion for decision in log.refused())

    collect()
    assert {"gated_rms_norm", "rope", "silu_mul", "add_rms_norm"} <= fired
    assert {"rope", "silu_mul"} <= refused
