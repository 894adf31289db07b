"""Attention and rotary embedding, ONNX's own and those of ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fusec import symbolic
from fusec.diagnostics import InputError
from fusec.frontend.onnx_ops.base import (
    MICROSOFT,
    Call,
    Context,
    NotCovered,
    Results,
    Value,
    operator,
    static,
)
from fusec.ir.types import Attrs
from fusec.symbolic import Dim


def attend(
    ctx: Context,
    q: Value,
    k: Value,
    v: Value,
    *,
    scale: float,
    mask: Value | None = None,
    sinks: Value | None = None,
    key_padding: Value | None = None,
    causal: bool = False,
    window: int | None = None,
    softcap: float = 0.0,
) -> Value:
    """The `attention` of the IR: q [B, H, S, D], k [B, Hkv, T, D], v [B, Hkv, T, Dv]."""
    for one, other in ((q, k), (q, v)):
        ctx.require_equal(one.shape[0], other.shape[0])
    ctx.require_equal(k.shape[2], v.shape[2])
    if mask is not None:
        scores = (*q.shape[:3], k.shape[2])
        ctx.agree(mask.shape, scores)
    operands = [value for value in (q, k, v, mask, sinks, key_padding) if value is not None]
    attrs: Attrs = {
        "scale": scale,
        "causal": causal,
        "window": window,
        "softcap": softcap if softcap > 0 else None,
        "has_mask": mask is not None,
        "has_sinks": sinks is not None,
        "has_key_padding": key_padding is not None,
    }
    return ctx.emit("attention", operands, attrs)


def split_heads(ctx: Context, x: Value, heads: int) -> Value:
    """[B, S, H*D] as [B, H, S, D]."""
    size = symbolic.floor_divide(x.shape[2], heads)
    return ctx.transpose(ctx.reshape(x, (*x.shape[:2], heads, size)), (0, 2, 1, 3))


def join_heads(ctx: Context, x: Value) -> Value:
    """[B, H, S, D] as [B, S, H*D]."""
    batch, heads, length, size = x.shape
    return ctx.reshape(ctx.transpose(x, (0, 2, 1, 3)), (batch, length, heads * size))


def _is_empty(value: Value | None) -> bool:
    """Whether a cache holds nothing."""
    return value is None or 0 in value.shape


def _both_masks(ctx: Context, a: Value | None, b: Value) -> Value:
    """A mask that lets pass what both let pass; `b` is a flag."""
    if a is None:
        return b
    if a.dtype == "bool":
        return ctx.elementwise("and", a, b)
    return ctx.elementwise("where", b, a, ctx.scalar(-math.inf, a.dtype))


def _distance(ctx: Context, places: Value, keys: Dim) -> Value:
    """How far each key lies behind the queries at `places`: [S, T], or [B, 1, S, T] of [B, S]."""
    ones = (1,) * (places.rank - 1)
    rows = ctx.reshape(places, (*places.shape[:-1], *ones, places.shape[-1], 1))
    return ctx.elementwise("sub", rows, ctx.iota(keys))


@operator("Attention")
def _attention(ctx: Context, call: Call) -> Results:
    """ONNX's own, version 23 and later."""
    q, k, v, mask = (call.operand(0), call.operand(1), call.operand(2), call.optional(3))
    flat = q.rank == 3
    lengths = call.optional(6)
    if call.wants(3):
        raise NotCovered("the scores as a result")
    if flat:
        heads, kv_heads = call.integer("q_num_heads", 0), call.integer("kv_num_heads", 0)
        if heads <= 0 or kv_heads <= 0:
            raise InputError("an `Attention` of rank 3 does not say how many heads there are")
        q, k, v = (split_heads(ctx, *pair) for pair in ((q, heads), (k, kv_heads), (v, kv_heads)))
    past: Dim = 0
    if not _is_empty(call.optional(4)):
        past = call.operand(4).shape[2]
        k, v = (ctx.concat((call.operand(i), x), 2) for i, x in ((4, k), (5, v)))
    head_size = static(q.shape[3], "the size of a head")
    scale = call.number("scale", 0.0) or 1 / math.sqrt(head_size)
    queries, keys = q.shape[2], k.shape[2]
    causal = bool(call.integer("is_causal", 0))
    left, right = call.integer("left_window_size", -1), call.integer("right_window_size", -1)
    if mask is not None:
        mask = _padded_mask(ctx, mask, keys)
    window: int | None = None
    # The query's place is then that of the IR.
    plain = queries + past == keys and lengths is None
    if plain and left >= 0 and (causal or left == right):
        window, left, right = left + 1, -1, -1
    if causal and not plain:
        right, causal = 0, False
    padding = None
    if lengths is not None:
        counts = ctx.reshape(lengths, (q.shape[0], 1))
        padding = ctx.elementwise("lt", ctx.iota(keys), counts)
    if left >= 0 or right >= 0:
        places = ctx.iota(queries, start=past)
        if lengths is not None:
            first = ctx.elementwise("sub", counts, ctx.scalar(queries, "i64"))
            places = _behind(ctx, first, queries)
        distance = _distance(ctx, places, keys)
        for limit, op, sign in ((left, "le", 1), (right, "ge", -1)):
            if limit >= 0:
                near = ctx.elementwise(op, distance, ctx.scalar(limit * sign, "i64"))
                mask = _both_masks(ctx, mask, near)
    softcap = call.number("softcap", 0.0)
    result = attend(
        ctx,
        q,
        k,
        v,
        scale=scale,
        mask=mask,
        key_padding=padding,
        causal=causal,
        window=window,
        softcap=softcap,
    )
    return join_heads(ctx, result) if flat else result, k, v


