"""What the fusions share that let a norm or an activation quantise its own result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fusec.ir import Attr, Graph, Node
from fusec.ir.types import bool_attr
from fusec.passes.facts import before_widening
from fusec.rewrite import DecisionLog, FusionPass, Guard, Match, Rejection
from fusec.rewrite.driver import Builder
from fusec.target import Target

_VIEWS = frozenset(("reshape", "cast"))
_MOVES = frozenset((*_VIEWS, "transpose", "slice", "expand"))
_PRODUCTS = frozenset(("linear", "fp8_linear", "mxfp4_linear", "moe", "moe_fp8", "moe_mxfp4"))
"""Operations whose weights are in few bits, or could be."""

_NAMED_READERS = 3


@dataclass(frozen=True, slots=True)
class Reading:
    """That `reader` reads `value`; without a reader, that `value` is returned."""

    value: str
    reader: Node | None

    def described(self, graph: Graph) -> str:
        """The reader for a person: its operation, its module and what it reads."""
        if self.reader is None:
            return f"the result `{graph.output_names[graph.outputs.index(self.value)]}`"
        place = self.reader.origin.path or f"%{self.reader.name}"
        return f"`{self.reader.op}` at `{place}` in {graph.type(self.value).dtype}"


def readings(
    graph: Graph, value: str, through: frozenset[str] = _VIEWS
) -> tuple[list[Node], list[Reading]]:
    """Who reads `value`, seen through reshapes and casts between floats; those views come first."""
    views: list[Node] = []
    found = [Reading(value, None)] if value in graph.outputs else []
    for user in graph.users(value):
        if user.op in through and graph.type(user.output).element.is_float:
            below, further = readings(graph, user.output, through)
            views += [user, *below]
            found += further
        else:
            found.append(Reading(value, user))
    return views, found


def described(graph: Graph, found: Sequence[Reading]) -> str:
    """The first few readers for a person."""
    texts = list(dict.fromkeys(each.described(graph) for each in found))
    more = len(texts) - _NAMED_READERS
    return ", ".join(texts[:_NAMED_READERS]) + (f" and {more} more" if more > 0 else "")


def quantisers_among(found: Sequence[Reading]) -> list[Node]:
    """The readers that bring what they read into a narrow format."""
    return [
        each.reader
        for each in found
        if each.reader is not None
        and each.reader.op == "quantize"
        and each.reader.inputs[0] == each.value
    ]


def alike(first: Node, second: Node) -> bool:
    """Whether two nodes quantise by one scaling, and by one scale if that is given."""
    return first.attrs == second.attrs and first.inputs[1:] == second.inputs[1:]


def keeps_rows(graph: Graph, result: str, narrow: Node) -> bool:
    """Whether the rows that are quantised are those of `result`; a given scale has no rows."""
    if bool_attr(narrow.attrs, "has_scale"):
        return True
    return graph.type(narrow.inputs[0]).shape[-1] == graph.type(result).shape[-1]


def is_quantised(graph: Graph) -> bool:
    """Whether anything in the graph is brought into a narrow format as it is computed."""
    return any(node.op == "quantize" or node.op.endswith("_quant") for node in graph.nodes())


def may_be_quantised(graph: Graph, values: Sequence[str]) -> bool:
    """Whether a product with a weight multiplies one of `values`, so that codes have a use.

    It may do so with a part of it, or in another order, which is quantised by then.
    """
    found = [each for value in values for each in readings(graph, value, _MOVES)[1]]
    return bool(quantisers_among(found)) or any(
        each.reader is not None
        and each.reader.op in _PRODUCTS
        and each.reader.inputs[0] == each.value
        for each in found
    )


def not_quantised(graph: Graph, values: Sequence[str], at: str) -> Rejection:
    """The refusal for results that nothing quantises; it names who reads them instead.

    What quantises them after they were moved quantises other rows, or not all of them.
    """
    found = [each for value in values for each in readings(graph, value, _MOVES)[1]]
    if (moved := next(iter(quantisers_among(found)), None)) is not None:
        move = _move_before(graph, moved)
        place = move.origin.path or f"%{move.name}"
        reason = f"`{move.op}` at `{place}` stands between it and what quantises it"
        hint = (
            f"{move.op} before it, or behind the product: rows are quantised as they are computed"
        )
        return Rejection("output-not-quantised", reason, at, hint=hint)
    verb = "its reader is" if len(found) == 1 else "its readers are"
    reason = f"{verb} {described(graph, found)}" if found else "nothing reads it"
    return Rejection("output-not-quantised", reason, at)


def _move_before(graph: Graph, narrow: Node) -> Node:
    """The last node before `narrow` that leaves out elements of rows, or puts them elsewhere."""
    node = graph.producer(narrow.inputs[0])
    while node is not None and node.op in _VIEWS:
        node = graph.producer(node.inputs[0])
    assert node is not None
    return node


def result_quantised(match: Match, target: Target) -> Rejection | None:
    """Guard: something quantises the result."""
    if quantisers(match):
        return None
    return not_quantised(match.graph, match.root.outputs[:1], match.root.name)


def scale_of_rows(match: Match, target: Target) -> Rejection | None:
    """Guard: the scale is given, or follows from the rows that it is for."""
    first = quantisers(match)[0]
    if first.attrs["granularity"] != "tensor" or bool_attr(first.attrs, "has_scale"):
        return None
    reason = f"`%{first.name}` takes one scale for all rows, known only once all are computed"
    return Rejection("granularity", reason, first.name)


def whole_rows(match: Match, target: Target) -> Rejection | None:
    """Guard: what is quantised are the rows of the result, not several side by side."""
    if "shape" not in match.facts:
        return None
    first, graph = quantisers(match)[0], match.graph
    rows, read = graph.type(match.root.outputs[0]), graph.type(first.inputs[0])
    reason = f"the rows of `{rows}` are computed, but those of `{read}` are quantised"
    return Rejection("shape", reason, first.name)


def quantisers(match: Match) -> list[Node]:
    """The nodes that the fusion takes in to quantise."""
    return [node for node in match.inner if node.op == "quantize"]


class QuantisedResult(FusionPass):
    """Begins at the operation whose result is quantised.

    Reshapes that keep rows whole, and casts, are looked through; other readers of the result go on
    reading it: then the operation gives it as well (`with_plain`).  Of readers that quantise by
    several scalings, those of the first are taken in.  A result that no product reads is no site.

    Attributes:
        base: the operation.
    """

    base: ClassVar[str]
    guards: ClassVar[tuple[Guard, ...]] = (result_quantised, scale_of_rows, whole_rows)

    def anchors(self) -> frozenset[str]:
        """The operation."""
        return frozenset((self.base,))

    def run(self, graph: Graph, target: Target, log: DecisionLog) -> int:
        """Rewrite and record; a graph in which nothing is quantised has no sites."""
        return super().run(graph, target, log) if is_quantised(graph) else 0

    def find(self, graph: Graph, node: Node) -> Match | None:
        """The node, the views of its result, and those that quantise it by the first scaling."""
        result = node.outputs[0]
        views, found = readings(graph, result)
        narrow = quantisers_among(found)
        if not narrow and not may_be_quantised(graph, [result]):
            return None
        narrow.sort(key=lambda each: not keeps_rows(graph, result, each))
        facts: dict[str, Attr] = {}
        rows = result
        if narrow and not keeps_rows(graph, result, narrow[0]):
            rows = narrow[0].inputs[0]
            facts["shape"] = graph.type(rows).shape
        taken = [
            each for each in narrow if alike(narrow[0], each) and keeps_rows(graph, rows, each)
        ]
        others = [each for each in found if each.reader not in taken]
        if taken and others:
            facts["readers"] = described(graph, others)
        return Match(graph, node, inner=(node, *views, *taken), facts=facts)

    def outputs(self, match: Match) -> tuple[str, ...]:
        """What is quantised, what is read of the result as it is, and all further results."""
        quantised = (value for node in quantisers(match) for value in node.outputs)
        return (*quantised, *_read_plain(match), *self.further(match))

    def further(self, match: Match) -> tuple[str, ...]:
        """The results of the operation after its first."""
        return match.root.outputs[1:]

    def operands(self, match: Match) -> tuple[str, ...]:
        """What the operation is given."""
        if _read_plain(match):
            return match.root.inputs
        return before_rows_were_widened(match.graph, match.root)

    def details(self, match: Match, target: Target) -> Mapping[str, str | int | float]:
        """Who else reads the result."""
        readers = match.facts.get("readers")
        return {} if readers is None else {"with_plain": str(readers)}

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the operation that quantises, and views of its results where they are read."""
        graph, root, taken = match.graph, match.root, quantisers(match)
        read_plain = _read_plain(match)
        attrs: dict[str, Attr] = {**root.attrs, **taken[0].attrs, "with_plain": bool(read_plain)}
        if "shape" in match.facts:
            attrs["shape"] = match.facts["shape"]
        operands = (*self.operands(match), *taken[0].inputs[1:])
        made = build.node(f"{self.base}_quant", operands, attrs)
        given = list(made.outputs)
        narrow = [given.pop(0) for _ in taken[0].outputs]
        stands_for: dict[str, str] = {}
        for each in taken:
            for old, new in zip(each.outputs, narrow, strict=True):
                stands_for[old] = in_shape_of(graph, old, new, build)
        if read_plain:
            plain, result = given.pop(0), root.outputs[0]
            for value in read_plain:
                alike = graph.type(value) == graph.type(plain)
                stands_for[value] = plain if alike else value
            stands_for[result] = in_shape_of(graph, result, plain, build)
        stands_for.update(zip(self.further(match), given, strict=True))
        build.added.append(made.name)
        return stands_for


def _read_plain(match: Match) -> list[str]:
    """The result and its views, where they are read by others than what quantises."""
    _, found = readings(match.graph, match.root.outputs[0])
    taken = quantisers(match)
    return list(dict.fromkeys(each.value for each in found if each.reader not in taken))


def before_rows_were_widened(graph: Graph, node: Node) -> tuple[str, ...]:
    """The operands of `node`, whose only result are codes: rows are read as narrow as they were.

    Rows are operands of the shape of the first, and stay of one dtype.
    """
    if len(node.outputs) > 1:
        return node.inputs
    shape = graph.type(node.inputs[0]).shape
    narrow = {
        value: before_widening(graph, value)
        for value in node.inputs
        if graph.type(value).shape == shape
    }
    if len({graph.type(value).dtype for value in narrow.values()}) > 1:
        return node.inputs
    return tuple(narrow.get(value, value) for value in node.inputs)


def in_shape_of(graph: Graph, old: str, new: str, build: Builder) -> str:
    """`new`, which has as many elements as `old`, in its shape."""
    shape = graph.type(old).shape
    return (
        new if graph.type(new).shape == shape else build.value("reshape", [new], {"shape": shape})
    )
