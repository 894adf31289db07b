"""What an integer or boolean value holds, as a function of where one looks.

`Coordinates(graph).term(value)` is the element of `value` at the coordinates `$0`, `$1`, ... of its
axes.  Integers are size expressions over coordinates and symbols; flags are predicates made of
`x >= 0`, `x == 0`, `and`, `or` and `not`; whatever is not understood is an element of a named value
at given coordinates.  A float is a number, or a choice between numbers.  Comparisons that the
ranges of symbols and coordinates decide are folded, so that the attention mask

    k <= q and diff(iota) has no jump before q and none before k and ...

that exported models build from some 35 nodes comes out as `$2 - $3 >= 0`.

One sweep over the graph, each node once; a term that outgrows `MAX_PARTS` becomes an element.  The
analysis is of the graph as it was: nodes that are added later are elements.  Integers are taken to
be wide enough for what is computed with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias, TypeGuard

from fusec import symbolic
from fusec.diagnostics import ParseError
from fusec.ir import Graph, Node
from fusec.ir.types import Attr, TensorType, dim_attr, int_attr, ints_attr
from fusec.symbolic import Dim, Expr, Range

MAX_PARTS = 64
EXACT_INTEGERS = {"f64": 1 << 53, "f32": 1 << 24, "f16": 1 << 11, "bf16": 1 << 8}
"""Up to where each dtype holds every integer."""

_LEAST = -(1 << 62)


@dataclass(frozen=True, slots=True)
class Element:
    """The element of `value` at the coordinates `at`; of boolean or floating-point type."""

    value: str
    at: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class AtLeastZero:
    """Whether `what >= 0`."""

    what: Dim


@dataclass(frozen=True, slots=True)
class IsZero:
    """Whether `what == 0`."""

    what: Dim


@dataclass(frozen=True, slots=True)
class Not:
    """Whether `part` does not hold; `part` is an `IsZero` or an `Element`."""

    part: Predicate


@dataclass(frozen=True, slots=True)
class Every:
    """Whether all of `parts` hold; true for none."""

    parts: tuple[Predicate, ...]


@dataclass(frozen=True, slots=True)
class Some:
    """Whether any of `parts` holds; false for none."""

    parts: tuple[Predicate, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """`then` where `condition` holds, else `other`."""

    condition: Predicate
    then: Number
    other: Number


Predicate: TypeAlias = "AtLeastZero | IsZero | Not | Every | Some | Element"
Number: TypeAlias = "int | float | Expr | Choice"
Term: TypeAlias = "Predicate | Number"

TRUE = Every(())
FALSE = Some(())
PREDICATES = (AtLeastZero, IsZero, Not, Every, Some, Element)


def coordinate(axis: int) -> Expr:
    """The coordinate along `axis`; no symbol of a graph has such a name."""
    return symbolic.symbol(f"${axis}")


def every(*parts: Predicate) -> Predicate:
    """The conjunction of `parts`, flattened."""
    flat: dict[Predicate, None] = {}
    for part in parts:
        flat.update(dict.fromkeys(part.parts if isinstance(part, Every) else (part,)))
    if FALSE in flat:
        return FALSE
    return next(iter(flat)) if len(flat) == 1 else Every(tuple(flat))


def some(*parts: Predicate) -> Predicate:
    """The disjunction of `parts`, flattened."""
    flat: dict[Predicate, None] = {}
    for part in parts:
        flat.update(dict.fromkeys(part.parts if isinstance(part, Some) else (part,)))
    if TRUE in flat:
        return TRUE
    return next(iter(flat)) if len(flat) == 1 else Some(tuple(flat))


def negate(predicate: Predicate) -> Predicate:
    """Whether `predicate` does not hold."""
    match predicate:
        case AtLeastZero(what):
            return AtLeastZero(-1 - what)
        case Not(part):
            return part
        case Every(parts):
            return some(*map(negate, parts))
        case Some(parts):
            return every(*map(negate, parts))
    return Not(predicate)


def conjuncts(predicate: Predicate) -> tuple[Predicate, ...]:
    """What must hold for `predicate` to hold."""
    return predicate.parts if isinstance(predicate, Every) else (predicate,)


class Coordinates:
    """The terms of all values of a graph that have one."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.ranges: dict[str, Range] = dict(graph.symbols)
        self._elements: dict[str, Element] = {}
        self._terms: dict[str, Term] = {}
        for node in graph.nodes():
            rule = _RULES.get(node.op)
            if rule is None or len(node.outputs) != 1:
                continue
            try:
                found = rule(self, node)
            except ParseError:  # an expression outgrew what sizes may be
                continue
            if found is not None and _parts(found) <= MAX_PARTS:
                self._terms[node.output] = found

    def known(self, value: str) -> bool:
        """Whether more is known of `value` than its name."""
        return value in self._terms

    def term(self, value: str) -> Term:
        """The element of `value` at the coordinates of its axes; 0 along an axis of size 1."""
        found = self._terms.get(value)
        if found is None:
            shape = self.graph.type(value).shape
            at = tuple(0 if size == 1 else coordinate(axis) for axis, size in enumerate(shape))
            found = self._element(value, at)
        return found

    def at(self, value: str, place: tuple[Dim, ...], shape: tuple[Dim, ...]) -> Term:
        """The element of `value` at `place`, coordinates of a value of `shape`."""
        moves = {f"${axis}": where for axis, where in enumerate(place)}
        return self._moved(self.term(value), moves, shape)

    def broadcast(self, value: str, shape: tuple[Dim, ...]) -> Term:
        """The element of `value`, expanded to `shape`, at the coordinates of that."""
        own = self.graph.type(value).shape
        skipped = len(shape) - len(own)
        axes = range(skipped, len(shape))
        place = [0 if shape[axis] == 1 else coordinate(axis) for axis in axes]
        return self.at(value, tuple(place), shape)

    def element(self, name: str) -> Element | None:
        """The integer element that a symbol in a size expression stands for."""
        return self._elements.get(name)

    # --- inside -----------------------------------------------------------------------------

    def _element(self, value: str, at: tuple[Dim, ...]) -> Term:
        kind = self.graph.type(value)
        found = Element(value, at)
        if not kind.element.is_integer:
            return found
        name = f"%{value}[{', '.join(map(str, at))}]"
        self._elements[name] = found
        self.ranges[name] = (_LEAST, None)
        return symbolic.symbol(name)

    def _move(self, dim: Dim, moves: Mapping[str, Dim]) -> Dim:
        if isinstance(dim, int):
            return dim
        full = dict(moves)
        for name in symbolic.symbols_of(dim):
            if (found := self._elements.get(name)) is not None:
                moved = self._element(found.value, self._move_all(found.at, moves))
                assert isinstance(moved, Expr)
                full[name] = moved
        return symbolic.substitute(dim, full)

    def _move_all(self, dims: tuple[Dim, ...], moves: Mapping[str, Dim]) -> tuple[Dim, ...]:
        return tuple(self._move(dim, moves) for dim in dims)

    def _moved(self, term: Term, moves: Mapping[str, Dim], shape: tuple[Dim, ...]) -> Term:
        match term:
            case float():
                return term
            case int() | Expr():
                return self._move(term, moves)
            case Choice(condition, then, other):
                test = self._moved(condition, moves, shape)
                first, second = (self._moved(part, moves, shape) for part in (then, other))
                assert _is_predicate(test) and _is_number(first) and _is_number(second)
                return self.choice(test, first, second, shape)
            case Element(value, at):
                return Element(value, self._move_all(at, moves))
            case AtLeastZero(what):
                return self.at_least_zero(self._move(what, moves), shape)
            case IsZero(what):
                return self.is_zero(self._move(what, moves), shape)
            case Not(part):
                moved = self._moved(part, moves, shape)
                assert _is_predicate(moved)
                return negate(moved)
        parts = [self._moved(part, moves, shape) for part in term.parts]
        predicates = [part for part in parts if _is_predicate(part)]
        return every(*predicates) if isinstance(term, Every) else some(*predicates)

    # --- simplification ---------------------------------------------------------------------

    def bounds(self, dim: Dim, shape: tuple[Dim, ...]) -> tuple[float, float]:
        """Bounds of `dim` where each coordinate lies inside `shape`."""
        return self._bound(dim, shape, low=True), self._bound(dim, shape, low=False)

    def _bound(self, dim: Dim, shape: tuple[Dim, ...], *, low: bool) -> float:
        """A coordinate that occurs in one term, linearly, takes the end that is best for it."""
        ends: dict[str, Dim] = {}
        ranges = dict(self.ranges)
        for axis, size in enumerate(shape):
            name = f"${axis}"
            factor = _linear(dim, name)
            if factor is not None:
                ends[name] = 0 if (factor > 0) == low else size - 1
            most = symbolic.bounds(size, self.ranges)[1]
            ranges[name] = (0, None if math.isinf(most) else int(most) - 1)
        return symbolic.bounds(symbolic.substitute(dim, ends), ranges)[0 if low else 1]

    def at_least_zero(self, dim: Dim, shape: tuple[Dim, ...]) -> Predicate:
        """`dim >= 0` for coordinates inside `shape`, decided if it can be."""
        if isinstance(dim, int):
            return TRUE if dim >= 0 else FALSE
        if (parts := _extreme(dim)) is not None:
            whole, arguments = parts
            return whole(*(self.at_least_zero(part, shape) for part in arguments))
        low, high = self.bounds(dim, shape)
        if low >= 0:
            return TRUE
        return FALSE if high < 0 else AtLeastZero(dim)

    def is_zero(self, dim: Dim, shape: tuple[Dim, ...]) -> Predicate:
        """`dim == 0` for coordinates inside `shape`, decided if it can be."""
        if isinstance(dim, int):
            return TRUE if dim == 0 else FALSE
        if (inner := _without_sign(dim)) is not None:
            return self.is_zero(inner, shape)
        low, high = self.bounds(dim, shape)
        if low == high == 0:
            return TRUE
        if low > 0 or high < 0:
            return FALSE
        return IsZero(dim) if str(dim) <= str(0 - dim) else IsZero(0 - dim)

    def choice(
        self, condition: Predicate, then: Number, other: Number, shape: tuple[Dim, ...]
    ) -> Number:
        """`then` where `condition` holds, else `other`."""
        if condition == TRUE or (then == other and type(then) is type(other)):
            return then
        if condition == FALSE:
            return other
        if isinstance(then, Choice) and then.condition == condition:
            then = then.then
        if isinstance(other, Choice) and other.condition == condition:
            other = other.other
        for test, special, general in (
            (condition, then, other),
            (negate(condition), other, then),
        ):
            if (pin := _pinned(test, shape)) is not None:
                if self._moved(general, pin, shape) == special:
                    return general
        return Choice(condition, then, other)


