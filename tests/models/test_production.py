"""The models of the outages at their published widths, quantised as they ship, on both AMD targets.

Each is compiled from `config.json` alone, so there are no weights: what counts is which fusions
fire at every layer, which kernels compute them, and that what no kernel computes yet is listed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from quantised_models import write_config

import fusec
from fusec.explanation import explain_text

TARGETS = ("gfx950", "gfx942")
QUANTIZE = {"kimi_linear": ["fp8-block"]}
"""What has to be asked for: the others ship quantised."""

# Llama has 2 layers, gpt-oss 2, DeepSeek-V3 3 (the first is dense), Qwen3-Next 4 (the last one
# attends, the others have a gated delta rule), Kimi-Linear 4 (likewise; the first MLP is dense).
# Every layer has two residual joins; the last norm of each model is read by a head in bf16.
FUSIONS: dict[str, dict[str, int]] = {
    "llama": {
        "rms_norm_quant": 1,
        "add_rms_norm_quant": 3,
        "add_rms_norm": 1,
        "silu_mul_quant": 2,
    },
    "deepseek_v3": {
        "rms_norm_quant": 1,
        "add_rms_norm_quant": 5,
        "add_rms_norm": 1,
        "dual_rms_norm_quant": 3,
        "silu_mul_quant": 3,
        "moe_fp8": 2,
    },
    "qwen3_next": {
        "rms_norm_quant": 1,
        "add_rms_norm_quant": 7,
        "add_rms_norm": 1,
        "gated_rms_norm_quant": 3,
        "qk_norm_rope": 1,
        "silu_mul_quant": 4,
        "moe_fp8": 4,
    },
    "kimi_linear": {
        "rms_norm_quant": 2,
        "add_rms_norm_quant": 7,
        "add_rms_norm": 1,
        "gated_rms_norm_quant": 3,
        "silu_mul_quant": 4,
        "moe_fp8": 3,
    },
    "gpt_oss": {},
}
"""Fusions of norms, activations and experts that fire on both targets, by model."""

BY_TARGET: dict[tuple[str, str], dict[str, int]] = {
    ("gpt_oss", "gfx950"): {"add_rms_norm_quant": 2, "add_rms_norm": 2, "moe_mxfp4_native": 2},
    ("gpt_oss", "gfx942"): {"add_rms_norm": 4, "moe_mxfp4_dequant": 2},
}
"""Those that fire on one of them: gfx942 has no matrix units for 4-bit floats."""

COMPUTED = ("norm", "silu_mul", "moe")
"""Parts of the names of fusions that kernels compute."""


@dataclass(frozen=True)
class Compiled:
    """A model, and what `inspect --json` says of its artifact for one target."""

    name: str
    section: Mapping[str, Any]

    def rows(self, status: str) -> list[Mapping[str, Any]]:
        """The decisions that were fired, or refused."""
        return [row for row in self.section["decisions"] if row["status"] == status]

    def computed(self) -> list[Mapping[str, Any]]:
        """The fired decisions that a kernel has to compute."""
        return [
            row for row in self.rows("fired") if any(part in row["fusion"] for part in COMPUTED)
        ]


@pytest.fixture(scope="module", params=FUSIONS)
def document(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The name of a model, and what `inspect --json` says of its artifact for both targets."""
    folder = tmp_path_factory.mktemp(request.param)
    made = fusec.compile(
        write_config(request.param, folder / "model", "shipped"),
        folder / "model.fusec",
        target=TARGETS,
        quantize=QUANTIZE.get(request.param, ()),
    )
    return request.param, made.document


@pytest.fixture(params=TARGETS)
def compiled(request: pytest.FixtureRequest, document: Any) -> Compiled:
    """One target of a model."""
    name, held = document
    (section,) = [each for each in held["targets"] if each["target"] == request.param]
    return Compiled(name, section)


