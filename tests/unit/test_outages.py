"""Outages of serving engines, replayed on graphs.

A fusion for gated delta nets asked classes for their heads: a module that moved (vLLM #43486) and
an attribute that was called otherwise (#44308) broke every model.  A fusion for latent attention no
longer matched once one of its norms was quantised before (#44977).  Here shapes alone are read; so
the same fusions fire whatever things are called, and what cannot be fused is a row with a code.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from sample_models import build
from transformers.models.kimi_linear import modeling_kimi_linear
from transformers.models.qwen3_next import modeling_qwen3_next

from fusec.frontend import load_source
from fusec.ir import Graph, Node
from fusec.ir.interpret import interpret
from fusec.lower import lower
from fusec.options import selected_passes
from fusec.passes import PIPELINE
from fusec.rewrite import Decision, DecisionLog, QuantRequest, Settings, run_pipeline
from fusec.target import target_named

GFX950 = target_named("gfx950")
LAYERS = 2
MODELS: Mapping[str, Mapping[str, object]] = {
    "qwen3_next": {
        "hidden_size": 128,
        "num_hidden_layers": LAYERS,
        "layer_types": ["linear_attention"] * LAYERS,
        "mlp_only_layers": list(range(LAYERS)),
        "intermediate_size": 256,
        "linear_value_head_dim": 32,
    },
    "kimi_linear": {
        "num_hidden_layers": LAYERS,
        "layer_types": ["linear_attention"] * LAYERS,
        "mlp_layer_types": ["dense"] * LAYERS,
    },
    "deepseek_v3": {"num_hidden_layers": LAYERS},
}

MIXERS: Mapping[str, tuple[ModuleType, str, Mapping[str, str]]] = {
    "qwen3_next": (
        modeling_qwen3_next,
        "Qwen3NextGatedDeltaNet",
        {"num_v_heads": "num_heads", "head_v_dim": "head_dim"},
    ),
    "kimi_linear": (
        modeling_kimi_linear,
        "KimiLinearDeltaAttention",
        {"num_heads": "num_v_heads", "head_dim": "head_v_dim"},
    ),
}
"""By model: where its gated delta net is, its name, and other names for its attributes."""

SIZES = {"batch": 2, "seq": 7}
"""Of what is exported: tests of whole models have unknown ones, which take twice as long."""

Exported = Callable[[str], Graph]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model in bfloat16, made once."""

    @cache
    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp("models") / name
        return build(name, folder, "bfloat16", **MODELS[name])

    return make


@pytest.fixture(scope="module")
def exported(folder_of: Callable[[str], Path]) -> Exported:
    """The graph of a model for rows of one length, exported once."""

    @cache
    def make(name: str) -> Graph:
        return load_source(folder_of(name), dims=SIZES).graph

    return make


def decided(
    graph: Graph, quantise: str | None, ranks: int = 1, disabled: Sequence[str] = ()
) -> tuple[Graph, DecisionLog]:
    """A copy of the graph after the passes for gfx950, and what they decided."""
    copy, log = graph.copy(), DecisionLog()
    requests = () if quantise is None else (QuantRequest(quantise),)  # type: ignore[arg-type]
    passes = selected_passes(disabled, Settings(quantise=requests, tensor_parallel=ranks))
    run_pipeline(passes, copy, GFX950, log, verify_each=True)
    return copy, log


def rows(log: DecisionLog, fusion: str) -> list[Decision]:
    return [row for row in log if row.fusion == fusion]


