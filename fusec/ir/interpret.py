"""Runs a graph through the meanings of its operations: slow, exact, and all there is to agree with.

Floats are float64, integers int64 and flags bool, whatever the dtypes say, so the result is what
the model means before any rounding.  Integers wrap at the width that the dtype says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

import numpy as np

from fusec import symbolic
from fusec.diagnostics import InputError, UnsupportedError
from fusec.dtypes import DTYPES, bf16_to_f32, f32_to_bf16
from fusec.formats import decode
from fusec.ir.graph import Graph, Node
from fusec.ir.ops import OPS, is_opaque, op_named
from fusec.ir.ops.base import Array
from fusec.ir.types import Attr, TensorType
from fusec.ir.weights import Bits, Weight
from fusec.symbolic import Dim, Expr

Opaque: TypeAlias = Callable[[Graph, Node, Sequence[Array], Sequence[TensorType]], Sequence[Array]]
"""What an opaque node of a graph makes of operands, where results have these types."""

_opaque: ContextVar[Opaque | None] = ContextVar("_opaque", default=None)


@contextmanager
def opaque_nodes(meaning: Opaque) -> Iterator[None]:
    """Within it, what `meaning` says is the meaning of nodes that have none of their own."""
    token = _opaque.set(meaning)
    try:
        yield
    finally:
        _opaque.reset(token)


def interpret(
    graph: Graph,
    inputs: Mapping[str, Array],
    parameters: Mapping[str, Array] | None = None,
    *,
    rounds: bool = False,
) -> dict[str, Array]:
    """The outputs of `graph` by their names.

    Args:
        graph: any graph, without opaque nodes unless `opaque_nodes` gives them a meaning.
        inputs: an array for each input, by name; bf16 may come as its bits in uint16, or as floats.
        parameters: arrays that stand for parameters, by value; the rest are read from the weights.
            Of what is padded in memory the logical elements count.
        rounds: whether each value is rounded to its dtype, as a program does that computes one
            operation after the other.

    Returns:
        Outputs by `output_names`: float64, int64 or bool.

    Raises:
        InputError: an input is missing, or its shape does not fit.
        UnsupportedError: a node is opaque.
    """
    returned = set(graph.outputs)
    made = meanings(graph, inputs, parameters, rounds=rounds)
    values = {value: array for value, array in made if value in returned}
    outputs = zip(graph.output_names, graph.outputs, strict=True)
    return {name: np.array(values[value]) for name, value in outputs}


def meanings(
    graph: Graph,
    inputs: Mapping[str, Array],
    parameters: Mapping[str, Array] | None = None,
    *,
    rounds: bool = False,
) -> Iterator[tuple[str, Array]]:
    """Every value that is read or returned, as soon as it is known; see `interpret`.

    A parameter is read when a node reads it first, and a value is forgotten after its last reader.
    """
    missing = [name for name in graph.inputs if name not in inputs]
    if missing:
        raise InputError(f"no value for input `{missing[0]}`")
    symbols = bind_symbols(graph, {name: inputs[name].shape for name in graph.inputs})
    given = parameters or {}
    values: dict[str, Array] = {}
    for name in graph.inputs:
        values[name] = widen(np.asarray(inputs[name]), graph.type(name).dtype)
        yield name, values[name]
    reads_left = {value: len(graph.users(value)) for value in (*graph.inputs, *graph.parameters)}
    reads_left |= {value: len(graph.users(value)) for value in _made(graph)}

    def parameter(name: str) -> Array:
        return parameter_value(graph.parameters[name], given.get(name))

    for node in graph.nodes():
        for value in node.inputs:
            if value not in values:
                values[value] = parameter(value)
                yield value, values[value]
        operands = [values[value] for value in node.inputs]
        for value, array in computed(graph, node, operands, symbols).items():
            kept = rounded_to(array, graph.type(value).dtype) if rounds else array
            if reads_left[value]:
                values[value] = kept
            yield value, kept
        for value in dict.fromkeys(node.inputs):
            reads_left[value] -= 1
            if reads_left[value] == 0:
                del values[value]
    for name in dict.fromkeys(graph.outputs):
        if name in graph.parameters:
            yield name, parameter(name)


def parameter_value(weight: Weight, given: Array | None = None) -> Array:
    """The logical elements of a weight, as references take them.

    Args:
        weight: to read.
        given: an array that stands for it, padded or not.
    """
    array = np.asarray(weight.load() if given is None else given)
    return widen(array[tuple(slice(size) for size in weight.shape)], weight.type.dtype)


def computed(
    graph: Graph, node: Node, operands: Sequence[Array], symbols: Mapping[str, int]
) -> dict[str, Array]:
    """What a node makes of `operands`, by the name of each output.

    Args:
        graph: of the node.
        node: to compute.
        operands: as references take them, in order.
        symbols: the value of each symbol.

    Raises:
        UnsupportedError: the node is opaque, and `opaque_nodes` gives it no meaning.
    """
    types = tuple(_known(graph.type(value), symbols) for value in node.outputs)
    opaque = _opaque.get()
    with np.errstate(all="ignore"):
        if opaque is not None and is_opaque(node.op):
            made = opaque(graph, node, operands, types)
        else:
            made = _run(node, list(operands), types, symbols)
    return dict(zip(node.outputs, made, strict=True))


def rounded_to(array: Array, dtype: str) -> Array:
    """`array` as it is after it was stored as `dtype`: bf16, f16 and f32 round, others hold it."""
    with np.errstate(all="ignore"):
        if dtype == "bf16":
            return bf16_to_f32(f32_to_bf16(np.asarray(array, np.float32))).astype(np.float64)
        if dtype in ("f16", "f32"):
            return array.astype(DTYPES[dtype].numpy).astype(np.float64)
    return array


def bind_symbols(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The values of the symbols that the inputs' sizes stand for.

    Raises:
        InputError: a shape has another rank, or a size that contradicts the type.
    """
    symbols: dict[str, int] = {}
    compound: list[tuple[str, int, Dim, int]] = []
    for name in graph.inputs:
        type = graph.type(name)
        shape = shapes[name]
        if len(shape) != type.rank:
            raise InputError(f"input `{name}` has the shape {list(shape)}, but is `{type}`")
        for axis, (dim, size) in enumerate(zip(type.shape, shape, strict=True)):
            if isinstance(dim, Expr) and str(dim) in graph.symbols:
                symbols.setdefault(str(dim), size)
            compound.append((name, axis, dim, size))
    for name, axis, dim, size in compound:
        missing = sorted(symbolic.symbols_of(dim) - symbols.keys())
        if len(missing) == 1:
            symbols[missing[0]] = _solve(dim, missing[0], size, symbols)
        if symbolic.evaluate(dim, symbols) != size:
            expected = symbolic.evaluate(dim, symbols)
            raise InputError(f"size {axis} of input `{name}` is {size}, but `{dim}` is {expected}")
    return symbols


