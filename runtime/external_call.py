"""Calls a library's function on memory of a device.

The library brings PyTorch, which shares the device's context with the driver; fusec itself never
imports it.  A tensor is made over memory as `__cuda_array_interface__` describes it, and the call
goes to the stream that everything else goes to.  On an emulated device, whose memory PyTorch does
not see, the operands are copied to the host and back.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from fusec.dtypes import DTYPES
from fusec.runtime.driver import Driver
from fusec.runtime.errors import LibraryError
from fusec.runtime.external import ExternalFunction
from fusec.runtime.layout import StridedPlace, new_array

Located = tuple[StridedPlace, int]
"""An operand and its address."""

_TORCH_NAMES = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "f8e4m3fn": "float8_e4m3fn",
    "f8e4m3fnuz": "float8_e4m3fnuz",
    "f8e5m2": "float8_e5m2",
    "e8m0": "float8_e8m0fnu",
    "f4e2m1x2": "uint8",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u8": "uint8",
    "bool": "bool",
}
_INTEGERS = {1: "|u1", 2: "<i2", 4: "<i4", 8: "<i8"}
"""How memory is described to PyTorch, by the bytes of an element: not every type has a name."""


def call_external(
    function: ExternalFunction, operands: Sequence[Located], driver: Driver, stream: int
) -> None:
    """Call `function` on operands of a device; what it does is in `stream` when this returns.

    Raises:
        LibraryError: it came without PyTorch, or returned another number of values than it should.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        raise LibraryError(
            f"`{function.spec.symbol}` came without PyTorch",
            at=function.spec.at,
            hint=function.spec.remedy,
        )

    if driver.kind == "emulator":
        _call_on_host(torch, function, operands, driver, stream)
        return
    index = driver.info().index
    with torch.cuda.device(index), torch.cuda.stream(torch.cuda.ExternalStream(stream)):
        tensors = [
            torch.as_tensor(_Memory(place, address), device=f"cuda:{index}").view(
                _dtype(torch, place.dtype)
            )
            for place, address in operands
        ]
        function.run(tensors, partial(_dtype, torch))


class _Memory:
    """Memory of a device as other libraries understand it."""

    def __init__(self, place: StridedPlace, address: int) -> None:
        itemsize = DTYPES[place.dtype].itemsize
        self.__cuda_array_interface__ = {
            "shape": place.shape,
            "strides": tuple(stride * itemsize for stride in place.strides),
            "typestr": _INTEGERS[itemsize],
            "data": (address, False),
            "version": 2,
        }


def _call_on_host(
    torch: Any,
    function: ExternalFunction,
    operands: Sequence[Located],
    driver: Driver,
    stream: int,
) -> None:
    """Copy each buffer to the host, as far as operands reach, and back when the call is done."""
    reach: dict[int, tuple[int, int]] = {}
    for place, address in operands:
        low, high = reach.get(place.buffer, (address, address))
        reach[place.buffer] = min(low, address), max(high, address + _bytes(place))
    copies = {buffer: new_array("u8", (high - low,)) for buffer, (low, high) in reach.items()}
    for buffer, copy in copies.items():
        driver.download(copy.view(np.uint8), reach[buffer][0], stream)
    driver.synchronize(stream)
    tensors: list[Any] = []
    for place, address in operands:
        begin = address - reach[place.buffer][0]
        raw = torch.from_numpy(copies[place.buffer][begin : begin + _bytes(place)])
        tensors.append(raw.view(_dtype(torch, place.dtype)).as_strided(place.shape, place.strides))
    function.run(tensors, partial(_dtype, torch))
    for buffer, copy in copies.items():
        driver.upload(reach[buffer][0], copy.view(np.uint8), stream)
    driver.synchronize(stream)


def _dtype(torch: Any, name: str) -> Any:
    return getattr(torch, _TORCH_NAMES[name])


def _bytes(place: StridedPlace) -> int:
    """Bytes from the first element to behind the last."""
    last = sum((size - 1) * stride for size, stride in zip(place.shape, place.strides, strict=True))
    elements = 0 if 0 in place.shape else last + 1
    return elements * DTYPES[place.dtype].itemsize
