"""What a machine gives at most, measured where a model runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fusec.runtime.cpu import Module
from fusec.runtime.driver import Driver
from fusec.runtime.layout import out_of_memory
from fusec.runtime.pages import new_pages

CPU_BYTES = 256 << 20
"""Bytes that are read on a CPU: several times what its last cache holds, on most."""

DEVICE_BYTES = 512 << 20
"""Bytes that are copied on a device."""

PROBE_ROUNDS = 1 << 19
"""Rounds of multiplications of a part: some milliseconds."""

REPEATS = 5
"""Of which the fastest counts: the machine was disturbed in the others."""


@dataclass(frozen=True, slots=True)
class Probed:
    """What was measured.

    Attributes:
        bytes_per_second: read from memory on a CPU; read and written by a copy on a device.
        flops_per_second: by unit; empty on a device.
    """

    bytes_per_second: float
    flops_per_second: Mapping[str, float]


def probe_cpu(module: Module) -> Probed:
    """Measure a CPU with the threads of a module.

    Raises:
        InputError: there is no memory for it, or an older fusec compiled the module.
    """
    try:
        data = new_pages(CPU_BYTES)
    except (OSError, ValueError, OverflowError):
        raise out_of_memory(CPU_BYTES) from None
    data[:] = 0
    seconds = min(module.probe_read(data.data) for _ in range(REPEATS))
    rates = {
        unit: max(module.probe_flops(unit == "bf16", PROBE_ROUNDS) for _ in range(REPEATS))
        for unit in ("f32", "bf16")
    }
    flops = {unit: rate for unit, rate in rates.items() if rate}
    # Lanes hold half as many f64, and their instructions take as long.
    return Probed(CPU_BYTES / seconds, {**flops, "f64": flops["f32"] / 2})


def probe_device(driver: Driver, stream: int) -> Probed:
    """Measure a device by copies within its memory.

    Raises:
        OutOfMemoryError: there is no memory for it.
    """
    source, target = (driver.allocate(DEVICE_BYTES, "a copy to measure") for _ in range(2))
    try:
        begin, end = driver.event(), driver.event()
        taken: list[float] = []
        for _ in range(REPEATS):
            driver.record(begin, stream)
            driver.copy(target, source, DEVICE_BYTES, stream)
            driver.record(end, stream)
            driver.wait(end)
            taken.append(driver.elapsed_ms(begin, end) / 1e3)
    finally:
        driver.free(source)
        driver.free(target)
    return Probed(2 * DEVICE_BYTES / min(taken), {})
