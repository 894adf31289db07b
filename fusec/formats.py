"""Narrow number formats: what their bits mean, and how values and scales are rounded to them.

Sources: Micikevicius et al., "FP8 Formats for Deep Learning" (2022), for e4m3fn and e5m2; ONNX,
"Float stored in 8 bits", for e4m3fnuz; OCP "Microscaling Formats (MX) Specification" 1.0 for e2m1,
e8m0 and blocks of 32.  Scale rules: `Scaling.scale`.

Standard library and numpy only: the runtime may use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fusec.diagnostics import InternalError

Floats: TypeAlias = NDArray[np.float64]
Bytes: TypeAlias = NDArray[np.uint8]

Granularity = Literal["tensor", "token", "group"]
Rounding = Literal["none", "up", "even", "down"]
ScaleLayout = Literal["row", "column"]

MX_GROUP = 32
"""Elements that share a scale in the MX formats."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """A sign bit, `exponent` bits with a bias and `mantissa` bits.

    Attributes:
        exponent: bits.
        mantissa: bits.
        bias: of the exponent.
        largest: code of the largest finite value.
    """

    exponent: int
    mantissa: int
    bias: int
    largest: int

    def magnitudes(self) -> Floats:
        """The values of the codes 0 to `largest`, in order."""
        codes = np.arange(self.largest + 1)
        fraction = codes & ((1 << self.mantissa) - 1)
        exponent = codes >> self.mantissa
        normal = (1 + fraction / 2**self.mantissa) * 2.0 ** (exponent - self.bias)
        subnormal = fraction / 2**self.mantissa * 2.0 ** (1 - self.bias)
        return np.asarray(np.where(exponent > 0, normal, subnormal))


_LAYOUTS = {
    "f8e4m3fn": _Layout(4, 3, 7, 0x7E),
    "f8e4m3fnuz": _Layout(4, 3, 8, 0x7F),
    "f8e5m2": _Layout(5, 2, 15, 0x7B),
    "f4e2m1x2": _Layout(2, 1, 1, 0x7),
}

FP8 = ("f8e4m3fn", "f8e4m3fnuz", "f8e5m2")
"""The 8-bit floats."""

QUANT_MAX: Mapping[str, float] = {
    "f8e4m3fn": 448.0,
    "f8e4m3fnuz": 224.0,
    "f8e5m2": 57344.0,
    "f4e2m1x2": 6.0,
}
"""What fusec's own kernels scale the largest element of a group to.

For e4m3fnuz that is not the largest value, 240: vLLM found that it costs accuracy in dynamic
quantisation.  Kernels of libraries may have another; so it is an attribute of every operation."""


@cache
def magnitudes(dtype: str) -> Floats:
    """The finite values of `dtype` that are not negative, in increasing order, by code."""
    values = _LAYOUTS[dtype].magnitudes()
    values.setflags(write=False)
    return values


def decode(bits: NDArray[Any], dtype: str) -> Floats:
    """The values of 8-bit floats or e8m0 scales from their bits, exactly."""
    codes = np.asarray(bits, dtype=np.uint8)
    if dtype == "e8m0":
        return np.where(codes == 0xFF, np.nan, 2.0 ** (codes.astype(np.float64) - 127))
    return _table(dtype)[codes]


@cache
def _table(dtype: str) -> Floats:
    """The value of every byte."""
    table = np.full(256, np.nan)
    values = magnitudes(dtype)
    table[: len(values)] = values
    table[128 : 128 + len(values)] = -values
    if dtype == "f8e4m3fnuz":
        table[128] = np.nan
    if dtype == "f8e5m2":
        table[0x7C], table[0xFC] = np.inf, -np.inf
    return table


def encode(values: NDArray[Any], dtype: str) -> Bytes:
    """The bits of the nearest 8-bit float, ties to even; what is too large becomes the largest."""
    values = np.asarray(values, dtype=np.float64)
    codes = _nearest_codes(np.abs(values), dtype).astype(np.uint8)
    negative = np.signbit(values)
    if dtype == "f8e4m3fnuz":
        negative &= codes != 0  # it has no negative zero: that code is NaN
    codes |= negative.astype(np.uint8) << 7
    nan = 0x80 if dtype == "f8e4m3fnuz" else 0x7F
    return np.where(np.isnan(values), np.uint8(nan), codes)


def _nearest_codes(magnitude: Floats, dtype: str) -> NDArray[np.int64]:
    """Codes of magnitudes: the exponent's step is 1, so that rint rounds to codes, ties to even."""
    layout = _LAYOUTS[dtype]
    clamped = np.fmin(magnitude, magnitudes(dtype)[-1])
    clamped = np.where(np.isnan(magnitude), 0.0, clamped)
    exponent = np.maximum((clamped.view(np.int64) >> 52) - 1023, 1 - layout.bias)
    per_step = ((layout.mantissa - exponent + 1023) << 52).view(np.float64)
    steps = np.rint(clamped * per_step).astype(np.int64)
    return np.asarray(((exponent + (layout.bias - 1)) << layout.mantissa) + steps)


