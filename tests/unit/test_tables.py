"""Which tables of cosines and sines are known to hold each angle twice."""

from __future__ import annotations

import numpy as np
import pytest

from fusec.ir import Graph, TensorType, parse_graph
from fusec.ir.interpret import interpret
from fusec.ir.weights import from_array
from fusec.passes.tables import angles_repeat

HEAD = "graph @main(%f: f32[n, 4], %i: i64[n]) symbols(n in [1, 64]) {\n"
BODIES = {
    "joined with itself": "%t: f32[n, 8] = concat(%f, %f) {axis = 1}",
    "joined with another": """%g: f32[n, 4] = neg(%f)
        %t: f32[n, 8] = concat(%f, %g) {axis = 1}""",
    "sections, twice": """%a: f32[n, 1] = slice(%f) {axis = 1, start = 0, stop = 1, step = 1}
        %b: f32[n, 3] = slice(%f) {axis = 1, start = 1, stop = 4, step = 1}
        %t: f32[n, 8] = concat(%b, %a, %b, %a) {axis = 1}""",
    "sections turned": """%a: f32[n, 2] = slice(%f) {axis = 1, start = 0, stop = 2, step = 1}
        %b: f32[n, 2] = slice(%f) {axis = 1, start = 2, stop = 4, step = 1}
        %t: f32[n, 8] = concat(%a, %b, %b, %a) {axis = 1}""",
    "each element repeated": """%a: f32[n, 4, 1] = reshape(%f) {shape = [<n>, 4, 1]}
        %b: f32[n, 4, 2] = expand(%a) {shape = [<n>, 4, 2]}
        %t: f32[n, 8] = reshape(%b) {shape = [<n>, 8]}""",
    "stacked with itself": """%a: f32[n, 4, 1] = reshape(%f) {shape = [<n>, 4, 1]}
        %b: f32[n, 4, 2] = concat(%a, %a) {axis = 2}
        %t: f32[n, 8] = reshape(%b) {shape = [<n>, 8]}""",
    "rows repeated": """%a: f32[n, 1, 4] = reshape(%f) {shape = [<n>, 1, 4]}
        %b: f32[n, 2, 4] = expand(%a) {shape = [<n>, 2, 4]}
        %t: f32[n, 8] = reshape(%b) {shape = [<n>, 8]}""",
    "through arithmetic and views": """%a: f32[n, 8] = concat(%f, %f) {axis = 1}
        %b: f32[n, 8] = cos(%a)
        %s: f32[] = constant() {value = 1.5, dtype = "f32", shape = []}
        %c: f32[n, 8] = mul(%b, %s)
        %d: bf16[n, 8] = cast(%c) {dtype = "bf16"}
        %e: bf16[n, 8] = take(%d, %i) {axis = 0}
        %t: bf16[n, 1, 8] = reshape(%e) {shape = [<n>, 1, 8]}""",
    "summed with a row that does not repeat": """%a: f32[n, 8] = concat(%f, %f) {axis = 1}
        %r: f32[8] = iota() {size = 8, start = 0, step = 1, dtype = "f32"}
        %t: f32[n, 8] = add(%a, %r)""",
    "rows cut to another width": """%a: f32[n, 8] = concat(%f, %f) {axis = 1}
        %t: f32[n, 6] = slice(%a) {axis = 1, start = 1, stop = 7, step = 1}""",
    "a scan along the row": """%a: f32[n, 8] = concat(%f, %f) {axis = 1}
        %t: f32[n, 8] = cumsum(%a) {axis = 1}""",
    "turned": """%a: f32[8, n] = expand(%i2) {shape = [8, <n>]}
        %t: f32[n, 8] = transpose(%a) {perm = [1, 0]}""",
}
HALVES = {
    "joined with itself",
    "sections, twice",
    "rows repeated",
    "through arithmetic and views",
}
PAIRS = {"each element repeated", "stacked with itself"}


def _graph(body: str) -> Graph:
    extra = (
        '%c0: f32[n] = cast(%i) {dtype = "f32"}\n%i2: f32[1, n] = reshape(%c0) {shape = [1, <n>]}\n'
    )
    return parse_graph(f'{HEAD}{extra if "%i2" in body else ""}{body}\n  return %t as "t"\n}}\n')


@pytest.mark.parametrize("title", BODIES)
def test_what_is_known_of_a_computed_table(title: str) -> None:
    graph = _graph(BODIES[title])
    assert angles_repeat(graph, "t", pairs=False) == (title in HALVES)
    assert angles_repeat(graph, "t", pairs=True) == (title in PAIRS)


@pytest.mark.parametrize("title", sorted(HALVES | PAIRS))
def test_what_is_known_is_true(title: str) -> None:
    random = np.random.default_rng(0)
    inputs = {"f": random.standard_normal((5, 4)), "i": random.integers(0, 5, 5)}
    table = interpret(_graph(BODIES[title]), inputs)["t"]
    if title in HALVES:
        assert (table[..., :4] == table[..., 4:]).all()
    else:
        assert (table[..., ::2] == table[..., 1::2]).all()


@pytest.mark.parametrize("kind", ["halves", "pairs", "neither"])
def test_a_stored_table_is_read(kind: str) -> None:
    random = np.random.default_rng(0)
    half = random.standard_normal((7, 4)).astype(np.float32)
    table = {
        "halves": np.concatenate([half, half], axis=1),
        "pairs": np.repeat(half, 2, axis=1),
        "neither": random.standard_normal((7, 8)).astype(np.float32),
    }[kind]
    graph = Graph("main", {"n": (1, 64)})
    graph.add_parameter("t", from_array("cos", "f32", table))
    assert angles_repeat(graph, "t", pairs=False) == (kind == "halves")
    assert angles_repeat(graph, "t", pairs=True) == (kind == "pairs")


def test_a_walk_that_is_too_long_ends_with_no() -> None:
    graph = Graph("main", {"n": (1, 64)})
    value = graph.add_input("f", TensorType("f32", (4,)))
    value = graph.add("concat", [value, value], {"axis": 0}).output
    for _ in range(20):
        value = graph.add("exp", [value]).output
    assert angles_repeat(graph, value, pairs=False)
    for _ in range(20):
        value = graph.add("exp", [value]).output
    assert not angles_repeat(graph, value, pairs=False)
