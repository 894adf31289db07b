"""Passes, and the loop that runs them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import ClassVar, Self

from fusec.diagnostics import InternalError, VerifyError
from fusec.ir import Attrs, Graph, Node
from fusec.rewrite.decisions import Decision, DecisionLog
from fusec.rewrite.guard import Guard, Rejection
from fusec.rewrite.pattern import Match, Op, find
from fusec.rewrite.settings import DEFAULTS, Settings
from fusec.target import Target


class Pass(ABC):
    """Changes a graph without changing what it computes.

    Attributes:
        name: how `--disable` and `--dump-ir` call it.
        after: names of passes that must come before it in the pipeline; tested.
        before: names of passes that must come behind it; tested.
        rounds: whether results may change because numbers are brought into fewer bits, as was asked
            for; `fusec verify` holds the graph after any other pass to that before it.
    """

    name: ClassVar[str]
    after: ClassVar[tuple[str, ...]] = ()
    before: ClassVar[tuple[str, ...]] = ()
    rounds: ClassVar[bool] = False
    settings: Settings = DEFAULTS

    @classmethod
    def configured(cls, settings: Settings) -> Self:
        """The pass as `settings` ask for it."""
        made = cls()
        made.settings = settings
        return made

    @abstractmethod
    def run(self, graph: Graph, target: Target, log: DecisionLog) -> int:
        """Change `graph` in place and say how many changes were made."""


class Builder:
    """Adds the nodes of one rewrite in the place, and with the origin, of the root."""

    def __init__(self, graph: Graph, root: Node) -> None:
        self.graph = graph
        self.root = root
        self.added: list[str] = []

    def node(self, op: str, inputs: Iterable[str], attrs: Attrs | None = None) -> Node:
        """Add a node."""
        made = self.graph.add(op, inputs, attrs, origin=self.root.origin, at=self.root.name)
        self.added.append(made.name)
        return made

    def value(self, op: str, inputs: Iterable[str], attrs: Attrs | None = None) -> str:
        """Add a node with one output and give that."""
        return self.node(op, inputs, attrs).output


class FusionPass(Pass):
    """Rewrites every match that all guards accept.

    Attributes:
        fusion: the name in decisions; `None` for a pass that only recognises, such as `gelu`.
        patterns: ways in which the place may be written, tried in order.
        guards: asked in order; the first rejection counts.
        instead_of: fusions that were tried before at the same places, and are better: where this
            one fires, their refusals stay and are named in its record.
        beside: fusions whose records at the same nodes stay true where this one fires.
    """

    fusion: ClassVar[str | None] = None
    patterns: ClassVar[tuple[Op, ...]] = ()
    guards: ClassVar[tuple[Guard, ...]] = ()
    instead_of: ClassVar[tuple[str, ...]] = ()
    beside: ClassVar[tuple[str, ...]] = ()

    def anchors(self) -> frozenset[str]:
        """The operations that a match can begin at."""
        return frozenset(op for pattern in self.patterns for op in pattern.ops)

    def find(self, graph: Graph, node: Node) -> Match | None:
        """The place that begins at `node`, if there is one."""
        for pattern in self.patterns:
            if (found := find(pattern, graph, node)) is not None:
                return found
        return None

    def outputs(self, match: Match) -> tuple[str, ...]:
        """The values that the rewrite gives anew; all other inner values must not escape."""
        return match.root.outputs

    def site(self, match: Match) -> str:
        """The module path that decisions name."""
        return match.root.origin.path or match.root.name

    def details(self, match: Match, target: Target) -> Mapping[str, str | int | float]:
        """What a person should know of a place that is rewritten, such as how much is padded."""
        return {}

    @abstractmethod
    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build what takes the place of the match, and say which value stands for which.

        Returns:
            A new value for each of `outputs(match)`, of the same type.
        """

    def run(self, graph: Graph, target: Target, log: DecisionLog) -> int:
        """Rewrite what may be rewritten, and record every decision."""
        anchors = self.anchors()
        graph.renumber()
        rewritten = 0
        for node in [node for node in graph.nodes() if node.op in anchors]:
            if node.name not in graph or graph.node(node.name) is not node:
                if node.name not in graph:
                    continue
                node = graph.node(node.name)  # an operand was renamed by an earlier rewrite
            match = self.find(graph, node)
            if match is None:
                continue
            rejection = self._rejection(match, target)
            if rejection is not None:
                self._refuse(match, rejection, log)
                continue
            self._apply(match, target, log)
            rewritten += 1
        return rewritten

    def _rejection(self, match: Match, target: Target) -> Rejection | None:
        kept = self.outputs(match)
        for guard in self.guards:
            if (rejection := guard(match, target)) is not None:
                return rejection
        return _escapes(match, kept) or _cycle(match, kept)

    def _refuse(self, match: Match, rejection: Rejection, log: DecisionLog) -> None:
        if self.fusion is None:
            return
        log.add(
            Decision(
                fusion=self.fusion,
                site=self.site(match),
                status="refused",
                code=rejection.code,
                reason=rejection.reason,
                hint=rejection.hint,
                node=match.root.name,
            )
        )

    def _apply(self, match: Match, target: Target, log: DecisionLog) -> None:
        graph, site = match.graph, self.site(match)
        if len(self.outputs(match)) > 1:
            graph.mark_span(node.name for node in match.inner)
        build = Builder(graph, match.root)
        stands_for = self.rewrite(match, target, build)
        missing = set(self.outputs(match)) - stands_for.keys()
        if missing:
            raise InternalError(f"pass `{self.name}` gives nothing for `%{min(missing)}`")
        for old, new in stands_for.items():
            graph.replace_uses(old, new)
        inner = [node.name for node in match.inner]
        graph.credit(inner, build.added)
        graph.prune(inner)
        gone = log.absorb(inner)
        if self.fusion is None:
            return
        node = build.added[-1] if build.added else match.root.name
        better = [decision for decision in gone if decision.fusion in self.instead_of]
        for decision in gone:
            if decision in better or decision.fusion in self.beside:
                log.add(replace(decision, node=node))
        rejected = tuple(
            {"backend": each.fusion, "code": each.code or "", "reason": each.reason or ""}
            for each in better
        )
        details = self.details(match, target)
        log.add(Decision(self.fusion, site, "fired", node=node, details=details, rejected=rejected))


