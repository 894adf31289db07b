"""Small models of real architectures with random weights, as Hugging Face folders.

    python samples/models.py NAME FOLDER [--dtype bfloat16] [--seed 0] [--quantise fp8-block]

Each has every feature of its family at a size that compiles in seconds: grouped queries, sliding
windows, partial rotary embeddings, shared and routed experts, latent attention, delta rules.
Norm weights and biases are perturbed, so that a scale or an offset that is lost shows.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from quantised_models import LAYOUTS, TRUE_SIZES, quantise_folder, settings_for, write_config
from torch import nn


@dataclass(frozen=True, slots=True)
class Sample:
    """A small configuration of one architecture.

    Attributes:
        config: a configuration class of transformers.
        model: a model class of transformers.
        settings: what to set in the configuration.
    """

    config: str
    model: str
    settings: dict[str, Any] = field(default_factory=dict)


_TEXT = {"vocab_size": 311, "max_position_embeddings": 512}
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_GROUPED = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    **_TEXT,
    **_TOKENS,
}
_LATENT = {
    **{name: value for name, value in _GROUPED.items() if name != "head_dim"},
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}

SAMPLES: dict[str, Sample] = {
    "llama": Sample(
        "LlamaConfig",
        "LlamaForCausalLM",
        {
            **_GROUPED,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        },
    ),
    "qwen3": Sample(
        "Qwen3Config", "Qwen3ForCausalLM", {**_GROUPED, "tie_word_embeddings": True, "head_dim": 24}
    ),
    "qwen3_moe": Sample(
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {
            **_GROUPED,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "norm_topk_prob": True,
            "mlp_only_layers": [0],
        },
    ),
    "qwen3_next": Sample(
        "Qwen3NextConfig",
        "Qwen3NextForCausalLM",
        {
            **_GROUPED,
            "num_hidden_layers": 4,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "shared_expert_intermediate_size": 56,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 24,
            "mlp_only_layers": [1],
        },
    ),
    "kimi_linear": Sample(
        "KimiLinearConfig",
        "KimiLinearForCausalLM",
        {
            **_LATENT,
            "q_lora_rank": None,
            "num_hidden_layers": 5,
            "linear_num_heads": 4,
            "linear_head_dim": 16,
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "n_group": 2,
            "topk_group": 1,
        },
    ),
    "deepseek_v3": Sample(
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        {
            **_LATENT,
            "num_hidden_layers": 4,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "n_group": 4,
            "topk_group": 2,
            "first_k_dense_replace": 1,
            "num_mtp_layers": 0,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 128,
            },
        },
    ),
    "gpt_oss": Sample(
        "GptOssConfig",
        "GptOssForCausalLM",
        {
            **_GROUPED,
            "num_hidden_layers": 4,
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "intermediate_size": 48,
            "sliding_window": 12,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "mixtral": Sample(
        "MixtralConfig",
        "MixtralForCausalLM",
        {**_GROUPED, "intermediate_size": 48, "num_local_experts": 8, "sliding_window": 24},
    ),
    "gemma3": Sample(
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            **_GROUPED,
            "num_hidden_layers": 4,
            "sliding_window": 12,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "query_pre_attn_scalar": 24,
            "final_logit_softcapping": 30.0,
        },
    ),
    "phi3": Sample(
        "Phi3Config",
        "Phi3ForCausalLM",
        {
            **{name: value for name, value in _GROUPED.items() if name != "head_dim"},
            "sliding_window": 24,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "deepseek_v2": Sample(
        "DeepseekV2Config",
        "DeepseekV2ForCausalLM",
        {
            **_LATENT,
            "num_hidden_layers": 2,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 16.0,
        },
    ),
    "ernie4_5_moe": Sample(
        "Ernie4_5_MoeConfig",
        "Ernie4_5_MoeForCausalLM",
        {
            **_GROUPED,
            "num_hidden_layers": 2,
            "moe_num_experts": 8,
            "moe_k": 3,
            "moe_intermediate_size": 40,
            "moe_num_shared_experts": 1,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 1,
        },
    ),
    "jamba": Sample(
        "JambaConfig",
        "JambaForCausalLM",
        {
            **{name: value for name, value in _GROUPED.items() if name != "head_dim"},
            "num_hidden_layers": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "intermediate_size": 40,
            "mamba_dt_rank": 8,
        },
    ),
    "gemma3n": Sample(
        "Gemma3nTextConfig",
        "Gemma3nForCausalLM",
        {
            **_GROUPED,
            "num_hidden_layers": 2,
            "vocab_size_per_layer_input": 311,
            "hidden_size_per_layer_input": 24,
            "laurel_rank": 16,
            "sliding_window": 12,
            "layer_types": ["sliding_attention", "full_attention"],
            # 1.5 standard deviations above the mean, a number that bf16 has.
            "activation_sparsity_pattern": [0.9331927987311419, 0.0],
            "num_kv_shared_layers": 0,
        },
    ),
    "granite_hybrid": Sample(
        "GraniteMoeHybridConfig",
        "GraniteMoeHybridForCausalLM",
        {
            **{name: value for name, value in _GROUPED.items() if name != "head_dim"},
            "num_hidden_layers": 2,
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "intermediate_size": 40,
            "shared_intermediate_size": 56,
            "mamba_n_heads": 12,
            "mamba_d_head": 16,
            "mamba_d_state": 16,
            "mamba_chunk_size": 16,
        },
    ),
    "llama4": Sample(
        "Llama4TextConfig",
        "Llama4ForCausalLM",
        {
            **_GROUPED,
            "num_hidden_layers": 4,
            "intermediate_size": 48,
            "intermediate_size_mlp": 160,
            "num_local_experts": 8,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 12,
            "floor_scale": 16,
        },
    ),
    "nanochat": Sample(
        "NanoChatConfig",
        "NanoChatForCausalLM",
        {**_GROUPED, "num_hidden_layers": 2},
    ),
    "bert": Sample(
        "BertConfig",
        "BertModel",
        {
            "hidden_size": 96,
            "intermediate_size": 160,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            **_TEXT,
            "pad_token_id": 0,
        },
    ),
    "modernbert": Sample(
        "ModernBertConfig",
        "ModernBertModel",
        {
            "hidden_size": 96,
            "intermediate_size": 160,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "local_attention": 24,
            **_TEXT,
            **_TOKENS,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
    ),
    "vit": Sample(
        "ViTConfig",
        "ViTForImageClassification",
        {
            "hidden_size": 96,
            "intermediate_size": 160,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "image_size": 48,
            "patch_size": 8,
            "num_labels": 11,
        },
    ),
}
"""The models by name."""


def make(name: str, dtype: str = "float32", seed: int = 0, **settings: object) -> nn.Module:
    """A model with random weights, in evaluation mode.

    Args:
        name: a name in `SAMPLES`.
        dtype: the name of a torch dtype.
        seed: of the weights.
        settings: what to set in the configuration beside the sample's own settings.
    """
    sample = SAMPLES[name]
    config = getattr(transformers, sample.config)(**{**sample.settings, **settings})
    return random_model(getattr(transformers, sample.model), config, dtype, seed)


def random_model(model_class: Any, config: Any, dtype: str, seed: int = 0) -> nn.Module:
    """A model with random weights, in evaluation mode, on the default device of torch.

    Args:
        model_class: of transformers.
        config: its configuration.
        dtype: the name of a torch dtype.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    kind = getattr(torch, dtype)
    model: nn.Module = model_class._from_config(config, dtype=kind)
    plan: dict[str, torch.dtype] = model._get_dtype_plan(kind)  # type: ignore[operator]
    with torch.no_grad():
        for owner in model.modules():
            for held in (owner._parameters, owner._buffers):
                for key, tensor in held.items():
                    wide = next((plan[part] for part in plan if re.search(part, key)), None)
                    if tensor is not None and wide is not None:
                        tensor.data = tensor.data.to(wide)
        stored = dict(model.state_dict(keep_vars=True))
        for tensor in {id(tensor): tensor for tensor in stored.values()}.values():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape)
                if tensor.ndim >= 2:
                    tensor.copy_(noise / tensor.shape[-1] ** 0.5)
                else:
                    tensor.add_((0.1 * noise).to(tensor.dtype))
    return model.eval()


