"""Graphs one edit away from a golden case, which their pass has to leave alone.

Each looks like what the pass looks for and means something else, so that a rewrite would be wrong.
"""

from __future__ import annotations

from typing import TypeAlias

import pytest
from test_golden import CASES, PASSES, TARGET, probe

from fusec.ir import parse_graph, print_graph
from fusec.rewrite import DecisionLog

Edit: TypeAlias = tuple[str, str, str, str]
"""The title of a case, what is replaced in it and by what, and the code, if anything is refused."""

GROUPED = "grouped, halves, silu"
SORTED = "grouped, order undone by a sort, weighted afterwards, no gate"
BATCHED = "batched, matrices times columns"
ROWS = "batched, rows times matrices, biases"
ONES = 'constant() {dtype = "f32", shape = [4], value = 1.0}'
DOWN = "%m2: f32[2*n, 6, 5] = take(%down, "
OTHERS = "%others: i64[2*n] = neg(%flat)\n  "
MOE = [
    (GROUPED, "descending = false", "descending = true", "order"),
    (GROUPED, "accumulate = false", "accumulate = true", "order"),
    (GROUPED, "<2*n>, start = 0", "<2*n>, start = 1", "order"),
    (GROUPED, "<2*n>, start = 0, step = 1", "<2*n>, start = 0, step = 2", "order"),
    (GROUPED, "index_put(%blank, %numbers, %perm)", "index_put(%blank, %numbers, %flat)", "order"),
    (GROUPED, "index_put(%blank, %numbers, %perm)", "index_put(%blank, %flat, %perm)", "order"),
    (GROUPED, "take(%wflat, %perm)", "take(%wflat, %token)", "routing"),
    (GROUPED, "value = 2", "value = 3", "order"),
    (GROUPED, "cumsum(%ends32) {axis = 0}", "neg(%ends32)", "offsets"),
    (GROUPED, "histogram(%floats) {bins = 4, high = 3.0, low = 0.0}", ONES, "offsets"),
    (GROUPED, "low = 0.0", "low = 1.0", "offsets"),
    (GROUPED, "cast(%sorted)", "cast(%perm)", "order"),
    (GROUPED, "cast(%sorted)", "cast(%token)", "order"),
    (GROUPED, "grouped_mm(%rows, %gt, %ends)", "grouped_mm(%rows, %gt, %ends32)", "offsets"),
    (GROUPED, "grouped_mm(%a, %dt, %ends)", "grouped_mm(%a, %dt, %ends32)", "offsets"),
    (GROUPED, "silu_mul(%g, %u)", "silu_mul(%g, %g)", "gate"),
    (SORTED, "sort(%perm)", "sort(%flat)", "order"),
    (SORTED, "sort(%perm)", "sort(%token)", "order"),
    (SORTED, "take(%o, %inverse)", "take(%o, %order)", "order"),
    (SORTED, "take(%o, %inverse)", "take(%o, %token)", "order"),
    (SORTED, "relu(%h)", "neg(%h)", "activation"),
    (SORTED, "mul(%r, %r)", "mul(%r, %h)", "gate"),
    (SORTED, "mul(%r, %r)", "add(%r, %r)", "activation"),
    (BATCHED, f"{DOWN}%flat)", f"{OTHERS}{DOWN}%others)", "offsets"),
    (ROWS, "start = 0, step = 1", "start = 1, step = 1", "order"),
    (ROWS, "start = 0, step = 1", "start = 0, step = 2", "order"),
    (ROWS, "floordiv(%numbers, %k)", "mod(%numbers, %k)", "order"),
    (ROWS, "take(%gate_up_bias, %flat)", "take(%gate_up_bias, %token)", "bias"),
    (ROWS, "take(%down_bias, %flat)", "take(%down_bias, %token)", "bias"),
]

SCALED = "one expert a token, the token is scaled"
WEIGHTED = "two experts a token, the results are weighted"
UP = "%u: f32[4, n, 5] = slice("
DENSE_EXPERTS = [
    (SCALED, "sigmoid(%spread)", "tanh(%spread)", "scores"),
    (SCALED, "value = -inf", "value = 0.0", "scores"),
    (SCALED, "mul(%all, %col)", "add(%all, %col)", ""),
    (WEIGHTED, "reduce = none", 'reduce = "mul"', "scores"),
    (WEIGHTED, "silu_mul(%g, %u)", "maximum(%g, %u)", ""),
    (WEIGHTED, "start = 0, step = 1, stop = 5", "start = 0, step = 2, stop = 9", "activation"),
    (WEIGHTED, "mul(%o, %col)", "add(%o, %col)", ""),
    (WEIGHTED, f"{UP}%h)", f"%less: f32[4, n, 10] = neg(%h)\n  {UP}%less)", "activation"),
]

