"""Linears in few bits on the CPU against numpy in f64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from cpu_library import (
    DTYPES,
    MATRIX_LEVELS,
    ULP,
    Module,
    assert_close,
    blank,
    cpu_library,
    decode,
    random,
)

from fusec.formats import decode as decode_format
from fusec.formats import expand_blocks, unpack_e2m1
from fusec.kernels.quantised_panels import pack_code_panels, pack_scale_panels

quantised = cpu_library("mxfp4_linear", "fp8_linear", levels=MATRIX_LEVELS)


@dataclass(frozen=True, slots=True)
class Coded:
    """A weight in few bits.

    Attributes:
        op: the kernel that takes it.
        values: [N, K] in f64.
        buffers: packed codes and packed scales.
        params: those that follow N and K.
    """

    op: str
    values: np.ndarray
    buffers: tuple[np.ndarray, np.ndarray]
    params: tuple[int, ...] = ()


def mxfp4(rng: np.random.Generator, n: int, k: int, low: int = 117, high: int = 131) -> Coded:
    """Random codes; scale bytes in [low, high)."""
    codes = rng.integers(0, 256, (n, k // 2)).astype(np.uint8)
    scale = rng.integers(low, high, (n, -(-k // 32))).astype(np.uint8)
    plain = unpack_e2m1(codes)
    values = plain * expand_blocks(decode_format(scale, "e8m0"), (1, 32), plain.shape)
    packed = (pack_code_panels(codes, 4), pack_scale_panels(scale, (1, 32), n))
    return Coded("mxfp4_linear", values, packed)


def fp8(rng: np.random.Generator, n: int, k: int, block: tuple[int, int]) -> Coded:
    """Random codes, subnormal ones included; f32 scales for each block."""
    codes = rng.integers(0, 256, (n, k)).astype(np.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0x01
    rows, columns = min(block[0], max(n, 1)), min(block[1], max(k, 1))
    scale = rng.uniform(0.001, 0.02, (-(-n // rows), -(-k // columns))).astype(np.float32)
    plain = decode_format(codes, "f8e4m3fn")
    values = plain * expand_blocks(scale.astype(np.float64), (rows, columns), plain.shape)
    packed = (pack_code_panels(codes, 8), pack_scale_panels(scale, (rows, columns), n))
    return Coded("fp8_linear", values, packed, (columns if columns < k else 0,))


def product(
    library: Module,
    coded: Coded,
    x: np.ndarray,
    dtype: str,
    bias: np.ndarray | None = None,
    wide: bool = False,
) -> np.ndarray:
    """The kernel's result as f64: x has rows that are longer than K, the result longer than N."""
    m, (n, k) = len(x), coded.values.shape
    out_dtype = "f32" if wide else dtype
    halves = 2 if m % 2 == 0 else 1
    strides = [step for row in (x.shape[1], n + 2) for step in (0, 0, m // halves * row, row)]
    params = [1, 1, halves, m // halves, *strides, n, k, *coded.params, int(bias is not None)]
    operands = [x, *coded.buffers, *([] if bias is None else [bias])]
    symbol = f"fusec_{coded.op}_{dtype}{'_f32' if wide else ''}"
    out = decode(
        library.call(symbol, [*operands, blank((m, n + 2), out_dtype)], params)[-1], out_dtype
    )
    assert np.isnan(out[:, n:]).all(), "written between the rows"
    return out[:, :n]


def expected(coded: Coded, x: np.ndarray, dtype: str) -> np.ndarray:
    k = coded.values.shape[1]
    return np.asarray(decode(x, dtype)[:, :k] @ coded.values.T)


WHOLE = 1 << 30
FORMATS = {
    "mxfp4": mxfp4,
    "fp8-block": partial(fp8, block=(128, 128)),
    "fp8-token": partial(fp8, block=(1, WHOLE)),
    "fp8-tensor": partial(fp8, block=(WHOLE, WHOLE)),
    "mxfp8": partial(fp8, block=(1, 32)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", FORMATS)
def test_sizes(quantised: Module, dtype: str, format: str) -> None:
    for m, n, k in [(1, 33, 64), (2, 100, 320), (7, 1, 32), (33, 65, 544), (0, 8, 32)]:
        rng = np.random.default_rng(m * 1000 + n)
        coded = FORMATS[format](rng, n, k)
        x = random(rng, (m, k + 3), dtype)
        bias = random(rng, (n,), dtype)
        exact = expected(coded, x, dtype)
        scale = max(1.0, float(np.abs(exact).max(initial=0)))
        for given, wide in ((None, False), (bias, False), (bias, dtype != "f32")):
            out = product(quantised, coded, x, dtype, given, wide)
            wanted = exact if given is None else exact + decode(bias, dtype)
            # Rows of bf16 with few rows may be taken as 16-bit integers.
            tolerance = 2e-6 if wide or dtype == "f32" else ULP[dtype]
            slack = 3e-5 if dtype != "f32" else 0
            assert_close(out / scale, wanted / scale, tolerance + slack)
