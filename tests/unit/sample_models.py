"""The models of `samples/models.py`, for tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

_PATH = Path(__file__).parents[2] / "samples" / "models.py"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("fusec_sample_models", _PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


samples = _load()
NAMES: tuple[str, ...] = tuple(samples.SAMPLES)


def build(name: str, folder: Path, dtype: str = "float32", **settings: object) -> Path:
    """A model folder; see `samples/models.py`."""
    built: Path = samples.build(name, folder, dtype, **settings)
    return built


def reference(folder: Path, dtype: str = "float32") -> Any:
    """The model in `folder` as transformers loads it."""
    import json

    import torch
    import transformers

    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, name).from_pretrained(folder, dtype=getattr(torch, dtype))
    model.config._experts_implementation = "eager"  # the grouped one takes no float64
    return model.eval()
