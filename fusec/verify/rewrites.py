"""Which pass changes what a model means: the graph after each pass, interpreted in float64."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusec.dtypes import DTYPES
from fusec.ir import Graph, Node
from fusec.ir.interpret import bind_symbols, computed, interpret, meanings, parameter_value
from fusec.rewrite import Decision
from fusec.verify.compilation import Stage
from fusec.verify.measures import Measures, measured
from fusec.verify.tolerances import ROUNDING, float_dtypes, narrowest

EXACT = ROUNDING["f64"]


@dataclass(frozen=True, slots=True)
class WrongRewrite:
    """A pass after which a graph means something else.

    Attributes:
        pass_name: of the pass.
        value: an output of the model, where it shows most; of a pass that rounds the value itself.
        error: of that value, `rms` relative to what the graph before the pass gives.
        allowed: what that may be.
        node: that the pass made, and from which on values differ.
        decision: of the pass about that node, if there is one.
        path: of the module that the node comes from.
    """

    pass_name: str
    value: str
    error: float
    allowed: float
    node: str
    decision: Decision | None
    path: str


def fired(stage: Stage) -> dict[str, Decision]:
    """The last decision that made each node, by its name."""
    return {row.node: row for row in stage.decisions if row.status == "fired"}


def wrong_rewrite(stages: Sequence[Stage], inputs: Mapping[str, Any]) -> WrongRewrite | None:
    """The first pass that is found to change the meaning, `None` if none does.

    Between two passes that may round, only the last graph is interpreted, and the passes between
    are searched by halves if it means something else than the first.  A pass that may round is
    looked at value by value, each made of what the graph before the pass gives for its operands:
    what rounding does to later values, such as another choice of a router, is not its fault.

    Args:
        stages: the graph as it was read, and after each pass that changed it.
        inputs: of one run.
    """
    bounds = [0, *(i for i, each in enumerate(stages) if each.rounds), len(stages)]
    known: dict[int, dict[str, Any]] = {}

    def outputs(index: int) -> dict[str, Any]:
        if index not in known:
            known[index] = interpret(stages[index].graph, inputs)
        return known[index]

    for begin, end in itertools.pairwise(bounds):
        if stages[begin].rounds:
            found = _wrong_rounding(stages[begin - 1], stages[begin], inputs)
            if found is not None:
                return found
        right, last = begin, end - 1
        if _worst(outputs(last), outputs(begin))[1] <= EXACT:
            continue
        while last - right > 1:
            middle = (right + last) // 2
            if _worst(outputs(middle), outputs(begin))[1] <= EXACT:
                right = middle
            else:
                last = middle
        name, error = _worst(outputs(last), outputs(begin))
        return _located(stages[right], stages[last], inputs, name, error, EXACT)
    return None


def _may_round(before: Graph, after: Graph) -> float:
    """What the narrowest dtype that a pass brings in explains."""
    old = {*before.parameters, *(value for node in before.nodes() for value in node.outputs)}
    new = [*after.parameters, *(value for node in after.nodes() for value in node.outputs)]
    brought = [after.type(value).dtype for value in new if value not in old]
    return max(
        ROUNDING[narrowest(brought)], ROUNDING[narrowest(float_dtypes(after) & set(brought))]
    )


def _worst(got: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, float]:
    """The output that is off most, and by how much."""
    errors = {name: _rms(measured(got[name], wanted[name])) for name in wanted}
    return max(errors.items(), key=lambda item: item[1], default=("", 0.0))


def _rms(found: Measures) -> float:
    return float("inf") if found.misplaced else found.rms_error


def _wrong_rounding(before: Stage, after: Stage, inputs: Mapping[str, Any]) -> WrongRewrite | None:
    """The first value that a pass which rounds made too different, of operands as they were."""
    allowed = _may_round(before.graph, after.graph)
    weights = before.graph.parameters
    meant = {name: at for name, at in meanings(before.graph, inputs) if name not in weights}
    graph, known = after.graph, dict(meant)
    symbols = bind_symbols(graph, {name: np.shape(inputs[name]) for name in graph.inputs})
    for node in graph.nodes():
        operands = [
            known[value] if value in known else parameter_value(graph.parameters[value])
            for value in node.inputs
        ]
        for value, array in computed(graph, node, operands, symbols).items():
            if value not in meant or meant[value].shape != np.shape(array):
                known[value] = array
                continue
            error = _rms(measured(array, meant[value]))
            if DTYPES[graph.type(value).dtype].is_float and not error <= allowed:
                return _wrong(before, after, value, value, error, allowed)
    return None


def _located(
    before: Stage,
    after: Stage,
    inputs: Mapping[str, Any],
    output: str,
    error: float,
    allowed: float,
) -> WrongRewrite:
    """The node at which `after` begins to differ from `before`; values keep their names."""
    meant = dict(meanings(before.graph, inputs))
    graph, differs = after.graph, None
    for value, array in meanings(graph, inputs):
        if value in meant and meant[value].shape == np.shape(array):
            if not _rms(measured(array, meant[value])) <= allowed:
                differs = value
                break
    if differs is None:
        differs = graph.outputs[graph.output_names.index(output)]
    return _wrong(before, after, differs, output, error, allowed)


def _wrong(
    before: Stage, after: Stage, differs: str, shows: str, error: float, allowed: float
) -> WrongRewrite:
    """What is told of a pass after which the value `differs` is another one."""
    graph = after.graph
    node = _made_by_pass(before.graph, graph, differs)
    producer = graph.node(node)
    path = producer.origin.path or node
    row = _decided(after, node, before.graph)
    return WrongRewrite(after.name, shows, error, allowed, node, row, path)


def _decided(after: Stage, node: str, before: Graph) -> Decision | None:
    """The last decision about `node`, or else about what it reads of the nodes made beside it.

    A decision is about one node; slices of a joined projection are made with it.
    """
    by_node = fired(after)
    waiting, seen = [node], {node}
    while waiting:
        name = waiting.pop(0)
        if name in by_node:
            return by_node[name]
        for value in after.graph.node(name).inputs:
            made = after.graph.producer(value)
            if made is not None and made.name not in seen and _is_made(before, made):
                seen.add(made.name)
                waiting.append(made.name)
    return None


def _is_made(before: Graph, node: Node) -> bool:
    """Whether a pass made or changed `node`; a new one may have the name of one that is gone."""
    if node.name not in before:
        return True
    old = before.node(node.name)
    return (old.op, old.attrs, old.origin) != (node.op, node.attrs, node.origin)


def _made_by_pass(before: Graph, after: Graph, value: str) -> str:
    """The node that a pass made or changed and that `value` comes from, nearest to it."""
    waiting, seen = [value], {value}
    nearest = after.producer(value)
    while waiting:
        node = after.producer(waiting.pop(0))
        if node is None:
            continue
        if _is_made(before, node):
            return node.name
        for operand in node.inputs:
            if operand not in seen and not (before.has_value(operand) and operand != value):
                seen.add(operand)
                waiting.append(operand)
    return value if nearest is None else nearest.name