SHARES = "softmax, and weights that come to 1"
GROUPS = "a sigmoid with a bias that only chooses, and groups"
LOGITS = "softmax of the chosen logits, which were rounded"
MARKS = "%marks: f32[n, 2] = scatter(%zeros, "
FIRST = '%first: i64[n, 1] = constant() {dtype = "i64", shape = [<n>, 1], value = 0}\n  '
TOTAL = "] = reduce_sum(%top) {axes = ["
SUMS = "] = reduce_sum(%two) {axes = ["
ROUTER = [
    (SHARES, f"n, 1{TOTAL}1", f"1, 3{TOTAL}0", "sum"),
    (GROUPS, "where(%stays, %choice, %fill)", "where(%stays, %choice, %scores)", "groups"),
    (GROUPS, f"n, 2, 1{SUMS}2", f"n, 1, 2{SUMS}1", "groups"),
    (GROUPS, "k = 2, largest = true", "k = 2, largest = false", "groups"),
    (GROUPS, "k = 1, largest = true", "k = 1, largest = false", "groups"),
    (GROUPS, "shape = [<n>, 2], value = 0.0", "shape = [<n>, 2], value = 1.0", "groups"),
    (GROUPS, "shape = [<n>, 1], value = 1.0", "shape = [<n>, 1], value = 0.0", "groups"),
    (GROUPS, "reduce = none", 'reduce = "add"', "groups"),
    (GROUPS, "where(%stays, %choice, %fill)", "where(%stays, %scores, %fill)", "groups"),
    (GROUPS, "reduce_sum(%two)", "reduce_max(%two)", "groups"),
    (GROUPS, "%bias: f32[8]", "%bias: f32[n, 8]", "scores"),
    (GROUPS, f"{MARKS}%group", f"{FIRST}{MARKS}%first", "groups"),
    (LOGITS, "softmax(%narrow) {axis = 1}", "softmax(%narrow) {axis = 0}", "scores"),
]

HALVES = "halves, a table of repeated angles"
PARTS = "half tables, as gpt-oss writes it"
EVEN_ODD = "even and odd elements, left in half order, as DeepSeek writes it"
PAIRS = "even and odd elements, put back in pairs, as Cohere writes it"
ROPE = [
    (HALVES, "start = 4, step = 1, stop = 8", "start = 3, step = 1, stop = 7", "layout"),
    (HALVES, "neg(%high)", "neg(%low)", "layout"),
    (HALVES, "neg(%high)", "abs(%high)", ""),
    (HALVES, "concat(%turn, %low)", "concat(%low, %turn)", "layout"),
    (HALVES, "add(%a, %b)", "sub(%a, %b)", ""),
    (HALVES, "mul(%x, %cos)", "mul(%turned, %cos)", "layout"),
    (PARTS, "start = 4, step = 1, stop = 8", "start = 3, step = 1, stop = 7", "layout"),
    (PARTS, "sub(%lc, %hs)", "add(%lc, %hs)", ""),
    (PARTS, "mul(%low, %sin)", "mul(%low, %cos)", ""),
    (PARTS, "concat(%first, %second)", "concat(%second, %first)", ""),
    (EVEN_ODD, "start = 13, step = 2, stop = 20", "start = 12, step = 2, stop = 19", "layout"),
    (EVEN_ODD, "start = 12, step = 2, stop = 19", "start = 11, step = 2, stop = 18", "layout"),
    (EVEN_ODD, "start = 12, step = 2, stop = 19", "start = 12, step = 1, stop = 16", "layout"),
    (PAIRS, "concat(%h5, %l5)", "concat(%l5, %h5)", ""),
    (PAIRS, "start = 1, step = 2, stop = 8", "start = 0, step = 2, stop = 7", "layout"),
]

PADDED = "finite numbers for padded keys alone"
MASK = "%mask: f32[batch, 1, 1, seq] = where(%pad, %zero, %"
HIDDEN = """%lower: f32[] = constant() {dtype = "f32", shape = [], value = -1e+38}
  %two: i64[] = constant() {dtype = "i64", shape = [], value = 2}
  %first: bool[1, 1, 1, seq] = lt(%kp, %two)
  %hidden: f32[1, 1, 1, seq] = where(%first, %low, %lower)
  """
ATTENTION_MASK = [
    (PADDED, "causal = false", "causal = true", "empty-rows"),
    (PADDED, f"{MASK}low", f"{HIDDEN}{MASK}hidden", "empty-rows"),
]

EDITS = {
    "attention_mask": ATTENTION_MASK,
    "dense_experts": DENSE_EXPERTS,
    "moe": MOE,
    "rope": ROPE,
    "router": ROUTER,
}


@pytest.mark.parametrize(
    ("which", "edit"), [(which, edit) for which, edits in EDITS.items() for edit in edits]
)
def test_near_miss(which: str, edit: Edit) -> None:
    title, old, new, code = edit
    (text,) = [case.before for case in CASES if (case.file.stem, case.title) == (which, title)]
    assert old in text
    graph = parse_graph(text.replace(old, new, 1))
    before, log = print_graph(graph), DecisionLog()
    probe(PASSES[which]).run(graph, TARGET, log)
    assert print_graph(graph) == before
    assert [each.code for each in log.refused()] == ([code] if code else [])
