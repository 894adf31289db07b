"""The bf16 matrix instructions, or what stands in for them, against numpy."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cpu_library import LEVELS, compile_object, compiler, decode, encode, skip_unless_it_runs

SOURCE = """
#include <fusec/amx.h>
using namespace fusec;

// sum[rows][16] += a[rows][32] * pairs[16][16][2], rows of sum 80 bytes apart
FUSEC_KERNEL void dot_tiles(const void* a, const void* pairs, float* sum, int64_t rows) {
  const uint8_t count = static_cast<uint8_t>(rows);
  Tiles::configure({count, 16, 16, 16, count, 16, 16, 16});
  Tiles::zero<1>();
  Tiles::load<0>(sum, 80);
  Tiles::load<4>(a, 64);
  Tiles::load<6>(pairs, 64);
  Tiles::dot_bf16<0, 4, 6>();
  Tiles::store<0>(sum, 80);
  Tiles::release();
}

FUSEC_KERNEL void dot_pairs(const void* a, const void* b, float* sum) {
  store(sum, dot_bf16_pairs(load(sum), _mm512_loadu_si512(a), _mm512_loadu_si512(b)));
}
"""


@pytest.fixture(scope="module", params=["emulated", "sapphirerapids"])
def instructions(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ctypes.CDLL:
    """Compiled for both, and run where the processor can."""
    level, toolchain = LEVELS[request.param], compiler()
    folder: Path = tmp_path_factory.mktemp("amx")
    source, library = folder / "kernel.cpp", folder / "dots.so"
    source.write_text(SOURCE)
    made = compile_object(source, level, toolchain, folder)
    linker = [*toolchain.command, *(["c++"] if toolchain.family == "zig" else [])]
    subprocess.run([*linker, "-shared", "-o", str(library), str(made)], check=True)
    skip_unless_it_runs(level)
    return ctypes.CDLL(str(library))


def call(library: ctypes.CDLL, symbol: str, arrays: list[np.ndarray], *numbers: int) -> None:
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
    getattr(library, symbol)(*pointers, *(ctypes.c_int64(number) for number in numbers))


def pairs_of(b: np.ndarray) -> np.ndarray:
    """[32, 16] as the rows of pairs that a tile of B holds."""
    return np.ascontiguousarray(b.reshape(16, 2, 16).swapaxes(1, 2))


@pytest.mark.parametrize("rows", [1, 7, 16])
def test_tiles(instructions: ctypes.CDLL, rows: int) -> None:
    rng = np.random.default_rng(rows)
    a, b = (
        encode(rng.standard_normal((rows, 32)), "bf16"),
        encode(rng.standard_normal((32, 16)), "bf16"),
    )
    sums = rng.standard_normal((rows, 20)).astype(np.float32)
    before = sums.copy()
    call(instructions, "dot_tiles", [a, pairs_of(b), sums], rows)
    expected = before[:, :16] + decode(a, "bf16") @ decode(b, "bf16")
    np.testing.assert_allclose(sums[:, :16], expected, atol=2e-5)
    np.testing.assert_array_equal(sums[:, 16:], before[:, 16:])


def test_tiles_sum_even_and_odd_products_apart(instructions: ctypes.CDLL) -> None:
    a = np.zeros((1, 32), np.float32)
    a[0, :4] = [2.0**24, 1, -(2.0**24), 1]
    b = np.ones((32, 16), np.float32)
    sums = np.zeros((1, 20), np.float32)
    call(instructions, "dot_tiles", [encode(a, "bf16"), pairs_of(encode(b, "bf16")), sums], 1)
    assert (sums[0, :16] == 2).all()


def test_subnormal_numbers_are_zeros(instructions: ctypes.CDLL) -> None:
    a = np.zeros((1, 32), np.float32)
    a[0, :2] = [2.0**-130, 2.0**-100]
    b = np.zeros((32, 16), np.float32)
    b[:2] = [[2.0**100], [2.0**-40]]
    sums = np.zeros((1, 20), np.float32)
    call(instructions, "dot_tiles", [encode(a, "bf16"), pairs_of(encode(b, "bf16")), sums], 1)
    assert (sums == 0).all()

    a_pairs, b_pairs = np.repeat(a[:, :2], 16, 0), np.repeat(b[:2, :1].T, 16, 0)
    total = np.zeros(16, np.float32)
    call(instructions, "dot_pairs", [encode(a_pairs, "bf16"), encode(b_pairs, "bf16"), total])
    assert (total == 0).all()


def test_pairs(instructions: ctypes.CDLL) -> None:
    rng = np.random.default_rng(1)
    a, b = (encode(rng.standard_normal((16, 2)), "bf16") for _ in range(2))
    sums = rng.standard_normal(16).astype(np.float32)
    expected = sums + (decode(a, "bf16") * decode(b, "bf16")).sum(1)
    call(instructions, "dot_pairs", [a, b, sums])
    np.testing.assert_allclose(sums, expected, atol=1e-6)


def test_pairs_add_the_odd_product_first(instructions: ctypes.CDLL) -> None:
    a, b = np.tile(np.array([1, -(2.0**24)], np.float32), (16, 1)), np.ones((16, 2), np.float32)
    sums = np.full(16, 2.0**24, np.float32)
    call(instructions, "dot_pairs", [encode(a, "bf16"), encode(b, "bf16"), sums])
    assert (sums == 1).all()
