"""Operators of onnxruntime's own domain against its kernels, and attention of opset 23."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx_models import (
    MICROSOFT,
    Array,
    assert_same,
    imported,
    integers,
    model_of,
    opaque,
    random,
    run_onnx,
)

from fusec.diagnostics import UnsupportedError, UsageError
from fusec.ir import Graph
from fusec.ir.interpret import interpret

BATCH, LENGTH, HEADS, SIZE = 2, 5, 4, 16
HIDDEN = HEADS * SIZE


def _compare(
    tmp_path: Path,
    op: str,
    operands: Mapping[str, Array | None],
    outputs: tuple[str, ...] = ("y",),
    domain: str = MICROSOFT,
    opset: int = 17,
    tolerance: float = 2e-5,
    **attrs: Any,
) -> Graph:
    """One node: names that begin with `c` are constants."""
    given = {name: array for name, array in operands.items() if array is not None}
    inputs = {name: array for name, array in given.items() if not name.startswith("c")}
    constants = {name: array for name, array in given.items() if name.startswith("c")}
    names = [name if array is not None else "" for name, array in operands.items()]
    node = helper.make_node(op, names, list(outputs), domain=domain, **attrs)
    wanted = [name for name in outputs if name]
    model = model_of([node], inputs, wanted, constants=constants, opset=opset)
    graph = imported(model, tmp_path)
    assert not opaque(graph)
    if opset > 20:
        expected = ReferenceEvaluator(model).run(None, inputs)
    else:
        expected = run_onnx(model, inputs)
    assert_same(graph, inputs, expected, tolerance)
    return graph


def _tables(rows: int = 9, columns: int = SIZE // 2) -> tuple[Array, Array]:
    angles = random(rows, columns)
    return np.cos(angles), np.sin(angles)


X = random(BATCH, LENGTH, HIDDEN)


@pytest.mark.parametrize(
    ("op", "operands", "attrs"),
    [
        ("Gelu", {"x": X}, {}),
        ("QuickGelu", {"x": X}, {}),
        ("QuickGelu", {"x": X}, {"alpha": 1.0}),
        ("QuickGelu", {"x": X}, {"alpha": 0.7}),
        ("FastGelu", {"x": X}, {}),
        ("FastGelu", {"x": X, "c0": random(HIDDEN)}, {}),
        ("BiasGelu", {"x": X, "c0": random(HIDDEN)}, {}),
        ("FusedMatMul", {"a": X, "b": random(BATCH, 6, HIDDEN)}, {"transB": 1, "alpha": 0.3}),
        ("FusedMatMul", {"a": X, "c0": random(LENGTH, 7)}, {"transA": 1}),
    ],
)
def test_simple(op: str, operands: dict[str, Any], attrs: dict[str, Any], tmp_path: Path) -> None:
    _compare(tmp_path, op, operands, **attrs)


def test_skip_layer_norms(tmp_path: Path) -> None:
    operands = {"x": X, "skip": random(BATCH, LENGTH, HIDDEN, seed=1), "c0": random(HIDDEN)}
    bias = {"c1": random(HIDDEN, seed=3)}
    outputs = ("y", "", "", "s")
    op = "SkipSimplifiedLayerNormalization"
    _compare(tmp_path, op, {**operands, **bias}, outputs, epsilon=1e-5)
    graph = _compare(tmp_path, op, operands, outputs, epsilon=1e-5)
    assert [node.op for node in graph.nodes()] == ["add", "rms_norm"]
    more = {**bias, "c2": random(HIDDEN, seed=4)}
    _compare(tmp_path, "SkipLayerNormalization", {**operands, **more}, outputs, epsilon=1e-5)


def test_simplified_layer_norm(tmp_path: Path) -> None:
    """onnxruntime has it in ONNX's own domain."""
    operands = {"x": X, "c0": random(HIDDEN)}
    graph = _compare(tmp_path, "SimplifiedLayerNormalization", operands, domain="", epsilon=1e-6)
    (node,) = graph.nodes()
    assert node.op == "rms_norm"
    assert node.attrs["eps"] == 1e-6


