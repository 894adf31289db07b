"""Triton kernels: right under the interpreter, and sound code objects for every GPU target."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusec.ir import Graph, TensorType
from fusec.ir.types import Attr
from fusec.kernels.launch import Call, Storage, TritonSource, dense_strides
from fusec.kernels.registry import kernels
from fusec.link.triton_build import build
from fusec.symbolic import Dim, symbol
from fusec.target import GPU_TARGETS, target_named

CASES = Path(__file__).with_name("interpreted_cases.py")
NORM: dict[str, Attr] = {"eps": 1e-6, "weight_offset": 0}
ROWS = symbol("rows")
SHAPES: dict[str, tuple[list[tuple[Dim, ...]], dict[str, Attr]]] = {
    "rms_norm": ([(ROWS, 4096), (4096,)], {**NORM, "has_weight": True}),
    "add_rms_norm": ([(ROWS, 7168), (ROWS, 7168), (7168,)], NORM),
    "gated_rms_norm": (
        [(ROWS, 32, 128), (128,), (ROWS, 32, 128)],
        {**NORM, "activation": "silu", "norm_before_gate": True},
    ),
    "dual_rms_norm": (
        [(ROWS, 1536), (1536,), (ROWS, 512), (512,)],
        {"eps1": 1e-6, "eps2": 1e-6, "weight_offset": 0},
    ),
    "silu_mul": ([(ROWS, 2816), (ROWS, 2816)], {}),
    "gelu_mul": ([(ROWS, 2816), (ROWS, 2816)], {"approximate": "none"}),
    "swiglu_oai": ([(ROWS, 2880), (ROWS, 2880)], {"alpha": 1.702, "limit": 7.0}),
}


def test_kernels_agree_with_their_references() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(CASES), "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    options = ["-o", "python_files=*_cases.py"]
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("target_name", GPU_TARGETS)
@pytest.mark.parametrize("op", SHAPES)
def test_code_objects(op: str, target_name: str) -> None:
    target = target_named(target_name)
    shapes, attrs = SHAPES[op]
    graph = Graph("case", {"rows": (1, None)})
    names = [graph.add_input(f"x{i}", TensorType("bf16", shape)) for i, shape in enumerate(shapes)]
    node = graph.add(op, names, attrs)
    kinds = [graph.type(value) for value in (*names, *node.outputs)]
    storages = tuple(
        Storage(i, kind.dtype, kind.shape, dense_strides(kind.shape))
        for i, kind in enumerate(kinds)
    )
    inputs, outputs = storages[: len(names)], storages[len(names) :]
    record = next(kernel for kernel in kernels()[op] if kernel.provider == "triton")
    (launch,) = record.launches(Call(graph, node, target, inputs, outputs))
    assert isinstance(launch.code, TritonSource)
    built = build(launch.code, target)
    assert built.code.startswith(b"\x7fELF")
    assert str(Path(__file__).parents[2]).encode() not in built.code
    assert build(launch.code, target).code == built.code
    if target.family == "amdgpu":
        assert built.resources["vgpr"] <= 64
        assert not built.resources["vgpr_spills"]
        assert len(built.arguments) == len(launch.operands) + len(launch.params)
