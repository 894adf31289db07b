"""Weights brought into fewer bits: how near they stay, their scales, experts, and the transpose."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from fusec.dtypes import DTYPES, f32_to_bf16
from fusec.formats import QUANT_MAX, decode, mx_scaling
from fusec.ir.quantise_weights import WeightFormat, quantised_weight
from fusec.ir.weights import Weight, from_array

FORMATS: tuple[WeightFormat, ...] = get_args(WeightFormat)
STEP = {"mxfp4": 1 / 4}
"""Half a step of the codes next to the largest, over the largest magnitude of a block."""


def plain(*shape: int, dtype: str = "f32", seed: int = 0) -> tuple[Weight, np.ndarray]:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    if dtype == "bf16":
        bits = f32_to_bf16(values)
        values = (bits.astype(np.uint32) << 16).view(np.float32)
        return from_array("w", dtype, bits), values
    return from_array("w", dtype, values.astype(DTYPES[dtype].numpy)), values


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("format", FORMATS)
def test_values_stay_near(format: WeightFormat, dtype: str) -> None:
    weight, values = plain(600, 160, dtype=dtype)
    found = quantised_weight(weight, format)
    error = np.abs(found.values() - values)
    step = STEP.get(format, 1 / 16)
    rows, columns = found.block
    for row in range(0, 600, rows):
        for column in range(0, 160, columns):
            block = (slice(row, row + rows), slice(column, column + columns))
            assert np.max(error[block]) <= step * np.max(np.abs(values[block]))
    assert np.max(error) > 0
    assert np.max(np.abs(2 * found.values() - values)) > 0.5, "a doubled answer must fail"


@pytest.mark.parametrize("fp8", ["f8e4m3fn", "f8e4m3fnuz"])
def test_scales_are_the_largest_over_the_largest_code(fp8: str) -> None:
    weight, values = plain(200, 300)
    found = quantised_weight(weight, "fp8-block", fp8)
    scale = found.scale.load()
    assert (found.codes.type.dtype, found.block, scale.shape) == (fp8, (128, 128), (2, 3))
    for row in range(2):
        for column in range(3):
            part = values[128 * row :, 128 * column :][:128, :128]
            assert scale[row, column] == np.float32(np.max(np.abs(part)) / QUANT_MAX[fp8])
    assert np.max(np.abs(decode(found.codes.load(), fp8))) == QUANT_MAX[fp8]
    token = quantised_weight(weight, "fp8-token", fp8).scale.load()
    assert token.shape == (200, 1)
    np.testing.assert_array_equal(
        token[:, 0], (np.max(np.abs(values), 1).astype(np.float64) / QUANT_MAX[fp8]).astype("f4")
    )
    tensor = quantised_weight(weight, "fp8-tensor", fp8).scale.load()
    np.testing.assert_array_equal(tensor, [[np.max(token)]])


@pytest.mark.parametrize(("format", "dtype"), [("mxfp4", "f4e2m1x2"), ("mxfp8", "f8e4m3fn")])
def test_mx_weights_are_what_rows_become(format: WeightFormat, dtype: str) -> None:
    weight, values = plain(5, 96)
    found = quantised_weight(weight, format)
    codes, scale = mx_scaling(dtype, "even" if format == "mxfp4" else "up").quantise(values)
    assert found.scale.type.dtype == "e8m0"
    np.testing.assert_array_equal(decode(found.scale.load(), "e8m0"), scale)
    np.testing.assert_array_equal(found.values(), codes * np.repeat(scale, 32, axis=-1))


@pytest.mark.parametrize("format", FORMATS)
def test_experts_are_one_by_one_and_may_be_turned(format: WeightFormat) -> None:
    weight, values = plain(3, 130, 64)
    turned = from_array("t", "f32", np.ascontiguousarray(values.swapaxes(1, 2)))
    found = quantised_weight(weight, format)
    also = quantised_weight(turned, format, turned=True)
    assert also.turned and also.values_shape == (3, 130, 64)
    np.testing.assert_array_equal(also.codes.load(), found.codes.load())
    np.testing.assert_array_equal(also.scale.load(), found.scale.load())
    for expert in range(3):
        alone = quantised_weight(from_array("w", "f32", values[expert]), format)
        np.testing.assert_array_equal(found.codes.load()[expert], alone.codes.load())
        np.testing.assert_array_equal(found.scale.load()[expert], alone.scale.load())
    assert found.codes.identity != also.codes.identity


@pytest.mark.parametrize("format", FORMATS)
def test_zeros_and_extremes(format: WeightFormat) -> None:
    values = np.zeros((4, 64), dtype=np.float32)
    values[1] = 1e-30
    values[2, ::2] = 3e38
    found = quantised_weight(from_array("w", "f32", values), format)
    result = found.values()
    assert np.isfinite(result).all()
    assert (result[0] == 0).all()
    assert np.max(np.abs(result[2] / 3e38 - (np.arange(64) % 2 == 0))) <= 1 / 4


def test_without_values_there_are_types() -> None:
    weight, _ = plain(6, 64)
    bare = Weight("w", weight.type, None, "w")
    found = quantised_weight(bare, "mxfp4")
    assert found.codes.read is None
    assert str(found.codes.type) == "f4e2m1x2[6, 32]"
    assert str(found.scale.type) == "e8m0[6, 2]"
