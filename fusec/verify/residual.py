"""The meaning of what fusec does not compute: what onnxruntime makes of the node alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusec.dtypes import DTYPES
from fusec.ir import Graph, Node, TensorType
from fusec.ir.interpret import encoded, widen
from fusec.ir.ops.base import Array
from fusec.lower.residual import build_residual
from fusec.runtime.artifact import TensorSpec
from fusec.runtime.onnx_part import Located, OnnxPart


class OnOnnxruntime:
    """Runs opaque nodes in their own dtypes, as an artifact does, each built once."""

    def __init__(self) -> None:
        self._parts: dict[str, OnnxPart] = {}

    def __call__(
        self, graph: Graph, node: Node, operands: Sequence[Array], types: Sequence[TensorType]
    ) -> list[Array]:
        """The results, as `interpret` holds them.

        Raises:
            UnsupportedError: onnxruntime cannot run the node.
            InputError: it cannot take the operands, or is not installed.
        """
        part = self._part(graph, node)
        given = {
            name: np.ascontiguousarray(encoded(array, graph.type(name).dtype))
            for name, array in zip(node.inputs, operands, strict=True)
        }
        made = [np.empty(_sizes(kind), DTYPES[kind.dtype].numpy) for kind in types]
        inputs = [_located(name, graph.type(name).dtype, array) for name, array in given.items()]
        outputs = [
            _located(name, kind.dtype, array)
            for name, kind, array in zip(node.outputs, types, made, strict=True)
        ]
        part.run(inputs, outputs, node.name)
        return [widen(array, kind.dtype) for array, kind in zip(made, types, strict=True)]

    def _part(self, graph: Graph, node: Node) -> OnnxPart:
        kinds = [str(graph.type(value)) for value in (*node.inputs, *node.outputs)]
        key = repr((node.op, node.inputs, node.outputs, sorted(node.attrs.items()), kinds))
        if key not in self._parts:
            data = build_residual(graph, node).data
            self._parts[key] = OnnxPart(memoryview(data), node.name, None)
        return self._parts[key]


def _sizes(kind: TensorType) -> tuple[int, ...]:
    return tuple(int(dim) for dim in kind.shape if isinstance(dim, int))


def _located(name: str, dtype: str, array: Array) -> Located:
    return TensorSpec(name, dtype, array.shape), array.shape, array.ctypes.data
