"""What the translations of ATen operations are written with.

A translation is a function `(build, *arguments) -> result` whose parameters have the order and the
names of the operation's schema.  Tensors come as `Val`, sizes as `Dim`, lists as tuples.  What the
export recorded about the results is in `build.declared`: it settles sizes (`-1` in a `view`, the
clamped bounds of a slice) and dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from fusec import symbolic
from fusec.diagnostics import InternalError, UnsupportedError, VerifyError
from fusec.dtypes import DTYPES
from fusec.frontend.aten import AtenTensor
from fusec.ir.graph import Graph, Origin
from fusec.ir.ops.base import Array
from fusec.ir.types import Attr, TensorType, broadcast
from fusec.ir.weights import from_array
from fusec.symbolic import Dim, Expr, Range

COMPLEX = {"complex64": "f32", "complex128": "f64", "complex32": "f16"}
"""PyTorch's complex dtypes, and the dtype of their parts."""

END = 1 << 62
"""A bound of a slice from here on means the end."""


@dataclass(frozen=True, slots=True, eq=False)
class Val:
    """A value of the graph under construction, with arithmetic that adds nodes."""

    build: Builder
    name: str

    @property
    def type(self) -> TensorType:
        """dtype and shape."""
        return self.build.graph.type(self.name)

    @property
    def dtype(self) -> str:
        """The element type."""
        return self.type.dtype

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The sizes."""
        return self.type.shape

    @property
    def rank(self) -> int:
        """The number of sizes."""
        return self.type.rank

    def axis(self, axis: int) -> int:
        """`axis` counted from the front; a scalar counts as having one axis."""
        rank = max(self.rank, 1)
        if not -rank <= axis < rank:
            raise InternalError(f"axis {axis} is outside rank {rank}")
        return axis % rank

    def axes(self, axes: Axes) -> tuple[int, ...]:
        """`axes` counted from the front, in order; all for `None` and for none."""
        if axes is None or axes == ():
            return tuple(range(self.rank))
        chosen = (axes,) if isinstance(axes, int) else axes
        return tuple(sorted({self.axis(axis) for axis in chosen})) if self.rank else ()

    def __add__(self, other: Val | Number) -> Val:
        return self.build.emit("add", self, self.build.like(other, self))

    def __sub__(self, other: Val | Number) -> Val:
        return self.build.emit("sub", self, self.build.like(other, self))

    def __mul__(self, other: Val | Number) -> Val:
        return self.build.emit("mul", self, self.build.like(other, self))

    def __truediv__(self, other: Val | Number) -> Val:
        return self.build.emit("div", self, self.build.like(other, self))

    def __mod__(self, other: Val | Number) -> Val:
        return self.build.emit("mod", self, self.build.like(other, self))

    def __neg__(self) -> Val:
        return self.build.emit("neg", self)


@dataclass(frozen=True, slots=True, eq=False)
class Complex:
    """A complex tensor: its parts as two values."""

    real: Val
    imag: Val


@dataclass(frozen=True, slots=True, eq=False)
class SymFloat:
    """A float computed from sizes: an f64 scalar that promotes like a Python number."""

    value: Val


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A result that shares memory with the first argument.

    Attributes:
        forward: the view of the present contents of the argument.
        backward: `(argument, new) -> argument` with the view's elements replaced by `new`; `None`
            where writing through the view is not supported.
        certain: false where it cannot be told whether PyTorch makes a view or a copy.
        whole: true where both take a complex tensor as it is, not part by part.
    """

    forward: Callable[[Any], Any]
    backward: Callable[[Any, Any], Any] | None = None
    certain: bool = True
    whole: bool = False


Number: TypeAlias = bool | int | float | Expr
Axes: TypeAlias = "int | Sequence[int] | None"
Result: TypeAlias = (
    "Val | View | Complex | SymFloat | tuple[Val | View | Complex | None, ...] | None"
)
Handler: TypeAlias = Callable[..., Result]
_Handler = TypeVar("_Handler", bound=Callable[..., Any])

TABLE: dict[str, Handler] = {}
"""Translations by target."""

