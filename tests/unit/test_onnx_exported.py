"""Whole models as PyTorch exports them, run at another shape than they were exported with."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx_models import assert_same, imported, opaque

from fusec.frontend.onnx import read_onnx
from fusec.ir import Graph

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
DECODER = {**SMALL, "num_key_value_heads": 2, "use_cache": False}


@dataclass(frozen=True)
class Export:
    """How a model is exported."""

    model: str
    opset: int = 20
    optimize: bool = True
    dynamic: bool = True
    legacy: bool = False

    def __str__(self) -> str:
        words = ["dynamic" if self.dynamic else "static"]
        words += [] if self.optimize else ["plain"]
        words += ["legacy"] if self.legacy else []
        return "-".join((self.model, str(self.opset), *words))


class Logits(torch.nn.Module):
    """Gives the one tensor of interest."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Any:
        if x.is_floating_point():
            return self.model(pixel_values=x).last_hidden_state
        result = self.model(input_ids=x)
        return result.logits if hasattr(result, "logits") else result.last_hidden_state


def _build(name: str) -> Any:
    torch.manual_seed(0)
    library: Any = transformers
    if name == "llama":
        model = library.LlamaForCausalLM(library.LlamaConfig(**DECODER))
    elif name == "qwen3_moe":
        more = {"moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 2}
        config = library.Qwen3MoeConfig(**DECODER, **more, head_dim=8)
        model = library.Qwen3MoeForCausalLM._from_config(
            config, experts_implementation="batched_mm"
        )
    elif name == "bert":
        model = library.BertModel(library.BertConfig(**SMALL), add_pooling_layer=False)
    else:
        sizes = {name: size for name, size in SMALL.items() if name != "vocab_size"}
        config = library.ViTConfig(**sizes, image_size=24, patch_size=8)
        model = library.ViTModel(config, add_pooling_layer=False)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # so that a scale or a bias that goes missing shows
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return Logits(model).eval()


def _sample(name: str, batch: int, length: int) -> Any:
    generator = torch.Generator().manual_seed(batch * 100 + length)
    if name == "vit":
        return torch.randn((batch, 3, 24, 24), generator=generator)
    return torch.randint(0, 97, (batch, length), generator=generator)


def _export(case: Export, folder: Path) -> tuple[Any, Path]:
    model, sample = _build(case.model), _sample(case.model, 2, 11)
    path = folder / "model.onnx"
    axes = {0: "batch"} if case.model == "vit" else {0: "batch", 1: "seq"}
    logging.getLogger("torch.onnx").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if case.legacy:
            torch.onnx.export(
                model,
                (sample,),
                str(path),
                dynamo=False,
                opset_version=case.opset,
                input_names=["x"],
                dynamic_axes={"x": axes} if case.dynamic else None,
            )
            return model, path
        dims = {axis: torch.export.Dim(name) for axis, name in axes.items()}
        program = torch.onnx.export(
            model,
            (sample,),
            dynamo=True,
            opset_version=case.opset,
            optimize=case.optimize,
            dynamic_shapes=({"x": dims} if case.dynamic else None),
            verbose=False,
        )
        assert program is not None
        program.save(str(path))
    return model, path


def _check(case: Export, folder: Path) -> Graph:
    model, path = _export(case, folder)
    graph = imported(onnx.load(str(path)), folder)
    assert not opaque(graph)
    shape = (3, 7) if case.dynamic else (2, 11)
    sample = _sample(case.model, *shape)
    with torch.no_grad():
        wanted = model(sample).numpy()
    assert_same(graph, {graph.inputs[0]: sample.numpy()}, [wanted], 5e-5)
    return graph


def _counts(graph: Graph) -> Counter[str]:
    return Counter(node.op for node in graph.nodes())


def test_llama(tmp_path: Path) -> None:
    """Shapes are followed, weights keep their names and modules their paths."""
    graph = _check(Export("llama"), tmp_path)
    assert [str(graph.type(name)) for name in graph.inputs] == ["i64[batch, seq]"]
    assert [str(graph.type(name)) for name in graph.outputs] == ["f32[batch, seq, 97]"]
    names = {weight.name for weight in graph.parameters.values()}
    for layer in range(2):
        prefix = f"model.model.layers.{layer}"
        assert {
            f"{prefix}.self_attn.q_proj.weight",
            f"{prefix}.mlp.down_proj.weight",
            f"{prefix}.input_layernorm.weight",
        } <= names
    counts = _counts(graph)
    assert counts["linear"] == 2 * 7 + 1
    assert counts["rsqrt"] == 2 * 2 + 1
    paths = {node.origin.path for node in graph.nodes() if node.op == "linear"}
    assert "model.model.layers.1.mlp.gate_proj" in paths


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Export("llama", 18, optimize=False),
        Export("llama", 18, dynamic=False),
        Export("llama", 20, dynamic=False),
        Export("llama", 25),
        Export("qwen3_moe", 20),
        Export("qwen3_moe", 18, optimize=False),
        Export("qwen3_moe", 23, dynamic=False),
        Export("bert", 20),
        Export("bert", 18, optimize=False),
        Export("bert", 23, dynamic=False),
        Export("bert", 14, legacy=True),
        Export("vit", 20),
        Export("vit", 14, legacy=True),
    ],
    ids=str,
)
def test_export(case: Export, tmp_path: Path) -> None:
    _check(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("optimize", [True, False])
def test_operators_of_opset_23(optimize: bool, tmp_path: Path) -> None:
    """The exporter writes norms and attention as one operator each; they arrive raised."""
    graph = _check(Export("llama", 23, optimize=optimize), tmp_path)
    counts = _counts(graph)
    assert counts["attention"] == 2
    if optimize:
        assert counts["rms_norm"] == 5


@pytest.mark.slow
def test_time_and_size_do_not_depend_on_weights(tmp_path: Path) -> None:
    """The graph is small and holds no weights: they are read from the file when wanted."""
    _, path = _export(Export("llama"), tmp_path)
    graph = read_onnx(path)
    assert len(graph) < 300
    assert all(np.isfinite(weight.load()).all() for weight in graph.parameters.values())