def _padded_mask(ctx: Context, mask: Value, keys: Dim) -> Value:
    """A mask that is shorter than the keys hides the rest."""
    last = mask.shape[-1]
    if last == keys or last == 1:
        return mask
    if not isinstance(last, int) or not isinstance(keys, int) or last > keys:
        ctx.require_equal(last, keys)
    value: Any = False if mask.dtype == "bool" else -math.inf
    high = (*(0,) * (mask.rank - 1), keys - last)
    return ctx.emit("pad", (mask,), {"low": (0,) * mask.rank, "high": high, "value": value})


# --- rotary embedding -----------------------------------------------------------------------


def rotate(ctx: Context, x: Value, cos: Value, sin: Value, interleaved: bool, rotary: int) -> Value:
    """x [B, H, S, D]; cos and sin are [S, R/2] or [B, S, R/2]."""
    if cos.rank == 3:
        cos, sin = (ctx.reshape(t, (t.shape[0], 1, *t.shape[1:])) for t in (cos, sin))
    ctx.agree(x.shape[:-1], cos.shape[:-1])
    style = "interleaved" if interleaved else "half"
    attrs: Attrs = {"style": style, "rotary_dim": rotary, "deinterleave": False}
    return ctx.emit("rope", (x, cos, sin), attrs)


def table_rows(ctx: Context, table: Value, length: Dim) -> Value:
    """The first `length` rows of a table of angles."""
    if table.shape[0] == length:
        return table
    ctx.require_equal(ctx.smaller(length, table.shape[0]), length)
    return ctx.slice(table, 0, 0, length)


@operator("RotaryEmbedding")
def _rotary(ctx: Context, call: Call) -> Results:
    """X, cos, sin, positions: tables are gathered by position where positions are given."""
    x, cos, sin = call.operand(0), call.operand(1), call.operand(2)
    if call.optional(3) is not None:
        cos, sin = (ctx.take(table, call.operand(3), 0) for table in (cos, sin))
    return _rotary_result(ctx, call, x, cos, sin)


@operator("RotaryEmbedding", domain=MICROSOFT)
def _contrib_rotary(ctx: Context, call: Call) -> Results:
    """input, positions, cos, sin; one position is where the sequence begins."""
    x, positions, cos, sin = (call.operand(index) for index in range(4))
    if call.integer("is_packed_batching", 0) or call.number("scale", 1.0) != 1.0:
        raise NotCovered("`RotaryEmbedding` with packed batches or a scale")
    length = x.shape[2 if x.rank == 4 else 1]
    if positions.rank == 2:
        cos, sin = (ctx.take(table, positions, 0) for table in (cos, sin))
    else:
        places = ctx.elementwise("add", positions, ctx.iota(length, positions.dtype))
        cos, sin = (ctx.take(table, places, 0) for table in (cos, sin))
    return _rotary_result(ctx, call, x, cos, sin)


