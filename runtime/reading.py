"""Reads inputs from `.npz`, `.safetensors` and `.jsonl`, a batch at a time.

Nothing is unpickled, and no more is read than the batch at hand needs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import mmap
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fusec.diagnostics import ArtifactError, InputError, read_error
from fusec.dtypes import DTYPES
from fusec.runtime.artifact import TensorSpec
from fusec.runtime.batches import BATCH, BadRecord, Batch, Batching
from fusec.runtime.model import Array, bind_symbols, check_inputs, check_rank, shown, to_storage
from fusec.runtime.tensor_file import TensorPlace, as_array, read_header

Symbols = Mapping[str, tuple[int, int]]


class ArrayFile(Protocol):
    """Arrays by name, read row by row in order."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The sizes of each array."""

    def take(self, name: str, rows: int | None) -> Array:
        """The next `rows` rows of an array, or all of it."""

    def close(self) -> None:
        """Close the file; arrays taken from it stay."""


def array_batches(
    path: Path,
    file: ArrayFile,
    inputs: Sequence[TensorSpec],
    symbols: Symbols,
    batching: Batching,
) -> Iterator[Batch]:
    """The batches of a file of arrays.

    Raises:
        InputError: arrays are missing or unknown, or differ in their number of rows.
    """
    shapes = file.shapes()
    names = [spec.name for spec in inputs]
    listed = ", ".join(f"`{spec}`" for spec in inputs)
    for name in shapes:
        if name not in names:
            raise InputError(
                f"there is no input `{name}`", at=str(path), hint=f"the inputs are {listed}"
            )
    for name in names:
        if name not in shapes:
            raise InputError(
                f"the input `{name}` is missing", at=str(path), hint=f"the inputs are {listed}"
            )
    counts = {name: shapes[name][0] for name in names if name in batching.inputs and shapes[name]}
    if not batching.rows or len(counts) < len(batching.inputs):
        yield Batch({name: file.take(name, None) for name in names}, 0, 1, (), False)
        return
    first = next(iter(counts))
    for name, count in counts.items():
        if count != counts[first]:
            raise InputError(
                f"`{BATCH}` is {counts[first]} in the input `{first}` but {count} in `{name}`",
                at=str(path),
                hint="give every input as many records",
            )
    whole = {name: file.take(name, None) for name in names if name not in batching.inputs}
    done = 0
    sizes = _sizes_of_a_row(path, shapes, inputs, symbols, batching)
    for size in batching.split(counts[first], batching.size_for(sizes)):
        rows = {name: file.take(name, size) for name in names if name in batching.inputs}
        yield Batch({**whole, **rows}, done, size, (), True)
        done += size


def _sizes_of_a_row(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    inputs: Sequence[TensorSpec],
    symbols: Symbols,
    batching: Batching,
) -> dict[str, int]:
    """The values of the symbols for one row."""
    rows = {
        spec.name: np.broadcast_to(
            np.zeros((), DTYPES[spec.dtype].numpy),
            (1, *shapes[spec.name][1:]) if spec.name in batching.inputs else shapes[spec.name],
        )
        for spec in inputs
    }
    try:
        for spec in inputs:
            check_rank(spec, rows[spec.name])
        return bind_symbols(inputs, {**symbols, BATCH: (0, batching.high)}, rows)
    except InputError as error:
        raise located(error, str(path)) from None


def count_rows(file: ArrayFile, batching: Batching) -> int:
    """How many records a file of arrays has."""
    if not batching.rows:
        return 1
    shapes = file.shapes()
    return next((shapes[name][0] for name in shapes if name in batching.inputs and shapes[name]), 1)


# --- .npz -----------------------------------------------------------------------------------

_BAD_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


@dataclass(frozen=True, slots=True)
class _Header:
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]


