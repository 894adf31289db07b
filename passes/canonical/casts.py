"""Casts: those that change nothing go, and so do roundings between two wider types."""

from __future__ import annotations

from fusec.dtypes import DTYPES
from fusec.ir import Node
from fusec.passes.canonical.rewriter import Rewriter, Rule

_HALF_PRECISION = ("f16", "bf16")
_FULL_PRECISION = ("f32", "f64")
_VIEWS = ("reshape", "transpose", "slice", "expand")
_FLOATS_OF_SMALL_INTEGERS: dict[str, tuple[str, ...]] = {
    "bool": ("f16", "bf16", "f32", "f64"),
    "u8": ("f16", "bf16", "f32", "f64"),
    "i8": ("f16", "bf16", "f32", "f64"),
    "i16": ("f32", "f64"),
    "i32": ("f64",),
}
_WIDER_FLOATS: dict[str, tuple[str, ...]] = {
    "f8e4m3fn": ("f16", "bf16", "f32", "f64"),
    "f8e4m3fnuz": ("f16", "bf16", "f32", "f64"),
    "f8e5m2": ("f16", "bf16", "f32", "f64"),
    "f16": ("f32", "f64"),
    "bf16": ("f32", "f64"),
    "f32": ("f64",),
}


def holds_exactly(wide: str, narrow: str) -> bool:
    """Whether every value of dtype `narrow` is one of dtype `wide`."""
    if wide == narrow:
        return True
    if wide in _WIDER_FLOATS.get(narrow, ()) or wide in _FLOATS_OF_SMALL_INTEGERS.get(narrow, ()):
        return True
    inner, outer = DTYPES[narrow], DTYPES[wide]
    if inner.kind == "bool":
        return outer.is_integer
    if not (inner.is_integer and outer.is_integer):
        return False
    return outer.bits > inner.bits and (outer.kind == "int" or inner.kind == "uint")


def cast(build: Rewriter, node: Node) -> str | None:
    """The no-op goes; a cast of a cast that lost nothing is one cast, also across a view.

    f32 > bf16 > f32 is dropped: the rounding between was an accident of the model's dtype, and the
    result without it is nearer to what the model means.  Roundings to formats of 8 bits and to
    integers are meant, and stay.
    """
    (x,) = node.inputs
    wanted = build.type(node.output).dtype
    if build.type(x).dtype == wanted:
        return x
    view = build.producer(x, *_VIEWS)
    inner = build.producer(x if view is None else view.inputs[0], "cast")
    if inner is None:
        return None
    (source,) = inner.inputs
    begin, between = build.type(source).dtype, build.type(x).dtype
    rounds = between in _HALF_PRECISION and begin in _FULL_PRECISION
    if not holds_exactly(between, begin) and not (rounds and begin == wanted):
        return None
    value = source if begin == wanted else build.value("cast", [source], {"dtype": wanted})
    return value if view is None else build.value(view.op, [value], view.attrs)


RULES: dict[str, Rule] = {"cast": cast}
"""Rules by the operation they look at."""
