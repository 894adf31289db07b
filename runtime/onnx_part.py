"""A residual part of a model, run by onnxruntime, which is imported only when there is one."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from typing import Any, TypeAlias

from fusec.diagnostics import InputError
from fusec.runtime.artifact import TensorSpec
from fusec.runtime.errors import CodeError

Located: TypeAlias = tuple[TensorSpec, tuple[int, ...], int]
"""A contiguous tensor in memory: its name and dtype, its sizes and its address."""

# onnx.TensorProto.DataType
ELEMENT_TYPES = {
    "f32": 1,
    "u8": 2,
    "i8": 3,
    "i16": 5,
    "i32": 6,
    "i64": 7,
    "bool": 9,
    "f16": 10,
    "f64": 11,
    "bf16": 16,
    "f8e4m3fn": 17,
    "f8e4m3fnuz": 18,
    "f8e5m2": 19,
}

_IN_A_NODE = "returned while running"


class OnnxPart:
    """One ONNX model in a session on the CPU."""

    def __init__(self, model: memoryview, at: str, threads: int | None) -> None:
        """Load the model.

        Raises:
            InputError: onnxruntime is not installed.
            CodeError: onnxruntime refuses the model.
        """
        if importlib.util.find_spec("onnxruntime") is None:
            raise InputError(
                "a part of this model runs on onnxruntime, which is not installed",
                at=at,
                hint="install it: `pip install onnxruntime-rocm`",
            )
        import onnxruntime

        self._at = at
        self._errors = error_types(onnxruntime)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session: Any = onnxruntime.InferenceSession(
                bytes(model), options, providers=["CPUExecutionProvider"]
            )
        except self._errors as error:
            raise CodeError(f"onnxruntime refuses the model: {_first_line(error)}", at=at) from None

    def run(self, inputs: Sequence[Located], outputs: Sequence[Located], node: str) -> float:
        """Run the model on memory; returns the seconds it took.

        Raises:
            InputError: it cannot take the values.
            CodeError: it does not take or give the sizes and dtypes that the program says.
        """
        begin = time.perf_counter()
        binding = self._session.io_binding()
        try:
            for spec, shape, address in inputs:
                element = ELEMENT_TYPES[spec.dtype]
                binding.bind_input(spec.name, "cpu", 0, element, shape, address)
            for spec, shape, address in outputs:
                element = ELEMENT_TYPES[spec.dtype]
                binding.bind_output(spec.name, "cpu", 0, element, shape, address)
            self._session.run_with_iobinding(binding)
        except self._errors as error:
            message = f"`{node}` fails in onnxruntime: {_first_line(error)}"
            # onnxruntime tells a value that a node cannot take, such as an index that is out of
            # range, from a model that does not fit its operands by this phrase alone.
            if _IN_A_NODE in str(error):
                raise InputError(message, at=self._at) from None
            raise CodeError(message, at=self._at) from None
        return time.perf_counter() - begin


def error_types(onnxruntime: Any) -> tuple[type[Exception], ...]:
    """What onnxruntime raises; its classes have no common base but `Exception`."""
    state = onnxruntime.capi.onnxruntime_pybind11_state
    names = (
        "EPFail",
        "EngineError",
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "ModelLoaded",
        "NoModel",
        "NoSuchFile",
        "NotImplemented",
        "RuntimeException",
    )
    return (*(getattr(state, name) for name in names), RuntimeError, ValueError)


def _first_line(error: Exception) -> str:
    """Its beginning, which names the node, and its end, which says what is wrong with it."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return line if len(line) <= 300 else f"{line[:100]} ... {line[-200:]}"
