"""Problems for rotations of rows and for the norms that have no table of their own.

The interpreter (`interpreted_rope_cases.py`) and a GPU (`tests/device`) solve the same ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from row_problems import Operand, Problem

from fusec.ir.types import Attr

DTYPES = ("f32", "bf16", "f16")


@dataclass(frozen=True)
class View(Operand):
    """An operand with strides of its own.

    Attributes:
        steps: elements between neighbours along each axis.
    """

    steps: tuple[int, ...] = ()

    @property
    def strides(self) -> tuple[int, ...]:
        """Elements between neighbours along each axis."""
        return self.steps

    @property
    def extent(self) -> int:
        """Elements of the buffer that it needs."""
        pairs = zip(self.shape, self.steps, strict=True)
        return self.offset + sum((size - 1) * step for size, step in pairs) + 1


def heads_of_rows(
    sizes: tuple[int, int, int, int], dtype: str, *, begin: int = 0, width: int = 0, **at: int
) -> View:
    """[B, H, S, D] in rows [B, S, width], from column `begin` on."""
    batch, heads, length, head = sizes
    width = width or heads * head
    steps = (length * width, head, width, 1)
    return View((batch, heads, length, head), dtype, offset=begin, steps=steps, **at)


def style(name: str, rotary: int, *, deinterleave: bool = False) -> dict[str, Attr]:
    """Attributes of a rotation."""
    return {"style": name, "rotary_dim": rotary, "deinterleave": deinterleave}


STYLES = (("half", False), ("interleaved", False), ("interleaved", True))
MLA = style("interleaved", 64, deinterleave=True)


def rope(x: Operand, attrs: dict[str, Attr], *tables: Operand) -> Problem:
    """A rotation by tables for cosines and sines, or by two alike."""
    return Problem("rope", (x, *(tables if len(tables) == 2 else 2 * tables)), attrs)


def ropes() -> Iterator[Problem]:
    """Each style, with tables as wide as the rotated part and half as wide, whole rows and parts.

    Sizes are odd; q is a part of merged rows.
    """
    for (name, order), copies, rotary in itertools.product(STYLES, (1, 2), (24, 10)):
        x = heads_of_rows((2, 3, 5, 24), "bf16", begin=8, width=136)
        table = Operand((1, 1, 5, rotary // 2 * copies))
        yield rope(x, style(name, rotary, deinterleave=order), table)
    for dtype, table_dtype in zip(DTYPES, ("f16", "f32", "bf16"), strict=True):
        table = Operand((1, 1, 3, 128), table_dtype)
        yield rope(Operand((1, 20, 3, 128), dtype), style("half", 128), table)
    apart = View((1, 1, 11, 6), "f32", offset=3, steps=(70, 70, 7, 1))
    dense = Operand((1, 1, 11, 6), "f32")
    yield rope(Operand((2, 2, 11, 6)), style("half", 6), apart, dense)
    yield rope(Operand((7, 5, 16)), style("half", 16), Operand((7, 1, 16)))
    yield rope(Operand((13, 16)), style("interleaved", 16), Operand((13, 8)))
    yield rope(Operand((2, 3, 5, 8)), style("half", 8), Operand((2, 3, 5, 8)))
    yield rope(Operand((9, 33)), style("half", 32), Operand((32,)))
    single = heads_of_rows((3, 1, 5, 64), "f16", begin=7, width=71)
    yield rope(single, MLA, Operand((3, 1, 5, 64)))


def qk_norm_rope(
    q: Operand,
    k: Operand,
    tables: Operand,
    attrs: dict[str, Attr],
    *weights: Operand,
    norm: bool = True,
    offset: int = 0,
) -> Problem:
    """A rotation of q and k, after norms that have weights or none."""
    norms: dict[str, Attr] = {"has_norm": norm, "has_weight": bool(weights), "eps": 1e-5}
    all_attrs = {**attrs, **norms, "weight_offset": offset}
    return Problem("qk_norm_rope", (q, k, *weights, tables, tables), all_attrs)


def query_key_rotations() -> Iterator[Problem]:
    """Merged rows of q, k and v: each style, whole rows and parts, with every kind of norm."""
    for (name, order), (rotary, offset) in itertools.product(STYLES, ((24, 0), (10, 1))):
        q = heads_of_rows((2, 5, 3, 24), "bf16", width=200)
        k = heads_of_rows((2, 2, 3, 24), "bf16", begin=120, width=200, within=0)
        table = Operand((1, 3, rotary), "f32")
        attrs = style(name, rotary, deinterleave=order)
        yield qk_norm_rope(q, k, table, attrs, Operand((24,)), Operand((24,)), offset=offset)
    for dtype, norm in itertools.product(DTYPES, (False, True)):
        many, few = Operand((1, 20, 3, 128), dtype), Operand((1, 4, 3, 128), dtype)
        yield qk_norm_rope(many, few, Operand((1, 1, 3, 64)), style("half", 128), norm=norm)
    latent = View((2, 7, 3, 64), "bf16", offset=128, steps=(3 * 7 * 192, 192, 7 * 192, 1))
    single = heads_of_rows((2, 1, 3, 64), "bf16", begin=512, width=576)
    yield qk_norm_rope(latent, single, Operand((1, 3, 32)), MLA, norm=False)
    same = Operand((3, 6, 16))
    yield qk_norm_rope(same, same, Operand((3, 1, 16)), style("half", 16), norm=False)
    mixed = (Operand((16,), "f32"), Operand((16,), "f16"))
    yield qk_norm_rope(same, same, Operand((3, 6, 16)), style("half", 16), *mixed)


def norms() -> Iterator[Problem]:
    """Layer norms and Euclidean norms of rows of odd and large sizes."""
    for weight, bias in itertools.product((False, True), (False, True)):
        yield layer_norm((2, 3, 37), "bf16", weight=weight, bias=bias, pitch=40)
    yield layer_norm((7, 100), "f16")
    yield layer_norm((5,), "f32")
    yield layer_norm((3, 768), "bf16", vectors="f32")
    yield layer_norm((2, 17001), "bf16", pitch=17008)
    yield layer_norm((2, 40000), "f32", weight=False, bias=False)
    yield replace(layer_norm((5, 96), "f32"), special="extreme")
    for mode in ("add", "max"):
        attrs: dict[str, Attr] = {"eps": 1e-6, "mode": mode}
        for dtype in DTYPES:
            yield Problem("l2_norm", (Operand((3, 5, 24), dtype, 40, offset=8),), attrs)
        yield Problem("l2_norm", (Operand((8, 128)),), attrs, special="extreme")
    yield Problem("l2_norm", (Operand((2, 17001)),), {"eps": 1e-6, "mode": "add"})


def layer_norm(
    shape: tuple[int, ...],
    dtype: str,
    *,
    weight: bool = True,
    bias: bool = True,
    vectors: str = "",
    pitch: int = 0,
) -> Problem:
    """A layer norm, with a weight and a bias of another dtype where `vectors` says so."""
    operands = (Operand(shape[-1:], vectors or dtype),) * (weight + bias)
    attrs: dict[str, Attr] = {"eps": 1e-5, "has_weight": weight, "has_bias": bias}
    return Problem("layer_norm", (Operand(shape, dtype, pitch), *operands), attrs)
