"""What `peers.py` times: modules with seeded weights, their inputs, and what float64 gives.

A workload is one program at one size in one dtype.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peer_modules import (
    AddRmsFp8,
    DualRmsNorm,
    GatedRmsNorm,
    Linear,
    LlamaBlock,
    RmsNorm,
    SiluMul,
    SiluMulFp8,
    Softmax,
    normal,
)
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[2] / "samples"))

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
WIDE = (torch.float32, torch.bfloat16, torch.float16)
"""Types that the reference computes in float64 instead."""

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
GROUP = 32
"""Elements that share a scale in mxfp4."""

VOCABULARY = 2048
"""Small, so that it is the layers that count."""

Built = tuple[nn.Module, dict[str, Tensor]]


@dataclass(frozen=True)
class Workload:
    """One program at one size.

    Attributes:
        name: `GROUP/PROGRAM/DTYPE`.
        dtype: a name in `DTYPES`.
        build: makes the module and its inputs, by the names of the arguments.
        quantize: what `fusec.compile` is asked for; the weights are exact in that format.
        goal: the ratio of the best peer's time to fusec's that is aimed at.
        precision: of products of f32: what `--fp32-precision` takes, and PyTorch by that name.
    """

    name: str
    dtype: str
    build: Callable[[], Built]
    quantize: tuple[str, ...] = ()
    goal: float = 1.5
    precision: str = "highest"


def workloads(smoke: bool) -> Iterator[Workload]:
    """All workloads, at tiny sizes for `smoke`."""
    yield from _llama(smoke)
    yield from _operations(smoke)
    yield from _linears(smoke)
    yield from _experts(smoke)
    yield from _models(smoke)
    yield from _others(smoke)


def _llama(smoke: bool) -> Iterator[Workload]:
    shape = (2, 64, 96, 4, 2) if smoke else (4, 1024, 2816, 16, 4)
    sizes = {"prefill": (2, 8) if smoke else (4, 256), "decode": (8, 1)}
    for phase, (batch, length) in sizes.items():
        for dtype in DTYPES:

            def build(batch: int = batch, length: int = length) -> Built:
                return LlamaBlock(*shape, length), {"x": torch.randn(batch, length, shape[1])}

            goal = 1.5 if phase == "prefill" else 1.4
            yield Workload(f"llama/{phase}/{dtype}", dtype, build, goal=goal)
            if phase == "prefill" and dtype == "f32":
                for precision in ("high", "medium"):
                    name = f"llama/{phase}/{dtype}-{precision}"
                    yield Workload(name, dtype, build, goal=goal, precision=precision)


def _operations(smoke: bool) -> Iterator[Workload]:
    rows, width = (8, 256) if smoke else (4096, 4096)
    heads, ranks = (32, (96, 64)) if smoke else (65536, (1536, 512))
    few = rows // 4

    def random(*shape: int) -> Tensor:
        return torch.randn(shape)

    programs: dict[str, tuple[Callable[[], Built], float]] = {
        "add_rms_fp8": (
            lambda: (AddRmsFp8(width), {"x": random(rows, width), "residual": random(rows, width)}),
            1.5,
        ),
        "silu_mul_fp8": (lambda: (SiluMulFp8(), {"x": random(rows, 2 * width)}), 1.5),
        "gated_rms_norm": (
            lambda: (GatedRmsNorm(128), {"x": random(heads, 128), "gate": random(heads, 128)}),
            1.5,
        ),
        "dual_rms_norm": (
            lambda: (
                DualRmsNorm(*ranks),
                {"query": random(rows, ranks[0]), "key": random(rows, ranks[1])},
            ),
            1.2,
        ),
        "rms_norm": (lambda: (RmsNorm(width), {"x": random(rows, width)}), 1.2),
        "layer_norm": (lambda: (nn.LayerNorm(width), {"input": random(rows, width)}), 1.2),
        "silu_mul": (
            lambda: (SiluMul(), {"gate": random(rows, width), "up": random(rows, width)}),
            1.2,
        ),
        "softmax": (lambda: (Softmax(), {"x": random(few, width)}), 1.2),
    }
    for name, (build, goal) in programs.items():
        yield Workload(f"ops/{name}/bf16", "bf16", build, goal=goal)
        if not name.endswith("fp8"):
            yield Workload(f"ops/{name}/f32", "f32", build, goal=goal)


def _linears(smoke: bool) -> Iterator[Workload]:
    width = 64 if smoke else 2880
    for rows, goal in ((1, 1.8), (8, 2.5), (64, 1.3), (512, 1.1)):

        def build(rows: int = rows) -> Built:
            return Linear(in_mxfp4(width, width)), {"x": torch.randn(rows, width)}

        yield Workload(f"mxfp4/m{rows}", "bf16", build, ("mxfp4:proj.*",), goal)


def _experts(smoke: bool) -> Iterator[Workload]:
    width, experts, rows = (64, 4, 8) if smoke else (2880, 32, 64)
    for format_ in ("bf16", "mxfp4"):

        def build(format_: str = format_) -> Built:
            from transformers import GptOssConfig
            from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP

            config = GptOssConfig(
                hidden_size=width,
                intermediate_size=width,
                num_local_experts=experts,
                num_experts_per_tok=min(4, experts),
            )
            mlp = GptOssMLP(config)
            held = mlp.experts
            weights = {"gate_up_proj": (2 * width, width), "down_proj": (width, width)}
            for name, shape in weights.items():
                if format_ == "mxfp4":
                    values = in_mxfp4(experts, *shape).transpose(1, 2).bfloat16()
                else:
                    values = torch.randn(experts, *reversed(shape), dtype=torch.bfloat16)
                    values /= width**0.5
                setattr(held, name, nn.Parameter(values))
            held.gate_up_proj_bias = normal(experts, 2 * width, scale=0.1)
            held.down_proj_bias = normal(experts, width, scale=0.1)
            mlp.router.weight = normal(experts, width, scale=width**-0.5)
            mlp.router.bias = normal(experts, scale=0.1)
            return First(mlp), {"given": torch.randn(1, rows, width)}

        quantize = ("mxfp4:experts",) if format_ == "mxfp4" else ()
        yield Workload(f"moe/{format_}", "bf16", build, quantize, goal=3.0)


class First(nn.Module):
    """The only or the first result of a part of transformers."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, given: Tensor) -> Tensor:
        found = self.part(given)
        out: Tensor = found if isinstance(found, Tensor) else found[0]
        return out