def test_results_that_nobody_reads_do_not_matter(tmp_path: Path) -> None:
    """The exporter of transformers names the mean and the deviation, and reads neither."""
    node = helper.make_node(
        "SkipSimplifiedLayerNormalization",
        ["x", "skip", "w"],
        ["y", "mean", "deviation", "sum"],
        domain=MICROSOFT,
        epsilon=1e-6,
    )
    inputs = {"x": X, "skip": random(*X.shape, seed=1)}
    model = model_of([node], inputs, ["y", "sum"], constants={"w": random(HIDDEN)})
    graph = imported(model, tmp_path)
    assert [held.op for held in graph.nodes()] == ["add", "rms_norm"]


def test_embed_layer_norm(tmp_path: Path) -> None:
    operands = {
        "ids": integers(0, 11, BATCH, LENGTH, dtype=np.int32),
        "segments": integers(0, 2, BATCH, LENGTH, dtype=np.int32),
        "c0": random(11, 6),
        "c1": random(9, 6),
        "c2": random(2, 6),
        "c3": random(6),
        "c4": random(6, seed=1),
    }
    operands = {**operands, "m": np.ones((BATCH, LENGTH), np.int32)}
    node = helper.make_node(
        "EmbedLayerNormalization",
        list(operands),
        ["y", ""],
        domain=MICROSOFT,
        epsilon=1e-5,
    )
    inputs = {name: array for name, array in operands.items() if not name.startswith("c")}
    constants = {name: array for name, array in operands.items() if name.startswith("c")}
    model = model_of([node], inputs, ["y"], constants=constants)
    graph = imported(model, tmp_path)
    node.output[1] = "counts"
    expected = run_onnx(model_of([node], inputs, ["y"], constants=constants), inputs)
    assert_same(graph, inputs, expected)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("form", ["flat", "heads", "offset", "partial"])
def test_rotary(interleaved: int, form: str, tmp_path: Path) -> None:
    positions = integers(0, 9, BATCH, LENGTH)
    x = X
    attrs: dict[str, Any] = {"num_heads": 0}
    cos, sin = _tables()
    if form == "heads":
        x = random(BATCH, HEADS, LENGTH, SIZE)
    if form == "offset":
        positions = np.array([3], dtype=np.int64)
    if form == "partial":
        cos, sin = _tables(columns=SIZE // 4)
        attrs = {"num_heads": HEADS, "rotary_embedding_dim": SIZE // 2}
    operands = {"x": x, "p": positions, "c0": cos, "c1": sin}
    _compare(tmp_path, "RotaryEmbedding", operands, interleaved=interleaved, **attrs)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"do_rotary": 1},
        {"do_rotary": 1, "rotary_interleaved": 1},
        {"local_window_size": 3},
        {"softcap": 2.0, "scale": 0.5},
        {"smooth_softmax": 1},
    ],
    ids=str,
)
def test_group_query_attention(packed: bool, attrs: dict[str, Any], tmp_path: Path) -> None:
    """Without a cache; the cache that results is compared too."""
    kv = 2
    cos, sin = _tables()
    key, value = random(BATCH, LENGTH, kv * SIZE), random(BATCH, LENGTH, kv * SIZE, seed=1)
    operands: dict[str, Array | None] = {
        "q": np.concatenate((X, key, value), axis=-1) if packed else X,
        "k": None if packed else key,
        "v": None if packed else value,
        "pk": None,
        "pv": None,
        "n": np.full((BATCH,), LENGTH - 1, np.int32),
        "c0": np.array(LENGTH, np.int32),
        "c1": cos if "do_rotary" in attrs else None,
        "c2": sin if "do_rotary" in attrs else None,
    }
    names = ("y", "present_k", "present_v")
    sizes: dict[str, Any] = {"num_heads": HEADS, "kv_num_heads": kv}
    if "local_window_size" in attrs:
        # Until 1.23 onnxruntime's window left out the query itself (its pull request 25927).
        earlier = tmp_path / "earlier"
        earlier.mkdir()
        with pytest.raises(AssertionError, match="Mismatched"):
            _compare(earlier, "GroupQueryAttention", operands, names, **sizes, **attrs)
        graph = _windowed(tmp_path, operands, names, {**sizes, **attrs})
    else:
        graph = _compare(tmp_path, "GroupQueryAttention", operands, names, **sizes, **attrs)
    (attention,) = [node for node in graph.nodes() if node.op == "attention"]
    assert attention.attrs["causal"] is True
    assert not attention.attrs["has_mask"]


