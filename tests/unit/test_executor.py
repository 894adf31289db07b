"""Loading and running programs of simple kernels, and what callers get wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifact_samples import edited, entries_of, places_of, weight
from executor_samples import artifact_of, embedding, kernel_step, program, spec, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import fusec
from fusec.diagnostics import ArtifactError, DeviceError, FusecError, InputError, UsageError
from fusec.dtypes import DTYPES, bf16_to_f32, f32_to_bf16
from fusec.runtime import Model, load
from fusec.runtime.artifact import TensorSpec
from fusec.runtime.errors import (
    ChecksumError,
    CodeError,
    MalformedError,
    OutOfBoundsError,
    TargetError,
    VersionError,
    WeightsError,
)
from fusec.runtime.layout import KEPT_PLANS
from fusec.runtime.model import bind_symbols, check_inputs, to_storage

TABLE = np.arange(55, dtype=np.float32).reshape(11, 5)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedding(tmp_path_factory.mktemp("executor"))


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return load(path)


def test_runs_at_every_size(model: Model) -> None:
    random = np.random.default_rng(0)
    for batch, seq in ((1, 1), (3, 7), (8, 64), (2, 1), (1, 63), (3, 7)):
        ids = random.integers(0, 11, (batch, seq))
        hidden = model(input_ids=ids)["hidden"]
        assert hidden.dtype == np.float32
        np.testing.assert_array_equal(hidden, 4 * TABLE[ids])
        assert hidden.ctypes.data % 64 == 0


def test_more_sizes_than_plans_are_kept(model: Model) -> None:
    for seq in [*range(1, KEPT_PLANS + 9), 1, 2, 3]:
        ids = np.full((2, seq), seq % 11)
        np.testing.assert_array_equal(model(input_ids=ids)["hidden"], 4 * TABLE[ids])


def test_inputs_of_any_layout(model: Model) -> None:
    ids = np.arange(24, dtype=np.int64).reshape(4, 6) % 11
    misaligned = np.frombuffer(b"x" + ids.tobytes(), np.uint8)[1:].view(np.int64).reshape(4, 6)
    for layout in (
        ids[:, ::2],
        ids.T,
        np.asfortranarray(ids),
        ids.astype(np.int32),
        ids.astype(np.uint8),
        ids.astype(">i8"),
        ids.tolist(),
        misaligned,
    ):
        expected = 4 * TABLE[np.asarray(layout).astype(np.int64)]
        np.testing.assert_array_equal(model(input_ids=layout)["hidden"], expected)
    read_only = ids.copy()
    read_only.flags.writeable = False
    assert model(input_ids=read_only)["hidden"].shape == (4, 6, 5)


def test_outputs_are_the_callers(model: Model) -> None:
    first = model(input_ids=[[1]])["hidden"]
    second = model(input_ids=[[2]])["hidden"]
    np.testing.assert_array_equal(first, 4 * TABLE[[[1]]])
    first[:] = -1
    np.testing.assert_array_equal(second, 4 * TABLE[[[2]]])


def test_several_threads_take_turns(model: Model) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(50):
            ids = random.integers(0, 11, (2, int(random.integers(1, 20))))
            if not np.array_equal(model(input_ids=ids)["hidden"], 4 * TABLE[ids]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_child_runs_what_the_parent_was_running(path: Path) -> None:
    model = load(path, threads=2)
    ids = np.arange(22).reshape(2, 11) % 11
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            model(input_ids=ids)

    def run_in_a_child() -> int:
        child = os.fork()
        if child != 0:
            return os.waitpid(child, 0)[1]
        try:
            signal.alarm(10)
            load(path)
            np.testing.assert_array_equal(model(input_ids=ids)["hidden"], 4 * TABLE[ids])
            os._exit(0)
        finally:
            os._exit(1)

    other = threading.Thread(target=work)
    other.start()
    try:
        assert not any(run_in_a_child() for _ in range(20))
    finally:
        done.set()
        other.join()


def test_an_interrupted_run_leaves_nothing_half_done(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("fusec.runtime.executor.np.add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(input_ids=[[3]])
    np.testing.assert_array_equal(model(input_ids=[[3]])["hidden"], 4 * TABLE[[[3]]])


def test_profile(model: Model) -> None:
    outputs, times = model.profile({"input_ids": np.ones((2, 3), np.int64)})
    assert outputs["hidden"].shape == (2, 3, 5)
    assert [time.op for time in times] == ["take", "scale", "add"]
    assert times[0].kernel == "sample_take.cpp"
    assert all(0 <= time.seconds < 1 for time in times)
    assert model.arena_bytes(batch=2, seq=3) == 256
    with pytest.raises(InputError, match="the sizes that vary are `batch`, `seq`"):
        model.arena_bytes(bach=2, seq=3)
    with pytest.raises(InputError, match="`batch` is 0, but the artifact was compiled for 1"):
        model.arena_bytes(batch=0, seq=3)


# --- what callers get wrong -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "message", "hint"),
    [
        ({}, "the input `input_ids` is missing", "input_ids: i64[batch, seq]"),
        ({"ids": [[1]]}, "there is no input `ids`", "input_ids: i64[batch, seq]"),
        (
            {"input_ids": np.zeros((1, 2), np.float32)},
            "the input `input_ids` must be i64, but float32 was given",
            "astype(numpy.int64)",
        ),
        ({"input_ids": [[1.5]]}, "must be i64, but float64 was given", "of integers"),
        ({"input_ids": [[True]]}, "must be i64, but bool was given", "of integers"),
        ({"input_ids": [["a"]]}, "must be i64, but text was given", "of integers"),
        ({"input_ids": np.zeros((1, 2), np.uint64)}, "must be i64, but uint64", "astype"),
        ({"input_ids": [[1, 2], [3]]}, "is not an array", None),
        ({"input_ids": None}, "must be i64, but something else was given", "rectangular"),
        (
            {"input_ids": [1, 2]},
            "the input `input_ids` must have 2 dims, `[batch, seq]`, but 1 were given, `[2]`",
            None,
        ),
        (
            {"input_ids": np.zeros((1, 65), np.int64)},
            "`seq` is 65 in the input `input_ids`, but the artifact was compiled for 1..64",
            "--dim seq=1:65",
        ),
        (
            {"input_ids": np.zeros((0, 3), np.int64)},
            "`batch` is 0",
            "ranges begin at 1; `--dim batch=0`",
        ),
        ({"input_ids": np.full((1, 3), 11)}, "the index 11 is out of range: it must be less", "id"),
        ({"input_ids": np.full((1, 3), -1)}, "the index -1 is out of range", "ids"),
    ],
)
def test_wrong_inputs(
    model: Model, inputs: Mapping[str, object], message: str, hint: str | None
) -> None:
    with pytest.raises(InputError) as caught:
        model.run(inputs)
    assert message in str(caught.value)
    assert caught.value.exit_code == 1
    if hint is not None:
        assert hint in str(caught.value.hint)
    np.testing.assert_array_equal(model(input_ids=[[1]])["hidden"], 4 * TABLE[[[1]]])


def bound(shapes: Mapping[str, tuple[int, ...]], *specs: str) -> dict[str, int]:
    symbols = {"batch": (1, 8), "seq": (2, 64), "heads": (3, 3)}
    arrays: dict[str, NDArray[np.generic]] = {
        name: np.zeros(shape, np.float32) for name, shape in shapes.items()
    }
    return bind_symbols([spec(text) for text in specs], symbols, arrays)


def test_symbols_from_shapes() -> None:
    assert bound({"a": (2, 5)}, "a: f32[batch, seq]") == {"batch": 2, "seq": 5, "heads": 3}
    assert bound({"a": (20,)}, "a: f32[4*seq]")["seq"] == 5
    assert bound({"a": (3,)}, "a: f32[(seq + 7)//8 + 2]")["seq"] == 2
    assert bound({"a": (10, 2)}, "a: f32[batch*seq, batch]") == {"batch": 2, "seq": 5, "heads": 3}
    for shapes, specs, message in (
        (
            {"a": (2, 5), "b": (2, 6)},
            ("a: f32[batch, seq]", "b: f32[batch, seq]"),
            "`seq` is 5 in the input `a` but 6 in `b`",
        ),
        ({"a": (2, 5)}, ("a: f32[batch, 4]",), "dim 1 of the input `a` must be 4, but it is 5"),
        ({"a": (21,)}, ("a: f32[4*seq]",), r"dim 0 of the input `a` must be 4\*seq, but it is 21"),
        ({"a": (400,)}, ("a: f32[4*seq]",), r"must be 4\*seq, but it is 400"),
        ({"a": (5, 11)}, ("a: f32[seq, 2*seq]",), r"must be 2\*seq = 10, but it is 11"),
        ({"a": (2, 4)}, ("a: f32[batch, heads]",), r"`heads` is 4 .* compiled for 3\.\.3"),
    ):
        with pytest.raises(InputError, match=message):
            bound(shapes, *specs)


def converted(dtype: str, value: object) -> NDArray[np.generic]:
    return to_storage(TensorSpec("x", dtype, ()), value)


def test_conversions_that_are_safe() -> None:
    values = np.array([1.0, -2.5, 3.0e38, np.nan, 1 + 2**-8, 1 + 3 * 2**-8], np.float32)
    np.testing.assert_array_equal(converted("bf16", values), f32_to_bf16(values))
    np.testing.assert_array_equal(
        bf16_to_f32(f32_to_bf16(values))[[0, 1, 4, 5]], [1.0, -2.5, 1.0, 1 + 2**-6]
    )
    assert converted("f16", np.array([1e9, 1], np.float32)).tolist() == [np.inf, 1]
    assert converted("f32", np.array([1.5], np.float16)).tolist() == [1.5]
    assert converted("f64", np.array([1.5], np.float32)).tolist() == [1.5]
    assert converted("f32", [1, 2.5]).tolist() == [1, 2.5]
    assert converted("i64", np.array([7], np.uint32)).tolist() == [7]
    assert converted("i32", [7]).dtype == np.int32
    assert converted("u8", [255]).tolist() == [255]
    assert converted("f8e4m3fn", np.array([255], np.uint8)).tolist() == [255]
    assert converted("bool", [True]).tolist() == [True]
    assert converted("i64", []).dtype == np.int64
    assert converted("f32", np.float32(3)).shape == ()
    for dtype, value in (
        ("f32", np.array([1], np.float64)),
        ("bf16", np.array([1], np.float64)),
        ("bf16", np.array([1], np.uint16)),
        ("f16", np.array([1], np.float64)),
        ("i32", np.array([1], np.int64)),
        ("i32", [1 << 40]),
        ("u8", [-1]),
        ("bool", [1]),
        ("f32", np.array([1], np.int32)),
        ("f8e4m3fn", np.array([1], np.float32)),
        ("f32", [1j]),
    ):
        with pytest.raises(InputError, match=f"must be {dtype}"):
            converted(dtype, value)


def test_bf16_of_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.array([1.5, -3], ml_dtypes.bfloat16)
    np.testing.assert_array_equal(
        converted("bf16", values), f32_to_bf16(np.array([1.5, -3], np.float32))
    )
    np.testing.assert_array_equal(converted("f32", values), np.array([1.5, -3], np.float32))


def test_unknown_inputs_come_before_missing_ones() -> None:
    with pytest.raises(InputError, match="no input `c`"):
        check_inputs([spec("a: f32[2]")], {}, {"c": [1]})


# --- dtypes, aliases and layouts ------------------------------------------------------------


def test_bf16_and_arena_offsets(tmp_path: Path) -> None:
    buffers: list[dict[str, object]] = [
        {"kind": "input", "bytes": "2*n"},
        {"kind": "output", "bytes": "2*n"},
        {"kind": "arena", "bytes": "2*n + 10", "slot": 0},
    ]
    steps = [
        kernel_step("sample_copy2", [(0, 0), (2, 10)], "n"),
        kernel_step("sample_copy2", [(2, "10"), (1, 0)], "n"),
    ]
    document = program(
        ["x: bf16[n]"],
        ["y: bf16[n]"],
        buffers,
        steps,
        symbols={"n": (0, 99)},
        slots=[["2*n + 10"]],
    )
    model = load(write(tmp_path / "m.fusec", document))
    x = np.random.default_rng(0).standard_normal(33, np.float32)
    y = model(x=x)["y"]
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, bf16_to_f32(f32_to_bf16(x)))
    assert model(x=np.zeros(0, np.float32))["y"].shape == (0,)
    stored = f32_to_bf16(x)
    np.testing.assert_array_equal(model.run_stored({"x": stored})["y"], stored)
    for wrong in (x, np.zeros(6, np.uint16)[::2]):
        with pytest.raises(InputError, match="must be a contiguous array of uint16"):
            model.run_stored({"x": wrong})


def test_outputs_that_are_inputs_weights_or_arena(tmp_path: Path) -> None:
    buffers: list[dict[str, object]] = [
        {"kind": "input", "bytes": "4*n"},
        {"kind": "weight", "bytes": 12, "name": "w"},
        {"kind": "arena", "bytes": "4*n", "slot": 0},
    ]
    document = program(
        ["x: f32[n]"],
        ["same: f32[n]", "w: f32[3]", "left: f32[n]", "again: f32[n]"],
        buffers,
        [kernel_step("sample_scale", [(0, 0), (2, 0)], "n", {"f64": -1.5})],
        symbols={"n": (1, 9)},
        slots=[["4*n"]],
        binding=[0, 0, 1, 2, 2],
    )
    weights = [weight("w", "f32", (3,), np.array([7, 8, 9], np.float32).tobytes())]
    model = load(write(tmp_path / "m.fusec", document, weights))
    x = np.array([1, 2], np.float32)
    result = model(x=x)
    assert {name: array.tolist() for name, array in result.items()} == {
        "same": [1, 2],
        "w": [7, 8, 9],
        "left": [-1.5, -3],
        "again": [-1.5, -3],
    }
    result["same"][:] = 0
    assert x.tolist() == [1, 2]
    result["w"][:] = 0
    assert model(x=x)["w"].tolist() == [7, 8, 9]


def test_special_numbers_as_parameters(tmp_path: Path) -> None:
    buffers = [{"kind": "input", "bytes": 4}, {"kind": "output", "bytes": 4}]
    for text, expected in (("inf", np.inf), ("-inf", -np.inf), ("nan", np.nan), (1e-7, 1e-7)):
        step = kernel_step("sample_scale", [(0, 0), (1, 0)], 1, {"f64": text})
        document = program(["x: f32[1]"], ["y: f32[1]"], buffers, [step], symbols={})
        y = load(write(tmp_path / "m.fusec", document))(x=[1])["y"]
        np.testing.assert_array_equal(y, np.array([expected], np.float32))


def test_threads(tmp_path: Path, path: Path) -> None:
    buffers: list[dict[str, object]] = [
        {"kind": "output", "bytes": 8},
        {"kind": "arena", "bytes": "64*threads", "slot": 0},
    ]
    document = program(
        [],
        ["threads: i64[]"],
        buffers,
        [kernel_step("sample_threads", [(0, 0)])],
        symbols={},
        slots=[["64*threads"]],
    )
    file = write(tmp_path / "m.fusec", document)
    one, three, default = load(file, threads=1), load(file, threads=3), load(file)
    for _ in range(2):
        assert one()["threads"] == 1
        assert three()["threads"] == 3
        assert default()["threads"] == len(os.sched_getaffinity(0))
    assert three.arena_bytes() == 192
    for threads in (0, -1, 5000):
        with pytest.raises(InputError, match="threads"):
            load(file, threads=threads)
    ids = np.random.default_rng(0).integers(0, 11, (8, 64))
    expected = load(path, threads=1)(input_ids=ids)["hidden"]
    np.testing.assert_array_equal(load(path, threads=3)(input_ids=ids)["hidden"], expected)


def test_kernel_errors(tmp_path: Path) -> None:
    document = program(
        [],
        ["y: f32[1]"],
        [{"kind": "output", "bytes": 4}],
        [kernel_step("sample_divide", [])],
        symbols={},
    )
    with pytest.raises(InputError, match="divided by zero") as caught:
        load(write(tmp_path / "m.fusec", document))()
    assert caught.value.at == "%sample_divide (divide)"


# --- weights --------------------------------------------------------------------------------


def test_weights_given_at_load(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    external = embedding(tmp_path, storage="external")
    bare = embedding(tmp_path / "bare", storage="none")
    file = external.with_name("embedding.weights.safetensors")
    ids = [[3, 4]]
    expected = 4 * TABLE[ids]
    np.testing.assert_array_equal(load(external)(input_ids=ids)["hidden"], expected)
    np.testing.assert_array_equal(load(bare, weights=file)(input_ids=ids)["hidden"], expected)
    by_source = load(bare, weights={"model.table": TABLE})
    np.testing.assert_array_equal(by_source(input_ids=ids)["hidden"], expected)
    from safetensors.numpy import save_file

    save_file({"odd": np.zeros(3, np.uint8), "model.table": TABLE}, tmp_path / "s.safetensors")
    plain = load(bare, weights=tmp_path / "s.safetensors")
    np.testing.assert_array_equal(plain(input_ids=ids)["hidden"], expected)
    for nothing in (None, {}, {"table": TABLE[:, :4]}):
        with pytest.raises(WeightsError):
            load(bare, weights=nothing)
    with pytest.raises(InputError, match="must be f32"):
        load(bare, weights={"table": TABLE.astype(np.float64)})


def test_flipped_weight_is_found_by_default(tmp_path: Path, path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = data.index(TABLE.tobytes())
    data[place + 7] ^= 1
    bad = tmp_path / "bad.fusec"
    bad.write_bytes(data)
    with pytest.raises(ChecksumError, match="`table`"):
        load(bad)
    seen: list[tuple[int, int]] = []
    load(path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(220, 220)]
    assert load(bad, verify=False)(input_ids=[[0]])["hidden"].shape == (1, 1, 5)


# --- onnxruntime ----------------------------------------------------------------------------


def onnx_model(kind: int, op: str = "Neg", width: int | str = 3) -> bytes:
    """`y = op(x)` on `[n, width]`."""
    from onnx import helper

    values = [helper.make_tensor_value_info(name, kind, ["n", width]) for name in "xy"]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"])], "g", values[:1], values[1:])
    opset = helper.make_opsetid("", 20)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString())


def onnx_program(dtype: str, itemsize: int) -> dict[str, object]:
    """`copy(scale(x))` where the middle is onnxruntime's, at odd offsets of the arena."""
    size = f"{3 * itemsize}*n"
    shape = ["n", 3]
    buffers: list[dict[str, object]] = [
        {"kind": "input", "bytes": size},
        {"kind": "output", "bytes": size},
        {"kind": "arena", "bytes": f"{size} + 8", "slot": 0},
        {"kind": "arena", "bytes": size, "slot": 1},
    ]
    halves = 3 * itemsize // 2
    steps: list[dict[str, object]] = [
        kernel_step("sample_copy2", [(0, 0), (2, 8)], f"{halves}*n"),
        {
            "kind": "onnx",
            "model": "residual/0.onnx",
            "node": "%neg",
            "op": "aten.neg",
            "reason": "no kernel",
            "inputs": [{"name": "x", "dtype": dtype, "shape": shape, "buffer": 2, "offset": 8}],
            "outputs": [{"name": "y", "dtype": dtype, "shape": shape, "buffer": 3, "offset": 0}],
        },
        kernel_step("sample_copy2", [(3, 0), (1, 0)], f"{halves}*n"),
    ]
    return program(
        [f"x: {dtype}[n, 3]"],
        [f"y: {dtype}[n, 3]"],
        buffers,
        steps,
        symbols={"n": (0, 99)},
        slots=[[f"{size} + 8"], [size]],
    )