REAL_OR_COMPLEX: set[str] = set()
"""Targets whose translations take `Complex` too; any other is applied part by part or refused."""

BY_PARTS: set[str] = set()
"""Targets that treat the real and the imaginary part alike."""


def aten(*targets: str, parts: bool = False, both: bool = False) -> Callable[[_Handler], _Handler]:
    """Enter a translation for `aten.<target>`; a target with a dot in front is taken as it is.

    Args:
        targets: names with overload, such as `add.Tensor`; without one `.default` is meant.
        parts: of a complex tensor, the operation does the same to both parts.
        both: the translation itself knows what to do with `Complex`.
    """

    def enter(handler: _Handler) -> _Handler:
        for target in targets:
            name = full_name(target)
            if name in TABLE:
                raise InternalError(f"`{name}` is translated twice")
            TABLE[name] = handler
            if parts:
                BY_PARTS.add(name)
            if both:
                REAL_OR_COMPLEX.add(name)
        return handler

    return enter


def full_name(target: str) -> str:
    """`add.Tensor` as `aten.add.Tensor`, `.fusec.op.default` as `fusec.op.default`."""
    if target.startswith("."):
        return target[1:]
    return f"aten.{target}" if "." in target else f"aten.{target}.default"


class Builder:
    """Adds nodes to a graph on behalf of one source node after the other.

    Attributes:
        graph: the graph under construction.
        origin: what new nodes say about where they come from.
        declared: the results of the current source node as the export recorded them; of a complex
            one, the type of a part.
        source: the first tensor argument of the current source node, as recorded.
        source_is_all: whether that tensor is all of the memory that it lives in.
        ranges: bounds of the symbols.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.origin = Origin()
        self.declared: tuple[TensorType | None, ...] = ()
        self.source: AtenTensor | None = None
        self.source_is_all = True
        self.target: AtenTensor | None = None
        self.ranges: Mapping[str, Range] = graph.symbols

    # --- nodes ------------------------------------------------------------------------------

    def emit_all(
        self, op: str, operands: Iterable[Val], attrs: Mapping[str, Attr]
    ) -> tuple[Val, ...]:
        """Add a node; all its results."""
        names = tuple(operand.name for operand in operands)
        try:
            node = self.graph.add(op, names, attrs, origin=self.origin)
        except VerifyError as error:
            raise self._unfit(op, names, error) from error
        return tuple(Val(self, name) for name in node.outputs)

    def emit(self, op: str, *operands: Val, **attrs: Attr) -> Val:
        """Add a node with one result."""
        (result,) = self.emit_all(op, operands, attrs)
        return result

    def _unfit(self, op: str, names: tuple[str, ...], error: VerifyError) -> Exception:
        where = self.origin.path or self.origin.source or self.origin.op
        types = [self.graph.type(name) for name in names]
        if any(isinstance(dim, Expr) for type in types for dim in type.shape):
            return UnsupportedError(
                f"the sizes of `{self.origin.op}` cannot be shown to fit: {error}",
                at=where,
                hint="fix the size in question with `--dim`, or export with a narrower range",
            )
        return InternalError(f"`{self.origin.op}` became a wrong `{op}`: {error}", at=where)

    def scalar(self, value: Number, dtype: str) -> Val:
        """A 0-d constant; its value stays unrounded."""
        return self.emit("constant", value=_held(value, dtype), dtype=dtype, shape=())

    def like(self, value: Val | Number, other: Val) -> Val:
        """`value` as an operand next to `other`."""
        return value if isinstance(value, Val) else self.scalar(value, other.dtype)

    def array(self, name: str, array: Array, dtype: str) -> Val:
        """A weight that the translation computes, such as an interpolation matrix."""
        name = self.graph.fresh(name)
        return Val(self, self.graph.add_parameter(name, from_array(name, dtype, array)))

    def full(self, shape: Sequence[Dim], value: Number, dtype: str) -> Val:
        """A tensor of one repeated value."""
        if not shape:
            return self.scalar(value, dtype)
        return self.emit("full", value=_held(value, dtype), shape=tuple(shape), dtype=dtype)

    def iota(self, size: Dim, dtype: str = "i64", start: Dim = 0, step: int = 1) -> Val:
        """`start`, `start + step`, ..."""
        return self.emit("iota", size=size, start=start, step=step, dtype=dtype)

    # --- shapes -----------------------------------------------------------------------------

    def cast(self, x: Val, dtype: str) -> Val:
        """`x` as `dtype`; itself where it is."""
        return x if x.dtype == dtype else self.emit("cast", x, dtype=dtype)

    def reshape(self, x: Val, shape: Sequence[Dim]) -> Val:
        """`x` with other sizes."""
        shape = tuple(shape)
        return x if x.shape == shape else self.emit("reshape", x, shape=shape)

    def transpose(self, x: Val, perm: Sequence[int]) -> Val:
        """`x` with its axes in the order `perm`."""
        perm = tuple(perm)
        return x if perm == tuple(range(x.rank)) else self.emit("transpose", x, perm=perm)

    def swap(self, x: Val, a: int, b: int) -> Val:
        """`x` with two axes exchanged."""
        perm = list(range(x.rank))
        if perm:
            a, b = x.axis(a), x.axis(b)
            perm[a], perm[b] = perm[b], perm[a]
        return self.transpose(x, perm)

    def move(self, x: Val, source: int, target: int) -> Val:
        """`x` with one axis moved."""
        source, target = x.axis(source), x.axis(target)
        perm = [axis for axis in range(x.rank) if axis != source]
        perm.insert(target, source)
        return self.transpose(x, perm)

    def expand(self, x: Val, shape: Sequence[Dim]) -> Val:
        """`x` broadcast to `shape`."""
        shape = tuple(shape)
        return x if x.shape == shape else self.emit("expand", x, shape=shape)

    def unsqueeze(self, x: Val, axis: int) -> Val:
        """`x` with an axis of size 1 inserted at `axis`."""
        axis = axis + x.rank + 1 if axis < 0 else axis
        return self.reshape(x, (*x.shape[:axis], 1, *x.shape[axis:]))

    def squeeze(self, x: Val, axis: int) -> Val:
        """`x` without `axis`, whose size is 1."""
        axis = x.axis(axis)
        return self.reshape(x, (*x.shape[:axis], *x.shape[axis + 1 :]))

    def slice(self, x: Val, axis: int, start: Dim, stop: Dim, step: int = 1) -> Val:
        """Elements `start`, `start + step`, ... below `stop`, bounds within the size."""
        axis = x.axis(axis)
        if start == 0 and step == 1 and stop == x.shape[axis]:
            return x
        return self.emit("slice", x, axis=axis, start=start, stop=stop, step=step)

    def slice_scatter(
        self, x: Val, part: Val, axis: int, start: Dim, stop: Dim, step: int = 1
    ) -> Val:
        """`x` with that slice replaced."""
        axis = x.axis(axis)
        if start == 0 and step == 1 and stop == x.shape[axis]:
            return part
        return self.emit("slice_scatter", x, part, axis=axis, start=start, stop=stop, step=step)

    def select(self, x: Val, axis: int, index: Dim) -> Val:
        """`x` at `index` of `axis`."""
        axis = x.axis(axis)
        return self.squeeze(self.slice(x, axis, index, index + 1), axis)

    def concat(self, parts: Sequence[Val], axis: int) -> Val:
        """`parts` joined along `axis`."""
        if len(parts) == 1:
            return parts[0]
        return self.emit_all("concat", parts, {"axis": parts[0].axis(axis)})[0]

    def reduce(self, op: str, x: Val, axes: Axes, keepdims: bool = False) -> Val:
        """`reduce_<op>`, or another reduction over several axes, over `axes`."""
        if x.rank == 0:
            return x
        return self.emit(op, x, axes=x.axes(axes), keepdims=keepdims)

    def along(self, op: str, x: Val, axis: int, **attrs: Attr) -> tuple[Val, ...]:
        """All results of an operation along one axis; a scalar counts as having one."""
        line = self.reshape(x, x.shape or (1,))
        made = self.emit_all(op, (line,), {"axis": x.axis(axis), **attrs})
        return made if x.rank else tuple(self.reshape(result, ()) for result in made)

    def pad(self, x: Val, low: Sequence[Dim], high: Sequence[Dim], value: Number) -> Val:
        """`x` with elements of `value` around it; negative sizes crop."""
        for axis, (before, after) in enumerate(zip(low, high, strict=True)):
            start = -before if isinstance(before, int) and before < 0 else 0
            end = after if isinstance(after, int) and after < 0 else 0
            x = self.slice(x, axis, start, x.shape[axis] + end)
        low = tuple(0 if isinstance(size, int) and size < 0 else size for size in low)
        high = tuple(0 if isinstance(size, int) and size < 0 else size for size in high)
        if not any(size != 0 for size in (*low, *high)):
            return x
        return self.emit("pad", x, low=low, high=high, value=_held(value, x.dtype))

    # --- sizes ------------------------------------------------------------------------------

    def bounds(self, dim: Dim) -> tuple[float, float]:
        """Bounds of `dim` over the ranges of its symbols."""
        return symbolic.bounds(dim, self.ranges)

    def clamped(self, position: Dim, size: Dim) -> Dim:
        """A position in an axis of `size`: negative ones count from the end, then clamped."""
        if isinstance(position, int) and position >= END:
            return size
        if self.bounds(position)[1] < 0:
            position = position + size
        if self.bounds(position)[0] < 0:
            position = symbolic.maximum(position, 0)
        if self.bounds(size - position)[0] < 0:
            position = symbolic.minimum(position, size)
        return symbolic.simplify(position, self.ranges)

    def integer(self, dim: Dim, what: str) -> int:
        """`dim`, which has to be known now."""
        if isinstance(dim, int):
            return dim
        raise self.unsupported(f"{what} of `{self.origin.op}` is `{dim}`, which is not fixed")

    def result(self, index: int = 0) -> TensorType:
        """The recorded type of a result."""
        declared = self.declared[index] if index < len(self.declared) else None
        if declared is None:
            raise InternalError(f"`{self.origin.op}` has no result {index}", at=self.origin.path)
        return declared

    def unsupported(self, message: str, hint: str | None = None) -> UnsupportedError:
        """An error about the current source node."""
        where = ", ".join(part for part in (self.origin.path, self.origin.source) if part)
        return UnsupportedError(message, at=where or None, hint=hint)

    def in_training(self, message: str) -> UnsupportedError:
        """An error about what only a model in training mode does."""
        return self.unsupported(message, "call `model.eval()` before the export")

    # --- dtypes -----------------------------------------------------------------------------

    def common(self, *operands: Val | Number | SymFloat) -> str:
        """The dtype in which PyTorch computes with `operands`."""
        tensors = [x.dtype for x in operands if isinstance(x, Val) and x.rank]
        scalars = [x.dtype for x in operands if isinstance(x, Val) and not x.rank]
        numbers = [number_dtype(x) for x in operands if not isinstance(x, Val)]
        lower = combined(promoted(scalars), promoted(numbers))
        found = combined(promoted(tensors), lower)
        if found is None:
            raise InternalError(f"`{self.origin.op}` has no operands", at=self.origin.path)
        return found

    def operand(self, x: Val | Number | SymFloat, dtype: str) -> Val:
        """`x` as an operand of `dtype`."""
        if isinstance(x, SymFloat):
            return self.cast(x.value, dtype)
        return self.cast(x, dtype) if isinstance(x, Val) else self.scalar(x, dtype)

    def elementwise(
        self, op: str, *operands: Val | Number | SymFloat, dtype: str | None = None
    ) -> Val:
        """An operation on elements, its operands brought to the dtype PyTorch computes in."""
        dtype = dtype or self.common(*operands)
        return self.emit(op, *(self.operand(x, dtype) for x in operands))

    def where(self, condition: Val, yes: Val | Number, no: Val | Number) -> Val:
        """Elements of `yes` where `condition`, else of `no`."""
        dtype = self.common(yes, no)
        return self.emit("where", condition, self.operand(yes, dtype), self.operand(no, dtype))

    def floats(self, x: Val) -> Val:
        """`x` as the float that an operation with float results computes in."""
        return x if x.type.element.is_float else self.cast(x, "f32")


def _held(value: Number, dtype: str) -> Number:
    """`value` as the attribute of a constant of `dtype`."""
    if isinstance(value, Expr):
        return value
    element = DTYPES[dtype]
    if element.is_float:
        return float(value)
    return bool(value) if element.kind == "bool" else int(value)


_ORDER = {"bool": 0, "u8": 1, "i8": 1, "i16": 2, "i32": 3, "i64": 4}
_FLOATS = {"f8e4m3fn": 0, "f8e4m3fnuz": 0, "f8e5m2": 0, "f16": 1, "bf16": 1, "f32": 2, "f64": 3}


def promote(a: str, b: str) -> str:
    """The dtype that PyTorch promotes `a` and `b` to."""
    if a == b:
        return a
    if a in _FLOATS and b in _FLOATS:
        if _FLOATS[a] == _FLOATS[b]:
            return "f32"
        return a if _FLOATS[a] > _FLOATS[b] else b
    if a in _FLOATS or b in _FLOATS:
        return a if a in _FLOATS else b
    if {a, b} == {"u8", "i8"}:
        return "i16"
    return a if _ORDER[a] > _ORDER[b] else b


def promoted(dtypes: Sequence[str]) -> str | None:
    """The dtype that all of `dtypes` promote to."""
    result: str | None = None
    for dtype in dtypes:
        result = dtype if result is None else promote(result, dtype)
    return result


def combined(higher: str | None, lower: str | None) -> str | None:
    """PyTorch's rule between tensors and scalars: a scalar counts only by its category."""
    if higher is None or lower is None:
        return higher or lower
    if higher in _FLOATS:
        return higher
    return promote(higher, lower) if higher == "bool" or lower in _FLOATS else higher