def build(
    name: str,
    folder: Path,
    dtype: str = "float32",
    seed: int = 0,
    quantise: str | None = None,
    **settings: object,
) -> Path:
    """Write the model called `name` to `folder`: `config.json`, safetensors and a tokenizer.

    Args:
        name: a name in `SAMPLES`.
        folder: to write.
        dtype: the name of a torch dtype.
        seed: of the weights.
        quantise: the layout to store the weights in, a name in `quantised_models.LAYOUTS`.
        settings: what to set in the configuration beside the sample's own settings.

    Returns:
        The folder.
    """
    if quantise is not None:
        settings = {**settings_for(name, quantise), **settings}
    model = make(name, dtype, seed, **settings)
    save: Callable[[Path], object] = model.save_pretrained  # type: ignore[assignment]
    save(folder)
    if quantise is not None:
        quantise_folder(folder, quantise)
    config = model.config
    if isinstance(getattr(config, "vocab_size", None), int):
        write_tokenizer(folder / "tokenizer.json", config.vocab_size)  # type: ignore[union-attr,arg-type]
    return folder


def write_tokenizer(path: Path, vocab_size: int) -> None:
    """Write a tokenizer that gives each byte of a text the number 3 + byte, 2 at the end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: vocab_size - 3]
    words = {"<pad>": 0, "<s>": 1, "</s>": 2}
    words |= {letter: number for number, letter in enumerate(alphabet, start=3)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    split = pre_tokenizers.Split("", "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([level, split])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))


def main() -> None:
    """Write one model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", choices=sorted(SAMPLES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quantise", choices=sorted(LAYOUTS))
    parser.add_argument(
        "--true-size", action="store_true", help="only `config.json`, in the published size"
    )
    given = parser.parse_args()
    if given.true_size:
        if given.name not in TRUE_SIZES:
            parser.error(f"--true-size knows {', '.join(TRUE_SIZES)}")
        print(write_config(given.name, given.folder, given.quantise or "shipped"))
    else:
        print(build(given.name, given.folder, given.dtype, given.seed, given.quantise))


if __name__ == "__main__":
    main()
