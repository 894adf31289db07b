"""A linear with mxfp4 weights on the ggml library of llama.cpp, called through `ctypes`."""

from __future__ import annotations

import ctypes
import importlib.util
import time
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HOLDERS = {"libggml": "lib64", "llama_cpp": "lib"}
"""Packages that carry the library, and the folder of each."""

F32, MXFP4 = 0, 39
"""Numbers of `enum ggml_type`."""

CPU = 0
"""Of `enum ggml_backend_dev_type`."""

CONTEXT_BYTES = 1 << 20
"""Room for the descriptions of tensors and of a graph."""

TOLERANCE = 0.05
"""A way to compute whose error is larger does not compute this product."""

Floats = NDArray[np.float32]


class _Parameters(ctypes.Structure):
    """`struct ggml_init_params`."""

    _fields_ = (("bytes", c_size_t), ("memory", c_void_p), ("no_alloc", c_bool))


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_init": (c_void_p, (_Parameters,)),
    "ggml_new_tensor_2d": (c_void_p, (c_void_p, c_int, c_int64, c_int64)),
    "ggml_mul_mat": (c_void_p, (c_void_p, c_void_p, c_void_p)),
    "ggml_new_graph": (c_void_p, (c_void_p,)),
    "ggml_build_forward_expand": (None, (c_void_p, c_void_p)),
    "ggml_nbytes": (c_size_t, (c_void_p,)),
    "ggml_quantize_chunk": (
        c_size_t,
        (c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p),
    ),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, (c_void_p, c_void_p)),
    "ggml_backend_cpu_buffer_type": (c_void_p, ()),
    "ggml_backend_buft_name": (c_char_p, (c_void_p,)),
    "ggml_backend_buffer_set_usage": (None, (c_void_p, c_int)),
    "ggml_backend_tensor_set": (None, (c_void_p, c_void_p, c_size_t, c_size_t)),
    "ggml_backend_tensor_get": (None, (c_void_p, c_void_p, c_size_t, c_size_t)),
    "ggml_backend_graph_compute": (c_int, (c_void_p, c_void_p)),
    "ggml_backend_dev_by_type": (c_void_p, (c_int,)),
    "ggml_backend_dev_backend_reg": (c_void_p, (c_void_p,)),
    "ggml_backend_dev_init": (c_void_p, (c_void_p, c_char_p)),
    "ggml_backend_dev_supports_op": (c_bool, (c_void_p, c_void_p)),
    "ggml_backend_reg_get_proc_address": (c_void_p, (c_void_p, c_char_p)),
    "ggml_backend_cpu_set_n_threads": (None, (c_void_p, c_int)),
}

OF_WEIGHTS = 1
"""`GGML_BACKEND_BUFFER_USAGE_WEIGHTS`."""


def _folder() -> Path:
    """Where the first package that carries the library has it."""
    for package, folder in HOLDERS.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            return Path(spec.origin).parent / folder
    raise ModuleNotFoundError(f"none of {', '.join(HOLDERS)} is installed")


def _library() -> Any:
    """The functions of the library, typed."""
    folder = _folder()
    parts = [
        ctypes.CDLL(str(folder / f"libggml{part}.so"), ctypes.RTLD_GLOBAL)
        for part in ("-base", "-cpu", "")
    ]
    found = type("Library", (), {})()
    for name, (result, arguments) in _SIGNATURES.items():
        function = next(getattr(part, name) for part in parts if hasattr(part, name))
        function.restype, function.argtypes = result, arguments
        setattr(found, name, function)
    return found


class Mxfp4Linear:
    """`x @ weight.T` with the weight in mxfp4; a call gives f32 [rows, outputs].

    Of the layouts of weights that the library has for this processor, the fastest that is right.

    Attributes:
        note: the name of that layout.
    """

    def __init__(self, weight: Floats, x: Floats, threads: int) -> None:
        self._library = library = _library()
        device = library.ggml_backend_dev_by_type(CPU)
        self._backend = library.ggml_backend_dev_init(device, None)
        library.ggml_backend_cpu_set_n_threads(self._backend, threads)
        wanted = x @ weight.T
        self._out = np.empty_like(wanted)
        best = float("inf")
        self.note = ""
        for layout in (*_layouts(library, device), library.ggml_backend_cpu_buffer_type()):
            graph, result = self._graph(weight, x, layout)
            if not library.ggml_backend_dev_supports_op(device, result):
                continue
            self._chosen = graph, result
            error = np.linalg.norm(self() - wanted) / np.linalg.norm(wanted)
            begin = time.perf_counter()
            self()
            taken = time.perf_counter() - begin
            if error < TOLERANCE and taken < best:
                best, chosen = taken, self._chosen
                self.note = library.ggml_backend_buft_name(layout).decode()
        self._chosen = chosen

    def __call__(self) -> Floats:
        """Multiply, and copy the result out."""
        graph, result = self._chosen
        if self._library.ggml_backend_graph_compute(self._backend, graph):
            raise RuntimeError("ggml does not compute the graph")
        self._library.ggml_backend_tensor_get(result, self._out.ctypes.data, 0, self._out.nbytes)
        return self._out

    def _graph(self, weight: Floats, x: Floats, layout: int) -> tuple[int, int]:
        """A graph of one product, and its result."""
        library = self._library
        outputs, inputs = weight.shape
        held = library.ggml_init(_Parameters(CONTEXT_BYTES, None, True))
        matrix = library.ggml_new_tensor_2d(held, MXFP4, inputs, outputs)
        buffer = library.ggml_backend_alloc_ctx_tensors_from_buft(held, layout)
        library.ggml_backend_buffer_set_usage(buffer, OF_WEIGHTS)
        codes = np.empty(library.ggml_nbytes(matrix), np.uint8)
        library.ggml_quantize_chunk(
            MXFP4, weight.ctypes.data, codes.ctypes.data, 0, outputs, inputs, None
        )
        library.ggml_backend_tensor_set(matrix, codes.ctypes.data, 0, codes.nbytes)
        context = library.ggml_init(_Parameters(CONTEXT_BYTES, None, True))
        rows = library.ggml_new_tensor_2d(context, F32, inputs, len(x))
        result = library.ggml_mul_mat(context, matrix, rows)
        graph = library.ggml_new_graph(context)
        library.ggml_build_forward_expand(graph, result)
        plain = library.ggml_backend_cpu_buffer_type()
        library.ggml_backend_alloc_ctx_tensors_from_buft(context, plain)
        given = np.ascontiguousarray(x)
        library.ggml_backend_tensor_set(rows, given.ctypes.data, 0, given.nbytes)
        return graph, result


def _layouts(library: Any, device: int) -> list[int]:
    """The layouts of weights that the device has beside the plain one; ends with a null."""
    registry = library.ggml_backend_dev_backend_reg(device)
    name = b"ggml_backend_dev_get_extra_bufts"
    address = library.ggml_backend_reg_get_proc_address(registry, name)
    if not address:
        return []
    listed = ctypes.CFUNCTYPE(ctypes.POINTER(c_void_p), c_void_p)(address)(device)
    found: list[int] = []
    for layout in listed:
        if not layout:
            break
        found.append(layout)
    return found
