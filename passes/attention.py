"""Attention written out by hand.

Fuses, over q [B, H, S, D], k [B, H or 1, T, D] and v [B, H or 1, T, Dv],

    softmax(mask(softcap(q @ k^T * scale))) @ v        into        attention

where any part but the softmax may be absent: the scale is a constant factor or divisor, or numbers
that do not differ along a row, as one a head is, which multiply q instead; the softcap is
c*tanh(x/c), which may share its factor with the scale, a mask is added, or chosen by
`where` with a number that swallows any score; casts to a wider type, lifting the scores to the
lowest number and subtracting the row maximum change nothing.  A column of sinks joined to the
scores, whose share is sliced off after the softmax, becomes the operand `sinks`, as do sinks s
that the result is scaled for, by sigmoid(logsumexp(scores) - s).  Heads folded into the batch,
[B*H, S, D], are seen through, and a batch in groups that share masks, [G, B/G, H, S, T].  A query
whose keys are all hidden by minus infinity gives zeros, where the model's own softmax has no
number to give.

Leaves it alone when
  axis              the softmax does not run over the keys
  batch             q, k and v differ in batch
  dtype             q, k and v differ in dtype
  fill              masked scores become a number that is not low enough
  head-dim          the size of a head is known only when it runs, or no GPU kernel holds it
  heads             the heads of k or v are neither 1 nor those of q
  mask-shape        a mask has more rows than the scores
  rank              the operands are not batches of heads
  scores            something else stands between the product and the softmax
  sinks-shape       the sinks are not one number a head
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import ClassVar

from fusec.ir import Graph, Node, TensorType
from fusec.ir.types import Attr, dims_attr, int_attr
from fusec.passes.attention_operands import AttentionOperands, as_type, swapped
from fusec.passes.attention_walk import FILLED, AttentionWalk
from fusec.rewrite import FusionPass, Guard, Match, Rejection
from fusec.rewrite.driver import Builder
from fusec.symbolic import Dim
from fusec.target import LONGEST_HEAD, Target

MASK_NAMES = ("add", "mask", "hide")
"""How values of a match that are masks begin: added numbers, flags that keep, flags that hide."""


def _scores(match: Match, target: Target) -> Rejection | None:
    if "q" in match.values:
        return None
    at = match.values["scores"]
    reason = (
        f"`%{at}` is not a product of queries and keys, scaled, capped and masked in this order"
    )
    return Rejection("scores", reason, at)


def _rank(match: Match, target: Target) -> Rejection | None:
    for name in ("q", "k", "v"):
        value = match.values[name]
        if match.graph.type(value).rank != 4 and match.facts["heads"] is None:
            return Rejection("rank", f"`%{value}` has no axis of heads", value)
    return None


def _axis(match: Match, target: Target) -> Rejection | None:
    softmax = match.nodes["softmax"]
    rank = match.graph.type(softmax.output).rank
    if int_attr(softmax.attrs, "axis") % rank == rank - 1:
        return None
    reason = "the softmax runs over another axis than the keys"
    return Rejection("axis", reason, softmax.output)


def _dtype(match: Match, target: Target) -> Rejection | None:
    kinds = [match.graph.type(match.values[name]).dtype for name in ("q", "k", "v")]
    if len({*kinds}) == 1:
        rows = match.graph.type(match.values.get("rows", match.values["q"])).dtype
        if rows == kinds[0]:
            return None
        reason = f"scores are multiplied by {rows}, and q is {kinds[0]}"
        return Rejection("dtype", reason, match.values["rows"])
    reason = f"q, k and v are {', '.join(kinds)}"
    return Rejection("dtype", reason, match.values["q"])


def _head_dim(match: Match, target: Target) -> Rejection | None:
    for size in (_shapes(match)[0][-1], _shapes(match)[2][-1]):
        if not isinstance(size, int):
            reason = f"the size of a head, `{size}`, is known only when it runs"
            return Rejection("head-dim", reason)
        if size > LONGEST_HEAD and target.is_gpu:
            reason = f"a head has {size} elements; kernels of GPUs hold {LONGEST_HEAD}"
            return Rejection("head-dim", reason)
    return None


def _shapes(match: Match) -> tuple[tuple[Dim, ...], ...]:
    """The shapes of q, k and v as the operation takes them."""
    return tuple(match.graph.type(match.values[name]).shape for name in ("q", "k", "v"))


def _batch(match: Match, target: Target) -> Rejection | None:
    q, k, v = _shapes(match)
    if q[0] == k[0] == v[0]:
        return None
    return Rejection("batch", f"q, k and v have batches {q[0]}, {k[0]} and {v[0]}")


def _heads(match: Match, target: Target) -> Rejection | None:
    if match.facts["heads"] is not None:
        return None
    q, k, v = (shape[1] for shape in _shapes(match))
    if k == v and k in (1, q):
        return None
    return Rejection("heads", f"q, k and v have {q}, {k} and {v} heads")


def _fill(match: Match, target: Target) -> Rejection | None:
    softmax = match.nodes["softmax"]
    least = FILLED.get(match.graph.type(match.values["q"]).dtype, -math.inf)
    for fill in _fills(match):
        if fill is None or fill > least:
            reason = f"masked scores become {fill}, which is not below {least}"
            return Rejection("fill", reason, softmax.output)
    return None


def _fills(match: Match) -> list[float | None]:
    """What `where` puts in place of masked scores; minus infinity for a mask that is added."""
    fills = match.facts["fills"]
    assert isinstance(fills, tuple)
    return [float(fill) if isinstance(fill, int | float) else None for fill in fills]


def _numbers(match: Match, name: str) -> list[float]:
    """For each mask: the `factors` it is multiplied by, or the `floors` that lift the scores."""
    held = match.facts[name]
    assert isinstance(held, tuple)
    return [float(number) for number in held if isinstance(number, int | float)]


def _mask_shape(match: Match, target: Target) -> Rejection | None:
    q, k, _ = _shapes(match)
    heads = match.facts["heads"]
    lead = heads if isinstance(heads, tuple) else q[:2]
    scores = (*lead, q[-2], k[-1 if "kt" in match.values else -2])
    for value, group in zip(_masks(match), _groups(match), strict=True):
        shape = _mask_form(match, value)
        wide = scores
        if group:
            whole = group[0] * group[1] == scores[0]
            wide = (*group, *scores[1:]) if whole else (1, 1, 1, *scores[2:])
        padded = (*(1 for _ in wide[len(shape) :]), *shape)
        fits = len(padded) == len(wide)
        if not fits or any(a not in (1, b) for a, b in zip(padded, wide, strict=True)):
            return Rejection("mask-shape", f"mask `%{value}` widens the scores", value)
    return None


def _mask_form(match: Match, value: str) -> tuple[Attr, ...]:
    """The shape of a mask over scores [B, H, S, T], its heads taken out of the batch if there."""
    shape, heads = match.graph.type(value).shape, match.facts["heads"]
    if heads is None or len(shape) != 3:
        return shape
    batch, count = dims_attr(match.facts, "heads")
    if shape[0] == batch * count:
        return (batch, count, *shape[1:])
    return shape


def _sinks_shape(match: Match, target: Target) -> Rejection | None:
    if "sinks" not in match.values:
        return None
    graph, value = match.graph, match.values["sinks"]
    folded = match.facts["heads"]
    heads = folded[1] if isinstance(folded, tuple) else graph.type(match.values["q"]).shape[1]
    if graph.type(value).shape in ((heads,), (1, heads, 1, 1), (heads, 1, 1)):
        return None
    return Rejection("sinks-shape", f"`%{value}` is not one number a head", value)


def _groups(match: Match) -> list[tuple[Dim, ...]]:
    """For each mask the two sizes whose product is the batch of its scores, if they have these."""
    held = match.facts["groups"]
    assert isinstance(held, tuple)
    return [dims_attr({"group": group}, "group") for group in held]


def _masks(match: Match) -> list[str]:
    return [value for name, value in match.values.items() if name.startswith(MASK_NAMES)]


class Attention(FusionPass):
    """Recognises attention that is written as products and a softmax."""

    name: ClassVar[str] = "attention"
    fusion: ClassVar[str | None] = "attention"
    after: ClassVar[tuple[str, ...]] = ("canonicalise",)
    guards: ClassVar[tuple[Guard, ...]] = (
        _scores,
        _axis,
        _rank,
        _dtype,
        _batch,
        _heads,
        _head_dim,
        _mask_shape,
        _fill,
        _sinks_shape,
    )

    def anchors(self) -> frozenset[str]:
        """The product of shares and values."""
        return frozenset(("matmul",))

    def find(self, graph: Graph, node: Node) -> Match | None:
        """Walk from the product with v up to the product with k."""
        return AttentionWalk(graph, node).match()

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """One `attention`; k is transposed back, and heads are given their axis."""
        graph, values = match.graph, match.values
        q, k, v = values["q"], values["k"], values["v"]
        if "rows" in values:
            q = build.value("mul", [q, values["rows"]])
        if "base" in values:
            k = _regrouped(build, values["base"], graph.type(values["kt"]).shape)
        elif "kt" in values:
            k = build.value("transpose", [values["kt"]], {"perm": swapped(graph, k)})
        heads = match.facts["heads"]
        if heads is not None:
            assert isinstance(heads, tuple)
            q, k, v = (
                build.value("reshape", [value], {"shape": (*heads, *graph.type(value).shape[1:])})
                for value in (q, k, v)
            )
        sinks = values.get("sinks")
        if sinks is not None and graph.type(sinks).rank != 1:
            shape = {"shape": (graph.type(q).shape[1],)}
            sinks = build.value("reshape", [sinks], shape)
        flags = {key: match.facts[key] for key in ("scale", "softcap")}
        mask = _joined(match, build)
        operands = AttentionOperands(q, k, v, mask, sinks, None, flags)
        result = build.value("attention", operands.inputs, operands.attrs)
        return {match.root.output: as_type(build, result, graph.type(match.root.output))}


def _regrouped(build: Builder, base: str, kt: tuple[Dim, ...]) -> str:
    """`base` [..., T, D], its leading axes those of `kt` [..., D, T]."""
    node = build.graph.producer(base)
    if node is not None and node.op == "reshape":
        base = node.inputs[0]
    return build.value("reshape", [base], {"shape": (*kt[:-2], kt[-1], kt[-2])})


def _joined(match: Match, build: Builder) -> str | None:
    """All masks as one: flags are joined by `and`, numbers added, a mixture becomes numbers."""
    graph = match.graph
    flags: list[str] = []
    numbers: list[str] = []
    names = [name for name in match.values if name.startswith(MASK_NAMES)]
    facts = zip(
        names,
        _groups(match),
        _fills(match),
        _numbers(match, "factors"),
        _numbers(match, "floors"),
        strict=True,
    )
    for name, group, fill, times, floor in facts:
        value = match.values[name]
        dtype = graph.type(value).dtype
        form = _mask_form(match, value)
        if form != graph.type(value).shape:
            value = build.value("reshape", [value], {"shape": form})
        if group and len(form) > 3:
            value = _ungrouped(build, value, group)
        if name.startswith("hide"):
            value = build.value("not", [value])
        if dtype != "bool" and times != 1:
            value = build.value("mul", [value, _number(build, times, dtype)])
        if dtype != "bool" and math.isfinite(floor):
            value = build.value("maximum", [value, _number(build, floor, dtype)])
        if fill is not None and math.isfinite(fill):
            dtype = graph.type(match.values["q"]).dtype
            kept, hidden = (_number(build, number, dtype) for number in (0.0, fill))
            value = build.value("where", [value, kept, hidden])
        (flags if graph.type(value).dtype == "bool" else numbers).append(value)
    allowed = _reduced(build, "and", flags)
    if not numbers:
        return allowed
    total = _reduced(build, "add", _of_one_dtype(build, numbers))
    if allowed is None or total is None:
        return total
    lowest = _number(build, -math.inf, graph.type(total).dtype)
    return build.value("where", [allowed, total, lowest])


def _ungrouped(build: Builder, mask: str, group: tuple[Dim, ...]) -> str:
    """`mask` over scores [*group, H, S, T] as one over scores [B, H, S, T]."""
    shape = build.graph.type(mask).shape
    rest = shape[-3:]
    if all(size == 1 for size in shape[:-3]):
        return build.value("reshape", [mask], {"shape": rest})
    mask = build.value("expand", [mask], {"shape": (*group, *rest)})
    return build.value("reshape", [mask], {"shape": (group[0] * group[1], *rest)})


def _number(build: Builder, number: float, dtype: str) -> str:
    return build.value("constant", [], {"value": number, "dtype": dtype, "shape": ()})


def _of_one_dtype(build: Builder, values: list[str]) -> list[str]:
    """`values`, in f32 if their dtypes differ."""
    kinds = [build.graph.type(value) for value in values]
    if len({kind.dtype for kind in kinds}) < 2:
        return values
    pairs = zip(values, kinds, strict=True)
    return [as_type(build, value, TensorType("f32", kind.shape)) for value, kind in pairs]


def _reduced(build: Builder, op: str, values: Iterable[str]) -> str | None:
    result: str | None = None
    for value in values:
        result = value if result is None else build.value(op, [result, value])
    return result
