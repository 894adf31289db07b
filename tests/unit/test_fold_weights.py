"""Weights computed when the artifact is written: what they hold, and when they are made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusec.diagnostics import InputError
from fusec.dtypes import f32_to_bf16
from fusec.ir import Graph, Weight, parse_graph
from fusec.ir.interpret import encoded, interpret
from fusec.ir.weights import Bits, from_array
from fusec.passes.fold_weights import FoldWeights
from fusec.rewrite import DecisionLog
from fusec.target import target_named

DECAY = """
graph @main(%x: f32[n, 5]) symbols(n in [1, 64]) {
  param %A_log: bf16[5] = "A_log"
  param %dt: f32[3, 5] = "dt"
  %wide: f32[5] = cast(%A_log) {dtype = "f32"}
  %exp: f32[5] = exp(%wide)
  %decay: f32[5] = neg(%exp)
  %all: f32[3, 5] = mul(%dt, %decay)
  %sum: f32[1, 5] = reduce_sum(%all) {axes = [0], keepdims = true}
  %narrow: bf16[1, 5] = cast(%sum) {dtype = "bf16"}
  %back: f32[1, 5] = cast(%narrow) {dtype = "f32"}
  %both: f32[2, 5] = concat(%back, %back) {axis = 0}
  %last: f32[1, 5] = slice(%both) {axis = 0, start = 1, step = 1, stop = 2}
  %y: f32[n, 5] = mul(%x, %last)
  return %y as "y"
}
"""


def _graph(text: str = DECAY, seed: int = 0) -> Graph:
    """The graph with random weights."""
    graph, random = parse_graph(text), np.random.default_rng(seed)
    for value, weight in graph.parameters.items():
        array = random.standard_normal(weight.shape)
        held = from_array(weight.name, weight.type.dtype, encoded(array, weight.type.dtype))
        graph._parameters[value] = held
    return graph


def _folded(graph: Graph) -> Graph:
    made = graph.copy()
    assert FoldWeights().run(made, target_named("x86-64-v3"), DecisionLog()) > 0
    made.verify()
    return made


@pytest.mark.parametrize("seed", range(3))
def test_values_are_those_of_the_model_rounded_where_it_rounds(seed: int) -> None:
    before = _graph(seed=seed)
    after = _folded(before)
    (weight,) = after.parameters.values()
    assert weight.load().dtype == np.float32
    assert np.array_equal(weight.load()[0], weight.load()[1])
    assert not np.any(weight.load().view(np.uint32) & 0xFFFF), "it was rounded to bf16"
    x = np.random.default_rng(seed).standard_normal((7, 5))
    (wanted,), (got,) = (interpret(each, {"x": x}).values() for each in (before, after))
    np.testing.assert_allclose(got, wanted, rtol=2**-8)


def test_what_only_looks_at_a_weight_stays() -> None:
    after = _folded(_graph())
    assert [node.op for node in after.nodes()] == ["slice", "mul"]
    (weight,) = after.parameters.values()
    assert weight.made_from == ("dt", "A_log")
    assert weight.packing.startswith("computed by concat")


def test_nothing_is_read_before_it_is_written() -> None:
    graph, reads = _graph(), []

    def counted(weight: Weight) -> Weight:
        def read() -> Bits:
            reads.append(weight.name)
            return weight.load()

        return replace(weight, read=read)

    for value, weight in graph.parameters.items():
        graph._parameters[value] = counted(weight)
    (weight,) = _folded(graph).parameters.values()
    assert reads == []
    weight.load()
    assert set(reads) == {"dt", "A_log"}


def test_a_source_without_values_has_none_for_what_is_computed() -> None:
    (weight,) = _folded(parse_graph(DECAY)).parameters.values()
    assert weight.read is None
    with pytest.raises(InputError, match="no values for"):
        weight.load()


def test_equal_arithmetic_on_equal_weights_is_one_weight() -> None:
    first, second = (_folded(_graph()).parameters.values() for _ in range(2))
    assert [each.identity for each in first] == [each.identity for each in second]
    others = _folded(_graph(DECAY.replace("reduce_sum", "reduce_max"))).parameters.values()
    assert [each.identity for each in first] != [each.identity for each in others]


def test_infinite_results_are_written_as_they_are() -> None:
    graph = parse_graph(DECAY)
    for value, weight in graph.parameters.items():
        held = f32_to_bf16(np.full(weight.shape, 200, np.float32))
        if weight.type.dtype == "f32":
            held = np.ones(weight.shape, np.float32)
        graph._parameters[value] = from_array(weight.name, weight.type.dtype, held)
    (weight,) = _folded(graph).parameters.values()
    assert np.all(weight.load() == -np.inf)
