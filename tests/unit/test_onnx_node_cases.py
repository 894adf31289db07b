"""ONNX's own cases, some for every operator, against the meaning of what fusec reads."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx_models import Array, imported, opaque

from fusec.diagnostics import UnsupportedError
from fusec.frontend.onnx import OPSETS
from fusec.ir.interpret import interpret

TOLERANCES = {"float16": 4e-3, "bfloat16": 2e-2, "float32": 1e-4, "float64": 1e-6}
LEFT_OUT = {
    "test_batchnorm_example_training_mode": "it trains, which is refused",
    "test_batchnorm_epsilon_training_mode": "it trains, which is refused",
    "test_dynamicquantizelinear": "float32 rounds a half the other way",
    "test_dynamicquantizelinear_expanded": "float32 rounds a half the other way",
    "test_resize_downsample_scales_linear_align_corners": "corners of a size before it is rounded",
    "test_spacetodepth_crd_mode_example": "its mode is of an opset that is not known",
}


def _array(item: Any) -> Array:
    return numpy_helper.to_array(item) if isinstance(item, TensorProto) else np.asarray(item)


def _plain(array: Array) -> Array:
    """Without numpy's extensions: bf16 as float32, which holds it, narrower floats as codes."""
    if array.dtype.name == "bfloat16":
        return array.astype(np.float32)
    return array.view(np.uint8) if array.dtype.name.startswith("float8") else array


def _same_in(op: str, version: int, other: int) -> bool:
    """Whether an operator has the same attributes in two opsets."""
    try:
        one, two = (onnx.defs.get_schema(op, each, "") for each in (version, other))
    except onnx.defs.SchemaError:
        return False
    return bool(one.attributes.keys() == two.attributes.keys())


def _cases() -> Iterator[tuple[Any, onnx.ModelProto]]:
    """Cases of tensors by operators of opsets that are known."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        collected = collect_testcases(None)
    for case in collected:
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        types = [info.type for info in (*model.graph.input, *model.graph.output)]
        if any(each.tensor_type.elem_type in (0, TensorProto.STRING) for each in types):
            continue
        imports = model.opset_import[0]
        known = min(max(imports.version, OPSETS[0]), OPSETS[-1])
        same = (_same_in(node.op_type, imports.version, known) for node in model.graph.node)
        if case.name not in LEFT_OUT and len(model.opset_import) == 1 and all(same):
            imports.version = known
            yield case, model


def _difference(got: Array, wanted: Array) -> str:
    expected = _plain(wanted)
    if got.shape != expected.shape:
        return f"is {list(got.shape)}, not {list(expected.shape)}"
    tolerance = TOLERANCES.get(wanted.dtype.name, 0.0)
    same = np.isclose(
        got.astype(np.float64), expected.astype(np.float64), tolerance, tolerance, equal_nan=True
    )
    return "" if same.all() else f"differs in {np.sum(~same)} of {same.size} places"


@pytest.mark.slow
@pytest.mark.parametrize("constants", ["none", "all but the first", "all"])
def test_cases_of_every_operator(constants: str, tmp_path: Path) -> None:
    """Operands are inputs, or weights and what is computed while importing."""
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    for case, model in _cases():
        operands, results = ([_array(item) for item in part] for part in case.data_sets[0])
        infos = list(model.graph.input)
        first = {"none": len(infos), "all but the first": 1, "all": 0}[constants]
        for info, array in list(zip(infos, operands, strict=True))[first:]:
            model.graph.initializer.append(numpy_helper.from_array(array, info.name))
            model.graph.input.remove(info)
        try:
            graph = imported(model, tmp_path)
        except UnsupportedError:
            outcomes["refused"] += 1
            continue
        if opaque(graph):
            outcomes["residual"] += 1
            continue
        given = {name: _plain(array) for name, array in zip(graph.inputs, operands, strict=False)}
        outcomes["read"] += 1
        for got, wanted in zip(interpret(graph, given).values(), results, strict=True):
            is_float8 = wanted.dtype.name.startswith("float8")  # to which a meaning is not rounded
            if not is_float8 and (found := _difference(got, wanted)):
                wrong.append(f"{case.name}: {found}")
    assert not wrong
    assert outcomes["read"] > 900, outcomes
