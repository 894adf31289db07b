"""What the guards of an export say about the sizes it holds for.

`torch.export` may claim a range for a size and then specialise to a part of it; the limit is only
in the guards, which are Python text.  They are read here by a grammar of their own and are never
run.  A guard is tried on every value of a size in its claimed range (on a dense grid up to
`DENSE`, above it by bisection), beginning at the size that the export was made with, so the range
that is left is one that every guard admits.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fusec import symbolic
from fusec.frontend.aten import AtenGraph, AtenSymbol, Ref
from fusec.symbolic import Dim, Range

DENSE = 4096
"""Sizes up to this one are all tried."""

MAX_GUARD = 20_000
MAX_DEPTH = 100
CEILING = 1 << 31
"""Stands for no bound."""

Values: TypeAlias = Any
"""An integer or a flag, or an array of them."""

Shapes: TypeAlias = Mapping[str, tuple[Dim, ...]]
"""Sizes of the inputs, by the text that guards use for an input: `L['x']`, `L['args'][0]`."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What guards say.

    Attributes:
        ranges: for each symbol that is limited further than claimed, what is left.
        equal: symbols that have to be equal to another one.
        reasons: for each symbol in either, the guard.
        unread: guards about sizes that are outside the grammar.
    """

    ranges: Mapping[str, Range]
    equal: Mapping[str, str]
    reasons: Mapping[str, str]
    unread: tuple[str, ...] = ()


class _UnreadError(Exception):
    """A guard is outside the grammar."""


@dataclass(slots=True)
class _State:
    ranges: dict[str, Range]
    hints: Mapping[str, int]
    equal: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


def asserted(graph: AtenGraph) -> list[str]:
    """What a program checks of its sizes when it runs: guards that `torch.export` has put off.

    They are expressions over symbols, in infix or as sympy's `srepr` writes them.
    """
    texts: dict[str, str] = {}
    found: list[str] = []
    for node in graph.nodes:
        texts |= {value.name: value.text for value in node.outputs if isinstance(value, AtenSymbol)}
        if node.target == "aten._assert_scalar.default" and isinstance(node.args[0], Ref):
            found.append(texts.get(node.args[0].name, ""))
    return found


def read_guards(
    guards: Iterable[str],
    shapes: Shapes,
    ranges: Mapping[str, Range],
    hints: Mapping[str, int],
) -> Reading:
    """Find the part of `ranges` in which all `guards` hold.

    Args:
        guards: Python expressions over `L[...].size()[i]`, as `torch.export` writes them, or over
            symbols.
        shapes: the sizes that those expressions mean.
        ranges: what the export claims for each symbol.
        hints: the size each symbol had when the export was made; every guard held there.
    """
    state = _State({name: ranges.get(name, (0, None)) for name in hints}, hints)
    for text in dict.fromkeys(guards):
        symbols = hints.keys() & _SYMBOL.findall(text)
        if ".size()" not in text and "shape" not in text and not symbols:
            continue
        try:
            for test in _conjuncts(_parsed(text)):
                _apply(test, text, shapes, state)
        except _UnreadError:
            state.unread.append(text)
            for name in symbols | _mentioned(text, shapes):
                if name in hints:
                    state.ranges[name] = (hints[name], hints[name])
                    state.reasons.setdefault(name, text)
    limited = {
        name: span for name, span in state.ranges.items() if span != ranges.get(name, (0, None))
    }
    return Reading(limited, state.equal, state.reasons, tuple(state.unread))


def _parsed(text: str) -> ast.expr:
    if len(text) > MAX_GUARD:
        raise _UnreadError
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _UnreadError from None


def _conjuncts(test: ast.expr) -> list[ast.expr]:
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return [part for value in test.values for part in _conjuncts(value)]
    return [test]


def _apply(test: ast.expr, text: str, shapes: Shapes, state: _State) -> None:
    compiled, used = _compile(test, shapes)
    names = sorted(used)
    if not names:
        return
    if len(names) == 2 and (pair := _bare_equality(test, shapes)) is not None:
        kept, other = sorted(pair)
        state.equal.setdefault(other, kept)
        state.reasons.setdefault(other, text)
        return
    unknown = [name for name in names if name not in state.hints]
    if unknown:
        return
    for name in names:
        others = [other for other in names if other != name]
        for point in _corners(others, state):
            _limit(name, point, compiled, text, state)


def _corners(names: Sequence[str], state: _State) -> list[dict[str, int]]:
    """Values of the other symbols to hold fixed: as exported, and at the ends of their ranges."""
    if not names:
        return [{}]
    choices = []
    for name in names:
        least, most = state.ranges[name]
        ends = [state.hints[name], least, state.hints[name] + 1 if most is None else most]
        choices.append(sorted({size for size in ends if size >= least}))
    points = itertools.islice(itertools.product(*choices), 27)
    return [dict(zip(names, point, strict=True)) for point in points]


def _limit(
    name: str,
    point: Mapping[str, int],
    holds: Callable[[Mapping[str, Values]], Values],
    text: str,
    state: _State,
) -> None:
    """Cut the range of `name` to the run around its hint in which the guard holds."""
    least, most = state.ranges[name]
    top = CEILING if most is None else most
    hint = state.hints[name]

    def test(values: NDArray[np.int64]) -> NDArray[np.bool_]:
        truth = holds({**point, name: values})
        return np.broadcast_to(np.asarray(truth, dtype=bool), values.shape)

    if not test(np.array([hint]))[0]:
        if point and any(point[other] != state.hints[other] for other in point):
            return  # another symbol's own run excludes this corner
        state.ranges[name] = (hint, hint)
        state.reasons.setdefault(name, text)
        return
    low = _edge(test, hint, least, -1)
    high = _edge(test, hint, top, 1)
    if (low, high) != (least, top):
        state.ranges[name] = (low, most if high == top else high)
        state.reasons.setdefault(name, text)


def _edge(
    test: Callable[[NDArray[np.int64]], NDArray[np.bool_]], start: int, end: int, step: int
) -> int:
    """The last value from `start` towards `end` up to which `test` holds throughout."""
    near = start + step * min(abs(end - start), DENSE)
    dense = np.arange(start, near + step, step, dtype=np.int64)
    failed = np.flatnonzero(~test(dense))
    if failed.size:
        return int(dense[failed[0] - 1])
    if near == end:
        return end
    # Beyond the dense part a guard is a bound or a rule of period: sample ever more widely.
    steps = np.unique(np.geomspace(1, abs(end - near), 512).astype(np.int64))
    offsets = np.unique(np.concatenate([steps, steps - 1, steps + 1]))
    offsets = offsets[(offsets > 0) & (offsets <= abs(end - near))]
    wide = near + step * offsets
    failed = np.flatnonzero(~test(wide))
    if not failed.size:
        return end
    bad = int(wide[failed[0]])
    good = int(wide[failed[0] - 1]) if failed[0] else near
    while abs(bad - good) > 1:
        middle = (bad + good) // 2
        if bool(test(np.array([middle]))[0]):
            good = middle
        else:
            bad = middle
    return good


# --- the grammar ----------------------------------------------------------------------------

_Compiled: TypeAlias = Callable[[Mapping[str, Values]], Values]

_BINARY: Mapping[type[ast.operator], Callable[[Values, Values], Values]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.BitAnd: np.logical_and,
    ast.BitOr: np.logical_or,
    ast.Div: lambda a, b: np.true_divide(a, np.where(b == 0, np.nan, b)),
}
_COMPARE: Mapping[type[ast.cmpop], Callable[[Values, Values], Values]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
}
_FLOATS: Mapping[str, Callable[[Values], Values]] = {
    "torch.sym_float": lambda a: np.asarray(a, dtype=np.float64),
    "ToFloat": lambda a: np.asarray(a, dtype=np.float64),
    "math.floor": np.floor,
    "FloorToInt": np.floor,
    "math.ceil": np.ceil,
    "CeilToInt": np.ceil,
    "math.trunc": np.trunc,
    "TruncToInt": np.trunc,
    "Not": np.logical_not,
}
_RELATIONS: Mapping[str, type[ast.cmpop]] = {
    "Eq": ast.Eq,
    "Equality": ast.Eq,
    "Ne": ast.NotEq,
    "Unequality": ast.NotEq,
    "Lt": ast.Lt,
    "StrictLessThan": ast.Lt,
    "Le": ast.LtE,
    "LessThan": ast.LtE,
    "Gt": ast.Gt,
    "StrictGreaterThan": ast.Gt,
    "Ge": ast.GtE,
    "GreaterThan": ast.GtE,
}
_JOINS: Mapping[str, Callable[..., object]] = {
    "min": np.minimum,
    "Min": np.minimum,
    "max": np.maximum,
    "Max": np.maximum,
    "Add": np.add,
    "Mul": np.multiply,
    "And": np.logical_and,
    "Or": np.logical_or,
}
_SYMBOL = re.compile(r"\b[a-z]+\d+\b")


def _compile(
    test: ast.expr, shapes: Shapes
) -> tuple[Callable[[Mapping[str, Values]], Values], set[str]]:
    used: set[str] = set()
    compiled = _expression(test, shapes, used, 0)
    return compiled, used


def _expression(node: ast.expr, shapes: Shapes, used: set[str], depth: int) -> _Compiled:
    if depth > MAX_DEPTH:
        raise _UnreadError

    def inner(part: ast.expr) -> _Compiled:
        return _expression(part, shapes, used, depth + 1)

    match node:
        case ast.Constant(value=bool() | int() | float() as value):
            return lambda _: value
        case ast.Call(func=ast.Name(id="Integer"), args=[number]):
            return inner(number)
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str() as number)]):
            held = float(number)
            return lambda _: held
        case ast.Subscript() | ast.Name() | ast.Call(func=ast.Name(id="Symbol")):
            dim = _size(node, shapes)
            used |= symbolic.symbols_of(dim)
            return lambda values: _value(dim, values)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            part = inner(operand)
            return lambda values: -part(values)
        case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=operand):
            part = inner(operand)
            return lambda values: np.logical_not(part(values))
        case ast.BoolOp(op=operator, values=parts):
            compiled = [inner(part) for part in parts]
            join = np.logical_and if isinstance(operator, ast.And) else np.logical_or
            return lambda values: _joined(join, [part(values) for part in compiled])
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int() as power)):
            if not 0 <= power <= 4:
                raise _UnreadError
            part = inner(left)
            return lambda values: part(values) ** power
        case ast.BinOp(left=left, op=ast.FloorDiv() | ast.Mod() as operator, right=right):
            return _division(inner(left), inner(right), isinstance(operator, ast.Mod))
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _BINARY:
            return _apply_binary(_BINARY[type(operator)], inner(left), inner(right))
        case ast.Compare(left=left, ops=operators, comparators=rights):
            return _comparison([inner(left), *map(inner, rights)], [type(op) for op in operators])
        case ast.Call(func=called, args=[argument], keywords=[]) if ast.unparse(called) in _FLOATS:
            apply, part = _FLOATS[ast.unparse(called)], inner(argument)
            return lambda values: apply(part(values))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if arguments:
            return _function(name, [inner(argument) for argument in arguments])
    raise _UnreadError


def _apply_binary(
    apply: Callable[[Values, Values], Values], left: _Compiled, right: _Compiled
) -> _Compiled:
    return lambda values: apply(left(values), right(values))


def _division(left: _Compiled, right: _Compiled, remainder: bool) -> _Compiled:
    def divide(values: Mapping[str, Values]) -> Values:
        divisor, dividend = np.asarray(right(values)), np.asarray(left(values))
        safe = np.where(divisor == 0, 1, divisor)
        return dividend % safe if remainder else dividend // safe

    return divide


def _comparison(parts: Sequence[_Compiled], operators: Sequence[type[ast.cmpop]]) -> _Compiled:
    if any(operator not in _COMPARE for operator in operators):
        raise _UnreadError

    def compare(values: Mapping[str, Values]) -> Values:
        held = [part(values) for part in parts]
        truths = [
            _COMPARE[operator](left, right)
            for operator, left, right in zip(operators, held, held[1:], strict=False)
        ]
        return _joined(np.logical_and, truths)

    return compare


def _function(name: str, arguments: Sequence[_Compiled]) -> _Compiled:
    if name in _JOINS:
        join = _JOINS[name]
        return lambda values: _joined(join, [argument(values) for argument in arguments])
    if name in ("FloatTrueDiv", "IntTrueDiv") and len(arguments) == 2:
        return _apply_binary(_BINARY[ast.Div], *arguments)
    if name in ("FloorDiv", "CleanDiv", "Mod", "PythonMod") and len(arguments) == 2:
        return _division(arguments[0], arguments[1], "Mod" in name)
    if name in _RELATIONS and len(arguments) == 2:
        return _comparison(arguments, [_RELATIONS[name]])
    raise _UnreadError


def _joined(join: Callable[..., object], parts: Sequence[object]) -> Values:
    result = parts[0]
    for part in parts[1:]:
        result = join(result, part)
    return result


def _size(node: ast.expr, shapes: Shapes) -> Dim:
    """What `L['x'].size()[1]` means, or a symbol."""
    match node:
        case ast.Name(id=name) if _SYMBOL.fullmatch(name):
            return symbolic.symbol(name)
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str() as name)]):
            return symbolic.symbol(name)
        case ast.Subscript(
            value=ast.Call(func=ast.Attribute(value=owner, attr="size"), args=[], keywords=[]),
            slice=ast.Constant(value=int() as axis),
        ):
            pass
        case ast.Subscript(
            value=ast.Attribute(value=owner, attr="shape"), slice=ast.Constant(value=int() as axis)
        ):
            pass
        case _:
            raise _UnreadError
    shape = shapes.get(ast.unparse(owner))
    if shape is None or not -len(shape) <= axis < len(shape):
        raise _UnreadError
    return shape[axis]


def _value(dim: Dim, values: Mapping[str, Values]) -> Values:
    """`dim` at many values of a symbol."""
    if isinstance(dim, int):
        return dim
    names = symbolic.symbols_of(dim)
    if len(dim.terms) == 1 and len(names) == 1 and str(dim) in names:
        return values[str(dim)]
    varying = next((name for name in names if isinstance(values[name], np.ndarray)), None)
    fixed = {name: int(values[name]) for name in names if name != varying}
    if varying is None:
        return symbolic.evaluate(dim, fixed)
    return np.array(
        [symbolic.evaluate(dim, {**fixed, varying: int(size)}) for size in values[varying]],
        dtype=np.int64,
    )


def _bare_equality(test: ast.expr, shapes: Shapes) -> tuple[str, str] | None:
    match test:
        case ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]):
            pass
        case ast.Call(func=ast.Name(id="Eq" | "Equality"), args=[left, right]):
            pass
        case _:
            return None
    try:
        names = (str(_size(left, shapes)), str(_size(right, shapes)))
    except _UnreadError:
        return None
    return names if all(name.isidentifier() for name in names) else None


def _mentioned(text: str, shapes: Shapes) -> set[str]:
    """The symbols of the inputs that a guard names, whatever it says of them."""
    names: set[str] = set()
    for owner, shape in shapes.items():
        if owner in text:
            for dim in shape:
                names |= symbolic.symbols_of(dim)
    return names
