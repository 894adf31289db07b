"""What the Triton records of routed experts and routers refuse, each for one reason."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from moe_problems import (
    ATTRS,
    ROUTERS,
    Value,
    experts,
    floats,
    fp8,
    fp8_attrs,
    mxfp4,
    mxfp4_attrs,
    plain,
    routed_logits,
)

from fusec.formats import fp8_scaling, mx_scaling
from fusec.ir import Graph, TensorType
from fusec.ir.types import Attr
from fusec.kernels.moe.triton import TRITON as MOE_RECORDS
from fusec.kernels.router.triton import TRITON as ROUTER_RECORDS
from fusec.target import target_named

PLAIN: dict[str, Attr] = {**ATTRS, "transposed": False}


def refusal(op: str, values: Sequence[Value], attrs: dict[str, Attr], target: str) -> str | None:
    """Why the record of `op` cannot compute it."""
    graph = Graph("case", {"tokens": (1, None)})
    names = [graph.add_input(f"x{i}", value.kind) for i, value in enumerate(values)]
    node = graph.add(op, names, attrs)
    (record,) = (each for each in (*MOE_RECORDS, *ROUTER_RECORDS) if each.op == op)
    return record.supports(graph, node, target_named(target))


def fp8_refusal(group: int, inner: int, block: tuple[int, int], target: str) -> str | None:
    """Of experts of e4m3fn with tokens in groups."""
    case = experts(3, 2, 1, 256, inner)
    scaling = fp8_scaling("f8e4m3fn", "group" if group else "token", group=group)
    attrs = fp8_attrs(case, ATTRS, scaling, block)
    return refusal("moe_fp8", fp8(case, attrs, scaling, block), attrs, target)


def mxfp4_refusal(inner: int, native: bool, target: str) -> str | None:
    """Of experts of 4-bit floats."""
    case, scaling = experts(3, 2, 1, 64, inner), mx_scaling("f8e4m3fn") if native else None
    attrs = mxfp4_attrs(ATTRS, case, scaling, None)
    return refusal("moe_mxfp4", mxfp4(case, attrs, "bf16", scaling), attrs, target)


def test_experts_of_another_dtype() -> None:
    values = plain(experts(3, 2, 1, 8, 4), PLAIN, "bf16")
    values[4] = floats(values[4].seen, "f16")
    assert "of the dtype of the tokens" in str(refusal("moe", values, PLAIN, "gfx950"))


@pytest.mark.parametrize(
    ("group", "inner", "block", "target", "code"),
    [
        (128, 128, (128, 128), "gfx942", "fp8.arch"),
        (32, 128, (128, 128), "gfx950", "scales"),
        (128, 128, (128, 96), "gfx950", "scales"),
        (0, 128, (128, 128), "gfx950", None),
    ],
)
def test_formats_of_fp8(
    group: int, inner: int, block: tuple[int, int], target: str, code: str | None
) -> None:
    reason = fp8_refusal(group, inner, block, target)
    assert reason is None if code is None else str(reason).startswith(f"{code}: ")


@pytest.mark.parametrize(
    ("native", "target", "reason"),
    [
        (True, "gfx950", None),
        (True, "gfx942", "mxfp4.arch: native scaled MFMA needs gfx950; this is gfx942"),
        (False, "gfx942", None),
        (False, "gfx950", None),
        (False, "sm_90", None),
    ],
)
def test_architectures_of_mxfp4(native: bool, target: str, reason: str | None) -> None:
    assert mxfp4_refusal(32, native, target) == reason


def test_rows_that_are_not_whole_groups() -> None:
    """48 elements have a group of 32 and half a one."""
    attrs = mxfp4_attrs(ATTRS, experts(3, 2, 1, 48, 32), None, None)
    graph = Graph("case")
    operands = {
        "x": TensorType("bf16", (3, 48)),
        "weights": TensorType("f32", (3, 1)),
        "experts": TensorType("i64", (3, 1)),
        "gate_up": TensorType("f4e2m1x2", (2, 64, 24)),
        "gate_up_scale": TensorType("e8m0", (2, 64, 2)),
        "down": TensorType("f4e2m1x2", (2, 48, 16)),
        "down_scale": TensorType("e8m0", (2, 48, 1)),
    }
    node = graph.add("moe_mxfp4", [graph.add_input(*each) for each in operands.items()], attrs)
    (record,) = (each for each in MOE_RECORDS if each.op == "moe_mxfp4")
    reason = record.supports(graph, node, target_named("gfx950"))
    assert str(reason).startswith("mxfp4.align: ")


def test_a_router_of_too_many_experts() -> None:
    attrs = ROUTERS[0][1]
    assert refusal("router", routed_logits(1024, attrs, "f32"), attrs, "gfx950") is None
    reason = refusal("router", routed_logits(1025, attrs, "f32"), attrs, "gfx950")
    assert "1024 experts" in str(reason)
