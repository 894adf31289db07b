"""Makes masks anew as nodes, from predicates over the positions of query and key."""

from __future__ import annotations

from typing import TypeGuard

from fusec import symbolic
from fusec.diagnostics import InternalError
from fusec.ir import Graph, Node
from fusec.ir.types import Attrs, TensorType
from fusec.passes.attention_operands import AttentionOperands
from fusec.rewrite.coordinates import (
    AtLeastZero,
    Coordinates,
    Element,
    Every,
    IsZero,
    Not,
    Predicate,
    Some,
    Term,
    coordinate,
)
from fusec.rewrite.driver import Builder
from fusec.symbolic import Dim, Expr

BATCH, KEY = coordinate(0), coordinate(3)


def or_mean(
    graph: Graph, node: Node, operands: AttentionOperands, result: str, padding: str
) -> str:
    """`result` for queries that see a key that counts, the mean of v for the others."""

    def make(op: str, inputs: list[str], attrs: Attrs) -> str:
        return graph.add(op, inputs, attrs, origin=node.origin, at=node.name).output

    def number(value: Dim) -> str:
        return make("constant", [], {"value": value, "dtype": "i64", "shape": ()})

    def positions(start: Dim) -> str:
        return make("iota", [], {"size": queries, "start": start, "step": 1, "dtype": "i64"})

    batch, heads, queries, _ = graph.type(result).shape
    keys = graph.type(operands.k).shape[2]
    offset, reach = keys - queries, operands.flags.get("window")
    chunk = operands.flags.get("chunk")
    counts = make("cast", [padding], {"dtype": "i64"})
    totals = make("cumsum", [counts], {"axis": 1})
    before = make("pad", [totals], {"low": (0, 1), "high": (0, 0), "value": 0})
    begin, end = None, number(keys)
    if isinstance(reach, int):
        begin = make("maximum", [positions(offset + 1 - reach), number(0)], {})
    elif isinstance(chunk, int):  # no query is before the first key
        number_of_chunk = make("floordiv", [positions(offset), number(chunk)], {})
        begin = make("mul", [number_of_chunk, number(chunk)], {})
    if operands.flags.get("causal"):
        end = positions(offset + 1)
    elif isinstance(reach, int):
        end = make("minimum", [positions(offset + reach), end], {})
    elif begin is not None and isinstance(chunk, int):
        end = make("minimum", [make("add", [begin, number(chunk)], {}), end], {})
    seen = make("take", [before, end], {"axis": 1})
    if begin is not None:
        seen = make("sub", [seen, make("take", [before, begin], {"axis": 1})], {})
    some_key = make("gt", [seen, number(0)], {})
    rows = (batch, 1, 1 if graph.type(seen).rank == 1 else queries, 1)
    some_key = make("reshape", [some_key], {"shape": rows})
    mean = make("reduce_mean", [operands.v], {"axes": (2,), "keepdims": True})
    kv_heads, width = graph.type(operands.v).shape[1], graph.type(operands.v).shape[3]
    if kv_heads not in (1, heads):
        group = symbolic.floor_divide(heads, kv_heads)
        mean = make("reshape", [mean], {"shape": (batch, kv_heads, 1, 1, width)})
        mean = make("expand", [mean], {"shape": (batch, kv_heads, group, 1, width)})
        mean = make("reshape", [mean], {"shape": (batch, heads, 1, width)})
    return make("where", [some_key, result, mean], {})


def of_positions(predicate: Predicate) -> bool:
    """Whether `predicate` depends on nothing but the positions of query and key, and on sizes."""
    match predicate:
        case Element():
            return False
        case Not(part):
            return of_positions(part)
        case Every(parts) | Some(parts):
            return all(map(of_positions, parts))
    names = symbolic.symbols_of(predicate.what)
    return not any(name.startswith(("%", "$")) and name not in ("$2", "$3") for name in names)


def flags_of_positions(build: Builder, predicate: Predicate, shape: tuple[Dim, ...]) -> str:
    """Flags [S, T] that hold where `predicate`, of positions alone, does."""
    match predicate:
        case Not(part):
            return build.value("not", [flags_of_positions(build, part, shape)])
        case Every(parts) | Some(parts):
            op = "and" if isinstance(predicate, Every) else "or"
            result = joined(build, op, [flags_of_positions(build, part, shape) for part in parts])
            assert result is not None
            return result
        case Element():
            raise InternalError("an element is no function of positions")
    op = "ge" if isinstance(predicate, AtLeastZero) else "eq"
    more, less = _sides(predicate.what)  # compared, so that no numbers [S, T] are made
    flags = build.value(op, [_number(build, side, shape) for side in (more, less)])
    if build.graph.type(flags).shape == shape:
        return flags
    return build.value("expand", [flags], {"shape": shape})


def _sides(what: Dim) -> tuple[Dim, Dim]:
    """What is added and what is taken away in `what`."""
    more: Dim = 0
    for monomial, factor in what.terms if isinstance(what, Expr) else ():
        if factor > 0:
            more = more + (Expr({monomial: factor}) if monomial else factor)
    return more, more - what


