"""`attention` on the CPU against numpy in f64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from cpu_library import (
    DTYPES,
    MATRIX_LEVELS,
    Module,
    assert_close,
    bits,
    blank,
    cpu_library,
    decode,
    encode,
    random,
)

library = cpu_library("attention", levels=MATRIX_LEVELS)

HIGHEST, HIGH, MEDIUM = range(3)

# Weights of the softmax are rounded to the dtype before they meet the values, as on GPUs.
TOLERANCE = {"f32": 2e-6, "bf16": 1.2e-2, "f16": 1e-3}


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    batch: int = 1
    heads: int = 2
    kv_heads: int = 1
    queries: int = 17
    keys: int = 17
    depth: int = 64
    value_depth: int = 64
    causal: bool = False
    window: int = -1
    chunk: int = -1
    softcap: float = 0.0
    mask: str = ""  # bool | add | f32
    mask_shape: tuple[int, ...] = ()
    sinks: int = 0
    padding: bool = False
    scale: float = 0.0  # 0: 1.3 / sqrt(depth)


CASES = (
    Case("plain"),
    Case("causal", causal=True, queries=133, keys=133, heads=4, kv_heads=2, batch=2),
    Case("decode", causal=True, queries=1, keys=300, heads=8, kv_heads=2),
    Case("chunk", causal=True, queries=5, keys=140, depth=33, value_depth=7),
    Case("more queries than keys", causal=True, queries=40, keys=9),
    Case("window", causal=True, window=16, queries=200, keys=200, depth=16, value_depth=48),
    Case("both sides", window=9, queries=150, keys=150, depth=96, value_depth=96),
    Case("chunks", causal=True, chunk=50, queries=200, keys=200, depth=16, value_depth=48),
    Case("chunks, all of a tile", causal=True, chunk=64, queries=200, keys=200, heads=4),
    Case("chunks after cached keys", causal=True, chunk=90, queries=70, keys=261, heads=6),
    Case("chunks that are seen whole", chunk=37, queries=150, keys=150, depth=96),
    Case("whole chunks, fewer queries", chunk=37, queries=90, keys=333, heads=3),
    Case("chunks of one", causal=True, chunk=1, queries=45, keys=45),
    Case("a chunk for all", causal=True, chunk=8192, queries=45, keys=45, padding=True, batch=2),
    Case("chunks, more queries than keys", chunk=7, queries=40, keys=9),
    Case(
        "chunks and sinks",
        causal=True,
        chunk=33,
        queries=100,
        keys=100,
        sinks=2,
        padding=True,
        batch=2,
    ),
    Case(
        "chunks and a mask",
        causal=True,
        chunk=33,
        queries=80,
        keys=80,
        mask="add",
        mask_shape=(80, 80),
    ),
    Case("few, chunks", causal=True, chunk=128, heads=7, queries=2, keys=900, sinks=2),
    Case("few, at the beginning of a chunk", causal=True, chunk=128, heads=4, queries=3, keys=898),
    Case("few, whole chunks", chunk=300, heads=4, queries=2, keys=700),
    Case("mla", causal=True, queries=30, keys=30, depth=192, value_depth=128, heads=3, kv_heads=3),
    Case("softcap", softcap=5.0, causal=True, queries=50, keys=50),
    Case("bool mask", mask="bool", mask_shape=(2, 1, 35, 70), batch=2, queries=35, keys=70),
    Case("additive", mask="add", mask_shape=(1, 2, 1, 40), queries=6, keys=40),
    Case("f32 mask", mask="f32", mask_shape=(6, 40), queries=6, keys=40),
    Case("sinks", sinks=2, causal=True, queries=70, keys=70, heads=6, kv_heads=3),
    Case("f32 sinks", sinks=3, causal=True, window=4, queries=20, keys=20),
    Case("padding", padding=True, batch=3, queries=45, keys=45, causal=True),
    Case("multi query", heads=130, kv_heads=1, queries=3, keys=5, depth=24, value_depth=40),
    Case("16 rows, one block", causal=True, heads=16, kv_heads=2, queries=2, keys=128),
    Case("15 rows, pieces", heads=3, queries=5, keys=1200, depth=72, value_depth=136),
    Case("1 row, pieces", causal=True, heads=4, kv_heads=4, queries=1, keys=513, batch=2),
    Case("few, window", causal=True, window=128, heads=7, queries=2, keys=900, sinks=2),
    Case(
        "few, hidden", mask="bool", mask_shape=(4, 300), padding=True, batch=2, queries=4, keys=300
    ),
    Case("few, softcap", softcap=3.0, mask="f32", mask_shape=(2, 3, 270), queries=3, keys=270),
    Case("17 rows", causal=True, heads=1, queries=17, keys=257, depth=80),
    Case("rows past a block", causal=True, window=70, heads=8, queries=100, keys=300, depth=32),
    Case("pairs for each thread", causal=True, heads=6, kv_heads=6, batch=2, queries=65, keys=97),
    Case("negative scale", heads=2, queries=30, keys=40, scale=-0.4),
    Case("no keys", keys=0, queries=4),
    Case("no keys but sinks", keys=0, queries=20, sinks=2),
    Case("no queries", queries=0),
)


def strides(array: np.ndarray) -> list[int]:
    return [step // array.itemsize for step in array.strides]


def reference(
    case: Case,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray | None,
    sinks: np.ndarray | None,
    padding: np.ndarray | None,
    scale: float,
) -> np.ndarray:
    group = case.heads // case.kv_heads
    k, v = k.repeat(group, 1), v.repeat(group, 1)
    scores = np.einsum("bhsd,bhtd->bhst", q, k) * scale
    if case.softcap:
        scores = case.softcap * np.tanh(scores / case.softcap)
    query = np.arange(case.queries)[:, None] + case.keys - case.queries
    distance = query - np.arange(case.keys)[None, :]
    keep = np.ones(scores.shape, bool)
    if case.causal:
        keep &= distance >= 0
    if case.window >= 0:
        keep &= (distance if case.causal else np.abs(distance)) < case.window
    if case.chunk >= 0:
        keep &= query // case.chunk == np.arange(case.keys)[None, :] // case.chunk
    if padding is not None:
        keep &= padding[:, None, None, :]
    if mask is not None:
        if mask.dtype == bool:
            keep &= mask
        else:
            scores = scores + mask
    scores = np.where(keep, scores, -np.inf)
    top = scores.max(-1, keepdims=True, initial=-np.inf)
    if sinks is not None:
        top = np.maximum(top, sinks[None, :, None, None])
    weights = np.exp(scores - np.where(np.isinf(top), 0, top))
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks[None, :, None, None] - top)
    return np.where(total > 0, weights @ v / np.where(total > 0, total, 1), 0.0)


def simple(
    module: Module,
    dtype: str,
    q: np.ndarray,
    kv: np.ndarray,
    mask: np.ndarray,
    precision: int = HIGHEST,
) -> np.ndarray:
    """One head, an additive f32 mask [S, T], scale 1."""
    (queries, depth), keys = q.shape, len(kv)
    params = [1, 1, 1, queries, keys, depth, depth, *[0, 0, depth] * 4, bits(1.0), 0, 0, -1, -1]
    params += [3, 0, 0, keys, 1, 0, 0, 0, 0, precision]
    stored = encode(kv, dtype)
    buffers = [encode(q, dtype), stored, stored, mask, blank((queries, depth), dtype)]
    return decode(module.call(f"fusec_attention_{dtype}", buffers, params)[-1], dtype)


def rms_error(actual: np.ndarray, q: np.ndarray, kv: np.ndarray, mask: np.ndarray) -> float:
    """Of what `simple` gives, relative to the result."""
    scores = q.astype(np.float64) @ kv.T.astype(np.float64) + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights @ kv / weights.sum(-1, keepdims=True)
    return float(np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_of_finite_and_infinite_numbers(library: Module, dtype: str) -> None:
    rng = np.random.default_rng(0)
    q, kv = np.round(rng.standard_normal((4, 40)), 1), np.round(rng.standard_normal((150, 40)), 1)
    kv = decode(encode(kv, dtype), dtype)
    mask = np.zeros((4, 150), np.float32)
    mask[0] = -np.inf  # sees nothing
    mask[1] = np.finfo(np.float32).min  # everything alike: as good as no scores at all
    mask[2, :140] = -np.inf  # the first block of keys is hidden, the second is not
    mask[3, 1:] = -1e30
    out = simple(library, dtype, q, kv, mask)
    assert (out[0] == 0).all()
    assert_close(out[1], kv.mean(0), TOLERANCE[dtype])
    scores = decode(encode(q, dtype), dtype)[2] @ kv[140:].T
    weights = np.exp(scores - scores.max())
    assert_close(out[2], weights @ kv[140:] / weights.sum(), TOLERANCE[dtype])
    assert_close(out[3], kv[0], TOLERANCE[dtype])


@pytest.mark.parametrize("rows", [3, 70])
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores_and_nan(library: Module, dtype: str, rows: int) -> None:
    q, kv = np.full((rows, 16), 60.0), np.zeros((70, 16))
    kv[33] = 60.0  # a score of 57600
    q[1, 3] = np.nan
    out = simple(library, dtype, q, kv, np.zeros((rows, 70), np.float32))
    assert (np.delete(out, 1, 0) == 60).all()
    assert np.isnan(out[1]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_hidden_and_infinite_keys(library: Module, dtype: str) -> None:
    """Of many rows; those that see an infinite value have it, as PyTorch's do."""
    rng = np.random.default_rng(4)
    q, kv = rng.standard_normal((64, 24)), rng.standard_normal((90, 24))
    q[:, 5] = 1.0
    mask = np.zeros((64, 90), np.float32)
    mask[:, 40] = -np.inf
    expected = simple(library, dtype, q, kv, mask)
    kv[40, 7] = 6e4  # hidden as a key, and without weight as a value
    np.testing.assert_array_equal(simple(library, dtype, q, kv, mask), expected)
    kv[80, 5] = np.inf
    out = simple(library, dtype, q, kv, mask)
    assert np.isnan(out).all()


