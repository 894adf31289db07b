"""Tiles of matrix products: those that were measured, and else those that a model of cost prefers.

`tuning/<architecture>.json` holds what was measured on a GPU, and ships with fusec.  A row names a
product and the tile that was fastest; a product without a row gets the one of its `candidates` of
which `cost` is least.  The model counts waves of programs, products and bytes by data sheets.  It
was never fitted to a measurement, so it says nothing of how long a product takes, only which tile
wastes less.  No table has a row for an AMD GPU, for none was ever at hand.

    {"schema": "fusec.tuning/1", "arch": "sm_90", "rows": [
      {"kernel": "linear.triton", "dtype": "bf16", "n": 6144, "k": 4096, "tier": "few",
       "tile": {"rows": 64, "columns": 128, "depth": 64, "warps": 4, "stages": 4, "group": 8,
                "options": {}, "constants": {}},
       "device": "NVIDIA H100 80GB HBM3", "microseconds": 21.5}]}

A table may also have a member `made`, texts by name: when and with what it was measured.  A table
that a person gives comes before the one that ships with fusec: `choosing`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from fusec.diagnostics import InputError, UsageError, reason_of, remedy_of
from fusec.dtypes import DTYPES
from fusec.kernels.triton_gemm import (
    FEW_ROWS,
    MFMA_16,
    SEVERAL_ROWS,
    SOME_ROWS,
    UNITS,
    Tile,
    splits_of,
)
from fusec.kernels.triton_rows import is_power_of_two
from fusec.target import GPU_TARGETS, DataSheet, Family, Target, data_sheet

SCHEMA = "fusec.tuning/1"

SHIPPED = Path(__file__).with_name("tuning")
"""The folder of the tables that ship with fusec."""

Tier = Literal["few", "several", "some", "many"]
"""How many rows a product has: at most as `ROWS_OF_TIERS` says, or more."""

TIERS: tuple[Tier, ...] = get_args(Tier)

ROWS_OF_TIERS = (FEW_ROWS, SEVERAL_ROWS, SOME_ROWS)
"""How many rows there are in each tier but the last."""

TYPICAL_ROWS: dict[Tier, int] = {"few": 1, "several": 64, "some": 256, "many": 4096}
"""For how many rows a tile is chosen."""

WIDE_CANDIDATES: dict[Family, dict[Tier, tuple[Tile, ...]]] = {
    "amdgpu": {
        "few": (
            Tile(rows=32, columns=64, depth=64, warps=4, stages=2, options=MFMA_16),
            Tile(rows=32, columns=32, depth=64, warps=4, stages=2, options=MFMA_16),
        ),
        "several": (
            Tile(rows=32, columns=64, depth=64, warps=4, stages=2, options=MFMA_16),
            Tile(rows=32, columns=32, depth=64, warps=4, stages=2, options=MFMA_16),
        ),
        "some": (
            Tile(rows=64, columns=64, depth=32, warps=4, stages=2, options=MFMA_16),
            Tile(rows=32, columns=64, depth=32, warps=4, stages=2, options=MFMA_16),
        ),
        "many": (
            Tile(rows=128, columns=128, depth=32, warps=8, stages=2, options=MFMA_16),
            Tile(rows=64, columns=64, depth=32, warps=4, stages=2, options=MFMA_16),
        ),
    },
    "nvidia": {
        "few": (Tile(rows=32, columns=64, depth=16, warps=4, stages=3),),
        "several": (Tile(rows=32, columns=64, depth=16, warps=4, stages=3),),
        "some": (Tile(rows=64, columns=64, depth=32, warps=4, stages=3),),
        "many": (Tile(rows=64, columns=64, depth=32, warps=4, stages=3),),
    },
}
"""Tiles of products of f32, which NVIDIA's matrix units do not take."""

