"""What steps cost: against numbers worked out by hand, and against PyTorch's counter."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import sample_models
import torch
from torch.utils.flop_counter import FlopCounterMode

import fusec
from fusec.costs import Limits, StepCost, limits_of, step_costs, typical_sizes
from fusec.diagnostics import InputError, UsageError
from fusec.ir import OPS, Graph
from fusec.ir.text import parse_graph
from fusec.kernels.tuning import MEMORY_BYTES_PER_CLOCK, PRODUCTS_PER_CLOCK, WIDE_PRODUCTS_PER_CLOCK
from fusec.lower.costs import ELEMENT, TABLE, attended_twice
from fusec.lower.lowering import lower
from fusec.runtime.artifact import Manifest, open_artifact
from fusec.symbolic import evaluate
from fusec.target import GPU_TARGETS, Target, target_named

CPU = target_named("x86-64-v3")
AMX = target_named("sapphirerapids")
GFX950 = target_named("gfx950")


def test_every_operation_has_a_row() -> None:
    built_in = {
        op for op, definition in OPS.items() if definition.reference.__module__.startswith("fusec.")
    }
    assert built_in <= TABLE.keys() <= OPS.keys()
    assert {op for op in built_in if OPS[op].elementwise} == ELEMENT.keys()


def costs_of(text: str, target: Target = CPU, **sizes: int) -> list[tuple[str, int, int, int, str]]:
    """Op, bytes read, bytes written, flops and unit of each step that runs at `sizes`."""
    graph: Graph = parse_graph(text)
    found: list[tuple[str, int, int, int, str]] = []
    for step in lower(graph, target).kernel_steps:
        if all(evaluate(side, sizes) for side in step.launch.grid):
            cost = step.cost
            numbers = [evaluate(each, sizes) for each in (cost.read, cost.write, cost.flops)]
            found.append((step.op, numbers[0], numbers[1], numbers[2], cost.unit))
    return found


LINEAR = """
graph @main(%x: {dtype}[rows, 64]) symbols(rows in [1, 4096]) {{
  param %w: {dtype}[128, 64] = "w"
  %y: {dtype}[rows, 128] = linear(%x, %w) {{has_bias = false}}
  return %y as "y"
}}
"""


@pytest.mark.parametrize(
    ("dtype", "target", "unit"),
    [("f32", CPU, "f32"), ("bf16", CPU, "f32"), ("bf16", AMX, "bf16"), ("bf16", GFX950, "bf16")],
)
def test_linear(dtype: str, target: Target, unit: str) -> None:
    size = 4 if dtype == "f32" else 2
    ((_, read, write, flops, found),) = costs_of(LINEAR.format(dtype=dtype), target, rows=1000)
    assert (read, write) == ((1000 * 64 + 128 * 64) * size, 1000 * 128 * size)
    assert flops == 2 * 1000 * 64 * 128
    assert found == unit


@pytest.mark.parametrize("keys", [7, 12])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 3, 20])
def test_pairs_of_attention(keys: int, causal: bool, window: int | None) -> None:
    queries = 7
    distances = [s + keys - queries - t for s in range(queries) for t in range(keys)]
    pairs = sum(
        (not causal or distance >= 0) and (window is None or abs(distance) < window)
        for distance in distances
    )
    found = attended_twice(queries, keys, causal, window)
    if causal or window is None or queries == keys:
        assert found == 2 * pairs
    else:  # two-sided windows are not cut at the ends
        assert 2 * pairs <= found <= 2 * queries * keys  # type: ignore[operator]


@pytest.mark.parametrize("keys", [7, 12])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 7, 20])
def test_pairs_of_attention_in_chunks(keys: int, causal: bool, chunk: int) -> None:
    queries = 7
    positions = range(keys - queries, keys)
    pairs = sum(
        p // chunk == t // chunk and (not causal or t <= p) for p in positions for t in range(keys)
    )
    found = attended_twice(queries, keys, causal, None, chunk)
    if causal or queries == keys:
        assert found == 2 * pairs
    else:  # chunks are not cut at the ends
        assert 2 * pairs <= found <= 2 * queries * keys  # type: ignore[operator]


EXPERTS = (
    'activation = "silu", gate_up_layout = "split", gated = true, has_bias = false, '
    "transposed = false"
)


def test_experts_read_no_more_weights_than_there_are_choices() -> None:
    text = """
graph @main(%x: f32[n, 32], %p: f32[n, 2], %e: i64[n, 2]) symbols(n in [1, 64]) {
  param %up: f32[8, 128, 32] = "up"
  param %down: f32[8, 32, 64] = "down"
  %y: f32[n, 32] = moe(%x, %p, %e, %up, %down) {ATTRS}
  return %y as "y"
}
""".replace("ATTRS", EXPERTS)
    one = costs_of(text, n=1)[-1]
    many = costs_of(text, n=64)[-1]
    expert = (128 * 32 + 32 * 64) * 4
    token = (32 * 4) + 2 * 4 + 2 * 8
    assert one[1] == 2 * expert + token
    assert many[1] == 8 * expert + 64 * token
    assert many[3] == 64 * one[3] == 64 * 2 * 2 * (128 * 32 + 32 * 64)


def test_lookups_read_the_rows_they_find() -> None:
    text = """
