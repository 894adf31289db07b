"""Launches of Triton kernels that multiply matrices: tiles, and what runs for how many rows.

The rows M of the first operand are known at run time only.  A product with few rows is bound by
reading the weight, one with some has too few tiles for every compute unit: both have small tiles,
and their sums over K are split among programs until each unit has one.  The parts are added in
order by a second launch, so the result is the same in every run.  A product with many rows has
large tiles.  Which of them runs is decided by the range of M where that suffices; else all that
may be needed are launched, with grids that are empty but for one, and an empty grid is not
launched.

Large tiles are numbered so that neighbours share rows and columns in the cache; on GPUs of several
dies, each die gets neighbours (`tile_at` in `fp8_linear/triton_kernel.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fusec import symbolic
from fusec.diagnostics import InternalError
from fusec.ir import Graph, TensorType
from fusec.ir.types import bool_attr
from fusec.kernels.launch import Call, Launch, Storage
from fusec.kernels.registry import Kernel, Supports
from fusec.kernels.triton_launch import triton_launch
from fusec.kernels.triton_rows import (
    FAMILIES,
    FLOATS,
    SCALAR_SPILLS,
    is_divisible,
    row_layouts,
    row_stride,
)
from fusec.symbolic import Dim
from fusec.target import GPU_TARGETS, Family, Target, data_sheet


@dataclass(frozen=True, slots=True)
class Rows:
    """How many rows of a product a tile is for.

    Attributes:
        most: rows.
        typical: for how many every compute unit should have a program.
    """

    most: int
    typical: int


FEW_ROWS, SEVERAL_ROWS, SOME_ROWS = Rows(16, 1), Rows(64, 64), Rows(512, 256)
"""Rows of tiles for a step of one sequence, for one of many, and for a short prompt."""

FEW_OR_SEVERAL_ROWS = Rows(64, 1)
"""The first two, where one tile serves both."""

RAGGED = 64
"""The most rows and columns of a tile where rows of the result are not whole vectors."""

RAGGED_DEPTH: dict[Family, int] = {"amdgpu": 128, "nvidia": 64}
"""Its depth at most; scaled matrix units of AMD take 128 at a time."""

LEAST_ROWS = 16
"""What the matrix units take at least."""

UNITS = {name: sheet.units for name in GPU_TARGETS if (sheet := data_sheet(name)) is not None}
"""Compute units of the usual product of each architecture."""

DIES = {"gfx950": 8, "gfx942": 8, "sm_90": 1}
"""Dies, each with a second-level cache of its own, to which work groups are dealt in turn."""

MFMA_16 = (("matrix_instr_nonkdim", 16),)
"""AMD's matrix units work on 16 rows at a time, not 32: for few rows, and to save registers."""

MIN_STEPS = 4
"""Steps along K that a part of a split sum has at least."""

SUM_BLOCK = 1024
"""Columns that a program adds the parts of."""


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program computes.

    Attributes:
        rows: of the result.
        columns: of the result.
        depth: elements along K that are multiplied at a time.
        warps: waves or warps of the program.
        stages: steps along K in flight at once, as Triton counts them.
        group: tiles that lie below one another before the next column of tiles begins.
        options: further options of Triton's backend.
        constants: compile-time arguments that depend on the tile.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    group: int = 8
    options: tuple[tuple[str, int], ...] = ()
    constants: tuple[tuple[str, int], ...] = ()

    def at_most(self, depth: int) -> Tile:
        """This, at most `depth` deep."""
        return dataclasses.replace(self, depth=min(self.depth, depth))

    def for_ragged_rows(self, family: Family) -> Tile:
        """This, smaller: elements that are moved one by one take registers for each."""
        rows, columns = min(self.rows, RAGGED), min(self.columns, RAGGED)
        depth = min(self.depth, RAGGED_DEPTH[family])
        return dataclasses.replace(self, rows=rows, columns=columns, depth=depth)

    def for_rows(self, most: float) -> Tile:
        """This with fewer rows, where there are at most `most`."""
        fitting = max(LEAST_ROWS, 1 << (int(min(most, self.rows)) - 1).bit_length())
        return dataclasses.replace(self, rows=min(self.rows, fitting))


def known(dim: Dim) -> int:
    """A size that is known at compile time.

    Raises:
        InternalError: it is not; `weight_refusal` says so of an operand.
    """
    if not isinstance(dim, int):
        raise InternalError(f"the size `{dim}` is not known at compile time")
    return dim


