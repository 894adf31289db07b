"""Random graphs of elementwise operations, reductions and views."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from fusec import symbolic
from fusec.diagnostics import VerifyError
from fusec.ir import Graph, TensorType
from fusec.symbolic import Dim

BATCH, SEQ = symbolic.symbol("batch"), symbolic.symbol("seq")
SHAPES: tuple[tuple[Dim, ...], ...] = (
    (BATCH, SEQ, 8),
    (BATCH, SEQ, 1),
    (SEQ, 8),
    (8,),
    (BATCH, 1, 8),
    (SEQ, 1),
    (BATCH, SEQ, 2, 4),
    (1, 1),
    (3, 5, 7),
    (BATCH, SEQ),
    (),
)
UNARY = (
    "neg abs exp exp2 expm1 log1p sqrt rsqrt reciprocal sin cos tanh erf floor ceil round trunc "
    "sign sigmoid silu relu log_sigmoid quick_gelu hardswish hardsigmoid mish isnan isinf erfc atan"
).split()
WITH_ATTRS: dict[str, dict[str, object]] = {
    "gelu": {"approximate": "none"},
    "clamp": {"min": -0.5, "max": None},
    "leaky_relu": {"slope": 0.1},
    "elu": {"alpha": 1.5},
    "softplus": {"beta": 1.5, "threshold": 10.0},
}
ARITHMETIC = ("add", "sub", "mul", "minimum", "maximum")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
FLOATS = ("f32", "f32", "bf16", "f16", "f64")


class GraphMaker:
    """Adds random nodes to a graph; one that does not type is left out."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.graph = Graph("random", {"batch": (1, 8), "seq": (1, 64)})
        self.values: list[str] = []

    def make(self) -> Graph:
        """A graph with up to four inputs and outputs."""
        for number in range(self.chance.randint(1, 4)):
            shape = SHAPES[0] if number == 0 else self.chance.choice(SHAPES)
            dtype = self.chance.choice((*FLOATS, "i64", "i32", "bool"))
            self.values.append(self.graph.add_input(f"x{number}", TensorType(dtype, shape)))
        makers: list[Callable[[], str | None]] = [
            self.unary,
            self.unary,
            self.binary,
            self.binary,
            self.binary,
            self.cast,
            self.where,
            self.reduction,
            self.row,
            self.transpose,
            self.reshape,
            self.expand,
            self.slice,
            self.flip,
            self.concat,
            self.pad,
            self.iota,
        ]
        for _ in range(self.chance.randint(3, 24)):
            try:
                made = self.chance.choice(makers)()
            except VerifyError:
                continue
            if made is not None:
                self.values.append(made)
        made_values = [value for value in self.values if value not in self.graph.inputs]
        pool = made_values or self.values
        chosen = self.chance.sample(pool, min(len(pool), self.chance.randint(1, 3)))
        self.graph.outputs = [*chosen, pool[-1]]
        self.graph.output_names = [f"y{number}" for number in range(len(chosen) + 1)]
        self.graph.prune()
        self.graph.verify()
        return self.graph

    def pick(self, accepts: Callable[[TensorType], bool] = lambda kind: True) -> str | None:
        """A value whose type is accepted."""
        fitting = [value for value in self.values if accepts(self.graph.type(value))]
        return self.chance.choice(fitting) if fitting else None

    def unary(self) -> str | None:
        value = self.pick(lambda kind: kind.element.is_float)
        op = self.chance.choice((*UNARY, *WITH_ATTRS))
        attrs: dict[str, object] = WITH_ATTRS.get(op, {})
        return None if value is None else self._add(op, [value], attrs)

    def binary(self) -> str | None:
        left = self.pick(lambda kind: kind.dtype != "bool")
        if left is None:
            return None
        kind = self.graph.type(left)
        right = self.pick(lambda other: other.dtype == kind.dtype)
        assert right is not None
        if self.chance.random() < 0.2:
            held = self.chance.choice((0.5, 2.0, -1.3) if kind.element.is_float else (2, 3, -1))
            attrs = {"value": held, "dtype": kind.dtype, "shape": ()}
            right = self._add("constant", [], attrs)
        ops = (*ARITHMETIC, "div") if kind.element.is_float else ARITHMETIC
        op = self.chance.choice(ops if self.chance.random() < 0.75 else COMPARISONS)
        return self._add(op, [left, right] if self.chance.random() < 0.5 else [right, left], {})

    def cast(self) -> str | None:
        value = self.pick()
        dtype = self.chance.choice((*FLOATS, "i64", "i32", "bool"))
        return None if value is None else self._add("cast", [value], {"dtype": dtype})

    def where(self) -> str | None:
        condition, yes = self.pick(lambda kind: kind.dtype == "bool"), self.pick()
        if condition is None or yes is None:
            return None
        dtype = self.graph.type(yes).dtype
        no = self.pick(lambda kind: kind.dtype == dtype)
        return None if no is None else self._add("where", [condition, yes, no], {})

    def reduction(self) -> str | None:
        value = self.pick(lambda kind: kind.rank > 0 and kind.dtype != "bool")
        if value is None:
            return None
        kind = self.graph.type(value)
        axes: tuple[int, ...] = (kind.rank - 1,)
        if self.chance.random() < 0.4:
            count = self.chance.randint(1, min(2, kind.rank))
            axes = tuple(sorted(self.chance.sample(range(kind.rank), count)))
        ops = ["reduce_sum", "reduce_max", "reduce_min"]
        if kind.element.is_float:
            ops += ["reduce_mean", "logsumexp"]
        attrs = {"axes": axes, "keepdims": self.chance.random() < 0.7}
        return self._add(self.chance.choice(ops), [value], attrs)

    def row(self) -> str | None:
        value = self.pick(lambda kind: kind.rank > 0 and kind.dtype in ("f32", "f64"))
        if value is None:
            return None
        op = self.chance.choice(("softmax", "log_softmax", "cumsum"))
        rank = self.graph.type(value).rank
        axis = rank - 1 if self.chance.random() < 0.6 else self.chance.randrange(rank)
        return self._add(op, [value], {"axis": axis})

    def transpose(self) -> str | None:
        value = self.pick(lambda kind: kind.rank > 1)
        if value is None:
            return None
        perm = list(range(self.graph.type(value).rank))
        self.chance.shuffle(perm)
        return self._add("transpose", [value], {"perm": tuple(perm)})

    def reshape(self) -> str | None:
        value = self.pick()
        assert value is not None
        shape = list(self.graph.type(value).shape)
        way = self.chance.random()
        if way < 0.4:
            shape.insert(self.chance.randint(0, len(shape)), 1)
        elif way < 0.6:
            shape = [size for size in shape if size != 1]
        elif len(shape) > 1:
            first = self.chance.randrange(len(shape) - 1)
            shape[first : first + 2] = [shape[first] * shape[first + 1]]
        return self._add("reshape", [value], {"shape": tuple(shape)})

    def expand(self) -> str | None:
        value = self.pick(lambda kind: kind.rank < 4)
        if value is None:
            return None
        shape = [
            self.chance.choice((1, 3, SEQ)) if size == 1 else size
            for size in self.graph.type(value).shape
        ]
        if self.chance.random() < 0.5:
            shape.insert(0, 2)
        return self._add("expand", [value], {"shape": tuple(shape)})

    def slice(self) -> str | None:
        value = self.pick(lambda kind: kind.rank > 0)
        if value is None:
            return None
        shape = self.graph.type(value).shape
        axis = self.chance.randrange(len(shape))
        size, step = shape[axis], self.chance.choice((1, 1, 2))
        start: Dim
        stop: Dim
        if isinstance(size, int):
            start = self.chance.randint(0, max(0, size - 1))
            stop = self.chance.randint(min(start + 1, size), size)
        else:
            start, stop = (size - 1) // 2, size
        return self._add("slice", [value], dict(axis=axis, start=start, stop=stop, step=step))

    def flip(self) -> str | None:
        value = self.pick(lambda kind: kind.rank > 0)
        if value is None:
            return None
        axis = self.chance.randrange(self.graph.type(value).rank)
        return self._add("flip", [value], {"axes": (axis,)})

    def concat(self) -> str | None:
        value = self.pick(lambda kind: kind.rank > 0)
        if value is None:
            return None
        kind = self.graph.type(value)
        axis = self.chance.randrange(kind.rank)

        def fits(other: TensorType) -> bool:
            same = (kind.shape[:axis], kind.shape[axis + 1 :])
            return (
                other.rank == kind.rank
                and other.dtype == kind.dtype
                and (other.shape[:axis], other.shape[axis + 1 :]) == same
            )

        other = self.pick(fits)
        assert other is not None
        parts = [value, other, value] if self.chance.random() < 0.3 else [value, other]
        return self._add("concat", parts, {"axis": axis})

    def pad(self) -> str | None:
        value = self.pick(lambda kind: kind.rank > 0)
        if value is None:
            return None
        rank = self.graph.type(value).rank
        low = tuple(self.chance.choice((0, 1, 2)) for _ in range(rank))
        high = tuple(self.chance.choice((0, 1)) for _ in range(rank))
        return self._add("pad", [value], {"low": low, "high": high, "value": 1})

    def iota(self) -> str | None:
        attrs = {
            "size": SEQ,
            "start": self.chance.choice((0, 2)),
            "step": self.chance.choice((1, 3)),
            "dtype": self.chance.choice(("i64", "f32")),
        }
        made = self._add("iota", [], attrs)
        shaped = self._add("reshape", [made], {"shape": (SEQ, 1)})
        return self._add("add", [shaped, shaped], {})

    def _add(self, op: str, inputs: list[str], attrs: Mapping[str, object]) -> str:
        return self.graph.add(op, inputs, attrs).output  # type: ignore[arg-type]


def discontinuous(graph: Graph) -> bool:
    """Whether rounding in the middle can make a large difference at the end."""
    steps = {"eq", "ne", "lt", "le", "gt", "ge", "floor", "ceil", "round", "trunc", "sign"}
    narrow = {"bf16", "f16"}
    used = {graph.type(value).dtype for node in graph.nodes() for value in node.outputs}
    to_integers = any(
        node.op == "cast" and not graph.type(node.output).element.is_float for node in graph.nodes()
    )
    jumps = to_integers or any(node.op in steps for node in graph.nodes())
    return jumps and bool(used & narrow)