def _windowed(
    tmp_path: Path, operands: dict[str, Array | None], names: tuple[str, ...], attrs: dict[str, Any]
) -> Graph:
    given = {name: array for name, array in operands.items() if array is not None}
    inputs = {name: array for name, array in given.items() if not name.startswith("c")}
    constants = {name: array for name, array in given.items() if name.startswith("c")}
    order = [name if array is not None else "" for name, array in operands.items()]

    def model(window: int) -> Any:
        held = {**attrs, "local_window_size": window}
        node = helper.make_node("GroupQueryAttention", order, list(names), domain=MICROSOFT, **held)
        return model_of([node], inputs, names, constants=constants)

    graph = imported(model(attrs["local_window_size"]), tmp_path)
    assert_same(graph, inputs, run_onnx(model(attrs["local_window_size"] - 1), inputs))
    return graph


def _cached(
    counts: list[int], length: int, past: int, attrs: dict[str, Any], window: int = 0
) -> tuple[Any, dict[str, Array]]:
    """One attention as model builders write it: rows have `counts` tokens, `length` of them new."""
    batch, kv, total = len(counts), 2, past + length
    cos, sin = _tables(rows=16)
    inputs = {
        "q": random(batch, length, HIDDEN),
        "k": random(batch, length, kv * SIZE),
        "v": random(batch, length, kv * SIZE, seed=1),
        "pk": random(batch, kv, past, SIZE, seed=2),
        "pv": random(batch, kv, past, SIZE, seed=3),
        "mask": (np.arange(total) < np.array(counts)[:, None]).astype(np.int64),
    }
    shapes: dict[str, Any] = {name: ("batch", "seq", None) for name in "qkv"}
    shapes = {name: (*shapes[name][:2], inputs[name].shape[2]) for name in shapes}
    shapes |= dict.fromkeys(("pk", "pv"), ("batch", kv, "past", SIZE)) | {"mask": ("batch", "all")}
    names = ["q", "k", "v", "pk", "pv", "last", "total", "cos", "sin"]
    if window:
        attrs = {**attrs, "local_window_size": window}
    nodes = [
        helper.make_node("ReduceSum", ["mask", "one"], ["count"], keepdims=0),
        helper.make_node("Sub", ["count", "one"], ["last64"]),
        helper.make_node("Cast", ["last64"], ["last"], to=6),
        helper.make_node("Shape", ["mask"], ["shape"]),
        helper.make_node("Gather", ["shape", "place"], ["total64"]),
        helper.make_node("Cast", ["total64"], ["total"], to=6),
        helper.make_node(
            "GroupQueryAttention",
            names,
            ["y", "a", "b"],
            domain=MICROSOFT,
            num_heads=HEADS,
            kv_num_heads=kv,
            **attrs,
        ),
    ]
    one, place = np.array([1], np.int64), np.array(1, np.int64)
    held = {"cos": cos, "sin": sin, "one": one, "place": place}
    return model_of(nodes, inputs, ["y", "a", "b"], constants=held, shapes=shapes), inputs


