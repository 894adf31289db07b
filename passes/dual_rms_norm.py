"""The two norms of multi-head latent attention as one.

Fuses   rms_norm(q, w_q),   rms_norm(kv, w_kv)
into    dual_rms_norm(q, w_q, kv, w_kv)

where q and kv are low-rank: each is all or a slice of the rows of a projection, both projections
read one value, or are one, and each norm is read by projections alone.  So both have the rows and
the dtype of what is projected.  Projections may be quantised, and their operands with them.  This
is known from the graph; names of modules play no part.  The operands, and what else the projection
gives, stay strided slices of it, and each norm keeps its eps.

Leaves it alone when
  single  only one of the two sides is low-rank
  offset  one norm multiplies by 1 + w and the other by w
  weight  a norm has no weight
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import ClassVar

from fusec.ir import Attr, Graph, Node
from fusec.ir.types import float_attr
from fusec.rewrite import FusionPass, Guard, Match, Rejection
from fusec.rewrite.driver import Builder
from fusec.symbolic import Dim
from fusec.target import Target

PROJECTIONS = ("linear", "fp8_linear", "mxfp4_linear")
"""Products with a weight, whatever the format."""


def _single(match: Match, target: Target) -> Rejection | None:
    if len(match.inner) == 2:
        return None
    reason = f"`%{match.root.name}` is the only norm of a low-rank projection of its input"
    return Rejection("single", reason, match.root.name)


def _offset(match: Match, target: Target) -> Rejection | None:
    first, second = (node.attrs["weight_offset"] for node in match.inner)
    if first == second:
        return None
    reason = f"one norm adds {first} to its weight, the other {second}"
    return Rejection("offset", reason, match.root.name)


def _weight(match: Match, target: Target) -> Rejection | None:
    plain = next((node for node in match.inner if len(node.inputs) == 1), None)
    if plain is None:
        return None
    return Rejection("weight", f"`%{plain.name}` has no weight", plain.name)


class DualRmsNorm(FusionPass):
    """Begins at the first of the two norms."""

    name: ClassVar[str] = "dual_rms_norm"
    fusion: ClassVar[str | None] = "dual_rms_norm"
    after: ClassVar[tuple[str, ...]] = ("rms_norm", "linear", "merge_qkv")
    guards: ClassVar[tuple[Guard, ...]] = (_single, _offset, _weight)

    def anchors(self) -> frozenset[str]:
        """Norms."""
        return frozenset({"rms_norm"})

    def find(self, graph: Graph, node: Node) -> Match | None:
        """`node` and the other norm of its kind over the same input, if `node` comes first."""
        source = low_rank_source(graph, node)
        if source is None:
            return None
        norms = [each for each in _norms_under(graph, source) if low_rank_source(graph, each)]
        if norms[0] is not node or len(norms) > 2:
            return None
        if len(norms) == 1 and not _is_part(graph, node):
            return None
        facts = ranks_of(graph, [norm.inputs[0] for norm in norms])
        return Match(graph, node, inner=tuple(norms), facts=facts)

    def outputs(self, match: Match) -> tuple[str, ...]:
        """Both norms."""
        return tuple(node.output for node in match.inner)

    def site(self, match: Match) -> str:
        """The attention module, which owns the modules of both norms."""
        paths = [node.origin.path.split(".") for node in match.inner]
        if len(paths) == 1:
            return ".".join(paths[0][:-1]) or match.root.name
        alike = takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False))
        owner = [first for first, _ in alike]
        return ".".join(owner) or match.root.name

    def details(self, match: Match, target: Target) -> Mapping[str, str | int | float]:
        """The sizes and eps of both norms, and how many columns pass beside them."""
        eps = (float_attr(node.attrs, "eps") for node in match.inner)
        return {**known_ranks(match.facts), **dict(zip(("eps1", "eps2"), eps, strict=True))}

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the node."""
        first, second = match.inner
        attrs: dict[str, Attr] = {
            "eps1": first.attrs["eps"],
            "eps2": second.attrs["eps"],
            "weight_offset": first.attrs["weight_offset"],
        }
        made = build.node("dual_rms_norm", (*first.inputs, *second.inputs), attrs)
        return dict(zip(self.outputs(match), made.outputs, strict=True))


