"""The driver for AMD GPUs, over libamdhip64."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from ctypes import c_char_p, c_int, c_void_p
from typing import ClassVar

from fusec.diagnostics import DeviceError
from fusec.runtime.native import NativeDriver

_PROPERTIES = ("hipGetDevicePropertiesR0600", "hipGetDeviceProperties")
_PROPERTIES_BYTES = 1 << 14
_NAME_BYTES = 256
_ARCH = re.compile(rb"(?<![\w:+-])gfx[0-9a-f]{3,6}(?::[a-z0-9-]+[+-])*(?=\0)")


class HipDriver(NativeDriver):
    """An AMD GPU."""

    kind: ClassVar[str] = "hip"
    libraries: ClassVar[tuple[str, ...]] = (
        "libamdhip64.so",
        "libamdhip64.so.7",
        "libamdhip64.so.6",
        "libamdhip64.so.5",
        "/opt/rocm/lib/libamdhip64.so",
    )
    remedy: ClassVar[str] = "install ROCm's HIP runtime; `fusec doctor` shows what is there"
    access: ClassVar[str] = (
        "the kernel must have the driver `amdgpu`, this user needs the groups `render` and "
        "`video`, and `HIP_VISIBLE_DEVICES` must not hide the device"
    )
    end: ClassVar[int] = 3

    _set_device: Callable[..., int]

    def _choose(self) -> None:
        self._set_device = self.symbol("hipSetDevice", (c_int,))

    def _release(self) -> None:
        """HIP keeps the context of a device as long as the process lives."""

    def _make_current(self) -> None:
        self._check(self._set_device(self.index), "the device cannot be chosen")

    def _arch(self) -> str:
        """`gcnArchName` of the device's properties.

        The structure has grown in the middle from release to release, so no offset serves them
        all.  The name of the product comes first in each; behind it there is one string that reads
        as an architecture, and it is that one.
        """
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        name = next(name for name in _PROPERTIES if name == _PROPERTIES[-1] or self._has(name))
        function = self.symbol(name, (c_void_p, c_int))
        self._check(function(properties, self.index), "the device does not describe itself")
        found = set(_ARCH.findall(properties.raw[_NAME_BYTES:]))
        if len(found) != 1:
            raise DeviceError(
                "the driver does not tell the architecture of the device",
                at=str(self),
                hint="the release of ROCm may be one that fusec does not know yet",
            )
        (arch,) = found
        return str(arch, "ascii")

    def _error_name(self, code: int) -> str:
        function = self._library["hipGetErrorName"]
        function.argtypes, function.restype = (c_int,), c_char_p
        name: bytes | None = function(code)
        return "an unknown error" if name is None else name.decode("ascii", "replace")

    def _has(self, name: str) -> bool:
        try:
            self._library[name]
        except AttributeError:
            return False
        return True
