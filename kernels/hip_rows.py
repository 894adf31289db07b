"""Launches of HIP kernels that work on rows: what all of them share.

The sources are written over `include/fusec/hip_rows.h`, which holds a row in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fusec.dtypes import DTYPES
from fusec.formats import FP8, Scaling
from fusec.ir import Graph, Node
from fusec.ir.types import bool_attr
from fusec.kernels.launch import Call, HipSource, Launch, Storage
from fusec.kernels.registry import Kernel, Supports
from fusec.kernels.triton_rows import (
    refused_scaling,
    row_count,
    row_layouts,
    row_stride,
    scale_steps,
)
from fusec.symbolic import Dim, Expr
from fusec.target import Target

ELEMENTS = {"f32": 0, "bf16": 1, "f16": 2}
"""The codes of `Element` in `hip.h`."""

QUANT = {"tensor": 1, "token": 2, "group": 3}
"""The codes of `Quant` in `hip_rows.h`."""

LONGEST = 32768
"""Elements of a row that a group holds in registers."""

WAVE = 64
"""Lanes of a wave."""

MOST_LANES = 1024
"""Lanes of a group, at most."""

MOST_PIECES = 3
"""Vectors of a row that one lane holds; more cost registers that loads in flight need."""

VECTOR_BYTES = 16
"""What one load moves."""

LARGEST = 3.4028234663852886e38
"""The largest f32: a bound that bounds nothing."""

PREFERRED_LANES = 256
"""Lanes of a group where several numbers waste equally little: four waves hide each other's loads
and leave room for other groups."""


def vector_of(dtype: str) -> int:
    """Elements that one load moves."""
    return VECTOR_BYTES // DTYPES[dtype].itemsize


def lanes_of(length: int, dtype: str) -> int:
    """Lanes of a group over rows of `length`: whole waves that leave few without elements."""
    vectors = -(-length // vector_of(dtype))

    def cost(lanes: int) -> tuple[int, int]:
        return -(-vectors // lanes) * lanes, abs(lanes - PREFERRED_LANES)

    least = max(WAVE, -(-vectors // MOST_PIECES // WAVE) * WAVE)
    return min(range(min(least, MOST_LANES), MOST_LANES + 1, WAVE), key=cost)


def supports_rows(graph: Graph, node: Node, target: Target) -> str | None:
    """Float rows of one dtype and a length known at compile time; results in fp8, if quantised."""
    for value in node.inputs:
        kind = graph.type(value)
        if kind.dtype not in ELEMENTS:
            return f"`%{value}` is {kind.dtype}, not one of {', '.join(ELEMENTS)}"
        length = kind.shape[-1] if kind.shape else None
        if not isinstance(length, int):
            return f"the rows of `%{value}: {kind}` have no length known at compile time"
        if length > LONGEST:
            return f"a row has {length} elements, more than {LONGEST}"
    return _refused_scaling(graph, node, target)


def _refused_scaling(graph: Graph, node: Node, target: Target) -> str | None:
    if "quant_dtype" not in node.attrs:
        return None
    scaling = Scaling.of(node.attrs)
    if scaling.dtype not in FP8 or scaling.scale_dtype != "f32":
        return (
            f"it quantises to fp8 with f32 scales, not {scaling.dtype} with {scaling.scale_dtype}"
        )
    refusal = refused_scaling(scaling, target, bool_attr(node.attrs, "has_scale"))
    if refusal is not None:
        return refusal
    if node.attrs.get("shape") is not None:
        return "its result is seen in the shape of its operand"
    if scaling.granularity == "group":
        vector = vector_of(graph.type(node.inputs[0]).dtype)
        if not vector <= scaling.group <= WAVE * vector:
            return f"scales: the lanes of a wave do not share {scaling.group} elements"
    return None


def same_dtypes(graph: Graph, values: tuple[str, ...]) -> str | None:
    """Why a kernel with one dtype for `values` does not take them."""
    kinds = {value: graph.type(value).dtype for value in values}
    if len(set(kinds.values())) == 1:
        return None
    return "operands are of several dtypes: " + ", ".join(f"`%{v}` {d}" for v, d in kinds.items())


@dataclass(slots=True)
class RowArguments:
    """What a kernel is handed, as it is collected.

    Attributes:
        call: what is computed.
        operands: pointers, in the order of the source.
        strides: further arguments, elements between rows, in the order of the source.
        floats: further arguments, after the strides.
        defines: macros of the source.
        aligned: whether all rows so far can be moved by whole vectors.
    """

    call: Call
    operands: list[Storage] = field(default_factory=list)
    strides: dict[str, Dim] = field(default_factory=dict)
    floats: dict[str, float] = field(default_factory=dict)
    defines: dict[str, int] = field(default_factory=dict)
    aligned: bool = True

    def rows(self, name: str, storage: Storage) -> None:
        """Pass `storage`; `strides` is told how far its rows are apart."""
        self.operands.append(storage)
        self.strides[f"{name}_stride"] = row_stride(storage)
        self._require_vectors(storage, self.strides[f"{name}_stride"])

    def weight(self, storage: Storage) -> None:
        """Pass one row that serves all rows."""
        self.operands.append(storage)
        self._require_vectors(storage, 0)

    def scales(self, name: str, storage: Storage, scaling: Scaling) -> None:
        """Pass scales; `strides` is told the steps from row to row and from group to group."""
        self.operands.append(storage)
        to_row, to_group = scale_steps(storage, scaling)
        self.strides |= {f"{name}_row": to_row, f"{name}_step": to_group}

    def quantise(self, scaling: Scaling) -> None:
        """Say how results are quantised, and pass the limits."""
        self.defines["FUSEC_QUANT"] = QUANT[scaling.granularity]
        self.defines["FUSEC_GROUP"] = max(scaling.group, 1)
        self.defines["FUSEC_POWER_OF_TWO"] = int(scaling.rounding == "up")
        bound = LARGEST if scaling.upper_bound is None else scaling.upper_bound
        self.floats |= {
            "limit": scaling.maximum,
            "upper_bound": bound,
            "lower_bound": scaling.floor,
        }

    def launch(self, file: str, function: str, lanes: int, columns: Dim = 1) -> Launch:
        """A launch with one group for each row, along the first axis of the grid."""
        defines = {**_NOT_QUANTISED, **self.defines, "FUSEC_ALIGNED": int(self.aligned)}
        code = HipSource(
            file=file,
            function=function,
            signature=(
                *((f"p{index}", "ptr") for index in range(len(self.operands))),
                *((name, "i64") for name in self.strides),
                *((name, "f32") for name in self.floats),
            ),
            defines=tuple(sorted(defines.items())),
            threads=lanes,
        )
        return Launch(
            symbol=function,
            operands=tuple(self.operands),
            params=(*self.strides.values(), *self.floats.values()),
            grid=(row_count(self.call.inputs[0]), columns, 1),
            code=code,
        )

    def _require_vectors(self, storage: Storage, stride: Dim) -> None:
        vector = vector_of(self.call.inputs[0].dtype)
        step = min(vector, VECTOR_BYTES // DTYPES[storage.dtype].itemsize)
        whole = _is_multiple(storage.shape[-1], vector)
        self.aligned &= whole and _is_multiple(stride, step) and _is_multiple(storage.offset, step)


_NOT_QUANTISED = {"FUSEC_QUANT": 0, "FUSEC_GROUP": 1, "FUSEC_POWER_OF_TWO": 0}


def _is_multiple(value: Dim, of: int) -> bool:
    """Whether `value` is a multiple of `of` for every size."""
    if isinstance(value, Expr):
        return all(factor % of == 0 for _, factor in value.terms)
    return value % of == 0


def hip_kernel(op: str, file: str, launch: Callable[[Call], Launch], supports: Supports) -> Kernel:
    """The record of a kernel that works on rows."""
    return Kernel(
        op=op,
        name=f"{op}.hip",
        provider="hip",
        families=("amdgpu",),
        source=file,
        supports=supports,
        launch=launch,
        layouts=row_layouts,
    )
