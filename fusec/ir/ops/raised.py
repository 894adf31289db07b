"""Operations that models write out by hand, each with one meaning, and fused ones.

Optional operands are announced by flags (`has_bias`, `has_mask`, ...) and come in the order in
which the operation's documentation lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from fusec.diagnostics import VerifyError
from fusec.ir.ops.base import (
    Array,
    Types,
    arity,
    define,
    float_operand,
    result_array,
    same_dtype,
)
from fusec.ir.ops.elementwise import gelu, sigmoid
from fusec.ir.ops.linear_algebra import conv, convolve, infer_conv, infer_linear, multiply_linear
from fusec.ir.types import (
    Attrs,
    TensorType,
    bool_attr,
    broadcast,
    float_attr,
    int_attr,
    str_attr,
)


def _weight_fits(x: TensorType, weight: TensorType) -> None:
    if weight.shape != x.shape[-1:]:
        raise VerifyError(f"weight `{weight}` does not fit the rows of `{x}`")
    float_operand(weight)


def _optional(attrs: Attrs, *flags: str) -> int:
    return sum(bool_attr(attrs, flag) for flag in flags)


# --- norms ----------------------------------------------------------------------------------


def rms_norm(x: Array, eps: float) -> Array:
    """x over its root mean square along the last axis (Zhang and Sennrich, 2019)."""
    return np.asarray(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps))


def _infer_rms_norm(types: Types, attrs: Attrs) -> Types:
    """x [..., N], weight [N] if `has_weight`; the weight may have another float dtype."""
    arity(types, 1 + _optional(attrs, "has_weight"))
    for weight in types[1:]:
        _weight_fits(types[0], weight)
    float_attr(attrs, "eps")
    return (float_operand(types[0]),)


def _rms_norm(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    normed = rms_norm(arrays[0], float_attr(attrs, "eps"))
    if bool_attr(attrs, "has_weight"):
        normed = normed * (arrays[1] + int_attr(attrs, "weight_offset"))
    return (normed,)


def _infer_add_rms_norm(types: Types, attrs: Attrs) -> Types:
    """x [..., N], residual [..., N], weight [N]: (norm of the sum, the sum)."""
    arity(types, 3)
    kind = types[0].with_dtype(same_dtype(types[:2]))
    if types[1].shape != kind.shape:
        raise VerifyError(f"`{types[0]}` and residual `{types[1]}` differ in shape")
    _weight_fits(kind, types[2])
    return kind, kind


def _add_rms_norm(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    total = arrays[0] + arrays[1]
    scale = arrays[2] + int_attr(attrs, "weight_offset")
    return rms_norm(total, float_attr(attrs, "eps")) * scale, total


def _infer_dual_rms_norm(types: Types, attrs: Attrs) -> Types:
    """x1 [..., N1], weight1 [N1], x2 [..., N2], weight2 [N2]: two independent norms."""
    arity(types, 4)
    _weight_fits(types[0], types[1])
    _weight_fits(types[2], types[3])
    if types[0].shape[:-1] != types[2].shape[:-1]:
        raise VerifyError(f"`{types[0]}` and `{types[2]}` differ in rows")
    return types[0], types[2]


def _dual_rms_norm(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    offset = int_attr(attrs, "weight_offset")
    first = rms_norm(arrays[0], float_attr(attrs, "eps1")) * (arrays[1] + offset)
    second = rms_norm(arrays[2], float_attr(attrs, "eps2")) * (arrays[3] + offset)
    return first, second


def _infer_gated_rms_norm(types: Types, attrs: Attrs) -> Types:
    """x [..., D], weight [D], gate [..., D]; `activation` of the gate is silu or sigmoid."""
    arity(types, 3)
    _weight_fits(types[0], types[1])
    if types[2].shape != types[0].shape:
        raise VerifyError(f"`{types[0]}` and gate `{types[2]}` differ in shape")
    if str_attr(attrs, "activation") not in ("silu", "sigmoid"):
        raise VerifyError(f"unknown gate activation `{attrs['activation']}`")
    return (types[0],)


def _gated_rms_norm(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    x, weight, gate = arrays
    weight = weight + int_attr(attrs, "weight_offset")
    gate = sigmoid(gate) * (gate if attrs["activation"] == "silu" else 1)
    eps = float_attr(attrs, "eps")
    if bool_attr(attrs, "norm_before_gate"):
        return (rms_norm(x, eps) * weight * gate,)
    return (rms_norm(x * gate, eps) * weight,)


def _infer_layer_norm(types: Types, attrs: Attrs) -> Types:
    """x [..., N], weight [N] if `has_weight`, bias [N] if `has_bias` (Ba et al., 2016)."""
    arity(types, 1 + _optional(attrs, "has_weight", "has_bias"))
    for weight in types[1:]:
        _weight_fits(types[0], weight)
    float_attr(attrs, "eps")
    return (float_operand(types[0]),)


def _layer_norm(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    x = arrays[0]
    centred = x - np.mean(x, axis=-1, keepdims=True)
    result = rms_norm(centred, float_attr(attrs, "eps"))
    rest = list(arrays[1:])
    if bool_attr(attrs, "has_weight"):
        result = result * rest.pop(0)
    return (result + rest.pop(0) if bool_attr(attrs, "has_bias") else result,)


def _infer_l2_norm(types: Types, attrs: Attrs) -> Types:
    """x [..., N]; `mode` is `add` (eps added to the square sum) or `max` (eps bounds the norm)."""
    arity(types, 1)
    if str_attr(attrs, "mode") not in ("add", "max"):
        raise VerifyError(f"unknown mode `{attrs['mode']}`")
    return (float_operand(types[0]),)


def l2_norm(x: Array, eps: float, mode: str) -> Array:
    """x over its Euclidean length along the last axis."""
    square = np.sum(x * x, axis=-1, keepdims=True)
    length = np.sqrt(square + eps) if mode == "add" else np.maximum(np.sqrt(square), eps)
    return np.asarray(x / length)


def _l2_norm(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    return (l2_norm(arrays[0], float_attr(attrs, "eps"), str_attr(attrs, "mode")),)


# --- activations ----------------------------------------------------------------------------


def _infer_gate(types: Types, attrs: Attrs) -> Types:
    """gate [..., N], up [..., N]."""
    arity(types, 2)
    same_dtype(types)
    if types[0].shape != types[1].shape:
        raise VerifyError(f"gate `{types[0]}` and up `{types[1]}` differ in shape")
    return (float_operand(types[0]),)


def swiglu_oai(gate: Array, up: Array, alpha: float, limit: float) -> Array:
    """gpt-oss's activation: clamped SwiGLU with a factor in the sigmoid and up + 1."""
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return np.asarray(gate * sigmoid(alpha * gate) * (up + 1))


