"""Terms of values as functions of coordinates, against what the interpreter computes."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path

import numpy as np
import pytest

from fusec import symbolic
from fusec.diagnostics import VerifyError
from fusec.ir import Attr, Graph, Node, TensorType, parse_graph
from fusec.ir.interpret import interpret
from fusec.ir.ops.base import Array
from fusec.rewrite.coordinates import (
    FALSE,
    TRUE,
    AtLeastZero,
    Choice,
    Coordinates,
    Element,
    Every,
    IsZero,
    Not,
    Some,
    Term,
    coordinate,
    every,
    negate,
    some,
)
from fusec.symbolic import Dim

GOLDEN = Path(__file__).parent.parent / "golden" / "attention_mask.md"
GRAPHS = re.findall(r"^```fir\n(.*?)^```\n", GOLDEN.read_text(), re.M | re.S)
SEQ = symbolic.symbol("seq")
SIZES = {"batch": 3, "seq": 7, "past": 2}
ENOUGH = 60
"""Coordinates of one value that are looked at."""


class _Evaluator:
    """The meaning of terms, written apart from the analysis."""

    def __init__(self, terms: Coordinates, values: dict[str, Array]) -> None:
        self.terms = terms
        self.values = values

    def size(self, dim: Dim, place: tuple[int, ...]) -> int:
        known = {**SIZES, **{f"${axis}": where for axis, where in enumerate(place)}}
        for name in symbolic.symbols_of(dim):
            element = self.terms.element(name)
            if element is not None:
                known[name] = int(self.element(element, place))
        return symbolic.evaluate(dim, known)

    def element(self, element: Element, place: tuple[int, ...]) -> float:
        at = tuple(self.size(dim, place) for dim in element.at)
        return float(self.values[element.value][at])

    def term(self, term: Term, place: tuple[int, ...]) -> float:
        match term:
            case Every(parts):
                return all(self.term(part, place) for part in parts)
            case Some(parts):
                return any(self.term(part, place) for part in parts)
            case Not(part):
                return not self.term(part, place)
            case AtLeastZero(what):
                return self.size(what, place) >= 0
            case IsZero(what):
                return self.size(what, place) == 0
            case Choice(condition, then, other):
                return self.term(then if self.term(condition, place) else other, place)
            case Element():
                return self.element(term, place)
            case float():
                return term
        return self.size(term, place)


def _everything(graph: Graph, seed: int) -> dict[str, Array]:
    """The value of every node and input of `graph`."""
    random = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for name in (*graph.inputs, *graph.parameters):
        kind = graph.type(name)
        shape = tuple(symbolic.evaluate(dim, SIZES) for dim in kind.shape)
        integers = kind.element.is_integer
        arrays[name] = random.integers(-1, 2, shape) if integers else random.random(shape)
    every_node = graph.copy()
    every_node.outputs = [value for node in graph.nodes() for value in node.outputs]
    every_node.output_names = list(every_node.outputs)
    inputs = {name: arrays[name] for name in graph.inputs}
    weights = {name: arrays[name] for name in graph.parameters}
    return {**arrays, **interpret(every_node, inputs, weights)}


def _agree(graph: Graph, seed: int) -> int:
    """Compare every term with what the interpreter computes; how many values have one."""
    values = _everything(graph, seed)
    terms = Coordinates(graph)
    evaluator = _Evaluator(terms, values)
    for node in graph.nodes():
        for value in node.outputs:
            array, term = values[value], terms.term(value)
            places = list(itertools.product(*map(range, array.shape)))
            for place in places[:: max(1, len(places) // ENOUGH)]:
                assert evaluator.term(term, place) == array[place], f"%{value} at {place}: {term}"
    return sum(terms.known(node.output) for node in graph.nodes())


@pytest.mark.parametrize("text", GRAPHS)
def test_terms_agree_with_the_interpreter(text: str) -> None:
    _agree(parse_graph(text), seed=len(text))


SHAPES: list[tuple[Dim, ...]] = [(), (SEQ,), (1, SEQ), (SEQ, 1), (SEQ, SEQ), (3,), (2, 3), (6,)]
NUMBERS = ("add", "sub", "mul", "minimum", "maximum", "floordiv", "mod")
COMPARISONS = ("eq", "ne", "ge", "gt", "le", "lt")
VIEWS = ("reshape", "expand", "transpose", "slice", "concat", "cumsum")


def _step(graph: Graph, pick: random.Random, numbers: list[str], flags: list[str]) -> Node:
    """A node of some operation that the analysis follows."""
    one, other = pick.choice(numbers), pick.choice(numbers[-8:])
    first, second = pick.choice(flags), pick.choice(flags)
    rank = graph.type(one).rank
    axis = pick.randrange(max(rank, 1))
    attrs: dict[str, Attr] = {"axis": axis}
    op = pick.choice((*NUMBERS, *COMPARISONS, *VIEWS, "and", "or", "xor", "not", "where", "cast"))
    inputs = [one, other]
    if op in ("and", "or", "xor"):
        inputs = [first, second]
    elif op in ("not", "cast", "where"):
        inputs = [first, one, other] if op == "where" else [first]
        attrs = {"dtype": "i64"}
    elif op in ("reshape", "expand"):
        inputs, attrs = [one], {"shape": pick.choice(SHAPES)}
    elif op == "transpose":
        inputs, attrs = [one], {"perm": tuple(pick.sample(range(rank), rank))}
    elif op in ("slice", "cumsum"):
        inputs = [one]
        if op == "slice" and rank:
            stop = graph.type(one).shape[axis]
            attrs |= {"start": pick.choice((0, 1)), "stop": stop, "step": pick.choice((1, 2))}
    keeps_attrs = op in VIEWS or op == "cast"
    return graph.add(op, inputs, attrs if keeps_attrs else {})


def _random_graph(seed: int) -> Graph:
    pick, graph = random.Random(seed), Graph("main", {"seq": (4, 16)})
    numbers = [graph.add_input("x", TensorType("i64", (SEQ,)))]
    for size in (SEQ, 3, 6):
        start, step = pick.choice((0, 1, -2)), pick.choice((1, 1, 2, -1))
        attrs: dict[str, Attr] = {"dtype": "i64", "size": size, "start": start, "step": step}
        numbers.append(graph.add("iota", (), attrs).output)
    for value in (1, 2, 3, -1):
        attrs = {"dtype": "i64", "shape": (), "value": value}
        numbers.append(graph.add("constant", (), attrs).output)
    flags = [graph.add("ge", ["x", numbers[1]]).output]
    for _ in range(40):
        try:
            made = _step(graph, pick, numbers, flags)
        except VerifyError:
            continue
        (flags if graph.type(made.output).dtype == "bool" else numbers).append(made.output)
    graph.outputs, graph.output_names = [numbers[-1]], ["y"]
    return graph


@pytest.mark.parametrize("seed", range(40))
def test_terms_of_random_graphs(seed: int) -> None:
    assert _agree(_random_graph(seed), seed) > 10


def _graph(*lines: str, inputs: str = "") -> Graph:
    body = "\n".join(f"  {line}" for line in lines)
    head = f"graph @main({inputs}) symbols(seq in [4, 16])"
    return parse_graph(f"{head} {{\n{body}\n  return %y\n}}\n")


IOTA = '%i: i64[seq] = iota() {dtype = "i64", size = <seq>, start = 0, step = 1}'


def _constant(name: str, value: int) -> str:
    return f'%{name}: i64[] = constant() {{dtype = "i64", shape = [], value = {value}}}'


@pytest.mark.parametrize(
    ("op", "bound", "expected"),
    [
        ("lt", 16, TRUE),
        ("ge", 0, TRUE),
        ("gt", 16, FALSE),
        ("ge", 16, FALSE),
        ("ge", 4, AtLeastZero(coordinate(0) - 4)),
        ("lt", 4, AtLeastZero(3 - coordinate(0))),
        ("eq", -1, FALSE),
    ],
)
def test_comparisons_that_ranges_decide(op: str, bound: int, expected: Term) -> None:
    graph = _graph(IOTA, _constant("c", bound), f"%y: bool[seq] = {op}(%i, %c)")
    assert Coordinates(graph).term("y") == expected


@pytest.mark.parametrize(("size", "expected"), [(4, False), (16, True)])
def test_quotients_that_ranges_decide(size: int, expected: bool) -> None:
    graph = _graph(
        IOTA,
        _constant("c", size),
        "%q: i64[seq] = floordiv(%i, %c)",
        _constant("z", 0),
        "%y: bool[seq] = eq(%q, %z)",
    )
    assert (Coordinates(graph).term("y") == TRUE) is expected


def test_an_absolute_value_is_zero_where_its_operand_is() -> None:
    graph = _graph(
        IOTA,
        _constant("c", 3),
        "%d: i64[seq] = sub(%i, %c)",
        "%a: i64[seq] = abs(%d)",
        _constant("z", 0),
        "%y: bool[seq] = eq(%a, %z)",
    )
    assert Coordinates(graph).term("y") in (IsZero(coordinate(0) - 3), IsZero(3 - coordinate(0)))


def test_an_element_of_an_input_stays_unknown() -> None:
    graph = _graph(_constant("c", 0), "%y: bool[seq] = ge(%x, %c)", inputs="%x: i64[seq]")
    term = Coordinates(graph).term("y")
    assert isinstance(term, AtLeastZero)


def test_an_index_that_may_be_negative_is_not_followed() -> None:
    lines = (IOTA, "%y: i64[seq] = take(%i, %x) {axis = 0}")
    graph = _graph(*lines, inputs="%x: i64[seq]")
    terms = Coordinates(graph)
    assert not terms.known("y")
    assert isinstance(terms.term("y"), symbolic.Expr)


def test_a_jump_at_the_seam_of_a_concat_is_seen() -> None:
    lines = (
        IOTA,
        _constant("one", 1),
        "%first: i64[1] = slice(%i) {axis = 0, start = 0, step = 1, stop = 1}",
        "%before: i64[1] = {op}(%first, %one)",
        "%all: i64[seq + 1] = concat(%before, %i) {axis = 0}",
        "%late: i64[seq] = slice(%all) {axis = 0, start = 1, step = 1, stop = <seq + 1>}",
        "%early: i64[seq] = slice(%all) {axis = 0, start = 0, step = 1, stop = <seq>}",
        "%diff: i64[seq] = sub(%late, %early)",
        "%y: bool[seq] = ne(%diff, %one)",
    )
    smooth = _graph(*(line.replace("{op}", "sub") for line in lines))
    jumping = _graph(*(line.replace("{op}", "add") for line in lines))
    assert Coordinates(smooth).term("y") == FALSE
    assert Coordinates(jumping).term("y") != FALSE


def test_joining_and_negating() -> None:
    a, b = IsZero(coordinate(0)), Element("flags", (coordinate(0),))
    assert every(a, TRUE, a) == a
    assert some(a, FALSE) == a
    assert every(a, FALSE) == FALSE
    assert some(TRUE, b) == TRUE
    assert negate(every(a, b)) == some(Not(a), Not(b))
    assert negate(negate(every(a, b))) == every(a, b)
    assert negate(AtLeastZero(coordinate(0))) == AtLeastZero(-1 - coordinate(0))