@pytest.mark.parametrize("attrs", [{}, {"do_rotary": 1}, {"do_rotary": 1, "softcap": 2.0}], ids=str)
@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize(
    ("counts", "length", "past"), [([6, 4, 1], 1, 5), ([8], 3, 5), ([1], 1, 0), ([3], 3, 0)]
)
def test_group_query_attention_with_a_cache(
    counts: list[int],
    length: int,
    past: int,
    window: int,
    attrs: dict[str, Any],
    tmp_path: Path,
) -> None:
    """Rows of different lengths: a new key goes behind those that its row has."""
    model, inputs = _cached(counts, length, past, attrs, window)
    held = _cached(counts, length, past, attrs, window - 1 if window else 0)[0]
    wanted = run_onnx(held, inputs)  # for its window see above
    for dims in ({}, {"batch": 1}) if len(counts) == 1 else ({},):
        graph = imported(model, tmp_path, dims={**dims, **({} if past else {"past": 0})})
        assert not opaque(graph)
        assert str(graph.type("mask").shape[1]) == ("past + seq" if past else "seq")
        (attention,) = [node for node in graph.nodes() if node.op == "attention"]
        assert attention.attrs["causal"] is (past == 0 or "batch" in dims)
        given = {name: array for name, array in inputs.items() if name in graph.inputs}
        result, *caches = interpret(graph, given).values()
        np.testing.assert_allclose(result, wanted[0], rtol=1e-5, atol=1e-5)
        for got, cache in zip(caches, wanted[1:], strict=True):
            assert got.shape == cache.shape
            for row, count in enumerate(counts):
                np.testing.assert_allclose(got[row, :, :count], cache[row, :, :count], rtol=1e-5)


def test_what_a_size_always_is_may_not_be_asked_for(tmp_path: Path) -> None:
    """Else the range that was asked for would be forgotten."""
    model, _ = _cached([6], 1, 5, {})
    with pytest.raises(UsageError, match=r"`all` is always `past \+ seq`"):
        imported(model, tmp_path, dims={"all": "1:64"})


@pytest.mark.parametrize("quantised", ["k_quant_type", "v_quant_type"])
def test_a_quantised_cache_stays_opaque(quantised: str, tmp_path: Path) -> None:
    model, _ = _cached([6], 1, 5, {})
    model.graph.node[-1].attribute.append(helper.make_attribute(quantised, "PER_TENSOR"))
    with pytest.raises(UnsupportedError, match="nothing tells the type of `y`"):
        imported(model, tmp_path)


@pytest.mark.parametrize(
    "case", ["plain", "bias", "heads", "padding", "lengths", "extra", "mask", "cache"]
)
def test_multi_head_attention(case: str, tmp_path: Path) -> None:
    operands: dict[str, Array | None] = {
        "q": X,
        "k": random(BATCH, 7, HIDDEN, seed=1),
        "v": random(BATCH, 7, HIDDEN, seed=2),
        "c0": random(3 * HIDDEN) if case == "bias" else None,
        "m": None,
        "extra": random(BATCH, HEADS, LENGTH, 7) if case == "extra" else None,
    }
    if case == "heads":
        operands["k"], operands["v"] = (random(BATCH, HEADS, 7, SIZE, seed=i) for i in (1, 2))
    if case == "padding":
        operands["m"] = np.array([[1, 1, 1, 0, 0, 1, 0], [1] * 7], np.int32)
    if case == "lengths":
        operands["m"] = np.array([4, 7], np.int32)
    if case == "mask":
        operands["m"] = (random(BATCH, LENGTH, 7) > -0.5).astype(np.int32)
    names: tuple[str, ...] = ("y",)
    if case == "cache":
        operands |= {f"p{i}": random(BATCH, HEADS, 3, SIZE, seed=i) for i in (3, 4)}
        operands["m"] = np.array([[1] * 8 + [0] * 2, [0] * 2 + [1] * 8], np.int32)
        names = ("y", "a", "b")
    _compare(tmp_path, "MultiHeadAttention", operands, names, num_heads=HEADS)


def test_multi_head_attention_of_packed_operands(tmp_path: Path) -> None:
    """onnxruntime has it for GPUs alone, so the operands are taken apart for it."""
    packed = random(BATCH, LENGTH, HEADS, 3, SIZE)
    attrs: dict[str, Any] = {"domain": MICROSOFT, "num_heads": HEADS}
    node = helper.make_node("MultiHeadAttention", ["x"], ["y"], **attrs)
    graph = imported(model_of([node], {"x": packed}, ["y"]), tmp_path)
    apart = {name: packed[:, :, :, i].reshape(X.shape) for i, name in enumerate("qkv")}
    node = helper.make_node("MultiHeadAttention", list(apart), ["y"], **attrs)
    assert_same(graph, {"x": packed}, run_onnx(model_of([node], apart, ["y"]), apart))


