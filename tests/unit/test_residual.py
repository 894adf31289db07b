"""Parts left to onnxruntime: models of one node, and why some cannot be."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import Array, imported, integers, model_of, opaque, random, run_onnx

from fusec import symbolic
from fusec.diagnostics import InputError, UnsupportedError
from fusec.dtypes import bf16_to_f32, f32_to_bf16
from fusec.frontend.onnx import OPSETS
from fusec.frontend.onnx_ops.tensors import ELEMENT_OF
from fusec.ir import Graph, Node, TensorType
from fusec.ir.graph import Origin
from fusec.ir.interpret import interpret
from fusec.lower.host_fallback import arch_rejection
from fusec.lower.residual import (
    NEW_TYPES_ONLY,
    OPSET,
    ResidualModel,
    build_residual,
    opset_rejection,
)
from fusec.target import target_named

SEQ = symbolic.symbol("seq")


def _only(graph: Graph) -> Node:
    (node,) = [node for node in graph.nodes() if node.op.startswith("onnx.")]
    return node


def _run(
    model: ResidualModel, inputs: Mapping[str, Array], bits: tuple[int, ...] | None = None
) -> list[Array]:
    """Run a part; bf16 goes in as bits, and comes out so where the result has the shape `bits`."""
    session = onnxruntime.InferenceSession(model.data, providers=["CPUExecutionProvider"])
    assert tuple(entry.name for entry in session.get_inputs()) == model.inputs
    assert tuple(entry.name for entry in session.get_outputs()) == model.outputs
    types = {entry.name: entry.type for entry in session.get_inputs()}
    binding = session.io_binding()
    kept = []
    for name in model.inputs:
        array = np.ascontiguousarray(inputs[name])
        if types[name] == "tensor(bfloat16)":
            value = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
                array, ELEMENT_OF["bf16"]
            )
        else:
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array.reshape(inputs[name].shape))
        kept.append((array, value))
        binding.bind_ortvalue_input(name, value)
    if bits is not None:
        (name,) = model.outputs
        result = np.full(bits, 0x7FC0, np.uint16)
        element = ELEMENT_OF["bf16"]
        binding.bind_output(name, "cpu", 0, element, list(bits), result.ctypes.data)
        session.run_with_iobinding(binding)
        return [result]
    for name in model.outputs:
        binding.bind_output(name, "cpu")
    session.run_with_iobinding(binding)
    return [value.numpy() for value in binding.get_outputs()]


# --- nodes of ONNX files --------------------------------------------------------------------


def test_nonzero_stays_opaque_and_runs(tmp_path: Path) -> None:
    inputs = {"x": np.where(random(3, 5) > 0, 1.0, 0.0).astype(np.float32)}
    model = model_of(
        [helper.make_node("NonZero", ["x"], ["y"])], inputs, ["y"], shapes={"x": ("n", 5)}
    )
    graph = imported(model, tmp_path)
    node = _only(graph)
    assert node.op == "onnx.ai.NonZero"
    kind = graph.type(node.output)
    assert kind.dtype == "i64"
    assert kind.shape[0] == 2
    assert str(kind.shape[1]) in graph.symbols
    part = build_residual(graph, node)
    assert part.reason == "fusec has no translation of this operator"
    assert part.inputs == ("x",)
    (got,) = _run(part, inputs)
    np.testing.assert_array_equal(got, np.stack(np.nonzero(inputs["x"])))


def test_the_same_node_gives_the_same_bytes(tmp_path: Path) -> None:
    inputs = {"x": random(1, 4, 5, 5)}
    node = helper.make_node("LRN", ["x"], ["y"], size=3, alpha=0.1, beta=0.7, bias=1.5)
    model = model_of([node], inputs, ["y"])
    parts = [build_residual(g, _only(g)) for g in (imported(model, tmp_path) for _ in range(2))]
    assert parts[0].data == parts[1].data
    (got,) = _run(parts[0], inputs)
    np.testing.assert_allclose(got, run_onnx(model, inputs)[0], rtol=1e-6)


def test_left_out_operands_and_results(tmp_path: Path) -> None:
    """A GRU without a bias or lengths, of which only the last state is wanted."""
    inputs = {"x": random(4, 2, 3), "h": random(1, 2, 5, seed=9)}
    constants = {"w": random(1, 15, 3), "r": random(1, 15, 5)}
    node = helper.make_node("GRU", ["x", "w", "r", "", "", "h"], ["", "last"], hidden_size=5)
    model = model_of([node], inputs, ["last"], constants=constants)
    graph = imported(model, tmp_path)
    held = _only(graph)
    assert held.attrs["_inputs"] == "xxx--x"
    assert held.attrs["_outputs"] == "-x"
    (got,) = _run(build_residual(graph, held), {**inputs, **constants})
    np.testing.assert_allclose(got, run_onnx(model, inputs)[0], rtol=1e-5)


def _conditional(condition: list[str], inputs: Mapping[str, Array]) -> onnx.ModelProto:
    def branch(op: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{op}_out", 1, None)
        return helper.make_graph([helper.make_node(op, ["x", "x2"], [f"{op}_out"])], op, [], [out])

    nodes = [
        helper.make_node("Mul", ["x", "x"], ["x2"]),
        *[helper.make_node("Identity", ["c"], ["cond"]) for _ in condition],
        helper.make_node(
            "If", ["cond"], ["y"], then_branch=branch("Add"), else_branch=branch("Sub")
        ),
    ]
    return model_of(nodes, inputs, ["y"])


def test_a_conditional_on_data_stays_opaque(tmp_path: Path) -> None:
    """Its branches read values of the surrounding graph, under their own names."""
    inputs = {"x": random(3, 5), "c": np.array(True)}
    model = _conditional(["c"], inputs)
    graph = imported(model, tmp_path)
    node = _only(graph)
    assert node.op == "onnx.ai.If"
    assert node.attrs["_captures"] == ("x", "x2")
    part = build_residual(graph, node)
    x = inputs["x"]
    for flag, wanted in ((True, x + x * x), (False, x - x * x)):
        arrays = dict(zip(node.inputs, (np.array(flag), x, x * x), strict=True))
        np.testing.assert_allclose(_run(part, arrays)[0], wanted, rtol=1e-6)


def test_a_constant_conditional_is_inlined(tmp_path: Path) -> None:
    inputs = {"x": random(3, 5)}
    model = _conditional([], inputs)
    model.graph.initializer.append(numpy_helper.from_array(np.array(False), "cond"))
    graph = imported(model, tmp_path)
    assert [node.op for node in graph.nodes()] == ["mul", "sub"]


def test_a_loop_runs(tmp_path: Path) -> None:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Add", ["state", "step"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", 1, [3]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", 1, [3]),
        ],
    )
    inputs = {"n": np.array(4, np.int64), "x": random(3), "step": random(3, seed=1)}
    node = helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)
    model = model_of([node], inputs, ["y"])
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [3]))
    graph = imported(model, tmp_path)
    (got,) = _run(build_residual(graph, _only(graph)), inputs)
    np.testing.assert_allclose(got, inputs["x"] + 4 * inputs["step"], rtol=1e-6)


def test_a_loop_of_which_one_result_is_read(tmp_path: Path) -> None:
    """onnxruntime 1.22.2 crashes where a result of a loop has no name."""
    infos = [
        helper.make_tensor_value_info(name, element, shape)
        for name, element, shape in (
            ("i", TensorProto.INT64, []),
            ("go", TensorProto.BOOL, []),
            ("state", 1, [3]),
            ("on", TensorProto.BOOL, []),
            ("next", 1, [3]),
            ("row", 1, [3]),
        )
    ]
    nodes = [
        helper.make_node("Identity", ["go"], ["on"]),
        helper.make_node("Add", ["state", "step"], ["next"]),
        helper.make_node("Identity", ["state"], ["row"]),
    ]
    body = helper.make_graph(nodes, "body", infos[:3], infos[3:])
    inputs = {"n": np.array(4, np.int64), "x": random(3), "step": random(3, seed=1)}
    node = helper.make_node("Loop", ["n", "", "x"], ["last", "rows"], body=body)
    model = model_of([node], inputs, ["rows"])
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("rows", 1, [4, 3]))
    graph = imported(model, tmp_path)
    (got,) = _run(build_residual(graph, _only(graph)), inputs)
    wanted = inputs["x"] + np.arange(4)[:, None] * inputs["step"]
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


def test_bf16_is_widened_at_the_border(tmp_path: Path) -> None:
    """onnxruntime's CPU kernels do not take bf16."""
    node = helper.make_node("LRN", ["x"], ["y"], size=3, alpha=0.1, beta=0.7, bias=1.5)
    shape = (1, 4, 5, 5)
    info = helper.make_tensor_value_info("x", TensorProto.BFLOAT16, shape)
    out = helper.make_tensor_value_info("y", TensorProto.BFLOAT16, shape)
    model = helper.make_model(
        helper.make_graph([node], "g", [info], [out]), opset_imports=[helper.make_opsetid("", 17)]
    )
    graph = imported(model, tmp_path)
    x = random(*shape)
    (bits,) = _run(build_residual(graph, _only(graph)), {"x": f32_to_bf16(x)}, shape)
    narrow = {"x": bf16_to_f32(f32_to_bf16(x))}
    (wanted,) = run_onnx(model_of([node], narrow, ["y"]), narrow)
    got = bf16_to_f32(bits)
    np.testing.assert_allclose(got, wanted, rtol=2**-8)