def _escapes(match: Match, kept: tuple[str, ...]) -> Rejection | None:
    inside = {node.name for node in match.inner}
    for node in match.inner:
        for value in node.outputs:
            if value in kept:
                continue
            outside = [user for user in match.graph.users(value) if user.name not in inside]
            if outside or value in match.graph.outputs:
                reader = f"`{outside[0].op}` at `%{outside[0].name}`" if outside else "the result"
                reason = f"`%{value}` is also read by {reader}"
                return Rejection("escapes", reason, value)
    return None


def _cycle(match: Match, kept: tuple[str, ...]) -> Rejection | None:
    """With one output, and no escape, whatever reads the match comes after all it reads."""
    if len(kept) < 2:
        return None
    graph, inside = match.graph, {node.name for node in match.inner}
    for node in match.inner:
        for value in node.inputs:
            before = graph.producer(value)
            if before is None or before.name in inside:
                continue
            if graph.depends_on(before.name, inside):
                reason = f"`%{value}` depends on what the fusion would compute with it"
                return Rejection("cycle", reason, value)
    return None


Observer = Callable[[Pass, Graph, int], None]
"""Called after each pass with the number of its changes."""


def run_pipeline(
    passes: Iterable[Pass],
    graph: Graph,
    target: Target,
    log: DecisionLog,
    observe: Observer | None = None,
    *,
    verify_each: bool = False,
) -> None:
    """Run `passes` over `graph` in place, in order, and verify what comes out.

    Args:
        passes: what to run.
        graph: is changed.
        target: what guards and rewrites may know of the machine.
        log: receives every decision.
        observe: sees the graph after each pass.
        verify_each: verify after each pass rather than after the last.

    Raises:
        VerifyError: a pass broke a rule of the graph: a bug, and the pass is named.
    """
    name = "none"
    for each in passes:
        changes = each.run(graph, target, log)
        name = each.name
        if verify_each and changes:
            _verify(graph, name)
        if observe is not None:
            observe(each, graph, changes)
    _verify(graph, name)


def _verify(graph: Graph, after: str) -> None:
    try:
        graph.verify()
    except VerifyError as error:
        raise VerifyError(f"after pass `{after}`: {error}", at=error.at) from error
