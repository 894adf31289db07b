"""The heads of a gated norm, as the sizes around it tell.

The last size of what is normed is that of a head.  How many heads there are stands in the shapes
that the result is given on its way to the next operation (heads side by side in one row), and in
those that the operands had before.  Names of modules, classes and their attributes play no part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fusec.ir import Attr, Graph
from fusec.ir.types import TensorType
from fusec.passes.quantised_result import readings
from fusec.rewrite import Match, Rejection, Settings
from fusec.symbolic import Dim
from fusec.target import Target

_VIEWS = ("reshape", "cast")


def head_facts(
    graph: Graph, operands: tuple[str, ...], result: str, settings: Settings
) -> dict[str, Attr]:
    """What guards and decisions ask of a gated norm.

    Args:
        graph: where it is.
        operands: what is normed, then the gate; both are rows of one head each.
        result: of the norm.
        settings: of the compilation.

    Returns:
        `head_dim`; `heads` of a token, or `None` if no shape tells; `ranks` they are divided among.
    """
    size = graph.type(operands[0]).shape[-1]
    views, _ = readings(graph, result)
    below = [graph.type(view.output) for view in views]
    kinds = (*below, *(kind for value in operands for kind in _above(graph, value)))
    heads = next((found for kind in kinds if (found := _heads_in(kind, size))), None)
    return {"head_dim": size, "heads": heads, "ranks": settings.tensor_parallel}


def heads_divide(match: Match, target: Target) -> Rejection | None:
    """Guard: each rank gets as many whole heads as the others."""
    heads, ranks = match.facts["heads"], match.facts["ranks"]
    if ranks == 1:
        return None
    if not isinstance(heads, int) or not isinstance(ranks, int):
        reason = f"no shape around `%{match.root.name}` tells how many heads {ranks} ranks divide"
        return Rejection("gdn.shape", reason, match.root.name)
    if heads % ranks == 0:
        return None
    reason = f"{heads} heads do not divide among {ranks} ranks"
    return Rejection("gdn.heads-tp", reason, match.root.name)


def head_details(facts: Mapping[str, Attr]) -> dict[str, str | int | float]:
    """The heads for decisions, as far as they are known."""
    heads, ranks, size = (facts[name] for name in ("heads", "ranks", "head_dim"))
    found: dict[str, str | int | float] = {}
    if isinstance(heads, int) and isinstance(ranks, int):
        found |= {"heads": heads, "heads_per_rank": heads // ranks}
    if isinstance(size, int):
        found["head_dim"] = size
    return found


def _above(graph: Graph, value: str) -> Iterator[TensorType]:
    """The type of `value`, and of what it is a view of."""
    yield graph.type(value)
    node = graph.producer(value)
    if node is not None and node.op in _VIEWS:
        yield from _above(graph, node.inputs[0])


def _heads_in(kind: TensorType, size: Dim) -> int | None:
    """Heads of `size` elements in a row of `kind`, or in [batch, positions, heads, size]."""
    last = kind.shape[-1]
    if isinstance(last, int) and isinstance(size, int) and last > size and last % size == 0:
        return last // size
    heads = kind.shape[-2] if kind.rank >= 4 and last == size else None
    return heads if isinstance(heads, int) else None
