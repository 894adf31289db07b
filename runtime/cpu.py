"""This machine's processor, and native code that runs on it.

Code is loaded from memory, never from a path: the bytes that were checked are the bytes that run.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import math
import os
import platform
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fusec.diagnostics import DeviceError, InputError
from fusec.runtime.errors import ChecksumError, CodeError
from fusec.runtime.locks import Lock

CORE_SYMBOLS = (
    "fusec_crc32",
    "fusec_execute",
    "fusec_last_error",
    "fusec_narrow_bf16",
    "fusec_set_threads",
    "fusec_threads",
    "fusec_widen_bf16",
)
"""Functions that every module must have, besides its kernels."""

PROBE_SYMBOLS = ("fusec_probe_flops", "fusec_probe_read")
"""Functions that measure the machine; modules of an older fusec lack them."""

_CPUINFO = Path("/proc/cpuinfo")
_ROOT = Path("/")
_MAX_THREADS = 1024
_X86_64 = ("x86_64", "AMD64")
_ELF_HEADER = struct.Struct("<16s2HI3QI6H")
_ELF_SEGMENT = struct.Struct("<2I6Q")
_ELF_X86_64 = 62
_ELF_SHARED = 3
_SYS_ARCH_PRCTL = 158
_REQUEST_STATE = 0x1023  # ARCH_REQ_XCOMP_PERM
_TILE_DATA = 18


def host_features() -> frozenset[str]:
    """The features of this machine's processor, as /proc/cpuinfo names them.

    Raises:
        DeviceError: this is not Linux on x86-64.
    """
    if platform.machine() not in _X86_64 or not _CPUINFO.exists():
        raise DeviceError(
            f"this machine is `{platform.system()}` on `{platform.machine()}`, but CPU targets "
            "need Linux on x86-64"
        )
    with _CPUINFO.open(encoding="utf-8") as file:
        # All processors of a machine are listed; one tells, and hundreds take long to read.
        flags = next((line for line in file if line.startswith("flags")), ":")
    return frozenset(flags.partition(":")[2].split())


def available_cpus(root: Path = _ROOT) -> int:
    """CPUs that this process may keep busy: as many as its affinity and its containers allow.

    A container with a share of a CPU counts it whole, as other runtimes do.

    Args:
        root: of the file system in which the limits are looked up.
    """
    limits = [math.ceil(limit) for limit in _container_limits(root)]
    return max(1, min([len(os.sched_getaffinity(0)), *limits]))


def _container_limits(root: Path) -> Iterator[float]:
    """CPUs that each control group around this process grants, where it sets a limit.

    Version 2 has both numbers in `cpu.max`, version 1 has a file for each; a group may also lie
    under the mount point itself, where a container sees no other.  See the kernel's
    `admin-guide/cgroup-v2.rst` and `scheduler/sched-bwc.rst`.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    mounts = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = mounts / "cpu" if controllers else mounts
        path = mount / group.lstrip("/")
        for folder in (path, *path.parents):
            limit = _limit_of(folder)
            if limit is not None:
                yield limit
            if folder == mount:
                break