def _rotary_result(ctx: Context, call: Call, x: Value, cos: Value, sin: Value) -> Value:
    rotary = call.integer("rotary_embedding_dim", 0)
    heads = call.integer("num_heads", 0)
    flat = x.rank == 3
    if flat:
        if heads == 0:
            if rotary or call.domain == "":
                raise InputError("a `RotaryEmbedding` of rank 3 does not say how many heads")
            size = 2 * static(cos.shape[-1], "the size of a head")
            heads = static(symbolic.floor_divide(x.shape[2], size), "the number of heads")
        x = split_heads(ctx, x, heads)
    rotary = rotary or 2 * static(cos.shape[-1], "the size of a head")
    result = rotate(ctx, x, cos, sin, bool(call.integer("interleaved", 0)), rotary)
    return join_heads(ctx, result) if flat else result


# --- ONNX Runtime's attentions --------------------------------------------------------------


@operator("GroupQueryAttention", domain=MICROSOFT)
def _group_query_attention(ctx: Context, call: Call) -> Results:
    """Causal; rows are padded on the right, and the cache of each begins at its first place.

    Without a cache a query that counts never sees a padded key.  With one, what is new of a row
    goes behind what the row has, which only its length tells; a batch of one has no padding.  A
    local window counts the query itself, as onnxruntime does since 1.23 and the models it was
    exported from do; before (pull request 25927) it kept one key more.
    """
    q, key, value = call.operand(0), call.optional(1), call.optional(2)
    heads, kv_heads = call.integer("num_heads", 0), call.integer("kv_num_heads", 0)
    if call.integer("qk_output", 0) or call.wants(3):
        raise NotCovered("the scores as a result")
    if call.text("k_quant_type", "NONE") != "NONE" or call.text("v_quant_type", "NONE") != "NONE":
        raise NotCovered("`GroupQueryAttention` with a quantised cache")
    if key is None or value is None:
        size = static(symbolic.floor_divide(q.shape[2], heads + 2 * kv_heads), "the size of a head")
        edges = (0, heads * size, (heads + kv_heads) * size, (heads + 2 * kv_heads) * size)
        q, key, value = (ctx.slice(q, 2, edges[i], edges[i + 1]) for i in range(3))
    q, k, v = (split_heads(ctx, x, n) for x, n in ((q, heads), (key, kv_heads), (value, kv_heads)))
    caches = () if _is_empty(call.optional(3)) else (call.operand(3), call.operand(4))
    past = caches[0].shape[2] if caches else 0
    batch, length = q.shape[0], q.shape[2]
    total = ctx.dims(call.optional(6))
    if total is not None:
        ctx.require_equal(total[0], past + length)
    starts = None
    if caches and not (batch == 1 and total is not None):
        starts = _row_starts(ctx, call.operand(5), batch, length)
    if call.integer("do_rotary", 0):
        positions = call.optional(9)
        if positions is None and starts is not None:
            positions = _behind(ctx, starts, length)
        tables = _angles(ctx, call.operand(7), call.operand(8), positions, past, length)
        rotary = 2 * static(tables[0].shape[-1], "the size of a head")
        style = bool(call.integer("rotary_interleaved", 0))
        q, k = (rotate(ctx, x, *tables, style, rotary) for x in (q, k))
    if caches:
        k, v = (ctx.concat((cache, x), 2) for cache, x in zip(caches, (k, v), strict=True))
    mask, window = call.optional(10), call.integer("local_window_size", -1)
    if starts is not None:
        k, v = (_closed_up(ctx, x, starts, past) for x in (k, v))
        distance = _distance(ctx, _behind(ctx, starts, length), past + length)
        mask = _both_masks(ctx, mask, ctx.elementwise("ge", distance, ctx.scalar(0, "i64")))
        if window > 0:
            near = ctx.elementwise("lt", distance, ctx.scalar(window, "i64"))
            mask = _both_masks(ctx, mask, near)
    sinks = call.optional(11)
    if sinks is None and call.integer("smooth_softmax", 0) > 0:
        sinks = ctx.full(0.0, (heads,), q.dtype)
    scale = call.number("scale", 0.0) or 1 / math.sqrt(static(q.shape[3], "the size of a head"))
    result = attend(
        ctx,
        q,
        k,
        v,
        scale=scale,
        mask=mask,
        sinks=sinks,
        causal=starts is None,
        window=window if window > 0 and starts is None else None,
        softcap=call.number("softcap", 0.0),
    )
    return join_heads(ctx, result), k, v


