"""How long each candidate takes on a device, and whether it computes what the others do."""

from __future__ import annotations

import statistics
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fusec import symbolic
from fusec.diagnostics import InternalError
from fusec.dtypes import DTYPES, bf16_to_f32, f32_to_bf16
from fusec.kernels.launch import Launch, Param, Storage
from fusec.kernels.triton_gemm import Tile
from fusec.kernels.tuning import Row
from fusec.link.gpu_kernel import GpuKernel
from fusec.runtime.devices import check_code
from fusec.runtime.driver import Bytes, Driver, KernelLaunch
from fusec.runtime.errors import CodeError
from fusec.tune.candidates import Candidate
from fusec.tune.products import Product

Timer: TypeAlias = Callable[[Sequence[KernelLaunch]], float]
"""Runs launches, again and again, and says how many microseconds they take together."""

TOLERANCES = {"bf16": 2.0**-7, "f16": 2.0**-10, "f32": 2.0**-14}
"""How far a result may be from another, in the root mean square of what it should be: a unit in the
last place, and for f32 what the order of a long sum makes of it."""

LARGEST = 8
"""Times that a single element may be further off, relative to the largest one."""

PATTERN = 1_000_003
"""Random elements before they repeat; a prime, so that no two rows are alike."""

FILL = 0xFF
"""Every byte of a result before a launch: NaN in each float format."""

COMPARED = 1 << 22
"""Elements that are compared at a time."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How candidates are measured.

    Attributes:
        warm_up: runs that are not counted.
        runs: that are; their median counts.
        flushed_bytes: written before each run, so that no cache holds an operand: twice the
            largest cache of the targets, the 256 MB of the MI300X and MI355X.
        seed: of the operands.
    """

    warm_up: int = 5
    runs: int = 20
    flushed_bytes: int = 512 << 20
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """What became of a candidate.

    Attributes:
        tile: that was chosen.
        microseconds: that the product takes with it.
        refused: why it was not measured, or is not to be used.
    """

    tile: Tile
    microseconds: float | None = None
    refused: str | None = None


class EventTimer:
    """Takes times by events of the device.

    Before each run a buffer larger than every cache is written.  While the device is busy with
    that, the launches are put into the stream, so the time of the host does not count.
    """

    def __init__(self, driver: Driver, stream: int, settings: Settings) -> None:
        self._driver = driver
        self._stream = stream
        self._settings = settings
        self._flushed = driver.allocate(settings.flushed_bytes, "what clears the caches")
        self._events = driver.event(), driver.event()

    def __call__(self, launches: Sequence[KernelLaunch]) -> float:
        """The median over all runs, in microseconds."""
        for _ in range(self._settings.warm_up):
            self._once(launches)
        times = [self._once(launches) for _ in range(self._settings.runs)]
        return 1e3 * statistics.median(times)

    def _once(self, launches: Sequence[KernelLaunch]) -> float:
        begin, end = self._events
        self._driver.fill(self._flushed, 0, self._settings.flushed_bytes, self._stream)
        self._driver.record(begin, self._stream)
        for launch in launches:
            self._driver.launch(launch, self._stream)
        self._driver.record(end, self._stream)
        self._driver.wait(end)
        return self._driver.elapsed_ms(begin, end)


def measure(
    candidates: Sequence[Sequence[Candidate]],
    driver: Driver,
    settings: Settings,
    timer: Timer | None = None,
) -> Iterator[tuple[Measured, ...]]:
    """What became of the candidates, product by product.

    The first candidate of each product is what the others are compared with, and what the results
    of the others are held against.

    Args:
        candidates: of each product.
        driver: of the device.
        settings: how to measure.
        timer: takes the times; by default the events of the device.

    Raises:
        InternalError: what the model of cost chooses cannot run.
        DeviceError: there is not enough memory on the device.
        CodeError: a kernel fails on the device, which is no use any more then.
    """
    bench = _Bench(driver, settings, timer)
    for each in candidates:
        yield bench.measure(each)