@pytest.mark.parametrize(("dtype", "kind"), [("f32", 1), ("f16", 10), ("i64", 7), ("i32", 6)])
def test_residual_parts(tmp_path: Path, dtype: str, kind: int) -> None:
    document = onnx_program(dtype, DTYPES[dtype].itemsize)
    path = write(tmp_path / "m.fusec", document, residual={"residual/0.onnx": onnx_model(kind)})
    model = load(path, threads=2)
    for n in (1, 5, 2, 5):
        x = np.random.default_rng(n).integers(-99, 99, (n, 3)).astype(DTYPES[dtype].numpy)
        np.testing.assert_array_equal(model(x=x)["y"], -x)
    _, times = model.profile({"x": x})
    assert [time.kernel for time in times] == [
        "sample_copy2.cpp",
        "onnxruntime",
        "sample_copy2.cpp",
    ]


def test_residual_bf16(tmp_path: Path) -> None:
    document = onnx_program("bf16", 2)
    models = {"residual/0.onnx": onnx_model(16, "Identity")}
    model = load(write(tmp_path / "m.fusec", document, residual=models))
    x = np.array([[1.5, -2, np.inf]], np.float32)
    np.testing.assert_array_equal(model(x=x)["y"], x)


@pytest.mark.parametrize(("operands", "offset"), [("inputs", 12), ("outputs", 4)])
def test_operands_of_residual_parts_end_in_their_buffer(
    tmp_path: Path, operands: str, offset: int
) -> None:
    document: Any = onnx_program("f32", 4)
    document["steps"][1][operands][0]["offset"] = offset
    model = load(write(tmp_path / "m.fusec", document, residual={"residual/0.onnx": onnx_model(1)}))
    with pytest.raises(OutOfBoundsError, match=r"ends at byte \d+ of a buffer of \d+"):
        model(x=np.ones((2, 3), np.float32))


