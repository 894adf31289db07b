"""What the operators of ONNX are translated with: values, calls, the graph under construction.

A value of an ONNX graph may be known in full (`Value.content`): the sizes that a dynamic model
computes from `Shape` become expressions over symbols, and their arithmetic leaves no node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fusec import symbolic
from fusec.diagnostics import InputError, UnsupportedError
from fusec.dtypes import DTYPES, bf16_to_f32
from fusec.ir.graph import Graph, Origin
from fusec.ir.types import Attr, Attrs, TensorType
from fusec.ir.weights import Weight
from fusec.symbolic import Dim, Expr, Range

FOLD_LIMIT = 64
"""Elements up to which a value is computed while importing."""

NO_BOUND = (1 << 31) - 1
"""Bounds of slices from here on mean the end of the axis."""

MAX_FACTOR = 128
"""The largest number that a size is found to be a multiple of."""

TABLE_LIMIT = 1 << 16
"""Elements up to which a constant operand, such as the sizes of a `Resize`, is read."""

Contents: TypeAlias = NDArray[np.object_]
"""Elements that are int, bool, float, `Expr` or `Ratio`."""


class NotCovered(Exception):
    """This use of an operator has no translation: the node stays opaque.  The text says why."""


class Restart(Exception):
    """Two sizes turned out to be one: the import begins anew, knowing it.

    Attributes:
        substitutions: what symbols stand for.
        limits: the largest values of symbols.
        factors: what symbols are multiples of.
    """

    def __init__(
        self,
        substitutions: Mapping[str, Dim] | None = None,
        limits: Mapping[str, int] | None = None,
        factors: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.substitutions = dict(substitutions or {})
        self.limits = dict(limits or {})
        self.factors = dict(factors or {})


@dataclass(frozen=True, slots=True)
class Ratio:
    """A quotient of sizes in floating point, on its way to `Floor`, `Ceil` or `Cast`."""

    over: Dim
    under: Dim


@dataclass(slots=True, eq=False)
class Value:
    """A value of an ONNX graph.

    Attributes:
        type: dtype and sizes.
        name: the value of the graph that holds it, once there is one.
        content: the elements, where they are known or are expressions over symbols.
        weight: the tensor of the file that it is.
        items: the elements of a sequence of tensors; `type` then says nothing.
        four_bits: whether the model has 4-bit integers here; they are held in 8 bits.
    """

    type: TensorType
    name: str | None = None
    content: Contents | None = None
    weight: Weight | None = None
    items: tuple[Value, ...] | None = None
    four_bits: bool = False

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The sizes."""
        return self.type.shape

    @property
    def dtype(self) -> str:
        """The element type."""
        return self.type.dtype

    @property
    def rank(self) -> int:
        """The number of sizes."""
        return len(self.type.shape)


@dataclass(frozen=True, slots=True)
class Call:
    """One node of an ONNX graph.

    Attributes:
        op: the operator.
        domain: `""` for ONNX's own.
        version: the version of the domain that the file imports.
        inputs: operands; `None` for one that is left out.
        attrs: attributes as plain Python values; tensors and graphs as the protocol buffers.
        outputs: names of the results; `""` for one that nobody wants.
        proto: the node itself.
    """

    op: str
    domain: str
    version: int
    inputs: tuple[Value | None, ...]
    attrs: Mapping[str, Any]
    outputs: tuple[str, ...]
    proto: Any

    def optional(self, index: int) -> Value | None:
        """Operand `index`, if it is given."""
        return self.inputs[index] if index < len(self.inputs) else None

    def operand(self, index: int) -> Value:
        """Operand `index`.

        Raises:
            InputError: it is not given.
        """
        found = self.optional(index)
        if found is None:
            raise InputError(f"`{self.op}` lacks operand {index}")
        if found.items is not None:
            raise UnsupportedError(f"`{self.op}` takes a sequence of tensors")
        return found

    def integer(self, name: str, default: int) -> int:
        """The integer attribute `name`."""
        return int(self.attrs.get(name, default))

    def number(self, name: str, default: float) -> float:
        """The attribute `name`, a number."""
        return float(self.attrs.get(name, default))

    def text(self, name: str, default: str) -> str:
        """The attribute `name`, a string."""
        return str(self.attrs.get(name, default))

    def integers(self, name: str) -> tuple[int, ...] | None:
        """The attribute `name`, a list of integers, if it is given."""
        found = self.attrs.get(name)
        return None if found is None else tuple(int(item) for item in found)

    def wants(self, index: int) -> bool:
        """Whether somebody names result `index`."""
        return index < len(self.outputs) and self.outputs[index] != ""