def _row_starts(ctx: Context, last: Value, batch: Dim, length: Dim) -> Value:
    """[B, 1]: how many keys the cache of each row has, from the place of its last key."""
    rows = ctx.cast(ctx.reshape(last, (batch, 1)), "i64")
    return ctx.elementwise("add", rows, ctx.scalar(1 - length, "i64"))


def _behind(ctx: Context, starts: Value, length: Dim) -> Value:
    """[B, S]: places of the new tokens of rows that begin at `starts` [B, 1]."""
    return ctx.elementwise("add", starts, ctx.iota(length))


def _angles(
    ctx: Context, cos: Value, sin: Value, positions: Value | None, past: Dim, length: Dim
) -> tuple[Value, Value]:
    """Rows of the tables: at `positions`, or those that follow `past`."""
    if positions is None and past == 0:
        return table_rows(ctx, cos, length), table_rows(ctx, sin, length)
    if positions is None:
        positions = ctx.iota(length, start=past)
    return ctx.take(cos, positions, 0), ctx.take(sin, positions, 0)


def _closed_up(ctx: Context, x: Value, starts: Value, past: Dim) -> Value:
    """x [B, H, T, D] without what lies between a row's own keys in the cache and the new ones."""
    total = x.shape[2]
    place = ctx.iota(total)
    later = ctx.elementwise("add", place, ctx.elementwise("sub", ctx.scalar(past, "i64"), starts))
    later = ctx.elementwise("minimum", later, ctx.scalar(total - 1, "i64"))
    place = ctx.elementwise("where", ctx.elementwise("lt", place, starts), place, later)
    place = ctx.expand(ctx.reshape(place, (x.shape[0], 1, total, 1)), x.shape)
    return ctx.emit("gather", (x, place), {"axis": 2})


@operator("MultiHeadAttention", domain=MICROSOFT)
def _multi_head_attention(ctx: Context, call: Call) -> Results:
    q, key, value = call.operand(0), call.optional(1), call.optional(2)
    bias, padding, extra = call.optional(3), call.optional(4), call.optional(5)
    heads = call.integer("num_heads", 0)
    if call.wants(3) or call.optional(9) is not None:
        raise NotCovered("the scores as a result, or beams")
    if q.rank == 5:  # [B, S, H, 3, D]
        parts = [ctx.slice(q, 3, i, i + 1) for i in range(3)]
        shape = (*q.shape[:2], q.shape[2] * q.shape[4])
        q, key, value = (ctx.reshape(part, shape) for part in parts)
    elif key is not None and key.rank == 5 and value is None:  # [B, T, H, 2, D]
        parts = [ctx.slice(key, 3, i, i + 1) for i in range(2)]
        shape = (*key.shape[:2], key.shape[2] * key.shape[4])
        key, value = (ctx.reshape(part, shape) for part in parts)
    if key is None or value is None:
        raise NotCovered("`MultiHeadAttention` without keys and values")
    operands = [q, key, value]
    if bias is not None:
        operands = _biased(ctx, operands, bias)
    q, k, v = (x if x.rank == 4 else split_heads(ctx, x, heads) for x in operands)
    if not _is_empty(call.optional(6)):
        k, v = (ctx.concat((call.operand(i), x), 2) for i, x in ((6, k), (7, v)))
    size = static(q.shape[3], "the size of a head")
    scale = call.number("scale", 0.0) or 1 / math.sqrt(size)
    keep, extra = _masks(ctx, call, padding, extra, q.shape, k.shape[2])
    causal = bool(call.integer("unidirectional", 0))
    result = attend(ctx, q, k, v, scale=scale, mask=extra, key_padding=keep, causal=causal)
    return join_heads(ctx, result), k, v