def test_eight_bit_floats_are_refused(tmp_path: Path) -> None:
    """onnxruntime 1.22.2 crashes the process on them."""
    kind = TensorProto.FLOAT8E4M3FN
    info, out = (helper.make_tensor_value_info(name, kind, [3]) for name in "xy")
    node = helper.make_node("Mystery", ["x"], ["y"], domain="acme")
    imports = [helper.make_opsetid("", 19), helper.make_opsetid("acme", 1)]
    graph_proto = helper.make_graph([node], "g", [info], [out])
    graph = imported(helper.make_model(graph_proto, opset_imports=imports), tmp_path)
    with pytest.raises(UnsupportedError, match=r"can run `onnx.acme.Mystery`") as caught:
        build_residual(graph, _only(graph))
    assert "reason: onnxruntime cannot compute with `f8e4m3fn`" in caught.value.detail


def test_an_operator_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Mystery", ["x"], ["y"], domain="acme", name="/model/head/Mystery")
    model = model_of([node], {"x": random(3)}, ["y"])
    model.opset_import.append(helper.make_opsetid("acme", 1))
    match = r"nothing tells the type of `y`, which `Mystery` makes \(fusec has no translation"
    with pytest.raises(UnsupportedError, match=match):
        imported(model, tmp_path)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("y", 1, [3]))
    graph = imported(model, tmp_path)
    with pytest.raises(UnsupportedError, match=r"neither fusec nor onnxruntime") as caught:
        build_residual(graph, _only(graph))
    assert caught.value.at == "model.head"
    assert any(line.startswith("reason: onnxruntime refuses it") for line in caught.value.detail)


