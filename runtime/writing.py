"""Writes outputs to `.npz`, `.safetensors` and `.jsonl` as they come.

Arrays of every call are appended to one scratch file for each output; the file a person asked for
is assembled from them at the end.  It gets its name when it is complete, so a run that fails
leaves neither half a file nor the scratch files.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import struct
import sys
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self, TextIO

import numpy as np

from fusec.dtypes import DTYPES, f32_to_bf16
from fusec.runtime.artifact import TensorSpec
from fusec.runtime.batches import BadRecord, Batch
from fusec.runtime.files import NewFile, write_errors
from fusec.runtime.model import Array

_BLOCK = 1 << 20
_DATE = (1980, 1, 1, 0, 0, 0)


class Writer(ABC):
    """Takes the outputs of one call after the other.

    As a context it closes at the end, and leaves nothing behind when an error passes through.
    """

    @abstractmethod
    def write(self, batch: Batch, outputs: Mapping[str, Array]) -> None:
        """Append the outputs of `batch`."""

    @abstractmethod
    def write_error(self, record: BadRecord) -> None:
        """Say that a record has no outputs."""

    @abstractmethod
    def close(self) -> None:
        """Complete the file and give it its name."""

    @abstractmethod
    def discard(self) -> None:
        """Leave nothing behind."""

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close, or discard after an error."""
        if kind is not None:
            self.discard()
            return
        try:
            self.close()
        except BaseException:
            self.discard()
            raise


class JsonLinesWriter(Writer):
    """One line a record, in order: an array for each output, or `{"error": ..., "line": ...}`.

    Floats have as many digits as tell them apart; `NaN` and `Infinity` are written as Python does.
    """

    def __init__(self, path: Path | None, outputs: Sequence[TensorSpec]) -> None:
        """Write to `path`, or to standard output."""
        self._new = None if path is None else NewFile(path)
        self._path = Path("standard output") if path is None else path
        self._file: TextIO = sys.stdout
        if self._new is not None:
            self._file = io.TextIOWrapper(self._new.file, encoding="utf-8", newline="\n")
        self._outputs = outputs

    def write(self, batch: Batch, outputs: Mapping[str, Array]) -> None:
        """Append a line for each record."""
        for record in range(batch.records):
            members = (
                f"{json.dumps(spec.name)}: "
                + json_text(outputs[spec.name][record] if batch.rows else outputs[spec.name])
                for spec in self._outputs
            )
            self._line(f"{{{', '.join(members)}}}")

    def write_error(self, record: BadRecord) -> None:
        """Append a line that says what is wrong."""
        self._line(json.dumps({"error": str(record.error), "line": record.line}))

    def close(self) -> None:
        """Complete the file."""
        with write_errors(self._path):
            self._file.flush()
            if self._new is not None:
                self._new.keep()

    def discard(self) -> None:
        """Remove the file; what went to standard output stays."""
        if self._new is not None:
            self._new.remove()

    def _line(self, text: str) -> None:
        with write_errors(self._path):
            self._file.write(text + "\n")


def json_text(array: Array) -> str:
    """An array as nested JSON lists, as short as its dtype allows."""
    flat = array.reshape(-1)
    if flat.dtype.kind == "f":
        # In their own precision: 0.1 as float32 is `0.1`, not `0.10000000149011612`.
        items: list[str] = flat.astype("U32").tolist()
        if not np.isfinite(flat).all():
            names = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
            items = [names.get(item, item) for item in items]
    elif flat.dtype.kind == "b":
        items = ["true" if item else "false" for item in flat.tolist()]
    else:
        items = list(map(str, flat.tolist()))
    for axis in reversed(range(array.ndim)):
        count = math.prod(array.shape[:axis])
        size = array.shape[axis]
        items = [
            f"[{', '.join(items[index * size : (index + 1) * size])}]" for index in range(count)
        ]
    return items[0]


@dataclass(frozen=True, slots=True)
class _Piece:
    """The outputs of one call."""

    first: int
    records: int
    rows: bool
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class _Stored:
    """One array of the file, and where its bytes are in its scratch file."""

    name: str
    spec: TensorSpec
    shape: tuple[int, ...]
    begin: int
    bytes: int


