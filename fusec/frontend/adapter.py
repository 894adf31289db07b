"""LoRA adapters: low-rank matrices beside the linear layers of a model, as PEFT saves them.

A layer `y = x W^T + b` becomes `y + s (x A^T) B^T` with A [r, K], B [N, r] and s = alpha/r, or
alpha/sqrt(r) for rank-stabilised ones.  The layer's own weight stays what it is, quantised or not.
Sources: Hu et al., "LoRA" (2021); Kalajdzievski, "Rank stabilization" (2023); the documentation of
PEFT for names in its files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusec.diagnostics import InputError, UnsupportedError
from fusec.dtypes import DTYPES
from fusec.frontend.safetensors_index import Stored, json_object, read_header
from fusec.frontend.tensors import bits_of, name_of, tensor_of
from fusec.ir.types import TensorType
from fusec.ir.weights import Bits, Weight

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
PART = re.compile(r"(?P<path>.+)\.lora_(?P<side>[AB])\.weight")

REFUSED = (
    "use_dora",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "layer_replication",
    "fan_in_fan_out",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
)
"""What an adapter may have beyond two matrices a layer."""

MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin that also change the weights of the base."""

HINT = "merge the adapter into its model with PEFT's `merge_and_unload`, and compile that"


class LoraLinear(nn.Linear):
    """A linear layer with a low-rank matrix beside it.

    Args:
        base: the layer; its parameters are taken over.
        rank: of the matrix.
        scaling: what it is multiplied by.
    """

    def __init__(self, base: nn.Linear, rank: int, scaling: float) -> None:
        inner, outer = base.in_features, base.out_features
        device, dtype = base.weight.device, base.weight.dtype
        super().__init__(inner, outer, base.bias is not None, device, dtype)
        self.weight, self.bias = base.weight, base.bias
        self.lora_A = nn.Linear(inner, rank, False, device, dtype)
        self.lora_B = nn.Linear(rank, outer, False, device, dtype)
        self.scaling = scaling

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Apply the layer to `input` [..., K]; gives [..., N]."""
        result: torch.Tensor = super().forward(input)
        beside: torch.Tensor = self.lora_B(self.lora_A(input))
        return result + beside * self.scaling


@dataclass(frozen=True, slots=True)
class _Settings:
    """How much of an adapter's product is added.

    Attributes:
        alpha: for all layers.
        patterns: other values for some, by patterns over paths.
        stabilised: whether it is divided by the root of the rank.
    """

    alpha: float
    patterns: Mapping[str, float]
    stabilised: bool

    def scaling(self, path: str, rank: int) -> float:
        """For the layer at `path`."""
        own = (
            value
            for pattern, value in self.patterns.items()
            if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", path)
        )
        alpha = float(next(own, self.alpha))
        return alpha / rank**0.5 if self.stabilised else alpha / rank


def base_of(folder: Path) -> Path:
    """The folder of the model that an adapter is for.

    Raises:
        InputError: it is not on this machine.
    """
    named = _config(folder).get("base_model_name_or_path")
    hint = f"name the folder of the model: `fusec compile MODEL --adapter {folder}`"
    if not isinstance(named, str) or not named:
        raise InputError("the adapter does not name its model", at=f"{folder / CONFIG}", hint=hint)
    for place in (folder / named, Path(named)):
        if (place / "config.json").is_file():
            return place
    message = f"the adapter is for `{named}`, which is no folder here"
    raise InputError(message, at=f"{folder / CONFIG}", hint=hint)


def adapt(model: nn.Module, folder: Path) -> dict[str, Weight]:
    """Add the adapter in `folder` to `model`.

    Returns:
        The weights that it brings, by their names in the model, in the dtypes of the layers.

    Raises:
        InputError: its files are damaged or do not fit the model.
        UnsupportedError: it is more than two matrices beside linear layers.
    """
    settings = _settings(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise _lacks(folder, WEIGHTS)
    weights: dict[str, Weight] = {}
    for layer, (a, b) in _layers(read_header(path), path).items():
        base = _linear(model, layer, path)
        rank = a.shape[0]
        expected = {"A": (rank, base.in_features), "B": (base.out_features, rank)}
        for side, held in (("A", a), ("B", b)):
            if held.shape != expected[side]:
                said = f"`{layer}.lora_{side}.weight` is {list(held.shape)}"
                message = f"{said}, not {list(expected[side])}"
                raise InputError(message, at=str(path), hint="the adapter is for another model")
            name = f"{layer}.lora_{side}.weight"
            weights[name] = _weight(held, name, base.weight.dtype)
        model.set_submodule(layer, LoraLinear(base, rank, settings.scaling(layer, rank)).eval())
    return weights


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise _lacks(folder, CONFIG) from None
    return json_object(text, path)


def _lacks(folder: Path, file: str) -> InputError:
    hint = "name the folder that PEFT's `save_pretrained` wrote"
    return InputError(f"the adapter has no `{file}`", at=str(folder), hint=hint)


def _settings(folder: Path) -> _Settings:
    config, at = _config(folder), str(folder / CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedError(f"adapters of the kind `{kind}` are not read", at=at, hint=HINT)
    begun = str(config.get("init_lora_weights", True)).lower()
    refused = [f"`{name}`" for name in REFUSED if config.get(name)]
    refused += [f"`bias` {config['bias']}"] if config.get("bias", "none") != "none" else []
    refused += [f"`init_lora_weights` {begun}"] if begun.startswith(MOVES_BASE) else []
    if refused:
        message = f"the adapter has {', '.join(refused)}, which fusec does not read"
        raise UnsupportedError(message, at=at, hint=HINT)
    alpha, patterns = config.get("lora_alpha"), config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not _numbers([alpha, *patterns.values()]):
        raise InputError("`lora_alpha` and `alpha_pattern` are not numbers", at=at)
    return _Settings(float(alpha or 0), patterns, bool(config.get("use_rslora")))


def _numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _layers(held: Mapping[str, Stored], path: Path) -> dict[str, tuple[Stored, Stored]]:
    """The two matrices of each layer, by its path in the model."""
    sides: dict[str, dict[str, Stored]] = {}
    for name, stored in held.items():
        match = PART.fullmatch(name.removeprefix(PREFIX))
        if match is None:
            message = f"`{name}` is no matrix beside a linear layer, and fusec does not read it"
            raise UnsupportedError(message, at=str(path), hint=HINT)
        if not DTYPES[stored.dtype].is_float or len(stored.shape) != 2:
            said = f"{stored.dtype}{list(stored.shape)}"
            raise InputError(f"`{name}` is {said}, not a matrix", at=str(path))
        sides.setdefault(match["path"], {})[match["side"]] = stored
    if not sides:
        raise InputError("the adapter holds no matrices", at=str(path))
    for layer, found in sides.items():
        if len(found) < 2:
            other = "B" if "A" in found else "A"
            message = f"the adapter lacks `{layer}.lora_{other}.weight`"
            raise InputError(message, at=str(path), hint="the file is not complete")
    return {layer: (found["A"], found["B"]) for layer, found in sides.items()}


def _linear(model: nn.Module, layer: str, path: Path) -> nn.Linear:
    modules = dict(model.named_modules())
    found = modules.get(layer)
    if type(found) is nn.Linear:
        return found
    experts, inside, _ = layer.rpartition(".experts.")
    if inside and f"{experts}.experts" in modules:
        what = f"`{layer}` is one of the experts that `{experts}.experts` holds as one weight"
        raise UnsupportedError(f"{what}; those are not adapted", at=str(path), hint=HINT)
    if found is not None:
        message = f"`{layer}` is a `{type(found).__name__}`; adapters are read for linear layers"
        raise UnsupportedError(message, at=str(path), hint=HINT)
    message = f"the adapter is for the layer `{layer}`, which the model does not have"
    raise InputError(message, at=str(path), hint="the adapter is for another model")


def _weight(stored: Stored, name: str, dtype: torch.dtype) -> Weight:
    """A matrix of an adapter in the dtype of its layer."""
    weight = stored.weight(name)
    if weight.type.dtype == name_of(dtype):
        return weight

    def change(bits: Bits) -> Bits:
        return bits_of(tensor_of(bits, stored.dtype).to(dtype))

    return weight.derive(name, TensorType(name_of(dtype), stored.shape), "cast", change)
