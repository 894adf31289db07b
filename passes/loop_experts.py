"""Experts that a loop visits one after the other, each with weights of its own.

Fuses   sum over e of down_e(silu(gate_e(x)) * up_e(x)) * share_e   into   moe(x, weights, ...)

where share_e [T, 1] is the sum over k of weights[t, k] * (indices[t, k] == e).  The weights of all
experts are joined when the artifact is written.  An expert that a token did not choose is not
computed; in the loop its result counts zero times, which is the same unless it is infinite.

Leaves it alone when
  dtype    it is of f64, which the products by themselves have kernels for
  experts  the numbers that the indices are compared with are not 0, 1, 2, ..., each once
  matrix   the weights of the experts differ in shape, or one is computed at run time
  shared   the weight of an expert has another reader, which needs it as it is
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from fusec import symbolic
from fusec.ir import Graph, Node
from fusec.ir.types import Attrs, TensorType, ints_attr
from fusec.ir.weights import Quantised, Weight, concatenated
from fusec.passes.experts_walk import sum_dtype
from fusec.rewrite import FusionPass, Guard, Match, Number, Op, Rejection, Var, find
from fusec.rewrite.driver import Builder
from fusec.target import Target

CHOSEN = Op("cast", (Op("eq", (Var("indices"), Number("expert"))),))
COLUMN = Op("reduce_sum", (Op("mul", (Var("weights"), CHOSEN)),), name="column")
HIDDEN = Op(
    "silu_mul",
    (Op("linear", (Var("x"), Var("gate"))), Op("linear", (Var("x"), Var("up")))),
)
EXPERT = Op("mul", (Op("linear", (HIDDEN, Var("down"))), COLUMN))
"""What one turn of the loop adds."""

WEIGHTS = ("gate", "up", "down")


def _experts(match: Match, target: Target) -> Rejection | None:
    numbers = match.facts["numbers"]
    if isinstance(numbers, tuple) and sorted(map(str, numbers)) == sorted(
        str(float(e)) for e in range(len(numbers))
    ):
        return None
    reason = f"the indices are compared with {numbers}, not with each of 0, 1, 2, ... once"
    return Rejection("experts", reason, match.root.output)


def _matrix(match: Match, target: Target) -> Rejection | None:
    graph = match.graph
    for role in WEIGHTS:
        first = graph.type(match.values[f"{role}0"])
        for value in _all(match, role):
            if value not in graph.parameters or graph.type(value) != first:
                reason = f"`%{value}: {graph.type(value)}` is no weight of `{first}`"
                return Rejection("matrix", reason, value)
    return None


def _shared(match: Match, target: Target) -> Rejection | None:
    for role in WEIGHTS:
        for value in _all(match, role):
            if match.graph.use_count(value) != 1:
                return Rejection("shared", f"`%{value}` has another reader", value)
    return None


def _all(match: Match, role: str) -> list[str]:
    """The weights of one role, in the order of the experts' numbers."""
    numbers = match.facts["numbers"]
    assert isinstance(numbers, tuple)
    order = sorted(range(len(numbers)), key=lambda turn: float(str(numbers[turn])))
    return [match.values[f"{role}{turn}"] for turn in order]


