"""The passes, in the order they run.  `README.md` has the rules for writing one."""

from __future__ import annotations

from fusec.passes.canonicalise import Canonicalise
from fusec.rewrite import Pass

PIPELINE: tuple[type[Pass], ...] = (Canonicalise,)
"""Every pass.  `after` of each one is checked against this order by a test."""

FUSIONS = (
    "add_rms_norm",
    "rms_norm_quant",
    "add_rms_norm_quant",
    "gated_rms_norm",
    "gated_rms_norm_quant",
    "dual_rms_norm",
    "dual_rms_norm_quant",
    "silu_mul",
    "silu_mul_quant",
    "gelu_mul",
    "swiglu_oai",
    "swiglu_oai_quant",
    "qk_norm_rope",
    "rope",
    "attention",
    "attention_quant",
    "gated_delta_rule",
    "moe",
    "moe_fp8",
    "moe_mxfp4_native",
    "moe_mxfp4_dequant",
    "merge_qkv",
    "merge_gate_up",
    "allreduce_rms_norm",
)
"""The names of fusions in decisions and requirements; they are stable."""
