"""Routers: which experts see a token, and with what weight.

Fuses, for logits of tokens [T, E], where `choice` is the scores, plus a bias if there is one,

    experts = indices of topk(choice)                scores = softmax(logits), sigmoid(logits)
    weights = scores at those indices                or, of those chosen, the same of topk(logits)
    weights / (sum(weights) + eps) * scale           either of which may be absent

into `router`.  The sum may have a lower bound.  The choice may be among some groups only, those
with the largest best score, or sum of the two best, with a number in place of the scores of others.
Scores may also be made in another way, where there is a bias, a sum or a group.  It comes after
`wide_linear`, so the logits are f32 where that gains anything; the weights are rounded once, at the
end.

Leaves it alone when
  axis    the choice is not of the largest in rows [tokens, experts]
  dtype   the logits, the bias or the weights are none of f32, bf16 and f16
  groups  scores are replaced, but not those outside the groups with the best scores
  scores  what is chosen is not weighed by scores, or they are made in another way and stay so
  size    there are more than 1024 scores, or not known how many, or more than 64 are chosen
  sum     the weights are divided by something else than their own sum
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from fusec.ir import Graph, Node
from fusec.ir.ops.router import MOST_CHOSEN, MOST_EXPERTS
from fusec.ir.types import Attr, bool_attr, float_attr, int_attr, ints_attr
from fusec.passes.experts_walk import RefusedError
from fusec.passes.facts import is_row_vector, only_reader, reduces_rows
from fusec.rewrite import FusionPass, Guard, Match, Rejection
from fusec.rewrite.driver import Builder
from fusec.target import Target

SCORES = ("softmax", "sigmoid")
"""Operations that make scores of logits."""

DTYPES = ("f32", "bf16", "f16")


def _walked(match: Match, target: Target) -> Rejection | None:
    refusal = match.facts.get("refusal")
    if refusal is None:
        return None
    assert isinstance(refusal, tuple)
    code, reason, at = map(str, refusal)
    return Rejection(code, reason, at)


def _dtype(match: Match, target: Target) -> Rejection | None:
    for name in ("logits", "bias", "weights"):
        if (value := match.values.get(name)) is None:
            continue
        kind = match.graph.type(value)
        if kind.dtype not in DTYPES:
            return Rejection("dtype", f"the {name} are `{kind}`", value)
    return None


def _size(match: Match, target: Target) -> Rejection | None:
    experts, k = match.graph.type(match.root.inputs[0]).shape[-1], int_attr(match.root.attrs, "k")
    if isinstance(experts, int) and experts <= MOST_EXPERTS and k <= MOST_CHOSEN:
        return None
    most = f"{MOST_CHOSEN} of {MOST_EXPERTS}"
    return Rejection("size", f"{k} of {experts} are chosen, not at most {most}", match.root.name)


class Router(FusionPass):
    """One node for scores, choice and weights."""

    name: ClassVar[str] = "router"
    after: ClassVar[tuple[str, ...]] = ("moe", "dense_experts", "loop_experts", "wide_linear")
    guards: ClassVar[tuple[Guard, ...]] = (_walked, _dtype, _size)

    def anchors(self) -> frozenset[str]:
        """The choice."""
        return frozenset(("topk",))

    def find(self, graph: Graph, node: Node) -> Match | None:
        """Walk from the choice up to the logits, and down to the weights."""
        if not _gives_weights(graph, node):
            return None
        walk = _Walk(graph, node)
        try:
            return walk.match()
        except RefusedError as refused:
            facts: Mapping[str, Attr] = {"refusal": (refused.code, refused.reason, refused.at)}
            return Match(graph, node, inner=(node,), facts=facts)

    def outputs(self, match: Match) -> tuple[str, ...]:
        """The weights and the indices of the experts."""
        if "weights" not in match.values:
            return match.root.outputs
        return match.values["weights"], match.root.outputs[1]

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the node; its weights have the dtype of those it replaces."""
        weights, experts = self.outputs(match)
        inputs = [match.values[name] for name in ("logits", "bias") if name in match.values]
        attrs = {**match.facts, "dtype": match.graph.type(weights).dtype}
        made = build.node("router", inputs, attrs)
        return dict(zip((weights, experts), made.outputs, strict=True))


def _gives_weights(graph: Graph, choice: Node) -> bool:
    """Whether a choice in rows is also asked for its values, or for others at its indices."""
    values, indices = choice.outputs
    gathered = any(reader.op == "gather" for reader in graph.users(indices))
    read = bool(graph.users(values)) or values in graph.outputs
    return graph.type(values).rank == 2 and (gathered or read)


