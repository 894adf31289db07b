"""Launches of Triton kernels that work on rows: what all of them share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from fusec import symbolic
from fusec.diagnostics import InternalError
from fusec.formats import FP8, Scaling, magnitudes
from fusec.ir import Graph, Node, TensorType
from fusec.ir.types import bool_attr
from fusec.kernels.launch import OWN_PACKAGE, Call, Launch, Layout, Storage, TritonSource
from fusec.kernels.registry import Kernel, Supports
from fusec.symbolic import Dim, Expr
from fusec.target import Family, Target

FAMILIES: tuple[Family, ...] = ("amdgpu", "nvidia")
"""What Triton compiles for."""

FLOATS = ("f32", "bf16", "f16")
"""What rows consist of before they are quantised."""

POINTER_TYPES = {
    "f64": "*fp64",
    "f32": "*fp32",
    "bf16": "*bf16",
    "f16": "*fp16",
    "f8e4m3fn": "*fp8e4nv",
    "f8e4m3fnuz": "*fp8e4b8",
    "f8e5m2": "*fp8e5",
    "f4e2m1x2": "*u8",
    "e8m0": "*u8",
    "i64": "*i64",
    "i32": "*i32",
    "i16": "*i16",
    "i8": "*i8",
    "u8": "*u8",
    "bool": "*u8",
}
"""Triton's pointer types by dtype."""

ROUNDINGS = {"none": 0, "up": 1, "even": 2, "down": 3}
"""The codes of `ROUNDING` in `quantize/triton_kernel.py`."""

LONGEST = 16384
"""Elements of a row that a program keeps in registers; a longer row is read twice."""

SCALAR_SPILLS = 32
"""Scalar registers that rows and products of ragged sizes may keep in lanes of vector registers:
the masks of an unrolled step are many.  At the sizes of models there are none."""

