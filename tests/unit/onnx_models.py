"""Small ONNX models for tests, and how onnxruntime and fusec run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fusec.frontend.onnx import read_onnx
from fusec.ir import Graph
from fusec.ir.interpret import interpret

Array = NDArray[Any]

ELEMENTS = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float64): TensorProto.DOUBLE,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.bool_): TensorProto.BOOL,
}
MICROSOFT = "com.microsoft"


def random(*shape: int, seed: int = 0) -> Array:
    """Normal numbers in float32."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def integers(low: int, high: int, *shape: int, dtype: Any = np.int64) -> Array:
    """Integers from `low` to `high - 1`."""
    return np.random.default_rng([9, *shape]).integers(low, high, shape).astype(dtype)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    *,
    constants: Mapping[str, Array] | None = None,
    opset: int = 17,
    shapes: Mapping[str, Sequence[Any]] | None = None,
    ir_version: int = 8,
) -> onnx.ModelProto:
    """A model; inputs have the shapes of their arrays unless `shapes` says otherwise."""
    wanted = shapes or {}
    infos = [
        helper.make_tensor_value_info(
            name, ELEMENTS[array.dtype], list(wanted.get(name, array.shape))
        )
        for name, array in inputs.items()
    ]
    held = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(list(nodes), "g", infos, results, held)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    """Write a model."""
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def run_onnx(model: onnx.ModelProto | bytes, inputs: Mapping[str, Array]) -> list[Array]:
    """Run a model by onnxruntime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(inputs)))


def imported(model: onnx.ModelProto, folder: Path, **more: Any) -> Graph:
    """The graph of a model, checked."""
    graph = read_onnx(saved(model, folder), **more)
    graph.verify()
    return graph


def opaque(graph: Graph) -> list[str]:
    """Operations of the graph that have no meaning."""
    return [node.op for node in graph.nodes() if node.op.startswith("onnx.")]


def assert_same(
    graph: Graph, inputs: Mapping[str, Array], wanted: Sequence[Array], tolerance: float = 2e-5
) -> None:
    """Compare what the graph means with what onnxruntime computed."""
    got = list(interpret(graph, inputs).values())
    assert len(got) == len(wanted)
    for result, reference in zip(got, wanted, strict=True):
        assert result.shape == reference.shape
        expected = reference.astype(np.float64)
        scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)))
        np.testing.assert_allclose(
            result.astype(np.float64), expected, rtol=tolerance, atol=tolerance * scale
        )