def bias_operand(call: Call) -> dict[str, Storage]:
    """The bias of a product, its last operand, if it has one."""
    return {"bias": call.inputs[-1]} if bool_attr(call.attrs, "has_bias") else {}


def floats_refusal(graph: Graph, values: Iterable[str]) -> str | None:
    """Why a bias or a result among `values` is none that a product takes."""
    for value in values:
        kind = graph.type(value)
        if kind.dtype not in FLOATS:
            return f"dtype: `%{value}` is {kind.dtype}, not one of {', '.join(FLOATS)}"
    return None


def weight_refusal(weight: TensorType) -> str | None:
    """Why a product cannot take `weight`."""
    if all(isinstance(size, int) for size in weight.shape):
        return None
    return f"shape: the weight is `{weight}`, of no size known at compile time"


def product_kernel(
    op: str,
    variant: str,
    folder: str,
    supports: Supports,
    launch: Callable[[Call], tuple[Launch, ...]],
) -> Kernel:
    """The record of a kernel that multiplies.

    Args:
        op: the operation.
        variant: tells it from other records of the operation.
        folder: of its source.
        supports: see `Kernel`.
        launch: see `Kernel`.
    """
    return Kernel(
        op=op,
        name=f"{op}.{variant}",
        provider="triton",
        families=FAMILIES,
        source=f"{folder}/triton_kernel.py",
        supports=supports,
        launch=launch,
        layouts=row_layouts,
        scalar_spills=SCALAR_SPILLS,
    )


def above(dim: Dim, edge: int, graph: Graph) -> Dim:
    """1 if `dim` is more than `edge`, else 0."""
    least, most = symbolic.bounds(dim, graph.symbols)
    if most <= edge or least > edge:
        return int(least > edge)
    return symbolic.minimum(1, symbolic.floor_divide(dim - 1, edge))


