"""Triton kernels: right under the interpreter, and sound code objects for every GPU target."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_cases import GpuCase, gpu_cases
from row_problems import triton_record

from fusec.formats import fp8_scaling
from fusec.ir import Graph, TensorType
from fusec.ir.types import Attr
from fusec.kernels.launch import TritonSource
from fusec.link.gpu_checks import fitted
from fusec.link.triton_build import build_triton
from fusec.target import GPU_TARGETS, Target, target_named

CASES = sorted(Path(__file__).parent.glob("interpreted_*_cases.py"), key=lambda path: path.name)
ROW_OPS = (
    "rms_norm",
    "add_rms_norm",
    "gated_rms_norm",
    "dual_rms_norm",
    "silu_mul",
    "gelu_mul",
    "swiglu_oai",
)
ROW_KERNELS = {*ROW_OPS, *(f"{op}_quant" for op in ROW_OPS), "quantize", "dequantize"}


@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_kernels_agree_with_their_references(cases: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(cases), "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    options = ["-o", "python_files=*_cases.py"]
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def _row_cases(target: Target) -> list[GpuCase]:
    return [case for case in gpu_cases(target) if case.op in ROW_KERNELS]


@pytest.mark.parametrize("step", [6, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("target_name", GPU_TARGETS)
def test_row_code_objects(target_name: str, step: int) -> None:
    """Wide loads, few registers, and nothing beside them."""
    target = target_named(target_name)
    for case in _row_cases(target)[::step]:
        graph, node = case.node()
        record = triton_record(case.op)
        if record.supports(graph, node, target) is not None:
            continue
        (launch,) = record.launches(case.call(graph, node, target))
        source = launch.code
        assert isinstance(source, TritonSource)
        function = getattr(importlib.import_module(source.module), source.function)
        given = [name for name in function.arg_names if name not in dict(source.constants)]
        assert given == [name for name, _ in source.signature]
        built = fitted(build_triton(source, target), source, target)
        assert built.code.startswith(b"\x7fELF")
        assert str(Path(__file__).parents[2]).encode() not in built.code
        if target.family == "amdgpu":
            assert built.resources["vgpr"] <= 96, case
            assert not built.resources["vgpr_spills"] and not built.resources["scratch_bytes"]
            halves = case.op == "dequantize" and case.operands[0].dtype == "f4e2m1x2"
            assert built.machine.widest_load == (8 if halves else 16), case
            assert not built.machine.forbidden


REFUSED: list[tuple[str, str, dict[str, Attr], int, str]] = [
    ("gfx942", "quantize", fp8_scaling("f8e4m3fn", "token").attrs(), 256, "not f8e4m3fn"),
    (
        "gfx950",
        "quantize",
        fp8_scaling("f8e4m3fnuz", "token").attrs(),
        256,
        "fp8.arch: gfx950 takes",
    ),
    ("gfx950", "quantize", fp8_scaling("f8e4m3fn", "tensor").attrs(), 256, "scales: "),
    ("sm_90", "quantize", fp8_scaling("f8e4m3fn", "group", group=96).attrs(), 192, "group of 96"),
]


@pytest.mark.parametrize(("target_name", "op", "attrs", "length", "reason"), REFUSED)
def test_refusals(
    target_name: str, op: str, attrs: dict[str, Attr], length: int, reason: str
) -> None:
    graph = Graph("case")
    x = graph.add_input("x", TensorType("bf16", (4, length)))
    node = graph.add(op, [x], {"has_scale": False, **attrs})
    refused = triton_record(op).supports(graph, node, target_named(target_name))
    assert refused is not None and reason in refused


@pytest.mark.parametrize(
    ("head", "length", "reason"), [(96, 192, "gdn.head-dim: 96"), (512, 512, "gdn.head-dim: 512")]
)
def test_refused_heads(head: int, length: int, reason: str) -> None:
    graph = Graph("case")
    kinds = ((4 * length // head, head), (head,), (4 * length // head, head))
    names = [graph.add_input(f"x{i}", TensorType("bf16", shape)) for i, shape in enumerate(kinds)]
    attrs: dict[str, Attr] = {
        **fp8_scaling("f8e4m3fn", "token").attrs(),
        "eps": 1e-6,
        "weight_offset": 0,
        "activation": "silu",
        "norm_before_gate": True,
        "shape": (4, length),
    }
    node = graph.add("gated_rms_norm_quant", names, attrs)
    target = target_named("gfx950")
    refused = triton_record("gated_rms_norm_quant").supports(graph, node, target)
    assert refused is not None and refused.startswith(reason)


@pytest.mark.parametrize(
    ("source", "starts", "layout"),
    [
        ("x", (0, 1), "strided"),
        ("x", (1, 0), "even_rows"),
        ("reshaped", (0, 1), "strided"),
        ("turned", (0, 1), "even_rows"),
    ],
)
def test_parts_that_take_turns(source: str, starts: tuple[int, int], layout: str) -> None:
    """Even and odd columns are read where they lie; those of a view may lie anywhere."""
    graph = Graph("case")
    seen = graph.add_input("x", TensorType("bf16", (8, 5760)))
    if source == "reshaped":
        seen = graph.add("reshape", [seen], {"shape": (2, 4, 5760)}).output
    if source == "turned":
        seen = graph.add("transpose", [seen], {"perm": (1, 0)}).output
    axis, size = len(graph.type(seen).shape) - 1, graph.type(seen).shape[-1]
    parts = [
        graph.add("slice", [seen], {"axis": axis, "start": start, "stop": size, "step": 2}).output
        for start in starts
    ]
    node = graph.add("swiglu_oai", parts, {"alpha": 1.702, "limit": 7.0})
    assert triton_record("swiglu_oai").layouts(graph, node) == (layout, layout, "even_rows")