def _constant(build: Builder, value: Dim) -> str:
    return build.value("constant", [], {"value": value, "dtype": "i64", "shape": ()})


def _number(build: Builder, what: Dim, shape: tuple[Dim, ...]) -> str:
    """The values of a size expression over the positions, [S, T] or what broadcasts to it."""
    if isinstance(what, int) or not symbolic.symbols_of(what) & {"$2", "$3"}:
        return _constant(build, what)
    terms: list[str] = []
    for monomial, factor in what.terms:
        product = [_atom(build, atom, shape) for atom, power in monomial for _ in range(power)]
        if factor != 1 or not product:
            product.append(_constant(build, factor))
        result = joined(build, "mul", product)
        assert result is not None
        terms.append(result)
    total = joined(build, "add", terms)
    assert total is not None
    return total


def _atom(build: Builder, atom: symbolic.Atom, shape: tuple[Dim, ...]) -> str:
    if atom.function is not None:
        ops = {"//": "floordiv", "%": "mod", "min": "minimum", "max": "maximum"}
        operands = [_number(build, argument, shape) for argument in atom.arguments]
        result = joined(build, ops[atom.function], operands)
        assert result is not None
        return result
    if atom.name not in ("$2", "$3"):
        return _constant(build, symbolic.symbol(atom.name))
    size = shape[0] if atom.name == "$2" else shape[1]
    attrs: Attrs = {"size": size, "start": 0, "step": 1, "dtype": "i64"}
    positions = build.value("iota", [], attrs)
    if atom.name == "$3":
        return positions
    return build.value("reshape", [positions], {"shape": (size, 1)})


def joined(build: Builder, op: str, values: list[str]) -> str | None:
    """`values` joined by `op`; `None` for none."""
    result: str | None = None
    for value in values:
        result = value if result is None else build.value(op, [result, value])
    return result


def is_flag(term: Term) -> TypeGuard[Predicate]:
    """Whether `term` is a predicate."""
    return isinstance(term, AtLeastZero | IsZero | Not | Every | Some | Element)


def flags_of_keys(
    build: Builder | None, terms: Coordinates, atom: Predicate, shape: tuple[Dim, ...]
) -> str | None:
    """Flags [B, T] that hold where `atom` does; without `build`, only whether there can be any."""
    match atom:
        case Element(value, at):
            return _plane(build, terms, value, at, shape)
        case Not(IsZero(what)):
            return _compared(build, terms, what, "ne", shape)
        case Not(part):
            inner = flags_of_keys(build, terms, part, shape)
            return inner if inner is None or build is None else build.value("not", [inner])
        case Every(parts) | Some(parts):
            made = [flags_of_keys(build, terms, part, shape) for part in parts]
            known = [value for value in made if value is not None]
            if not known or len(known) < len(parts):
                return None
            op = "and" if isinstance(atom, Every) else "or"
            return known[0] if build is None else joined(build, op, known)
        case IsZero(what):
            return _compared(build, terms, what, "eq", shape)
        case AtLeastZero(what):
            return _compared(build, terms, what, "ge", shape)
    return None


def _compared(
    build: Builder | None, terms: Coordinates, what: Dim, op: str, shape: tuple[Dim, ...]
) -> str | None:
    """`what == 0` or `what >= 0` for a `what` that is an element and a constant apart."""
    if not isinstance(what, Expr):
        return None
    names = [name for name in symbolic.symbols_of(what) if terms.element(name) is not None]
    if len(names) != 1 or (found := terms.element(names[0])) is None:
        return None
    symbol = symbolic.symbol(names[0])
    for sign in (1, -1):
        rest = what - symbol * sign
        if isinstance(rest, int):
            break
    else:
        return None
    plane = _plane(build, terms, found.value, found.at, shape)
    if plane is None or build is None:
        return plane
    dtype = build.graph.type(plane).dtype
    attrs: Attrs = {"value": -rest * sign, "dtype": dtype, "shape": ()}
    bound = build.value("constant", [], attrs)
    return build.value({1: op, -1: {"ge": "le"}.get(op, op)}[sign], [plane, bound])


def _plane(
    build: Builder | None,
    terms: Coordinates,
    value: str,
    at: tuple[Dim, ...],
    shape: tuple[Dim, ...],
) -> str | None:
    """`value`, read at the batch and the key, as [B, T]."""
    kind: TensorType = terms.graph.type(value)
    kept = [place for place, size in zip(at, kind.shape, strict=True) if size != 1]
    wanted = [place for place, size in zip((BATCH, KEY), shape, strict=True) if size != 1]
    if kept != wanted or [size for size in kind.shape if size != 1] != [
        size for size in shape if size != 1
    ]:
        return None
    if build is None or kind.shape == shape:
        return value
    return build.value("reshape", [value], {"shape": shape})
