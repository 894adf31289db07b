"""Batches of inputs from files, and outputs to files: what `fusec run` reads and writes.

`.npz` and `.safetensors` hold one array for each input, `.jsonl` one record a line.  Nothing is
held but the batch at hand.

A model whose inputs and outputs begin with the symbol `batch` is run in batches: rows of arrays,
or consecutive records of equal sizes.  Any other model is run once for a file of arrays, and once
for each record.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from fusec.diagnostics import InputError, UsageError
from fusec.runtime.artifact import Artifact, TensorSpec
from fusec.runtime.batches import BadRecord, Batch, Batching
from fusec.runtime.model import Array
from fusec.runtime.reading import (
    ArrayFile,
    NpzFile,
    RecordReader,
    SafetensorsFile,
    array_batches,
    count_lines,
    count_rows,
    located,
    open_lines,
)
from fusec.runtime.writing import ArraysWriter, JsonLinesWriter, Writer

__all__ = [
    "BadRecord",
    "Batch",
    "Batches",
    "RunSummary",
    "Writer",
    "check_format",
    "open_writer",
    "read_arrays",
    "read_batches",
    "run_batches",
    "tokenizer_of",
]

STANDARD = Path("-")
"""Standard input or output, as `.jsonl`."""

_ARRAYS: Mapping[str, Callable[[Path], ArrayFile]] = {
    ".npz": NpzFile,
    ".safetensors": SafetensorsFile,
}


class Runs(Protocol):
    """What `run_batches` needs of a model."""

    def run(self, inputs: Mapping[str, object]) -> dict[str, Array]:
        """Run it once."""


@dataclass(frozen=True, slots=True)
class Batches:
    """The batches of a file, made as they are asked for.

    Attributes:
        at: the file, for messages.
        records: how many it holds, bad ones included; `None` if that is not known.
        batching: how they go together.
    """

    at: str
    records: int | None
    batching: Batching
    _start: Callable[[], Iterator[Batch | BadRecord]]

    def __iter__(self) -> Iterator[Batch | BadRecord]:
        """The batches in order; a record at fault comes as a `BadRecord`, and the rest goes on.

        Raises:
            InputError: the file as a whole is at fault.
        """
        return self._start()


def read_batches(
    path: Path,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    symbols: Mapping[str, tuple[int, int]],
    batch_size: int | None = None,
    tokenizer: bytes | None = None,
) -> Batches:
    """Open a file of inputs.

    Args:
        path: ends in `.npz`, `.safetensors` or `.jsonl`; `-` is `.jsonl` on standard input.
        inputs: of the model.
        outputs: of the model.
        symbols: inclusive range of each symbolic size.
        batch_size: records in a batch, at most; by default 32, or what the model takes, and fewer
            where their outputs are large.
        tokenizer: the bytes of `tokenizer.json`, for records with `text`.

    Raises:
        InputError: the file cannot be read, or the model has no batches of that size.
    """
    batching = Batching.of(inputs, outputs, symbols, batch_size)
    if path.suffix in _ARRAYS:
        open_file = _ARRAYS[path.suffix]
        with contextlib.closing(open_file(path)) as file:
            rows = count_rows(file, batching)

        def arrays() -> Iterator[Batch | BadRecord]:
            with contextlib.closing(open_file(path)) as file:
                yield from array_batches(path, file, inputs, symbols, batching)

        return Batches(str(path), rows, batching, arrays)
    if path.suffix != ".jsonl" and path != STANDARD:
        raise InputError(
            f"cannot tell what `{path}` is from its name",
            hint="inputs are `.npz`, `.safetensors` or `.jsonl`",
        )
    lines = open_lines(None if path == STANDARD else path)
    at = "standard input" if path == STANDARD else str(path)

    def records() -> Iterator[Batch | BadRecord]:
        reader = RecordReader(inputs, symbols, batching, tokenizer)
        yield from reader.batches(lines(), at)

    count = None if path == STANDARD else count_lines(path)
    return Batches(at, count, batching, records)


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """The arrays called `names` of a `.npz` or `.safetensors` file, whole; others are left out.

    Raises:
        InputError: the file cannot be read, or lacks one.
    """
    if path.suffix not in _ARRAYS:
        raise InputError(
            f"cannot tell what `{path}` is from its name",
            hint="inputs are `.npz` or `.safetensors`",
        )
    with contextlib.closing(_ARRAYS[path.suffix](path)) as file:
        held = file.shapes()
        if missing := [name for name in names if name not in held]:
            hint = f"the inputs are {', '.join(f'`{name}`' for name in names)}"
            raise InputError(f"the file has no input `{missing[0]}`", at=str(path), hint=hint)
        return {name: file.take(name, None) for name in names}


def open_writer(path: Path | None, outputs: Sequence[TensorSpec]) -> Writer:
    """Open a file for outputs; use it in a `with` statement.

    Args:
        path: ends in `.npz`, `.safetensors` or `.jsonl`; `None` or `-` is `.jsonl` on standard
            output.
        outputs: of the model.

    Raises:
        InputError: the folder cannot be written to.
        UsageError: the name tells no format.
    """
    if path is None or path == STANDARD:
        return JsonLinesWriter(None, outputs)
    if path.suffix == ".jsonl":
        return JsonLinesWriter(path, outputs)
    check_format(path)
    return ArraysWriter(path, outputs)


def check_format(path: Path) -> None:
    """Refuse the name of an output that tells no format.

    Raises:
        UsageError: it does not end in `.npz`, `.safetensors` or `.jsonl`.
    """
    if path.suffix not in (*_ARRAYS, ".jsonl"):
        raise UsageError(
            f"cannot tell what `{path}` should be from its name",
            hint="outputs are `.npz`, `.safetensors` or `.jsonl`",
        )


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What became of a file of inputs.

    Attributes:
        records: that have outputs.
        failed: that are at fault.
    """

    records: int
    failed: int


