"""Linears in few bits on the CPU against numpy in f64."""

from __future__ import annotations

from collections.abc import Callable
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
    encode,
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
FORMATS: dict[str, Callable[[np.random.Generator, int, int], Coded]] = {
    "mxfp4": mxfp4,
    "fp8-block": partial(fp8, block=(128, 128)),
    "fp8-token": partial(fp8, block=(1, WHOLE)),
    "fp8-tensor": partial(fp8, block=(WHOLE, WHOLE)),
    "mxfp8": partial(fp8, block=(1, 32)),
    "fp8-long-blocks": partial(fp8, block=(16, 384)),
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


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("format", ["mxfp4", "fp8-block"])
def test_every_number_of_rows(quantised: Module, dtype: str, format: str) -> None:
    rng = np.random.default_rng(7)
    coded = FORMATS[format](rng, 70, 288)
    every = random(rng, (300, 288), dtype)
    wanted = expected(coded, every, dtype)
    scale = np.abs(wanted).max()
    for m in (*range(1, 41), 257, 300):
        out = product(quantised, coded, every[:m], dtype, wide=dtype != "f32")
        tolerance = 1e-6 if dtype == "f32" else 2e-5
        assert np.abs(out - wanted[:m]).max() <= tolerance * scale, m


def test_integers_are_off_by_little(quantised: Module) -> None:
    """Outliers, which the other elements of a group share a scale with, cost what they may."""
    rng = np.random.default_rng(3)
    coded = mxfp4(rng, 64, 512)
    wide = rng.standard_normal((2, 512))
    wide[:, ::37] *= 1000
    x = encode(wide.astype(np.float32), "bf16")
    groups = np.abs(decode(x, "bf16")).reshape(2, 16, 32).max(-1)
    weights = np.abs(coded.values).reshape(64, 16, 32).sum(-1)
    allowed = groups @ weights.T / 2**16
    out = product(quantised, coded, x, "bf16", wide=True)
    assert (np.abs(out - expected(coded, x, "bf16")) <= allowed * 1.01).all()


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("m", [1, 3, 9, 40])
def test_extreme_scales(quantised: Module, dtype: str, m: int) -> None:
    """One scale for each column, from the least to the largest; 255 is NaN."""
    rng = np.random.default_rng(m)
    columns = [0, 1, 2, 3, 60, 127, 190, 191, 192, 215, 230, 248, 255]
    codes = rng.integers(0, 256, (len(columns), 48)).astype(np.uint8)
    scale = np.repeat(np.array(columns, np.uint8)[:, None], 3, axis=1)
    plain = unpack_e2m1(codes)
    values = plain * expand_blocks(decode_format(scale, "e8m0"), (1, 32), plain.shape)
    packed = (pack_code_panels(codes, 4), pack_scale_panels(scale, (1, 32), len(columns)))
    coded = Coded("mxfp4_linear", values, packed)
    x = random(rng, (m, 96), dtype)
    out = product(quantised, coded, x, dtype, wide=dtype != "f32")
    wanted = expected(coded, x, dtype)
    size = np.abs(decode(x, dtype)) @ np.abs(values).T
    # Instructions for bf16 take subnormal numbers as zeros.
    allowed = size * 2e-5 + 96 * 6 * 2.0**-126
    assert np.isnan(out[:, -1]).all()
    assert (np.abs(out - wanted) <= allowed)[:, :-1].all()


@pytest.mark.parametrize("m", [1, 4, 5, 40])
def test_nan_codes_reach_only_their_column(quantised: Module, m: int) -> None:
    codes = np.full((40, 64), 0x38, np.uint8)  # 1
    codes[7, 33], codes[20, 0] = 0x7F, 0xFF
    scale = np.full((40, 1), 0.5, np.float32)
    packed = (pack_code_panels(codes, 8), pack_scale_panels(scale, (1, 64), 40))
    coded = Coded("fp8_linear", decode_format(codes, "f8e4m3fn") * 0.5, packed, (0,))
    for dtype in DTYPES:
        out = product(quantised, coded, encode(np.ones((m, 64)), dtype), dtype)
        assert np.isnan(out[:, [7, 20]]).all()
        assert (np.delete(out, [7, 20], 1) == 32).all()


@pytest.mark.parametrize("m", [1, 2, 6, 33])
@pytest.mark.parametrize("format", ["mxfp4", "fp8-token"])
def test_what_is_not_finite_stays_in_its_row(quantised: Module, format: str, m: int) -> None:
    rng = np.random.default_rng(m)
    coded = FORMATS[format](rng, 33, 64)
    for dtype in DTYPES:
        for value in (np.nan, np.inf, -np.inf):
            wide = rng.standard_normal((m, 64)).astype(np.float32)
            wide[m - 1, 40] = value
            x = encode(wide, dtype)
            out = product(quantised, coded, x, dtype)
            with np.errstate(invalid="ignore"):
                wanted = expected(coded, x, dtype)
            np.testing.assert_array_equal(np.isnan(out), np.isnan(wanted))
            np.testing.assert_array_equal(np.isposinf(out), np.isposinf(wanted))
            np.testing.assert_array_equal(np.isneginf(out), np.isneginf(wanted))


def test_small_rows_are_not_lost(quantised: Module) -> None:
    coded = mxfp4(np.random.default_rng(0), 32, 32, 127, 128)
    x = encode(np.full((1, 32), 2.0**-110, np.float32), "bf16")
    out, wanted = product(quantised, coded, x, "bf16", wide=True), expected(coded, x, "bf16")
    assert np.abs(out - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert np.abs(wanted).max() > 0


@pytest.mark.parametrize("format", FORMATS)
def test_threads_change_nothing(quantised: Module, format: str) -> None:
    rng = np.random.default_rng(11)
    coded = FORMATS[format](rng, 200, 512)
    for m in (1, 5, 300):
        x = random(rng, (m, 512), "bf16")
        results = []
        for threads in (1, 2):
            quantised.threads(threads)
            results.append(product(quantised, coded, x, "bf16"))
        np.testing.assert_array_equal(results[0], results[1])


def test_panels_are_laid_out_as_documented() -> None:
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 256, (2, 40, 72)).astype(np.uint8)
    for bits in (4, 8):
        plain = np.stack((codes & 15, codes >> 4), -1).reshape(2, 40, 144) if bits == 4 else codes
        places, depth = 16 // bits, -(-plain.shape[2] // 32) * 32
        packed = pack_code_panels(codes, bits).view("<u2")
        words = packed.reshape(2, 2, depth // (2 * places), 32, 2)
        for _ in range(200):
            expert, n, k = (int(rng.integers(0, size)) for size in plain.shape)
            z, j, t = k // (2 * places), k % (2 * places) // 2, k % 2
            word = int(words[expert, n // 32, z, n % 32, t])
            assert word >> (bits * j) & (2**bits - 1) == plain[expert, n, k]
        assert not words[:, 1, :, 8:].any()
    scale = rng.random((2, 3, 4)).astype(np.float32)
    panels = pack_scale_panels(scale, (16, 32), 40)
    assert panels.shape == (2, 2, 4, 32)
    for n in range(40):
        np.testing.assert_array_equal(panels[:, n // 32, :, n % 32], scale[:, n // 16])
    assert not panels[:, 1, :, 8:].any()
