"""The program of a target, read from `program/<target>.json` and checked.

    {"schema": "fusec.program/1", "target", "arch", "features": [name],
     "symbols": {"batch": [min, max]}, "module": "kernels/<arch>/<sha256>.so" (CPU),
     "inputs": [{"name", "dtype", "shape": [size], "buffer": id}], "outputs": [the same],
     "buffers": [{"kind": "input" | "output" | "weight" | "arena" | "error" (GPU), "bytes": size,
                  "name" (weight), "slot" (arena)}],
     "slots": [[size]],
     "sources": {entry: {...}} (GPU),
     "steps": [{"kind": "kernel", "symbol", "kernel", "node", "op",
                "buffers": [[id, byte offset]], "params": [integer | size | {"f64": number}]},
               {"kind": "launch", "module": "kernels/<arch>/<sha256>.hsaco", "symbol", "kernel",
                "node", "op", "grid": [size, size, size], "block": [lanes, 1, 1], "shared_bytes",
                "buffers": [[id, byte offset]], "params": [integer | size | {"f32": number}],
                "arguments": [[offset, bytes]], "kernarg_bytes"},
               {"kind": "external", "kernel", "node", "op", "call": {...},
                "operands": [{"dtype", "shape", "strides", "buffer", "offset"}]},
               {"kind": "onnx", "model": "residual/<target>/<n>.onnx", "node", "op", "reason",
                "inputs": [{"name", "dtype", "shape", "buffer", "offset"}], "outputs": [same]}]}

A CPU target has steps of the kind `kernel`, a GPU `launch` and `external`; both may have `onnx`.

A size is an integer or an expression over the symbols and, on a CPU, `threads`.  `{"f64": x}` and
`{"f32": x}` also take `"inf"`, `"-inf"` and `"nan"`.  An arena buffer begins where its slot does; a
slot is as large as the largest of its sizes, and may be shared by buffers that do not live at the
same time.

A launch is left out where one of its grid's sizes is 0.  `arguments` has a place in the argument
block for each operand, of 8 bytes, and then for each parameter: 4 or 8 bytes for an integer, 4 for
an f32.  An `error` buffer is an i64 that is 0 when a run begins; a kernel that meets an index
outside of `[0, bound)` stores `bound << 32 | (index & 0xFFFFFFFF)` in it.  `sources` says what
each code object was compiled from; only the emulator reads it.  A step also has `nodes`, where it
computes several, and `cost` (`read`, `write`, `flops`, `unit`), which `fusec.costs` reads: nothing
that runs depends on them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from fusec.dtypes import DTYPES
from fusec.runtime.artifact import Manifest, TensorSpec, read_range, read_tensor_spec
from fusec.runtime.documents import MAX_INTEGER, MAX_RANK, Field
from fusec.runtime.errors import MalformedError, OutOfBoundsError, VersionError
from fusec.runtime.external import read_external
from fusec.runtime.steps import (
    Binding,
    Buffer,
    ExternalStep,
    KernelStep,
    LaunchStep,
    Numbers,
    OnnxStep,
    Operand,
    Program,
    Step,
    StridedOperand,
)
from fusec.symbolic import Dim, symbols_of

SCHEMA = "fusec.program/1"
THREADS = "threads"
MAX_STEPS = 1 << 20
MAX_LANES = 1024
MAX_SHARED = 1 << 20
MAX_KERNARGS = 1 << 15
ERROR_BYTES = 8
POINTER_BYTES = 8


def read_program(document: Field, manifest: Manifest) -> Program:
    """Check a program against itself and against its manifest.

    Raises:
        MalformedError: a member is missing or not what it should be.
        OutOfBoundsError: it names a buffer, slot, weight or operand that is not there, or an
            argument leaves its block.
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
        self.grids = _NumberList()
        self.modules: dict[str, None] = {}
        self.is_gpu = False
        self.buffers: tuple[Buffer, ...] = ()

    def read(self) -> Program:
        document = self.document
        self.is_gpu = self._is_gpu()
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
        sources = document.get_or_none("sources")
        return Program(
            at=self.at,
            arch=document.get("arch").string(),
            features=document.get("features").tuple_of(Field.string, 256),
            symbols=self.symbols,
            modules=tuple(self.modules),
            inputs=inputs,
            outputs=outputs,
            buffers=self.buffers,
            slots=slots,
            steps=steps,
            expressions=tuple(self.expression_index),
            pointer_buffers=np.array(self.pointer_buffers, np.int64),
            pointer_offsets=self.pointer_offsets.done(),
            params=self.params.done(),
            grids=self.grids.done(),
            sources={} if sources is None else sources.mapping(),
        )

    def _is_gpu(self) -> bool:
        """Whether the target that the program names is a GPU."""
        name = self.document.get("target").string()
        for section in self.manifest.targets:
            if section.target == name:
                return section.family != "cpu"
        raise MalformedError("`target` is none of the manifest", at=self.at)

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
        errors = ("error",) if self.is_gpu else ()
        kind = item.get("kind").one_of("input", "output", "weight", "arena", *errors)
        name = item.get("name").string() if kind == "weight" else None
        slot = item.get("slot").integer() if kind == "arena" else None
        size = self._size(item.get("bytes"))
        if kind == "error" and size != ERROR_BYTES:
            raise item.get("bytes").error(f"`{ERROR_BYTES}`")
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

    def _step(self, item: Field) -> Step:
        readers: dict[str, Callable[[Field], Step]] = {"onnx": self._onnx_step}
        if self.is_gpu:
            readers |= {"launch": self._launch_step, "external": self._external_step}
        else:
            readers["kernel"] = self._kernel_step
        return readers[item.get("kind").one_of(*readers)](item)

    def _onnx_step(self, item: Field) -> OnnxStep:
        return OnnxStep(
            model=item.get("model").string(),
            node=item.get("node").string(),
            op=item.get("op").string(),
            reason=item.get("reason").string(),
            inputs=item.get("inputs").tuple_of(self._operand),
            outputs=item.get("outputs").tuple_of(self._operand),
        )

    def _kernel_step(self, item: Field) -> KernelStep:
        self.modules.setdefault(self.document.get("module").string())
        return KernelStep(
            symbol=self._symbol(item.get("symbol")),
            kernel=item.get("kernel").string(),
            node=item.get("node").string(),
            op=item.get("op").string(),
            pointers=self._pointers(item.get("buffers")),
            params=self._params(item.get("params"), "f64", _double_bits),
        )

    def _launch_step(self, item: Field) -> LaunchStep:
        module = item.get("module").string()
        self.modules.setdefault(module)
        pointers = self._pointers(item.get("buffers"))
        params = self._params(item.get("params"), "f32", _single_bits)
        kernarg_bytes = item.get("kernarg_bytes").integer(0, MAX_KERNARGS)
        sizes: list[tuple[int, ...]] = [(POINTER_BYTES,)] * len(pointers)
        sizes += [
            (4,) if isinstance(param.value, dict) else (4, 8)
            for param in item.get("params").items()
        ]
        return LaunchStep(
            module=module,
            symbol=self._symbol(item.get("symbol")),
            kernel=item.get("kernel").string(),
            node=item.get("node").string(),
            op=item.get("op").string(),
            pointers=pointers,
            params=params,
            grid=self._grid(item.get("grid")),
            block=_block(item.get("block")),
            shared_bytes=item.get("shared_bytes").integer(0, MAX_SHARED),
            arguments=_arguments(item.get("arguments"), sizes, kernarg_bytes),
            kernarg_bytes=kernarg_bytes,
        )

    def _external_step(self, item: Field) -> ExternalStep:
        call = read_external(item.get("call"))
        operands = item.get("operands").tuple_of(self._strided_operand)
        named = [value for _, given, value in call.arguments if given == "operand"]
        named += [index for index in call.returned if index is not None]
        if max(named, default=-1) >= len(operands):
            raise OutOfBoundsError(
                f"`{item.path}.call` names operand {max(named)} of {len(operands)}", at=self.at
            )
        return ExternalStep(
            op=item.get("op").string(),
            node=item.get("node").string(),
            kernel=item.get("kernel").string(),
            call=call,
            operands=operands,
        )

    def _symbol(self, item: Field) -> str:
        symbol = item.string()
        if not re.fullmatch(r"[A-Za-z_]\w{0,1023}", symbol, re.ASCII):
            raise item.error("the name of a C function")
        return symbol

    def _pointers(self, item: Field) -> range:
        begin = len(self.pointer_buffers)
        for operand in item.items():
            pair = operand.items(2)
            if len(pair) != 2:
                raise operand.error("a buffer and an offset")
            self.pointer_buffers.append(self._buffer_index(pair[0]))
            self._number(pair[1], self.pointer_offsets, 0)
        return range(begin, len(self.pointer_buffers))

    def _params(self, item: Field, key: str, bits: Callable[[Field], int]) -> range:
        begin = len(self.params.constants)
        for param in item.items():
            if isinstance(param.value, dict):
                self.params.constants.append(bits(param.get(key)))
            else:
                self._number(param, self.params, -MAX_INTEGER - 1)
        return range(begin, len(self.params.constants))

    def _grid(self, item: Field) -> range:
        begin = len(self.grids.constants)
        sizes = item.items(3)
        if len(sizes) != 3:
            raise item.error("three sizes")
        for size in sizes:
            self._number(size, self.grids, 0)
        return range(begin, len(self.grids.constants))

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

    def _strided_operand(self, item: Field) -> StridedOperand:
        shape = item.get("shape").tuple_of(self._size, MAX_RANK)
        strides = item.get("strides").tuple_of(self._size, MAX_RANK)
        if len(shape) != len(strides):
            raise item.get("strides").error("a stride for each size")
        return StridedOperand(
            dtype=item.get("dtype").one_of(*DTYPES),
            shape=shape,
            strides=strides,
            buffer=self._buffer_index(item.get("buffer")),
            offset=self._size(item.get("offset")),
        )


