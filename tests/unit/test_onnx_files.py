"""ONNX files that are damaged, hostile or of another kind, and how weights are read."""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper
from onnx_models import assert_same, imported, model_of, random, run_onnx, saved

from fusec.diagnostics import FusecError, InputError, UnsupportedError
from fusec.dtypes import f32_to_bf16
from fusec.frontend.onnx import read_onnx

INPUTS = {"x": random(3, 5)}


def _model(**more: Any) -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "head.weight"], ["y"])
    return model_of([node], INPUTS, ["y"], constants={"head.weight": random(5, 4)}, **more)


def _refused(tmp_path: Path, model: onnx.ModelProto, match: str) -> FusecError:
    with pytest.raises(InputError, match=match) as caught:
        read_onnx(saved(model, tmp_path))
    assert caught.value.at is not None
    return caught.value


# --- not a model ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"", b"not a model at all", b"\x08\x08", b"PK\x03\x04" + bytes(40), bytes(range(256))],
    ids=["empty", "text", "version", "zip", "bytes"],
)
def test_other_files(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(InputError, match="truncated or is not an ONNX model") as caught:
        read_onnx(path)
    assert caught.value.at == str(path)


def test_every_truncation_is_an_input_error(tmp_path: Path) -> None:
    """Wherever the file is cut off."""
    model = _model()
    del model.opset_import[1:]
    data = model.SerializeToString()
    path = tmp_path / "model.onnx"
    for end in range(len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(InputError):
            read_onnx(path)


def test_flipped_bits_never_crash(tmp_path: Path) -> None:
    """Each byte in turn: the model is read, or refused with a message."""
    data = _model().SerializeToString()
    path = tmp_path / "model.onnx"
    read = 0
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes((data[place] ^ 0x15,)) + data[place + 1 :])
        try:
            read_onnx(path).verify()
            read += 1
        except InputError:
            continue
    assert read > 80  # most bytes are weights


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_onnx(tmp_path / "none.onnx")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name == "onnx":
            raise ImportError(name)
        return real(name, *args, **more)

    path = saved(_model(), tmp_path)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError) as caught:
        read_onnx(path)
    assert caught.value.hint == "pip install 'fusec[onnx]'"


@pytest.mark.parametrize("opset", [7, 10, 26, 99])
def test_opsets_that_are_not_known(opset: int, tmp_path: Path) -> None:
    error = _refused(tmp_path, _model(opset=opset), f"needs opset {opset}; 11 to 25 are known")
    assert isinstance(error, UnsupportedError)


@pytest.mark.parametrize("opset", [11, 13, 25])
def test_opsets_that_are_known(opset: int, tmp_path: Path) -> None:
    model = _model(opset=opset)
    wanted = INPUTS["x"] @ numpy_helper.to_array(model.graph.initializer[0])
    assert_same(imported(model, tmp_path), INPUTS, [wanted])


def test_an_ir_version_of_the_future(tmp_path: Path) -> None:
    _refused(tmp_path, _model(ir_version=77), "IR version 77")


def _no_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def _no_domain(model: onnx.ModelProto) -> None:
    del model.opset_import[1:]
    model.graph.node.append(helper.make_node("Gelu", ["y"], ["z"], domain="com.microsoft"))
    model.graph.output[0].name = "z"


def _no_output(model: onnx.ModelProto) -> None:
    del model.graph.output[:]


def _output_twice(model: onnx.ModelProto) -> None:
    model.graph.output.append(model.graph.output[0])


def _recursion(model: onnx.ModelProto) -> None:
    call = helper.make_node("F", ["y"], ["z"], domain="acme")
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    model.functions.append(helper.make_function("acme", "F", ["y"], ["z"], [call], imports))
    model.graph.node.append(call)
    model.graph.output[0].name = "z"
    model.opset_import.append(imports[1])


def _unknown_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "z"