CANDIDATES: dict[Family, dict[Tier, tuple[Tile, ...]]] = {
    "amdgpu": {
        "few": (
            Tile(rows=16, columns=64, depth=128, warps=4, stages=2, options=MFMA_16),
            Tile(rows=16, columns=64, depth=128, warps=4, stages=3, options=MFMA_16),
            Tile(rows=16, columns=32, depth=256, warps=4, stages=2, options=MFMA_16),
            Tile(rows=16, columns=128, depth=128, warps=4, stages=2, options=MFMA_16),
        ),
        "several": (
            Tile(rows=64, columns=64, depth=128, warps=4, stages=2, options=MFMA_16),
            Tile(rows=32, columns=64, depth=128, warps=4, stages=2, options=MFMA_16),
            Tile(rows=32, columns=64, depth=128, warps=4, stages=3, options=MFMA_16),
            Tile(rows=32, columns=128, depth=128, warps=4, stages=2, options=MFMA_16),
        ),
        "some": (
            Tile(rows=128, columns=128, depth=64, warps=4, stages=2, options=MFMA_16),
            Tile(rows=128, columns=64, depth=64, warps=4, stages=2, options=MFMA_16),
            Tile(rows=64, columns=128, depth=64, warps=4, stages=2, options=MFMA_16),
            Tile(rows=64, columns=64, depth=64, warps=4, stages=2, options=MFMA_16),
        ),
        "many": (
            Tile(rows=256, columns=256, depth=64, warps=8, stages=2, options=MFMA_16),
            Tile(rows=256, columns=128, depth=64, warps=8, stages=2, options=MFMA_16),
            Tile(rows=128, columns=256, depth=64, warps=8, stages=2, options=MFMA_16),
            Tile(rows=128, columns=128, depth=64, warps=4, stages=2, options=MFMA_16),
        ),
    },
    "nvidia": {
        "few": (
            Tile(rows=16, columns=64, depth=256, warps=4, stages=4),
            Tile(rows=16, columns=64, depth=128, warps=4, stages=6),
            Tile(rows=16, columns=128, depth=128, warps=8, stages=4),
        ),
        "several": (
            Tile(rows=64, columns=64, depth=128, warps=4, stages=4),
            Tile(rows=64, columns=128, depth=64, warps=4, stages=4),
            Tile(rows=64, columns=64, depth=64, warps=4, stages=4),
        ),
        "some": (
            Tile(rows=128, columns=128, depth=64, warps=8, stages=4),
            Tile(rows=128, columns=256, depth=64, warps=8, stages=3),
            Tile(rows=128, columns=64, depth=64, warps=4, stages=4),
            Tile(rows=64, columns=128, depth=64, warps=4, stages=4),
            Tile(rows=64, columns=128, depth=128, warps=4, stages=3),
            Tile(rows=64, columns=64, depth=128, warps=4, stages=3),
            Tile(rows=64, columns=64, depth=64, warps=4, stages=4),
        ),
        "many": (
            Tile(rows=128, columns=256, depth=64, warps=8, stages=4),
            Tile(rows=128, columns=128, depth=64, warps=8, stages=4),
        ),
    },
}
"""Tiles of products of bf16 and f16.  All fit into the shared memory of the smallest target of the
family, and their code objects have no spills; the first is taken where the model sees no
difference.  Matrix units of NVIDIA that are fed from shared memory take 64 rows at least: few rows
go through the older ones, and so read no more than there is."""

MOST_SUMS = {"linear_epilogue.triton": 64}
"""Sums of a lane, at most, for kernels that need registers for more than the product."""

_SHEETS = {name: sheet for name in GPU_TARGETS if (sheet := data_sheet(name)) is not None}


def _products_per_clock(sheet: DataSheet, dtype: str) -> int:
    """Multiplications by a compute unit; a power of two, to which peak rates are rounded."""
    rate = sheet.flops_per_second[dtype] / (2 * sheet.units * sheet.clock_hz)
    return 1 << round(math.log2(rate))


PRODUCTS_PER_CLOCK = {name: _products_per_clock(sheet, "bf16") for name, sheet in _SHEETS.items()}
"""Multiplications of bf16 by a compute unit: peak rates without sparsity."""

WIDE_PRODUCTS_PER_CLOCK = {
    name: _products_per_clock(sheet, "f32") for name, sheet in _SHEETS.items()
}
"""The same of f32."""

CACHE_BYTES_PER_CLOCK = 64
"""What a compute unit is given by caches: the path to the first-level cache of CDNA 3 and 4, and
that from the second-level cache to a multiprocessor of H100."""