def experts_of(module: nn.Module) -> list[Any]:
    """The configurations that say how the routed experts in `module` are computed."""
    parts = [part for name, part in module.named_modules() if name.endswith(".experts")]
    return [part.config for part in parts if hasattr(part, "config")]


def compute_experts(module: nn.Module, implementation: str) -> None:
    """Choose how transformers computes routed experts: `eager`, `grouped_mm` or `batched_mm`."""
    for config in experts_of(module):
        config._experts_implementation = implementation


_WIDE: Mapping[str, Mapping[str, Any]] = {
    "llama": {"num_key_value_heads": 4, "head_dim": 64},
    "qwen3_moe": {
        "num_key_value_heads": 4,
        "head_dim": 64,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 512,
        "mlp_only_layers": [],
    },
    "qwen3_next": {
        "num_key_value_heads": 4,
        "head_dim": 64,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "linear_num_key_heads": 8,
        "linear_num_value_heads": 16,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
        "mlp_only_layers": [],
    },
    "deepseek_v3": {
        "num_key_value_heads": 16,
        "q_lora_rank": 384,
        "kv_lora_rank": 256,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 512,
    },
    "gpt_oss": {
        "num_key_value_heads": 4,
        "head_dim": 64,
        "num_local_experts": 16,
        "num_experts_per_tok": 4,
        "intermediate_size": 1024,
        "sliding_window": 128,
    },
    "bert": {},
}
"""What is set beside the width, over the settings of the samples."""