def _is_predicate(term: Term) -> TypeGuard[Predicate]:
    return isinstance(term, PREDICATES)


def _is_number(term: Term) -> TypeGuard[Number]:
    return not isinstance(term, PREDICATES)


def _parts(term: Term) -> int:
    match term:
        case Choice(condition, then, other):
            return _parts(condition) + _parts(then) + _parts(other)
        case Not(part):
            return _parts(part)
        case Every(parts) | Some(parts):
            return 1 + sum(map(_parts, parts))
        case AtLeastZero(what) | IsZero(what):
            return _parts(what)
        case Expr():
            return len(term.terms)
    return 1


def _linear(dim: Dim, name: str) -> int | None:
    """The factor of the symbol `name` if it occurs in one term, alone and to the power 1."""
    if isinstance(dim, int):
        return None
    factor = None
    for monomial, coefficient in dim.terms:
        if not any(name in symbolic.symbols_of(Expr({((atom, 1),): 1})) for atom, _ in monomial):
            continue
        ((atom, power), *rest) = monomial
        if factor is not None or rest or power != 1 or atom.function is not None:
            return None
        factor = coefficient
    return factor


def _extreme(dim: Expr) -> tuple[Callable[..., Predicate], tuple[Dim, ...]] | None:
    """How `dim >= 0` splits over a `min` or `max` that is one of its terms."""
    for monomial, factor in dim.terms:
        if len(monomial) != 1 or monomial[0][1] != 1:
            continue
        atom = monomial[0][0]
        if atom.function not in ("min", "max"):
            continue
        rest = dim - Expr({monomial: factor})
        whole = every if (atom.function == "min") == (factor > 0) else some
        return whole, tuple(rest + argument * factor for argument in atom.arguments)
    return None