MEMORY_BYTES_PER_CLOCK = {
    name: round(sheet.bytes_per_second / sheet.clock_hz) for name, sheet in _SHEETS.items()
}
"""What memory gives all units together."""


LATENCY = 2000
"""Clocks that a load from memory takes while many are under way: about a microsecond, assumed."""


@dataclass(frozen=True, slots=True)
class Key:
    """A product that a tile is chosen for.

    Attributes:
        kernel: the name of its record, such as `linear.triton`.
        dtype: of its operands.
        columns: of the result, N.
        length: of the sums, K.
        tier: how many rows it has.
    """

    kernel: str
    dtype: str
    columns: int
    length: int
    tier: Tier

    def __str__(self) -> str:
        """Its name in messages."""
        sizes = f"n = {self.columns}, k = {self.length}"
        return f"`{self.kernel}` of {self.dtype}, {sizes}, {self.tier} rows"


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured.

    Attributes:
        key: the product.
        tile: the fastest.
        device: the name of the GPU.
        microseconds: how long the product took.
    """

    key: Key
    tile: Tile
    device: str
    microseconds: float


Chooser: TypeAlias = Callable[[Target, Key], Tile | None]
"""Says which tile to take, or `None` to leave that to the tables that ship with fusec."""


def _no_choice(target: Target, key: Key) -> Tile | None:
    return None


_CHOOSER: ContextVar[Chooser] = ContextVar("chooser", default=_no_choice)


@contextmanager
def choosing(chooser: Chooser) -> Iterator[None]:
    """Ask `chooser` first for every tile, as long as this is entered."""
    token = _CHOOSER.set(chooser)
    try:
        yield
    finally:
        _CHOOSER.reset(token)


@dataclass(frozen=True, slots=True)
class Tables:
    """Tables of tiles that a person gave, by the architecture that each is for.

    Attributes:
        rows: of each.
        digests: SHA-256 of each file.
    """

    rows: Mapping[str, Mapping[Key, Row]]
    digests: Mapping[str, str]

    def tile(self, target: Target, key: Key) -> Tile | None:
        """The tile that a table has for `key`."""
        row = self.rows.get(target.name, {}).get(key)
        return None if row is None else row.tile


def read_tables(paths: Iterable[Path], targets: Sequence[str]) -> Tables:
    """The tables of `--tuning`.

    Raises:
        InputError: one cannot be read, or is not sound.
        UsageError: one is for none of `targets`, or two are for the same.
    """
    rows: dict[str, Mapping[Key, Row]] = {}
    digests: dict[str, str] = {}
    for path in paths:
        arch, table = read_any_table(path)
        if arch not in targets:
            given = ", ".join(f"`{name}`" for name in targets)
            raise UsageError(
                f"`--tuning {path}` is a table for `{arch}`, not for {given}",
                hint=f"add `--target {arch}`, or measure on such a device with `fusec tune`",
            )
        if arch in rows:
            raise UsageError(f"`--tuning {path}` is a second table for `{arch}`")
        rows[arch], digests[arch] = table, hashlib.sha256(path.read_bytes()).hexdigest()
    return Tables(rows, digests)


def tile_for(target: Target, key: Key) -> Tile:
    """The tile that was measured to be the fastest, else the one that the model prefers."""
    return tuned_tile(target, key) or estimated_tile(target, key)


def tuned_tile(target: Target, key: Key) -> Tile | None:
    """What was chosen for `key`: by who is asked first, then by the table that ships with fusec.

    `None` where neither says anything.
    """
    chosen = _CHOOSER.get()(target, key)
    if chosen is not None:
        return chosen
    row = shipped(target.name).get(key)
    return None if row is None else row.tile


def estimated_tile(target: Target, key: Key) -> Tile:
    """The candidate of which the model sees the least cost; the first of several."""
    return min(candidates(target, key), key=lambda tile: cost(target, key, tile))


def candidates(target: Target, key: Key) -> tuple[Tile, ...]:
    """The tiles that are worth measuring for `key`."""
    tiers = WIDE_CANDIDATES if key.dtype == "f32" else CANDIDATES
    found = tiers[target.family][key.tier]
    most = MOST_SUMS.get(key.kernel)
    if most is None:
        return found
    lanes = target.wave_size
    return tuple(tile for tile in found if tile.rows * tile.columns <= most * tile.warps * lanes)


def cost(target: Target, key: Key, tile: Tile) -> float:
    """Clocks that a product of `TYPICAL_ROWS` takes, as the model has it.

    Programs run in waves, one to each compute unit.  One multiplies and waits for bytes from the
    caches.  All together wait for memory, which gives no more than it can, and no more than what
    was asked for `LATENCY` ago: the stages that programs load ahead.  The parts of a split sum are
    written and read again.
    """
    rows, columns, length = TYPICAL_ROWS[key.tier], key.columns, key.length
    units, size = UNITS[target.name], DTYPES[key.dtype].itemsize
    rate = (WIDE_PRODUCTS_PER_CLOCK if key.dtype == "f32" else PRODUCTS_PER_CLOCK)[target.name]
    tiles = -(-rows // tile.rows) * -(-columns // tile.columns)
    splits = 1 if key.tier == "many" else splits_of(length, tiles, tile, target)
    part = -(-length // tile.depth // splits) * tile.depth
    program = tile.rows * tile.columns * part / rate
    program += (tile.rows + tile.columns) * part * size / CACHE_BYTES_PER_CLOCK
    waves = -(-tiles * splits // units)
    ahead = (tile.stages - 1) * tile.columns * tile.depth * size * min(tiles * splits, units)
    memory = (rows + columns) * length * size
    if splits > 1:
        memory += 2 * splits * rows * columns * DTYPES["f32"].itemsize
    given = min(MEMORY_BYTES_PER_CLOCK[target.name], ahead / LATENCY)
    return max(waves * program, memory / given)


@cache
def shipped(arch: str) -> Mapping[Key, Row]:
    """The table that ships with fusec for `arch`; empty where there is none.

    Raises:
        InputError: it is not sound.
    """
    path = SHIPPED / f"{arch}.json"
    return read_table(path, arch) if path.exists() else {}


def read_table(path: Path, arch: str) -> dict[Key, Row]:
    """The rows of a table.

    Args:
        path: of the file.
        arch: that it is for.

    Raises:
        InputError: there is no such file, or it is no table for `arch`; the message says where.
    """
    found, rows = read_any_table(path)
    if found != arch:
        raise _Reader(path).error(f"it is for `{found}`, not `{arch}`")
    return rows


def read_any_table(path: Path) -> tuple[str, dict[Key, Row]]:
    """What a table is for, and its rows.

    Args:
        path: of the file.

    Raises:
        InputError: there is no such file, or it is no table; the message says where.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"no tuning table can be read: {reason_of(error)}"
        raise InputError(message, at=str(path), hint=remedy_of(error)) from error
    except ValueError as error:
        hint = "write tables with `fusec tune`"
        message = f"a tuning table is not JSON: {error}"
        raise InputError(message, at=str(path), hint=hint) from error
    reader = _Reader(path)
    made = {"made": dict} if isinstance(document, dict) and "made" in document else {}
    reader.members(document, {"schema": str, "arch": str, **made, "rows": list}, "the table")
    if document["schema"] != SCHEMA:
        raise reader.error(f"its schema is `{document['schema']}`, not `{SCHEMA}`")
    if made:
        reader.members(document["made"], dict.fromkeys(document["made"], str), "`made`")
    table: dict[Key, Row] = {}
    for index, row in enumerate(document["rows"]):
        read = reader.row(row, f"row {index}")
        if read.key in table:
            raise reader.error(f"row {index} is a second one for {read.key}")
        table[read.key] = read
    return document["arch"], table


