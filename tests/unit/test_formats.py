"""Narrow formats against PyTorch's and ml_dtypes' own conversions, and the scale rules."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from fusec.formats import (
    FP8,
    MX_GROUP,
    QUANT_MAX,
    Granularity,
    Rounding,
    Scaling,
    decode,
    encode,
    encode_e8m0,
    expand_blocks,
    fn_to_fnuz,
    fp8_scaling,
    mx_scaling,
    pack_e2m1,
    unpack_e2m1,
)

TYPES = {
    "f8e4m3fn": ml_dtypes.float8_e4m3fn,
    "f8e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "f8e5m2": ml_dtypes.float8_e5m2,
}


@pytest.mark.parametrize("dtype", FP8)
def test_every_byte_decodes_as_elsewhere(dtype: str) -> None:
    bits = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(decode(bits, dtype), bits.view(TYPES[dtype]).astype(np.float64))


@pytest.mark.parametrize("dtype", FP8)
def test_values_round_to_the_nearest(dtype: str) -> None:
    random = np.random.default_rng()
    values = np.concatenate((random.standard_normal(4000) * 10.0 ** random.integers(-4, 3, 4000),))
    largest = {"f8e4m3fn": 448.0, "f8e4m3fnuz": 240.0, "f8e5m2": 57344.0}[dtype]
    values = np.clip(values, -largest, largest).astype(np.float32)
    wanted = values.astype(TYPES[dtype]).view(np.uint8)
    np.testing.assert_array_equal(decode(encode(values, dtype), dtype), decode(wanted, dtype))


@pytest.mark.parametrize("dtype", FP8)
def test_too_large_becomes_the_largest_and_nan_stays(dtype: str) -> None:
    got = decode(encode(np.array([1e9, -np.inf, np.nan, 0.0, -0.0]), dtype), dtype)
    assert got[0] == -got[1] == {**QUANT_MAX, "f8e4m3fnuz": 240.0}[dtype]
    assert np.isnan(got[2])
    assert (got[3], got[4]) == (0, 0)


def test_ties_go_to_even() -> None:
    np.testing.assert_array_equal(
        decode(encode(np.array([17.0, 19.0]), "f8e4m3fn"), "f8e4m3fn"), [16, 20]
    )
    values = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0])
    np.testing.assert_array_equal(unpack_e2m1(pack_e2m1(values)), [0, 1, 1, 2, 2, 4, 4, 6])


def test_the_even_element_is_in_the_low_bits() -> None:
    assert pack_e2m1(np.array([0.5, -6.0])).tolist() == [0xF1]
    assert unpack_e2m1(np.array([0xF1])).tolist() == [0.5, -6.0]


def test_e8m0() -> None:
    assert decode(np.array([0, 127, 128, 254]), "e8m0").tolist() == [2.0**-127, 1, 2, 2.0**127]
    assert np.isnan(decode(np.array([255]), "e8m0"))[0]
    assert encode_e8m0(np.array([2.0**-127, 1.0, 2.0**127])).tolist() == [0, 127, 254]


def test_fnuz_has_half_the_value_of_the_same_bits() -> None:
    bits = np.arange(256, dtype=np.uint8)
    wide = decode(bits, "f8e4m3fn")
    np.testing.assert_array_equal(decode(fn_to_fnuz(bits), "f8e4m3fnuz") * 2, wide)


def test_f32_scales() -> None:
    scaling = fp8_scaling("f8e4m3fn", "token")
    assert scaling.scale(np.array(448.0)) == 1
    assert scaling.scale(np.array(0.0)) == np.float32(1 / (512 * 448))
    assert fp8_scaling("f8e4m3fn", "token", power_of_two=True).scale(np.array(449.0)) == 2
    bounded = Scaling("f8e4m3fn", "token", maximum=448.0, upper_bound=0.5)
    assert bounded.scale(np.array(448.0)) == 0.5


@pytest.mark.parametrize(
    ("rounding", "largest", "scale"),
    [
        ("down", 1.0, 2.0**-2),
        ("down", 1.99, 2.0**-2),
        ("even", 1.74, 2.0**-2),
        ("even", 1.75, 2.0**-1),
        ("up", 1.5, 2.0**-2),
        ("up", 1.51, 2.0**-1),
        ("up", 0.0, 2.0**-127),
        ("even", 0.0, 2.0**-127),
    ],
)
def test_e8m0_scales(rounding: Rounding, largest: float, scale: float) -> None:
    scaling = mx_scaling("f4e2m1x2", rounding)
    assert scaling.scale(np.array(largest)) == scale


def test_up_and_even_differ_where_the_facts_say() -> None:
    """Exactly where the mantissa of the largest element is in (1.5, 1.75)."""
    largest = np.random.default_rng().uniform(1, 2, 2000).astype(np.float32)
    up, even = (mx_scaling("f4e2m1x2", mode).scale(largest) for mode in ("up", "even"))
    np.testing.assert_array_equal(up != even, (largest > 1.5) & (largest < 1.75))


@pytest.mark.parametrize("dtype", [*QUANT_MAX])
@pytest.mark.parametrize("granularity", ["tensor", "token", "group"])
def test_quantised_values_are_close(dtype: str, granularity: Granularity) -> None:
    x = np.random.default_rng().standard_normal((3, 5, 128))
    group = 64 if granularity == "group" else 0
    scaling = Scaling(dtype, granularity, group, maximum=QUANT_MAX[dtype])
    codes, scale = scaling.quantise(x)
    error = np.abs(codes * scaling.expanded(scale, x.shape) - x)
    step = {"f8e4m3fn": 1 / 16, "f8e4m3fnuz": 1 / 16, "f8e5m2": 1 / 8, "f4e2m1x2": 1 / 3}[dtype]
    assert np.max(error) <= step * np.max(np.abs(x))
    assert Scaling.of(scaling.attrs()) == scaling


def test_mx_groups() -> None:
    x = np.random.default_rng().standard_normal((4, 96)) * 100
    codes, scale = mx_scaling("f4e2m1x2").quantise(x)
    assert scale.shape == (4, 96 // MX_GROUP)
    assert set(np.abs(codes).ravel()) <= {0, 0.5, 1, 1.5, 2, 3, 4, 6}


def test_blocks_expand_and_are_cut_off() -> None:
    scale = np.arange(6.0).reshape(2, 3)
    wide = expand_blocks(scale, (2, 4), (3, 9))
    assert wide.shape == (3, 9)
    assert (wide[1, 3], wide[2, 4], wide[2, 8]) == (0, 4, 5)


def test_the_last_group_may_be_short() -> None:
    x = np.random.default_rng().standard_normal((3, 40))
    codes, scale = mx_scaling("f8e4m3fn").quantise(x)
    assert scale.shape == (3, 2)
    tail, tail_scale = mx_scaling("f8e4m3fn").quantise(np.pad(x, ((0, 0), (0, 24))))
    np.testing.assert_array_equal(scale, tail_scale)
    np.testing.assert_array_equal(codes, tail[:, :40])