def _without_sign(dim: Expr) -> Dim | None:
    """What `dim` is the absolute value of."""
    if len(dim.terms) != 1 or len(dim.terms[0][0]) != 1:
        return None
    atom, power = dim.terms[0][0][0]
    if atom.function != "max" or power != 1 or len(atom.arguments) != 2:
        return None
    left, right = atom.arguments
    return left if left + right == 0 else None


def _pinned(test: Predicate, shape: tuple[Dim, ...]) -> dict[str, Dim] | None:
    """The coordinate that `test` holds for alone, and its place there."""
    if not isinstance(test, AtLeastZero):
        return None
    for axis, size in enumerate(shape):
        name = f"${axis}"
        if _linear(test.what, name) == -1 and test.what + coordinate(axis) == 0:
            return {name: 0}
        if _linear(test.what, name) == 1 and coordinate(axis) - test.what == size - 1:
            return {name: size - 1}
    return None


# --- rules ----------------------------------------------------------------------------------

Rule: TypeAlias = Callable[[Coordinates, Node], "Term | None"]


def _operands(terms: Coordinates, node: Node) -> tuple[list[Term], tuple[Dim, ...]]:
    shape = terms.graph.type(node.output).shape
    return [terms.broadcast(value, shape) for value in node.inputs], shape


