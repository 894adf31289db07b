"""The search for routed experts: from the sum over a token's experts up to the tokens."""

from __future__ import annotations

from dataclasses import dataclass

from fusec.ir import Graph, Node
from fusec.ir.types import Attr, dim_attr, float_attr, int_attr, ints_attr
from fusec.passes.facts import gate_up_layout, gelu_name, swiglu_limit
from fusec.passes.linear_epilogue import DTYPES
from fusec.rewrite import Match, Rejection
from fusec.symbolic import Dim
from fusec.target import Target

GATED = {"silu_mul": "silu", "gelu_mul": "gelu", "swiglu_oai": "swiglu_oai"}
"""Operations of gate and up, and what `moe` calls them."""

UNGATED = ("silu", "gelu", "quick_gelu", "relu")


class RefusedError(Exception):
    """It looks like experts, but cannot be shown to be what `moe` computes."""

    def __init__(self, code: str, reason: str, at: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.at = at


@dataclass(frozen=True, slots=True)
class _Order:
    """The order of the rows of an intermediate value.

    Attributes:
        experts: the expert of each row.
        perm: the position, among tokens times k, of each row; `None` for those in order.
    """

    experts: str
    perm: str | None


@dataclass(frozen=True, slots=True)
class _Product:
    """A product of rows with the matrices of their experts.

    Attributes:
        node: the node that multiplies.
        rows: the rows that are multiplied, [N, K], [N, K, 1] or [N, 1, K].
        weight: the matrices of all experts.
        transposed: whether `weight` is [E, K, N] rather than [E, N, K].
        offsets: where the rows of each expert end, when grouped.
        experts: the expert of each row, when batched.
    """

    node: Node
    rows: str
    weight: str
    transposed: bool
    offsets: str | None
    experts: str | None


class ExpertsWalk:
    """The way from the sum over experts up to the tokens; collects what it meets."""

    def __init__(self, graph: Graph, root: Node) -> None:
        self.graph = graph
        self.root = root
        self.inner: list[Node] = [root]
        self.values: dict[str, str] = {}
        self.tokens: Dim = 0
        self.k: Dim = 0
        self.weights_sorted = False

    def match(self) -> Match | None:
        graph, root = self.graph, self.root
        shape = graph.type(root.inputs[0]).shape
        if len(shape) != 3 or [axis % 3 for axis in ints_attr(root.attrs, "axes")] != [1]:
            return None
        self.tokens, self.k = shape[:2]
        found = self._weighted(root.inputs[0])
        if found is None:
            return None
        down, down_bias, weights, inverse = found
        order = self._order(down, inverse)
        self._weights(weights, order)
        hidden, facts = self._activation(down.rows)
        value, gate_up_bias = self._biased(hidden)
        gate_up = self._product(value)
        if gate_up is None:
            at = graph.producer(value)
            reason = f"`%{value}` is not a product with the matrices of experts"
            raise RefusedError("gate", reason, at.name if at else value)
        self._same(down, gate_up)
        self._biases(gate_up_bias, down_bias, order)
        self._tokens(gate_up.rows, order)
        self.values |= {"gate_up": gate_up.weight, "down": down.weight}
        self.values["indices"] = self._indices(order)
        return Match(
            graph,
            root,
            self.values,
            inner=tuple(dict.fromkeys(self.inner)),
            facts={
                **facts,
                "transposed": down.transposed,
                "has_bias": gate_up_bias is not None,
                "routes": (self.tokens, self.k),
            },
        )

    # --- rows -------------------------------------------------------------------------------

    def _weighted(self, value: str) -> tuple[_Product, str | None, str, str | None] | None:
        """From [T, k, H]: the last product, its bias, the rows' weights, and the order undone."""
        graph = self.graph
        weights: str | None = None
        inverse: str | None = None
        while True:
            value = self._plain(value)
            node = graph.producer(value)
            if node is None:
                return None
            picked = _picked(graph, node)
            if node.op == "mul" and weights is None:
                split = self._row_factor(node)
                if split is None:
                    return None
                value, weights = split
                self.weights_sorted = inverse is not None
            elif picked is not None and inverse is None:
                value, inverse = picked
            else:
                break
            self.inner.append(node)
        value, bias = self._biased(value)
        product = self._product(value)
        if product is None or weights is None:
            return None
        return product, bias, weights, inverse

    def _plain(self, value: str) -> str:
        """Before casts, and reshapes that keep rows."""
        while (node := self.graph.producer(value)) is not None:
            if node.op == "reshape":
                before, after = (self.graph.type(each).shape for each in (node.inputs[0], value))
                if _width(before) != _width(after):
                    break
            elif node.op != "cast":
                break
            self.inner.append(node)
            value = node.inputs[0]
        return value

    def _row_factor(self, node: Node) -> tuple[str, str] | None:
        """The rows, and the number for each, that `node` multiplies."""
        graph = self.graph
        for rows, weights in (node.inputs, node.inputs[::-1]):
            wide, thin = graph.type(rows).shape, graph.type(weights).shape
            if thin == (*wide[:-1], 1) and wide[-1] != 1:
                return rows, weights
        return None

    def _biased(self, value: str) -> tuple[str, str | None]:
        """A product before its bias, and the bias of each row."""
        graph = self.graph
        value = self._plain(value)
        node = graph.producer(value)
        if node is None or node.op != "add":
            return value, None
        for product, bias in (node.inputs, node.inputs[::-1]):
            at = graph.producer(bias)
            if at is not None and _picked(graph, at) is not None:
                self.inner += [node, at]
                return self._plain(product), bias
        return value, None

    def _product(self, value: str) -> _Product | None:
        """The product that gives the rows `value`."""
        graph = self.graph
        node = graph.producer(value)
        if node is None:
            return None
        if node.op == "grouped_mm":
            rows, matrices, offsets = node.inputs
            self.inner.append(node)
            weight, transposed = untransposed(graph, matrices)
            return _Product(node, rows, weight, transposed, offsets, None)
        if node.op != "matmul":
            return None
        for matrices, rows in (node.inputs, node.inputs[::-1]):
            gathered = self._gathered(matrices)
            thin = 2 if matrices == node.inputs[0] else 1
            shape = graph.type(rows).shape
            if gathered is None or len(shape) != 3 or shape[thin] != 1:
                continue
            weight, experts, swapped = gathered
            self.inner.append(node)
            return _Product(node, rows, weight, (thin == 1) != swapped, None, experts)
        return None

    def _gathered(self, value: str) -> tuple[str, str, bool] | None:
        """The matrices of all experts, the experts picked, and whether they were transposed."""
        graph = self.graph
        node = graph.producer(value)
        swapped = False
        if node is not None and node.op == "transpose":
            if ints_attr(node.attrs, "perm") != (0, 2, 1):
                return None
            self.inner.append(node)
            swapped = True
            node = graph.producer(node.inputs[0])
        if node is None or (picked := _picked(graph, node)) is None:
            return None
        self.inner.append(node)
        weight, transposed = untransposed(graph, picked[0])
        return weight, picked[1], swapped != (not transposed)

    # --- facts ------------------------------------------------------------------------------

    def _order(self, down: _Product, inverse: str | None) -> _Order:
        """The order of the rows of the last product, shown to be undone by `inverse`."""
        if down.experts is not None:
            if inverse is not None:
                reason = "the rows are put into another order, but not out of one"
                raise RefusedError("order", reason, inverse)
            return _Order(down.experts, None)
        assert down.offsets is not None
        graph, offsets = self.graph, down.offsets
        node = _through(graph, offsets, "cast")
        counts = None
        if node is not None and node.op == "cumsum":
            counts = _through(graph, node.inputs[0], "cast")
        if counts is None or counts.op != "histogram":
            reason = f"`%{offsets}` is not the running sum of a count"
            raise RefusedError("offsets", reason, offsets)
        experts = graph.type(down.weight).shape[0]
        attrs = counts.attrs
        span = (float_attr(attrs, "low"), float_attr(attrs, "high"))
        if attrs["bins"] != experts or span != (0, float(int_attr(attrs, "bins")) - 1):
            reason = f"`%{counts.name}` counts other numbers than {experts} experts have"
            raise RefusedError("offsets", reason, counts.name)
        counted = before(graph, counts.inputs[0], "cast")
        order = self._sorted(counted)
        if order is None:
            reason = f"`%{counted}` is not the experts of the rows, sorted"
            raise RefusedError("order", reason, counted)
        assert order.perm is not None
        if inverse is None or not self._undoes(inverse, order.perm):
            reason = "the rows are not put back into the order of the tokens"
            raise RefusedError("order", reason, inverse or down.node.name)
        return order

    def _sorted(self, experts: str) -> _Order | None:
        """The order of rows whose experts, sorted or not, are counted in `experts`."""
        graph = self.graph
        node = graph.producer(experts)
        if node is None or node.op != "sort" or experts != node.outputs[0]:
            sorts = [user for user in graph.users(experts) if user.op == "sort"]
            node = sorts[0] if len(sorts) == 1 else None
        if node is None or graph.type(node.inputs[0]).rank != 1:
            return None
        if node.attrs.get("descending", False):
            return None
        return _Order(node.outputs[0], node.outputs[1])

    def _undoes(self, inverse: str, perm: str) -> bool:
        """Whether `inverse` is the inverse of the permutation `perm`."""
        graph = self.graph
        node = graph.producer(inverse)
        if node is None:
            return False
        if node.op == "sort":
            return node.inputs[0] == perm and inverse == node.outputs[1]
        if node.op != "index_put" or node.attrs.get("accumulate", False):
            return False
        _, numbers, place = node.inputs
        source = graph.producer(numbers)
        if place != perm or source is None or source.op != "iota":
            return False
        start = source.attrs.get("start", 0), source.attrs.get("step", 1)
        return start == (0, 1) and dim_attr(source.attrs, "size") == self.tokens * self.k

    def _weights(self, value: str, order: _Order) -> None:
        """Find the weights [T, k] of the rows that `value` weights."""
        graph = self.graph
        value = before(graph, value, "reshape", "cast")
        if self.weights_sorted:
            node = graph.producer(value)
            picked = None if node is None else _picked(graph, node)
            if picked is None or picked[1] != order.perm:
                reason = f"`%{value}` is not in the order of the rows that it weights"
                raise RefusedError("routing", reason, value)
            value = before(graph, picked[0], "reshape", "cast")
        if graph.type(value).elements != self.tokens * self.k:
            raise RefusedError("routing", f"`%{value}` is not one weight a row", value)
        self.values["weights"] = value

    def _indices(self, order: _Order) -> str:
        """The experts [T, k] of the tokens."""
        graph = self.graph
        value = order.experts
        if order.perm is not None:
            node = graph.producer(value)
            assert node is not None
            value = node.inputs[0]
        value = before(graph, value, "reshape")
        if graph.type(value).elements != self.tokens * self.k:
            raise RefusedError("routing", f"`%{value}` is not one expert a row", value)
        return value

    def _activation(self, value: str) -> tuple[str, dict[str, Attr]]:
        """What the activation is of, and the attributes that say which."""
        graph = self.graph
        node = graph.producer(self._plain(value))
        none: dict[str, Attr] = {"alpha": None, "limit": None, "gate_up_layout": "split"}
        if node is None or node.op not in (*GATED, *UNGATED, "mul"):
            reason = f"`%{value}` is not an activation of a product"
            raise RefusedError("activation", reason, value)
        self.inner.append(node)
        if node.op in UNGATED:
            name = gelu_name(node) if node.op == "gelu" else node.op
            return node.inputs[0], {**none, "activation": name, "gated": False}
        if node.op == "mul":
            return self._product_of_parts(node, none)
        name = gelu_name(node) if node.op == "gelu_mul" else GATED[node.op]
        gate, up = node.inputs
        clamps = [graph.producer(value) for value in node.inputs]
        limit = swiglu_limit(*clamps) if node.op == "silu_mul" else None
        if limit is not None:
            self.inner += [clamp for clamp in clamps if clamp is not None]
            gate, up = (clamp.inputs[0] for clamp in clamps if clamp is not None)
            none, name = {**none, "limit": limit}, "swiglu_limit"
        hidden, layout = self._parts(gate, up)
        facts = {**none, "activation": name, "gated": True, "gate_up_layout": layout}
        if node.op == "swiglu_oai":
            facts |= {key: float_attr(node.attrs, key) for key in ("alpha", "limit")}
        return hidden, facts

    def _product_of_parts(self, node: Node, none: dict[str, Attr]) -> tuple[str, dict[str, Attr]]:
        """relu(x)^2, or an activation times up that has no operation of its own."""
        graph = self.graph
        if node.inputs[0] == node.inputs[1]:
            inner = graph.producer(node.inputs[0])
            if inner is not None and inner.op == "relu":
                self.inner.append(inner)
                return inner.inputs[0], {**none, "activation": "relu2", "gated": False}
        for gate, up in (node.inputs, node.inputs[::-1]):
            inner = graph.producer(gate)
            if inner is not None and inner.op in UNGATED:
                self.inner.append(inner)
                name = gelu_name(inner) if inner.op == "gelu" else inner.op
                hidden, layout = self._parts(inner.inputs[0], up)
                facts = {**none, "activation": name, "gated": True, "gate_up_layout": layout}
                return hidden, facts
        reason = f"`%{node.output}` is not an activation of a product"
        raise RefusedError("activation", reason, node.output)

    def _parts(self, gate: str, up: str) -> tuple[str, str]:
        """The product that holds gate and up, and its layout."""
        graph = self.graph
        nodes = [graph.producer(value) for value in (gate, up)]
        slices = [node for node in nodes if node is not None and node.op == "slice"]
        if len(slices) != 2:
            reason = f"`%{gate}` and `%{up}` are not parts of one product"
            raise RefusedError("gate", reason, gate)
        sources = [self._plain(node.inputs[0]) for node in slices]
        layout = gate_up_layout(graph, *slices)
        if sources[0] != sources[1] or layout is None:
            halves = "the halves, gate first, or alternate columns of one product"
            reason = f"`%{gate}` and `%{up}` are not {halves}"
            raise RefusedError("gate", reason, gate)
        self.inner += slices
        return sources[0], layout

    def _same(self, down: _Product, gate_up: _Product) -> None:
        """Check that both products go by the same experts and layout."""
        if down.transposed != gate_up.transposed:
            reason = "only one of the products reads its weights transposed"
            raise RefusedError("layout", reason, gate_up.node.name)
        if (down.offsets, down.experts) != (gate_up.offsets, gate_up.experts):
            reason = "the two products go by different experts"
            raise RefusedError("offsets", reason, gate_up.node.name)

    def _biases(self, gate_up: str | None, down: str | None, order: _Order) -> None:
        """Find the biases of all experts."""
        if (gate_up is None) != (down is None):
            at = gate_up or down
            raise RefusedError("bias", "only one of the products has a bias", str(at))
        for name, value in (("gate_up_bias", gate_up), ("down_bias", down)):
            if value is None:
                continue
            node = self.graph.producer(value)
            picked = None if node is None else _picked(self.graph, node)
            if picked is None or picked[1] != order.experts:
                reason = f"`%{value}` is not the bias of the expert of each row"
                raise RefusedError("bias", reason, value)
            self.values[name] = picked[0]

    def _tokens(self, rows: str, order: _Order) -> None:
        """Check that `rows` are those of the tokens, k times each, and find the tokens."""
        graph = self.graph
        while (node := graph.producer(rows)) is not None and node.op == "reshape":
            if _width(graph.type(rows).shape) != _width(graph.type(node.inputs[0]).shape):
                break
            self.inner.append(node)
            rows = node.inputs[0]
        x: str | None = None
        if node is not None and (picked := _picked(graph, node)) is not None:
            self.inner.append(node)
            if self._token_of_row(picked[1], order.perm):
                x = picked[0]
        elif node is not None and order.perm is None:
            x = self._repeated(node)
        if x is None or graph.type(x).shape[:-1] not in ((self.tokens,), (self.tokens, 1)):
            reason = f"`%{rows}` is not the token of each row"
            raise RefusedError("order", reason, rows)
        self.values["x"] = x

    def _token_of_row(self, index: str, perm: str | None) -> bool:
        """Whether `index` is row // k for each row, of rows in the order `perm`."""
        graph = self.graph
        node = graph.producer(index)
        if node is None:
            return False
        if self.k == 1:  # row // 1 is written as the row alone
            return self._is_row_number(index, perm)
        if node.op == "floordiv" and graph.constant(node.inputs[1]) == self.k:
            return self._is_row_number(node.inputs[0], perm)
        if perm is None and node.op == "reshape":  # iota[T] repeated k times each
            wide = graph.producer(node.inputs[0])
            if wide is not None and wide.op == "expand":
                thin = before(graph, wide.inputs[0], "reshape")
                shape = graph.type(wide.output).shape
                return shape == (self.tokens, self.k) and self._is_iota(thin, self.tokens)
        picked = _picked(graph, node)
        if perm is not None and picked is not None and picked[1] == perm:
            return self._token_of_row(picked[0], None)
        return False

    def _is_row_number(self, value: str, perm: str | None) -> bool:
        return value == perm if perm is not None else self._is_iota(value, self.tokens * self.k)

    def _is_iota(self, value: str, size: Dim) -> bool:
        node = self.graph.producer(value)
        if node is None or node.op != "iota":
            return False
        attrs = node.attrs
        found = (attrs.get("start", 0), attrs.get("step", 1), dim_attr(attrs, "size"))
        return found == (0, 1, size)

    def _repeated(self, wide: Node) -> str | None:
        """The tokens [T, H] that `wide` expands to [T, k, H]."""
        graph = self.graph
        if wide.op != "expand":
            return None
        shape = graph.type(wide.output).shape
        if shape[:-1] != (self.tokens, self.k):
            return None
        if graph.type(wide.inputs[0]).shape != (self.tokens, 1, shape[-1]):
            return None
        self.inner.append(wide)
        return wide.inputs[0]


def _width(shape: tuple[Dim, ...]) -> Dim:
    """The last size that is not 1: what a row holds."""
    return next((size for size in reversed(shape) if size != 1), 1)


def sum_dtype(match: Match, target: Target) -> Rejection | None:
    """The guard of every pass that makes a `moe`: kernels for it have no f64."""
    dtype = match.graph.type(match.root.output).dtype
    if dtype in DTYPES:
        return None
    return Rejection("dtype", f"the experts are of {dtype}", match.root.output)


def _picked(graph: Graph, node: Node) -> tuple[str, str] | None:
    """What `node` picks rows of, by one index for each row, and the index."""
    if node.op == "take" and int_attr(node.attrs, "axis") % graph.type(node.inputs[0]).rank == 0:
        source, index = node.inputs
    elif node.op == "index" and ints_attr(node.attrs, "axes") == (0,):
        source, index = node.inputs
    else:
        return None
    return (source, index) if graph.type(index).rank == 1 else None


def untransposed(graph: Graph, matrices: str) -> tuple[str, bool]:
    """The weights behind [E, K, N], and whether they are that rather than [E, N, K]."""
    node = graph.producer(matrices)
    if node is not None and node.op == "transpose":
        if ints_attr(node.attrs, "perm") == (0, 2, 1):
            return node.inputs[0], False
    return matrices, True


def _through(graph: Graph, value: str, *ops: str) -> Node | None:
    return graph.producer(before(graph, value, *ops))


def before(graph: Graph, value: str, *ops: str) -> str:
    """`value` before any of `ops`."""
    while (node := graph.producer(value)) is not None and node.op in ops:
        value = node.inputs[0]
    return value
