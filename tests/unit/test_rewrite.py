"""The matcher, the driver's own guards, and the records of decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import pytest

from fusec.diagnostics import InternalError, VerifyError
from fusec.ir import Graph, parse_graph, print_graph
from fusec.rewrite import (
    Decision,
    DecisionLog,
    FusionPass,
    Guard,
    Match,
    Maybe,
    Number,
    Op,
    Pattern,
    Rejection,
    Var,
    find,
    run_pipeline,
)
from fusec.rewrite.driver import Builder
from fusec.target import Target, target_named

GATE = """\
graph @main(%x: f32[n, 4], %y: f32[n, 4]) symbols(n in [1, inf]) {
  %s: f32[n, 4] = sigmoid(%x) @ "gate" "" ""
  %m: f32[n, 4] = mul(%s, %x) @ "gate" "" ""
  %o: f32[n, 4] = mul(%y, %m) @ "gate" "" ""
  return %o as "o"
}
"""
CPU = target_named("x86-64-v3")


def narrow(match: Match, target: Target) -> Rejection | None:
    width = match.graph.type(match.root.output).shape[-1]
    return Rejection("width", f"rows of {width}", hint="widen") if width == 3 else None


class Silu(FusionPass):
    """x * sigmoid(x) becomes silu(x)."""

    name = "silu"
    fusion = "silu_mul"
    patterns: ClassVar[tuple[Op, ...]] = (Op("mul", (Var("x"), Op("sigmoid", (Var("x"),)))),)
    guards: ClassVar[tuple[Guard, ...]] = (narrow,)

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        return {match.root.output: build.value("silu", [match.values["x"]])}


def run(text: str) -> tuple[Graph, DecisionLog]:
    graph, log = parse_graph(text), DecisionLog()
    run_pipeline([Silu()], graph, CPU, log, verify_each=True)
    return graph, log


def test_fires_in_either_order_and_settles() -> None:
    graph, log = run(GATE)
    assert [node.op for node in graph.nodes()] == ["silu", "mul"]
    assert log.fired() == {"silu_mul": 1}
    (decision,) = log
    assert (decision.site, decision.status) == ("gate", "fired")
    assert Silu().run(graph, CPU, DecisionLog()) == 0


def test_a_variable_used_twice_is_one_value() -> None:
    text = GATE.replace("mul(%s, %x)", "mul(%s, %y)")
    graph, log = run(text)
    assert print_graph(graph) == text
    assert not len(log)


def test_another_operation_of_as_many_operands_is_no_match() -> None:
    graph, log = run(GATE.replace("sigmoid", "tanh"))
    assert len(graph) == 3
    assert not len(log)


def test_an_escaping_value_refuses() -> None:
    graph, log = run(GATE.replace('%o as "o"', '%o as "o", %s as "s"'))
    assert len(graph) == 3
    (refused,) = log.refused()
    assert refused.code == "escapes"
    assert refused.reason == "`%s` is also read by the result"


def test_a_guard_refuses_with_its_code_and_hint() -> None:
    graph, log = run(GATE.replace("4]", "3]"))
    assert len(graph) == 3
    (refused,) = log.refused()
    assert (refused.code, refused.hint) == ("width", "widen")


class Both(Silu):
    """Two results; everything else as in `Silu`."""

    patterns: ClassVar[tuple[Op, ...]] = (
        Op("mul", (Var("y"), Op("mul", (Op("exp", (Var("x"),), name="first"), Var("z"))))),
    )

    def outputs(self, match: Match) -> tuple[str, ...]:
        return match.root.output, match.nodes["first"].output

    def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
        first = build.value("exp", [match.values["x"]])
        inner = build.value("mul", [first, match.values["z"]])
        root = build.value("mul", [match.values["y"], inner])
        return {match.root.output: root, match.nodes["first"].output: first}


def test_a_rewrite_that_would_close_a_cycle_is_refused() -> None:
    text = """\