def _constant(terms: Coordinates, node: Node) -> Term | None:
    return _literal(node.attrs["value"], terms.graph.type(node.output))


def _literal(value: Attr, kind: TensorType) -> Term | None:
    if isinstance(value, tuple):
        items = {_literal(item, kind) for item in value}
        return items.pop() if len(items) == 1 else None
    if isinstance(value, bool) or kind.dtype == "bool":
        flag = TRUE if value else FALSE
        return flag if kind.dtype == "bool" else None
    if kind.element.is_float:
        return float(value) if isinstance(value, int | float) else None
    return value if isinstance(value, int | Expr) else None


def _iota(terms: Coordinates, node: Node) -> Term | None:
    kind = terms.graph.type(node.output)
    if not kind.element.is_integer:
        return None
    start = dim_attr(node.attrs, "start") if "start" in node.attrs else 0
    step = dim_attr(node.attrs, "step") if "step" in node.attrs else 1
    place: Dim = 0 if kind.shape[0] == 1 else coordinate(0)
    return start + place * step


def _view(terms: Coordinates, node: Node) -> Term | None:
    """A reshape that only inserts or removes axes of size 1."""
    before = terms.graph.type(node.inputs[0]).shape
    after = terms.graph.type(node.output).shape
    kept = [axis for axis, size in enumerate(after) if size != 1]
    if [after[axis] for axis in kept] != [size for size in before if size != 1]:
        return None
    places = iter(kept)
    place: list[Dim] = [0 if size == 1 else coordinate(next(places)) for size in before]
    return _known_at(terms, node.inputs[0], tuple(place), after)


def _known_at(
    terms: Coordinates, value: str, place: tuple[Dim, ...], shape: tuple[Dim, ...]
) -> Term | None:
    """What `value` holds at `place`; floats that are mere elements are not worth following."""
    if terms.graph.type(value).element.is_float and not terms.known(value):
        return None
    return terms.at(value, place, shape)


def _expand(terms: Coordinates, node: Node) -> Term | None:
    if terms.graph.type(node.output).element.is_float and not terms.known(node.inputs[0]):
        return None
    return terms.broadcast(node.inputs[0], terms.graph.type(node.output).shape)


def _transpose(terms: Coordinates, node: Node) -> Term | None:
    perm = ints_attr(node.attrs, "perm")
    shape = terms.graph.type(node.output).shape
    place: list[Dim] = [0] * len(perm)
    for axis, source in enumerate(perm):
        place[source] = 0 if shape[axis] == 1 else coordinate(axis)
    return _known_at(terms, node.inputs[0], tuple(place), shape)


def _own_place(shape: tuple[Dim, ...]) -> list[Dim]:
    return [0 if size == 1 else coordinate(axis) for axis, size in enumerate(shape)]


def _slice(terms: Coordinates, node: Node) -> Term | None:
    shape = terms.graph.type(node.output).shape
    axis = int_attr(node.attrs, "axis") % len(shape)
    place = _own_place(shape)
    place[axis] = dim_attr(node.attrs, "start") + place[axis] * int_attr(node.attrs, "step")
    return _known_at(terms, node.inputs[0], tuple(place), shape)