class _Walk:
    """The way through a router; collects the nodes and values that it meets."""

    def __init__(self, graph: Graph, root: Node) -> None:
        self.graph = graph
        self.root = root
        self.inner: list[Node] = [root]
        self.values: dict[str, str] = {}
        self.facts: dict[str, Attr] = {
            "k": int_attr(root.attrs, "k"),
            "groups": 1,
            "groups_kept": 1,
            "group_best": 1,
            "fill": 0.0,
            "fill_weighs": False,
            "renormalise": False,
            "eps": 0.0,
            "least": -math.inf,
            "scale": 1.0,
        }

    def match(self) -> Match:
        """The whole router."""
        self._rows()
        choice = self._groups(self.root.inputs[0])
        weights, scores = self._chosen(choice)
        node = self.graph.producer(scores)
        if node is not None and node.op in SCORES and self._along_rows(node):
            self.inner.append(node)
            (self.values["logits"],) = node.inputs
            self.facts["scores"] = node.op
        else:
            self.values["logits"] = scores
            weights = self._scores_of(weights)
        weights = self._scaled(self._renormalised(weights))
        self.values["weights"] = self._rounded(weights)
        self.facts["has_bias"] = "bias" in self.values
        self._worth_it()
        return Match(self.graph, self.root, self.values, inner=tuple(self.inner), facts=self.facts)

    def _worth_it(self) -> None:
        """Refuse a choice that is no more than that."""
        facts = self.facts
        alone = facts["groups"] == 1 and not facts["has_bias"] and not facts["renormalise"]
        if facts["scores"] == "given" and alone:
            reason = (
                f"`%{self.root.inputs[0]}` are no scores, nor have they a bias, groups or a sum"
            )
            raise RefusedError("scores", reason, self.root.name)

    def _rows(self) -> None:
        kind = self.graph.type(self.root.inputs[0])
        last = int_attr(self.root.attrs, "axis") % kind.rank == kind.rank - 1
        if kind.element.is_float and last and bool_attr(self.root.attrs, "largest"):
            return
        reason = f"`%{self.root.name}` does not choose the largest in rows of `{kind}`"
        raise RefusedError("axis", reason, self.root.name)

    def _along_rows(self, node: Node) -> bool:
        """Whether a softmax goes along the last axis; a sigmoid has none."""
        if node.op != "softmax":
            return True
        rank = self.graph.type(node.inputs[0]).rank
        return int_attr(node.attrs, "axis") % rank == rank - 1

    def _groups(self, choice: str) -> str:
        """What is chosen from before scores of some groups were replaced."""
        node = self.graph.producer(choice)
        if node is None or node.op != "where":
            return choice
        kept, before, other = node.inputs
        fill = self.graph.constant(other)
        if isinstance(fill, bool) or not isinstance(fill, int | float):
            raise self._not_groups(node)
        self.inner.append(node)
        groups = self._up(kept, "cast", "reshape", "expand", "reshape", "scatter")[-1]
        zeros, indices, ones = groups.inputs
        at = (int_attr(groups.attrs, "axis") % 2, groups.attrs.get("reduce"))
        if at != (1, None) or (self.graph.constant(zeros), self.graph.constant(ones)) != (0, 1):
            raise self._not_groups(groups)
        best = self._producer(indices, "topk", groups)
        if indices != best.outputs[1] or not bool_attr(best.attrs, "largest"):
            raise self._not_groups(best)
        self.inner.append(best)
        split, count = self._best_of_groups(best.inputs[0])
        counts = self.graph.type(split.output).shape
        tokens, experts = self.graph.type(before).shape
        good = (
            split.inputs[0] == before
            and counts[0] == tokens
            and self.graph.type(zeros).shape == counts[:2]
            and self.graph.type(kept).shape == (tokens, experts)
        )
        if not good or not isinstance(counts[1], int):
            raise self._not_groups(split)
        self.facts["groups"] = counts[1]
        self.facts["group_best"] = count
        self.facts["groups_kept"] = int_attr(best.attrs, "k")
        self.facts["fill"] = float(fill)
        return before

    def _best_of_groups(self, sums: str) -> tuple[Node, int]:
        """The reshape into groups, and how many of their best scores make `sums`."""
        made = self.graph.producer(sums)
        if made is not None and made.op == "reshape":
            made = self.graph.producer(made.inputs[0])
        if made is not None and made.op == "reduce_max":
            total, split = self._up(sums, "reshape", "reduce_max", "reshape")[-2:]
            count = 1
        else:
            total, best, split = self._up(sums, "reshape", "reduce_sum", "topk", "reshape")[-3:]
            count = int_attr(best.attrs, "k")
            at = (int_attr(best.attrs, "axis") % 3, bool_attr(best.attrs, "largest"))
            if at != (2, True) or total.inputs[0] != best.outputs[0]:
                raise self._not_groups(best)
        if [axis % 3 for axis in ints_attr(total.attrs, "axes")] != [2]:
            raise self._not_groups(total)
        return split, count

    def _not_groups(self, node: Node) -> RefusedError:
        reason = f"`%{node.name}` does not leave the groups with the best scores alone"
        return RefusedError("groups", reason, node.name)

    def _producer(self, value: str, op: str, reader: Node) -> Node:
        node = self.graph.producer(value)
        if node is None or node.op != op:
            raise self._not_groups(reader)
        return node

    def _up(self, value: str, *ops: str) -> list[Node]:
        """The nodes above `value`, each the first operand of the one before; reshapes may lack."""
        found: list[Node] = []
        for op in ops:
            node = self.graph.producer(value)
            if op == "reshape" and len(found) + 1 < len(ops) and (node is None or node.op != op):
                continue
            node = self._producer(value, op, self.root)
            found.append(node)
            value = node.inputs[0]
        self.inner += found
        return found

    def _chosen(self, choice: str) -> tuple[str, str]:
        """What is weighed of those chosen, and the scores of all that it is taken from."""
        values, indices = self.root.outputs
        left = self.root.inputs[0]
        if self.graph.users(values) or values in self.graph.outputs:
            self.facts["fill_weighs"] = left != choice
            return values, choice
        for reader in self.graph.users(indices):
            if reader.op != "gather" or int_attr(reader.attrs, "axis") % 2 != 1:
                continue
            scores = reader.inputs[0]
            if scores not in (left, choice) and not self._biased(choice, scores):
                continue
            self.inner.append(reader)
            self.facts["fill_weighs"] = scores == left != choice
            return reader.output, choice if scores == left else scores
        reason = f"`%{indices}` does not pick its weights from the scores"
        raise RefusedError("scores", reason, self.root.name)

    def _biased(self, choice: str, scores: str) -> bool:
        """Whether a choice is of `scores` with a bias added."""
        node = self.graph.producer(choice)
        if node is None or node.op != "add" or scores not in node.inputs:
            return False
        bias = node.inputs[1 - node.inputs.index(scores)]
        if not is_row_vector(self.graph, bias, scores):
            return False
        self.inner.append(node)
        self.values["bias"] = bias
        return True

    def _scores_of(self, weights: str) -> str:
        """Scores that are made of those chosen alone, if they are."""
        reader, cast = self._only(weights), None
        if reader is not None and reader.op == "cast":
            if self.graph.type(reader.output).element.is_float:
                reader, cast = self._only(reader.output), reader
        if reader is None or reader.op not in SCORES or not self._along_rows(reader):
            self.facts["scores"] = "given"
            return weights
        self.inner += [reader] if cast is None else [cast, reader]
        self.facts["scores"] = f"{reader.op}_topk"
        return reader.output

    def _only(self, value: str) -> Node | None:
        """The one reader of a value that is not returned."""
        return None if value in self.graph.outputs else only_reader(self.graph, value)

    def _renormalised(self, weights: str) -> str:
        readers = self.graph.users(weights)
        quotients = [node for node in readers if node.op == "div" and node.inputs[0] == weights]
        sums = [node for node in readers if node.op == "reduce_sum"]
        if len(quotients) != 1 or self.graph.constant(quotients[0].inputs[1]) is not None:
            return weights
        (quotient,) = quotients
        divisor = quotient.inputs[1]
        made = self.graph.producer(divisor)
        if made is not None and made.op == "clamp" and made.attrs["max"] is None:
            self.facts["least"] = float_attr(made.attrs, "min")
            self.inner.append(made)
            divisor = made.inputs[0]
            made = self.graph.producer(divisor)
        if made is not None and made.op == "add":
            for total, number in (made.inputs, made.inputs[::-1]):
                eps = self.graph.constant(number)
                if isinstance(eps, int | float) and not isinstance(eps, bool):
                    self.facts["eps"] = float(eps)
                    self.inner.append(made)
                    divisor = total
                    break
        total_node = self.graph.producer(divisor)
        if total_node not in sums or total_node is None or not reduces_rows(self.graph, total_node):
            reason = f"`%{quotient.name}` divides by something else than the sum of `%{weights}`"
            raise RefusedError("sum", reason, quotient.name)
        self.facts["renormalise"] = True
        self.inner += [total_node, quotient]
        return quotient.output

    def _scaled(self, weights: str) -> str:
        reader = self._only(weights)
        if reader is None or reader.op != "mul":
            return weights
        for value, number in (reader.inputs, reader.inputs[::-1]):
            scale = self.graph.constant(number)
            shape = self.graph.type(reader.output).shape
            if value != weights or shape != self.graph.type(weights).shape:
                continue
            if isinstance(scale, int | float) and not isinstance(scale, bool):
                self.facts["scale"] = float(scale)
                self.inner.append(reader)
                return reader.output
        return weights

    def _rounded(self, weights: str) -> str:
        reader = self._only(weights)
        if reader is None or reader.op != "cast":
            return weights
        if self.graph.type(reader.output).dtype not in DTYPES:
            return weights
        self.inner.append(reader)
        return reader.output
