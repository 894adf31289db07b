"""Programs of GPUs, read and run over a device that is none."""

from __future__ import annotations

import copy
import json
import struct
import threading
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import gpu_samples
import numpy as np
import pytest
from artifact_samples import edited, entries_of, weight
from fake_driver import Arguments, FakeDriver
from gpu_samples import KERNELS, TABLE, embedding, launch, program, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusec.cli import main
from fusec.diagnostics import ArtifactError, FusecError, InputError
from fusec.runtime import Model, load
from fusec.runtime.driver import LaunchError, OutOfMemoryError
from fusec.runtime.errors import (
    CodeError,
    LibraryError,
    MalformedError,
    OutOfBoundsError,
    TargetError,
    WeightsError,
)
from fusec.runtime.gpu_memory import ALIGNMENT, bucket
from fusec.runtime.layout import KEPT_PLANS


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedding(tmp_path_factory.mktemp("gpu"))


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver(KERNELS)


@pytest.fixture
def model(path: Path, driver: FakeDriver) -> Model:
    return load(path, driver=driver)


def ids_of(batch: int, seq: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 11, (batch, seq))


def check(model: Model, batch: int, seq: int, seed: int = 0) -> None:
    ids = ids_of(batch, seq, seed)
    np.testing.assert_array_equal(model(input_ids=ids)["hidden"], 4 * TABLE[ids])


# --- running --------------------------------------------------------------------------------


def test_runs_at_every_size(model: Model) -> None:
    for seed, (batch, seq) in enumerate([(1, 1), (3, 7), (8, 64), (2, 1), (1, 63), (3, 7), (3, 7)]):
        check(model, batch, seq, seed)


def test_a_doubled_answer_fails(path: Path) -> None:
    def twice(arguments: Arguments) -> None:
        KERNELS["sample_add"](arguments)
        out: Any = arguments.array(2, "<f4")
        out *= 2

    doubled = load(path, driver=FakeDriver({**KERNELS, "sample_add": twice}))
    with pytest.raises(AssertionError):
        check(doubled, 2, 3)


def test_the_second_run_captures_and_later_ones_replay(model: Model, driver: FakeDriver) -> None:
    seen: list[list[str]] = []
    for seed in range(4):
        driver.calls.clear()
        check(model, 2, 5, seed)
        wanted = ("launch", "begin_capture", "end_capture", "replay")
        seen.append([call for call in driver.calls if call in wanted])
    launches = ["launch"] * 3
    assert seen == [
        launches,
        ["begin_capture", *launches, "end_capture", "replay"],
        ["replay"],
        ["replay"],
    ]
    assert len(driver.graphs) == 1
    assert len(driver.launches) == 12


