"""Launches of Triton kernels: their arguments, and what the compiler may take for granted."""

from __future__ import annotations

from collections.abc import Mapping

from fusec.kernels.launch import Launch, Param, Storage, TritonSource
from fusec.kernels.triton_rows import POINTER_TYPES, is_divisible
from fusec.symbolic import Dim


def triton_launch(
    module: str,
    function: str,
    operands: Mapping[str, Storage],
    *,
    params: Mapping[str, Param],
    constants: Mapping[str, int],
    grid: tuple[Dim, Dim, Dim],
    warps: int,
    sizes: Mapping[str, Dim] | None = None,
    options: tuple[tuple[str, int], ...] = (),
) -> Launch:
    """A launch of a Triton kernel whose run-time arguments are pointers, sizes, then parameters.

    Args:
        module: of the kernel.
        function: its name.
        operands: storages by the names of the pointers.
        params: integers of 64 bits and numbers in f32.
        constants: compile-time arguments; a pointer that is left out is one, 0.
        grid: work groups along each axis.
        warps: waves or warps of a work group.
        sizes: integers of 32 bits.
        options: of Triton's backend.
    """
    sizes = sizes or {}
    integers = {name: each for name, each in params.items() if not isinstance(each, float)}
    signature = [
        *((name, POINTER_TYPES[storage.dtype]) for name, storage in operands.items()),
        *((name, "i32") for name in sizes),
        *((name, "i64" if name in integers else "fp32") for name in params),
    ]
    divisible = [name for name, each in operands.items() if is_divisible(each.byte_offset)]
    divisible += [name for name, each in integers.items() if is_divisible(each)]
    return Launch(
        symbol=function,
        operands=tuple(operands.values()),
        params=(*sizes.values(), *params.values()),
        grid=grid,
        code=TritonSource(
            module=module,
            function=function,
            signature=tuple(signature),
            constants=tuple(sorted(constants.items())),
            divisible=tuple(divisible),
            warps=warps,
            options=options,
        ),
    )
