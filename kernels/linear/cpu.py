"""linear on the CPU, with the weight packed when the artifact is written."""

from __future__ import annotations

from collections.abc import Mapping

from fusec.ir import Graph, Node
from fusec.kernels.cpu import cpp_kernel, float_kernel, operands, outer_params, pack_weight
from fusec.kernels.launch import Call, Launch
from fusec.kernels.registry import Packing
from fusec.target import Target


def _constant_weight(graph: Graph, node: Node, target: Target) -> str | None:
    if node.inputs[1] not in graph.parameters:
        return "it packs the weight ahead of time, and this one is computed at run time"
    return float_kernel(graph, node, target)


def _packing(graph: Graph, node: Node, target: Target) -> Mapping[int, Packing]:
    return {1: pack_weight}


def _linear(call: Call) -> Launch:
    x, out = call.inputs[0], call.outputs[0]
    rows = outer_params(x, out)
    no_residual = (0, 0, 0, 0)
    shape = call.input_type(1).shape
    has_bias = int(len(call.inputs) == 3)
    params = (*rows, *no_residual, *shape, 0, has_bias, 0)
    wide = "" if out.dtype == x.dtype else f"_{out.dtype}"
    return Launch(f"fusec_linear_{x.dtype}{wide}", operands(call), params)


KERNELS = (cpp_kernel("linear", _linear, supports=_constant_weight, packing=_packing),)
