"""Indexing, ordering and scans on the CPU against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from cpu_library import Module, assert_close, bits, decode, encode, module, random

__all__ = ["module"]

OUT_OF_RANGE = 1
NUMPY: dict[str, np.dtype] = {
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "f16": np.dtype(np.float16),
    "i64": np.dtype(np.int64),
    "i32": np.dtype(np.int32),
    "i16": np.dtype(np.int16),
    "i8": np.dtype(np.int8),
    "u8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}
ALL = [*NUMPY, "bf16"]


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Small numbers with many ties, in storage form."""
    if dtype == "bf16":
        return encode(rng.integers(-9, 9, shape), "bf16")
    low = 0 if dtype in ("u8", "bool") else -9
    return rng.integers(low, 2 if dtype == "bool" else 9, shape).astype(NUMPY[dtype])


def wide(array: np.ndarray, dtype: str) -> np.ndarray:
    return decode(array, dtype) if dtype == "bf16" else array


def strides(array: np.ndarray, rank: int, axis: int | None = None) -> list[int]:
    steps = [step // array.itemsize for step in array.strides]
    if axis is not None:
        steps[axis] = 0
    return [0] * (rank - array.ndim) + steps


def sizes(array: np.ndarray, rank: int) -> list[int]:
    return [1] * (rank - array.ndim) + list(array.shape)


def picked_sizes(x: np.ndarray, index: np.ndarray, axis: int) -> list[int]:
    shape = [*x.shape[:axis], index.shape[axis], *x.shape[axis + 1 :]]
    return [1] * (8 - x.ndim) + shape


@pytest.mark.parametrize("index_dtype", ["i64", "i32"])
@pytest.mark.parametrize("inner", [1, 3, 40])
def test_take(module: Module, index_dtype: str, inner: int) -> None:
    rng = np.random.default_rng(inner)
    x = rng.standard_normal((4, 9, inner)).astype(np.float32)
    indices = rng.integers(-9, 9, (2, 5)).astype(NUMPY[index_dtype])
    out = np.full((4, 2, 5, inner), np.nan, np.float32)
    params = [4, 4 * inner, 1, *sizes(indices, 6), 9, indices.itemsize, *strides(indices, 6)]
    actual = module.call("fusec_index", [x, indices, out], params)[-1]
    assert (actual == x[:, indices]).all()
    assert module.error[0] == 0
    for wrong in (9, -10, 2**31 - 1):
        indices[1, 2] = wrong
        actual = module.call("fusec_index", [x, indices, out], params)[-1]
        assert module.error == (OUT_OF_RANGE, wrong, 9, 0)
        assert np.isnan(actual[:, 1, 2]).all()


def test_index_with_several_operands(module: Module) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 5, 7, 2)).astype(np.float64)
    i, j = rng.integers(0, 5, (4, 1)), rng.integers(-7, 7, (6,)).astype(np.int32)
    out = np.full((3, 4, 6, 2), np.nan)
    grid = np.broadcast_to(i, (4, 6)), np.broadcast_to(j, (4, 6))
    params = [3, 16, 2, 1, 1, 1, 1, 4, 6]
    params += [5, 8, *strides(grid[0], 6), 7, 4, *strides(grid[1], 6)]
    actual = module.call("fusec_index", [x, i, j, out], params)[-1]
    assert (actual == x[:, i, j]).all()