def renamed_elsewhere(
    module: ModuleType, name: str, attributes: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Make `module` use its class `name` as another class, of another module, with other names."""
    source = inspect.getsource(getattr(module, name)).replace(f"class {name}", "class Mixer")
    for old, new in attributes.items():
        source = re.sub(rf"\bself\.{old}\b", f"self.{new}", source)
    elsewhere = ModuleType("mixers_that_moved")
    elsewhere.__dict__.update({**module.__dict__, "__name__": elsewhere.__name__})
    monkeypatch.setitem(sys.modules, elsewhere.__name__, elsewhere)
    exec(compile(source, "mixers_that_moved.py", "exec"), elsewhere.__dict__)
    monkeypatch.setattr(module, name, elsewhere.__dict__["Mixer"])
    for each in vars(module).values():
        if isinstance(each, type) and "_init_weights" in vars(each):
            monkeypatch.setattr(each, "_init_weights", lambda model, owner: None)


@pytest.mark.parametrize("name", MIXERS)
def test_nothing_depends_on_where_a_mixer_is_and_what_it_calls_its_heads(
    name: str,
    folder_of: Callable[[str], Path],
    exported: Exported,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, mixer, attributes = MIXERS[name]
    expected = decided(exported(name), "fp8-token")[1]
    renamed_elsewhere(module, mixer, attributes, monkeypatch)
    log = decided(load_source(folder_of(name), dims=SIZES).graph, "fp8-token")[1]
    assert log.fired() == expected.fired()
    assert log.fired()["gated_rms_norm_quant"] == LAYERS
    told = [(row.fusion, row.site, row.status, row.code, row.details) for row in log]
    assert told == [(row.fusion, row.site, row.status, row.code, row.details) for row in expected]


@pytest.mark.parametrize(
    ("name", "activation", "size"), [("qwen3_next", "silu", 32), ("kimi_linear", "sigmoid", 16)]
)
def test_heads_come_from_shapes(name: str, activation: str, size: int, exported: Exported) -> None:
    for ranks in (1, 2, 4):
        log = decided(exported(name), "fp8-token", ranks)[1]
        fired = rows(log, "gated_rms_norm_quant")
        assert [row.status for row in fired] == ["fired"] * LAYERS
        for row in fired:
            assert row.details == {
                "heads": 4,
                "heads_per_rank": 4 // ranks,
                "head_dim": size,
                "activation": activation,
                "norm_before_gate": True,
            }


@pytest.mark.parametrize("quantise", [None, "fp8-token"])
@pytest.mark.parametrize("name", MIXERS)
def test_heads_that_do_not_divide_are_refused_layer_by_layer(
    name: str, quantise: str | None, exported: Exported
) -> None:
    log = decided(exported(name), quantise, ranks=3)[1]
    fusions = ["gated_rms_norm"] + (["gated_rms_norm_quant"] if quantise else [])
    for fusion in fusions:
        refused = rows(log, fusion)
        assert [row.code for row in refused] == ["gdn.heads-tp"] * LAYERS
        assert len({row.site for row in refused}) == LAYERS
        assert {row.reason for row in refused} == {"4 heads do not divide among 3 ranks"}


def test_groups_of_several_heads(exported: Exported) -> None:
    found = rows(decided(exported("qwen3_next"), "fp8-block")[1], "gated_rms_norm_quant")
    told = [(row.status, row.details["group"], row.details["head_dim"]) for row in found]
    assert told == [("fired", 128, 32)] * LAYERS


@pytest.mark.parametrize("quantise", ["fp8-token", "fp8-tensor", "mxfp8", None])
def test_both_norms_of_latent_attention_are_one_however_they_are_quantised(
    quantise: str | None, exported: Exported
) -> None:
    graph, log = decided(exported("deepseek_v3"), quantise)
    fired = rows(log, "dual_rms_norm_quant" if quantise else "dual_rms_norm")
    assert [row.status for row in fired] == ["fired"] * LAYERS
    assert {row.site for row in fired} == {
        f"model.layers.{layer}.self_attn" for layer in range(LAYERS)
    }
    for row in fired:
        ranks = [row.details[name] for name in ("q_rank", "kv_rank", "rope")]
        assert ranks == [48, 32, 8]
        beside_without_a_copy(graph, graph.node(row.node))


def beside_without_a_copy(graph: Graph, norms: Node) -> None:
    """Both operands and the part that is rotated are columns of one projection, where it lies."""
    slices = [graph.producer(norms.inputs[position]) for position in (0, 2)]
    (projection,) = {None if node is None else node.inputs[0] for node in slices}
    assert projection is not None
    windows = sorted(
        (node.attrs["start"], node.attrs["stop"], node.op, node.attrs["step"])
        for node in graph.users(projection)
    )
    assert windows == [(0, 48, "slice", 1), (48, 80, "slice", 1), (80, 88, "slice", 1)]
    program = lower(graph, GFX950, allow_host_fallback=True)
    (step,) = [step for step in program.kernel_steps if step.node is norms]
    read = [step.launch.operands[position] for position in (0, 2)]
    held = [each for each in read if each is not None]
    (producer,) = {
        step.node.output for step in program.kernel_steps if held[0].buffer in step.written
    }
    assert producer == projection and held[0].buffer == held[1].buffer
    assert sorted((each.offset, *each.strides[1:]) for each in held) == [(0, 88, 1), (48, 88, 1)]


def test_how_often_results_are_quantised(exported: Exported) -> None:
    """Both norms of each layer, and each activation, also that of shared experts."""
    fired = decided(exported("deepseek_v3"), "fp8-token")[1].fired()
    assert fired["rms_norm_quant"] + fired["add_rms_norm_quant"] == 2 * LAYERS
    assert fired["silu_mul_quant"] == LAYERS


def test_the_last_norm_names_its_reader(exported: Exported) -> None:
    log = decided(exported("deepseek_v3"), "fp8-token")[1]
    (refused,) = log.refused()
    assert (refused.fusion, refused.site) == ("add_rms_norm_quant", "model.norm")
    assert refused.code == "output-not-quantised"
    assert refused.reason == "its reader is `linear` at `lm_head` in bf16"
    (kept,) = rows(log, "add_rms_norm")
    assert (kept.site, kept.status) == ("model.norm", "fired")


def test_a_graph_in_which_nothing_is_quantised_has_no_such_rows(exported: Exported) -> None:
    log = decided(exported("deepseek_v3"), None)[1]
    assert not [row for row in log if row.fusion.endswith("_quant")]


def test_a_router_reads_the_rows_that_experts_read_as_codes(exported: Exported) -> None:
    log = decided(exported("deepseek_v3"), "fp8-token")[1]
    (routed,) = [row for row in rows(log, "add_rms_norm_quant") if "with_plain" in row.details]
    assert routed.site == f"model.layers.{LAYERS - 1}.post_attention_layernorm"
    assert "mlp.gate" in str(routed.details["with_plain"])


@pytest.mark.parametrize("name", MODELS)
def test_results_that_are_quantised_as_they_are_computed_are_the_same(
    name: str, exported: Exported
) -> None:
    quantising = [each.name for each in PIPELINE if each.name.endswith("_quant")]
    tokens = {"input_ids": np.random.default_rng(0).integers(0, 300, tuple(SIZES.values()))}
    apart, none = decided(exported(name), "fp8-token", disabled=quantising)
    fused, log = decided(exported(name), "fp8-token")
    assert not any(none.fired()[fusion] for fusion in quantising)
    assert sum(log.fired()[fusion] for fusion in quantising) > 3 * LAYERS
    (expected,), (actual,) = (interpret(graph, tokens).values() for graph in (apart, fused))
    assert np.abs(expected).max() > 1
    np.testing.assert_array_equal(actual, expected)