def _concat(terms: Coordinates, node: Node) -> Term | None:
    kind = terms.graph.type(node.output)
    axis = int_attr(node.attrs, "axis") % kind.rank
    if not kind.element.is_integer or len(node.inputs) > 4:
        return None
    place = _own_place(kind.shape)
    begin: Dim = 0
    pieces: list[tuple[Predicate, Number]] = []
    for value in node.inputs:
        size = terms.graph.type(value).shape[axis]
        here = [*place[:axis], place[axis] - begin, *place[axis + 1 :]]
        if size == 1:
            here[axis] = 0
        piece = terms.at(value, tuple(here), kind.shape)
        begin = begin + size
        assert not isinstance(piece, PREDICATES)
        pieces.append((terms.at_least_zero(begin - 1 - place[axis], kind.shape), piece))
    result = pieces[-1][1]
    for inside, piece in reversed(pieces[:-1]):
        result = terms.choice(inside, piece, result, kind.shape)
    return result


def _cast(terms: Coordinates, node: Node) -> Term | None:
    (term,), shape = _operands(terms, node)
    kind = terms.graph.type(node.output)
    if kind.dtype == "bool":
        return term if isinstance(term, PREDICATES) else _is_not_zero(terms, term, shape)
    one: float = 1.0 if kind.element.is_float else 1
    if isinstance(term, Element) and terms.graph.type(term.value).element.is_float:
        return None
    if isinstance(term, PREDICATES):
        return terms.choice(term, one, one * 0, shape)
    return _converted(term, kind)


def _converted(term: Number, kind: TensorType) -> Number | None:
    if isinstance(term, Choice):
        then, other = _converted(term.then, kind), _converted(term.other, kind)
        if then is None or other is None:
            return None
        return Choice(term.condition, then, other)
    if kind.element.is_integer:
        return term if not isinstance(term, float) else None
    if isinstance(term, Expr) or (
        isinstance(term, int) and abs(term) > EXACT_INTEGERS.get(kind.dtype, 0)
    ):
        return None
    return float(term)


def _is_not_zero(terms: Coordinates, term: Number, shape: tuple[Dim, ...]) -> Predicate:
    if isinstance(term, Choice):
        return _either(
            term.condition,
            _is_not_zero(terms, term.then, shape),
            _is_not_zero(terms, term.other, shape),
        )
    if isinstance(term, float):
        return TRUE if term != 0 else FALSE
    return negate(terms.is_zero(term, shape))


def _either(condition: Predicate, then: Predicate, other: Predicate) -> Predicate:
    return some(every(condition, then), every(negate(condition), other))


def _where(terms: Coordinates, node: Node) -> Term | None:
    (condition, then, other), shape = _operands(terms, node)
    if not isinstance(condition, PREDICATES):
        return None
    if terms.graph.type(node.output).dtype == "bool":
        if isinstance(then, PREDICATES) and isinstance(other, PREDICATES):
            return _either(condition, then, other)
        return None
    if isinstance(then, PREDICATES) or isinstance(other, PREDICATES):
        return None  # an element of a float tensor
    return terms.choice(condition, then, other, shape)


def _arithmetic(function: Callable[[Number, Number], Number | None]) -> Rule:
    def rule(terms: Coordinates, node: Node) -> Term | None:
        if terms.graph.type(node.output).element.is_float:
            if not all(map(terms.known, node.inputs)):
                return None
        (left, right), shape = _operands(terms, node)
        if isinstance(left, PREDICATES) or isinstance(right, PREDICATES):
            return None
        return _distributed(terms, function, left, right, shape)

    return rule


def _distributed(
    terms: Coordinates,
    function: Callable[[Number, Number], Number | None],
    left: Number,
    right: Number,
    shape: tuple[Dim, ...],
) -> Number | None:
    """`function` of two numbers, inside the choices that they make."""
    if isinstance(left, Choice):
        then = _distributed(terms, function, left.then, right, shape)
        other = _distributed(terms, function, left.other, right, shape)
        condition = left.condition
    elif isinstance(right, Choice):
        then = _distributed(terms, function, left, right.then, shape)
        other = _distributed(terms, function, left, right.other, shape)
        condition = right.condition
    else:
        return function(left, right)
    if then is None or other is None:
        return None
    return terms.choice(condition, then, other, shape)


def _sizes_only(
    function: Callable[[Dim, Dim], Dim], of_floats: Callable[[float, float], float]
) -> Callable[[Number, Number], Number | None]:
    def apply(left: Number, right: Number) -> Number | None:
        if isinstance(left, float) and isinstance(right, float):
            return of_floats(left, right)
        if isinstance(left, float | Choice) or isinstance(right, float | Choice):
            return None
        return function(left, right)

    return apply


