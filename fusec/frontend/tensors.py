"""Between torch's tensors and the arrays of raw bits that weights are made of."""

from __future__ import annotations

import torch

from fusec.diagnostics import UnsupportedError
from fusec.dtypes import DTYPES
from fusec.ir.weights import Bits

TORCH_DTYPES: dict[str, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f8e4m3fn": torch.float8_e4m3fn,
    "f8e4m3fnuz": torch.float8_e4m3fnuz,
    "f8e5m2": torch.float8_e5m2,
    "e8m0": torch.float8_e8m0fnu,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}
"""torch's dtypes by fusec's names."""

_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def dtype_of(name: str) -> torch.dtype:
    """torch's dtype for fusec's `name`."""
    return TORCH_DTYPES["u8" if name == "f4e2m1x2" else name]


def name_of(dtype: torch.dtype) -> str:
    """fusec's name for torch's `dtype`.

    Raises:
        UnsupportedError: fusec has no such dtype.
    """
    if dtype not in _NAMES:
        raise UnsupportedError(f"tensors of dtype `{dtype}` are not supported")
    return _NAMES[dtype]


def bits_of(tensor: torch.Tensor) -> Bits:
    """The elements of a tensor on the CPU as raw bits; shares its memory where it can."""
    storage = DTYPES[name_of(tensor.dtype)].numpy
    plain = tensor.detach().contiguous()
    if storage.itemsize == 2 and storage.kind == "u":
        return plain.view(torch.int16).numpy().view(storage)
    if storage.kind == "u" and tensor.dtype != torch.uint8:
        return plain.view(torch.uint8).numpy()
    array: Bits = plain.numpy()
    return array


def tensor_of(bits: Bits, name: str) -> torch.Tensor:
    """A tensor of the dtype `name` with the elements `bits`; shares their memory."""
    wanted = dtype_of(name)
    if bits.dtype.itemsize == 2 and bits.dtype.kind == "u":
        return torch.from_numpy(bits.view("<i2")).view(wanted)
    tensor = torch.from_numpy(bits)
    return tensor if tensor.dtype == wanted else tensor.view(wanted)