def _unknown_input(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "z"


def _defined_twice(model: onnx.ModelProto) -> None:
    model.graph.node.append(model.graph.node[0])


def _cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "z"
    model.graph.node.append(helper.make_node("Relu", ["y"], ["z"]))


def _weight_twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def _short_weight(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.raw_data = tensor.raw_data[:-1]


def _wrong_shape(model: onnx.ModelProto) -> None:
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend((4, 5))


def _negative_shape(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -5


def _huge_shape(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 1 << 60


def _strings(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING


def _rankless(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


def _sequence(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = 1


def _bad_axis(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Softmax", ["y"], ["z"], axis=7))
    model.graph.output[0].name = "z"


def _reference(model: onnx.ModelProto) -> None:
    node = helper.make_node("Softmax", ["y"], ["z"])
    node.attribute.append(onnx.AttributeProto(name="axis", ref_attr_name="a", type=2))
    model.graph.node.append(node)
    model.graph.output[0].name = "z"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_no_opset, "does not say which opset"),
        (_no_domain, "which the file does not import"),
        (_no_output, "has no outputs"),
        (_output_twice, "the output `y` is declared twice"),
        (_recursion, "cannot inline the functions of the model: Cycle"),
        (_unknown_output, "nothing defines the output `z`"),
        (_unknown_input, "reads `z`, which nothing defines"),
        (_defined_twice, "value `y` is defined twice"),
        (_cycle, "read each other: `(MatMul`, `Relu`, `MatMul|Relu`, `MatMul`, `Relu)`"),
        (_weight_twice, r"weight `head\.weight` is defined twice"),
        (_short_weight, "has 79 bytes of data instead of 80"),
        (_wrong_shape, "sizes `5` and `4` have to be equal"),
        (_negative_shape, "impossible shape"),
        (_huge_shape, "impossible shape"),
        (_strings, "element type `string`"),
        (_rankless, "how many axes"),
        (_sequence, "`sequence_type`"),
        (_bad_axis, "axis 7 is outside rank 2"),
        (_reference, "refers to one that is not there"),
    ],
    ids=lambda item: getattr(item, "__name__", "").strip("_"),
)
def test_damaged_models(
    change: Callable[[onnx.ModelProto], None], match: str, tmp_path: Path
) -> None:
    model = _model()
    change(model)
    _refused(tmp_path, model, match)


def test_nodes_in_another_order(tmp_path: Path) -> None:
    """As tools write them that edit graphs; a branch reads what comes after it, too."""
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(op, ["b"], ["r"])],
            name,
            [],
            [helper.make_tensor_value_info("r", 1, None)],
        )
        for name, op in (("then", "Neg"), ("else", "Exp"))
    }
    nodes = [
        helper.make_node("If", ["flag"], ["y"], **branches),
        helper.make_node("Add", ["a", "x"], ["b"]),
        helper.make_node("Mul", ["x", "x"], ["a"]),
    ]
    model = model_of(nodes, INPUTS, ["y"], constants={"flag": np.array(False)})
    graph = imported(model, tmp_path)
    assert [node.op for node in graph.nodes()] == ["mul", "add", "exp"]
    x = INPUTS["x"]
    assert_same(graph, INPUTS, [np.exp(x * x + x)])


def test_the_message_says_which_module(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "b"], ["y"], name="/model/layers.3/mlp/Add")]
    model = model_of(nodes, INPUTS, ["y"], constants={"b": random(4)})
    error = _refused(tmp_path, model, "sizes `5` and `4`")
    assert str(error.at).endswith("model.onnx: model.layers.3.mlp")


# --- external data --------------------------------------------------------------------------


def _external(tmp_path: Path, location: str, **entries: str) -> Path:
    """A model whose weight is said to lie in `location`."""
    model = _model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return saved(model, tmp_path)


def test_external_data_is_read_by_offset(tmp_path: Path) -> None:
    model = _model()
    wanted = run_onnx(model, INPUTS)
    external_data_helper.convert_model_to_external_data(model, location="w.bin", size_threshold=0)
    onnx.save(model, str(tmp_path / "m.onnx"))
    data = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(b"seven b" + data)
    tensor = model.graph.initializer[0]
    for entry in tensor.external_data:
        if entry.key == "offset":
            entry.value = "7"
    tensor.ClearField("raw_data")
    graph = read_onnx(saved(model, tmp_path))
    (weight,) = graph.parameters.values()
    assert weight.name == "head.weight"
    assert weight.shape == (4, 5)
    assert_same(graph, INPUTS, wanted)