class LoopExperts(FusionPass):
    """Turns a chain of sums over experts into one node."""

    name: ClassVar[str] = "loop_experts"
    fusion: ClassVar[str | None] = "moe"
    after: ClassVar[tuple[str, ...]] = ("silu_mul", "moe")
    guards: ClassVar[tuple[Guard, ...]] = (_experts, _matrix, _shared, sum_dtype)

    def anchors(self) -> frozenset[str]:
        """Sums, the last of which ends the loop."""
        return frozenset(("add",))

    def find(self, graph: Graph, node: Node) -> Match | None:
        """Walk the chain of sums back from its last one."""
        if any(user.op == "add" and _turn(graph, user) for user in graph.users(node.output)):
            return None  # not the last
        turns: list[Match] = []
        inner: list[Node] = []
        step: Node | None = node
        while step is not None and (split := _turn(graph, step)) is not None:
            before, turn = split
            turns.append(turn)
            inner += [step, *turn.inner]
            step = graph.producer(before)
            if step is not None and step.op == "mul":
                first = find(EXPERT, graph, step)
                if first is None:
                    return None
                turns.append(first)
                inner += first.inner
                return _joined(graph, node, turns[::-1], inner)
        return None

    def site(self, match: Match) -> str:
        """The module that holds the experts."""
        first = match.graph.producer(match.values["hidden"])
        path = first.origin.path if first is not None else ""
        return path.rpartition(".")[0] or path or match.root.name

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Join the weights, and flatten all axes of tokens into one."""
        graph, values = match.graph, match.values
        kind = graph.type(values["x"])
        tokens = symbolic.product(kind.shape[:-1])
        chosen = graph.type(values["indices"]).shape[-1]
        pairs = zip(_all(match, "gate"), _all(match, "up"), strict=True)
        gate_up = [graph.parameters[value] for pair in pairs for value in pair]
        down = [graph.parameters[value] for value in _all(match, "down")]
        rows, columns = down[0].shape
        joined = (
            stacked_weight(gate_up, (len(down), 2 * columns, rows)),
            stacked_weight(down, (len(down), rows, columns)),
        )
        inputs = [
            _shaped(build, values["x"], (tokens, rows)),
            _shaped(build, values["weights"], (tokens, chosen)),
            _shaped(build, values["indices"], (tokens, chosen)),
            graph.add_parameter(graph.fresh("experts.gate_up"), joined[0]),
            graph.add_parameter(graph.fresh("experts.down"), joined[1]),
        ]
        attrs: Attrs = {
            "activation": "silu",
            "alpha": None,
            "limit": None,
            "gate_up_layout": "split",
            "gated": True,
            "transposed": False,
            "has_bias": False,
        }
        result = build.value("moe", inputs, attrs)
        if kind.rank != 2:
            shape: Attrs = {"shape": kind.shape}
            origin = match.root.origin
            result = graph.add("reshape", [result], shape, origin=origin, at=match.root.name).output
        return {match.root.output: result}


def _turn(graph: Graph, step: Node) -> tuple[str, Match] | None:
    """What came before a sum, and the expert that it adds."""
    if step.op != "add":
        return None
    for before, value in (step.inputs, step.inputs[::-1]):
        added = graph.producer(value)
        if added is not None and (turn := find(EXPERT, graph, added)) is not None:
            return before, turn
    return None


def _joined(graph: Graph, root: Node, turns: list[Match], inner: list[Node]) -> Match | None:
    """One match of all turns, if they are of one loop."""
    first = turns[0]
    same = ("x", "weights", "indices")
    for turn in turns:
        column = turn.nodes["column"]
        last = graph.type(column.inputs[0]).rank - 1
        if [axis % (last + 1) for axis in ints_attr(column.attrs, "axes")] != [last]:
            return None
        if column.attrs.get("keepdims") is not True:
            return None
        if any(turn.values[name] != first.values[name] for name in same):
            return None
    values = {name: first.values[name] for name in same}
    for number, turn in enumerate(turns):
        values |= {f"{role}{number}": turn.values[role] for role in WEIGHTS}
    values["hidden"] = next(node for node in first.inner if node.op == "silu_mul").output
    numbers = tuple(turn.numbers["expert"] for turn in turns)
    unique = tuple(dict.fromkeys(inner))
    return Match(graph, root, values=values, inner=unique, facts={"numbers": numbers})


def stacked_weight(parts: list[Weight], shape: tuple[int, ...]) -> Weight:
    """The weights `parts` below one another, seen as [experts, rows, columns]."""
    name = "+".join(part.name for part in parts)
    joined = concatenated(name, tuple(parts), axis=0)
    stacked = _seen(joined, name, shape)
    return replace(stacked, quantised=_seen_codes(joined.quantised, shape))


def _seen(weight: Weight, name: str, shape: tuple[int, ...]) -> Weight:
    kind = TensorType(weight.type.dtype, shape)
    return weight.derive(name, kind, "stack", lambda bits: bits.reshape(shape))


def _seen_codes(held: Quantised | None, shape: tuple[int, ...]) -> Quantised | None:
    """The codes of matrices below one another, seen as [experts, rows, columns].

    None if a block of scales would lie in two matrices.
    """
    if held is None or shape[1] % held.block[0]:
        return None
    experts, rows, _ = shape
    codes = _seen(held.codes, held.codes.name, (experts, rows, held.codes.shape[1]))
    blocks = (experts, rows // held.block[0], held.scale.shape[1])
    return replace(held, codes=codes, scale=_seen(held.scale, held.scale.name, blocks))


def _shaped(build: Builder, value: str, shape: tuple[symbolic.Dim, ...]) -> str:
    if build.graph.type(value).shape == shape:
        return value
    return build.value("reshape", [value], {"shape": shape})
