"""What the compiler may know of a machine.  Nothing here asks the machine it runs on.

GPU figures: AMD "CDNA 3" and "CDNA 4" instruction set architecture documents and the MI300X,
MI325X, MI350X and MI355X data sheets; NVIDIA H100 and H200 data sheets.
CPU levels: x86-64 psABI microarchitecture levels; GCC's `-march` documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fusec.diagnostics import UsageError

Family = Literal["cpu", "amdgpu", "nvidia"]
Fp32Precision = Literal["highest", "high", "medium"]


LONGEST_HEAD = 512
"""Elements of an attention head whose tiles fit in the registers of every GPU."""


@dataclass(frozen=True, slots=True)
class Target:
    """One architecture, as facts that guards, kernels and code generators read.

    Attributes:
        name: what a person asked for and artifacts record: `cpu`, `x86-64-v4`, `gfx950`, `sm_90`.
        family: `cpu`, `amdgpu` or `nvidia`.
        arch: the instruction set; for a CPU a name that `-march=` takes.
        features: what the processor must have, as in /proc/cpuinfo; none for a GPU.
        wave_size: lanes of a wave or warp; SIMD lanes of f32 for a CPU.
        lds_bytes: shared memory of a work group; 0 for a CPU.
        fp8: the 8-bit float that the matrix units take, or `None`.
        native_mxfp4: whether the matrix units take block-scaled 4-bit floats.
        fp32_precision: how products of f32 may be computed on a CPU whose matrix units take bf16:
            `highest` is as accurate as f32, `high` keeps 16 bits of each factor, `medium` 8.
    """

    name: str
    family: Family
    arch: str
    features: tuple[str, ...] = ()
    wave_size: int = 0
    lds_bytes: int = 0
    fp8: str | None = None
    native_mxfp4: bool = False
    fp32_precision: Fp32Precision = "highest"

    @property
    def is_gpu(self) -> bool:
        """Whether kernels are launched on a device with its own memory."""
        return self.family != "cpu"


_V3 = ("avx2", "bmi1", "bmi2", "f16c", "fma", "movbe")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_CASCADE_LAKE = (*_V4, "avx512_vnni")
_ZEN4 = (*_CASCADE_LAKE, "avx512_bf16", "avx512vbmi")
_SAPPHIRE_RAPIDS = (*_ZEN4, "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")

CPU_ARCHES: dict[str, Target] = {
    target.name: target
    for target in (
        Target("x86-64-v3", "cpu", "x86-64-v3", _V3, wave_size=8),
        Target("x86-64-v4", "cpu", "x86-64-v4", _V4, wave_size=16),
        Target("cascadelake", "cpu", "cascadelake", _CASCADE_LAKE, wave_size=16),
        Target("znver4", "cpu", "znver4", _ZEN4, wave_size=16),
        Target("sapphirerapids", "cpu", "sapphirerapids", _SAPPHIRE_RAPIDS, wave_size=16),
    )
}
"""CPU instruction sets, each one containing those before it, so the last that fits is the best."""

GPU_TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("gfx950", "amdgpu", "gfx950", (), 64, 160 * 1024, fp8="f8e4m3fn", native_mxfp4=True),
        Target("gfx942", "amdgpu", "gfx942", (), 64, 64 * 1024, fp8="f8e4m3fnuz"),
        Target("sm_90", "nvidia", "sm_90", (), 32, 227 * 1024, fp8="f8e4m3fn"),
    )
}
"""GPU architectures by name."""

PRODUCTS: dict[str, str] = {
    "mi350x": "gfx950",
    "mi355x": "gfx950",
    "mi300x": "gfx942",
    "mi325x": "gfx942",
    "h100": "sm_90",
    "h200": "sm_90",
}
"""GPU products and the architecture each one has."""


@dataclass(frozen=True, slots=True)
class DataSheet:
    """What the maker of a product says that it reaches at most.

    Attributes:
        product: its name.
        units: compute units, or multiprocessors.
        clock_hz: at which matrix units reach their peak.
        bytes_per_second: from and to memory.
        flops_per_second: by what is multiplied; dense, without sparsity.
        source: the document.
    """

    product: str
    units: int
    clock_hz: float
    bytes_per_second: float
    flops_per_second: Mapping[str, float]
    source: str


_CDNA3 = {"f64": 81.7e12, "f32": 163.4e12, "f16": 1307.4e12, "bf16": 1307.4e12, "f8": 2614.9e12}
_HOPPER = {"f64": 34e12, "f32": 67e12, "f16": 989.4e12, "bf16": 989.4e12, "f8": 1978.9e12}

DATA_SHEETS: dict[str, DataSheet] = {
    "mi355x": DataSheet(
        "MI355X",
        256,
        2.4e9,
        8e12,
        {
            "f64": 78.6e12,
            "f32": 157.3e12,
            "f16": 2516.6e12,
            "bf16": 2516.6e12,
            "f8": 5033.2e12,
            "f4": 10066.3e12,
        },
        "AMD Instinct MI355X data sheet",
    ),
    "mi350x": DataSheet(
        "MI350X",
        256,
        2.2e9,
        8e12,
        {
            "f64": 72.1e12,
            "f32": 144.2e12,
            "f16": 2306.9e12,
            "bf16": 2306.9e12,
            "f8": 4613.7e12,
            "f4": 9227.5e12,
        },
        "AMD Instinct MI350X data sheet",
    ),
    "mi300x": DataSheet("MI300X", 304, 2.1e9, 5.3e12, _CDNA3, "AMD Instinct MI300X data sheet"),
    "mi325x": DataSheet("MI325X", 304, 2.1e9, 6e12, _CDNA3, "AMD Instinct MI325X data sheet"),
    "h100": DataSheet("H100 SXM", 132, 1.83e9, 3.35e12, _HOPPER, "NVIDIA H100 data sheet"),
    "h200": DataSheet("H200 SXM", 132, 1.83e9, 4.8e12, _HOPPER, "NVIDIA H200 data sheet"),
}
"""By product; `f64` and `f32` are the rates of lanes."""

_USUAL_PRODUCTS = {"gfx950": "mi355x", "gfx942": "mi300x", "sm_90": "h100"}


def data_sheet(name: str) -> DataSheet | None:
    """The data sheet of a product, or of the usual product of an architecture; `None` for a CPU."""
    return DATA_SHEETS.get(_USUAL_PRODUCTS.get(name.lower(), name.lower()))


def best_cpu_arch(features: frozenset[str]) -> Target | None:
    """The richest CPU instruction set that a processor with `features` can run, if any."""
    fitting = [target for target in CPU_ARCHES.values() if set(target.features) <= features]
    return fitting[-1] if fitting else None


def target_named(name: str, *, host: Target | None = None) -> Target:
    """The target called `name`: an architecture, a product, or `cpu` for `host`.

    Args:
        name: as on the command line; case does not matter.
        host: the instruction set of this machine, from the runtime; needed for `cpu` alone.

    Raises:
        UsageError: there is no such target; the hint lists those there are.
    """
    key = name.lower()
    if key == "cpu" and host is not None:
        return Target("cpu", "cpu", host.arch, host.features, wave_size=host.wave_size)
    found = CPU_ARCHES.get(key) or GPU_TARGETS.get(PRODUCTS.get(key, key))
    if found is not None:
        return found
    if key == "cpu":
        message, hint = "this host's CPU has no AVX2", "name an x86-64 level, such as `x86-64-v3`"
        raise UsageError(message, hint=hint)
    known = ", ".join(f"`{known}`" for known in ("cpu", *CPU_ARCHES, *GPU_TARGETS, *PRODUCTS))
    raise UsageError(f"unknown target `{name}`", hint=f"known targets are {known}")