def _silu_mul(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    return (arrays[0] * sigmoid(arrays[0]) * arrays[1],)


def _gelu_mul(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    return (gelu(arrays[0], str_attr(attrs, "approximate")) * arrays[1],)


def _swiglu_oai(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    alpha, limit = float_attr(attrs, "alpha"), float_attr(attrs, "limit")
    return (swiglu_oai(arrays[0], arrays[1], alpha, limit),)


# --- rotary position embedding --------------------------------------------------------------


def _infer_rope(types: Types, attrs: Attrs) -> Types:
    """x [..., S, D]; cos and sin broadcast to [..., S, rotary_dim] or [..., S, rotary_dim/2].

    `style` is `half` (pairs i, i + rotary_dim/2) or `interleaved` (pairs 2i, 2i + 1); elements
    from `rotary_dim` on pass through.  With `deinterleave` the result of the interleaved style is
    in half order, as DeepSeek's models leave it.
    """
    arity(types, 3)
    x, cos, sin = types
    rotary = int_attr(attrs, "rotary_dim")
    if str_attr(attrs, "style") not in ("half", "interleaved"):
        raise VerifyError(f"unknown style `{attrs['style']}`")
    if cos.shape != sin.shape or cos.shape[-1] not in (rotary, rotary // 2):
        raise VerifyError(f"`{cos}` and `{sin}` are not tables for {rotary} elements")
    if isinstance(x.shape[-1], int) and not 0 < rotary <= x.shape[-1]:
        raise VerifyError(f"`{x}` has not {rotary} elements to rotate")
    broadcast(x.shape[:-1], cos.shape[:-1])
    return (float_operand(x),)


def _rope(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    x, cos, sin = arrays
    rotary = int_attr(attrs, "rotary_dim")
    half = rotary // 2
    body, rest = x[..., :rotary], x[..., rotary:]
    interleaved = attrs["style"] == "interleaved"
    if cos.shape[-1] == rotary:  # a full table holds each angle twice, in the order of the pairs
        twice = interleaved and not bool_attr(attrs, "deinterleave")
        cos, sin = (t[..., ::2] if twice else t[..., :half] for t in (cos, sin))
    if interleaved:
        first, second = body[..., ::2], body[..., 1::2]
    else:
        first, second = body[..., :half], body[..., half:]
    turned = (first * cos - second * sin, second * cos + first * sin)
    if interleaved and not bool_attr(attrs, "deinterleave"):
        body = np.stack(turned, axis=-1).reshape(body.shape)
    else:
        body = np.concatenate(turned, axis=-1)
    return (np.concatenate((body, rest), axis=-1),)


def differ_in_heads(q: TensorType, k: TensorType) -> bool:
    """Whether q and k differ in one axis before the last, or in none."""
    if q.rank != k.rank or q.shape[-1:] != k.shape[-1:]:
        return False
    return sum(a != b for a, b in zip(q.shape, k.shape, strict=True)) < 2


def _infer_qk_norm_rope(types: Types, attrs: Attrs) -> Types:
    """q and k [..., S, D], weights of their norms [D] if `has_weight`, cos, sin: both rotated.

    q and k differ in one axis before the last at most: their heads.  With `has_norm` each row is
    divided by its root mean square first, and multiplied by the weight of its operand plus
    `weight_offset`; without, there are no weights.  The rest is that of `rope`.
    """
    weights = 2 * _optional(attrs, "has_weight")
    arity(types, 4 + weights)
    q, k = types[:2]
    if weights and not bool_attr(attrs, "has_norm"):
        raise VerifyError("without a norm there are no weights")
    if not differ_in_heads(q, k):
        raise VerifyError(f"`{q}` and `{k}` differ in more than their heads")
    for weight in types[2 : 2 + weights]:
        _weight_fits(q, weight)
    float_attr(attrs, "eps")
    int_attr(attrs, "weight_offset")
    tables = tuple(types[2 + weights :])
    return tuple(rotated for x in (q, k) for rotated in _infer_rope((x, *tables), attrs))


def _qk_norm_rope(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    rows, weights, tables = arrays[:2], arrays[2:-2], arrays[-2:]
    if bool_attr(attrs, "has_norm"):
        rows = [rms_norm(x, float_attr(attrs, "eps")) for x in rows]
    if bool_attr(attrs, "has_weight"):
        offset = int_attr(attrs, "weight_offset")
        rows = [x * (weight + offset) for x, weight in zip(rows, weights, strict=True)]
    return tuple(rotated for x in rows for rotated in _rope((x, *tables), attrs, types))


# --- attention ------------------------------------------------------------------------------


def _infer_attention(types: Types, attrs: Attrs) -> Types:
    """q [B, H, S, D], k [B, Hkv, T, D], v [B, Hkv, T, Dv] give [B, H, S, Dv].

    Optional operands, in this order: `has_mask`: bool (true keeps) or additive, broadcast to
    [B, H, S, T]; `has_sinks`: [H], a logit that takes part in the softmax and attends to nothing;
    `has_key_padding`: bool [B, T], true for keys that count.  Query s stands at key position
    s + T - S.  `causal` keeps keys up to the query's position, `window` those nearer than it,
    `chunk` c those whose position, divided by c and rounded down, is the same as the query's; only
    one of these two is given.  `softcap` c turns a score x into c*tanh(x/c).  A query with no key
    gives zeros.
    """
    arity(types, 3 + _optional(attrs, "has_mask", "has_sinks", "has_key_padding"))
    q, k, v = types[:3]
    same_dtype(types[:3])
    if not (q.rank == k.rank == v.rank == 4):
        raise VerifyError("attention takes operands of rank 4")
    if k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3] or q.shape[0] != k.shape[0]:
        raise VerifyError(f"`{q}`, `{k}` and `{v}` do not attend")
    heads, kv_heads = q.shape[1], k.shape[1]
    if isinstance(heads, int) and isinstance(kv_heads, int) and heads % kv_heads:
        raise VerifyError(f"{heads} query heads are not a multiple of {kv_heads} key heads")
    scores = (*q.shape[:3], k.shape[2])
    if bool_attr(attrs, "has_mask") and broadcast(types[3].shape, scores) != scores:
        raise VerifyError(f"mask `{types[3]}` does not expand to the scores")
    if attrs.get("chunk") is not None:
        if attrs.get("window") is not None:
            raise VerifyError("there is a window or chunks, not both")
        if int_attr(attrs, "chunk") < 1:
            raise VerifyError("a chunk has a position at least")
    float_attr(attrs, "scale")
    return (q.with_shape((*q.shape[:3], v.shape[3])),)


def _attention(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    q, k, v, *rest = arrays
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = q @ k.swapaxes(-1, -2) * float_attr(attrs, "scale")
    if attrs.get("softcap") is not None:
        cap = float_attr(attrs, "softcap")
        scores = cap * np.tanh(scores / cap)
    if bool_attr(attrs, "has_mask"):
        mask = rest.pop(0)
        scores = np.where(mask, scores, -np.inf) if mask.dtype == np.bool_ else scores + mask
    sinks = rest.pop(0) if bool_attr(attrs, "has_sinks") else None
    if bool_attr(attrs, "has_key_padding"):
        scores = np.where(rest.pop(0)[:, None, None, :], scores, -np.inf)
    queries, keys = scores.shape[-2:]
    position, key = np.arange(queries)[:, None] + (keys - queries), np.arange(keys)
    distance = position - key
    if bool_attr(attrs, "causal"):
        scores = np.where(distance >= 0, scores, -np.inf)
    if attrs.get("window") is not None:
        scores = np.where(np.abs(distance) < int_attr(attrs, "window"), scores, -np.inf)
    if attrs.get("chunk") is not None:
        chunk = int_attr(attrs, "chunk")
        scores = np.where(position // chunk == key // chunk, scores, -np.inf)
    if sinks is not None:
        column = np.broadcast_to(sinks[:, None, None], (*scores.shape[:-1], 1))
        scores = np.concatenate((scores, column), axis=-1)
    top = np.max(scores, axis=-1, keepdims=True, initial=-np.inf)
    powers = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = np.sum(powers, axis=-1, keepdims=True)
    share = np.divide(powers, total, out=np.zeros_like(powers), where=total > 0)
    return (share[..., :keys] @ v,)


# --- mixture of experts ---------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": lambda x: x * sigmoid(x),
    "gelu": lambda x: gelu(x, "none"),
    "gelu_tanh": lambda x: gelu(x, "tanh"),
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "relu6": lambda x: np.clip(x, 0, 6),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
}
"""Activations of experts and epilogues, by the names used in attributes."""


def _infer_moe(types: Types, attrs: Attrs) -> Types:
    """x [T, H], weights [T, k], experts [T, k] (integers), gate_up, down: the weighted sum [T, H].

    gate_up is [E, 2I, H] ([E, I, H] unless `gated`) and down [E, H, I]; with `transposed` they are
    [E, H, 2I] and [E, I, H].  `gate_up_layout` is `split` (gate rows first) or `interleaved`.  With
    `has_bias` follow gate_up_bias [E, 2I] and down_bias [E, H].  `activation` is a name in
    `ACTIVATIONS`, or `swiglu_oai` with `alpha` and `limit`; or, where `gated`, `swiglu_limit` with
    `limit`: silu(min(gate, limit)) * clamp(up, +-limit).  An expert index outside [0, E) adds
    nothing.
    """
    arity(types, 5 + 2 * _optional(attrs, "has_bias"))
    x, weights, experts, gate_up, down = types[:5]
    if x.rank != 2 or weights.shape != experts.shape or weights.shape[:1] != x.shape[:1]:
        raise VerifyError(f"`{weights}` and `{experts}` do not route `{x}`")
    if gate_up.rank != 3 or down.rank != 3:
        raise VerifyError("expert weights have rank 3")
    transposed, gated = bool_attr(attrs, "transposed"), bool_attr(attrs, "gated")
    rows, columns = gate_up.shape[1:] if not transposed else gate_up.shape[:0:-1]
    inner = down.shape[2] if not transposed else down.shape[1]
    if columns != x.shape[1] or rows != inner * (2 if gated else 1):
        raise VerifyError(f"expert weights `{gate_up}` and `{down}` do not fit `{x}`")
    activation = str_attr(attrs, "activation")
    if activation not in ACTIVATIONS and activation not in ("swiglu_oai", "swiglu_limit"):
        raise VerifyError(f"unknown activation `{activation}`")
    return (x,)


def _moe(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    x, weights, experts, gate_up, down = arrays[:5]
    if bool_attr(attrs, "transposed"):
        gate_up, down = gate_up.swapaxes(1, 2), down.swapaxes(1, 2)
    result = np.zeros_like(x)
    for expert in range(gate_up.shape[0]):
        token, slot = np.nonzero(experts == expert)
        hidden = x[token] @ gate_up[expert].T
        if bool_attr(attrs, "has_bias"):
            hidden = hidden + arrays[5][expert]
        hidden = expert_activation(hidden, attrs)
        out = hidden @ down[expert].T
        if bool_attr(attrs, "has_bias"):
            out = out + arrays[6][expert]
        np.add.at(result, token, out * weights[token, slot, None])
    return (result,)


def expert_activation(hidden: Array, attrs: Attrs) -> Array:
    """The activation of an expert, by the attributes of `moe`."""
    if not bool_attr(attrs, "gated"):
        return ACTIVATIONS[str_attr(attrs, "activation")](hidden)
    return gated_activation(hidden, attrs)


def gated_activation(hidden: Array, attrs: Attrs) -> Array:
    """activation(gate) * up of gate and up [..., 2I], which lie as `gate_up_layout` says."""
    activation = str_attr(attrs, "activation")
    if str_attr(attrs, "gate_up_layout") == "interleaved":
        gate, up = hidden[..., ::2], hidden[..., 1::2]
    else:
        gate, up = np.split(hidden, 2, axis=-1)
    if activation == "swiglu_oai":
        return swiglu_oai(gate, up, float_attr(attrs, "alpha"), float_attr(attrs, "limit"))
    if activation == "swiglu_limit":
        limit = float_attr(attrs, "limit")
        gate, up, activation = np.minimum(gate, limit), np.clip(up, -limit, limit), "silu"
    return np.asarray(ACTIVATIONS[activation](gate) * up)


# --- products -------------------------------------------------------------------------------


def _infer_linear_epilogue(types: Types, attrs: Attrs) -> Types:
    """activation(linear(x, weight [, bias])) [+ residual]; `activation` may be "none".

    The residual has the type of the result; nothing is rounded in between.
    """
    has_bias, has_residual = (bool_attr(attrs, name) for name in ("has_bias", "has_residual"))
    arity(types, 2 + has_bias + has_residual)
    (result,) = infer_linear(types[: 2 + has_bias], attrs)
    _verify_epilogue(result, types[-1] if has_residual else None, attrs)
    return (result,)


def _verify_epilogue(result: TensorType, residual: TensorType | None, attrs: Attrs) -> None:
    if residual is not None and residual != result:
        raise VerifyError(f"residual `{residual}` is not of the type of the result, `{result}`")
    activation = str_attr(attrs, "activation")
    if activation != "none" and activation not in ACTIVATIONS:
        raise VerifyError(f"there is no activation `{activation}`")


def _activated(sums: Array, attrs: Attrs) -> Array:
    activation = str_attr(attrs, "activation")
    return sums if activation == "none" else ACTIVATIONS[activation](sums)


def _linear_epilogue(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    (sums,) = multiply_linear(arrays[: 2 + bool_attr(attrs, "has_bias")], attrs, types)
    result = _activated(sums, attrs)
    return (result + arrays[-1] if bool_attr(attrs, "has_residual") else result,)


AFTER_FILTERS = ("scale", "bias", "residual")
"""What may follow the filters among the operands of `conv_epilogue`, in order."""

Operand = TypeVar("Operand")


def after_filters(operands: Sequence[Operand], attrs: Attrs) -> dict[str, Operand]:
    """The operands of `conv_epilogue` after x and the filters, by their names."""
    names = [name for name in AFTER_FILTERS if bool_attr(attrs, f"has_{name}")]
    return dict(zip(names, operands[2:], strict=True))


def _infer_conv_epilogue(types: Types, attrs: Attrs) -> Types:
    """activation(conv(x, weight) [* scale] [+ bias] [+ residual]); `activation` may be "none".

    Scale and bias are f32 [O], one number for each filter; the residual has the type of the result.
    Nothing is rounded in between.
    """
    arity(types, 2 + _optional(attrs, *(f"has_{name}" for name in AFTER_FILTERS)))
    (result,) = infer_conv(types[:2], attrs)
    following = after_filters(types, attrs)
    for name, given in following.items():
        if name != "residual" and given != TensorType("f32", result.shape[1:2]):
            raise VerifyError(f"`{given}` is not one f32 for each of {result.shape[1]} filters")
    _verify_epilogue(result, following.get("residual"), attrs)
    return (result,)


def _conv_epilogue(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    (sums,) = conv(arrays[:2], attrs, types)
    following = after_filters(arrays, attrs)
    per_filter = (-1, *(1,) * (sums.ndim - 2))
    if "scale" in following:
        sums = sums * following["scale"].reshape(per_filter)
    if "bias" in following:
        sums = sums + following["bias"].reshape(per_filter)
    return (_activated(sums + following.get("residual", 0), attrs),)


def _infer_linear_glu(types: Types, attrs: Attrs) -> Types:
    """activation(gate) * up of the halves of linear(x, gate_up [2I, K] [, bias [2I]]): [..., I].

    `gate_up_layout` is `split` (gate rows first) or `interleaved`; `activation` is a name in
    `ACTIVATIONS`, or `swiglu_oai` with `alpha` and `limit`.  Nothing is rounded in between.
    """
    arity(types, 2 + bool_attr(attrs, "has_bias"))
    (both,) = infer_linear(types, attrs)
    rows = types[1].shape[0]
    if not isinstance(rows, int) or rows % 2:
        raise VerifyError(f"weight `{types[1]}` does not hold as many gate rows as up rows")
    if str_attr(attrs, "gate_up_layout") not in ("split", "interleaved"):
        raise VerifyError(f"unknown layout `{attrs['gate_up_layout']}`")
    activation = str_attr(attrs, "activation")
    if activation == "swiglu_oai":
        float_attr(attrs, "alpha"), float_attr(attrs, "limit")
    elif activation not in ACTIVATIONS:
        raise VerifyError(f"there is no activation `{activation}`")
    return (TensorType(both.dtype, (*both.shape[:-1], rows // 2)),)


def _linear_glu(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    (both,) = multiply_linear(arrays, attrs, types)
    return (gated_activation(both, attrs),)


# --- linear attention -----------------------------------------------------------------------


def _infer_causal_conv1d(types: Types, attrs: Attrs) -> Types:
    """x [B, C, S], weight [C, K], bias [C] if `has_bias`; `activation` is `none` or `silu`."""
    arity(types, 2 + _optional(attrs, "has_bias"))
    x, weight = types[:2]
    same_dtype(types)
    if x.rank != 3 or weight.rank != 2 or x.shape[1] != weight.shape[0]:
        raise VerifyError(f"`{x}` does not convolve with weight `{weight}`")
    if str_attr(attrs, "activation") not in ("none", "silu"):
        raise VerifyError(f"unknown activation `{attrs['activation']}`")
    return (x,)


def _causal_conv1d(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    x, weight = arrays[:2]
    padded = np.pad(x, [(0, 0), (0, 0), (weight.shape[1] - 1, 0)])
    result = convolve(padded, weight[:, None], (1,), (0,), (1,), groups=x.shape[1])
    if bool_attr(attrs, "has_bias"):
        result = result + arrays[2][:, None]
    return (result * sigmoid(result) if attrs["activation"] == "silu" else result,)


def _infer_gated_delta_rule(types: Types, attrs: Attrs) -> Types:
    """q, k [B, S, Hk, Dk], v [B, S, H, Dv], g [B, S, H] or [B, S, H, Dk], beta [B, S, H].

    The recurrence of Gated DeltaNet (Yang et al., 2024), with a gate per channel as in Kimi Linear
    (2025): for each head, S = exp(g_t) S; S += k_t (beta_t (v_t - k_t S)); o_t = scale q_t S, from
    S = 0.  With `qk_l2_norm`, q and k are divided by sqrt(sum of squares + eps) first.  H is a
    multiple of Hk; head h reads key head h // (H / Hk).  g and beta may be wider than v.
    """
    arity(types, 5)
    q, k, v, g, beta = types
    if q.shape != k.shape or q.rank != 4 or v.rank != 4 or q.shape[:2] != v.shape[:2]:
        raise VerifyError(f"`{q}`, `{k}` and `{v}` do not fit a delta rule")
    heads = v.shape[:3]
    if beta.shape != heads or g.shape not in (heads, (*heads, q.shape[3])):
        raise VerifyError(f"gate `{g}` and beta `{beta}` do not fit `{v}`")
    float_attr(attrs, "scale")
    return (v,)


def _gated_delta_rule(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    q, k, v, g, beta = arrays
    if bool_attr(attrs, "qk_l2_norm"):
        q, k = (l2_norm(part, float_attr(attrs, "eps"), "add") for part in (q, k))
    group = v.shape[2] // q.shape[2]
    q, k = (np.repeat(part, group, axis=2) for part in (q, k))
    q = q * float_attr(attrs, "scale")
    decay = np.exp(g if g.ndim == 4 else g[..., None])
    state = np.zeros((v.shape[0], v.shape[2], q.shape[3], v.shape[3]))
    result = np.zeros_like(v)
    for step in range(v.shape[1]):
        state = state * decay[:, step, :, :, None]
        held = np.einsum("bhk,bhkv->bhv", k[:, step], state)
        change = (v[:, step] - held) * beta[:, step, :, None]
        state = state + np.einsum("bhk,bhv->bhkv", k[:, step], change)
        result[:, step] = np.einsum("bhk,bhkv->bhv", q[:, step], state)
    return (result_array(result, types[0]),)


def _infer_selective_scan(types: Types, attrs: Attrs) -> Types:
    """u [B, S, D], dt [B, S, H], a [H, N] or [H, 1], b and c [B, S, G, N]: y [B, S, D] like dt.

    The recurrence of Mamba (Gu and Dao, 2023): for each channel d and state n,
    h = exp(dt_t a) h + dt_t u_t b_t; y_t = sum over n of c_t h, from h = 0.  In Mamba-2 (Dao and
    Gu, 2024) D / H channels side by side are a head, which has one dt and one a for all of its
    states, and H / G heads side by side share b and c.  A decay for each state is for heads of one
    channel that all share b and c.  dt and a may be wider than the others.
    """
    arity(types, 5)
    u, dt, a, b, c = types
    if u.rank != 3 or a.rank != 2 or b.rank != 4 or dt.shape != (*u.shape[:2], a.shape[0]):
        raise VerifyError(f"`{u}`, `{dt}` and `{a}` do not fit a selective scan")
    if b.shape != c.shape or b.shape[:2] != u.shape[:2]:
        raise VerifyError(f"`{b}` and `{c}` do not fit `{u}`")
    channels, heads, (groups, states) = u.shape[2], a.shape[0], b.shape[2:]
    if a.shape[1] == 1:
        for many, few in ((channels, heads), (heads, groups)):
            if isinstance(many, int) and isinstance(few, int) and many % few:
                raise VerifyError(f"`{u}`, `{a}` and `{b}`: {many} is not a multiple of {few}")
    elif (a.shape, groups) != ((channels, states), 1):
        raise VerifyError(f"decays `{a}` of each state do not fit `{u}` and `{b}`")
    return (dt.with_shape(u.shape),)


def _selective_scan(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    u, dt, a, b, c = arrays
    channels = u.shape[2]
    a = np.repeat(a, channels // a.shape[0], axis=0)
    state = np.zeros((u.shape[0], channels, b.shape[3]))
    result = np.zeros(u.shape)
    for step in range(u.shape[1]):
        time, takes, gives = (
            np.repeat(part[:, step], channels // part.shape[2], axis=1) for part in (dt, b, c)
        )
        taken = (time * u[:, step])[..., None] * takes
        state = np.exp(time[..., None] * a) * state + taken
        result[:, step] = (state * gives).sum(-1)
    return (result_array(result, types[0]),)


define("rms_norm", _infer_rms_norm, _rms_norm)
define("add_rms_norm", _infer_add_rms_norm, _add_rms_norm)
define("dual_rms_norm", _infer_dual_rms_norm, _dual_rms_norm)
define("gated_rms_norm", _infer_gated_rms_norm, _gated_rms_norm)
define("layer_norm", _infer_layer_norm, _layer_norm)
define("l2_norm", _infer_l2_norm, _l2_norm)
define("silu_mul", _infer_gate, _silu_mul)
define("gelu_mul", _infer_gate, _gelu_mul)
define("swiglu_oai", _infer_gate, _swiglu_oai)
define("rope", _infer_rope, _rope)
define("qk_norm_rope", _infer_qk_norm_rope, _qk_norm_rope)
define("attention", _infer_attention, _attention)
define("linear_epilogue", _infer_linear_epilogue, _linear_epilogue)
define("conv_epilogue", _infer_conv_epilogue, _conv_epilogue)
define("linear_glu", _infer_linear_glu, _linear_glu)
define("moe", _infer_moe, _moe)
define("causal_conv1d", _infer_causal_conv1d, _causal_conv1d)
define("gated_delta_rule", _infer_gated_delta_rule, _gated_delta_rule)
define("selective_scan", _infer_selective_scan, _selective_scan)