def test_an_interrupt_does_not_leave_the_stream_capturing(
    model: Model, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(launch: object, stream: int) -> None:
        raise KeyboardInterrupt

    check(model, 2, 5)
    with monkeypatch.context() as patch:
        patch.setattr(driver, "launch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            check(model, 2, 5)
    assert driver.capture is None
    check(model, 2, 5)


def test_without_graphs(path: Path, driver: FakeDriver) -> None:
    model = load(path, driver=driver, graphs=False)
    for seed in range(3):
        check(model, 2, 5, seed)
    assert "begin_capture" not in driver.calls


def test_a_driver_that_keeps_no_graphs(path: Path, driver: FakeDriver) -> None:
    driver.has_graphs = False
    model = load(path, driver=driver)
    for seed in range(4):
        check(model, 2, 5, seed)
    assert driver.calls.count("begin_capture") == 1
    assert len(driver.launches) == 12


def test_an_empty_grid_is_not_launched(model: Model, driver: FakeDriver) -> None:
    check(model, 1, 60)
    assert [launch.grid for launch in driver.launches[:1]] == [(15, 1, 1)]
    check(model, 2, 60)
    assert [launch.grid for launch in driver.launches[3:4]] == [(8, 1, 1)]
    assert len(driver.launches) == 6


def test_a_grid_has_three_sizes(path: Path, tmp_path: Path, driver: FakeDriver) -> None:
    file = tmp_path / "m.fusec"
    file.write_bytes(edited(entries_of(path), PROGRAM, "steps", 0, "grid", value=[2, 3, 4]))
    load(file, driver=driver)(input_ids=[[1, 2]])
    assert driver.launches[0].grid == (2, 3, 4)


def test_growing_makes_graphs_of_old_addresses_void(model: Model, driver: FakeDriver) -> None:
    for seed in range(3):
        check(model, 1, 4, seed)
    assert len(driver.graphs) == 1
    check(model, 8, 64)
    assert not driver.graphs
    for seed in range(3):
        check(model, 1, 4, seed)
        check(model, 8, 64, seed)
    assert len(driver.graphs) == 2
    assert driver.purposes == ["the weights", *["intermediate values"] * 2]
    assert len(driver.held) == 2


def test_sizes_that_creep_up_move_little(model: Model, driver: FakeDriver) -> None:
    for seq in range(1, 65):
        check(model, 8, seq)
    assert len(driver.purposes) < 30


def test_old_plans_and_their_graphs_are_let_go(model: Model, driver: FakeDriver) -> None:
    check(model, 8, 64)
    for seq in range(1, KEPT_PLANS + 5):
        for seed in range(2):
            check(model, 1, seq, seed)
    assert len(driver.graphs) == KEPT_PLANS
    kept = next(reversed(driver.graphs))
    for seq in range(KEPT_PLANS + 5, 2 * KEPT_PLANS + 5):
        check(model, 1, seq)
        check(model, 1, KEPT_PLANS + 4)
    assert list(driver.graphs) == [kept]
    check(model, 1, 1)


def test_buckets() -> None:
    for size in [1, 255, 256, 257, 1000, 4097, 10**6, 123456789, 2**33 + 1]:
        assert size <= bucket(size) <= max(size * 9 / 8, size + ALIGNMENT)
        assert bucket(size) % ALIGNMENT == 0
        assert bucket(bucket(size)) == bucket(size)


def test_buffers_are_aligned_and_apart(model: Model, driver: FakeDriver) -> None:
    check(model, 3, 7)
    spans = {span for launch in driver.launches for span in launch.spans}
    assert len(spans) == 6
    assert all(begin % ALIGNMENT == 0 for begin, _ in spans)
    ordered = sorted(spans)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(ordered))


def test_modules_and_functions_are_loaded_once(model: Model, driver: FakeDriver) -> None:
    assert [code for _, code in driver.modules] == [gpu_samples.CODE["sm_90"]]
    assert [symbol for _, symbol, _ in driver.functions] == [
        "sample_take",
        "sample_scale",
        "sample_add",
    ]


def test_argument_blocks(path: Path, driver: FakeDriver) -> None:
    load(path, driver=driver)(input_ids=np.zeros((2, 3), np.int64))
    take, scale, add = driver.launches
    assert take.kernargs[32:] == struct.pack("<qqqq", 6, 5, 11, 0)
    assert scale.kernargs[16:] == struct.pack("<qf4xq", 30, 3.0, 0)
    assert add.kernargs[24:] == struct.pack("<i4xq", 30, 0)
    pointers = struct.unpack("<qqqq", take.kernargs[:32])
    assert [begin for begin, _ in take.spans] == list(pointers)
    assert take.at == "sample_take_triton of %sample_take (take)"


def test_several_threads_take_turns(model: Model) -> None:
    wrong: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for turn in range(10):
                check(model, 1 + seed, 1 + turn, seed)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_profile(model: Model) -> None:
    outputs, times = model.profile({"input_ids": np.ones((2, 3), np.int64)})
    np.testing.assert_array_equal(outputs["hidden"], 4 * TABLE[np.ones((2, 3), np.int64)])
    assert [time.op for time in times] == ["take", "scale", "add"]
    assert [time.kernel for time in times] == [f"{name}_triton" for name in KERNELS]
    assert [time.seconds for time in times] == [0.001] * 3
    assert model.arena_bytes(batch=2, seq=3) == 512
    for seed in range(3):
        check(model, 2, 3, seed)


def test_outputs_that_are_other_buffers(tmp_path: Path) -> None:
    buffers: list[dict[str, object]] = [
        {"kind": "input", "bytes": "4*n"},
        {"kind": "weight", "bytes": 8, "name": "w"},
        {"kind": "arena", "bytes": "4*n", "slot": 0},
    ]
    names = ["x: f32[n]"], ["same: f32[n]", "w: f32[2]", "double: f32[n]", "again: f32[n]"]
    steps = [launch("sample_add", [(0, 0), (0, 0), (2, 0)], "n", sizes=[4])]
    document = program(
        *names, buffers, steps, symbols={"n": (0, 9)}, slots=[["4*n"]], binding=[0, 0, 1, 2, 2]
    )
    data = np.array([3, 4], np.float32)
    file = write(
        tmp_path / "m.fusec",
        document,
        [weight("w", "f32", (2,), data.tobytes())],
        inputs=names[0],
        outputs=names[1],
    )
    model = load(file, driver=FakeDriver(KERNELS))
    for x in ([1.0, 2.0, 5.0], [7.0], []):
        outputs = model(x=x)
        assert {name: array.tolist() for name, array in outputs.items()} == {
            "same": x,
            "w": [3, 4],
            "double": [2 * value for value in x],
            "again": [2 * value for value in x],
        }


def test_weights_go_through_two_buffers_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusec.runtime.gpu_memory.STAGING_BYTES", 1000)
    sizes = [1012, 0, 4, 2000]
    random = np.random.default_rng(0)
    data = [random.integers(0, 256, size, np.uint8) for size in sizes]
    buffers: list[dict[str, object]] = [{"kind": "output", "bytes": 0}]
    buffers += [
        {"kind": "weight", "bytes": size, "name": f"w{index}"} for index, size in enumerate(sizes)
    ]
    # The same weight twice is uploaded once.
    buffers.append({"kind": "weight", "bytes": 4, "name": "w2"})
    names: tuple[list[str], list[str]] = ([], ["y: f32[0]"])
    document = program(*names, buffers, [], symbols={})
    weights = [
        weight(f"w{index}", "u8", (size,), b"") for index, size in enumerate(sizes)
    ]  # given at load
    file = write(
        tmp_path / "m.fusec", document, weights, inputs=[], outputs=names[1], storage="none"
    )
    driver = FakeDriver({})
    load(file, driver=driver, weights={f"w{index}": each for index, each in enumerate(data)})
    (block,) = driver.held.values()
    begin = 0
    for each in data:
        np.testing.assert_array_equal(block[begin : begin + each.nbytes], each)
        begin += -(-each.nbytes // ALIGNMENT) * ALIGNMENT
    assert begin == block.nbytes
    # Five pieces: the first two wait for nothing, each one after them for that two before it.
    assert driver.calls.count("upload") == 5
    assert driver.calls.count("wait") == 3
    with pytest.raises(WeightsError, match="the weight `w0` is missing"):
        load(file, driver=FakeDriver({}), weights={})


# --- host steps -----------------------------------------------------------------------------


class Halved:
    """Stands for a session of onnxruntime."""

    def __init__(self, model: memoryview, at: str, threads: int | None) -> None:
        assert bytes(model) == b"onnx"

    def run(self, inputs: Any, outputs: Any, node: str) -> float:
        """Halve the input."""
        import ctypes

        ((_, shape, source),) = inputs
        ((_, _, target),) = outputs
        count = int(np.prod(shape))
        for index in range(count):
            value = ctypes.c_float.from_address(source + 4 * index).value
            ctypes.c_float.from_address(target + 4 * index).value = value / 2
        return 0.0


def host_program(middle: Mapping[str, object]) -> dict[str, object]:
    """`y = middle(x + x) * 3`, f32 `[n]`; `middle` reads buffer 2 and writes buffer 3."""
    buffers: list[dict[str, object]] = [
        {"kind": "input", "bytes": "4*n"},
        {"kind": "output", "bytes": "4*n"},
        {"kind": "arena", "bytes": "4*n + 16", "slot": 0},
        {"kind": "arena", "bytes": "4*n", "slot": 1},
        {"kind": "arena", "bytes": "4*n + 16", "slot": 2},
    ]
    steps = [
        launch("sample_add", [(0, 0), (0, 0), (2, 16)], "n", sizes=[4]),
        middle,
        launch("sample_scale", [(3, 0), (1, 0)], "n", {"f32": 3}),
    ]
    slots = [["4*n + 16"], ["4*n"], ["4*n + 16"]]
    return program(["x: f32[n]"], ["y: f32[n]"], buffers, steps, symbols={"n": (1, 9)}, slots=slots)


def host_file(folder: Path, middle: Mapping[str, object]) -> Path:
    """The artifact of `host_program`."""
    return write(
        folder / "host.fusec",
        host_program(middle),
        residual={"residual/0.onnx": b"onnx"},
        inputs=["x: f32[n]"],
        outputs=["y: f32[n]"],
    )


ONNX = {
    "kind": "onnx",
    "model": "residual/0.onnx",
    "node": "%half",
    "op": "aten.half",
    "reason": "no kernel",
    "inputs": [{"name": "a", "dtype": "f32", "shape": ["n"], "buffer": 2, "offset": 16}],
    "outputs": [{"name": "b", "dtype": "f32", "shape": ["n"], "buffer": 3, "offset": 0}],
}


def test_a_host_step_splits_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusec.runtime.loader.OnnxPart", Halved)
    file = host_file(tmp_path, ONNX)
    driver = FakeDriver(KERNELS)
    model = load(file, driver=driver)
    for seed in range(4):
        x = np.random.default_rng(seed).integers(-99, 99, 5).astype(np.float32)
        np.testing.assert_array_equal(model(x=x)["y"], 3 * x)
    assert len(driver.graphs) == 2
    _, times = model.profile({"x": [1.0]})
    assert [(time.op, time.kernel) for time in times] == [
        ("add", "sample_add_triton"),
        ("aten.half", "onnxruntime"),
        ("scale", "sample_scale_triton"),
    ]


def external_step() -> dict[str, object]:
    """A call of a library on operands of `host_program`."""
    call = {
        "library": "aiter",
        "version": "0.1.14",
        "versions": ["0.1.14"],
        "distributions": ["amd-aiter"],
        "module": "aiter.ops.half",
        "function": "half",
        "signature": "(x, y, out, scratch)",
        "operator": "",
        "arguments": [
            [name, "operand", index] for index, name in enumerate(("x", "y", "out", "scratch"))
        ],
        "returned": [],
    }
    operands = [
        {"dtype": "f32", "shape": [1, "n"], "strides": ["n", 1], "buffer": buffer, "offset": offset}
        for buffer, offset in ((2, 16), (2, 16), (3, 0), (4, 16))
    ]
    step = {"kind": "external", "op": "half", "node": "%half", "kernel": "lib", "call": call}
    return {**step, "operands": operands}


def test_a_library_is_called_on_the_memory_of_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    class Function:
        """Stands for a function that was checked."""

        def run(self, operands: Any, dtype: Callable[[str], Any]) -> None:
            """Halve the first operand into the third, and hold the second against the first."""
            assert dtype("bf16") == torch.bfloat16
            assert torch.equal(operands[0], operands[1])
            assert operands[0].shape == (1, 5)
            operands[2].copy_(operands[0] / 2)

    monkeypatch.setattr("fusec.runtime.loader.load_external", lambda spec: Function())
    file = host_file(tmp_path, external_step())
    driver = FakeDriver(KERNELS, kind="emulator")
    model = load(file, driver=driver)
    for seed in range(3):
        x = np.random.default_rng(seed).integers(-99, 99, 5).astype(np.float32)
        np.testing.assert_array_equal(model(x=x)["y"], 3 * x)
    _, times = model.profile({"x": [1.0] * 5})
    assert [time.kernel for time in times] == ["sample_add_triton", "lib", "sample_scale_triton"]


def test_a_library_that_is_not_there(tmp_path: Path) -> None:
    file = host_file(tmp_path, external_step())
    driver = FakeDriver(KERNELS)
    with pytest.raises(LibraryError, match="which is not installed"):
        load(file, driver=driver)
    assert not driver.modules


# --- what goes wrong ------------------------------------------------------------------------


def test_an_index_out_of_range(model: Model) -> None:
    check(model, 1, 2)
    for index, _ in ((11, 0), (-1, 0), (1 << 20, 0), (-12, 0)):
        for _ in range(3):
            with pytest.raises(InputError) as caught:
                model(input_ids=[[1, index]])
            assert str(caught.value) == (
                f"the index {index} is out of range: it must be less than 11"
            )
            assert caught.value.at == "%sample_take (take), or %sample_take (take)"
            assert caught.value.hint is not None and "check the ids" in caught.value.hint
            check(model, 1, 2)


def test_a_launch_that_fails(model: Model, driver: FakeDriver) -> None:
    check(model, 1, 2)
    driver.fails["sample_scale"] = 0
    with pytest.raises(LaunchError, match="`sample_scale_triton of %sample_scale") as caught:
        model(input_ids=[[1, 2, 3]])
    assert caught.value.exit_code == 5
    assert "grid 1 x 1 x 1, block 128 x 1 x 1" in caught.value.detail[0]
    assert "numbers 15," in caught.value.detail[1]
    for seed in range(3):
        check(model, 1, 3, seed)


def test_a_launch_that_fails_while_it_is_captured(model: Model, driver: FakeDriver) -> None:
    check(model, 1, 2)
    driver.fails["sample_scale"] = 0
    with pytest.raises(LaunchError, match="sample_scale"):
        model(input_ids=[[1, 2]])
    assert driver.capture is None
    for seed in range(3):
        check(model, 1, 2, seed)


def test_a_device_that_fails_later(model: Model, driver: FakeDriver) -> None:
    check(model, 1, 2)
    driver.broken = True
    with pytest.raises(CodeError, match="the device failed") as caught:
        model(input_ids=[[1, 2]])
    assert caught.value.detail == (
        "among 3 kernels, from sample_take_triton of %sample_take (take) to sample_add_triton of "
        "%sample_add (add)",
    )
    assert "HIP_LAUNCH_BLOCKING" in str(caught.value.hint)


def test_a_device_that_fails_where_nothing_is_launched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, outputs = ["x: f32[batch]"], ["y: f32[batch]"]
    buffers = [{"kind": "input", "bytes": "4*batch"}]
    symbols = {"batch": (1, 8)}
    document = program(inputs, outputs, buffers, [], symbols=symbols, binding=[0, 0])
    path = write(tmp_path / "copy.fusec", document, inputs=inputs, outputs=outputs)
    driver = FakeDriver(KERNELS)
    model = load(path, driver=driver)
    np.testing.assert_array_equal(model(x=[1, 2])["y"], [1, 2])

    def fail(stream: int) -> None:
        raise CodeError("the device failed")

    monkeypatch.setattr(driver, "synchronize", fail)
    with pytest.raises(CodeError, match="the device failed") as caught:
        model(x=[1, 2])
    assert caught.value.detail == ()


def test_weights_that_do_not_fit(path: Path) -> None:
    driver = FakeDriver(KERNELS, memory_bytes=100)
    with pytest.raises(OutOfMemoryError, match="256 bytes are needed for the weights, 100 are"):
        load(path, driver=driver)


def test_intermediate_values_that_do_not_fit(path: Path) -> None:
    driver = FakeDriver(KERNELS, memory_bytes=9000)
    model = load(path, driver=driver)
    check(model, 1, 64)
    for _ in range(2):
        with pytest.raises(InputError, match="not enough memory: these sizes need") as caught:
            model(input_ids=ids_of(8, 64))
        assert "are needed for intermediate values" in caught.value.detail[0]
        assert caught.value.hint == "give smaller batches"
    for seed in range(3):
        check(model, 1, 64, seed)


def test_a_bucket_that_does_not_fit_is_made_smaller(path: Path) -> None:
    needed = 256 + 1024 + 3 * 2560  # the error, the ids and three values
    assert bucket(needed) == needed + 256
    driver = FakeDriver(KERNELS, memory_bytes=256 + needed)
    check(load(path, driver=driver), 2, 61)
    assert driver.purposes[1:] == ["intermediate values"] * 2


def test_a_model_is_closed(path: Path) -> None:
    driver = FakeDriver(KERNELS)
    with load(path, driver=driver) as model:
        for seed in range(3):
            check(model, 2, 3, seed)
        assert driver.held and driver.graphs
    assert not driver.held and not driver.graphs
    assert not driver.closed  # it is the caller's


# --- batches --------------------------------------------------------------------------------


def rows_file(folder: Path, *rows: list[int]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    return file


@pytest.fixture
def run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, Path]]:
    """Runs rows through the command line, two at once, over a fake driver."""

    def run(driver: FakeDriver, *rows: list[int], suffix: str = "jsonl") -> tuple[int, Path]:
        monkeypatch.setattr("fusec.runtime.loader.open_driver", lambda kind, index: driver)
        output = tmp_path / f"out.{suffix}"
        command = ["run", str(path), "--input", str(rows_file(tmp_path, *rows)), "--device"]
        with pytest.raises(SystemExit) as caught:
            main((*command, "cuda:0", "--output", str(output), "--batch-size", "2"))
        assert isinstance(caught.value.code, int)
        return caught.value.code, output

    return run


def test_batches_run(run: Callable[..., tuple[int, Path]], driver: FakeDriver) -> None:
    code, output = run(driver, [1, 2], [3, 4], [5, 6])
    assert code == 0
    lines = [json.loads(line)["hidden"] for line in output.read_text().splitlines()]
    np.testing.assert_array_equal(lines, 4 * TABLE[[[1, 2], [3, 4], [5, 6]]])
    assert driver.closed


def test_a_bad_record_leaves_the_others(
    run: Callable[..., tuple[int, Path]], driver: FakeDriver
) -> None:
    code, output = run(driver, [1, 2], [3, 4], [5, 99], [7, 8])
    assert code == 1
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert "the index 99 is out of range" in lines[2]["error"]
    good = [lines[index]["hidden"] for index in (0, 1, 3)]
    np.testing.assert_array_equal(good, 4 * TABLE[[[1, 2], [3, 4], [7, 8]]])


@pytest.mark.parametrize("suffix", ["jsonl", "npz"])
def test_a_driver_that_fails_keeps_what_was_done(
    run: Callable[..., tuple[int, Path]],
    driver: FakeDriver,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
) -> None:
    driver.fails["sample_add"] = 1
    code, output = run(driver, [1, 2], [3, 4], [5, 6], [7, 8], suffix=suffix)
    assert code == 5
    if suffix == "npz":
        hidden = np.load(output)["hidden"].tolist()
    else:
        hidden = [json.loads(line)["hidden"] for line in output.read_text().splitlines()]
    np.testing.assert_array_equal(hidden, 4 * TABLE[[[1, 2], [3, 4]]])
    said = capsys.readouterr().err
    assert "`sample_add_triton of %sample_add (add)` failed" in said
    assert f"the outputs of 2 records before that are in `{output}`" in said


def test_a_driver_that_fails_at_once_leaves_no_file(
    run: Callable[..., tuple[int, Path]], driver: FakeDriver
) -> None:
    driver.fails["sample_add"] = 0
    code, output = run(driver, [1, 2], [3, 4])
    assert code == 5
    assert not output.exists()


# --- reading --------------------------------------------------------------------------------

PROGRAM = "program/sm_90.json"


@pytest.mark.parametrize(
    ("place", "value", "error", "message"),
    [
        (("kind",), "kernel", MalformedError, "must be `onnx` or `launch` or `external`"),
        (("symbol",), "a b", MalformedError, "the name of a C function"),
        (("module",), "kernels/sm_90/x.cubin", MalformedError, "not one of the target"),
        (("grid",), [1, 1], MalformedError, "three sizes"),
        (("grid", 0), -1, MalformedError, "a size from 0 to"),
        (("grid", 0), "batch - 9", OutOfBoundsError, "a grid of -8 work groups is none"),
        (("grid", 0), "batch*2147483648", InputError, r"would need 2147483648 x 1 x 1 work groups"),
        (("grid", 1), 65536, InputError, r"would need \d+ x 65536 x 1 work groups"),
        (("grid", 1), "other", MalformedError, "the symbol `other` has no range"),
        (("block",), [128, 1], MalformedError, "three sizes of at most 1024 lanes"),
        (("block",), [64, 64, 1], MalformedError, "three sizes of at most 1024 lanes"),
        (("block", 0), 0, MalformedError, "an integer from 1 to 1024"),
        (("shared_bytes",), 1 << 30, MalformedError, "an integer from 0 to"),
        (("shared_bytes",), -1, MalformedError, "an integer from 0 to"),
        (("kernarg_bytes",), 56, None, ""),
        (("kernarg_bytes",), 55, OutOfBoundsError, r"arguments\[6\]` ends at byte 56 of a block"),
        (("kernarg_bytes",), 1 << 20, MalformedError, "an integer from 0 to"),
        (("arguments", 0), [4, 8], OutOfBoundsError, "overlap at byte 8"),
        (("arguments", 6), [4, 8], OutOfBoundsError, "overlap at byte"),
        (("arguments", 0), [0, 4], MalformedError, "must be `8`"),
        (("arguments", 6), [48, 2], MalformedError, "must be `4` or `8`"),
        (("arguments", 6), [48, 4], None, ""),
        (("arguments", 6), [48], MalformedError, "an offset and a size"),
        (("arguments",), [[0, 8]], MalformedError, "7 arguments: each operand, then each"),
        (("buffers", 0), [9, 0], OutOfBoundsError, "there are 6 buffers"),
        (("buffers", 0), [0], MalformedError, "a buffer and an offset"),
        (("buffers", 0), [2, 221], OutOfBoundsError, "begins at byte 221 of a buffer of 220"),
        (("buffers", 0), [2, -1], MalformedError, "a size from 0 to"),
        (("params", 0), {"f64": 1}, MalformedError, "f32` is missing"),
        (("params", 0), {"f32": 1}, MalformedError, "must be `4`"),
        (("params", 0), "batch*10**400", MalformedError, r"`steps\[0\].params\[0\]`: "),
    ],
)
def test_a_damaged_launch(
    path: Path,
    tmp_path: Path,
    place: tuple[str | int, ...],
    value: object,
    error: type[FusecError] | None,
    message: str,
) -> None:
    file = tmp_path / "m.fusec"
    file.write_bytes(edited(entries_of(path), PROGRAM, "steps", 0, *place, value=value))

    def work() -> None:
        load(file, driver=FakeDriver(KERNELS))(input_ids=[[1, 2]])

    if error is None:
        work()
        return
    with pytest.raises(error, match=message):
        work()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("buffers", 5, "bytes"), 16, "must be `8`"),
        (("buffers", 5, "kind"), "scratch", "must be `input` or .* or `error`"),
        (("target",), "gfx950", "`target` is none of the manifest"),
        (("arch",), "sm_89", "the target differs"),
        (("sources",), [], "must be an object"),
    ],
)
def test_a_damaged_program(
    path: Path, tmp_path: Path, place: tuple[str | int, ...], value: object, message: str
) -> None:
    file = tmp_path / "m.fusec"
    file.write_bytes(edited(entries_of(path), PROGRAM, *place, value=value))
    with pytest.raises(ArtifactError, match=message):
        load(file, driver=FakeDriver(KERNELS))(input_ids=[[1, 2]])