def _divided(left: Dim, right: Dim) -> Dim:
    return symbolic.floor_divide(left, right)


def _positive_divisor(rule: Rule) -> Rule:
    """Division whose divisor may be zero or negative is left alone."""

    def checked(terms: Coordinates, node: Node) -> Term | None:
        divisor = terms.term(node.inputs[1])
        if not isinstance(divisor, int | Expr) or isinstance(divisor, bool):
            return None
        shape = terms.graph.type(node.output).shape
        return rule(terms, node) if terms.bounds(divisor, shape)[0] >= 1 else None

    return checked


def _product(left: float, right: float) -> float:
    return 0.0 if 0.0 in (left, right) and math.isfinite(left + right) else left * right


def _negation(terms: Coordinates, node: Node) -> Term | None:
    (term,), shape = _operands(terms, node)
    if isinstance(term, PREDICATES):
        return None
    return _distributed(
        terms, _sizes_only(lambda a, b: b - a, lambda a, b: b - a), term, _zero(term), shape
    )


def _zero(like: Number) -> Number:
    while isinstance(like, Choice):
        like = like.then
    return 0.0 if isinstance(like, float) else 0


def _absolute(terms: Coordinates, node: Node) -> Term | None:
    (term,), shape = _operands(terms, node)
    if isinstance(term, PREDICATES):
        return None
    apply = _sizes_only(lambda a, _: symbolic.maximum(a, 0 - a), lambda a, _: abs(a))
    return _distributed(terms, apply, term, _zero(term), shape)


def _not(terms: Coordinates, node: Node) -> Term | None:
    (term,), _ = _operands(terms, node)
    return negate(term) if isinstance(term, PREDICATES) else None


def _logical(join: Callable[[Predicate, Predicate], Predicate]) -> Rule:
    def rule(terms: Coordinates, node: Node) -> Term | None:
        (left, right), _ = _operands(terms, node)
        if isinstance(left, PREDICATES) and isinstance(right, PREDICATES):
            return join(left, right)
        return None

    return rule


def _exclusive(left: Predicate, right: Predicate) -> Predicate:
    return _either(left, negate(right), right)


Test: TypeAlias = Callable[[Coordinates, Dim, "tuple[Dim, ...]"], Predicate]


def _comparison(test: Test, of_floats: Callable[[float, float], bool]) -> Rule:
    """`test` is asked about left - right."""

    def compare(
        terms: Coordinates, left: Number, right: Number, shape: tuple[Dim, ...]
    ) -> Predicate | None:
        for number, swap in ((left, False), (right, True)):
            if isinstance(number, Choice):
                found = [
                    compare(terms, left, part, shape)
                    if swap
                    else compare(terms, part, right, shape)
                    for part in (number.then, number.other)
                ]
                if found[0] is None or found[1] is None:
                    return None
                return _either(number.condition, found[0], found[1])
        if isinstance(left, float) and isinstance(right, float):
            return TRUE if of_floats(left, right) else FALSE
        if isinstance(left, float | Choice) or isinstance(right, float | Choice):
            return None
        return test(terms, left - right, shape)

    def rule(terms: Coordinates, node: Node) -> Term | None:
        if terms.graph.type(node.inputs[0]).element.is_float:
            if not all(map(terms.known, node.inputs)):
                return None
        (left, right), shape = _operands(terms, node)
        if isinstance(left, PREDICATES) and isinstance(right, PREDICATES):
            differ = _exclusive(left, right)
            return {"eq": negate(differ), "ne": differ}.get(node.op)
        if isinstance(left, PREDICATES) or isinstance(right, PREDICATES):
            return None
        return compare(terms, left, right, shape)

    return rule


