"""Quantised sample folders, and the same models with plain weights of the exact values.

The values are worked out here by torch and by transformers' own code, not by fusec's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sample_models import build
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

SMALL: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 1},
    "qwen3_moe": {"num_hidden_layers": 2},
    "gpt_oss": {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
    "deepseek_v3": {"num_hidden_layers": 2},
    "kimi_linear": {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]},
}
"""Settings for as few layers as have all parts."""


def quantised(name: str, folder: Path, layout: str, **settings: Any) -> Path:
    """A sample in `layout`, with few layers."""
    return build(name, folder, quantise=layout, **{**SMALL[name], **settings})


def changed(
    folder: Path, to: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]
) -> Path:
    """A copy of a folder, its tensors and `quantization_config` changed by `change`."""
    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    config = json.loads((to / "config.json").read_text())
    change(tensors, config["quantization_config"])
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    (to / "config.json").write_text(json.dumps(config))
    return to


def without_weights(folder: Path, to: Path) -> Path:
    """A folder with the same `config.json` and nothing else."""
    to.mkdir()
    shutil.copy(folder / "config.json", to)
    return to


def exact(folder: Path, to: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The model of a quantised folder with plain weights, in `dtype`."""
    to.mkdir()
    stored = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    block = config.pop("quantization_config").get("weight_block_size")
    plain: dict[str, torch.Tensor] = {}
    for name, held in stored.items():
        if name.endswith("_blocks"):
            base = name.removesuffix("_blocks")
            values = convert_moe_packed_tensors(held, stored[f"{base}_scales"], dtype=torch.float32)
            plain[base] = values.to(dtype)
        elif f"{name}_scale_inv" in stored:
            plain[name] = (held.float() * _wide(stored[f"{name}_scale_inv"], held, block)).to(dtype)
        elif f"{name.removesuffix('_packed')}_scale" in stored:
            base = name.removesuffix("_packed")
            plain[base] = _scaled(held, stored[f"{base}_scale"]).to(dtype)
        elif not name.endswith(("_scale", "_scale_inv", "_scales")):
            plain[name] = held.to(dtype) if held.is_floating_point() else held
    save_file(plain, to / "model.safetensors", {"format": "pt"})
    config["dtype"] = str(dtype).removeprefix("torch.")
    (to / "config.json").write_text(json.dumps(config))
    return to


def _wide(scale: torch.Tensor, like: torch.Tensor, block: list[int] | None) -> torch.Tensor:
    if block is None:
        return scale.float()
    wide = scale.float().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return wide[: like.shape[0], : like.shape[1]]


def _scaled(held: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    if held.dtype != torch.uint8 and scale.dtype != torch.uint8:
        return held.float() * scale.float()
    values = held.float() if held.dtype != torch.uint8 else _four_bits(held)
    wide = (2.0 ** (scale.float() - 127)).repeat_interleave(32, -1)
    return values * wide


def _four_bits(packed: torch.Tensor) -> torch.Tensor:
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values = torch.cat([values, -values])
    return values[torch.stack([packed & 15, packed >> 4], -1).flatten(-2).long()]