@pytest.mark.parametrize("dtype", ["u8", "f16", "f32", "i64"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gather(module: Module, dtype: str, axis: int) -> None:
    rng = np.random.default_rng(axis)
    x = values(rng, (4, 5, 6), dtype)
    index = rng.integers(-3, 3, (3, 2, 5))
    out = np.zeros(index.shape, x.dtype) + 77
    params = [x.itemsize, 8, x.shape[axis], strides(x, 3)[axis], *sizes(index, 8)]
    params += [*strides(x, 8, axis - 3), *strides(index, 8), *strides(out, 8)]
    params += picked_sizes(x, index, axis)
    actual = module.call("fusec_gather", [x, index, out], params)[-1]
    grid: list[np.ndarray] = list(np.indices(index.shape, sparse=True))
    grid[axis] = index
    assert (actual == x[tuple(grid)]).all()
    index[0, 0, 0] = x.shape[axis]
    module.call("fusec_gather", [x, index, out], params)
    assert module.error == (OUT_OF_RANGE, x.shape[axis], x.shape[axis], 0)


def test_an_index_longer_than_what_it_picks_from(module: Module) -> None:
    x, index = np.zeros((4, 9), np.float32), np.zeros((5, 3), np.int64)
    source, out = np.ones((5, 3), np.float32), np.zeros((5, 3), np.float32)
    ends = [*strides(index, 8), *strides(source, 8), *picked_sizes(x, index, 1)]
    params = [4, 8, 9, 1, *sizes(index, 8), *strides(x, 8, -1), *ends]
    module.call("fusec_gather", [x, index, out], params)
    assert module.error == (OUT_OF_RANGE, 4, 4, 0)
    params = [x.size, 1, 8, 1, 9, 1, *sizes(index, 8), *strides(x, 8, -1), *ends]
    after = module.call("fusec_scatter_f32", [x, index, source, x.copy()], params)[-1]
    assert module.error == (OUT_OF_RANGE, 4, 4, 0)
    assert not after.any()


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("how", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("axis", [0, 1])
def test_scatter(module: Module, dtype: str, how: int, axis: int) -> None:
    if dtype == "bool" and how in (1, 2):
        return  # arithmetic on bool is not an operation of the IR
    rng = np.random.default_rng(how)
    x, source = values(rng, (5, 40), dtype), values(rng, (4, 70), dtype)
    index = rng.integers(-5, 5, (4, 70)) if axis == 0 else rng.integers(-40, 40, (4, 70))
    if axis == 0:
        index, source = index[:, :40].copy(), source[:, :40].copy()
    out = np.zeros_like(x)
    params = [x.size, how, 8, axis, x.shape[axis], strides(x, 2)[axis], *sizes(index, 8)]
    params += [*strides(x, 8, axis - 2), *strides(index, 8), *strides(source, 8)]
    params += picked_sizes(x, index, axis)
    actual = module.call(f"fusec_scatter_{dtype}", [x, index, source, out], params)[-1]
    expected = wide(x, dtype).copy()
    grid: list[np.ndarray] = list(np.indices(index.shape, sparse=True))
    grid[axis] = index
    with np.errstate(over="ignore"):
        if how == 0:
            expected[tuple(grid)] = wide(source, dtype)
        else:
            function = [np.add, np.multiply, np.maximum, np.minimum][how - 1]
            function.at(expected, tuple(grid), wide(source, dtype))
    if dtype == "bf16":
        # Every step is rounded to bf16.
        assert_close(wide(actual, dtype), expected, 0.02)
    else:
        assert (actual == expected).all()
    again = module.call(f"fusec_scatter_{dtype}", [x, index, source, out], params)[-1]
    assert again.tobytes() == actual.tobytes()


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("accumulate", [False, True])
def test_index_put(module: Module, dtype: str, accumulate: bool) -> None:
    if dtype == "bool" and accumulate:
        return
    rng = np.random.default_rng(3)
    x = values(rng, (2, 5, 6, 3), dtype)
    i, j = rng.integers(-5, 5, (8,)), rng.integers(0, 6, (8,))
    given = values(rng, (8, 1), dtype)  # one value for a whole inner row, the same for both outer
    params = [2, 3, int(accumulate), 0, 0, 2, *sizes(i, 6), *strides(given[:, 0], 6)]
    params += [5, 8, *strides(i, 6), 6, 8, *strides(j, 6)]
    out = np.zeros_like(x)
    actual = module.call(f"fusec_index_put_{dtype}", [x, given, i, j, out], params)[-1]
    expected = wide(x, dtype).copy()
    if accumulate:
        for outer in range(2):
            np.add.at(expected[outer], (i, j), wide(given, dtype))
    else:
        expected[:, i, j] = wide(given, dtype)
    assert (wide(actual, dtype) == expected).all()
    i[3] = 5
    module.call(f"fusec_index_put_{dtype}", [x, given, i, j, out], params)
    assert module.error[:3] == (OUT_OF_RANGE, 5, 5)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("k", [0, 1, 5, 70, 300])
@pytest.mark.parametrize("descending", [False, True])
def test_topk_and_sort(module: Module, dtype: str, k: int, descending: bool) -> None:
    rng = np.random.default_rng(k)
    n = 300
    x = values(rng, (n, 3), dtype)  # along axis 0
    out, at = np.zeros((k, 3), x.dtype), np.full((k, 3), -1, np.int64)
    params = [1, 1, 1, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, n, k, int(descending), 3, 3, 3]
    *_, out, at = module.call(f"fusec_topk_{dtype}", [x, out, at], params)
    key = wide(x, dtype).astype(np.float64)
    order = np.argsort(-key if descending else key, axis=0, kind="stable")[:k]
    assert (at == order).all()
    assert (out == np.take_along_axis(x, order, 0)).all()


def test_order_of_nan_and_zeros(module: Module) -> None:
    x = np.array([1.0, np.nan, -0.0, 0.0, -np.inf, np.inf, np.nan], np.float32)
    params = [1, 1, 1, 1, *[0] * 12, 7, 7, 0, 1, 1, 1]
    indices = module.call("fusec_topk_f32", [x, x, np.zeros(7, np.int64)], params)[-1]
    assert indices.tolist() == [4, 2, 3, 0, 5, 1, 6]
    params[18] = 1
    indices = module.call("fusec_topk_f32", [x, x, np.zeros(7, np.int64)], params)[-1]
    assert indices.tolist() == [1, 6, 5, 0, 2, 3, 4]


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("smallest", [False, True])
def test_argmax(module: Module, dtype: str, smallest: bool) -> None:
    x = values(np.random.default_rng(7), (6, 50), dtype)
    params = [1, 1, 1, 6, 0, 0, 0, 50, 0, 0, 0, 1, 50, 1, int(smallest)]
    out = module.call(f"fusec_arg_{dtype}", [x, np.full(6, -1)], params)[-1]
    assert (out == (np.argmin if smallest else np.argmax)(wide(x, dtype), axis=1)).all()
    if dtype == "f32":
        x[2, 30:32] = np.nan
        assert module.call(f"fusec_arg_{dtype}", [x, out], params)[-1][2] == 30


@pytest.mark.parametrize("dtype", [dtype for dtype in ALL if dtype != "bool"])
@pytest.mark.parametrize("multiply", [False, True])
def test_scan(module: Module, dtype: str, multiply: bool) -> None:
    rng = np.random.default_rng(5)
    x = values(rng, (40, 3), dtype) if not multiply else values(rng, (4, 3), dtype)
    n = len(x)
    params = [1, 1, 1, 3, 0, 0, 0, 1, 0, 0, 0, 1, n, 3, 3, int(multiply)]
    out = module.call(f"fusec_scan_{dtype}", [x, np.zeros_like(x)], params)[-1]
    function = np.cumprod if multiply else np.cumsum
    given = wide(x, dtype)
    exact = function(given.astype(np.float64), axis=0)
    expected = exact if dtype == "bf16" else exact.astype(np.int64).astype(x.dtype)
    if given.dtype.kind == "f":
        expected = exact
    assert_close(wide(out, dtype).astype(np.float64), expected, 4e-3 if dtype == "bf16" else 1e-3)


@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16", "i64"])
def test_histogram(module: Module, dtype: str) -> None:
    rng = np.random.default_rng(2)
    x = values(rng, (200,), "i64") if dtype == "i64" else random(rng, (200,), dtype)
    out = np.zeros(7, x.dtype)
    params = [200, 7, bits(-1.5), bits(2.0)]
    out = module.call(f"fusec_histogram_{dtype}", [x, out], params)[-1]
    expected, _ = np.histogram(wide(x, dtype), bins=7, range=(-1.5, 2.0))
    assert (wide(out, dtype) == expected).all()


def test_histogram_of_all_numbers(module: Module) -> None:
    """The width of the range is infinite."""
    most = 1.7e308
    x, out = np.array([-most, 0, most]), np.full(4, np.nan)
    out = module.call("fusec_histogram_f64", [x, out], [3, 4, bits(-most), bits(most)])[-1]
    assert out.tolist() == [2, 0, 0, 1]


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("unit", [False, True])
def test_solve_triangular(module: Module, dtype: str, upper: bool, unit: bool) -> None:
    rng = np.random.default_rng(1)
    n, columns = 23, 70
    a = (rng.standard_normal((1, 3, n, n)) / n + np.eye(n)).astype(NUMPY[dtype])
    b = rng.standard_normal((2, 1, n, columns)).astype(NUMPY[dtype])
    out = np.full((2, 3, n, columns), np.nan, NUMPY[dtype])
    params = [1, 1, 2, 3, 0, 0, 0, n * n, 0, 0, n * columns, 0]
    params += [0, 0, 3 * n * columns, n * columns, n, columns, n, 1, columns, 1, columns]
    buffers = [a, b, out]
    actual = module.call(f"fusec_solve_triangular_{dtype}", buffers, [*params, upper, unit])[-1]
    matrix = (np.triu if upper else np.tril)(a.astype(np.float64))
    if unit:
        matrix = matrix * (1 - np.eye(n)) + np.eye(n)
    expected = np.linalg.solve(np.broadcast_to(matrix, (2, 3, n, n)), b.astype(np.float64))
    assert_close(actual, expected, 1e-12 if dtype == "f64" else 1e-6)