def test_an_arena_that_no_address_reaches(tmp_path: Path) -> None:
    document = {**onnx_program("f32", 4), "slots": [[1 << 62], [1 << 62]]}
    model = load(write(tmp_path / "m.fusec", document, residual={"residual/0.onnx": onnx_model(1)}))
    with pytest.raises(InputError, match=f"these sizes need {1 << 63} bytes of memory"):
        model(x=np.ones((2, 3), np.float32))


def test_residual_parts_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = onnx_program("f32", 4)
    for bad in (b"", b"onnx", onnx_model(1, "NoSuchOp")):
        path = write(tmp_path / "m.fusec", document, residual={"residual/0.onnx": bad})
        with pytest.raises(CodeError, match="onnxruntime refuses"):
            load(path)
    wide = {"residual/0.onnx": onnx_model(1, width=4)}
    with pytest.raises(CodeError, match="`%neg` fails in onnxruntime"):
        load(write(tmp_path / "m.fusec", document, residual=wide))(x=np.ones((2, 3), np.float32))
    double = {"residual/0.onnx": onnx_model(11)}
    with pytest.raises(CodeError, match="`%neg` fails in onnxruntime"):
        load(write(tmp_path / "m.fusec", document, residual=double))(x=np.ones((2, 3), np.float32))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="which is not installed"):
        load(path)


