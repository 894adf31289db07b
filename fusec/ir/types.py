"""Types of values, and the values that attributes may have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from fusec import symbolic
from fusec.diagnostics import VerifyError
from fusec.dtypes import DTYPES, DType
from fusec.symbolic import Dim

Attr: TypeAlias = "bool | int | float | str | symbolic.Expr | tuple[Attr, ...] | None"
"""What an attribute may hold; a tuple may nest."""

Attrs: TypeAlias = Mapping[str, Attr]


@dataclass(frozen=True, slots=True)
class TensorType:
    """A dtype and a shape; printed `bf16[batch, seq, 4096]`.

    Attributes:
        dtype: a name in `fusec.dtypes.DTYPES`.
        shape: logical sizes: what the model means.
        padded: sizes in memory where a kernel needs more than the logical ones, else `None`;
            printed `mxfp4[32, 2880~3072]`.
    """

    dtype: str
    shape: tuple[Dim, ...]
    padded: tuple[Dim, ...] | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise VerifyError(f"unknown dtype `{self.dtype}`")
        if self.padded is not None and len(self.padded) != len(self.shape):
            raise VerifyError(f"`{self}` pads {len(self.padded)} of {len(self.shape)} sizes")

    def __str__(self) -> str:
        dims = [str(dim) for dim in self.shape]
        if self.padded is not None:
            pairs = zip(self.shape, self.padded, strict=True)
            dims = [str(a) if a == b else f"{a}~{b}" for a, b in pairs]
        return f"{self.dtype}[{', '.join(dims)}]"

    @property
    def rank(self) -> int:
        """The number of sizes."""
        return len(self.shape)

    @property
    def element(self) -> DType:
        """The facts about the dtype."""
        return DTYPES[self.dtype]

    @property
    def memory_shape(self) -> tuple[Dim, ...]:
        """The sizes in memory: padded where padded."""
        return self.shape if self.padded is None else self.padded

    @property
    def elements(self) -> Dim:
        """The number of logical elements."""
        return symbolic.product(self.shape)

    @property
    def nbytes(self) -> Dim:
        """Bytes in memory."""
        return symbolic.product(self.memory_shape) * self.element.itemsize

    def with_dtype(self, dtype: str) -> TensorType:
        """The same sizes with another element type."""
        return TensorType(dtype, self.shape, self.padded)

    def with_shape(self, shape: tuple[Dim, ...]) -> TensorType:
        """The same element type with other sizes."""
        return TensorType(self.dtype, shape)


def broadcast(*shapes: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The shape that numpy's rule gives for operands of `shapes`.

    Raises:
        VerifyError: two sizes differ and neither is 1.
    """
    rank = max(map(len, shapes), default=0)
    result: list[Dim] = []
    for position in range(rank):
        size: Dim = 1
        for shape in shapes:
            index = position - (rank - len(shape))
            dim = 1 if index < 0 else shape[index]
            if dim == 1 or dim == size:
                continue
            if size != 1:
                raise VerifyError(f"sizes `{size}` and `{dim}` do not broadcast")
            size = dim
        result.append(size)
    return tuple(result)


# Attributes are read through these, so that a wrong type is an error with the attribute's name.


def int_attr(attrs: Attrs, name: str) -> int:
    """The integer attribute `name`."""
    value = attrs.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise VerifyError(f"attribute `{name}` is `{value}`, not an integer")
    return value


def float_attr(attrs: Attrs, name: str, absent: float | None = None) -> float:
    """The number `name`; `absent`, if that is given, where there is none."""
    value = attrs.get(name)
    if value is None and absent is not None:
        return absent
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise VerifyError(f"attribute `{name}` is `{value}`, not a number")
    return float(value)


def bool_attr(attrs: Attrs, name: str) -> bool:
    """The flag `name`; absent means false."""
    value = attrs.get(name, False)
    if not isinstance(value, bool):
        raise VerifyError(f"attribute `{name}` is `{value}`, not true or false")
    return value


def str_attr(attrs: Attrs, name: str) -> str:
    """The string attribute `name`."""
    value = attrs.get(name)
    if not isinstance(value, str):
        raise VerifyError(f"attribute `{name}` is `{value}`, not a string")
    return value


def dim_attr(attrs: Attrs, name: str) -> Dim:
    """The size `name`."""
    value = attrs.get(name)
    if isinstance(value, bool) or not isinstance(value, int | symbolic.Expr):
        raise VerifyError(f"attribute `{name}` is `{value}`, not a size")
    return value


def ints_attr(attrs: Attrs, name: str) -> tuple[int, ...]:
    """The tuple of integers `name`."""
    value = attrs.get(name)
    if not isinstance(value, tuple):
        raise VerifyError(f"attribute `{name}` is `{value}`, not a list of integers")
    return tuple(int_attr({name: item}, name) for item in value)


def dims_attr(attrs: Attrs, name: str) -> tuple[Dim, ...]:
    """The tuple of sizes `name`."""
    value = attrs.get(name)
    if not isinstance(value, tuple):
        raise VerifyError(f"attribute `{name}` is `{value}`, not a list of sizes")
    return tuple(dim_attr({name: item}, name) for item in value)