def test_an_operator_newer_than_opset_20_is_refused(tmp_path: Path) -> None:
    inputs = {"x": random(2, 1, 8, 4)}
    node = helper.make_node("Attention", ["x"] * 3, ["y", "", "", "scores"])
    model = model_of([node], inputs, ["y", "scores"], opset=24, ir_version=10)
    graph = imported(model, tmp_path)
    rejection = opset_rejection(_only(graph))
    assert rejection is not None
    assert rejection.code == "ort.opset"
    with pytest.raises(UnsupportedError) as caught:
        build_residual(graph, _only(graph))
    assert caught.value.hint == "export the model with opset 20"


def test_an_old_operator_of_a_new_opset_is_taken_back(tmp_path: Path) -> None:
    inputs = {"x": random(3, 5)}
    node = helper.make_node("NonZero", ["x"], ["y"])
    graph = imported(model_of([node], inputs, ["y"], opset=24), tmp_path)
    part = build_residual(graph, _only(graph))
    assert onnx.ModelProto.FromString(part.data).opset_import[0].version == 20
    assert _run(part, inputs)[0].shape == (2, 15)


@pytest.mark.parametrize("opset", [22, 25])
def test_an_operator_that_later_took_more_types_is_taken_back(opset: int, tmp_path: Path) -> None:
    """Opset 22 gave bf16 to forty operators; for other types they are what they were."""
    inputs, weight = {"x": random(1, 2, 5, 5)}, {"w": random(2, 3, 3, 3)}
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    model = model_of([node], inputs, ["y"], constants=weight, opset=opset, ir_version=10)
    graph = imported(model, tmp_path)
    assert opset_rejection(_only(graph)) is None
    (got,) = _run(build_residual(graph, _only(graph)), inputs | weight)
    (wanted,) = run_onnx(model_of([node], inputs, ["y"], constants=weight, opset=20), inputs)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("op", sorted(NEW_TYPES_ONLY - {"Cast", "CastLike"}))