Results: TypeAlias = "Value | tuple[Value | None, ...]"
Handler: TypeAlias = "Callable[[Context, Call], Results]"

HANDLERS: dict[tuple[str, str], Handler] = {}
"""Translations, by domain and operator."""

MICROSOFT = "com.microsoft"


def operator(*names: str, domain: str = "") -> Callable[[Handler], Handler]:
    """Enter a translation for the operators `names` in `HANDLERS`."""

    def enter(handler: Handler) -> Handler:
        for name in names:
            HANDLERS[domain, name] = handler
        return handler

    return enter


class Context:
    """The graph under construction, and what every translation needs.

    Attributes:
        graph: the graph.
        given: ranges of symbols that the caller asked for.
        origin: where the nodes being added come from.
        single_use: names of ONNX values that are read once and not returned.
        substitutions: what symbols of the file turned out to be.
        data_sizes: symbols for sizes that depend on data.
        whole: values in floating point that hold whole numbers.
    """

    def __init__(self, graph: Graph, given: Mapping[str, Range]) -> None:
        self.graph = graph
        self.given = dict(given)
        self.origin = Origin()
        self.single_use: frozenset[str] = frozenset()
        self.substitutions: Mapping[str, Dim] = {}
        self.data_sizes: set[str] = set()
        self.whole: set[str] = set()
        self._constants: dict[tuple[str, tuple[Dim, ...], str], str] = {}
        self._parameters: dict[tuple[str, str], str] = {}
        self._transposed: dict[str, tuple[Weight, tuple[int, ...]]] = {}

    # --- values -----------------------------------------------------------------------------

    def scalar(self, number: Any, dtype: str) -> Value:
        """A 0-d constant."""
        return known(np.array(number, dtype=object), dtype)

    def integers(self, numbers: Sequence[Any], dtype: str = "i64") -> Value:
        """A 1-d constant."""
        return known(objects(numbers, (len(numbers),)), dtype)

    def parameter(self, weight: Weight) -> Value:
        """A value that stands for `weight`."""
        return Value(weight.type, weight=weight)

    def materialise(self, value: Value) -> str:
        """The value of the graph that holds `value`; added now if there is none."""
        if value.items is not None:
            raise UnsupportedError("a sequence of tensors is read as a tensor")
        if value.name is None:
            if value.weight is not None and not _is_plain_constant(value):
                value.name = self._parameter(value.weight)
            elif value.content is not None:
                value.name = self._constant(value.type, value.content)
            else:
                raise InputError("a value is read before it is defined")
        return value.name

    def array(self, value: Value | None) -> NDArray[Any] | None:
        """The elements of a small constant as numbers, if they are known."""
        if value is None:
            return None
        if value.content is not None:
            flat = value.content.ravel()
            if any(isinstance(item, Expr | Ratio) for item in flat):
                return None
            kind = DTYPES[value.dtype]
            target = np.float64 if kind.is_float else np.bool_ if kind.kind == "bool" else np.int64
            return value.content.astype(target)
        weight = value.weight
        if weight is None or weight.read is None:
            return None
        if math.prod(weight.shape) > TABLE_LIMIT:
            return None
        bits = weight.load()
        if weight.type.dtype == "bf16":
            return bf16_to_f32(bits.astype(np.uint16))
        if weight.type.element.is_float and not np.issubdtype(bits.dtype, np.floating):
            return None
        return bits

    def dims(self, value: Value | None) -> tuple[Dim, ...] | None:
        """The elements of a small integer value as sizes, if they are known."""
        if value is None:
            return None
        if value.content is not None:
            flat = value.content.ravel().tolist()
            if all(isinstance(item, int | Expr) for item in flat):
                return tuple(int(item) if isinstance(item, bool) else item for item in flat)
            return None
        array = self.array(value)
        if array is None or not np.issubdtype(array.dtype, np.integer):
            return None
        return tuple(int(item) for item in array.ravel())

    def ints(self, value: Value | None, what: str) -> tuple[int, ...]:
        """The elements of an integer constant.

        Raises:
            NotCovered: they are not known while importing.
        """
        found = self.dims(value)
        if found is None or not all(isinstance(item, int) for item in found):
            raise NotCovered(f"{what} is not a constant")
        return tuple(item for item in found if isinstance(item, int))

    def number(self, value: Value, what: str) -> float:
        """The only element of a constant.

        Raises:
            NotCovered: it is not known while importing.
        """
        array = self.array(value)
        if array is None or array.size != 1:
            raise NotCovered(f"{what} is not a constant")
        return float(array.reshape(()))

    def _constant(self, kind: TensorType, content: Contents) -> str:
        elements = content.ravel().tolist()
        if kind.element.is_float and any(isinstance(item, Expr | Ratio) for item in elements):
            return self._measured(kind, content)
        key = (kind.dtype, kind.shape, repr(elements))
        if key not in self._constants:
            same = len(elements) > 1 and len(set(map(repr, elements))) == 1
            if same or len(elements) == 1 or not any(isinstance(item, Expr) for item in elements):
                held: Attr = elements[0] if same else _nested(content)
                attrs: Attrs = {"value": held, "dtype": kind.dtype, "shape": kind.shape}
                op = "full" if same else "constant"
                made = self.graph.add(op, (), attrs, origin=self.origin).output
            else:  # each size is known only where the model runs
                parts = [self.full(item, (1,), kind.dtype) for item in elements]
                made = self.materialise(self.reshape(self.concat(parts, 0), kind.shape))
            self._constants[key] = made
        return self._constants[key]

    def _measured(self, kind: TensorType, content: Contents) -> str:
        """Sizes in floating point: computed where the model runs."""
        flat = content.ravel().tolist()
        over = [item.over if isinstance(item, Ratio) else item for item in flat]
        under = [item.under if isinstance(item, Ratio) else 1 for item in flat]
        if not all(isinstance(item, int | Expr) for item in over):
            raise UnsupportedError("a list mixes sizes with fractions")
        result = self.cast(known(objects(over, content.shape), "i64"), kind.dtype)
        if any(item != 1 for item in under):
            divisor = self.cast(known(objects(under, content.shape), "i64"), kind.dtype)
            result = self.emit("div", (result, divisor))
        return self.materialise(result)

    def _parameter(self, weight: Weight) -> str:
        key = (weight.name, weight.identity)
        if key not in self._parameters:
            name = self.graph.add_parameter(self.graph.fresh(weight.name), weight)
            self._parameters[key] = name
        return self._parameters[key]

    # --- nodes ------------------------------------------------------------------------------

    def emit(self, op: str, operands: Sequence[Value] = (), attrs: Attrs | None = None) -> Value:
        """Add a node with one result."""
        (only,) = self.emit_all(op, operands, attrs)
        return only

    def emit_all(
        self, op: str, operands: Sequence[Value] = (), attrs: Attrs | None = None
    ) -> tuple[Value, ...]:
        """Add a node."""
        inputs = [self.materialise(value) for value in operands]
        node = self.graph.add(op, inputs, attrs, origin=self.origin)
        return tuple(Value(self.graph.type(name), name) for name in node.outputs)

    def elementwise(self, op: str, *operands: Value) -> Value:
        """Add an elementwise node; operands of one element become 0-d where that is the same."""
        rank = max(value.rank for value in operands)
        large = [value.rank for value in operands if not _is_single(value)]
        if large and max(large) == rank:
            operands = tuple(
                known(value.content.reshape(()), value.dtype)
                if value.content is not None and _is_single(value)
                else value
                for value in operands
            )
        self.agree(*(value.shape for value in operands))
        return self.emit(op, operands)

    def cast(self, x: Value, dtype: str) -> Value:
        """`x` with another element type."""
        if x.dtype == dtype:
            return x
        if x.content is not None and x.name is None:
            kinds = DTYPES[x.dtype], DTYPES[dtype]
            plain = not any(isinstance(item, Expr | Ratio) for item in x.content.ravel())
            if plain and kinds[1].is_float and kinds[0].kind != "packed":
                return known(_mapped(x.content, float), dtype)
        return self.emit("cast", (x,), {"dtype": dtype})

    def reshape(self, x: Value, shape: Sequence[Dim]) -> Value:
        """`x` with other sizes and the same elements."""
        shape = tuple(shape)
        if shape == x.shape:
            return x
        if x.content is not None and all(isinstance(dim, int) for dim in shape):
            return known(x.content.reshape(shape), x.dtype)  # type: ignore[arg-type]
        if x.weight is not None and all(isinstance(dim, int) for dim in shape):
            kind = x.type.with_shape(shape)
            sizes = tuple(dim for dim in shape if isinstance(dim, int))
            weight = x.weight.derive(
                x.weight.name, kind, "reshape", lambda bits: bits.reshape(sizes)
            )
            return self.parameter(weight)
        wanted, have = symbolic.product(shape), x.type.elements
        if wanted != have:
            self.require_equal(have, wanted)
        return self.emit("reshape", (x,), {"shape": shape})

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        """`x` with its axes in the order `perm`."""
        perm = tuple(perm)
        if perm == tuple(range(x.rank)):
            return x
        if x.weight is not None:
            return self.parameter(self.transpose_weight(x.weight, perm))
        return self.emit("transpose", (x,), {"perm": perm})

    def transpose_weight(self, weight: Weight, perm: tuple[int, ...]) -> Weight:
        """`weight` with its axes in the order `perm`, made when it is written."""
        base, before = self._transposed.get(weight.identity, (weight, tuple(range(len(perm)))))
        order = tuple(before[axis] for axis in perm)
        if order == tuple(range(len(order))):
            return base
        kind = base.type.with_shape(tuple(base.shape[axis] for axis in order))
        how = "transpose" + ",".join(map(str, order))
        name = weight.name
        result = base.derive(name, kind, how, lambda bits: np.transpose(bits, order))
        self._transposed[result.identity] = (base, order)
        return result

    def swap_last(self, x: Value) -> Value:
        """`x` with its last two axes exchanged."""
        return self.transpose(x, (*range(x.rank - 2), x.rank - 1, x.rank - 2))

    def expand(self, x: Value, shape: Sequence[Dim]) -> Value:
        """`x` repeated along the axes of size 1 to the sizes `shape`."""
        shape = tuple(shape)
        if shape == x.shape:
            return x
        self.agree(x.shape, shape)
        return self.emit("expand", (x,), {"shape": shape})

    def slice(self, x: Value, axis: int, start: Dim, stop: Dim, step: int = 1) -> Value:
        """Elements from `start` to `stop` of an axis; both are inside it already."""
        axis %= x.rank
        if start == 0 and stop == x.shape[axis] and step == 1:
            return x
        attrs: Attrs = {"axis": axis, "start": start, "stop": stop, "step": step}
        return self.emit("slice", (x,), attrs)

    def concat(self, parts: Sequence[Value], axis: int) -> Value:
        """`parts` joined along an axis."""
        if len(parts) == 1:
            return parts[0]
        axis %= parts[0].rank
        for part in parts[1:]:
            if part.rank != parts[0].rank:
                raise InputError("the operands of a `Concat` differ in rank")
            for index, (a, b) in enumerate(zip(parts[0].shape, part.shape, strict=True)):
                if index != axis:
                    self.require_equal(a, b)
        return self.emit("concat", parts, {"axis": axis})

    def take(self, x: Value, indices: Value, axis: int) -> Value:
        """Elements of `x` along an axis, as ONNX's `Gather`."""
        return self.emit("take", (x, indices), {"axis": axis % x.rank})

    def iota(self, size: Dim, dtype: str = "i64", start: Any = 0, step: Any = 1) -> Value:
        """`start`, `start + step`, ..."""
        return self.emit("iota", (), {"size": size, "start": start, "step": step, "dtype": dtype})

    def full(self, number: Any, shape: Sequence[Dim], dtype: str) -> Value:
        """`number` everywhere."""
        attrs: Attrs = {"value": number, "shape": tuple(shape), "dtype": dtype}
        return self.emit("full", (), attrs)

    def reduce(self, op: str, x: Value, axes: Sequence[int], keepdims: bool) -> Value:
        """A reduction."""
        attrs: Attrs = {"axes": tuple(axis % x.rank for axis in axes), "keepdims": keepdims}
        return self.emit(op, (x,), attrs)

    # --- sizes ------------------------------------------------------------------------------

    def known_now(self, dim: Dim) -> Dim:
        """A size as the file writes it, after all substitutions."""
        for _ in range(len(self.substitutions) + 1):
            before = dim
            dim = symbolic.substitute(dim, self.substitutions)
            if dim == before:
                break
        return dim

    def span(self, dim: Dim) -> tuple[float, float]:
        """Inclusive bounds of a size."""
        return symbolic.bounds(dim, self.graph.symbols)

    def smaller(self, a: Dim, b: Dim) -> Dim:
        """The smaller one, simplified by the ranges of the symbols."""
        for one, other in ((a, b), (b, a)):
            if isinstance(one, int) and one >= NO_BOUND:
                return other
        low, high = self.span(a - b)
        return a if high <= 0 else b if low >= 0 else symbolic.minimum(a, b)

    def larger(self, a: Dim, b: Dim) -> Dim:
        """The larger one, simplified by the ranges of the symbols."""
        low, high = self.span(a - b)
        return b if high <= 0 else a if low >= 0 else symbolic.maximum(a, b)

    def fresh_symbol(self, base: str, least: int = 0) -> Expr:
        """A symbol for a size that nothing tells."""
        name = base
        number = 0
        while name in self.graph.symbols:
            number += 1
            name = f"{base}_{number}"
        self.graph.symbols[name] = self.given.get(name, (least, None))
        self.data_sizes.add(name)
        return symbolic.symbol(name)

    def agree(self, *shapes: tuple[Dim, ...]) -> None:
        """Make sure that operands of `shapes` broadcast; see `require_equal`."""
        rank = max(map(len, shapes), default=0)
        for back in range(1, rank + 1):
            size: Dim = 1
            for shape in shapes:
                dim = shape[-back] if back <= len(shape) else 1
                if dim != 1:
                    if size != 1:
                        self.require_equal(size, dim)
                    size = dim

    def require_equal(self, a: Dim, b: Dim) -> None:
        """Go on only if `a` and `b` are the same size.

        Exporters give one size several symbols, clip `seq` to the length of a table, and halve a
        height to double it again; such a model runs only where the sizes are equal, so the import
        begins anew with that knowledge.

        Raises:
            Restart: they are, if symbols are narrowed.
            InputError: they never are.
        """
        if a == b:
            return
        made = sorted(self.data_sizes & (symbolic.symbols_of(a) | symbolic.symbols_of(b)))
        if made:
            hint = "write the model so that sizes follow from those of its inputs"
            raise UnsupportedError(f"the size `{made[0]}` depends on data", hint=hint)
        for one, other in ((a, b), (b, a)):
            name = _symbol_name(one)
            if name is not None and name not in symbolic.symbols_of(other):
                other_name = _symbol_name(other)
                if other_name is not None and self._declared(other_name) > self._declared(name):
                    raise Restart({other_name: one})
                raise Restart({name: other})
        self._lift_bound(a, b)
        self._find_divisor(a - b)
        self._solve(a - b)
        self._find_factor(a - b)
        hint = "the model was exported for other sizes, or is damaged"
        raise InputError(f"sizes `{a}` and `{b}` have to be equal, and are not", hint=hint)

    def _declared(self, name: str) -> int:
        return list(self.graph.symbols).index(name)

    def _lift_bound(self, a: Dim, b: Dim) -> None:
        """Where `a` and `b` differ by the limit in a `min`, keep the symbol below that limit."""
        for dim in (a, b):
            for atom in _atoms(dim):
                if atom.function != "min" or len(atom.arguments) != 2:
                    continue
                first, second = atom.arguments
                for free, limit in ((first, second), (second, first)):
                    name = _symbol_name(free)
                    if name is None or not isinstance(limit, int):
                        continue
                    if _replaced(a, atom, free) == _replaced(b, atom, free):
                        raise Restart(limits={name: limit})

    def _find_divisor(self, difference: Dim) -> None:
        """Where a product is divided by what can only be one of its factors, make them one."""
        for atom in _atoms(difference):
            name = _symbol_name(atom.arguments[1]) if atom.function == "//" else None
            if name is None:
                continue
            whole = atom.arguments[0]
            for other in sorted(symbolic.symbols_of(whole) - {name}, key=self._declared):
                factor = symbolic.symbol(other)
                if whole != factor and symbolic.substitute(difference, {name: factor}) == 0:
                    later, earlier = sorted((name, other), key=self._declared, reverse=True)
                    raise Restart({later: symbolic.symbol(earlier)})

    def _solve(self, difference: Dim) -> None:
        """Where `difference` is zero for one value of a symbol, use that.

        The value is a number, or what is left of a sum of others and can be a size.
        """
        names = symbolic.symbols_of(difference) - _divisors(difference)
        for name in sorted(names, key=self._declared, reverse=True):
            at_zero = symbolic.substitute(difference, {name: 0})
            slope = symbolic.substitute(difference, {name: 1}) - at_zero
            if slope == 0 or difference != slope * symbolic.symbol(name) + at_zero:
                continue
            value = symbolic.floor_divide(0 - at_zero, slope)
            if slope * value + at_zero != 0:
                continue
            if isinstance(value, int):
                possible = value >= 0 and (value > 0 or isinstance(slope, int))
            else:
                least = self.graph.symbols[name][0]
                possible = isinstance(slope, int) and self.span(value)[0] >= least
            if possible:
                raise Restart({name: value})

    def _find_factor(self, difference: Dim) -> None:
        """Where `difference` is zero for the multiples of a number, keep the symbol to those."""
        for name in sorted(symbolic.symbols_of(difference)):
            for factor in range(2, MAX_FACTOR + 1):
                multiple = {name: factor * symbolic.symbol(name)}
                if symbolic.substitute(difference, multiple) == 0:
                    raise Restart(factors={name: factor})


