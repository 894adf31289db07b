"""Text form of a graph; `parse_graph(print_graph(g))` prints the same again.

    graph   ::= 'graph' '@'name '(' value, ... ')' [symbols] '{' line* 'return' result, ... '}'
    symbols ::= 'symbols' '(' name 'in' '[' integer ',' (integer | 'inf') ']', ... ')'
    line    ::= 'param' value '=' string
              | value, ... '=' op '(' %name, ... ')' ['{' name '=' attr, ... '}'] ['@' string*]
    value   ::= '%'name ':' dtype '[' dim, ... ']'       dim    ::= size | size '~' size
    result  ::= '%'name ['as' string]
    attr    ::= 'none' | 'true' | 'false' | number | string | '<' size '>' | '[' attr, ... ']'

A size is an expression of `fusec.symbolic`; `a~b` is a logical size and its padded size.  The
strings after `@` are the origin: module path, file and line, source operation.  One node a line;
blank lines and lines that begin with `//` are skipped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import TypeAlias

from fusec.diagnostics import FusecError, ParseError
from fusec.ir.graph import Graph, Node, Origin
from fusec.ir.ops import OPS, is_opaque
from fusec.ir.types import Attr, Attrs, TensorType
from fusec.ir.weights import Weight, digest
from fusec.symbolic import Dim, Expr, Range, parse_dim

MAX_DEPTH = 32


def print_graph(graph: Graph, *, origins: bool = True) -> str:
    """Render `graph`: inputs, symbols, parameters, nodes in order, results.

    Args:
        graph: what to print.
        origins: whether to print where each node comes from.
    """
    inputs = ", ".join(_value(graph, name) for name in graph.inputs)
    lines = [f"graph @{graph.name}({inputs}){_symbols(graph)} {{"]
    for name, weight in graph.parameters.items():
        lines.append(f"  param {_value(graph, name)} = {json.dumps(weight.name)}")
    lines += [f"  {_node(graph, node, origins)}" for node in graph.nodes()]
    results = zip(graph.outputs, graph.output_names, strict=True)
    returned = ", ".join(f"%{value} as {json.dumps(name)}" for value, name in results)
    return "\n".join([*lines, f"  return {returned}".rstrip(), "}"]) + "\n"


def _symbols(graph: Graph) -> str:
    if not graph.symbols:
        return ""
    spans = (
        f"{name} in [{low}, {'inf' if high is None else high}]"
        for name, (low, high) in graph.symbols.items()
    )
    return f" symbols({', '.join(spans)})"


def _value(graph: Graph, name: str) -> str:
    return f"%{name}: {graph.type(name)}"


def _node(graph: Graph, node: Node, origins: bool) -> str:
    outputs = ", ".join(_value(graph, name) for name in node.outputs)
    inputs = ", ".join(f"%{name}" for name in node.inputs)
    text = f"{outputs} = {node.op}({inputs})"
    if node.attrs:
        pairs = (f"{key} = {attr_text(value)}" for key, value in sorted(node.attrs.items()))
        text += f" {{{', '.join(pairs)}}}"
    if origins and node.origin != Origin():
        parts = (node.origin.path, node.origin.source, node.origin.op)
        text += " @ " + " ".join(map(json.dumps, parts))
    return text


def attr_text(attr: Attr) -> str:
    """The text form of an attribute."""
    if attr is None:
        return "none"
    if isinstance(attr, bool):
        return "true" if attr else "false"
    if isinstance(attr, Expr):
        return f"<{attr}>"
    if isinstance(attr, tuple):
        return f"[{', '.join(map(attr_text, attr))}]"
    if isinstance(attr, str):
        return json.dumps(attr)
    return repr(attr)


WeightOf: TypeAlias = Callable[[str, str, TensorType], Weight]
"""The weight of a parameter, by the parameter, the name of the weight, and its type."""


def named_weight(parameter: str, name: str, type: TensorType) -> Weight:
    """A weight without values, known by its name."""
    return Weight(name, type, None, digest("named", name, str(type)))


def parse_graph(text: str, weight_of: WeightOf = named_weight, *, foreign: bool = False) -> Graph:
    """Read a graph and verify it.

    Args:
        text: of `print_graph`.
        weight_of: gives the weights.
        foreign: whether operations may occur that are not known here: those of an extension that
            took part in the compilation of an artifact, and is not installed.

    Raises:
        ParseError: the text is not a graph; the message names the line.
    """
    return _Parser(text, weight_of, foreign).graph()


_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*")
      | (?P<value>%[A-Za-z0-9_.]+)
      | (?P<number>-?(?:\d+\.\d*(?:e[-+]?\d+)?|\d+e[-+]?\d+|\d+|inf|nan)(?![\w.]))
      | (?P<name>@[A-Za-z0-9_.]+|[A-Za-z_][A-Za-z0-9_.]*)
      | (?P<size><[^>]*>)
      | (?P<mark>[][(){}=,:@~])""",
    re.X,
)
_TYPE = re.compile(r"\s*([a-z0-9]+)\[([^\]]*)\]")
_WORDS: dict[str, Attr] = {"none": None, "true": True, "false": False}