def table_text(arch: str, rows: Iterable[Row], made: Mapping[str, str] | None = None) -> str:
    """A table as it is written, sorted, one row to a line.

    Args:
        arch: that it is for.
        rows: each for another product.
        made: when and with what they were measured.
    """
    ordered = sorted(rows, key=lambda row: _order(row.key))
    lines = ",\n".join(f"  {json.dumps(_row_json(row))}" for row in ordered)
    body = f"[\n{lines}\n]" if lines else "[]"
    about = "" if made is None else f', "made": {json.dumps(dict(made))}'
    head = f'{{"schema": {json.dumps(SCHEMA)}, "arch": {json.dumps(arch)}{about}, "rows": '
    return f"{head}{body}}}\n"


def _order(key: Key) -> tuple[str, str, int, int, int]:
    return key.kernel, key.dtype, key.columns, key.length, TIERS.index(key.tier)


def _row_json(row: Row) -> dict[str, object]:
    key, tile = row.key, row.tile
    return {
        "kernel": key.kernel,
        "dtype": key.dtype,
        "n": key.columns,
        "k": key.length,
        "tier": key.tier,
        "tile": {
            **{name: getattr(tile, name) for name in _TILE_NUMBERS},
            "options": dict(tile.options),
            "constants": dict(tile.constants),
        },
        "device": row.device,
        "microseconds": row.microseconds,
    }


