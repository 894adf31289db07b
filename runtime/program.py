"""The program of a CPU target, read from `program/<target>.json` and checked.

    {"schema": "fusec.program/1", "target", "arch", "features": [name],
     "symbols": {"batch": [min, max]}, "module": "kernels/<arch>/<sha256>.so",
     "inputs": [{"name", "dtype", "shape": [size], "buffer": id}], "outputs": [the same],
     "buffers": [{"kind": "input" | "output" | "weight" | "arena", "bytes": size,
                  "name" (weight), "slot" (arena)}],
     "slots": [[size]],
     "steps": [{"kind": "kernel", "symbol", "kernel", "node", "op",
                "buffers": [[id, byte offset]], "params": [integer | size | {"f64": number}]},
               {"kind": "onnx", "model": "residual/<n>.onnx", "node", "op", "reason",
                "inputs": [{"name", "dtype", "shape", "buffer", "offset"}], "outputs": [same]}]}

A size is an integer or an expression over the symbols and `threads`.  `{"f64": x}` also takes
`"inf"`, `"-inf"` and `"nan"`.  An arena buffer begins where its slot does; a slot is as large as
the largest of its sizes, and may be shared by buffers that do not live at the same time.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fusec.dtypes import DTYPES
from fusec.runtime.artifact import Manifest, TensorSpec, read_range, read_tensor_spec
from fusec.runtime.documents import MAX_INTEGER, MAX_RANK, Field
from fusec.runtime.errors import MalformedError, OutOfBoundsError, VersionError
from fusec.symbolic import Dim, symbols_of

SCHEMA = "fusec.program/1"
THREADS = "threads"
MAX_STEPS = 1 << 20


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory that steps read and write.

    Attributes:
        kind: who owns it: `input`, `output`, `weight` or `arena`.
        bytes: its size.
        name: of the weight it is.
        slot: of the arena it lies in.
    """

    kind: str
    bytes: Dim
    name: str | None
    slot: int | None


@dataclass(frozen=True, slots=True)
class Binding:
    """An input or output of the model and the buffer that holds it, contiguous."""

    spec: TensorSpec
    buffer: int


@dataclass(frozen=True, slots=True)
class KernelStep:
    """One call of a kernel; its operands and parameters are in `Program.pointers`/`params`.

    Attributes:
        symbol: the function.
        kernel: the record it came from.
        node: of the graph.
        op: of the node.
        pointers: its part of `Program.pointers`.
        params: its part of `Program.params`.
    """

    symbol: str
    kernel: str
    node: str
    op: str
    pointers: range
    params: range


@dataclass(frozen=True, slots=True)
class Operand:
    """A contiguous tensor inside a buffer that onnxruntime reads or writes."""

    spec: TensorSpec
    buffer: int
    offset: Dim


