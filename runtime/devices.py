"""Which devices there are, and whether code was made for one."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from fusec.runtime.artifact import TargetSpec
from fusec.runtime.cuda import CudaDriver
from fusec.runtime.driver import DeviceInfo
from fusec.runtime.errors import CodeError, TargetError
from fusec.runtime.hip import HipDriver
from fusec.runtime.native import NativeDriver, has_library
from fusec.target import GPU_TARGETS

DRIVERS: dict[str, type[NativeDriver]] = {"hip": HipDriver, "cuda": CudaDriver}

_ELF = struct.Struct("<4s14xH28xI")
"""The magic, the machine and the flags in the header of an ELF file."""
_AMD, _NVIDIA = 224, 190
_AMD_ARCHES = {0x4C: "gfx942", 0x4F: "gfx950"}
_AMD_SETTINGS = (
    (0xC00, {0x800: "sramecc-", 0xC00: "sramecc+"}),
    (0x300, {0x200: "xnack-", 0x300: "xnack+"}),
)
"""Bits of the flags and what code insists on; any other value runs either way."""


def open_driver(kind: str, index: int) -> NativeDriver:
    """The driver of a device.

    Raises:
        DeviceError: there is no driver, or no such device.
    """
    return DRIVERS[kind](index)


def list_devices(kind: str) -> list[DeviceInfo]:
    """Every device of a kind.

    Raises:
        DeviceError: there is no driver, or no device.
    """
    first = open_driver(kind, 0)
    others = [open_driver(kind, index) for index in range(1, first.count)]
    return [driver.info() for driver in (first, *others)]


def loaded_library(kind: str) -> str | None:
    """The name of the driver library of a kind of devices; `None` where there is none."""
    for name in DRIVERS[kind].libraries:
        if has_library(name):
            return name
    return None


def family_of(arch: str) -> str:
    """The family of targets of a device: `amdgpu` or `nvidia`."""
    return "amdgpu" if arch.startswith("gfx") else "nvidia"


def choose_target(sections: Sequence[TargetSpec], info: DeviceInfo, at: str) -> TargetSpec:
    """The target that was compiled for a device.

    Args:
        sections: targets of the family of the device, at least one.
        info: of the device.
        at: the artifact.

    Raises:
        TargetError: there is none.
    """
    for section in sections:
        if _fits(section.arch, info.arch):
            return section
    compiled = ", ".join(f"`{section.arch}`" for section in sections)
    arch = info.arch.partition(":")[0]
    raise TargetError(
        f"the artifact was compiled for {compiled}, but this device is `{info.arch}`",
        at=at,
        detail=(f"the device is {info.name}",),
        hint=f"compile it with `--target {arch}`"
        if arch in GPU_TARGETS
        else f"fusec compiles for {', '.join(f'`{name}`' for name in GPU_TARGETS)}",
    )


def check_code(code: memoryview, info: DeviceInfo, at: str) -> None:
    """Refuse code that was not made for a device, before the driver sees it.

    Raises:
        CodeError: it is no code object for a GPU.
        TargetError: it is for another architecture, or for another mode of this one.
    """
    if len(code) < _ELF.size:
        raise CodeError("the code is not an ELF file", at=at)
    magic, machine, flags = _ELF.unpack_from(code)
    wanted = _AMD if family_of(info.arch) == "amdgpu" else _NVIDIA
    if magic != b"\x7fELF" or machine != wanted:
        raise CodeError(f"the code is not for a device such as `{info.arch}`", at=at)
    if machine != _AMD:
        return
    arch = _AMD_ARCHES.get(flags & 0xFF, f"machine {flags & 0xFF:#x}")
    settings = [names[flags & mask] for mask, names in _AMD_SETTINGS if flags & mask in names]
    made = ":".join((arch, *settings))
    if not _fits(made, info.arch):
        raise TargetError(
            f"the code was made for `{made}`, but this device is `{info.arch}`",
            at=at,
            detail=(f"the device is {info.name}",),
            hint="compile it again" if arch == info.arch.partition(":")[0] else None,
        )


def _fits(made: str, device: str) -> bool:
    """Whether code runs on a device.

    Code that does not say how `xnack` and `sramecc` are set runs either way.
    """
    arch, *settings = made.split(":")
    found, *modes = device.split(":")
    flipped = {mode[:-1] + ("-" if mode.endswith("+") else "+") for mode in modes}
    return arch == found and not flipped & set(settings)
