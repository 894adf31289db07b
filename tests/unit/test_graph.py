"""The graph keeps its indexes true, and changes nothing when it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from fusec.diagnostics import ParseError, VerifyError
from fusec.ir import Graph, TensorType, parse_graph, print_graph
from fusec.ir.types import Attrs
from fusec.ir.weights import concatenated, from_array
from fusec.symbolic import symbol

TEXT = """\
graph @main(%x: bf16[batch, 8], %m: bool[batch, 1]) symbols(batch in [1, 64]) {
  param %w: bf16[8] = "norm.weight"
  %c: bf16[] = constant() {dtype = "bf16", shape = [], value = 0.5}
  %a: bf16[batch, 8] = mul(%x, %c) @ "layers.0" "model.py:12" "aten.mul.Tensor"
  %b: bf16[batch, 8] = where(%m, %a, %x)
  %n: bf16[batch, 8] = rms_norm(%b, %w) {eps = 1e-06, has_weight = true, weight_offset = 0}
  %r: bf16[2*batch, 4] = reshape(%n) {shape = [<2*batch>, 4]}
  %v: bf16[2*batch, 2], %i: i64[2*batch, 2] = topk(%r) {axis = -1, k = 2, largest = true}
  %z: f32[3, 2~4] = onnx.ai.Mystery(%v) {levels = [1, [2.5, none]], mode = "odd"}
  return %n as "out", %i as "indices", %z as "z"
}
"""


def graph() -> Graph:
    return parse_graph(TEXT)


def test_text_round_trips() -> None:
    assert print_graph(graph()) == TEXT
    assert print_graph(parse_graph(print_graph(graph()))) == TEXT
    assert "@ " not in print_graph(graph(), origins=False).replace("@main", "")


def test_indexes() -> None:
    made = graph()
    assert [node.op for node in made.users("x")] == ["mul", "where"]
    assert made.producer("i") is made.producer("v")
    assert made.producer("w") is None
    assert made.use_count("n") == 2
    assert made.constant("c") == 0.5
    assert made.constant("x") is None
    assert made.type("z").padded == (3, 4)


def test_replacing_keeps_the_indexes() -> None:
    made = graph()
    new = made.add("silu", ["x"], at="a").output
    made.replace_uses("a", new)
    assert made.prune(["a"]) == 2  # the constant goes too
    assert not made.has_value("c")
    made.verify()
    assert next(node.name for node in made.nodes()) == new


def test_a_copy_is_independent() -> None:
    made = graph()
    other = made.copy()
    other.replace_uses("a", "x")
    other.prune()
    other.verify()
    assert print_graph(made) == TEXT


@pytest.mark.parametrize("other", [(), (4, 1)])
def test_values_of_other_ranks_are_not_joined(other: tuple[int, ...]) -> None:
    made = Graph("main", {})
    made.add_input("x", TensorType("f32", (4,)))
    made.add_input("y", TensorType("f32", other))
    with pytest.raises(VerifyError, match="does not join"):
        made.add("concat", ["x", "y"], {"axis": 0})


@pytest.mark.parametrize(
    ("limits", "reason"),
    [({"chunk": 4, "window": 4}, "a window or chunks"), ({"chunk": 0}, "a position at least")],
)
def test_limits_of_attention_that_exclude_each_other(limits: Attrs, reason: str) -> None:
    made = Graph("main", {})
    made.add_input("x", TensorType("f32", (1, 2, 5, 8)))
    flags = dict.fromkeys(("causal", "has_mask", "has_sinks", "has_key_padding"), False)
    with pytest.raises(VerifyError, match=reason):
        made.add("attention", ["x", "x", "x"], {**flags, "scale": 1.0, **limits})


def test_refusals_change_nothing() -> None:
    made = graph()
    with pytest.raises(VerifyError, match="never defined"):
        made.add("silu", ["nothing"])
    with pytest.raises(VerifyError, match="defined twice"):
        made.add("silu", ["x"], names=["a"])
    with pytest.raises(VerifyError, match="different dtypes"):
        made.add("add", ["x", "m"])
    with pytest.raises(VerifyError, match="cannot stand for"):
        made.replace_uses("a", "w")
    with pytest.raises(VerifyError, match="still read"):
        made.remove("a")
    assert print_graph(made) == TEXT


def test_a_cycle_is_found() -> None:
    made = graph()
    made.set_inputs("a", ("b", "c"))
    with pytest.raises(VerifyError, match="cycle"):
        made.verify()


def test_dependence() -> None:
    made = graph()
    assert made.depends_on("r", ["a"])
    assert not made.depends_on("a", ["b"])
    made.renumber()
    assert made.depends_on("v", ["c"])


def test_unknown_symbols_are_refused() -> None:
    made = graph()
    with pytest.raises(VerifyError, match="unknown symbol `seq`"):
        made.add_input("y", TensorType("f32", (symbol("seq"),)))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rms_norm(", "rms(", "unknown operation `rms`"),
        ("%a: bf16[batch, 8] =", "%a: bf16[batch, 9] =", "`mul` gives `bf16[batch, 8]`"),
        ("bool[batch, 1]", "bool[batch; 1]", "not a size expression"),
        ("has_weight = true", "has_weight = yes", "not an attribute value"),
        ("return %n", "give %n", "expected"),
        ("%x, %c)", "%x, %q)", "never defined"),
        ("axis = -1", "axis = -3", "outside rank 2"),
        ('"z"\n}', '"z"', "expected `}`"),
    ],
)
def test_what_is_wrong_with_a_text_is_said(old: str, new: str, said: str) -> None:
    assert old in TEXT
    with pytest.raises(ParseError) as caught:
        parse_graph(TEXT.replace(old, new))
    assert said in str(caught.value)


def test_weights_are_read_when_asked_and_named_by_content() -> None:
    first = from_array("a", "f32", np.ones((2, 3), np.float32))
    same = from_array("b", "f32", np.ones((2, 3), np.float32))
    other = from_array("a", "f32", np.zeros((2, 3), np.float32))
    assert first.identity == same.identity != other.identity
    joined = concatenated("ab", (first, other), axis=0)
    assert joined.shape == (4, 3)
    assert joined.load().tolist() == [[1] * 3] * 2 + [[0] * 3] * 2
    assert from_array("s", "f32", np.array(2, np.float32)).shape == ()
    turned = first.derive("t", TensorType("f32", (3, 2)), "transpose", np.transpose)
    assert turned.load().shape == (3, 2)


def test_what_a_node_took_the_place_of_is_kept() -> None:
    made = graph()
    assert made.made_from("n") == frozenset()
    made.mark_imported()
    again = made.add("rms_norm", made.node("n").inputs, made.node("n").attrs)
    made.replace_uses("n", again.output)
    made.prune(["n"])
    assert made.made_from(again.name) == made.copy().made_from(again.name) == {"n"}
    assert made.made_from("a") == {"a"}
