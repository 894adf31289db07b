"""What PyTorch computes for a model folder, and how far a result is from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.generic]]
Floats = NDArray[np.float64]


def eager(folder: Path, inputs: Arrays, dtype: torch.dtype) -> dict[str, Floats]:
    """The model of `folder`, computed by PyTorch in `dtype`.

    Weights are those of the folder whatever `dtype` is, so that float64 gives the exact answer for
    a model that is stored in bfloat16.
    """
    config = json.loads((folder / "config.json").read_text())
    kind = getattr(transformers, config["architectures"][0])
    model = kind.from_pretrained(folder, dtype="auto", attn_implementation="eager")
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # grouped products have no float64
    model = model.to(dtype).eval()
    tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in inputs.items()}
    tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    with torch.no_grad():
        result = model(**tensors)
    wanted = ("logits", "last_hidden_state", "pooler_output")
    return {
        name: result[name].double().numpy()
        for name in wanted
        if name in result and result[name] is not None
    }


def tokens(batch: int, length: int, vocabulary: int = 300, seed: int = 0) -> Arrays:
    """Random token ids."""
    rng = np.random.default_rng(seed)
    return {"input_ids": rng.integers(3, vocabulary, size=(batch, length))}


def images(batch: int, size: int = 48, seed: int = 0) -> Arrays:
    """Random images."""
    rng = np.random.default_rng(seed)
    return {"pixel_values": rng.standard_normal((batch, 3, size, size)).astype(np.float32)}


def largest_error(got: NDArray[np.generic], wanted: Floats) -> float:
    """The largest difference, relative to the largest wanted value."""
    difference = np.abs(np.asarray(got, dtype=np.float64) - wanted)
    return float(difference.max() / np.abs(wanted).max())


def rms_error(got: NDArray[np.generic], wanted: Floats) -> float:
    """The root mean square of the difference, relative to that of what is wanted."""
    difference = np.asarray(got, dtype=np.float64) - wanted
    return float(np.sqrt(np.mean(difference**2) / np.mean(wanted**2)))
