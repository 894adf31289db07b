"""The problems that row kernels are tested on, by the kernel's folder.

Sizes are those that vLLM and AITER test their kernels with, those of published models, and odd
ones.  `LARGE` ones take a GPU or patience.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

from row_problems import Operand, Problem, quantised

from fusec.formats import Rounding, ScaleLayout, Scaling, fp8_scaling, mx_scaling
from fusec.ir.types import Attr

FN, FNUZ = "f8e4m3fn", "f8e4m3fnuz"
DTYPES = ("f32", "bf16", "f16")
ROUNDINGS: tuple[Rounding, ...] = ("up", "even", "down")
NORM: dict[str, Attr] = {"eps": 1e-6, "weight_offset": 0}
GATED: dict[str, Attr] = {**NORM, "activation": "silu", "norm_before_gate": True}

Shape = tuple[int, ...]


def scalings(dtype: str, *groups: int) -> list[Scaling]:
    """Every way to quantise to an 8-bit float, with these groups, and to MX formats."""
    found = [
        fp8_scaling(dtype, "tensor"),
        fp8_scaling(dtype, "token"),
        fp8_scaling(dtype, "token", layout="column", power_of_two=True),
        replace(fp8_scaling(dtype, "token"), upper_bound=0.004),
    ]
    layouts: tuple[ScaleLayout, ...] = ("row", "column")
    for group, layout, power in itertools.product(groups, layouts, (False, True)):
        found.append(fp8_scaling(dtype, "group", group=group, layout=layout, power_of_two=power))
    return [*found, *mx_scalings(dtype)]


def mx_scalings(dtype: str) -> list[Scaling]:
    """The MX formats, with each rounding of scales."""
    return [mx_scaling(kind, way) for kind in ("f4e2m1x2", dtype) for way in ROUNDINGS]


def rms_norm(
    shape: Shape, dtype: str = "bf16", *, offset: int = 0, pitch: int = 0, weight: str = ""
) -> Problem:
    """A norm with a weight of another dtype, or with none where `weight` is `-`."""
    attrs: dict[str, Attr] = {**NORM, "weight_offset": offset, "has_weight": weight != "-"}
    weights = () if weight == "-" else (Operand(shape[-1:], weight or dtype),)
    return Problem("rms_norm", (Operand(shape, dtype, pitch), *weights), attrs)


def add_rms_norm(shape: Shape, dtype: str = "bf16", *, pitch: int = 0) -> Problem:
    """A sum and its norm."""
    operands = (Operand(shape, dtype), Operand(shape, dtype, pitch), Operand(shape[-1:], dtype))
    return Problem("add_rms_norm", operands, NORM)


def gated_rms_norm(shape: Shape, dtype: str = "bf16", *, pitch: int = 0, **attrs: Attr) -> Problem:
    """A norm and a gate."""
    operands = (Operand(shape, dtype), Operand(shape[-1:], "f32"), Operand(shape, dtype, pitch))
    return Problem("gated_rms_norm", operands, {**GATED, **attrs})


def dual_rms_norm(outer: Shape, sizes: tuple[int, int, int], dtype: str = "bf16") -> Problem:
    """Norms of two parts of one row, beside a third that is left alone."""
    first, second, rest = sizes
    pitch = first + second + rest
    operands = (
        Operand((*outer, first), dtype, pitch),
        Operand((first,), dtype),
        Operand((*outer, second), dtype, pitch, offset=first, within=0),
        Operand((second,), dtype),
    )
    return Problem("dual_rms_norm", operands, {"eps1": 1e-6, "eps2": 1e-5, "weight_offset": 0})


def dual_quantised(problem: Problem, scaling: Scaling, quantises: str) -> Problem:
    """Both norms quantised, or the first."""
    attrs = {**problem.attrs, **scaling.attrs(), "quantises": quantises}
    return replace(problem, op="dual_rms_norm_quant", attrs=attrs)


ACTIVATIONS: tuple[tuple[str, dict[str, Attr]], ...] = (
    ("silu_mul", {}),
    ("gelu_mul", {"approximate": "none"}),
    ("gelu_mul", {"approximate": "tanh"}),
    ("swiglu_oai", {"alpha": 1.702, "limit": 7.0}),
)


def activation(
    shape: Shape, dtype: str = "bf16", op: str = "silu_mul", attrs: dict[str, Attr] | None = None
) -> Problem:
    """A gated activation of the two halves of a row."""
    half = shape[-1]
    operands = (
        Operand(shape, dtype, 2 * half),
        Operand(shape, dtype, 2 * half, offset=half, within=0),
    )
    return Problem(op, operands, attrs or {}, scale=3.0)


def interleaved(shape: Shape, dtype: str = "bf16") -> Problem:
    """gpt-oss's activation of parts that take turns in a row."""
    pitch = 2 * shape[-1] + 32
    operands = (
        Operand(shape, dtype, pitch, step=2),
        Operand(shape, dtype, pitch, offset=1, step=2, within=0),
    )
    return Problem("swiglu_oai", operands, {"alpha": 1.702, "limit": 7.0}, scale=3.0)