class ArraysWriter(Writer):
    """Every output as one array, records one after the other.

    Where records differ in their sizes, each output of each record is an array of its own, named
    `<output>.<index of the record>`.
    """

    def __init__(self, path: Path, outputs: Sequence[TensorSpec]) -> None:
        """Write to `path`, whose suffix tells the format."""
        self._path = path
        self._outputs = outputs
        self._new = NewFile(path)
        self._pieces: list[_Piece] = []
        self._cleanup = contextlib.ExitStack()
        with write_errors(path):
            self._scratch = {
                spec.name: self._cleanup.enter_context(tempfile.TemporaryFile(dir=path.parent))
                for spec in outputs
            }

    def write(self, batch: Batch, outputs: Mapping[str, Array]) -> None:
        """Append the outputs of one call."""
        shapes = tuple(outputs[spec.name].shape for spec in self._outputs)
        self._pieces.append(_Piece(batch.first, batch.records, batch.rows, shapes))
        for spec in self._outputs:
            array = np.ascontiguousarray(self._stored(spec, outputs[spec.name]))
            with write_errors(self._path):
                self._scratch[spec.name].write(array.reshape(-1).view(np.uint8).data)

    def write_error(self, record: BadRecord) -> None:
        """A record at fault has no rows."""

    def close(self) -> None:
        """Assemble the file."""
        with write_errors(self._path):
            arrays = self._arrays()
            if self._path.suffix == ".npz":
                self._write_npz(arrays)
            else:
                self._write_safetensors(arrays)
            self._cleanup.close()
            self._new.keep()

    def discard(self) -> None:
        """Remove everything."""
        self._new.remove()
        with contextlib.suppress(OSError):  # on a full disk, of what was still to be written
            self._cleanup.close()

    def _stored(self, spec: TensorSpec, array: Array) -> Array:
        """`.npz` has no bf16, so it stays float32 there."""
        if spec.dtype == "bf16" and self._path.suffix != ".npz":
            return f32_to_bf16(array.astype(np.float32, copy=False))
        return array

    def _dtype(self, spec: TensorSpec) -> np.dtype[np.generic]:
        wide = spec.dtype == "bf16" and self._path.suffix == ".npz"
        return np.dtype("<f4") if wide else DTYPES[spec.dtype].numpy

    def _arrays(self) -> list[_Stored]:
        arrays: list[_Stored] = []
        together = self._together()
        for index, spec in enumerate(self._outputs):
            itemsize = self._dtype(spec).itemsize
            begin = 0
            shapes = [piece.shapes[index] for piece in self._pieces]
            if together:
                shape = shapes[0]
                if len(shapes) > 1:
                    shape = (sum(shape[0] for shape in shapes), *shape[1:])
                size = math.prod(shape) * itemsize
                arrays.append(_Stored(spec.name, spec, shape, 0, size))
                continue
            for piece, shape in zip(self._pieces, shapes, strict=True):
                item = shape[1:] if piece.rows else shape
                size = math.prod(item) * itemsize
                for record in range(piece.first, piece.first + piece.records):
                    arrays.append(_Stored(f"{spec.name}.{record}", spec, item, begin, size))
                    begin += size
        return arrays

    def _together(self) -> bool:
        """Whether every output is one array."""
        first, *others = self._pieces or [_Piece(0, 0, False, ())]
        if not others:
            return bool(self._pieces)
        return all(
            piece.rows == first.rows
            and all(
                shape and shape[1:] == wanted[1:]
                for shape, wanted in zip(piece.shapes, first.shapes, strict=True)
            )
            for piece in self._pieces
        )

    def _copy(self, stored: _Stored, file: IO[bytes]) -> None:
        scratch = self._scratch[stored.spec.name]
        scratch.seek(stored.begin)
        left = stored.bytes
        while left:
            block = scratch.read(min(_BLOCK, left))
            file.write(block)
            left -= len(block)

    def _write_npz(self, arrays: Sequence[_Stored]) -> None:
        with zipfile.ZipFile(self._new.file, "w") as archive:
            for stored in arrays:
                member = zipfile.ZipInfo(f"{stored.name}.npy", _DATE)
                with archive.open(member, "w", force_zip64=True) as file:
                    header = {
                        "descr": self._dtype(stored.spec).str,
                        "fortran_order": False,
                        "shape": stored.shape,
                    }
                    np.lib.format.write_array_header_1_0(file, header)
                    self._copy(stored, file)

    def _write_safetensors(self, arrays: Sequence[_Stored]) -> None:
        header: dict[str, object] = {}
        position = 0
        for stored in arrays:
            header[stored.name] = {
                "dtype": DTYPES[stored.spec.dtype].safetensors,
                "shape": list(stored.shape),
                "data_offsets": [position, position + stored.bytes],
            }
            position += stored.bytes
        text = json.dumps(header, separators=(",", ":")).encode("ascii")
        text += b" " * (-len(text) % 8)
        self._new.file.write(struct.pack("<Q", len(text)) + text)
        for stored in arrays:
            self._copy(stored, self._new.file)
