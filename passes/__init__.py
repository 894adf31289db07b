"""The passes, in the order they run.  `README.md` has the rules for writing one."""

from __future__ import annotations

from fusec.passes.activations import Activations
from fusec.passes.add_rms_norm import AddRmsNorm
from fusec.passes.add_rms_norm_quant import AddRmsNormQuant
from fusec.passes.attention import Attention
from fusec.passes.attention_heads import AttentionHeads
from fusec.passes.attention_mask import AttentionMask
from fusec.passes.canonicalise import Canonicalise
from fusec.passes.causal_conv1d import CausalConv1d
from fusec.passes.conv_epilogue import ConvEpilogue
from fusec.passes.dense_experts import DenseExperts
from fusec.passes.dual_rms_norm import DualRmsNorm
from fusec.passes.dual_rms_norm_quant import DualRmsNormQuant
from fusec.passes.fold_weights import FoldWeights
from fusec.passes.gated_delta_rule import GatedDeltaRule
from fusec.passes.gated_rms_norm import GatedRmsNorm
from fusec.passes.gated_rms_norm_quant import GatedRmsNormQuant
from fusec.passes.gelu_mul import GeluMul
from fusec.passes.gelu_mul_quant import GeluMulQuant
from fusec.passes.grouped_weight import GroupedWeight
from fusec.passes.l2_norm import L2Norm
from fusec.passes.layer_norm import LayerNorm
from fusec.passes.linear import Linear
from fusec.passes.linear_epilogue import LinearEpilogue
from fusec.passes.linear_glu import LinearGlu
from fusec.passes.loop_experts import LoopExperts
from fusec.passes.merge_gate_up import MergeGateUp
from fusec.passes.merge_qkv import MergeQkv
from fusec.passes.moe import Moe
from fusec.passes.moe_fp8 import MoeFp8
from fusec.passes.moe_mxfp4_dequant import MoeMxfp4Dequant
from fusec.passes.moe_mxfp4_native import MoeMxfp4Native
from fusec.passes.qk_norm_rope import QkNormRope
from fusec.passes.qk_rope import QkRope
from fusec.passes.quantise import Quantise
from fusec.passes.rms_norm import RmsNorm
from fusec.passes.rms_norm_quant import RmsNormQuant
from fusec.passes.rope import Rope
from fusec.passes.router import Router
from fusec.passes.row_quantize import RowQuantize
from fusec.passes.silu_mul import SiluMul
from fusec.passes.silu_mul_quant import SiluMulQuant
from fusec.passes.swiglu_oai import SwigluOai
from fusec.passes.swiglu_oai_quant import SwigluOaiQuant
from fusec.passes.wide_linear import WideLinear
from fusec.rewrite import Pass

PIPELINE: tuple[type[Pass], ...] = (
    Canonicalise,
    # raise
    Linear,
    RmsNorm,
    LayerNorm,
    L2Norm,
    Activations,
    Canonicalise,
    GatedRmsNorm,
    Rope,
    SwigluOai,
    SiluMul,
    GeluMul,
    Attention,
    AttentionHeads,
    AttentionMask,
    Moe,
    DenseExperts,
    LoopExperts,
    GroupedWeight,
    CausalConv1d,
    GatedDeltaRule,
    RowQuantize,
    # merge
    MergeGateUp,
    MergeQkv,
    Canonicalise,
    WideLinear,
    Router,
    # quantise
    Quantise,
    MoeFp8,
    MoeMxfp4Native,
    MoeMxfp4Dequant,
    # fuse
    QkNormRope,
    QkRope,
    DualRmsNorm,
    AddRmsNorm,
    DualRmsNormQuant,
    GatedRmsNormQuant,
    AddRmsNormQuant,
    RmsNormQuant,
    SiluMulQuant,
    GeluMulQuant,
    SwigluOaiQuant,
    LinearGlu,
    LinearEpilogue,
    ConvEpilogue,
    FoldWeights,
)
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
    "gelu_mul_quant",
    "swiglu_oai",
    "swiglu_oai_quant",
    "linear_epilogue",
    "conv_epilogue",
    "linear_glu",
    "qk_norm_rope",
    "qk_rope",
    "rope",
    "attention",
    "attention_mask",
    "attention_quant",
    "gated_delta_rule",
    "selective_scan",
    "moe",
    "moe_fp8",
    "moe_mxfp4_native",
    "moe_mxfp4_dequant",
    "merge_qkv",
    "merge_gate_up",
    "allreduce_rms_norm",
    "quantise",
)
"""The names of fusions in decisions and requirements; they are stable."""