def splits_of(length: int, programs: int, tile: Tile, target: Target) -> int:
    """Into how many parts sums over K are split, so that every compute unit has a program.

    Args:
        length: K.
        programs: tiles of the result.
        tile: of which the depth counts.
        target: whose compute units there are.
    """
    steps = -(-length // tile.depth)
    wanted = min(UNITS[target.name] // programs, steps // MIN_STEPS)
    if wanted < 2:
        return 1
    return -(-steps // -(-steps // wanted))


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What follows a product of `linear/triton_kernel.py` before it is rounded.

    Attributes:
        activation: its number, 0 for none.
        residual: what is added then.
    """

    activation: int = 0
    residual: Storage | None = None


@dataclass(frozen=True, slots=True)
class Product:
    """A launch of a kernel that multiplies, but for what depends on its tile.

    Attributes:
        call: what is computed.
        module: of the kernel, below `fusec.kernels`.
        function: its name.
        rows: of the result, M.
        columns: of the result, N.
        length: of the sums, K.
        operands: what is passed as pointers `p_NAME`; `bias` is the one that may be left out.
        strides: further arguments: elements between neighbours.  One that is 0 or 1 for every size
            is known to the compiler, which then loads neighbours together.
        constants: compile-time arguments, but those of the tile.
        epilogue: what follows, if the kernel can do that.
    """

    call: Call
    module: str
    function: str
    rows: Dim
    columns: int
    length: int
    operands: Mapping[str, Storage]
    strides: Mapping[str, Dim]
    constants: Mapping[str, int]
    epilogue: Epilogue | None = None

    def launches(self, tiers: Sequence[tuple[Rows, Tile]], many: Tile) -> tuple[Launch, ...]:
        """What runs.

        Args:
            tiers: tiles for at most so many rows, the smallest first.
            many: the tile for more rows than those.
        """
        if not is_divisible(row_stride(self.call.outputs[0])):
            family = self.call.target.family
            tiers = [(rows, tile.for_ragged_rows(family)) for rows, tile in tiers]
            many = many.for_ragged_rows(family)
        _, most = symbolic.bounds(self.rows, self.call.graph.symbols)
        found: list[Launch] = []
        is_above: Dim = 1
        for rows, tile in tiers:
            is_further = above(self.rows, rows.most, self.call.graph)
            if is_above != 0 and is_further != 1:
                fitting = tile.for_rows(min(most, rows.most))
                found += self._split(fitting, rows, is_above - is_further)
            is_above = is_further
        if is_above != 0:
            found.append(self._whole(many, is_above))
        return tuple(found)

    def _split(self, tile: Tile, for_rows: Rows, runs: Dim) -> tuple[Launch, ...]:
        """Launches for so many rows at most, whose sums are split if there are units for it."""
        tiles = -(-for_rows.typical // tile.rows) * -(-self.columns // tile.columns)
        splits = splits_of(self.length, tiles, tile, self.call.target)
        if splits == 1:
            return (self._whole(tile, runs),)
        rows = symbolic.minimum(self.rows, for_rows.most)
        parts = self.call.scratch("f32", (splits, rows, self.columns))
        operands = {name: each for name, each in self.operands.items() if name != "bias"}
        product = self._launch(tile, {**operands, "y": parts}, self.columns, splits, runs)
        return (product, self._sum(parts, splits, runs))

    def _whole(self, tile: Tile, runs: Dim) -> Launch:
        result = self.call.outputs[0]
        operands = {**self.operands, "y": result}
        return self._launch(tile, operands, row_stride(result), 1, runs)

    def _launch(
        self, tile: Tile, operands: Mapping[str, Storage], y_stride: Dim, splits: int, runs: Dim
    ) -> Launch:
        target = self.call.target
        residual, steps, finish = self._finish(splits == 1)
        operands = {**operands, **residual}
        strides = {**self.strides, "y_stride": y_stride, **steps}
        fixed = {name: each for name, each in strides.items() if each in (0, 1)}
        tiles = symbolic.ceil_divide(self.rows, tile.rows) * -(-self.columns // tile.columns)
        constants = {
            **self.constants,
            **dict(tile.constants),
            **finish,
            **{name: known(each) for name, each in fixed.items()},
            "N": self.columns,
            "K": self.length,
            "BLOCK_M": tile.rows,
            "BLOCK_N": tile.columns,
            "BLOCK_K": tile.depth,
            "GROUP_M": tile.group,
            "DIES": DIES[target.name],
            "SPLITS": splits,
            "BIAS": int("bias" in operands),
        }
        if "bias" not in operands:
            constants["p_bias"] = 0
        return triton_launch(
            f"fusec.kernels.{self.module}.triton_kernel",
            self.function,
            {f"p_{name}": each for name, each in operands.items()},
            sizes={"M": self.rows},
            params={name: each for name, each in strides.items() if name not in fixed},
            constants=constants,
            grid=(tiles * runs, splits, 1),
            warps=tile.warps,
            options=(("num_stages", tile.stages), *tile.options),
        )

    def _finish(
        self, is_last: bool
    ) -> tuple[Mapping[str, Storage], Mapping[str, Dim], Mapping[str, int]]:
        """What a launch is passed for the epilogue: an operand, its stride, and constants."""
        if self.epilogue is None:
            return {}, {}, {}
        done = self.epilogue if is_last else Epilogue()
        constants = {"ACTIVATION": done.activation, "RESIDUAL": int(done.residual is not None)}
        if done.residual is None:
            return {}, {}, {**constants, "p_residual": 0, "residual_stride": 0}
        steps = {"residual_stride": row_stride(done.residual)}
        return {"residual": done.residual}, steps, constants

    def _sum(self, parts: Storage, splits: int, runs: Dim) -> Launch:
        result = self.call.outputs[0]
        own = self.epilogue is not None
        operands = {"parts": parts, "y": result}
        if "bias" in self.operands:
            operands["bias"] = self.operands["bias"]
        residual, steps, finish = self._finish(True)
        constants = {"N": self.columns, "SPLITS": splits, "BIAS": int("bias" in operands), **finish}
        if "bias" not in operands:
            constants["p_bias"] = 0
        return triton_launch(
            f"fusec.kernels.{self.module if own else 'fp8_linear'}.triton_kernel",
            "linear_sum_kernel" if own else "split_sum_kernel",
            {f"p_{name}": each for name, each in {**operands, **residual}.items()},
            sizes={"M": self.rows},
            params={"y_stride": row_stride(result), **steps},
            constants={**constants, "BLOCK": SUM_BLOCK},
            grid=(self.rows * runs, -(-self.columns // SUM_BLOCK), 1),
            warps=4,
        )
