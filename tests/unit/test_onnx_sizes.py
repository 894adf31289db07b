"""Sizes of dynamic models: followed while importing, so that no node computes one."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import (
    Array,
    assert_same,
    imported,
    integers,
    model_of,
    opaque,
    random,
    run_onnx,
)

from fusec.diagnostics import InputError, UnsupportedError, UsageError
from fusec.ir import Graph, parse_graph, print_graph


def _node(op: str, inputs: str, outputs: str, **attrs: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **attrs)


def _ints(*items: int) -> Array:
    return np.array(items, dtype=np.int64)


def _ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes()]


def test_heads_are_split_by_computed_shapes(tmp_path: Path) -> None:
    """As the older exporters of PyTorch and optimum write it."""
    nodes = [
        _node("Shape", "x", "s"),
        _node("Gather", "s zero", "batch", axis=0),
        _node("Gather", "s one", "seq", axis=0),
        _node("Gather", "s two", "hidden", axis=0),
        _node("Div", "hidden four", "size"),
        _node("Cast", "size", "size64", to=7),
        _node("Unsqueeze", "batch axes", "b1"),
        _node("Unsqueeze", "seq axes", "s1"),
        _node("Unsqueeze", "four axes", "f1"),
        _node("Unsqueeze", "size64 axes", "d1"),
        _node("Concat", "b1 s1 f1 d1", "shape", axis=0),
        _node("Reshape", "x shape", "h"),
        _node("Transpose", "h", "t", perm=[0, 2, 1, 3]),
        _node("Cast", "size64", "real", to=1),
        _node("Sqrt", "real", "root"),
        _node("Div", "t root", "u"),
        _node("Mul", "b1 f1", "bf"),
        _node("Concat", "bf minus d1", "flat", axis=0),
        _node("Reshape", "u flat", "y"),
    ]
    constants = {
        "zero": np.int64(0),
        "one": np.int64(1),
        "two": np.int64(2),
        "four": np.int64(4),
        "axes": _ints(0),
        "minus": _ints(-1),
    }
    held = {name: np.asarray(value) for name, value in constants.items()}
    inputs = {"x": random(2, 5, 12)}
    shapes = {"x": ("batch", "seq", 12)}
    model = model_of(nodes, inputs, ["y"], constants=held, shapes=shapes)
    graph = imported(model, tmp_path)
    assert _ops(graph) == ["reshape", "transpose", "constant", "div", "reshape"]
    assert [str(dim) for dim in graph.type(graph.outputs[0]).shape] == ["4*batch", "seq", "3"]
    for shape in ((2, 5, 12), (3, 7, 12)):
        given = {"x": random(*shape)}
        assert_same(graph, given, run_onnx(model, given))


def test_expand_guarded_by_a_comparison(tmp_path: Path) -> None:
    """`Where(Equal(shape, -1), ones, shape)`: sizes are never -1."""
    nodes = [
        _node("Shape", "ids", "s"),
        _node("Slice", "s zero one", "b"),
        _node("Slice", "s one two", "q"),
        _node("Concat", "b unit q q", "shape", axis=0),
        _node("Reshape", "shape minus", "flat"),
        _node("Shape", "flat", "n"),
        _node("ConstantOfShape", "n", "ones", value=helper.make_tensor("v", 7, [1], [1])),
        _node("Mul", "ones minus", "negative"),
        _node("Equal", "flat negative", "same"),
        _node("Where", "same ones flat", "target"),
        _node("Expand", "mask target", "y"),
    ]
    constants = {"zero": _ints(0), "one": _ints(1), "two": _ints(2), "unit": _ints(1)}
    constants |= {"minus": _ints(-1), "mask": random(1, 1, 1, 1)}
    inputs = {"ids": integers(0, 9, 2, 3)}
    shapes = {"ids": ("batch", "seq")}
    model = model_of(nodes, inputs, ["y"], constants=constants, shapes=shapes)
    graph = imported(model, tmp_path)
    assert "where" not in _ops(graph)
    given = {"ids": integers(0, 9, 3, 5)}
    assert_same(graph, given, run_onnx(model, given))


def test_positions_and_ranges(tmp_path: Path) -> None:
    nodes = [
        _node("Shape", "ids", "s"),
        _node("Gather", "s one", "n"),
        _node("Range", "zero n one", "p"),
        _node("Unsqueeze", "p axes", "row"),
        _node("Gather", "table row", "e"),
        _node("Squeeze", "e axes", "y"),
    ]
    constants = {"one": np.array(1), "zero": np.array(0), "axes": _ints(0), "table": random(64, 5)}
    inputs = {"ids": integers(0, 9, 2, 7)}
    shapes = {"ids": ("batch", "seq")}
    model = model_of(nodes, inputs, ["y"], constants=constants, shapes=shapes)
    graph = imported(model, tmp_path)
    assert _ops(graph) == ["iota", "reshape", "take", "reshape"]
    assert_same(graph, inputs, run_onnx(model, inputs))


def test_resized_by_a_rounded_quotient(tmp_path: Path) -> None:
    """Floor of a size times a half, as position tables of images are cut."""
    nodes = [
        _node("Shape", "x", "s", start=1, end=2),
        _node("Cast", "s", "f", to=1),
        _node("Mul", "f half", "g"),
        _node("Floor", "g", "h"),
        _node("Cast", "h", "k", to=7),
        _node("Slice", "x zero k one", "y"),
    ]
    constants = {"half": np.array([0.5], np.float32), "zero": _ints(0), "one": _ints(1)}
    inputs = {"x": random(2, 9)}
    model = model_of(nodes, inputs, ["y"], constants=constants, shapes={"x": (2, "n")})
    graph = imported(model, tmp_path)
    assert _ops(graph) == ["slice"]
    for size in (9, 4, 2):
        given = {"x": random(2, size)}
        assert_same(graph, given, run_onnx(model, given))


@pytest.mark.parametrize("dims", [{}, {"seq": "1:8:16"}, {"seq": (1, 16)}])
def test_a_table_limits_the_range(dims: dict[str, Any], tmp_path: Path) -> None:
    """The first `seq` rows of a table of 16: `seq` is at most 16, and the sum needs no `min`."""
    nodes = [
        _node("Shape", "x", "s", start=1, end=2),
        _node("Slice", "table zero s", "p"),
        _node("Add", "x p", "y"),
    ]
    constants = {"table": random(16, 3), "zero": _ints(0)}
    inputs = {"x": random(2, 5, 3)}
    shapes = {"x": ("batch", "seq", 3)}
    model = model_of(nodes, inputs, ["y"], constants=constants, shapes=shapes)
    graph = imported(model, tmp_path, dims=dims)
    assert graph.symbols == {"batch": (1, None), "seq": (1, 16)}
    assert_same(graph, inputs, run_onnx(model, inputs))


def test_a_range_beyond_a_table_is_refused(tmp_path: Path) -> None:
    nodes = [
        _node("Shape", "x", "s", start=0, end=1),
        _node("Slice", "table zero s", "p"),
        _node("Add", "x p", "y"),
    ]
    constants = {"table": random(16), "zero": _ints(0)}
    model = model_of(nodes, {"x": random(5)}, ["y"], constants=constants, shapes={"x": ("seq",)})
    with pytest.raises(UsageError, match="`seq` may not be larger than 16") as caught:
        imported(model, tmp_path, dims={"seq": "1:32"})
    assert caught.value.hint == "give `--dim seq=1:16`"


def test_one_size_with_two_symbols(tmp_path: Path) -> None:
    """Automatic dimensions give each input its own symbols; the sum says that they are one."""
    inputs = {"a": random(2, 5), "b": random(2, 5)}
    shapes = {"a": ("s1", "s2"), "b": ("s3", "s4")}
    model = model_of([_node("Add", "a b", "y")], inputs, ["y"], shapes=shapes)
    graph = imported(model, tmp_path)
    assert graph.type("b") == graph.type("a")
    assert list(graph.symbols) == ["s1", "s2"]
    assert_same(graph, inputs, run_onnx(model, inputs))


def test_a_size_that_follows_from_two_sums(tmp_path: Path) -> None:
    """Each cache has a size of its own; behind each come as many keys."""
    nodes = [
        _node("Concat", "p x", "k", axis=0),
        _node("Concat", "q x", "v", axis=0),
        _node("Add", "k v", "y"),
        _node("Add", "y z", "w"),
    ]
    inputs = {name: random(size, 4) for name, size in (("p", 3), ("q", 3), ("x", 2), ("z", 5))}
    shapes = {name: (f"{name}_size", 4) for name in inputs}
    model = model_of(nodes, inputs, ["w"], shapes=shapes)
    graph = imported(model, tmp_path)
    assert list(graph.symbols) == ["p_size", "x_size"]
    assert graph.type("q") == graph.type("p")
    assert str(graph.type("z").shape[0]) == "p_size + x_size"
    assert_same(graph, inputs, run_onnx(model, inputs))


def test_rows_of_two_axes_with_a_symbol_of_their_own(tmp_path: Path) -> None:
    nodes = [_node("Reshape", "rows shape", "r"), _node("Add", "r x", "y")]
    nodes = [_node("Shape", "x", "shape"), *nodes]
    inputs = {"x": random(2, 3, 4), "rows": random(6, 4)}
    shapes = {"x": ("batch", "seq", 4), "rows": ("n", 4)}
    model = model_of(nodes, inputs, ["y"], shapes=shapes)
    graph = imported(model, tmp_path)
    assert str(graph.type("rows").shape[0]) == "batch*seq"
    assert_same(graph, inputs, run_onnx(model, inputs))


def test_a_size_that_has_to_divide_two(tmp_path: Path) -> None:
    """GPT-2 makes `[batch, -1]` of its mask, with the batch of its token ids."""
    nodes = [
        _node("Shape", "ids", "batch", end=1),
        _node("Concat", "batch rest", "shape", axis=0),
        _node("Reshape", "mask shape", "y"),
    ]
    inputs = {"ids": random(2, 3), "mask": random(2, 5)}
    shapes = {"ids": ("s1", "s2"), "mask": ("s3", "s4")}
    model = model_of(nodes, inputs, ["y"], constants={"rest": _ints(-1)}, shapes=shapes)
    graph = imported(model, tmp_path)
    assert list(map(str, graph.type("mask").shape)) == ["s1", "s4"]
    assert_same(graph, inputs, run_onnx(model, inputs))


def test_a_size_that_tracing_fixed(tmp_path: Path) -> None:
    """`batch * seq * 8` elements can be `batch * 56` only where `seq` is 7."""
    nodes = [
        _node("Shape", "x", "s", end=1),
        _node("Concat", "s traced", "shape", axis=0),
        _node("Reshape", "x shape", "y"),
    ]
    inputs = {"x": random(3, 7, 8)}
    shapes = {"x": ("batch", "seq", 8)}
    model = model_of(nodes, inputs, ["y"], constants={"traced": _ints(56)}, shapes=shapes)
    graph = imported(model, tmp_path)
    assert list(graph.symbols) == ["batch"]
    assert_same(graph, inputs, run_onnx(model, inputs))
    with pytest.raises(UsageError, match="the size `seq` is always `7` in this model"):
        imported(model, tmp_path, dims={"seq": "1:16"})


def test_a_size_that_was_specialised_is_not_promised(tmp_path: Path) -> None:
    inputs = {"x": random(2, 5)}
    nodes = [_node("Add", "x c", "y")]
    model = model_of(
        nodes, inputs, ["y"], constants={"c": random(2, 5)}, shapes={"x": ("batch", "seq")}
    )
    graph = imported(model, tmp_path)
    assert graph.type("x").shape == (2, 5)
    with pytest.raises(UsageError, match="the size `seq` is always `5`"):
        imported(model, tmp_path, dims={"seq": "1:8"})


def test_names_of_expressions(tmp_path: Path) -> None:
    """Sizes that the file writes as sums, such as those of a cache."""
    inputs = {"past": random(2, 3), "x": random(2, 5), "mask": random(2, 8)}
    shapes = {
        "past": (2, "past_length"),
        "x": (2, "length"),
        "mask": (2, "past_length + length"),
    }
    nodes = [_node("Concat", "past x", "all", axis=1), _node("Add", "all mask", "y")]
    model = model_of(nodes, inputs, ["y"], shapes=shapes)
    graph = imported(model, tmp_path)
    assert sorted(graph.symbols) == ["length", "past_length"]
    assert_same(graph, inputs, run_onnx(model, inputs))
    empty = {**inputs, "past": np.zeros((2, 0), np.float32), "mask": random(2, 5)}
    without = imported(model, tmp_path, dims={"past_length": 0})
    assert without.type("mask") == without.type("x")
    assert_same(without, empty, run_onnx(model, empty))


def test_a_symbol_for_a_sum(tmp_path: Path) -> None:
    """`total` is found to be `past + length`."""
    inputs = {"past": random(2, 3), "x": random(2, 5), "mask": random(2, 8)}
    shapes = {"past": (2, "past"), "x": (2, "length"), "mask": (2, "total")}
    nodes = [_node("Concat", "past x", "all", axis=1), _node("Add", "all mask", "y")]
    graph = imported(model_of(nodes, inputs, ["y"], shapes=shapes), tmp_path)
    assert str(graph.type("mask").shape[1]) == "length + past"


@pytest.mark.parametrize(
    ("shape", "symbols"),
    [
        (("threads", "a-b:c"), ["threads_", "a_b_c"]),
        (("größe", "inf"), ["gr_e", "inf_"]),
    ],
)
def test_names_that_texts_of_graphs_do_not_take(
    shape: tuple[str, str], symbols: list[str], tmp_path: Path
) -> None:
    model = model_of([_node("Relu", "x", "y")], {"x": random(2, 5)}, ["y"], shapes={"x": shape})
    graph = imported(model, tmp_path)
    assert list(graph.symbols) == symbols
    assert list(parse_graph(print_graph(graph)).symbols) == symbols


@pytest.mark.parametrize("shape", [(None, 0), ("?", "?")])
def test_unnamed_sizes(shape: tuple[Any, ...], tmp_path: Path) -> None:
    inputs = {"x": random(2, 5)}
    model = model_of([_node("Relu", "x", "y")], inputs, ["y"], shapes={"x": shape})
    graph = imported(model, tmp_path)
    assert list(graph.symbols) == ["x_0", "x_1"]
    assert_same(graph, inputs, [np.maximum(inputs["x"], 0)])


def test_ranges_and_single_sizes(tmp_path: Path) -> None:
    inputs = {"x": random(2, 5)}
    shapes = {"x": ("batch", "seq")}
    model = model_of([_node("Relu", "x", "y")], inputs, ["y"], shapes=shapes)
    graph = imported(model, tmp_path, dims={"batch": "1:4:64", "seq": 5})
    assert graph.symbols == {"batch": (1, 64)}
    assert graph.type("x").shape[1] == 5
    with pytest.raises(UsageError, match="no dynamic size called `sequence`") as caught:
        imported(model, tmp_path, dims={"sequence": 5})
    assert caught.value.hint == "its dynamic sizes are `batch`, `seq`"


def test_sizes_that_never_agree(tmp_path: Path) -> None:
    inputs = {"x": random(2, 5)}
    nodes = [_node("Concat", "x x", "d", axis=1), _node("Add", "d x", "y")]
    model = model_of(nodes, inputs, ["y"], shapes={"x": (2, 5)})
    with pytest.raises(InputError, match="sizes `10` and `5` have to be equal"):
        imported(model, tmp_path)


def test_a_shape_that_depends_on_data_stays_opaque(tmp_path: Path) -> None:
    inputs = {"x": random(2, 6), "n": _ints(3, 4)}
    model = model_of([_node("Reshape", "x n", "y")], inputs, ["y"])
    graph = imported(model, tmp_path)
    assert _ops(graph) == ["onnx.ai.Reshape"]
    (node,) = graph.nodes()
    assert node.attrs["_why"] == "the new shape depends on the data"
    assert graph.type(node.output).rank == 2


def test_sizes_that_the_file_declares_of_what_depends_on_data(tmp_path: Path) -> None:
    """Inference tells only the rank; the file tells the rest, by names that may have changed."""
    inputs = {"x": random(2, 6), "n": _ints(2, 2, 3), "z": random(2, 1)}
    nodes = [_node("Mul", "x z", "w"), _node("Reshape", "x n", "r"), _node("Relu", "r", "y")]
    shapes = {"x": ("batch", 6), "n": (3,), "z": ("rows", 1)}
    model = model_of(nodes, inputs, ["y", "w"], shapes=shapes)
    model.graph.value_info.append(helper.make_tensor_value_info("r", 1, ["rows", None, 3]))
    graph = imported(model, tmp_path)
    first, second, third = graph.type(graph.outputs[0]).shape
    assert (str(first), third) == ("batch", 3)
    assert str(second).startswith("reshape_size")


def test_a_size_that_depends_on_data_is_not_a_contradiction(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("Add", ["r", "w"], ["y"]),
    ]
    inputs = {"x": random(2, 3), "shape": np.array([3, 2], np.int64)}
    model = model_of(nodes, inputs, ["y"], constants={"w": random(3, 2)})
    with pytest.raises(UnsupportedError, match=r"the size `reshape_size(_1)?` depends on data"):
        imported(model, tmp_path)


def test_sizes_that_are_returned(tmp_path: Path) -> None:
    nodes = [_node("Shape", "x", "s"), _node("Size", "x", "n"), _node("Cast", "s", "r", to=1)]
    inputs = {"x": random(2, 3)}
    model = model_of(nodes, inputs, ["s", "n", "r"], shapes={"x": ("batch", "seq")})
    graph = imported(model, tmp_path)
    assert not any(isinstance(node.attrs.get("value"), tuple) for node in graph.nodes())
    for shape in ((2, 3), (7, 5)):
        given = {"x": random(*shape)}
        assert_same(graph, given, run_onnx(model, given))


def test_a_comparison_that_depends_on_the_size_is_computed(tmp_path: Path) -> None:
    """Whether `seq` is above 4 is known only where the model runs."""
    nodes = [
        _node("Shape", "x", "s", start=1, end=2),
        _node("Greater", "s four", "long"),
        _node("Where", "long x z", "y"),
    ]
    constants = {"four": _ints(4), "z": np.zeros(1, np.float32)}
    inputs = {"x": random(2, 3)}
    model = model_of(nodes, inputs, ["y"], constants=constants, shapes={"x": (2, "seq")})
    graph = imported(model, tmp_path)
    for size in (3, 4, 5):
        given = {"x": random(2, size)}
        assert_same(graph, given, run_onnx(model, given))


RESIZES = [
    ("nearest", "asymmetric", "floor"),
    ("nearest", "asymmetric", "ceil"),
    ("nearest", "half_pixel", "round_prefer_floor"),
    ("nearest", "half_pixel", "round_prefer_ceil"),
    ("linear", "half_pixel", "floor"),
    ("linear", "pytorch_half_pixel", "floor"),
    ("linear", "align_corners", "floor"),
    ("linear", "asymmetric", "floor"),
]


def _resize(how: tuple[str, str, str], operands: list[str]) -> onnx.NodeProto:
    names = ("mode", "coordinate_transformation_mode", "nearest_mode")
    return helper.make_node("Resize", operands, ["y"], **dict(zip(names, how, strict=True)))


@pytest.mark.parametrize("scale", [2.0, 0.5, 0.7, 1.1])
@pytest.mark.parametrize("how", RESIZES, ids="-".join)
def test_resize_by_a_scale_of_a_size_that_is_not_fixed(
    how: tuple[str, str, str], scale: float, tmp_path: Path
) -> None:
    inputs = {"x": random(1, 2, 10, 3)}
    node = _resize(how, ["x", "", "scales"])
    constants = {"scales": np.array([1, 1, scale, 1], np.float32)}
    shapes = {"x": (1, 2, "height", 3)}
    model = model_of([node], inputs, ["y"], constants=constants, shapes=shapes)
    graph = imported(model, tmp_path)
    for height in (2, 10, 23):
        if int(height * scale) != height:  # onnxruntime copies then
            given = {"x": random(1, 2, height, 3)}
            assert_same(graph, given, run_onnx(model, given))


@pytest.mark.parametrize("how", RESIZES, ids="-".join)
def test_resize_to_the_size_of_another_input(how: tuple[str, str, str], tmp_path: Path) -> None:
    inputs = {"x": random(1, 2, 9, 3), "like": random(1, 2, 4, 3)}
    nodes = [_node("Shape", "like", "sizes"), _resize(how, ["x", "", "", "sizes"])]
    shapes = {"x": (1, 2, "height", 3), "like": (1, 2, "rows", 3)}
    model = model_of(nodes, inputs, ["y"], shapes=shapes)
    graph = imported(model, tmp_path)
    for height, rows in ((9, 4), (9, 14), (6, 6), (3, 1), (1, 3)):
        given = {"x": random(1, 2, height, 3), "like": random(1, 2, rows, 3)}
        assert_same(graph, given, run_onnx(model, given))


def test_a_scale_is_the_fraction_that_it_stands_for(tmp_path: Path) -> None:
    """10 times 0.7 are 7, though 0.7 is less in 32 bits."""
    inputs = {"x": random(1, 1, 10, 3)}
    constants = {"scales": np.array([1, 1, 0.7, 1], np.float32)}
    model = model_of([_resize(RESIZES[0], ["x", "", "scales"])], inputs, ["y"], constants=constants)
    graph = imported(model, tmp_path)
    assert graph.type(graph.outputs[0]).shape == (1, 1, 7, 3)
    assert_same(graph, inputs, run_onnx(model, inputs))


def test_an_impossible_scale_is_refused(tmp_path: Path) -> None:
    inputs = {"x": random(1, 1, 10, 3)}
    constants = {"scales": np.array([1, 1, 0, 1], np.float32)}
    model = model_of([_resize(RESIZES[0], ["x", "", "scales"])], inputs, ["y"], constants=constants)
    with pytest.raises(InputError, match="the impossible scale 0"):
        imported(model, tmp_path)


def _halved_and_doubled(folder: Path, **more: Any) -> tuple[onnx.ModelProto, Graph]:
    pool = {"kernel_shape": [3, 1], "strides": [2, 1], "pads": [1, 0, 1, 0]}
    nodes = [
        _node("MaxPool", "x", "half", **pool),
        _node("MaxPool", "half", "quarter", **pool),
        helper.make_node("Resize", ["quarter", "", "twice"], ["up"]),
        _node("Concat", "half up", "y", axis=1),
    ]
    constants = {"twice": np.array([1, 1, 2, 1], np.float32)}
    inputs, shapes = {"x": random(1, 2, 8, 3)}, {"x": (1, 2, "height", 3)}
    model = model_of(nodes, inputs, ["y"], constants=constants, shapes=shapes)
    return model, imported(model, folder, **more)


def test_a_size_that_has_to_be_a_multiple(tmp_path: Path) -> None:
    """A network that halves a height and doubles it again takes the heights that come back."""
    model, graph = _halved_and_doubled(tmp_path, dims={"height_by_4": (1, 16)})
    assert str(graph.type("x").shape[2]) == "4*height_by_4"
    assert graph.symbols == {"height_by_4": (1, 16)}
    for height in (4, 12, 64):
        given = {"x": random(1, 2, height, 3)}
        assert_same(graph, given, run_onnx(model, given))


def test_a_range_is_no_range_of_multiples(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`height` has to be a multiple of 4") as caught:
        _halved_and_doubled(tmp_path, dims={"height": (4, 64)})
    assert caught.value.hint is not None and "--dim height_by_4=..." in caught.value.hint
    _, graph = _halved_and_doubled(tmp_path, dims={"height": 12})
    assert graph.type("x").shape == (1, 2, 12, 3)


def test_rows_in_groups(tmp_path: Path) -> None:
    inputs = {"x": random(28, 3)}
    constants = {"shape": _ints(-1, 14, 3)}
    nodes = [_node("Reshape", "x shape", "y")]
    model = model_of(nodes, inputs, ["y"], constants=constants, shapes={"x": ("rows", 3)})
    graph = imported(model, tmp_path)
    assert [str(dim) for dim in graph.type(graph.outputs[0]).shape] == ["rows_by_14", "14", "3"]
    assert_same(graph, inputs, run_onnx(model, inputs))


FITTED = [{"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}]
ROUNDED_UP: list[dict[str, Any]] = [{"ceil_mode": 1}, {"ceil_mode": 1, "pads": [1, 0, 1, 0]}]


@pytest.mark.parametrize(
    ("op", "more"),
    [
        *itertools.product(("MaxPool", "AveragePool"), (*FITTED, *ROUNDED_UP)),
        *itertools.product(("Conv",), FITTED),
    ],
)
def test_windows_over_a_size_that_is_not_fixed(
    op: str, more: dict[str, Any], tmp_path: Path
) -> None:
    """Padding that depends on the size, and windows that reach beyond it."""
    names = ["x", "w"] if op == "Conv" else ["x"]
    node = helper.make_node(op, names, ["y"], kernel_shape=[3, 2], strides=[2, 1], **more)
    inputs, constants = {"x": random(1, 2, 9, 5)}, {"w": random(4, 2, 3, 2)}
    shapes = {"x": (1, 2, "height", 5)}
    model = model_of([node], inputs, ["y"], constants=constants, shapes=shapes, opset=19)
    graph = imported(model, tmp_path)
    assert not opaque(graph)
    for height in (3, 8, 9, 10):
        given = {"x": random(1, 2, height, 5)}
        assert_same(graph, given, run_onnx(model, given))