@pytest.mark.parametrize(("precision", "most"), [(HIGHEST, 6e-7), (HIGH, 2e-5), (MEDIUM, 5e-3)])
@pytest.mark.parametrize(("rows", "depth"), [(32, 33), (96, 64), (129, 100)])
def test_precision(library: Module, rows: int, depth: int, precision: int, most: float) -> None:
    rng = np.random.default_rng(rows)
    q, kv = random(rng, (rows, depth), "f32"), random(rng, (300, depth), "f32")
    q /= np.float32(np.sqrt(depth))
    mask = rng.standard_normal((rows, 300)).astype(np.float32)
    error = rms_error(simple(library, "f32", q, kv, mask, precision), q, kv, mask)
    assert error < most


@pytest.mark.parametrize("library", ["emulated"], indirect=True)
def test_tiles_have_the_bits_that_are_asked_for(library: Module) -> None:
    rng = np.random.default_rng(8)
    q, kv = random(rng, (40, 48), "f32"), random(rng, (150, 48), "f32")
    q /= np.float32(np.sqrt(48))
    mask = np.zeros((40, 150), np.float32)
    errors = [
        rms_error(simple(library, "f32", q, kv, mask, precision), q, kv, mask)
        for precision in (HIGHEST, HIGH, MEDIUM)
    ]
    assert errors[2] > 5e-4 > 1e-5 > errors[1] > 5 * errors[0]
    few = simple(library, "f32", q[:20], kv, mask[:20], MEDIUM)
    assert rms_error(few, q[:20], kv, mask[:20]) < 6e-7


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attention(library: Module, dtype: str, case: Case) -> None:
    rng = np.random.default_rng(len(case.name))
    # q and out are [B, S, H, D] in memory, k and v halves of one projection: nothing is contiguous.
    q = random(rng, (case.batch, case.queries, case.heads, case.depth), dtype)
    width = case.depth + case.value_depth
    kv = random(rng, (case.batch, case.keys, case.kv_heads, width), dtype)
    out = blank((case.batch, case.queries, case.heads, case.value_depth), dtype)
    wide_q = decode(q, dtype).swapaxes(1, 2)
    wide_kv = decode(kv, dtype).swapaxes(1, 2)
    scale = case.scale or 1.3 / np.sqrt(case.depth)

    def moved(array: np.ndarray) -> list[int]:
        b, s, h, _ = strides(array)
        return [b, h, s]

    kinds = {"": 0, "bool": 1, "add": 2, "f32": 3}
    extra: list[np.ndarray] = []
    mask = sinks = padding = None
    mask_strides, padding_strides = [0, 0, 0, 0], [0, 0]
    if case.mask:
        if case.mask == "bool":
            stored = rng.random(case.mask_shape) < 0.6
            stored[..., 2, :] = False  # a row that sees nothing
            mask = stored
        else:
            mask_dtype = "f32" if case.mask == "f32" else dtype
            values = rng.standard_normal(case.mask_shape)
            values[rng.random(case.mask_shape) < 0.3] = -np.inf
            stored = encode(values, mask_dtype)
            mask = decode(stored, mask_dtype)
        full = stored.reshape((1,) * (4 - stored.ndim) + stored.shape)
        mask_strides = [
            0 if size == 1 else step for size, step in zip(full.shape, strides(full), strict=True)
        ]
        extra.append(stored)
    if case.sinks:
        sink_dtype = dtype if case.sinks == 2 else "f32"
        stored = random(rng, (case.heads,), sink_dtype)
        sinks = decode(stored, sink_dtype)
        extra.append(stored)
    if case.padding:
        padding = rng.random((case.batch, case.keys)) < 0.7
        padding[1] = False
        padding_strides = [case.keys, 1]
        extra.append(padding)
    params = [case.batch, case.heads, case.kv_heads, case.queries, case.keys, case.depth]
    params += [case.value_depth, *moved(q), *moved(kv), *moved(kv), *moved(out)]
    params += [bits(scale), bits(case.softcap), int(case.causal), case.window, case.chunk]
    params += [
        kinds[case.mask],
        *mask_strides,
        case.sinks,
        int(case.padding),
        *padding_strides,
        HIGHEST,
    ]
    buffers = [q, kv, kv.reshape(-1)[case.depth :], *extra, out]
    actual = library.call(f"fusec_attention_{dtype}", buffers, params)[-1]
    expected = reference(
        case,
        wide_q,
        wide_kv[..., : case.depth],
        wide_kv[..., case.depth :],
        mask,
        sinks,
        padding,
        scale,
    )
    assert_close(decode(actual, dtype).swapaxes(1, 2), expected, TOLERANCE[dtype])
    for threads in (1, 5):
        library.threads(threads)
        again = library.call(f"fusec_attention_{dtype}", buffers, params)[-1]
        assert again.tobytes() == actual.tobytes()
