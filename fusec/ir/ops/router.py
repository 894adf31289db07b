"""Routers: which experts see a token, and with what weight."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusec import symbolic
from fusec.diagnostics import VerifyError
from fusec.ir.ops.base import Array, Types, arity, define, float_operand
from fusec.ir.ops.elementwise import sigmoid
from fusec.ir.ops.reduction import softmax
from fusec.ir.types import Attrs, TensorType, bool_attr, float_attr, int_attr, str_attr

SCORES = ("softmax", "sigmoid", "softmax_topk", "sigmoid_topk", "given")
"""How logits become scores; by those of `topk` the chosen logits alone do, `given` are scores."""

MOST_EXPERTS = 1024
"""Scores of a token that kernels hold at once."""

MOST_CHOSEN = 64
"""Experts of a token: kernels look for one after the other."""


def _infer_router(types: Types, attrs: Attrs) -> Types:
    """logits [T, E], bias [E] if `has_bias`: weights [T, k] in `dtype`, experts [T, k] i64.

    scores: one of `SCORES`.  Experts are chosen by scores (or logits) plus bias, the largest first,
    the lower index where two are equal.  With `groups` above 1, E is that many groups of one size;
    only the `groups_kept` with the largest sums of their `group_best` best scores are chosen from,
    and elsewhere a score counts as `fill`, as a weight only if `fill_weighs`.  Weights are the
    scores without the bias; if `renormalise` divided by their sum plus `eps`, or by `least` where
    that is more; then times `scale`.
    """
    arity(types, 1 + bool_attr(attrs, "has_bias"))
    logits = float_operand(types[0])
    if logits.rank != 2:
        raise VerifyError(f"`{logits}` are not logits of tokens")
    experts, k = logits.shape[1], int_attr(attrs, "k")
    groups, kept = int_attr(attrs, "groups"), int_attr(attrs, "groups_kept")
    best = int_attr(attrs, "group_best")
    if isinstance(experts, int) and not 1 <= k <= experts:
        raise VerifyError(f"{k} of {experts} experts are none of them")
    if str_attr(attrs, "scores") not in SCORES:
        raise VerifyError(f"unknown scores `{attrs['scores']}`")
    if not 1 <= kept <= groups or symbolic.modulo(experts, groups) != 0:
        raise VerifyError(f"{experts} experts are not {groups} groups of which {kept} stay")
    if groups > 1 and isinstance(experts, int) and not 1 <= best <= experts // groups:
        raise VerifyError(f"groups of {experts // groups} have no {best} scores")
    if types[1:] and types[1].shape != (experts,):
        raise VerifyError(f"bias `{types[1]}` does not fit {experts} experts")
    for name in ("fill", "eps", "least", "scale"):
        float_attr(attrs, name)
    bool_attr(attrs, "fill_weighs")
    shape = (logits.shape[0], k)
    return TensorType(str_attr(attrs, "dtype"), shape), TensorType("i64", shape)


def _router(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    logits, how, k = arrays[0], str_attr(attrs, "scores"), int_attr(attrs, "k")
    scores = logits
    if how in ("softmax", "sigmoid"):
        scores = softmax(logits, 1) if how == "softmax" else sigmoid(logits)
    choice = scores + arrays[1] if bool_attr(attrs, "has_bias") else scores
    groups = int_attr(attrs, "groups")
    if groups > 1:
        grouped = choice.reshape(len(choice), groups, -1)
        best = int_attr(attrs, "group_best")
        sums = np.sort(grouped, axis=-1)[..., -best:].sum(axis=-1)
        stays = np.zeros(sums.shape, dtype=bool)
        np.put_along_axis(stays, _largest(sums, int_attr(attrs, "groups_kept")), True, axis=1)
        fill = float_attr(attrs, "fill")
        stays = np.repeat(stays, grouped.shape[-1], axis=1)
        choice = np.where(stays, choice, fill)
        if bool_attr(attrs, "fill_weighs"):
            scores = np.where(stays, scores, fill)
    experts = _largest(choice, k)
    weights = np.take_along_axis(scores, experts, axis=1)
    if how in ("softmax_topk", "sigmoid_topk"):
        weights = softmax(weights, 1) if how == "softmax_topk" else sigmoid(weights)
    if bool_attr(attrs, "renormalise"):
        total = weights.sum(axis=1, keepdims=True) + float_attr(attrs, "eps")
        weights = weights / np.maximum(total, float_attr(attrs, "least"))
    return weights * float_attr(attrs, "scale"), experts


def _largest(values: Array, count: int) -> Array:
    """Indices [T, count] of the largest of each row, in order; NaN is above every number."""
    key = np.where(np.isnan(values), -np.inf, -values)
    return np.argsort(key, axis=1, kind="stable")[:, :count]


define("router", _infer_router, _router)
