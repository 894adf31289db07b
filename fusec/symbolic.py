"""Sizes that are integers, or integer expressions over named symbols such as `batch` and `seq`.

An expression is kept as a canonical polynomial, so that `seq*batch == batch*seq` and
`(64*seq)//64 == seq` hold by construction.  Next to sums and products there are floor division,
modulo with the sign of the divisor (Python's), `min` and `max`.

    dim   ::= term (('+' | '-') term)*          term ::= power (('*' | '//' | '%') power)*
    power ::= unary ('**' integer)?             unary ::= '-' unary | atom
    atom  ::= integer | name | name '(' dim (',' dim)* ')' | '(' dim ')'

The grammar also accepts the functions of the expressions in `torch.export` archives (`FloorDiv`,
`Mod`, `PythonMod`, `CleanDiv`, `Min`, `Max`).  Parsing evaluates nothing and bounds what it reads.
Standard library only: the runtime uses it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from fusec.diagnostics import ParseError

MAX_TEXT = 4096
MAX_DEPTH = 64
MAX_TERMS = 256
MAX_POWER = 8
MAX_MAGNITUDE = 1 << 62

Range: TypeAlias = tuple[int, int | None]
"""Inclusive bounds of a symbol; `None` means unbounded."""

Monomial: TypeAlias = "tuple[tuple[Atom, int], ...]"


@dataclass(frozen=True, slots=True)
class Atom:
    """A symbol, or a function of expressions that does not simplify further."""

    function: str | None
    name: str
    arguments: tuple[Dim, ...] = ()

    def __str__(self) -> str:
        if self.function is None:
            return self.name
        if self.function in ("min", "max"):
            return f"{self.function}({', '.join(map(str, self.arguments))})"
        left, right = self.arguments
        return f"{_grouped(left)}{self.function}{_grouped(right)}"

    @property
    def key(self) -> tuple[int, str]:
        """Order of printing: symbols first."""
        return (0 if self.function is None else 1, str(self))


class Expr:
    """A polynomial with integer coefficients; immutable, hashable, never a plain constant."""

    __slots__ = ("_hash", "terms")

    terms: tuple[tuple[Monomial, int], ...]

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        ordered = sorted(terms.items(), key=lambda item: _monomial_key(item[0]))
        self.terms = tuple((monomial, factor) for monomial, factor in ordered if factor != 0)
        self._hash = hash(self.terms)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expr) and self._hash == other._hash and self.terms == other.terms

    def __repr__(self) -> str:
        return f"Expr({self})"

    def __str__(self) -> str:
        text = ""
        for monomial, factor in self.terms:
            sign = " - " if factor < 0 else " + "
            if not text:
                sign = "-" if factor < 0 else ""
            parts = [str(abs(factor))] if abs(factor) != 1 or not monomial else []
            parts += [_factor_text(atom, power) for atom, power in monomial]
            text += sign + "*".join(parts)
        return text

    def __add__(self, other: Dim) -> Dim:
        return _sum(self, other, 1)

    __radd__ = __add__

    def __sub__(self, other: Dim) -> Dim:
        return _sum(self, other, -1)

    def __rsub__(self, other: Dim) -> Dim:
        return _sum(other, self, -1)

    def __neg__(self) -> Dim:
        return _sum(0, self, -1)

    def __mul__(self, other: Dim) -> Dim:
        product: dict[Monomial, int] = {}
        for left, left_factor in self.terms:
            for right, right_factor in _terms(other):
                key = _times(left, right)
                product[key] = product.get(key, 0) + left_factor * right_factor
        return _lowered(product)

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return floor_divide(self, other)

    def __rfloordiv__(self, other: Dim) -> Dim:
        return floor_divide(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return modulo(self, other)

    def __rmod__(self, other: Dim) -> Dim:
        return modulo(other, self)


Dim: TypeAlias = int | Expr
"""A size: known now, or an expression over symbols."""


def symbol(name: str) -> Expr:
    """The symbol called `name`."""
    return Expr({((Atom(None, name), 1),): 1})


def floor_divide(left: Dim, right: Dim) -> Dim:
    """`left // right`, simplified where it is exact for every value of the symbols."""
    if right == 0:
        raise ParseError("division by zero in a size expression")
    if isinstance(left, int) and isinstance(right, int):
        return left // right
    if left == 0 or right == 1:
        return left
    if left == right:
        return 1
    if isinstance(right, int):
        if right < 0:
            return floor_divide(_sum(0, left, -1), -right)
        return _divided_by_integer(left, right)
    if (quotient := _exact_quotient(left, right)) is not None:
        return quotient
    return _atom("//", left, right)


def modulo(left: Dim, right: Dim) -> Dim:
    """`left % right`; by an integer n it is `left - n*(left//n)`, so that all forms meet.

    `seq + (-seq)%64` and `64*((seq + 63)//64)` are then the same.
    """
    if right == 0:
        raise ParseError("division by zero in a size expression")
    if isinstance(left, int) and isinstance(right, int):
        return left % right
    if isinstance(right, int):
        return left - right * floor_divide(left, right)
    if left in (0, right) or _exact_quotient(left, right) is not None:
        return 0
    return _atom("%", left, right)


def ceil_divide(left: Dim, right: Dim) -> Dim:
    """`left / right`, rounded up."""
    return floor_divide(left + right - 1, right)


def minimum(*dims: Dim) -> Dim:
    """The smallest of `dims`."""
    return _extreme("min", min, dims)


def maximum(*dims: Dim) -> Dim:
    """The largest of `dims`."""
    return _extreme("max", max, dims)


def product(dims: tuple[Dim, ...] | list[Dim]) -> Dim:
    """The product of `dims`; 1 for none."""
    result: Dim = 1
    for dim in dims:
        result = result * dim
    return result


def symbols_of(dim: Dim) -> frozenset[str]:
    """The names of the symbols that `dim` depends on."""
    names: set[str] = set()
    for monomial, _ in _terms(dim) if isinstance(dim, Expr) else ():
        for atom, _ in monomial:
            if atom.function is None:
                names.add(atom.name)
            for argument in atom.arguments:
                names |= symbols_of(argument)
    return frozenset(names)


def evaluate(dim: Dim, values: Mapping[str, int]) -> int:
    """The value of `dim` where each symbol has the value in `values`.

    Raises:
        ParseError: a symbol has no value, or a divisor is zero.
    """
    if isinstance(dim, int):
        return dim
    result = substitute(dim, values)
    if isinstance(result, int):
        return result
    missing = ", ".join(f"`{name}`" for name in sorted(symbols_of(result)))
    raise ParseError(f"no value for {missing} in `{dim}`")


def substitute(dim: Dim, values: Mapping[str, Dim]) -> Dim:
    """`dim` with symbols replaced by integers or expressions."""
    if isinstance(dim, int):
        return dim
    return _with_atoms(dim, lambda atom: _substitute_atom(atom, values))


def bounds(dim: Dim, ranges: Mapping[str, Range]) -> tuple[float, float]:
    """Inclusive bounds of `dim` by interval arithmetic; unknown symbols are in [0, inf)."""
    if isinstance(dim, int):
        return dim, dim
    low, high = 0.0, 0.0
    for monomial, factor in dim.terms:
        span = (float(factor), float(factor))
        for atom, power in monomial:
            for _ in range(power):
                span = _interval_product(span, _atom_bounds(atom, ranges))
        low, high = low + span[0], high + span[1]
    return low, high


def known_positive(dim: Dim, ranges: Mapping[str, Range]) -> bool:
    """Whether `dim` is at least 1 for every value in `ranges`."""
    return bounds(dim, ranges)[0] >= 1


def simplify(dim: Dim, ranges: Mapping[str, Range]) -> Dim:
    """`dim` without the functions that the ranges decide, such as `max(seq, 1)`."""
    if isinstance(dim, int):
        return dim
    return _with_atoms(dim, lambda atom: _simplified_atom(atom, ranges))


@lru_cache(maxsize=4096)
def parse_dim(text: str) -> Dim:
    """Read an expression.

    Raises:
        ParseError: the text is not an expression, or is larger than any real one.
    """
    return _Parser(text).whole()


# --- building -------------------------------------------------------------------------------


def _terms(dim: Dim) -> tuple[tuple[Monomial, int], ...]:
    if isinstance(dim, Expr):
        return dim.terms
    return (((), dim),) if dim else ()


def _lowered(terms: Mapping[Monomial, int]) -> Dim:
    live = {monomial: factor for monomial, factor in terms.items() if factor}
    if not live:
        return 0
    if len(live) == 1 and () in live:
        return live[()]
    if len(live) > MAX_TERMS:
        raise ParseError(f"a size expression has more than {MAX_TERMS} terms")
    return Expr(live)


def _sum(left: Dim, right: Dim, sign: int) -> Dim:
    total = dict(_terms(left))
    for monomial, factor in _terms(right):
        total[monomial] = total.get(monomial, 0) + sign * factor
    return _lowered(total)


def _times(left: Monomial, right: Monomial) -> Monomial:
    if not left or not right:
        return left or right
    powers = dict(left)
    for atom, power in right:
        powers[atom] = powers.get(atom, 0) + power
    return tuple(sorted(powers.items(), key=lambda item: item[0].key))


def _monomial_key(monomial: Monomial) -> tuple[int, tuple[tuple[int, str, int], ...]]:
    degree = sum(power for _, power in monomial)
    return -degree, tuple((*atom.key, power) for atom, power in monomial)


def _divided_by_integer(left: Dim, right: int) -> Dim:
    """`left // right` in one form: factors between -right/2 and right/2, the first one positive."""
    whole: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for monomial, factor in _terms(left):
        part = factor % right
        if monomial and 2 * part > right:
            part -= right
        whole[monomial], rest[monomial] = (factor - part) // right, part
    outside, inside = _lowered(whole), _lowered(rest)
    if isinstance(inside, int):
        return outside + inside // right
    if inside.terms[0][1] < 0:
        return outside - _divided_by_integer(right - 1 - inside, right)
    common = math.gcd(right, *(factor for monomial, factor in inside.terms if monomial))
    if common > 1:
        shared = {m: factor // common for m, factor in inside.terms}
        return outside + floor_divide(_lowered(shared), right // common)
    terms = dict(inside.terms)
    offset = terms.pop((), 0)
    if len(terms) == 1:
        ((monomial, factor),) = terms.items()
        atom = monomial[0][0]
        if monomial == ((atom, 1),) and factor == 1 and atom.function == "//":
            start, step = atom.arguments
            if isinstance(step, int):  # a quotient of a quotient
                return outside + floor_divide(start + offset * step, step * right)
    return outside + _atom("//", inside, right)


def _atom(function: str, *arguments: Dim) -> Expr:
    return Expr({((Atom(function, "", arguments), 1),): 1})


def _exact_quotient(left: Dim, right: Expr) -> Dim | None:
    """`left / right` if `right` is one monomial that divides every term of `left`, or a factor."""
    if len(right.terms) != 1:
        return _common_factor_quotient(left, right)
    divisor, divisor_factor = right.terms[0]
    result: dict[Monomial, int] = {}
    for monomial, factor in _terms(left):
        powers = dict(monomial)
        for atom, power in divisor:
            powers[atom] = powers.get(atom, 0) - power
        if factor % divisor_factor or any(power < 0 for power in powers.values()):
            return None
        reduced = tuple((atom, power) for atom, power in powers.items() if power)
        key = tuple(sorted(reduced, key=lambda item: item[0].key))
        result[key] = result.get(key, 0) + factor // divisor_factor
    return _lowered(result)


def _common_factor_quotient(left: Dim, right: Expr) -> Dim | None:
    """`left / right` when `left` is `right` times one monomial."""
    if not isinstance(left, Expr) or len(left.terms) != len(right.terms):
        return None
    first = Expr({right.terms[0][0]: right.terms[0][1]}) if right.terms[0][0] else None
    if first is None:
        return None
    quotient = _exact_quotient(Expr({left.terms[0][0]: left.terms[0][1]}), first)
    return quotient if quotient is not None and quotient * right == left else None


def _extreme(name: str, choose: Callable[[list[int]], int], dims: tuple[Dim, ...]) -> Dim:
    constants = [dim for dim in dims if isinstance(dim, int)]
    others: list[Dim] = []
    for dim in dims:
        if isinstance(dim, Expr) and dim not in others:
            others.append(dim)
    if not others:
        return choose(constants)
    if constants:
        others.append(choose(constants))
    if len(others) == 1:
        return others[0]
    return _atom(name, *sorted(others, key=str))


def _with_atoms(dim: Expr, value_of: Callable[[Atom], Dim]) -> Dim:
    """`dim` with each symbol or function replaced by its value."""
    total: Dim = 0
    for monomial, factor in dim.terms:
        term: Dim = factor
        for atom, power in monomial:
            value = value_of(atom)
            for _ in range(power):
                term = term * value
        total = total + term
    return total


def _substitute_atom(atom: Atom, values: Mapping[str, Dim]) -> Dim:
    if atom.function is None:
        if atom.name in values:
            return values[atom.name]
        return Expr({((atom, 1),): 1})
    arguments = tuple(substitute(argument, values) for argument in atom.arguments)
    return FUNCTIONS[atom.function](*arguments)


def _simplified_atom(atom: Atom, ranges: Mapping[str, Range]) -> Dim:
    if atom.function is None:
        return Expr({((atom, 1),): 1})
    arguments = [simplify(argument, ranges) for argument in atom.arguments]
    if atom.function in ("min", "max"):
        sign = 1 if atom.function == "min" else -1
        kept: list[Dim] = []
        for index, argument in enumerate(arguments):
            others = kept + arguments[index + 1 :]
            if not any(bounds(sign * (argument - other), ranges)[0] >= 0 for other in others):
                kept.append(argument)
        return FUNCTIONS[atom.function](*kept)
    left, right = arguments
    if isinstance(right, int) and right > 0:
        low, high = bounds(left, ranges)
        if not math.isinf(low) and not math.isinf(high) and low // right == high // right:
            whole = int(low // right)
            return whole if atom.function == "//" else left - whole * right
    return FUNCTIONS[atom.function](left, right)


def _atom_bounds(atom: Atom, ranges: Mapping[str, Range]) -> tuple[float, float]:
    if atom.function is None:
        least, most = ranges.get(atom.name, (0, None))
        return least, math.inf if most is None else most
    spans = [bounds(argument, ranges) for argument in atom.arguments]
    if atom.function == "min":
        return min(low for low, _ in spans), min(high for _, high in spans)
    if atom.function == "max":
        return max(low for low, _ in spans), max(high for _, high in spans)
    (divisor_low, divisor_high) = spans[1]
    if divisor_low <= 0:
        return -math.inf, math.inf
    if atom.function == "%":
        return 0, divisor_high - 1
    corners = [_divided(edge, divisor) for edge in spans[0] for divisor in spans[1]]
    return min(corners), max(corners)


def _divided(edge: float, divisor: float) -> float:
    if math.isinf(divisor):
        return 0.0 if edge >= 0 else -1.0
    return edge if math.isinf(edge) else edge // divisor


def _interval_product(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    corners = [0.0 if 0 in (x, y) else x * y for x in a for y in b]
    return min(corners), max(corners)


# --- text -----------------------------------------------------------------------------------


def _grouped(dim: Dim) -> str:
    text = str(dim)
    return text if re.fullmatch(r"\w+", text) else f"({text})"


def _factor_text(atom: Atom, power: int) -> str:
    text = str(atom)
    if atom.function in ("//", "%"):
        text = f"({text})"
    return text if power == 1 else f"{text}**{power}"


FUNCTIONS: Mapping[str, Callable[..., Dim]] = {
    "//": floor_divide,
    "%": modulo,
    "min": minimum,
    "max": maximum,
    "FloorDiv": floor_divide,
    "CleanDiv": floor_divide,
    "Mod": modulo,
    "PythonMod": modulo,
    "Min": minimum,
    "Max": maximum,
}

_TOKEN = re.compile(r"\s*(?:(\d+)|([A-Za-z_][\w.]*)|(\*\*|//|[-+*%(),]))", re.ASCII)


class _Parser:
    """Recursive descent over a bounded token list."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_TEXT:
            raise ParseError(f"a size expression has more than {MAX_TEXT} characters")
        self.text = text
        self.tokens = list(self._split())
        self.next = 0
        self.depth = 0

    def _split(self) -> Iterator[str]:
        position = 0
        text = self.text.rstrip()
        while position < len(text):
            found = _TOKEN.match(text, position)
            if found is None:
                raise self._error(f"unexpected `{text[position:].strip()[:1]}`")
            yield found.group().strip()
            position = found.end()

    def _error(self, why: str) -> ParseError:
        return ParseError(f"`{self.text[:80]}` is not a size expression: {why}")

    def _peek(self) -> str:
        return self.tokens[self.next] if self.next < len(self.tokens) else ""

    def _take(self, *accepted: str) -> str | None:
        if self._peek() in accepted and self._peek():
            self.next += 1
            return self.tokens[self.next - 1]
        return None

    def _expect(self, token: str) -> None:
        if self._take(token) is None:
            raise self._error(f"expected `{token}`, got `{self._peek() or 'the end'}`")

    def whole(self) -> Dim:
        result = self._sum()
        if self._peek():
            raise self._error(f"unexpected `{self._peek()}`")
        return result

    def _sum(self) -> Dim:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self._error(f"nested deeper than {MAX_DEPTH}")
        result = self._term()
        while sign := self._take("+", "-"):
            result = result + self._term() if sign == "+" else result - self._term()
        self.depth -= 1
        return result

    def _term(self) -> Dim:
        result = self._unary()
        while operator := self._take("*", "//", "%"):
            right = self._unary()
            if operator == "*":
                result = result * right
            else:
                result = FUNCTIONS[operator](result, right)
        return result

    def _unary(self) -> Dim:
        negative = False
        while self._take("-"):
            negative = not negative
        result = self._power()
        return 0 - result if negative else result

    def _power(self) -> Dim:
        base = self._atom()
        if self._take("**") is None:
            return base
        exponent = self._peek()
        if not exponent.isdecimal() or int(exponent) > MAX_POWER:
            raise self._error(f"the exponent must be an integer up to {MAX_POWER}")
        self.next += 1
        return product([base] * int(exponent))

    def _atom(self) -> Dim:
        token = self._peek()
        self.next += 1
        if token.isdecimal():
            if len(token) > 19 or int(token) > MAX_MAGNITUDE:
                raise self._error("a number is larger than 2**62")
            return int(token)
        if token == "(":
            result = self._sum()
            self._expect(")")
            return result
        if not re.fullmatch(r"[A-Za-z_][\w.]*", token):
            raise self._error(f"unexpected `{token or 'end'}`")
        if self._take("(") is None:
            return symbol(token)
        if token not in FUNCTIONS:
            raise self._error(f"unknown function `{token}`")
        arguments = [self._sum()]
        while self._take(","):
            arguments.append(self._sum())
        self._expect(")")
        if token not in ("min", "max", "Min", "Max") and len(arguments) != 2:
            raise self._error(f"`{token}` takes two arguments")
        return FUNCTIONS[token](*arguments)
