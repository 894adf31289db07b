"""How many launches a layer takes, and how that is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import build

from fusec.frontend.sources import load_source
from fusec.lower import lower
from fusec.lower.layers import launches_by_layer, layer_of, unfused_by_layer
from fusec.options import selected_passes
from fusec.report import layers_text
from fusec.rewrite import DecisionLog, run_pipeline
from fusec.target import target_named


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("model.layers.3.mlp.experts.7.up_proj", "model.layers.3"),
        ("transformer.h.11", "transformer.h.11"),
        ("encoder.layer10.conv", ""),
        ("lm_head", ""),
        ("", ""),
    ],
)
def test_the_layer_of_a_module(path: str, layer: str) -> None:
    assert layer_of(path) == layer


@pytest.mark.parametrize(("name", "most"), [("llama", 9), ("qwen3", 9), ("phi3", 9)])
def test_a_dense_layer_takes_nine_launches(name: str, most: int, tmp_path: Path) -> None:
    """Norm, qkv, rotation, attention, output, norm, gate and up, activation, down."""
    source = load_source(build(name, tmp_path / name, "bfloat16"))
    unfused = unfused_by_layer(source.graph)
    target = target_named("gfx950")
    run_pipeline(selected_passes(()), source.graph, target, DecisionLog(source.decisions))
    layers = launches_by_layer(lower(source.graph, target), unfused)
    counts = [each.launches for each in layers if each.layer]
    assert len(counts) == 3 and max(counts) <= most
    assert all(each.unfused > 30 for each in layers if each.layer)


def test_layers_that_are_alike_are_said_once() -> None:
    layers = [
        {"layer": "", "launches": 5, "unfused": 9},
        *({"layer": f"layers.{number}", "launches": 9, "unfused": 38} for number in range(3)),
        {"layer": "layers.3", "launches": 12, "unfused": 50},
    ]
    said = "9 in each of 3 layers (38 unfused), 12 in 1 layer (50 unfused)"
    assert layers_text({"layers": layers}) == said
    assert layers_text({}) == ""
