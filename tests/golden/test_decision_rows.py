"""What the log holds once the whole pipeline has run over a graph."""

from __future__ import annotations

import pytest
from test_golden import CASES, Case

from fusec.ir import Graph, parse_graph
from fusec.passes import PIPELINE
from fusec.rewrite import DecisionLog, run_pipeline
from fusec.target import target_named

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


def _through_pipeline(text: str) -> tuple[Graph, DecisionLog]:
    graph, log = parse_graph(text), DecisionLog()
    run_pipeline([each() for each in PIPELINE], graph, target_named("x86-64-v3"), log)
    return graph, log


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_rows_agree_with_the_graph(case: Case) -> None:
    graph, log = _through_pipeline(case.before)
    fired = [row for row in log if row.status == "fired"]
    assert [row for row in fired if row.node not in graph] == []
    settled = {(row.fusion, row.site) for row in fired}
    assert [row for row in log.refused() if (row.fusion, row.site) in settled] == []


def test_a_mixer_with_a_skip_has_one_row() -> None:
    _, log = _through_pipeline(MIXER)
    assert [(row.fusion, row.site, row.status) for row in log] == [
        ("silu_mul", "layers.0.mamba", "fired")
    ]
