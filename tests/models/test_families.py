"""Families whose layers are written in ways of their own: what becomes of them, and the numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from models import build
from reference import eager, largest_error, tokens

from fusec.api import rewrite
from fusec.ir.interpret import interpret

FAMILIES: dict[str, dict[str, int]] = {
    "deepseek_v2": {"router": 1, "moe": 1, "topk": 0},
    "ernie4_5_moe": {"router": 1, "moe": 1, "topk": 0},
    "gemma3n": {"attention": 2, "aten.erfinv.default": 0},
    "granite_hybrid": {
        "selective_scan": 1,
        "gated_rms_norm": 1,
        "causal_conv1d": 1,
        "router": 2,
        "moe": 2,
    },
    "jamba": {"selective_scan": 1, "causal_conv1d": 1, "attention": 1, "router": 1, "moe": 1},
    "llama4": {"attention": 4, "floordiv": 0, "qk_norm_rope": 3, "router": 2, "moe": 2},
    "nanochat": {"attention": 2, "qk_norm_rope": 2, "rms_norm": 6},
}
"""How many nodes of an operation there are for a GPU, by model."""


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_in_its_own_way(name: str, dtype: str, tmp_path: Path) -> None:
    folder = build(name, tmp_path / name, dtype)
    ((graph, _),) = rewrite(folder, "gfx950").values()
    counts = Counter(node.op for node in graph.nodes())
    assert {op: counts[op] for op in FAMILIES[name]} == FAMILIES[name]
    given = tokens(2, 37)
    wanted = eager(folder, given, torch.float64)["logits"]
    found = interpret(graph, {key: np.asarray(value) for key, value in given.items()})["logits"]
    assert largest_error(found, wanted) < 1e-4
