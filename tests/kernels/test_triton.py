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
from fusec.link.triton_build import build
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


@pytest.mark.parametrize("target_name", GPU_TARGETS)
def test_row_code_objects(target_name: str) -> None:
    """Wide loads, room for eight waves and more on each unit, and nothing beside registers."""
    target = target_named(target_name)
    for case in _row_cases(target)[:: 1 if target_name == "gfx950" else 4]:
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
        built = build(source, target)
        assert built.code.startswith(b"\x7fELF")
        assert str(Path(__file__).parents[2]).encode() not in built.code
        if target.family == "amdgpu":
            assert built.resources["vgpr"] <= 96, case
            assert not built.resources["vgpr_spills"] and not built.resources["scratch_bytes"]
            assert built.machine.widest_load == (8 if case.op == "dequantize" else 16), case
            assert not built.machine.forbidden


REFUSED: list[tuple[str, str, dict[str, Attr], int, str]] = [
    ("gfx942", "quantize", fp8_scaling("f8e4m3fn", "token").attrs(), 256, "fp8.arch: f8e4m3fn"),
    ("gfx950", "quantize", fp8_scaling("f8e4m3fnuz", "token").attrs(), 256, "f8e4m3fnuz is gfx942"),
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