@pytest.mark.parametrize("case", ["plain", "causal", "mask", "lengths", "rank 3", "cache"])
def test_contrib_attention(case: str, tmp_path: Path) -> None:
    mask = {
        "mask": np.array([[1, 1, 1, 0, 0], [1] * 5], np.int32),
        "lengths": np.array([3, 5], np.int32),
        "rank 3": np.tril(np.ones((BATCH, LENGTH, LENGTH), np.int32)),
        "cache": np.array([[0] * 2 + [1] * 6, [1] * 8], np.int32),
    }
    operands: dict[str, Array | None] = {
        "x": X,
        "c0": random(HIDDEN, 3 * HIDDEN),
        "c1": random(3 * HIDDEN),
        "m": mask.get(case),
    }
    attrs: dict[str, Any] = {"unidirectional": int(case in ("causal", "cache"))}
    names: tuple[str, ...] = ("y",)
    if case == "cache":
        operands["past"] = random(2, BATCH, HEADS, 3, SIZE)
        names = ("y", "present")
    _compare(tmp_path, "Attention", operands, names, num_heads=HEADS, tolerance=1e-4, **attrs)


@pytest.mark.parametrize(
    ("mask", "attrs", "why"),
    [
        (np.ones((BATCH, LENGTH), np.int32), {"mask_filter_value": -5.0}, "to -5 only"),
        (np.array([3, LENGTH, 0, 1], np.int32), {}, "where rows begin"),
        (np.ones((BATCH, 1, LENGTH, LENGTH), np.int32), {}, "of rank 4"),
    ],
    ids=["filter", "begins", "rank"],
)
def test_masks_that_are_left_to_onnxruntime(
    mask: Array, attrs: dict[str, Any], why: str, tmp_path: Path
) -> None:
    operands = {"x": X, "w": random(HIDDEN, 3 * HIDDEN), "b": random(3 * HIDDEN), "m": mask}
    node = helper.make_node(
        "Attention", list(operands), ["y"], domain=MICROSOFT, num_heads=HEADS, **attrs
    )
    model = model_of([node], operands, ["y"])
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, X.shape))
    (kept,) = [node for node in imported(model, tmp_path).nodes() if node.op.startswith("onnx.")]
    assert why in str(kept.attrs["_why"])