def test_values_that_onnxruntime_cannot_take(tmp_path: Path) -> None:
    from onnx import helper

    infos = [
        helper.make_tensor_value_info("x", 7, ["n"]),
        helper.make_tensor_value_info("y", 1, ["n"]),
    ]
    table = helper.make_tensor("t", 1, [3], [5.0, 6.0, 7.0])
    graph = helper.make_graph(
        [helper.make_node("Gather", ["t", "x"], ["y"])], "g", infos[:1], infos[1:], [table]
    )
    opset = helper.make_opsetid("", 20)
    gather = helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()
    step = {
        "kind": "onnx",
        "model": "residual/0.onnx",
        "node": "%take",
        "op": "aten.take",
        "reason": "no kernel",
        "inputs": [{"name": "x", "dtype": "i64", "shape": ["n"], "buffer": 0, "offset": 0}],
        "outputs": [{"name": "y", "dtype": "f32", "shape": ["n"], "buffer": 1, "offset": 0}],
    }
    buffers = [{"kind": "input", "bytes": "8*n"}, {"kind": "output", "bytes": "4*n"}]
    document = program(["x: i64[n]"], ["y: f32[n]"], buffers, [step], symbols={"n": (1, 9)})
    model = load(write(tmp_path / "m.fusec", document, residual={"residual/0.onnx": gather}))
    assert model(x=[2, 0])["y"].tolist() == [7, 5]
    with pytest.raises(InputError, match=r"`%take` fails in onnxruntime.* idx=3"):
        model(x=[2, 3])
    assert model(x=[1])["y"].tolist() == [6]