def _block(item: Field) -> tuple[int, int, int]:
    sizes = [size.integer(1, MAX_LANES) for size in item.items(3)]
    if len(sizes) != 3 or sizes[0] * sizes[1] * sizes[2] > MAX_LANES:
        raise item.error(f"three sizes of at most {MAX_LANES} lanes together")
    return sizes[0], sizes[1], sizes[2]


def _arguments(
    item: Field, sizes: list[tuple[int, ...]], kernarg_bytes: int
) -> tuple[tuple[int, int], ...]:
    """Places in an argument block, which must neither leave it nor overlap.

    Args:
        item: an offset and a size for each argument.
        sizes: those that each argument may have.
        kernarg_bytes: of the block.
    """
    items = item.items()
    if len(items) != len(sizes):
        raise item.error(f"{len(sizes)} arguments: each operand, then each parameter")
    places: list[tuple[int, int]] = []
    for argument, allowed in zip(items, sizes, strict=True):
        pair = argument.items(2)
        if len(pair) != 2:
            raise argument.error("an offset and a size")
        offset, size = pair[0].integer(), pair[1].integer()
        if size not in allowed:
            raise pair[1].error(" or ".join(f"`{each}`" for each in allowed))
        if offset + size > kernarg_bytes:
            raise OutOfBoundsError(
                f"`{argument.path}` ends at byte {offset + size} of a block of {kernarg_bytes}",
                at=item.at,
            )
        places.append((offset, size))
    for (begin, size), (following, _) in pairwise(sorted(places)):
        if begin + size > following:
            raise OutOfBoundsError(f"`{item.path}` overlap at byte {following}", at=item.at)
    return tuple(places)


def _double_bits(item: Field) -> int:
    return int(struct.unpack("<q", struct.pack("<d", _float(item)))[0])


def _single_bits(item: Field) -> int:
    with np.errstate(over="ignore"):
        return int(np.float32(_float(item)).view(np.int32))


def _float(item: Field) -> float:
    """A number, or one of those that JSON has none for."""
    return float(str(item.value)) if item.value in ("inf", "-inf", "nan") else item.number()
