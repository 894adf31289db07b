"""Imports a module and compares the interpreted graph with eager PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from fusec.frontend.exported import from_exported_program
from fusec.frontend.translate import build_graph
from fusec.ir import Graph
from fusec.ir.interpret import interpret

torch.set_num_threads(1)


def import_module(
    module: torch.nn.Module,
    args: Sequence[torch.Tensor],
    *,
    dynamic: dict[str, Any] | None = None,
    notes: list[str] | None = None,
    decompose: bool = False,
) -> Graph:
    """The graph of `module`, verified."""
    given = tuple(arg.clone() for arg in args)
    exported = torch.export.export(module.eval(), given, dynamic_shapes=dynamic, strict=False)
    if decompose:
        exported = exported.run_decompositions()
    graph = build_graph(from_exported_program(exported), notes=notes)
    graph.verify()
    return graph


def check(
    module: torch.nn.Module,
    *args: torch.Tensor,
    traced: Sequence[torch.Tensor] | None = None,
    dynamic: dict[str, Any] | None = None,
    decompose: bool = False,
    tolerance: float = 2e-5,
) -> Graph:
    """Import from `traced` (by default `args`), then compare on `args`."""
    graph = import_module(module, traced or args, dynamic=dynamic, decompose=decompose)
    check_graph(graph, module, args, tolerance)
    return graph


def check_graph(
    graph: Graph, module: torch.nn.Module, args: Sequence[torch.Tensor], tolerance: float
) -> None:
    """Nothing in `graph` is opaque, and it gives what `module` gives."""
    opaque = [node.op for node in graph.nodes() if node.op.startswith(("aten.", "torch."))]
    assert not opaque, opaque
    with torch.no_grad():
        expected, _ = pytree.tree_flatten(module(*(arg.clone() for arg in args)))
    inputs = {name: plain(arg) for name, arg in zip(graph.inputs, args, strict=True)}
    got = list(interpret(graph, inputs).values())
    wanted = [value for value in expected if value is not None]
    assert len(got) == len(wanted)
    for index, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
        assert graph.type(graph.outputs[index]).dtype == _DTYPES[theirs.dtype]
        reference = plain(theirs)
        assert ours.shape == reference.shape
        if reference.dtype.kind == "f":
            np.testing.assert_allclose(ours, reference, rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(ours, reference)


def plain(tensor: torch.Tensor) -> np.ndarray:
    """`tensor` in numpy; bf16 and f16 as f32."""
    wide = tensor.detach()
    return np.asarray(wide.float() if wide.dtype in (torch.bfloat16, torch.float16) else wide)


_DTYPES = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}