ALIGNMENT = 16
"""A multiple of this, in bytes for pointers and in elements for strides, allows wide loads."""


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program holds: elements of a row, rows, and the waves or warps that hold them."""

    block: int
    rows: int
    warps: int


@dataclass(frozen=True, slots=True)
class Shares:
    """How a tile is spread over a work group.

    Attributes:
        elements: of each lane, in a row that is long enough.
        narrow: the same where a whole row is quantised, or to four bits.
        least: elements of a tile; shorter rows share a program.
        warps: of a work group, at most.
    """

    elements: int
    narrow: int
    least: int
    warps: int


SHARES: dict[Family, Shares] = {
    "amdgpu": Shares(elements=16, narrow=16, least=2048, warps=16),
    "nvidia": Shares(elements=16, narrow=32, least=2048, warps=16),
}
"""By family of targets.  A lane that reads 16 elements of bf16 has two loads of 16 bytes under way;
one with more has fewer neighbours in its registers, one with less waits for reductions.  On an
NVIDIA GPU these were measured; on an AMD GPU they leave room for all waves."""


def tile_of(
    length: int,
    target: Target,
    *,
    narrow: bool = False,
    most: int = LONGEST,
    least: int = 64,
    together: int = 1,
) -> Tile:
    """The tile of rows of `length` elements.

    Args:
        length: elements of a row.
        target: for what.
        narrow: whether a whole row is quantised, or to four bits.
        most: elements of a row that a program holds, at most.
        least: the same, at least.
        together: rows of which a program has whole multiples; a power of two.
    """
    shares = SHARES[target.family]
    block = min(most, power_above(length, least))
    rows = max(together, shares.least // block)
    elements = shares.narrow if narrow else shares.elements
    # Lanes beyond the end of a row would only wait: what there is decides, not the block.
    filled = min(block, max(length, least)) * rows / elements / target.wave_size
    return Tile(block, rows, min(shares.warps, nearest_power(filled)))


def column_tile_of(length: int, target: Target, *, narrow: bool = False, group: int = 1) -> Tile:
    """The tile where programs share a row: a block of whole groups that wastes few lanes."""
    least = max(group, 64)
    blocks = [block for block in (2048, 1024, 512) if block >= least]
    best = min(blocks or [least], key=lambda block: -(-length // block) * block)
    return tile_of(min(length, best), target, narrow=narrow, most=max(best, least))


def power_above(length: int, least: int = 64) -> int:
    """The least power of two that is not below `length`."""
    return max(least, 1 << (length - 1).bit_length())


def nearest_power(value: float) -> int:
    """The power of two nearest to `value` by ratio, at least 1."""
    return 1 << max(0, round(math.log2(max(value, 1))))


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
    """Float operands with rows of a length that is known at compile time.

    Results may be quantised; `refused_scaling` says how.
    """
    for value in node.inputs:
        kind = graph.type(value)
        if kind.dtype not in FLOATS:
            return f"`%{value}` is {kind.dtype}, not one of {', '.join(FLOATS)}"
        if not kind.shape or not isinstance(kind.shape[-1], int):
            return f"the rows of `%{value}: {kind}` have no length known at compile time"
    if "quant_dtype" not in node.attrs:
        return None
    return refused_scaling(Scaling.of(node.attrs), target, bool_attr(node.attrs, "has_scale"))


def refused_scaling(scaling: Scaling, target: Target, static: bool) -> str | None:
    """Why kernels do not quantise like this, or `None`.

    Args:
        scaling: how rows are quantised.
        target: for what.
        static: whether the scale is given.
    """
    if scaling.dtype in FP8 and scaling.dtype != target.fp8:
        return f"fp8.arch: {target.name} takes {target.fp8}, not {scaling.dtype}"
    if scaling.granularity == "tensor" and not static:
        return "scales: the scale of a whole tensor has to be given"
    if scaling.granularity == "group" and not is_power_of_two(scaling.group):
        return f"scales: a group of {scaling.group} elements is not a power of two"
    return None


def is_power_of_two(value: int) -> bool:
    """Whether `value` is one."""
    return value > 0 and value & (value - 1) == 0


def row_layouts(graph: Graph, node: Node) -> tuple[Layout, ...]:
    """Unit stride along a row, and rows that are evenly spaced."""
    rows: Layout = "even_rows"
    return (rows,) * (len(node.inputs) + len(node.outputs))


def row_count(storage: Storage) -> Dim:
    """How many rows there are."""
    return symbolic.product(storage.shape[:-1])


def row_stride(storage: Storage) -> Dim:
    """Elements from one row to the next, the same for all rows.

    Raises:
        InternalError: it is not the same; `row_layouts` asks for it.
    """
    if not storage.has_even_rows:
        raise InternalError(f"rows of {storage} are not evenly spaced")
    steps = zip(storage.shape[:-1], storage.strides[:-1], strict=True)
    return next((stride for dim, stride in reversed([*steps]) if dim != 1), storage.shape[-1])


def scale_steps(storage: Storage, scaling: Scaling) -> tuple[Dim, Dim]:
    """Elements from the scale of a row to that of the next, and from group to group."""
    if scaling.granularity == "tensor":
        return 0, 0
    if scaling.layout == "column":
        return storage.strides[1], storage.strides[0]
    return row_stride(storage), 1


@dataclass(slots=True)
class RowArguments:
    """What a kernel is handed, as it is collected in the order of the kernel's arguments.

    An argument that a node has no use for is the constant 0, which compiles to nothing.

    Attributes:
        operands: pointers `p_NAME`.
        strides: elements between rows, `NAME_stride`, and other integers.
        floats: the last arguments.
        constants: compile-time arguments.
        divisible: pointers and integers that are multiples of `ALIGNMENT`.
    """

    operands: dict[str, Storage] = field(default_factory=dict)
    strides: dict[str, Dim] = field(default_factory=dict)
    floats: dict[str, float] = field(default_factory=dict)
    constants: dict[str, int] = field(default_factory=dict)
    divisible: list[str] = field(default_factory=list)

    def pointer(self, name: str, storage: Storage | None) -> None:
        """Pass an address."""
        if storage is None:
            self.constants[f"p_{name}"] = 0
            return
        self.operands[f"p_{name}"] = storage
        if is_divisible(storage.byte_offset):
            self.divisible.append(f"p_{name}")

    def rows(self, name: str, storage: Storage | None) -> None:
        """Pass an address and the elements between rows."""
        self.pointer(name, storage)
        self.integer(f"{name}_stride", None if storage is None else row_stride(storage))

    def integer(self, name: str, value: Dim | None) -> None:
        """Pass a 64-bit integer."""
        if value is None:
            self.constants[name] = 0
            return
        self.strides[name] = value
        if is_divisible(value):
            self.divisible.append(name)

    def number(self, name: str, value: float | None) -> None:
        """Pass an f32."""
        if value is None:
            self.constants[name] = 0
        else:
            self.floats[name] = value

    def codes(
        self,
        codes: Storage | None,
        scale: Storage | None,
        scaling: Scaling | None,
        suffix: str = "",
    ) -> None:
        """Pass where codes and scales are, or nothing, under names that end in `suffix`."""
        self.rows(f"codes{suffix}", codes)
        self.pointer(f"scale{suffix}", scale)
        steps: tuple[Dim | None, Dim | None] = (None, None)
        if scale is not None and scaling is not None and scaling.granularity != "tensor":
            steps = scale_steps(scale, scaling)
        self.integer(f"scale{suffix}_stride", steps[0])
        self.integer(f"group{suffix}_stride", steps[1])

    def scaling(self, scaling: Scaling | None) -> None:
        """Pass how values are scaled, or that they are not."""
        self.constants["ROUNDING"] = 0 if scaling is None else ROUNDINGS[scaling.rounding]
        self.constants["SATURATE"] = int(scaling is not None and _may_exceed(scaling))
        if scaling is None:
            for name in ("maximum", "floor", "bound"):
                self.number(name, None)
            return
        self.number("maximum", scaling.maximum)
        self.number("floor", scaling.floor)
        self.number("bound", scaling.upper_bound or 0.0)

    def launch(
        self, module: str, function: str, tile: Tile, programs: Dim, columns: int = 1
    ) -> Launch:
        """A launch of `fusec.kernels.MODULE`: `columns` programs, one after the other, for a row.

        Neighbours along a row run at the same time, and so read from the same pages of memory.
        """
        signature = [
            *((name, POINTER_TYPES[storage.dtype]) for name, storage in self.operands.items()),
            *((name, "i64") for name in self.strides),
            *((name, "fp32") for name in self.floats),
        ]
        return Launch(
            symbol=function,
            operands=tuple(self.operands.values()),
            params=(*self.strides.values(), *self.floats.values()),
            grid=(programs * columns, 1, 1),
            code=TritonSource(
                module=f"fusec.kernels.{module}",
                function=function,
                signature=tuple(signature),
                constants=tuple(sorted(self.constants.items())),
                divisible=tuple(self.divisible),
                warps=tile.warps,
            ),
        )


def group_of(scaling: Scaling | None, length: int) -> int:
    """`GROUP` of the kernels: elements that share a scale, 0 where one serves all."""
    if scaling is None or scaling.granularity == "tensor":
        return 0
    return length if scaling.granularity == "token" else min(scaling.group, length)


def _may_exceed(scaling: Scaling) -> bool:
    """Whether a value over its scale may be beyond the largest code."""
    if scaling.granularity == "tensor" or scaling.upper_bound is not None:
        return True
    if scaling.scale_dtype == "e8m0" and scaling.rounding != "up":
        return True
    return scaling.maximum > float(magnitudes(scaling.dtype)[-1])


def row_kernels(
    ops: Iterable[str],
    folder: str,
    launch: Callable[[Call], Launch],
    supports: Supports = supports_rows,
    layouts: Callable[[Graph, Node], tuple[Layout, ...]] = row_layouts,
    package: str = OWN_PACKAGE,
) -> tuple[Kernel, ...]:
    """The records of operations that one source computes."""
    return tuple(
        Kernel(
            op=op,
            name=f"{op}.triton",
            provider="triton",
            families=FAMILIES,
            source=f"{folder}/triton_kernel.py",
            supports=supports,
            launch=launch,
            layouts=layouts,
            package=package,
            scalar_spills=SCALAR_SPILLS,
        )
        for op in ops
    )


def is_divisible(value: Dim) -> bool:
    """Whether `value` is a multiple of `ALIGNMENT` for every size."""
    if isinstance(value, Expr):
        return all(factor % ALIGNMENT == 0 for _, factor in value.terms)
    return value % ALIGNMENT == 0


def programs_of(rows: Dim, tile: Tile) -> Dim:
    """Programs that `rows` rows need."""
    return rows if tile.rows == 1 else symbolic.ceil_divide(rows, tile.rows)


def columns_of(length: int, tile: Tile) -> int:
    """Programs that share a row."""
    return math.ceil(length / tile.block)