class _Parser:
    """One line at a time, left to right."""

    def __init__(self, text: str, weight_of: WeightOf, foreign: bool) -> None:
        self.weight_of = weight_of
        self.foreign = foreign
        numbered = enumerate(text.splitlines(), start=1)
        kept = ((number, line.strip()) for number, line in numbered)
        self.lines = [(n, line) for n, line in kept if line and not line.startswith("//")]
        self.number = 0
        self.line = ""
        self.position = 0

    def graph(self) -> Graph:
        lines = self._each_line()
        if not self._advance(lines):
            raise ParseError("expected `graph @name(...) {`, got nothing")
        graph = self._header()
        while self._advance(lines):
            if self._accept("return"):
                self._results(graph)
                break
            self._located(lambda: self._statement(graph))
        else:
            raise self._error("expected `return`")
        if not self._advance(lines) or not self._accept("}") or self._rest():
            raise self._error("expected `}` at the end")
        if self._advance(lines):
            raise self._error("expected nothing after `}`")
        graph.verify()
        return graph

    def _located(self, action: Callable[[], None]) -> None:
        """Name the line in whatever is wrong with a statement."""
        try:
            action()
        except ParseError:
            raise
        except FusecError as error:
            raise self._error(str(error)) from error

    # --- statements -------------------------------------------------------------------------

    def _header(self) -> Graph:
        self._expect("graph")
        name = self._token("name", "a graph name beginning with `@`")
        if not name.startswith("@"):
            raise self._error("expected a graph name beginning with `@`")
        inputs = self._declarations("(", ")")
        symbols: dict[str, Range] = {}
        if self._accept("symbols"):
            self._expect("(")
            while not self._accept(")"):
                key = self._token("name", "a symbol")
                self._expect("in")
                low, high = self._list_of_numbers()
                symbols[key] = (int(low), None if math.isinf(high) else int(high))
                self._accept(",")
        self._expect("{")
        graph = Graph(name[1:], symbols)
        for value, type in inputs:
            self._located(lambda value=value, type=type: self._ignore(graph.add_input(value, type)))  # type: ignore[misc]
        return graph

    @staticmethod
    def _ignore(_: object) -> None:
        return None

    def _statement(self, graph: Graph) -> None:
        if self._accept("param"):
            value, type = self._declaration()
            self._expect("=")
            name = self._string()
            graph.add_parameter(value, self.weight_of(value, name, type))
            self._end()
            return
        declared = [self._declaration()]
        while self._accept(","):
            declared.append(self._declaration())
        self._expect("=")
        op = self._token("name", "an operation")
        if op not in OPS and not is_opaque(op) and not self.foreign:
            raise self._error(f"unknown operation `{op}`")
        inputs = self._values()
        attrs = self._attrs() if self._accept("{") else {}
        origin = self._origin() if self._accept("@") else None
        self._end()
        names, types = zip(*declared, strict=True)
        graph.add(op, inputs, attrs, names=names, types=types, origin=origin)

    def _results(self, graph: Graph) -> None:
        while self._rest():
            value = self._token("value", "a value")[1:]
            graph.outputs.append(value)
            graph.output_names.append(self._string() if self._accept("as") else value)
            if not self._accept(","):
                break
        self._end()

    def _declarations(self, opening: str, closing: str) -> list[tuple[str, TensorType]]:
        self._expect(opening)
        found = []
        while not self._accept(closing):
            found.append(self._declaration())
            if not self._accept(","):
                self._expect(closing)
                break
        return found

    def _declaration(self) -> tuple[str, TensorType]:
        value = self._token("value", "a value")[1:]
        self._expect(":")
        return value, self._type()

    def _type(self) -> TensorType:
        found = _TYPE.match(self.line, self.position)
        if found is None:
            raise self._error("expected a type such as `f32[batch, 64]`")
        self.position = found.end()
        dtype, inside = found.groups()
        logical: list[Dim] = []
        padded: list[Dim] = []
        for part in _split(inside):
            first, _, second = part.partition("~")
            logical.append(self._size(first))
            padded.append(self._size(second) if second else logical[-1])
        try:
            return TensorType(dtype, tuple(logical), tuple(padded) if padded != logical else None)
        except FusecError as error:
            raise self._error(str(error)) from error

    def _size(self, text: str) -> Dim:
        try:
            return parse_dim(text)
        except ParseError as error:
            raise self._error(str(error)) from error

    def _values(self) -> list[str]:
        self._expect("(")
        found: list[str] = []
        while not self._accept(")"):
            found.append(self._token("value", "a value")[1:])
            if not self._accept(","):
                self._expect(")")
                break
        return found

    def _attrs(self) -> Attrs:
        found: dict[str, Attr] = {}
        while not self._accept("}"):
            key = self._token("name", "an attribute")
            self._expect("=")
            found[key] = self._attr(0)
            if not self._accept(","):
                self._expect("}")
                break
        return found

    def _attr(self, depth: int) -> Attr:
        if depth > MAX_DEPTH:
            raise self._error(f"attributes nest deeper than {MAX_DEPTH}")
        kind, text = self._next()
        if kind == "string":
            return self._unquoted(text)
        if kind == "size":
            return self._size(text[1:-1])
        if kind == "number" or text in ("inf", "nan"):
            return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
        if text in _WORDS:
            return _WORDS[text]
        if text != "[":
            raise self._error(f"`{text}` is not an attribute value")
        items: list[Attr] = []
        while not self._accept("]"):
            items.append(self._attr(depth + 1))
            if not self._accept(","):
                self._expect("]")
                break
        return tuple(items)

    def _origin(self) -> Origin:
        return Origin(self._string(), self._string(), self._string())

    def _list_of_numbers(self) -> tuple[float, float]:
        value = self._attr(0)
        if not isinstance(value, tuple) or len(value) != 2:
            raise self._error("expected a range such as `[1, 4096]`")
        low, high = value
        if not isinstance(low, int) or not isinstance(high, int | float):
            raise self._error("expected a range such as `[1, 4096]`")
        return low, high

    # --- tokens -----------------------------------------------------------------------------

    def _each_line(self) -> Iterator[tuple[int, str]]:
        yield from self.lines

    def _advance(self, lines: Iterator[tuple[int, str]]) -> bool:
        if self.position < len(self.line) and self._rest():
            raise self._error(f"unexpected `{self._rest()[:20]}`")
        self.number, self.line = next(lines, (self.number, ""))
        self.position = 0
        return bool(self.line)

    def _rest(self) -> str:
        return self.line[self.position :].strip()

    def _next(self) -> tuple[str, str]:
        while self.position < len(self.line) and self.line[self.position].isspace():
            self.position += 1
        found = _TOKEN.match(self.line, self.position)
        if found is None or found.lastgroup is None:
            raise self._error(f"unexpected `{self._rest()[:20] or 'end of line'}`")
        self.position = found.end()
        return found.lastgroup, found.group()

    def _accept(self, text: str) -> bool:
        before = self.position
        if self._rest().startswith(text) and self._next()[1] == text:
            return True
        self.position = before
        return False

    def _expect(self, text: str) -> None:
        if not self._accept(text):
            raise self._error(f"expected `{text}`, got `{self._rest()[:20] or 'end of line'}`")

    def _token(self, kind: str, what: str) -> str:
        found, text = self._next()
        if found != kind:
            raise self._error(f"expected {what}, got `{text}`")
        return text

    def _string(self) -> str:
        return self._unquoted(self._token("string", "a quoted string"))

    def _unquoted(self, text: str) -> str:
        try:
            value = json.loads(text)
        except ValueError as error:
            raise self._error(f"{text} is not a string") from error
        return str(value)

    def _end(self) -> None:
        if self._rest():
            raise self._error(f"unexpected `{self._rest()[:20]}`")

    def _error(self, why: str) -> ParseError:
        return ParseError(why, at=f"line {self.number}")


def _split(text: str) -> list[str]:
    """The parts of `text` between commas that are not inside parentheses."""
    parts, depth, current = [], 0, ""
    for char in text:
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += char
    return [*parts, current] if current.strip() else parts
