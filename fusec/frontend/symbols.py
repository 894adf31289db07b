"""Symbols of an exported program: replaced by others or by numbers, named for people, limited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fusec import symbolic
from fusec.diagnostics import InputError
from fusec.frontend.aten import (
    Argument,
    AtenGraph,
    AtenNode,
    AtenProgram,
    AtenSymbol,
    AtenTensor,
    AtenValue,
)
from fusec.frontend.dims import DimSpec, narrowed, range_text
from fusec.frontend.guards import Shapes, asserted, read_guards
from fusec.symbolic import Dim, Expr, Range

TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "labels")
SHOWN = 160


@dataclass(frozen=True, slots=True)
class Promise:
    """A program whose symbols have the names and ranges that it was shown to hold for.

    Attributes:
        program: with symbols replaced that have to be equal to another one or have one value.
        names: for each symbol of the program that has another name outside.
        ranges: by the names outside.
        notes: what was promised otherwise than claimed.
    """

    program: AtenProgram
    names: Mapping[str, str]
    ranges: Mapping[str, Range]
    notes: tuple[str, ...]


def promise(
    program: AtenProgram,
    guards: Sequence[str],
    shapes: Shapes,
    hints: Mapping[str, int],
    names: Mapping[str, str] | None = None,
    specs: Mapping[str, DimSpec] | None = None,
) -> Promise:
    """Decide what may be promised of each symbol.

    Args:
        program: as exported.
        guards: of the export.
        shapes: what the guards' names for inputs mean.
        hints: the size that each symbol had at export.
        names: names for symbols, where known; others are named by the input that they size.
        specs: what is asked for, by name.

    Raises:
        InputError: a range is asked for that the program does not hold for.
    """
    guards = [*guards, *asserted(program.graph)]
    reading = read_guards(guards, shapes, program.symbols, hints)
    notes: list[str] = []
    named = dict(names or {})
    if names is None:
        named = name_symbols(program)
    values: dict[str, Dim] = {}
    ranges = {symbol: reading.ranges.get(symbol, span) for symbol, span in program.symbols.items()}
    ranges |= {symbol: span for symbol, span in reading.ranges.items() if symbol not in ranges}
    for symbol, kept in _by_name(named).items():
        values[symbol] = symbolic.symbol(kept)
        ranges[kept] = _meet(ranges.get(kept, (1, None)), ranges.pop(symbol, (1, None)))
    for symbol, other in reading.equal.items():
        symbol, other = _root(symbol, values), _root(other, values)
        if symbol != other:
            values[symbol] = symbolic.symbol(other)
            ranges[other] = _meet(ranges.get(other, (1, None)), ranges.pop(symbol, (1, None)))
    ranges = {symbol: (max(span[0], 1), span[1]) for symbol, span in ranges.items()}
    for symbol, span in list(ranges.items()):
        name = named.get(symbol, symbol)
        claimed = _meet(program.symbols.get(symbol, (1, None)), (1, None))
        asked = (specs or {}).get(name)
        why = reading.reasons.get(symbol)
        if why is not None and span != claimed:
            said = f"the export claims {range_text(claimed)} for `{name}`, but holds for "
            notes.append(f"{said}{range_text(span)}: {_short(why)}")
        if asked is not None:
            ranges[symbol] = span = _asked(name, asked, span, why)
        if span[0] == span[1]:
            values[symbol] = span[0]
            del ranges[symbol]
    notes += [f"a guard could not be read: {_short(text)}" for text in reading.unread[:4]]
    if values:
        flat = {symbol: _flat(dim, values) for symbol, dim in values.items()}
        program = substituted(program, flat)
    bounds = {named.get(symbol, symbol): span for symbol, span in ranges.items()}
    program = replace(program, symbols=ranges)
    return Promise(program, named, bounds, tuple(notes))


def _asked(name: str, spec: DimSpec, held: Range, why: str | None) -> Range:
    """The range to promise when `spec` is asked for and `held` is what the program holds for."""
    cut = narrowed(spec, held)
    if cut is not None and (cut.range == spec.range or not spec.asked):
        return cut.range
    if not spec.asked:
        return held
    most = spec.maximum is None and cut is not None and cut.minimum == spec.minimum
    if most and cut is not None:
        return cut.range
    detail = (f"the guard is {_short(why)}",) if why else ()
    hint = f"ask for a part of it, `{name}={_colons(held)}`, or export the model for that range"
    message = f"`{name}` is asked for in {spec}, but the program holds for {range_text(held)}"
    raise InputError(message, detail=detail, hint=hint)


def _colons(span: Range) -> str:
    return f"{span[0]}:{'' if span[1] is None else span[1]}"


def _by_name(names: Mapping[str, str]) -> dict[str, str]:
    """Symbols that have the name of an earlier one, and that one."""
    first: dict[str, str] = {}
    same: dict[str, str] = {}
    for symbol, name in names.items():
        if name in first:
            same[symbol] = first[name]
        else:
            first[name] = symbol
    return same


def _root(symbol: str, values: Mapping[str, Dim]) -> str:
    while symbol in values and isinstance(values[symbol], Expr):
        symbol = str(values[symbol])
    return symbol


def _flat(dim: Dim, values: Mapping[str, Dim]) -> Dim:
    while isinstance(dim, Expr) and str(dim) in values:
        dim = values[str(dim)]
    return dim


def _meet(left: Range, right: Range) -> Range:
    bounds = [bound for bound in (left[1], right[1]) if bound is not None]
    return max(left[0], right[0]), min(bounds) if bounds else None


def _short(text: str) -> str:
    return f"`{text if len(text) <= SHOWN else text[:SHOWN] + '...'}`"


def name_symbols(program: AtenProgram) -> dict[str, str]:
    """Names for the symbols of the inputs: `batch`, `seq`, else the input and the axis.

    An archive does not keep the names that its author gave.  The first axis of the first input is
    `batch`; the second axis of token ids is `seq`.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for given, value in zip(program.inputs, program.graph.inputs, strict=True):
        if given.kind != "user" or not isinstance(value, AtenTensor):
            continue
        for axis, dim in enumerate(value.shape):
            symbol = str(dim)
            if not isinstance(dim, Expr) or symbol not in program.symbols or symbol in names:
                continue
            wanted = f"{given.name}_{axis}"
            if axis == 0 and "batch" not in taken:
                wanted = "batch"
            elif axis == 1 and given.name in TOKEN_INPUTS and "seq" not in taken:
                wanted = "seq"
            names[symbol] = wanted
            taken.add(wanted)
    return names


