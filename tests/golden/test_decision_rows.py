"""What the log holds once the whole pipeline has run over a graph."""

from __future__ import annotations

from collections import Counter

import pytest
from test_golden import CASES, TARGET, Case, graph_of

from fusec.ir import Graph, Node, parse_graph
from fusec.kernels.registry import choose
from fusec.passes import PIPELINE
from fusec.rewrite import DEFAULTS, DecisionLog, Settings, run_pipeline
from fusec.target import Target, target_named

MIXER = """
graph @main(%g: f32[n, 8, 5], %u: f32[n, 8, 5]) symbols(n in [1, 64]) {
  param %d: f32[8] = "d"
  %act: f32[n, 8, 5] = silu(%g)
  %scale: f32[8, 1] = reshape(%d) {shape = [8, 1]}
  %skip: f32[n, 8, 5] = mul(%act, %scale) @ "layers.0.mamba" "" ""
  %gate: f32[n, 8, 5] = silu(%u)
  %y: f32[n, 8, 5] = mul(%gate, %skip) @ "layers.0.mamba" "" ""
  return %y as "y"
}
"""


def _through_pipeline(graph: Graph, target: Target, settings: Settings) -> DecisionLog:
    log = DecisionLog()
    run_pipeline([each.configured(settings) for each in PIPELINE], graph, target, log)
    return log


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_rows_agree_with_the_graph(case: Case) -> None:
    graph = graph_of(case)
    log = _through_pipeline(graph, case.target, case.settings)
    fired = [row for row in log if row.status == "fired"]
    assert [row for row in fired if row.node not in graph] == []
    assert [n for n in Counter((row.fusion, row.node) for row in fired).values() if n > 1] == []
    settled = {(row.fusion, row.site) for row in fired}
    assert [row for row in log.refused() if (row.fusion, row.site) in settled] == []


NARROW = ("quantize", "fp8_linear", "mxfp4_linear", "moe_fp8", "moe_mxfp4")
GPUS = [target_named(name) for name in ("gfx950", "gfx942", "sm_90")]


def _narrow(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes() if node.op in NARROW or node.op.endswith("_quant")]


@pytest.mark.parametrize("target", GPUS, ids=lambda target: target.name)
def test_what_passes_quantise_has_a_kernel(target: Target) -> None:
    made: Counter[str] = Counter()
    for case in CASES:
        graph = graph_of(case)
        if not _narrow(graph):
            _through_pipeline(graph, target, case.settings)
            for node in _narrow(graph):
                assert choose(graph, node, target).kernel, (case.name, node.name)
                made[node.op] += 1
    assert made.keys() >= set(NARROW)


def test_a_mixer_with_a_skip_has_one_row() -> None:
    log = _through_pipeline(parse_graph(MIXER), TARGET, DEFAULTS)
    assert [(row.fusion, row.site, row.status) for row in log] == [
        ("silu_mul", "layers.0.mamba", "fired")
    ]


def test_the_site_of_two_norms_is_the_module_that_owns_both() -> None:
    title = "two slices of one projection, each with its eps"
    (text,) = [case.before for case in CASES if case.title == title]
    text = text.replace("q_a_layernorm", "q.norm").replace("kv_a_layernorm", "kv.norm")
    log = _through_pipeline(parse_graph(text), TARGET, DEFAULTS)
    (site,) = [row.site for row in log if row.fusion == "dual_rms_norm"]
    assert site == "model.layers.0.self_attn"