def number_dtype(value: Number | SymFloat) -> str:
    """The dtype that a Python number counts as."""
    if isinstance(value, bool):
        return "bool"
    return "i64" if isinstance(value, int | Expr) else "f32"


def numel(shape: Sequence[Dim]) -> Dim:
    """The number of elements."""
    return symbolic.product(list(shape))


def static(shape: Sequence[Dim]) -> tuple[int, ...] | None:
    """The sizes if all are known."""
    sizes = tuple(dim for dim in shape if isinstance(dim, int))
    return sizes if len(sizes) == len(shape) else None


def contiguous(shape: Sequence[Dim], strides: Sequence[Dim]) -> bool:
    """Whether a tensor with these strides is laid out row by row."""
    expected: Dim = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected = expected * size
    return True


def viewable(old: Sequence[Dim], strides: Sequence[Dim], new: Sequence[Dim]) -> bool:
    """Whether a tensor can take the sizes `new` without a copy (PyTorch's `computeStride`)."""
    if not old or contiguous(old, strides):
        return True
    place = len(new) - 1
    base = strides[-1]
    old_count: Dim = 1
    new_count: Dim = 1
    for axis in range(len(old) - 1, -1, -1):
        old_count = old_count * old[axis]
        if axis and (old[axis - 1] == 1 or strides[axis - 1] == old_count * base):
            continue
        while place >= 0 and (new_count != old_count or new[place] == 1):
            new_count = new_count * new[place]
            place -= 1
        if new_count != old_count:
            return False
        if axis:
            base = strides[axis - 1]
            old_count = new_count = 1
    return place < 0


def pair(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    """A setting for `count` axes, given once or once an axis."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * count if len(values) == 1 else values


def broadcast_shape(*shapes: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """numpy's rule."""
    return broadcast(*shapes)


def float_eps(dtype: str) -> float:
    """The machine epsilon of the float that PyTorch's norms compute `dtype` in."""
    return 2.0**-52 if dtype == "f64" else 2.0**-23