def table_rows(
    products: Sequence[Product], measured: Sequence[Sequence[Measured]], device: str
) -> Iterator[Row]:
    """The rows of a table: the fastest tile of each product.

    Args:
        products: that were measured.
        measured: what became of the candidates of each.
        device: the name of the GPU.
    """
    for product, results in zip(products, measured, strict=True):
        best = fastest(results)
        if best.microseconds is None:
            raise InternalError(f"nothing was measured for {product.key}")
        yield Row(product.key, best.tile, device, round(best.microseconds, 3))


def fastest(results: Sequence[Measured]) -> Measured:
    """The candidate that took the least time; the first of several."""
    return min(results, key=lambda each: np.inf if each.microseconds is None else each.microseconds)


@dataclass(frozen=True, slots=True)
class _Memory:
    """Buffers of a product on the device: address and size, by their numbers."""

    places: Mapping[int, tuple[int, int]]

    def span(self, buffer: int) -> tuple[int, int]:
        address, size = self.places[buffer]
        return address, address + size


class _Bench:
    def __init__(self, driver: Driver, settings: Settings, timer: Timer | None) -> None:
        self.driver = driver
        self.stream = driver.stream()
        self.timer = timer or EventTimer(driver, self.stream, settings)
        self.random = np.random.default_rng(settings.seed)
        self.modules: dict[str, int] = {}

    def measure(self, candidates: Sequence[Candidate]) -> tuple[Measured, ...]:
        """What became of the candidates of one product."""
        first = candidates[0]
        if first.refused is not None:
            raise InternalError(f"{first.product.key}: what is chosen unasked: {first.refused}")
        product = first.product
        held = {
            storage.buffer: self._allocate(product.bytes_of(storage))
            for storage in (*product.inputs, *product.outputs)
        }
        for storage in product.inputs:
            self._fill_randomly(storage.dtype, *held[storage.buffer])
        wanted: list[Bytes] = []
        results: list[Measured] = []
        for candidate in candidates:
            if candidate.refused is not None:
                results.append(Measured(candidate.tile, refused=candidate.refused))
                continue
            try:
                results.append(self._measured(candidate, held, wanted))
            except CodeError as error:
                detail = (*error.detail, f"it was measured: {product.key}, {candidate.tile}")
                raise CodeError(str(error), at=error.at, detail=detail, hint=error.hint) from error
        for address, _ in held.values():
            self.driver.free(address)
        return tuple(results)

    def _measured(
        self, candidate: Candidate, held: Mapping[int, tuple[int, int]], wanted: list[Bytes]
    ) -> Measured:
        """Run, compare and time a candidate; the first one's results become what is `wanted`."""
        product = candidate.product
        scratch = {
            number: self._allocate(symbolic.evaluate(size, product.sizes))
            for number, size in candidate.variant.scratch.items()
        }
        memory = _Memory({**held, **scratch})
        launches = [
            self._prepared(product, launch, kernel, memory)
            for launch, kernel in zip(candidate.variant.launches, candidate.kernels, strict=True)
        ]
        results = self._results(product, launches, memory)
        if not wanted:
            wanted += results
        wrong = [*_differences(results, wanted, [storage.dtype for storage in product.outputs])]
        measured = Measured(candidate.tile, refused="; ".join(wrong))
        if not wrong:
            measured = Measured(candidate.tile, self.timer(launches))
        self.driver.synchronize(self.stream)
        for address, _ in scratch.values():
            self.driver.free(address)
        return measured

    def _results(
        self, product: Product, launches: Sequence[KernelLaunch], memory: _Memory
    ) -> list[Bytes]:
        """The results of one run, over memory that was NaN before."""
        places = [memory.places[storage.buffer] for storage in product.outputs]
        for address, size in places:
            self.driver.fill(address, FILL, size, self.stream)
        for launch in launches:
            self.driver.launch(launch, self.stream)
        results = [np.empty(size, np.uint8) for _, size in places]
        for result, (address, _) in zip(results, places, strict=True):
            self.driver.download(result, address, self.stream)
        self.driver.synchronize(self.stream)
        return results

    def _allocate(self, size: int) -> tuple[int, int]:
        return self.driver.allocate(max(size, 1), "a product"), size

    def _fill_randomly(self, dtype: str, address: int, size: int) -> None:
        pattern = _random(dtype, min(PATTERN, size // DTYPES[dtype].itemsize), self.random)
        for begin in range(0, size, pattern.nbytes):
            piece = pattern[: size - begin]
            self.driver.upload(address + begin, piece, self.stream)
        self.driver.synchronize(self.stream)

    def _prepared(
        self, product: Product, launch: Launch, kernel: GpuKernel, memory: _Memory
    ) -> KernelLaunch:
        digest = kernel.sha256
        if digest not in self.modules:
            code = memoryview(kernel.code)
            check_code(code, self.driver.info(), kernel.symbol)
            self.modules[digest] = self.driver.load_module(code, f"{digest}.{kernel.suffix}")
        function = self.driver.function(self.modules[digest], kernel.symbol, kernel.shared_bytes)
        x, y, z = (symbolic.evaluate(size, product.sizes) for size in launch.grid)
        return KernelLaunch(
            function=function,
            grid=(x, y, z),
            block=(kernel.threads, 1, 1),
            shared_bytes=kernel.shared_bytes,
            kernargs=_packed(launch, kernel, memory, product.sizes),
            arguments=kernel.arguments,
            spans=tuple(memory.span(storage.buffer) for storage in launch.operands),
            at=f"{product.kernel.name} of {product.key}",
        )


def _packed(launch: Launch, kernel: GpuKernel, memory: _Memory, sizes: Mapping[str, int]) -> bytes:
    """The argument block: addresses, then parameters, where the code object takes them."""
    data = bytearray(kernel.kernarg_bytes)
    values: list[Param] = [_address(storage, memory, sizes) for storage in launch.operands]
    for (offset, size), value in zip(kernel.arguments, [*values, *launch.params], strict=True):
        if isinstance(value, float):
            struct.pack_into("<f", data, offset, value)
        else:
            number = symbolic.evaluate(value, sizes)
            data[offset : offset + size] = number.to_bytes(size, "little", signed=number < 0)
    return bytes(data)


def _address(storage: Storage, memory: _Memory, sizes: Mapping[str, int]) -> int:
    return memory.places[storage.buffer][0] + symbolic.evaluate(storage.byte_offset, sizes)


def _random(dtype: str, elements: int, random: np.random.Generator) -> Bytes:
    """The bytes of normally distributed numbers.

    Raises:
        InternalError: a product of this dtype is not measured yet.
    """
    values = random.standard_normal(elements, np.float32)
    if dtype == "bf16":
        return f32_to_bf16(values).view(np.uint8)
    if dtype in TOLERANCES:
        return values.astype(DTYPES[dtype].numpy).view(np.uint8)
    raise InternalError(f"there are no random numbers of {dtype}")


def _differences(
    results: Sequence[Bytes], wanted: Sequence[Bytes], dtypes: Sequence[str]
) -> Iterator[str]:
    """In what way results are not those that are wanted, up to rounding."""
    for got, want, dtype in zip(results, wanted, dtypes, strict=True):
        total, scale, worst, largest = 0.0, 0.0, 0.0, 0.0
        step = COMPARED * DTYPES[dtype].itemsize
        for begin in range(0, want.nbytes, step):
            values = _floats(want[begin : begin + step], dtype)
            errors = np.abs(_floats(got[begin : begin + step], dtype) - values)
            total += float(np.square(errors).sum())
            scale += float(np.square(values).sum())
            worst = max(worst, float(errors.max()))
            largest = max(largest, float(np.abs(values).max()))
        tolerance = TOLERANCES[dtype]
        # A comparison with NaN is false, so that a result that was not written is refused.
        is_close = total <= tolerance**2 * scale and worst <= LARGEST * tolerance * largest
        if not is_close:
            error = (total / scale) ** 0.5 if scale else total
            yield f"its result is off by {error:.2g} of what it should be"


def _floats(raw: Bytes, dtype: str) -> NDArray[np.float64]:
    if dtype == "bf16":
        return bf16_to_f32(raw.view(np.uint16)).astype(np.float64)
    return raw.view(DTYPES[dtype].numpy).astype(np.float64)
