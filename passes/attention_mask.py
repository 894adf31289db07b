"""Masks of an attention that are functions of positions.

Fuses, in an `attention` with a mask over (b, h, q, k),

    k <= q                       into   causal
    q - k < w                    into   window = w, with causal
    |q - k| < w                  into   window = w, without causal
    k // c == q // c             into   chunk = c
    k // c >= q // c             into   chunk = c, with causal; also as k >= q - q % c
    m[b, k]                      into   the operand key_padding
    what always holds            into   nothing

and any `and` of these but that of a window and chunks, where q counts from T - S.  The mask is
made of flags, or of numbers that are 0 where a key is kept and below -1e4 where not; numbers may be
a sum, and then each addend is looked at.  What cannot be told stays a mask, and is recorded as a
refusal of `attention_mask`; one of positions alone is made anew, [S, T].

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
from typing import ClassVar

from fusec import symbolic
from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr
from fusec.passes.attention_operands import MASKED, AttentionOperands
from fusec.passes.attention_walk import FILLED
from fusec.passes.mask_values import (
    flags_of_keys,
    flags_of_positions,
    is_flag,
    joined,
    of_positions,
    or_mean,
)
from fusec.rewrite import Decision, DecisionLog, Pass
from fusec.rewrite.coordinates import (
    FALSE,
    TRUE,
    AtLeastZero,
    Choice,
    Coordinates,
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

QUERY, KEY = coordinate(2), coordinate(3)


@dataclass(slots=True)
class _Found:
    """What the masks of one attention come to.

    Attributes:
        causal: whether keys after the query are hidden.
        before: how far back a key may be, exclusive; `None` for any.
        after: how far ahead a key may be, exclusive; `None` for any.
        chunks: sizes of chunks; a key and its query are in one chunk of each size.
        limited: masks that say how far back, or how far ahead, a key may be.
        chunked: masks that say in which chunk a key may be.
        begun: those of them that say where it begins, not where it ends.
        padding: what must hold for a key, by batch and key alone.
        finite: masks that add one finite number, and whether that swallows any score.
        stay: masks that stay, with the code and the reason.
    """

    causal: bool = False
    before: int | None = None
    after: int | None = None
    chunks: set[int] = field(default_factory=set)
    limited: list[str] = field(default_factory=list)
    chunked: list[str] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)
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
        mask = joined(build, "and" if flags else "add", kept)
    else:
        mask = _narrow(graph, operands.mask)
    padding = operands.key_padding
    for predicate in found.padding:
        flag = made.get(predicate) or flags_of_keys(build, terms, predicate, (q[0], k[2]))
        assert flag is not None
        made[predicate] = flag
        padding = flag if padding in (None, flag) else build.value("and", [padding, flag])
    folded = replace(operands, mask=mask, key_padding=padding).changed(
        causal=found.causal, window=found.before
    )
    for size in found.chunks:
        folded = folded.changed(chunk=size)
    for piece, (code, reason) in found.stay.items():
        site = node.origin.path or node.name
        log.add(Decision("attention_mask", site, "refused", code, reason, node=piece))
    if folded.inputs == node.inputs and folded.attrs == AttentionOperands.of(node).attrs:
        return False
    result = build.value("attention", folded.inputs, folded.attrs)
    final = result
    if found.padding and found.finite:
        assert padding is not None
        final = or_mean(graph, node, folded, result, padding)
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
            found.causal = found.causal or found.before is not None or bool(found.chunks)
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
    if len(found.chunks) > 1 or (found.chunks and {found.before, found.after} != {None}):
        for piece in found.chunked:
            reason = f"`%{piece}` puts keys into chunks, beside a window or chunks of another size"
            unfit[piece] = ("mask-not-analysed", reason)
    elif not found.causal:
        for piece in found.begun:
            reason = f"`%{piece}` says where a chunk of keys begins and not where it ends"
            unfit[piece] = ("mask-not-analysed", reason)
    ahead = symbolic.bounds(shape[3] - shape[2], graph.symbols)[0] >= 0
    limited = found.causal or found.before is not None or bool(found.chunks)
    if unfit or not found.finite or not (found.padding or (limited and not ahead)):
        return unfit
    given = _given(node)
    padding = AttentionOperands.of(node).key_padding
    alone = not (given.causal or given.before is not None or given.chunks or padding)
    if ahead and alone and list(found.finite.values()) == [True]:
        return unfit
    for piece in found.finite:
        reason = f"`%{piece}` adds finite numbers and may hide every key of a query"
        unfit[piece] = ("empty-rows", reason)
    return unfit


def _given(node: Node) -> _Found:
    """The limits that `node` has already."""
    causal, window = bool_attr(node.attrs, "causal"), node.attrs.get("window")
    reach = window if isinstance(window, int) else None
    chunk = node.attrs.get("chunk")
    chunks = {chunk} if isinstance(chunk, int) else set[int]()
    return _Found(causal, reach, None if causal else reach, chunks)


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
    if not is_flag(term) or not of_positions(term):
        return narrow
    if term not in made:
        made[term] = flags_of_positions(build, term, shape[2:])
    return made[term]


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
    allowed = term if flags and is_flag(term) else _allowed(term)
    if allowed is None:
        reason = f"`%{piece}` is not known as a function of positions"
        found.stay[piece] = ("mask-not-analysed", reason)
        return
    offset = shape[3] - shape[2]
    query = offset if shape[2] == 1 else QUERY + offset
    key = 0 if shape[3] == 1 else KEY
    atoms = [(atom, _placed(atom, query, key)) for atom in conjuncts(allowed)]
    padding = [atom for atom, what in atoms if what is None and _of_keys(terms, atom, shape)]
    others = [atom for atom, what in atoms if what is None and atom not in padding]
    if others:
        reason = (
            f"`%{piece}` depends on positions in another way than causal, window, chunks or padding"
        )
        found.stay[piece] = ("mask-not-analysed", reason)
        return
    if not flags and operands.sinks is None and (fills := _finite(term)):
        least = FILLED.get(terms.graph.type(piece).dtype, -math.inf)
        found.finite[piece] = len(fills) == 1 and max(fills) <= least
    limits = [what for _, what in atoms if what is not None]
    if any(side in ("before", "after") for side, reach in limits if (side, reach) != ("after", 1)):
        found.limited.append(piece)
    if any(side in ("chunk", "begin") for side, _ in limits):
        found.chunked.append(piece)
    if any(side == "begin" for side, _ in limits):
        found.begun.append(piece)
    for what in limits:
        _enter(found, what)
    found.padding += [atom for atom in padding if atom not in found.padding]


def _enter(found: _Found, what: tuple[str, int]) -> None:
    side, reach = what
    if side == "before":
        found.before = reach if found.before is None else min(found.before, reach)
    elif side in ("chunk", "begin"):
        found.chunks.add(reach)
    elif reach == 1:
        found.causal = True
    else:
        found.after = reach if found.after is None else min(found.after, reach)


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


def _placed(atom: Predicate, query: Dim, key: Dim) -> tuple[str, int] | None:
    """`atom` as a limit to keys.

    How far `before` or `after` the query they may be, exclusive; or the size of the `chunk` that
    has both, or that `begin`s no later than the key.
    """
    if not isinstance(atom, AtLeastZero | IsZero):
        return None
    for size in _divisors(atom.what):
        first = symbolic.floor_divide(query, size)
        ahead = symbolic.floor_divide(key, size) - first
        if isinstance(atom, IsZero) and atom.what in (ahead, 0 - ahead):
            return "chunk", size
        if isinstance(atom, AtLeastZero) and atom.what in (ahead, key - size * first):
            return "begin", size
    if isinstance(atom, IsZero):
        return None
    distance = query - key
    if isinstance(reach := atom.what + distance, int):  # distance < reach + 1
        return ("before", reach + 1) if reach >= 0 else None
    if isinstance(reach := atom.what - distance, int):  # -distance < reach + 1
        return ("after", reach + 1) if reach >= 0 else None
    return None


def _divisors(dim: Dim) -> set[int]:
    """The integers by which something is divided in `dim`."""
    terms = dim.terms if isinstance(dim, Expr) else ()
    atoms = [atom for monomial, _ in terms for atom, _ in monomial if atom.function == "//"]
    return {size for atom in atoms if isinstance(size := atom.arguments[1], int)}


def _of_keys(terms: Coordinates, atom: Predicate, shape: tuple[Dim, ...]) -> bool:
    """Whether `atom` can be made again as flags [B, T]."""
    return flags_of_keys(None, terms, atom, (shape[0], shape[3])) is not None