def low_rank_source(graph: Graph, norm: Node) -> str | None:
    """What is projected down before `norm`, if only projections up read the norm."""
    made = projection_of(graph, norm.inputs[0])
    if made is None or norm.output in graph.outputs:
        return None
    readers = _readers(graph, norm.output)
    if not readers or any(reader.op not in PROJECTIONS for reader in readers):
        return None
    return _before_quantising(graph, made.inputs[0])


def projection_of(graph: Graph, value: str) -> Node | None:
    """The projection whose rows `value` is all or a slice of."""
    made = graph.producer(value)
    if made is not None and made.op == "slice":
        if made.attrs["axis"] != graph.type(value).rank - 1 or made.attrs["step"] != 1:
            return None
        made = graph.producer(made.inputs[0])
    return made if made is not None and made.op in PROJECTIONS else None


def _before_quantising(graph: Graph, value: str) -> str:
    """What was quantised to `value`; `value` itself if it was not."""
    made = graph.producer(value)
    return made.inputs[0] if made is not None and made.op == "quantize" else value


def _readers(graph: Graph, value: str) -> list[Node]:
    """The readers of `value`, seen through views that keep its rows whole and what quantises it."""
    found: list[Node] = []
    for user in graph.users(value):
        through = user.op == "quantize" or _keeps_rows(graph, user)
        found += _readers(graph, user.outputs[0]) if through else [user]
    return found


def _keeps_rows(graph: Graph, node: Node) -> bool:
    if node.op != "reshape":
        return False
    return graph.type(node.output).shape[-1] == graph.type(node.inputs[0]).shape[-1]


def _projections(graph: Graph, source: str) -> list[Node]:
    """The projections of `source`, as it is or quantised, in order."""
    found: list[Node] = []
    for user in graph.users(source):
        readers = graph.users(user.outputs[0]) if user.op == "quantize" else (user,)
        for node in readers:
            read = node.op in PROJECTIONS and _before_quantising(graph, node.inputs[0]) == source
            found += [node] if read else []
    return found


def _norms_under(graph: Graph, source: str) -> list[Node]:
    """The norms over rows, or slices of rows, of projections of `source`, in order."""
    found: list[Node] = []
    for projection in _projections(graph, source):
        for user in graph.users(projection.output):
            below = graph.users(user.output) if user.op == "slice" else (user,)
            found += [node for node in below if node.op == "rms_norm"]
    return found


def ranks_of(graph: Graph, operands: Sequence[str]) -> dict[str, Attr]:
    """Columns of the operands of both norms, and those of their projections beside them.

    The columns beside are the part of the keys that is rotated; nothing here reads or moves it.
    """
    normed = [graph.type(value).shape[-1] for value in operands]
    made = (projection_of(graph, value) for value in operands)
    projected = {each.output: graph.type(each.output).shape[-1] for each in made if each}
    beside: Dim = 0
    for columns in projected.values():
        beside = beside + columns
    for columns in normed:
        beside = beside - columns
    return dict(zip(("q_rank", "kv_rank", "rope"), (*normed, beside), strict=False))


def known_ranks(facts: Mapping[str, Attr]) -> dict[str, str | int | float]:
    """The ranks among `facts` that are known at compile time, for decisions."""
    names = ("q_rank", "kv_rank", "rope")
    return {name: size for name in names if isinstance(size := facts.get(name), int)}


def _is_part(graph: Graph, norm: Node) -> bool:
    """Whether the norm goes over a part of the projection's rows: latent keys beside the rest."""
    made = graph.producer(norm.inputs[0])
    return made is not None and made.op == "slice"
