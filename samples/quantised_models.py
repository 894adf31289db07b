"""Checkpoints in the quantised layouts that vendors publish, and configurations of true size.

python samples/models.py gpt_oss FOLDER --quantise mxfp4
python samples/models.py deepseek_v3 FOLDER --true-size
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from fusec.formats import encode, encode_e8m0, mx_scaling, pack_e2m1

Parts: TypeAlias = dict[str, torch.Tensor]
"""Tensors by what is added to the name of the weight without its `.weight`."""

PROJECTION = re.compile(r".*(?:_proj|\.w[123]|in_proj_qkvz|in_proj_qkv|in_proj_z)\.weight")
"""The weights of linear layers and experts that vendors quantise."""

EXPERT_WEIGHT = re.compile(r".*\.experts\.(?:gate_up_proj|down_proj)")
"""gpt-oss's stacked experts, [E, K, N]."""

FP8_MAX = 448.0
GROUP = 32


@dataclass(frozen=True, slots=True)
class Layout:
    """How a vendor stores quantised weights.

    Attributes:
        config: `quantization_config`.
        parts: gives what is stored for a weight.
        weights: names of the weights that are quantised.
        settings: what a small sample needs to have whole groups, by the name of the sample.
    """

    config: Mapping[str, Any]
    parts: Callable[[torch.Tensor], Parts]
    weights: re.Pattern[str] = PROJECTION
    settings: Mapping[str, Mapping[str, Any]] | None = None