def test_every_layer_fuses(compiled: Compiled) -> None:
    counts = Counter(row["fusion"] for row in compiled.computed())
    target = compiled.section["target"]
    assert counts == {**FUSIONS[compiled.name], **BY_TARGET.get((compiled.name, target), {})}


def test_every_fusion_has_its_kernel(compiled: Compiled) -> None:
    kernels = {kernel["name"] for kernel in compiled.section["kernels"]}
    for row in compiled.computed():
        assert row["backend"] in kernels, row
        op = {"moe_mxfp4_native": "moe_mxfp4", "moe_mxfp4_dequant": "moe_mxfp4"}
        assert row["backend"].partition(".")[0] == op.get(row["fusion"], row["fusion"])


def test_explain_names_the_kernels(compiled: Compiled) -> None:
    said = explain_text({"": compiled.section["decisions"]}, width=200)
    named = {row["backend"] for row in compiled.computed()}
    assert all(f" by {kernel}" in said for kernel in named)
    if compiled.name == "deepseek_v3":
        assert "  silu_mul_quant, 3 sites by silu_mul_quant.hip" in said


def test_nothing_is_left_to_the_host(compiled: Compiled) -> None:
    assert compiled.section["residual"] == []


def test_nothing_spills(compiled: Compiled) -> None:
    for kernel in compiled.section["kernels"]:
        for resource in ("scratch_bytes", "vgpr_spills", "sgpr_spills"):
            assert kernel["resources"][resource] == 0, kernel


def test_refusals_are_those_of_what_stays_wide(compiled: Compiled) -> None:
    codes = Counter((row["fusion"], row["code"]) for row in compiled.rows("refused"))
    unquantised = {key: n for key, n in codes.items() if key[1] == "output-not-quantised"}
    rest = codes - Counter(unquantised)
    wide = compiled.name == "gpt_oss" and compiled.section["target"] == "gfx942"
    assert bool(unquantised) != wide  # nothing there quantises, so nothing is missed
    assert rest == REFUSED.get(compiled.name, {}).get(compiled.section["target"], {})


REFUSED: dict[str, dict[str, dict[tuple[str, str], int]]] = {
    "gpt_oss": {"gfx942": {("moe_mxfp4_native", "mxfp4.arch"): 2}},
    "kimi_linear": {
        target: {("dual_rms_norm", "single"): 1, ("linear_epilogue", "shape"): 3}
        for target in TARGETS
    },
    "qwen3_next": {target: {("merge_qkv", "scales"): 3} for target in TARGETS},
}
"""What else is refused, by model and target."""


def test_gates_and_heads_are_read_from_the_graph(compiled: Compiled) -> None:
    activation = {"qwen3_next": "silu", "kimi_linear": "sigmoid"}.get(compiled.name)
    rows = [row for row in compiled.rows("fired") if row["fusion"] == "gated_rms_norm_quant"]
    assert bool(rows) == (activation is not None)
    for row in rows:
        details = row["details"]
        assert (details["heads"], details["head_dim"], details["group"]) == (32, 128, 128)
        assert details["activation"] == activation


def test_experts_are_padded_to_what_kernels_take(compiled: Compiled) -> None:
    rows = [row for row in compiled.rows("fired") if row["fusion"].startswith("moe_mxfp4")]
    assert bool(rows) == (compiled.name == "gpt_oss")
    for row in rows:
        details = row["details"]
        assert (details["hidden"], details["intermediate"]) == (2880, 2880)
        assert (details["hidden_pad"], details["intermediate_pad"]) == (192, 192)


def test_scaled_matrix_units_are_used_where_there_are_any(compiled: Compiled) -> None:
    native = [row for row in compiled.rows("fired") if row["fusion"] == "moe_mxfp4_native"]
    used = {name for kernel in compiled.section["kernels"] for name in kernel["machine"]["mfma"]}
    assert any(name.startswith("v_mfma_scale") for name in used) == bool(native)
    assert bool(native) == (compiled.name == "gpt_oss" and compiled.section["target"] == "gfx950")
