"""Experts whose weights are in few bits, or are to be: what the passes over them share."""

from __future__ import annotations

from collections.abc import Iterable

from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr
from fusec.passes.quantised_weights import NONE, format_of, formats, roles, weight_facts
from fusec.rewrite import Match, Settings

ROLES = ("gate_up", "down")


def expert_match(graph: Graph, node: Node, settings: Settings) -> Match | None:
    """Experts whose weights are in few bits, or are to be."""
    values = dict(zip(ROLES, node.inputs[3:5], strict=True))
    held = [format_of(graph, value, settings, experts=True) for value in values.values()]
    if set(held) == {NONE}:
        return None
    if "fp8-block" in held and _have_one_block(graph, values.values()):
        held = ["fp8-block"] * len(ROLES)  # a size may be that of a block
    turned = bool_attr(node.attrs, "transposed")
    facts = weight_facts(ROLES, held, turned=turned)
    return Match(graph, node, values=values, inner=(node,), facts=facts)


def _have_one_block(graph: Graph, values: Iterable[str]) -> bool:
    weights = [graph.parameters.get(value) for value in values]
    held = [None if weight is None else weight.quantised for weight in weights]
    return len({None if each is None else each.block for each in held}) == 1


def is_of_mxfp4(match: Match) -> bool:
    """Whether a weight of experts is in 4-bit floats, or is to be."""
    for value, format in zip(roles(match).values(), formats(match), strict=True):
        weight = match.graph.parameters.get(value)
        held = None if weight is None else weight.quantised
        if format == "mxfp4" or (held is not None and held.codes.type.dtype == "f4e2m1x2"):
            return True
    return False


def sizes(match: Match) -> tuple[int, int]:
    """The hidden and the intermediate size of experts."""
    shape = match.graph.parameters[match.values["down"]].shape
    turned = bool_attr(match.facts, "turned")
    return (shape[2], shape[1]) if turned else (shape[1], shape[2])