def _fp8(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The nearest 8-bit floats to `values` over `scale`."""
    bits = encode((values.float() / scale).numpy(), "f8e4m3fn")
    return torch.from_numpy(bits).view(torch.float8_e4m3fn)


def _by_block(weight: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [N, K] and a scale f32 for each block."""
    height, width = weight.shape
    counts = -(-height // rows), -(-width // columns)
    padded = torch.zeros(counts[0] * rows, counts[1] * columns)
    padded[:height, :width] = weight
    blocks = padded.reshape(counts[0], rows, counts[1], columns)
    scale = (blocks.abs().amax((1, 3)) / FP8_MAX).clamp_min(1e-12)
    wide = scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return _fp8(weight, wide[:height, :width]), scale


def _deepseek(weight: torch.Tensor) -> Parts:
    codes, scale = _by_block(weight, 128, 128)
    return {".weight": codes, ".weight_scale_inv": scale}


def _by_channel(weight: torch.Tensor) -> Parts:
    _, scale = _by_block(weight, 1, weight.shape[1])
    scale = scale.bfloat16()
    return {".weight": _fp8(weight, scale.float()), ".weight_scale": scale}


def _by_tensor(weight: torch.Tensor) -> Parts:
    codes, scale = _by_block(weight, *weight.shape)
    given = torch.tensor(0.02 + float(scale) / 7)
    return {".weight": codes, ".weight_scale": scale.reshape(()), ".input_scale": given}


def _mx(weight: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, 4-bit floats two a byte, and a byte of scale for each 32 elements of a row."""
    scaling = mx_scaling(dtype)
    values, scale = scaling.quantise(weight.double().numpy())
    codes = pack_e2m1(values) if scaling.packed else encode(values, dtype)
    return torch.from_numpy(codes), torch.from_numpy(encode_e8m0(scale))


def _quark_mxfp4(weight: torch.Tensor) -> Parts:
    codes, scale = _mx(weight, "f4e2m1x2")
    return {".weight": codes, ".weight_scale": scale}


def _packed_mxfp4(weight: torch.Tensor) -> Parts:
    codes, scale = _mx(weight, "f4e2m1x2")
    return {".weight_packed": codes, ".weight_scale": scale}


def _mxfp8(weight: torch.Tensor) -> Parts:
    codes, scale = _mx(weight, "f8e4m3fn")
    return {".weight": codes.view(torch.float8_e4m3fn), ".weight_scale": scale}


def _gpt_oss(weight: torch.Tensor) -> Parts:
    codes, scale = _mx(weight.transpose(1, 2).contiguous(), "f4e2m1x2")
    return {"_blocks": codes.reshape(*scale.shape, GROUP // 2), "_scales": scale}


def _compressed(weights: Mapping[str, Any], inputs: Mapping[str, Any], layout: str) -> Any:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": groups,
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }


def _args(strategy: str, bits: int = 8, *, dynamic: bool = False, **more: Any) -> dict[str, Any]:
    same = {"type": "float", "symmetric": True, "num_bits": bits}
    return {**same, "strategy": strategy, "dynamic": dynamic, **more}


def _quark(weight: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "quant_method": "quark",
        "global_quant_config": {
            "weight": {"is_dynamic": False, "ch_axis": -1, **weight},
            "input_tensors": inputs,
            "output_tensors": None,
            "bias": None,
        },
        "exclude": ["lm_head"],
        "layer_quant_config": {},
        "layer_type_quant_config": {},
        "algo_config": None,
        "export": {"kv_cache_group": [], "pack_method": "reorder"},
    }


_MX4 = {"dtype": "fp4", "qscheme": "per_group", "group_size": GROUP, "scale_format": "e8m0"}
_WHOLE_GROUPS = {
    "gpt_oss": {"intermediate_size": 64},
    "qwen3_moe": {"moe_intermediate_size": 64},
    "deepseek_v3": {"moe_intermediate_size": 64, "q_lora_rank": 64, "v_head_dim": 16},
}

LAYOUTS: dict[str, Layout] = {
    "fp8-block": Layout(
        {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": [128, 128],
        },
        _deepseek,
    ),
    "fp8-token": Layout(
        _compressed(_args("channel"), _args("token", dynamic=True), "float-quantized"), _by_channel
    ),
    "fp8-static": Layout(
        {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
        _by_tensor,
    ),
    "quark-fp8": Layout(
        _quark(
            {"dtype": "fp8_e4m3", "qscheme": "per_tensor"},
            {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False},
        ),
        _by_tensor,
    ),
    "quark-mxfp4": Layout(
        _quark(_MX4, {**_MX4, "is_dynamic": True}), _quark_mxfp4, settings=_WHOLE_GROUPS
    ),
    "mxfp4-packed": Layout(
        _compressed(
            _args("group", 4, group_size=GROUP),
            _args("group", 4, dynamic=True, group_size=GROUP),
            "mxfp4-pack-quantized",
        ),
        _packed_mxfp4,
        settings=_WHOLE_GROUPS,
    ),
    "mxfp8": Layout(
        _compressed(
            _args("group", group_size=GROUP),
            _args("group", dynamic=True, group_size=GROUP),
            "mxfp8-quantized",
        ),
        _mxfp8,
        settings=_WHOLE_GROUPS,
    ),
    "mxfp4": Layout(
        {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        },
        _gpt_oss,
        EXPERT_WEIGHT,
        settings=_WHOLE_GROUPS,
    ),
}
"""The layouts by name; `mxfp4` is gpt-oss's own."""


NOT_QUANTISED = {
    "fp8": "modules_to_not_convert",
    "mxfp4": "modules_to_not_convert",
    "compressed-tensors": "ignore",
    "quark": "exclude",
}
"""What each method calls its list of layers that stay as they are."""


def settings_for(name: str, layout: str) -> Mapping[str, Any]:
    """What the sample called `name` needs to be stored in `layout`."""
    return (LAYOUTS[layout].settings or {}).get(name, {})


def quantise_folder(folder: Path, layout: str) -> None:
    """Replace the weights in `folder` by quantised ones, and say so in its `config.json`."""
    held = LAYOUTS[layout]
    stored: dict[str, torch.Tensor] = {}
    left_alone: list[str] = []
    for name, tensor in load_file(folder / "model.safetensors").items():
        plain = name.removesuffix(".weight")
        if held.weights.fullmatch(name):
            parts = held.parts(tensor.float())
            stored |= {plain + end: part.contiguous() for end, part in parts.items()}
        else:
            stored[name] = tensor
            left_alone += [plain] if tensor.ndim == 2 and plain != name else []
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    quantisation = {**held.config}
    quantisation[NOT_QUANTISED[quantisation["quant_method"]]] = left_alone
    config = {**json.loads(path.read_text()), "quantization_config": quantisation}
    path.write_text(json.dumps(config, indent=2))


# --- true sizes -----------------------------------------------------------------------------

_SMALL_LAYERS_FP8 = [
    "lm_head",
    *(f"model.layers.{n}.mlp.{name}" for n in range(4) for name in ("gate", "shared_expert_gate")),
    *(f"model.layers.{n}.linear_attn.in_proj_ba" for n in range(3)),
]

TRUE_SIZES: dict[str, dict[str, Any]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 2,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "quantization_config": LAYOUTS["fp8-token"].config,
    },
    "qwen3_next": {
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        "hidden_size": 2048,
        "intermediate_size": 5120,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "full_attention_interval": 4,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "norm_topk_prob": True,
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-6,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "quantization_config": {
            **LAYOUTS["fp8-block"].config,
            "modules_to_not_convert": _SMALL_LAYERS_FP8,
        },
    },
    "kimi_linear": {
        "architectures": ["KimiLinearForCausalLM"],
        "model_type": "kimi_linear",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 4,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 1024,
        "num_experts": 256,
        "num_experts_per_token": 8,
        "num_shared_experts": 1,
        "num_expert_group": 1,
        "topk_group": 1,
        "moe_renormalize": True,
        "routed_scaling_factor": 2.446,
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "linear_attn_config": {
            "full_attn_layers": [4],
            "kda_layers": [1, 2, 3],
            "head_dim": 128,
            "num_heads": 32,
            "short_conv_kernel_size": 4,
        },
        "model_max_length": 1048576,
        "rms_norm_eps": 1e-5,
        "vocab_size": 163840,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "deepseek_v3": {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "num_nextn_predict_layers": 0,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "yarn",
            "factor": 40,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
        },
        "max_position_embeddings": 163840,
        "rms_norm_eps": 1e-6,
        "vocab_size": 129280,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "quantization_config": LAYOUTS["fp8-block"].config,
    },
    "gpt_oss": {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 2,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"],
        "attention_bias": True,
        "rope_theta": 150000,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        "swiglu_limit": 7.0,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "vocab_size": 201088,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "quantization_config": LAYOUTS["mxfp4"].config,
    },
}
"""The geometry of published models, with few layers: Llama-3.1-8B, Qwen3-Next-80B-A3B,
Kimi-Linear-48B-A3B, DeepSeek-V3 and gpt-oss-120b.  Source: their `config.json`."""


def true_config(name: str, quantise: str | None = "shipped", **settings: Any) -> dict[str, Any]:
    """The contents of a `config.json` of true size.

    Args:
        name: a name in `TRUE_SIZES`.
        quantise: `shipped` for how the model is published quantised (Kimi-Linear is not), a name in
            `LAYOUTS`, or `None` for not at all.
        settings: what to set beside.
    """
    config = {**TRUE_SIZES[name], **settings}
    if quantise is None:
        config.pop("quantization_config", None)
    elif quantise != "shipped":
        config["quantization_config"] = LAYOUTS[quantise].config
    return config


def write_config(
    name: str, folder: Path, quantise: str | None = "shipped", **settings: Any
) -> Path:
    """Write a folder with nothing but the `config.json` that `true_config` gives."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(true_config(name, quantise, **settings), indent=2)
    (folder / "config.json").write_text(text)
    return folder


# --- adapters -------------------------------------------------------------------------------


def write_adapter(
    folder: Path,
    base: Path,
    sizes: Mapping[str, tuple[int, int]],
    rank: int = 4,
    seed: int = 0,
    **settings: Any,
) -> Path:
    """Write a LoRA adapter with random matrices, as PEFT would.

    Args:
        folder: to write.
        base: the folder of its model.
        sizes: outputs and inputs of each linear layer, by its path.
        rank: of the matrices.
        seed: of their values.
        settings: what to set in `adapter_config.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    tensors: dict[str, torch.Tensor] = {}
    for path, (outputs, inputs) in sizes.items():
        for side, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            values = rng.standard_normal(shape) / shape[1] ** 0.5
            name = f"base_model.model.{path}.lora_{side}.weight"
            tensors[name] = torch.from_numpy(values).float()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted({path.rpartition(".")[2] for path in sizes}),
        "bias": "none",
        **settings,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
    return folder
