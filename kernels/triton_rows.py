"""Launches of Triton kernels that work on rows: what all of them share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

from fusec import symbolic
from fusec.diagnostics import InternalError
from fusec.ir import Graph, Node, TensorType
from fusec.kernels.launch import Call, Launch, Layout, Storage, TritonSource
from fusec.kernels.registry import Kernel, Supports
from fusec.symbolic import Dim, Expr
from fusec.target import Family, Target

FAMILIES: tuple[Family, ...] = ("amdgpu", "nvidia")
"""What Triton compiles for."""

POINTER_TYPES = {"f32": "*fp32", "bf16": "*bf16", "f16": "*fp16"}
"""Triton's pointer types by dtype."""

ROW_BLOCK = 8192
"""Elements of a row that one program holds at once."""

MODULES = {
    **{op: op for op in ("rms_norm", "add_rms_norm", "gated_rms_norm", "dual_rms_norm")},
    **dict.fromkeys(("silu_mul", "gelu_mul", "swiglu_oai"), "silu_mul"),
}
"""The folder of the source that computes each operation."""

ALIGNMENT = 16
"""A multiple of this, in bytes for pointers and in elements for strides, allows wide loads."""


def row_length(type: TensorType) -> int:
    """The length of the last axis.

    Raises:
        InternalError: it is not known at compile time; `supports_rows` refuses such operands.
    """
    length = type.shape[-1] if type.shape else None
    if not isinstance(length, int):
        raise InternalError(f"`{type}` has no rows of a known length")
    return length


def supports_rows(graph: Graph, node: Node, target: Target) -> str | None:
    """Float operands with rows of a length that is known at compile time."""
    for value in (*node.inputs, *node.outputs):
        kind = graph.type(value)
        if kind.dtype not in POINTER_TYPES:
            return f"`%{value}` is {kind.dtype}, not one of {', '.join(POINTER_TYPES)}"
        if not kind.shape or not isinstance(kind.shape[-1], int):
            return f"the rows of `%{value}: {kind}` have no length known at compile time"
    return None


def row_layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    """Unit stride along a row, any strides elsewhere."""
    rows: Layout = "rows"
    return (rows,) * (len(node.inputs) + len(node.outputs))


def row_count(storage: Storage) -> Dim:
    """How many rows there are."""
    return symbolic.product(storage.shape[:-1])


def row_stride(storage: Storage) -> Dim:
    """Elements from one row to the next, the same for all rows.

    Raises:
        InternalError: it is not the same; the caller checks `has_even_rows` first.
    """
    if not has_even_rows(storage):
        raise InternalError(f"rows of {storage} are not evenly spaced")
    steps = zip(storage.shape[:-1], storage.strides[:-1], strict=True)
    return next((stride for dim, stride in reversed([*steps]) if dim != 1), storage.shape[-1])


def has_even_rows(storage: Storage) -> bool:
    """Whether all rows are the same distance from the one before."""
    outer = [
        (dim, stride)
        for dim, stride in zip(storage.shape[:-1], storage.strides[:-1], strict=True)
        if dim != 1
    ]
    for (_, step), (size, inner) in itertools.pairwise(outer):
        if step != size * inner:
            return False
    return True


def block_of(length: int, most: int = ROW_BLOCK) -> int:
    """The power of two that holds a row, or `most` of it."""
    return min(most, max(64, 1 << (length - 1).bit_length()))


def warps_of(block: int, target: Target) -> int:
    """Waves of a work group so that a lane loads 16 bytes of bf16 at a time."""
    lanes = target.wave_size * 8
    return max(1, min(8 if target.family == "amdgpu" else 16, block // lanes))


def launch_rows(
    call: Call,
    function: str,
    operands: Mapping[str, Storage],
    *,
    floats: Mapping[str, float],
    constants: Mapping[str, int],
    block: int,
    columns: Dim = 1,
) -> Launch:
    """A launch with one program for each row, along the first axis of the grid.

    Args:
        call: what is computed.
        function: in `triton_kernel.py` of the folder that `row_kernel` names.
        operands: what is passed as pointers `p_NAME`; after all pointers come the elements
            between the rows of each as `NAME_stride`, but for weights, whose names begin with w.
        floats: further arguments, after the strides.
        constants: compile-time arguments.
        block: elements that a program holds at once.
        columns: programs along the second axis of the grid.
    """
    strides = {
        f"{name}_stride": row_stride(storage)
        for name, storage in operands.items()
        if not name.startswith("w")
    }
    signature = [
        *((f"p_{name}", POINTER_TYPES[storage.dtype]) for name, storage in operands.items()),
        *((name, "i64") for name in strides),
        *((name, "fp32") for name in floats),
    ]
    divisible = [f"p_{name}" for name, each in operands.items() if is_divisible(each.byte_offset)]
    divisible += [name for name, stride in strides.items() if is_divisible(stride)]
    folder = MODULES[call.node.op]
    return Launch(
        symbol=function,
        operands=tuple(operands.values()),
        params=(*strides.values(), *floats.values()),
        grid=(row_count(call.outputs[0]), columns, 1),
        code=TritonSource(
            module=f"fusec.kernels.{folder}.triton_kernel",
            function=function,
            signature=tuple(signature),
            constants=tuple(sorted(constants.items())),
            divisible=tuple(divisible),
            warps=warps_of(block, call.target),
        ),
    )


def row_kernel(
    op: str, launch: Callable[[Call], Launch], supports: Supports = supports_rows
) -> Kernel:
    """The record of a kernel that works on rows."""
    return Kernel(
        op=op,
        name=f"{op}.triton",
        provider="triton",
        families=FAMILIES,
        source=f"{MODULES[op]}/triton_kernel.py",
        supports=supports,
        launch=launch,
        layouts=row_layouts,
    )


def is_divisible(value: Dim) -> bool:
    """Whether `value` is a multiple of `ALIGNMENT` for every size."""
    if isinstance(value, Expr):
        return all(factor % ALIGNMENT == 0 for _, factor in value.terms)
    return value % ALIGNMENT == 0
