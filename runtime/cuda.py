"""The driver for NVIDIA GPUs, over libcuda."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int, c_void_p
from typing import ClassVar

from fusec.runtime.errors import CodeError
from fusec.runtime.native import NativeDriver

_CAPABILITY_MAJOR = 75
_CAPABILITY_MINOR = 76
_SHARED_OPT_IN = 97
"""Attributes of a device."""
_MAX_DYNAMIC_SHARED = 8
"""Attribute of a function."""
_SHARED_WITHOUT_ASKING = 48 << 10


class CudaDriver(NativeDriver):
    """An NVIDIA GPU, in its primary context, which PyTorch uses too."""

    kind: ClassVar[str] = "cuda"
    libraries: ClassVar[tuple[str, ...]] = ("libcuda.so.1", "libcuda.so")
    remedy: ClassVar[str] = "install the NVIDIA driver; `fusec doctor` shows what is there"
    access: ClassVar[str] = (
        "`nvidia-smi` must show the device, and `CUDA_VISIBLE_DEVICES` must not hide it"
    )
    end: ClassVar[int] = 0

    _context: c_void_p
    _set_context: Callable[..., int]

    def _choose(self) -> None:
        retain = self.symbol("cuDevicePrimaryCtxRetain", (POINTER(c_void_p), c_int))
        self._context = c_void_p()
        self._check(retain(self._context, self._device), "the device cannot be chosen")
        self._set_context = self.symbol("cuCtxSetCurrent", (c_void_p,))

    def _make_current(self) -> None:
        self._check(self._set_context(self._context), "the device cannot be chosen")

    def _release(self) -> None:
        release = self.symbol("cuDevicePrimaryCtxRelease_v2", (c_int,))
        self._check(release(self._device), "the device cannot be given back")

    def _arch(self) -> str:
        major, minor = map(self._attribute, (_CAPABILITY_MAJOR, _CAPABILITY_MINOR))
        return f"sm_{major}{minor}"

    def _allow_shared(self, function: c_void_p, symbol: str, shared_bytes: int) -> None:
        if shared_bytes <= _SHARED_WITHOUT_ASKING:
            return
        most = self._attribute(_SHARED_OPT_IN)
        if shared_bytes > most:
            raise CodeError(
                f"the kernel `{symbol}` needs {shared_bytes} bytes of shared memory, but the "
                f"device has {most}",
                at=str(self),
            )
        allow = self.symbol("cuFuncSetAttribute", (c_void_p, c_int, c_int))
        code = allow(function, _MAX_DYNAMIC_SHARED, shared_bytes)
        self._check(code, f"the kernel `{symbol}` gets no {shared_bytes} bytes of shared memory")

    def _error_name(self, code: int) -> str:
        text = c_char_p()
        name = self.symbol("cuGetErrorName", (c_int, POINTER(c_char_p)))
        if name(code, byref(text)) or text.value is None:
            return "an unknown error"
        return text.value.decode("ascii", "replace")

    def _attribute(self, attribute: int) -> int:
        value = c_int()
        query = self.symbol("cuDeviceGetAttribute", (POINTER(c_int), c_int, c_int))
        self._check(query(value, attribute, self._device), "the device does not describe itself")
        return value.value
