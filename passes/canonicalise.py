"""One way of writing what can be written in many.

Fuses nothing; makes the graph smaller and plainer, so that patterns have one form to look for.

* What nothing reads, what was computed before with the same operands, and small operations on
  constants alone are removed.
* reshape, transpose, expand, slice, concat and cast that change nothing go; chains become one; a
  chain of slice_scatter that writes a whole axis is a concat, and a take by one constant a slice.
* An elementwise operation reads its operands without the expand before it, and constants as 0-d.
* pow(x, 2) is mul(x, x), x / sqrt(y) is x * rsqrt(y), x / constant is x * (1 / constant),
  x - constant is x + (-constant), sum(x) / n is a mean; the constants keep their full precision.
* Axes are counted from the front.  Reductions keep the reduced axes, and a reshape drops them.
* f32 > bf16 > f32 is dropped: where a value is rounded only to be widened again, the result
  without the rounding is nearer to what the model means.  Roundings to 8-bit formats and to
  integers stay, and so does every rounding whose result is read as such.

Leaves alone: the expand of key and value heads before attention, which is part of its pattern.
"""

from __future__ import annotations

from collections import deque
from typing import ClassVar, TypeAlias

from fusec.ir import OPS, Graph, Node
from fusec.passes.canonical import Rewriter, Rule, arithmetic, casts, constants, views
from fusec.rewrite import DecisionLog, Pass
from fusec.target import Target

Key: TypeAlias = tuple[str, tuple[str, ...], str, str]


def _rules() -> dict[str, tuple[Rule, ...]]:
    collected: dict[str, tuple[Rule, ...]] = dict(arithmetic.RULES)
    for table in (views.RULES, casts.RULES, constants.RULES):
        for op, rule in table.items():
            collected[op] = (*collected.get(op, ()), rule)
    return collected


RULES = _rules()
"""Rules by the operation they look at."""


class Canonicalise(Pass):
    """Applies the rules until none applies, each node anew when an operand of it changed."""

    name: ClassVar[str] = "canonicalise"

    def run(self, graph: Graph, target: Target, log: DecisionLog) -> int:
        """Change `graph` in place and say how many changes were made."""
        changes = graph.prune()
        graph.renumber()
        waiting = dict.fromkeys(node.name for node in graph.nodes())
        queue = deque(waiting)
        seen: dict[Key, str] = {}
        while queue:
            name = queue.popleft()
            waiting.pop(name, None)
            if name not in graph:
                continue
            again = _step(graph, graph.node(name), seen)
            changes += again is not None
            for each in again or ():
                if each not in waiting:
                    waiting[each] = None
                    queue.append(each)
        graph.prune()
        graph.drop_unused_parameters()
        return changes


def _step(graph: Graph, node: Node, seen: dict[Key, str]) -> list[str] | None:
    """Apply one rule at `node`; gives the nodes to look at again, or `None` if none applied."""
    if node.op not in OPS:
        return None
    build = Rewriter(graph, node)
    for rule in (*RULES.get(node.op, ()), constants.fold, constants.plain_operands):
        value = rule(build, node)
        if value is None:
            graph.prune(build.added)
            continue
        return _replaced(graph, node, value, build.added)
    key = _key(graph, node)
    before = seen.setdefault(key, node.name)
    if before == node.name:
        return None
    if before not in graph or _key(graph, graph.node(before)) != key:
        seen[key] = node.name
        return None
    readers: list[str] = []
    for old, new in zip(node.outputs, graph.node(before).outputs, strict=True):
        readers += [user.name for user in graph.users(old)]
        graph.replace_uses(old, new)
    graph.prune([node.name])
    return readers


def _replaced(graph: Graph, node: Node, value: str, added: list[str]) -> list[str]:
    readers = [user.name for user in graph.users(node.output)]
    if value == node.output:
        producers = (graph.producer(old) for old in node.inputs)
        graph.prune([before.name for before in producers if before is not None])
        return [*added, node.name, *readers]
    graph.replace_uses(node.output, value)
    graph.prune([node.name])
    return [*added, *readers]


def _key(graph: Graph, node: Node) -> Key:
    inputs = node.inputs
    if OPS[node.op].commutative:
        inputs = (*sorted(inputs[:2]), *inputs[2:])
    attrs = repr(sorted((name, _plain(value)) for name, value in node.attrs.items()))
    types = ", ".join(str(graph.type(value)) for value in node.outputs)
    return node.op, inputs, attrs, types


def _plain(value: object) -> str:
    return f"{type(value).__name__} {value!r}"