_TILE_NUMBERS = ("rows", "columns", "depth", "warps", "stages", "group")
_POWERS_OF_TWO = ("rows", "columns", "depth", "warps")
_TILE = {**dict.fromkeys(_TILE_NUMBERS, int), "options": dict, "constants": dict}
_ROW = {
    "kernel": str,
    "dtype": str,
    "n": int,
    "k": int,
    "tier": str,
    "tile": dict,
    "device": str,
    "microseconds": float,
}
_WORDS = {str: "a text", int: "an integer", float: "a number", list: "a list", dict: "an object"}
_LEAST = {"rows": 16, "columns": 16, "depth": 16}


class _Reader:
    """Reads a table and says where it is not sound."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def error(self, message: str) -> InputError:
        """What is wrong with the table."""
        hint = "write tables with `fusec tune`, or remove the row"
        return InputError(f"a tuning table is not sound: {message}", at=str(self.path), hint=hint)

    def members(self, held: Any, kinds: Mapping[str, type], where: str) -> None:
        """Check that an object has these members and no others."""
        if not isinstance(held, dict):
            raise self.error(f"{where} is not an object")
        if set(held) != set(kinds):
            other = ", ".join(f"`{name}`" for name in sorted(set(held) ^ set(kinds)))
            raise self.error(f"{where} lacks, or should not have, {other}")
        for name, kind in kinds.items():
            wanted = (int, float) if kind is float else (kind,)
            if type(held[name]) not in wanted:
                raise self.error(f"`{name}` of {where} is not {_WORDS[kind]}")

    def row(self, held: Any, where: str) -> Row:
        """A row of the table."""
        self.members(held, _ROW, where)
        if held["tier"] not in TIERS:
            raise self.error(f"`tier` of {where} is not one of {', '.join(TIERS)}")
        if held["dtype"] not in DTYPES:
            raise self.error(f"`dtype` of {where} is no dtype: `{held['dtype']}`")
        if held["n"] < 1 or held["k"] < 1 or not 0 < held["microseconds"] < math.inf:
            raise self.error(f"`n`, `k` and `microseconds` of {where} are not all positive")
        key = Key(held["kernel"], held["dtype"], held["n"], held["k"], held["tier"])
        tile = self.tile(held["tile"], f"the tile of {where}")
        return Row(key, tile, held["device"], float(held["microseconds"]))

    def tile(self, held: Any, where: str) -> Tile:
        """The tile of a row."""
        self.members(held, _TILE, where)
        for name in _POWERS_OF_TWO:
            if not is_power_of_two(held[name]) or held[name] < _LEAST.get(name, 1):
                least = _LEAST.get(name, 1)
                raise self.error(f"`{name}` of {where} is no power of two from {least} on")
        if held["stages"] < 1 or held["group"] < 1:
            raise self.error(f"`stages` and `group` of {where} are not both positive")
        for name in ("options", "constants"):
            self.members(held[name], dict.fromkeys(held[name], int), f"`{name}` of {where}")
        numbers = {name: held[name] for name in _TILE_NUMBERS}
        options, constants = (
            tuple(sorted(held[name].items())) for name in ("options", "constants")
        )
        return Tile(**numbers, options=options, constants=constants)