@dataclass(frozen=True, slots=True)
class OnnxStep:
    """A part of the model that onnxruntime runs, and why."""

    model: str
    node: str
    op: str
    reason: str
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Numbers:
    """A long list of integers, some of which are expressions.

    Attributes:
        constants: the integers; 0 where there is an expression.
        places: where the expressions are.
        expressions: their indexes in `Program.expressions`.
    """

    constants: NDArray[np.int64]
    places: NDArray[np.int64]
    expressions: NDArray[np.int64]

    def filled(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """The integers, with expressions taken from `values`."""
        result = self.constants.copy()
        result[self.places] = values[self.expressions]
        return result


@dataclass(frozen=True, slots=True)
class Program:
    """A checked program.

    Attributes:
        at: the file and entry it was read from.
        arch: the instruction set.
        features: what the processor must have.
        symbols: inclusive range of each.
        module: the entry of the code; `None` when no step needs any.
        inputs: in order.
        outputs: in order.
        buffers: by index.
        slots: of the arena: the sizes it must hold.
        steps: in order.
        expressions: every expression of pointers and parameters, once.
        pointer_buffers: the buffer of every operand of every kernel step.
        pointer_offsets: its byte offset.
        params: every parameter of every kernel step.
    """

    at: str
    arch: str
    features: tuple[str, ...]
    symbols: Mapping[str, tuple[int, int]]
    module: str | None
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    buffers: tuple[Buffer, ...]
    slots: tuple[tuple[Dim, ...], ...]
    steps: tuple[KernelStep | OnnxStep, ...]
    expressions: tuple[Dim, ...]
    pointer_buffers: NDArray[np.int64]
    pointer_offsets: Numbers
    params: Numbers


def read_program(document: Field, manifest: Manifest) -> Program:
    """Check a program against itself and against its manifest.

    Raises:
        MalformedError: a member is missing or not what it should be.
        OutOfBoundsError: it names a buffer, slot or weight that is not there.
        VersionError: the schema is another one.
    """
    schema = document.get("schema").string()
    if schema != SCHEMA:
        raise VersionError(
            f"the schema is `{schema[:80]}`, but this fusec reads `{SCHEMA}`", at=document.at
        )
    return _ProgramReader(document, manifest).read()


@dataclass(slots=True)
class _NumberList:
    """`Numbers` in the making."""

    constants: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    expressions: list[int] = field(default_factory=list)

    def done(self) -> Numbers:
        return Numbers(
            np.array(self.constants, np.int64),
            np.array(self.places, np.int64),
            np.array(self.expressions, np.int64),
        )


class _ProgramReader:
    def __init__(self, document: Field, manifest: Manifest) -> None:
        self.document = document
        self.manifest = manifest
        self.at = document.at
        self.weight_sizes = {tensor.name: tensor.bytes for tensor in manifest.weights.tensors}
        self.symbols: dict[str, tuple[int, int]] = {}
        self.dims: dict[str, Dim] = {}
        self.expression_index: dict[Dim, int] = {}
        self.pointer_buffers: list[int] = []
        self.pointer_offsets = _NumberList()
        self.params = _NumberList()
        self.buffers: tuple[Buffer, ...] = ()

    def read(self) -> Program:
        document = self.document
        self.symbols = {
            name: read_range(field) for name, field in document.get("symbols").members()
        }
        if self.symbols != dict(self.manifest.symbols):
            raise MalformedError("`symbols` differ from those of the manifest", at=self.at)
        slots = document.get("slots").tuple_of(lambda slot: slot.tuple_of(self._size))
        self.buffers = document.get("buffers").tuple_of(lambda item: self._buffer(item, len(slots)))
        inputs = document.get("inputs").tuple_of(self._binding)
        outputs = document.get("outputs").tuple_of(self._binding)
        self._check_bindings(inputs, outputs)
        steps = document.get("steps").tuple_of(self._step, MAX_STEPS)
        module = document.get_or_none("module")
        if module is None and any(isinstance(step, KernelStep) for step in steps):
            raise MalformedError("`module` is missing", at=self.at)
        return Program(
            at=self.at,
            arch=document.get("arch").string(),
            features=document.get("features").tuple_of(Field.string, 256),
            symbols=self.symbols,
            module=None if module is None else module.string(),
            inputs=inputs,
            outputs=outputs,
            buffers=self.buffers,
            slots=slots,
            steps=steps,
            expressions=tuple(self.expression_index),
            pointer_buffers=np.array(self.pointer_buffers, np.int64),
            pointer_offsets=self.pointer_offsets.done(),
            params=self.params.done(),
        )

    def _check_bindings(self, inputs: tuple[Binding, ...], outputs: tuple[Binding, ...]) -> None:
        for key, bindings, specs in (
            ("inputs", inputs, self.manifest.inputs),
            ("outputs", outputs, self.manifest.outputs),
        ):
            if tuple(binding.spec for binding in bindings) != specs:
                raise MalformedError(f"`{key}` differ from those of the manifest", at=self.at)
        owners = [binding.buffer for binding in inputs]
        owners += [
            binding.buffer for binding in outputs if self.buffers[binding.buffer].kind == "output"
        ]
        owned = [
            index for index, buffer in enumerate(self.buffers) if buffer.kind in ("input", "output")
        ]
        if sorted(owners) != owned or any(
            self.buffers[binding.buffer].kind != "input" for binding in inputs
        ):
            raise MalformedError(
                "every input and output buffer must belong to one input or output", at=self.at
            )

    def _dim(self, item: Field, low: int = 0) -> Dim:
        """A size; the same text is parsed once."""
        if not isinstance(item.value, str):
            return item.dim(low)
        known = self.dims.get(item.value)
        if known is None:
            known = item.dim(-MAX_INTEGER - 1)
            unknown = symbols_of(known) - self.symbols.keys() - {THREADS}
            if unknown:
                raise MalformedError(
                    f"`{item.path}`: the symbol `{min(unknown)}` has no range", at=self.at
                )
            self.dims[item.value] = known
        if isinstance(known, int) and known < low:
            raise item.error(f"a size of at least {low}")
        return known

    def _size(self, item: Field) -> Dim:
        return self._dim(item)

    def _buffer(self, item: Field, slots: int) -> Buffer:
        kind = item.get("kind").one_of("input", "output", "weight", "arena")
        name = item.get("name").string() if kind == "weight" else None
        slot = item.get("slot").integer() if kind == "arena" else None
        size = self._size(item.get("bytes"))
        if slot is not None and slot >= slots:
            raise OutOfBoundsError(f"`{item.path}.slot`: there are {slots} slots", at=self.at)
        if name is not None:
            weights = self.weight_sizes
            if name not in weights:
                raise OutOfBoundsError(f"there is no weight `{name[:120]}`", at=self.at)
            if size != weights[name]:
                raise OutOfBoundsError(
                    f"the weight `{name[:120]}` has {weights[name]} bytes, not `{size}`", at=self.at
                )
        return Buffer(kind, size, name, slot)

    def _buffer_index(self, item: Field) -> int:
        index = item.integer()
        if index >= len(self.buffers):
            raise OutOfBoundsError(
                f"`{item.path}` is {index}, but there are {len(self.buffers)} buffers", at=self.at
            )
        return index

    def _binding(self, item: Field) -> Binding:
        return Binding(read_tensor_spec(item), self._buffer_index(item.get("buffer")))

    def _step(self, item: Field) -> KernelStep | OnnxStep:
        if item.get("kind").one_of("kernel", "onnx") == "kernel":
            return self._kernel_step(item)
        return OnnxStep(
            model=item.get("model").string(),
            node=item.get("node").string(),
            op=item.get("op").string(),
            reason=item.get("reason").string(),
            inputs=item.get("inputs").tuple_of(self._operand),
            outputs=item.get("outputs").tuple_of(self._operand),
        )

    def _kernel_step(self, item: Field) -> KernelStep:
        symbol = item.get("symbol").string()
        if not re.fullmatch(r"[A-Za-z_]\w{0,1023}", symbol, re.ASCII):
            raise item.get("symbol").error("the name of a C function")
        pointers_begin, params_begin = len(self.pointer_buffers), len(self.params.constants)
        for operand in item.get("buffers").items():
            pair = operand.items(2)
            if len(pair) != 2:
                raise operand.error("a buffer and an offset")
            self.pointer_buffers.append(self._buffer_index(pair[0]))
            self._number(pair[1], self.pointer_offsets, 0)
        for param in item.get("params").items():
            if isinstance(param.value, dict):
                self.params.constants.append(_double_bits(param.get("f64")))
            else:
                self._number(param, self.params, -MAX_INTEGER - 1)
        return KernelStep(
            symbol=symbol,
            kernel=item.get("kernel").string(),
            node=item.get("node").string(),
            op=item.get("op").string(),
            pointers=range(pointers_begin, len(self.pointer_buffers)),
            params=range(params_begin, len(self.params.constants)),
        )

    def _number(self, item: Field, numbers: _NumberList, low: int) -> None:
        value = self._dim(item, low)
        if isinstance(value, int):
            numbers.constants.append(value)
            return
        index = self.expression_index.setdefault(value, len(self.expression_index))
        numbers.places.append(len(numbers.constants))
        numbers.expressions.append(index)
        numbers.constants.append(0)

    def _operand(self, item: Field) -> Operand:
        spec = TensorSpec(
            item.get("name").string(),
            item.get("dtype").one_of(*DTYPES),
            item.get("shape").tuple_of(self._size, MAX_RANK),
        )
        return Operand(spec, self._buffer_index(item.get("buffer")), self._size(item.get("offset")))


def _double_bits(item: Field) -> int:
    if item.value in ("inf", "-inf", "nan"):
        value = float(str(item.value))
    else:
        value = item.number()
    return int(struct.unpack("<q", struct.pack("<d", value))[0])