def _biased(ctx: Context, operands: Sequence[Value], bias: Value) -> list[Value]:
    """Queries, keys and values [B, S, H*D] with their parts of one bias."""
    results: list[Value] = []
    start: Dim = 0
    for x in operands:
        size = x.shape[2] if x.rank == 3 else x.shape[1] * x.shape[3]
        part = ctx.slice(bias, 0, start, start + size)
        start = start + size
        if x.rank == 4:
            part = ctx.reshape(part, (x.shape[1], 1, x.shape[3]))
        results.append(ctx.elementwise("add", x, part))
    return results


def _masks(
    ctx: Context,
    call: Call,
    padding: Value | None,
    extra: Value | None,
    queries: tuple[Dim, ...],
    keys: Dim,
) -> tuple[Value | None, Value | None]:
    """Flags [B, T] of the keys that count, and the mask over scores, for `queries` [B, H, S, D].

    `padding` has integers [B, T] or [B, S, T], or lengths [B].  Masked scores get
    `mask_filter_value`: only one that no score outweighs hides them.
    """
    if padding is None:
        return None, extra
    filter_value = call.number("mask_filter_value", -10000.0)
    if filter_value > -1000.0:
        raise NotCovered(f"a mask that lowers scores to {filter_value:g} only")
    batch = queries[0]
    if padding.rank == 1:
        counts = padding.shape[0], batch
        if all(isinstance(count, int) for count in counts) and counts[0] != batch:
            raise NotCovered("a mask that also lists where rows begin")
        lengths = ctx.reshape(padding, (padding.shape[0], 1))
        ctx.require_equal(padding.shape[0], batch)
        place = ctx.reshape(ctx.iota(keys, padding.dtype), (1, keys))
        return ctx.elementwise("lt", place, lengths), extra
    if padding.rank > 3:
        raise NotCovered(f"a mask of rank {padding.rank}")
    ctx.require_equal(padding.shape[0], batch)
    ctx.require_equal(padding.shape[-1], keys)
    flags = ctx.elementwise("ne", padding, ctx.scalar(0, padding.dtype))
    if padding.rank == 2:
        return flags, extra
    return None, _both_masks(ctx, extra, ctx.reshape(flags, (batch, 1, queries[2], keys)))


@operator("Attention", domain=MICROSOFT)
def _contrib_attention(ctx: Context, call: Call) -> Results:
    """input, weights, bias, mask, past, extra: one product for queries, keys and values."""
    from fusec.frontend.onnx_ops.linear import product

    x, weights, bias, mask = (call.operand(0), call.operand(1), call.optional(2), call.optional(3))
    heads = call.integer("num_heads", 0)
    if call.optional(6) is not None:
        raise NotCovered("`Attention` with a cache in a buffer of its own")
    if call.integer("do_rotary", 0):
        raise NotCovered("`Attention` that rotates")
    joint = product(ctx, x, weights)
    if bias is not None:
        joint = ctx.elementwise("add", joint, bias)
    sizes = call.integers("qkv_hidden_sizes")
    if not sizes:
        sizes = (static(weights.shape[1], "the hidden size") // 3,) * 3
    edges = np.cumsum((0, *sizes)).tolist()
    q, k, v = (
        split_heads(ctx, ctx.slice(joint, 2, edges[i], edges[i + 1]), heads) for i in range(3)
    )
    cache = call.optional(4)
    if cache is not None and not _is_empty(cache):
        pasts = (ctx.reshape(ctx.slice(cache, 0, i, i + 1), cache.shape[1:]) for i in range(2))
        k, v = (ctx.concat(pair, 2) for pair in zip(pasts, (k, v), strict=True))
    present = None
    if call.wants(1):
        present = ctx.concat([ctx.reshape(held, (1, *held.shape)) for held in (k, v)], 0)
    size = static(q.shape[3], "the size of a head")
    keep, extra = _masks(ctx, call, mask, call.optional(5), q.shape, k.shape[2])
    scale = call.number("scale", 0.0) or 1 / math.sqrt(size)
    causal = bool(call.integer("unidirectional", 0))
    result = attend(ctx, q, k, v, scale=scale, mask=extra, key_padding=keep, causal=causal)
    return join_heads(ctx, result), present