def rounded(values: NDArray[Any], dtype: str) -> Floats:
    """`values` as the nearest numbers of `dtype`, an 8-bit float."""
    return decode(encode(values, dtype), dtype)


def pack_e2m1(values: NDArray[Any]) -> Bytes:
    """Two 4-bit floats a byte, the even element in the low bits; ties to even, saturating."""
    values = np.asarray(values, dtype=np.float64)
    codes = _nearest_codes(np.abs(values), "f4e2m1x2").astype(np.uint8)
    codes |= np.signbit(values).astype(np.uint8) << 3
    return np.asarray(codes[..., ::2] | (codes[..., 1::2] << 4), dtype=np.uint8)


def unpack_e2m1(packed: NDArray[Any]) -> Floats:
    """The 4-bit floats of `packed`, twice as many along the last axis."""
    packed = np.asarray(packed).astype(np.uint8)
    codes = np.stack((packed & 15, packed >> 4), axis=-1).reshape(*packed.shape[:-1], -1)
    held = magnitudes("f4e2m1x2")
    return np.asarray(np.where(codes & 8, -held[codes & 7], held[codes & 7]))


def encode_e8m0(scales: NDArray[Any]) -> Bytes:
    """The bytes of powers of two."""
    exponents = np.log2(np.asarray(scales, dtype=np.float64))
    return np.asarray(np.clip(np.rint(exponents) + 127, 0, 254), dtype=np.uint8)


