"""Launches of Triton kernels that move elements to or from places that indices name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fusec import symbolic
from fusec.dtypes import DTYPES
from fusec.ir import Graph
from fusec.kernels.cpu import INDICES
from fusec.kernels.launch import Call, Launch, Storage
from fusec.kernels.registry import Kernel, Layouts, Supports
from fusec.kernels.triton_launch import triton_launch
from fusec.kernels.triton_rows import FAMILIES
from fusec.symbolic import Dim

RANK = 4
"""Dims that a kernel walks, besides those of size 1."""

BITS = {1: "u8", 2: "i16", 4: "i32", 8: "i64"}
"""What elements are moved as, by their bytes: one code object serves all dtypes of a size."""

BLOCK = 1024
"""Elements of a program that moves single elements."""


def refused_indices(graph: Graph, values: Sequence[str]) -> str | None:
    """Why kernels do not read the index operands `values`, or `None`."""
    for value in values:
        dtype = graph.type(value).dtype
        if dtype not in INDICES:
            return f"dtype: its indices are {', '.join(INDICES)}, not {dtype}"
    return None


def refused_dims(shape: Sequence[Dim]) -> str | None:
    """Why kernels do not walk places of `shape`, or `None`."""
    dims = [size for size in shape if size != 1]
    return f"shape: it walks {RANK} dims, not {len(dims)}" if len(dims) > RANK else None


def as_bits(storage: Storage) -> Storage:
    """The storage seen as integers of the same size."""
    return replace(storage, dtype=BITS[DTYPES[storage.dtype].itemsize])


@dataclass(frozen=True, slots=True)
class Walk:
    """Dims along which several storages are walked, from the innermost one outwards.

    Attributes:
        sizes: of the dims.
        steps: by storage, elements from one place to the next along each dim.
    """

    sizes: tuple[Dim, ...]
    steps: tuple[tuple[Dim, ...], ...]

    def arguments(self, names: Sequence[str]) -> dict[str, Dim]:
        """`size_D` and `NAME_step_D` of each dim D that is there, by the names of the storages."""
        given = {f"size_{dim}": size for dim, size in enumerate(self.sizes)}
        for name, steps in zip(names, self.steps, strict=False):
            given |= {f"{name}_step_{dim}": step for dim, step in enumerate(steps)}
        return given


def walk(sizes: Sequence[Dim], *strides: Sequence[Dim]) -> Walk:
    """How storages with `strides` are walked along dims of `sizes`, both from the outermost on.

    Dims of size 1 are left out, and neighbours that every storage walks evenly become one.
    """
    dims: list[tuple[Dim, tuple[Dim, ...]]] = []
    for size, *steps in zip(sizes, *strides, strict=True):
        if size == 1:
            continue
        if dims and dims[-1][1] == tuple(step * size for step in steps):
            dims[-1] = (dims[-1][0] * size, tuple(steps))
        else:
            dims.append((size, tuple(steps)))
    dims = dims[::-1] or [(1, (0,) * len(strides))]
    return Walk(
        tuple(size for size, _ in dims),
        tuple(tuple(steps[index] for _, steps in dims) for index in range(len(strides))),
    )


def index_launch(
    module: str,
    function: str,
    operands: Mapping[str, Storage],
    params: Mapping[str, Dim],
    constants: Mapping[str, int],
    walked: Walk,
    names: Sequence[str],
    *,
    programs: Dim,
    warps: int = 4,
) -> Launch:
    """A launch of a kernel whose last parameters are those of a walk.

    Args:
        module: of the kernel, below `fusec.kernels`.
        function: its name.
        operands: storages by the names of the pointers.
        params: integers of 64 bits before those of the walk.
        constants: compile-time arguments.
        walked: the walk.
        names: what the kernel calls the storages that it can walk; there may be fewer.
        programs: work groups.
        warps: waves or warps of a work group.
    """
    given = walked.arguments(names)
    all_of_them = [f"size_{dim}" for dim in range(RANK)]
    all_of_them += [f"{name}_step_{dim}" for name in names for dim in range(RANK)]
    absent = {name: 0 for name in all_of_them if name not in given}
    return triton_launch(
        f"fusec.kernels.{module}",
        function,
        operands,
        params={**params, **given},
        constants={"RANK": len(walked.sizes), **constants, **absent},
        grid=(programs, 1, 1),
        warps=warps,
    )


def where_it_fits(call: Call, axis: int, launches: Sequence[Launch]) -> tuple[Launch, ...]:
    """Launches of a node whose second operand, an index, replaces `axis` of its first.

    If the index is longer than that along another dim, this is reported and nothing else runs.
    """
    x, index = call.inputs[:2]
    reports: list[Launch] = []
    fits: Dim = 1
    for dim, (size, bound) in enumerate(zip(index.shape, x.shape, strict=True)):
        excess = symbolic.minimum(1, symbolic.maximum(size - bound, 0))
        is_longer = symbolic.simplify(excess, call.graph.symbols)
        if dim == axis or is_longer == 0:
            continue
        reports.append(
            triton_launch(
                "fusec.kernels.index.triton_kernel",
                "report_kernel",
                {"p_error": call.error()},
                params={"size": size, "bound": bound},
                constants={},
                grid=(fits * is_longer, 1, 1),
                warps=1,
            )
        )
        fits *= 1 - is_longer
    kept = (replace(each, grid=(each.grid[0] * fits, *each.grid[1:])) for each in launches)
    return (*reports, *kept)


def index_kernel(
    op: str,
    launch: Callable[[Call], Launch | tuple[Launch, ...]],
    supports: Supports,
    layouts: Layouts,
    folder: str,
) -> Kernel:
    """The record of an operation whose source is in `folder`."""
    return Kernel(
        op=op,
        name=f"{op}.triton",
        provider="triton",
        families=FAMILIES,
        source=f"{folder}/triton_kernel.py",
        supports=supports,
        launch=launch,
        layouts=layouts,
    )
