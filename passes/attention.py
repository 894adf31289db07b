"""Attention written out by hand.

Fuses, over q [B, H, S, D], k [B, H or 1, T, D] and v [B, H or 1, T, Dv],

    softmax(mask(softcap(q @ k^T * scale))) @ v        into        attention

where any part but the softmax may be absent: the scale is a constant factor or divisor, the
softcap is c*tanh(x/c), which may share its factor with the scale, a mask is added, or chosen by
`where` with a number that swallows any score; casts to a wider type, lifting the scores to the
lowest number and subtracting the row maximum change nothing.  A column of sinks joined to the
scores, whose share is sliced off after the softmax, becomes the operand `sinks`.  Heads folded
into the batch, [B*H, S, D], are seen through.  A query whose keys are all hidden by minus infinity
gives zeros, where the model's own softmax has no number to give.

Leaves it alone when
  axis              the softmax does not run over the keys
  batch             q, k and v differ in batch
  dtype             q, k and v differ in dtype
  fill              masked scores become a number that is not low enough
  heads             the heads of k or v are neither 1 nor those of q
  mask-shape        a mask has more rows than the scores
  rank              the operands are not batches of heads
  scores            something else stands between the product and the softmax
  sinks-shape       the sinks are not one number a head
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from fusec.ir import Attrs, Graph, Node
from fusec.ir.types import Attr, TensorType, bool_attr, int_attr, ints_attr
from fusec.rewrite import FusionPass, Guard, Match, Rejection
from fusec.rewrite.driver import Builder
from fusec.symbolic import Dim
from fusec.target import Target

MASKED = -1e4
"""A number this low, added to a score, leaves no share for its key."""

MASK_NAMES = ("add", "mask", "hide")
"""How values of a match that are masks begin: added numbers, flags that keep, flags that hide."""

FILLED = {"f16": -6e4, "bf16": -1e9, "f32": -1e9, "f64": -1e18}
"""Numbers this low swallow what is added to them in each dtype: adding is as good as choosing."""


@dataclass(frozen=True, slots=True)
class AttentionOperands:
    """The operands of an `attention` by name; `flags` are its other attributes."""

    q: str
    k: str
    v: str
    mask: str | None
    sinks: str | None
    key_padding: str | None
    flags: Mapping[str, Attr]

    @classmethod
    def of(cls, node: Node) -> AttentionOperands:
        """The operands of `node`."""
        q, k, v, *rest = node.inputs
        names = ("has_mask", "has_sinks", "has_key_padding")
        given = (rest.pop(0) if bool_attr(node.attrs, name) else None for name in names)
        mask, sinks, key_padding = given
        flags = {key: value for key, value in node.attrs.items() if key not in names}
        return cls(q, k, v, mask, sinks, key_padding, flags)

    def changed(self, **flags: Attr) -> AttentionOperands:
        """The same operands with other attributes."""
        return replace(self, flags={**self.flags, **flags})

    @property
    def inputs(self) -> tuple[str, ...]:
        """Values in operand order."""
        optional = (self.mask, self.sinks, self.key_padding)
        return (self.q, self.k, self.v, *(value for value in optional if value is not None))

    @property
    def attrs(self) -> Attrs:
        """All attributes."""
        return {
            "causal": False,
            "window": None,
            "softcap": None,
            **self.flags,
            "has_mask": self.mask is not None,
            "has_sinks": self.sinks is not None,
            "has_key_padding": self.key_padding is not None,
        }


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
        return None
    reason = f"q, k and v are {', '.join(kinds)}"
    return Rejection("dtype", reason, match.values["q"])


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
    for value in _masks(match):
        shape = _mask_form(match, value)
        padded = (*(1 for _ in scores[len(shape) :]), *shape)
        if len(padded) > 4 or any(a not in (1, b) for a, b in zip(padded, scores, strict=True)):
            return Rejection("mask-shape", f"mask `%{value}` widens the scores", value)
    return None


def _mask_form(match: Match, value: str) -> tuple[Attr, ...]:
    """The shape of a mask over scores [B, H, S, T], its heads taken out of the batch if there."""
    shape, heads = match.graph.type(value).shape, match.facts["heads"]
    if isinstance(heads, tuple) and len(shape) == 3 and shape[0] != 1:
        return (*heads, *shape[1:])
    return shape


def _sinks_shape(match: Match, target: Target) -> Rejection | None:
    if "sinks" not in match.values:
        return None
    graph, value = match.graph, match.values["sinks"]
    heads = graph.type(match.values["q"]).shape[1]
    if graph.type(value).shape in ((heads,), (1, heads, 1, 1), (heads, 1, 1)):
        return None
    return Rejection("sinks-shape", f"`%{value}` is not one number a head", value)


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
        _mask_shape,
        _fill,
        _sinks_shape,
    )

    def anchors(self) -> frozenset[str]:
        """The product of shares and values."""
        return frozenset(("matmul",))

    def find(self, graph: Graph, node: Node) -> Match | None:
        """Walk from the product with v up to the product with k."""
        return _Walk(graph, node).match()

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """One `attention`; k is transposed back, and heads are given their axis."""
        graph, values = match.graph, match.values
        q, k, v = values["q"], values["k"], values["v"]
        if "base" in values:
            k = _regrouped(build, values["base"], graph.type(values["kt"]).shape)
        elif "kt" in values:
            k = build.value("transpose", [values["kt"]], {"perm": _swapped(graph, k)})
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


def as_type(build: Builder, value: str, wanted: TensorType) -> str:
    """`value` cast and reshaped to `wanted`; decisions go on naming what `build` added before."""
    graph, root = build.graph, build.root
    if graph.type(value).dtype != wanted.dtype:
        attrs: Attrs = {"dtype": wanted.dtype}
        value = graph.add("cast", [value], attrs, origin=root.origin, at=root.name).output
    if graph.type(value).shape != wanted.shape:
        attrs = {"shape": wanted.shape}
        value = graph.add("reshape", [value], attrs, origin=root.origin, at=root.name).output
    return value


def _regrouped(build: Builder, base: str, kt: tuple[Dim, ...]) -> str:
    """`base` [..., T, D], its leading axes those of `kt` [..., D, T]."""
    node = build.graph.producer(base)
    if node is not None and node.op == "reshape":
        base = node.inputs[0]
    return build.value("reshape", [base], {"shape": (*kt[:-2], kt[-1], kt[-2])})


def _swapped(graph: Graph, value: str) -> tuple[int, ...]:
    """The permutation that exchanges the last two axes of `value`."""
    rank = graph.type(value).rank
    return (*range(rank - 2), rank - 1, rank - 2)


def _joined(match: Match, build: Builder) -> str | None:
    """All masks as one: flags are joined by `and`, numbers added, a mixture becomes numbers."""
    graph = match.graph
    flags: list[str] = []
    numbers: list[str] = []
    names = [name for name in match.values if name.startswith(MASK_NAMES)]
    facts = zip(
        names, _fills(match), _numbers(match, "factors"), _numbers(match, "floors"), strict=True
    )
    for name, fill, times, floor in facts:
        value = match.values[name]
        dtype = graph.type(value).dtype
        form = _mask_form(match, value)
        if form != graph.type(value).shape:
            value = build.value("reshape", [value], {"shape": form})
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
    total = _reduced(build, "add", numbers)
    if allowed is None or total is None:
        return total
    lowest = _number(build, -math.inf, graph.type(total).dtype)
    return build.value("where", [allowed, total, lowest])


def _number(build: Builder, number: float, dtype: str) -> str:
    return build.value("constant", [], {"value": number, "dtype": dtype, "shape": ()})


def _reduced(build: Builder, op: str, values: Iterable[str]) -> str | None:
    result: str | None = None
    for value in values:
        result = value if result is None else build.value(op, [result, value])
    return result


class _Walk:
    """The way from the last product of an attention up to the first; collects what it meets."""

    def __init__(self, graph: Graph, root: Node) -> None:
        self.graph = graph
        self.root = root
        self.inner: list[Node] = [root]
        self.values: dict[str, str] = {}
        self.fills: list[Attr] = []
        self.factors: list[float] = []
        self.floors: list[float] = []
        self.floor = -math.inf
        self.scale = 1.0
        self.softcap: float | None = None
        self.heads: tuple[Dim, ...] | None = None

    def match(self) -> Match | None:
        graph = self.graph
        shares, v = self.root.inputs
        value = self._through(shares, "cast", "reshape")
        node = graph.producer(value)
        sliced = None
        if node is not None and node.op == "slice":
            sliced = node
            value = self._through(self._enter(node), "cast", "reshape")
            node = graph.producer(value)
        if node is not None and node.op == "where":
            value = self._without_nan(node)
            node = graph.producer(value)
        if node is None or node.op != "softmax":
            return None
        softmax = node
        value = self._scores(self._enter(softmax))
        if (joined := graph.producer(value)) is not None and joined.op == "concat":
            if sliced is None or not self._sinks(joined, sliced):
                return None
            value = joined.inputs[0]
        elif sliced is not None:
            return None
        scores = graph.type(value).shape
        product = self._modifiers(value)
        if product is not None:
            self.inner.append(product)
            self._operands(product.inputs[0], product.inputs[1], v)
            if len(scores) == 4 and graph.type(self.values["q"]).rank == 3:
                self._fold_heads(scores)
        elif self._leads_to_product(value):
            self.values["scores"] = value
        else:
            return None
        return Match(
            graph,
            self.root,
            self.values,
            {"softmax": softmax},
            inner=tuple(dict.fromkeys(self.inner)),
            facts={
                "scale": self.scale,
                "softcap": self.softcap,
                "heads": self.heads,
                "fills": tuple(self.fills),
                "factors": tuple(self.factors),
                "floors": tuple(self.floors),
            },
        )

    def _without_nan(self, node: Node) -> str:
        """The shares before those of a query without keys, NaN, were put to zero."""
        graph = self.graph
        condition, zero, shares = node.inputs
        test = graph.producer(condition)
        if test is None or test.op != "isnan" or test.inputs[0] != shares:
            return node.output
        if graph.constant(zero) != 0:
            return node.output
        self.inner += [node, test]
        return self._through(shares, "cast")

    def _enter(self, node: Node) -> str:
        self.inner.append(node)
        return node.inputs[0]

    def _through(self, value: str, *ops: str) -> str:
        """Before casts, and before reshapes that leave rows and columns as they are."""
        while (node := self.graph.producer(value)) is not None and node.op in ops:
            before, after = (self.graph.type(each).shape for each in (node.inputs[0], value))
            if node.op == "reshape" and before[-2:] != after[-2:]:
                break
            value = self._enter(node)
        return value

    def _operands(self, q: str, kt: str, v: str) -> None:
        """The operands, narrow again if all were widened for the products."""
        graph = self.graph
        q, kt = self._unscaled(q), self._unscaled(kt)
        k, node = kt, graph.producer(kt)
        turned = node is not None and node.op == "transpose"
        if node is not None and turned:
            turned = ints_attr(node.attrs, "perm") == _swapped(graph, kt)
            k = node.inputs[0] if turned else kt
        narrow = [self._uncast(value) for value in (q, k, v)]
        if len({graph.type(value).dtype for value in narrow}) == 1:
            q, k, v = narrow
        q, k = self._unscaled(q), self._unscaled(k)
        self.values |= {"q": q, "k": k, "v": v}
        if not turned:
            self.values["kt"] = k
            if (base := self._behind_leading_axes(k)) is not None:
                self.values["base"] = base

    def _behind_leading_axes(self, kt: str) -> str | None:
        """What is transposed, and then has its leading axes regrouped, to `kt`."""
        graph = self.graph
        node = graph.producer(kt)
        if node is None or node.op != "reshape":
            return None
        inner = graph.producer(node.inputs[0])
        if graph.type(node.inputs[0]).shape[-2:] != graph.type(kt).shape[-2:]:
            return None
        if inner is None or inner.op != "transpose":
            return None
        if ints_attr(inner.attrs, "perm") != _swapped(graph, inner.output):
            return None
        return inner.inputs[0]

    def _uncast(self, value: str) -> str:
        """An operand before it was widened for the product."""
        node = self.graph.producer(value)
        if node is None or node.op != "cast":
            return value
        before, after = (self.graph.type(each).element for each in (node.inputs[0], value))
        if not (before.is_float and after.is_float and before.itemsize < after.itemsize):
            return value
        return node.inputs[0]

    def _unscaled(self, value: str) -> str:
        """q or k before it was multiplied by a constant, which joins the scale."""
        while (found := factor(self.graph, value)) is not None:
            value, times = found
            self.scale *= times
        return value

    def _scores(self, value: str) -> str:
        """What the softmax is taken of, before casts and the subtraction of the maximum."""
        value = self._through(value, "cast")
        node = self.graph.producer(value)
        if node is None or node.op != "sub":
            return value
        top = self.graph.producer(node.inputs[1])
        if top is None or top.op != "reduce_max" or top.inputs[0] != node.inputs[0]:
            return value
        rank = self.graph.type(value).rank
        if [axis % rank for axis in ints_attr(top.attrs, "axes")] != [rank - 1]:
            return value
        if not bool_attr(top.attrs, "keepdims"):
            return value
        self.inner += [node, top]
        return self._through(node.inputs[0], "cast")

    def _sinks(self, joined: Node, sliced: Node) -> bool:
        """Whether `joined` adds one column to the scores that `sliced` takes off again."""
        graph = self.graph
        if len(joined.inputs) != 2:
            return False
        scores, column = (graph.type(value).shape for value in joined.inputs)
        rank = len(scores)
        last = [int_attr(node.attrs, "axis") % rank for node in (joined, sliced)]
        window = tuple(sliced.attrs[key] for key in ("start", "stop", "step"))
        if last != [rank - 1] * 2 or column[-1] != 1 or window != (0, scores[-1], 1):
            return False
        value = joined.inputs[1]
        self.inner.append(joined)
        while (node := graph.producer(value)) is not None and node.op in ("expand", "cast"):
            value = node.inputs[0]
        if node is not None and node.op == "reshape" and graph.type(node.inputs[0]).rank == 1:
            value = node.inputs[0]
        self.values["sinks"] = value
        return True

    def _modifiers(self, value: str) -> Node | None:
        """From the masked scores to the product: masks, then a softcap, then the scale.

        Constant factors may stand anywhere: those outside a mask scale it too, and those outside
        of tanh are the softcap, so that c*tanh(m*x) is a softcap of c on scores scaled by m*c.
        """
        graph = self.graph
        while True:
            value = self._through(value, "cast", "reshape")
            node = graph.producer(value)
            if node is None:
                return None
            if node.op == "matmul":
                return node
            self.inner.append(node)
            if (found := factor(graph, value)) is not None:
                value, times = found
                self.scale *= times
            elif self.softcap is None and node.op == "tanh" and self.scale > 0:
                value, self.softcap = node.inputs[0], self.scale
            elif self.softcap is None and (score := self._unclamped(node)) is not None:
                value = score
            elif self.softcap is None and (score := self._unmasked(node)) is not None:
                value = score
            else:
                return None

    def _unmasked(self, node: Node) -> str | None:
        """The scores before `node` masks them."""
        graph = self.graph
        if node.op == "add":
            score = next((each for each in node.inputs if self._leads_to_product(each)), None)
            if score is None:
                return None
            other = node.inputs[0] if node.inputs[1] == score else node.inputs[1]
            return self._masked("add", other, -math.inf, score)
        if node.op != "where":
            return None
        condition, then, other = node.inputs
        if (fill := graph.constant(other)) is not None:
            return self._masked("mask", condition, fill, then)
        if (fill := graph.constant(then)) is not None:
            return self._masked("hide", condition, fill, other)
        return None

    def _masked(self, kind: str, mask: str, fill: Attr, score: str) -> str:
        self.values[f"{kind}{len(self.fills)}"] = mask
        number = float(fill) if isinstance(fill, int | float) else None
        added = kind == "add"
        self.fills.append(number if added or number is None else self._lifted(number))
        self.factors.append(self.scale)
        self.floors.append(self.floor)
        return score

    def _lifted(self, fill: float) -> float:
        return max(fill * self.scale, self.floor)

    def _unclamped(self, node: Node) -> str | None:
        """The scores before those that no share could come of were lifted to a lowest number."""
        graph = self.graph
        least = FILLED.get(graph.type(node.output).dtype, -math.inf)
        sides = [(node.inputs[0], node.attrs.get("min"))]
        if node.op == "maximum":
            left, right = node.inputs
            sides = [(left, graph.constant(right)), (right, graph.constant(left))]
        elif node.op != "clamp" or node.attrs.get("max") is not None:
            return None
        for score, low in sides:
            if isinstance(low, int | float) and low <= least and self.scale > 0:
                self.floor = max(self.floor, low * self.scale)
                return score
        return None

    def _leads_to_product(self, value: str) -> bool:
        """Whether `value` comes from a product by what may stand between it and the softmax."""
        graph = self.graph
        for _ in range(16):
            node = graph.producer(value)
            if node is None:
                return False
            if node.op == "matmul":
                return True
            if node.op == "add":
                return any(self._leads_to_product(each) for each in node.inputs)
            if node.op == "maximum":
                value = node.inputs[1 if graph.constant(node.inputs[0]) is not None else 0]
            elif node.op == "where":
                value = node.inputs[2 if graph.constant(node.inputs[1]) is not None else 1]
            elif node.op in ("cast", "reshape", "tanh", "clamp"):
                value = node.inputs[0]
            elif (found := factor(graph, value)) is not None:
                value = found[0]
            else:
                return False
        return False

    def _fold_heads(self, scores: tuple[Dim, ...]) -> None:
        """Heads that the products hold in their batch, by the shape of the scores between them."""
        shapes = [self.graph.type(self.values[name]).shape for name in ("q", "k", "v")]
        whole = scores[0] * scores[1]
        if all(len(shape) == 3 and shape[0] == whole for shape in shapes):
            self.heads = scores[:2]


def factor(graph: Graph, value: str) -> tuple[str, float] | None:
    """What `value` is a constant multiple of, and the constant; neither is zero."""
    node = graph.producer(value)
    if node is None or node.op not in ("mul", "div"):
        return None
    sides = (node.inputs, node.inputs[::-1]) if node.op == "mul" else (node.inputs,)
    for operand, other in sides:
        held = graph.constant(other)
        if isinstance(held, bool) or not isinstance(held, int | float) or held == 0:
            continue
        if graph.type(operand).shape == graph.type(value).shape:
            return operand, float(held) if node.op == "mul" else 1.0 / held
    return None
