"""What a person can change so that a refused fusion fires.

One line for each code that the docstring of a fusion lists; a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping

_NOT_QUANTISED = "quantise what reads it: `--quantize` takes a pattern over names of weights"
_HEADS_TP = "give `--tp` a number that divides the heads"
_HEADS = "norm rows of [..., heads, size], and put the heads side by side after"
_GRANULARITY = "give the scale, as a static input scale, or quantise by token or group"
_LENGTH = "give the last axis a fixed size, such as that of the channels"
_REQUEST = "give `--quantize` a pattern that fits all of these weights, or none"
_MXFP4_EXPERTS = {
    "activation": "only experts with a gate are multiplied in 4-bit floats; `fp8-block` takes all",
    "dtype": "compile in `--dtype bf16` or `f16`",
    "request": _REQUEST,
    "scales": "hold both weights in 4-bit floats with an e8m0 scale for 32 inputs",
    "shape": "use sizes that are multiples of 32, or quantise these experts to `fp8-token`",
    "weight": "keep weights and biases as parameters: what is computed cannot be packed in advance",
}

HINTS: Mapping[str, Mapping[str, str]] = {
    "add_rms_norm": {
        "shape": "give both sides of the residual join one shape",
        "dtype": "keep the residual stream and the norm that reads it in one dtype",
        "weight": "give the norm a weight, of ones if need be",
    },
    "add_rms_norm_quant": {
        "granularity": _GRANULARITY,
        "output-not-quantised": _NOT_QUANTISED,
        "shape": "quantise rows of the size that is computed",
    },
    "attention": {
        "axis": "take the softmax over the last axis of the scores, that of the keys",
        "batch": "give q, k and v one batch size",
        "dtype": "cast q, k and v to one dtype before the product",
        "fill": "hide keys by minus infinity, or by the lowest number of the dtype",
        "head-dim": "give heads a fixed size, at most 512; products of channels stay products",
        "heads": "repeat the heads of k and v up to those of q; the fusion takes that back",
        "mask-shape": "give the mask a shape that broadcasts to [batch, heads, queries, keys]",
        "rank": "give q, k and v as [batch, heads, positions, size]",
        "scores": "call `scaled_dot_product_attention`, or scale, cap and mask in this order",
        "sinks-shape": "give one sink for each head",
    },
    "attention_mask": {
        "empty-rows": "hide keys by minus infinity or by flags, not by finite numbers",
        "mask-not-analysed": "make the mask from comparisons of positions; it is read whole now",
    },
    "dual_rms_norm": {
        "single": "only a model whose queries are low-rank as well (`q_lora_rank`) has both norms",
        "offset": "multiply by the weight alike in both norms",
        "weight": "give both norms a weight, of ones if need be",
    },
    "dual_rms_norm_quant": {
        "granularity": _GRANULARITY,
        "output-not-quantised": _NOT_QUANTISED,
        "scale": "quantise the projections up by token or group",
        "scalings": "give both projections up one format",
    },
    "gated_delta_rule": {
        "eps": "norm q and k with one eps, added under the root",
        "heads": "repeat the heads of q and k alike, or of neither",
    },
    "gated_rms_norm": {
        "gdn.heads-tp": _HEADS_TP,
        "gdn.shape": _HEADS,
        "shape": "give the gate the shape of what is normed",
    },
    "gated_rms_norm_quant": {
        "gdn.head-dim": "only heads of 2, 4, ... 256 elements are quantised as they are normed",
        "gdn.heads-tp": _HEADS_TP,
        "gdn.shape": _HEADS,
        "granularity": _GRANULARITY,
        "group": "use a group that is a multiple of the size of a head, or divides it",
        "output-not-quantised": _NOT_QUANTISED,
        "row": "quantise by group",
    },
    "gelu_mul": {
        "length": _LENGTH,
        "shape": "give gate and up one shape",
    },
    "gelu_mul_quant": {
        "granularity": _GRANULARITY,
        "output-not-quantised": _NOT_QUANTISED,
        "shape": "quantise rows of the size that is computed",
    },
    "conv_epilogue": {
        "channel": "give a batch norm one factor and one offset for each channel",
        "dtype": "compile in `--dtype bf16`, `f16` or `f32`",
        "shape": "give the residual the shape of the result",
        "weight": "give the sizes of the filters with `--dim`",
    },
    "linear_epilogue": {
        "dtype": "compile in `--dtype bf16`, `f16` or `f32`",
        "shape": "give the residual the shape of the product",
        "weight": "keep the weight as a parameter, or give its sizes with `--dim`",
    },
    "linear_glu": {
        "dtype": "compile in `--dtype bf16`, `f16` or `f32`",
        "halves": "make gate and up the halves, gate first, or the alternate columns of a product",
        "weight": "keep the weight as a parameter, which can be put in order ahead of time",
    },
    "merge_gate_up": {
        "input": "project gate and up from one value",
        "scales": "quantise both projections alike, in blocks that end where a projection ends",
        "tied": "give the projection a weight of its own",
        "weight": "keep the weight as a parameter: what is computed cannot be joined ahead of time",
    },
    "merge_qkv": {
        "scales": "quantise all projections alike, in blocks that end where a projection ends",
        "tied": "give the projection a weight of its own",
        "weight": "keep the weight as a parameter: what is computed cannot be joined ahead of time",
    },
    "moe": {
        "activation": "use an activation that `moe` has; the products run one by one now",
        "bias": "give both products a bias, picked by the expert of the row, or neither",
        "dtype": "compile in `--dtype bf16`, `f16` or `f32`",
        "experts": "multiply by one batch of matrices, one matrix an expert",
        "gate": "make gate and up the halves, gate first, or the alternate columns, of one product",
        "matrix": "give all experts weights of one shape, stored with the model",
        "layout": "store both weights as [experts, out, in], or both as [experts, in, out]",
        "offsets": "count the rows of each expert from the sorted indices",
        "order": "sort the rows of tokens by expert, and put them back by the inverse order",
        "routing": "multiply the output of each expert by one number a token",
        "scores": "scatter the k scores of a token over zeros, at the indices of the top-k",
        "shared": "give each expert weights that nothing else reads",
        "sum": "add the outputs of a token's experts up at the end",
        "tokens": "give every expert all tokens",
    },
    "moe_fp8": {
        "dtype": "compile in `--dtype bf16`",
        "fp8.arch": "compile for a target that multiplies this 8-bit float, or give e4m3fn",
        "request": _REQUEST,
        "scales": "hold both weights with scales for 128x128 elements, for rows, or for matrices",
        "shape": "use sizes that are multiples of what shares a scale, or `fp8-token`",
        "weight": "keep the weights as parameters: what is computed cannot be packed ahead of time",
    },
    "moe_mxfp4_dequant": _MXFP4_EXPERTS,
    "moe_mxfp4_native": {
        **_MXFP4_EXPERTS,
        "mxfp4.align": "compile with `--mxfp4-align pad`, or require `moe_mxfp4_dequant`",
        "mxfp4.arch": "compile for `gfx950`, or require `moe_mxfp4_dequant`",
    },
    "quantise": {
        "dtype": "compile in `--dtype bf16`",
        "fp8.arch": "compile for a target that multiplies this 8-bit float, or give e4m3fn",
        "mxfp8.arch": "compile for `gfx950`, or quantise to `fp8-block`",
        "request": "give `--quantize` a pattern that fits all of these weights, or `--disable` the "
        "merge",
        "scales": "hold the weight with scales for 128x128 elements, for rows, or for all of it",
        "shape": "use sizes that are multiples of what shares a scale, or `fp8-token`",
        "weight": "keep the weight as a parameter: what is computed cannot be packed ahead of time",
    },
    "qk_norm_rope": {
        "angle": "take the cosine and the sine of one angle, and scale the scores instead",
        "eps": "give both norms one eps",
        "head": "norm the elements of each head, after they are told apart",
        "offset": "multiply both normed values by w, or both by 1 + w",
        "order": "norm queries and keys before they are rotated, or leave the weights out",
        "shape": "rotate queries and keys of the same tokens",
        "single": "norm both q and k, or neither",
        "style": "rotate q and k in one way",
        "tables": "rotate q and k by the same tables",
        "weight": "give both norms a weight, or neither",
    },
    "qk_rope": {
        "shape": "rotate queries and keys of the same tokens",
        "style": "rotate q and k in one way",
        "tables": "rotate q and k by the same tables",
    },
    "rms_norm_quant": {
        "granularity": _GRANULARITY,
        "output-not-quantised": _NOT_QUANTISED,
        "shape": "quantise rows of the size that is computed",
    },
    "rope": {
        "dtype": "round the rotated value to the dtype that it had before",
        "layout": "rotate the halves, or the even and odd elements, of one stretch of a row",
        "shape": "give tables that broadcast to the rotated elements",
        "table": "make the table as `cat((angles, angles), -1)`, or store it",
    },
    "silu_mul": {
        "length": _LENGTH,
        "shape": "give gate and up one shape",
    },
    "silu_mul_quant": {
        "granularity": _GRANULARITY,
        "output-not-quantised": _NOT_QUANTISED,
        "shape": "quantise rows of the size that is computed",
    },
    "swiglu_oai": {
        "length": _LENGTH,
        "limit": "clamp gate from above, and up on both sides, by one limit",
        "shape": "give gate and up one shape",
    },
    "swiglu_oai_quant": {
        "granularity": _GRANULARITY,
        "output-not-quantised": _NOT_QUANTISED,
        "shape": "quantise rows of the size that is computed",
    },
}
"""By fusion and code."""

ALWAYS: Mapping[str, str] = {
    "cycle": "compute the operands of the fusion without its results",
    "escapes": "remove the other reader, such as an output that is only looked at",
}
"""For the two codes that every fusion has."""


def hint_for(fusion: str, code: str) -> str | None:
    """What to change so that `fusion` is not refused by `code`; `None` if nobody knows."""
    return HINTS.get(fusion, {}).get(code) or ALWAYS.get(code)