def _limit_of(group: Path) -> float | None:
    """CPUs that one control group grants; `None` for no limit."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = (
                (group / name).read_text(encoding="ascii").strip()
                for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            )
    except (OSError, ValueError):
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def why_not(features: Iterable[str]) -> str | None:
    """Why code that uses `features` cannot run here, or `None`.

    For tile registers the system is asked: a process has them only on request.
    """
    missing = sorted(set(features) - host_features())
    if missing:
        return f"this processor has no {', '.join(f'`{name}`' for name in missing)}"
    if any(name.startswith("amx") for name in features):
        refusal = _request_tiles()
        if refusal is not None:
            return f"the system gives no access to AMX: {refusal}"
    return None


class StepError(Exception):
    """A kernel raised an error.  Internal to the runtime, which says what it means.

    Attributes:
        step: the index of the step.
        code: a `FusecErrorCode` of `fusec/kernel.h`.
        value: the offending number.
        bound: what it had to stay below, or to be.
    """

    def __init__(self, step: int, code: int, value: int, bound: int) -> None:
        super().__init__(f"step {step} failed with code {code}")
        self.step = step
        self.code = code
        self.value = value
        self.bound = bound


INDEX_OUT_OF_RANGE = 1
DIVISION_BY_ZERO = 2
INVALID_ARGUMENT = 3


class _Error(ctypes.Structure):
    """`struct FusecError` of `fusec/kernel.h`."""

    _fields_ = (
        ("code", ctypes.c_int64),
        ("value", ctypes.c_int64),
        ("bound", ctypes.c_int64),
        ("step", ctypes.c_int64),
    )


class Module:
    """A loaded shared object of kernels with fusec's core in it."""

    def __init__(self, library: ctypes.CDLL, at: str) -> None:
        self._library = library
        self._at = at
        for name in CORE_SYMBOLS:
            self.address(name)
        self._execute = library.fusec_execute
        self._execute.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
        self._execute.restype = ctypes.c_int64
        self._set_threads = library.fusec_set_threads
        self._set_threads.argtypes = (ctypes.c_int,)
        self._set_threads.restype = None
        self._last_error = library.fusec_last_error
        self._last_error.argtypes = (ctypes.c_void_p,)
        self._last_error.restype = None
        library.fusec_threads.restype = ctypes.c_int
        self._has_products = "pclmulqdq" in host_features()
        self._crc32 = library.fusec_crc32
        self._crc32.argtypes = (ctypes.c_void_p, ctypes.c_int64)
        self._crc32.restype = ctypes.c_uint32
        self._widen, self._narrow = library.fusec_widen_bf16, library.fusec_narrow_bf16
        for convert in (self._widen, self._narrow):
            convert.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
            convert.restype = None

    def address(self, symbol: str) -> int:
        """Where a function is.

        Raises:
            CodeError: the module has no such function.
        """
        try:
            function = self._library[symbol]
        except (AttributeError, ValueError):
            raise CodeError(
                f"the module has no function {ascii(symbol)[:120]}", at=self._at
            ) from None
        return ctypes.cast(function, ctypes.c_void_p).value or 0

    @property
    def threads(self) -> int:
        """Threads that take part in a step."""
        return int(self._library.fusec_threads())

    def set_threads(self, threads: int) -> None:
        """Use this many threads from now on."""
        if threads != self.threads:
            self._set_threads(threads)

    def crc32(self, data: memoryview) -> int:
        """The CRC-32 of contiguous bytes, as `zlib.crc32` gives it, faster where it can be."""
        if not self._has_products:
            return zlib.crc32(data)
        address = np.frombuffer(data, np.uint8).ctypes.data
        return int(self._crc32(address, data.nbytes))

    def widen_bf16(self, source: int, target: int, count: int) -> None:
        """Write `count` bf16 elements from address `source` to `target` as f32."""
        self._widen(source, target, count)

    def narrow_bf16(self, source: int, target: int, count: int) -> None:
        """Write `count` f32 elements from address `source` to `target` as bf16."""
        self._narrow(source, target, count)

    def probe_read(self, data: memoryview) -> float:
        """Seconds that all threads take to read `data`, a multiple of 64 KiB, once."""
        read = self._probe("fusec_probe_read")
        address = np.frombuffer(data, np.uint8).ctypes.data
        return float(read(ctypes.c_void_p(address), ctypes.c_int64(data.nbytes)))

    def probe_flops(self, narrow: bool, rounds: int) -> float:
        """Operations a second of all threads in f32, or in bf16 if `narrow`.

        0 where the module has no instructions on bf16.
        """
        multiply = self._probe("fusec_probe_flops")
        return float(multiply(ctypes.c_int64(narrow), ctypes.c_int64(rounds)))

    def _probe(self, symbol: str) -> Any:
        try:
            function = self._library[symbol]
        except AttributeError:
            raise InputError(
                "the artifact cannot measure this machine: an older fusec compiled it",
                at=self._at,
                hint="compile it again",
            ) from None
        function.restype = ctypes.c_double
        return function

    def execute(self, steps: int, count: int, seconds: int | None) -> None:
        """Run `count` steps of the `FusecStep` array at address `steps`.

        Args:
            steps: address of the array.
            count: its length.
            seconds: address of as many doubles for the times of the steps, or `None`.

        Raises:
            StepError: a kernel raised an error.
        """
        if not self._execute(steps, count, seconds):
            return
        error = _Error()
        self._last_error(ctypes.addressof(error))
        raise StepError(error.step, error.code, error.value, error.bound)