def expand_blocks(scale: NDArray[Any], block: tuple[int, int], shape: tuple[int, ...]) -> Floats:
    """`scale`, one number for each block of the last two axes, repeated to `shape`."""
    rows, columns = block
    wide = np.repeat(np.repeat(scale, rows, axis=-2), columns, axis=-1)
    return np.asarray(wide[..., : shape[-2], : shape[-1]], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Scaling:
    """How rows are brought into a narrow format: attributes of every operation that quantises.

    Attributes:
        dtype: of the codes: an 8-bit float, or `f4e2m1x2` with two elements a byte.
        granularity: one scale for the `tensor`, for each row (`token`), or for each `group`
            elements of a row.
        group: elements that share a scale; 0 unless `granularity` is `group`.
        scale_dtype: `f32`, or `e8m0` for the MX formats.
        rounding: how a scale becomes a power of two.  `none`; for f32 scales `up`; for e8m0 `up`
            (the least that keeps the largest element in range), `even` (the largest element rounded
            to the format's mantissa first, as AMD Quark) or `down` (MX specification 1.0, 6.3).
        maximum: what the largest element of a group is scaled to.
        layout: `row`: scales [..., ceil(K/group)]; `column`: [ceil(K/group), rows], the scales of a
            group together.
        upper_bound: the largest scale, or `None`.
        least: the least f32 scale, if it is not that of fusec's own kernels.
    """

    dtype: str
    granularity: Granularity
    group: int = 0
    scale_dtype: Literal["f32", "e8m0"] = "f32"
    rounding: Rounding = "none"
    maximum: float = 0.0
    layout: ScaleLayout = "row"
    upper_bound: float | None = None
    least: float | None = None

    @property
    def packed(self) -> bool:
        """Whether a byte holds two elements."""
        return self.dtype == "f4e2m1x2"

    @property
    def floor(self) -> float:
        """The least f32 scale: `least`, or 1/(512 * maximum) as in vLLM's kernels for fp8."""
        return 1 / (512 * self.maximum) if self.least is None else self.least

    def attrs(self) -> dict[str, Any]:
        """The attributes of a node that quantises like this."""
        found: dict[str, Any] = {
            "quant_dtype": self.dtype,
            "granularity": self.granularity,
            "group": self.group,
            "scale_dtype": self.scale_dtype,
            "scale_rounding": self.rounding,
            "quant_max": self.maximum,
            "scale_layout": self.layout,
        }
        if self.upper_bound is not None:
            found["scale_ub"] = self.upper_bound
        if self.least is not None:
            found["scale_floor"] = self.least
        return found

    @staticmethod
    def of(attrs: Mapping[str, Any]) -> Scaling:
        """The scaling that the attributes of a node describe."""
        bound, least = attrs.get("scale_ub"), attrs.get("scale_floor")
        return Scaling(
            attrs["quant_dtype"],
            attrs["granularity"],
            int(attrs["group"]),
            attrs["scale_dtype"],
            attrs["scale_rounding"],
            float(attrs["quant_max"]),
            attrs["scale_layout"],
            None if bound is None else float(bound),
            None if least is None else float(least),
        )

    def scale(self, largest: NDArray[Any]) -> Floats:
        """The scale for a group whose largest magnitude is `largest`.

        For f32: largest/maximum, at most `upper_bound`, at least `floor`, then rounded up to a
        power of two if `rounding` says so.  For e8m0: a power of two between 2^-127 and 2^127, as
        `rounding` says; 2^-127 for a group of zeros.
        """
        top = np.asarray(largest, dtype=np.float32)
        if self.scale_dtype == "e8m0":
            return np.asarray(2.0 ** self._exponent(top))
        scale = (top / np.float32(self.maximum)).astype(np.float32)
        if self.upper_bound is not None:
            scale = np.minimum(scale, np.float32(self.upper_bound))
        scale = np.maximum(scale, np.float32(self.floor))
        wide = scale.astype(np.float64)
        if self.rounding == "none":
            return wide
        if self.rounding != "up":
            raise InternalError(f"an f32 scale is not rounded `{self.rounding}`")
        return np.asarray(2.0 ** np.ceil(np.log2(wide)))

    def _exponent(self, top: NDArray[np.float32]) -> Floats:
        layout = _LAYOUTS[self.dtype]
        highest = (layout.largest >> layout.mantissa) - layout.bias
        if self.rounding == "up":
            with np.errstate(divide="ignore"):
                exponent = np.ceil(np.log2(top.astype(np.float64) / self.maximum))
        else:
            bits = top.view(np.uint32)
            if self.rounding == "even":
                bits = bits + np.uint32(1 << (22 - layout.mantissa))
            exponent = ((bits >> 23) & 0xFF).astype(np.float64) - 127 - highest
        return np.clip(exponent, -127, 127)

    def quantise(self, x: NDArray[Any], scale: Floats | None = None) -> tuple[Floats, Floats]:
        """Bring rows [..., K] into this format.

        Args:
            x: values; the last group of a row may be shorter than the others.
            scale: the scale of the whole tensor, for static quantisation.

        Returns:
            The values of the codes (not yet times the scale), [..., K]; and the scales: [1],
            [..., 1] or [..., ceil(K/group)], in row layout whatever `layout` says.
        """
        x = np.asarray(x, dtype=np.float64)
        if self.granularity == "tensor":
            scale = self.scale(np.max(np.abs(x), initial=0)).reshape(1) if scale is None else scale
            wide = np.broadcast_to(scale, x.shape)
        elif self.granularity == "token":
            scale = self.scale(np.max(np.abs(x), axis=-1, keepdims=True, initial=0))
            wide = np.broadcast_to(scale, x.shape)
        else:
            missing = -x.shape[-1] % self.group
            whole = np.pad(np.abs(x), [(0, 0)] * (x.ndim - 1) + [(0, missing)])
            scale = self.scale(np.max(whole.reshape(*x.shape[:-1], -1, self.group), axis=-1))
            wide = self.expanded(scale, x.shape)
        with np.errstate(invalid="ignore"):
            scaled = np.clip(x / wide, -self.maximum, self.maximum)
        if self.packed:
            return unpack_e2m1(pack_e2m1(scaled)), scale
        return rounded(scaled, self.dtype), scale

    def expanded(self, scale: NDArray[Any], shape: tuple[int, ...]) -> Floats:
        """Scales in row layout repeated to the elements [..., K] of `shape`."""
        if self.granularity == "group":
            return np.asarray(np.repeat(scale, self.group, axis=-1)[..., : shape[-1]])
        return np.broadcast_to(scale, shape)


def fp8_scaling(
    dtype: str,
    granularity: Granularity,
    *,
    group: int = 0,
    power_of_two: bool = False,
    layout: ScaleLayout = "row",
) -> Scaling:
    """The scaling that fusec's own kernels use for an 8-bit float."""
    return Scaling(
        dtype,
        granularity,
        group,
        rounding="up" if power_of_two else "none",
        maximum=QUANT_MAX[dtype],
        layout=layout,
    )


def mx_scaling(dtype: str, rounding: Rounding = "even") -> Scaling:
    """The scaling of an MX format: e8m0 scales for groups of 32."""
    return Scaling(
        dtype,
        "group",
        MX_GROUP,
        scale_dtype="e8m0",
        rounding=rounding,
        maximum=float(magnitudes(dtype)[-1]),
    )


def fn_to_fnuz(bits: Bytes) -> Bytes:
    """Bits of e4m3fn as e4m3fnuz codes of half the value: the caller doubles the scale.

    One bit pattern means half as much in e4m3fnuz; only minus zero and NaN differ (vLLM's
    `normalize_e4m3fn_to_e4m3fnuz`).
    """
    codes = np.where(bits == 0x80, np.uint8(0), bits)
    return np.where((bits & 0x7F) == 0x7F, np.uint8(0x80), codes).astype(np.uint8)