def widen(array: Array, dtype: str) -> Array:
    """`array` as the references take it: float64, int64 or bool; pairs of 4-bit floats as bytes."""
    kind = TensorType(dtype, ())
    if kind.dtype == "bool":
        return array.astype(np.bool_)
    if kind.element.is_float and not np.issubdtype(array.dtype, np.floating):
        if dtype == "bf16" and array.dtype == np.uint16:
            return bf16_to_f32(array).astype(np.float64)
        return decode(array, dtype)
    return array.astype(np.float64 if kind.element.is_float else np.int64)


def encoded(array: Array, dtype: str) -> Bits:
    """Numbers of a reference in the storage type of `dtype`.

    Raises:
        UnsupportedError: there is no rule for the dtype.
    """
    if dtype == "bf16":
        return f32_to_bf16(np.asarray(array, np.float32))
    if DTYPES[dtype].bits == 8 and DTYPES[dtype].is_float:
        raise UnsupportedError(f"constants of {dtype} are not supported")
    return np.asarray(array).astype(DTYPES[dtype].numpy)


def _solve(dim: Dim, name: str, size: int, symbols: Mapping[str, int]) -> int:
    """The value of `name` that makes `dim`, if linear in it, equal to `size`."""
    at_zero = symbolic.evaluate(dim, {**symbols, name: 0})
    slope = symbolic.evaluate(dim, {**symbols, name: 1}) - at_zero
    return (size - at_zero) // slope if slope else 0


def _made(graph: Graph) -> list[str]:
    return [value for node in graph.nodes() for value in node.outputs]


def _run(
    node: Node, operands: list[Array], types: tuple[TensorType, ...], symbols: Mapping[str, int]
) -> Sequence[Array]:
    if is_opaque(node.op):
        where = node.origin.path or node.name
        raise UnsupportedError(
            f"`{node.op}`, which is left to onnxruntime, has no meaning in float64",
            at=where,
            hint="compare what `fusec run` writes with the outputs of the source",
        )
    if node.op not in OPS:
        message = f"`{node.op}` is an operation of an extension that is not installed"
        raise UnsupportedError(message, at=node.origin.path or node.name)
    attrs = {name: _plain(value, symbols) for name, value in node.attrs.items()}
    return op_named(node.op).reference(operands, attrs, types)


def _plain(value: Attr, symbols: Mapping[str, int]) -> Attr:
    if isinstance(value, Expr):
        return symbolic.evaluate(value, symbols)
    if isinstance(value, tuple):
        return tuple(_plain(item, symbols) for item in value)
    return value


def _known(type: TensorType, symbols: Mapping[str, int]) -> TensorType:
    return type.with_shape(tuple(symbolic.evaluate(dim, symbols) for dim in type.shape))