def _models(smoke: bool) -> Iterator[Workload]:
    batch, length = (2, 12) if smoke else (4, 256)
    common = {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "vocab_size": VOCABULARY,
    }
    for name, own in _WIDE.items():
        for dtype in DTYPES:

            def build(name: str = name, own: Mapping[str, Any] = own, dtype: str = dtype) -> Built:
                import transformers
                from models import SAMPLES, random_model

                sample = SAMPLES[name]
                settings = sample.settings if smoke else {**sample.settings, **common, **own}
                config = getattr(transformers, sample.config)(**settings)
                config.use_cache = False
                kind = getattr(transformers, sample.model)
                model = random_model(kind, config, str(DTYPES[dtype]).removeprefix("torch."))
                tokens = torch.randint(3, config.vocab_size, (batch, length))
                return First(model), {"given": tokens}

            yield Workload(f"models/{name}/{dtype}", dtype, build, goal=1.3)


@dataclass(frozen=True)
class Other:
    """A model that is no sample, at the depth and width that are timed.

    Attributes:
        config: a configuration class of transformers.
        model: a model class of transformers.
        settings: of the configuration.
        tiny: the same for `--smoke`.
        shape: of its input: tokens if it has two sizes, else pixels.
        tiny_shape: the same for `--smoke`.
    """

    config: str
    model: str
    settings: Mapping[str, Any]
    tiny: Mapping[str, Any]
    shape: tuple[int, ...]
    tiny_shape: tuple[int, ...]


_TOKENS, _TINY_TOKENS = (4, 256), (2, 12)
_IMAGES = (2, 3, 224, 224)

OTHERS: Mapping[str, Other] = {
    "gpt2": Other(
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_embd": 1024, "n_layer": 4, "n_head": 16},
        {"n_embd": 64, "n_layer": 1, "n_head": 4},
        _TOKENS,
        _TINY_TOKENS,
    ),
    "gemma3": Other(
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 4,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "sliding_window": 128,
        },
        {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
        },
        _TOKENS,
        _TINY_TOKENS,
    ),
    "mamba2": Other(
        "Mamba2Config",
        "Mamba2ForCausalLM",
        {
            "hidden_size": 1024,
            "num_hidden_layers": 4,
            "num_heads": 32,
            "head_dim": 64,
            "n_groups": 1,
        },
        {"hidden_size": 32, "num_hidden_layers": 1, "num_heads": 4, "head_dim": 16, "n_groups": 1},
        (2, 256),
        _TINY_TOKENS,
    ),
    "modernbert": Other(
        "ModernBertConfig",
        "ModernBertForMaskedLM",
        {"num_hidden_layers": 4},
        {
            "num_hidden_layers": 1,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_attention_heads": 4,
        },
        _TOKENS,
        _TINY_TOKENS,
    ),
    "vit": Other(
        "ViTConfig",
        "ViTForImageClassification",
        {"num_hidden_layers": 4},
        {
            "num_hidden_layers": 1,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "image_size": 32,
        },
        _IMAGES,
        (2, 3, 32, 32),
    ),
    "swin": Other(
        "SwinConfig",
        "SwinForImageClassification",
        {},
        {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "image_size": 56},
        _IMAGES,
        (2, 3, 56, 56),
    ),
    "convnext": Other(
        "ConvNextConfig",
        "ConvNextForImageClassification",
        {},
        {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]},
        _IMAGES,
        (2, 3, 32, 32),
    ),
    "resnet": Other(
        "ResNetConfig",
        "ResNetForImageClassification",
        {},
        {"depths": [1, 1], "hidden_sizes": [16, 32], "embedding_size": 8},
        _IMAGES,
        (2, 3, 32, 32),
    ),
}


