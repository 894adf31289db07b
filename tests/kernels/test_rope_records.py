"""Records of rotations and norms: what they refuse, and the code objects they become."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import replace

import pytest
from gpu_cases import ROWS, GpuCase, gpu_cases
from row_problems import triton_record

from fusec.ir import Graph, TensorType
from fusec.ir.types import Attr
from fusec.kernels.launch import Storage, TritonSource
from fusec.kernels.rope.triton import heads_of, parts_of, warps_of
from fusec.kernels.triton_rows import is_power_of_two
from fusec.link.gpu_checks import fitted
from fusec.link.triton_build import build_triton
from fusec.target import GPU_TARGETS, target_named

OPS = ("rope", "qk_norm_rope", "layer_norm", "l2_norm")
CASES = [case for case in gpu_cases(target_named("gfx950")) if case.op in OPS]


def transposed(storage: Storage) -> Storage:
    """[B, H, S, D] as it lies in rows [B, S, H*D]; other storages and tables as they are."""
    if len(storage.shape) != 4 or storage.shape[1] == 1:
        return storage
    _, heads, length, head = storage.shape
    return replace(storage, strides=(length * heads * head, head, heads * head, 1))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op} {case.label}")
@pytest.mark.parametrize("target_name", GPU_TARGETS)
def test_code_objects(target_name: str, case: GpuCase) -> None:
    """Wide loads, few registers, and nothing beside them."""
    target = target_named(target_name)
    graph, node = case.node()
    record = triton_record(case.op)
    assert record.supports(graph, node, target) is None
    call = case.call(graph, node, target)
    (launch,) = record.launches(replace(call, inputs=tuple(map(transposed, call.inputs))))
    source = launch.code
    assert isinstance(source, TritonSource)
    function = getattr(importlib.import_module(source.module), source.function)
    given = [name for name in function.arg_names if name not in dict(source.constants)]
    assert given == [name for name, _ in source.signature]
    built = fitted(build_triton(source, target), source, target)
    assert built.machine.widest_load == 16 and not built.machine.forbidden
    assert not any(
        built.resources[name] for name in ("vgpr_spills", "sgpr_spills", "scratch_bytes")
    )
    assert built.resources["vgpr"] <= 96


@pytest.mark.parametrize("target_name", GPU_TARGETS)
def test_layer_norm_of_rows_whose_length_is_not_known(target_name: str) -> None:
    """As of a group norm over images or sounds of any size."""
    target = target_named(target_name)
    attrs: dict[str, Attr] = {"eps": 1e-5, "has_weight": False, "has_bias": False}
    case = GpuCase("layer_norm", "groups", (TensorType("bf16", (32, ROWS)),), attrs)
    graph, node = case.node()
    record = triton_record("layer_norm")
    assert record.supports(graph, node, target) is None
    (launch,) = record.launches(case.call(graph, node, target))
    assert isinstance(launch.code, TritonSource)
    built = fitted(build_triton(launch.code, target), launch.code, target)
    assert not any(
        built.resources[name] for name in ("vgpr_spills", "sgpr_spills", "scratch_bytes")
    )


@pytest.mark.parametrize("length", [2, 24, 40, 80, 96, 128, 192, 256, 576, 16384])
@pytest.mark.parametrize("target_name", GPU_TARGETS)
def test_tiles_are_powers_of_two(target_name: str, length: int) -> None:
    """Few rows are wasted, and each program has work."""
    target = target_named(target_name)
    for rotary, heads in itertools.product({2, length // 4 * 2 or 2, length}, (1, 3, 20, 40, 128)):
        parts = parts_of(length, rotary)
        block = heads_of(heads, parts, target)
        warps = warps_of(block, parts, target)
        assert is_power_of_two(block) and is_power_of_two(warps)
        assert -(-heads // block) * block <= heads * 4 / 3 or block <= 4
        assert block == 1 or block * parts.padded <= 2048


REFUSED = [
    ("rope", 3, (2, 3, 5, 8), (5, 3), "odd"),
    ("rope", 8, (2, 3, 5, 20000), (5, 8), "20000 elements"),
    ("rope", 8, (2, 2, 3, 5, 8), (2, 2, 3, 5, 8), "4 coordinates"),
]


@pytest.mark.parametrize(("op", "rotary", "shape", "table", "reason"), REFUSED)
def test_refusals(
    op: str, rotary: int, shape: tuple[int, ...], table: tuple[int, ...], reason: str
) -> None:
    graph = Graph("case")
    names = [
        graph.add_input(f"x{i}", TensorType("bf16", each))
        for i, each in enumerate((shape, table, table))
    ]
    attrs: dict[str, Attr] = {"style": "half", "rotary_dim": rotary, "deinterleave": False}
    node = graph.add(op, names, attrs)
    refused = triton_record(op).supports(graph, node, target_named("gfx950"))
    assert refused is not None and reason in refused


def test_operands_that_are_no_rows_of_floats() -> None:
    graph = Graph("case")
    x = graph.add_input("x", TensorType("f64", (5, 8)))
    table = graph.add_input("table", TensorType("f32", (5, 8)))
    attrs: dict[str, Attr] = {"style": "half", "rotary_dim": 8, "deinterleave": False}
    node = graph.add("rope", [x, table, table], attrs)
    refused = triton_record("rope").supports(graph, node, target_named("gfx950"))
    assert refused is not None and "f64" in refused