def quantize(shape: Shape, scaling: Scaling, dtype: str = "bf16", **fields: str) -> Problem:
    """Rows brought into a format."""
    plain = Problem("quantize", (Operand(shape, dtype),), scale=4.0, **fields)  # type: ignore[arg-type]
    return replace(quantised(plain, scaling), op="quantize")


def dequantize(shape: Shape, scaling: Scaling, dtype: str = "bf16") -> Problem:
    """Rows brought back."""
    rows, length = shape
    groups = {"tensor": 0, "token": 1}.get(scaling.granularity, -(-length // max(scaling.group, 1)))
    scales = (groups, rows) if scaling.layout == "column" else (rows, groups)
    operands = (
        Operand((rows, length // 2 if scaling.packed else length), scaling.dtype),
        Operand(scales if groups else (1,), scaling.scale_dtype),
    )
    return Problem("dequantize", operands, {**scaling.attrs(), "dtype": dtype})


ROWS: tuple[Shape, ...] = ((3, 64), (2, 3, 127), (1, 2880), (5, 1), (9, 257), (2, 16384))


def _rms_norm() -> list[Problem]:
    found = [
        rms_norm(shape, dtype, offset=offset)
        for shape, dtype, offset in itertools.product(ROWS, DTYPES, (0, 1))
    ]
    found += [rms_norm((3, 160), weight="-"), rms_norm((2, 16640)), rms_norm((5, 96), pitch=101)]
    found += [rms_norm((7, 256), weight="f32", pitch=512), rms_norm((2, 17000), "f32")]
    found += [replace(rms_norm((6, 96), "f32"), special="zeros"), rms_norm((257, 256))]
    found += [replace(rms_norm((6, 96), "f32"), scale=scale) for scale in (1e-4, 1e3)]
    return found


def _rms_norm_quant(dtype: str) -> list[Problem]:
    found = [quantised(rms_norm((5, 512)), scaling) for scaling in scalings(dtype, 32, 64, 128)]
    found += [
        quantised(problem, scaling)
        for problem in (rms_norm((3, 17408)), rms_norm((2, 2880), "f16"), rms_norm((9, 96), "f32"))
        for scaling in (
            fp8_scaling(dtype, "token"),
            fp8_scaling(dtype, "tensor"),
            fp8_scaling(dtype, "group", group=32),
            mx_scaling("f4e2m1x2"),
        )
    ]
    token = fp8_scaling(dtype, "token")
    found.append(quantised(rms_norm((257, 256), "f16"), token))
    found += [
        quantised(rms_norm((4, 192), pitch=256), scaling, with_plain=True)
        for scaling in (token, fp8_scaling(dtype, "group", group=64), mx_scaling(dtype))
    ]
    found.append(quantised(rms_norm((3, 160), weight="-"), token))
    short = fp8_scaling(dtype, "group", group=128, layout="column")
    found += [quantised(rms_norm((3, 320)), short), quantised(rms_norm((3, 100)), short)]
    return [*found, quantised(replace(rms_norm((8, 128)), special="zeros"), token)]


def _add_rms_norm() -> list[Problem]:
    return [
        *(add_rms_norm(shape, dtype, pitch=shape[-1] + 7) for shape in ROWS for dtype in DTYPES),
        add_rms_norm((2, 16640)),
    ]


def _add_rms_norm_quant(dtype: str) -> list[Problem]:
    found = [quantised(add_rms_norm((5, 512)), scaling) for scaling in scalings(dtype, 128)]
    token = fp8_scaling(dtype, "token")
    found += [quantised(add_rms_norm((2, 16640)), token), quantised(add_rms_norm((9, 96)), token)]
    return [*found, quantised(add_rms_norm((4, 192), pitch=256), token, with_plain=True)]


def _gated_rms_norm() -> list[Problem]:
    shapes: tuple[Shape, ...] = ((8, 2, 128), (3, 64), (2, 3, 100), (1, 256), (70, 128), (2, 5000))
    return [
        gated_rms_norm(shape, pitch=shape[-1] + 12, norm_before_gate=before, activation=activation)
        for shape, before, activation in itertools.product(
            shapes, (True, False), ("silu", "sigmoid")
        )
    ]


def heads(tokens: int, count: int, size: int, *, flat: bool = False, **attrs: Attr) -> Problem:
    """The gated norm of the heads of some tokens, in one axis or two."""
    shape = (tokens * count, size) if flat else (tokens, count, size)
    problem = gated_rms_norm(shape)
    return replace(problem, attrs={**problem.attrs, **attrs})


def _gated_rms_norm_quant(dtype: str) -> list[Problem]:
    found = []
    for (tokens, count, size), scaling in itertools.product(
        ((8, 2, 128), (3, 4, 64), (5, 3, 32), (3, 1, 256)), scalings(dtype, 32, 64, 128)
    ):
        if scaling.granularity == "group" and (count * size) % scaling.group:
            continue
        problem = heads(tokens, count, size, flat=size == 64)
        found.append(quantised(problem, scaling, shape=(tokens, count * size)))
    gates = itertools.product(("silu", "sigmoid"), (True, False), (False, True))
    group = fp8_scaling(dtype, "group", group=128)
    for activation_, before, plain in gates:
        problem = heads(5, 4, 128, activation=activation_, norm_before_gate=before)
        found.append(quantised(problem, group, shape=(5, 512), with_plain=plain))
    found.append(quantised(heads(6, 1, 64), fp8_scaling(dtype, "token")))
    token = fp8_scaling(dtype, "token")
    return [*found, quantised(heads(3, 12, 128), token, shape=(3, 12 * 128))]


def _dual_rms_norm() -> list[Problem]:
    found = [
        dual_rms_norm(outer, sizes, dtype)
        for outer, sizes, dtype in itertools.product(
            ((2, 5), (1,), (9,)), ((1536, 512, 64), (48, 32, 16), (100, 7, 3)), DTYPES
        )
    ]
    return found


def _dual_rms_norm_quant(dtype: str) -> list[Problem]:
    chosen = [
        fp8_scaling(dtype, "token"),
        fp8_scaling(dtype, "group", group=128),
        fp8_scaling(dtype, "group", group=128, layout="column", power_of_two=True),
        mx_scaling("f4e2m1x2", "up"),
        mx_scaling(dtype),
    ]
    return [
        dual_quantised(dual_rms_norm(outer, sizes), scaling, quantises)
        for outer, sizes, scaling, quantises in itertools.product(
            ((5,), (2, 3)), ((1536, 512, 64), (256, 128, 64)), chosen, ("first", "both")
        )
    ]


def _silu_mul() -> list[Problem]:
    shapes: tuple[Shape, ...] = ((3, 160), (2, 2, 2880), (1, 1), (9, 100), (2, 5120))
    found = [
        activation(shape, dtype, op, attrs)
        for shape, dtype, (op, attrs) in itertools.product(shapes, DTYPES, ACTIVATIONS)
    ]
    found += [interleaved(shape, dtype) for shape in ((3, 160), (2, 2880)) for dtype in DTYPES]
    return [*found, replace(activation((4, 96), "f32"), scale=100.0)]


def block_matrix(dtype: str, tokens: tuple[int, ...], sizes: tuple[int, ...]) -> list[Problem]:
    """The sizes of vLLM's tests of SiLU with a scale for each block."""
    layouts: tuple[ScaleLayout, ...] = ("row", "column")
    return [
        quantised(activation((rows, length)), fp8_scaling(dtype, "group", group=group, layout=way))
        for rows, length, group, way in itertools.product(tokens, sizes, (64, 128), layouts)
        if length % group == 0
    ]


def _silu_mul_quant(dtype: str) -> list[Problem]:
    found = block_matrix(dtype, (1, 16), (64, 128, 576)) + block_matrix(dtype, (3,), (5120,))
    found += [quantised(activation((5, 384)), scaling) for scaling in scalings(dtype, 32, 128)]
    found += [
        quantised(activation((3, 2880), "f16", op, attrs), scaling)
        for op, attrs in ACTIVATIONS
        for scaling in (fp8_scaling(dtype, "token"), mx_scaling("f4e2m1x2"), mx_scaling(dtype))
    ]
    found += [
        quantised(interleaved((3, 2880)), scaling)
        for scaling in (fp8_scaling(dtype, "token"), mx_scaling("f4e2m1x2"), mx_scaling(dtype))
    ]
    bounded = replace(fp8_scaling(dtype, "group", group=128), upper_bound=0.01)
    found += [quantised(activation((2, 17000)), fp8_scaling(dtype, "token"))]
    return [*found, quantised(activation((4, 256)), bounded, with_plain=True)]


def _quantize(dtype: str) -> list[Problem]:
    found = [
        quantize(shape, scaling, kind)
        for shape, kind in (((5, 384), "bf16"), ((2, 2, 2048), "f16"), ((3, 96), "f32"))
        for scaling in scalings(dtype, 32, 64, 128)
    ]
    found += [quantize((2, 17000), fp8_scaling(dtype, "token"))]
    found += [
        quantize((8, 256), scaling, "f32", special="extreme") for scaling in scalings(dtype, 128)
    ]
    return found


def _dequantize(dtype: str) -> list[Problem]:
    return [
        dequantize(shape, scaling, kind)
        for shape, kind in (((5, 384), "bf16"), ((3, 2880), "f16"), ((9, 64), "f32"))
        for scaling in scalings(dtype, 32, 128)
    ]


def tables(dtype: str) -> dict[str, list[Problem]]:
    """Problems for a target that takes `dtype`, by operation."""
    return {
        "rms_norm": _rms_norm(),
        "rms_norm_quant": _rms_norm_quant(dtype),
        "add_rms_norm": _add_rms_norm(),
        "add_rms_norm_quant": _add_rms_norm_quant(dtype),
        "gated_rms_norm": _gated_rms_norm(),
        "gated_rms_norm_quant": _gated_rms_norm_quant(dtype),
        "dual_rms_norm": _dual_rms_norm(),
        "dual_rms_norm_quant": _dual_rms_norm_quant(dtype),
        "silu_mul": _silu_mul(),
        "silu_mul_quant": _silu_mul_quant(dtype),
        "quantize": _quantize(dtype),
        "dequantize": _dequantize(dtype),
    }


def large(dtype: str) -> list[Problem]:
    """Problems of many rows, each of which also runs a work group's last rows."""
    found = block_matrix(dtype, (1, 16, 128, 512), (1024, 5120))
    found += block_matrix(dtype, (128, 512), (64, 128, 576))
    token, group = fp8_scaling(dtype, "token"), fp8_scaling(dtype, "group", group=128)
    found.append(quantised(rms_norm((257, 256)), token))
    for scaling in (token, group, mx_scaling("f4e2m1x2")):
        found += [quantised(add_rms_norm((300, 7168)), scaling)]
        found += [dual_quantised(dual_rms_norm((300,), (1536, 512, 64)), scaling, "both")]
        found += [quantised(heads(300, 32, 128), scaling, shape=(300, 32 * 128))]
        found += [quantize((300, 7168), scaling)]
    return found