def _others(smoke: bool) -> Iterator[Workload]:
    for name, other in OTHERS.items():
        for dtype in DTYPES:

            def build(other: Other = other, dtype: str = dtype) -> Built:
                import transformers
                from models import random_model

                config = getattr(transformers, other.config)(
                    **(other.tiny if smoke else other.settings)
                )
                shape = other.tiny_shape if smoke else other.shape
                is_text = len(shape) == 2
                if is_text:
                    config.vocab_size = VOCABULARY
                    config.use_cache = False
                    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
                kind = getattr(transformers, other.model)
                model = random_model(kind, config, str(DTYPES[dtype]).removeprefix("torch."))
                for part in model.modules():
                    if isinstance(part, nn.Conv2d):  # `random_model` divides by the last size alone
                        nn.init.kaiming_normal_(part.weight)
                given = torch.randint(3, VOCABULARY, shape) if is_text else torch.randn(shape)
                return First(model), {"given": given}

            yield Workload(f"others/{name}/{dtype}", dtype, build, goal=1.0)


def in_mxfp4(*shape: int) -> Tensor:
    """Random weights that mxfp4 holds exactly, in groups of 32 of the last axis.

    Each group has an element of 6, the largest of e2m1, so whoever quantises it finds its scale.
    """
    values = torch.tensor(E2M1)[torch.randint(len(E2M1), shape)]
    groups = values.view(*shape[:-1], -1, GROUP)
    groups[..., 0] = E2M1[-1]
    signs = torch.randint(2, groups.shape) * 2 - 1
    scales = torch.exp2(torch.randint(-1, 2, (*groups.shape[:-1], 1)).float())
    norm = 2.0 ** -round(float(torch.tensor(9.0 * shape[-1]).log2()) / 2)
    return (groups * signs * scales * norm).view(shape)


class InDouble(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Computes in float64 whatever the program says, but for what it rounds to 8-bit floats."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation with every float widened; views are left as they are."""
        given = kwargs or {}
        if func.is_view:
            return func(*args, **given)
        return func(*pytree.tree_map(_double, args), **pytree.tree_map(_double, given))


def _double(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float64 if value in WIDE else value
    if isinstance(value, Tensor) and value.dtype in WIDE:
        return value.double()
    return value


def seeded(workload: Workload) -> Built:
    """The module in evaluation mode and its inputs, both in the workload's dtype."""
    torch.manual_seed(0)
    module, inputs = workload.build()
    kind = DTYPES[workload.dtype]
    if not workload.name.startswith(("models/", "others/")):  # those keep some parts in f32
        module = module.to(kind)
    inputs = {k: v.to(kind) if v.is_floating_point() else v for k, v in inputs.items()}
    return module.eval().requires_grad_(False), inputs


def outputs_of(result: Any) -> list[Tensor]:
    """The tensors that a module gives."""
    return [result] if isinstance(result, Tensor) else list(result)


def reference(module: nn.Module, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """What the module gives in float64, with its weights as they are."""
    wide = copy.deepcopy(module).double()  # convolutions compare dtypes before they are widened
    compute_experts(wide, "eager")  # grouped products have no float64
    with torch.no_grad(), InDouble():  # type: ignore[no-untyped-call]
        given = {name: _double(value) for name, value in inputs.items()}
        return [each.double() for each in outputs_of(wide(**given))]


def relative_error(got: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest error of an output, in the root mean square, relative to that of the output.

    NaN if one is not a number, wherever it stands among the outputs.

    Raises:
        ValueError: an output has another number of elements.
    """
    errors = []
    for ours, meant in zip(got, wanted, strict=True):
        if ours.numel() != meant.numel():
            raise ValueError(f"an output is {[*ours.shape]}, not {[*meant.shape]}")
        errors.append((ours.double().flatten() - meant.flatten()).norm() / meant.norm())
    return float(torch.stack(errors).max())