def test_an_amd_gpu_takes_2_32_lanes_along_an_axis(tmp_path: Path) -> None:
    """A launch gives it the number of lanes, in 32 bits."""
    file = tmp_path / "m.fusec"
    entries = entries_of(embedding(tmp_path, "gfx950"))
    lanes = json.loads(entries["program/gfx950.json"])["steps"][0]["block"][0]
    for groups in ((1 << 32) // lanes - 1, (1 << 32) // lanes):
        place = ("steps", 0, "grid", 0)
        file.write_bytes(edited(entries, "program/gfx950.json", *place, value=groups))
        model = load(file, driver=FakeDriver(KERNELS, arch="gfx950"))
        if groups * lanes < 1 << 32:
            model(input_ids=[[1, 2]])
            continue
        with pytest.raises(InputError, match="more than a device takes"):
            model(input_ids=[[1, 2]])


@pytest.mark.parametrize("value", [1 << 31, "batch*2147483648", "-batch*2147483648 - 1"])
def test_a_number_that_has_not_the_4_bytes_of_its_argument(
    path: Path, tmp_path: Path, value: int | str
) -> None:
    """It would become another one: 2^31 is -2^31 to a kernel."""
    file = tmp_path / "m.fusec"
    file.write_bytes(edited(entries_of(path), PROGRAM, "steps", 3, "params", 0, value=value))
    with pytest.raises(InputError, match=r"in 4 bytes that is -?21474836"):
        load(file, driver=FakeDriver(KERNELS))(input_ids=[[1, 2]])


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("operands", 0, "offset"), 20, "an operand ends at byte 28 of a buffer of 24"),
        (("operands", 0, "strides", 1), 3, "an operand ends at byte 32 of a buffer of 24"),
        (("operands", 0, "strides"), [1], "a stride for each size"),
        (("operands", 0, "dtype"), "f31", "must be"),
        (("operands", 0, "buffer"), 7, "there are 5 buffers"),
        (("operands",), [], r"call` names operand \d of 0"),
        (("call", "module"), "os", "a module of `aiter`"),
    ],
)
def test_a_damaged_external_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: tuple[str | int, ...],
    value: object,
    message: str,
) -> None:
    monkeypatch.setattr("fusec.runtime.loader.load_external", lambda spec: None)
    step: Any = copy.deepcopy(external_step())
    at = step
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    file = tmp_path / "m.fusec"
    sound = host_file(tmp_path, external_step())
    steps = host_program(step)["steps"]
    file.write_bytes(edited(entries_of(sound), PROGRAM, "steps", value=steps))
    with pytest.raises(ArtifactError, match=message):
        load(file, driver=FakeDriver(KERNELS))(x=[1.0, 2.0])