# --- substitution ---------------------------------------------------------------------------


def substituted(program: AtenProgram, values: Mapping[str, Dim]) -> AtenProgram:
    """`program` with symbols replaced by other symbols or by numbers."""
    inputs = tuple(replace(held, value=_argument(held.value, values)) for held in program.inputs)
    symbols = {name: span for name, span in program.symbols.items() if name not in values}
    return AtenProgram(_graph(program.graph, values), inputs, program.outputs, symbols)


def _graph(graph: AtenGraph, values: Mapping[str, Dim]) -> AtenGraph:
    return AtenGraph(
        tuple(_node(node, values) for node in graph.nodes),
        tuple(_value(value, values) for value in graph.inputs),
        tuple(_argument(argument, values) for argument in graph.outputs),
    )


def _node(node: AtenNode, values: Mapping[str, Dim]) -> AtenNode:
    return AtenNode(
        node.target,
        tuple(_argument(argument, values) for argument in node.args),
        {name: _argument(argument, values) for name, argument in node.kwargs.items()},
        tuple(_value(value, values) for value in node.outputs),
        node.path,
        node.source,
    )


def _value(value: AtenValue, values: Mapping[str, Dim]) -> AtenValue:
    if isinstance(value, AtenTensor):
        strides = value.strides
        return AtenTensor(
            value.name,
            value.dtype,
            tuple(symbolic.substitute(dim, values) for dim in value.shape),
            None if strides is None else tuple(symbolic.substitute(s, values) for s in strides),
        )
    if isinstance(value, AtenSymbol) and value.dim is not None:
        return AtenSymbol(value.name, symbolic.substitute(value.dim, values), value.text)
    return value


def _argument(argument: Argument, values: Mapping[str, Dim]) -> Argument:
    if isinstance(argument, Expr):
        return symbolic.substitute(argument, values)
    if isinstance(argument, tuple):
        return tuple(_argument(part, values) for part in argument)
    if isinstance(argument, AtenGraph):
        return _graph(argument, values)
    return argument