class _Stream(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class NpzFile:
    """The arrays of a `.npz`, streamed, compressed or not."""

    def __init__(self, path: Path) -> None:
        """Read the headers of all arrays.

        Raises:
            InputError: it is not a `.npz`, or an array holds Python objects.
        """
        self._path = path
        self._streams: dict[str, _Stream] = {}
        self._headers: dict[str, _Header] = {}
        with contextlib.ExitStack() as cleanup:
            try:
                archive = cleanup.enter_context(zipfile.ZipFile(path))
                for member in archive.namelist():
                    if member.endswith(".npy"):
                        stream = cleanup.enter_context(archive.open(member))
                        self._streams[member.removesuffix(".npy")] = stream
            except (OSError, *_BAD_ZIP) as error:
                raise _unreadable(path, error) from None
            for name, opened in self._streams.items():
                self._headers[name] = self._header(name, opened)
            self._cleanup = cleanup.pop_all()

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The sizes of each array."""
        return {name: header.shape for name, header in self._headers.items()}

    def take(self, name: str, rows: int | None) -> Array:
        """The next `rows` rows of an array, or all of it."""
        header = self._headers[name]
        if header.fortran and len(header.shape) > 1:
            return self._take_fortran(name, header, rows)
        shape = header.shape if rows is None else (rows, *header.shape[1:])
        return self._read(name, math.prod(shape), header.dtype).reshape(shape)

    def close(self) -> None:
        """Close the file; arrays taken from it stay."""
        self._cleanup.close()

    def _take_fortran(self, name: str, header: _Header, rows: int | None) -> Array:
        """Column order has no rows to stream: the array is read whole, once."""
        array = self._read(name, math.prod(header.shape), header.dtype)
        array = array.reshape(header.shape, order="F")
        if rows is None:
            return array
        self._streams[name] = _Memory(np.ascontiguousarray(array))
        self._headers[name] = _Header(header.shape, False, header.dtype)
        return self.take(name, rows)

    def _read(self, name: str, count: int, dtype: np.dtype[Any]) -> Array:
        size = count * dtype.itemsize
        try:
            data = self._streams[name].read(size)
        except (OSError, *_BAD_ZIP) as error:
            raise self._error(name, _reason(error)) from None
        if len(data) != size:
            raise self._error(name, "the file is too short")
        return np.frombuffer(data, dtype)

    def _header(self, name: str, file: _Stream) -> _Header:
        read = np.lib.format
        try:
            version = read.read_magic(file)
            reader = read.read_array_header_1_0 if version == (1, 0) else read.read_array_header_2_0
            shape, fortran, dtype = reader(file)
        except (OSError, ValueError, *_BAD_ZIP) as error:
            raise self._error(name, _reason(error)) from None
        if dtype.hasobject:
            raise self._error(name, "it holds Python objects, which are never unpickled")
        if dtype.names is not None or any(size < 0 for size in shape):
            raise self._error(name, "it is not an array of numbers")
        return _Header(shape, fortran, dtype)

    def _error(self, name: str, reason: str) -> InputError:
        hint = "save it again with `numpy.savez`, as an array of numbers"
        return InputError(
            f"cannot read the array `{name}`: {reason}", at=str(self._path), hint=hint
        )


class _Memory:
    """Reads from an array as from a file."""

    def __init__(self, array: Array) -> None:
        self._data = array.reshape(-1).view(np.uint8).data

    def read(self, size: int = -1, /) -> bytes:
        result, self._data = self._data[:size], self._data[size:]
        return bytes(result)


# --- .safetensors ---------------------------------------------------------------------------


class SafetensorsFile:
    """The arrays of a `.safetensors`, mapped."""

    def __init__(self, path: Path) -> None:
        """Map the file and check its header.

        Raises:
            InputError: it is not safetensors.
        """
        try:
            with path.open("rb") as file:
                self._data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            self._places, self._header = read_header(self._data, str(path))
        except (OSError, ValueError, ArtifactError) as error:
            raise _unreadable(path, error) from None
        self._next: dict[str, int] = {}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The sizes of each array."""
        return {name: place.shape for name, place in self._places.items()}

    def take(self, name: str, rows: int | None) -> Array:
        """The next `rows` rows of an array, or all of it; bf16 as float32."""
        place = self._places[name]
        if rows is None:
            return self._array(place, 0, place.bytes, place.shape)
        begin = self._next.get(name, 0)
        self._next[name] = begin + rows
        row = place.bytes // place.shape[0] if place.shape[0] else 0
        shape = (rows, *place.shape[1:])
        return self._array(place, begin * row, (begin + rows) * row, shape)

    def close(self) -> None:
        """The mapping goes with the last array that was taken from it."""

    def _array(self, place: TensorPlace, begin: int, end: int, shape: tuple[int, ...]) -> Array:
        offset = self._header + place.offset
        return shown(
            place.dtype, as_array(self._data[offset + begin : offset + end], place.dtype, shape)
        )


# --- .jsonl ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Record:
    inputs: Mapping[str, Array]
    index: int
    line: int
    rows: bool
    together: int

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(array.shape[1:] for array in self.inputs.values())


class RecordReader:
    """Makes inputs from records: `{"input": [...]}` or, with a tokenizer, `{"text": "..."}`."""

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        symbols: Symbols,
        batching: Batching,
        tokenizer: bytes | None,
    ) -> None:
        self._inputs = inputs
        self._batching = batching
        self._tokenizer_json = tokenizer
        self._tokenizer: Any = None
        # A record is checked alone, before it is known how many go together.
        self._symbols = dict(symbols)
        if batching.rows:
            self._symbols[BATCH] = (0, batching.high)

    def batches(self, lines: Iterator[bytes], at: str) -> Iterator[Batch | BadRecord]:
        """Consecutive records of equal sizes go together; order is kept."""
        waiting: list[_Record] = []
        index = 0
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = self._record(line, index, number)
            except InputError as error:
                yield from _joined(waiting)
                waiting = []
                yield BadRecord(index, number, located(error, f"{at}:{number}"))
                index += 1
                continue
            index += 1
            if waiting and (
                len(waiting) >= record.together
                or not record.rows
                or record.shapes != waiting[0].shapes
            ):
                yield from _joined(waiting)
                waiting = []
            waiting.append(record)
            if not record.rows:
                yield from _joined(waiting)
                waiting = []
        yield from _joined(waiting)

    def _record(self, line: bytes, index: int, number: int) -> _Record:
        values = self._with_tokens(_parsed(line))
        given: dict[str, object] = {}
        ranks: set[int] = set()
        for spec in self._inputs:
            if spec.name not in values:
                continue
            array = _numbers(spec, values[spec.name])
            missing = len(spec.shape) - array.ndim
            if spec.name in self._batching.inputs and missing == 1:
                array = array[np.newaxis]
            if spec.name in self._batching.inputs:
                ranks.add(missing)
            given[spec.name] = array
        given.update({name: value for name, value in values.items() if name not in given})
        checked = check_inputs(self._inputs, self._symbols, given)
        if len(ranks) > 1:
            hint = "give all of them one, or none"
            raise InputError("some inputs have a batch dim and some have none", hint=hint)
        sizes = bind_symbols(self._inputs, self._symbols, checked)
        inputs = {spec.name: shown(spec.dtype, checked[spec.name]) for spec in self._inputs}
        rows = ranks == {1} and self._batching.rows
        together = rows and len(self._batching.inputs) == len(self._inputs)
        return _Record(inputs, index, number, together, self._batching.size_for(sizes))

    def _with_tokens(self, values: Mapping[str, object]) -> Mapping[str, object]:
        names = {spec.name for spec in self._inputs}
        if "text" not in values or "text" in names:
            return values
        text = values["text"]
        if not isinstance(text, str):
            hint = 'write `{"text": "hello"}`, for example'
            raise InputError("`text` must be a string", hint=hint)
        encoding = self._encoder().encode(text)
        tokens = {
            "input_ids": encoding.ids,
            "attention_mask": encoding.attention_mask,
            "token_type_ids": encoding.type_ids,
        }
        if "input_ids" not in names:
            hint = f"give the inputs {', '.join(f'`{name}`' for name in sorted(names))}"
            raise InputError("this model takes no text: it has no input `input_ids`", hint=hint)
        made = {name: value for name, value in tokens.items() if name in names}
        return {**made, **{name: value for name, value in values.items() if name != "text"}}

    def _encoder(self) -> Any:
        if self._tokenizer is None:
            if self._tokenizer_json is None:
                raise InputError(
                    "`text` needs a tokenizer, and the artifact has none",
                    hint="give `input_ids`, or compile from a folder that has `tokenizer.json`",
                )
            if importlib.util.find_spec("tokenizers") is None:
                raise InputError(
                    "`text` needs the package `tokenizers`, which is not installed",
                    hint="install it: `pip install tokenizers`",
                )
            import tokenizers

            self._tokenizer = tokenizers.Tokenizer.from_str(self._tokenizer_json.decode("utf-8"))
            # Padding is of no use to batches of equal length, and nothing is cut off silently.
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
        return self._tokenizer


