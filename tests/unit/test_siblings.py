"""Linears that become one: what the joined weights hold."""

from __future__ import annotations

import numpy as np

from fusec.ir import parse_graph
from fusec.ir.weights import Bits, from_array
from fusec.passes.merge_qkv import MergeQkv
from fusec.rewrite import DecisionLog
from fusec.target import target_named

SOME_BIASES = """
graph @main(%x: bf16[n, 4]) symbols(n in [1, 64]) {
  param %wq: bf16[4, 4] = "wq"
  param %bq: bf16[4] = "bq"
  param %wk: bf16[2, 4] = "wk"
  param %wv: bf16[2, 4] = "wv"
  param %bv: bf16[2] = "bv"
  %q: bf16[n, 4] = linear(%x, %wq, %bq) @ "attn.q" "" ""
  %k: bf16[n, 2] = linear(%x, %wk) @ "attn.k" "" ""
  %v: bf16[n, 2] = linear(%x, %wv, %bv) @ "attn.v" "" ""
  %qh: bf16[1, 2, n, 2] = reshape(%q) {shape = [1, 2, <n>, 2]}
  %kh: bf16[1, 1, n, 2] = reshape(%k) {shape = [1, 1, <n>, 2]}
  %vh: bf16[1, 1, n, 2] = reshape(%v) {shape = [1, 1, <n>, 2]}
  %o: bf16[1, 2, n, 2] = attention(%qh, %kh, %vh) \
{causal = true, has_key_padding = false, has_mask = false, has_sinks = false, scale = 0.5, \
softcap = none, window = none} @ "attn" "" ""
  return %o as "o"
}
"""


def test_a_bias_that_lacks_is_zeros() -> None:
    """As in Whisper, whose keys have none."""
    graph, held = parse_graph(SOME_BIASES), dict[str, Bits]()
    for number, (value, weight) in enumerate(graph.parameters.items()):
        first, count = 100 * number + 1, int(np.prod(weight.shape))
        held[value] = np.arange(first, first + count, dtype=np.uint16).reshape(weight.shape)
        graph._parameters[value] = from_array(weight.name, "bf16", held[value])
    assert MergeQkv().run(graph, target_named("x86-64-v3"), DecisionLog()) == 1
    (linear,) = (node for node in graph.nodes() if node.op == "linear")
    joined, bias = (graph.parameters[value].load() for value in linear.inputs[1:])
    np.testing.assert_array_equal(joined, np.concatenate([held["wq"], held["wk"], held["wv"]]))
    np.testing.assert_array_equal(bias, [*held["bq"], 0, 0, *held["bv"]])
    assert bias.dtype == np.uint16
