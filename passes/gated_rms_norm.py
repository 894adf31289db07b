"""RMSNorm with a gate, as at the end of a linear attention layer.

Fuses   rms_norm(x, w) * silu(gate),   rms_norm(x, w) * sigmoid(gate)
        rms_norm(x * silu(gate), w),   rms_norm(x * sigmoid(gate), w)
into    gated_rms_norm(x, w, gate) {activation, norm_before_gate}

The head's size is that of x, and the number of heads is in the shapes around; neither is asked of
a module.  Casts between go: the operation computes in f32 and rounds once.  Where the result has
another dtype than x, the operands are widened to f32 and the result is cast.

Leaves it alone when
  shape         x and the gate differ in shape
  gdn.heads-tp  ranks do not get equally many whole heads
  gdn.shape     no shape tells how many heads ranks are to divide
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar

from fusec.ir import Attr, Graph, Node
from fusec.passes.facts import only_reader, with_cast
from fusec.passes.gated_heads import head_details, head_facts, heads_divide
from fusec.rewrite import FusionPass, Guard, Match, Maybe, Op, Pattern, Rejection, Var
from fusec.rewrite.driver import Builder
from fusec.target import Target

X, WEIGHT, GATE = Var("x"), Var("weight"), Var("gate")
ACTIVATED = Op(("silu", "sigmoid"), (Maybe("cast", GATE),), name="activation")
ROWS: tuple[Pattern, ...] = (Op("cast", (X,), shared=True), X)


def _products() -> Iterator[Op]:
    for rows in ROWS:
        norm = Op("rms_norm", (rows, WEIGHT), name="norm", attrs={"has_weight": True})
        for normed in with_cast(norm):
            for activated in with_cast(ACTIVATED):
                yield Op("mul", (normed, activated), name="product")


def _norms() -> Iterator[Op]:
    for rows in ROWS:
        for activated in with_cast(ACTIVATED):
            for gated in with_cast(Op("mul", (rows, activated))):
                yield Op("rms_norm", (gated, WEIGHT), name="norm", attrs={"has_weight": True})


def _shape(match: Match, target: Target) -> Rejection | None:
    x, gate = (match.graph.type(match.values[name]) for name in ("x", "gate"))
    if x.shape == gate.shape:
        return None
    return Rejection("shape", f"x is `{x}`, but the gate is `{gate}`", match.values["gate"])


class GatedRmsNorm(FusionPass):
    """Looks from the last node: the cast after the product or the norm, if there is one."""

    name: ClassVar[str] = "gated_rms_norm"
    fusion: ClassVar[str | None] = "gated_rms_norm"
    after: ClassVar[tuple[str, ...]] = ("rms_norm", "activations")
    patterns: ClassVar[tuple[Op, ...]] = (
        *(Op("cast", (form,)) for form in (*_products(), *_norms())),
        *_products(),
        *_norms(),
    )
    guards: ClassVar[tuple[Guard, ...]] = (_shape, heads_divide)

    def find(self, graph: Graph, node: Node) -> Match | None:
        """The place that ends at `node`; a node before a last cast is left to that cast."""
        reader = only_reader(graph, node.output) if node.op != "cast" else None
        if reader is not None and reader.op == "cast":
            return None
        match = super().find(graph, node)
        if match is None:
            return None
        operands = (match.values["x"], match.values["gate"])
        facts = head_facts(graph, operands, node.output, self.settings)
        return replace(match, facts=facts)

    def details(self, match: Match, target: Target) -> Mapping[str, str | int | float]:
        """The heads, the gate, and which comes first."""
        return {
            **head_details(match.facts),
            "activation": match.nodes["activation"].op,
            "norm_before_gate": "product" in match.nodes,
        }

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        """Build the norm."""
        norm = match.nodes["norm"]
        attrs: dict[str, Attr] = {
            "eps": norm.attrs["eps"],
            "weight_offset": norm.attrs["weight_offset"],
            "activation": match.nodes["activation"].op,
            "norm_before_gate": "product" in match.nodes,
        }
        graph, wanted = match.graph, match.graph.type(match.root.output).dtype
        x, weight, gate = (match.values[name] for name in ("x", "weight", "gate"))
        if graph.type(x).dtype == graph.type(gate).dtype == wanted:
            return {match.root.output: build.value("gated_rms_norm", [x, weight, gate], attrs)}
        x, gate = (_widened(graph, value, build) for value in (x, gate))
        value = build.value("gated_rms_norm", [x, weight, gate], attrs)
        if wanted != "f32":
            value = build.value("cast", [value], {"dtype": wanted})
        return {match.root.output: value}


def _widened(graph: Graph, value: str, build: Builder) -> str:
    if graph.type(value).dtype == "f32":
        return value
    return build.value("cast", [value], {"dtype": "f32"})