# --- devices and targets --------------------------------------------------------------------


def test_devices(path: Path) -> None:
    for device in ("gpu", "cpu:1", "hip:x", ""):
        with pytest.raises(UsageError, match="unknown device"):
            load(path, device)
    for device in ("hip:0", "cuda:0", "hip"):
        with pytest.raises(TargetError, match="no code for"):
            load(path, device)


def test_gpu_without_driver(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusec.runtime.hip.HipDriver.libraries", ("libfusec-none.so",))
    data = edited(entries_of(path), "manifest.json", "targets", 0, "family", value="amdgpu")
    file = tmp_path / "gpu.fusec"
    file.write_bytes(data)
    with pytest.raises(DeviceError, match="no driver for `hip:0`") as caught:
        load(file, "hip:0")
    assert caught.value.exit_code == 6
    with pytest.raises(TargetError, match="no code for `cpu`"):
        load(file)


def test_features_are_checked_before_code_is_loaded(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("code was loaded")

    monkeypatch.setattr("fusec.runtime.loader.load_module", never)
    buffers = [{"kind": "output", "bytes": 4}]
    document = program(
        [], ["y: f32[1]"], buffers, [], symbols={}, features=("avx2", "avx4096", "amx_maybe")
    )
    with pytest.raises(TargetError, match="no `amx_maybe`, `avx4096`") as caught:
        load(write(tmp_path / "m.fusec", document))
    assert caught.value.exit_code == 5
    other = edited(entries_of(path), "program/cpu.json", "arch", value="z80")
    (tmp_path / "other.fusec").write_bytes(other)
    with pytest.raises(MalformedError, match="target differs"):
        load(tmp_path / "other.fusec")


def test_modules_that_are_none(tmp_path: Path, path: Path) -> None:
    from fusec.link.artifact_writer import module_entry

    entries = entries_of(path)
    (module,) = (name for name in entries if name.startswith("kernels/"))
    code = entries[module]
    for bad in (b"", b"\x7fELF", bytes(4096), code[:5000], code[:16] + b"\0" * 4 + code[20:]):
        name = module_entry("x86-64-v3", bad, "so")
        changed = {key: value for key, value in entries.items() if key != module} | {name: bad}
        for document, place in (
            ("manifest.json", ("targets", 0, "modules", 0)),
            ("program/cpu.json", ("module",)),
        ):
            parsed = json.loads(changed[document])
            target = parsed
            for step in place[:-1]:
                target = target[step]
            target[place[-1]] = name
            changed[document] = json.dumps(parsed).encode()
        from artifact_samples import seal

        file = tmp_path / "bad.fusec"
        file.write_bytes(seal(changed))
        with pytest.raises(CodeError, match="module"):
            load(file)
    unknown = edited(entries, "program/cpu.json", "steps", 0, "symbol", value="sample_nothing")
    file.write_bytes(unknown)
    with pytest.raises(CodeError, match="no function 'sample_nothing'"):
        load(file)


# --- hostile programs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path_", "value", "error"),
    [
        (("schema",), "fusec.program/9", VersionError),
        (("symbols", "seq"), [1, 65], MalformedError),
        (("inputs", 0, "buffer"), 99, OutOfBoundsError),
        (("inputs", 0, "buffer"), 1, MalformedError),
        (("inputs", 0, "buffer"), -1, MalformedError),
        (("inputs", 0, "dtype"), "f32", MalformedError),
        (("outputs", 0, "shape", 2), 500, MalformedError),
        (("outputs",), [], MalformedError),
        (("buffers", 0, "bytes"), 8, OutOfBoundsError),
        (("buffers", 1, "bytes"), "4*batch", OutOfBoundsError),
        (("buffers", 1, "bytes"), "batch - 100", MalformedError),
        (("buffers", 2, "bytes"), 1 << 40, OutOfBoundsError),
        (("buffers", 2, "name"), "other", OutOfBoundsError),
        (("buffers", 3, "slot"), 7, OutOfBoundsError),
        (("buffers", 3, "bytes"), "30*batch*seq", OutOfBoundsError),
        (("buffers", 3, "kind"), "output", MalformedError),
        (("slots", 0, 0), "batch*seq*nothing", MalformedError),
        (("slots", 0, 0), "batch//(seq - seq)", MalformedError),
        (("slots", 0, 0), "batch//(seq - 3)", MalformedError),
        (("slots", 1), [], OutOfBoundsError),
        (("slots", 0, 0), -5, MalformedError),
        (("slots", 0, 0), "4611686018427387904*batch*8", MalformedError),
        (("steps", 0, "buffers", 0, 0), 5, OutOfBoundsError),
        (("steps", 0, "buffers", 0, 1), 221, OutOfBoundsError),
        (("steps", 0, "buffers", 1, 1), "8*batch*seq + 1", OutOfBoundsError),
        (("steps", 0, "buffers", 1, 1), "0 - batch", OutOfBoundsError),
        (("steps", 0, "buffers", 1, 1), -8, MalformedError),
        (("steps", 0, "params", 0), "batch**8*seq**8*4611686018427387904", MalformedError),
        (("steps", 0, "params", 0), {"f64": "one"}, MalformedError),
        (("steps", 0, "params", 0), 1 << 63, MalformedError),
        (("steps", 0, "symbol"), "sample take", MalformedError),
        (("steps", 0, "kind"), "shell", MalformedError),
        (("module",), None, MalformedError),
        (("module",), "kernels/other.so", MalformedError),
    ],
)
def test_hostile_programs(
    tmp_path: Path,
    path: Path,
    path_: tuple[str | int, ...],
    value: object,
    error: type[ArtifactError],
) -> None:
    file = tmp_path / "bad.fusec"
    file.write_bytes(edited(entries_of(path), "program/cpu.json", *path_, value=value))
    with pytest.raises(error):
        load(file)(input_ids=[[1, 2, 3]])


def test_more_memory_than_there_is(tmp_path: Path, path: Path) -> None:
    file = tmp_path / "bad.fusec"
    large = edited(entries_of(path), "program/cpu.json", "slots", 0, 0, value="1000000000000*batch")
    file.write_bytes(large)
    with pytest.raises(InputError, match="not enough memory"):
        load(file)(input_ids=[[1, 2, 3]])


NUMBERS = st.one_of(
    st.integers(-9, 9),
    st.integers(-(1 << 65), 1 << 65),
    st.none(),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=6),
    st.sampled_from(["batch", "seq//0", "seq*4611686018427387904", "x", "batch % (seq - 1)", []]),
    st.lists(st.integers(-5, 300), max_size=3),
    st.dictionaries(st.sampled_from(["f64", "kind"]), st.integers(), max_size=2),
)


