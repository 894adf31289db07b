"""The search for an attention that is written out: from its last product up to its first."""

from __future__ import annotations

import math

from fusec.ir import Graph, Node
from fusec.ir.types import Attr, bool_attr, int_attr, ints_attr
from fusec.passes.attention_operands import factor, swapped
from fusec.rewrite import Match
from fusec.symbolic import Dim

FILLED = {"f16": -6e4, "bf16": -1e9, "f32": -1e9, "f64": -1e18}
"""Numbers this low swallow what is added to them in each dtype: adding is as good as choosing."""

MIXED = ("mul", "div", "sub", "conv", "linear", "transpose")
"""What models put between scores and softmax that no attention has, such as a mixture of heads."""

MOST_STEPS = 64
"""Values that are looked at on the way from a softmax to its product."""


class AttentionWalk:
    """The way from the last product of an attention up to the first; collects what it meets."""

    def __init__(self, graph: Graph, root: Node) -> None:
        self.graph = graph
        self.root = root
        self.inner: list[Node] = [root]
        self.values: dict[str, str] = {}
        self.fills: list[Attr] = []
        self.factors: list[float] = []
        self.floors: list[float] = []
        self.groups: list[Attr] = []
        self.floor = -math.inf
        self.scale = 1.0
        self.softcap: float | None = None
        self.heads: tuple[Dim, ...] | None = None
        self.lead: tuple[Dim, ...] | None = None

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
        else:
            self._sink_factor(value)
        self._see(value)
        product = self._modifiers(value)
        if product is not None:
            self.inner.append(product)
            self._operands(product.inputs[0], product.inputs[1], v)
            self._fold_heads()
        elif self._leads_to_product(value, MIXED):
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
                "groups": tuple(self.groups),
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
            self._see(value)
            value = self._enter(node)
        return value

    def _operands(self, q: str, kt: str, v: str) -> None:
        """The operands, narrow again if all were widened for the products."""
        graph = self.graph
        q, kt = self._unscaled(q), self._unscaled(kt)
        k, node = kt, graph.producer(kt)
        turned = node is not None and node.op == "transpose"
        if node is not None and turned:
            turned = ints_attr(node.attrs, "perm") == swapped(graph, kt)
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
        if ints_attr(inner.attrs, "perm") != swapped(graph, inner.output):
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
        self.inner.append(joined)
        self._read_sinks(joined.inputs[1])
        return True

    def _read_sinks(self, value: str) -> None:
        graph = self.graph
        while (node := graph.producer(value)) is not None and node.op in ("expand", "cast"):
            value = node.inputs[0]
        if node is not None and node.op == "reshape" and graph.type(node.inputs[0]).rank == 1:
            value = node.inputs[0]
        self.values["sinks"] = value

    def _sink_factor(self, scores: str) -> None:
        """Sinks s as the factor sigmoid(logsumexp(scores) - s) of the result, the root from then.

        With t = logsumexp(x), e^x / e^t times 1 / (1 + e^(s - t)) is e^x / (e^t + e^s).
        """
        graph, product = self.graph, self.root.output
        *rows, _ = graph.type(scores).shape
        readers = graph.users(product)
        if len(rows) != 3 or len(readers) != 1 or readers[0].op != "mul":
            return
        value = next((each for each in readers[0].inputs if each != product), product)
        shapes = [graph.type(each).shape for each in (value, readers[0].output)]
        if shapes != [(*rows, 1), graph.type(product).shape]:
            return
        found = {"mul": readers[0]}
        nodes = [readers[0]]
        for op in ("sigmoid", "sub", "logsumexp"):
            node = None
            while node is None or node.op in ("cast", "reshape"):
                node = graph.producer(value)
                if node is None or graph.type(value).shape not in ((*rows,), (*rows, 1)):
                    return
                nodes.append(node)
                value = node.inputs[0]
            if node.op != op:
                return
            found[op] = node
        while (node := graph.producer(value)) is not None and node.op == "cast":
            nodes.append(node)
            value = node.inputs[0]
        sinks = found["sub"].inputs[1]
        axes = [axis % 4 for axis in ints_attr(found["logsumexp"].attrs, "axes")]
        missing = graph.type(found["sub"].output).rank - graph.type(sinks).rank
        a_head = (*(1 for _ in range(missing)), *graph.type(sinks).shape)[:3] == (1, rows[1], 1)
        if value == scores and axes == [3] and a_head:
            self.root = found["mul"]
            self.inner += nodes
            self._read_sinks(sinks)

    def _modifiers(self, value: str) -> Node | None:
        """From the masked scores to the product: masks, then a softcap, then the scale.

        Constant factors may stand anywhere: those outside a mask scale it too, and those outside
        of tanh are the softcap, so that c*tanh(m*x) is a softcap of c on scores scaled by m*c.
        What multiplies rows stands next to the product, where it has the axes of q.
        """
        graph = self.graph
        while True:
            value = self._through(value, "cast", *(() if "rows" in self.values else ("reshape",)))
            node = graph.producer(value)
            if node is None:
                return None
            if node.op == "matmul":
                return node
            self.inner.append(node)
            if (found := factor(graph, value)) is not None:
                value, times = found
                self.scale *= times
            elif "rows" in self.values:
                return None
            elif (rows := _times_rows(graph, node)) is not None:
                value, self.values["rows"] = rows
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
            return self._masked("add", node, other, -math.inf, score)
        if node.op != "where":
            return None
        condition, then, other = node.inputs
        if (fill := graph.constant(other)) is not None:
            return self._masked("mask", node, condition, fill, then)
        if (fill := graph.constant(then)) is not None:
            return self._masked("hide", node, condition, fill, other)
        return None

    def _masked(self, kind: str, node: Node, mask: str, fill: Attr, score: str) -> str:
        self.values[f"{kind}{len(self.fills)}"] = mask
        number = float(fill) if isinstance(fill, int | float) else None
        added = kind == "add"
        self.fills.append(number if added or number is None else self._lifted(number))
        self.factors.append(self.scale)
        self.floors.append(self.floor)
        shape = self.graph.type(node.output).shape
        self.groups.append(shape[:2] if len(shape) == 5 else ())
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

    def _leads_to_product(self, value: str, ops: tuple[str, ...] = ()) -> bool:
        """Whether `value` comes from a product by what may be before the softmax, or by `ops`."""
        graph, waiting, seen = self.graph, [value], {value}
        while waiting and len(seen) < MOST_STEPS:
            current = waiting.pop()
            node = graph.producer(current)
            if node is None:
                continue
            if node.op == "matmul":
                return True
            before: tuple[str, ...] = ()
            if node.op in ("add", "maximum", *ops):
                before = node.inputs
            elif node.op == "where":
                before = node.inputs[1:]
            elif node.op in ("cast", "reshape", "tanh", "clamp"):
                before = node.inputs
            elif (found := factor(graph, current)) is not None:
                before = found[:1]
            elif (rows := _times_rows(graph, node)) is not None:
                before = rows[:1]
            waiting += [each for each in before if each not in seen]
            seen.update(before)
        return False

    def _see(self, value: str) -> None:
        """Remember batch and heads, where the scores have an axis for each."""
        shape = self.graph.type(value).shape
        if len(shape) == 4:
            self.lead = shape[:2]

    def _fold_heads(self) -> None:
        """Find what batch and heads the first axis of operands of rank 3 stands for."""
        shapes = [self.graph.type(self.values[name]).shape for name in ("q", "k", "v")]
        whole = shapes[0][0]
        if any(len(shape) != 3 or shape[0] != whole for shape in shapes):
            return
        if self.lead is None:
            self.heads = (whole, 1)
        elif self.lead[0] * self.lead[1] == whole:
            self.heads = self.lead


def _times_rows(graph: Graph, node: Node) -> tuple[str, str] | None:
    """What `node` multiplies by numbers that do not differ along a row, and these numbers."""
    if node.op != "mul":
        return None
    for scores, other in (node.inputs, node.inputs[::-1]):
        wide = graph.type(scores).shape == graph.type(node.output).shape
        if wide and graph.type(other).shape[-1:] == (1,):
            return scores, other
    return None