@pytest.mark.parametrize("zeros", ["none", "packed", "float"])
def test_matmul_nbits(zeros: str, tmp_path: Path) -> None:
    """Rows, columns and blocks that do not divide each other; the weight becomes one `linear`."""
    rows, columns, block = 5, 40, 16
    blocks = math.ceil(columns / block)
    points: Array | None = None
    if zeros == "packed":
        points = integers(0, 256, rows * math.ceil(blocks / 2), dtype=np.uint8)
    elif zeros == "float":
        points = np.abs(random(rows * blocks)) * 3
    operands = {
        "x": random(3, columns),
        "c0": integers(0, 256, rows, blocks, block // 2, dtype=np.uint8),
        "c1": random(rows * blocks),
        "c2": points,
    }
    attrs: dict[str, Any] = {"K": columns, "N": rows, "bits": 4, "block_size": block}
    graph = _compare(tmp_path, "MatMulNBits", operands, tolerance=1e-4, **attrs)
    assert [node.op for node in graph.nodes()] == ["linear"]


def test_matmul_of_8_bits(tmp_path: Path) -> None:
    """onnxruntime 1.22.2 takes only 4 bits for these sizes."""
    rows, columns, block, blocks = 5, 40, 16, 3
    levels = integers(0, 256, rows, blocks, block, dtype=np.uint8)
    scales, points = random(rows, blocks), integers(0, 256, rows, blocks, dtype=np.uint8)
    constants = {"b": levels, "s": scales.ravel(), "z": points.ravel()}
    node = helper.make_node(
        "MatMulNBits",
        ["x", "b", "s", "z"],
        ["y"],
        domain=MICROSOFT,
        K=columns,
        N=rows,
        bits=8,
        block_size=block,
    )
    inputs = {"x": random(3, columns)}
    graph = imported(model_of([node], inputs, ["y"], constants=constants), tmp_path)
    centred = levels.astype(np.float64) - points[:, :, None]
    weight = (centred * scales[:, :, None]).reshape(rows, -1)[:, :columns]
    assert_same(graph, inputs, [inputs["x"] @ weight.T], 1e-5)


@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_of_a_quantised_table(bits: int, points: bool, tmp_path: Path) -> None:
    """onnxruntime 1.22.2 has no bytes there."""
    levels = integers(0, 1 << bits, 9, 40, dtype=np.uint8)
    scales, middles = random(9, 3), integers(0, 1 << bits, 9, 3, dtype=np.uint8)

    def packed(array: Array) -> Array:
        if bits == 8:
            return array
        array = np.pad(array, ((0, 0), (0, array.shape[1] % 2)))
        return np.asarray(array[:, ::2] | (array[:, 1::2] << 4))

    held = {"d": packed(levels), "s": scales} | ({"z": packed(middles)} if points else {})
    names = ["d", "i", "s", *(("z",) if points else ())]
    node = helper.make_node(
        "GatherBlockQuantized", names, ["y"], domain=MICROSOFT, bits=bits, block_size=16
    )
    inputs = {"i": integers(0, 9, 2, 3)}
    graph = imported(model_of([node], inputs, ["y"], constants=held), tmp_path)
    zero = middles.astype(np.float64) if points else np.full((9, 3), 1 << (bits - 1))
    spread = (np.repeat(array, 16, axis=1)[:, :40] for array in (zero, scales))
    table = (levels - next(spread)) * next(spread)
    assert_same(graph, inputs, [table[inputs["i"]]], 1e-6)


@pytest.mark.parametrize("element", [21, 22])
@pytest.mark.parametrize("points", [False, True])
def test_rows_of_a_table_of_four_bit_integers(element: int, points: bool, tmp_path: Path) -> None:
    low = -8 if element == 22 else 0
    held = {"d": integers(low, low + 16, 9, 32), "z": integers(low, low + 16, 9, 2)}
    names = ["d", "i", "s", *(("z",) if points else ())]
    node = helper.make_node("GatherBlockQuantized", names, ["y"], domain=MICROSOFT, block_size=16)
    inputs = {"i": integers(0, 9, 2, 3)}
    model = model_of([node], inputs, ["y"], constants={"s": random(9, 2)}, opset=21)
    for name in ("d", "z") if points else ("d",):
        values = held[name].ravel().tolist()
        made = helper.make_tensor(name, element, held[name].shape, values)
        model.graph.initializer.append(made)
    assert_same(imported(model, tmp_path), inputs, run_onnx(model, inputs), 1e-6)


EXPERTS: list[dict[str, Any]] = [
    {"activation_type": "silu"},
    {"activation_type": "silu", "gated": True},
    {"activation_type": "gelu", "biased": (0, 1)},
    {"activation_type": "silu", "gated": True, "biased": (1, 2)},
    {"activation_type": "swiglu", "swiglu_fusion": 1},
    {"activation_type": "swiglu", "swiglu_fusion": 2, "biased": (0,)},
    {"activation_type": "swiglu", "swiglu_fusion": 2, "swiglu_limit": 0.5},
    {
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "swiglu_limit": 0.7,
        "activation_alpha": 1.702,
        "activation_beta": 1.0,
        "biased": (0, 1),
    },
]


@pytest.mark.parametrize("normalised", [0, 1])
@pytest.mark.parametrize("case", EXPERTS, ids=str)
def test_experts(normalised: int, case: dict[str, Any], tmp_path: Path) -> None:
    """onnxruntime has them for GPUs alone, so the reference is written out here."""
    experts, inner, count, hidden_size = 5, 7, 2, 6
    attrs = {name: value for name, value in case.items() if name not in ("gated", "biased")}
    fusion, gated = case.get("swiglu_fusion", 0), case.get("gated", False)
    x, logits = random(BATCH, LENGTH, hidden_size), random(BATCH * LENGTH, experts)
    rows = (2 * inner if fusion else inner, hidden_size, inner)
    columns = (hidden_size, inner, hidden_size)
    held: list[Array | None] = []
    for i in range(3):
        given = i < 2 or gated
        held.append(random(experts, rows[i], columns[i], seed=i) if given else None)
        held.append(random(experts, rows[i], seed=i) if i in case.get("biased", ()) else None)
    constants = {f"c{i}": array for i, array in enumerate(held) if array is not None}
    names = [f"c{i}" if f"c{i}" in constants else "" for i in range(6)]
    node = helper.make_node(
        "MoE",
        ["x", "r", *names],
        ["y"],
        domain=MICROSOFT,
        k=count,
        normalize_routing_weights=normalised,
        **attrs,
    )
    inputs = {"x": x, "r": logits}
    graph = imported(model_of([node], inputs, ["y"], constants=constants), tmp_path)
    assert not opaque(graph)

    def product(i: int, expert: int, row: Any) -> Any:
        weight, bias = held[2 * i], held[2 * i + 1]
        assert weight is not None
        return weight[expert] @ row + (0 if bias is None else bias[expert])

    def activated(expert: int, row: Any) -> Any:
        gate = product(0, expert, row)
        if fusion:
            gate, up = (gate[::2], gate[1::2]) if fusion == 1 else np.split(gate, 2)
            limit, alpha = case.get("swiglu_limit", math.inf), case.get("activation_alpha", 1.0)
            gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
            beta = case.get("activation_beta", 0.0)
            return gate / (1 + np.exp(-alpha * gate)) * (up + beta)
        if case["activation_type"] == "gelu":
            return gate * (1 + np.vectorize(math.erf)(gate / math.sqrt(2))) / 2
        gate = gate / (1 + np.exp(-gate))
        return gate * product(2, expert, row) if gated else gate

    shares = np.exp(logits.astype(np.float64))
    shares /= shares.sum(axis=1, keepdims=True)
    wanted = np.zeros((BATCH * LENGTH, hidden_size))
    for token, row in enumerate(x.reshape(-1, hidden_size).astype(np.float64)):
        best = np.argsort(-shares[token])[:count]
        total = shares[token][best].sum() if normalised else 1.0
        for expert in best:
            result = product(1, expert, activated(expert, row))
            wanted[token] += shares[token][expert] / total * result
    assert_same(graph, inputs, [wanted.reshape(x.shape)], 1e-6)


# --- opset 23 and later, against onnx's reference -------------------------------------------


@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"is_causal": 1},
        {"is_causal": 1, "softcap": 1.5, "scale": 0.3},
        {"is_causal": 1, "left_window_size": 2},
        {"left_window_size": 1, "right_window_size": 1},
        {"left_window_size": 1, "right_window_size": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("keys", [LENGTH, 7])
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
def test_attention(attrs: dict[str, Any], keys: int, mask: str, tmp_path: Path) -> None:
    """Queries stand at the first keys where there is no cache."""
    masks = {"bool": random(LENGTH, keys) > -0.5, "float": random(BATCH, 1, LENGTH, keys)}
    operands = {
        "q": random(BATCH, HEADS, LENGTH, SIZE),
        "k": random(BATCH, 2, keys, SIZE),
        "v": random(BATCH, 2, keys, 6),
        "m": masks.get(mask),
    }
    opset = 25 if any("window" in name for name in attrs) else 23
    _compare(tmp_path, "Attention", operands, domain="", opset=opset, **attrs)


def test_attention_with_a_cache(tmp_path: Path) -> None:
    operands = {
        "q": random(BATCH, LENGTH, HIDDEN),
        "k": random(BATCH, LENGTH, 2 * SIZE),
        "v": random(BATCH, LENGTH, 2 * SIZE),
        "m": None,
        "pk": random(BATCH, 2, 3, SIZE),
        "pv": random(BATCH, 2, 3, SIZE, seed=1),
    }
    names = ("y", "a", "b")
    attrs: dict[str, Any] = {"is_causal": 1, "q_num_heads": HEADS, "kv_num_heads": 2}
    graph = _compare(tmp_path, "Attention", operands, names, domain="", opset=23, **attrs)
    (attention,) = [node for node in graph.nodes() if node.op == "attention"]
    assert attention.attrs["causal"] is True


@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"is_causal": 1},
        {"is_causal": 1, "left_window_size": 2},
        {"left_window_size": 1, "right_window_size": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_over_a_buffer(attrs: dict[str, Any], masked: bool, tmp_path: Path) -> None:
    """Of each row only the first keys count; the queries are the last of them."""
    operands = {
        "q": random(BATCH, HEADS, 3, SIZE),
        "k": random(BATCH, 2, 9, SIZE),
        "v": random(BATCH, 2, 9, SIZE, seed=1),
        "m": random(3, 9) if masked else None,
        "pk": None,
        "pv": None,
        "n": np.array([9, 4], np.int64),
    }
    _compare(tmp_path, "Attention", operands, domain="", opset=25, **attrs)


@pytest.mark.parametrize("mode", ["linear", "circular"])
@pytest.mark.parametrize("begins", [None, [1, 4]])
@pytest.mark.parametrize("axis", [-2, 1])
def test_a_buffer_is_written_to(
    mode: str, begins: list[int] | None, axis: int, tmp_path: Path
) -> None:
    shape = [BATCH, 7, 7, 4]
    operands: dict[str, Array | None] = {"past": random(*shape)}
    shape[axis] = 3
    operands["new"] = random(*shape, seed=1)
    if begins is not None:
        operands["begin"] = np.array(begins, np.int64) + 2 * (mode == "circular")
    _compare(tmp_path, "TensorScatter", operands, domain="", opset=24, mode=mode, axis=axis)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("gathered", [False, True])
def test_rotary_of_opset_23(interleaved: int, gathered: bool, tmp_path: Path) -> None:
    cos, sin = _tables()
    positions = integers(0, 9, BATCH, LENGTH)
    operands = {"x": X, "c0": cos, "c1": sin, "p": positions}
    if gathered:
        operands = {"x": X, "cos": cos[positions], "sin": sin[positions]}
    _compare(
        tmp_path,
        "RotaryEmbedding",
        operands,
        domain="",
        opset=23,
        num_heads=HEADS,
        interleaved=interleaved,
    )


@pytest.mark.parametrize("axis", [-1, 1])
def test_rms_normalization(axis: int, tmp_path: Path) -> None:
    weight = random(*X.shape[axis:])
    _compare(tmp_path, "RMSNormalization", {"x": X, "c0": weight}, domain="", opset=23, axis=axis)


def test_swish(tmp_path: Path) -> None:
    _compare(tmp_path, "Swish", {"x": X}, domain="", opset=24)
    _compare(tmp_path, "Swish", {"x": X}, domain="", opset=24, alpha=1.3)


def test_group_query_attention_with_no_keys_attends_to_nothing(tmp_path: Path) -> None:
    """The size of a cache may be declared empty on the command line."""
    kv = 2
    operands = {
        "q": X,
        "k": random(BATCH, LENGTH, kv * SIZE),
        "v": random(BATCH, LENGTH, kv * SIZE, seed=1),
        "past_k": np.zeros((BATCH, kv, 0, SIZE), np.float32),
        "past_v": np.zeros((BATCH, kv, 0, SIZE), np.float32),
        "n": np.full((BATCH,), LENGTH - 1, np.int32),
        "t": np.array(LENGTH, np.int32),
    }
    node = helper.make_node(
        "GroupQueryAttention",
        list(operands),
        ["y", "a", "b"],
        domain=MICROSOFT,
        num_heads=HEADS,
        kv_num_heads=kv,
    )
    past = (BATCH, kv, "past", SIZE)
    model = model_of([node], operands, ["y", "a", "b"], shapes={"past_k": past, "past_v": past})
    graph = imported(model, tmp_path, dims={"past": 0})
    assert graph.type("past_k").shape == (BATCH, kv, 0, SIZE)
    assert_same(graph, operands, run_onnx(model, operands))
