"""ATen operations that make tensors out of sizes and numbers."""

from __future__ import annotations

import numpy as np

from fusec.frontend.aten_ops.base import Builder, Complex, Number, SymFloat, Val, aten, static
from fusec.symbolic import Dim, Expr


def _filled(build: Builder, value: Number | SymFloat) -> Val | Complex:
    kind = build.result()
    if isinstance(value, SymFloat):
        return build.expand(build.cast(value.value, kind.dtype), kind.shape)
    result = build.full(kind.shape, value, kind.dtype)
    if build.target is not None and build.target.dtype != kind.dtype:
        return Complex(result, build.full(kind.shape, 0, kind.dtype))
    return result


@aten("full", "full_like", "new_full", both=True)
def _full(build: Builder, first: object, *rest: object, **options: object) -> Val | Complex:
    """`full(size, value)`, `full_like(x, value)`, `new_full(x, size, value)`."""
    value = rest[-1] if rest else options["fill_value"]
    assert isinstance(value, bool | int | float | Expr | SymFloat | Val)
    if isinstance(value, Val):
        kind = build.result()
        return build.expand(build.cast(value, kind.dtype), kind.shape)
    return _filled(build, value)


@aten("zeros", "zeros_like", "new_zeros", "empty.memory_format", "empty_like", "new_empty",
      "empty_strided", "new_empty_strided", "empty_permuted", both=True)  # fmt: skip
def _zeros(build: Builder, *how: object, **options: object) -> Val | Complex:
    return _filled(build, 0)


@aten("ones", "ones_like", "new_ones", both=True)
def _ones(build: Builder, *how: object, **options: object) -> Val | Complex:
    return _filled(build, 1)


@aten("scalar_tensor")
def _scalar_tensor(build: Builder, value: Number | SymFloat, **options: object) -> Val:
    if isinstance(value, SymFloat):
        return build.cast(value.value, build.result().dtype)
    return build.scalar(value, build.result().dtype)


def arange_of(build: Builder, start: Number | SymFloat, step: Number | SymFloat) -> Val:
    """`start`, `start + step`, ... as many as the export recorded."""
    kind = build.result()
    (size,) = kind.shape
    if not kind.element.is_float:  # PyTorch makes the bounds whole first
        start = int(start) if isinstance(start, float) else start
        step = int(step) if isinstance(step, float) else step
    exact = isinstance(start, int | Expr) and isinstance(step, int)
    if isinstance(start, float) and start.is_integer() and isinstance(step, int | float):
        if float(step).is_integer():
            start, step, exact = int(start), int(step), True
    if exact:
        assert isinstance(start, int | Expr)
        assert isinstance(step, int | float)
        if kind.element.is_integer:
            return build.iota(size, kind.dtype, start, int(step))
        return build.cast(build.iota(size, "i64", start, int(step)), kind.dtype)
    wide = "f64" if kind.dtype == "f64" else "f32"
    if not kind.element.is_float:
        wide = "f64"
    places = build.cast(build.iota(size), wide)
    scaled = build.elementwise("mul", places, build.operand(step, wide))
    return build.cast(build.elementwise("add", scaled, build.operand(start, wide)), kind.dtype)


@aten("arange")
def _arange(build: Builder, end: Number | SymFloat, **options: object) -> Val:
    return arange_of(build, 0, 1)


@aten("arange.start")
def _arange_start(
    build: Builder, start: Number | SymFloat, end: Number | SymFloat, **options: object
) -> Val:
    return arange_of(build, start, 1)


@aten("arange.start_step")
def _arange_step(
    build: Builder, start: Number | SymFloat, end: Number | SymFloat,
    step: Number | SymFloat = 1, **options: object,
) -> Val:  # fmt: skip
    return arange_of(build, start, step)


@aten("linspace")
def _linspace(build: Builder, start: float, end: float, steps: Dim, **options: object) -> Val:
    if isinstance(start, complex) or isinstance(end, complex):
        raise build.unsupported("`linspace` of complex numbers", "make its real and imaginary part")
    kind = build.result()
    count = static(kind.shape)
    if count is not None and isinstance(start, int | float) and isinstance(end, int | float):
        values = np.linspace(start, end, count[0])
        if kind.element.is_float:
            narrow = values.astype(np.float64 if kind.dtype == "f64" else np.float32)
            wide = "f64" if kind.dtype == "f64" else "f32"
            return build.cast(build.array("linspace", narrow, wide), kind.dtype)
        return build.array("linspace", values.astype(np.int64), kind.dtype)
    places = build.cast(build.iota(steps), "f64")
    last = build.cast(build.scalar(steps - 1, "i64"), "f64")
    values_ = places * (end - start) / last + start
    return build.cast(values_, kind.dtype)


@aten("eye", "eye.m")
def _eye(build: Builder, *sizes: Dim, **options: object) -> Val:
    kind = build.result()
    row = build.unsqueeze(build.iota(kind.shape[0]), 1)
    same = build.emit("eq", row, build.iota(kind.shape[1]))
    return build.cast(same, kind.dtype)


@aten("tril_indices", "triu_indices")
def _triangle_indices(
    build: Builder, row: Dim, col: Dim, offset: int = 0, **options: object
) -> Val:
    sizes = static((row, col))
    if sizes is None:
        raise build.unsupported(f"`{build.origin.op}` of sizes that are not fixed")
    find = np.tril_indices if "tril" in build.origin.op else np.triu_indices
    places = np.stack(find(sizes[0], offset, sizes[1])).astype(np.int64)
    return build.cast(build.array("triangle", places, "i64"), build.result().dtype)


@aten("one_hot")
def _one_hot(build: Builder, x: Val, num_classes: int = -1) -> Val:
    classes = build.result().shape[-1]
    wide = build.unsqueeze(x, x.rank)
    return build.cast(build.emit("eq", wide, build.iota(classes, x.dtype)), "i64")


@aten("_make_dep_token", "_functional_assert_async.msg", "_functional_assert_scalar",
      "_functional_sym_constrain_range", "_functional_sym_constrain_range_for_size")  # fmt: skip
def _token(build: Builder, *args: object, **options: object) -> Val:
    """A check in functional form hands on a token, which only other checks read."""
    kind = build.result()
    return build.full(kind.shape, 0, kind.dtype)


@aten("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like",
      "bernoulli", "bernoulli.p", "multinomial", "normal_functional", "normal", "uniform",
      "exponential", "cauchy", "geometric", "log_normal", "randint.low",
      "randint_like.low_dtype")  # fmt: skip
def _random(build: Builder, *args: object, **options: object) -> Val:
    raise build.unsupported(
        f"the model draws random numbers: `{build.origin.op}`",
        "call `model.eval()` before the export, or give the numbers as an input",
    )
