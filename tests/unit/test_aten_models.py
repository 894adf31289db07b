"""Small builds of transformers' models, imported and run at a shape that was not traced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fusec.frontend.exported import from_exported_program
from fusec.frontend.translate import build_graph, unknown_ops
from fusec.ir import Graph
from fusec.ir.interpret import interpret

transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")

COMMON: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
MLA = {
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
    **MOE,
}
CAUSAL: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {"head_dim": 16, "num_experts": 4, **MOE},
    "mixtral": {"num_local_experts": 4},
    "deepseek_v3": MLA,
    "deepseek_v2": {**MLA, "topk_method": "group_limited_greedy"},
    "gpt_oss": {"head_dim": 16, "num_local_experts": 4, "sliding_window": 4, **MOE},
    "gemma2": {"head_dim": 16, "sliding_window": 4},
    "gemma3_text": {"head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 16},
    "phi3": {"sliding_window": None},
    "llama4_text": {
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 96,
        "attention_chunk_size": 8,
        "moe_layers": [1],
    },
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "falcon": {},
    "bloom": {"n_layer": 2, "n_head": 4},
}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {},
    "modernbert": {"local_attention": 4, "global_attn_every_n_layers": 2},
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
    },
    "convbert": {"embedding_size": 64},
    "xlm": {"emb_dim": 64, "n_layers": 2, "n_heads": 4},
}
QUICK = {"llama", "deepseek_v3", "gpt_oss"}


class Logits(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        result = self.model(input_ids=input_ids)
        logits: torch.Tensor = result.logits if hasattr(result, "logits") else result[0]
        return logits


def _config(name: str, extra: dict[str, Any]) -> Any:
    kind = transformers.models.auto.configuration_auto.CONFIG_MAPPING[name]
    renamed = {"gpt2", "mpt", "bloom", "xlm"}
    dropped = ("hidden_size", "num_hidden_layers", "num_attention_heads") if name in renamed else ()
    common = {key: value for key, value in COMMON.items() if key not in dropped}
    return kind(**{**common, **extra})


def _check(model: torch.nn.Module) -> Graph:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norm weights of one would hide a missing scale
                parameter.add_(torch.randn_like(parameter) * 0.1)
    module = Logits(model.eval())
    traced, given = (torch.randint(3, 99, shape) for shape in ((2, 8), (3, 13)))
    dims = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("seq", min=3, max=100)}
    exported = torch.export.export(
        module, (), {"input_ids": traced}, dynamic_shapes={"input_ids": dims}, strict=False
    )
    program = from_exported_program(exported, prefix="model")
    assert unknown_ops(program) == set()
    graph = build_graph(program, dims={"input_ids": ("batch", "seq")}, output_names=["logits"])
    graph.verify()
    with torch.no_grad():
        expected = module(given).numpy()
    got = interpret(graph, {"input_ids": given.numpy()})["logits"]
    np.testing.assert_allclose(got, expected, atol=1e-5 * float(np.abs(expected).max()), rtol=0)
    return graph


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CAUSAL],
)
def test_causal(name: str) -> None:
    torch.manual_seed(0)
    graph = _check(transformers.AutoModelForCausalLM.from_config(_config(name, CAUSAL[name])))
    assert set(graph.symbols) == {"batch", "seq"}
    assert {str(dim) for dim in graph.type(graph.outputs[0]).shape[:2]} == {"batch", "seq"}


@pytest.mark.slow
@pytest.mark.parametrize("experts", ["grouped_mm", "batched_mm"])
@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss"])
def test_experts(name: str, experts: str) -> None:
    torch.manual_seed(0)
    config = _config(name, CAUSAL[name])
    build = transformers.AutoModelForCausalLM.from_config
    _check(build(config, experts_implementation=experts))


@pytest.mark.parametrize(
    "name",
    [name if name == "bert" else pytest.param(name, marks=pytest.mark.slow) for name in ENCODERS],
)
def test_encoder(name: str) -> None:
    torch.manual_seed(0)
    _check(transformers.AutoModel.from_config(_config(name, ENCODERS[name])))