graph @main(%x: f32[n, 4]) symbols(n in [1, inf]) {
  %first: f32[n, 4] = exp(%x)
  %outside: f32[n, 4] = sqrt(%first)
  %inner: f32[n, 4] = mul(%first, %x)
  %root: f32[n, 4] = mul(%outside, %inner)
  return %root as "o"
}
"""
    graph, log = parse_graph(text), DecisionLog()
    assert Both().run(graph, CPU, log) == 0
    assert print_graph(graph) == text
    (refused,) = log.refused()
    assert refused.code == "cycle"


def test_a_pass_that_breaks_the_graph_is_named() -> None:
    class Breaks(Silu):
        """Leaves a cycle behind."""

        name = "breaks"

        def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
            new = build.value("silu", [match.values["x"]])
            build.graph.set_inputs(new, (new,))
            return {match.root.output: new}

    with pytest.raises(VerifyError, match=r"after pass `breaks`: .*cycle"):
        run_pipeline([Breaks()], parse_graph(GATE), CPU, DecisionLog())


def test_a_pass_that_gives_no_value_for_a_result_is_at_fault() -> None:
    class Forgets(Silu):
        """Builds nothing."""

        name = "forgets"

        def rewrite(self, match: Match, target: Target, build: Builder) -> Mapping[str, str]:
            return {}

    with pytest.raises(InternalError, match=r"pass `forgets` gives nothing for `%m`"):
        Forgets().run(parse_graph(GATE), CPU, DecisionLog())


def test_observers_see_each_pass_with_its_changes() -> None:
    seen: list[tuple[str, int]] = []
    passes = [Silu(), Silu()]
    run_pipeline(
        passes,
        parse_graph(GATE),
        CPU,
        DecisionLog(),
        lambda each, _, changes: seen.append((each.name, changes)),
    )
    assert seen == [("silu", 1), ("silu", 0)]


NUMBERS = """\
graph @main(%x: bf16[n, 4]) symbols(n in [1, inf]) {
  %up: f32[n, 4] = cast(%x) {dtype = "f32"}
  %c: f32[] = constant() {dtype = "f32", shape = [], value = 1.702}
  %k: f32[] = constant() {dtype = "f32", shape = [], value = 2.0}
  %a: f32[n, 4] = mul(%c, %up)
  %b: f32[n, 4] = mul(%a, %k)
  return %b as "o"
}
"""


@pytest.mark.parametrize(
    ("pattern", "number"),
    [
        (Op("mul", (Maybe("cast", Var("x")), Number("c"))), 1.702),
        (Op("mul", (Op("cast", (Var("x"),)), Number("c", 1.702))), 1.702),
        (Op("mul", (Var("x"), Number("c", 1.7))), None),
        (Op(("add", "mul"), (Number("c"), Number())), None),
    ],
)
def test_numbers_and_casts(pattern: Op, number: float | None) -> None:
    graph = parse_graph(NUMBERS)
    found = find(pattern, graph, graph.node("a"))
    assert (found and found.numbers["c"]) == number


ORDERED = """\
graph @main(%x: f32[4], %y: f32[4]) {
  %k: f32[] = constant() {dtype = "f32", shape = [], value = 2.0}
  %a: f16[4] = cast(%x) {dtype = "f16"}
  %b: f16[4] = cast(%y) {dtype = "f16"}
  %less: f32[4] = sub(%x, %k)
  %square: f16[4] = mul(%a, %a)
  %product: f16[4] = mul(%a, %b)
  return %less as "less", %square as "square", %product as "product"
}
"""
CAST = Op("cast", (Var("value"),))


@pytest.mark.parametrize(
    ("root", "pattern", "inner"),
    [
        ("less", Op("sub", (Var("x"), Number())), ["less"]),
        ("less", Op("sub", (Number(), Var("x"))), None),
        ("a", replace(CAST, attrs={"dtype": "f16"}), ["a"]),
        ("a", replace(CAST, attrs={"dtype": "f32"}), None),
        ("square", Op("mul", (CAST, CAST)), ["square", "a"]),
        ("product", Op("mul", (CAST, CAST)), None),
        ("square", Op("mul", (replace(CAST, shared=True), Var("other"))), ["square"]),
    ],
)
def test_order_attributes_and_names(root: str, pattern: Op, inner: list[str] | None) -> None:
    graph = parse_graph(ORDERED)
    found = find(pattern, graph, graph.node(root))
    assert (found and [node.name for node in found.inner]) == inner


def test_a_name_used_twice_is_one_node() -> None:
    graph = parse_graph(ORDERED)
    first, second = (Op("cast", (Var(name),), name="cast") for name in ("one", "other"))
    assert find(Op("mul", (first, second)), graph, graph.node("square")) is not None
    assert find(Op("mul", (first, second)), graph, graph.node("product")) is None


def test_a_cast_looked_through_is_not_part_of_the_match() -> None:
    graph = parse_graph(NUMBERS)
    inner: Pattern = Maybe("cast", Var("x"))
    found = find(Op("mul", (inner, Number())), graph, graph.node("a"))
    assert found is not None
    assert found.values["x"] == "x"
    assert [node.name for node in found.inner] == ["a"]


def test_a_larger_fusion_takes_in_the_smaller_record() -> None:
    log = DecisionLog([Decision("rope", "attn", "fired", node="r")])
    log.absorb(["r"])
    log.add(Decision("qk_norm_rope", "attn", "fired", node="q"))
    assert log.fired() == {"qk_norm_rope": 1}


def test_sites_that_one_node_computes_have_a_record_each() -> None:
    log = DecisionLog(Decision("rope", site, "fired", node="r") for site in ("q_proj", "k_proj"))
    log.add(Decision("rope", "q_proj", "fired", node="r"))
    assert log.fired() == {"rope": 2}
    assert [decision.site for decision in log.absorb(["r"])] == ["q_proj", "k_proj"]
    assert not log.fired()
