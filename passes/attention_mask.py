"""Masks of an attention that are functions of positions.

Fuses, in an `attention` with a mask over (b, h, q, k),

    k <= q                       into   causal
    q - k < w                    into   window = w, with causal
    |q - k| < w                  into   window = w, without causal
    m[b, k]                      into   the operand key_padding
    what always holds            into   nothing

and any `and` of these, where q counts from T - S.  The mask is made of flags, or of numbers that
are 0 where a key is kept and below -1e4 where not; numbers may be a sum, and then each addend is
looked at.  What cannot be told stays a mask; one of positions alone is made anew, [S, T].

A query whose keys are all hidden by a finite number attends to all keys alike; where a mask may do
that, the result is chosen between the attention and the mean of v.  The numbers of a mask that
stays are taken not to hide keys.

Leaves it alone when
  mask-not-analysed  a mask is not known as a function of positions, or is another one
  empty-rows         more than one mask adds finite numbers, or different ones, or such as do not
                     swallow a score, and together they may hide every key of a query
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeGuard

from fusec import symbolic
from fusec.diagnostics import InternalError
from fusec.ir import Graph, Node
from fusec.ir.types import Attrs, TensorType, bool_attr
from fusec.passes.attention_operands import MASKED, AttentionOperands
from fusec.passes.attention_walk import FILLED
from fusec.rewrite import Decision, DecisionLog, Pass
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
    Number,
    Predicate,
    Some,
    Term,
    conjuncts,
    coordinate,
    every,
    negate,
    some,
)
from fusec.rewrite.driver import Builder
from fusec.symbolic import Dim, Expr
from fusec.target import Target

MOST_PIECES = 16
"""Masks that are looked at one by one."""

BATCH, QUERY, KEY = coordinate(0), coordinate(2), coordinate(3)


@dataclass(slots=True)
class _Found:
    """What the masks of one attention come to.

    Attributes:
        causal: whether keys after the query are hidden.
        before: how far back a key may be, exclusive; `None` for any.
        after: how far ahead a key may be, exclusive; `None` for any.
        limited: masks that say how far back, or how far ahead, a key may be.
        padding: what must hold for a key, by batch and key alone.
        finite: masks that add one finite number, and whether that swallows any score.
        stay: masks that stay, with the code and the reason.
    """

    causal: bool = False
    before: int | None = None
    after: int | None = None
    limited: list[str] = field(default_factory=list)
    padding: list[Predicate] = field(default_factory=list)
    finite: dict[str, bool] = field(default_factory=dict)
    stay: dict[str, tuple[str, str]] = field(default_factory=dict)


class AttentionMask(Pass):
    """Turns masks into attributes, and records those that stay."""

    name: ClassVar[str] = "attention_mask"
    after: ClassVar[tuple[str, ...]] = ("canonicalise", "attention", "attention_heads")

    def run(self, graph: Graph, target: Target, log: DecisionLog) -> int:
        """Look at every `attention` that has a mask; the analysis is made once."""
        nodes = [
            node
            for node in graph.nodes()
            if node.op == "attention" and bool_attr(node.attrs, "has_mask")
        ]
        if not nodes:
            return 0
        terms = Coordinates(graph)
        made: dict[Predicate, str] = {}
        return sum(_fold(graph, node, terms, made, log) for node in nodes)


def _fold(
    graph: Graph, node: Node, terms: Coordinates, made: dict[Predicate, str], log: DecisionLog
) -> bool:
    operands = AttentionOperands.of(node)
    assert operands.mask is not None
    q, k = graph.type(operands.q).shape, graph.type(operands.k).shape
    shape = (*q[:3], k[2])
    pieces = _pieces(graph, operands.mask)
    found = _understood(terms, node, pieces, shape)
    build = Builder(graph, node)
    kept = [_remade(build, terms, piece, shape, made) for piece in pieces if piece in found.stay]
    flags = graph.type(operands.mask).dtype == "bool"
    if len(kept) < len(pieces) or kept != pieces:
        mask = _joined(build, "and" if flags else "add", kept)
    else:
        mask = _narrow(graph, operands.mask)
    padding = operands.key_padding
    for predicate in found.padding:
        flag = made.get(predicate) or _emitted(build, terms, predicate, (q[0], k[2]))
        assert flag is not None
        made[predicate] = flag
        padding = flag if padding in (None, flag) else build.value("and", [padding, flag])
    folded = replace(operands, mask=mask, key_padding=padding).changed(
        causal=found.causal, window=found.before
    )
    for piece, (code, reason) in found.stay.items():
        site = node.origin.path or node.name
        log.add(Decision("attention", site, "refused", code, reason, node=piece))
    if folded.inputs == node.inputs and folded.attrs == AttentionOperands.of(node).attrs:
        return False
    result = build.value("attention", folded.inputs, folded.attrs)
    final = result
    if found.padding and found.finite:
        assert padding is not None
        final = _or_mean(graph, node, folded, result, padding)
    graph.replace_uses(node.output, final)
    graph.prune([node.name])
    log.absorb([node.name])
    log.add(Decision("attention", node.origin.path or node.name, "fired", node=result))
    return True


def _understood(
    terms: Coordinates, node: Node, pieces: list[str], shape: tuple[Dim, ...]
) -> _Found:
    """What `pieces` come to, without those that an attention cannot have together."""
    stay: dict[str, tuple[str, str]] = {}
    while True:
        found = _given(node)
        found.stay = dict(stay)
        for piece in pieces:
            if piece not in stay:
                _sort(terms, piece, shape, AttentionOperands.of(node), found)
        if shape[2] == 1:  # no key comes after the last query
            found.causal = found.causal or found.before is not None
        unfit = _unfit(terms.graph, node, found, shape)
        if not unfit:
            return found
        stay = {**found.stay, **unfit}


def _unfit(
    graph: Graph, node: Node, found: _Found, shape: tuple[Dim, ...]
) -> dict[str, tuple[str, str]]:
    """Masks that have to stay after all, with the code and the reason."""
    unfit: dict[str, tuple[str, str]] = {}
    if not found.causal and found.before != found.after:
        for piece in found.limited:
            reason = f"`%{piece}` limits how far ahead a key is and how far back in different ways"
            unfit[piece] = ("mask-not-analysed", reason)
    ahead = symbolic.bounds(shape[3] - shape[2], graph.symbols)[0] >= 0
    limited = found.causal or found.before is not None
    if unfit or not found.finite or not (found.padding or (limited and not ahead)):
        return unfit
    given = _given(node)
    alone = (given.causal, given.before, AttentionOperands.of(node).key_padding)
    if ahead and alone == (False, None, None) and list(found.finite.values()) == [True]:
        return unfit
    for piece in found.finite:
        reason = f"`%{piece}` adds finite numbers and may hide every key of a query"
        unfit[piece] = ("empty-rows", reason)
    return unfit


def _or_mean(
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
    counts = make("cast", [padding], {"dtype": "i64"})
    totals = make("cumsum", [counts], {"axis": 1})
    before = make("pad", [totals], {"low": (0, 1), "high": (0, 0), "value": 0})
    end = number(keys)
    if operands.flags.get("causal"):
        end = positions(offset + 1)
    elif isinstance(reach, int):
        end = make("minimum", [positions(offset + reach), end], {})
    seen = make("take", [before, end], {"axis": 1})
    if isinstance(reach, int):
        begin = make("maximum", [positions(offset + 1 - reach), number(0)], {})
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


def _given(node: Node) -> _Found:
    """The limits that `node` has already."""
    causal, window = bool_attr(node.attrs, "causal"), node.attrs.get("window")
    reach = window if isinstance(window, int) else None
    return _Found(causal, reach, None if causal else reach)


def replaced(build: Builder, node: Node, operands: AttentionOperands, log: DecisionLog) -> str:
    """Put an `attention` of `operands` in place of `node`."""
    graph = build.graph
    result = build.value("attention", operands.inputs, operands.attrs)
    graph.replace_uses(node.output, result)
    graph.prune([node.name])
    log.absorb([node.name])
    log.add(Decision("attention", node.origin.path or node.name, "fired", node=result))
    return result


def _pieces(graph: Graph, mask: str) -> list[str]:
    """The masks that `mask` joins; itself where they are too many."""
    op = "and" if graph.type(mask).dtype == "bool" else "add"
    pieces: list[str] = []
    waiting = [mask]
    while waiting:
        value = waiting.pop()
        node = graph.producer(value)
        if node is not None and node.op in ("expand", op):
            waiting += reversed(node.inputs)
        elif value not in pieces or op == "add":
            pieces.append(value)
        if len(pieces) + len(waiting) > MOST_PIECES:
            return [mask]
    return pieces


def _narrow(graph: Graph, value: str) -> str:
    """`value` before it was expanded."""
    node = graph.producer(value)
    while node is not None and node.op == "expand":
        value = node.inputs[0]
        node = graph.producer(value)
    return value


def _remade(
    build: Builder,
    terms: Coordinates,
    piece: str,
    shape: tuple[Dim, ...],
    made: dict[Predicate, str],
) -> str:
    """`piece` before it was expanded, or flags [S, T] if it holds them for each batch or head."""
    graph = build.graph
    narrow = _narrow(graph, piece)
    kind = graph.type(narrow)
    if kind.dtype != "bool" or all(size == 1 for size in kind.shape[:-2]):
        return narrow
    term = terms.broadcast(piece, shape)
    if not _is_flag(term) or not _of_positions(term):
        return narrow
    if term not in made:
        made[term] = _flags(build, term, shape[2:])
    return made[term]


def _of_positions(predicate: Predicate) -> bool:
    """Whether `predicate` depends on nothing but the positions of query and key, and on sizes."""
    match predicate:
        case Element():
            return False
        case Not(part):
            return _of_positions(part)
        case Every(parts) | Some(parts):
            return all(map(_of_positions, parts))
    names = symbolic.symbols_of(predicate.what)
    return not any(name.startswith(("%", "$")) and name not in ("$2", "$3") for name in names)


def _flags(build: Builder, predicate: Predicate, shape: tuple[Dim, ...]) -> str:
    """Flags [S, T] that hold where `predicate`, of positions alone, does."""
    match predicate:
        case Not(part):
            return build.value("not", [_flags(build, part, shape)])
        case Every(parts) | Some(parts):
            op = "and" if isinstance(predicate, Every) else "or"
            joined = _joined(build, op, [_flags(build, part, shape) for part in parts])
            assert joined is not None
            return joined
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
        joined = _joined(build, "mul", product)
        assert joined is not None
        terms.append(joined)
    total = _joined(build, "add", terms)
    assert total is not None
    return total


def _atom(build: Builder, atom: symbolic.Atom, shape: tuple[Dim, ...]) -> str:
    if atom.function is not None:
        ops = {"//": "floordiv", "%": "mod", "min": "minimum", "max": "maximum"}
        operands = [_number(build, argument, shape) for argument in atom.arguments]
        joined = _joined(build, ops[atom.function], operands)
        assert joined is not None
        return joined
    if atom.name not in ("$2", "$3"):
        return _constant(build, symbolic.symbol(atom.name))
    size = shape[0] if atom.name == "$2" else shape[1]
    attrs: Attrs = {"size": size, "start": 0, "step": 1, "dtype": "i64"}
    positions = build.value("iota", [], attrs)
    if atom.name == "$3":
        return positions
    return build.value("reshape", [positions], {"shape": (size, 1)})


def _joined(build: Builder, op: str, values: list[str]) -> str | None:
    result: str | None = None
    for value in values:
        result = value if result is None else build.value(op, [result, value])
    return result


def _sort(
    terms: Coordinates,
    piece: str,
    shape: tuple[Dim, ...],
    operands: AttentionOperands,
    found: _Found,
) -> None:
    """Enter what `piece` hides in `found`."""
    term = terms.broadcast(piece, shape)
    flags = terms.graph.type(piece).dtype == "bool"
    allowed = term if flags and _is_flag(term) else _allowed(term)
    if allowed is None:
        reason = f"`%{piece}` is not known as a function of positions"
        found.stay[piece] = ("mask-not-analysed", reason)
        return
    offset = shape[3] - shape[2]
    query = offset if shape[2] == 1 else QUERY + offset
    distance = query - (0 if shape[3] == 1 else KEY)
    atoms = [(atom, _placed(atom, distance)) for atom in conjuncts(allowed)]
    padding = [atom for atom, what in atoms if what is None and _of_keys(terms, atom, shape)]
    others = [atom for atom, what in atoms if what is None and atom not in padding]
    if others:
        reason = f"`%{piece}` depends on positions in another way than causal, window or padding"
        found.stay[piece] = ("mask-not-analysed", reason)
        return
    if not flags and operands.sinks is None and (fills := _finite(term)):
        least = FILLED.get(terms.graph.type(piece).dtype, -math.inf)
        found.finite[piece] = len(fills) == 1 and max(fills) <= least
    if any(what is not None and what != ("after", 1) for _, what in atoms):
        found.limited.append(piece)
    for _, what in atoms:
        if what is not None:
            _enter(found, what)
    found.padding += [atom for atom in padding if atom not in found.padding]


def _enter(found: _Found, what: tuple[str, int]) -> None:
    side, reach = what
    if side == "before":
        found.before = reach if found.before is None else min(found.before, reach)
    elif reach == 1:
        found.causal = True
    else:
        found.after = reach if found.after is None else min(found.after, reach)


def _is_flag(term: Term) -> TypeGuard[Predicate]:
    return isinstance(term, AtLeastZero | IsZero | Not | Every | Some | Element)


def _allowed(term: Term) -> Predicate | None:
    """Where numbers are 0, if they are below `MASKED` everywhere else."""
    if isinstance(term, Choice):
        then, other = _allowed(term.then), _allowed(term.other)
        if then is None or other is None:
            return None
        if (then, other) == (TRUE, FALSE):
            return term.condition
        if (then, other) == (FALSE, TRUE):
            return negate(term.condition)
        return some(every(term.condition, then), every(negate(term.condition), other))
    if isinstance(term, int | float):
        return TRUE if term == 0 else FALSE if term <= MASKED else None
    return term if isinstance(term, Every | Some | AtLeastZero | IsZero | Not) else None


def _finite(term: Term | Number) -> set[float]:
    """The numbers in `term` that hide a key, if one of them is not minus infinity."""
    if isinstance(term, Choice):
        found = _hidden(term)
        return found if found != {-math.inf} else set()
    return set()


def _hidden(term: Number) -> set[float]:
    if isinstance(term, Choice):
        return _hidden(term.then) | _hidden(term.other)
    return {float(term)} if isinstance(term, int | float) and term <= MASKED else set()


def _placed(atom: Predicate, distance: Dim) -> tuple[str, int] | None:
    """`atom` as a limit on how far `before` or `after` the query a key may be, exclusive."""
    if not isinstance(atom, AtLeastZero):
        return None
    if isinstance(reach := atom.what + distance, int):  # distance < reach + 1
        return ("before", reach + 1) if reach >= 0 else None
    if isinstance(reach := atom.what - distance, int):  # -distance < reach + 1
        return ("after", reach + 1) if reach >= 0 else None
    return None


def _of_keys(terms: Coordinates, atom: Predicate, shape: tuple[Dim, ...]) -> bool:
    """Whether `atom` can be made again as flags [B, T]."""
    return _emitted(None, terms, atom, (shape[0], shape[3])) is not None


def _emitted(
    build: Builder | None, terms: Coordinates, atom: Predicate, shape: tuple[Dim, ...]
) -> str | None:
    """Flags [B, T] that hold where `atom` does; without `build`, only whether there can be any."""
    match atom:
        case Element(value, at):
            return _plane(build, terms, value, at, shape)
        case Not(IsZero(what)):
            return _compared(build, terms, what, "ne", shape)
        case Not(part):
            inner = _emitted(build, terms, part, shape)
            return inner if inner is None or build is None else build.value("not", [inner])
        case Every(parts) | Some(parts):
            made = [_emitted(build, terms, part, shape) for part in parts]
            known = [value for value in made if value is not None]
            if not known or len(known) < len(parts):
                return None
            op = "and" if isinstance(atom, Every) else "or"
            return known[0] if build is None else _joined(build, op, known)
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