@pytest.mark.parametrize(
    "location",
    [
        "../secret.bin",
        "a/../../secret.bin",
        "/etc/passwd",
        "C:\\secret.bin",
        "..\\secret.bin",
        "\\\\host\\secret.bin",
        "",
        "a\0b",
    ],
)
def test_external_data_stays_in_the_folder(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(80))
    folder = tmp_path / "model"
    folder.mkdir()
    path = _external(folder, location)
    with pytest.raises(InputError, match="not inside the model's folder"):
        read_onnx(path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(80))
    (folder / "w.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(InputError, match="not inside the model's folder"):
        read_onnx(_external(folder, "w.bin"))


def test_links_of_a_download_cache_are_followed(tmp_path: Path) -> None:
    """Model and data are links into one folder, as Hugging Face's cache has them."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    (blobs / "1").write_bytes(random(5, 4).tobytes())
    os.rename(_external(blobs, "w.bin"), blobs / "2")
    (snapshot / "w.bin").symlink_to(blobs / "1")
    (snapshot / "model.onnx").symlink_to(blobs / "2")
    graph = read_onnx(snapshot / "model.onnx")
    assert_same(graph, INPUTS, [INPUTS["x"] @ random(5, 4)])


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"offset": "1"}, "ends outside the file"),
        ({"offset": "-1"}, "ends outside the file"),
        ({"length": "79"}, "has 79 bytes of data instead of 80"),
        ({"offset": "many"}, "no number"),
    ],
    ids=str,
)
def test_external_data_that_does_not_fit(
    entries: dict[str, str], match: str, tmp_path: Path
) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(80))
    with pytest.raises(InputError, match=match):
        read_onnx(_external(tmp_path, "w.bin", **entries))


def test_external_data_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file `w\.bin` beside the model"):
        read_onnx(_external(tmp_path, "w.bin"))


def test_external_weights_are_not_read_before_they_are_wanted(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(random(5, 4).tobytes())
    graph = read_onnx(_external(tmp_path, "w.bin"))
    (tmp_path / "w.bin").write_bytes(b"")
    (weight,) = graph.parameters.values()
    with pytest.raises(InputError, match="ends outside the file"):
        weight.load()


# --- weights --------------------------------------------------------------------------------


def test_linear_weights_keep_their_names(tmp_path: Path) -> None:
    """Transposed twice is not transposed; a name made of numbers gives way to the module's."""
    nodes = [
        helper.make_node("Transpose", ["up.weight"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["h"]),
        helper.make_node("Add", ["h", "up.bias"], ["b"]),
        helper.make_node("MatMul", ["b", "val_7"], ["y"], name="/model/down/MatMul"),
    ]
    weights = {"up.weight": random(6, 5), "up.bias": random(6), "val_7": random(6, 2)}
    model = model_of(nodes, INPUTS, ["y"], constants=weights)
    graph = imported(model, tmp_path)
    assert [node.op for node in graph.nodes()] == ["linear", "linear"]
    shapes = {weight.name: weight.shape for weight in graph.parameters.values()}
    assert shapes == {"up.weight": (6, 5), "up.bias": (6,), "model.down.weight": (2, 6)}
    original = next(w for w in graph.parameters.values() if w.name == "up.weight")
    np.testing.assert_array_equal(original.load(), weights["up.weight"])
    assert_same(graph, INPUTS, run_onnx(model, INPUTS))


def test_a_bias_joins_only_its_own_product(tmp_path: Path) -> None:
    """Where the product itself is read elsewhere, the sum stays a sum."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["y"]),
        helper.make_node("Relu", ["h"], ["z"]),
    ]
    weights = {"w": random(5, 6), "b": random(6)}
    model = model_of(nodes, INPUTS, ["y", "z"], constants=weights)
    graph = imported(model, tmp_path)
    assert sorted(node.op for node in graph.nodes()) == ["add", "linear", "relu"]
    assert_same(graph, INPUTS, run_onnx(model, INPUTS))


def test_bf16_weights(tmp_path: Path) -> None:
    bits = f32_to_bf16(random(5, 4))
    raw = TensorProto(name="w", data_type=TensorProto.BFLOAT16, dims=bits.shape)
    raw.raw_data = bits.tobytes()
    typed = TensorProto(name="v", data_type=TensorProto.BFLOAT16, dims=bits.shape)
    typed.int32_data.extend(bits.ravel().tolist())
    info = helper.make_tensor_value_info("x", TensorProto.BFLOAT16, [3, 5])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["x", "v"], ["b"]),
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in "ab"]
    proto = helper.make_graph(nodes, "g", [info], outputs, [raw, typed])
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 18)])
    graph = imported(model, tmp_path)
    assert {weight.type.dtype for weight in graph.parameters.values()} == {"bf16"}
    for weight in graph.parameters.values():
        np.testing.assert_array_equal(weight.load(), bits.T)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.bool_, np.int32])
def test_numbers_that_are_not_stored_as_bytes(dtype: Any, tmp_path: Path) -> None:
    array = (random(3, 7) * 5).astype(dtype)
    stored = array.view(np.uint16) if dtype is np.float16 else array
    stored = stored.astype(np.int32) if dtype is np.bool_ else stored
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    tensor = TensorProto(name="w", data_type=element, dims=array.shape)
    field = "double_data" if dtype is np.float64 else "int32_data"
    getattr(tensor, field).extend(stored.ravel().tolist())
    node = helper.make_node("Gather", ["w", "i"], ["y"])
    inputs = {"i": np.array([2, 0], np.int64)}
    model = model_of([node], inputs, ["y"])
    model.graph.initializer.append(tensor)
    assert_same(imported(model, tmp_path), inputs, [array[[2, 0]]])


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    body = [helper.make_node("Mul", ["a", "a"], ["b"]), helper.make_node("Add", ["b", "a"], ["c"])]
    function = helper.make_function("acme", "F", ["a"], ["c"], body, [helper.make_opsetid("", 17)])
    model = model_of([helper.make_node("F", ["x"], ["y"], domain="acme")], INPUTS, ["y"])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("acme", 1))
    graph = imported(model, tmp_path)
    assert [node.op for node in graph.nodes()] == ["mul", "add"]
    x = INPUTS["x"]
    assert_same(graph, INPUTS, [x * x + x])


def test_local_functions_of_another_opset(tmp_path: Path) -> None:
    """Before opset 13, a softmax without an axis is over all axes from the second on."""
    body = [helper.make_node("Softmax", ["a"], ["b"])]
    function = helper.make_function("acme", "F", ["a"], ["b"], body, [helper.make_opsetid("", 11)])
    inputs = {"x": random(2, 3, 4)}
    model = model_of([helper.make_node("F", ["x"], ["y"], domain="acme")], inputs, ["y"])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("acme", 1))
    exp = np.exp(inputs["x"].astype(np.float64))
    assert_same(imported(model, tmp_path), inputs, [exp / exp.sum((1, 2), keepdims=True)])