def located(error: InputError, at: str) -> InputError:
    """The same error at `at`."""
    where = at if error.at is None else f"{at} at {error.at}"
    return type(error)(str(error), at=where, detail=error.detail, hint=error.hint)


def open_lines(path: Path | None) -> Callable[[], Iterator[bytes]]:
    """The lines of a file, or of standard input.

    Raises:
        InputError: the file cannot be read.
    """
    if path is None:
        return lambda: iter(sys.stdin.buffer)
    try:
        path.open("rb").close()
    except OSError as error:
        raise _unreadable(path, error) from None
    return lambda: _lines(path)


def count_lines(path: Path) -> int:
    """How many lines a file has."""
    with path.open("rb") as file:
        count, last = 0, b"\n"
        while block := file.read(1 << 20):
            count, last = count + block.count(b"\n"), block[-1:]
    return count + (last != b"\n")


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file


_RECORD = 'write one object a line, such as `{"input_ids": [1, 2, 3]}`'


def _parsed(line: bytes) -> Mapping[str, object]:
    try:
        values = json.loads(line)
    except RecursionError:
        raise InputError("the JSON is nested too deeply", hint=_RECORD) from None
    except ValueError as error:
        raise InputError(f"this is not JSON: {str(error)[:200]}", hint=_RECORD) from None
    if not isinstance(values, dict):
        raise InputError("a record must be an object", hint=_RECORD)
    return values


def _numbers(spec: TensorSpec, value: object) -> Array:
    """JSON numbers as an array of the dtype that they are wanted in, where that is safe."""
    return shown(spec.dtype, to_storage(spec, value))


def _joined(records: list[_Record]) -> Iterator[Batch]:
    if not records:
        return
    first = records[0]
    inputs = first.inputs
    if len(records) > 1:
        inputs = {
            name: np.concatenate([record.inputs[name] for record in records]) for name in inputs
        }
    lines = tuple(record.line for record in records)
    yield Batch(inputs, first.index, len(records), lines, first.rows)


def _unreadable(path: Path, error: Exception) -> InputError:
    if isinstance(error, OSError):
        return read_error(path, error)
    hint = "save it again, or copy it again if it was cut off"
    return InputError(f"cannot read `{path}`: {_reason(error)}", hint=hint)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