@settings(
    max_examples=400,
    deadline=5000,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(place=st.integers(0, 10_000), value=NUMBERS)
def test_fuzz_program(path: Path, place: int, value: object) -> None:
    """Any program is refused or planned; only its kernels' own parameters are not run here."""
    entries = entries_of(path)
    places = places_of(json.loads(entries["program/cpu.json"]))
    chosen = places[place % len(places)]
    try:
        data = edited(entries, "program/cpu.json", *chosen, value=value)
    except UnicodeEncodeError:
        return
    file = path.with_name(f"fuzz{os.getpid()}.fusec")
    file.write_bytes(data)
    try:
        load(file).arena_bytes(batch=2, seq=3)
    except (ArtifactError, InputError):
        pass


# --- hygiene --------------------------------------------------------------------------------


def test_loading_and_running_imports_nothing_large(path: Path) -> None:
    script = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "triton", "networkx", "onnxruntime", "onnx",
                                      "transformers", "typer", "rich", "safetensors", "ml_dtypes"):
            raise ImportError(f"{{name}} is not on this machine")
sys.meta_path.insert(0, Refuse())
import fusec
model = fusec.load({str(path)!r})
assert model(input_ids=[[1, 2]])["hidden"].shape == (1, 2, 5)
import fusec.runtime.io
kept = {{name.partition(".")[0] for name in sys.modules if not name.startswith("_")}}
print(sorted(kept - sys.stdlib_module_names - {{"fusec", "numpy"}}))
"""
    result = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{script}"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.replace("'", '"')) == []


def test_public_door() -> None:
    assert fusec.load is load
    assert issubclass(InputError, FusecError)
    assert artifact_of.__doc__ is not None
