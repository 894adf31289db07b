"""What an operation is: a type rule and a meaning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fusec.diagnostics import InternalError, VerifyError
from fusec.ir.types import Attrs, TensorType

Array: TypeAlias = NDArray[Any]
Types: TypeAlias = tuple[TensorType, ...]
Infer: TypeAlias = Callable[[Types, Attrs], Types]
Reference: TypeAlias = Callable[[Sequence[Array], Attrs, Types], tuple[Array, ...]]


@dataclass(frozen=True, slots=True)
class OpDef:
    """One operation.

    Attributes:
        name: the word in the text form.
        infer: output types from operand types and attributes; raises `VerifyError`.
        reference: the definition, in numpy: floats come as float64, integers as int64, flags as
            bool; sizes in attributes and output types are integers.  Kernels must agree with it.
        elementwise: each output element depends on the operand elements at its place alone.
        commutative: the first two operands may be exchanged.
    """

    name: str
    infer: Infer
    reference: Reference
    elementwise: bool = False
    commutative: bool = False


OPS: dict[str, OpDef] = {}
"""Every operation that fusec gives a meaning to, by name."""


def is_opaque(op: str) -> bool:
    """Whether `op` is a source operation that fusec gives no meaning to."""
    return op.startswith(("aten.", "onnx.", "torch."))


def op_named(name: str) -> OpDef:
    """The definition of the operation `name`."""
    found = OPS.get(name)
    if found is None:
        raise InternalError(f"operation `{name}` has no definition")
    return found


def define(
    name: str,
    infer: Infer,
    reference: Reference,
    *,
    elementwise: bool = False,
    commutative: bool = False,
) -> None:
    """Enter an operation in `OPS`."""
    if name in OPS:
        raise InternalError(f"operation `{name}` is defined twice")
    OPS[name] = OpDef(name, infer, reference, elementwise, commutative)


def arity(types: Types, least: int, most: int | None = None) -> None:
    """Check the number of operands."""
    if not least <= len(types) <= (least if most is None else most):
        raise VerifyError(f"expected {least} operands, got {len(types)}")


def same_dtype(types: Types) -> str:
    """The dtype that all operands share."""
    dtypes = {type.dtype for type in types}
    if len(dtypes) != 1:
        raise VerifyError(f"operands have different dtypes: {', '.join(sorted(dtypes))}")
    return types[0].dtype


def axis_of(axis: int, rank: int) -> int:
    """A non-negative axis below `rank`."""
    if not -rank <= axis < rank:
        raise VerifyError(f"axis {axis} is outside rank {rank}")
    return axis % rank


def float_operand(type: TensorType) -> TensorType:
    """`type`, which must be floating point."""
    if not type.element.is_float:
        raise VerifyError(f"expected a floating-point operand, got `{type}`")
    return type


def integer_operand(type: TensorType) -> TensorType:
    """`type`, which must be an integer."""
    if not type.element.is_integer:
        raise VerifyError(f"expected an integer operand, got `{type}`")
    return type


def result_array(array: Any, type: TensorType) -> Array:
    """`array` in the reference's storage for `type.dtype`; integers wrap at their own width."""
    if type.element.is_float:
        return np.asarray(array, dtype=np.float64)
    if not type.element.is_integer:
        return np.asarray(array, dtype=np.bool_ if type.dtype == "bool" else np.int64)
    return np.asarray(array, np.int64).astype(type.element.numpy).astype(np.int64)