def known(content: Contents, dtype: str) -> Value:
    """A value whose elements are known."""
    return Value(TensorType(dtype, content.shape), content=content)


def objects(items: Sequence[Any], shape: Sequence[int]) -> Contents:
    """An array of Python objects; numpy must not look into them."""
    result = np.empty(len(items), dtype=object)
    for index, item in enumerate(items):
        result[index] = item
    return result.reshape(tuple(shape))


def positive_axes(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Axes counted from the front.

    Raises:
        InputError: one is outside the rank.
    """
    for axis in axes:
        if not -rank <= axis < rank:
            raise InputError(f"axis {axis} is outside rank {rank}")
    return tuple(axis % rank for axis in axes)


def static(dim: Dim, what: str) -> int:
    """A size that has to be known.

    Raises:
        NotCovered: it is not.
    """
    if not isinstance(dim, int):
        raise NotCovered(f"{what} is not a constant")
    return dim


def _mapped(content: Contents, change: Callable[[Any], Any]) -> Contents:
    return objects([change(item) for item in content.ravel().tolist()], content.shape)


def _nested(content: Contents) -> Attr:
    def nest(items: Any) -> Attr:
        return tuple(nest(item) for item in items) if isinstance(items, list) else items

    return nest(content.tolist())


def _is_single(value: Value) -> bool:
    return value.content is not None and value.name is None and value.content.size == 1


def _is_plain_constant(value: Value) -> bool:
    """Whether a tensor of the file is better a `constant` node: passes read those."""
    if value.content is None:
        return False
    if value.type.element.is_float:
        return value.content.size == 1
    return value.content.size <= 16


def _symbol_name(dim: Dim) -> str | None:
    names = symbolic.symbols_of(dim)
    if len(names) == 1 and dim == symbolic.symbol(min(names)):
        return min(names)
    return None


def _atoms(dim: Dim) -> list[symbolic.Atom]:
    if not isinstance(dim, Expr):
        return []
    return [atom for monomial, _ in dim.terms for atom, _ in monomial]


def _divisors(dim: Dim) -> frozenset[str]:
    """Symbols that `dim` divides by."""
    found: frozenset[str] = frozenset()
    for atom in _atoms(dim):
        found = found.union(*map(_divisors, atom.arguments))
        if atom.function in ("//", "%"):
            found |= symbolic.symbols_of(atom.arguments[1])
    return found


def _replaced(dim: Dim, atom: symbolic.Atom, other: Dim) -> Dim:
    """`dim` with `other` in place of `atom`."""
    if not isinstance(dim, Expr):
        return dim
    total: Dim = 0
    for monomial, factor in dim.terms:
        term: Dim = factor
        for part, power in monomial:
            base = other if part == atom else Expr({((part, 1),): 1})
            term = term * symbolic.product([base] * power)
        total = total + term
    return total
