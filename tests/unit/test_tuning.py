"""Tables of tiles that were measured, and the model that chooses where they have no row."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from fusec.diagnostics import InputError
from fusec.kernels import tuning
from fusec.kernels.triton_gemm import UNITS, Tile
from fusec.kernels.tuning import (
    TIERS,
    Key,
    Row,
    candidates,
    choosing,
    cost,
    estimated_tile,
    read_table,
    shipped,
    table_text,
    tile_for,
    tuned_tile,
)
from fusec.target import GPU_TARGETS, target_named

KEY = Key("linear.triton", "bf16", 6144, 4096, "few")
ODD = Tile(16, 32, 512, 2, 3, group=4, options=(("waves_per_eu", 2),), constants=(("DEEP", 1),))
ROW = Row(KEY, ODD, "a GPU", 12.5)


@pytest.mark.parametrize("name", GPU_TARGETS)
def test_shipped_tables_are_sound(name: str) -> None:
    path = tuning.SHIPPED / f"{name}.json"
    rows = shipped(name)
    assert rows == read_table(path, name)
    assert not (GPU_TARGETS[name].family == "amdgpu" and rows), "no AMD GPU was ever measured"


def test_a_table_is_written_sorted_and_read_again(tmp_path: Path) -> None:
    others = [dataclasses.replace(KEY, tier=tier, columns=64) for tier in reversed(TIERS)]
    rows = [ROW, *(Row(key, ODD, "a GPU", 3) for key in others)]
    path = tmp_path / "table.json"
    path.write_text(table_text("sm_90", rows), encoding="utf-8")
    first = path.read_bytes()
    table = read_table(path, "sm_90")
    assert table == {row.key: row for row in rows}
    assert [key.columns for key in table] == [64] * len(TIERS) + [6144]
    path.write_text(table_text("sm_90", reversed(rows)), encoding="utf-8")
    assert path.read_bytes() == first
    path.write_text(table_text("sm_90", []), encoding="utf-8")
    assert read_table(path, "sm_90") == {}


def test_a_row_comes_before_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = target_named("sm_90")
    assert tuned_tile(target, KEY) is None
    assert tile_for(target, KEY) == estimated_tile(target, KEY)
    (tmp_path / "sm_90.json").write_text(table_text("sm_90", [ROW]), encoding="utf-8")
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path)
    shipped.cache_clear()
    try:
        assert tuned_tile(target, KEY) == ODD == tile_for(target, KEY)
        assert tuned_tile(target_named("gfx950"), KEY) is None
    finally:
        shipped.cache_clear()


def test_who_lowers_is_asked_first() -> None:
    target = target_named("gfx950")
    other = dataclasses.replace(KEY, tier="many")
    usual = tile_for(target, KEY), tile_for(target, other)
    with choosing(lambda target, key: ODD if key == KEY else None):
        assert (tile_for(target, KEY), tile_for(target, other)) == (ODD, usual[1])
    assert (tile_for(target, KEY), tile_for(target, other)) == usual


def test_kernels_that_do_more_than_the_product_have_smaller_tiles() -> None:
    for target in GPU_TARGETS.values():
        key = dataclasses.replace(KEY, kernel="linear_epilogue.triton", tier="many")
        tiles = candidates(target, key)
        assert tiles
        assert all(tile.rows * tile.columns <= 64 * tile.warps * target.wave_size for tile in tiles)


def broken(change: dict[str, Any], tile: dict[str, Any] | None = None) -> dict[str, Any]:
    """A table of one row with some members changed; one that is `None` is left out."""
    row: dict[str, Any] = {
        "kernel": "linear.triton",
        "dtype": "bf16",
        "n": 64,
        "k": 64,
        "tier": "few",
        "device": "a GPU",
        "microseconds": 1.5,
    }
    whole = {"rows": 16, "columns": 64, "depth": 64, "warps": 4, "stages": 2, "group": 8}
    row["tile"] = {**whole, "options": {}, "constants": {}, **(tile or {})}
    row.update(change)
    held = {name: value for name, value in row.items() if value is not None}
    return {"schema": "fusec.tuning/1", "arch": "sm_90", "rows": [held]}


UNSOUND: list[tuple[Any, str]] = [
    ([], "the table is not an object"),
    ({"schema": "fusec.tuning/1", "arch": "sm_90"}, "the table lacks, or should not have, `rows`"),
    ({"schema": "fusec.tuning/2", "arch": "sm_90", "rows": []}, "its schema is `fusec.tuning/2`"),
    ({"schema": "fusec.tuning/1", "arch": "gfx950", "rows": []}, "it is for `gfx950`, not"),
    (
        {"schema": "fusec.tuning/1", "arch": "sm_90", "rows": {}},
        "`rows` of the table is not a list",
    ),
    ({"schema": "fusec.tuning/1", "arch": "sm_90", "rows": [1]}, "row 0 is not an object"),
    (broken({"device": None}), "row 0 lacks, or should not have, `device`"),
    (broken({"speed": 1}), "row 0 lacks, or should not have, `speed`"),
    (broken({"n": "64"}), "`n` of row 0 is not an integer"),
    (broken({"n": True}), "`n` of row 0 is not an integer"),
    (broken({"k": 0}), "are not all positive"),
    (broken({"microseconds": 0}), "are not all positive"),
    (broken({"microseconds": float("inf")}), "are not all positive"),
    (broken({"microseconds": float("nan")}), "are not all positive"),
    (broken({"tier": "lots"}), "`tier` of row 0 is not one of few, several, some, many"),
    (broken({"dtype": "float"}), "`dtype` of row 0 is no dtype: `float`"),
    (broken({}, {"rows": 24}), "`rows` of the tile of row 0 is no power of two from 16 on"),
    (broken({}, {"depth": 8}), "`depth` of the tile of row 0 is no power of two from 16 on"),
    (broken({}, {"stages": 0}), "`stages` and `group` of the tile of row 0 are not both positive"),
    (broken({}, {"options": {"num_ctas": 1.5}}), "`num_ctas` of `options` of the tile of row 0"),
]


@pytest.mark.parametrize(("document", "message"), UNSOUND)
def test_unsound_tables(document: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_table(path, "sm_90")
    assert message in str(caught.value)
    assert caught.value.at == str(path)


def test_one_product_has_one_row(tmp_path: Path) -> None:
    document = broken({})
    document["rows"] *= 2
    path = tmp_path / "table.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    message = "row 1 is a second one for `linear.triton` of bf16, n = 64, k = 64, few rows"
    with pytest.raises(InputError, match=message):
        read_table(path, "sm_90")


def test_a_table_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tuning table can be read"):
        read_table(tmp_path / "missing.json", "sm_90")
    path = tmp_path / "table.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="is not JSON"):
        read_table(path, "sm_90")


@pytest.mark.parametrize("name", GPU_TARGETS)
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_the_model_prefers_the_least_cost(name: str, dtype: str) -> None:
    target = target_named(name)
    for columns, length in ((6144, 4096), (129280, 7168), (128, 2880), (33, 16)):
        for tier in TIERS:
            key = Key("linear.triton", dtype, columns, length, tier)
            tiles = candidates(target, key)
            costs = [cost(target, key, tile) for tile in tiles]
            assert len(set(tiles)) == len(tiles) and min(costs) > 0
            assert estimated_tile(target, key) == tiles[costs.index(min(costs))]


def test_small_results_have_small_tiles() -> None:
    target = target_named("gfx942")
    small, large = (
        estimated_tile(target, Key("linear.triton", "bf16", columns, 4096, "some"))
        for columns in (512, 131072)
    )
    assert small.rows * small.columns < large.rows * large.columns
    assert -(-256 // small.rows) * -(-512 // small.columns) < UNITS[target.name]