graph @main(%ids: i64[n]) symbols(n in [1, 5000]) {
  param %t: f32[1000, 16] = "t"
  %y: f32[n, 16] = take(%t, %ids) {axis = 0}
  return %y as "y"
}
"""
    assert costs_of(text, n=3) == [("take", 3 * 8 + 3 * 64, 3 * 64, 0, "f32")]
    assert costs_of(text, n=5000)[0][1] == 5000 * 8 + 1000 * 64


def test_regions_count_what_each_element_takes() -> None:
    text = """
graph @main(%x: f32[rows, 32], %b: f32[32]) symbols(rows in [1, 64]) {
  %s: f32[rows, 32] = add(%x, %b)
  %y: f32[rows, 32] = silu(%s)
  return %y as "y"
}
"""
    ((op, read, write, flops, unit),) = costs_of(text, rows=10)
    assert op == "add+silu"
    assert (read, write) == (10 * 32 * 4 + 32 * 4, 10 * 32 * 4)
    assert (flops, unit) == (10 * 32 * (1 + 4), "f32")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = sample_models.build("llama", tmp_path_factory.mktemp("costs") / "llama")
    path = folder.with_suffix(".fusec")
    fusec.compile(folder, path, target="x86-64-v3", dims={"batch": "1:2:8", "seq": (1, 64)})
    return folder, path


def test_a_whole_model_agrees_with_the_counter_of_pytorch(llama: tuple[Path, Path]) -> None:
    folder, path = llama
    batch, seq = 2, 24
    costs = step_costs(open_artifact(path), "x86-64-v3", {"batch": batch, "seq": seq})
    products = sum(cost.flops for cost in costs if "linear" in cost.op)
    attention = sum(cost.flops for cost in costs if cost.op == "attention")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        sample_models.reference(folder)(input_ids=torch.ones(batch, seq, dtype=torch.int64))
    counts: dict[Any, int] = counter.get_flop_counts()["Global"]
    dense = sum(count for op, count in counts.items() if "mm" in str(op) and "bmm" not in str(op))
    whole = sum(counts.values()) - dense
    assert products == dense
    # The counter knows no mask: of seq*seq pairs, seq*(seq + 1)/2 are attended to.
    assert whole in (0, attention * 2 * seq // (seq + 1))
    assert attention > 0


def test_typical_sizes_are_the_optimum_that_was_asked_for(llama: tuple[Path, Path]) -> None:
    manifest = open_artifact(llama[1]).manifest
    assert typical_sizes(manifest) == {"batch": 2, "seq": 64}


def test_typical_sizes_without_one_stay_in_the_range() -> None:
    symbols = {"batch": (4, 8), "seq": (1, 4096), "short": (1, 16)}
    manifest = cast(Manifest, SimpleNamespace(options={}, symbols=symbols))
    assert typical_sizes(manifest) == {"batch": 4, "seq": 128, "short": 16}


def test_an_artifact_without_costs_is_refused(llama: tuple[Path, Path]) -> None:
    artifact = open_artifact(llama[1])
    document = json.loads(zipfile.ZipFile(llama[1]).read("program/x86-64-v3.json"))
    for step in document["steps"]:
        del step["cost"]
    program = artifact.program("x86-64-v3")
    older = SimpleNamespace(program=lambda _: type(program)(document, program.at))
    with pytest.raises(InputError, match="does not say what its steps cost") as caught:
        step_costs(cast(Any, older), "x86-64-v3", {"batch": 1, "seq": 1})
    assert caught.value.hint == "compile it again"


def test_limits_say_what_bounds_a_step() -> None:
    limits = Limits(100.0, {"f32": 1000.0}, "a test")
    moving = StepCost("a", "add", "k", ("a",), 150, 50, 1000, "f32")
    busy = StepCost("b", "linear", "k", ("b",), 50, 50, 5000, "f32")
    counting = StepCost("c", "sort", "k", ("c",), 50, 50, 5000, "i64")
    assert [limits.seconds(each) for each in (moving, busy, counting)] == [2.0, 5.0, 1.0]
    assert [limits.bound(each) for each in (moving, busy, counting)] == [
        "memory",
        "compute",
        "memory",
    ]


def test_data_sheets() -> None:
    assert limits_of("gfx950").bytes_per_second == limits_of("mi350x").bytes_per_second == 8e12
    assert limits_of("h200").bytes_per_second > limits_of("sm_90").bytes_per_second
    assert all("data sheet" in limits_of(name).source for name in GPU_TARGETS)
    with pytest.raises(UsageError, match="no data sheet"):
        limits_of("x86-64-v3")


def test_the_model_of_tiles_reads_the_same_sheets() -> None:
    assert PRODUCTS_PER_CLOCK == {"gfx950": 2048, "gfx942": 1024, "sm_90": 2048}
    assert WIDE_PRODUCTS_PER_CLOCK == dict.fromkeys(GPU_TARGETS, 128)
    assert MEMORY_BYTES_PER_CLOCK == {"gfx950": 3333, "gfx942": 2524, "sm_90": 1831}