def test_a_cpu_program_has_no_launches(tmp_path: Path, path: Path) -> None:
    file = tmp_path / "m.fusec"
    data = edited(entries_of(path), "manifest.json", "targets", 0, "family", value="cpu")
    file.write_bytes(data)
    with pytest.raises(MalformedError, match="must be `input` or `output` or `weight` or `arena`,"):
        load(file)
    with pytest.raises(TargetError, match="no code for `cuda:0`"):
        load(file, driver=FakeDriver(KERNELS))


LAUNCH_FIELDS = sorted(set(launch("sample_add", [(0, 0)], "batch")) - {"kind"})


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    step=st.integers(0, 3),
    name=st.sampled_from(LAUNCH_FIELDS),
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-(1 << 65), 1 << 65) | st.text("batch*+-/9() "),
        lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.just("f32"), inner),
        max_leaves=8,
    ),
)
def test_any_damage_is_refused_or_harmless(
    path: Path, tmp_path: Path, step: int, name: str, value: object
) -> None:
    file = tmp_path / "m.fusec"
    file.write_bytes(edited(entries_of(path), PROGRAM, "steps", step, name, value=value))
    driver = FakeDriver(dict.fromkeys(KERNELS, lambda arguments: None))
    try:
        load(file, driver=driver)(input_ids=[[1, 2]])
    except FusecError:
        return
    for launched in driver.launches:
        assert all(0 < size < 1 << 31 for size in launched.grid)
        ends = [offset + size for offset, size in launched.arguments]
        assert max(ends, default=0) <= len(launched.kernargs)