def run_batches(
    model: Runs,
    batches: Batches,
    writer: Writer,
    *,
    on_error: Callable[[BadRecord], None] | None = None,
    on_records: Callable[[int], None] | None = None,
) -> RunSummary:
    """Run every batch and write its outputs in order; the writer stays open.

    Where a batch of records fails, its records are run one by one, so that only those at fault
    have no outputs.

    Args:
        model: to run.
        batches: from `read_batches`.
        writer: from `open_writer`.
        on_error: called with each record at fault.
        on_records: called with the number of records done since the last call.

    Raises:
        InputError: a file of arrays is at fault.
    """
    done = failed = 0
    for item in batches:
        for outcome in _outcomes(model, item, batches):
            if isinstance(outcome, BadRecord):
                failed += 1
                writer.write_error(outcome)
                if on_error is not None:
                    on_error(outcome)
            else:
                batch, outputs = outcome
                done += batch.records
                writer.write(batch, outputs)
            if on_records is not None:
                on_records(1 if isinstance(outcome, BadRecord) else outcome[0].records)
    return RunSummary(done, failed)


def _outcomes(
    model: Runs, item: Batch | BadRecord, batches: Batches
) -> Iterator[tuple[Batch, dict[str, Array]] | BadRecord]:
    """The outputs of a batch, or of each of its records if it fails as a whole."""
    if isinstance(item, BadRecord):
        yield item
        return
    try:
        outputs = _run(model, item, batches.batching)
    except InputError as error:
        at = batches.at
        if not item.lines:
            last = item.first + item.records - 1
            where = f": records {item.first} to {last}" if item.records else ""
            raise located(error, f"{at}{where}") from None
        if item.records == 1:
            line = item.lines[0]
            yield BadRecord(item.first, line, located(error, f"{at}:{line}"))
            return
    else:
        yield item, outputs
        return
    for single in item.single():
        yield from _outcomes(model, single, batches)


def _run(model: Runs, batch: Batch, batching: Batching) -> dict[str, Array]:
    """The outputs of a batch; one too small for the model is filled up with its last row."""
    missing = batching.low - batch.records if batch.rows else 0
    if missing <= 0:
        return model.run(batch.inputs)
    filled = dict(batch.inputs)
    for name in batching.inputs:
        rows = batch.inputs[name]
        filled[name] = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
    return {name: rows[: batch.records] for name, rows in model.run(filled).items()}


def tokenizer_of(artifact: Artifact) -> bytes | None:
    """The bytes of the artifact's `tokenizer.json`, if it has one."""
    name = artifact.manifest.tokenizer
    return None if name is None else bytes(artifact.entry(name))