def _index(terms: Coordinates, node: Node) -> Term | None:
    """Indexing with integers that are known not to be negative is substitution."""
    x, *indices = node.inputs
    shape = terms.graph.type(node.output).shape
    if node.op == "take":
        axes: tuple[int, ...] = (int_attr(node.attrs, "axis") % terms.graph.type(x).rank,)
    else:
        rank = terms.graph.type(x).rank
        axes = tuple(axis % rank for axis in ints_attr(node.attrs, "axes"))
    if terms.graph.type(x).element.is_float and not terms.known(x):
        return None
    spread = len(shape) - (terms.graph.type(x).rank - len(axes))
    index_shape = shape[axes[0] : axes[0] + spread]
    place = _own_place(shape)
    moves = {f"${axis}": place[axes[0] + axis] for axis in range(spread)}
    found: list[Dim] = []
    for value in indices:
        term = terms._moved(terms.broadcast(value, index_shape), moves, shape)
        if isinstance(term, bool) or not isinstance(term, int | Expr):
            return None
        if terms.bounds(term, shape)[0] < 0:
            return None
        found.append(term)
    return terms.at(x, (*place[: axes[0]], *found, *place[axes[0] + spread :]), shape)


def _gather(terms: Coordinates, node: Node) -> Term | None:
    x, index = node.inputs
    shape = terms.graph.type(node.output).shape
    if terms.graph.type(x).element.is_float and not terms.known(x):
        return None
    term = terms.term(index)
    if isinstance(term, bool) or not isinstance(term, int | Expr):
        return None
    if terms.bounds(term, shape)[0] < 0:
        return None
    place = _own_place(shape)
    place[int_attr(node.attrs, "axis") % len(shape)] = term
    return terms.at(x, tuple(place), shape)


def _cumsum(terms: Coordinates, node: Node) -> Term | None:
    """A running sum of something that does not change along the axis."""
    (term,), shape = _operands(terms, node)
    axis = int_attr(node.attrs, "axis") % len(shape)
    if term in (TRUE, FALSE):
        term = int(term == TRUE)
    if isinstance(term, bool) or not isinstance(term, int | Expr):
        return None
    if not terms.graph.type(node.output).element.is_integer or shape[axis] == 1:
        return None
    if any(_mentions(terms, name, f"${axis}") for name in symbolic.symbols_of(term)):
        return None
    return term * (coordinate(axis) + 1)


def _mentions(terms: Coordinates, name: str, wanted: str) -> bool:
    """Whether the symbol `name`, or the place of the element it stands for, is `wanted`."""
    found = terms.element(name)
    if found is None:
        return name == wanted
    inside = frozenset[str]().union(*map(symbolic.symbols_of, found.at))
    return any(_mentions(terms, each, wanted) for each in inside)


def _fold(terms: Coordinates, node: Node) -> Term | None:
    """`any` and `all` of a constant."""
    term = terms.term(node.inputs[0])
    return term if term in (TRUE, FALSE) else None


_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "constant": _constant,
        "full": _constant,
        "iota": _iota,
        "reshape": _view,
        "expand": _expand,
        "transpose": _transpose,
        "slice": _slice,
        "concat": _concat,
        "cast": _cast,
        "where": _where,
        "add": _arithmetic(_sizes_only(lambda a, b: a + b, lambda a, b: a + b)),
        "sub": _arithmetic(_sizes_only(lambda a, b: a - b, lambda a, b: a - b)),
        "mul": _arithmetic(_sizes_only(lambda a, b: a * b, _product)),
        "minimum": _arithmetic(_sizes_only(symbolic.minimum, min)),
        "maximum": _arithmetic(_sizes_only(symbolic.maximum, max)),
        "floordiv": _positive_divisor(_arithmetic(_sizes_only(_divided, lambda a, b: a // b))),
        "mod": _positive_divisor(_arithmetic(_sizes_only(symbolic.modulo, lambda a, b: a % b))),
        "neg": _negation,
        "abs": _absolute,
        "not": _not,
        "and": _logical(every),
        "or": _logical(some),
        "xor": _logical(_exclusive),
        "eq": _comparison(lambda t, d, s: t.is_zero(d, s), float.__eq__),
        "ne": _comparison(lambda t, d, s: negate(t.is_zero(d, s)), float.__ne__),
        "ge": _comparison(lambda t, d, s: t.at_least_zero(d, s), float.__ge__),
        "gt": _comparison(lambda t, d, s: t.at_least_zero(d - 1, s), float.__gt__),
        "le": _comparison(lambda t, d, s: t.at_least_zero(0 - d, s), float.__le__),
        "lt": _comparison(lambda t, d, s: t.at_least_zero(-1 - d, s), float.__lt__),
        "index": _index,
        "take": _index,
        "gather": _gather,
        "cumsum": _cumsum,
        "reduce_any": _fold,
        "reduce_all": _fold,
    }
)
"""How each operation's element follows from those of its operands."""