_modules: dict[str, Module] = {}
_modules_lock = Lock()


def load_module(code: memoryview, sha256: str, at: str) -> Module:
    """Load a shared object from memory; the same bytes are loaded once a process.

    The caller has checked the target.  Loading runs the code's initialisers.

    Args:
        code: the shared object; may lie in a file that somebody else writes to.
        sha256: what its digest has to be.
        at: where it is from.

    Raises:
        CodeError: it is no shared object for this machine, or lacks fusec's core.
        ChecksumError: it is not the one that was written.
    """
    with _modules_lock:
        if sha256 not in _modules:
            # A copy: what is checked is what runs, whatever becomes of the file.
            copy = bytes(code)
            if hashlib.sha256(copy).hexdigest() != sha256:
                raise ChecksumError("the module is not the one that was written", at=at)
            _modules[sha256] = _load(copy, at)
        return _modules[sha256]


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that no pool can have.

    Raises:
        InputError: it is not in 1..1024.
    """
    if threads is not None and not 1 <= threads <= _MAX_THREADS:
        raise InputError(
            f"`threads` must be from 1 to {_MAX_THREADS}, not `{threads}`",
            hint="leave it out for all that this process may use",
        )


def _request_tiles() -> str | None:
    """Ask for tile registers, for all threads of this process; why they are refused, or `None`."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_SYS_ARCH_PRCTL, _REQUEST_STATE, _TILE_DATA) == 0:
        return None
    return os.strerror(ctypes.get_errno()).lower()


def _load(code: bytes, at: str) -> Module:
    _check_elf(code, at)
    # The descriptor stays open: the loader tells libraries apart by path, and a closed number
    # would be given to the next file.
    descriptor = os.memfd_create("fusec", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(code)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    try:
        library = ctypes.CDLL(f"/proc/self/fd/{descriptor}", mode=os.RTLD_NOW | os.RTLD_LOCAL)
    except OSError as error:
        os.close(descriptor)
        reason = re.sub(r"^/proc/self/fd/\d+: ", "", str(error))
        raise CodeError(f"the module cannot be loaded: {reason}", at=at) from None
    return Module(library, at)


def _check_elf(code: bytes, at: str) -> None:
    """Refuse what the loader would crash on: other files, and segments outside of the file."""
    if len(code) < _ELF_HEADER.size or code[:6] != b"\x7fELF\x02\x01":
        raise CodeError("the module is not a 64-bit ELF file", at=at)
    _, kind, machine, _, _, table, _, _, _, entry_size, entries, *_ = _ELF_HEADER.unpack_from(code)
    if machine != _ELF_X86_64 or kind != _ELF_SHARED:
        raise CodeError("the module is not a shared object for x86-64", at=at)
    if entry_size != _ELF_SEGMENT.size or table + entries * entry_size > len(code):
        raise CodeError("the module's segments are not in the file", at=at)
    for index in range(entries):
        _, _, offset, _, _, size, _, _ = _ELF_SEGMENT.unpack_from(code, table + index * entry_size)
        if offset + size > len(code):
            raise CodeError("the module ends inside a segment", at=at)
