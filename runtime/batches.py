"""How inputs become calls of a model: which dim counts records, and how many go together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fusec.diagnostics import InputError
from fusec.dtypes import DTYPES
from fusec.runtime.artifact import TensorSpec
from fusec.runtime.model import Array
from fusec.symbolic import evaluate, symbol

BATCH = "batch"
DEFAULT_SIZE = 32
OUTPUT_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Batch:
    """The inputs of one call.

    Attributes:
        inputs: an array for each input of the model.
        first: index of its first record in the file.
        records: how many it holds.
        lines: of the file, one for each record; empty for arrays.
        rows: whether record `i` is row `i` of every input and output; otherwise the call is one
            record.
    """

    inputs: Mapping[str, Array]
    first: int
    records: int
    lines: tuple[int, ...]
    rows: bool

    def single(self) -> Iterator[Batch]:
        """The same records, one in each batch."""
        for row in range(self.records):
            inputs = {name: array[row : row + 1] for name, array in self.inputs.items()}
            yield Batch(inputs, self.first + row, 1, self.lines[row : row + 1], self.rows)


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that is at fault; those after it go on.

    Attributes:
        index: of the record in the file.
        line: of the file.
        error: what is wrong with it; `at` has the file and line.
    """

    index: int
    line: int
    error: InputError


@dataclass(frozen=True, slots=True)
class Batching:
    """Whether and how records of a model go together.

    Attributes:
        rows: whether every input and output begins with `batch`.
        inputs: names of the inputs that begin with `batch`.
        size: of a batch, at most.
        asked: whether `size` was asked for, so that memory does not make it smaller.
        low: the smallest batch that the model takes.
        high: the largest batch that the model takes.
        outputs: of the model.
    """

    rows: bool
    inputs: frozenset[str]
    size: int
    asked: bool
    low: int
    high: int
    outputs: tuple[TensorSpec, ...]

    @staticmethod
    def of(
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        symbols: Mapping[str, tuple[int, int]],
        size: int | None,
    ) -> Batching:
        """For a model, and the `--batch-size` asked for, if any.

        Raises:
            InputError: the model has no batches of that size.
        """
        batched = frozenset(spec.name for spec in inputs if _begins_with_batch(spec))
        rows = bool(batched) and all(map(_begins_with_batch, outputs))
        low, high = symbols.get(BATCH, (1, 1)) if rows else (1, 1)
        if size is None:
            size = max(low, min(DEFAULT_SIZE, high))
            return Batching(rows, batched, size, False, low, high, tuple(outputs))
        if not rows:
            raise InputError(
                "this model has no batches: `batch` must be the first size of an input and of "
                "every output",
                hint="leave `--batch-size` out",
            )
        if not max(low, 1) <= size <= high:
            raise InputError(
                f"the batch size is {size}, but the artifact was compiled for {low}..{high}",
                hint=f"compile it with `--dim batch={min(low, size)}:{max(high, size)}`",
            )
        return Batching(rows, batched, size, True, low, high, tuple(outputs))

    def size_for(self, sizes: Mapping[str, int]) -> int:
        """How many records go together where the other symbols have the values `sizes`.

        Unless a size was asked for, outputs of one batch take at most `OUTPUT_BYTES`, as far as
        the model takes batches that small.
        """
        if self.asked or not self.rows:
            return self.size
        one = {**sizes, BATCH: 1}
        needed = sum(
            math.prod(evaluate(dim, one) for dim in spec.shape) * DTYPES[spec.dtype].itemsize
            for spec in self.outputs
        )
        return max(self.low, 1, min(self.size, OUTPUT_BYTES // max(needed, 1)))

    def split(self, records: int, size: int) -> list[int]:
        """Sizes of batches for `records` rows; even ones where a rest would be too small to run."""
        full, rest = divmod(records, size)
        if rest >= self.low or not rest or not full:
            return [size] * full + [rest] * bool(rest or not full)
        share, more = divmod(records, full + 1)
        return [share + (index < more) for index in range(full + 1)]


def _begins_with_batch(spec: TensorSpec) -> bool:
    return bool(spec.shape) and spec.shape[0] == symbol(BATCH)