def test_operators_that_later_took_more_types_did_nothing_else(op: str) -> None:
    """But for casts, which gained how they round to the new type e8m0."""
    old, new = (onnx.defs.get_schema(op, version, "") for version in (OPSET, OPSETS[-1]))
    assert old.since_version < new.since_version
    for one, other in ((old.inputs, new.inputs), (old.outputs, new.outputs)):
        assert [(x.name, x.option) for x in one] == [(x.name, x.option) for x in other]
    assert old.attributes.keys() == new.attributes.keys()
    for name, attribute in old.attributes.items():
        assert attribute.type == new.attributes[name].type
        assert attribute.default_value == new.attributes[name].default_value


def test_sizes_that_follow_from_constant_fractions(tmp_path: Path) -> None:
    inputs, scales = {"x": random(1, 1, 4, 4)}, {"s": np.array([1, 1, 2, 1.5], np.float32)}
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], mode="cubic")
    model = model_of([node], inputs, ["y"], constants=scales)
    graph = imported(model, tmp_path)
    assert graph.type(graph.outputs[0]).shape == (1, 1, 8, 6)
    (got,) = _run(build_residual(graph, _only(graph)), inputs | scales)
    np.testing.assert_array_equal(got, run_onnx(model, inputs)[0])


def test_a_part_keeps_the_opset_it_was_written_for(tmp_path: Path) -> None:
    """Before opset 13, a softmax without an axis is over all axes from the second on."""
    x = random(2, 3, 4)
    branches = [
        helper.make_graph(
            [helper.make_node(op, ["x"], ["t"])],
            "branch",
            [],
            [helper.make_tensor_value_info("t", 1, x.shape)],
        )
        for op in ("Softmax", "LogSoftmax")
    ]
    node = helper.make_node("If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1])
    inputs = {"flag": np.array(True), "x": x}
    model = model_of([node], inputs, ["y"], opset=11)
    graph = imported(model, tmp_path)
    (got,) = _run(build_residual(graph, _only(graph)), inputs)
    np.testing.assert_allclose(got, run_onnx(model, inputs)[0], rtol=1e-6)


def test_bytes_are_given_to_onnxruntime(tmp_path: Path) -> None:
    inputs = {"x": integers(0, 255, 1, 2, 4, 6, dtype=np.uint8)}
    node = helper.make_node("MaxPool", ["x"], ["y", "place"], kernel_shape=[2, 2], strides=[2, 2])
    model = model_of([node], inputs, ["y", "place"])
    graph = imported(model, tmp_path)
    assert opaque(graph) == ["onnx.ai.MaxPool"]
    results = _run(build_residual(graph, _only(graph)), inputs)
    for got, wanted in zip(results, run_onnx(model, inputs), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("target", "fallback", "code"),
    [
        ("gfx950", False, "ort.arch"),
        ("gfx950", True, None),
        ("gfx942", False, None),
        ("x86-64-v3", False, None),
        ("h100", False, "ort.arch"),
    ],
)
def test_architectures(target: str, fallback: bool, code: str | None) -> None:
    found = arch_rejection(target_named(target), allow_host_fallback=fallback)
    assert (found.code if found else None) == code


# --- ATen -----------------------------------------------------------------------------------


def _aten(op: str, types: Mapping[str, TensorType], results: list[TensorType], **attrs: Any) -> Any:
    graph = Graph("main", {"seq": (1, 64)})
    for name, kind in types.items():
        graph.add_input(name, kind)
    held = {"kwargs": (), **attrs}
    origin = Origin("model.layers.0", "model.py:7", op)
    node = graph.add(op, list(types), held, types=results, origin=origin)
    graph.outputs, graph.output_names = list(node.outputs), [f"o{i}" for i in range(len(results))]
    return graph, node


def test_aten_with_a_dynamic_size() -> None:
    """Run at a size other than the one it was exported with."""
    kind = TensorType("f32", (3, SEQ))
    graph, node = _aten(
        "aten.nonzero.default", {"x": kind}, [TensorType("i64", (7, 2))], args=("%0",)
    )
    part = build_residual(graph, node)
    x = np.where(random(3, 17) > 0, 1.0, 0.0).astype(np.float32)
    np.testing.assert_array_equal(_run(part, {"x": x})[0], np.stack(np.nonzero(x), axis=1))


@pytest.mark.slow
def test_aten_gives_the_same_bytes_and_no_paths() -> None:
    kind = TensorType("f32", (4, 5))
    made = [
        build_residual(*_aten("aten.elu.default", {"x": kind}, [kind], args=("%0", 0.5)))
        for _ in range(2)
    ]
    assert made[0].data == made[1].data
    assert b".py" not in made[0].data
    x = random(4, 5)
    wanted = np.where(x > 0, x, 0.5 * np.expm1(x))
    np.testing.assert_allclose(_run(made[0], {"x": x})[0], wanted, rtol=1e-5, atol=1e-6)


def test_aten_that_the_exporter_gets_wrong() -> None:
    """It scales the positive side of an `elu` by a factor that belongs to the negative one."""
    kind = TensorType("f32", (4, 5))
    graph, node = _aten("aten.elu.default", {"x": kind}, [kind], args=("%0", 0.5, 1.0, 2.0))
    with pytest.raises(UnsupportedError) as caught:
        build_residual(graph, node)
    assert caught.value.detail[2] == (
        "reason: what PyTorch's exporter gives computes something else"
    )


@pytest.mark.slow
def test_aten_in_bf16() -> None:
    kind = TensorType("bf16", (4, SEQ))
    graph, node = _aten("aten.cumsum.default", {"x": kind}, [kind], args=("%0", 1))
    part = build_residual(graph, node)
    bits = f32_to_bf16(random(4, 9))
    got = bf16_to_f32(_run(part, {"x": bits}, (4, 9))[0])
    np.testing.assert_allclose(got, np.cumsum(bf16_to_f32(bits), axis=1), rtol=2**-7, atol=1e-2)


@pytest.mark.slow
def test_aten_with_one_operand_twice_and_a_list() -> None:
    kind = TensorType("f32", (3, SEQ))
    graph = Graph("main", {"seq": (1, 64)})
    graph.add_input("x", kind)
    graph.add_input("y", kind)
    double = TensorType("f32", (9, SEQ))
    attrs: dict[str, Any] = {"args": (("%0", "%1", "%2"), 0), "kwargs": ()}
    node = graph.add("aten.cat.default", ("x", "y", "x"), attrs, types=[double])
    part = build_residual(graph, node)
    assert part.inputs == ("x", "y")
    x, y = random(3, 5), random(3, 5, seed=1)
    np.testing.assert_array_equal(_run(part, {"x": x, "y": y})[0], np.concatenate((x, y, x)))


@pytest.mark.slow
def test_aten_that_the_exporter_refuses() -> None:
    kind = TensorType("f32", (4, 4))
    results = [kind, TensorType("f32", (4,)), kind]
    graph, node = _aten("aten._linalg_svd.default", {"x": kind}, results, args=("%0",))
    with pytest.raises(UnsupportedError) as caught:
        build_residual(graph, node)
    error = caught.value
    assert error.at == "model.layers.0"
    assert error.detail[0] == "operation: aten._linalg_svd.default"
    assert error.detail[1] == f"node: {node.name}"
    assert error.detail[2].startswith("reason: ")


def test_an_operation_that_pytorch_has_not() -> None:
    kind = TensorType("f32", (4,))
    graph, node = _aten("torch.acme.twist.default", {"x": kind}, [kind], args=("%0",))
    with pytest.raises(UnsupportedError, match=r"can run `torch\.acme\.twist\.default`") as caught:
        build_residual(graph, node)
    assert caught.value.hint == "import the package that defines it before compiling"


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = TensorType("f32", (4,))
    graph, node = _aten("aten.sin.default", {"x": kind}, [kind], args=("%0",))
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "torch" else real(n))
    with pytest.raises(InputError, match="needs the package `torch`"):
        build_residual(graph, node)


