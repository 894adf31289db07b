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

SCORES = ("softmax", "sigmoid", "softmax_topk")
"""How logits become scores; by `softmax_topk` the chosen logits alone do."""


def _infer_router(types: Types, attrs: Attrs) -> Types:
    """logits [T, E], bias [E] if `has_bias`: weights [T, k] in `dtype`, experts [T, k] i64.

    scores: one of `SCORES`.  Experts are chosen by scores plus bias, the largest first, the lower
    index where two are equal.  With `groups` above 1, E is that many groups of equal size; only the
    `groups_kept` with the largest sums of two scores are chosen from, and elsewhere a score counts
    as `fill`.  Weights are the scores without the bias; if `renormalise` divided by their sum plus
    `eps`; then times `scale`.
    """
    arity(types, 1 + bool_attr(attrs, "has_bias"))
    logits = float_operand(types[0])
    if logits.rank != 2:
        raise VerifyError(f"`{logits}` are not logits of tokens")
    experts, k = logits.shape[1], int_attr(attrs, "k")
    groups, kept = int_attr(attrs, "groups"), int_attr(attrs, "groups_kept")
    if isinstance(experts, int) and not 1 <= k <= experts:
        raise VerifyError(f"{k} of {experts} experts are none of them")
    if str_attr(attrs, "scores") not in SCORES:
        raise VerifyError(f"unknown scores `{attrs['scores']}`")
    if not 1 <= kept <= groups or symbolic.modulo(experts, groups) != 0:
        raise VerifyError(f"{experts} experts are not {groups} groups of which {kept} stay")
    if groups > 1 and isinstance(experts, int) and experts < 2 * groups:
        raise VerifyError(f"groups of {experts // groups} have no two scores")
    if types[1:] and types[1].shape != (experts,):
        raise VerifyError(f"bias `{types[1]}` does not fit {experts} experts")
    for name in ("fill", "eps", "scale"):
        float_attr(attrs, name)
    shape = (logits.shape[0], k)
    return TensorType(str_attr(attrs, "dtype"), shape), TensorType("i64", shape)


def _router(arrays: Sequence[Array], attrs: Attrs, types: Types) -> tuple[Array, ...]:
    logits, how, k = arrays[0], str_attr(attrs, "scores"), int_attr(attrs, "k")
    scores = logits
    if how != "softmax_topk":
        scores = softmax(logits, 1) if how == "softmax" else sigmoid(logits)
    choice = scores + arrays[1] if bool_attr(attrs, "has_bias") else scores
    groups = int_attr(attrs, "groups")
    if groups > 1:
        grouped = choice.reshape(len(choice), groups, -1)
        sums = np.sort(grouped, axis=-1)[..., -2:].sum(axis=-1)
        stays = np.zeros(sums.shape, dtype=bool)
        np.put_along_axis(stays, _largest(sums, int_attr(attrs, "groups_kept")), True, axis=1)
        fill = float_attr(attrs, "fill")
        choice = np.where(stays[..., None], grouped, fill).reshape(choice.shape)
    experts = _largest(choice, k)
    weights = np.take_along_axis(scores, experts, axis=1)
    if how == "softmax_topk":
        weights = softmax(weights, 1)
    if bool_attr(attrs, "renormalise"):
        weights = weights / (weights.sum(axis=1, keepdims=True) + float_attr(attrs, "eps"))
    return weights * float_attr(attrs, "scale"), experts


def _largest(values: Array, count: int) -> Array:
    """Indices [T, count] of the largest of each row, in order; NaN is above every number."""
    key = np.where(np.isnan(values), -np.inf, -values)
    return np.argsort(key, axis=1, kind="stable")[:, :count]


define("router", _infer_router, _router)
