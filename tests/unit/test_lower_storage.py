"""Views: strides say where a value lies, or say nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusec import symbolic
from fusec.ir import OPS, Attr, Attrs, TensorType
from fusec.ir.ops.base import Array
from fusec.kernels.launch import dense_strides
from fusec.lower.storage import dense, merged_axes, ordered, reshaped_strides, viewed
from fusec.symbolic import Dim, evaluate

BATCH, SEQ = symbolic.symbol("batch"), symbolic.symbol("seq")


@pytest.mark.parametrize(
    ("shape", "strides", "new_shape", "expected"),
    [
        ((BATCH, SEQ, 64), None, (BATCH * SEQ, 64), (64, 1)),
        ((BATCH, SEQ, 64), None, (BATCH, SEQ, 4, 16), (64 * SEQ, 64, 16, 1)),
        ((BATCH, SEQ), None, (BATCH, 1, SEQ), (SEQ, 0, 1)),
        # [batch, heads, seq, 16] seen through a transposition of [batch, seq, heads, 16]
        ((BATCH, 4, SEQ, 16), (64 * SEQ, 16, 64, 1), (BATCH, 4 * SEQ, 16), None),
        ((BATCH, 4, SEQ, 16), (64 * SEQ, 16, 64, 1), (BATCH, 2, 2, SEQ, 16), "view"),
        # an expanded axis can be split and joined with another expanded one
        ((4, 3), (0, 0), (12,), (0,)),
        ((4, 3), (0, 1), (12,), None),
        ((6,), (2,), (2, 3), (6, 2)),
        # equal for some sizes only
        ((BATCH, SEQ), None, (SEQ, BATCH), "view"),
        ((0, SEQ), None, (SEQ, 0), (0, 1)),
    ],
)
def test_reshape(
    shape: tuple[Dim, ...],
    strides: tuple[Dim, ...] | None,
    new_shape: tuple[Dim, ...],
    expected: object,
) -> None:
    found = reshaped_strides(shape, strides or dense_strides(shape), new_shape)
    if expected == "view":
        assert found is not None
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("shape", "new_shape", "expected"),
    [
        ((BATCH, 4, 1, SEQ, 16), (4 * BATCH, 1, 16 * SEQ), ((0, 1), (), (3, 4))),
        ((2, 3, 1), (6,), ((0, 1),)),
        ((4, 6), (8, 3), None),
        ((6, 4), (2, 3, 4), None),
    ],
)
def test_axes_that_are_joined(
    shape: tuple[Dim, ...], new_shape: tuple[Dim, ...], expected: object
) -> None:
    assert merged_axes(shape, new_shape) == expected


@st.composite
def chains(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[str, dict[str, Attr]]]]:
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    steps: list[tuple[str, dict[str, Attr]]] = []
    now = list(shape)
    for _ in range(draw(st.integers(1, 6))):
        op = draw(st.sampled_from(("transpose", "slice", "flip", "expand", "reshape")))
        axis = draw(st.integers(0, len(now) - 1))
        if op == "transpose":
            perm = draw(st.permutations(range(len(now))))
            steps.append((op, {"perm": tuple(perm)}))
            now = [now[each] for each in perm]
        elif op == "slice":
            start = draw(st.integers(0, now[axis] - 1))
            stop = draw(st.integers(start + 1, now[axis]))
            step = draw(st.integers(1, 2))
            steps.append((op, {"axis": axis, "start": start, "stop": stop, "step": step}))
            now[axis] = -(-(stop - start) // step)
        elif op == "flip":
            steps.append((op, {"axes": (axis,)}))
        elif op == "expand":
            now = [draw(st.integers(1, 3)) if size == 1 else size for size in now]
            now = [*draw(st.lists(st.integers(1, 3), max_size=2)), *now]
            steps.append((op, {"shape": tuple(now)}))
        elif len(now) > 1 and draw(st.booleans()):
            first = draw(st.integers(0, len(now) - 2))
            now[first : first + 2] = [now[first] * now[first + 1]]
            steps.append((op, {"shape": tuple(now)}))
        else:
            now.insert(axis, 1)
            steps.append((op, {"shape": tuple(now)}))
    return shape, steps


@settings(deadline=None, max_examples=300)
@given(chains())
def test_views_read_what_numpy_reads(
    chain: tuple[tuple[int, ...], list[tuple[str, dict[str, Attr]]]],
) -> None:
    shape, steps = chain
    memory = np.arange(int(np.prod(shape)))
    array = memory.reshape(shape)
    storage = dense(0, "i64", shape)
    for op, attrs in steps:
        before = array
        array = _applied(array, op, attrs)
        seen = viewed(storage, op, attrs, array.shape)
        if seen is None:
            assert op == "reshape"
            # numpy copies exactly where strides cannot say it
            assert not np.shares_memory(before, before.reshape(array.shape))
            return
        storage = seen
        offset = evaluate(storage.offset, {})
        strides = tuple(8 * evaluate(stride, {}) for stride in storage.strides)
        read = np.lib.stride_tricks.as_strided(memory[offset:], array.shape, strides)
        np.testing.assert_array_equal(read, array)


def _applied(array: Array, op: str, attrs: Attrs) -> Array:
    (kind,) = OPS[op].infer((TensorType("i64", array.shape),), attrs)
    return OPS[op].reference((array,), attrs, (kind,))[0]


def test_storage_in_another_order_is_dense_in_that_order() -> None:
    storage = ordered(0, "f32", (BATCH, 4, SEQ, 16), (0, 2, 1, 3))
    assert storage.strides == (64 * SEQ, 16, 64, 1)
    turned = viewed(storage, "transpose", {"perm": (0, 2, 1, 3)}, (BATCH, SEQ, 4, 16))
    assert turned is not None and turned.is_contiguous