# --- fusec's own operations -----------------------------------------------------------------

CORE: list[tuple[str, dict[str, Array], dict[str, Any]]] = [
    (
        "conv",
        {"x": random(2, 4, 7, 9), "w": random(6, 2, 3, 2), "b": random(6)},
        {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2},
    ),
    ("linear", {"x": random(3, 5), "w": random(4, 5), "b": random(4)}, {}),
    ("matmul", {"a": random(2, 3, 5), "b": random(5, 4)}, {}),
    ("softmax", {"x": random(3, 5)}, {"axis": 0}),
    ("log_softmax", {"x": random(3, 5)}, {"axis": -1}),
    ("logsumexp", {"x": random(3, 5)}, {"axes": (1,), "keepdims": False}),
    ("reduce_sum", {"x": random(3, 5, 2)}, {"axes": (0, 2), "keepdims": True}),
    ("reduce_max", {"x": random(3, 5)}, {"axes": (1,), "keepdims": False}),
    ("argmax", {"x": random(3, 5)}, {"axis": 1, "keepdims": False}),
    ("cumsum", {"x": random(3, 5)}, {"axis": 1}),
    ("topk", {"x": random(3, 7)}, {"axis": 1, "k": 3, "largest": True}),
    ("sort", {"x": random(3, 7)}, {"axis": 0, "descending": True, "stable": True}),
    ("gather", {"x": random(3, 7), "i": integers(0, 3, 2, 7)}, {"axis": 0}),
    ("take", {"x": random(3, 7), "i": integers(0, 7, 2, 5)}, {"axis": 1}),
    (
        "scatter",
        {"x": random(3, 7), "i": integers(0, 3, 2, 7), "s": random(2, 7)},
        {"axis": 0, "reduce": "add"},
    ),
    (
        "index",
        {"x": random(3, 7, 2), "i": integers(0, 3, 4, 1), "j": integers(0, 7, 5)},
        {"axes": (0, 1)},
    ),
    (
        "index_put",
        {"x": random(3, 7), "v": random(5), "i": integers(0, 3, 4, 1), "j": integers(0, 7, 5)},
        {"axes": (0, 1), "accumulate": True},
    ),
    ("pad", {"x": random(3, 7)}, {"low": (1, -2), "high": (0, 3), "value": 1.5}),
    (
        "layer_norm",
        {"x": random(3, 7), "w": random(7)},
        {"eps": 1e-3, "has_weight": True, "has_bias": False},
    ),
]


@pytest.mark.parametrize(("op", "arrays", "attrs"), CORE, ids=[entry[0] for entry in CORE])
def test_core_operation(op: str, arrays: dict[str, Array], attrs: dict[str, Any]) -> None:
    graph = Graph()
    for name, array in arrays.items():
        dtype = "f32" if array.dtype == np.float32 else "i64"
        graph.add_input(name, TensorType(dtype, array.shape))
    node = graph.add(op, list(arrays), attrs)
    graph.outputs, graph.output_names = list(node.outputs), list(node.outputs)
    part = build_residual(graph, node)
    assert part.reason == f"no kernel computes `{op}`"
    wanted = interpret(graph, arrays)
    for name, got in zip(part.outputs, _run(part, arrays), strict=True):
        np.testing.assert_allclose(got, wanted[name], rtol=1e-5, atol=1e-5)


def test_a_core_operation_without_an_equal() -> None:
    graph = Graph()
    graph.add_input("x", TensorType("f32", (9,)))
    node = graph.add("histogram", ("x",), {"bins": 3, "low": 0.0, "high": 1.0})
    with pytest.raises(UnsupportedError, match="can run `histogram`"):
        build_residual(graph, node)
